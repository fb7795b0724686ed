"""Work on many files in several processes, none of which a bad file can take down or hold up for ever."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from vidssl.errors import counted

Task = TypeVar("Task")
Made = TypeVar("Made")

_DEFECT = 5  # tasks that fail, and none is done: the job itself is broken
_WATCH_SECONDS = 1.0  # how soon a process notices that its parent was killed
# a fork has the job and its libraries at once
_context: ForkContext | SpawnContext = (
    multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")
)


@dataclass(frozen=True)
class Lost:
    """A task without a result, and what became of the process that had it, in words.

    ``failed``: it raised an error that nobody foresaw, whose traceback is printed.
    """

    reason: str
    failed: bool = False


def work(
    tasks: Iterable[Task], job: Callable[[Task], Made], *, processes: int, patience_seconds: float
) -> Iterator[tuple[Task, Made | Lost]]:
    """Does a job for every task, each in one of several processes; results come as they are ready.

    A process that dies or raises an error, or takes longer than it may, loses only the task that it had;
    another takes its place.

    Args:
        job: a function that can be pickled.
        processes: at least 1.
        patience_seconds: for one task.

    Raises:
        RuntimeError: if the job raises an error for each of the first tasks: then no file is to blame.
    """
    waiting = iter(tasks)
    crew: list[_Worker[Task, Made]] = []
    failed, worked = 0, False
    try:
        for task in waiting:
            crew.append(_Worker(job, task))
            if len(crew) == processes:
                break
        while crew:
            for worker in _ready(crew, patience_seconds):
                result = worker.result(patience_seconds)
                failed += isinstance(result, Lost) and result.failed
                worked = worked or not isinstance(result, Lost)
                if failed >= _DEFECT and not worked:
                    raise RuntimeError(
                        f"{job} failed at all of {counted(failed, 'file')}; tracebacks stand above"
                    )
                yield worker.task, result
                crew.remove(worker)
                for task in waiting:
                    crew.append(worker.go_on(task))
                    break
                else:
                    worker.dismiss()
    finally:
        for worker in crew:
            worker.dismiss()


class _Worker(Generic[Task, Made]):
    """A process with the task that it is at."""

    def __init__(self, job: Callable[[Task], Made], task: Task) -> None:
        self.job = job
        self.connection, other = _context.Pipe()
        self.process: BaseProcess = _context.Process(target=_serve, args=(other, job), daemon=True)
        self.process.start()
        other.close()
        self._begin(task)

    def _begin(self, task: Task) -> None:
        self.task = task
        self.started = time.monotonic()
        with suppress(OSError):  # a process that is gone is found out when its result is asked for
            self.connection.send(task)

    def result(self, patience_seconds: float) -> Made | Lost:
        """Of a task that is done, or whose process died or is late."""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):  # it died
            pass
        if self.process.is_alive() and time.monotonic() - self.started > patience_seconds:
            self.process.kill()
            self.process.join()
            return Lost(f"it took more than {patience_seconds:.0f} seconds")
        self.process.join(_WATCH_SECONDS)
        if self.process.exitcode == 1:
            return Lost("an error that nobody foresaw; its traceback stands above", failed=True)
        return Lost(f"the process that had it ended ({_how_ended(self.process.exitcode)})")

    def go_on(self, task: Task) -> _Worker[Task, Made]:
        """This worker at its next task, or one in its place."""
        if not self.process.is_alive():
            self.dismiss()
            return _Worker(self.job, task)
        self._begin(task)
        return self

    def dismiss(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _ready(crew: list[_Worker[Task, Made]], patience_seconds: float) -> list[_Worker[Task, Made]]:
    """Those that are done, died or are late; waits for the first."""
    left = min(worker.started for worker in crew) + patience_seconds - time.monotonic()
    wait(
        [
            *(worker.connection for worker in crew),
            *(worker.process.sentinel for worker in crew),
        ],
        max(left, 0) + 0.01,
    )
    now = time.monotonic()
    return [
        worker
        for worker in crew
        if worker.connection.poll()
        or not worker.process.is_alive()
        or now - worker.started > patience_seconds
    ]


def _serve(connection: Connection, job: Callable[[Task], Made]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        try:
            if not connection.poll(_WATCH_SECONDS):
                continue
            task = connection.recv()
        except (EOFError, OSError):  # the parent is gone
            return
        result = job(task)
        with suppress(OSError):
            connection.send(result)


def _how_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
