"""This process among others: CPUs, locks, one process at a time in a folder; files whole or not there."""

import ctypes
import errno
import glob
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from vidssl.engine.facts import Row, parsed
from vidssl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_ATTEMPTS = 3
_HELD_UP = 0.3  # of the time
_TRAINS = (
    "is training in this folder. Let it end or stop it; or start a run of its own, without --resume and "
    "run.resume"
)
_LOCK, _TORCHRUN = "lock", "torchelastic_"
_held: set[int] = set()  # descriptors of this process's locks


def _let_go_in_child() -> None:
    """A forked data worker must not keep the lock of a parent that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


def num_cpus() -> int:
    """CPUs that this process may use: those of its affinity, as far as control groups grant their time."""
    return max(1, math.ceil(min(len(_own_cpus()), _granted())))


def _own_cpus() -> Collection[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)


def _granted(root: Path = Path("/")) -> float:
    """CPUs whose time the control groups of this process grant it, as those of a container; inf for all.

    Args:
        root: of the file system.
    """
    granted = math.inf
    with suppress(OSError, ValueError):  # another operating system
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if not kinds or "cpu" in kinds.split(","):
                mount = root / "sys/fs/cgroup" / kinds
                lowest = mount / name.lstrip("/")  # of a container its own group is the mount itself
                for folder in (lowest, *lowest.parents)[: len(lowest.relative_to(mount).parts) + 1]:
                    granted = min(granted, _quota(folder))
    return granted


def _quota(group: Path) -> float:
    with suppress(OSError, ValueError):  # "max" is no number, and no limit
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{key}_us").read_text() for key in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


@dataclass(frozen=True)
class Cpus:
    """CPUs that this process may use, and how many of them are not at work for other processes."""

    allowed: int
    free: float

    @property
    def threads(self) -> int:
        """As many as compute: threads without a CPU each wait for one another at every layer."""
        return max(1, min(self.allowed, int(self.free + 0.25)))


def look_at_cpus(seconds: float = 0.3) -> Cpus:
    """What other processes leave, while this one waits for so long."""
    allowed, before = num_cpus(), _busy_seconds()
    if before is None:  # no Linux: those that ran or waited in the last minute
        return Cpus(allowed, max(0.0, min(allowed, len(_own_cpus()) - os.getloadavg()[0])))
    started = time.monotonic()
    time.sleep(seconds)
    busy = ((_busy_seconds() or before) - before) / (time.monotonic() - started)
    return Cpus(allowed, max(0.0, min(allowed, len(_own_cpus()) - busy)))


def _busy_seconds() -> float | None:
    """For how long the CPUs of this process were at work since the machine started; None where unknown."""
    own = {f"cpu{number}" for number in _own_cpus()}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except OSError:
        return None
    # user, nice, system, idle, waiting for a disk, two kinds of interrupts, time that a host took away
    rows = [[int(ticks) for ticks in words[1:9]] for words in lines if words[0] in own]
    return sum(sum(row) - row[3] - row[4] for row in rows) / os.sysconf("SC_CLK_TCK")


def slow_machine(off_cpu_share: float) -> str:
    """That others hold the CPUs up, in a sentence; empty if they do not.

    Args:
        off_cpu_share: of the time that the thread which computes had no CPU and waited for no data.
    """
    load, cpus = os.getloadavg()[0], num_cpus()
    if off_cpu_share < _HELD_UP or load < cpus + 0.5:
        return ""
    return (
        f"The machine is slow, not the data: other processes had the CPU for {100 * off_cpu_share:.0f} % of "
        f"the time (load {load:.1f} on {cpus} CPUs)"
    )


def can_lock() -> bool:
    """Whether this operating system has the locks that ``locked`` needs; Windows has not."""
    return fcntl is not None


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keeps a file, made if need be, from others that lock it; the system frees it when its holder dies.

    The file may be renamed or removed under the lock: who waited for it then locks the one of that name.

    Args:
        waiting: called once another process is found to hold the lock.

    Raises:
        OSError: if the file cannot be opened, or its file system keeps no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Locks an open file, unless another process has it; False then, or where there are no locks."""
    try:
        if can_lock():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return can_lock()
    except OSError:
        return False


def remove_unlocked(path: Path) -> bool:
    """Removes a file unless a process has it ``locked``; False if one has."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def hold(folder: Path) -> None:
    """Keeps a temporary folder from ``remove_left`` until this process and its forks have ended."""
    descriptor = os.open(folder / f".{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    try_lock(descriptor)
    os.rename(folder / f".{_LOCK}", folder / _LOCK)  # one without it is not looked at yet


def remove_left(prefix: str) -> None:
    """Removes temporary folders whose names begin so, and that nobody holds any more; not other users'."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if (folder / _LOCK).lstat().st_uid == os.getuid():
                descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    if try_lock(descriptor):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def sole_process(folder: Path, say: Callable[[str], None], does: str = _TRAINS) -> Iterator[None]:
    """Keeps every other process that asks for the same from a run's folder, on any host that shares its disk.

    The operating system lets go of the lock when the process ends, however it ends. Where a file system keeps
    no locks (some network file systems, and Windows), a line reports that and the run does without.

    Args:
        folder: the run's, which exists.
        say: gets that line.
        does: what the other process does, and what to do about it, for the error.

    Raises:
        UsageError: if another process has the folder, with its host and number; or if nothing can be
            written there.
    """
    path = folder / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error
    _held.add(descriptor)
    try:
        refusal = _lock(descriptor)
        if refusal in _TAKEN:
            raise UsageError(f"{folder}: {_owner(path)} {does}")
        if refusal is None:
            _sign(descriptor)
        else:
            say(
                f"{folder}: its file system keeps no locks ({os.strerror(refusal)}). Take care that no "
                "second process trains in this folder."
            )
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int) -> int | None:
    """None once the lock is ours, or the number of the error."""
    if fcntl is None:
        return errno.ENOSYS
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError as error:
            refusal = error.errno or errno.ENOLCK
        if refusal not in _TAKEN:
            break
        if attempt + 1 < _ATTEMPTS:
            time.sleep(0.05)  # a look at the lock (``trains_in``) takes it for a moment
    return refusal


