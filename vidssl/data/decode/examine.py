"""A whole look at one video file: every frame is decoded, the content hashed, its timing described."""

import hashlib
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from vidssl.data.decode.container import open_video
from vidssl.data.decode.content import LIMITS, Content, File, Limits, bytes_missing, why_not_a_file
from vidssl.data.decode.decode import OUT_OF_ORDER, VideoFacts, probe, read_frames, rising
from vidssl.data.sources.manifest import FileRecord, Rate, Status, why_changed
from vidssl.engine.process import file_sha256
from vidssl.errors import agreed, counted
from vidssl.interfaces import UnreadableSample

CLIP_FRAMES, CLIP_STRIDE = 16, 4  # the clip that is timed


@dataclass(frozen=True)
class FileToExamine:
    """A file to look at.

    Attributes:
        root: folder that the key is relative to.
        key: path below it.
        labels: label name -> name of the class, handed on as they are.
        known: what an earlier look said, taken over if the file is still the same.
        timed: whether a clip is decoded once more and timed.
        limits: that the file has to keep.
    """

    root: Path
    key: str
    labels: Mapping[str, str]
    known: FileRecord | None = None
    timed: bool = False
    limits: Limits = LIMITS


def examine(file: FileToExamine) -> FileRecord:
    """Look through a file. Its faults are in the result, and never raise an error."""
    path = file.root / file.key
    reason = why_not_a_file(path)
    if reason:
        return FileRecord(file.key, "unreadable", reason, labels=file.labels)
    try:
        status = os.stat(path)
        if file.known is not None and not why_changed(path, file.known, status):
            return replace(file.known, mtime_ns=status.st_mtime_ns, labels=file.labels)
        sha256 = file_sha256(path)
    except OSError as error:
        return FileRecord(file.key, "unreadable", f"it cannot be read ({error.strerror})", labels=file.labels)
    about = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256, "labels": file.labels}
    try:
        return _describe(file, path, about)
    except UnreadableSample as error:
        return FileRecord(file.key, "unreadable", error.reason, **about)  # type: ignore[arg-type]
    except OSError as error:
        return FileRecord(file.key, "unreadable", f"it cannot be read ({error.strerror})", labels=file.labels)


def examine_content(content: Content) -> FileRecord:
    """The same of a file that lies in memory, under its name; labels are the caller's business."""
    about: dict[str, object] = {
        "bytes": len(content.data),
        "sha256": hashlib.sha256(content.data).hexdigest(),
    }
    try:
        return _describe(FileToExamine(Path(), content.name, {}), content, about)
    except UnreadableSample as error:
        return FileRecord(content.name, "unreadable", error.reason, **about)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Pass:
    """Findings of decoding a whole file.

    Attributes:
        pts: of each frame.
        keys: whether each is a keyframe.
        num_packets, damage, container: of ``OpenVideo``.
        interlaced: whether any frame is made of two fields of different times.
        missing: the end that the header promises and that is not there, in words; empty if nothing is.
    """

    pts: list[int | None]
    keys: list[bool]
    num_packets: int
    damage: list[int]
    container: str
    interlaced: bool
    missing: str


def _describe(file: FileToExamine, path: File, about: dict[str, object]) -> FileRecord:
    facts = probe(path, file.limits)
    with open_video(path, file.limits) as video:
        shown = [(frame.pts, frame.key_frame, frame.interlaced_frame) for frame in video.frames()]
        seen = _Pass(
            [pts for pts, _, _ in shown],
            [key for _, key, _ in shown],
            video.num_packets,
            video.damage,
            video.format,
            any(interlaced for _, _, interlaced in shown),
            ""
            if facts.promised_frames
            else _what_is_missing(path, file.limits, video.stated_seconds(), facts),
        )
    facts = _as_seen(facts, seen)
    status, reason = _judge(facts, seen)
    return FileRecord(
        file.key,
        status,
        reason,
        facts=facts,
        container=seen.container,
        rate=_rate(facts, seen),
        gop=_longest_gap(seen.keys),
        interlaced=seen.interlaced,
        clip_seconds=_time_clip(path, facts, str(about["sha256"])) if file.timed else 0.0,
        **about,  # type: ignore[arg-type]
    )


