"""Scores of several runs side by side and what differs between them; a folder of runs as a table."""

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console

from vidssl.compare import tables
from vidssl.config.published import QuotedTable, load_published
from vidssl.engine import facts, process, runfolder
from vidssl.engine.logging import print_line, terminal
from vidssl.errors import UsageError, printable
from vidssl.evaluate.score_file import CONTENT, WHERE, ScoreFile, find_scores, flattened, read_scores
from vidssl.evaluators.differences import what

TableFormat = Literal["table", "markdown", "latex", "csv"]
_NUMBERS = (
    *("measure", "top1", "low", "high", "top5", "chance", "num_train", "num_test"),
    *("num_groups", "class_mean", "class_top5", "spread", "mae", "chosen"),
)
_NAMED = 5  # settings that differ, in a refusal
_VIEWS = ("data.views.", "data.train_views.")


def compare(
    targets: Sequence[str],
    *,
    output: TableFormat = "table",
    each: bool = False,
    published: bool = False,
    papers: Sequence[str] = (),
    data_sets: Sequence[str] = (),
    console: Console | None = None,
) -> int:
    """Print the scores of runs side by side, and what papers report in tables of their own.

    Args:
        targets: run folders, whose newest scores under each protocol are taken, or files of scores.
        output: "table", "markdown" and "latex" hold scores, differences from the first run and what differs
            between the recipes; "csv" holds a line for every number.
        each: shows runs by themselves that differ only in their seed.
        published: adds what papers report.
        papers, data_sets: which of that; all where none is named.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no scores, two were made under different protocols of one name, or nothing
            is asked for.
    """
    if not targets and not published:
        raise UsageError("compare takes runs or files of scores, got none (vidssl compare runs/a runs/b)")
    for option, given in (("--paper", papers), ("--data-set", data_sets)):
        if given and not published:
            raise UsageError(f"{option} chooses among what papers report: add --published")
    if targets and published and output == "csv":
        raise UsageError(
            "measured and quoted numbers do not go into one CSV: leave out the runs or --published"
        )
    files = alike([file for target in targets for file in find_scores(runfolder.named_path(target))])
    quoted = load_published() if published else None
    chosen = () if quoted is None else quoted.chosen(papers, data_sets)
    if output == "csv":
        by_protocol(files)
        print(printable(csv_text(files) if files else quoted_csv(chosen)), end="")
        return 0
    grids = run_grids(files, each=each)
    if quoted is not None:
        grids += [quoted_grid(table, quoted.papers[table.paper]) for table in chosen]
    for grid in grids:
        if output == "table":
            (console or terminal()).print(tables.drawn(grid))
        else:
            print(printable((tables.markdown if output == "markdown" else tables.latex)(grid)))
    return 0


def alike(files: Sequence[ScoreFile]) -> list[ScoreFile]:
    """Files; of those on other data than the first, earlier ones on its data where there are such.

    A network that is scored on two data sets in turn, as ``pixels`` is, keeps the scores of both; the newest
    stand in the folder, the others in ``earlier`` below it.
    """
    firsts: dict[str, ScoreFile] = {}
    found = []
    for file in files:
        first = firsts.setdefault(file.name, file)
        if differing(first.card, file.card):
            others = map(read_scores, sorted((file.path.parent / "earlier").glob(f"{file.path.stem}-*.json")))
            file = next((other for other in others if not differing(first.card, other.card)), file)
        found.append(file)
    return found


def run_grids(files: Sequence[ScoreFile], *, each: bool) -> list[tables.Grid]:
    """All tables of measured scores.

    Raises:
        UsageError: if two files were made under different protocols of one name.
    """
    groups = [tables.run_groups(same, each=each) for same in by_protocol(files)]
    differences = tables.difference_grids(groups)
    grids = [
        grid for e, more in zip(groups, differences, strict=True) for grid in (tables.score_grid(e), *more)
    ]
    if len(groups) > 1:
        grids.insert(0, tables.summary_grid(groups))
    runs: dict[str, ScoreFile] = {}
    for file in files:
        runs.setdefault(tables.run_name(file), file)
    return grids + tables.recipe_grids(tables.run_groups(list(runs.values()), each=each))


