"""Measures of collapse, and when a run of SVT speaks of it."""

import math

import pytest
import torch
from torch import Tensor, nn

from vidssl.engine.collapse import RECENT_CLIPS, CollapseWatch, entropy, feature_std, rank_me
from vidssl.interfaces import Backbone, Batch, Features, Progress
from vidssl.interfaces.grids import GridSize
from vidssl.objectives.parts.distillation import (
    LOOK_EVERY_STEPS,
    CollapseMonitor,
    TeacherTemp,
    distillation_bands,
)
from vidssl.objectives.svt import SVT

HEALTHY = {
    "loss": 2.0,
    "batch_entropy": 2.5,
    "teacher_student_kl": 1.0,
    "rankme": 21.0,
    "feature_std": 0.8,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# measures


def test_rank_counts_directions_that_are_used_alike() -> None:
    axes = torch.eye(5, 8)
    assert float(rank_me(axes)) == pytest.approx(5, abs=1e-4)
    assert float(rank_me(axes.T)) == pytest.approx(5, abs=1e-4)
    assert float(rank_me(torch.cat((axes, torch.zeros(20, 8))))) == pytest.approx(5, abs=1e-4)
    assert float(rank_me(noise(6, 1) @ noise(1, 8))) == pytest.approx(1, abs=1e-3)
    shares = torch.tensor([0.75, 0.25])
    assert float(rank_me(torch.diag(3 * shares))) == pytest.approx(float(entropy(shares).exp()), abs=1e-4)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_rank_is_that_of_the_singular_values(shape: tuple[int, int]) -> None:
    features = noise(*shape)
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    expected = torch.exp(-(shares * shares.log()).sum())
    assert float(rank_me(features)) == pytest.approx(float(expected), rel=1e-5)


def test_rank_of_what_is_no_number_is_none_and_of_nothing_is_1() -> None:
    assert math.isnan(float(rank_me(torch.full((3, 2), math.nan))))
    assert float(rank_me(torch.zeros(3, 2))) == 1


def test_spread_is_1_in_all_directions_and_0_where_only_views_differ() -> None:
    assert float(feature_std(noise(500, 2, 64))) == pytest.approx(1, abs=0.02)
    alike = noise(1, 2, 64).expand(500, 2, 64)
    assert float(feature_std(alike)) == pytest.approx(0, abs=1e-6)
    assert float(feature_std(7 * alike)) == pytest.approx(0, abs=1e-6)


def test_entropy_is_in_nats() -> None:
    assert entropy(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])).tolist() == pytest.approx([math.log(4), 0])


def measured(monitor: CollapseMonitor, features: Tensor, step: int, targets: Tensor | None = None) -> dict:
    targets = torch.full((4, 16), 1 / 16) if targets is None else targets
    metrics = monitor(torch.tensor(2.0), targets, features, Progress(step, 1000))
    return {name: float(value) for name, value in metrics.items()}


def test_entropies_tell_sure_targets_from_equal_ones() -> None:
    sure = torch.eye(16)[:4]
    metrics = measured(CollapseMonitor(16, 8), noise(2, 4, 8), 0, sure)
    assert metrics["teacher_entropy"] == 0
    assert metrics["batch_entropy"] == pytest.approx(math.log(4))
    assert metrics["batch_entropy_share"] == pytest.approx(0.5)
    assert metrics["teacher_student_kl"] == 2  # the loss that is given


def test_rank_is_taken_of_the_last_clips_first_views_now_and_then() -> None:
    monitor = CollapseMonitor(16, 4)
    axes = torch.eye(4)
    first = measured(monitor, torch.stack((axes[:1], axes[1:2])), 0)
    assert first["rankme"] == pytest.approx(1, abs=1e-4)  # of the first view alone
    for step in range(1, LOOK_EVERY_STEPS):
        assert measured(monitor, axes[None, 1:], step)["rankme"] == first["rankme"]
    assert 3 < measured(monitor, axes[None], LOOK_EVERY_STEPS)["rankme"] <= 4
    forgotten = measured(monitor, axes[:1].expand(1, RECENT_CLIPS, 4), 2 * LOOK_EVERY_STEPS)
    assert forgotten["rankme"] == pytest.approx(1, abs=1e-4)
    assert set(monitor.state_dict()) == {"recent", "last_rank"}


def test_features_that_are_no_numbers_are_not_kept() -> None:
    monitor = CollapseMonitor(16, 4)
    measured(monitor, torch.eye(4)[None], 1)
    before = monitor.recent.clone()
    measured(monitor, torch.full((1, 4, 4), math.nan), 2)
    assert torch.equal(monitor.recent, before)


