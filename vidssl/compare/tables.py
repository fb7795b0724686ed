"""Tables of runs side by side and their looks: scores, differences, runs of several seeds as one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from vidssl.errors import counted
from vidssl.evaluate.report import CLASS_TOP5, class_mean_matters, difference_cells, mae_cell, p_cell, percent
from vidssl.evaluate.score_file import ScoreFile
from vidssl.evaluators import statistics
from vidssl.evaluators.differences import LabelledVideos, RowKey, folded, network_differences, what
from vidssl.evaluators.scores import Score

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
MANY = 7  # columns, which fit into a terminal of 80 only without room between them
_NUMBER = re.compile(r"([-+±()\d.,%eE ]| to | of )*")


@dataclass(frozen=True)
class Grid:
    """A table before it has a look: rows of as many cells as there are heads; without rows, its title."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table."""
    if not grid.rows:
        return f"{grid.title}\n"

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(grid.heads), line(["---"] * len(grid.heads)), *map(line, grid.rows)]
    return f"{grid.title}\n\n" + "\n".join(lines) + "\n"


def latex(grid: Grid) -> str:
    """The grid as a LaTeX table, for a document that loads ``booktabs``; a grid without rows is a comment."""
    if not grid.rows:
        return f"% {grid.title}\n"

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(map(latex_text, cells)) + r" \\"

    columns = "".join("r" if numbers else "l" for numbers in _numeric(grid))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(grid.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"  \toprule",
            line(grid.heads),
            r"  \midrule",
            *map(line, grid.rows),
            r"  \bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def drawn(grid: Grid) -> Table | Text:
    """The grid as a table for a terminal."""
    if not grid.rows:
        return Text(grid.title, style="bold")
    padding = (0, 1) if len(grid.heads) < MANY else (0, 0)
    table = Table(title=Text(grid.title), title_justify="left", title_style="bold", padding=padding)
    columns = zip(grid.heads, _numeric(grid), zip(*grid.rows, strict=True), strict=True)
    for head, numbers, cells in columns:
        # a name of a run may break, a number and a word may not
        words = [word for word in head.split() if "/" not in word] + [
            w for cell in cells for w in cell.split()
        ]
        width = max(map(len, words), default=None) if numbers else None
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(Text(head), justify=justify, overflow="fold", min_width=width)
    for row in grid.rows:
        table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row))
    return table


def _numeric(grid: Grid) -> list[bool]:
    """Which columns hold numbers alone, or dashes."""
    columns = zip(*grid.rows, strict=True)
    return [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]


IGNORED = ("name", "run.out")  # differ between any two runs


@dataclass(frozen=True)
class RunGroup:
    """A run, or several that differ only in their seed, under one protocol.

    Attributes:
        files: the scores of each run; of one checkpoint step, for the same networks.
    """

    files: tuple[ScoreFile, ...]

    @property
    def name(self) -> str:
        """Of the runs; what differs between several names stands in braces, as a shell takes it."""
        return together([run_name(file) for file in self.files])

    @property
    def seeds(self) -> tuple[str, ...]:
        """Of the runs, "-" for what has none."""
        return tuple(file.settings.get("seed", "-") for file in self.files)

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """Dotted key -> value of the recipe, which all runs share but for their seeds."""
        shared = {key: value for key, value in self.files[0].settings.items() if key not in IGNORED}
        return {**shared, "seed": ", ".join(self.seeds)}

    def rows(self, network: str) -> Mapping[RowKey, tuple[Score, ...]]:
        """Label, setting and order of frames -> the rows of all runs; corruptions as one, their mean."""
        found = [{what(score): score for score in folded(file.scores[network])} for file in self.files]
        return {key: tuple(rows[key] for rows in found) for key in found[0]}


def run_groups(files: Sequence[ScoreFile], *, each: bool) -> list[RunGroup]:
    """The runs in their order, those that differ only in their seed as one where the first of them stands.

    A seed counts once: of two runs of one recipe and seed, which are no independent trials, the second
    stands apart. So does what has no seed.

    Args:
        files: scores under one protocol.
        each: leaves every run by itself.
    """
    groups: dict[object, list[ScoreFile]] = {}
    for place, file in enumerate(files):
        recipe = {key: value for key, value in file.settings.items() if key not in (*IGNORED, "seed")}
        key: object = (tuple(sorted(recipe.items())), file.step, tuple(file.scores))
        seed = file.settings.get("seed")
        if each or seed is None or seed in (other.settings["seed"] for other in groups.get(key, ())):
            key = place
        groups.setdefault(key, []).append(file)
    return [RunGroup(tuple(group)) for group in groups.values()]


