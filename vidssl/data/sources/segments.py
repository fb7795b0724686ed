"""Segments of videos: which frames of a file belong to a sample that a list gives by times."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vidssl.data.decode.decode import VideoFacts
from vidssl.engine.facts import parts
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

    def overlaps(self, other: Segment) -> bool:
        """Whether the two have time in common."""
        return self.start < other.end and other.start < self.end

    def frames_of(self, key: str, facts: VideoFacts) -> range:
        """``frames`` of a file that was looked through."""
        return self.frames(key, facts.num_frames, facts.fps, facts.pts, facts.tick_seconds)

    def frames(self, key: str, num_frames: int, fps: float, pts: array[int], tick_seconds: float) -> range:
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
