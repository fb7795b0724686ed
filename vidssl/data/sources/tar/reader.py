"""The content of samples in tar shards: read in one piece, and known for what it is or refused.

Shards of another machine are kept on the disk of this one: fetched whole, once for all its processes. A shard
is fetched under a hidden name that carries its size, under a lock that the operating system lets go of when a
process ends, and renamed when it is whole: what a killed process leaves behind is noticed and fetched anew.
When there is no more room the shards go that were not read for the longest time, but none that was read
within the last minute: others are at it, and would fetch it again.
"""

import errno
import hashlib
import logging
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vidssl.data.sources.tar.index import BLOCK, Member, ShardIndex
from vidssl.data.sources.tar.storage import OWN_DISK, Address
from vidssl.engine.process import can_lock, locked, remove_unlocked
from vidssl.errors import UsageError, counted
from vidssl.interfaces import UnreadableSample

_log = logging.getLogger(__name__)
IN_USE_SECONDS = 60.0
_GIB = 1 << 30
_AHEAD = "vidssl: a shard ahead"  # the thread that fetches it
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
                self._remove_left()
        except OSError as error:
            raise UsageError(
                f"{folder}: the cache of shards cannot be written ({error.strerror or error}); name another "
                "folder with 'cache', or leave it out"
            ) from error

    def _remove_left(self) -> None:
        """Removes what processes that were killed have half fetched."""
        for file in self._folder.glob(".*.part"):
            if _OURS.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    remove_unlocked(file)

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
            if why := self._fetch(name, size, path):
                self._tell(why)
                return None
        return None

    def fetch_ahead(self, name: str, size: int) -> None:
        """Starts to fetch a shard that is read later, unless it is there or a fetch of this process goes on.

        What fails is tried again, and reported, where the shard is read. Does nothing once room was short.
        """
        path = self._path(name, size)
        if self._told or path.exists() or any(thread.name == _AHEAD for thread in threading.enumerate()):
            return

        def fetch() -> None:
            with suppress(OSError):
                self._fetch(name, size, path)

        threading.Thread(target=fetch, name=_AHEAD, daemon=True).start()

    def forget(self, name: str, size: int) -> None:
        """Removes a shard, which turned out to be damaged."""
        with suppress(OSError):
            self._path(name, size).unlink(missing_ok=True)

    def _path(self, name: str, size: int) -> Path:
        digest = hashlib.sha256(f"{self._source} {name} {size}".encode()).hexdigest()[:16]
        return self._folder / f"{digest}-{name.rpartition('/')[2]}"

    def _fetch(self, name: str, size: int, path: Path) -> str:
        """Fetches a shard, or waits while another does; why there is no room for it, empty if it is there."""
        partial = path.with_name(f".{path.name}.{size}.part")
        with locked(partial):
            if path.exists():
                partial.unlink(missing_ok=True)
                return ""
            there = self._source.size(name)
            if there != size:  # asked first, so that a wrong shard is not fetched for each of its samples
                partial.unlink(missing_ok=True)
                raise OSError(
                    errno.EIO, f"it has {counted(there, 'byte')} and not {size}, as the index states"
                )
            if not self._make_room(size, partial):
                partial.unlink(missing_ok=True)
                return f"all {self._room / _GIB:.3g} GiB are taken by shards that are being read"
            try:
                self._source.fetch(name, partial)
                _sync(partial, size)
            except BaseException as error:
                partial.unlink(missing_ok=True)
                if not isinstance(error, OSError) or error.errno not in OWN_DISK:
                    raise
                return error.strerror or "no space is left"
            os.replace(partial, path)
            return ""

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


_LONGEST_IN_HEADER = 8 << 30  # a tar's own header has no room for more bytes
_REPLACED = "bring back the shard that was indexed, or make the index anew: 'vidssl data index'"