def together(names: Sequence[str]) -> str:
    """``runs/svt-{0,1,2}`` for names that share their beginning and their end."""
    if len(names) == 1:
        return names[0]
    start = _shared(names)
    rest = [name[start:] for name in names]
    end = _shared([name[::-1] for name in rest])
    middles = [name[: len(name) - end] for name in rest]
    return f"{names[0][:start]}{{{','.join(middles)}}}{rest[0][len(rest[0]) - end :]}"


def _shared(names: Sequence[str]) -> int:
    """The number of characters that names share at their beginning."""
    return len(list(takewhile(lambda same: len(set(same)) == 1, zip(*names, strict=False))))


def run_name(file: ScoreFile) -> str:
    """The run's folder; the checkpoint where it lies elsewhere; the name of a network that is no run's."""
    folder = Path(file.checkpoint).parent
    return str(folder.parent) if folder.name == "checkpoints" else file.checkpoint


def seeds_cell(values: Sequence[float], scale: float = 100, digits: str = ".1f") -> str:
    """Mean of several runs and half of its 95 % interval, in percent; runs that tie have no interval."""
    mean, half = statistics.mean_over_seeds([scale * value for value in values])
    return f"{mean:{digits}} (seeds tie)" if half is None else f"{mean:{digits}} ± {half:{digits}}"


TOP1, TOP5, CLASS_MEAN = "", "top-5", "mean over classes"
MAE = "mean absolute error"
NOT_TOP1 = (TOP5, CLASS_TOP5, MAE)
TWO_SEEDS = (
    "two seeds hardly show how far seeds differ: an interval takes 12.7 standard errors each way (4.3 with "
    "three seeds, 2.8 with five), and tests with two reject up to 8 % where nothing differs"
)
TableLine = tuple[str, list[str]]  # what it is of, and a cell for each network


def score_grid(groups: Sequence[RunGroup]) -> Grid:
    """Scores with their intervals: all networks one way, all that was scored the other, the longer side down.

    Args:
        groups: under one protocol.
    """
    columns = list(_networks(groups))
    lines = [*_facts(columns), *_scores(columns)]
    names = [f"{group.name}, {network}" for group, network in columns]
    title = f"{_protocol(groups)}: scores in %{_legend(groups)}"
    chance = [_chance(groups[0], key, measure) for key, measure in _asked(columns)]
    facts = len(lines) - len(chance)
    if len(columns) <= len(chance):
        rows = [(name, *cells, end) for (name, cells), end in zip(lines, [""] * facts + chance, strict=True)]
        return Grid(title, ("label", *names, "chance %"), tuple(rows))
    rows = [(name, *(cells[place] for _, cells in lines)) for place, name in enumerate(names)]
    rows.append(("chance %", *([""] * facts), *chance))
    return Grid(title, ("run", *(name for name, _ in lines)), tuple(rows))


def summary_grid(protocols: Sequence[Sequence[RunGroup]]) -> Grid:
    """Runs by protocols: the first row of each, of networks as they were trained.

    Args:
        protocols: the groups of runs under each protocol.
    """
    names = list(dict.fromkeys(group.name for groups in protocols for group in groups))
    columns, lines = [], {name: [name] for name in names}
    chance = ["chance %"]
    for groups in protocols:
        shown = list(_networks(groups))
        key, measure = next(_asked(shown))
        columns.append(
            f"{groups[0].files[0].name}: {' '.join(word for word in (head(key), measure) if word)}"
        )
        chance.append(_chance(groups[0], key, measure))
        cells = {}
        for group in groups:
            first = next(iter(group.files[0].scores))
            cells[group.name] = _cell(group.rows(first)[key], measure, _marks(group).get(key, ""))
        for name, line in lines.items():
            line.append(cells.get(name, "-"))
    rows = (*(tuple(line) for line in lines.values()), tuple(chance))
    title = "runs by protocols: scores in % of the trained network, the first label of each"
    return Grid(title, ("run", *columns), rows)


