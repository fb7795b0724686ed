"""What is shown of runs side by side: scores, differences between them, and between their recipes."""

from collections.abc import Iterator, Mapping, Sequence

from vidssl.compare.entries import Entry, What, seeds_cell
from vidssl.compare.grids import Grid
from vidssl.evaluators.statistics import Difference, paired_difference, welch, wilson_interval
from vidssl.scoring.report import class_mean_matters, percent
from vidssl.scoring.score_file import ScoreFile
from vidssl.scoring.scores import Score

TOP1, TOP5, CLASS_MEAN = "", "top-5", "mean over classes"
Line = tuple[str, list[str]]  # what it is of, and a cell for each network


def score_grid(entries: Sequence[Entry]) -> Grid:
    """Scores with their intervals: all networks one way, all that was scored the other, the longer side down.

    Args:
        entries: under one protocol.
    """
    columns = list(_networks(entries))
    lines = [*_facts(columns), *_scores(columns)]
    names = [f"{entry.name}, {network}" for entry, network in columns]
    title = f"{_protocol(entries)}: accuracy in %{_legend(entries)}"
    chance = [_chance(entries[0], key) if measure == TOP1 else "" for key, measure in _asked(columns)]
    facts = len(lines) - len(chance)
    if len(columns) <= len(chance):
        rows = [(name, *cells, end) for (name, cells), end in zip(lines, [""] * facts + chance, strict=True)]
        return Grid(title, ("label", *names, "chance"), tuple(rows))
    rows = [(name, *(cells[place] for _, cells in lines)) for place, name in enumerate(names)]
    rows.append(("chance", *([""] * facts), *chance))
    return Grid(title, ("run", *(name for name, _ in lines)), tuple(rows))


def _protocol(entries: Sequence[Entry]) -> str:
    file = entries[0].files[0]
    return f"{file.name} (card {file.card_sha256[:8]})"


def _legend(entries: Sequence[Entry]) -> str:
    drawn = any(score.spread is not None for _, score in _all_scores(entries[0].files[0]))
    parts = []
    if any(len(entry.files) == 1 for entry in entries):
        parts.append("in brackets the 95 % interval over test videos")
        if drawn:
            parts.append("for few labels ± the standard deviation over draws")
    if any(len(entry.files) > 1 for entry in entries):
        parts.append("for several seeds ± half the 95 % t-interval of the mean")
    return "".join(f", {part}" for part in parts)


def _all_scores(file: ScoreFile) -> Iterator[tuple[str, Score]]:
    for network, scores in file.scores.items():
        for score in scores:
            yield network, score