def by_protocol(files: Sequence[ScoreFile], *, own_views: bool = False) -> list[list[ScoreFile]]:
    """The files of each protocol, in the order of the first of each.

    Args:
        own_views: whether networks may have been shown clips of other shapes of the same videos.

    Raises:
        UsageError: if a file is named twice, or two were made under different protocols of one name, naming
            what differs.
    """
    paths = [file.path.resolve() for file in files]
    if twice := [path for path in dict.fromkeys(paths) if paths.count(path) > 1]:
        raise UsageError(f"{twice[0]}: named twice: leave one out, scores differ from themselves by nothing")
    names = dict.fromkeys(file.name for file in files)
    found = [[file for file in files if file.name == name] for name in names]
    for same in found:
        _check_comparable(same, own_views)
    return found


def _check_comparable(files: Sequence[ScoreFile], own_views: bool) -> None:
    """Scores stand in one column only if protocol and videos were the same."""
    first = files[0]
    for other in files[1:]:
        if keys := differing(first.card, other.card, own_views=own_views):
            of_data = [key for key in keys if key.startswith(("data.", "videos."))]
            words = [f"data={tables.run_name(first)}"] if of_data else []
            words += [f"{key}={first.card[key]}" for key in keys if key in first.card and key not in of_data]
            command = ("vidssl", "eval", tables.run_name(other), "--protocol", first.name, *words)
            raise UsageError(
                f"'{first.name}' was not the same protocol for {first.path} and {other.path}:"
                f"{key_lines(keys, first.card, other.card)}\nScore the second as the first was, if its "
                f"network takes those clips: {shlex.join(command)}"
            )


def key_lines(keys: Sequence[str], one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """A line for each key, with both values, for a message."""
    lines = [f"\n  {key} is {_shown(one.get(key))} and {_shown(other.get(key))}" for key in keys]
    lines[_NAMED:] = [f"\n  and {len(keys) - _NAMED} more"] * (len(keys) > _NAMED)
    return "".join(lines)


def differing(one: Mapping[str, str], other: Mapping[str, str], *, own_views: bool = False) -> list[str]:
    """Keys of two cards by which their scores may not be compared; ``own_views`` as in ``by_protocol``."""
    keys = [key for key in {**one, **other} if _differs(key, one, other)]
    return [key for key in keys if not (own_views and key.startswith(_VIEWS))]


def _differs(key: str, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Checksums of the videos are held against each other where both have them; where files lie, never."""
    last = key.rpartition(".")[2]
    if last in WHERE or (last == CONTENT and not (key in one and key in other)):
        return False
    return one.get(key) != other.get(key)


def _shown(value: object) -> str:
    """A value of a score's card; of a digest its beginning."""
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:8]
    return "missing" if value is None else str(value)


def csv_text(files: Sequence[ScoreFile]) -> str:
    """A line for every number, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{name}_{end}" for name in ("top5", "class_mean", "class_top5") for end in ("low", "high")]
    heads = ("protocol", "run", "step", "network", "label", "setting", "frames")
    writer.writerow((*heads, *_NUMBERS, *ends, "seed", "card_sha256"))
    for file in files:
        known = (file.settings.get("seed"), file.card_sha256)
        for network, scores in file.scores.items():
            for score in scores:
                row = (file.name, tables.run_name(file), file.step, network, *what(score))
                values: Mapping[str, float | str | None] = vars(score)
                spans = (score.top5_interval, score.class_interval, score.class_top5_interval)
                bounds = [end for span in spans for end in span or ("", "")]
                writer.writerow((*row, *(values[name] for name in _NUMBERS), *bounds, *known))
    return text.getvalue()


_BARE = ("data_set", "metric", "evaluation")  # whose value needs no name
_IN_PERCENT = ("top-1", "mask accuracy")


def quoted_grid(table: QuotedTable, title: str) -> tables.Grid:
    """A paper's table, marked as quoted.

    Args:
        title: of the paper.
    """
    filled = [place for place in range(len(table.columns)) if any(row.cells[place] for row in table.rows)]
    heads = (*(_words(table.columns[place]) for place in filled), *map(_head, table.heads))
    digits = [max(_digits(row.values[place]) for row in table.rows) for place in range(len(table.heads))]
    rows = tuple(
        (
            *(row.cells[place] or "-" for place in filled),
            *("-" if v is None else f"{v:.{n}f}" for v, n in zip(row.values, digits, strict=True)),
        )
        for row in table.rows
    )
    shared = "; ".join(f"{_words(name)}: {value}" for name, value in table.shared.items())
    caption = f"quoted, not measured here: {title}, Table {table.number}, {table.title}"
    return tables.Grid(f"{caption} ({shared})" if shared else caption, heads or ("method",), rows)


def _head(settings: Mapping[str, str]) -> str:
    """``UCF101, linear, top-1 %``: on what, how, and what was measured."""
    order = sorted(settings, key=lambda name: (name == "metric") - (name == "data_set"))
    words = [settings[name] if name in _BARE else f"{_words(name)} {settings[name]}" for name in order]
    return ", ".join(words) + (" %" if settings.get("metric") in _IN_PERCENT else "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _digits(value: float | None) -> int:
    return 0 if value is None else len(repr(value).partition(".")[2])


def quoted_csv(chosen: Sequence[QuotedTable]) -> str:
    """A line for every number, with a header; settings stand in one cell (``size: 224; frames: 16``)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("quoted_from", "table", "row", "method", "settings", "data_set", "metric", "value"))
    for table in chosen:
        for n in table.numbers():
            settings = "; ".join(f"{name}: {value}" for name, value in n.settings.items())
            writer.writerow((n.paper, n.table, n.row, n.method, settings, n.data_set, n.metric, n.value))
    return text.getvalue()


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
    rows = [run_row(run, settings=settings) for run in runfolder.runs_below(Path(folder))]
    if not rows:
        raise UsageError(f"no run below {Path(folder).resolve()}: 'vidssl runs FOLDER' looks elsewhere")
    if parquet is not None:
        say = partial(print_line, console)
        process.check_writable(Path(parquet), "name another with --parquet", say)
        _write_parquet(rows, Path(parquet))
        say(f"Table: {parquet} ({len(rows)} x {len(_columns(rows))})")
    if as_csv:
        print(printable(_csv(rows)), end="")
    elif parquet is None:
        console.print(tables.drawn(_grid(folder, rows)))
    return 0


