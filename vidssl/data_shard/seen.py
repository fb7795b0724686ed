"""What is known of shards that others made: a line for each that was looked through, until all were."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vidssl.class_numbers import ordered_classes
from vidssl.data.addresses import Address
from vidssl.data.shard_index import Member, Shard, parse_shards
from vidssl.data_shard.look import SeenShard
from vidssl.errors import UsageError, counted


class Seen:
    """Shards that were looked through.

    A line that a kill left unfinished is passed over, and so is what is said of a shard that has changed.

    Args:
        path: of the file; made when the first shard is added.

    Raises:
        UsageError: if it cannot be read.
    """

    def __init__(self, path: Path, address: Address) -> None:
        self.path = path
        self._address = address
        self._spans: dict[str, tuple[int, int]] = {}  # name of a shard -> where its line lies
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from error
        start = 0
        for line in lines:
            self._take(line, start)
            start += len(line) + 1

    def _take(self, line: bytes, start: int) -> None:
        try:
            row = json.loads(line)
            parse_shards(row["lines"].encode())
            if row["address"] == str(self._address):
                self._spans[row["shard"]] = (start, len(line))
        except (KeyError, TypeError, ValueError):  # the last line before a kill, or an empty one
            return

    def has(self, name: str) -> bool:
        """Whether a shard was looked through and is the same still.

        Raises:
            OSError: if it cannot be reached.
        """
        if name not in self._spans:
            return False
        row = self._row(name)
        return (row["bytes"], row["mtime_ns"]) == (self._address.size(name), self._mtime_ns(name))

    def _mtime_ns(self, name: str) -> int:
        local = self._address.local
        return 0 if local is None else os.stat(local / name).st_mtime_ns

    def add(self, seen: SeenShard) -> None:
        """Notes what is in a shard.

        Raises:
            OSError: if the disk is full.
        """
        row = {
            "address": str(self._address),
            "shard": seen.shard.name,
            "bytes": seen.shard.bytes,
            "mtime_ns": self._mtime_ns(seen.shard.name),
            "flaw": seen.flaw,
            "videos": seen.videos,
            "samples": len(seen.shard.members),
            "left_out": seen.left_out,
            "class_names": list(seen.class_names.items()),
            "lines": seen.shard.to_lines(),
        }
        line = json.dumps(row).encode()
        with self.path.open("ab") as file:
            file.write(b"\n")  # ends a line that a kill left unfinished
            start = file.tell()
            file.write(line + b"\n")
        self._spans[seen.shard.name] = (start, len(line))

    def _row(self, name: str) -> dict:
        start, length = self._spans[name]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(length))

    def _shard(self, name: str) -> Shard:
        (shard,) = parse_shards(self._row(name)["lines"].encode())
        return shard

    def classes(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Label name -> names of its classes, in number order, over these shards."""
        found: dict[str, set[str]] = {}
        stated: dict[int, set[str]] = {}
        for name in names:
            for number, given in self._row(name)["class_names"]:
                stated.setdefault(number, set()).add(given)
            for member in self._shard(name).members:
                for given in (member.entry.labels, *(own for _, _, own in member.entry.segments)):
                    for label, value in given.items():
                        found.setdefault(label, set()).add(value)
        classes = {
            label: ordered_classes(values, label, self._address) for label, values in sorted(found.items())
        }
        if "class" in classes:
            classes["class"] = _as_stated(stated, classes["class"])
        return classes

    def flaws(self, names: Sequence[str]) -> list[str]:
        """What is wrong with shards as such, in words."""
        flaws = []
        for name in names:
            row = self._row(name)
            if row["flaw"]:
                flaws.append(
                    f"{name}: {row['flaw']}, after {counted(len(self._shard(name).members), 'sample')}"
                )
        return flaws

    def left_out(self, names: Sequence[str]) -> int:
        """How many samples hold no video, or no image where no shard has videos."""
        rows = [self._row(name) for name in names]
        videos = any(row["videos"] for row in rows)
        images = sum(row["samples"] for row in rows if videos and not row["videos"])
        return sum(row["left_out"] for row in rows) + images

    def shards(self, names: Sequence[str]) -> Iterator[Shard]:
        """The shards, such that no key comes twice and images of videos are no samples of their own."""
        videos = any(self._row(name)["videos"] for name in names)
        keys: set[str] = set()
        twice = False
        for shard in self._used(names, videos):
            own = {member.entry.key for member in shard.members}
            twice = twice or not keys.isdisjoint(own)
            keys |= own
        for shard in self._used(names, videos):
            if twice:  # then all, so that a key says nothing of which shard came first
                stem = shard.name.removesuffix(".tar")
                shard = replace(shard, members=tuple(_prefixed(member, stem) for member in shard.members))
            yield shard

    def _used(self, names: Sequence[str], videos: bool) -> Iterator[Shard]:
        for name in names:
            shard = self._shard(name)
            yield shard if self._row(name)["videos"] or not videos else replace(shard, members=())

    def remove(self) -> None:
        """Removes the file, once an index says it all."""
        self.path.unlink(missing_ok=True)


def _prefixed(member: Member, shard: str) -> Member:
    return replace(member, entry=replace(member.entry, key=f"{shard}/{member.entry.key}"))


def _as_stated(stated: dict[int, set[str]], names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names under the numbers that samples state, where they do so for each and agree."""
    by_number = {number: min(given) for number, given in stated.items() if len(given) == 1}
    if len(by_number) < len(stated) or sorted(by_number.values()) != sorted(names):
        return names
    return tuple(by_number[number] for number in sorted(by_number))
