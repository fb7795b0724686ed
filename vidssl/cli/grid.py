"""Commands on many runs: grid, report, runs."""

from typing import Any

from vidssl.cli.operands import Commands, Parser, add, add_trust, at_least, only, split
from vidssl.errors import UsageError


def add_grid(commands: "Commands[Parser]") -> None:
    grid = add(
        commands,
        "grid",
        _grid,
        "train and score a grid of recipes, and compare its cells",
        ("GRID [KEY=VALUE ...]", "file or name in recipes/grids/, overrides of every cell and of the grid"),
    )
    grid.add_argument("--jobs", type=at_least(1), metavar="N", help="runs at once; default: 1")
    grid.add_argument(
        "--processes", type=at_least(1), metavar="N", help="of each run, by torchrun (one a GPU); default: 1"
    )
    grid.add_argument("--out", metavar="FOLDER", help="where the grid's folder goes; default: runs")
    grid.add_argument(
        "--eval",
        dest="evaluation",
        action="append",
        metavar="KEY=VALUE",
        help="for 'vidssl eval' of each run; may be repeated",
    )
    grid.add_argument("--tables", dest="tables_only", action="store_true", help="train nothing; show tables")
    grid.add_argument(
        "--submit", choices=("slurm", "local"), help="start runs as jobs through the package submitit"
    )
    grid.add_argument(
        "--job",
        dest="parameters",
        action="append",
        metavar="KEY=VALUE",
        help="of submitit's jobs, such as timeout_min=600 or slurm_partition=gpu; may be repeated",
    )

    report = add(
        commands,
        "report",
        _report,
        "write a page on runs for a browser, in one file",
        ("RUN_OR_SCORES_OR_GRID", "run folders, files of scores, or the folder of a grid"),
    )
    report.add_argument("-o", "--out", metavar="FILE", help="default: report.html")
    report.add_argument(
        "--no-pictures",
        dest="pictures",
        action="store_false",
        help="leave out clips, neighbours and maps, which take the runs' networks and videos",
    )
    add_trust(report)

    runs = add(
        commands,
        "runs",
        _runs,
        "show a folder of runs as a table",
        ("[FOLDER]", "that they lie in, at any depth; default: runs"),
    )
    runs.add_argument("--csv", dest="as_csv", action="store_true", help="a line for each run, all columns")
    runs.add_argument("--parquet", metavar="FILE", help="write the same as Parquet, with the package pyarrow")
    runs.add_argument("--settings", action="store_true", help="add every key of the recipes")


def _runs(words: list[str], **options: Any) -> int:
    if len(words) > 1:
        raise UsageError(f"runs takes one folder, got {' '.join(words)}")
    from vidssl.compare.runs_table import runs_table

    return runs_table(*words, **options)


def _report(words: list[str], **options: Any) -> int:
    from vidssl.tools.report import write_report

    return write_report(words, **options)


def _grid(words: list[str], *, tables_only: bool = False, **options: Any) -> int:
    names, overrides = split(words)
    name = only(names, "grid takes one grid", "vidssl grid recipes/grids/bevt_masks.yaml")
    from vidssl.tools.grid import Execution, run_grid

    where = {"out": options.pop("out")} if "out" in options else {}
    return run_grid(name, overrides, execution=Execution(**options), tables_only=tables_only, **where)