def _networks(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
    """What was trained first, then what it is compared with."""
    for place in range(max(len(entry.files[0].scores) for entry in entries)):
        for entry in entries:
            for network in list(entry.files[0].scores)[place : place + 1]:
                yield entry, network


def _facts(columns: Sequence[tuple[Entry, str]]) -> Iterator[Line]:
    yield "step", [str(entry.files[0].step) for entry, _ in columns]
    if any(len(entry.files) > 1 for entry, _ in columns):
        yield "seeds", [str(len(entry.files)) for entry, _ in columns]
    yield "test videos", [_found(entry.files[0]) for entry, _ in columns]


def _found(file: ScoreFile) -> str:
    found, listed = file.videos["test"]
    return f"{found} of {listed}"


def _scores(columns: Sequence[tuple[Entry, str]]) -> Iterator[Line]:
    tables = [entry.rows(network) for entry, network in columns]
    for key, measure in _asked(columns):
        name = " ".join(word for word in (head(key), measure) if word)
        yield name, [_cell(rows[key], measure) for rows in tables]


def _asked(columns: Sequence[tuple[Entry, str]]) -> Iterator[tuple[What, str]]:
    """Top-1 of every row; of clips in order also top-5 and the mean over classes, where that is another."""
    tables = [entry.rows(network) for entry, network in columns]
    for key, first in tables[0].items():
        yield key, TOP1
        if key[2] == "normal" and first[0].top5 is not None:
            yield key, TOP5
        scores = [score for rows in tables for score in rows[key]]
        if key[2] == "normal" and class_mean_matters(scores):
            yield key, CLASS_MEAN


def head(key: What) -> str:
    """A row's name: label, setting, and the order of frames where it is not the normal one."""
    label, setting, frames = key
    return " ".join(word for word in (label, setting, "" if frames == "normal" else frames) if word)


def _chance(entry: Entry, key: What) -> str:
    return percent(entry.rows(next(iter(entry.files[0].scores)))[key][0].chance)


def _cell(scores: Sequence[Score], measure: str) -> str:
    values = [_value(score, measure) for score in scores]
    if len(values) > 1:
        return seeds_cell(values)
    score = scores[0]
    if score.spread is not None and measure == TOP1:
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    low, high = _interval(score, measure)
    return f"{percent(values[0])} ({100 * low:.0f} to {100 * high:.0f})"


def _value(score: Score, measure: str) -> float:
    if measure == TOP5:
        return score.top5 or 0.0
    return score.class_mean if measure == CLASS_MEAN else score.top1


def _interval(score: Score, measure: str) -> tuple[float, float]:
    """Wilson's for shares of videos, the bootstrap's for means over classes."""
    if measure == TOP5:
        return wilson_interval(round((score.top5 or 0.0) * score.num_test), score.num_test)
    return score.bootstrap.class_mean if measure == CLASS_MEAN else (score.low, score.high)


def difference_grids(entries: Sequence[Entry]) -> list[Grid]:
    """How each entry differs from the first: on the same videos, or from seed to seed.

    Two runs are compared on the videos that only one of them gets right, with McNemar's p and a bootstrap
    over videos; two groups of seeds by Welch's test. One run and a group of seeds cannot be: a single run
    does not tell how far chance carries it.
    """
    first = entries[0]
    grids = []
    for other in entries[1:]:
        several = [len(entry.files) > 1 for entry in (first, other)]
        if all(several):
            grids.append(_over_seeds(first, other))
        elif any(several):
            title = (
                f"{first.files[0].name}: {first.name} and {other.name}: no test of one run against several"
            )
            grids.append(Grid(title, ("label",), ()))
        else:
            grids.append(_on_videos(first, other))
    return grids


def _rows(entry: Entry) -> Mapping[What, tuple[Score, ...]]:
    return entry.rows(next(iter(entry.files[0].scores)))


def _on_videos(first: Entry, other: Entry) -> Grid:
    rows = []
    others = _rows(other)
    for key, (one,) in _rows(first).items():
        if one.draws:
            continue  # of several draws only the first one's answers are kept
        truth = first.files[0].classes_of(one.label)
        (two,) = others[key]
        right = [[a == b for a, b in zip(score.predicted, truth, strict=True)] for score in (one, two)]
        only_one = sum(a and not b for a, b in zip(*right, strict=True))
        only_two = sum(b and not a for a, b in zip(*right, strict=True))
        found = paired_difference(*right)
        rows.append((head(key), str(only_one), str(only_two), *_difference(found), f"{found.p:.3g}"))
    title = (
        f"{first.files[0].name}: videos that only one of the two gets right, and what that makes in points"
    )
    heads = (
        "label",
        f"only {first.name}",
        f"only {other.name}",
        "difference",
        "95 % interval",
        "McNemar's p",
    )
    return Grid(title, heads, tuple(rows))


def _over_seeds(first: Entry, other: Entry) -> Grid:
    others = _rows(other)
    rows = []
    for key, scores in _rows(first).items():
        values = [[score.top1 for score in group] for group in (scores, others[key])]
        found = welch(*values)
        rows.append((head(key), *map(seeds_cell, values), *_difference(found), f"{found.p:.3g}"))
    title = f"{first.files[0].name}: means over seeds, and their difference in points"
    heads = ("label", first.name, other.name, "difference", "95 % interval", "Welch's p")
    return Grid(title, heads, tuple(rows))


def _difference(found: Difference) -> tuple[str, str]:
    return f"{100 * found.mean:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def recipe_grids(entries: Sequence[Entry]) -> list[Grid]:
    """What the recipes differ in; nothing for a single run or group of seeds."""
    if len(entries) < 2:
        return []
    recipes = [entry.told for entry in entries]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = tuple(
        (key, *(recipe.get(key, "-") for recipe in recipes))
        for key in keys
        if len({recipe.get(key) for recipe in recipes}) > 1
    )
    heads = ("key", *(entry.name for entry in entries))
    if not rows:
        return [Grid("recipes: the same but for their names", heads, ())]
    return [Grid("recipes: what differs", heads, rows)]
