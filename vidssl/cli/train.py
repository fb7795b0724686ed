"""Commands on recipes and runs: train, bench, selftest, replay; grid, report, runs; check and list."""

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vidssl.cli import operands
from vidssl.engine.process import Cpus, look_at_cpus
from vidssl.errors import UsageError, printable


def add_commands(commands: "operands.Commands[operands.Parser]") -> None:
    files = (operands.RECIPE, "file or name, overrides")
    train = operands.add(commands, "train", _train, "train what a recipe describes", files)
    train.add_argument(
        "--resume", metavar="RUN", help="resume a run at the very step of its newest checkpoint"
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="take two steps and show parameters, tokens, FLOPs, memory, time and disk; nothing is kept",
    )
    train.add_argument(
        "--deterministic", action="store_true", help="the same numbers in every run; run.deterministic=true"
    )
    bench = operands.add(
        commands, "bench", _bench, "measure whether a recipe's runs wait for data on this machine", files
    )
    bench.add_argument(
        "--seconds", type=operands.positive, metavar="N", help="that it takes, about; default: 20"
    )
    bench.add_argument(
        "--floor",
        action="store_true",
        help="time the step beside its matrix products, convolutions and attention alone; needs no data",
    )
    selftest = operands.add(
        commands,
        "selftest",
        _selftest,
        "try promises of the package on your recipe or GPU",
        (f"resume {operands.RECIPE} | gpu", "what is tried"),
    )
    selftest.add_argument(
        "--steps", type=operands.at_least(1), metavar="N", help="resume: of each half of the run; default: 5"
    )
    selftest.add_argument(
        "--device", choices=("cuda", "cpu"), help="gpu: cpu tries the same with small sizes"
    )
    selftest.add_argument(
        "--seconds", type=operands.positive, metavar="N", help="gpu: at most; default: 480, cpu 120"
    )
    selftest.add_argument(
        "--only", action="append", metavar="PART", help="gpu: parts that begin so; may be repeated"
    )
    selftest.add_argument("--out", metavar="FILE", help="gpu: default: selftest-gpu.json, a table beside it")
    replay = operands.add(
        commands,
        "replay",
        _replay,
        "repeat a step whose loss was not finite, on a CPU",
        ("CAPTURE", "a file in captures/ of a run"),
    )
    replay.add_argument("--precision", choices=("fp32", "run"), help="fp32 (default), or as in the run")
    operands.add_trust(replay)


def _train(
    words: list[str], *, resume: str | None = None, dry_run: bool = False, deterministic: bool = False
) -> int:
    names, overrides = operands.split(words)
    hint = "put overrides that hold spaces in quotes" if overrides else "vidssl train recipes/bevt.yaml"
    if deterministic:
        overrides.append("run.deterministic=true")
    if resume is not None:
        if dry_run:
            raise UsageError("--dry-run tries a recipe, and --resume resumes a run: give one of them")
        if names:
            raise UsageError(f"a run resumes with its own recipe: leave out {names[0]}")
        cpus = _free_cpus()
        from vidssl.train.run import resume_run

        return resume_run(resume, overrides, cpus=cpus, draw=_draw)
    name = operands.only(names, "train takes one recipe", hint if names else "vidssl train recipes/bevt.yaml")
    from vidssl.config.recipe import load_recipe
    from vidssl.engine.distributed import told_once_a_machine

    with told_once_a_machine():
        recipe = load_recipe(name, overrides)
    if dry_run:
        from vidssl.tools.dry_run import dry_run as try_out

        try_out(recipe)
        return 0
    cpus = _free_cpus()
    from vidssl.train.run import run_recipe

    return run_recipe(recipe, cpus=cpus, draw=_draw)


def _draw(checkpoint: Path, console: Console) -> None:
    from vidssl.pictures.show import draw_learned  # when all is trained: it needs more of the package

    draw_learned(checkpoint, console)


