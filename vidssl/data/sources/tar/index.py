"""Which sample lies where in tar shards: the text file ``index.jsonl``, one JSON object on each line.

The first line says what the file is and numbers the classes. Then, shard by shard, a line with its name, its
bytes and the number of its samples, and behind it a line for each of these: the row of a manifest
(``manifest.FileRecord``) and ``start``, where the content begins in the tar. So a sample is read in
one piece without a look at the tar's own headers, and decoded without a look through it.

Keys are those of the data that the shards were made of, and no two are the same. Files that cannot be used
stand in the index too, for they count, with ``start`` -1. An image is a row whose container is "image".
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vidssl.data.sources.manifest import MOST_FRAMES, FileRecord, NamedSegment, line_spans, parse_segments
from vidssl.engine.facts import Row, parsed
from vidssl.errors import UsageError, agreed, counted

INDEX = "index.jsonl"
KIND, VERSION = "vidssl tar shards", 1
IMAGE = "image"  # container of an entry that is one picture
NOWHERE = -1  # start of what lies in no tar
BLOCK = 512  # of a tar; what lies in it begins at a whole number of these, behind a header of one or more
_COLUMNS = {  # of numbers, by their kind: int32 or 64, unsigned
    **dict.fromkeys(("shard_bytes", "start", "length", "spans"), "q"),
    "shard": "i",
    "num_frames": "i",
    "digests": "Q",
}
_REMEDY = "make it anew with 'vidssl data shard', or with 'vidssl data index' for shards that are there"


@dataclass(frozen=True)
class Member:
    """A file of the data: what is known of it, and where its ``entry.bytes`` bytes begin in the tar.

    ``start``: -1 for a file that cannot be used and lies in no tar.
    """

    entry: FileRecord
    start: int

    def to_line(self) -> str:
        """The member as a line of JSON, its end included."""
        return self.entry.to_line().removesuffix("}\n") + f',"start":{self.start}}}\n'

    @classmethod
    def from_row(cls, row: Row) -> "Member":
        """The member that a line of JSON describes.

        Raises:
            ValueError: if it describes none, naming the field.
        """
        return cls(FileRecord.from_row(row), row.whole("start", lowest=NOWHERE))


@dataclass(frozen=True)
class Shard:
    """A tar file: its path below the root, its length, and what lies in it, in that order."""

    name: str
    bytes: int
    members: tuple[Member, ...]

    def to_lines(self) -> str:
        """Its part of an index: a line for itself and one for each member."""
        row = {"shard": self.name, "bytes": self.bytes, "samples": len(self.members)}
        own = json.dumps(row, separators=(",", ":")) + "\n"
        return own + "".join(member.to_line() for member in self.members)


def parse_shards(text: bytes) -> list[Shard]:
    """The shards whose ``to_lines`` stand one behind another in a text without the first line of an index.

    Raises:
        ValueError: if it is damaged or ends early.
    """
    rows = (Row(parsed(line)) for line in text.splitlines())
    shards = []
    for row in rows:
        name, samples = row.path("shard"), row.whole("samples")
        members = tuple(map(Member.from_row, islice(rows, samples)))
        if len(members) < samples:
            raise ValueError(
                f"{name} has {counted(samples, 'sample')}, {len(members)} {agreed(len(members), 'are')} there"
            )
        shards.append(Shard(name, row.whole("bytes"), members))
    return shards


def write_index(
    file: BinaryIO, shards: Iterable[Shard], label_classes: Mapping[str, Sequence[str]], plan: str = ""
) -> None:
    """Writes an index.

    Args:
        shards: in the order in which samples are numbered; taken one by one.
        label_classes: label name -> names of its classes, in number order.
        plan: digest of how files were divided into shards; empty for shards made elsewhere.

    Raises:
        ValueError: if a key comes twice.
    """
    classes = {name: list(names) for name, names in label_classes.items()}
    row = {"kind": KIND, "version": VERSION, "label_classes": classes, "plan": plan}
    file.write((json.dumps(row, separators=(",", ":")) + "\n").encode())
    keys: set[bytes] = set()
    for shard in shards:
        for member in shard.members:
            digest = _digest(member.entry.key)
            if digest in keys:
                raise ValueError(f"{shard.name}: the key {member.entry.key!r} comes twice")
            keys.add(digest)
        file.write(shard.to_lines().encode())


class ShardIndex:
    """An index; what it says of a sample is parsed when asked for.

    It keeps the text and a few numbers a sample, which the workers that decode share with their parent.
    Samples are numbered from 0 as they lie, shard by shard, those that cannot be used among them.

    Args:
        text: content of the file.
        where: its address, for messages.

    Attributes:
        label_classes: label name -> names of its classes, in number order.
        plan: as ``write_index`` got it.
        shards: names, in order.
        shard_bytes: int64 [shards].
        shard: int32 [samples], number of the shard that each lies in.
        start: int64 [samples], where its content begins; -1 for one that cannot be used.
        length: int64 [samples], in bytes.
        num_frames: int32 [samples], 0 where unknown.
        labels: label name -> int32 [samples], class number or -1.
        segments: number of a file -> its segments, where samples are these and not the file.

    Raises:
        UsageError: if it is no index, is damaged or of another version.
    """

    def __init__(self, text: bytes, where: str) -> None:
        self.where, self._text = where, text
        self.label_classes: dict[str, tuple[str, ...]] = {}
        self.plan = ""
        self.segments: dict[int, tuple[NamedSegment, ...]] = {}
        self._columns: dict[str, array[int]] = {name: array(kind) for name, kind in _COLUMNS.items()}
        self._classes: dict[str, tuple[array[int], dict[str, int]]] = {}  # of each label
        names: list[str] = []
        line, awaited = 0, 0  # samples of the last shard that are still to come
        try:
            for line, (start, end) in enumerate(line_spans(text), start=1):
                row = _without_facts(text[start:end])
                if line == 1:
                    self._take_header(row)
                elif awaited:
                    awaited -= 1
                    self._take_member(row, start, end, names[-1])
                else:
                    names.append(row.path("shard"))
                    self._columns["shard_bytes"].append(row.whole("bytes"))
                    awaited = row.whole("samples")
            if awaited:
                raise ValueError(f"it ends early: {names[-1]} lacks {counted(awaited, 'sample')}")
            if line == 0:
                raise ValueError("the file is empty")
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{where}:{line}: the index is damaged ({error}); {_REMEDY}") from error
        self.shards = tuple(names)
        found = {name: np.array(column, np.dtype(column.typecode)) for name, column in self._columns.items()}
        self.shard_bytes, self.shard, self.start = found["shard_bytes"], found["shard"], found["start"]
        self.length, self.num_frames = found["length"], found["num_frames"]
        self.labels = {name: np.array(column, np.int32) for name, (column, _) in self._classes.items()}
        self._spans = found["spans"].reshape(-1, 2)
        self._by_digest = np.argsort(found["digests"], kind="stable")
        self._digests = found["digests"][self._by_digest]
        del self._columns, self._classes
        self._refuse_twins()

    def _take_header(self, row: Row) -> None:
        if row.value("kind", "") != KIND:
            said = f" but of {row.value('kind')}" if "kind" in row else ""
            raise UsageError(
                f"{self.where}:1: its first line is not that of an index of tar shards{said}; {_REMEDY}"
            )
        if row.value("version") != VERSION:
            raise ValueError(f"it is of version {row.value('version')}, this program reads version {VERSION}")
        self.plan = row.text("plan")
        self.label_classes = row.row("label_classes").names()
        for label, names in self.label_classes.items():
            self._classes[label] = array("i"), {name: number for number, name in enumerate(names)}

    def _take_member(self, row: Row, begins: int, ends: int, shard: str) -> None:
        columns = self._columns
        start, length = row.whole("start", lowest=NOWHERE), row.whole("bytes", lowest=-1)
        shard_bytes = columns["shard_bytes"]
        if start != NOWHERE and (start < BLOCK or start % BLOCK or start + length > shard_bytes[-1]):
            raise ValueError(f"{length} bytes from {start} on are no place in {shard}")
        if "segments" in row:
            self.segments[len(columns["start"])] = parse_segments(row.items("segments"))
        columns["digests"].append(int.from_bytes(_digest(row.path("key")), "big"))
        columns["shard"].append(len(shard_bytes) - 1)
        columns["start"].append(start)
        columns["length"].append(length)
        columns["num_frames"].append(row.whole("frames", 0, highest=MOST_FRAMES))
        columns["spans"].extend((begins, ends))
        labels = row.texts("labels")
        for label, (numbers, known) in self._classes.items():
            name = labels.get(label)
            if name is not None and name not in known:
                raise ValueError(f"{name!r} is no class of the label {label!r}")
            numbers.append(-1 if name is None else known[name])

    def _refuse_twins(self) -> None:
        (places,) = np.nonzero(self._digests[1:] == self._digests[:-1])
        if len(places):
            key = self.key(int(self._by_digest[places[0]]))
            raise UsageError(f"{self.where}: the key {key!r} comes twice; {_REMEDY}")

    def __len__(self) -> int:
        return len(self.start)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """bool [samples]: which lie in a shard."""
        return self.start != NOWHERE

    def member(self, number: int) -> Member:
        """The file of a sample, and where it lies.

        Raises:
            UsageError: if its line is damaged.
        """
        start, end = self._spans[number]
        try:
            return Member.from_row(Row(parsed(self._text[start:end])))
        except ValueError as error:
            line = self._text.count(b"\n", 0, start) + 1
            raise UsageError(f"{self.where}:{line}: a damaged line ({error}); {_REMEDY}") from error

    def key(self, number: int) -> str:
        return self.key_and_checksum(number)[0]

    def key_and_checksum(self, number: int) -> tuple[str, str]:
        """A sample's key, and the SHA-256 of its content."""
        start, end = self._spans[number]
        row = _without_facts(self._text[start:end])
        return row.path("key"), row.text("sha256")

    def number(self, key: str) -> int | None:
        """Which sample has this key; None if there is none."""
        digest = np.uint64(int.from_bytes(_digest(key), "big"))
        place = int(np.searchsorted(self._digests, digest))
        if place == len(self._digests) or self._digests[place] != digest:
            return None
        return int(self._by_digest[place])

    def keys(self) -> Iterator[str]:
        """All keys, in order."""
        return (self.key(number) for number in range(len(self)))


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()


def _without_facts(line: bytes) -> Row:
    """A line of JSON, of a member's only what stands before and behind its facts, which are most of it."""
    before, behind = line.find(b',"promised_frames":'), line.rfind(b',"start":')
    return Row(parsed(line[:before] + line[behind:] if 0 <= before < behind else line))
