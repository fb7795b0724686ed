"""Data workers that die, noticed where their batch is asked for and nowhere else.

torch's DataLoader raises for a dead worker in its handler of SIGCHLD, that is wherever the process is at that
moment: in the middle of a step, or while a checkpoint is written. Here that handler is held back.

``work`` goes over many files in several processes; no bad file can take one down or hold it up for ever.
"""

import multiprocessing
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType, TracebackType
from typing import Generic, TypeVar

from vidssl.engine.process import can_lock, hold, remove_left
from vidssl.errors import UsageError, counted

T = TypeVar("T")
_GRACE_SECONDS = 1.0  # from a broken connection to the worker's end, and from a kill to that


class WorkerDied(UsageError):
    """A process that decodes has ended by itself or was killed; the message says how."""


class _Died(BaseException):  # not an Exception: the DataLoader catches those, to look for the dead by itself
    """How a worker died; raised by the handler of SIGCHLD too."""


class Workers:
    """The processes of one loader, forgotten when their context is left: the loader must have ended by then.

    Args:
        processes: started already, none of them if the loader has no workers.
    """

    def __init__(self, processes: Iterable[BaseProcess]) -> None:
        self._processes = tuple(processes)
        self.waited_for = False
        if self._processes:
            _watched.append(self)
            _hold_back()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends them after a mistake, whose trace keeps their loader from being ended; then forgets them."""
        if kind not in (None, GeneratorExit):
            self.kill()
        if self in _watched:
            _watched.remove(self)

    def next(self, batches: Iterator[T]) -> T | None:
        """The next batch, None after the last.

        Raises:
            WorkerDied: if one of the processes has ended, now or since the last call.
        """
        try:
            try:
                self.waited_for = True
                return self._next(batches)
            finally:
                self.waited_for = False
        except _Died as died:
            how = str(died)
        raise WorkerDied(how)

    def _next(self, batches: Iterator[T]) -> T | None:
        how = self.how_one_died()
        if how:
            raise _Died(how)
        try:
            return next(batches, None)
        except (EOFError, OSError):  # of a connection that breaks a moment before its process has ended
            how = self._how_one_dies()
            if how:
                raise _Died(how) from None
            raise
        except RuntimeError:  # the DataLoader's own
            how = self.how_one_died()
            if how:
                raise _Died(how) from None
            raise

    def how_one_died(self) -> str:
        """How the first of them that has died did; those that end as they should, when asked to, have not."""
        for process in self._processes:
            code = process.exitcode
            if code is not None and code < 0:
                name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
                memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
                return f"process {process.pid} was killed by signal {-code} ({name}{memory})"
            if code:
                return f"process {process.pid} exited with code {code}"
        return ""

    def _how_one_dies(self) -> str:
        until = time.monotonic() + _GRACE_SECONDS
        while not (how := self.how_one_died()) and time.monotonic() < until:
            time.sleep(0.01)
        return how

    def kill(self) -> None:
        """Ends all of them at once."""
        for process in self._processes:
            process.kill()  # does nothing to those that have ended
        for process in self._processes:
            process.join(_GRACE_SECONDS)  # one that hangs in a disk cannot be ended and is not waited for


_FOLDER = "vidssl-w-"


def take_folder() -> None:
    """Has the sockets of workers lie in one temporary folder, and removes the folders of killed runs.

    Python makes a folder ``pymp-*`` in each worker, and those of a killed run would stay. Ours are held: they
    are removed when the last process of the run has ended.
    """
    process = multiprocessing.current_process()
    if not can_lock() or process._config.get("tempdir"):  # type: ignore[attr-defined]
        return
    remove_left(_FOLDER)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    hold(folder)
    process._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
    # last of all, when Python has ended the workers
    Finalize(None, shutil.rmtree, args=(str(folder), True), exitpriority=-100)


_watched: list[Workers] = []
_before: list[Callable[[int, FrameType | None], object]] = []  # the handler that was there, torch's


def _hold_back() -> None:
    """Puts a handler before torch's, once in a process."""
    if _before or sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    _before.append(handler if callable(handler) else _ignore)
    signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: FrameType | None) -> None:
    died = [(workers, how) for workers in _watched if (how := workers.how_one_died())]
    for workers, how in died:
        if workers.waited_for:
            workers.waited_for = False  # once: another signal must not come while this is raised
            raise _Died(how)
    if not died:  # a process of someone else's
        _before[0](number, frame)


def _ignore(number: int, frame: FrameType | None) -> None:
    """SIGCHLD where no one has asked for it."""


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

    def go_on(self, task: Task) -> "_Worker[Task, Made]":
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
        [*(worker.connection for worker in crew), *(worker.process.sentinel for worker in crew)],
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
