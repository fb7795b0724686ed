"""Where prepared videos lie: a file for each, or blocks in shards; and what describes them in the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vidssl.data.sources.jpeg_shards import INDEX, KIND, VERSION, shard_name
from vidssl.data.sources.listing import Listing
from vidssl.data.sources.manifest import Entry, header
from vidssl.data.sources.origins import origin_of, recorded
from vidssl.engine.atomic import write_text
from vidssl.tools.data.encode import Prepared
from vidssl.tools.data.journal import Journal

_SHARD_BYTES = 1 << 30


class Output(ABC):
    """A folder of results."""

    @abstractmethod
    def target(self, key: str) -> Path:
        """The file that a video is made into."""

    @abstractmethod
    def keep(self, done: Prepared) -> Prepared:
        """Takes in what was made; returns it with all that is needed to find it.

        Raises:
            OSError: if the disk is full.
        """

    @abstractmethod
    def has(self, done: Prepared) -> bool:
        """Whether a result is still there whole."""

    @abstractmethod
    def describe(self, listing: Listing, journal: Journal, root: Path) -> Path:
        """Writes the manifest or index of all results and returns its path.

        Args:
            root: folder of the originals.

        Raises:
            UsageError: if it cannot be written.
        """


class Files(Output):
    """A file for each video, under the key that it has; the manifest lies beside the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def target(self, key: str) -> Path:
        return self.folder / key

    def keep(self, done: Prepared) -> Prepared:
        return done

    def has(self, done: Prepared) -> bool:
        try:
            return os.stat(self.folder / done.key).st_size == done.bytes
        except OSError:
            return False

    def describe(self, listing: Listing, journal: Journal, root: Path) -> Path:
        whole = self.folder.absolute()
        manifest = whole.with_name(f"{whole.name}.manifest.jsonl")
        lines = [header(self.folder)]
        segments = listing.segments()
        for file in listing.whole().files:
            done = journal.latest[file.path]
            entry = Entry(file.path, "unreadable", f"it could not be prepared: {done.reason}")
            if not done.reason:
                entry = Entry.from_row(done.about)
            labels, own = listing.class_names(file), segments.get(file.path, ())
            lines.append(replace(entry, labels=labels, segments=own).to_line())
        write_text(manifest, "".join(lines))
        return manifest


class Shards(Output):
    """Blocks of JPEGs in shards of about a gibibyte, one process adding to them.

    What lies behind the last block of the journal was left by a process that was ended, and is cut off.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._work = folder / ".work"
        self._work.mkdir(exist_ok=True)
        self._ends: dict[str, int] = {}
        for done in journal.lines:
            if not done.reason:
                name, start = _place(done)
                self._ends[name] = max(self._ends.get(name, 0), start + done.bytes)
        for path in sorted(folder.glob("*.jpegs")):
            if path.stat().st_size > self._ends.get(path.name, 0):
                os.truncate(path, self._ends.get(path.name, 0))
        self._number = max(len(self._ends) - 1, 0)

    def target(self, key: str) -> Path:
        return self._work / hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]

    def keep(self, done: Prepared) -> Prepared:
        name = shard_name(self._number)
        if self._ends.get(name, 0) >= _SHARD_BYTES:
            self._number += 1
            name = shard_name(self._number)
        start = self._ends.get(name, 0)
        block = self.target(done.key)
        # at a stated place, not at the end: what a full disk left half written is written over
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b") as shard, block.open("rb") as made:
            shard.seek(start)
            shutil.copyfileobj(made, shard, 1 << 20)
            shard.flush()
            os.fsync(shard.fileno())
        block.unlink()
        self._ends[name] = start + done.bytes
        return replace(done, about={**done.about, "shard": name, "start": start})

    def has(self, done: Prepared) -> bool:
        name, start = _place(done)
        try:
            return os.stat(self.folder / name).st_size >= start + done.bytes
        except OSError:
            return False

    def describe(self, listing: Listing, journal: Journal, root: Path) -> Path:
        head = {"kind": KIND, "version": VERSION, "label_classes": listing.label_classes}
        rows: list[Mapping[str, object]] = [head]
        segments = listing.segments()
        for file in listing.whole().files:
            done = journal.latest[file.path]
            row = {"key": file.path, "labels": file.labels, "reason": done.reason, "frames": done.frames}
            own = {"segments": segments[file.path]} if file.path in segments else {}
            rows.append({**row, **own, **done.about, "origin": recorded(origin_of(root / file.path))})
        write_text(self.folder / INDEX, "".join(json.dumps(row) + "\n" for row in rows))
        shutil.rmtree(self._work, ignore_errors=True)
        return self.folder / INDEX


def _place(done: Prepared) -> tuple[str, int]:
    shard, start = done.about["shard"], done.about["start"]
    assert isinstance(start, int)
    return str(shard), start
