"""Findings of a scan about every file of a data set: a text file with one JSON object on each line.

The first line says what the file is; each of the others describes a video (docs/data.md has all fields).
Written by ``vidssl data check``, read by sources, which then neither open a bad file nor look twice at a
good one: the timestamps and keyframes that seeking needs are in it.

A segment is a part of a file that a list gives by times: which frames belong to it is worked out here too.
"""

import json
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from vidssl.data.decode.decode import Keyframe, VideoFacts
from vidssl.engine.facts import HIGHEST, Row, parsed, parts
from vidssl.engine.process import file_sha256
from vidssl.errors import UsageError, counted
from vidssl.interfaces import UnreadableSample

NamedSegment = tuple[float, float, Mapping[str, str]]  # start, end, label name -> name of the class
_SLACK_SECONDS = 1.0  # by which a file that was cut to a segment may be longer: cuts fall on keyframes
_TICK = 1e-6  # of a frame or timestamp; 0.3 s at 10 frames a second is frame 3, not 4


def parse_segments(rows: Sequence[object]) -> tuple[NamedSegment, ...]:
    """Segments as a line of JSON has them: ``[[start, end, {label: class}], ...]``.

    Raises:
        ValueError: if these are none.
    """
    found: list[NamedSegment] = []
    for row in rows:
        entry = parts(row, "segments", ("start", "end", "labels"))
        found.append((entry.real("start"), entry.real("end"), entry.texts("labels")))
    return tuple(found)


