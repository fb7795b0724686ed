"""How often 95 % intervals cover and tests reject where nothing differs, on simulated test sets.

  python docs/measure_statistics.py                    # the table of docs/evaluation.md, 2,000 test sets a row
  python docs/measure_statistics.py --test-sets 200    # a rough one

Each row draws test sets of a known accuracy and calls the functions that ``vidssl eval`` and
``vidssl compare`` print. Videos of a group share a draw with a probability that is their correlation. Rows
in italics are what they replaced, or what is usual, for comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vidssl.evaluators.statistics import (
    Difference,
    accuracy,
    mean_over_seeds,
    paired_difference,
    welch,
)

Ints = NDArray[np.int64]
Rng = np.random.Generator
Result = tuple[bool | None, bool | None]  # covered, rejected; None where the row has no such thing


@dataclass(frozen=True)
class TestSet:
    """Videos of a simulated test set: class and group of each, and how alike videos of a group are."""

    classes: Ints
    groups: Ints | None = None
    correlation: float = 0.0

    def draw(self, rng: Rng, rows: int = 1) -> NDArray[np.float64]:
        """Uniform numbers [rows, N]; those of a group are equal with probability ``correlation``."""
        own = rng.random((rows, len(self.classes)))
        if self.groups is None:
            return own
        shared = rng.random((rows, self.groups.max() + 1))[:, self.groups]
        # each video takes the group's number with probability sqrt(rho), so that pairs share it with rho
        return np.where(rng.random(own.shape) < np.sqrt(self.correlation), shared, own)


def grouped(rng: Rng, num_groups: int, correlation: float, classes: int = 101) -> TestSet:
    """Groups of four to seven clips, as UCF101's, each of one class."""
    sizes = rng.integers(4, 8, size=num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    return TestSet(groups % classes, groups, correlation)


def mean_by_class(values: NDArray[np.float64], classes: Ints) -> float:
    """Mean over the classes."""
    return float((np.bincount(classes, values) / np.bincount(classes)).mean())


def of_accuracy(
    test: TestSet, by_class: NDArray[np.float64], over_classes: bool = False
) -> Callable[[Rng], Result]:
    """An accuracy of 1 - error."""
    share = by_class[test.classes]
    truth = mean_by_class(share, test.classes) if over_classes else share.mean()

    def once(rng: Rng) -> Result:
        right = test.draw(rng)[0] < share
        found = accuracy(right, test.classes if over_classes else None, test.groups)
        return found.low <= truth <= found.high, None

    return once


def of_percentiles(
    test: TestSet, by_class: NDArray[np.float64], over_classes: bool = False
) -> Callable[[Rng], Result]:
    """The percentile bootstrap over groups, or over videos stratified by class."""
    share = by_class[test.classes]
    truth = mean_by_class(share, test.classes) if over_classes else share.mean()

    def once(rng: Rng) -> Result:
        right = (test.draw(rng)[0] < share).astype(float)
        if over_classes:
            videos = np.bincount(test.classes)
            hits = np.bincount(test.classes, right)
            draws = (rng.binomial(videos, hits / videos, size=(500, len(videos))) / videos).mean(1)
        else:
            assert test.groups is not None
            hits, videos = np.bincount(test.groups, right), np.bincount(test.groups)
            drawn = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=500)
            draws = (drawn @ hits) / (drawn @ videos)
        low, high = np.percentile(draws, [2.5, 97.5])
        return bool(low <= truth <= high), None

    return once


def of_pairs(
    test: TestSet,
    accuracies: tuple[float, float],
    agree: float,
    over_classes: bool = False,
    known: bool = True,
) -> Callable[[Rng], Result]:
    """Two networks that take the same draw for a video with probability ``agree``."""

    def once(rng: Rng) -> Result:
        one, two = test.draw(rng, 2)
        same = test.draw(rng)[0] < agree
        right = [one < accuracies[0], np.where(same, one, two) < accuracies[1]]
        groups = test.groups if known else None
        return judged(paired_difference(*right, test.classes if over_classes else None, groups), accuracies)

    return once


