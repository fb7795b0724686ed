"""What counts as right, how sure an accuracy is, and whether two of them differ by more than chance.

Videos that were cut from one source are not independent, so every function takes ``groups``: units are then
groups, each with all of its videos. Without groups each video is one. ``classes`` asks for the mean over
classes instead of the fraction of videos. docs/measure_statistics.py measures how often the intervals cover
and the tests reject."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special  # not scipy.stats, which takes as long to import as all of vidssl
from torch import Tensor

from vidssl.config.protocol import Average
from vidssl.errors import LabelError, UsageError
from vidssl.interfaces.evaluator import ScoreKind

Array = NDArray[Any]

LEVEL = 0.05  # a difference beyond chance has a p below this; intervals are of 1 - LEVEL
Z, POWER_Z = 1.959964, 0.841621  # of the level, two-sided, and of a power of 0.8
# Agresti and Coull's (1998), so that a rare class that is all right by chance has a variance above 0
PSEUDO_VIDEOS = 4
PSEUDO_GROUPS = 1  # whose videos are all alike, for where few errors tell how alike the others' are
LARGEST_EXACT = 1000  # discordant videos, beyond which the exact test's normal form takes over
LARGEST_FLIPPED = 100  # discordant groups, beyond which the permutation test's does
FLIPS = 20_000
FEWEST_GROUPS = 5  # of test videos: one network ahead in all of four has a mid-p of 2^-4, above the level


@dataclass(frozen=True)
class Estimate:
    """An accuracy in [0, 1] with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the second is than the first, in fractions, with its 95 % interval and p-value.

    Both come from one method: the interval leaves out 0 where, and only where, p is below 0.05.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> str:
        """``+`` or ``-`` where the second is better or worse."""
        return "" if self.mean == 0 else "-" if self.mean < 0 else "+"

    def within(self, measure: str, most: float = 1.0) -> "Difference":
        """The same with an interval that ends at ``most``, as all differences do but those of R2."""
        if measure == "R2":
            return self
        return replace(self, low=max(self.low, -most), high=min(self.high, most))


def wilson_interval(right: float, total: float, z: float = Z) -> tuple[float, float]:
    """The 95 % interval of a fraction, by Wilson's score (1927): honest also near 0 and 1 and for few videos.

    Args:
        right, total: videos; effective numbers of them need not be whole.
    """
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * float(np.sqrt(share * (1 - share) / total + z * z / (4 * total * total)))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


class _Videos:
    """Test videos: the weight of each in the accuracy, its class among those there are, and its group."""

    def __init__(self, number: int, classes: ArrayLike | None, groups: ArrayLike | None) -> None:
        strata = np.zeros(number, int) if classes is None else np.asarray(classes)
        self.strata = np.unique(strata, return_inverse=True)[1]
        self.grouped = groups is not None
        units = np.arange(number) if groups is None else np.asarray(groups)
        self.units = np.unique(units, return_inverse=True)[1]
        self.sizes = np.bincount(self.strata)
        self.num_units = int(self.units.max()) + 1
        self.weights = 1 / (len(self.sizes) * self.sizes[self.strata])  # they sum to 1

    def by_class(self, values: Array) -> Array:
        """Mean of values [N] in each class, [K]."""
        return np.bincount(self.strata, values) / self.sizes

    def by_unit(self, values: Array) -> Array:
        """Weighted sum of values [N] in each unit, [G]."""
        return np.bincount(self.units, self.weights * values, minlength=self.num_units)

    def spread(self, values: Array, units: Array) -> float:
        """Variance of the weighted mean of values [N], units drawn within each class."""
        pairs = np.unique(np.stack((self.strata, units)), axis=1)[0]
        drawn = np.bincount(pairs)
        factor = np.sqrt(np.where(drawn > 1, drawn / np.maximum(drawn - 1, 1), 0.0))
        rest = (values - self.by_class(values)[self.strata]) * factor[self.strata] * self.weights
        return float(np.square(np.bincount(units, rest)).sum())


