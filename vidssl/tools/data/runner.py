"""How all commands of ``vidssl data`` work: files, processes with a bar, the journal of what is done."""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from vidssl.data.classes import ordered_classes
from vidssl.data.decode.content import LIMITS, Limits
from vidssl.data.decode.examine import FileToExamine
from vidssl.data.sources import listing as listings, lists
from vidssl.data.sources.manifest import FileRecord, Manifest
from vidssl.data.workers import Lost, Made, Task, work
from vidssl.engine.facts import Row, parsed
from vidssl.engine.logging import progress_bar
from vidssl.errors import UsageError, counted

CLEAN, FLAWED = 0, 1  # exit codes
RESUMES = "the same command resumes from there"
_TRIES = 4  # packets, frames, all frames, a clip: each may take the limit of seconds
_SLOWEST = 10**5  # bytes a second that are looked through or written, or a process is taken for hung


@dataclass(frozen=True)
class CannotWrite:
    """The disk or place took no more; ``reason`` in words."""

    reason: str


@dataclass(frozen=True)
class Operand:
    """The files that a command works on.

    Attributes:
        root: folder that keys are relative to.
        manifest: what is known of them, where a manifest was given.
    """

    root: Path
    listing: listings.Listing
    manifest: Manifest | None = None

    def entry(self, key: str) -> FileRecord | None:
        """The manifest's entry of a file, if there is one."""
        return self.manifest.entry(key) if self.manifest is not None and key in self.manifest else None

    def stat(self, key: str) -> tuple[int, int]:
        """Size in bytes and modification time in ns of a file; -1 and 0 where there is none."""
        try:
            status = os.stat(self.root / key)
        except OSError:  # its entry will say why
            return -1, 0
        return status.st_size, status.st_mtime_ns

    def whole_files(self) -> str:
        """A line on segments, for commands that take files as they are; empty where there are none."""
        segments = self.listing.segments()
        if not segments:
            return ""
        count = counted(sum(map(len, segments.values())), "segment")
        return (
            f"The list names {count} of {counted(len(segments), 'file')}. Files are taken whole, not cut; "
            "the segments stay samples of their own"
        )


def read_operand(path: Path, root: Path | None = None, *, images: bool = False) -> Operand:
    """The files that a folder, a list (text or CSV) or a manifest (.jsonl) names.

    Args:
        root: folder that paths are relative to; by default the list's own, or the manifest's.
        images: of a folder, its images instead of its videos.

    Raises:
        UsageError: if there are none, or a list or manifest is malformed.
    """
    refuse_missing(path, "folder, list or manifest")
    if path.is_dir():
        if root is not None:
            raise UsageError(f"{path}: --root goes with a list or a manifest, not with a folder")
        kind, extensions = (
            ("image", listings.IMAGE_EXTENSIONS) if images else ("video", listings.VIDEO_EXTENSIONS)
        )
        return Operand(path, listings.list_folder(path, extensions, kind))
    if images:
        raise UsageError(f"{path}: --images goes with a folder; lists and manifests are of videos")
    if path.suffix == ".jsonl":
        manifest = Manifest(path)
        return Operand(root or manifest.root, _listing_of(manifest), manifest)
    root = root or lists.list_root(path)
    (listing,) = lists.read_lists(path, exists=lambda key: (root / key).is_file())
    return Operand(root, listing)


def refuse_missing(path: Path, kinds: str) -> None:
    """Raises UsageError if there is nothing at a path that a command was given."""
    if not path.exists():
        raise UsageError(f"{path}: no such {kinds} (paths are relative to the working folder, {Path.cwd()})")


def refuse_overlap(root: Path, out: Path, message: str) -> None:
    """Raises UsageError if the folder of results is that of the originals, in it or above it."""
    originals, results = root.resolve(), out.resolve()
    if originals == results or originals in results.parents or results in originals.parents:
        raise UsageError(message)


def _listing_of(manifest: Manifest) -> listings.Listing:
    files = [(entry.key, entry.labels, entry.segments) for entry in manifest]
    found: dict[str, set[str]] = {}
    for _, labels, segments in files:
        for given in (labels, *(own for _, _, own in segments)):
            for name, value in given.items():
                found.setdefault(name, set()).add(value)
    classes = {name: ordered_classes(values, name, manifest.path) for name, values in found.items()}
    return listings.named_listing(files, classes)


