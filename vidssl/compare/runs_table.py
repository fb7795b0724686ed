"""A folder of runs as a table: a row for each, what it is made of, how far it came, and what it scored."""

import csv
import io
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from vidssl.compare.grids import Grid, drawn
from vidssl.engine.atomic import write_atomically
from vidssl.engine.logging import print_line, terminal
from vidssl.engine.process import trains_in
from vidssl.engine.runfolder import RunFolder, runs_below
from vidssl.errors import UsageError, printable
from vidssl.evaluate.score_file import find_scores, flattened

Cell = str | int | float | bool | None
_PARTS = ("objective", "backbone", "tokenizer", "masker")


def runs_table(
    folder: str = "runs",
    *,
    as_csv: bool = False,
    parquet: str | None = None,
    settings: bool = False,
    console: Console | None = None,
) -> int:
    """Print a table of the runs below a folder, or give it to other programs.

    Args:
        as_csv: print CSV with all columns instead.
        parquet: write a Parquet file with all columns instead.
        settings: add every key of the recipes, as ``recipe.KEY``, to CSV and Parquet.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no runs, or pyarrow is missing.
    """
    console = console or terminal()
    if settings and not (as_csv or parquet):
        raise UsageError("--settings adds columns to --csv and --parquet: add one of them")
    rows = [run_row(run, settings=settings) for run in runs_below(Path(folder))]
    if not rows:
        raise UsageError(f"no run below {Path(folder).resolve()}: name the folder that the runs lie in")
    if parquet is not None:
        _write_parquet(rows, Path(parquet))
        print_line(console, f"Table: {parquet} ({len(rows)} x {len(_columns(rows))})")
    if as_csv:
        print(printable(_csv(rows)), end="")
    elif parquet is None:
        console.print(drawn(_grid(folder, rows)))
    return 0


def run_row(run: RunFolder, *, settings: bool = False) -> dict[str, Cell]:
    """What is known of a run: column -> value.

    Scores stand under ``PROTOCOL.NETWORK.LABEL`` (with the setting behind it where there is one), in [0, 1]:
    top-1, or where classes are unbalanced the mean over them. What is damaged or missing is left out.
    """
    recipe = run.path / "recipe.yaml"
    keys = flattened(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    newest = run.newest_checkpoint()
    row: dict[str, Cell] = {"run": str(run.path), "name": keys.get("name"), "seed": _number(keys.get("seed"))}
    row |= {part: keys.get(f"{part}.type", keys.get(part)) for part in _PARTS}
    row |= {"step": None if newest is None else run.step_of(newest), "training": trains_in(run.path)}
    row |= _last_metrics(run.metrics)
    if any(run.scores.glob("*.json")):
        for file in find_scores(run.path):
            for network, scores in file.scores.items():
                for score in scores:
                    words = (file.name, network, score.label, score.setting)
                    order = "" if score.frames == "normal" else f".{score.frames}"
                    column = ".".join(filter(None, words)) + order
                    row[column] = score.class_mean if score.unbalanced else score.top1
    return row | ({f"recipe.{key}": value for key, value in keys.items()} if settings else {})


def _number(text: str | None) -> Cell:
    return int(text) if text is not None and text.isdecimal() else text


def _last_metrics(path: Path) -> dict[str, Cell]:
    """The last value of each metric that was logged; a line that is cut is left out."""
    found: dict[str, Cell] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for line in lines:
        if line.endswith("}\n"):
            found |= {name: value for name, value in json.loads(line).items() if name != "step"}
    return found


def _columns(rows: list[dict[str, Cell]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: list[dict[str, Cell]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_parquet(rows: list[dict[str, Cell]], path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise UsageError("--parquet: needs the package pyarrow: pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    columns: Mapping[str, list[Cell]] = {name: [row.get(name) for row in rows] for name in _columns(rows)}
    table = pyarrow.table({name: _of_one_type(values) for name, values in columns.items()})
    write_atomically(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))


def _of_one_type(values: list[Cell]) -> list[Cell]:
    """A column of Parquet has one type: where runs differ in it, all are text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return [
            float(value) if isinstance(value, (int, float)) and float in kinds else value for value in values
        ]
    return [None if value is None else str(value) for value in values]


def _grid(folder: str, rows: list[dict[str, Cell]]) -> Grid:
    """What fits on a terminal: what a run is, how far it came, and its score under each protocol."""
    heads = ("run", "objective", "backbone", "seed", "step", "scores of the trained network, %")
    lines = []
    for row in rows:
        scores = [
            f"{'.'.join(word for word in name.split('.') if word != 'trained')} {100 * value:.1f}"
            for name, value in row.items()
            if ".trained." in name and isinstance(value, float)
        ]
        state = f"{row['step'] if row['step'] is not None else '-'}{', training' if row['training'] else ''}"
        words = [str(row[key] or "-") for key in ("objective", "backbone")]
        seed = "-" if row["seed"] is None else str(row["seed"])
        name = str(Path(str(row["run"])).relative_to(folder))
        lines.append((name, *words, seed, state, "; ".join(scores) or "-"))
    return Grid(f"runs in {folder}", heads, tuple(lines))
