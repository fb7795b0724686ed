"""One shard: a tar in the convention of WebDataset, written by one process and read back."""

from __future__ import annotations

import errno
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vidssl.data.addresses import Address
from vidssl.data.manifest import Entry
from vidssl.data.places import OWN_DISK
from vidssl.data.shard_index import Member, Shard

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
    entries: tuple[Entry, ...]
    numbers: Mapping[str, int]


@dataclass(frozen=True)
class CannotWrite:
    """The place took no more; ``reason`` in words."""

    reason: str


def pack_shard(task: ShardToPack) -> Shard | CannotWrite:
    """Writes a shard and verifies it. Never raises for what is wrong with files or the place."""
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


def _content(root: Path, entry: Entry) -> bytes | str:
    """What a file holds; in words, why it is not what the entry describes."""
    try:
        # whole, as a reader of the shard does: a file that fails half-way must leave no half in the tar
        content = (root / entry.key).read_bytes()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return "its content changed while it was being packed"
    return content


def _about(entry: Entry) -> dict[str, object]:
    """What stands beside a sample for other readers, and for 'data index'."""
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
    # counted from its end: how long its header is depends on what it says
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _verify(out: Address, name: str, members: Sequence[Member]) -> None:
    """Raises OSError unless each content lies where it is said to."""
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
