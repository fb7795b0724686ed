"""Which file goes into which shard: a pure function of the files and of what was asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vidssl.data.sources.segments import NamedSegment

_BLOCK = 512  # of a tar
_BESIDE = 2048  # of a sample: headers, .json and .cls


@dataclass(frozen=True)
class PlannedFile:
    """A file to pack.

    Attributes:
        key: path below the root.
        labels: label name -> name of the class.
        bytes: its size; -1 where there is no such file.
        mtime_ns: when it was last changed; 0 where there is no such file.
        segments: that are its samples, where it is not one itself.
    """

    key: str
    labels: Mapping[str, str]
    bytes: int
    mtime_ns: int
    segments: tuple[NamedSegment, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be; its samples are numbered from ``first`` on, over all shards."""

    name: str
    first: int
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a data set.

    Attributes:
        label_classes: label name -> names of its classes, in number order.
        settings: what the plan follows from, the files as a digest.
    """

    shards: tuple[PlannedShard, ...]
    label_classes: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what the shards hold."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def num_files(self) -> int:
        return sum(len(shard.files) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(max(file.bytes, 0) for shard in self.shards for file in shard.files)


def make_plan(
    files: Sequence[PlannedFile],
    label_classes: Mapping[str, tuple[str, ...]],
    *,
    seed: int,
    shard_bytes: int,
    images: bool = False,
) -> Plan:
    """Shuffles files and cuts their row into shards.

    The order follows from ``seed`` and the keys alone, so that neighbours in a shard are none in the data:
    a reader that goes through few shards at a time then still mixes classes.

    Args:
        shard_bytes: what a shard holds at most; a file larger than that has one for itself.

    Raises:
        ValueError: if ``shard_bytes`` is less than 1.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    shuffled = sorted(files, key=lambda file: _place(file.key, seed))
    shards: list[PlannedShard] = []
    filled, first = 0, 0
    for number, file in enumerate(shuffled):
        size = _in_tar(file)
        if number and filled + size > shard_bytes:
            shards.append(PlannedShard(shard_name(len(shards)), first, tuple(shuffled[first:number])))
            filled, first = 0, number
        filled += size
    if shuffled:
        shards.append(PlannedShard(shard_name(len(shards)), first, tuple(shuffled[first:])))
    settings = {"seed": seed, "shard_bytes": shard_bytes, "images": images}
    return Plan(
        tuple(shards), label_classes, {**settings, "files": _digest_of_files(shuffled, label_classes)}
    )


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def _in_tar(file: PlannedFile) -> int:
    return _BESIDE + -(-max(file.bytes, 0) // _BLOCK) * _BLOCK


def _place(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest()


def _digest_of_files(files: Sequence[PlannedFile], label_classes: Mapping[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256(json.dumps(label_classes, sort_keys=True).encode())
    for file in files:
        row: tuple[object, ...] = (file.key, file.bytes, file.mtime_ns, dict(file.labels))
        row += (file.segments,) if file.segments else ()
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