def accuracy(right: ArrayLike, classes: ArrayLike | None = None, groups: ArrayLike | None = None) -> Estimate:
    """Fraction of N videos that are right, or with ``classes`` the mean over classes, with its 95 % interval.

    Wilson's interval at the effective number of videos, m (1 - m) / variance. The variance is what a
    bootstrap of groups, stratified by class, comes to: the binomial one of each class, times the design
    effect of groups (Kish 1965). Unlike the percentiles of a bootstrap it has a width where all are right.
    Without groups and classes it is Wilson's own.

    Args:
        right: bool [N].
        classes: int [N]; those without videos do not count.
        groups: int [N].
    """
    values = np.asarray(right, dtype=float)
    videos = _Videos(len(values), classes, groups)
    shares, sizes = videos.by_class(values), videos.sizes
    mean = float(shares.mean())
    near = (shares * sizes + PSEUDO_VIDEOS * mean) / (sizes + PSEUDO_VIDEOS)
    binomial = float((near * (1 - near) / sizes).mean() / len(sizes))
    if binomial < 1e-15:  # all right or none, which tells nothing of how alike a group's videos are
        effective = 1 / float(np.square(videos.by_unit(np.ones_like(values))).sum())
        effective = effective if videos.grouped else 1 / float(np.square(videos.weights).sum())
    else:
        effective = mean * (1 - mean) / binomial
    z = Z
    if videos.grouped:
        if videos.num_units < 2:
            return Estimate(mean, 0.0, 1.0)
        alone = videos.spread(values, np.arange(len(values)))
        design = videos.spread(values, videos.units) / alone if alone > 0 else 1.0
        largest = float(np.square(videos.by_unit(np.ones_like(values))).sum())
        largest /= float(np.square(videos.weights).sum())
        known = videos.num_units * min(mean, 1 - mean)
        design = (known * max(1.0, design) + PSEUDO_GROUPS * largest) / (known + PSEUDO_GROUPS)
        effective /= design
        z = float(special.stdtrit(videos.num_units - 1, 1 - LEVEL / 2))
    low, high = wilson_interval(mean * effective, effective, z)
    return Estimate(mean, min(low, mean), max(high, mean))


def paired_difference(
    one: ArrayLike, other: ArrayLike, classes: ArrayLike | None = None, groups: ArrayLike | None = None
) -> Difference:
    """How much more accurate the second of two networks is on the same videos.

    p is the permutation test's that swaps the two networks' answers, group by group: without groups McNemar's
    exact test, in its mid-p form (Fagerland et al. 2013), as the plain one rejects too seldom. The interval
    is the same test turned round: the differences that its statistic, (d - D) over its standard deviation
    under the swaps, does not reject. A difference of D takes answers that differ in a fraction D of the
    videos at least, which gives the interval a width where two networks answer alike (Tango 1998).

    Args:
        one, other: bool [N], which videos each gets right.
        classes, groups: int [N], as for ``accuracy``.
    """
    videos = _Videos(len(np.asarray(one)), classes, groups)
    gained = np.asarray(other, dtype=float) - np.asarray(one, dtype=float)
    parts, sizes = videos.by_unit(gained), videos.by_unit(np.ones_like(gained))
    total = float(parts.sum())
    p, limit = _swapped(parts)
    spread = float(np.square(parts).sum())
    q2 = limit**2 / spread if spread > 0 else Z**2
    a, b = 1 - q2 * float(np.square(sizes).sum()), total - q2 * float((parts * sizes).sum())
    c = total**2 - q2 * spread
    low, high = (-1.0, 1.0) if a <= 0 else _roots(a, b, c) or (total, total)
    least = q2 * float(np.square(sizes if spread == 0 else videos.weights).sum())
    for sign in (1, -1):
        found = _roots(1 + least, sign * total + least / 2, total**2)
        if found is not None and (p >= LEVEL or sign * total > 0):
            low, high = min(low, *(sign * end for end in found)), max(high, *(sign * end for end in found))
    return Difference(total, max(-1.0, min(low, total)), min(1.0, max(high, total)), p)


def detectable_difference(
    one: ArrayLike,
    other: ArrayLike,
    classes: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    power: float = 0.8,
) -> float:
    """The difference between two networks that ``paired_difference`` would find with this power.

    By its normal form: a difference of (z of the level + z of the power) standard deviations of the statistic
    under the swaps, taken from how often these two networks differ. A difference is at most the fraction of
    videos in which they differ, so that few test videos set a bound, however alike two networks are.

    Args:
        one, other, classes, groups: as for ``paired_difference``.
        power: probability of finding it.

    Returns:
        A fraction in [0, 1]; 1 where no difference would be found.
    """
    videos = _Videos(len(np.asarray(one)), classes, groups)
    gained = np.asarray(other, dtype=float) - np.asarray(one, dtype=float)
    z = Z + float(special.ndtri(power))
    spread = float(np.square(videos.by_unit(gained)).sum())
    least = float(np.square(videos.by_unit(np.ones_like(gained))).sum())
    return min(1.0, max(z * float(np.sqrt(spread)), z * z * least))


