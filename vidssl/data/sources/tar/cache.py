"""Shards of another machine kept on the disk of this one: fetched whole, once for all its processes.

A shard is fetched under a hidden name that carries its size, under a lock that the operating system lets go
of when a process ends, and renamed when it is whole: what a killed process leaves behind is noticed and
fetched anew. When there is no more room the shards go that were not read for the longest time, but none that
was read within the last minute: others are at it, and would fetch it again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from vidssl.data.sources.tar.storage import OWN_DISK, Address
from vidssl.engine.process import can_lock, locked, remove_unlocked
from vidssl.errors import UsageError, counted

_log = logging.getLogger(__name__)
IN_USE_SECONDS = 60.0
_GIB = 1 << 30
_OURS = re.compile(r"(\.?)[0-9a-f]{16}-.*?(?:\.(\d+)\.part)?")  # nothing else in the folder is touched


class ShardCache:
    """A folder with the shards that were read last. Several sources and processes may share one.

    Args:
        folder: made if it is missing; best on a disk of this machine.
        gib: how much it may hold, of all sources together.
        source: where shards come from.
        largest: bytes of the largest shard.

    Raises:
        ValueError: if ``gib`` is less than ``largest``, or there is no cache on this system.
        UsageError: if the folder cannot be written.
    """

    def __init__(self, folder: Path, *, gib: float, source: Address, largest: int) -> None:
        if not can_lock():
            raise ValueError("'cache' needs locks of files, which Windows has not; leave it out")
        if gib * _GIB < largest:
            raise ValueError(
                f"cache_gib ({gib:g}) is less than the largest shard ({largest / _GIB:.3g} GiB), and whole "
                "ones are kept; raise it, or leave out 'cache'"
            )
        self._folder = folder.absolute()
        self._room = int(gib * _GIB)
        self._source = source
        self._told = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with locked(self._folder / ".lock"):
                pass
        except OSError as error:
            raise UsageError(
                f"{folder}: the cache of shards cannot be written ({error.strerror or error}); name another "
                "folder with 'cache', or leave it out"
            ) from error

    def read_range(self, name: str, size: int, start: int, length: int) -> bytes | None:
        """A part of a shard, which is fetched if it is not there; fewer bytes where it ends before.

        Args:
            name: of the shard.
            size: of the whole shard, in bytes.

        Returns:
            None if there is no room for the shard.

        Raises:
            OSError: if it cannot be fetched.
        """
        path = self._path(name, size)
        for _ in range(2):  # it may be removed as soon as it is there, when room is short
            with suppress(FileNotFoundError), path.open("rb") as file:
                os.utime(file.fileno())
                file.seek(start)
                return file.read(length)
            if not self._fetch(name, size, path):
                return None
        return None

    def forget(self, name: str, size: int) -> None:
        """Removes a shard, which turned out to be damaged."""
        with suppress(OSError):
            self._path(name, size).unlink(missing_ok=True)

    def _path(self, name: str, size: int) -> Path:
        digest = hashlib.sha256(f"{self._source} {name} {size}".encode()).hexdigest()[:16]
        return self._folder / f"{digest}-{name.rpartition('/')[2]}"

    def _fetch(self, name: str, size: int, path: Path) -> bool:
        """Whether the shard could be fetched, by this process or another while this one waited."""
        partial = path.with_name(f".{path.name}.{size}.part")
        with locked(partial):
            if path.exists():
                partial.unlink(missing_ok=True)
                return True
            there = self._source.size(name)
            if there != size:  # asked first, so that a wrong shard is not fetched for each of its samples
                partial.unlink(missing_ok=True)
                raise OSError(errno.EIO, f"it has {counted(there, 'byte')} and not {size}, as the index says")
            if not self._make_room(size, partial):
                partial.unlink(missing_ok=True)
                self._tell(f"all {self._room / _GIB:.3g} GiB are taken by shards that are being read")
                return False
            try:
                self._source.fetch(name, partial)
                _sync(partial, size)
            except OSError as error:
                partial.unlink(missing_ok=True)
                if error.errno not in OWN_DISK:
                    raise
                self._tell(error.strerror or "no space is left")
                return False
            os.replace(partial, path)
            return True

    def _make_room(self, size: int, own: Path) -> bool:
        """Removes what was not read for the longest time until a shard fits; whether it does."""
        with locked(self._folder / ".lock"):
            kept = []
            taken = size
            for file in self._folder.iterdir():
                ours = _OURS.fullmatch(file.name)
                if ours is None or file == own:
                    continue
                with suppress(FileNotFoundError):  # another process has removed it
                    if ours[1]:
                        taken += 0 if remove_unlocked(file) else int(ours[2])
                    else:
                        status = file.stat()
                        kept.append((status.st_mtime, status.st_size, file))
                        taken += status.st_size
            for read_at, bytes_, file in sorted(kept):
                if taken <= self._room or time.time() - read_at < IN_USE_SECONDS:
                    break
                file.unlink(missing_ok=True)
                taken -= bytes_
            return taken <= self._room

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "%s: the cache of shards is full (%s), so samples are read one by one from %s. Raise "
                "cache_gib, or name a larger disk with 'cache'",
                self._folder,
                why,
                self._source,
            )


def _sync(partial: Path, size: int) -> None:
    """Sees to it that a file is on the disk, all of it."""
    with partial.open("rb") as file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise OSError(errno.EIO, f"only {found} of its {size} bytes came")
        os.fsync(file.fileno())
