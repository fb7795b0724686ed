"""A grid of runs as tables: scores of the cells, main effects, interactions, pairs, and costs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidssl.compare.runs import by_protocol, differing
from vidssl.compare.tables import TWO_SEEDS, Grid, measured, seeds_cell
from vidssl.engine.logging import format_duration
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError, counted
from vidssl.evaluate.report import difference_cells, p_cell, percent
from vidssl.evaluate.score_file import ScoreFile, find_scores
from vidssl.evaluators.differences import LabelledVideos, RowKey, what
from vidssl.evaluators.scores import Score
from vidssl.evaluators.statistics import Difference, holm, method_difference

FORMAT = "vidssl grid 1"
Answers = NDArray[np.float64]  # [seeds, test videos], 1 where right; of mAP and R2 what a video adds


@dataclass(frozen=True)
class StepPrice:
    """What a cell's steps take, measured before its first run.

    Attributes:
        recipe_sha256: of the recipe that was measured.
        flops: of a step, forward and backward.
        seconds: of a step.
        parameters: that are trained.
        samples: videos and images a step.
        steps: of the whole run.
    """

    recipe_sha256: str
    flops: int
    seconds: float
    parameters: int
    samples: int
    steps: int


@dataclass(frozen=True)
class CellResult:
    """A cell's runs.

    Attributes:
        levels: axis -> level.
        seconds: that each of its runs trained for.
        scores: name of a protocol -> seed -> file.
    """

    name: str
    levels: Mapping[str, str]
    price: StepPrice
    seconds: tuple[float, ...]
    scores: Mapping[str, Mapping[int, ScoreFile]] = field(repr=False)
    runs: tuple[Path, ...] = ()

    def rows(
        self, protocol: str, seeds: Sequence[int], network: int = 0
    ) -> Mapping[RowKey, tuple[Score, ...]]:
        """Row of the table of scores -> the scores of every seed; of the trained network, or another."""
        files = [self.scores[protocol][seed] for seed in seeds]
        found = [{what(s): s for s in list(file.scores.values())[network]} for file in files]
        return {key: tuple(rows[key] for rows in found) for key in found[0]}


@dataclass(frozen=True)
class GridResults:
    """What there is of a grid."""

    name: str
    question: str
    axes: tuple[str, ...]
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    equal: Mapping[str, float]
    cells: tuple[CellResult, ...]

    @property
    def files(self) -> list[ScoreFile]:
        """All scores."""
        return [f for cell in self.cells for seeds in cell.scores.values() for f in seeds.values()]

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols that there are scores under."""
        return list(dict.fromkeys(name for cell in self.cells for name in cell.scores))


def is_grid(folder: Path) -> bool:
    """Whether a folder is that of a grid."""
    return (folder / "grid.json").is_file()


def read_results(folder: Path) -> GridResults:
    """The scores of a grid's runs, as far as there are any.

    Raises:
        UsageError: if the folder is no grid's, or no run has scores.
    """
    path = folder / "grid.json"
    if not path.is_file():
        raise UsageError(f"{folder}: no grid was begun in it (there is no grid.json)")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise UsageError(f"{path}: not a grid of this version")
    cells = []
    for name, levels in record["cells"].items():
        found: dict[str, dict[int, ScoreFile]] = {}
        runs = [(seed, folder / f"{name}-seed-{seed}") for seed in record["seeds"]]
        scored = [(seed, run) for seed, run in runs if any(RunFolder(run).scores.glob("*.json"))]
        for seed, run in scored:
            for file in find_scores(run):
                found.setdefault(file.name, {})[seed] = file
        price = StepPrice(**record["prices"][name])
        took = tuple(_trained_seconds(run) for _, run in scored)
        cells.append(CellResult(name, levels, price, took, found, tuple(run for _, run in scored)))
    made = GridResults(
        record["name"], record["question"], tuple(record["axes"]), tuple(record["labels"]),
        tuple(record["seeds"]), record["equal"] or {}, tuple(cells),
    )  # fmt: skip
    if not made.files:
        raise UsageError(f"{folder}: no run of this grid has scores yet")
    by_protocol(made.files, own_views=True)
    return made


