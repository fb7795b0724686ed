"""One tar that others made, looked through by one process: its videos or images and their labels."""

import hashlib
import json
import os
import tarfile
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from vidssl.data.classes import LARGEST, TARGET, check_cell, may_be_class
from vidssl.data.decode import decode, examine, images
from vidssl.data.decode.content import Content, why_not_a_file
from vidssl.data.sources.listing import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from vidssl.data.sources.manifest import FileRecord, NamedSegment, parse_segments
from vidssl.data.sources.tar.index import IMAGE, Member, Shard
from vidssl.data.sources.tar.storage import PAUSES_SECONDS, TRIES, Address
from vidssl.engine.facts import Row, parsed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import UnreadableSample
from vidssl.tools.data.pack import DamagedTar, split_name, walk_tar


def examine_image(file: examine.FileToExamine) -> FileRecord:
    """The entry of an image: a clip of one frame. Never raises for faults of the file."""
    path = file.root / file.key
    reason = why_not_a_file(path)
    if reason:
        return FileRecord(file.key, "unreadable", reason, labels=file.labels)
    try:
        content = Content(file.key, path.read_bytes())
        mtime_ns = os.stat(path).st_mtime_ns
    except OSError as error:
        return FileRecord(file.key, "unreadable", f"it cannot be read ({error.strerror})", labels=file.labels)
    return replace(examine_image_content(content), mtime_ns=mtime_ns, labels=file.labels)


def examine_image_content(content: Content) -> FileRecord:
    """The same of an image that lies in memory, under its name."""
    about = {"bytes": len(content.data), "sha256": hashlib.sha256(content.data).hexdigest()}
    try:
        _, _, height, width = images.read_image(content, content.name).shape
        with Image.open(BytesIO(content.data)) as image:
            codec = (image.format or "").lower()
    except UnreadableSample as error:
        return FileRecord(content.name, "unreadable", error.reason, **about)  # type: ignore[arg-type]
    facts = decode.VideoFacts(
        num_frames=1, promised_frames=1, fps=0.0, height=height, width=width, rotation=0, codec=codec,
        no_seeking="", pts=array("q"), keyframes=(), tick_seconds=0.0,
    )  # fmt: skip
    return FileRecord(content.name, "ok", facts=facts, container=IMAGE, **about)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ShardToLookAt:
    """A tar to look through.

    Attributes:
        name: below the address.
        note: a file that keeps the name of what is being decoded, in case that ends the process.
        fatal: name of a file in the tar -> why it is not to be decoded again.
    """

    address: Address
    name: str
    note: Path
    fatal: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SeenShard:
    """Contents of a tar.

    Attributes:
        shard: its videos or images, whose keys are unique in it.
        flaw: why it could not be read to its end; empty if it could.
        videos: whether its samples are videos; if any is, images are no samples of their own.
        left_out: samples without video or image.
        class_names: class number -> its name, where samples state both.
    """

    shard: Shard
    flaw: str = ""
    videos: bool = True
    left_out: int = 0
    class_names: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CannotRead:
    """The tar could not be reached; ``reason`` in words."""

    reason: str


def look_at(task: ShardToLookAt) -> SeenShard | CannotRead:
    """Looks through a tar. Never raises for its faults."""
    for pause in (*PAUSES_SECONDS[: TRIES - 1], None):
        try:
            return _look(task)
        except OSError as error:
            if pause is None or task.address.local is not None:
                return CannotRead(f"{task.address.file(task.name)}: {error.strerror or error}")
            time.sleep(pause)  # a connection that broke in the middle of a tar
    raise AssertionError


def _look(task: ShardToLookAt) -> SeenShard:
    size = task.address.size(task.name)
    seen, flaw = _Seen(task, size), ""
    with task.address.open(task.name) as file:
        try:
            for tar, info in walk_tar(file):
                seen.take(tar, info)
        except DamagedTar as error:
            flaw = error.reason
    return seen.as_shard(size, flaw)


_NOTHING = Row({})
_LARGEST_TEXT = 16 << 20  # bytes of a .json or .cls
_DIGITS = 19  # of a number that fits into 63 bits there are fewer


