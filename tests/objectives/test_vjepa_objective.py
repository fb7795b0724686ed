"""V-JEPA: what is predicted of what, 2.1's dense loss and levels, the teacher, metrics and refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from docs.measure_visible import levjepa_flops, vjepa_flops
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, LossOutput, Progress
from vidssl.maskers.bevt import Random3D, Tube
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.parts.predictor import distance_weights
from vidssl.objectives.vjepa import VJEPA

PREDICTOR = {"predictor_dim": 12, "predictor_depth": 1, "predictor_heads": 2}
BLOCKS = MultiBlock(num_blocks=(2, 1), areas=(0.15, 0.5))


def vit(**keys: object) -> ViT:
    torch.manual_seed(0)
    return ViT(
        embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8), positions="rotary", init_std=0.1,
        **keys,
    )  # fmt: skip


def vjepa(backbone: ViT | None = None, **keys: object) -> VJEPA:
    torch.manual_seed(1)
    made = VJEPA(backbone or vit(), BLOCKS, **PREDICTOR, **keys)
    with torch.no_grad():  # a teacher that is no copy, and tokens that are not zero
        for parameter in [*made.teacher.parameters(), made.predictor.mask_tokens]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def clips(number: int = 3) -> Tensor:
    return torch.rand(number, 3, 4, 32, 32, generator=torch.Generator().manual_seed(2))


def step(objective: VJEPA, shown: Tensor, number: int = 0) -> LossOutput:
    return objective(Batch({"clip": (shown,)}), Progress(number, 10), torch.Generator().manual_seed(3))


@pytest.mark.parametrize("levels", [(), (0, 1)])
@pytest.mark.parametrize("by_distance", [True, False])
def test_the_loss_is_the_formula_cell_by_cell(levels: tuple[int, ...], by_distance: bool) -> None:
    """A slow, obvious version: errors of each cell of each group, and of seen cells with their distances."""
    shown = clips()
    objective = vjepa(vit(levels=levels), context_weight=0.5, context_by_distance=by_distance)
    whole = objective.teacher(shown)
    depths = whole.levels or (whole.patches,)
    target = torch.cat([F.layer_norm(x, (24,)) for x in depths], dim=-1).detach()
    hidden, dense = [], []
    for group, split in enumerate(BLOCKS.splits(3, (2, 4, 4), torch.Generator().manual_seed(3))):
        _, found, context = objective._predict(shown, split, group)
        assert context is not None
        errors, at_seen = [], []
        for b in range(3):
            for m, cell in enumerate(split.predicted[b].tolist()):
                errors.append((found[b, m] - target[b, cell // 16, cell // 4 % 4, cell % 4]).abs().mean())
            for n, cell in enumerate(split.seen[b].tolist()):
                here = (cell // 16, cell // 4 % 4, cell % 4)
                distances = [
                    sum((a - c) ** 2 for a, c in zip(here, (o // 16, o // 4 % 4, o % 4), strict=True)) ** 0.5
                    for o in split.predicted[b].tolist()
                ]
                weight = min(distances) ** -0.5 if by_distance else 1.0
                at_seen.append((context[b, n] - target[b][here]).abs().mean() * weight)
        hidden.append(torch.stack(errors).mean())
        dense.append(torch.stack(at_seen).mean())
    expected = torch.stack(hidden).mean() + 0.5 * torch.stack(dense).mean()
    output = step(objective, shown)
    assert torch.allclose(output.loss, expected, atol=1e-5)
    assert torch.allclose(output.metrics["loss_group1"], hidden[1], atol=1e-5)
    mean = target.mean(dim=(0, 1, 2, 3))
    assert float(output.metrics["target_std"]) == pytest.approx(
        float((target - mean).square().mean(dim=(0, 1, 2, 3)).sqrt().mean()), rel=1e-3
    )


def test_distances_are_taken_in_time_rows_and_columns() -> None:
    seen, predicted = torch.tensor([[0, 22]]), torch.tensor([[21, 31]])  # of 2x4x4
    expected = torch.tensor([[(1 + 1 + 1) ** -0.25, 1.0]])
    assert torch.allclose(distance_weights(seen, predicted, (2, 4, 4)), expected)


def test_the_student_sees_no_hidden_cell_and_the_teacher_all() -> None:
    shown = clips()
    objective = vjepa()
    (split, *_) = objective._splits(shown, 1, torch.Generator().manual_seed(3))
    mask = torch.zeros(3, 32, dtype=torch.bool).scatter_(1, split.predicted, True).view(3, 1, 2, 4, 4)
    pixels = mask.repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    other = torch.where(pixels, torch.rand_like(shown), shown)
    assert torch.equal(objective._predict(shown, split, 0)[1], objective._predict(other, split, 0)[1])
    assert not torch.equal(step(objective, shown).loss, step(objective, other).loss)
    assert not torch.equal(objective._predict(shown, split, 0)[1], objective._predict(shown, split, 1)[1])


def test_the_teacher_follows_by_its_formula_and_has_no_gradient() -> None:
    objective = vjepa(teacher_momentum=0.75)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    before = [p.clone() for p in objective.teacher.parameters()]
    step(objective, clips()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    optimizer.step()
    objective.after_step(Progress(0, 10), torch.Generator())
    for old, now, student in zip(
        before, objective.teacher.parameters(), objective.student.parameters(), strict=True
    ):
        assert torch.allclose(now, 0.75 * old + 0.25 * student, atol=1e-6)
    assert objective.encoder() is objective.teacher
    assert objective.trained_encoder() is objective.student
    assert not objective.train().teacher.training


def test_the_weight_of_the_dense_loss_rises_in_a_line() -> None:
    objective = vjepa(context_weight=0.5, context_from_step=15_000, context_full_step=30_000)
    weights = [objective.context_weight_at(at) for at in (0, 15_000, 22_500, 30_000, 90_000)]
    assert weights == [0.0, 0.0, 0.25, 0.5, 0.5]
    assert vjepa(context_weight=0.5).context_weight_at(0) == 0.5


def test_collapse_shows_in_the_metrics() -> None:
    objective = vjepa()
    healthy = step(objective, clips()).metrics
    with torch.no_grad():  # every cell the same vector
        objective.teacher.norm.weight.mul_(1e-4)
        torch.nn.init.normal_(objective.teacher.norm.bias)
    collapsed = step(objective, clips())
    assert float(healthy["target_std"]) > 0.5
    assert float(collapsed.metrics["target_std"]) < 0.01
    assert collapsed.features is not None
    assert float(collapsed.features.std(dim=0).max()) < 0.01
    assert objective.describe({key: float(x) for key, x in healthy.items()})
    same = vjepa()
    same.teacher.load_state_dict(same.student.state_dict())
    assert float(step(same, clips()).metrics["teacher_student_gap"]) < float(healthy["teacher_student_gap"])


@pytest.mark.parametrize("version", [pytest.param("2", marks=pytest.mark.slow), "2.1"])
def test_twenty_steps_lower_the_loss(version: str) -> None:
    newer = version == "2.1"
    torch.manual_seed(0)
    net = vit(levels=(0, 1), modality=True, position_span=4) if newer else vit()
    keys = {"context_weight": 0.5, "predictor_modality": True, "predictor_span": 4} if newer else {}
    objective = VJEPA(net, BLOCKS, teacher_momentum=0.99, **PREDICTOR, **keys)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    ramp = torch.linspace(0, 1, 32)  # a gradient in each of both directions, and in time
    still = ramp[:, None] * ramp * torch.tensor([1.0, 0.5, 0.2])[:, None, None, None]
    shown = (still * torch.linspace(0.2, 1, 4)[:, None, None])[None].repeat(3, 1, 1, 1, 1)
    losses = []
    for number in range(20):
        output = objective(
            Batch({"clip": (shown,)}), Progress(number, 20), torch.Generator().manual_seed(number)
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(Progress(number, 20), torch.Generator())
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_any_masker_of_equal_counts_is_one_group() -> None:
    torch.manual_seed(0)
    objective = VJEPA(vit(), Random3D(ratio=0.75), **PREDICTOR)
    assert set(step(objective, clips()).metrics) == {
        "loss", "loss_group0", "loss_of_mean", "target_std", "teacher_student_gap"
    }  # fmt: skip


def test_what_does_not_fit_is_refused() -> None:
    swin = VideoSwin(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window=(2, 3, 3))
    with pytest.raises(ValueError, match="VideoSwin cannot leave cells out"):
        VJEPA(swin, BLOCKS)
    with pytest.raises(ValueError, match="Tube hides different numbers"):
        VJEPA(vit(), Tube())
    with pytest.raises(ValueError, match="context_from_step not behind context_full_step"):
        vjepa(context_from_step=5)
    with pytest.raises(ValueError, match=r"teacher_momentum must lie in \[0, 1\]"):
        vjepa(teacher_momentum=1.5)
    with pytest.raises(ValueError, match="at least 6, got 4"):
        VJEPA(vit(), BLOCKS, predictor_dim=8, predictor_depth=1, predictor_heads=2)


@pytest.mark.slow
def test_flops_of_a_step_are_those_worked_out_for_the_papers_networks() -> None:
    """V-JEPA 2: B 1,528, L 3,592, g 9,469. LeVJEPA: B 269, L 882, with what it embeds and then drops."""
    for size, worked_out in (("B", 1528), ("L", 3592), ("g", 9469)):
        assert vjepa_flops(size) == pytest.approx(worked_out, rel=0.05)  # the sizes of blocks are drawn
    for size, dim, worked_out in (("B", 768, 269), ("L", 1024, 882)):
        dropped = 2979 + 10 * 547  # cells of the global and of ten locals
        embedded = 2 * 2 * dropped * 3 * 16 * 16 * dim / 1e9
        assert levjepa_flops(size) + embedded == pytest.approx(worked_out, rel=0.05)
