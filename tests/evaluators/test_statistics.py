"""Intervals and tests against slow, obvious versions and against scipy and statsmodels' formulas.

How often they cover and reject is measured by docs/measure_statistics.py.
"""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from vidssl.evaluators.statistics import (
    accuracy,
    holm,
    mean_over_seeds,
    method_difference,
    paired_difference,
    welch,
    wilson_interval,
)

RNG = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(60), RNG.integers(3, 8, size=60))
ALIKE = np.repeat(RNG.random(60) < 0.7, np.bincount(GROUPS))  # whole groups right, or wrong


def pair(only_one: int, only_two: int, both: int) -> tuple[list[bool], list[bool]]:
    one = [True] * only_one + [False] * only_two + [True] * both
    return one, [False] * only_one + [True] * only_two + [True] * both


def test_of_independent_videos_the_interval_is_wilsons():
    right = np.arange(50) < 31
    found = accuracy(right)
    assert (found.mean, found.low, found.high) == pytest.approx((0.62, *wilson_interval(31, 50)))
    assert accuracy(np.ones(24, bool)).low == pytest.approx(wilson_interval(24, 24)[0])


def test_the_interval_of_groups_is_as_wide_as_a_bootstrap_of_groups_and_of_clips_alike_that_of_groups():
    found, ignored = accuracy(ALIKE, groups=GROUPS), accuracy(ALIKE)
    hits, sizes = np.bincount(GROUPS, ALIKE), np.bincount(GROUPS)
    rows = RNG.integers(60, size=(4000, 60))
    low, high = np.percentile(hits[rows].sum(1) / sizes[rows].sum(1), [2.5, 97.5])
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)
    assert found.high - found.low > 1.8 * (ignored.high - ignored.low)
    whole = accuracy(np.ones(len(GROUPS), bool), groups=GROUPS)
    assert whole.high == 1.0
    assert whole.low < wilson_interval(60, 60)[0]
    assert accuracy([True, False], groups=[3, 3]).low == 0.0  # one group tells nothing


def test_the_mean_over_classes_has_the_variance_of_a_bootstrap_within_classes():
    classes = np.repeat([0, 1, 2], [100, 60, 40])
    right = np.concatenate([np.arange(n) < k for n, k in ((100, 80), (60, 30), (40, 12))])
    found = accuracy(right, classes)
    assert found.mean == pytest.approx((0.8 + 0.5 + 0.3) / 3)
    draws = sum(RNG.binomial(n, k / n, size=20_000) / n for n, k in ((100, 80), (60, 30), (40, 12))) / 3
    assert found.high - found.low == pytest.approx(2 * 1.96 * draws.std(), rel=0.05)
    nested, ignored = accuracy(ALIKE, GROUPS % 5, GROUPS), accuracy(ALIKE, GROUPS % 5)
    assert nested.high - nested.low > 1.8 * (ignored.high - ignored.low)


def test_a_rare_class_that_is_all_right_by_chance_does_not_make_the_interval_narrow():
    classes, right = np.repeat([0, 1], [200, 2]), np.array([True] * 120 + [False] * 80 + [True] * 2)
    found = accuracy(right, classes)
    assert found.high - found.low > 0.3  # two videos: half the number hangs on them


@pytest.mark.parametrize("only", [(5, 0), (3, 9), (40, 40), (10, 22)])
def test_p_of_two_networks_is_mcnemars_mid_p(only):
    exact = stats.binomtest(only[0], sum(only), 0.5).pvalue
    expected = exact - stats.binom.pmf(only[0], sum(only), 0.5) if only[0] != only[1] else 1.0
    assert paired_difference(*pair(*only, 50)).p == pytest.approx(expected)


def test_tens_of_thousands_of_discordant_videos_take_no_time_and_the_tests_normal_form():
    only = 20_300, 19_700
    found = paired_difference(*pair(*only, 10_000))
    assert found.p == pytest.approx(stats.chi2.sf((only[0] - only[1]) ** 2 / sum(only), 1))
    small = paired_difference(*pair(530, 470, 0))
    assert small.p == pytest.approx(paired_difference(*pair(531, 471, 0)).p, abs=0.002)  # where it takes over


def test_the_permutation_test_of_groups_swaps_them_whole():
    parts = [3, -1, 2, 2, -1, 4]  # videos more that the second gets right, group by group
    one, other, groups = [], [], []
    for number, part in enumerate(parts):
        one += [part < 0] * abs(part) + [True]
        other += [part > 0] * abs(part) + [True]
        groups += [number] * (abs(part) + 1)
    sums = np.array([abs(np.dot(signs, parts)) for signs in product((1, -1), repeat=6)])
    expected = np.mean(sums > sum(parts)) + np.mean(sums == sum(parts)) / 2
    assert paired_difference(one, other, groups=groups).p == pytest.approx(expected, abs=0.01)
    assert paired_difference(one, other).p < expected / 2  # as if clips were independent


