"""How often 95 % intervals cover and tests reject where nothing differs, on simulated test sets.

  python docs/measure_statistics.py                   # the table of docs/evaluation.md
  python docs/measure_statistics.py --test-sets 200   # a rough one

Each row draws test sets of a known accuracy and calls the functions that 'vidssl eval' and 'vidssl compare'
print the results of. Rows in italics are what is usual elsewhere, on the same test sets.

Two networks, or seeds of a method, find the same videos hard: each takes a video's common draw with a
probability and its own otherwise. Videos of a group share a draw so often that any two of them correlate.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vidssl.evaluators.statistics import (
    Difference,
    accuracy,
    explained,
    fraction,
    mean_average_precision,
    mean_of,
    mean_over_seeds,
    method_difference,
    paired_difference,
    welch,
    wilson_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rng = np.random.Generator
Compare = Callable[..., Difference | None]  # answers of two networks or methods, classes, groups
Result = tuple[bool | None, bool | None]  # covered, rejected; None where a row has no such thing
Once = Callable[[Rng], Result]


@dataclass(frozen=True)
class Videos:
    """A simulated test set: class and group of each video, and the correlation of videos of a group."""

    classes: Ints
    groups: Ints | None = None
    correlation: float = 0.0

    def draw(self, rng: Rng, rows: int) -> Floats:
        """Uniform numbers [rows, N]."""
        own = rng.random((rows, len(self.classes)))
        if self.groups is None:
            return own
        shared = rng.random((rows, self.groups.max() + 1))[:, self.groups]
        return np.where(rng.random(own.shape) < self.correlation**0.5, shared, own)


def clips(num_groups: int, correlation: float, classes: int) -> Videos:
    """Groups of four to seven clips, as UCF101's, each of one class."""
    groups = np.repeat(np.arange(num_groups), np.random.default_rng(1).integers(4, 8, size=num_groups))
    return Videos(groups % classes, groups, correlation)


def of_accuracy(videos: Videos, by_class: Floats, over_classes: bool, how: Callable[..., object]) -> Once:
    """An interval of an accuracy, top-1 or the mean over classes."""
    share, classes = by_class[videos.classes], videos.classes if over_classes else None
    truth = by_class[np.unique(videos.classes)].mean() if over_classes else share.mean()

    def once(rng: Rng) -> Result:
        low, high = interval(how(videos.draw(rng, 1)[0] < share, classes, videos.groups))
        return low <= truth <= high, None

    return once


def interval(found: object) -> tuple[float, float]:
    """Its ends."""
    if isinstance(found, tuple):
        return found
    return found.low, found.high


def wilson(right: NDArray[np.bool_], classes: Ints | None, groups: Ints | None) -> tuple[float, float]:
    """Wilson's interval, which takes clips of a group for independent."""
    return wilson_interval(int(right.sum()), len(right))


def percentiles(right: NDArray[np.bool_], classes: Ints | None, groups: Ints | None) -> tuple[float, float]:
    """The percentile bootstrap: of groups, or of videos within classes."""
    rng = np.random.default_rng(0)
    if classes is not None:
        sizes = np.bincount(classes)
        draws = rng.binomial(sizes, np.bincount(classes, right) / sizes, size=(500, len(sizes))) / sizes
        low, high = np.percentile(draws.mean(1), [2.5, 97.5])
    else:
        assert groups is not None
        hits, sizes = np.bincount(groups, right), np.bincount(groups)
        drawn = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=500)
        low, high = np.percentile((drawn @ hits) / (drawn @ sizes), [2.5, 97.5])
    return float(low), float(high)


def of_networks(
    videos: Videos, right: tuple[float, float], how: Compare, over_classes: bool = False, agree: float = 0.6
) -> Once:
    """Two networks on the same videos."""

    def once(rng: Rng) -> Result:
        one, two, choice = videos.draw(rng, 3)
        answers = (one < right[0], np.where(choice < agree, one, two) < right[1])
        return judged(how(*answers, videos.classes if over_classes else None, videos.groups), right)

    return once


def of_methods(
    videos: Videos, right: tuple[float, float], seeds: int, deviation: float, how: Compare, own: float = 0.0
) -> Once:
    """Two methods; the accuracy of their seeds has a standard deviation.

    Args:
        own: how often a method, all of its seeds alike, finds other videos hard than the other method does.
    """

    def once(rng: Rng) -> Result:
        hard = videos.draw(rng, 1)[0]
        answers = []
        for share in right:
            method = np.where(rng.random(len(hard)) < own, videos.draw(rng, 1)[0], hard)
            draws = np.where(videos.draw(rng, seeds) < 0.6, method, videos.draw(rng, seeds))
            answers.append(draws < share + deviation * rng.standard_normal((seeds, 1)))
        return judged(how(*answers, None, videos.groups), right)

    return once


