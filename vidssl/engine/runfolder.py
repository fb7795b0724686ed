"""A run's folder: recipe, environment, metrics, checkpoints and scores of one training run.

runs/bevt/
  recipe.yaml        the resolved recipe
  environment.json   when, by which command, on what: versions, git state, devices
  metrics.jsonl      one line a log step
  events.jsonl       one line for each thing that was said on the way: a skipped step, a sign of collapse
  code/              copies of the recipe's own parts (type: my_file.py:MyClass), and of modules beside them
  classes.json       of a run that learned classes: their names, and how it was tested
  videos.json.gz     the files that it is trained and tested on, with their sizes
  checkpoints/       step-000300.safetensors ...
  resume/            step-000300.safetensors: the rest of the run's state, for a resume
  resumed.jsonl      one line each time it resumed
  captures/          steps that could not be taken, for 'vidssl replay'
  scores/            what 'vidssl eval' found
  features/          vectors it was found from, kept for the next probe; safe to remove
"""

import difflib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

import torch

from vidssl.config.files import kind_of, read
from vidssl.engine.facts import Row, parsed
from vidssl.engine.process import append_line, remove, write_text
from vidssl.errors import UsageError
from vidssl.interfaces.pretrained import HUB, WEIGHTS, fetched

PACKAGES = (
    "vidssl", "torch", "torchvision", "timm", "einops", "numpy", "scikit-learn",
    "av", "safetensors", "faiss-gpu", "faiss-cpu", "pytorchvideo",
)  # fmt: skip