@pytest.mark.parametrize("seed", range(4))
def test_an_interval_leaves_out_0_just_where_p_is_below_a_twentieth(seed):
    rng = np.random.default_rng(seed)
    both = set()
    for _ in range(60):
        number = int(rng.integers(8, 80))
        one = rng.random(number) < 0.6
        other = np.where(rng.random(number) < 0.6, one, rng.random(number) < rng.choice([0.4, 0.7, 0.9]))
        groups = rng.integers(0, number // 3, size=number) if seed % 2 else None
        classes = rng.integers(0, 3, size=number) if seed > 1 else None
        found = paired_difference(one, other, classes, groups)
        assert found.low <= found.mean <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        turned = paired_difference(other, one, classes, groups)
        assert (turned.mean, turned.p) == pytest.approx((-found.mean, found.p))
        assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
        both.add(found.p < 0.05)
    assert both == {True, False}


def test_networks_that_answer_alike_differ_by_a_few_points_at_most_and_not_by_none():
    found = paired_difference([True] * 24, [True] * 24)
    assert (found.mean, found.p) == (0.0, 1.0)
    assert -found.low == found.high == pytest.approx(1.96**2 / (24 + 1.96**2), rel=1e-3)  # Tango's
    grouped = paired_difference([True] * 24, [True] * 24, groups=np.arange(24) // 4)
    assert grouped.high > 2 * found.high


def test_a_difference_on_the_same_videos_is_paired():
    """Two that mostly agree differ surely, by however little; unpaired, the interval would hold 0."""
    right = RNG.random(300) < 0.7
    better = right | (np.arange(300) % 12 == 0)
    found = paired_difference(right, better)
    assert 0 < found.low < found.mean < found.high < 0.09
    assert found.sign == "+"


def test_methods_of_which_seeds_agree_on_every_video_are_compared_by_videos_alone():
    one, other = RNG.random(200) < 0.6, RNG.random(200) < 0.8
    found = method_difference([one] * 3, [other] * 3)
    expected = stats.ttest_rel(other.astype(float), one.astype(float))
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_methods_whose_seeds_differ_far_more_than_videos_do_are_compared_as_by_welch():
    shares = [[0.2, 0.5, 0.7], [0.6, 0.8, 0.95]]
    answers = [[np.arange(4000) < 4000 * share for share in some] for some in shares]
    found, expected = method_difference(*answers), welch(*shares)
    assert found is not None
    assert expected is not None
    assert found.p == pytest.approx(expected.p, rel=0.02)


def test_what_seeds_and_videos_both_count_counts_once():
    """Seeds that differ only in the draw of independent answers: the variance is that of all answers."""
    widths = []
    for _ in range(30):
        found = method_difference(*RNG.random((2, 3, 500)) < 0.6)
        assert found is not None
        widths.append(found.high - found.low)
    # where seeds happen to differ no more than their videos make them, as in every other test set
    assert np.quantile(widths, 0.25) == pytest.approx(2 * 1.96 * (2 * 0.24 / 1500) ** 0.5, rel=0.1)


def test_methods_are_compared_by_groups_where_there_are_groups():
    answers = [[ALIKE ^ (RNG.random(len(GROUPS)) < 0.05) for _ in range(3)]]
    other = np.repeat(RNG.random(60) < 0.7, np.bincount(GROUPS))
    answers.append([other ^ (RNG.random(len(GROUPS)) < 0.05) for _ in range(3)])
    plain, grouped = method_difference(*answers), method_difference(*answers, groups=GROUPS)
    assert plain is not None
    assert grouped is not None
    assert grouped.high - grouped.low > 1.5 * (plain.high - plain.low)


def test_interval_over_seeds_is_students():
    values = [0.55, 0.61, 0.58, 0.60]
    mean, half = mean_over_seeds(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx(expected)


def test_welch_is_scipys():
    one, other = [0.55, 0.61, 0.58], [0.70, 0.66, 0.71, 0.60]
    expected = stats.ttest_ind(other, one, equal_var=False)
    interval = expected.confidence_interval()
    found = welch(one, other)
    assert found is not None
    assert (found.mean, found.p) == pytest.approx((np.mean(other) - np.mean(one), expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_seeds_that_tie_have_no_p_and_no_interval():
    assert welch([0.5, 0.5], [0.6, 0.6]) is None
    assert welch([0.1 + 0.2, 0.3], [0.6, 0.6]) is None  # a tie but for rounding
    assert mean_over_seeds([0.6, 0.6, 0.6]) == (pytest.approx(0.6), None)
    assert method_difference([[True] * 9] * 2, [[True] * 9] * 3) is None


def test_holms_p_are_those_of_its_steps():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert math.isclose(holm([0.02])[0], 0.02)