def _free_cpus() -> Cpus | None:
    """The CPUs to choose threads by, before torch is imported; None where the user has chosen them.

    Threads that wait for one another actively keep the CPU from other processes, and these the threads from
    getting on: where there are others, they are to sleep.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    cpus = look_at_cpus()
    if cpus.threads < cpus.allowed:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return cpus


def _bench(words: list[str], **options: Any) -> int:
    names, overrides = operands.split(words)
    name = operands.only(names, "bench takes one recipe", "vidssl bench bevt")
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.bench import bench

    bench(load_recipe(name, overrides), **options)
    return 0


def _selftest(words: list[str], **options: Any) -> int:
    names, overrides = operands.split(words)
    kind, given = names[0] if names else "", " ".join(names) or "nothing"
    if (kind, len(names)) not in (("resume", 2), ("gpu", 1)) or (kind == "gpu" and overrides):
        raise UsageError(
            f"selftest takes 'resume' and a recipe, or 'gpu', got {' '.join([given, *overrides])} "
            "(vidssl selftest resume bevt)"
        )
    stray = [name for name in options if (name == "steps") != (kind == "resume")]
    if stray:
        raise UsageError(f"--{stray[0]} means nothing to selftest {kind}")
    if kind == "gpu":
        from vidssl.tools.selftest_gpu import selftest_gpu

        return selftest_gpu(**options)
    from vidssl.tools.selftest import selftest_resume

    return selftest_resume(names[1], overrides, **options)


def _replay(words: list[str], **options: Any) -> int:
    name = operands.only(words, "replay takes one capture", "vidssl replay RUN/captures/STEP")
    from vidssl.tools.replay import replay

    return replay(name, **options)


LISTED = (
    "objectives", "backbones", "tokenizers", "maskers", "evaluators", "sources", "views", "augments",
    "optimizers", "schedules",
)  # fmt: skip


SPECS = {"protocols": "evaluation", "recipes": "recipes"}  # and runs, which are listed by their folders


def add_check(commands: "operands.Commands[operands.Parser]") -> None:
    operands.add(
        commands,
        "check",
        _check,
        "validate recipes; needs no data, weights or GPU",
        ("RECIPE", "recipes, protocols, tokenizers; default: all"),
    )
    operands.add(
        commands,
        "list",
        _list,
        "show components and their keys, protocols, recipes or runs",
        ("KIND", f"one of {', '.join((*LISTED, *SPECS))}, runs; default: all components"),
    )


def _check(words: list[str]) -> int:
    from vidssl.build.build import check_file
    from vidssl.config.files import NAMES, locate, spec_files
    from vidssl.config.published import published_path
    from vidssl.config.strict_yaml import displayed

    overrides = operands.split(words)[1]
    if overrides:
        raise UsageError(f"check takes files as they are, without overrides; got {overrides[0]}")
    code = 0
    every = [(kind, path) for kind in NAMES for path in spec_files(kind).values()]
    every.append(("evaluation", published_path()))
    for target in words or every:
        try:
            kind, path = locate(target) if isinstance(target, str) else target
            check_file(kind, path)
            print(f"{printable(displayed(path))}: ok", flush=True)
        except UsageError as error:
            code = operands.BAD_INPUT
            print(f"vidssl: {printable(str(error))}", file=sys.stderr, flush=True)
    return code


def _names(kind: str) -> str:
    """Names of protocols or recipes with what their files say first."""
    from vidssl.config.files import spec_files

    files = spec_files("evaluation" if kind == "protocols" else "recipes")
    lines = []
    for name, path in sorted(files.items()):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"  {name}  {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
    return "\n".join([kind, *lines])


def _list(words: list[str]) -> int:
    kinds = (*LISTED, *SPECS, "runs")
    unknown = [word for word in words if word not in kinds]
    if unknown:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no kind of component '{unknown[0]}'. {nearest(unknown[0], kinds, 'There are')}")
    from vidssl.build.part_checks import component_table, network_table
    from vidssl.engine.logging import terminal

    console = terminal()
    for kind in words or LISTED:
        if kind in LISTED:
            console.print(component_table(kind))
        elif kind == "runs":
            from vidssl.compare.runs import runs_table

            runs_table()
        else:
            print(printable(_names(kind)), flush=True)
    if "backbones" in words:  # not for a list of everything: it builds them all
        console.print(network_table())
    return 0


def add_grid(commands: "operands.Commands[operands.Parser]") -> None:
    grid = operands.add(
        commands,
        "grid",
        _grid,
        "train and score a grid of recipes, and compare its cells",
        ("GRID [KEY=VALUE ...]", "file or name in recipes/grids/, overrides of every cell and of the grid"),
    )
    grid.add_argument("--jobs", type=operands.at_least(1), metavar="N", help="runs at once; default: 1")
    grid.add_argument(
        "--processes",
        type=operands.at_least(1),
        metavar="N",
        help="of each run, by torchrun (one a GPU); default: 1",
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

    report = operands.add(
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
    operands.add_trust(report)

    runs = operands.add(
        commands,
        "runs",
        _runs,
        "show a folder of runs as a table",
        ("[FOLDER]", "that they lie in, at any depth; default: runs"),
    )
    kind = runs.add_mutually_exclusive_group()
    kind.add_argument("--csv", dest="as_csv", action="store_true", help="a line for each run, all columns")
    kind.add_argument("--parquet", metavar="FILE", help="write the same as Parquet, with the package pyarrow")
    runs.add_argument("--settings", action="store_true", help="add every key of the recipes")


def _runs(words: list[str], **options: Any) -> int:
    if len(words) > 1:
        raise UsageError(f"runs takes one folder, got {' '.join(words)}")
    from vidssl.compare.runs import runs_table

    return runs_table(*words, **options)


def _report(words: list[str], **options: Any) -> int:
    from vidssl.tools.report import write_report

    return write_report(words, **options)


def _grid(words: list[str], *, tables_only: bool = False, **options: Any) -> int:
    names, overrides = operands.split(words)
    name = operands.only(names, "grid takes one grid", "vidssl grid recipes/grids/bevt_masks.yaml")
    from vidssl.tools.grid import Execution, run_grid

    where = {"out": options.pop("out")} if "out" in options else {}
    return run_grid(name, overrides, execution=Execution(**options), tables_only=tables_only, **where)
