"""Videos that a data set holds twice, and what its test part has in common with its training part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vidssl.data.sources.manifest import Entry
from vidssl.data.sources.official.groups import shared_groups


@dataclass(frozen=True)
class Leak:
    """A test video and the first training video that it has something in common with."""

    test: str
    train: str


def duplicates(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Keys of files with the same content, each set of them sorted."""
    by_content: dict[str, list[str]] = {}
    for entry in entries:
        if entry.sha256:
            by_content.setdefault(entry.sha256, []).append(entry.key)
    return sorted(tuple(sorted(keys)) for keys in by_content.values() if len(keys) > 1)


def same_content(train: Iterable[Entry], test: Iterable[Entry]) -> list[Leak]:
    """Test videos whose very bytes are those of a training video."""
    first: dict[str, str] = {}
    for entry in train:
        first.setdefault(entry.sha256, entry.key)
    first.pop("", None)
    return [Leak(entry.key, first[entry.sha256]) for entry in test if entry.sha256 in first]


def same_group(train: Iterable[Entry], test: Iterable[Entry]) -> list[Leak]:
    """Test videos cut from the same video as a training video, as names of UCF101 and HMDB51 tell."""
    keys = ([entry.key for entry in entries] for entries in (train, test))
    return [Leak(*pair) for pair in shared_groups(*keys)]