def _as_seen(facts: VideoFacts, seen: _Pass) -> VideoFacts:
    """The facts; without the index if the frames of a sound file come out in another order."""
    pts = [time for time in seen.pts if time is not None]
    in_order = len(pts) == len(seen.pts) and rising(pts)
    if (
        facts.no_seeking
        or seen.damage
        or (in_order and (pts == list(facts.pts) or set(pts) < set(facts.pts)))
    ):
        return facts
    return replace(
        facts,
        num_frames=len(seen.pts),
        no_seeking=OUT_OF_ORDER,
        pts=array("q", pts if in_order else ()),
        keyframes=(),
    )


def _what_is_missing(path: File, limits: Limits, stated: float, facts: VideoFacts) -> str:
    """The end that a header promises by its bytes or its duration and that is not there, in words."""
    if num_bytes := bytes_missing(path):
        there = counted(facts.num_frames, "frame", verb="are")
        return f"its last {num_bytes:,} bytes are missing, {there} there"
    if stated <= 0 or not facts.pts or facts.fps <= 0:
        return ""
    steps = [later - earlier for earlier, later in pairwise(facts.pts)]
    tolerance = 0.75 * (facts.tick_seconds * max(steps) if steps else 1 / facts.fps)
    missing = stated - facts.pts[-1] * facts.tick_seconds - 1 / facts.fps
    if missing <= tolerance:
        return ""
    with open_video(path, limits) as video:  # sound may last longer than the picture, in a file that is whole
        missing = min(missing, stated - video.last_seconds())
    return f"its last {missing:.2f} seconds are missing" if missing > tolerance else ""


def _judge(facts: VideoFacts, seen: _Pass) -> tuple[Status, str]:
    """Which of the frames that reading counts on came out, and whether what is missing is only the end."""
    there = set(seen.pts)
    lost = [number for number, pts in enumerate(facts.pts) if pts not in there]
    if not facts.pts:
        lost = list(range(len(seen.pts), facts.num_frames))
    if lost:
        return (
            "damaged",
            f"{len(lost)} of its {facts.num_frames} frames {agreed(len(lost), 'do')} "
            f"not decode, the first is {lost[0]}",
        )
    early = [packet for packet in seen.damage if packet < seen.num_packets - 1]
    if early:
        return (
            "damaged",
            f"{len(early)} of its {seen.num_packets} packets {agreed(len(early), 'are')} "
            f"damaged, the first is {early[0]}",
        )
    if seen.damage or seen.num_packets < facts.promised_frames:
        promised = f" of the {facts.promised_frames} promised" if facts.promised_frames else ""
        return "cut", f"it is cut off: {facts.num_frames} frames{promised} are there"
    if seen.missing:
        return "cut", f"it is cut off: {seen.missing}"
    return "ok", ""


def _rate(facts: VideoFacts, seen: _Pass) -> Rate:
    """Constant if each step in time is within a tenth of the mean step, or as near as timestamps can tell."""
    if seen.container == "avi" and not facts.pts:
        return "constant"  # by its format; with packed B-frames its timestamps say nothing
    times = [pts for pts in facts.pts or seen.pts if pts is not None]
    steps = [later - earlier for earlier, later in pairwise(times)]
    if len(times) < len(seen.pts) or any(step <= 0 for step in steps):
        return "unknown"
    mean = sum(steps) / max(len(steps), 1)
    even = all(abs(step - mean) <= max(0.1 * mean, 1.0) for step in steps)
    return "constant" if even else "variable"


def _longest_gap(keys: Sequence[bool]) -> int:
    # what stands before the first follows from a keyframe that is not shown
    starts = [0, *(number for number, key in enumerate(keys) if key), len(keys)]
    return max(later - earlier for earlier, later in pairwise(starts))


def _time_clip(path: File, facts: VideoFacts, sha256: str) -> float:
    """Seconds of a core for reading a clip from a place that the content decides; 0 if it cannot be read."""
    span = (CLIP_FRAMES - 1) * CLIP_STRIDE + 1
    start = int(sha256[:8], 16) % max(facts.num_frames - span + 1, 1)
    clip = [min(start + CLIP_STRIDE * step, facts.num_frames - 1) for step in range(CLIP_FRAMES)]
    began = time.thread_time()  # of this core: what else the machine does, and its disk, do not count
    try:
        read_frames(path, clip, facts)
    except UnreadableSample:
        return 0.0
    return time.thread_time() - began