def _roots(a: float, b: float, c: float) -> tuple[float, float] | None:
    """Where a x^2 - 2 b x + c is 0; None if it is nowhere."""
    if b * b - a * c < 0:
        return None
    half = float(np.sqrt(b * b - a * c))
    return (b - half) / a, (b + half) / a


def _swapped(parts: Array) -> tuple[float, float]:
    """Two-sided mid-p of a sum whose parts have random signs, and the largest sum that is not rejected."""
    sizes = np.abs(parts[np.abs(parts) > 1e-12])
    number, total = len(sizes), abs(float(parts.sum()))
    if number == 0:
        return 1.0, 0.0
    limit = Z * float(np.sqrt(np.square(sizes).sum()))
    if np.ptp(sizes) < 1e-9 * sizes.max() and number <= LARGEST_EXACT:
        heads = round((number - total / sizes.mean()) / 2)
        p = special.bdtr(heads, number, 0.5) + (special.bdtr(heads - 1, number, 0.5) if heads else 0.0)
    elif number <= LARGEST_FLIPPED:
        signs = np.random.default_rng(0).integers(0, 2, size=(FLIPS, number), dtype=np.int8) * 2 - 1
        sums = np.abs(signs @ sizes)
        limit = float(np.quantile(sums, 1 - LEVEL))
        beyond, even = np.sum(sums > total + 1e-9), np.sum(np.abs(sums - total) <= 1e-9)
        p = (beyond + even / 2 + 0.5) / (FLIPS + 0.5)
    else:
        p = 2 * special.ndtr(-total / np.sqrt(np.square(sizes).sum()))
    p = min(1.0, float(p))
    # sums are whole numbers of steps: between two of them any limit decides alike
    return p, max(limit, total) if p >= LEVEL else min(limit, total * (1 - 1e-9))


def method_difference(
    one: ArrayLike, other: ArrayLike, classes: ArrayLike | None = None, groups: ArrayLike | None = None
) -> Difference | None:
    """How much more accurate the second of two methods is, each trained with several seeds.

    The variance is that of the hierarchical bootstrap, which draws seeds, then groups, then takes their
    videos, in closed form: between seeds, plus between groups, less what both count (Cameron et al. 2011).
    So it holds for other seeds and for other test videos. Drawing from three seeds is too narrow by a third
    and has no tails; here variances are unbiased, and Student's t has Satterthwaite's degrees of freedom.

    Args:
        one, other: bool [S, N], which videos each seed gets right; at least two seeds each.
        classes, groups: int [N], as for ``accuracy``.

    Returns:
        None where no seed and no video differs, so that there is nothing to test by.
    """
    answers = [np.asarray(each, dtype=float) for each in (one, other)]
    videos = _Videos(answers[0].shape[1], classes, groups)
    units = videos.num_units
    between, both, welch_squares = 0.0, 0.0, 0.0
    for each in answers:
        seeds = len(each)
        own = float((each @ videos.weights).var(ddof=1)) / seeds
        rest = each - np.stack([videos.by_class(row)[videos.strata] for row in each])
        rest = rest - rest.mean(0)
        cells = np.stack([videos.by_unit(row) for row in rest])
        between += own
        welch_squares += own**2 / (seeds - 1)
        both += float(np.square(cells).sum()) / (seeds * (seeds - 1)) * units / max(1, units - 1)
    gained = answers[1].mean(0) - answers[0].mean(0)
    mean = float(videos.weights @ gained)
    of_videos = videos.spread(gained, videos.units)
    of_seeds = max(0.0, between - both)
    variance = of_videos + of_seeds
    if variance < 1e-15:
        return None
    squares = (welch_squares if of_seeds > 0 else 0.0) + of_videos**2 / max(1, units - 1)
    return _by_t(mean, variance, variance**2 / squares)


