"""Commands on many runs: grid."""

from typing import Any

from vidssl.cli.operands import Commands, Parser, add, at_least, only, split


def add_commands(commands: "Commands[Parser]") -> None:
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


def _grid(words: list[str], *, tables_only: bool = False, **options: Any) -> int:
    names, overrides = split(words)
    name = only(names, "grid takes one grid", "vidssl grid recipes/grids/bevt_masks.yaml")
    from vidssl.tools.grid import Execution, run_grid

    where = {"out": options.pop("out")} if "out" in options else {}
    return run_grid(name, overrides, execution=Execution(**options), tables_only=tables_only, **where)
