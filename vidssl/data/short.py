"""What becomes of videos that are shorter than a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Short = Literal["loop", "pad", "skip"]


@dataclass(frozen=True)
class ShortVideos:
    """One rule for all views, instead of each view's own.

    Attributes:
        rule: "loop" repeats a short video from its first frame on and "pad" holds its last frame, both up to
            ``min_frames``; "skip" leaves it out. None leaves short videos to the views.
        min_frames: how many frames make a video not short.

    Raises:
        ValueError: if one is given without the other.
    """

    rule: Short | None
    min_frames: int

    def __post_init__(self) -> None:
        if self.min_frames < 1:
            raise ValueError(f"min_frames must be at least 1, got {self.min_frames}")
        if (self.rule is None) != (self.min_frames == 1):
            raise ValueError(
                "'short' (loop, pad or skip) and 'min_frames' (what is short) go together: "
                f"got short {self.rule or 'null'}, min_frames {self.min_frames}"
            )

    def leaves_out(self, num_frames: int) -> bool:
        """Whether a video of so many frames is left out."""
        return self.rule == "skip" and num_frames < self.min_frames

    def length(self, num_frames: int) -> int:
        """Frames that a video has as far as views can see."""
        return max(num_frames, self.min_frames) if self.rule in ("loop", "pad") else num_frames

    def times(self, times: Sequence[float]) -> Sequence[float]:
        """Times of the frames that views see, for those of the frames that are there, or none."""
        more = self.length(len(times)) - len(times)
        if not times or more <= 0:
            return times
        gap = times[-1] / max(len(times) - 1, 1)
        if self.rule == "pad":
            return [*times, *(times[-1] + gap * (step + 1) for step in range(more))]
        period = times[-1] + gap
        rounds = (len(times) + step for step in range(more))
        return [*times, *(times[n % len(times)] + n // len(times) * period for n in rounds)]

    def within(self, frames: Sequence[int], num_frames: int) -> list[int]:
        """Frames that are there for frames asked for of a video that was made longer."""
        if num_frames >= self.length(num_frames):
            return list(frames)
        if self.rule == "loop":
            return [number % num_frames for number in frames]
        return [min(number, num_frames - 1) for number in frames]