class _Seen:
    """A tar as far as it was looked through."""

    def __init__(self, task: ShardToLookAt, size: int) -> None:
        self._task, self._size = task, size
        self._members: dict[str, Member] = {}  # by name in the tar
        self._samples: dict[str, list[str]] = {}  # key of a sample -> names of its videos or images
        self._about: dict[str, Row] = {}  # key of a sample -> content of its .json
        self._classes: dict[str, str] = {}  # key of a sample -> content of its .cls
        self._videos = False
        self._refused: set[str] = set()  # classes

    def take(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        key, ending = split_name(info.name)
        if not ending or info.isdir():
            return
        self._samples.setdefault(key, [])
        kind = ending.rpartition(".")[2]
        # GIF and WebP may be either: their content decides
        video = kind in VIDEO_EXTENSIONS and kind not in IMAGE_EXTENSIONS
        if video and not self._videos:
            self._videos = True  # images beside videos show them
            self._forget_images()
        if video or (kind in IMAGE_EXTENSIONS and not self._videos):
            name = info.name.removeprefix("./").replace("\0", "\\0")
            if name not in self._members:
                self._samples[key].append(name)
            self._members.pop(name, None)  # of two files of a name the later one counts, as in unpacking
            self._members[name] = self._member(tar, info, name, kind)
        elif ending in ("json", "cls") and _is_plain(info) and info.size <= _LARGEST_TEXT:
            self._take_labels(key, ending, self._content(tar, info))

    def _forget_images(self) -> None:
        self._members.clear()
        for names in self._samples.values():
            names.clear()

    def _take_labels(self, key: str, ending: str, content: bytes | None) -> None:
        text = (content or b"").decode(errors="replace").strip()
        if ending == "cls":
            if text:
                number = text.isdecimal() and len(text) < _DIGITS
                self._classes[key] = str(int(text)) if number else text
            return
        with suppress(ValueError):  # captions and the like are not needed here
            self._about[key] = Row(parsed(text))

    def _member(self, tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, kind: str) -> Member:
        if not _is_plain(info):
            return Member(
                FileRecord(name, "unreadable", "it is a link, or no regular file, inside its tar"), -1
            )
        content = self._content(tar, info)
        if content is None:
            return Member(FileRecord(name, "unreadable", "it is cut off with its tar"), -1)
        if name in self._task.fatal:
            return Member(FileRecord(name, "unreadable", self._task.fatal[name]), -1)
        self._task.note.write_text(json.dumps(name))
        image = kind in IMAGE_EXTENSIONS and not images.is_animated(Content(name, content))
        entry = (examine_image_content if image else examine.examine_content)(Content(name, content))
        return Member(entry, info.offset_data if entry.usable else -1)

    def as_shard(self, size: int, flaw: str) -> SeenShard:
        entries, names_of_classes = {}, {}
        for sample, names in self._samples.items():
            labels, number = self._labels(sample)
            if number is not None:
                names_of_classes[number] = labels["class"]
            for name in names:
                key = self._own_key(sample) if len(names) == 1 else ""
                entry = self._members[name].entry
                entries[name] = replace(
                    entry, key=key or entry.key, labels=labels, segments=self._segments(sample)
                )
        members = tuple(Member(entries[name], member.start) for name, member in self._members.items())
        if len({member.entry.key for member in members}) < len(members):
            members = tuple(Member(replace(m.entry, key=name), m.start) for name, m in self._members.items())
        left_out = sum(not names for names in self._samples.values())
        if self._refused:
            wrong = f"{counted(len(self._refused), 'class', 'classes')} below 0 or above {LARGEST:,}"
            named = ", ".join(sorted(self._refused)[:3])
            flaw = "; ".join(filter(None, [flaw, f"{wrong}, taken for none: {named:.100}"]))
        return SeenShard(
            Shard(self._task.name, size, members), flaw, self._videos, left_out, names_of_classes
        )

    def _labels(self, sample: str) -> tuple[dict[str, str], int | None]:
        """Names of a sample's classes, and the number of its "class" where both are stated.

        Numbers that cannot be those of classes are left out, so that one sample spoils no label.
        """
        labels, number = self._stated(sample)
        wrong = {
            name
            for name, value in labels.items()
            if not (_is_number(value) if name.startswith(TARGET) else may_be_class(value))
        }
        self._refused |= {labels[name] for name in wrong}
        return {name: value for name, value in labels.items() if name not in wrong}, number

    def _stated(self, sample: str) -> tuple[dict[str, str], int | None]:
        number = self._classes.get(sample)
        try:
            given = self._about.get(sample, _NOTHING).row("labels")
        except ValueError:
            return ({} if number is None else {"class": number}), None
        labels = {
            name: str(value)
            for name, value in given.entries()
            if isinstance(value, (str, int)) or (isinstance(value, float) and name.startswith(TARGET))
        }
        if "class" in labels and number is not None and number.isdecimal() and len(number) < _DIGITS:
            return labels, int(number)
        return labels, None

    def _segments(self, sample: str) -> tuple[NamedSegment, ...]:
        """The segments that 'data shard' wrote beside a sample; none if it is no list of such."""
        try:
            return parse_segments(self._about.get(sample, _NOTHING).items("segments", ()))
        except ValueError:
            return ()

    def _own_key(self, sample: str) -> str:
        """The key that a file had before 'data shard' packed it; empty if it was packed by others."""
        about = self._about.get(sample, _NOTHING)
        with suppress(ValueError):
            return about.path("key") if "labels" in about and "sha256" in about else ""
        return ""

    def _content(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
        """Content of a regular file; None if the tar ends in it; its size is looked at first."""
        if info.offset_data + info.size > self._size:
            return None
        file = tar.extractfile(info)
        assert file is not None
        try:
            return file.read()
        except tarfile.ReadError:
            return None


def _is_number(cell: str) -> bool:
    try:
        return check_cell(TARGET, cell, "") == cell
    except UsageError:
        return False


def _is_plain(info: tarfile.TarInfo) -> bool:
    """Whether a file's bytes lie in the tar as they are: a sparse one can grow to any length."""
    return info.isreg() and not info.issparse()