def judged(found: Difference | None, right: tuple[float, float]) -> Result:
    """Whether it covers, and, where nothing differs, whether it rejects."""
    if found is None:  # no test, so nothing is claimed
        return True, False
    truth = right[1] - right[0]
    covered = None if np.isnan(found.low) else found.low <= truth <= found.high
    return covered, found.p < 0.05 if truth == 0 else None


def mcnemar(one: Ints, two: Ints, classes: Ints | None, groups: Ints | None) -> Difference:
    """McNemar's exact test, which takes clips of a group for independent, and no interval."""
    only = int((one & ~two).sum()), int((two & ~one).sum())
    return Difference(0.0, np.nan, np.nan, float(stats.binomtest(only[0], max(1, sum(only))).pvalue))


def by_seeds(one: Floats, two: Floats, classes: Ints | None, groups: Ints | None) -> Difference | None:
    """Welch's test on the accuracies of seeds, as 'vidssl compare' has it in a column."""
    return welch(one.mean(1).tolist(), two.mean(1).tolist())


def by_drawing(one: Floats, two: Floats, classes: Ints | None, groups: Ints | None) -> Difference:
    """The hierarchical bootstrap as it is usually drawn: seeds, then groups with their videos."""
    rng = np.random.default_rng(0)
    units = np.arange(one.shape[1]) if groups is None else groups
    sizes = np.bincount(units)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=400)
    means = []
    for each in (one, two):
        hits = np.stack([np.bincount(units, row) for row in each.astype(float)])
        weights = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=400) / len(each)
        means.append(((weights @ hits) * drawn).sum(1) / (drawn @ sizes))
    draws = means[1] - means[0]
    low, high = np.percentile(draws, [2.5, 97.5])
    p = 2 * min(np.mean(draws <= 0), np.mean(draws >= 0))
    return Difference(float(draws.mean()), float(low), float(high), float(p))


def of_seeds(seeds: int) -> Once:
    """The mean over runs of several seeds."""

    def once(rng: Rng) -> Result:
        mean, half = mean_over_seeds(rng.normal(0.6, 0.02, size=seeds).tolist())
        return half is None or abs(mean - 0.6) <= half, None

    return once


