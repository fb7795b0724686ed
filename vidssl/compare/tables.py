"""What is shown of runs side by side: scores, differences between them, and between their recipes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from vidssl.compare.entries import Entry, seeds_cell
from vidssl.compare.grids import Grid
from vidssl.errors import counted
from vidssl.evaluate.report import class_mean_matters, difference_cells, p_cell, percent
from vidssl.evaluate.score_file import ScoreFile
from vidssl.evaluators.differences import LabelledVideos, What, network_differences, what
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import (
    Difference,
    holm,
    method_difference,
    paired_difference,
    welch,
    wilson_interval,
)

TOP1, TOP5, CLASS_MEAN = "", "top-5", "mean over classes"
TWO_SEEDS = (
    "two seeds hardly show how far seeds differ: an interval takes 12.7 standard errors each way (4.3 with "
    "three seeds, 2.8 with five), and tests with two reject up to 8 % where nothing differs"
)
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
    chance = [_chance(entries[0], key, measure) for key, measure in _asked(columns)]
    facts = len(lines) - len(chance)
    if len(columns) <= len(chance):
        rows = [(name, *cells, end) for (name, cells), end in zip(lines, [""] * facts + chance, strict=True)]
        return Grid(title, ("label", *names, "chance %"), tuple(rows))
    rows = [(name, *(cells[place] for _, cells in lines)) for place, name in enumerate(names)]
    rows.append(("chance %", *([""] * facts), *chance))
    return Grid(title, ("run", *(name for name, _ in lines)), tuple(rows))


def _protocol(entries: Sequence[Entry]) -> str:
    file = entries[0].files[0]
    allowed = ", test videos may be in train" if file.card.get("overlap") == "allow" else ""
    return f"{file.name} (card {file.card_sha256[:8]}{allowed})"


def _legend(entries: Sequence[Entry]) -> str:
    drawn = any(score.spread is not None for _, score in _all_scores(entries[0].files[0]))
    parts = []
    if any(len(entry.files) == 1 for entry in entries):
        groups = ", by groups of clips cut from one source" if entries[0].files[0].groups else ""
        parts.append(f"in brackets the 95 % interval over test videos{groups}")
        if drawn:
            parts.append("for few labels ± the standard deviation over draws")
    if any(len(entry.files) > 1 for entry in entries):
        parts.append("for several seeds ± half the 95 % t-interval of the mean")
    marks = set(chain.from_iterable(_marks(entry).values() for entry in entries))
    words = {"+": "better", "-": "worse"}
    parts += [f"{mark} {words[mark]} than untrained beyond chance" for mark in words if mark in marks]
    return "".join(f", {part}" for part in parts)


def _marks(entry: Entry) -> Mapping[What, str]:
    """Where a run's first network differs from its second beyond chance; not for several seeds."""
    if len(entry.files) > 1:
        return {}
    (file,) = entry.files
    tested = {label: file.tested(label) for label in file.truth}
    return {what(each.row): each.mark for each in network_differences(file.scores, tested)}


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
    if any(entry.files[0].groups for entry, _ in columns):
        yield "groups", [str(len(set(entry.files[0].groups))) for entry, _ in columns]


def _found(file: ScoreFile) -> str:
    found, listed = file.videos["test"]
    return f"{found} of {listed}"


def _scores(columns: Sequence[tuple[Entry, str]]) -> Iterator[Line]:
    tables = [entry.rows(network) for entry, network in columns]
    marks = [
        _marks(entry) if network == next(iter(entry.files[0].scores)) else {} for entry, network in columns
    ]
    for key, measure in _asked(columns):
        name = " ".join(word for word in (head(key), measure) if word)
        yield (
            name,
            [_cell(rows[key], measure, some.get(key, "")) for rows, some in zip(tables, marks, strict=True)],
        )


def _asked(columns: Sequence[tuple[Entry, str]]) -> Iterator[tuple[What, str]]:
    """Top-1 of every row; of clips in order also top-5 and the mean over classes, where that is another.

    Where classes are unbalanced the mean over them comes first.
    """
    tables = [entry.rows(network) for entry, network in columns]
    for key, first in tables[0].items():
        scores = [score for rows in tables for score in rows[key]]
        leads = first[0].unbalanced
        if leads:
            yield key, CLASS_MEAN
        yield key, TOP1
        if key[2] == "normal" and first[0].top5 is not None:
            yield key, TOP5
        if key[2] == "normal" and not leads and class_mean_matters(scores):
            yield key, CLASS_MEAN


def head(key: What) -> str:
    """A row's name: label, setting, and the order of frames where it is not the normal one."""
    label, setting, frames = key
    return " ".join(word for word in (label, setting, "" if frames == "normal" else frames) if word)


def _chance(entry: Entry, key: What, measure: str) -> str:
    score = entry.rows(next(iter(entry.files[0].scores)))[key][0]
    if measure == TOP5:
        return ""
    return (
        percent(score.chance)
        if measure == TOP1
        else (score.class_chance and percent(score.class_chance)) or ""
    )


def _cell(scores: Sequence[Score], measure: str, mark: str = "") -> str:
    values = [_value(score, measure) for score in scores]
    if len(values) > 1:
        return seeds_cell(values)
    score = scores[0]
    if score.spread is not None and measure == TOP1:
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    low, high = _interval(score, measure)
    led = measure == (CLASS_MEAN if score.unbalanced else TOP1)
    return f"{percent(values[0])}{(mark and led and f' {mark}') or ''} ({100 * low:.0f} to {100 * high:.0f})"