def trains_in(folder: Path) -> bool:
    """Whether a process trains in a run's folder now; False where the file system keeps no locks."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:  # nothing ever trained there under a lock
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    finally:
        os.close(descriptor)
    return False


def _sign(descriptor: int) -> None:
    """Says in the file who has the lock; a disk that is too full for that does not end the run."""
    owner = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)


def _owner(path: Path) -> str:
    try:
        owner = Row(parsed(path.read_bytes()))
        return f"process {owner.whole('pid')} on {owner.text('host')} (since {owner.text('since')})"
    except (OSError, ValueError):  # it has not signed yet
        return "another process"


_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_launcher() -> None:
    """Has Linux kill this process when the torchrun that started it is killed; without one does nothing.

    torchrun starts its processes in sessions of their own. Left behind, they would wait half an hour for one
    another and keep GPUs and the lock of the run's folder, or train on where nobody sees it. A killed
    process loses nothing but the steps since its last checkpoint. A killed torchrun's temporary folder is
    removed at the next start under one.
    """
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # torchelastic_*/RUN/attempt_0/RANK/error.json
        for folder in Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parents:
            if folder.name.startswith(_TORCHRUN):
                with suppress(OSError):
                    hold(folder)
                remove_left(_TORCHRUN)


# Windows has no SIGUSR1 and no SIGHUP
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have a function take Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP, the latter unless ``nohup`` has it ignored.

    What is printed after SIGHUP goes nowhere: its terminal is gone, and writing to that is an error.
    """
    shown = [number for number in (1, 2) if os.isatty(number)]

    def take(number: int, frame: FrameType | None) -> None:
        for each in shown if signal.Signals(number).name == "SIGHUP" else ():
            os.dup2(os.open(os.devnull, os.O_WRONLY), each)
        handler(number, frame)

    heeded = [n for n in SIGNALS if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, take) for number in heeded}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopAsked(BaseException):
    """A signal came while a batch was waited for. Not an Exception: torch's DataLoader catches those."""


class StopRequest:
    """Set by the first signal; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._ends_wait = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals."""
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._ends_wait:
            self._ends_wait = False
            raise StopAsked

    @contextmanager
    def ends_wait(self) -> Iterator[None]:
        """Within it a signal raises StopAsked, also one that came before."""
        self._ends_wait = True
        try:
            if self:
                raise StopAsked
            yield
        finally:
            self._ends_wait = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first of ``signals_to`` into a request to stop after the step, or in a wait for data.

    A second Ctrl-C ends at once. SIGTERM comes from schedulers that take a machine back, SIGUSR1 from SLURM
    some time before it does (``--signal``), SIGHUP from a terminal that is closed. Works in the main thread
    only, as Python's signal handlers do.
    """
    request = StopRequest()
    with signals_to(request.note):
        yield request


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it to disk, then rename it into place.

    A reader sees the old file or the new one, never a part; a crash leaves the old one.

    Raises:
        UsageError: if the disk is full or the folder cannot be written; what stood there before is intact.
    """
    temporary = _beside(path)
    try:
        with begun_beside(path):
            write(temporary)
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(_failed(path, error)) from error
    finally:
        with suppress(OSError):  # the folder, or its disk, may be gone
            temporary.unlink(missing_ok=True)


def begun_beside(path: Path) -> BinaryIO:
    """A temporary file beside ``path``, open and locked; those of processes that were killed are removed.

    Raises:
        OSError: if it cannot be made.
    """
    for left in glob.glob(f"{glob.escape(str(path.with_name('.' + path.name)))}.*.tmp") if can_lock() else ():
        with suppress(OSError):  # its file system keeps no locks, or it was another's turn
            remove_unlocked(Path(left))
    file = open(_beside(path), "wb")  # noqa: SIM115  the caller closes it
    try_lock(file.fileno())
    return file


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file that may not exist yet.

    Raises:
        UsageError: if the disk is full or the folder is gone.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise UsageError(_failed(path, error)) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        UsageError: if that cannot be done.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot remove {path}: {error.strerror or error}") from error


def _failed(path: Path, error: OSError) -> str:
    if not path.parent.is_dir():
        return (
            f"cannot write {path}: {path.parent} is gone; it was removed or renamed, or its disk is no "
            "longer mounted"
        )
    return f"cannot write {path}: {error.strerror or error}; what stood there before is untouched"


def make_folder(path: Path, otherwise: str = "") -> None:
    """A folder and those above it, unless it is there.

    Args:
        otherwise: how to name another, for the message.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = otherwise and f"; {otherwise}"
        raise UsageError(f"cannot make the folder {path}: {error.strerror or error}{hint}") from error


def check_writable(path: Path, otherwise: str, say: Callable[[str], None] = lambda line: None) -> None:
    """Refuse a path that nothing can be written to, before the work that is to be written there.

    Args:
        otherwise: how to name another, for the message.
        say: gets a line where a file is there that will be replaced.

    Raises:
        UsageError: if the nearest folder above it that exists cannot be written.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: {folder} is not a folder that can be written; {otherwise}")
    if path.is_file():
        say(f"{path}: is there already, and is replaced; {otherwise} to keep it")


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` for a text."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