def _protocol(groups: Sequence[RunGroup]) -> str:
    file = groups[0].files[0]
    allowed = ", test videos may be in train" if file.card.get("overlap") == "allow" else ""
    return f"{file.name} (card {file.card_sha256[:8]}{allowed})"


def _legend(groups: Sequence[RunGroup]) -> str:
    scores = [score for _, score in _all_scores(groups[0].files[0])]
    drawn = any(score.spread is not None for score in scores)
    parts = [f"{MAE} in the target's unit"] if any(score.mae is not None for score in scores) else []
    if any(len(group.files) == 1 for group in groups):
        by_groups = ", by groups of clips cut from one source" if groups[0].files[0].groups else ""
        parts.append(f"in brackets the 95 % interval over test videos{by_groups}")
        if drawn:
            parts.append("for few labels ± the standard deviation over draws")
    if any(len(group.files) > 1 for group in groups):
        parts.append("for several seeds ± half the 95 % t-interval of the mean")
    marks = set(chain.from_iterable(_marks(group).values() for group in groups))
    words = {"+": "better", "-": "worse"}
    parts += [f"{mark} {words[mark]} than untrained beyond chance" for mark in words if mark in marks]
    return "".join(f", {part}" for part in parts)


def _marks(group: RunGroup) -> Mapping[RowKey, str]:
    """Marks where a run's first network differs from its second beyond chance; none for several seeds."""
    if len(group.files) > 1:
        return {}
    (file,) = group.files
    tested = {label: file.tested(label) for label in file.truth}
    return {what(each.row): each.mark for each in network_differences(file.scores, tested)}


def _all_scores(file: ScoreFile) -> Iterator[tuple[str, Score]]:
    for network, scores in file.scores.items():
        for score in scores:
            yield network, score


def _networks(groups: Sequence[RunGroup]) -> Iterator[tuple[RunGroup, str]]:
    """The trained networks first, then those they are compared with."""
    for place in range(max(len(group.files[0].scores) for group in groups)):
        for group in groups:
            for network in list(group.files[0].scores)[place : place + 1]:
                yield group, network


def _facts(columns: Sequence[tuple[RunGroup, str]]) -> Iterator[TableLine]:
    yield "step", [str(group.files[0].step) for group, _ in columns]
    if any(len(group.files) > 1 for group, _ in columns):
        yield "seeds", [str(len(group.files)) for group, _ in columns]
    yield "test videos", [_found(group.files[0]) for group, _ in columns]
    if any(group.files[0].groups for group, _ in columns):
        yield "groups", [str(len(set(group.files[0].groups))) for group, _ in columns]


def _found(file: ScoreFile) -> str:
    found, listed = file.videos["test"]
    return f"{found} of {listed}"


def _scores(columns: Sequence[tuple[RunGroup, str]]) -> Iterator[TableLine]:
    tables = [group.rows(network) for group, network in columns]
    marks = [
        _marks(group) if network == next(iter(group.files[0].scores)) else {} for group, network in columns
    ]
    for key, measure in _asked(columns):
        name = " ".join(word for word in (head(key), measure) if word)
        yield (
            name,
            [_cell(rows[key], measure, some.get(key, "")) for rows, some in zip(tables, marks, strict=True)],
        )


def _asked(columns: Sequence[tuple[RunGroup, str]]) -> Iterator[tuple[RowKey, str]]:
    """Top-1 of every row; of clips in order also top-5 and the mean over classes, where that is another.

    Where classes are unbalanced the mean over them comes first.
    """
    tables = [group.rows(network) for group, network in columns]
    for key, first in tables[0].items():
        scores = [score for rows in tables for score in rows[key]]
        leads = first[0].unbalanced
        if leads:
            yield key, CLASS_MEAN
        yield key, TOP1 if first[0].measure == "top-1" else first[0].measure
        if key[2] == "normal" and first[0].mae is not None:
            yield key, MAE
        if key[2] == "normal" and first[0].top5 is not None:
            yield key, TOP5
        if key[2] == "normal" and leads and first[0].class_top5 is not None:
            yield key, CLASS_TOP5
        if key[2] == "normal" and not leads and class_mean_matters(scores):
            yield key, CLASS_MEAN


