"""SVT's head, loss, views, schedules and whole training steps against the release's numbers."""

import pytest
import torch
from svt_reference import difference, numbers, tensors, toy_head, toy_timesformer, views_of
from torch import Tensor, nn

from vidssl.engine.optim import AdamW, decayed_names
from vidssl.interfaces import Progress
from vidssl.objectives.parts.distillation import (
    CentredTargets,
    Projector,
    TeacherTemp,
    follow,
    match_views,
    pair_terms,
    read_slots,
)
from vidssl.objectives.svt import SVT

TEN = {"global": 2, "local": 8}


@pytest.mark.parametrize("case", ["a", "b"])
def test_head_matches_in_outputs_and_gradients(case: str) -> None:
    golden = tensors("head", f"{case}/")
    head = toy_head(tensors("head", f"{case}/state/"))
    x = golden["input"].requires_grad_()
    assert difference(head.mlp(x), golden["bottleneck"]) < 1e-5
    output = head(x)
    assert difference(output, golden["output"]) < 1e-5
    (output * golden["weight"]).sum().backward()
    assert difference(x.grad, golden["grad_input"]) < 1e-5
    gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    expected = tensors("head", f"{case}/grad/")
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert difference(gradient, expected[name]) < 1e-5, name


def test_head_with_batch_norm_matches_in_training_and_evaluation() -> None:
    golden = tensors("head", "bn/")
    head = toy_head(tensors("head", "bn/state/"), batch_norm=True)
    assert difference(head(golden["input"]), golden["output_train"]) < 1e-5
    expected = tensors("head", "bn/state_after/")
    assert set(head.state_dict()) == set(expected)
    for key, value in head.state_dict().items():
        assert difference(value, expected[key]) < 1e-5, key
    assert difference(head.eval()(golden["input"]), golden["output_eval"]) < 1e-5