def _trained_seconds(run: Path) -> float:
    lines = RunFolder(run).metrics.read_text(encoding="utf-8").splitlines()
    return max((float(json.loads(line)["seconds"]) for line in lines if line.endswith("}")), default=0.0)


def grid_tables(results: GridResults) -> list[Grid]:
    """All tables of a grid."""
    grids = []
    for protocol in results.protocols:
        table = ProtocolTable.of(results, protocol)
        grids += [table.cells(), *table.main_effects(), *table.interactions(), *table.pairs()]
    return [*grids, _costs(results)]


@dataclass(frozen=True)
class _Test:
    """A row of a table of differences, before p is adjusted."""

    words: tuple[str, ...]
    found: Difference | None


@dataclass(frozen=True)
class ProtocolTable:
    """Scores of a grid's cells under one protocol, for the seeds that all of them have.

    Attributes:
        rows: those that are asked for: labels and settings, with frames in order.
        left_out: cells without scores, or with none of the seeds.
    """

    results: GridResults
    protocol: str
    seeds: tuple[int, ...]
    present: tuple[CellResult, ...]
    left_out: tuple[str, ...]
    rows: tuple[RowKey, ...]

    @classmethod
    def of(cls, results: GridResults, protocol: str) -> "ProtocolTable":
        """
        Raises:
            UsageError: if the grid names labels that the videos lack.
        """
        present = tuple(cell for cell in results.cells if protocol in cell.scores)
        seeds = tuple(s for s in results.seeds if all(s in cell.scores[protocol] for cell in present))
        if not seeds:  # of cells that share none the ones with the most are shown
            first = max(present, key=lambda cell: len(cell.scores[protocol]))
            seeds = tuple(first.scores[protocol])
            present = tuple(cell for cell in present if set(seeds) <= set(cell.scores[protocol]))
        left_out = tuple(cell.name for cell in results.cells if cell not in present)
        shown = present[0].rows(protocol, seeds)
        keys = [key for key in shown if key[2] == "normal"]
        # measures of masks are no labels: all are shown
        labels = () if shown[keys[0]][0].measure == "masks" else results.labels
        lacking = [label for label in labels if label not in {key[0] for key in keys}]
        if lacking:
            known = ", ".join(dict.fromkeys(key[0] for key in keys))
            raise UsageError(
                f"grid {results.name}: no scores of the label '{lacking[0]}'. There are: {known}"
            )
        rows = tuple(key for key in keys if not labels or key[0] in labels)
        return cls(results, protocol, seeds, present, left_out, rows)

    def value(self, cell: CellResult, key: RowKey, network: int = 0) -> list[float]:
        """The score of every seed, in [0, 1]."""
        scores = cell.rows(self.protocol, self.seeds, network)[key]
        return [score.class_mean if score.unbalanced else score.top1 for score in scores]

    def answers(self, cell: CellResult, key: RowKey) -> Answers:
        """Which test videos each seed gets right."""
        videos = self._videos(key)
        return np.array(
            [videos.right(score) for score in cell.rows(self.protocol, self.seeds)[key]], dtype=float
        )

    def _videos(self, key: RowKey) -> LabelledVideos:
        return self.present[0].scores[self.protocol][self.seeds[0]].tested(key[0])

    def _tested(self, key: RowKey, one: Answers, other: Answers, most: float = 1.0) -> Difference | None:
        """How much better the second is, by ``most`` at most; of one seed for other videos alone."""
        videos = self._videos(key)
        score = self.score(key)
        if len(self.seeds) > 1:
            found = method_difference(one, other, videos.classes(score), videos.groups)
            return found and found.within(score.measure, most)
        return videos.difference(score, one[0], other[0])

    def _head(self, key: RowKey) -> str:
        return measured(key, self.score(key))

    def score(self, key: RowKey) -> Score:
        """The row of the first cell's first seed."""
        return self.present[0].rows(self.protocol, self.seeds)[key][0]

    def _about(self) -> str:
        seeds = counted(len(self.seeds), "seed")
        missing = f"; without scores yet: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{seeds}{missing}{self._own_views()}"

    def _own_views(self) -> str:
        """Cells whose networks are shown other clips than the first one's, and by which keys."""
        first, *others = (cell.scores[self.protocol][self.seeds[0]].card for cell in self.present)
        shown = [
            f"{cell.name} ({', '.join(f'{key} {card.get(key)}' for key in keys)})"
            for cell, card in zip(self.present[1:], others, strict=True)
            if (keys := differing(first, card))
        ]
        return f"; scored on clips of their own: {', '.join(shown)}" if shown else ""

    def cells(self) -> Grid:
        """Scores of every cell, the same networks untrained, and chance."""
        half = "± half the 95 % t-interval of the mean over seeds, " if len(self.seeds) > 1 else ""
        title = f"{self.protocol}: scores in %, {half}{self._about()}"
        rows = [
            (*cell.levels.values(), *(self._cell(cell, key) for key in self.rows)) for cell in self.present
        ]
        rows += self._untrained()
        first = self.present[0].rows(self.protocol, self.seeds)
        chance = [first[key][0].class_chance if first[key][0].unbalanced else first[key][0].chance
                  for key in self.rows]  # fmt: skip
        blank = [""] * (len(self.results.axes) - 1)
        rows.append(("chance", *blank, *(percent(share or 0.0) for share in chance)))
        return Grid(title, (*self.results.axes, *map(self._head, self.rows)), tuple(rows))

    def _cell(self, cell: CellResult, key: RowKey, network: int = 0) -> str:
        values = self.value(cell, key, network)
        return seeds_cell(values) if len(values) > 1 else percent(values[0])

    def _untrained(self) -> list[tuple[str, ...]]:
        """A row for each untrained network; cells that share theirs share the row."""
        seen: dict[tuple[str, ...], list[str]] = {}
        for cell in self.present:
            if all(len(file.scores) > 1 for file in cell.scores[self.protocol].values()):
                values = tuple(self._cell(cell, key, 1) for key in self.rows)
                seen.setdefault(values, []).append(" ".join(cell.levels.values()))
        blank = [""] * (len(self.results.axes) - 1)
        of_all = len(seen) == 1
        return [
            ("untrained" if of_all else f"untrained: {'; '.join(names)}", *blank, *values)
            for values, names in seen.items()
        ]

    def main_effects(self) -> list[Grid]:
        """Each level of an axis against its first one, averaged over all that both were seen with."""
        if len(self.results.axes) < 2:
            return []
        tests = []
        for key, axis in product(self.rows, self.results.axes):
            levels = list(dict.fromkeys(cell.levels[axis] for cell in self.present))
            for level in levels[1:]:
                pairs = self._matched(axis, levels[0], level)
                if pairs:
                    one, other = (np.mean([self.answers(pair[i], key) for pair in pairs], 0) for i in (0, 1))
                    words = (self._head(key), axis, f"{levels[0]} to {level}", str(len(pairs)))
                    tests.append(_Test(words, self._tested(key, one, other)))
        title = "main effects: in points, from the first level of an axis to another, the mean over all else"
        return [self._differences(title, ("label", "axis", "levels", "over"), tests)]

    def _matched(self, axis: str, one: str, other: str) -> list[tuple[CellResult, CellResult]]:
        """Pairs of cells that differ in this axis alone and have these levels."""
        return [
            (a, b) for a, b in product(self.present, repeat=2)
            if a.levels[axis] == one and b.levels[axis] == other
            and all(a.levels[name] == b.levels[name] for name in self.results.axes if name != axis)
        ]  # fmt: skip

    def interactions(self) -> list[Grid]:
        """For each two axes how the effect of the one changes with the other; takes several seeds."""
        if len(self.results.axes) < 2 or len(self.seeds) < 2:
            return []
        tests = [test for key in self.rows for test in self._interactions(key)]
        title = "interactions: by how many points the effect of one axis changes with the other's level"
        return [self._differences(title, ("label", "effect of", "with"), tests)] if tests else []

    def _interactions(self, key: RowKey) -> Iterator[_Test]:
        for one, other in combinations(self.results.axes, 2):
            firsts, seconds = (
                list(dict.fromkeys(cell.levels[axis] for cell in self.present)) for axis in (one, other)
            )
            for a, b in product(firsts[1:], seconds[1:]):
                corners = {
                    (x, y): [c for c in self.present if c.levels[one] == x and c.levels[other] == y]
                    for x in (firsts[0], a) for y in (seconds[0], b)
                }  # fmt: skip
                rest = [
                    {tuple(c.levels[n] for n in self.results.axes if n not in (one, other)) for c in found}
                    for found in corners.values()
                ]
                if not rest[0] or any(names != rest[0] for names in rest):
                    continue  # not all four were trained
                means = {
                    place: np.mean([self.answers(cell, key) for cell in found], 0)
                    for place, found in corners.items()
                }
                apart = means[firsts[0], b] + means[a, seconds[0]]
                alike = means[firsts[0], seconds[0]] + means[a, b]
                words = (self._head(key), f"{firsts[0]} to {a}", f"{seconds[0]} to {b}")
                yield _Test(words, self._tested(key, apart, alike, most=2.0))

    def pairs(self) -> list[Grid]:
        """All pairs of cells that differ in one axis."""
        tests = []
        for key in self.rows:
            for one, other in combinations(self.present, 2):
                if sum(one.levels[axis] != other.levels[axis] for axis in self.results.axes) == 1:
                    words = (self._head(key), one.name, other.name)
                    answers = self.answers(one, key), self.answers(other, key)
                    tests.append(_Test(words, self._tested(key, *answers)))
        return [self._differences("pairs: second less first, in points", ("label", "first", "second"), tests)]

    def _differences(self, title: str, heads: tuple[str, ...], tests: Sequence[_Test]) -> Grid:
        adjusted = iter(holm([test.found.p for test in tests if test.found is not None]))
        rows = []
        for test in tests:
            cells = ("no test: all are alike", "-", "-", "-")
            if test.found is not None:
                cells = (*difference_cells(test.found), p_cell(test.found.p), p_cell(next(adjusted)))
            rows.append((*test.words, *cells))
        number = sum(test.found is not None for test in tests)
        of = "other seeds and videos" if len(self.seeds) > 1 else "other videos, not for other seeds"
        caution = f"; {TWO_SEEDS}" if len(self.seeds) == 2 else ""
        about = (
            f"{self.protocol}, {title}; for {of}; p adjusted for {counted(number, 'test')} (Holm){caution}"
        )
        return Grid(about, (*heads, "difference", "95 % interval", "p", "p adjusted"), tuple(rows))


def _costs(results: GridResults) -> Grid:
    equal = ", ".join(f"{value:g} {name}" for name, value in results.equal.items())
    length = f"all trained for {equal}" if equal else "each of its recipe's own length"
    rows = []
    for cell in results.cells:
        price = cell.price
        mean = sum(cell.seconds) / len(cell.seconds) if cell.seconds else None
        rows.append((
            cell.name, f"{price.parameters:,}", f"{price.steps:,}", f"{price.steps * price.samples:,}",
            f"{price.flops:.3g}", f"{price.flops * price.steps:.3g}",
            "-" if mean is None else format_duration(mean),
        ))  # fmt: skip
    heads = ("cell", "trained parameters", "steps", "samples seen", "FLOPs a step", "FLOPs", "time a run")
    return Grid(f"cost, {length}; FLOPs of forward and backward passes", heads, tuple(rows))
