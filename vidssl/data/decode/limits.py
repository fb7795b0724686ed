"""How large a video may be before it is refused: one file must not take a machine's memory or a day."""

from __future__ import annotations

from dataclasses import dataclass

from vidssl.interfaces import UnreadableSample

_WAY_OUT = "sets another, and sources then need its manifest"


@dataclass(frozen=True)
class Limits:
    """A larger file is unreadable, with the limit in its reason.

    They hold where a file is looked at for the first time. What a manifest describes was let in with the
    limits of its ``vidssl data check`` and is read as it is.

    Attributes:
        max_pixels: of a frame; the default lets 8K pass (8192 x 4320).
        max_frames: of a video; the default lets nine hours at 30 frames a second pass.
        max_seconds: for going through a file once; a film decodes faster than the default.
    """

    max_pixels: int = 36_000_000
    max_frames: int = 1_000_000
    max_seconds: float = 300.0

    def hold_for(self, reason: str) -> bool:
        """Whether a file that is unreadable for ``reason`` is so under these limits too."""
        own = (f"{self.max_pixels:,} pixels", f"{self.max_frames:,} frames", f"{self.max_seconds:g} seconds")
        return _WAY_OUT not in reason or any(f" {limit}, the limit" in reason for limit in own)

    def check_size(self, key: str, width: int, height: int) -> None:
        """Raises UnreadableSample for a frame that is too large."""
        if width * height > self.max_pixels:
            raise UnreadableSample(
                key,
                f"a frame of {width}x{height} has more than {self.max_pixels:,} pixels, the limit "
                f"('vidssl data check --max-pixels' {_WAY_OUT})",
            )

    def check_length(self, key: str, num_frames: int) -> None:
        """Raises UnreadableSample for more frames than are allowed."""
        if num_frames > self.max_frames:
            raise UnreadableSample(
                key,
                f"it has more than {self.max_frames:,} frames, the limit ('vidssl data check --max-frames' "
                f"{_WAY_OUT})",
            )

    def out_of_time(self, key: str) -> UnreadableSample:
        """The error for a file that takes too long."""
        return UnreadableSample(
            key,
            f"it cannot be read within {self.max_seconds:g} seconds, the limit "
            f"('vidssl data check --max-seconds' {_WAY_OUT})",
        )


LIMITS = Limits()