def run_row(run: runfolder.RunFolder, *, settings: bool = False) -> dict[str, Cell]:
    """What is known of a run: column -> value.

    Scores stand under ``PROTOCOL.NETWORK.LABEL`` (behind it mAP or R2, and the setting, where there is one),
    as fractions: top-1, or where classes are unbalanced the mean over them. What is missing is left out; what
    is damaged too, and named under ``damaged``.
    """
    damaged: list[str] = []

    @contextmanager
    def named(name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, AttributeError):
            damaged.append(name)

    recipe, keys = run.path / "recipe.yaml", dict[str, str]()
    with named(recipe.name):
        keys = flattened(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    newest = run.newest_checkpoint()
    row: dict[str, Cell] = {"run": str(run.path), "name": keys.get("name"), "seed": _number(keys.get("seed"))}
    row |= {part: keys.get(f"{part}.type", keys.get(part)) for part in _PARTS}
    row |= {"step": None if newest is None else run.step_of(newest), "training": process.trains_in(run.path)}
    with named(run.metrics.name):
        row |= _last_metrics(run.metrics) if run.metrics.is_file() else {}
    files: Sequence[ScoreFile] = ()
    with named("scores"):
        files = find_scores(run.path) if any(run.scores.glob("*.json")) else ()
    for file in files:
        for network, scores in file.scores.items():
            for score in scores:
                words = (file.name, network, score.label, score.measure_named, score.setting)
                order = "" if score.frames == "normal" else f".{score.frames}"
                column = ".".join(filter(None, words)) + order
                row[column] = score.class_mean if score.unbalanced else score.top1
    row |= {"damaged": ", ".join(damaged)} if damaged else {}
    return row | ({f"recipe.{key}": value for key, value in keys.items()} if settings else {})


def _number(text: str | None) -> Cell:
    return int(text) if text is not None and text.isdecimal() else text


def _last_metrics(path: Path) -> dict[str, Cell]:
    """The last value of each metric that was logged; a line that is cut is left out."""
    found: dict[str, Cell] = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("}\n"):
            values = {
                name: value for name, value in facts.Row(facts.parsed(line)).entries() if name != "step"
            }
            found |= {name: value for name, value in values.items() if isinstance(value, (int, float, str))}
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
    process.write_atomically(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))


def _of_one_type(values: list[Cell]) -> list[Cell]:
    """A column of Parquet has one type: where runs differ in it, all are text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return [
            float(value) if isinstance(value, (int, float)) and float in kinds else value for value in values
        ]
    return [None if value is None else str(value) for value in values]


def _grid(folder: str, rows: list[dict[str, Cell]]) -> tables.Grid:
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
        if "damaged" in row:
            scores.append(f"damaged: {row['damaged']}")
        lines.append((name, *words, seed, state, "; ".join(scores) or "-"))
    return tables.Grid(f"runs in {folder}", heads, tuple(lines))
