"""How sure an accuracy is, and whether two of them differ by more than chance.

Which interval for what. A share of test videos (top-1, top-5, recall at k) gets Wilson's interval, which is
honest near 0 and 1: where all N videos are right, a bootstrap draws nothing but right ones, and its interval
has no width. What is no share of videos (a mean over classes, a difference between two networks on the same
videos) has no such formula and gets a bootstrap over videos. Score files hold the bootstrap of the shares as
well, for those who want one method for all numbers. Both leave out that another training run would have given
another network: for that, see ``mean_over_seeds``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

Interval = tuple[float, float]

DRAWS = 2000  # of a bootstrap: from one seed to another its ends move by less than a tenth of its width


@dataclass(frozen=True)
class Bootstrap:
    """95 % intervals by the percentile bootstrap over test videos (Efron 1979).

    Attributes:
        top1, top5: of the shares of videos; ``top5`` is None where it is not counted.
        class_mean: of the mean over classes.
    """

    top1: Interval
    class_mean: Interval
    top5: Interval | None = None


@dataclass(frozen=True)
class Difference:
    """How much better the second is than the first, in shares, with its 95 % interval and p-value."""

    mean: float
    low: float
    high: float
    p: float


def wilson_interval(right: int, total: int) -> Interval:
    """The 95 % interval of a share, by Wilson's score (1927): honest also near 0 and 1 and for few videos."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def resampled(counts: Tensor, *, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """Bootstrap draws of videos, as counts.

    Videos of one kind (of one class, say, and right) are alike to a statistic, so it is enough to draw how
    many come of each kind. That is multinomial, exactly as if row numbers were drawn, and its cost does not
    grow with the number of videos.

    Args:
        counts: int64 [G], how many videos there are of each kind; N in all, at least 1.
        seed: the same counts and seed give the same draws.

    Returns:
        float64 [draws, G], whole numbers; each row sums to N.
    """
    generator = np.random.default_rng(seed)
    shares = counts.cpu().double() / counts.sum().item()
    drawn = generator.multinomial(int(counts.sum()), shares.numpy(), size=draws)
    return torch.from_numpy(drawn).double()


def percentiles(values: Tensor) -> Interval:
    """Where the middle 95 % of values [draws] lie."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def class_mean(right: Tensor, truth: Tensor) -> float:
    """Accuracy of each class, averaged over the classes that have test videos.

    Args:
        right: bool [N], which videos are right.
        truth: int64 [N], their classes.
    """
    videos = truth.bincount()
    hits = truth.bincount(weights=right.double(), minlength=len(videos))
    there = videos > 0
    return (hits[there] / videos[there]).mean().item()


def bootstrap(right: Tensor, truth: Tensor, among_five: Tensor | None = None, *, seed: int = 0) -> Bootstrap:
    """Intervals of the accuracies of N test videos.

    A draw's mean over classes is over the classes that it holds.

    Args:
        right: bool [N], which videos are right.
        truth: int64 [N], their classes.
        among_five: bool [N], whose class is among the best five; None where that is not counted.
    """
    five = torch.zeros_like(right) if among_five is None else among_five
    kinds, counts = torch.stack((truth, right.long(), five.long())).cpu().unique(dim=1, return_counts=True)
    classes, is_right, is_five = kinds
    drawn = resampled(counts, seed=seed)
    empty = torch.zeros(len(drawn), int(classes.max()) + 1, dtype=drawn.dtype)
    videos = empty.index_add(1, classes, drawn)
    hits = empty.index_add(1, classes, drawn * is_right)
    return Bootstrap(
        top1=percentiles((drawn * is_right).sum(1) / len(truth)),
        class_mean=percentiles((hits / videos).nanmean(1)),
        top5=None if among_five is None else percentiles((drawn * is_five).sum(1) / len(truth)),
    )


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided p-value that two classifiers tested on the same videos are as good as each other.

    McNemar's test in its exact form: of the videos that only one of them gets right, either is as likely to
    be the one as in tosses of a coin.

    Args:
        only_one: videos that only the first gets right.
        only_other: videos that only the second gets right.
    """
    tosses = only_one + only_other
    tail = sum(math.comb(tosses, heads) for heads in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def paired_difference(one: Sequence[bool], other: Sequence[bool], *, seed: int = 0) -> Difference:
    """How much larger a share of the same videos the second gets right than the first.

    The interval is a bootstrap over videos, each drawn with both answers; p is McNemar's.
    """
    first, second = torch.tensor(one), torch.tensor(other)
    only_one, only_other = int((first & ~second).sum()), int((second & ~first).sum())
    both = len(first) - only_one - only_other
    drawn = resampled(torch.tensor([only_one, only_other, both]), seed=seed)
    low, high = percentiles((drawn[:, 1] - drawn[:, 0]) / len(first))
    return Difference((only_other - only_one) / len(first), low, high, mcnemar(only_one, only_other))


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean of runs that differ in their seed, and half of its 95 % interval by Student's t.

    Args:
        values: one a run, at least two.
    """
    runs = np.asarray(values, dtype=np.float64)
    half = special.stdtrit(len(runs) - 1, 0.975) * runs.std(ddof=1) / math.sqrt(len(runs))
    return float(runs.mean()), float(half)


def welch(one: Sequence[float], other: Sequence[float]) -> Difference:
    """How much larger the mean of the second group of runs is, by Welch's test (1947): spreads may differ.

    Args:
        one, other: a value for each run, at least two in each.
    """
    groups = [np.asarray(values, dtype=np.float64) for values in (one, other)]
    mean = float(groups[1].mean() - groups[0].mean())
    parts = [float(runs.var(ddof=1)) / len(runs) for runs in groups]
    error = math.sqrt(sum(parts))
    if error == 0.0:
        return Difference(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    freedom = sum(parts) ** 2 / sum(p * p / (len(r) - 1) for p, r in zip(parts, groups, strict=True))
    half = float(special.stdtrit(freedom, 0.975)) * error
    return Difference(mean, mean - half, mean + half, 2 * float(special.stdtr(freedom, -abs(mean) / error)))
