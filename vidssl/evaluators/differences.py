"""Two networks on the same videos: how they differ, whether by chance, and what that means in words."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vidssl.data.classes import LabelClasses
from vidssl.data.sources.listing import group_numbers
from vidssl.errors import counted
from vidssl.evaluators import corruptions, features, statistics
from vidssl.evaluators.scores import Score

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

    def right(self, score: Score) -> Sequence[float]:
        """Which of them a row's network gets right; of mAP and R2 what each video adds."""
        return score.added or [a == b for a, b in zip(score.predicted, self.truth, strict=True)]

    def difference(self, like: Score, one: ArrayLike, other: ArrayLike) -> statistics.Difference:
        """How much better the second of two networks is, by what ``right`` gives; ``like``: a row."""
        if like.added:
            return statistics.mean_of(np.subtract(other, one), self.groups).within(like.measure)
        return statistics.paired_difference(one, other, self.classes(like), self.groups)

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


def tested_videos(test: features.FeatureTable) -> dict[str, LabelledVideos]:
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
    found: statistics.Difference
    p_holm: float

    @property
    def mark(self) -> str:
        """``+`` or ``-`` where the first is better or worse beyond chance."""
        return self.found.sign if self.p_holm < statistics.LEVEL else ""


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
        if not one.draws and not corruptions.is_corrupted(one.frames):
            videos = tested[one.label]
            rows.append(one)
            found.append(videos.difference(one, videos.right(other), videos.right(one)))
    adjusted = statistics.holm([each.p for each in found])
    return [NetworkDifference(*each) for each in zip(rows, found, adjusted, strict=True)]


def difference_record(each: NetworkDifference) -> dict[str, object]:
    """For a file of scores."""
    row, found = each.row, each.found
    measure = "class_mean" if row.unbalanced else "top1" if row.measure == "top-1" else row.measure
    named = {"label": row.label, "setting": row.setting, "frames": row.frames, "measure": measure}
    ends = {"low": found.low, "high": found.high}
    return {**named, "difference": found.mean, **ends, "p": found.p, "p_holm": each.p_holm}


FEW = 1000  # test videos, below which it is said what they can show
_NAMED = 0.5  # share of the test videos that are given one class, from which on it is told
_BEYOND = 0.2  # by which that is more than the share of the class itself


@dataclass(frozen=True)
class Favourite:
    """The class that a probe names most often.

    Attributes:
        named: fraction of the test videos that are given it.
        share: fraction of them that are of it.
    """

    name: str
    named: float
    share: float


def favourite(score: Score, tested: LabelledVideos, names: Sequence[str]) -> Favourite:
    """The class that a row's probe names most often."""
    number, count = Counter(score.predicted).most_common(1)[0]
    total = len(tested.truth)
    return Favourite(names[number], count / total, list(tested.truth).count(number) / total)


def detectable(
    scores: Mapping[str, Sequence[Score]], tested: Mapping[str, LabelledVideos], each: NetworkDifference
) -> float:
    """The difference that the test of a row of two networks would have found four times in five."""
    place = next(n for n, row in enumerate(next(iter(scores.values()))) if row is each.row)
    first, second = (rows[place] for rows in scores.values())
    videos = tested[first.label]
    if first.added:  # (z of the level + z of the power) standard errors
        found = statistics.mean_of(np.subtract(first.added, second.added), videos.groups)
        return (found.high - found.low) / (2 * statistics.Z) * (statistics.Z + statistics.POWER_Z)
    return statistics.detectable_difference(
        videos.right(second), videos.right(first), videos.classes(first), videos.groups
    )


def without_order(
    rows: Sequence[Score], tested: LabelledVideos, score: Score
) -> statistics.Difference | None:
    """How much better a row is than the same probe on clips of one frame each; None where there are none."""
    alone = [
        row
        for row in rows
        if (row.label, row.setting, row.frames) == (score.label, score.setting, "single")
        and (row.predicted or row.added)
    ]
    if not alone or not (score.predicted or score.added):
        return None
    return tested.difference(score, tested.right(alone[0]), tested.right(score))


def findings(
    scores: Mapping[str, Sequence[Score]],
    differences: Sequence[NetworkDifference],
    tested: Mapping[str, LabelledVideos],
    classes: LabelClasses,
    *,
    pixels_known: bool = False,
) -> list[str]:
    """Lines below a table: differences that would have been seen, a class named for most, order of frames.

    Args:
        scores: network -> its rows.
        differences: of the first two networks.
        classes: label -> names, as test videos and predictions count them.
        pixels_known: whether there are scores of the pixels beside these.
    """
    lines = [*_power(scores, differences, tested, pixels_known)]
    for network, rows in scores.items():
        firsts: dict[str, Score] = {}
        for score in rows:
            if score.frames == "normal" and score.names_classes and score.predicted and not score.draws:
                firsts.setdefault(score.label, score)
        for label, score in firsts.items():
            most = favourite(score, tested[label], classes[label])
            if not score.names_one_class and most.named > max(_NAMED, most.share + _BEYOND):
                lines.append(
                    f"{label}: the {network} network's probe names '{most.name}' for {most.named:.0%} of the "
                    f"test videos, and {most.share:.0%} are; mean over classes {100 * score.class_mean:.1f} %"
                )
    first, rows = next(iter(scores.items()))
    for score in (row for row in rows if row.frames == "normal" and not row.draws):
        if (gain := without_order(rows, tested[score.label], score)) is not None:
            lines.append(f"{score.label}, {first}: {_order_in_words(gain)}")
    return lines


