"""Every objective trains in float64, for gradient checks: derivatives are differences of the loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_runs import TOYS, make_world

from vidssl.build import build
from vidssl.config.recipe import load_recipe
from vidssl.data.loader import Loader
from vidssl.interfaces import Progress

STEP = 1e-8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float64")
    make_world(folder)
    return folder


@pytest.mark.parametrize("name", TOYS)
def test_derivatives_are_differences_of_the_loss(
    name: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    recipe = load_recipe(f"{name}.yaml")
    torch.manual_seed(0)
    objective = build.objective(recipe, say=lambda line: None).double().train()
    with Loader(build.streams(recipe), start_step=0) as loader:
        batch = next(loader).to(torch.device("cpu"))
    views = {view: tuple(slot.double() for slot in slots) for view, slots in batch.views.items()}
    batch, progress = replace(batch, views=views), Progress(0, 6, 2.0)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # of dropout and drop path
        return objective(batch, progress, torch.Generator().manual_seed(0)).loss

    value = loss()
    value.backward()
    assert value.dtype == torch.float64
    learned = [p for p in objective.parameters() if p.grad is not None]  # without a frozen last layer
    directions = [torch.randn_like(p) for p in learned]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(learned, directions, strict=True))

    def moved(by: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(learned, directions, alpha=by)
            return loss().item()

    if name != "tokenizer":  # its gradient skips the codebook, and is no derivative
        differences = (moved(STEP) - moved(-2 * STEP)) / (2 * STEP)
        assert slope == pytest.approx(differences, rel=1e-5)
    objective.after_step(progress, torch.Generator().manual_seed(0))
    assert {p.dtype for p in objective.encoder().parameters()} == {torch.float64}