@dataclass(frozen=True)
class Segment:
    """A stretch of a video, in seconds from its first frame.

    Attributes:
        start: of the first frame that belongs to it, at the earliest.
        end: every frame of it is before that.
        trimmed: whether a file that lasts no longer than the segment and a second was cut to it already:
            "yes", and it is used whole; "unclear" where several segments are listed of it.
    """

    start: float
    end: float
    trimmed: Literal["no", "yes", "unclear"] = "no"

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end."""
        return self.start, self.end

    def overlaps(self, other: "Segment") -> bool:
        """Whether the two have time in common."""
        return self.start < other.end and other.start < self.end

    def frames_of(self, key: str, facts: VideoFacts) -> range:
        """``frames`` of a file that was looked through."""
        return self.frames(key, facts.num_frames, facts.fps, facts.pts, facts.tick_seconds)

    def frames(self, key: str, num_frames: int, fps: float, pts: "array[int]", tick_seconds: float) -> range:
        """Numbers of the frames that belong to it, at least one.

        Args:
            num_frames: of the file.
            fps: its mean frame rate; 0 if it states none.
            pts: timestamp of each frame, rising, in units of ``tick_seconds``; empty to go by ``fps``.

        Raises:
            UnreadableSample: if the file ends before the segment begins, or its times are not known.
        """
        by_pts = bool(pts) and tick_seconds > 0
        if not by_pts and fps <= 0:
            raise UnreadableSample(
                key, f"it states no frame rate, so its segment from {self.start:g} s on is not to be found"
            )
        seconds = num_frames / fps if fps > 0 else (pts[-1] - pts[0]) * tick_seconds
        if self.trimmed != "no" and seconds <= self.end - self.start + _SLACK_SECONDS:
            if self.trimmed == "unclear":
                raise UnreadableSample(
                    key,
                    f"it lasts {seconds:.1f} s: it is one of the segments that are listed of it, but which?",
                )
            return range(num_frames)

        def number(second: float) -> int:
            if not by_pts:
                return min(math.ceil(second * fps - _TICK), num_frames)
            return bisect_left(pts, pts[0] + math.ceil(second / tick_seconds - _TICK))

        first = number(self.start)
        if first >= num_frames:
            raise UnreadableSample(
                key, f"it lasts {seconds:.1f} s, and its segment begins at {self.start:g} s"
            )
        return range(first, max(number(self.end), first + 1))


Status = Literal["ok", "cut", "damaged", "unreadable"]
Rate = Literal["constant", "variable", "unknown"]
USABLE: tuple[Status, ...] = ("ok", "cut")
VERSION = 1
_KIND = "vidssl manifest"
MOST_FRAMES, _LONGEST_SIDE = 10**8, 10**6  # beyond, a file is not one that was looked at


@dataclass(frozen=True)
class FileRecord:
    """A file as the scan found it.

    Attributes:
        key: its path below the root.
        status: "ok": every frame decodes; "cut": fewer frames are there than the header promises, all of
            which decode; "damaged": some frames are lost or spoilt; "unreadable": no frame decodes.
        reason: what is wrong, in words; empty where all is well.
        bytes: its size; -1 where there is no such file.
        mtime_ns: when it was last changed, as the file system says.
        sha256: of its content; empty where it could not be read.
        labels: label name -> name of the class.
        segments: start and end in seconds and labels of each segment, where the list gave any; the file as a
            whole is no sample then.
        facts: None where unreadable.
        container: FFmpeg's name of the format of the file.
        rate: whether frames are evenly spaced in time.
        gop: largest distance from one keyframe to the next, or to the end, in frames; 0 if unknown.
        clip_seconds: of a core, that decoding one clip took; 0 where none was timed.
        interlaced: whether any frame is made of two fields.
        old: whether a version wrote it that did not look for all of this; a scan then looks again.
    """

    key: str
    status: Status
    reason: str = ""
    bytes: int = -1
    mtime_ns: int = 0
    sha256: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    facts: VideoFacts | None = None
    container: str = ""
    rate: Rate = "unknown"
    gop: int = 0
    clip_seconds: float = 0.0
    segments: tuple[NamedSegment, ...] = ()
    interlaced: bool = False
    old: bool = False

    @property
    def usable(self) -> bool:
        return self.status in USABLE

    def to_line(self) -> str:
        """The entry as a line of JSON, its end included."""
        row: dict[str, object] = {
            "key": self.key,
            "status": self.status,
            "reason": self.reason,
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
            "sha256": self.sha256,
            "labels": dict(self.labels),
        }
        if self.segments:
            row["segments"] = self.segments
        if self.facts is not None:
            row |= _facts_row(self.facts)
            row |= {"container": self.container, "rate": self.rate, "gop": self.gop}
            row["interlaced"] = self.interlaced
            row["clip_seconds"] = round(self.clip_seconds, 6)
        return json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n"

    @classmethod
    def from_row(cls, row: Row) -> "FileRecord":
        """The entry that a line of JSON describes.

        Raises:
            ValueError: if it describes none, naming the field.
        """
        own = cls(
            key=row.path("key"),
            status=row.one_of("status", get_args(Status)),
            reason=row.text("reason"),
            bytes=row.whole("bytes", lowest=-1),
            mtime_ns=row.whole("mtime_ns", lowest=-HIGHEST),
            sha256=row.text("sha256"),
            labels=row.texts("labels"),
            segments=parse_segments(row.items("segments", ())),
        )
        if "frames" not in row:
            return own
        return replace(
            own,
            container=row.text("container"),
            rate=row.one_of("rate", get_args(Rate)),
            gop=row.whole("gop"),
            clip_seconds=row.real("clip_seconds"),
            interlaced=row.flag("interlaced", False),
            old="interlaced" not in row,
            facts=_facts_of(row),
        )


_PLAIN = ("promised_frames", "fps", "height", "width", "rotation", "codec", "no_seeking", "tick_seconds")


def _facts_row(facts: VideoFacts) -> dict[str, object]:
    return {
        "frames": facts.num_frames,
        **{name: getattr(facts, name) for name in _PLAIN},
        "pts": packed(facts.pts),
        "keyframes": [[keyframe.number, keyframe.pts] for keyframe in facts.keyframes],
        "mirrored": facts.mirrored,
        "pixel_aspect": facts.pixel_aspect,
    }


def _facts_of(row: Row) -> VideoFacts:
    frames = row.whole("frames", lowest=1, highest=MOST_FRAMES)
    return VideoFacts(
        num_frames=frames,
        promised_frames=row.whole("promised_frames"),
        fps=row.real("fps"),
        height=row.whole("height", lowest=1, highest=_LONGEST_SIDE),
        width=row.whole("width", lowest=1, highest=_LONGEST_SIDE),
        rotation=row.one_of("rotation", (0, 90, 180, 270)),
        codec=row.text("codec"),
        no_seeking=row.text("no_seeking"),
        pts=unpacked(row.whole_numbers("pts"), frames),
        keyframes=_keyframes(row.items("keyframes"), frames),
        tick_seconds=row.real("tick_seconds"),
        mirrored=row.flag("mirrored", False),
        pixel_aspect=row.real("pixel_aspect", 1.0, lowest=1e-6),
    )


def _keyframes(pairs: Sequence[object], num_frames: int) -> tuple[Keyframe, ...]:
    """Raises ValueError unless they are pairs of a frame's number, rising, and a timestamp."""
    found, last = [], -1
    for pair in pairs:
        match pair:
            case [int(number), int(pts)] if last < number < num_frames and abs(pts) <= HIGHEST:
                found.append(Keyframe(number, pts))
                last = number
            case _:
                raise ValueError(f"'keyframes' must be pairs of a frame and a timestamp, got {pair!r:.60}")
    return tuple(found)


