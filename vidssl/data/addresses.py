"""Files below a root that is a folder, or any address that fsspec knows: ``s3://bucket/k400``, ``https://…``.

All that can go wrong with a file is an OSError whose ``strerror`` is a sentence.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import fsspec

from vidssl.data.places import PAUSES_SECONDS as PAUSES_SECONDS
from vidssl.data.places import Folder, Place, Remote
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