@dataclass(frozen=True)
class Runner:
    """The processes of a command. ``advance`` moves its bar by one."""

    processes: int
    advance: Callable[[], None]

    def run(
        self,
        tasks: Iterable[Task],
        job: Callable[[Task], Made],
        *,
        largest: int = 0,
        patience_seconds: float | None = None,
    ) -> Iterator[tuple[Task, Made | Lost]]:
        """Does a job for every task; results come as they are ready, see ``data.pool.work``.

        Args:
            largest: bytes of the largest task, for how long one may take.
            patience_seconds: for one task, where bytes do not decide.
        """
        if patience_seconds is None:
            patience_seconds = LIMITS.max_seconds + largest / _SLOWEST
        return work(tasks, job, processes=self.processes, patience_seconds=patience_seconds)

    def examine(
        self,
        files: Iterable[FileToExamine],
        job: Callable[[FileToExamine], FileRecord],
        limits: Limits = LIMITS,
    ) -> Iterator[FileRecord]:
        """Entries of files, one at a time in each process; one that takes its process down is unreadable."""
        patience = limits.max_seconds * _TRIES
        for file, result in self.run(files, partial(_twice, job), patience_seconds=patience):
            if isinstance(result, Lost):  # without size and time, so that the next scan tries again
                yield FileRecord(file.key, "unreadable", not_looked_at(result), labels=file.labels)
            else:
                yield result
            self.advance()


def _twice(job: Callable[[FileToExamine], FileRecord], file: FileToExamine) -> FileRecord:
    """The entry of a file; of a second look where the first could not read it, as a disk may fail once."""
    entry = job(file)
    return entry if entry.sha256 else job(file)


@contextmanager
def runner(console: Console, title: str, total: int, processes: int) -> Iterator[Runner]:
    """A runner with a bar of ``total`` steps, which is shown on a terminal."""
    with progress_bar(console, title, total) as advance:
        yield Runner(processes, advance)


def not_looked_at(lost: Lost) -> str:
    return f"it could not be looked at: {lost.reason}"


class Journal:
    """A file of JSON objects, one a line, of what is done; it grows line by line.

    A kill or a full disk may leave a line unfinished: it is passed over, and ended before the next one.
    Rows stay on the disk, memory holds where they lie.

    Args:
        path: made with the first row that is added.
        sync: wait until the disk has a row; otherwise the system's crash may lose the last ones.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.path = path
        self._sync = sync
        self._begun = False

    def rows(self) -> Iterator[tuple[tuple[int, int], Row]]:
        """Whole rows, each with its place: where its line starts, and the length of that."""
        start = 0
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                row = Row(parsed(line))
            except ValueError:  # the last line before a kill, or an empty one
                pass
            else:
                yield (start, len(line)), row
            start += len(line) + 1

    def line(self, place: tuple[int, int]) -> bytes:
        """The line at a place, without its end."""
        with self.path.open("rb") as file:
            file.seek(place[0])
            return file.read(place[1])

    def row(self, place: tuple[int, int]) -> Row:
        return Row(parsed(self.line(place)))

    def add(self, row: Mapping[str, object] | bytes) -> tuple[int, int]:
        """Writes a row, or its line as it is, and returns its place.

        Raises:
            OSError: if the disk is full; what was written before stays.
        """
        line = row if isinstance(row, bytes) else json.dumps(row, separators=(",", ":")).encode()
        before = b"" if self._begun else b"\n"  # ends what a kill left unfinished
        # unbuffered: what a full disk refused is not written once more when the file is closed
        with self.path.open("ab", buffering=0) as file:
            start = file.tell() + len(before)
            whole = before + line + b"\n"
            self._begun = False
            if file.write(whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            if self._sync:
                os.fsync(file.fileno())
        self._begun = True
        return start, len(line)

    def remove(self) -> None:
        """Removes the file, once a manifest or index has it all."""
        self.path.unlink(missing_ok=True)
