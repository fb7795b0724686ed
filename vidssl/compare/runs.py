"""Scores of several runs side by side, what differs between the runs, and whether it can be chance."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from vidssl.compare.grids import Grid, drawn, latex, markdown
from vidssl.compare.quoted import quoted_csv, quoted_grid
from vidssl.compare.run_groups import run_groups, run_name
from vidssl.compare.tables import difference_grids, recipe_grids, score_grid
from vidssl.config.published import load_published
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, printable
from vidssl.evaluate.score_file import CONTENT, ScoreFile, find_scores

TableFormat = Literal["table", "markdown", "latex", "csv"]
_NUMBERS = (
    "top1",
    "low",
    "high",
    "top5",
    "chance",
    "num_train",
    "num_test",
    "num_groups",
    "class_mean",
    "spread",
    "chosen",
)


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
    files = [file for target in targets for file in find_scores(Path(target))]
    quoted = load_published() if published else None
    tables = () if quoted is None else quoted.chosen(papers, data_sets)
    if output == "csv":
        by_protocol(files)
        print(printable(csv_text(files) if files else quoted_csv(tables)), end="")
        return 0
    grids = run_grids(files, each=each)
    if quoted is not None:
        grids += [quoted_grid(table, quoted.papers[table.paper]) for table in tables]
    for grid in grids:
        if output == "table":
            (console or terminal()).print(drawn(grid))
        else:
            print(printable((markdown if output == "markdown" else latex)(grid)))
    return 0


def run_grids(files: Sequence[ScoreFile], *, each: bool) -> list[Grid]:
    """All tables of measured scores.

    Raises:
        UsageError: if two files were made under different protocols of one name.
    """
    groups = [run_groups(same, each=each) for same in by_protocol(files)]
    differences = difference_grids(groups)
    grids = [grid for e, more in zip(groups, differences, strict=True) for grid in (score_grid(e), *more)]
    runs: dict[str, ScoreFile] = {}
    for file in files:
        runs.setdefault(run_name(file), file)
    return grids + recipe_grids(run_groups(list(runs.values()), each=each))


def by_protocol(files: Sequence[ScoreFile]) -> list[list[ScoreFile]]:
    """The files of each protocol, in the order of the first of each.

    Raises:
        UsageError: if two files were made under different protocols of one name, naming what differs.
    """
    names = dict.fromkeys(file.name for file in files)
    found = [[file for file in files if file.name == name] for name in names]
    for same in found:
        _check_comparable(same)
    return found


def _check_comparable(files: Sequence[ScoreFile]) -> None:
    """Scores stand in one column only if protocol and videos were the same."""
    first = files[0]
    for other in files[1:]:
        keys = [key for key in {**first.card, **other.card} if _differs(key, first.card, other.card)]
        if keys:
            differences = "; ".join(
                f"{key} is {_shown(first.card.get(key))} and {_shown(other.card.get(key))}" for key in keys
            )
            raise UsageError(
                f"'{first.name}' was not the same protocol for {first.path} and {other.path}: {differences}. "
                f"Score one anew on the data of the other, if its network takes those clips: vidssl eval "
                f"{run_name(other)} data={run_name(first)} --protocol {first.name}"
            )


def _differs(key: str, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Checksums of the videos are held against each other where both have them."""
    if key.rpartition(".")[2] == CONTENT and not (key in one and key in other):
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
    ends = [f"{name}_{end}" for name in ("top5", "class_mean") for end in ("low", "high")]
    what = ("protocol", "run", "step", "network", "label", "setting", "frames")
    writer.writerow((*what, *_NUMBERS, *ends, "seed", "card_sha256"))
    for file in files:
        known = (file.settings.get("seed"), file.card_sha256)
        for network, scores in file.scores.items():
            for score in scores:
                row = (
                    file.name,
                    run_name(file),
                    file.step,
                    network,
                    score.label,
                    score.setting,
                    score.frames,
                )
                values: Mapping[str, float | str | None] = vars(score)
                spans = (score.top5_interval, score.class_interval)
                bounds = [end for span in spans for end in span or ("", "")]
                writer.writerow((*row, *(values[name] for name in _NUMBERS), *bounds, *known))
    return text.getvalue()
