"""Two networks that answered on the same videos: how they differ, and whether that can be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vidssl.data.sources.official.groups import group_numbers
from vidssl.errors import counted
from vidssl.evaluators.corruptions import is_corrupted
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import LEVEL, Difference, holm, paired_difference

RowKey = tuple[str, str, str]  # label, setting, order of frames


@dataclass(frozen=True)
class LabelledVideos:
    """Test videos with a label.

    Attributes:
        truth: int [N], their classes.
        groups: their groups as numbers, None where there are none.
    """

    truth: Sequence[int]
    groups: Sequence[int] | None = None

    def right(self, score: Score) -> list[bool]:
        """Which of them a row's network gets right."""
        return [a == b for a, b in zip(score.predicted, self.truth, strict=True)]

    def classes(self, score: Score) -> Sequence[int] | None:
        """The classes, where the mean over them is what a row is judged by."""
        return self.truth if score.unbalanced else None

    def shown(self) -> str:
        """``168 videos``, or ``168 videos in 24 groups``."""
        groups = "" if self.groups is None else f" in {counted(len(set(self.groups)), 'group')}"
        return f"{counted(len(self.truth), 'video')}{groups}"


def tested_of(numbers: Sequence[int], names: Sequence[str]) -> LabelledVideos:
    """The videos that have a label.

    Args:
        numbers: class of each test video, -1 where it lacks the label.
        names: of the groups of the test videos; none where there are none.
    """
    known = [place for place, number in enumerate(numbers) if number >= 0]
    groups = group_numbers([names[place] for place in known]) if names else None
    return LabelledVideos([numbers[place] for place in known], groups)


def tested_videos(test: FeatureTable) -> dict[str, LabelledVideos]:
    """Label -> the test videos that have it."""
    return {label: tested_of(numbers.tolist(), test.groups) for label, numbers in test.labels.items()}


def what(score: Score) -> RowKey:
    """Which of a file's rows this is."""
    return score.label, score.setting, score.frames


@dataclass(frozen=True)
class NetworkDifference:
    """How the first network of a table differs from the second in one row.

    Attributes:
        found: how much better the first is.
        p_holm: p adjusted for the number of rows.
    """

    row: Score
    found: Difference
    p_holm: float

    @property
    def mark(self) -> str:
        """``+`` or ``-`` where the first is better or worse beyond chance."""
        return self.found.sign if self.p_holm < LEVEL else ""


def network_differences(
    scores: Mapping[str, Sequence[Score]], tested: Mapping[str, LabelledVideos]
) -> list[NetworkDifference]:
    """The first network against the second, row by row; none where there is one network.

    Rows of several draws of labelled videos are left out: of these only the first one's answers are kept. So
    are those of corrupted clips: 25 tests of each label would leave none of them any power.
    """
    if len(scores) != 2:
        return []
    rows, found = [], []
    for one, other in zip(*scores.values(), strict=True):
        if not one.draws and not is_corrupted(one.frames):
            videos = tested[one.label]
            answers = (videos.right(other), videos.right(one))
            rows.append(one)
            found.append(paired_difference(*answers, videos.classes(one), videos.groups))
    adjusted = holm([each.p for each in found])
    return [NetworkDifference(*each) for each in zip(rows, found, adjusted, strict=True)]


def difference_record(each: NetworkDifference) -> dict[str, object]:
    """For a file of scores."""
    row, found = each.row, each.found
    measure = "class_mean" if row.unbalanced else "top1"
    named = {"label": row.label, "setting": row.setting, "frames": row.frames, "measure": measure}
    ends = {"low": found.low, "high": found.high}
    return {**named, "difference": found.mean, **ends, "p": found.p, "p_holm": each.p_holm}
