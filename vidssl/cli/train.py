"""Commands on recipes and their runs: train, bench, selftest, and replay of a step."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from vidssl.cli.operands import RECIPE, Commands, Parser, add, add_trust, at_least, only, positive, split
from vidssl.engine.process import Cpus, look_at_cpus
from vidssl.errors import UsageError


def add_commands(commands: "Commands[Parser]") -> None:
    files = (RECIPE, "file or name, overrides")
    train = add(commands, "train", _train, "train what a recipe describes", files)
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
    bench = add(
        commands, "bench", _bench, "measure whether a recipe's runs wait for data on this machine", files
    )
    bench.add_argument("--seconds", type=positive, metavar="N", help="that it takes, about; default: 20")
    bench.add_argument(
        "--floor",
        action="store_true",
        help="time the step beside its matrix products, convolutions and attention alone; needs no data",
    )
    selftest = add(
        commands,
        "selftest",
        _selftest,
        "try promises of the package on your recipe or GPU",
        (f"resume {RECIPE} | gpu", "what is tried"),
    )
    selftest.add_argument(
        "--steps", type=at_least(1), metavar="N", help="resume: of each half of the run; default: 5"
    )
    selftest.add_argument(
        "--device", choices=("cuda", "cpu"), help="gpu: cpu tries the same with small sizes"
    )
    selftest.add_argument("--seconds", type=positive, metavar="N", help="gpu: at most; default: 480, cpu 120")
    selftest.add_argument(
        "--only", action="append", metavar="PART", help="gpu: parts that begin so; may be repeated"
    )
    selftest.add_argument("--out", metavar="FILE", help="gpu: default: selftest-gpu.json, a table beside it")
    replay = add(
        commands,
        "replay",
        _replay,
        "repeat a step whose loss was not finite, on a CPU",
        ("CAPTURE", "a file in captures/ of a run"),
    )
    replay.add_argument("--precision", choices=("fp32", "run"), help="fp32 (default), or as in the run")
    add_trust(replay)


def _train(
    words: list[str], *, resume: str | None = None, dry_run: bool = False, deterministic: bool = False
) -> int:
    names, overrides = split(words)
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
    name = only(names, "train takes one recipe", hint if names else "vidssl train recipes/bevt.yaml")
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
    names, overrides = split(words)
    name = only(names, "bench takes one recipe", "vidssl bench bevt")
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.bench import bench

    bench(load_recipe(name, overrides), **options)
    return 0


def _selftest(words: list[str], **options: Any) -> int:
    names, overrides = split(words)
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
    name = only(words, "replay takes one capture", "vidssl replay RUN/captures/STEP")
    from vidssl.tools.replay import replay

    return replay(name, **options)
