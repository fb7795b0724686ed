"""Intervals and tests against slow, obvious versions and against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from vidssl.evaluators.statistics import (
    bootstrap,
    class_mean,
    mcnemar,
    mean_over_seeds,
    paired_difference,
    percentiles,
    resampled,
    welch,
    wilson_interval,
)


def answers(number: int, share: float, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of so many videos are right, and their classes; the first class is right more often."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(classes, (number,), generator=generator)
    return torch.rand(number, generator=generator) < share * (truth == 0) + 0.5 * share, truth


def test_drawn_counts_are_as_if_row_numbers_were_drawn():
    counts = torch.tensor([7, 0, 20, 3])
    drawn = resampled(counts, draws=20_000)
    assert torch.equal(drawn.sum(1), torch.full((20_000,), 30.0, dtype=torch.float64))
    kinds = torch.arange(4).repeat_interleave(counts)
    rows = torch.randint(30, (20_000, 30), generator=torch.Generator().manual_seed(3))
    slow = torch.nn.functional.one_hot(kinds[rows], 4).sum(1).double()
    assert torch.allclose(drawn.mean(0), slow.mean(0), atol=0.05)
    assert torch.allclose(drawn.T.cov(), slow.T.cov(), atol=0.3)


def test_bootstrap_agrees_with_drawing_row_numbers():
    right, truth = answers(150, 0.6)
    five = right | (truth == 3)
    found = bootstrap(right, truth, five)
    generator = np.random.default_rng(5)
    rows = generator.integers(150, size=(4000, 150))
    shares = [percentiles(values.double()[rows].mean(1)) for values in (right, five)]
    means = [class_mean(right[row], truth[row]) for row in rows]
    assert found.top1 == pytest.approx(shares[0], abs=0.012)
    assert found.top5 == pytest.approx(shares[1], abs=0.012)
    assert found.class_mean == pytest.approx(percentiles(torch.tensor(means)), abs=0.012)


def test_bootstrap_and_wilson_agree_on_shares_in_the_middle():
    right, truth = answers(400, 0.8)
    assert bootstrap(right, truth).top1 == pytest.approx(wilson_interval(int(right.sum()), 400), abs=0.01)


def test_bootstrap_has_no_width_where_all_are_right_and_wilson_has():
    right, truth = torch.ones(24, dtype=torch.bool), torch.arange(24) % 3
    assert bootstrap(right, truth).top1 == (1.0, 1.0)
    assert wilson_interval(24, 24)[0] < 0.9


def test_bootstrap_depends_on_its_seed_and_by_less_than_a_tenth_of_its_width():
    right, truth = answers(200, 0.7)
    intervals = torch.tensor([bootstrap(right, truth, seed=seed).top1 for seed in range(8)])
    width = (intervals[:, 1] - intervals[:, 0]).mean()
    assert bootstrap(right, truth).top1 == bootstrap(right, truth).top1
    assert 0 < (intervals.amax(0) - intervals.amin(0)).max() < width / 10


def test_intervals_cover_the_truth_nineteen_times_in_twenty():
    covered = 0
    for seed in range(100):
        right, truth = answers(100, 1.0, classes=2, seed=seed)
        low, high = bootstrap(right, truth, seed=seed).class_mean
        covered += low <= 0.75 <= high  # one class always right, the other half the time
    assert 89 <= covered <= 99


def test_a_draw_without_a_class_is_the_mean_of_the_others():
    truth = torch.tensor([0] * 9 + [1])  # a third of the draws have no video of class 1
    assert bootstrap(torch.ones(10, dtype=torch.bool), truth).class_mean == (1.0, 1.0)


def test_percentiles_hold_the_middle_95_percent():
    assert percentiles(torch.linspace(0, 1, 1001).double()) == pytest.approx((0.025, 0.975), abs=1e-6)


def test_mean_over_classes_counts_a_rare_class_as_much_as_a_common_one():
    truth = torch.tensor([0] * 9 + [2])  # no video of class 1
    right = torch.tensor([True] * 9 + [False])
    assert class_mean(right, truth) == 0.5


@pytest.mark.parametrize("pair", [(0, 0), (5, 0), (3, 9), (40, 40), (300, 250)])
def test_mcnemars_p_is_the_exact_binomial_one(pair):
    expected = stats.binomtest(pair[0], sum(pair), 0.5).pvalue if sum(pair) else 1.0
    assert mcnemar(*pair) == pytest.approx(expected)


def test_a_difference_on_the_same_videos_is_paired():
    """Two that mostly agree differ surely, by however little; unpaired, the interval would hold 0."""
    right, _ = answers(300, 0.7)
    better = right | (torch.arange(300) % 12 == 0)
    found = paired_difference(right.tolist(), better.tolist())
    gained = int((better & ~right).sum())
    assert found.mean == pytest.approx(gained / 300)
    assert found.p == mcnemar(0, gained)
    assert 0 < found.low < found.mean < found.high < 0.09
    swapped = paired_difference(better.tolist(), right.tolist())
    assert swapped.mean == -found.mean
    rows = np.random.default_rng(1).integers(300, size=(4000, 300))
    slow = percentiles((better.double() - right.double())[rows].mean(1))
    assert (found.low, found.high) == pytest.approx(slow, abs=0.004)


def test_interval_over_seeds_is_students():
    values = [0.55, 0.61, 0.58, 0.60]
    mean, half = mean_over_seeds(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx(expected)


def test_welch_is_scipys():
    one, other = [0.55, 0.61, 0.58], [0.70, 0.66, 0.71, 0.60]
    expected = stats.ttest_ind(other, one, equal_var=False)
    interval = expected.confidence_interval()
    found = welch(one, other)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(other) - np.mean(one))


def test_welch_of_runs_without_spread():
    assert welch([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert welch([0.5, 0.5], [0.6, 0.6]).p == 0.0
