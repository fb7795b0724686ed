"""LeJEPA: SIGReg against other versions and as a statistic, both terms, dropped cells, the average."""

from math import exp

import pytest
import torch
from torch import Tensor

from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, LossOutput, Progress
from vidssl.maskers.bevt import Random3D, Tube
from vidssl.objectives.lejepa import LeJEPA, directions_of_step, sigreg

HEAD = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8, "num_directions": 32}
CPU = torch.device("cpu")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_sigreg(projections: Tensor, directions: Tensor) -> float:
    """Point by point, as the formula stands."""
    total, (count, _) = 0.0, projections.shape
    for direction in directions.T:
        along = (projections @ direction).double()
        for knot in range(17):
            t = 3 * knot / 16
            weight = (3 / 16 if knot in (0, 16) else 6 / 16) * exp(-(t**2) / 2)
            cos, sin = float((t * along).cos().mean()), float((t * along).sin().mean())
            total += count * weight * ((cos - exp(-(t**2) / 2)) ** 2 + sin**2) / directions.shape[1]
    return total


def test_sigreg_is_its_formula_and_pinned() -> None:
    projections, directions = 0.7 * rows(12, 8) + 0.3, directions_of_step(5, 8, 6, CPU)
    value = float(sigreg(projections, directions))
    assert value == pytest.approx(slow_sigreg(projections, directions), rel=1e-5)
    # the scaling: the statistic times N, mean over directions; one without N would be a twelfth
    assert value == pytest.approx(1.988885, rel=1e-5)
    views = torch.stack((projections, 2 * projections))
    both = (sigreg(projections, directions) + sigreg(2 * projections, directions)) / 2
    assert torch.allclose(sigreg(views, directions), both)


def test_sigreg_is_that_of_lightly() -> None:
    lejepa_loss = pytest.importorskip(
        "lightly.loss.lejepa_loss", reason="lightly, of the extra 'parity', is not installed"
    )
    theirs = lejepa_loss.SIGReg(num_vectors=64)
    projections = (0.5 * rows(3, 20, 8) + 0.2).requires_grad_()
    torch.manual_seed(7)
    expected = theirs(projections)
    torch.manual_seed(7)
    drawn = torch.randn(8, 64)
    value = sigreg(projections, drawn / drawn.norm(dim=0))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, projections)[0] for x in (value, expected)]
    assert torch.allclose(*gradients, atol=1e-6)
    centre = lejepa_loss.lejepa_invariance_loss(all_proj=projections, global_proj=projections[:2])
    own = (projections - projections[:2].mean(dim=0)).square().mean()
    assert torch.allclose(centre, own)


@pytest.mark.parametrize("count", [64, 512])
def test_standard_normal_samples_have_one_value_whatever_their_number(count: int) -> None:
    values = [
        float(sigreg(rows(count, 16, seed=seed), directions_of_step(seed, 16, 64, CPU))) for seed in range(24)
    ]
    assert sum(values) / len(values) == pytest.approx(1.05, abs=0.1)
    assert float(sigreg(torch.zeros(count, 16), directions_of_step(0, 16, 4, CPU))) > 0.3 * count
    assert float(sigreg(3 * rows(count, 16), directions_of_step(0, 16, 64, CPU))) > 10


def test_directions_are_unit_vectors_and_a_function_of_the_step() -> None:
    first = directions_of_step(3, 16, 5, CPU)
    assert torch.allclose(first.norm(dim=0), torch.ones(5), atol=1e-6)
    torch.manual_seed(1)
    assert torch.equal(first, directions_of_step(3, 16, 5, CPU))
    assert not torch.equal(first, directions_of_step(4, 16, 5, CPU))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(
        embed_dim=24, depth=1, num_heads=2, patch_size=(2, 8, 8), positions="rotary", class_token=True,
        init_std=0.3,
    )  # fmt: skip


def lejepa(masker: Random3D | None = None, **keys: object) -> LeJEPA:
    torch.manual_seed(1)
    return LeJEPA(vit(), masker, **{**HEAD, **keys})


