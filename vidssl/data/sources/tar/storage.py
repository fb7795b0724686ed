"""Files in a folder of this machine, or behind an address that fsspec knows, read and written alike."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vidssl.errors import UsageError

_PACKAGES = {  # where fsspec's own words name none
    "http": "aiohttp and requests",
    "https": "aiohttp and requests",
    "s3": "s3fs",
    "gs": "gcsfs",
}
PAUSES_SECONDS = (0.5, 2.0, 8.0)  # between tries
_OPEN_FILES = 256  # of a process and root; a batch is read from about as many shards as it has samples
OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of a disk that is written to
_FINAL = (errno.ENOENT, errno.EACCES, errno.ERANGE, *OWN_DISK)  # trying again does not help

Given = TypeVar("Given")


class Address:
    """A folder, or what stands for one elsewhere. Names of files are paths below it, with ``/``.

    It can be handed to workers: connections do not outlive a fork, so each process makes its own. What fails
    elsewhere is tried again a few times: a connection that breaks is no reason to lose a sample. Files of a
    folder that were last read from stay open.

    Args:
        root: a path, relative to the working folder, or an address.

    Attributes:
        local: the folder; None for one that is elsewhere.

    Raises:
        UsageError: if nothing reads such addresses here.
        OSError: from every method, if a file cannot be read, written or reached.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") or root
        self.local: Path | None = None
        self._system: fsspec.AbstractFileSystem | None = None
        self._path, self._process = "", -1
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        if is_local(root):
            self.local = Path(root.removeprefix("file://")).absolute()
        else:
            _require_package(root)

    def __str__(self) -> str:
        return self._root

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_system": None, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            with suppress(OSError):
                os.close(descriptor)

    def file(self, name: str) -> str:
        """The address of a file."""
        return f"{self._root}/{name}"

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on; fewer where it ends before."""
        if self.local is not None:
            return self._pread(self.local / name, start, length)
        try:
            found = self._call(
                name, lambda system, path: system.cat_file(path, start=start, end=start + length)
            )
        except OSError as error:
            if error.errno == errno.ERANGE:
                return b""
            raise
        if len(found) > length:
            raise OSError(
                errno.EIO,
                "its server gives whole files where parts are asked for (no byte ranges); 'cache' fetches "
                "shards whole",
                self.file(name),
            )
        return found

    def _pread(self, path: Path, start: int, length: int) -> bytes:
        name = str(path)
        if name not in self._descriptors:
            self._descriptors[name] = os.open(name, os.O_RDONLY)
        self._descriptors.move_to_end(name)
        if len(self._descriptors) > _OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        found = b""
        while len(found) < length:
            more = os.pread(self._descriptors[name], length - len(found), start + len(found))
            if not more:
                break
            found += more
        return found

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self._call(name, lambda system, path: system.cat_file(path))

    def open(self, name: str) -> BinaryIO:
        """A file to be read from its start on; used as a context. Its methods raise no other error either."""
        if self.local is not None:
            return (self.local / name).open("rb")
        file = self._call(name, lambda system, path: system.open(path, "rb"))
        return io.BufferedReader(_Stream(file, self.file(name)), 1 << 20)

    def fetch(self, name: str, to: Path) -> None:
        """Copies a whole file to the disk."""
        if self.local is not None:  # fsspec's own error for a missing file has no number
            shutil.copyfile(self.local / name, to)
        else:
            self._call(name, lambda system, path: system.get_file(path, str(to)))

    def size(self, name: str) -> int:
        """Bytes of a file."""

        def ask(system: fsspec.AbstractFileSystem, path: str) -> int:
            system.invalidate_cache()
            return int(system.info(path)["size"])

        return self._call(name, ask)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, ending: str) -> list[str]:
        """Names of all files that end so, in folders below too, sorted; hidden ones are left out."""

        def ask(system: fsspec.AbstractFileSystem, path: str) -> list[str]:
            system.invalidate_cache()
            return [found.removeprefix(path).lstrip("/") for found in system.find(path)]

        return sorted(
            name
            for name in (self._call("", ask) if self.local is None else _walk(self.local))
            if name.endswith(ending) and not any(part.startswith(".") for part in name.split("/"))
        )

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """A context with a file to be filled, which gets its name at the end; not if the block raises.

        What stood there before is there until then. A file for another machine is kept in the folder for
        temporary files until it is whole.
        """
        if self.local is None:
            with tempfile.TemporaryDirectory(prefix="vidssl-") as folder:
                whole = Path(folder) / "file"
                with whole.open("wb") as file:
                    yield file
                self._call(name, lambda system, path: system.put_file(str(whole), path))
            return
        target = self.local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            with suppress(OSError):  # the folder, or its disk, may be gone
                temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self.exists(name):
            self._call(name, lambda system, path: system.rm_file(path))

    def _call(self, name: str, call: Callable[[fsspec.AbstractFileSystem, str], Given]) -> Given:
        """The result of a call of fsspec's, tried again where that may help."""
        if self.local is not None:
            return call(LocalFileSystem(), str(self.local / name))
        for pause in (*PAUSES_SECONDS, None):
            try:
                with _in_words(self.file(name)):
                    if self._system is None or self._process != os.getpid():
                        self._system, self._path = fsspec.url_to_fs(self._root)
                        self._process = os.getpid()
                    return call(self._system, f"{self._path.rstrip('/')}/{name}".rstrip("/"))
            except OSError as error:
                if pause is None or error.errno in _FINAL or isinstance(error.__cause__, NotImplementedError):
                    raise
                time.sleep(pause)
        raise AssertionError


