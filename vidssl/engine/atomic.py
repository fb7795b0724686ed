"""Files that are either whole or not there, and what they hold: SHA-256."""

import glob
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vidssl.engine.process import can_lock, remove_unlocked, try_lock
from vidssl.errors import UsageError


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


def check_writable(path: Path, otherwise: str) -> None:
    """Refuse a path that nothing can be written to, before the work that is to be written there.

    Args:
        otherwise: how to name another, for the message.

    Raises:
        UsageError: if the nearest folder above it that exists cannot be written.
    """
    folder = next(above for above in path.absolute().parents if above.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: {folder} is not a folder that can be written; {otherwise}")


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` for a text."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
