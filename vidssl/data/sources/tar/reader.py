"""The content of samples in tar shards: read in one piece, and known for what it is or refused."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable

from vidssl.data.sources.tar.cache import ShardCache
from vidssl.data.sources.tar.index import BLOCK, Member, ShardIndex
from vidssl.data.sources.tar.storage import Address
from vidssl.errors import UsageError, counted
from vidssl.interfaces import UnreadableSample

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

    def mend(self, number: int, member: Member, content: bytes) -> bytes | None:
        """What to decode instead of a content that does not decode; None if it is as it was indexed.

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
        return f"{name} is damaged or was replaced: no file begins where the index says; {_REPLACED}"


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