def _walk(folder: Path) -> list[str]:
    """Files below a folder; links to folders are followed, which fsspec does not."""
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    return [
        (Path(below) / name).relative_to(folder).as_posix()
        for below, _, names in os.walk(folder, onerror=_refuse, followlinks=True)
        for name in names
    ]


def _refuse(error: OSError) -> None:
    raise error


def is_local(address: str) -> bool:
    """Whether an address is a path, or begins with ``file://``."""
    return address.startswith("file://") or ("://" not in address and "::" not in address)


def file_address(address: str) -> tuple[Address, str]:
    """Where a file lies, and its name there.

    Raises:
        UsageError: if nothing reads such addresses here.
    """
    folder, slash, name = address.rpartition("/")
    return Address((folder or "/") if slash else "."), name


def _require_package(root: str) -> None:
    """Raises UsageError unless fsspec has what it needs for this kind of address."""
    for link in root.split("::"):
        protocol = link.split("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise UsageError(
                f"{root}: addresses with {protocol}:// need a package that is not installed "
                f"({_PACKAGES.get(protocol, error)}): install it with pip"
            ) from error
        except ValueError as error:
            raise UsageError(
                f"{root}: no kind of address begins with {protocol}://; folders, https://, s3:// and gs:// "
                "are among those that do (fsspec has the list)"
            ) from error


class _Stream(io.RawIOBase):
    """A file of fsspec's whose errors are OSErrors."""

    def __init__(self, file: BinaryIO, address: str) -> None:
        self._file = file
        self._address = address

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _in_words(self._address):
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """Turns a service's own error into an OSError that says the same."""
    try:
        yield
    # services have errors of their own, which have no base but this one
    except Exception as error:
        raise OSError(*_told(error), address) from error  # ENOENT and EACCES make their own classes of it


def _told(error: Exception) -> tuple[int, str]:
    """An error number, and a sentence."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, OSError):
        return _told(cause)  # fsspec says so too of a server that does not answer
    if isinstance(error, OSError) and error.errno in OWN_DISK:
        return error.errno or 0, error.strerror or "no space"
    status = getattr(error, "status", None)  # of an answer over HTTP
    if isinstance(error, FileNotFoundError) or status == 404:
        return errno.ENOENT, "there is no such file"
    if isinstance(error, PermissionError) or status in (401, 403):
        return errno.EACCES, "no permission; check the credentials for it"
    if status == 416 or "InvalidRange" in str(error):  # HTTP's and S3's words
        return errno.ERANGE, "it ends before the part that is asked for"
    said = (str(error).strip() or "no more is known").split("\n")[0][:200]
    return errno.EIO, f"it cannot be reached ({type(error).__name__}: {said})"
