"""One shard: a tar in the convention of WebDataset, written by one process and read back."""

import errno
import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vidssl.data.sources.manifest import FileRecord
from vidssl.data.sources.tar.index import Member, Shard
from vidssl.data.sources.tar.storage import OWN_DISK, Address
from vidssl.tools.data.runner import CannotWrite

_BESIDE = (".json", ".cls")  # endings of what lies beside a video or image


@dataclass(frozen=True)
class ShardToPack:
    """A shard and what goes into it.

    Attributes:
        name: of the tar.
        first: number of its first sample.
        root: folder that keys are relative to.
        entries: of its files, the bad ones among them.
        numbers: that .cls states for classes of the label "class", by name.
    """

    out: Address
    name: str
    first: int
    root: Path
    entries: tuple[FileRecord, ...]
    numbers: Mapping[str, int]


def pack_shard(task: ShardToPack) -> Shard | CannotWrite:
    """Writes a shard and verifies it. Never raises for faults of files or of the place."""
    try:
        with task.out.write(task.name) as file:
            members = _fill(file, task)
        _verify(task.out, task.name, members)
        return Shard(task.name, task.out.size(task.name), members)
    except OSError as error:  # reading originals raises none: it was in writing, or in reading back
        own = task.out.local is None and error.errno in OWN_DISK
        where = f" (in {tempfile.gettempdir()}; TMPDIR names another folder)" if own else ""
        return CannotWrite(f"cannot write {task.out.file(task.name)}: {error.strerror or error}{where}")


def _fill(file: BinaryIO, task: ShardToPack) -> tuple[Member, ...]:
    members = []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, entry in enumerate(task.entries, start=task.first):
            content = _content(task.root, entry) if entry.usable else entry.reason
            if isinstance(content, str):
                bad = entry if not entry.usable else replace(entry, status="unreadable", reason=content)
                members.append(Member(bad, -1))
                continue
            stem, ending = f"{number:08d}", PurePosixPath(entry.key).suffix.lower()
            start = _add(tar, stem + ending, content, entry.mtime_ns)
            _add(tar, f"{stem}.json", json.dumps(_about(entry)).encode(), entry.mtime_ns)
            if "class" in entry.labels:
                number_of_class = task.numbers[entry.labels["class"]]
                _add(tar, f"{stem}.cls", str(number_of_class).encode(), entry.mtime_ns)
            members.append(Member(entry, start))
    return tuple(members)


def _content(root: Path, entry: FileRecord) -> bytes | str:
    """Content of a file; in words, why it is not what the entry describes."""
    for last in (False, True):  # a disk may fail once
        try:
            # whole, as a reader of the shard does: a file that fails half-way must leave no half in the tar
            content = (root / entry.key).read_bytes()
            break
        except OSError as error:
            if last:
                return f"it cannot be read ({error.strerror})"
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return "its content changed while it was being packed"
    return content


def _about(entry: FileRecord) -> dict[str, object]:
    """Facts of a sample for other readers, and for 'data index'."""
    about: dict[str, object] = {"key": entry.key, "labels": dict(entry.labels), "sha256": entry.sha256}
    if entry.segments:
        about["segments"] = entry.segments
    if entry.facts is not None:
        facts = entry.facts
        about |= {"frames": facts.num_frames, "fps": facts.fps, "height": facts.height, "width": facts.width}
    return about


def _add(tar: tarfile.TarFile, name: str, content: bytes, mtime_ns: int) -> int:
    """Adds a file and returns where its content begins."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mtime = max(mtime_ns // 10**9, 0)
    tar.addfile(info, BytesIO(content))
    # counted from its end: headers differ in length
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _verify(out: Address, name: str, members: Sequence[Member]) -> None:
    """Raises OSError unless each content lies where the index has it."""
    wanted = [(one.start, one.entry.bytes, one.entry.sha256) for one in members if one.start >= 0]
    found = []
    try:
        with out.open(name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for info in tar:
                content = tar.extractfile(info)
                if not info.name.endswith(_BESIDE) and content is not None:
                    digest = hashlib.sha256(content.read()).hexdigest()
                    found.append((info.offset_data, info.size, digest))
    except tarfile.TarError as error:
        raise _otherwise() from error
    if found != wanted:
        raise _otherwise()


def _otherwise() -> OSError:
    return OSError(errno.EIO, "it reads back otherwise than it was written: the disk or service is at fault")


_KEY_AND_ENDING = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # WebDataset's rule
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KEPT = 2 * tarfile.BLOCKSIZE


class DamagedTar(Exception):
    """A tar cannot be read further; ``reason`` in words. What came before is sound."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def split_name(name: str) -> tuple[str, str]:
    """Key of a sample and the ending of one of its files, which begins at the first dot of the base name.

    >>> split_name("train/0001.left.mp4")
    ('train/0001', 'left.mp4')

    The ending is empty for what belongs to no sample: hidden files and those without a dot.
    """
    match = _KEY_AND_ENDING.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else (name, "")


def walk_tar(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Everything in a tar, in order; contents can be read until the next is asked for.

    Raises:
        DamagedTar: if it ends early, is damaged or compressed, or is no tar.
        OSError: if it cannot be read.
    """
    source = file if file.seekable() else Onward(file)
    start = source.read(6)
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise DamagedTar(
                f"compressed with {name}: unpack it to a plain .tar, for samples are read in place"
            )
    source.seek(0)
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for info in tar:
                yield tar, info
            source.seek(tar.offset)
            if source.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DamagedTar(f"damaged behind byte {tar.offset}: no header of a file where one should be")
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:  # of hostile headers too
        raise DamagedTar(f"damaged or cut off ({error})") from error


class Onward(io.RawIOBase):
    """A stream that goes forwards, or back by two blocks of a tar: all that ``tarfile`` asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last = b""  # bytes just passed
        self._passed = 0
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._passed - len(self._last):
            raise io.UnsupportedOperation("only forwards")
        while offset > self._passed and self._pass(min(offset - self._passed, 1 << 20)):
            pass
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if self._place > self._passed:  # a seek past the end
            return b""
        held = (
            self._last[len(self._last) - (self._passed - self._place) :]
            if self._place < self._passed
            else b""
        )
        if size >= 0:
            held = held[:size]
        more = b""
        if size < 0 or len(held) < size:
            more = self._pass(size - len(held) if size >= 0 else -1)
        self._place += len(held) + len(more)
        return held + more

    def _pass(self, size: int) -> bytes:
        found = self._file.read(size)
        self._last = (self._last + found)[-_KEPT:] if len(found) < _KEPT else found[-_KEPT:]
        self._passed += len(found)
        return found
