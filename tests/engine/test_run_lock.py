"""One process in a run's folder; a full disk or a lost folder ends a run with a word."""

import errno
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from rich.console import Console
from stumbling import RECIPE
from torch import nn

from vidssl.config.recipe import Recipe, load_recipe
from vidssl.engine import process as lock
from vidssl.engine.checkpoint import read_checkpoint, save_checkpoint
from vidssl.engine.process import append_line, remove, sole_process, write_atomically, write_text
from vidssl.engine.runfolder import RunFolder, create_run
from vidssl.errors import UsageError
from vidssl.interfaces import LossOutput, Objective
from vidssl.train.run import train_recipe

HOLDER = """\
import os, sys, time
from pathlib import Path
from vidssl.engine.process import sole_process
with sole_process(Path(sys.argv[1]), print):
    child = os.fork() if sys.argv[2] == "fork" else -1
    if child != 0:
        print("held", os.getpid(), flush=True)
    time.sleep(60)
"""


class Toy(Objective):
    """A network of some size."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.net = nn.Linear(size, size)

    def forward(self, batch, progress, generator):
        return LossOutput(torch.zeros(()), {})

    def encoder(self):
        return self.net


def silent(text: str) -> None:
    raise AssertionError(text)


# the lock


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with sole_process(tmp_path, silent), pytest.raises(UsageError) as error, sole_process(tmp_path, silent):
        pass
    message = str(error.value)
    assert f"{tmp_path}: process {os.getpid()} on {platform.node()} (since " in message
    assert len(message.splitlines()) == 1


def test_the_folder_is_free_again_afterwards_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), sole_process(tmp_path, silent):
        raise RuntimeError
    with sole_process(tmp_path, silent):
        pass
    with sole_process(tmp_path, silent), sole_process(make(tmp_path / "other"), silent):
        pass  # two runs of one process
    assert not lock._held


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def holder(folder: Path, kind: str) -> "tuple[subprocess.Popen[str], int]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), kind],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alone", "fork"])
def test_the_lock_of_a_killed_process_is_free_whatever_its_workers_do(tmp_path: Path, kind: str) -> None:
    process, pid = holder(tmp_path, kind)
    try:
        with pytest.raises(UsageError, match=f"process {pid} on "), sole_process(tmp_path, silent):
            pass
        os.kill(pid, signal.SIGKILL)
        process.wait(timeout=30)
        with sole_process(tmp_path, silent):
            pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """As data workers are: it lives on while the parent lets go."""
    reading, writing = os.pipe()
    with sole_process(tmp_path, silent):
        child = os.fork()
        if child == 0:
            os.write(writing, b"!")
            time.sleep(30)
            os._exit(0)
        os.read(reading, 1)
    try:
        with sole_process(tmp_path, silent):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_file_system_without_locks_is_said_and_trained_on(tmp_path: Path, monkeypatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    said: list[str] = []
    with sole_process(tmp_path, said.append):
        pass
    assert said == [
        f"{tmp_path}: its file system keeps no locks (No locks available). Take care that no second process "
        "trains in this folder."
    ]
    monkeypatch.setattr(lock, "fcntl", None)  # Windows
    with sole_process(tmp_path, said.append):
        pass
    assert len(said) == 2


def test_one_that_has_not_signed_yet_is_another_process(tmp_path: Path) -> None:
    with sole_process(tmp_path, silent):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(UsageError, match="another process is training"), sole_process(tmp_path, silent):
            pass


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"cannot write to .*nowhere"),
        sole_process(tmp_path / "nowhere", silent),
    ):
        pass


# a full disk, a lost folder


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond so many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with one checkpoint."""
    folder = create_run(tmp_path, "run", "name: run\n")
    save_checkpoint(folder.checkpoint_path(1), Toy(), step=1, recipe="")
    return folder


def test_a_disk_that_fills_under_a_checkpoint_leaves_the_one_before(run: RunFolder) -> None:
    with room_for(4000), pytest.raises(UsageError, match=r"cannot write .*step-000002") as error:
        save_checkpoint(run.checkpoint_path(2), Toy(), step=2, recipe="")
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000001.safetensors"]
    assert read_checkpoint(run.checkpoint_path(1)).step == 1


def test_a_disk_that_fills_under_a_checkpoint_leaves_an_older_one_of_its_name(run: RunFolder) -> None:
    before = run.checkpoint_path(1).read_bytes()
    with room_for(4000), pytest.raises(UsageError, match="what stood there before is untouched"):
        save_checkpoint(run.checkpoint_path(1), Toy(), step=1, recipe="")
    assert run.checkpoint_path(1).read_bytes() == before