def _order_in_words(gain: statistics.Difference) -> str:
    if gain.p < statistics.LEVEL and gain.mean > 0:
        return f"frames in order score {100 * gain.mean:.1f} points more than one frame: motion is used"
    return (
        f"one frame does as well as frames in order ({100 * gain.mean:+.1f} points, p {gain.p:.2g}): the "
        "label can be told from one frame, or this network does not use more"
    )


def _power(
    scores: Mapping[str, Sequence[Score]],
    differences: Sequence[NetworkDifference],
    tested: Mapping[str, LabelledVideos],
    pixels_known: bool,
) -> Iterator[str]:
    """What differences that were not found could have been, and what may be tried."""
    unseen = [each for each in differences if not each.mark and each.row.frames == "normal"]
    few = [each for each in unseen if len(tested[each.row.label].truth) < FEW]
    # of two networks that err alike in mAP, R2 or masks nothing is known of how differences spread
    few = [each for each in few if not each.row.added or each.found.high > each.found.low]
    if not few:
        return
    words = []
    for label, videos in tested.items():
        if videos.groups is not None and (count := len(set(videos.groups))) < statistics.FEWEST_GROUPS:
            yield (
                f"{label}: its test videos are of {counted(count, 'group')}, and a test by groups sees no "
                f"difference in fewer than {statistics.FEWEST_GROUPS}: 'vidssl data split' says more"
            )
    for each in few:
        name = f"{each.row.label}, {each.row.setting}" if each.row.setting else each.row.label
        size = counted(len(tested[each.row.label].truth), "test video")
        words.append(f"{name} {100 * detectable(scores, tested, each):.0f} points ({size})")
    yield (
        "No difference seen is not none: in four of five such tests one would have been seen of at least "
        f"{'; '.join(words)}"
    )
    if len(unseen) == len(differences) and unseen[0].row.measure != "masks":
        yield (
            "To try next: every video tested once ('vidssl data split --folds 5'), longer training, weights "
            "to start from ('vidssl init --from')"
            + ("" if pixels_known else ", and what pixels alone tell ('vidssl eval pixels data=RUN')")
        )


MEAN = "mean over corruptions"


def folded(rows: Sequence[Score]) -> list[Score]:
    """Rows whose corrupted ones are one of each label and setting: the mean over all kinds and strengths.

    Its numbers are means, its ``draws`` the ``top1`` of each, so that none takes its answers for a network's.
    """
    found = [row for row in rows if not corruptions.is_corrupted(row.frames)]
    for clean in [row for row in found if row.frames == "normal"]:
        same = [
            row
            for row in rows
            if corruptions.is_corrupted(row.frames)
            and (row.label, row.setting) == (clean.label, clean.setting)
        ]
        if same:
            top1, low, high, by_class = (
                fmean(getattr(row, name) for row in same) for name in ("top1", "low", "high", "class_mean")
            )
            setting = f"{clean.setting}, {MEAN}" if clean.setting else MEAN
            of = replace(clean, setting=setting, draws=tuple(row.top1 for row in same), top5=None)
            of = replace(of, top1=top1, low=low, high=high, class_mean=by_class, class_interval=None)
            found.append(replace(of, class_top5=None, class_top5_interval=None, precisions=()))
    return found


NUM_NAMED = 3  # best and worst classes in the line of a label


def confusion(truth: Sequence[int], predicted: Sequence[int], num_classes: int) -> Tensor:
    """How many videos of each class are given each class: int64 [K, K], a row a true class."""
    places = torch.tensor(truth) * num_classes + torch.tensor(predicted)
    return places.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def counted_rows(matrix: Tensor) -> list[str]:
    """A matrix of counts as a line of text for each row, ``0:12 3:1``: column and count, zeros left out."""
    return [" ".join(f"{column}:{row[column]}" for column in row.nonzero()[:, 0].tolist()) for row in matrix]


def best_and_worst(score: Score, truth: Sequence[int], names: Sequence[str]) -> str:
    """One line: the classes that are right most and least often (of sets those of the highest and lowest
    average precision), and what these are taken for instead.

    Args:
        truth: classes of the videos that were predicted.
        names: of the classes, at least two of which have videos.
    """
    found = [(share, name, number) for number, (name, share) in enumerate(score.precisions)]
    matrix = (
        confusion(truth, score.predicted, len(names)) if not found else torch.zeros(len(found), len(found))
    )
    if not found:
        rows = enumerate(zip(matrix.diagonal().tolist(), matrix.sum(1).tolist(), strict=True))
        found = [(right / of, names[number], number) for number, (right, of) in rows if of]
    ranked = sorted(found, key=lambda each: -each[0])
    some, label = min(NUM_NAMED, len(ranked) // 2), score.label
    label += ", average precision" if score.precisions else ""
    worst = [each for each in reversed(ranked[-some:]) if each[0] < 1]
    if not worst:
        return f"{label}: all of {len(ranked)} classes 100 %"
    # a class at 0 % is not the best one, though no other is better
    best = [f"{name} {100 * share:.0f} %" for share, name, _ in ranked[:some] if share > 0]
    if not best:
        return f"{label}: no video of any of {len(ranked)} classes is named right"
    worse = [f"{name} {100 * share:.0f} %{_instead(score, matrix, n, names)}" for share, name, n in worst]
    return f"{label}: best {', '.join(best)}; worst {', '.join(worse)}"


def _instead(score: Score, matrix: Tensor, number: int, names: Sequence[str]) -> str:
    """`` (as x)`` for the class that is named most often in its place, if one is."""
    others = matrix[number].clone()
    others[number] = 0
    if not score.names_classes or not others.any():
        return ""
    return f" (as {names[int(others.argmax())]})"
