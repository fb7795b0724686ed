"""A grid trained and scored: a run for each cell and seed, one after another or several at once.

runs/GRID/
  grid.json        what was varied, where each run lies, what a step of each cell takes
  recipes/         the recipe of each run
  logs/            what each run printed
  CELL-seed-0/     a run
  results.md       the tables
  scores.csv       a line for every score

A grid that was interrupted goes on with the same command: what is trained and scored is left alone, and a run
that was stopped (exit code 130) resumes, on this machine and as a job of a cluster.
"""

import hashlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.compare import runs, tables
from vidssl.compare.grid_tables import StepPrice, grid_tables, read_results
from vidssl.config import protocol, strict_yaml
from vidssl.config.grid import Cell, Grid, load_grid
from vidssl.config.recipe import Recipe
from vidssl.engine import resume, runfolder, speed
from vidssl.engine.logging import format_duration, print_line, shown_messages, terminal
from vidssl.engine.process import make_folder, num_cpus, signals_to, sole_process, write_text
from vidssl.errors import UsageError, counted
from vidssl.evaluate.score_file import score_card
from vidssl.tools.dry_run import part_sizes, step_seconds, two_steps
from vidssl.train.run import STOPPED
from vidssl.train.trial import random_states_kept
from vidssl.use.masks import sized

Commands = Sequence[Sequence[str]]
Runner = Callable[[Commands, Path, str], int]  # commands, file for what they print, name -> exit code


_under_way: set[subprocess.Popen[bytes]] = set()


def run_commands(commands: Commands, log: Path, environment: Mapping[str, str]) -> int:
    """Runs commands one after another up to the first that fails, and gives its exit code, or 0.

    Args:
        log: what they print is added to it.
    """
    with log.open("a", encoding="utf-8") as file:
        for command in commands:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            with subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            ) as process:
                _under_way.add(process)
                try:
                    code = process.wait()
                except BaseException:
                    process.kill()
                    raise
                finally:
                    _under_way.discard(process)
            if code:
                return code
    return 0