class ShardReader:
    """Reads members of shards.

    Args:
        address: where the shards lie.
        cache: where they are kept on this machine, if they are.
    """

    def __init__(self, address: Address, index: ShardIndex, cache: ShardCache | None) -> None:
        self._address = address
        self._index = index
        self._cache = cache
        self._seen: set[int] = set()  # shards in a folder whose length was looked at

    def read(self, number: int, key: str, *, past_cache: bool = False) -> bytes:
        """The content of a sample.

        Args:
            number: of the sample in the index.
            past_cache: read it from where shards come from; what the cache has of the shard is removed.

        Raises:
            UnreadableSample: under ``key``, if it cannot be read or the shard is another than was indexed.
        """
        shard = int(self._index.shard[number])
        name, size = self._index.shards[shard], int(self._index.shard_bytes[shard])
        start, length = int(self._index.start[number]) - BLOCK, int(self._index.length[number]) + BLOCK
        try:
            self._look_at_length(shard)
            found = None
            if self._cache is not None and past_cache:
                self._cache.forget(name, size)
            elif self._cache is not None:
                found = self._cache.read_range(name, size, start, length)
                if found is not None and not _is_member(found, length):
                    return self.read(number, key, past_cache=True)
            if found is None:
                found = self._address.read_range(name, start, length)
            if not _is_member(found, length):
                raise UnreadableSample(key, self._why_not(name, size))
        except OSError as error:
            raise UnreadableSample(key, f"{name} cannot be read: {error.strerror or error}") from error
        return found[BLOCK:]

    def soon(self, number: int) -> None:
        """Has the cache, if there is one, fetch the shard of a sample that is read later."""
        if self._cache is not None:
            shard = int(self._index.shard[number])
            self._cache.fetch_ahead(self._index.shards[shard], int(self._index.shard_bytes[shard]))

    def mend(self, number: int, member: Member, content: bytes) -> bytes | None:
        """Content to decode instead of one that does not decode; None if it is as it was indexed.

        Raises:
            UnreadableSample: if there is no other.
        """
        key = member.entry.key
        if _is_of(member, content):
            return None
        if self._cache is not None:
            content = self.read(number, key, past_cache=True)
        if not _is_of(member, content):
            name = self._index.shards[int(self._index.shard[number])]
            raise UnreadableSample(
                key, f"{name} is damaged or was replaced: the content has changed; {_REPLACED}"
            )
        return content

    def refuse_missing(self, wanted: Iterable[int]) -> None:
        """Raises UsageError if a folder lacks any of these shards.

        Elsewhere a list of all files takes too long.
        """
        if self._address.local is None:
            return
        try:
            there = set(self._address.names(""))
        except OSError as error:
            raise UsageError(f"{self._address}: {error.strerror or error}") from error
        names = [self._index.shards[shard] for shard in wanted]
        missing = [name for name in names if name not in there]
        if missing:
            raise UsageError(
                f"{self._address}: {counted(len(missing), 'shard', of=len(names), verb='are')} "
                f"not there, such as "
                f"{missing[0]}. Copy them, or make the index ({self._index.where}) anew: 'vidssl data index'"
            )

    def _look_at_length(self, shard: int) -> None:
        """Raises OSError if a shard in a folder is of another length than was indexed; looks once."""
        if self._address.local is None or shard in self._seen:
            return
        name, size = self._index.shards[shard], int(self._index.shard_bytes[shard])
        there = self._address.size(name)
        if there != size:
            raise OSError(_replaced(there, size))
        self._seen.add(shard)

    def _why_not(self, name: str, size: int) -> str:
        there = self._address.size(name)
        if there != size:
            return f"{name} cannot be read: {_replaced(there, size)}"
        return f"{name} is damaged or was replaced: no file begins where the index states; {_REPLACED}"


def _replaced(there: int, size: int) -> str:
    return f"it has {counted(there, 'byte')}, not {size} as when it was indexed; {_REPLACED}"


def _is_member(found: bytes, length: int) -> bool:
    """Whether these are all the bytes of a tar's header, and of a file of the length that it states."""
    if len(found) != length:
        return False
    try:
        stated = tarfile.TarInfo.frombuf(found[:BLOCK], "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        return False
    return stated == length - BLOCK or length > _LONGEST_IN_HEADER


def _is_of(member: Member, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == member.entry.sha256