def test_evaluation_measures_the_batch_and_keeps_nothing() -> None:
    monitor = CollapseMonitor(16, 4)
    measured(monitor, torch.eye(4)[None], 0)
    before = {key: value.clone() for key, value in monitor.state_dict().items()}
    assert measured(monitor.eval(), torch.eye(4)[None, :2], 0)["rankme"] == pytest.approx(2, abs=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in monitor.state_dict().items())


# rules; those of every band are in test_collapse_watch.py


def looked(measures: dict[str, float]) -> list[str]:
    """What is said of a run of 1000 steps that is healthy for 200 and then has the measures given."""
    watch, said = CollapseWatch(distillation_bands(64)), []
    for step in range(0, 1000, LOOK_EVERY_STEPS):
        said += watch.look(step, 1000, HEALTHY if step < 200 else {**HEALTHY, **measures})
    return said


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ({"loss": math.log(64) * 1.005}, "the loss has stayed at ln(64)"),
        ({"batch_entropy": 0.1}, "the same prototype"),
        ({"teacher_student_kl": 1e-4}, "the student has said the same as the teacher"),
        ({"rankme": 4.0}, "ever fewer dimensions"),
        ({"feature_std": 0.1}, "ever closer together"),
    ],
)
def test_a_sign_is_spoken_of_once_when_it_has_lasted(measures: dict[str, float], words: str) -> None:
    said = looked(measures)
    assert len(said) == 1
    assert said[0].startswith("step 300: for 100 steps ")
    assert words in said[0]
    assert "What has helped: Sinkhorn targets" in said[0]


def test_a_healthy_run_is_left_alone() -> None:
    assert looked({}) == []
    assert looked({"loss": 3.0, "rankme": 7.0, "feature_std": 0.3, "batch_entropy": 0.3}) == []


# in training


class Brightness(Backbone):
    """Says the mean colour of a clip; ``shrink`` is multiplied in."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 6
        self.strides = (1, 1, 1)
        self.layer = nn.Linear(3, 6)
        self.shrink = 1.0

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        return num_frames, height, width

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        means = (x.mean(dim=(2, 3, 4)) - 0.5) * 20 * self.shrink
        return Features(self.layer(means)[:, None, None, None])


def said_of(objective: SVT, watch: CollapseWatch, steps: range) -> list[str]:
    """What is said in these steps of 400, none of which changes a weight."""
    said = []
    for step in steps:
        colours = noise(16, 3, 1, 1, 1, seed=step) * 0.3 + 0.5
        views = Batch({"global": (colours, colours + 0.01), "local": (colours,)})
        metrics = objective(views, Progress(step, 400), torch.Generator()).metrics
        if step % LOOK_EVERY_STEPS == 0:
            said += watch.look(step, 400, {name: float(value) for name, value in metrics.items()})
    return said


def sharp(backbone: Brightness) -> SVT:
    """Its prototypes tell colours apart."""
    objective = SVT(backbone, out_dim=8, head_hidden=8, bottleneck=4, head_norm=True)
    for network in (objective.student, objective.teacher):
        for layer in network.head.mlp:
            if isinstance(layer, nn.Linear):
                layer.weight.data.mul_(50)
    return objective


@pytest.mark.filterwarnings("ignore:.*after_step was never called")  # no step is taken here
def test_a_network_that_says_nothing_of_clips_is_reported_once() -> None:
    torch.manual_seed(0)
    objective = SVT(Brightness(), out_dim=8, head_hidden=8, bottleneck=4)
    objective.student_temp, objective.teacher_temp = 100.0, TeacherTemp(100.0)  # all prototypes alike
    said = said_of(objective, CollapseWatch(objective.bands()), range(0, 200, 4))
    assert [line.partition(" (")[0].partition("steps ")[2] for line in said] == [
        "the loss has stayed at ln(8), as if the student gave all prototypes the same share for every clip: "
        "nothing has been learned",
        "the student has said the same as the teacher of every view, whatever it sees",
    ]
    assert "(loss is 2.08, within 1% of 2.079)" in said[0]


@pytest.mark.filterwarnings("ignore:.*after_step was never called")  # no step is taken here
def test_features_that_come_together_are_reported() -> None:
    torch.manual_seed(0)
    backbone = Brightness()
    objective = sharp(backbone)
    watch = CollapseWatch(objective.bands())
    assert said_of(objective, watch, range(0, 60, 2)) == []
    backbone.shrink = 1e-3
    objective.teacher.backbone.shrink = 1e-3
    backbone.layer.bias.data.fill_(1.0)
    said = " ".join(said_of(objective, watch, range(60, 300, 2)))
    assert "ever fewer dimensions" in said
    assert "ever closer together" in said
    assert said_of(objective, watch, range(300, 400, 4)) == []
