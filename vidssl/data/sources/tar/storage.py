"""Files in a folder of this machine, or behind an address that fsspec knows, read and written alike."""

import asyncio
import errno
import io
import math
import os
import re
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import fsspec
from fsspec.config import conf
from fsspec.implementations.local import LocalFileSystem

from vidssl.engine.process import begun_beside
from vidssl.errors import UsageError

_PACKAGES = {  # where fsspec's own words name none
    "http": "aiohttp and requests",
    "https": "aiohttp and requests",
    "s3": "s3fs",
    "gs": "gcsfs",
}
PAUSES_SECONDS = (0.5, 2.0, 8.0, *[30.0] * 6)  # between tries
TIMEOUT_SECONDS, TRIES, MOST_TRIES = 15.0, 4, 1 + len(PAUSES_SECONDS)
_SILENCES = 3  # a server that stays silent is given up in the next try after as many timeouts
_ALL = "/"  # stands for every file of an address
_SECRETS = re.compile(
    r"(?<=://)[^/@]*:[^/@]*@|(?<=[?&])[^=&]*(?:key|token|sig|secret|passw|auth)[^=&]*=[^&]*", re.I
)
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
        timeout_seconds: that https://, s3:// and gs:// may stay silent; others have timeouts of their own.
        tries: how often what fails is tried in all.

    Attributes:
        local: the folder; None for one that is elsewhere.

    Raises:
        ValueError: if a number is none of that kind.
        UsageError: if nothing reads such addresses here, or credentials stand in it.
        OSError: from every method, if a file cannot be read, written or reached.
    """

    def __init__(self, root: str, *, timeout_seconds: float = TIMEOUT_SECONDS, tries: int = TRIES) -> None:
        if not 0 < timeout_seconds < math.inf or not 1 <= tries <= MOST_TRIES:
            raise ValueError(
                f"timeout_seconds must be finite and above 0, and tries from 1 to {MOST_TRIES}, got "
                f"{timeout_seconds:g} and {tries}"
            )
        self._timeout, self._tries = timeout_seconds, tries
        self._root = root.rstrip("/") or root
        self.local: Path | None = None
        self._system: fsspec.AbstractFileSystem | None = None
        self._path, self._process = "", -1
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._lost: dict[str, tuple[float, OSError]] = {}  # what failed -> until when, and how
        if is_local(root):
            self.local = Path(root.removeprefix("file://")).absolute()
        else:
            _refuse_secrets(root)
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
            found = system.find(path)
            if not found:
                with suppress(FileNotFoundError):  # find hides that a service cannot be reached
                    system.ls(path)
            return [name.removeprefix(path).lstrip("/") for name in found]

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
        begun = begun_beside(target)
        try:
            with begun:
                yield begun
                begun.flush()
                os.fsync(begun.fileno())
            os.replace(begun.name, target)
        finally:
            with suppress(OSError):  # the folder, or its disk, may be gone
                os.unlink(begun.name)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        if self.exists(name):
            self._call(name, lambda system, path: system.rm_file(path))

    def _call(self, name: str, call: Callable[[fsspec.AbstractFileSystem, str], Given]) -> Given:
        """The result of a call of fsspec's, tried again where that may help.

        What failed at last fails at once for a while: a whole batch does not wait for one server.
        """
        if self.local is not None:
            return call(LocalFileSystem(), str(self.local / name))
        began = time.monotonic()
        for until, error in (self._lost[known] for known in (_ALL, name) if known in self._lost):
            if began < until:
                raise OSError(error.errno, error.strerror, self.file(name))
        for pause in (*PAUSES_SECONDS[: self._tries - 1], None):
            try:
                with _in_words(self.file(name)):
                    if self._system is None or self._process != os.getpid():
                        self._system, self._path = fsspec.url_to_fs(self._root, **self._patience())
                        self._process = os.getpid()
                    return call(self._system, f"{self._path.rstrip('/')}/{name}".rstrip("/"))
            except OSError as error:
                if error.errno in _FINAL or isinstance(error.__cause__, NotImplementedError):
                    raise
                now, silent = time.monotonic(), error.errno == errno.ETIMEDOUT
                if pause is None or (silent and now - began > _SILENCES * self._timeout):
                    self._lost[_ALL if silent else name] = (now + self._timeout, error)
                    raise
                time.sleep(pause)
        raise AssertionError

    def _patience(self) -> dict[str, object]:
        """What tells fsspec how long a service may stay silent; nothing for other kinds of address."""
        protocol, seconds = self._root.split("://")[0], self._timeout
        if protocol in ("http", "https"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
            return {"client_kwargs": {"timeout": timeout, **_configured("client_kwargs", "http", "https")}}
        if protocol == "s3":
            timeouts = {"connect_timeout": seconds, "read_timeout": seconds}
            return {"config_kwargs": {**timeouts, **_configured("config_kwargs", "s3", "s3a")}}
        return {"requests_timeout": seconds} if protocol in ("gs", "gcs") else {}


def _configured(name: str, *protocols: str) -> dict[str, object]:
    """What fsspec's configuration says of a keyword, which an argument would replace as a whole."""
    found: dict[str, object] = {}
    for protocol in protocols:
        found |= conf.get(protocol, {}).get(name, {})
    return found


def _refuse_secrets(root: str) -> None:
    """Raises UsageError for an address with credentials: recipes, logs and score cards would hold them."""
    if _SECRETS.search(root):
        raise UsageError(
            f"{_SECRETS.sub('***', root)}: credentials in an address would stand in recipes, logs and "
            "scores. Keep them where its service looks for them, or in fsspec's configuration "
            "(docs/data/tar_shards.md)"
        )


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


def file_address(
    address: str, *, timeout_seconds: float = TIMEOUT_SECONDS, tries: int = TRIES
) -> tuple[Address, str]:
    """Where a file lies, and its name there; arguments and errors as ``Address``."""
    if not is_local(address):
        _refuse_secrets(address)
    folder, slash, name = address.rpartition("/")
    place = (folder or "/") if slash else "."
    return Address(place, timeout_seconds=timeout_seconds, tries=tries), name


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
    # fsspec says so too of a server that does not answer, or has an error of its own
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and _says_more(cause):
        return _told(cause)
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
    number = errno.ETIMEDOUT if isinstance(error, (TimeoutError, asyncio.TimeoutError)) else errno.EIO
    return number, f"it cannot be reached ({type(error).__name__}: {_SECRETS.sub('***', said)})"


def _says_more(cause: Exception) -> bool:
    """Whether the cause of a missing file is that its server is silent, gone or broken."""
    timeout = isinstance(cause, (OSError, asyncio.TimeoutError))
    return timeout or getattr(cause, "status", 404) not in (404, 410)
