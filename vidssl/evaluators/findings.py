"""What a table of scores means, in words: what its test could have shown, and what a number hides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vidssl.data.classes import LabelClasses
from vidssl.errors import counted
from vidssl.evaluators.differences import LabelledVideos, NetworkDifference
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import (
    FEWEST_GROUPS,
    LEVEL,
    Difference,
    detectable_difference,
    paired_difference,
)

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
    return detectable_difference(
        videos.right(second), videos.right(first), videos.classes(first), videos.groups
    )


def without_order(rows: Sequence[Score], tested: LabelledVideos, score: Score) -> Difference | None:
    """How much better a row is than the same probe on clips of one frame each; None where there are none."""
    alone = [
        row
        for row in rows
        if (row.label, row.setting, row.frames) == (score.label, score.setting, "single") and row.predicted
    ]
    if not alone or not score.predicted:
        return None
    return paired_difference(
        tested.right(alone[0]), tested.right(score), tested.classes(score), tested.groups
    )


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


def _order_in_words(gain: Difference) -> str:
    if gain.p < LEVEL and gain.mean > 0:
        return f"frames in order name {100 * gain.mean:.1f} points more than one frame: motion is used"
    return (
        f"one frame does as well as frames in order ({100 * gain.mean:+.1f} points, p {gain.p:.2g}): the "
        "classes can be told from one frame, or this network does not use more"
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
    if not few:
        return
    words = []
    for label, videos in tested.items():
        if videos.groups is not None and (count := len(set(videos.groups))) < FEWEST_GROUPS:
            yield (
                f"{label}: its test videos are of {counted(count, 'group')}, and a test by groups sees no "
                f"difference in fewer than {FEWEST_GROUPS}: 'vidssl data split' says more"
            )
    for each in few:
        name = f"{each.row.label}, {each.row.setting}" if each.row.setting else each.row.label
        size = counted(len(tested[each.row.label].truth), "test video")
        words.append(f"{name} {100 * detectable(scores, tested, each):.0f} points ({size})")
    yield (
        "No difference seen is not none: in four of five such tests one would have been seen of at least "
        f"{'; '.join(words)}"
    )
    if len(unseen) == len(differences):
        yield (
            "To try next: every video tested once ('vidssl data split --folds 5'), longer training, weights "
            "to start from ('vidssl init --from')"
            + ("" if pixels_known else ", and what pixels alone tell ('vidssl eval pixels data=RUN')")
        )