def head(key: RowKey) -> str:
    """A row's name: label, setting, and the order of frames where it is not the normal one."""
    label, setting, frames = key
    return " ".join(word for word in (label, setting, "" if frames == "normal" else frames) if word)


def _chance(group: RunGroup, key: RowKey, measure: str) -> str:
    score = group.rows(next(iter(group.files[0].scores)))[key][0]
    if measure in NOT_TOP1:
        return ""
    if measure == CLASS_MEAN:
        return percent(score.class_chance) if score.class_chance else ""
    return percent(score.chance)


def _cell(scores: Sequence[Score], measure: str, mark: str = "") -> str:
    values = [_value(score, measure) for score in scores]
    if measure == MAE:
        return mae_cell(scores[0]) if len(values) == 1 else seeds_cell(values, 1, ".3g")
    if len(values) > 1:
        return seeds_cell(values)
    score = scores[0]
    if score.spread is not None and measure == TOP1:
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    low, high = _interval(score, measure)
    led = measure not in NOT_TOP1 and (measure == CLASS_MEAN) == score.unbalanced
    return f"{percent(values[0])}{(mark and led and f' {mark}') or ''} ({100 * low:.0f} to {100 * high:.0f})"


def _value(score: Score, measure: str) -> float:
    others = {TOP5: score.top5, CLASS_TOP5: score.class_top5, CLASS_MEAN: score.class_mean, MAE: score.mae}
    return others.get(measure, score.top1) or 0.0


def _interval(score: Score, measure: str) -> tuple[float, float]:
    if measure == TOP5:
        correct = (score.top5 or 0.0) * score.num_test
        return score.top5_interval or statistics.wilson_interval(correct, score.num_test)
    if measure == CLASS_TOP5:
        return score.class_top5_interval or (0.0, 1.0)
    by_class = score.class_interval if measure == CLASS_MEAN else None
    return by_class or (score.low, score.high)