def on_this_machine(jobs: int, processes: int) -> Runner:
    """Starts commands here: each job has its share of CPU threads, and of the GPUs where there are enough.

    Args:
        jobs: at once.
        processes: of each.
    """
    devices: queue.SimpleQueue[str] = queue.SimpleQueue()
    shared = torch.cuda.device_count() // (jobs * processes)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if shared else []
    names = visible if len(visible) > 1 else [str(n) for n in range(torch.cuda.device_count())]
    for job in range(jobs):
        devices.put(",".join(names[job * processes : (job + 1) * processes]) if shared else "")

    def run(commands: Commands, log: Path, name: str) -> int:
        mine = devices.get()
        threads = str(max(1, num_cpus() // (jobs * processes)))
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        try:
            return run_commands(commands, log, environment | ({"CUDA_VISIBLE_DEVICES": mine} if mine else {}))
        finally:
            devices.put(mine)

    return run


class ClusterJob:
    """Commands as submitit sends them to a cluster; when a machine is taken back they are sent again."""

    def __init__(self, commands: Commands, log: Path) -> None:
        self.commands, self.log = commands, log

    def __call__(self) -> int:
        return run_commands(self.commands, self.log, {})

    def checkpoint(self) -> object:
        """What submitit is to send when the job is taken back: the same commands, which resume."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def through_submitit(cluster: str, parameters: Sequence[str], folder: Path) -> Runner:
    """Starts commands as jobs of submitit and waits for each.

    Args:
        cluster: "slurm" or "local".
        parameters: ``timeout_min=600``, as submitit names them.
        folder: for submitit's own files.

    Raises:
        UsageError: if the package is missing, or refuses a parameter.
    """
    if find_spec("submitit") is None:
        raise UsageError("--submit: needs the package submitit: pip install 'vidssl[slurm]'")
    import submitit

    given = {}
    for word in parameters:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--job {word}: write KEY=VALUE, such as timeout_min=600")
        given[key] = strict_yaml.plain(strict_yaml.parse(value, lambda line: "--job", key))
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**given)
    except (NameError, RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"--submit {cluster}: submitit: {error}") from error

    def run(commands: Commands, log: Path, name: str) -> int:
        executor.update_parameters(name=name)
        job = executor.submit(ClusterJob(commands, log.resolve()))
        try:
            return int(job.result())
        except submitit.core.utils.UncompletedJobError as error:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{str(error).splitlines()[0]}\n")
            return 1

    return run


TIMED = 5  # steps, whose median decides how many fit into a time
_FAILED = 1
_RUNS_ITSELF = "is running this grid. Let it end or stop it; or give this one a folder of its own (name=NAME)"


@dataclass(frozen=True)
class Execution:
    """How the runs of a grid are started.

    Attributes:
        jobs: runs at once.
        processes: of each run, by torchrun; 1 starts it without.
        submit: "slurm", or "local" for processes of submitit on this machine; None starts them here.
        parameters: of submitit, ``timeout_min=600``.
        evaluation: ``key=value`` for ``vidssl eval``.
    """

    jobs: int = 1
    processes: int = 1
    submit: str | None = None
    parameters: Sequence[str] = ()
    evaluation: Sequence[str] = ()


@dataclass(frozen=True)
class _Trial:
    """A cell with a seed: its recipe, the folder of its run, and the steps that it takes."""

    name: str
    recipe: Recipe = field(repr=False)
    folder: Path
    steps: int

    def trained(self) -> bool:
        newest = runfolder.RunFolder(self.folder).newest_checkpoint()
        return newest is not None and runfolder.RunFolder.step_of(newest) == self.steps

    def missing(self, protocols: Mapping[str, str]) -> list[str]:
        """Words of the protocols (word -> name) that it has no scores under."""
        scores = runfolder.RunFolder(self.folder).scores
        return [w for w, n in protocols.items() if not (scores / f"{n}-step-{self.steps:06d}.json").is_file()]


def run_grid(
    name: str,
    overrides: Sequence[str] = (),
    *,
    out: str = "runs",
    execution: Execution | None = None,
    tables_only: bool = False,
    console: Console | None = None,
) -> int:
    """Train and score every cell of a grid with every seed, then print the tables.

    Args:
        name: file or name of a grid.
        overrides: as for ``load_grid``.
        out: folder that the grid's own lies in.
        tables_only: train nothing; show what there is, which only ``name=`` chooses.

    Returns:
        Exit code: 0; 1 where a run failed; 130 where one was stopped.

    Raises:
        UsageError: for anything a user can mend, before the first run begins.
    """
    console, execution = console or terminal(), execution or Execution()
    grid = load_grid(name, overrides)
    runfolder.check_name(grid.spec.name)
    folder = Path(out) / grid.spec.name
    if tables_only:
        ignored = [word for word in overrides if not word.startswith("name=")]
        for name, default in vars(Execution()).items():
            if vars(execution)[name] != default:
                ignored.append({"evaluation": "--eval", "parameters": "--job"}.get(name, f"--{name}"))
        if ignored:
            raise UsageError(f"{', '.join(ignored)}: --tables shows what was trained and scored, as it was")
        return show_tables(folder, console)
    protocols = _check(grid, execution)
    runner = on_this_machine(execution.jobs, execution.processes)
    if execution.submit is not None:
        runner = through_submitit(execution.submit, execution.parameters, folder / "jobs")
    make_folder(folder, "name another with --out")
    say = partial(print_line, console)
    with sole_process(folder, say, _RUNS_ITSELF):
        with shown_messages(console):
            trials = _trials(grid, folder, say)
        code = _run_all(trials, protocols, execution, runner, folder, say)
        if code == STOPPED:
            say("Stopped. To go on, give the same command again.")
            return code
        return show_tables(folder, console) or code


def show_tables(folder: Path, console: Console) -> int:
    """Prints a grid's tables and keeps them as ``results.md`` and ``scores.csv``; exit code 0.

    Raises:
        UsageError: if the folder is no grid's, or no run of it has scores.
    """
    results = read_results(folder)
    grids = grid_tables(results)
    for grid in grids:
        console.print(tables.drawn(grid))
    title = f"# {results.question}\n\n" if results.question else ""
    write_text(folder / "results.md", title + "\n".join(map(tables.markdown, grids)))
    write_text(folder / "scores.csv", runs.csv_text(results.files))
    print_line(console, f"Tables: {folder / 'results.md'}")
    print_line(console, f"Scores: {folder / 'scores.csv'}")
    print_line(console, f"Next: vidssl report {folder} -o report.html")
    return 0


def _check(grid: Grid, execution: Execution) -> dict[str, str]:
    """Refuses what would fail hours later; word -> name of each protocol."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("grid starts torchrun itself (--processes N): start it without")
    if execution.parameters and execution.submit is None:
        raise UsageError("--job is for jobs that submitit starts: add --submit slurm")
    protocols: dict[str, str] = {}
    cards: dict[str, tuple[str, dict[str, str]]] = {}
    for cell in grid.cells:
        recipe = _priced(cell, grid, 0, Path("runs"))
        build.check(recipe)
        build.check_ready(recipe, with_init=True)
        for word in grid.spec.protocols:
            if protocol.measures_tokenizers(word):
                raise UsageError(f"{word}: measures tokenizers; a grid scores networks")
            if protocol.measures_masks(word):
                if execution.processes > 1:
                    raise UsageError(f"{word}: masks are measured by one process: leave --processes out")
                masks = sized(protocol.load_mask_protocol(word, execution.evaluation), recipe)
                build.check_mask_protocol(masks)
                protocols[word] = masks.name
                continue
            given = [w for w in execution.evaluation if protocol.finetunes(word) or not w.startswith("run.")]
            loaded = protocol.load_protocol(word, given, recipe)
            if loaded.data is None:
                raise UsageError(
                    f"{word}: neither it nor cell {cell.name} names labelled videos: add them with "
                    "--eval 'data.train={...}' --eval 'data.test={...}' --eval 'data.views={...}'"
                )
            build.check_any_protocol(loaded)
            if isinstance(loaded, protocol.FinetuneProtocol):  # a key of one network is none of another
                of_network = {
                    f"backbone.{key}": strict_yaml.plain(node) for key, node in loaded.backbone.items()
                }
                with speed.on_meta():
                    build.backbone(cell.recipe(of_network), with_init=False)
            protocols[word] = loaded.name
            card = score_card(resolved_text(loaded), {})
            name, first = cards.setdefault(word, (cell.name, card))
            if keys := runs.differing(first, card, own_views=True):
                raise UsageError(
                    f"{word}: cells {name} and {cell.name} would be scored in two ways, and not be compared:"
                    f"{runs.key_lines(keys, first, card)}\nGive all the same: 'set' in the grid, or --eval"
                )
    return protocols


# how long each cell trains


def _priced(cell: Cell, grid: Grid, seed: int, folder: Path, steps: int | None = None) -> Recipe:
    """A cell's recipe with a seed; where ``steps`` is None, of the length that is known beforehand."""
    name = f"{cell.name}-seed-{seed}"
    values: dict[str, object] = {"name": name, "seed": seed, "run.out": str(folder)}
    equal = grid.spec.equal
    if steps is not None:
        values |= cell.of_length("steps", steps)
    elif equal is not None and equal.measure == "steps":
        values |= cell.of_length("steps", int(equal.amount))
    elif equal is not None and equal.measure == "epochs":
        values |= cell.of_length("epochs", equal.amount)
    return cell.recipe(values)


def _trials(grid: Grid, folder: Path, say: Callable[[str], None]) -> list[_Trial]:
    """All runs of a grid, cell by cell for the first seed, then for the next; described in ``grid.json``.

    Raises:
        UsageError: if runs that are there already were begun with other recipes.
    """
    record = folder / "grid.json"
    known = json.loads(record.read_text(encoding="utf-8"))["prices"] if record.is_file() else {}
    prices: dict[str, StepPrice] = {}
    for cell in grid.cells:
        recipe = _priced(cell, grid, grid.spec.seeds[0], folder)
        key = hashlib.sha256(resolved_text(recipe).encode()).hexdigest()
        old = known.get(cell.name, {})
        if old.get("recipe_sha256") != key:
            say(f"{cell.name}: measuring what a step takes")
            old = asdict(_price(recipe, key))
        price = StepPrice(**old)
        prices[cell.name] = replace(price, steps=_steps(grid, price))
    trials = []
    for seed in grid.spec.seeds:
        for cell in grid.cells:
            free = grid.spec.equal is None or grid.spec.equal.measure == "epochs"
            steps = prices[cell.name].steps
            recipe = _priced(cell, grid, seed, folder, None if free else steps)
            trials.append(_Trial(recipe.name, recipe, folder / recipe.name, steps))
    _check_same(trials)
    make_folder(folder / "recipes")
    make_folder(folder / "logs")
    for trial in trials:
        write_text(folder / "recipes" / f"{trial.name}.yaml", resolved_text(trial.recipe))
    equal = grid.spec.equal
    described = {
        "format": "vidssl grid 1",
        "name": grid.spec.name,
        "question": grid.spec.question,
        "equal": None if equal is None else equal.given,
        "labels": grid.spec.labels,
        "axes": grid.axes,
        "seeds": grid.spec.seeds,
        "cells": {cell.name: dict(cell.levels) for cell in grid.cells},
        "prices": {name: asdict(price) for name, price in prices.items()},
    }
    write_text(record, json.dumps(described, indent=2) + "\n")
    return trials


def _price(recipe: Recipe, key: str) -> StepPrice:
    """What a step of a recipe takes on this machine, in this process."""
    with random_states_kept(), speed.deterministic(recipe.run.deterministic):
        streams = build.streams(recipe)
        torch.manual_seed(recipe.seed)
        objective = build.objective(recipe, say=logging.getLogger(__name__).debug)
        plan = build.schedule(recipe).plan({name: len(s) / s.batch_size for name, s in streams.items()})
        parts = part_sizes(objective)
        cost = two_steps(recipe, objective, streams, plan, timed=TIMED)
    return StepPrice(
        recipe_sha256=key,
        flops=cost.flops,
        seconds=step_seconds(cost, recipe.run.workers),
        parameters=sum(part.parameters for part in parts if part.fate == "trained"),
        samples=sum(stream.batch_size for stream in streams.values()),
        steps=plan.total_steps,
    )


def _steps(grid: Grid, price: StepPrice) -> int:
    """Optimizer steps that a cell takes.

    Raises:
        UsageError: if not one fits.
    """
    equal = grid.spec.equal
    if equal is None or equal.measure in ("epochs", "steps"):
        return price.steps
    one = price.flops if equal.measure == "flops" else price.seconds
    steps = int(equal.amount / one)
    if steps < 1:
        raise UsageError(f"equal.{equal.measure}: {equal.amount:g} is less than a step takes ({one:.3g})")
    return steps


def _check_same(trials: Sequence[_Trial]) -> None:
    for trial in trials:
        path = trial.folder / "recipe.yaml"
        if path.is_file():
            changed = resume.changed_keys(path.read_text(encoding="utf-8"), resolved_text(trial.recipe))
            if changed:
                raise UsageError(
                    f"{trial.folder} was begun with another grid ({', '.join(changed)}): give this one "
                    "another name (name=NAME) or remove that folder"
                )


# running


def _run_all(
    trials: Sequence[_Trial],
    protocols: Mapping[str, str],
    execution: Execution,
    runner: Runner,
    folder: Path,
    say: Callable[[str], None],
) -> int:
    todo = [trial for trial in trials if not trial.trained() or trial.missing(protocols)]
    if len(todo) < len(trials):
        say(f"{len(trials) - len(todo)} of {counted(len(trials), 'run')} trained and scored before")
    done, lock, stop = len(trials) - len(todo), threading.Lock(), threading.Event()

    def one(trial: _Trial) -> int:
        nonlocal done
        if stop.is_set():
            return STOPPED
        started, log = time.monotonic(), folder / "logs" / f"{trial.name}.txt"
        work = "being scored" if trial.trained() else f"training, vidssl watch {trial.folder} draws it"
        with lock:
            say(f"{trial.name}: {work}; log: {log}")
        code = _run_one(trial, protocols, execution, runner, log)
        with lock:
            done += code == 0
            took = format_duration(time.monotonic() - started)
            if code == 0:
                say(f"{done} of {len(trials)}: {trial.name} trained and scored in {took}")
            elif code == STOPPED or stop.is_set():
                stop.set()
            else:
                say(f"FAILED: {trial.name}: {_last_line(log)} ({log})")
        return code

    codes: list[int] = []
    with _ends(stop):
        if execution.jobs == 1:
            codes += map(one, todo)
        else:
            with ThreadPoolExecutor(execution.jobs) as pool:
                codes += pool.map(one, todo)
    if STOPPED in codes or stop.is_set():
        return STOPPED
    return _FAILED if any(codes) else 0


@contextmanager
def _ends(stop: threading.Event) -> Iterator[None]:
    """After a signal no further run begins, and those that are under way save; a second Ctrl-C kills them."""

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if number != signal.SIGINT:  # Ctrl-C reaches each process by itself
            for process in tuple(_under_way):
                process.terminate()

    with signals_to(end):
        try:
            yield
        except KeyboardInterrupt:
            stop.set()


def _run_one(
    trial: _Trial, protocols: Mapping[str, str], execution: Execution, runner: Runner, log: Path
) -> int:
    recipe = log.parent.parent / "recipes" / f"{trial.name}.yaml"
    words = [["train", str(recipe), "run.resume=auto"]] if not trial.trained() else []
    missing = trial.missing(protocols)
    if missing:
        asked = [word for name in missing for word in ("--protocol", name)]
        words.append(["eval", str(trial.folder), *asked, *execution.evaluation])
    launcher = ["-m", "vidssl"]
    if execution.processes > 1:
        count = f"--nproc-per-node={execution.processes}"
        launcher = ["-m", "torch.distributed.run", "--standalone", count, *launcher]
    return runner([[sys.executable, *launcher, *each] for each in words], log, trial.name)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
