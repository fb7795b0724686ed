"""Scores of several runs side by side, what differs between the runs, and whether it can be chance."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from vidssl.errors import UsageError
from vidssl.evaluators.statistics import mcnemar
from vidssl.scoring.report import percent
from vidssl.scoring.score_file import ScoreFile, find_scores, flattened
from vidssl.scoring.scores import Score

Output = Literal["table", "markdown", "csv"]
What = tuple[str, str, str]  # label, setting, order of frames
_NEVER_TOLD = ("name", "run.out")  # differ between any two runs


@dataclass(frozen=True)
class Grid:
    """A table before it has a look: rows of as many cells as there are heads."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def compare_runs(targets: Sequence[str], output: Output, console: Console | None = None) -> int:
    """Print the scores of runs side by side.

    Args:
        targets: run folders, whose newest scores under each protocol are taken, or files of scores.
        output: "table" and "markdown" hold scores, McNemar's test against the first run and what differs
            between the recipes; "csv" holds a line for every number.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no scores, or two were made under different protocols of one name.
    """
    console = console or Console()
    files = [file for target in targets for file in find_scores(Path(target))]
    names = list(dict.fromkeys(file.name for file in files))
    by_protocol = [[file for file in files if file.name == name] for name in names]
    for same in by_protocol:
        check_comparable(same)
    if output == "csv":
        print(csv_text(files), end="")
        return 0
    grids = [grid for same in by_protocol for grid in (score_grid(same), *mcnemar_grids(same))]
    grids += recipe_grids(files)
    for grid in grids:
        if output == "markdown":
            print(markdown(grid))
        else:
            console.print(drawn(grid))
    return 0


def check_comparable(files: Sequence[ScoreFile]) -> None:
    """Scores stand in one column only if protocol and videos were the same.

    Raises:
        UsageError: naming what differs.
    """
    first = files[0]
    for other in files[1:]:
        keys = [key for key in {**first.card, **other.card} if first.card.get(key) != other.card.get(key)]
        if keys:
            said = "; ".join(
                f"{key} is {first.card.get(key, 'missing')} and {other.card.get(key, 'missing')}"
                for key in keys
            )
            raise UsageError(
                f"'{first.name}' was not the same protocol for {first.path} and {other.path}: {said}. "
                "Score both under one, or compare other files of scores"
            )


def score_grid(files: Sequence[ScoreFile]) -> Grid:
    """Top-1 with its interval: a row for each label, setting and order, a column for each run and network."""
    columns = [(file, network, {_what(s): s for s in scores}) for file, network, scores in _networks(files)]
    first = next(iter(files[0].scores.values()))
    rows = [("step", *(str(file.step) for file, _, _ in columns), "")]
    for score in first:
        cells = (_cell(found[_what(score)]) for _, _, found in columns)
        rows.append((_head(_what(score)), *cells, percent(score.chance)))
    heads = ("label", *(f"{_run(file)}, {network}" for file, network, _ in columns), "chance")
    return Grid(f"{files[0].name}: top-1 in %, 95 % interval in brackets", heads, tuple(rows))


def _networks(files: Sequence[ScoreFile]) -> Iterator[tuple[ScoreFile, str, Sequence[Score]]]:
    """What was trained first, then what it is compared with."""
    for place in range(max(len(file.scores) for file in files)):
        for file in files:
            for network, scores in list(file.scores.items())[place : place + 1]:
                yield file, network, scores


def mcnemar_grids(files: Sequence[ScoreFile]) -> list[Grid]:
    """For each run after the first: on how many videos only one of the two is right, and McNemar's p."""
    first = files[0]
    grids = []
    for other in files[1:]:
        rows = []
        pairs = (next(iter(file.scores.values())) for file in (first, other))
        for one, two in zip(*pairs, strict=True):
            truth = [number for number in first.truth[one.label] if number >= 0]
            right = [
                [guess == number for guess, number in zip(score.predicted, truth, strict=True)]
                for score in (one, two)
            ]
            only_one = sum(a and not b for a, b in zip(*right, strict=True))
            only_two = sum(b and not a for a, b in zip(*right, strict=True))
            shown = f"{mcnemar(only_one, only_two):.3g}"
            rows.append((_head(_what(one)), str(only_one), str(only_two), shown))
        title = f"{first.name}: videos that only one of the two gets right, McNemar's test"
        heads = ("label", f"only {_run(first)}", f"only {_run(other)}", "p")
        grids.append(Grid(title, heads, tuple(rows)))
    return grids


def recipe_grids(files: Sequence[ScoreFile]) -> list[Grid]:
    """What the recipes of the runs differ in; nothing for a single run."""
    recipes = {_run(file): flattened(file.recipe) for file in files}
    if len(recipes) < 2:
        return []
    keys = list(dict.fromkeys(key for recipe in recipes.values() for key in recipe))
    rows = tuple(
        (key, *(recipe.get(key, "-") for recipe in recipes.values()))
        for key in keys
        if key not in _NEVER_TOLD and len({recipe.get(key) for recipe in recipes.values()}) > 1
    )
    if not rows:
        return [Grid("recipes: the same but for their names", ("key", *recipes), ())]
    return [Grid("recipes: what differs", ("key", *recipes), rows)]


def csv_text(files: Sequence[ScoreFile]) -> str:
    """A line for every number, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("top1", "low", "high", "top5", "chance", "num_train", "num_test")
    writer.writerow(("protocol", "run", "step", "network", "label", "setting", "frames", *numbers))
    for file in files:
        for network, scores in file.scores.items():
            for score in scores:
                what = (file.name, _run(file), file.step, network, score.label, score.setting, score.frames)
                values: Mapping[str, float | None] = vars(score)
                writer.writerow((*what, *(values[name] for name in numbers)))
    return text.getvalue()


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(grid.heads), line(["---"] * len(grid.heads)), *map(line, grid.rows)]
    return f"{grid.title}\n\n" + "\n".join(lines) + "\n"


def drawn(grid: Grid) -> Table:
    """The grid as a table for a terminal."""
    table = Table(title=grid.title, title_justify="left", title_style="bold")
    for place, head in enumerate(grid.heads):
        table.add_column(head, justify="right" if place and grid.rows else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))
    return table


def _run(file: ScoreFile) -> str:
    """The run's folder, or the checkpoint where it lies elsewhere."""
    folder = Path(file.checkpoint).parent
    return str(folder.parent if folder.name == "checkpoints" else Path(file.checkpoint))


def _what(score: Score) -> What:
    return score.label, score.setting, score.frames


def _head(what: What) -> str:
    label, setting, frames = what
    return " ".join(word for word in (label, setting, "" if frames == "normal" else frames) if word)


def _cell(score: Score) -> str:
    if score.spread is not None:  # over draws of labelled videos
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    return f"{percent(score.top1)} ({100 * score.low:.0f} to {100 * score.high:.0f})"
