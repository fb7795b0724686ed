"""SVT's teacher: its modes, and the targets that it sets."""

import torch
from torch import Tensor
from toy_svt import START, ConvNet, batch, loss_of, svt, vit

from vidssl.interfaces import Progress
from vidssl.objectives.parts.distillation import CentredTargets, SinkhornTargets, TeacherTemp

# modes


def test_teacher_drops_paths_in_the_published_mode_alone() -> None:
    def teacher_answers(mode: str) -> list[Tensor]:
        objective = svt(vit(drop_path=0.5), teacher_mode=mode)
        return [objective.teacher(batch().views["global"])[1] for _ in range(2)]

    first, second = teacher_answers("eval")
    assert torch.equal(first, second)
    first, second = teacher_answers("train")
    assert not torch.equal(first, second)


def test_a_teacher_in_evaluation_mode_still_normalises_by_its_own_batch() -> None:
    objective = svt(ConvNet(), head_norm=True)
    norms = [m for m in objective.teacher.modules() if type(m).__name__.startswith("BatchNorm")]
    assert len(norms) == 3
    assert all(norm.training for norm in norms)
    assert not objective.teacher.backbone.drop.training
    objective.eval()
    assert not any(module.training for module in objective.modules())
    objective.train()
    assert all(norm.training for norm in norms)
    assert objective.student.backbone.drop.training
    assert not objective.teacher.backbone.drop.training
    loss_of(objective, batch())
    mean = objective.teacher.backbone.norm.running_mean
    assert bool(mean.any())  # of its own: the student's has seen locals too
    assert not torch.equal(mean, objective.student.backbone.norm.running_mean)


def test_evaluation_changes_nothing_and_takes_the_last_temperature() -> None:
    objective = svt(
        head_norm=True, warmup_teacher_temp=0.5, warmup_teacher_temp_epochs=3, freeze_last_layer_epochs=1
    ).eval()
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    metrics = objective(batch(), Progress(0, 1), torch.Generator()).metrics
    objective.targets.after_step()
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())
    warm = svt(head_norm=True).eval()(batch(), Progress(0, 1), torch.Generator()).metrics
    assert set(warm) == set(metrics)
    assert torch.equal(warm["loss"], metrics["loss"])
    training = objective.train()(batch(), Progress(0, 1), torch.Generator()).metrics
    assert training["teacher_entropy"] > 1.1 * metrics["teacher_entropy"]


def test_low_precision_leaves_softmax_and_centre_in_full() -> None:
    objective = svt()
    exact = loss_of(objective, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(batch(), START, torch.Generator())
    assert output.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in output.metrics.values())
    assert abs(float((output.loss - exact).detach())) < 0.05 * float(exact.detach())
    output.loss.backward()
    objective.after_step(START, torch.Generator())
    assert objective.targets.centre.dtype == torch.float32


# targets


def test_centre_is_of_steps_that_were_taken() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    centring = CentredTargets(6, 0.9)
    assert torch.equal(centring(logits, 0.5, 0), (logits / 0.5).softmax(dim=1))
    assert not centring.centre.any()  # not before the step
    centring(logits * 100, 0.5, 1)  # step 0 was abandoned, step 1 has two batches
    centring(logits * 300, 0.5, 1)
    centring.after_step()
    torch.testing.assert_close(centring.centre, 0.1 * 200 * logits.mean(dim=0))
    before = centring.centre.clone()
    centring.after_step()
    assert torch.equal(centring.centre, before)
    torch.testing.assert_close(centring(logits, 0.5, 2), ((logits - before) / 0.5).softmax(dim=1))


def test_sinkhorn_agrees_with_its_definition() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    shares = (logits / 0.5).exp().double()
    for _ in range(3):
        shares = shares / shares.sum(dim=0, keepdim=True) / 4
        shares = shares / shares.sum(dim=1, keepdim=True) / 6
    targets = SinkhornTargets(3)(logits, 0.5, 0)
    torch.testing.assert_close(targets, (6 * shares).float())
    even = SinkhornTargets(200)(logits, 0.5, 0)
    torch.testing.assert_close(even.sum(dim=0), torch.full((4,), 6 / 4))


def test_sinkhorn_stands_prototypes_that_nobody_likes() -> None:
    logits = torch.zeros(4, 3)
    logits[:, 0] = -1000.0
    logits[1, 1] = 1000.0
    targets = SinkhornTargets(3)(logits, 0.04, 0)
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_teacher_temperature_of_one_epoch_of_warm_up_is_the_first() -> None:
    assert [TeacherTemp(0.07, 0.04, 1).at(epoch) for epoch in range(2)] == [0.04, 0.07]