def welch(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """How much larger the mean of the second group of runs is, by Welch's test (1947): spreads may differ.

    Args:
        one, other: a value for each run, at least two in each.

    Returns:
        None where the runs of each group tie, so that there is no spread to test by.
    """
    groups = [np.asarray(values, dtype=np.float64) for values in (one, other)]
    mean = float(groups[1].mean() - groups[0].mean())
    parts = [float(runs.var(ddof=1)) / len(runs) for runs in groups]
    if sum(parts) < 1e-15:
        return None
    freedom = sum(parts) ** 2 / sum(p * p / (len(r) - 1) for p, r in zip(parts, groups, strict=True))
    return _by_t(mean, sum(parts), freedom)


def _by_t(mean: float, variance: float, freedom: float) -> Difference:
    error = float(np.sqrt(variance))
    half = float(special.stdtrit(freedom, 1 - LEVEL / 2)) * error
    return Difference(mean, mean - half, mean + half, 2 * float(special.stdtr(freedom, -abs(mean) / error)))


def mean_average_precision(scores: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    """What each of N videos adds to the mean average precision (mAP), and that of each class.

    As scikit-learn's ``average_precision_score``: the sum over falling scores of precision times the rise
    in recall, videos of equal scores at once. Classes without positives count in no mean.

    Args:
        scores, truth: [N, K]; truth is 1 for the classes of a video, else 0.

    Returns:
        [N], whose mean is mAP: mAP plus N times its derivative by the video's weight (the infinitesimal
        jackknife, Efron 1982), so that the spread of their mean is that of a bootstrap; and [K], NaN for a
        class without positives.
    """
    values, sets = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    there = sets.any(0)
    added, found = np.full(len(values), np.nan), np.full(values.shape[1], np.nan)
    if there.any():
        columns = [_average_precision(values[:, k], sets[:, k]) for k in np.flatnonzero(there)]
        added, found[there] = np.mean(columns, axis=0), [column.mean() for column in columns]
    return added, found


def _average_precision(scores: Array, truth: Array) -> Array:
    """[N] of one class with positives, as ``mean_average_precision`` has it."""
    levels = np.unique(-scores, return_inverse=True)[1]  # 0 is the highest score
    positive = np.bincount(levels, truth)
    every = np.cumsum(np.bincount(levels))
    precision = np.cumsum(positive) / every
    total = truth.sum()
    mean = float(positive @ precision) / total
    # a video's weight moves its own term, and precision at its level and at all lower ones
    below = [
        np.cumsum((positive * term / every)[::-1])[::-1] for term in (np.ones_like(precision), precision)
    ]
    moved = truth * (precision[levels] + below[0][levels] - mean) - below[1][levels]
    return np.asarray(mean + len(scores) * moved / total)


def explained(estimate: ArrayLike, truth: ArrayLike) -> Array:
    """What each of N videos adds to R2, the variance explained: [N], as ``mean_average_precision``.

    Raises:
        LabelError: if all of ``truth`` is one number, of which nothing can be explained.
    """
    wanted = np.asarray(truth, dtype=float)
    errors, about = np.square(np.asarray(estimate, dtype=float) - wanted), np.square(wanted - wanted.mean())
    if not about.any():
        raise LabelError(f"all {len(wanted)} test videos have the number {wanted[0]:g}: R2 is not defined")
    share = float(errors.sum() / about.sum())
    return np.asarray(1 - share + (share * about - errors) / about.mean())


def fraction(added: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """Mean in [0, 1] of what N videos add, and its 95 % interval by Student's t over groups, in the logit."""
    return _in_logit(*_mean(np.asarray(added, dtype=float), groups))


def mean_of(added: ArrayLike, groups: ArrayLike | None = None) -> Difference:
    """Mean of what N videos add, with its interval by Student's t over groups, and the p of its being 0."""
    values = np.asarray(added, dtype=float)
    mean, variance, freedom = _mean(values, groups)
    if freedom < 1:
        return Difference(mean, min(mean, -1.0), max(mean, 1.0), 1.0)  # of one group nothing is known
    return (
        _by_t(mean, variance, freedom)
        if variance > 1e-18 * np.square(values).mean()
        else Difference(mean, mean, mean, 1.0)
    )


def _mean(values: Array, groups: ArrayLike | None) -> tuple[float, float, int]:
    """Mean of values [N], its variance over groups, and degrees of freedom."""
    videos = _Videos(len(values), None, groups)
    return float(values.mean()), videos.spread(values, videos.units), videos.num_units - 1


def pooled(parts: ArrayLike, of: Callable[[Array], float]) -> Array:
    """What each video adds to a number of sums over videos, such as mean IoU; their mean is that number.

    The jackknife's pseudo-values (Tukey 1958), so that the spread of their mean is that of the number. Of a
    mean over videos they are the videos' own values.

    Args:
        parts: [N, ...], what each video adds to the sums.
        of: the number, of sums [...].

    Returns:
        [N].
    """
    parts = np.asarray(parts, dtype=float)
    total, number = parts.sum(0), len(parts)
    without = np.array([of(total - part) for part in parts]) if number > 1 else np.zeros(1)
    return of(total) + (number - 1) * (without.mean() - without)


def _in_logit(mean: float, variance: float, freedom: int) -> Estimate:
    slope = mean * (1 - mean)
    if slope < 1e-12 or freedom < 1:
        return Estimate(mean, *wilson_interval(mean * (freedom + 1), freedom + 1))
    half = float(special.stdtrit(freedom, 1 - LEVEL / 2)) * float(np.sqrt(variance)) / slope
    low, high = (float(special.expit(special.logit(mean) + sign * half)) for sign in (-1, 1))
    return Estimate(mean, min(low, mean), max(high, mean))


def mean_over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of runs that differ in their seed, and half of its 95 % interval by Student's t.

    Args:
        values: one a run, at least two.

    Returns:
        The half is None where all runs tie: seeds that agree by chance do not make an interval of no width.
    """
    runs = np.asarray(values, dtype=np.float64)
    std = float(runs.std(ddof=1))
    if std < 1e-12:
        return float(runs.mean()), None
    half = special.stdtrit(len(runs) - 1, 1 - LEVEL / 2) * std / np.sqrt(len(runs))
    return float(runs.mean()), float(half)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979), in the order given.

    Below 0.05 they are beyond chance with at most one chance in twenty that any of them is not.
    """
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def check_scores(scores: Tensor, rows: int, classes: int, who: str) -> None:
    """Holds what a probe gave to its contract: [rows, classes], finite.

    Raises:
        UsageError: naming ``who`` gave it, what it is and what was expected.
    """
    if not isinstance(scores, Tensor):
        raise UsageError(f"{who}: scores are {type(scores).__name__}, expected a tensor [{rows}, {classes}]")
    if scores.shape != (rows, classes) or not scores.is_floating_point():
        raise UsageError(
            f"{who}: scores are {scores.dtype} {[*scores.shape]}, expected floating-point [{rows}, "
            f"{classes}], a row a sample and a column a class"
        )
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        raise UsageError(
            f"{who}: the scores of {int((~finite).sum())} of {rows} samples are not finite (NaN or inf), so "
            "that no class can be named"
        )


def average_views(scores: Tensor, average: Average, kind: ScoreKind) -> Tensor:
    """The scores of videos from those of their views.

    Args:
        scores: [N, V, K].
        average: "scores" averages them as they are (SVT's published test sums them, which ranks classes
            the same way); "probabilities" the softmax of logits, as BEVT and VIMPAC test, or vote fractions.
        kind: what the scores are.

    Returns:
        [N, K].

    Raises:
        ValueError: if such scores cannot be averaged so.
    """
    if average == "scores" and kind != "found":
        return scores.mean(1)
    if average == "probabilities" and kind == "logits":
        return scores.softmax(-1).mean(1)
    if average == "probabilities" and kind == "votes":
        total = scores.sum(-1, keepdim=True)  # a view without any vote counts for no class
        return (scores / total.masked_fill(total == 0, 1.0)).mean(1)
    raise ValueError(f"{average} of views cannot be averaged where scores say what was {kind}")


def predict(scores: Tensor, truth: Tensor, kind: ScoreKind) -> Tensor:
    """The class [N] that scores [N, K] name: ``truth`` [N] where it is right, another where it is not."""
    best = scores.argmax(1)
    if kind != "found":
        return best
    return torch.where(_score_of(scores, truth) > 0, truth, best)


def in_top(scores: Tensor, truth: Tensor, count: int, kind: ScoreKind) -> Tensor:
    """bool [N]: whether the true class is among the ``count`` best. One without a vote never is."""
    among = (scores.topk(count, dim=1).indices == truth[:, None]).any(1)
    return among & (_score_of(scores, truth) > 0) if kind == "votes" else among


def _score_of(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None])[:, 0]