def views(seed: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    globals_ = (torch.rand(6, 3, 4, 32, 32, generator=draw),)
    locals_ = tuple(torch.rand(6, 3, frames, 16, 16, generator=draw) for frames in (4, 2, 4))
    return Batch({"global": globals_, "local": locals_})


def step(objective: LeJEPA, batch: Batch, number: int = 0) -> LossOutput:
    return objective(batch, Progress(number, 10), torch.Generator().manual_seed(3))


def test_the_loss_is_invariance_and_weighted_sigreg_of_every_view() -> None:
    objective, batch = lejepa(sigreg_weight=0.1), views()
    output = step(objective, batch, 4)
    slots = [*batch.views["global"], *batch.views["local"]]
    vectors = torch.cat([objective.backbone(slot).pooled() for slot in slots])
    projected = objective.head(vectors).unflatten(0, (4, 6))
    invariance = torch.stack([(view - projected[0]).square().mean() for view in projected]).mean()
    spread = torch.stack([sigreg(view, directions_of_step(4, 8, 32, CPU)) for view in projected]).mean()
    assert torch.allclose(output.metrics["loss_invariance"], invariance, atol=1e-5)
    assert torch.allclose(output.metrics["loss_sigreg"], spread, atol=1e-5)
    assert torch.allclose(output.loss, invariance + 0.1 * spread, atol=1e-5)
    two = lejepa(views=("global",))
    assert two.needs_views == {"global": 2}
    pair = Batch({"global": (slots[0], slots[0].flip(-1))})
    vectors = torch.cat([two.backbone(slot).pooled() for slot in pair.views["global"]])
    projected = two.head(vectors).unflatten(0, (2, 6))
    expected = (projected - projected.mean(0)).square().mean()
    assert torch.allclose(step(two, pair).metrics["loss_invariance"], expected, atol=1e-5)


def test_cells_are_dropped_in_training_alone() -> None:
    objective, batch = lejepa(Random3D(ratio=0.75)), views()
    counts: list[int] = []
    objective.backbone.blocks[0].register_forward_hook(
        lambda module, given, made: counts.append(made.shape[1])
    )
    step(objective, batch)
    assert counts == [1 + 8, 1 + 2, 1 + 1]  # of 2x4x4, 2x2x2 and 1x2x2 cells, beside the class token
    objective.eval()
    counts.clear()
    step(objective, batch)
    assert counts == [1 + 32, 1 + 8, 1 + 4]


def test_the_average_follows_every_so_many_steps_and_trains_nothing() -> None:
    objective = lejepa(average_momentum=0.75, average_every_steps=2)
    assert objective.average is not None
    before = [p.clone() for p in objective.average.parameters()]
    with torch.no_grad():
        for parameter in objective.backbone.parameters():
            parameter.add_(1.0)
    objective.after_step(Progress(0, 10), torch.Generator())
    assert all(torch.equal(*pair) for pair in zip(before, objective.average.parameters(), strict=True))
    objective.after_step(Progress(1, 10), torch.Generator())
    for old, now in zip(before, objective.average.parameters(), strict=True):
        assert torch.allclose(now, old + 0.25, atol=1e-6)
    step(objective, views()).loss.backward()
    assert all(p.grad is None for p in objective.average.parameters())
    assert objective.encoder() is objective.average
    alone = lejepa()
    assert alone.encoder() is alone.trained_encoder()


def test_twenty_steps_lower_the_loss_and_keep_clips_apart() -> None:
    objective, batch = lejepa(sigreg_weight=1.0), views()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    outputs = []
    for number in range(20):
        output = step(objective, batch, number)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(Progress(number, 20), torch.Generator())
        outputs.append(output)
    assert outputs[-1].loss < 0.7 * outputs[0].loss
    features = outputs[-1].features
    assert features is not None
    assert float(features.std(dim=0).mean()) > 0.1
    assert objective.describe({key: float(x) for key, x in outputs[-1].metrics.items()})
    # SIGReg of normal samples is an aim that no batch beats: a run is not to be told that it learned nothing
    assert not any(each.baselines for each in objective.yardsticks())


def test_what_does_not_fit_is_refused() -> None:
    swin = VideoSwin(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window=(2, 3, 3))
    LeJEPA(swin, **HEAD)
    with pytest.raises(ValueError, match="VideoSwin cannot leave cells out"):
        LeJEPA(swin, Random3D(), **HEAD)
    with pytest.raises(ValueError, match="Tube hides different numbers"):
        LeJEPA(vit(), Tube(), **HEAD)
    with pytest.raises(ValueError, match=r"views are \[global, local\] or \[global\]"):
        lejepa(views=("local",))
    with pytest.raises(ValueError, match="set average_momentum, or leave it out"):
        lejepa(average_every_steps=2)
