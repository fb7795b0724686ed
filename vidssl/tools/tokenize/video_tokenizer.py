"""Whole videos into ids, under several transforms from one decode."""

from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidssl.data.samples import Failure, Parcel, Sample, parcels
from vidssl.data.sources.origins import recorded, video_of
from vidssl.data.sources.token_store import DTYPE, Ids, StoredVideo, StoreInfo, Transform, crop_offset
from vidssl.data.views import crops, times
from vidssl.interfaces import DataSource, KnowsGroups, SampleInfo, Tokenizer, UnreadableSample, as_clip

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
        return len(times.kept_frames(self.source.info(index), self.fps))

    def __getitem__(self, number: int) -> Sample:
        index, piece = divmod(number, _PIECES)
        try:
            kept = times.kept_frames(self.source.info(index), self.fps)[piece * PIECE : (piece + 1) * PIECE]
            frames = self.source.read(index, kept)
        except UnreadableSample as error:
            return Sample(index, None, (Failure(index, error.key, error.reason),))
        slots = (crops.resize_short_side(frames, side) for side in self.short_sides)
        return Sample(index, {"frames": tuple(slot.transpose(0, 1).contiguous() for slot in slots)})


class VideoTokenizer:
    """Makes of a source's videos what a store keeps.

    Args:
        tokenizer: on ``device``, in eval mode.
        info: of the store; says which frames and transforms.
        workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self, tokenizer: Tokenizer, source: DataSource, info: StoreInfo, *, device: torch.device, workers: int
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.info = info
        self.device = device
        self.workers = workers
        self.sides = sorted({transform.short_side for transform in info.transforms})
        self.frames = WholeVideos(source, fps=info.fps, short_sides=self.sides)
        self._planned: dict[int, StoredVideo] = {}

    def alone(self) -> "VideoTokenizer":
        """The same without workers, for a few videos."""
        return VideoTokenizer(self.tokenizer, self.source, self.info, device=self.device, workers=0)

    def plan(self, index: int) -> StoredVideo:
        """A video as it will be stored, if it can be read; opens it, once."""
        if index not in self._planned:
            self._planned[index] = self._look(index)
        return self._planned[index]

    def videos(self, indices: Sequence[int]) -> Generator[tuple[StoredVideo, Ids], None, None]:
        """Videos with their ids [transform, frame, h, w], in order; those that cannot be read have none."""
        pieces = ([number] for index in indices for number in self._pieces(index))
        size = sum(3 * PIECE * side * 2 * side for side in self.sides)  # of frames twice as long as high
        found = parcels(self.frames, pieces, workers=self.workers, batch_bytes=size, timeout_seconds=900.0)
        for index in indices:
            video = self.plan(index)
            parts, reasons = [], [video.reason] if video.reason else []
            for _ in self._pieces(index):
                parcel = next(found)
                reasons += [failure.reason for failure in parcel.failures]
                if not reasons:
                    parts.append(self._ids(parcel))
            if reasons:
                yield self._unreadable(video, reasons[0]), np.empty(0, DTYPE)
            else:
                yield video, np.concatenate(parts, axis=1)

    def _pieces(self, index: int) -> list[int]:
        count = -(-self.plan(index).num_frames // PIECE)
        return [piece_number(index, piece) for piece in range(count)]

    def _look(self, index: int) -> StoredVideo:
        try:
            found: SampleInfo = self.source.info(index)
            count = self.frames.count(index)
        except UnreadableSample as error:
            video = StoredVideo(error.key, _labels(self.source, index), 0, 0.0, 0)
            return self._unreadable(video, error.reason)
        fps = found.fps if self.info.fps is None or found.num_frames == 1 else self.info.fps
        origin = recorded(video_of(self.source, index).origin)
        group = self.source.group(index) if isinstance(self.source, KnowsGroups) else ""
        return StoredVideo(found.key, dict(found.labels), count, fps, 0, origin=origin, group=group)

    @staticmethod
    def _unreadable(video: StoredVideo, reason: str) -> StoredVideo:
        return StoredVideo(video.key, video.labels, 0, 0.0, 0, reason)

    @torch.no_grad()
    def _ids(self, parcel: Parcel) -> Ids:
        """Of one piece of one video, [transform, frame, h, w]."""
        slots = dict(zip(self.sides, parcel.views["frames"], strict=True))
        ids = []
        for transform in self.info.transforms:
            square = cut(slots[transform.short_side], transform, self.info.size)
            clip = as_clip(square.to(self.device, non_blocking=True))
            ids.append(self.tokenizer.encode(clip)[0].cpu().numpy().astype(DTYPE))
        return np.stack(ids)


def cut(pixels: Tensor, transform: Transform, size: int) -> Tensor:
    """The square [..., size, size] of pixels [..., H, W] that were resized already.

    Places are those of ``corner_clip`` and ``uniform_clips``; the middle is also that of ``clip_pair``.
    Mirrored after the cut, as in the release, which mirrors the square and not its place.
    """
    top, left = (crop_offset(transform.crop, side - size) for side in pixels.shape[-2:])
    square = pixels[..., top : top + size, left : left + size]
    return (square.flip(-1) if transform.flip else square).contiguous()


def _labels(source: DataSource, index: int) -> dict[str, int]:
    """None for a source that has to open the file for them."""
    try:
        return dict(source.labels(index))
    except UnreadableSample:
        return {}
