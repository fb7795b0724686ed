"""Where files lie: in a folder of this machine, or behind fsspec. ``addresses`` says what the methods do."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec

from vidssl.errors import UsageError

_PACKAGES = {  # where fsspec's own words name none
    "http": "aiohttp and requests",
    "https": "aiohttp and requests",
    "s3": "s3fs",
    "gs": "gcsfs",
}


class Address:
    """A folder, or what stands for one elsewhere. Names of files are paths below it, with ``/``.

    It can be handed to workers: each process opens files and connections of its own.

    Args:
        root: a path, relative to the working folder, or an address.

    Attributes:
        local: the folder; None for one that is reached through fsspec.

    Raises:
        UsageError: if nothing reads such addresses here.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") or root
        self._place: Place
        if is_local(root):
            self.local: Path | None = Path(root.removeprefix("file://")).absolute()
            self._place = Folder(self.local)
        else:
            _require_package(root)
            self.local = None
            self._place = Remote(self._root)

    def __str__(self) -> str:
        return self._root

    def file(self, name: str) -> str:
        """The address of a file."""
        return f"{self._root}/{name}"

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start`` on; fewer where it ends before.

        Raises:
            OSError: if it cannot be read.
        """
        return self._place.read_range(name, start, length)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            OSError: if it cannot be read.
        """
        return self._place.read(name)

    def open(self, name: str) -> BinaryIO:
        """A file to be read from its start on; used as a context.

        Raises:
            OSError: if it cannot be opened; its methods raise no other either.
        """
        return self._place.open(name)

    def fetch(self, name: str, to: Path) -> None:
        """Copies a whole file to the disk.

        Raises:
            OSError: if it cannot be read, or ``to`` cannot be written.
        """
        self._place.fetch(name, to)

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: if there is no such file, or it cannot be reached.
        """
        return self._place.size(name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file.

        Raises:
            OSError: if that cannot be found out.
        """
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, ending: str) -> list[str]:
        """Names of all files that end so, in folders below too, sorted; hidden ones are left out.

        Raises:
            OSError: if the root cannot be listed.
        """
        return sorted(
            name
            for name in self._place.names()
            if name.endswith(ending) and not any(part.startswith(".") for part in name.split("/"))
        )

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A context with a file to be filled, which gets its name at the end; not if the block raises.

        What stood there before is there until then. A file for another machine is kept in the folder for
        temporary files until it is whole.

        Raises:
            OSError: if it cannot be written.
        """
        return self._place.write(name)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there.

        Raises:
            OSError: if that cannot be done.
        """
        if self.exists(name):
            self._place.remove(name)


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


Result = TypeVar("Result")

PAUSES_SECONDS = (0.5, 2.0, 8.0)  # between tries
_OPEN_FILES = 256  # of a process and root; a batch is read from about as many shards as it has samples
OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of a disk that is written to
_FINAL = (errno.ENOENT, errno.EACCES, errno.ERANGE, *OWN_DISK)  # trying again does not help


class Place(ABC):
    """What ``Address`` asks for; its methods say more."""

    @abstractmethod
    def read_range(self, name: str, start: int, length: int) -> bytes: ...

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def open(self, name: str) -> BinaryIO: ...

    @abstractmethod
    def fetch(self, name: str, to: Path) -> None: ...

    @abstractmethod
    def size(self, name: str) -> int: ...

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def write(self, name: str) -> AbstractContextManager[BinaryIO]: ...

    @abstractmethod
    def remove(self, name: str) -> None: ...


class Folder(Place):
    """A folder of this machine. Files last read from stay open; ``pread`` minds no shared place in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        descriptor = self._open(name)
        found = os.pread(descriptor, length, start)
        while 0 < len(found) < length:
            more = os.pread(descriptor, length - len(found), start + len(found))
            if not more:
                break
            found += more
        return found

    def _open(self, name: str) -> int:
        if name not in self._descriptors:
            self._descriptors[name] = os.open(self._folder / name, os.O_RDONLY)
        self._descriptors.move_to_end(name)
        if len(self._descriptors) > _OPEN_FILES:
            os.close(self._descriptors.popitem(last=False)[1])
        return self._descriptors[name]

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("rb")

    def fetch(self, name: str, to: Path) -> None:
        shutil.copyfile(self._folder / name, to)

    def size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def names(self) -> list[str]:
        if not self._folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(self._folder))
        return [
            (Path(folder) / name).relative_to(self._folder).as_posix()
            for folder, _, names in os.walk(self._folder, onerror=_refuse, followlinks=True)
            for name in names
        ]

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # the folder, or its disk, may be gone
                temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptors": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            with suppress(OSError):
                os.close(descriptor)


def _refuse(error: OSError) -> None:
    raise error


class Remote(Place):
    """What fsspec reaches. Connections do not outlive a fork, so each process makes its own.

    What fails is tried again a few times: a connection that breaks is no reason to lose a sample.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._process = -1
        self._system: fsspec.AbstractFileSystem | None = None
        self._path = ""

    def _call(self, name: str, call: Callable[[fsspec.AbstractFileSystem, str], Result]) -> Result:
        """What a call of fsspec's gives, tried again where that may help."""
        for pause in (*PAUSES_SECONDS, None):
            try:
                with _in_words(f"{self._root}/{name}"):
                    if self._system is None or self._process != os.getpid():
                        self._system, self._path = fsspec.url_to_fs(self._root)
                        self._process = os.getpid()
                    return call(self._system, f"{self._path.rstrip('/')}/{name}".rstrip("/"))
            except OSError as error:
                if pause is None or error.errno in _FINAL or isinstance(error.__cause__, NotImplementedError):
                    raise
                time.sleep(pause)
        raise AssertionError

    def read_range(self, name: str, start: int, length: int) -> bytes:
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
                f"{self._root}/{name}",
            )
        return found

    def read(self, name: str) -> bytes:
        return self._call(name, lambda system, path: system.cat_file(path))

    def open(self, name: str) -> BinaryIO:
        file = self._call(name, lambda system, path: system.open(path, "rb"))
        return io.BufferedReader(_Stream(file, f"{self._root}/{name}"), 1 << 20)

    def fetch(self, name: str, to: Path) -> None:
        self._call(name, lambda system, path: system.get_file(path, str(to)))

    def size(self, name: str) -> int:
        def ask(system: fsspec.AbstractFileSystem, path: str) -> int:
            system.invalidate_cache()
            return int(system.info(path)["size"])

        return self._call(name, ask)

    def names(self) -> list[str]:
        def ask(system: fsspec.AbstractFileSystem, path: str) -> list[str]:
            system.invalidate_cache()
            return [found.removeprefix(path).lstrip("/") for found in system.find(path)]

        return self._call("", ask)

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryDirectory(prefix="vidssl-") as folder:
            whole = Path(folder) / "file"
            with whole.open("wb") as file:
                yield file
            self._call(name, lambda system, path: system.put_file(str(whole), path))

    def remove(self, name: str) -> None:
        self._call(name, lambda system, path: system.rm_file(path))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_system": None}


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