def test_a_disk_that_fills_under_the_log_is_named(run: RunFolder) -> None:
    run.log({"step": 1})
    with room_for(5), pytest.raises(UsageError, match=r"cannot write .*metrics\.jsonl"):
        run.log({"step": 2})


def test_a_lost_folder_is_named_whatever_is_written(run: RunFolder, monkeypatch) -> None:
    shutil.rmtree(run.path)
    for write in (
        lambda: save_checkpoint(run.checkpoint_path(2), Toy(), step=2, recipe=""),
        lambda: run.log({"step": 2}),
        lambda: run.note(2, "skipped", "a word"),
        lambda: write_text(run.path / "recipe.yaml", "name: run\n"),
    ):
        with pytest.raises(UsageError, match="is gone; it was removed or renamed, or its disk is no longer"):
            write()
    assert not run.path.exists()
    run.prune(1, 1)  # nothing is there to remove


def test_what_killed_processes_left_half_written_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "[1].txt"
    left, written, other = (tmp_path / name for name in (".[1].txt.1.tmp", ".[1].txt.2.tmp", ".1.txt.1.tmp"))
    for file in (left, written, other):
        file.write_text("half")
    with written.open() as held:
        assert lock.try_lock(held.fileno())
        write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, written, other])
    assert path.read_text() == "whole"


def test_a_temporary_file_is_locked_while_it_is_written(tmp_path: Path) -> None:
    found = []

    def write(temporary: Path) -> None:
        temporary.write_text("x")
        found.append(lock.remove_unlocked(temporary))

    write_atomically(tmp_path / "a", write)
    assert found == [False]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_went_away_hides_no_error_behind_another(run: RunFolder, monkeypatch) -> None:
    def lost(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "unlink", lost)
    with room_for(4000), pytest.raises(UsageError, match=r"cannot write .*step-000002"):
        save_checkpoint(run.checkpoint_path(2), Toy(), step=2, recipe="")
    with pytest.raises(UsageError, match=r"cannot remove .*Input/output error"):
        remove(run.checkpoint_path(1))


def steps_until(monkeypatch: pytest.MonkeyPatch, step: int, happens: Callable[[RunFolder], None]) -> None:
    """Lets something happen to a run's folder, once, before the log line of a step."""
    log, due = RunFolder.log, [step]

    def logged(folder: RunFolder, record: Mapping[str, float]) -> None:
        if [record["step"]] == due:
            happens(folder)
            due.clear()
        log(folder, record)

    monkeypatch.setattr(RunFolder, "log", logged)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Six steps, saved after every second."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(RECIPE)
    return load_recipe("a.yaml", ["objective.bad_steps=[]", "run.checkpoint_every_steps=2"])


def test_a_run_on_a_disk_that_fills_ends_with_its_last_checkpoint_whole(recipe, monkeypatch) -> None:
    with ExitStack() as disk:
        steps_until(monkeypatch, 4, lambda folder: disk.enter_context(room_for(8000)))
        with pytest.raises(UsageError, match=r"cannot write .*step-000004\.safetensors: .*untouched"):
            train_recipe(recipe, Console(quiet=True))
    run = RunFolder(Path("runs/stumbling"))
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000002.safetensors"]
    assert [path.name for path in run.states()] == ["step-000002.safetensors"]
    _, result = train_recipe(recipe, Console(quiet=True), resume=run.path)  # there is room again
    assert result.steps == 6


def test_a_run_whose_folder_is_lost_ends_with_a_word(recipe, monkeypatch) -> None:
    steps_until(monkeypatch, 4, lambda folder: shutil.rmtree(folder.path))
    with pytest.raises(UsageError, match=r"metrics\.jsonl: runs/stumbling is gone"):
        train_recipe(recipe, Console(quiet=True))
    assert not Path("runs/stumbling").exists()


def test_what_was_said_after_the_step_that_a_run_goes_on_from_is_forgotten(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.note(step, "collapse", f"word {step}")
    append_line(run.events, '{"step": 3, "ki')
    run.captures.mkdir()
    (run.captures / ".step-000003.safetensors.7.tmp").write_bytes(b"half")
    (run.captures / "step-000003.safetensors").write_bytes(b"whole")
    (run.scores / ".linear.json.7.tmp").write_bytes(b"an evaluation that is writing")
    run.forget_after(2)
    assert [json.loads(line)["text"] for line in run.events.read_text().splitlines()] == ["word 1", "word 2"]
    assert [path.name for path in run.captures.iterdir()] == ["step-000003.safetensors"]
    assert len(list(run.scores.iterdir())) == 1
