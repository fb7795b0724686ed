"""What is said of a table of scores."""

import numpy as np
import pytest

from vidssl.evaluators.differences import LabelledVideos, best_and_worst, findings, network_differences
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import FEWEST_GROUPS, LEVEL, detectable_difference, paired_difference

TRUTH = [0] * 40 + [1] * 40 + [2] * 20
CLASSES = {"action": ("jump", "run", "walk")}
TESTED = {"action": LabelledVideos(TRUTH)}


def row(predicted: list[int], frames: str = "normal") -> Score:
    right = float(np.mean([a == b for a, b in zip(predicted, TRUTH, strict=True)]))
    return Score(
        label="action",
        frames=frames,
        top1=right,
        low=0.0,
        high=1.0,
        class_mean=right,
        chance=0.4,
        num_train=100,
        num_test=100,
        predicted=tuple(predicted),
    )


def said(**networks: list[Score]) -> str:
    return "\n".join(findings(networks, network_differences(networks, TESTED), TESTED, CLASSES))


def half_right(seed: int) -> list[int]:
    guess = np.random.default_rng(seed).random(100) < 0.5
    return [truth if lucky else (truth + 1) % 3 for truth, lucky in zip(TRUTH, guess, strict=True)]


def test_a_difference_that_is_not_seen_is_told_with_what_would_have_been() -> None:
    text = said(trained=[row(half_right(0))], untrained=[row(half_right(1))])
    assert "at least action 19 points (100 test videos)" in text or "action 20 points" in text
    assert "To try next" in text
    assert said(trained=[row(TRUTH)], untrained=[row(half_right(1))]) == ""


def test_a_class_that_is_named_for_most_is_told() -> None:
    text = said(trained=[row([0] * 90 + [2] * 10)])
    assert "names 'jump' for 90% of the test videos, and 40% are" in text
    assert "probe names" not in said(trained=[row(TRUTH)])


@pytest.mark.parametrize(
    ("alone", "words"),
    [(half_right(2), "motion is used"), (TRUTH, "one frame does as well as frames in order")],
)
def test_clips_of_one_frame_say_whether_motion_is_used(alone: list[int], words: str) -> None:
    assert words in said(trained=[row(TRUTH), row(alone, "single")])


@pytest.mark.parametrize("group_size", [1, 4])
def test_a_detectable_difference_is_found_in_four_of_five_tests(group_size: int) -> None:
    """Networks right in halves of the videos; the second gains as much as is called detectable."""
    rng = np.random.default_rng(0)
    groups = np.arange(160) // group_size
    of_group = rng.random((300, 160 // group_size)).repeat(group_size, axis=1)
    one, other = of_group < 0.4, rng.random((300, 160 // group_size)).repeat(group_size, axis=1) < 0.4
    bound = float(
        np.mean([detectable_difference(a, b, groups=groups) for a, b in zip(one, other, strict=True)])
    )
    better = rng.random((300, 160 // group_size)).repeat(group_size, axis=1) < 0.4 + bound
    found = [paired_difference(a, b, groups=groups).p < LEVEL for a, b in zip(one, better, strict=True)]
    assert 0.7 < np.mean(found) < 0.9


def test_few_videos_bound_what_can_be_found_however_alike_networks_are() -> None:
    same = [True] * 50
    assert detectable_difference(same, same) == pytest.approx((1.96 + 0.8416) ** 2 / 50, rel=1e-3)
    assert detectable_difference([True] * 4, [False] * 4) == 1.0


def test_classes_at_zero_are_not_the_best() -> None:
    names = CLASSES["action"]
    assert best_and_worst(row([0] * 100), TRUTH, names).startswith("action: best jump 100 %; worst")
    none = best_and_worst(row([1] * 40 + [2] * 40 + [0] * 20), TRUTH, names)
    assert none == "action: no video of any of 3 classes is named right"
    two = best_and_worst(row([0] * 100), TRUTH[:80] + [3] * 20, ("a", "b", "c", "d"))
    assert "best a 100 %;" in two


def test_test_videos_of_four_groups_are_told_to_show_nothing() -> None:
    best, worst = [True] * 100, [False] * 100
    few, enough = (np.arange(100) % count for count in (FEWEST_GROUPS - 1, FEWEST_GROUPS))
    assert (
        paired_difference(worst, best, groups=few).p > LEVEL > paired_difference(worst, best, groups=enough).p
    )
    networks = {"trained": [row(TRUTH)], "untrained": [row(half_right(1))]}
    for groups, told in ((few, True), (enough, False)):
        tested = {"action": LabelledVideos(TRUTH, groups.tolist())}
        lines = findings(networks, network_differences(networks, tested), tested, CLASSES)
        assert any("of 4 groups, and a test by groups sees no difference" in line for line in lines) == told