def of_outputs(units: int, size: int, number: bool) -> Once:
    """mAP of five classes or R2 of a number, and two networks equally good; videos of a unit are alike."""

    def draw(rng: Rng, count: int) -> tuple[Floats, Floats, Floats, Ints]:
        """What is true, what each network says of it, and groups."""
        groups = np.repeat(np.arange(count), size)
        drawn = ((rng.normal(size=(count, 5)), rng.normal(size=(len(groups), 5))) for _ in range(4))
        hidden, truth, *said = (0.7 * shared[groups] + 0.7 * own for shared, own in drawn)
        return hidden + 0.8 * truth, hidden + 0.4 * said[0], hidden + 0.4 * said[1], groups

    def added(truth: Floats, said: Floats) -> Floats:
        if number:
            return explained(0.6 * said[:, 0], truth[:, 0])
        return mean_average_precision(said, (truth > 0.8).astype(float))[0]

    truth, said, _, _ = draw(np.random.default_rng(0), 100_000 // size)
    expected = added(truth, said).mean()

    def once(rng: Rng) -> Result:
        truth, one, other, groups = draw(rng, units)
        first, second = added(truth, one), added(truth, other)
        found = (mean_of if number else fraction)(first, groups)
        return found.low <= expected <= found.high, mean_of(second - first, groups).p < 0.05

    return once


def rows() -> dict[str, Once]:
    """All that is measured, by name."""
    plain, small = Videos(np.arange(400) % 10), Videos(np.arange(60) % 5)
    ucf = {rho: clips(707, rho, 101) for rho in (0.3, 0.5, 0.8)}
    few, mixed = clips(30, 0.5, 5), clips(120, 0.5, 12)
    rare = Videos(np.repeat(np.arange(10), [60, 40, 30, 20, 10, 5, 4, 3, 3, 2]))
    flat, ten, twelve = np.full(101, 0.7), np.linspace(0.9, 0.3, 10), np.linspace(0.9, 0.3, 12)
    same, better = (0.6, 0.6), (0.6, 0.7)
    table = {
        "top-1, 400 videos, 70 % right": of_accuracy(plain, flat, False, accuracy),
        "top-1, 60 videos, 95 % right": of_accuracy(small, np.full(5, 0.95), False, accuracy),
    }
    for what, number in (("mAP", False), ("R2", True)):
        for units, size in ((400, 1), (60, 1), (100, 4), (25, 4)):
            words = f"{units} videos" if size == 1 else f"{units} groups of {size}"
            table[f"{what}, {words}"] = of_outputs(units, size, number)
    for rho, videos in ucf.items():
        name = f"707 groups, correlation {rho}"
        table[f"top-1, {name}"] = of_accuracy(videos, flat, False, accuracy)
        table[f"*Wilson, {name}*"] = of_accuracy(videos, flat, False, wilson)
    table |= {
        "top-1, 30 groups": of_accuracy(few, flat, False, accuracy),
        "*percentile bootstrap of 30 groups*": of_accuracy(few, flat, False, percentiles),
        "top-1, 30 groups, 95 % right": of_accuracy(few, np.full(5, 0.95), False, accuracy),
        "*percentile bootstrap, the same*": of_accuracy(few, np.full(5, 0.95), False, percentiles),
        "mean over classes of 2 to 60 videos": of_accuracy(rare, ten, True, accuracy),
        "*percentile bootstrap within classes*": of_accuracy(rare, ten, True, percentiles),
        "mean over classes, 95 % right": of_accuracy(rare, np.full(10, 0.95), True, accuracy),
        "*percentile bootstrap, the same *": of_accuracy(rare, np.full(10, 0.95), True, percentiles),
        "mean over classes, 120 groups": of_accuracy(mixed, twelve, True, accuracy),
        "mean over 3 seeds": of_seeds(3),
        "two networks, 400 videos": of_networks(plain, same, paired_difference),
        "*McNemar's exact test*": of_networks(plain, same, mcnemar),
        "two networks, 10 points apart": of_networks(plain, better, paired_difference),
        "two networks, 60 points apart": of_networks(plain, (0.3, 0.9), paired_difference),
        "two networks, 60 videos": of_networks(small, same, paired_difference),
    }
    for rho, videos in ucf.items():
        name = f"707 groups, correlation {rho}"
        table[f"two networks, {name}"] = of_networks(videos, same, paired_difference)
        table[f"*McNemar, {name}*"] = of_networks(videos, same, mcnemar)
    return table | {
        "two networks, 707 groups, 10 points apart": of_networks(ucf[0.5], better, paired_difference),
        "two networks, 30 groups": of_networks(few, same, paired_difference),
        "two networks, 30 groups, 10 points apart": of_networks(few, better, paired_difference),
        "mean over classes of 2 to 60 videos, two networks": of_networks(rare, same, paired_difference, True),
        "the same, 10 points apart": of_networks(rare, better, paired_difference, True),
        "mean over classes, 120 groups, two networks": of_networks(mixed, same, paired_difference, True),
        **of_all_methods(plain, ucf[0.3]),
    }


def of_all_methods(plain: Videos, grouped: Videos) -> dict[str, Once]:
    """Rows of methods: seeds that agree, differ as test videos do, and differ more."""
    same, better = (0.6, 0.6), (0.6, 0.7)
    table = {}
    for seeds, deviation in ((3, 0.0), (3, 0.01), (3, 0.03), (3, 0.1), (5, 0.03), (2, 0.01), (2, 0.03)):
        name = f"{seeds} seeds, ± {100 * deviation:g} points"
        table[f"two methods, {name}"] = of_methods(plain, same, seeds, deviation, method_difference)
    compared = {"two methods": method_difference, "Welch": by_seeds, "*hierarchical bootstrap": by_drawing}
    for name, how in compared.items():
        end = "*" if name.startswith("*") else ""
        table[f"{name}, 3 seeds, ± 10 points {end}"] = of_methods(plain, same, 3, 0.1, how)
        table[f"{name}, other videos hard{end}"] = of_methods(plain, same, 3, 0.01, how, 0.5)
        table[f"{name}, other videos hard, 707 groups{end}"] = of_methods(grouped, same, 3, 0.01, how, 0.5)
    del table["two methods, 3 seeds, ± 10 points "]
    table["two methods, 3 seeds, 10 points apart"] = of_methods(plain, better, 3, 0.02, method_difference)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--test-sets", type=int, default=2000, help="of each row (default 2000)")
    parser.add_argument("--only", default="", help="rows whose names hold this")
    options = parser.parse_args()
    print("| simulated | interval covers % | test rejects % |\n| --- | --- | --- |")
    for name, once in rows().items():
        if options.only in name:
            rng = np.random.default_rng(5)
            found = [once(rng) for _ in range(options.test_sets)]
            cells = []
            for column in zip(*found, strict=True):
                known = [each for each in column if each is not None]
                cells.append(f"{100 * np.mean(known):.1f}" if known else "-")
            print(f"| {name.strip()} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
