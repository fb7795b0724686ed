"""What SVT's objective does: which views it matches, who learns from what, and when."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_svt import START, ConvNet, batch, loss_of, step, svt, vit

from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.video_swin import VideoSwin
from vidssl.build import build
from vidssl.config.recipe import recipe_from_text
from vidssl.engine.checkpoint import encoder_prefix, read_checkpoint, save_checkpoint
from vidssl.engine.collapse import feature_std
from vidssl.engine.optim import AdamW
from vidssl.interfaces import Backbone, Batch, Progress
from vidssl.objectives.parts.distillation import Correspondence

TABLE_4: list[tuple[Correspondence, ...]] = [
    ("lg",),
    ("gg",),
    ("lg", "gg"),
    ("lg", "gg", "ll"),
    ("lg", "gg", "gl"),
    ("lg", "gg", "ll", "gl"),
]


# which views


@pytest.mark.parametrize("correspondences", TABLE_4)
def test_each_row_of_table_4_is_the_mean_over_its_pairs(correspondences: tuple[Correspondence, ...]) -> None:
    objective, views = svt(correspondences=correspondences), batch()
    objective.teacher.load_state_dict(svt(seed=1).teacher.state_dict())
    named = [("g", clip) for clip in views.views["global"]] + [("l", clip) for clip in views.views["local"]]
    terms: dict[str, list[Tensor]] = {name: [] for name in correspondences}
    with torch.no_grad():
        for i, (source, seen) in enumerate(named):
            for j, (target, targeted) in enumerate(named):
                if i == j or source + target not in correspondences:
                    continue
                answer = objective.student.head(objective.student.backbone(seen).pooled())
                wanted = objective.teacher.head(objective.teacher.backbone(targeted).pooled())
                shares = (wanted / 0.04).exp() / (wanted / 0.04).exp().sum(1, keepdim=True)
                logs = (answer / 0.1).exp().div((answer / 0.1).exp().sum(1, keepdim=True)).log()
                terms[source + target].append(-(shares * logs).sum(1).mean())
    output = objective(views, START, torch.Generator())
    assert {name: len(found) for name, found in terms.items()} == {
        name: {"lg": 6, "gg": 2, "ll": 6, "gl": 6}[name] for name in correspondences
    }
    torch.testing.assert_close(
        output.loss.detach(), torch.stack([term for found in terms.values() for term in found]).mean()
    )
    for name, found in terms.items():
        torch.testing.assert_close(output.metrics[f"loss_{name}"], torch.stack(found).mean())


def test_only_views_that_are_matched_are_needed_and_read() -> None:
    one_each, globals_too = {"global": 1, "local": 1}, {"global": 2, "local": 1}
    two_each = {"global": 2, "local": 2}
    expected = [one_each, {"global": 2}, globals_too, two_each, globals_too, two_each]
    assert [svt(correspondences=names).needs_views for names in TABLE_4] == expected
    assert svt(correspondences=("ll",)).needs_views == {"local": 2}
    objective, seen = svt(correspondences=("lg",)), []
    objective.student.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    loss_of(objective, batch())
    assert set(seen) == {16}
    without_locals = Batch({"global": batch().views["global"]})
    assert torch.isfinite(loss_of(svt(correspondences=("gg",)), without_locals))


def test_views_of_one_shape_go_through_the_network_together() -> None:
    objective, shapes = svt(), []
    objective.student.backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    objective.student.head.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    loss_of(objective, batch(locals_=[(2, 16), (4, 16), (2, 16)]))
    expected = [(3, 3, 4, 32, 32), (3, 3, 2, 32, 32), (6, 3, 2, 16, 16), (3, 3, 4, 16, 16), (15, 12)]
    assert [tuple(shape) for shape in shapes] == expected


@pytest.mark.parametrize("correspondences", [("lg", "gg"), ("lg",)])
def test_spread_is_measured_on_the_global_views_that_the_student_sees(
    correspondences: tuple[Correspondence, ...],
) -> None:
    objective, views = svt(correspondences=correspondences), batch()
    name = "global" if "gg" in correspondences else "local"
    with torch.no_grad():
        features, _ = objective.student(views.views[name])
    found = objective(views, START, torch.Generator()).metrics["feature_std"]
    torch.testing.assert_close(found, feature_std(features.transpose(0, 1)))


# who learns


def test_teacher_begins_as_the_student_and_gets_no_gradient() -> None:
    objective = svt()
    for name, value in objective.student.state_dict().items():
        assert torch.equal(objective.teacher.state_dict()[name], value)
    loss_of(objective, batch()).backward()
    assert not any(p.requires_grad or p.grad is not None for p in objective.teacher.parameters())
    groups = AdamW(lr=0.1).build(objective).param_groups
    given = {id(parameter) for group in groups for parameter in group["params"]}
    trained = [p for name, p in objective.student.named_parameters() if not name.endswith("weight_g")]
    assert given == {id(parameter) for parameter in trained}


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: vit(),
        lambda: vit(class_token=False),
        lambda: VideoSwin(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window=(2, 2, 2), drop_path=0.0),
        lambda: TimeSformer(embed_dim=12, depth=1, num_heads=2, patch_size=8, num_frames=4, size=32),
        ConvNet,
    ],
    ids=["vit", "vit without class token", "video swin", "timesformer", "maskless convolutions"],
)
@pytest.mark.parametrize("keys", [{}, {"targets": "sinkhorn", "head_norm": True}], ids=["published", "small"])
def test_two_steps_on_any_backbone_teach_every_parameter_that_views_reach(
    backbone: type[Backbone], keys: dict[str, object]
) -> None:
    objective = svt(backbone(), **keys)
    optimizer = AdamW(lr=1e-3).build(objective)
    for number in range(2):  # what starts behind a weight of 0 learns from the second on
        loss = step(objective, batch(seed=number), Progress(number, 2), optimizer)
        assert math.isfinite(loss)
    idle = {name for name, p in objective.student.named_parameters() if p.requires_grad and p.grad is None}
    unread = ("mask_token", "embed_image")  # hides patches, reads single frames
    assert all(any(word in name for word in unread) for name in idle)
    still = {
        name for name, p in objective.student.named_parameters() if p.grad is not None and not p.grad.any()
    }
    assert not still
    assert len(objective.encoder().state_dict()) == len(objective.student.backbone.state_dict())


def test_prototypes_rest_in_the_first_epochs_and_without_decay() -> None:
    objective = svt(freeze_last_layer_epochs=1, norm_last_layer=False)
    last = objective.student.head.last_layer
    before = last.weight_v.clone()
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=0.1, weight_decay=0.5)
    for number in range(2):
        step(objective, batch(), Progress(number, 4, steps_per_epoch=2), optimizer)
        assert last.weight_v.grad is None
        assert last.weight_g.grad is None
    assert torch.equal(last.weight_v, before)
    assert last.weight_v not in optimizer.state
    step(objective, batch(), Progress(2, 4, steps_per_epoch=2), optimizer)
    assert not torch.equal(last.weight_v, before)
    assert bool(last.weight_g.grad.any())


def test_published_prototypes_keep_their_length() -> None:
    last = svt(norm_last_layer=True).student.head.last_layer
    assert not last.weight_g.requires_grad
    assert torch.equal(
        last(torch.eye(6), frozen=False).square().sum(dim=0), torch.ones(16)
    ) or torch.allclose(last(torch.eye(6), frozen=False).square().sum(dim=0), torch.ones(16))


def test_teacher_follows_along_half_a_cosine_and_rests_at_its_end() -> None:
    objective = svt(teacher_momentum=0.5)
    optimizer = torch.optim.SGD(objective.student.parameters(), lr=0.5)
    weight = objective.teacher.head.mlp[0].weight
    for number, momentum in ((0, 0.5), (5, 0.75), (10, 1.0)):
        before = weight.clone()
        step(objective, batch(), Progress(number, 10), optimizer)
        student = objective.student.head.mlp[0].weight.detach()
        assert not torch.equal(student, before)
        torch.testing.assert_close(weight, momentum * before + (1 - momentum) * student)


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    objective = svt(teacher_momentum=0.9, targets="sinkhorn", head_norm=True)
    optimizer = torch.optim.AdamW(objective.student.parameters(), lr=3e-3)
    losses = [step(objective, batch(8), Progress(number, 12), optimizer) for number in range(12)]
    assert losses[0] > 0.8 * math.log(16)
    assert losses[-1] < 0.6 * losses[0]


# around it


def test_saved_encoder_is_the_teachers_backbone(tmp_path: Path) -> None:
    objective = svt()
    optimizer = torch.optim.SGD(objective.student.parameters(), lr=1.0)
    step(objective, batch(), Progress(0, 2), optimizer)
    assert encoder_prefix(objective) == "teacher.backbone."
    save_checkpoint(tmp_path / "a.safetensors", objective, step=1, recipe="")
    saved = read_checkpoint(tmp_path / "a.safetensors")
    assert objective.encoder() is objective.teacher.backbone
    assert objective.trained_encoder() is objective.student.backbone
    for name, value in objective.teacher.backbone.state_dict().items():
        assert torch.equal(saved.encoder[name], value)
    assert {"targets.centre", "student.head.last_layer.weight_v", "monitor.recent"} <= set(saved.objective)


RECIPE = """\
name: svt
objective: {type: svt, out_dim: 16, head_hidden: 8, bottleneck: 4, correspondences: [lg, gg, gl]}
backbone: {type: timesformer, embed_dim: 12, depth: 1, num_heads: 2, patch_size: 8, num_frames: 4, size: 32}
data:
  video:
    source: {type: moving_digits, split: train}
    views: {type: global_local, num_frames: [4, 2], size: 32, local_frames: [2, 4, 2], local_size: 16}
    batch_size: 4
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 5}
"""


def test_a_recipe_is_checked_and_its_teacher_begins_from_init(tmp_path: Path) -> None:
    recipe = recipe_from_text(RECIPE, "svt.yaml")
    build.check(recipe)
    torch.manual_seed(0)
    first = build.objective(recipe)
    save_checkpoint(tmp_path / "a.safetensors", first, step=1, recipe="")
    text = RECIPE.replace("type: timesformer", f"init: {tmp_path}/a.safetensors, type: timesformer")
    second = build.objective(recipe_from_text(text, "svt.yaml"), say=lambda line: None)
    started = first.encoder().state_dict()
    for backbone in (second.student.backbone, second.teacher.backbone):
        assert all(torch.equal(value, started[name]) for name, value in backbone.state_dict().items())


class ReadsIds(ConvNet):
    """Reads ids."""

    input_kind = "tokens"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"backbone": ReadsIds()}, "this backbone reads token ids"),
        ({"correspondences": ()}, "must name some of lg, gg, ll, gl"),
        ({"correspondences": ("gg", "gg")}, "each once"),
        ({"out_dim": 1}, "2 prototypes"),
        ({"head_layers": 0}, "head_layers is at least 1"),
        ({"head_hidden": 0}, "widths above 0"),
        ({"student_temp": 0.0}, "student_temp above 0"),
        ({"teacher_temp": 0.0}, "temperatures are above 0"),
        ({"warmup_teacher_temp": 0.1}, "together, or neither"),
        ({"warmup_teacher_temp_epochs": 3}, "together, or neither"),
        ({"teacher_momentum": 1.1}, r"teacher_momentum must lie in \[0, 1\]"),
        ({"freeze_last_layer_epochs": -1}, "cannot be negative"),
        ({"targets": "sinkhorn", "centre_momentum": 0.5}, "leave out centre_momentum"),
        ({"targets": "centre", "sinkhorn_iterations": 5}, "leave out sinkhorn_iterations"),
        ({"targets": "sinkhorn", "sinkhorn_iterations": 0}, "at least 1"),
    ],
)
def test_keys_out_of_range_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        svt(**keys)


def test_a_head_may_have_a_single_layer() -> None:
    assert [type(layer).__name__ for layer in svt(head_layers=1).student.head.mlp] == ["Linear"]


def test_batch_norm_of_one_row_is_refused() -> None:
    objective = svt(head_norm=True, correspondences=("lg",))
    alone = Batch({"global": batch(1).views["global"][:1], "local": batch(1).views["local"]})
    with pytest.raises(ValueError, match="at least 2 rows"):
        loss_of(objective, alone)


def test_held_out_metrics_are_put_into_words() -> None:
    objective = svt().eval()
    metrics = objective(batch(), Progress(0, 1), torch.Generator()).metrics
    said = objective.describe({name: float(value) for name, value in metrics.items()})
    assert f"at a loss of {float(metrics['loss']):.3g}: " in said
    assert "one answer for all clips (2.77)" in said  # ln 16
    assert f"deviate by {float(metrics['feature_std']):.3g} of 1: better than all alike (0)" in said
