"""All frames of videos, for turning them into ids."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from vidssl.data.samples import Failure, Sample
from vidssl.data.views.crops import resize_short_side
from vidssl.data.views.times import kept_frames
from vidssl.interfaces import DataSource, UnreadableSample

PIECE = 64  # frames at a time: 400 MB at 1080p
_PIECES = 2**20  # more than a video has


def piece_number(index: int, piece: int) -> int:
    """The number of a piece of a video among those of ``WholeVideos``."""
    return index * _PIECES + piece


class WholeVideos(Dataset[Sample]):
    """Videos in pieces of ``PIECE`` frames, so that long ones fit into memory.

    The view "frames" has a slot for each short side, uint8 [3, T, H, W], nothing cut off.

    Args:
        fps: that videos are thinned out to first, as views do; None keeps their own.
        short_sides: in pixels.
    """

    def __init__(self, source: DataSource, *, fps: float | None, short_sides: Sequence[int]) -> None:
        self.source = source
        self.fps = fps
        self.short_sides = tuple(short_sides)

    def count(self, index: int) -> int:
        """Frames of a video at ``fps``.

        Raises:
            UnreadableSample: as the source does.
        """
        return len(kept_frames(self.source.info(index), self.fps))

    def __getitem__(self, number: int) -> Sample:
        index, piece = divmod(number, _PIECES)
        try:
            kept = kept_frames(self.source.info(index), self.fps)[piece * PIECE : (piece + 1) * PIECE]
            frames = self.source.read(index, kept)
        except UnreadableSample as error:
            return Sample(index, None, (Failure(index, error.key, error.reason),))
        slots = (resize_short_side(frames, side) for side in self.short_sides)
        return Sample(index, {"frames": tuple(slot.transpose(0, 1).contiguous() for slot in slots)})