class RunFolder:
    """Paths and writers of one run. Everything but the growing metrics file is written in one piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.resume = path / "resume"
        self.scores = path / "scores"
        self.captures = path / "captures"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.videos = path / "videos.json.gz"
        self.classes = path / "classes.json"

    def log(self, record: Mapping[str, float]) -> None:
        """Append one line to the metrics."""
        append_line(self.metrics, json.dumps(dict(record)))

    def note(self, step: int, kind: str, text: str) -> None:
        """Append one line to the events: what was said after ``step`` steps, and of which kind it is."""
        append_line(self.events, json.dumps({"step": step, "kind": kind, "text": text}))

    def video_lists(self) -> list[Path]:
        """``videos`` and, of a run that was resumed on other ones, the lists before it."""
        return sorted(self.path.glob("videos*.json.gz"))

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.checkpoints / f"step-{step:06d}.safetensors"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step, or None before the first was written.

        Of a run that was pushed and pulled, its only one.
        """
        found = _by_step(self.checkpoints)
        pushed = self.path / WEIGHTS
        return found[max(found)] if found else pushed if pushed.is_file() else None

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """The run that a checkpoint lies in, if it lies in one."""
        return cls(checkpoint.parent if checkpoint.name == WEIGHTS else checkpoint.parent.parent)

    def state_path(self, step: int) -> Path:
        """Where the resume state of a step lies."""
        return self.resume / f"step-{step:06d}.safetensors"

    def states(self) -> list[Path]:
        """The resume states, that of the highest step last."""
        return [path for _, path in sorted(_by_step(self.resume).items())]

    @staticmethod
    def step_of(state: Path) -> int:
        """The step of a resume state or checkpoint."""
        return int(state.stem.removeprefix("step-"))

    def prune(self, keep: int, every: int | None) -> None:
        """Leaves the newest ``keep`` resume states, and of older weights those of multiples of ``every``.

        Args:
            every: in steps; None leaves all weights.
        """
        for path in self.states()[:-keep]:
            remove(path)
        if every is not None:
            for step, path in sorted(_by_step(self.checkpoints).items())[:-keep]:
                if step % every:
                    remove(path)

    def forget_after(self, step: int) -> None:
        """Removes all that a run resumed from ``step`` will write again: metrics, checkpoints, states.

        Also what a process that was killed left half written.
        """
        for folder in (self.checkpoints, self.resume):
            for number, path in _by_step(folder).items():
                if number > step:
                    remove(path)
        for folder in (self.path, self.checkpoints, self.resume, self.captures):  # elsewhere others may write
            for path in folder.glob(".*.tmp"):
                remove(path)
        for log in (self.metrics, self.events):
            if log.exists():
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                kept = [line for line in lines if (done := _step_of(line)) is not None and done <= step]
                write_text(log, "".join(f"{line}\n" for line in kept))

    def began_with_threads(self) -> int | None:
        """Threads that the run's first step was computed with; None if its environment was not noted."""
        try:
            environment = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
            return int(environment["torch_threads"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove_unused(self) -> None:
        """Removes the folder of a run that ended before anything came of it."""
        made = (self.metrics, self.events, *self.captures.glob("*"), *_by_step(self.checkpoints).values())
        if not any(path.exists() for path in made):
            shutil.rmtree(self.path, ignore_errors=True)

    def note_resume(self, step: int) -> None:
        """Notes the environment that the run resumes in, beside its first one."""
        append_line(self.path / "resumed.jsonl", json.dumps({"step": step, **describe_environment()}))


def _by_step(folder: Path) -> dict[int, Path]:
    return {
        int(match[1]): path
        for path in folder.glob("step-*.safetensors")
        if (match := re.fullmatch(r"step-(\d+)\.safetensors", path.name))
    }


def _step_of(line: str) -> int | None:
    """The step of a line of a log; None for one that is cut, as the last one of a killed process may be."""
    try:
        return Row(parsed(line)).whole("step")
    except ValueError:
        return None


def create_run(out: Path, name: str, recipe: str) -> RunFolder:
    """Make the folder ``out/name`` (where taken ``name-2``, ``name-3`` ...) and describe the run in it.

    Raises:
        UsageError: if no folder can be made there, or the name leads out of ``out``.
    """
    check_name(name)
    folder = RunFolder(_new_folder(out, name))
    folder.checkpoints.mkdir()
    folder.resume.mkdir()
    folder.scores.mkdir()
    write_text(folder.path / "recipe.yaml", recipe)
    write_text(folder.path / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
    return folder


def check_name(name: str, *, folders: bool = True) -> None:
    """Refuse a name whose files would lie outside their folder, or that cannot be printed.

    Args:
        folders: whether ``exp/bevt`` is allowed, which is a run in a folder below ``run.out``.

    Raises:
        UsageError: with the name and what it may be.
    """
    path = PurePosixPath(name)
    if not name.isprintable():
        raise UsageError(f"name: {name!r} holds control characters, which terminals act on: leave them out")
    if path.is_absolute() or ".." in path.parts or not path.parts or (len(path.parts) > 1 and not folders):
        where = (
            "below run.out: run.out=FOLDER puts it elsewhere" if folders else "of a file, without a folder"
        )
        raise UsageError(f"name: {name!r} leads out of its folder; it is a name {where}")


def _new_folder(out: Path, name: str) -> Path:
    attempt = 1
    while True:
        path = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise UsageError(
                f"cannot make the run folder {path}: {error.strerror or error}; "
                "name a folder you can write with run.out=FOLDER"
            ) from error
        if attempt > 10_000:
            raise UsageError(f"{out}: ten thousand runs called {name!r}; choose another name or run.out")


def newest_run(out: Path) -> RunFolder:
    """The run below ``out`` that was started last and has a checkpoint.

    Raises:
        UsageError: if there is none.
    """
    runs = [run for run in runs_below(out) if run.newest_checkpoint() is not None]
    if not runs:
        raise UsageError(
            f"no run with a checkpoint below {out.resolve()}: train one (vidssl train recipes/bevt.yaml) "
            "or name a run folder or checkpoint"
        )
    return runs[-1]


def last_begun(out: Path) -> RunFolder:
    """The run below ``out`` that was started last, with a checkpoint or not.

    Raises:
        UsageError: if there is none.
    """
    runs = runs_below(out)
    if not runs:
        raise UsageError(f"no run below {out.resolve()}: name a run's folder")
    return runs[-1]


def named_run(word: str) -> RunFolder:
    """The run whose folder a word names.

    Raises:
        UsageError: if it names none, with the nearest run and a list of them.
    """
    path = named_path(word)
    if not word or not (path / "recipe.yaml").is_file():
        raise no_run(word)
    return RunFolder(path)


def named_path(word: str) -> Path:
    """The path that a word names; a run on the hub (``hf:OWNER/NAME``) is put into ``runs/hf`` first."""
    return fetched(word, Path("runs") / "hf") if word.startswith(HUB) else Path(word)


def no_run(word: str, out: Path = Path("runs")) -> UsageError:
    """The error about a word that names no run or file, with the nearest run and a list of them."""
    path, what = Path(word), "no such run or file"
    if word and path.is_dir():
        what = "a folder, but not that of a run: there is no recipe.yaml in it"
    elif _is_recipe(word):
        what = (
            f"a recipe, not a run: it has no weights. Train it: vidssl train {word}; or score its network "
            f"before training: vidssl eval untrained:{word} --protocol knn"
        )
    elif path.is_file():
        what = "not the folder of a run, and no file of the kind that is wanted here"
    runs = {run.path.name: str(run.path) for run in reversed(runs_below(out))}
    close = [name for name in runs if Path(runs[name]) in path.parents]
    close = close or difflib.get_close_matches(path.name, runs, n=1)
    listed = ", ".join(list(runs.values())[:8]) + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
    hint = f"Did you mean '{runs[close[0]]}'? " if close else ""
    return UsageError(f"{word or repr(word)}: {what}. {hint}Runs: {listed or f'none below {out.resolve()}'}")


def _is_recipe(word: str) -> bool:
    try:
        return kind_of(read("recipes", word)[0]) == "recipes"
    except UsageError:
        return False


def runs_below(out: Path) -> list[RunFolder]:
    """The runs below a folder, that which was started last at the end.

    A name such as ``exp1/second`` puts a run some folders down. What lies inside a run is not looked at.
    """
    started = []
    for folder, folders, names in os.walk(out, followlinks=True):
        if "environment.json" in names:
            folders.clear()
            started.append((_started(Path(folder) / "environment.json"), folder))
    return [RunFolder(Path(folder)) for _, folder in sorted(started)]


def _started(environment: Path) -> float:
    """Unix time of a run's start, 0 if the file is damaged."""
    try:
        return Row(parsed(environment.read_bytes())).real("started_unix")
    except (OSError, ValueError):
        return 0.0


def describe_environment() -> dict[str, object]:
    """Versions, machine, command and git state: what is needed to make a run again."""
    now = time.time()
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now)),
        "started_unix": now,
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "git": git_state(Path.cwd()),
    }


@cache  # looking through the metadata of all packages takes longer than a step
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, object] | None:
    """Commit of the checkout that ``folder`` lies in and whether it was changed; None outside one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed_files": changed.splitlines()}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
