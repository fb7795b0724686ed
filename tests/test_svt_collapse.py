"""Measures of collapse, and when SVT speaks of it."""

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from vidssl.grids import GridSize
from vidssl.interfaces import Backbone, Batch, Features, Progress
from vidssl.objectives import SVT
from vidssl.objectives.collapse import (
    LOOK_EVERY_STEPS,
    RECENT_CLIPS,
    CollapseMonitor,
    CollapseWatch,
    entropy,
    feature_std,
    rank_me,
)

HEALTHY = {"loss": 2.0, "targets": 0.9, "rank": 20.0, "spread": 0.8}


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


# rules


def looked(total_steps: int, *stretches: tuple[int, dict[str, float]]) -> list[str]:
    """What is said when each stretch of looks has the measures given, the others being healthy."""
    watch, said, step = CollapseWatch(64), [], 0
    for looks, measures in stretches:
        for _ in range(looks):
            said += watch.look(step, total_steps, {**HEALTHY, **measures})
            step += LOOK_EVERY_STEPS
    return said


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ({"loss": math.log(64) * 1.005}, "within 1 % of ln(64) = 4.159"),
        ({"targets": 0.01}, "the same prototype"),
        ({"rank": 3.0}, "RankMe of the features has been far below the highest of this run (4, it was 21)"),
        ({"spread": 0.1}, "the deviation of the features over clips has been far below"),
    ],
)
def test_a_sign_is_spoken_of_once_when_it_has_lasted(measures: dict[str, float], words: str) -> None:
    said = looked(1000, (10, {}), (5, measures))
    assert said == []
    said = looked(1000, (10, {}), (40, measures))
    assert len(said) == 1
    assert words in said[0]
    assert said[0].startswith("step 300: ")
    assert "100 steps" in said[0]


def test_long_runs_are_given_a_twentieth_of_themselves() -> None:
    stuck = {"loss": math.log(64)}
    assert looked(40_000, (100, stuck)) == []
    assert len(looked(40_000, (101, stuck))) == 1


def test_a_sign_that_goes_begins_anew() -> None:
    low = {"rank": 1.0}
    assert looked(1000, (5, {}), (5, low), (1, {}), (5, low)) == []


def test_a_healthy_run_is_left_alone() -> None:
    falling = [(1, {"loss": 4.0 - 0.05 * look, "rank": 20 - 0.2 * look}) for look in range(50)]
    assert looked(1000, *falling) == []


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


def warnings_of(
    objective: SVT, caplog: pytest.LogCaptureFixture, steps: range, loud: bool = True
) -> list[str]:
    """What is said in these steps of 400, none of which changes a weight."""
    caplog.clear()
    for step in steps:
        colours = noise(16, 3, 1, 1, 1, seed=step) * 0.3 + 0.5
        views = Batch({"global": (colours, colours + 0.01), "local": (colours,)})
        objective(views, Progress(step, 400), torch.Generator())
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def sharp(backbone: Brightness) -> SVT:
    """Its prototypes tell colours apart."""
    objective = SVT(backbone, out_dim=8, head_hidden=8, bottleneck=4, head_norm=True)
    for network in (objective.student, objective.teacher):
        for layer in network.head.mlp:
            if isinstance(layer, nn.Linear):
                layer.weight.data.mul_(50)
    return objective


def test_a_network_that_says_nothing_of_clips_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    objective = SVT(Brightness(), out_dim=8, head_hidden=8, bottleneck=4)
    objective.student_temp = 100.0  # all prototypes alike
    said = warnings_of(objective, caplog, range(200))
    assert len(said) == 1
    assert "within 1 % of ln(8) = 2.079" in said[0]


def test_features_that_come_together_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    backbone = Brightness()
    objective = sharp(backbone)
    assert warnings_of(objective, caplog, range(60)) == []
    backbone.shrink = 1e-3
    objective.teacher.backbone.shrink = 1e-3
    backbone.layer.bias.data.fill_(1.0)
    said = warnings_of(objective, caplog, range(60, 240))
    assert sorted(line.partition("steps ")[2].partition(" has")[0] for line in said) == [
        "RankMe of the features",
        "the deviation of the features over clips",
    ]
    assert warnings_of(objective, caplog, range(240, 400)) == []


def test_nothing_is_said_in_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    objective = SVT(Brightness(), out_dim=8, head_hidden=8, bottleneck=4)
    objective.student_temp = 100.0
    assert warnings_of(objective.eval(), caplog, range(0, 200, LOOK_EVERY_STEPS)) == []
