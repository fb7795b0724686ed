"""Data workers that die, noticed where their batch is asked for and nowhere else.

torch's DataLoader raises for a dead worker in its handler of SIGCHLD, that is wherever the process is at that
moment: in the middle of a step, or while a checkpoint is written. Here that handler is held back.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from vidssl.engine.process import can_lock, hold, remove_left
from vidssl.errors import UsageError

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

    def __enter__(self) -> Workers:
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
