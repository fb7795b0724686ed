"""What every objective of the table promises, and one that is moved in as CONTRIBUTING.md says."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from docs.compatibility.table import Trials, combinations, covering, random_batch
from vidssl.build import build
from vidssl.build.part_checks import check_declared, try_objective
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, recipe_from_text
from vidssl.errors import UsageError
from vidssl.interfaces import Progress
from vidssl.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "clip_order.yaml"
OWN = "docs/examples/clip_order.py:ClipOrder"


@pytest.fixture(autouse=True)
def moved_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's line in the table of objectives."""
    monkeypatch.setitem(OBJECTIVES, "clip_order", "docs.examples.clip_order:ClipOrder")


@pytest.fixture(params=[*OBJECTIVES, "clip_order"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    """A toy recipe of an objective, with a ViT and an FSQ tokenizer where it takes them."""
    trials = Trials(tmp_path)
    for one in combinations(request.param):
        if one.backbone in ("vit", None) and one.tokenizer in ("fsq", None):
            recipe = trials.recipe(one)
            with suppress(UsageError):  # of a masker that this objective cannot use
                build.check(recipe)
                return recipe
    raise AssertionError(f"{request.param} works with no masker")


def test_an_objective_keeps_to_its_interface(recipe: Recipe) -> None:
    objective = build.objective(recipe, say=lambda line: None)
    check_declared(objective)
    shapes = {name: build.views(stream.views).shapes for name, stream in recipe.data.streams.items()}
    try_objective(objective, shapes, batch_size=2)


def test_a_loss_follows_from_weights_batch_and_generator(recipe: Recipe) -> None:
    torch.manual_seed(0)
    objective = build.objective(recipe, say=lambda line: None).eval()
    torch.manual_seed(1)
    other = build.objective(recipe, say=lambda line: None).eval()
    other.load_state_dict(objective.state_dict())

    def loss(of: torch.nn.Module) -> float:
        return of(random_batch(recipe), Progress(0, 2), torch.Generator().manual_seed(3)).loss.item()

    with torch.no_grad():
        state = torch.random.get_rng_state()
        first = loss(objective)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert loss(objective) == first
        assert loss(other) == first


def test_the_example_works_with_backbones_that_read_pixels(tmp_path: Path) -> None:
    of_libraries = ("pytorchvideo", "timm", "torchvision")  # whose networks are no toys
    every = [one for one in covering("clip_order") if one.backbone not in of_libraries]
    refused = {one.backbone: why is not None for one, why in Trials(tmp_path).outcomes(every).items()}
    assert refused == {"factorized": True, "timesformer": False, "video_swin": False, "vit": False}


def test_the_recipe_of_the_example_is_checked_by_file_and_by_name() -> None:
    text = EXAMPLE.read_text()
    for kind in (OWN, "clip_order"):
        build.check(recipe_from_text(text.replace(OWN, str(ROOT / OWN) if kind == OWN else kind), "x.yaml"))


def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    videos = "{type: moving_digits, split: train, num_videos: 16, size: 48, num_frames: 8}"
    small = [f"data.video.{key}={videos}" for key in ("source", "test_source")]
    small += ["schedule.steps=2", "schedule.warmup_steps=0", "run.workers=0", "run.test_batches=1"]
    small += ["run.device=cpu", f"run.out={tmp_path / 'runs'}", "backbone.embed_dim=16", "backbone.depth=1"]
    assert main(["train", str(EXAMPLE), *small]) == 0
    assert (tmp_path / "runs" / "clip_order" / "checkpoints" / "step-000002.safetensors").is_file()


@pytest.mark.slow
def test_an_objective_is_moved_in_by_a_file_a_line_and_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of CONTRIBUTING.md in a copy of the repository, where the tests of all objectives pass."""
    leave = shutil.ignore_patterns(".*", "__pycache__", "runs", "dist")
    copy = Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=leave))
    (copy / "docs/examples/clip_order.py").rename(copy / "vidssl/objectives/clip_order.py")
    table = copy / "vidssl/objectives/__init__.py"
    line = '"svt": "vidssl.objectives.svt:SVT",'
    assert line in table.read_text()
    added = '"clip_order": "vidssl.objectives.clip_order:ClipOrder",'
    table.write_text(table.read_text().replace(line, f"{added}\n        {line}"))
    (copy / "docs/examples/clip_order.yaml").unlink()
    (copy / "recipes/clip_order.yaml").write_text(EXAMPLE.read_text().replace(OWN, "clip_order"))
    (copy / "tests/interfaces/test_objectives.py").unlink()
    tests = [
        "test_structure.py",
        "build/test_compatibility.py",
        "engine/test_resume.py",
        "engine/test_guard.py",
    ]
    tests += ["engine/test_collapse_watch.py", "objectives/test_float64.py"]
    words = [
        "-q",
        "-n0",
        "-pno:cacheprovider",
        "-knot yaml or clip_order",
        *(f"tests/{one}" for one in tests),
    ]
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(copy))
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=copy, capture_output=True, text=True
        )
    assert ran.returncode == 0, ran.stdout[-3000:]