def of_methods(
    test: TestSet,
    accuracies: tuple[float, float],
    seeds: int,
    deviation: float,
    how: Callable[..., Difference | None],
    agree: float = 0.6,
) -> Callable[[Rng], Result]:
    """Two methods of several seeds, whose accuracies have a standard deviation between seeds."""

    def once(rng: Rng) -> Result:
        hard = test.draw(rng)[0]
        answers = []
        for mean in accuracies:
            own = test.draw(rng, seeds)
            mixed = np.where(test.draw(rng, seeds) < agree, hard, own)
            answers.append(mixed < mean + deviation * rng.standard_normal((seeds, 1)))
        return judged(how(*answers, None, test.groups), accuracies)

    return once


def judged(found: Difference | None, accuracies: tuple[float, float]) -> Result:
    """Whether it covers, and, where nothing differs, rejects."""
    truth = accuracies[1] - accuracies[0]
    if found is None:
        return True, False
    return found.low <= truth <= found.high, found.p < 0.05 if truth == 0 else None


def by_welch(one: NDArray, other: NDArray, classes: None, groups: Ints | None) -> Difference | None:
    """Welch's test on the accuracies of seeds."""
    return welch(one.mean(1).tolist(), other.mean(1).tolist())


def by_drawing(one: NDArray, other: NDArray, classes: None, groups: Ints | None) -> Difference | None:
    """The hierarchical bootstrap as it is usually drawn: seeds, then groups, then videos; percentiles."""
    rng = np.random.default_rng(0)
    draws = []
    number = one.shape[1]
    units = np.arange(number) if groups is None else groups
    members = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
    for _ in range(200):
        picked = [members[unit] for unit in rng.integers(len(members), size=len(members))]
        videos = (
            np.concatenate([rng.choice(each, len(each)) for each in picked])
            if groups is not None
            else np.concatenate(picked)
        )
        means = [each[rng.integers(len(each), size=len(each))][:, videos].mean() for each in (one, other)]
        draws.append(means[1] - means[0])
    low, high = np.percentile(draws, [2.5, 97.5])
    p = 2 * min(np.mean(np.array(draws) <= 0), np.mean(np.array(draws) >= 0))
    return Difference(float(np.mean(draws)), float(low), float(high), float(p))


def of_seeds(seeds: int) -> Callable[[Rng], Result]:
    """The mean of several runs."""

    def once(rng: Rng) -> Result:
        mean, half = mean_over_seeds(rng.normal(0.6, 0.02, size=seeds).tolist())
        return half is None or abs(mean - 0.6) <= half, None

    return once


def of_plain_mcnemar(test: TestSet, share: float, agree: float) -> Callable[[Rng], Result]:
    """McNemar's exact test, which takes the clips of a group for independent."""

    def once(rng: Rng) -> Result:
        one, two = test.draw(rng, 2)
        other = np.where(test.draw(rng)[0] < agree, one, two) < share
        only = int(((one < share) & ~other).sum()), int((~(one < share) & other).sum())
        return None, bool(sum(only) and stats.binomtest(only[0], sum(only)).pvalue < 0.05)

    return once


def rows() -> dict[str, Callable[[Rng], Result]]:
    """All that is measured, by name."""
    rng = np.random.default_rng(1)
    plain = TestSet(np.arange(400) % 10)
    small = TestSet(np.arange(60) % 5)
    ucf = {rho: grouped(rng, 707, rho) for rho in (0.3, 0.5, 0.8)}
    few = grouped(rng, 30, 0.5, classes=5)
    rare = TestSet(np.repeat(np.arange(10), [60, 40, 30, 20, 10, 5, 4, 3, 3, 2]))
    uneven = grouped(rng, 120, 0.5, classes=12)
    flat, falling = np.full(101, 0.7), np.linspace(0.9, 0.3, 12)
    found: dict[str, Callable[[Rng], Result]] = {
        "top-1, 400 videos": of_accuracy(plain, flat),
        "top-1, 60 videos, 95 % right": of_accuracy(small, np.full(5, 0.95)),
    }
    for rho, test in ucf.items():
        found[f"top-1, 707 groups, correlation {rho}"] = of_accuracy(test, flat)
        found[f"*the same, groups ignored, correlation {rho}*"] = of_accuracy(TestSet(test.classes), flat)
    return {
        **found,
    }
