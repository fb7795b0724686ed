"""Work in several processes that a bad task cannot take down or hold up."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from vidssl.data import workers
from vidssl.data.workers import Lost, work
from vidssl.engine.process import try_lock


def twice(task: int) -> int:
    """What the crew does here: doubles a number; -1 dies, -2 hangs, -3 is a defect."""
    if task == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == -2:
        time.sleep(60)
    if task == -3:
        raise TypeError("a defect")
    return 2 * task


@pytest.mark.parametrize("processes", [1, 3])
def test_a_crew_does_every_task(processes: int) -> None:
    results = dict(work(iter(range(10)), twice, processes=processes, patience_seconds=20))
    assert results == {task: 2 * task for task in range(10)}


def test_a_process_that_dies_or_hangs_loses_its_task_only() -> None:
    results = dict(work([0, -1, 1, -2, 2, 3], twice, processes=2, patience_seconds=4))
    assert {task: result for task, result in results.items() if task >= 0} == {0: 0, 1: 2, 2: 4, 3: 6}
    assert results[-1] == Lost("the process that had it ended (SIGKILL)")
    assert isinstance(results[-2], Lost)


def test_an_error_loses_one_task_and_one_that_all_tasks_meet_ends_the_work(capfd) -> None:
    results = dict(work([0, -3, 1], twice, processes=1, patience_seconds=20))
    assert (results[0], results[1]) == (0, 2)
    assert results[-3] == Lost("an error that nobody foresaw; its traceback stands above", failed=True)
    assert "a defect" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="failed at all of 5 files"):
        list(work([-3] * 9, twice, processes=1, patience_seconds=20))


def test_folders_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    killed, foreign = tmp_path / "vidssl-w-a", tmp_path / "vidssl-w-b"
    for folder in (killed, foreign):
        (folder / "pymp-x").mkdir(parents=True)
    (killed / "lock").touch()
    workers.take_folder()
    own = Path(multiprocessing.current_process()._config["tempdir"])
    assert sorted(tmp_path.iterdir()) == sorted([foreign, own])
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    workers.take_folder()  # as another process would
    assert own.is_dir()


def test_the_folder_of_a_killed_torchrun_goes_at_the_next_start_under_one(tmp_path: Path) -> None:
    folders = [tmp_path / f"torchelastic_{name}" for name in ("own", "living", "killed", "foreign")]
    own, living, killed, foreign = folders
    for folder in folders:
        (folder / "run" / "attempt_0" / "0").mkdir(parents=True)
    (killed / "lock").touch()
    (living / "lock").touch()
    started = {
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_ERROR_FILE": str(own / "run" / "attempt_0" / "0" / "error.json"),
        "TMPDIR": str(tmp_path),
    }
    code = "from vidssl.engine import process; process.end_with_launcher(); input()"
    with (living / "lock").open() as held:
        assert try_lock(held.fileno())
        begun = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | started, stdin=subprocess.PIPE
        )
        while killed.exists() and begun.poll() is None:
            time.sleep(0.05)
        with (own / "lock").open() as lock:
            assert not try_lock(lock.fileno())
        begun.communicate(b"\n")
    assert sorted(tmp_path.iterdir()) == sorted([own, living, foreign])