def packed(pts: Sequence[int]) -> list[int]:
    """First timestamp, then pairs: a step and how often it is taken. Three numbers for a steady video."""
    short = list(pts[:1])
    for earlier, later in pairwise(pts):
        if len(short) > 1 and short[-2] == later - earlier:
            short[-1] += 1
        else:
            short += [later - earlier, 1]
    return short


def unpacked(short: Sequence[int], num_frames: int) -> "array[int]":
    """The timestamps that ``packed`` made short, none or one for each frame.

    Raises:
        ValueError: if they are not, or do not fit into 64 bits.
    """
    steps, counts = short[1::2], short[2::2]
    if not short:
        return array("q")
    if len(steps) != len(counts) or min(counts, default=1) < 1 or 1 + sum(counts) != num_frames:
        raise ValueError(f"'pts' must be the timestamps of {counted(num_frames, 'frame')}")
    if max(abs(short[0]), sum(abs(step) * count for step, count in zip(steps, counts, strict=True))) >= 2**62:
        raise ValueError("'pts' must be timestamps of 64 bits")
    pts = np.full(num_frames, short[0])
    pts[1:] += np.repeat(np.array(steps, np.int64), counts).cumsum()
    return array("q", pts.tobytes())


class Manifest:
    """The entries of a manifest, parsed when asked for.

    It keeps the text and where each line lies: the workers that decode share both with their parent.

    Args:
        path: as given, for messages.

    Attributes:
        root: folder that keys were relative to when it was written, itself relative to the working folder.

    Raises:
        UsageError: if there is no such file or it is no manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = Path()
        try:
            self._text = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"{path}: the manifest cannot be read ({error.strerror}); 'vidssl data check' makes one"
            ) from error
        self._spans: dict[str, tuple[int, int]] = {}
        for start, end in line_spans(self._text):
            self._add(start, end)
        if not self._spans:
            raise UsageError(f"{path}: it describes no file; make it anew with 'vidssl data check'")

    def _add(self, start: int, end: int) -> None:
        try:
            row = Row(parsed(self._text[start:end]))
            if start == 0:
                _check_header(row)
                self.root = Path(row.path("root"))
            else:
                self._spans[row.path("key")] = (start, end)
        except ValueError as error:
            line = self._text.count(b"\n", 0, start) + 1
            raise UsageError(
                f"{self.path}:{line}: no line of a manifest ({error}); make it anew with 'vidssl data check'"
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._spans

    def __iter__(self) -> Iterator[FileRecord]:
        return map(self.entry, self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def entry(self, key: str) -> FileRecord:
        """The record of a file.

        Raises:
            KeyError: if the manifest does not have it.
            UsageError: if its line is damaged.
        """
        start, end = self._spans[key]
        try:
            return FileRecord.from_row(Row(parsed(self._text[start:end])))
        except ValueError as error:
            line = self._text.count(b"\n", 0, start) + 1
            raise UsageError(f"{self.path}:{line}: a damaged line ({error})") from error


def header(root: Path) -> str:
    """The first line of a manifest."""
    row = {"kind": _KIND, "version": VERSION, "root": str(root)}
    return json.dumps(row, separators=(",", ":")) + "\n"


def _check_header(row: Row) -> None:
    if row.value("kind", "") != _KIND:
        raise ValueError("the first line is not that of a manifest")
    if row.value("version", 0) != VERSION:
        raise ValueError(f"version {row.value('version', 0)}, not {VERSION}")


def line_spans(text: bytes) -> Iterator[tuple[int, int]]:
    """Where each line of a text begins and ends, its line break left out."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = end + 1


def why_changed(path: Path, entry: FileRecord, status: os.stat_result) -> str:
    """Why a file is no longer the one that was scanned; empty if it is.

    A file of the same size and time is taken for the same. One of another time, as copies have, is the same
    if its content is.
    """
    if status.st_size != entry.bytes:
        return f"it has {counted(status.st_size, 'byte')}, when it was scanned it had {entry.bytes}"
    if status.st_mtime_ns == entry.mtime_ns:
        return ""
    try:
        return "" if file_sha256(path) == entry.sha256 else "its content has changed since it was scanned"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