def _value(score: Score, measure: str) -> float:
    if measure == TOP5:
        return score.top5 or 0.0
    return score.class_mean if measure == CLASS_MEAN else score.top1


def _interval(score: Score, measure: str) -> tuple[float, float]:
    if measure == TOP5:
        share = score.top5 or 0.0
        return score.top5_interval or wilson_interval(share * score.num_test, score.num_test)
    by_class = score.class_interval if measure == CLASS_MEAN else None
    return by_class or (score.low, score.high)


@dataclass(frozen=True)
class _Row:
    """A difference of two entries in one row of a table.

    Attributes:
        cells: what stands before the difference.
        found: None where runs tie, so that there is nothing to test by.
        more: what stands behind p.
    """

    name: str
    cells: tuple[str, ...]
    found: Difference | None
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """Two entries and how they differ."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[_Row, ...]
    more_heads: tuple[str, ...] = ()


def difference_grids(groups: Sequence[Sequence[Entry]]) -> list[list[Grid]]:
    """For each protocol, how each entry differs from the first: on the same videos, or from seed to seed.

    Two runs are compared on the videos that only one of them gets right, by a permutation test; two groups
    of seeds by seeds and videos together, with Welch's test, which leaves out the videos, beside it. One run
    and a group of seeds cannot be: a single run does not tell how far chance carries it. Holm's p are
    adjusted for all tests of all protocols.
    """
    pairs = [[_pair(entries[0], other) for other in entries[1:]] for entries in groups]
    tests = [row.found.p for some in pairs for pair in some for row in pair.rows if row.found is not None]
    adjusted = iter(holm(tests))
    return [[_grid(pair, adjusted, len(tests)) for pair in some] for some in pairs]


def _grid(pair: _Pair, adjusted: Iterator[float], tests: int) -> Grid:
    rows = []
    for row in pair.rows:
        cells = ("no test: all runs answer alike", "-", "-", "-")
        if row.found is not None:
            cells = (*difference_cells(row.found), p_cell(row.found.p), p_cell(next(adjusted)))
        rows.append((row.name, *row.cells, *cells, *row.more))
    if not rows:
        return Grid(pair.title, ("label",), ())
    heads = ("label", *pair.heads, "difference", "95 % interval", "p", "p adjusted", *pair.more_heads)
    return Grid(f"{pair.title}; p adjusted for {counted(tests, 'test')} (Holm)", heads, tuple(rows))


def _pair(first: Entry, other: Entry) -> _Pair:
    several = [len(entry.files) > 1 for entry in (first, other)]
    if all(several):
        return _over_seeds(first, other)
    if any(several):
        title = f"{first.files[0].name}: {first.name} and {other.name}: no test of one run against several"
        return _Pair(title, (), ())
    return _on_videos(first, other)


def _rows(entry: Entry) -> Mapping[What, tuple[Score, ...]]:
    return entry.rows(next(iter(entry.files[0].scores)))


def _tested(first: Entry, other: Entry, label: str) -> LabelledVideos:
    """The same test videos; of two files of which an earlier version wrote one, the groups of the other."""
    found = [entry.files[0].tested(label) for entry in (first, other)]
    return next((each for each in found if each.groups is not None), found[0])


def _on_videos(first: Entry, other: Entry) -> _Pair:
    rows: list[_Row] = []
    others, shown = _rows(other), ""
    for key, (one,) in _rows(first).items():
        if one.draws:
            continue  # of several draws only the first one's answers are kept
        videos = _tested(first, other, one.label)
        right = [videos.right(score) for score in (one, others[key][0])]
        only = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1]))
        found = paired_difference(right[0], right[1], videos.classes(one), videos.groups)
        rows.append(_Row(_measured(key, one), tuple(map(str, only)), found))
        shown = shown or f", {videos.shown()}"
    title = (
        f"{first.files[0].name}: videos that only one of the two gets right, and the difference in points"
        f"{shown}"
    )
    return _Pair(title, (f"only {first.name}", f"only {other.name}"), tuple(rows))


def _over_seeds(first: Entry, other: Entry) -> _Pair:
    others = _rows(other)
    rows: list[_Row] = []
    tie = shown = ""
    for key, scores in _rows(first).items():
        one = scores[0]
        measure = CLASS_MEAN if one.unbalanced else TOP1
        values = [[_value(score, measure) for score in group] for group in (scores, others[key])]
        found, by_seeds = None, welch(*values)
        if not one.draws:
            videos = _tested(first, other, one.label)
            answers = [[videos.right(score) for score in group] for group in (scores, others[key])]
            found = method_difference(answers[0], answers[1], videos.classes(one), videos.groups)
            shown = shown or f", {videos.shown()}"
        else:
            found = by_seeds  # of draws only the first one's answers are kept
        if by_seeds is None:
            tie = "; Welch: no p where the seeds of both tie"
        p = "-" if by_seeds is None else p_cell(by_seeds.p)
        rows.append(_Row(_measured(key, one), tuple(map(seeds_cell, values)), found, (p,)))
    fewest = min(len(entry.files) for entry in (first, other))
    title = (
        f"{first.files[0].name}: means over seeds, and their difference in points for other seeds and other "
        f"test videos{shown}{tie}{f'; {TWO_SEEDS}' if fewest == 2 else ''}"
    )
    return _Pair(title, (first.name, other.name), tuple(rows), ("Welch's p, seeds alone",))


def _measured(key: What, score: Score) -> str:
    return f"{head(key)} {CLASS_MEAN}" if score.unbalanced else head(key)


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