@dataclass(frozen=True)
class _DifferenceRow:
    """A difference of two groups in one row of a table.

    Attributes:
        cells: what stands before the difference.
        found: None where runs tie, so that there is nothing to test by.
        more: what stands behind p.
    """

    name: str
    cells: tuple[str, ...]
    found: statistics.Difference | None
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """Two groups and how they differ."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[_DifferenceRow, ...]
    more_heads: tuple[str, ...] = ()


def difference_grids(groups: Sequence[Sequence[RunGroup]]) -> list[list[Grid]]:
    """For each protocol, how each group differs from the first: on the same videos, or from seed to seed.

    Two runs are compared on the videos that only one of them gets right, by a permutation test, or by what
    each video adds to mAP, R2 and masks; two groups of seeds by seeds and videos together, with Welch's test,
    which leaves out the videos, beside it. One run and a group of seeds cannot be: a single run does not show
    how far seeds differ. Holm's p are adjusted for all tests of all protocols.
    """
    pairs = [[_pair(first, other) for other in others] for first, *others in groups]
    tests = [row.found.p for some in pairs for pair in some for row in pair.rows if row.found is not None]
    adjusted = iter(statistics.holm(tests))
    return [[_grid(pair, adjusted, len(tests)) for pair in some] for some in pairs]


def _grid(pair: _Pair, adjusted: Iterator[float], tests: int) -> Grid:
    rows = []
    for row in pair.rows:
        cells = ("no test: all runs are alike", "-", "-", "-")
        if row.found is not None:
            cells = (*difference_cells(row.found), p_cell(row.found.p), p_cell(next(adjusted)))
        rows.append((row.name, *row.cells, *cells, *row.more))
    if not rows:
        return Grid(pair.title, ("label",), ())
    heads = ("label", *pair.heads, "difference", "95 % interval", "p", "p adjusted", *pair.more_heads)
    return Grid(f"{pair.title}; p adjusted for {counted(tests, 'test')} (Holm)", heads, tuple(rows))


def _pair(first: RunGroup, other: RunGroup) -> _Pair:
    several = [len(group.files) > 1 for group in (first, other)]
    if all(several):
        return _over_seeds(first, other)
    if any(several):
        title = f"{first.files[0].name}: {first.name} and {other.name}: no test of one run against several"
        return _Pair(title, (), ())
    return _on_videos(first, other)


def _rows(group: RunGroup) -> Mapping[RowKey, tuple[Score, ...]]:
    return group.rows(next(iter(group.files[0].scores)))


def _tested(first: RunGroup, other: RunGroup, label: str) -> LabelledVideos:
    """The same test videos; of two files of which an earlier version wrote one, the groups of the other."""
    found = [group.files[0].tested(label) for group in (first, other)]
    return next((each for each in found if each.groups is not None), found[0])


def _on_videos(first: RunGroup, other: RunGroup) -> _Pair:
    rows: list[_DifferenceRow] = []
    others, shown = _rows(other), ""
    # of several draws only the first one's answers are kept
    tested = {key: one for key, (one,) in _rows(first).items() if not one.draws}
    measures = list(dict.fromkeys(one.measure for one in tested.values() if one.added))
    named = not measures or not all(one.added for one in tested.values())
    for key, one in tested.items():
        videos = _tested(first, other, one.label)
        right = [videos.right(score) for score in (one, others[key][0])]
        only = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in (right, right[::-1]))
        cells = (("-", "-") if one.added else tuple(map(str, only))) if named else ()
        rows.append(_DifferenceRow(measured(key, one), cells, videos.difference(one, *right)))
        shown = shown or f", {videos.shown()}"
    words = ["videos that only one of the two gets right"] if named else []
    words += [f"{', '.join(measures)} by what each video adds"] if measures else []
    title = f"{first.files[0].name}: {'; '.join(words)}, and the second less the first in points{shown}"
    heads = (f"only {first.name}", f"only {other.name}") if named else ()
    return _Pair(title, heads, tuple(rows))


def _over_seeds(first: RunGroup, other: RunGroup) -> _Pair:
    others = _rows(other)
    rows: list[_DifferenceRow] = []
    tie = shown = ""
    for key, scores in _rows(first).items():
        one = scores[0]
        measure = CLASS_MEAN if one.unbalanced else TOP1
        values = [[_value(score, measure) for score in group] for group in (scores, others[key])]
        found, by_seeds = None, statistics.welch(*values)
        if not one.draws:
            videos = _tested(first, other, one.label)
            answers = [[videos.right(score) for score in group] for group in (scores, others[key])]
            found = statistics.method_difference(answers[0], answers[1], videos.classes(one), videos.groups)
            shown = shown or f", {videos.shown()}"
        else:
            found = by_seeds  # of draws only the first one's answers are kept
        found = found and found.within(one.measure)
        if by_seeds is None:
            tie = "; Welch: no p where the seeds of both tie"
        p = "-" if by_seeds is None else p_cell(by_seeds.p)
        rows.append(_DifferenceRow(measured(key, one), tuple(map(seeds_cell, values)), found, (p,)))
    fewest = min(len(group.files) for group in (first, other))
    title = (
        f"{first.files[0].name}: means over seeds, and the second less the first in points for other seeds "
        f"and other test videos{shown}{tie}{f'; {TWO_SEEDS}' if fewest == 2 else ''}"
    )
    return _Pair(title, (first.name, other.name), tuple(rows), ("Welch's p, seeds alone",))


def measured(key: RowKey, score: Score) -> str:
    measure = CLASS_MEAN if score.unbalanced else "" if score.measure == "top-1" else score.measure
    return f"{head(key)} {measure}".rstrip()


def recipe_grids(groups: Sequence[RunGroup]) -> list[Grid]:
    """Differences between the recipes; none for a single run or group of seeds."""
    if len(groups) < 2:
        return []
    recipes = [group.settings for group in groups]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = tuple(
        (key, *(recipe.get(key, "-") for recipe in recipes))
        for key in keys
        if len({recipe.get(key) for recipe in recipes}) > 1
    )
    heads = ("key", *(group.name for group in groups))
    if not rows:
        return [Grid("recipes: the same but for their names", heads, ())]
    return [Grid("recipes: what differs", heads, rows)]