def targets_and_log_probs(
    stored: dict[str, Tensor], centring: CentredTargets, temperature: float, step: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one reference call: targets [2, 3, K], log-probabilities [10, 3, K], the student's logits."""
    student = stored["student"].requires_grad_()
    targets = centring(stored["teacher"], temperature, step).unflatten(0, (2, 3))
    return targets, (student / 0.1).log_softmax(dim=-1).unflatten(0, (10, 3)), student


def test_loss_gradient_and_centre_match_over_four_calls() -> None:
    golden, matching = tensors("loss"), match_views(TEN, ("lg", "gg"))
    centring = CentredTargets(32, 0.9)
    centring.centre.copy_(golden["center_initial"][0])
    temp = TeacherTemp(0.07, 0.04, 5)
    for step, epoch in enumerate(golden["epochs"].tolist()):
        stored = tensors("loss", f"step{step}/")
        assert temp.at(epoch) == pytest.approx(float(golden["teacher_temps"][step]), abs=1e-12)
        assert difference(centring.centre, stored["center_before"][0]) < 1e-6
        targets, log_probs, student = targets_and_log_probs(stored, centring, temp.at(epoch), step)
        terms = pair_terms(targets, log_probs)
        assert difference(terms, stored["pair_terms"]) < 1e-5
        loss = matching.mean(terms, ("lg", "gg"))
        assert difference(loss, stored["loss"]) < 1e-5
        loss.backward()
        assert difference(student.grad, stored["grad_student"]) < 1e-5
        centring.after_step()
        assert difference(centring.centre, stored["center_after"][0]) < 1e-5


def test_loss_of_large_logits_is_finite_and_matches() -> None:
    stored, centring = tensors("loss", "large/"), CentredTargets(32, 0.9)
    targets, log_probs, student = targets_and_log_probs(stored, centring, 0.04)
    loss = match_views(TEN, ("lg", "gg")).mean(pair_terms(targets, log_probs), ("lg", "gg"))
    torch.testing.assert_close(loss.detach(), stored["loss"], rtol=1e-5, atol=0)
    loss.backward()
    assert torch.isfinite(student.grad).all()
    torch.testing.assert_close(student.grad, stored["grad_student"], rtol=1e-5, atol=1e-7)
    centring.after_step()
    torch.testing.assert_close(centring.centre, stored["center_after"][0], rtol=1e-5, atol=0)


def test_correspondences_with_global_targets_are_subsets_of_the_pair_terms() -> None:
    terms = tensors("loss", "step1/")["pair_terms"]
    globals_alone = match_views(TEN, ("gg",)).mean(terms[:, :2], ("gg",))
    torch.testing.assert_close(globals_alone, (terms[0, 1] + terms[1, 0]) / 2)
    locals_alone = match_views(TEN, ("lg",)).mean(terms[:, 2:], ("lg",))
    torch.testing.assert_close(locals_alone, terms[:, 2:].mean())
    both = match_views(TEN, ("gg", "lg")).mean(terms, ("gg", "lg"))
    torch.testing.assert_close(both, (2 * globals_alone + 16 * locals_alone) / 18)


@pytest.mark.parametrize("frames", ["fixed", "varying"])
def test_ten_views_come_out_in_their_order(frames: str) -> None:
    golden = tensors("multicrop", f"{frames}/")
    backbone = toy_timesformer(embed_dim=48, depth=2, num_heads=3, patch_size=8, num_frames=8, size=32)
    backbone.load_state_dict({**tensors("weights"), "mask_token": torch.zeros(48)})
    projector = Projector(backbone, toy_head(tensors("multicrop", "head."))).eval()
    shapes: list[tuple[int, ...]] = []
    backbone.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    batch, matching = views_of(golden), match_views(TEN, ("lg", "gg"))
    with torch.no_grad():
        _, logits = projector(read_slots(batch, matching.student))
        _, answers = projector(read_slots(batch, matching.teacher))
    assert difference(logits.flatten(0, 1), golden["out_all"]) < 1e-5
    assert difference(answers.flatten(0, 1), golden["out_globals"]) < 1e-5
    assert shapes == [tuple(shape) for shape in golden["forward_shapes"].tolist()]


def test_teacher_follows_as_published() -> None:
    golden = numbers("ema")
    teacher, student = (nn.Linear(3, 1, bias=False).double() for _ in range(2))
    teacher.weight.data = torch.tensor([golden["teacher_initial"]], dtype=torch.float64)
    steps = zip(golden["momentum"], golden["student_per_step"], golden["teacher_per_step"], strict=True)
    for momentum, moved, expected in steps:
        student.weight.data = torch.tensor([moved], dtype=torch.float64)
        follow(teacher, student, momentum)
        assert teacher.weight[0].tolist() == pytest.approx(expected, abs=1e-12)


def published_step_model() -> SVT:
    setting = numbers("train_steps")
    model, head = setting["model"], setting["head"]
    backbone = toy_timesformer(
        embed_dim=model["dim"],
        depth=model["depth"],
        num_heads=model["heads"],
        patch_size=model["patch"],
        num_frames=model["frames"],
        size=model["img"],
    )
    svt = SVT(
        backbone,
        out_dim=head["out_dim"],
        head_hidden=head["hidden"],
        bottleneck=head["bottleneck"],
        freeze_last_layer_epochs=setting["freeze_last_layer_epochs"],
        student_temp=setting["student_temp"],
        teacher_temp=setting["teacher_temp"],
        centre_momentum=setting["center_momentum"],
        teacher_momentum=setting["ema_momentum"][0],
    )
    state = {**tensors("train_steps", "initial/"), "backbone.mask_token": torch.zeros(model["dim"])}
    for network in (svt.student, svt.teacher):
        network.load_state_dict(state)
    return svt


def without_key_biases(name: str, value: Tensor) -> Tensor:
    """Their true gradient is 0: Adam makes steps of what rounding leaves."""
    return torch.cat((value[:24], value[48:])) if name.endswith("qkv.bias") else value


def assert_same(network: nn.Module, expected: dict[str, Tensor]) -> None:
    ours = {key: value for key, value in network.state_dict().items() if key != "backbone.mask_token"}
    assert set(ours) == set(expected)
    for name, value in ours.items():
        theirs = without_key_biases(name, expected[name])
        assert difference(without_key_biases(name, value), theirs) < 1e-5, name


def test_four_whole_training_steps_match() -> None:
    setting, svt = numbers("train_steps"), published_step_model()
    optim = AdamW(
        lr=setting["lr"][0],
        weight_decay=setting["weight_decay"][0],
        clip_norm=setting["clip_per_parameter_norm"],
        clip="each",
        decay="tables",
    )
    decayed = decayed_names(svt.student, "tables") - {"backbone.mask_token"}
    assert decayed - {"head.last_layer.weight_g"} == set(setting["parameter_groups"]["regularised"])
    optimizer = optim.build(svt)
    for step in range(4):
        stored = tensors("train_steps", f"step{step}/")
        progress = Progress(step, 4, steps_per_epoch=2)
        for group in optimizer.param_groups:
            group["lr"] = setting["lr"][step]
            group["weight_decay"] = setting["weight_decay"][step] * group["decays"]
        output = svt(views_of(stored), progress, torch.Generator())
        assert difference(output.loss, stored["loss"]) < 1e-5
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optim.update.clip_gradients(svt.parameters())
        if step in (0, 2):
            gradients = {name: p.grad for name, p in svt.student.named_parameters() if p.grad is not None}
            clipped = tensors("train_steps", f"step{step}/clipped_grad/")
            assert set(gradients) == set(clipped)
            for name, gradient in gradients.items():
                assert difference(gradient, clipped[name]) < 1e-5, name
        optimizer.step()
        assert svt.teacher_momentum_at(progress) == pytest.approx(setting["ema_momentum"][step], abs=1e-12)
        svt.after_step(progress, torch.Generator())
        assert difference(svt.targets.centre, stored["center_after"][0]) < 1e-5
        assert_same(svt.student, tensors("train_steps", f"step{step}/student/"))
        assert_same(svt.teacher, tensors("train_steps", f"step{step}/teacher/"))
    assert all(parameter.grad is None for parameter in svt.teacher.parameters())


def test_schedules_of_teacher_match() -> None:
    golden = numbers("schedules")
    svt = published_step_model()
    svt.teacher_momentum = golden["ema_momentum"]["base"]
    for step, expected in enumerate(golden["ema_momentum"]["values"]):
        assert svt.teacher_momentum_at(Progress(step, 1000)) == pytest.approx(expected, abs=1e-12)
    for name in ("teacher_temp_code_default", "teacher_temp_warmed"):
        stored = golden[name]
        epochs = stored["warmup_epochs"]
        temp = TeacherTemp(stored["final"], stored["warmup"] if epochs else None, epochs)
        ours = [temp.at(epoch) for epoch in range(20)]
        assert ours == pytest.approx(stored["values_per_epoch"], abs=1e-12)
