"""A video whose pixels tell where they come from."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.interfaces import DataSource, SampleInfo


class Ramp(DataSource):
    """Red is the low byte of the frame's number, green the row, blue the column; ``reads``: what was read."""

    label_classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, num_frames: int, height: int = 8, width: int = 8, fps: float = 30.0) -> None:
        self.shape = (num_frames, height, width)
        self.fps = fps
        self.reads: list[list[int]] = []

    def __len__(self) -> int:
        return 1

    def info(self, index: int) -> SampleInfo:
        return SampleInfo("ramp", self.shape[0], self.fps, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        assert 0 <= min(frames) <= max(frames) < self.shape[0]
        self.reads.append(list(frames))
        _, height, width = self.shape
        clip = torch.empty(len(frames), 3, height, width, dtype=torch.uint8)
        clip[:, 0] = (torch.tensor(frames) % 256)[:, None, None]
        clip[:, 1] = torch.arange(height, dtype=torch.uint8)[None, :, None]
        clip[:, 2] = torch.arange(width, dtype=torch.uint8)[None, None, :]
        return clip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frames_of(clip: Tensor) -> list[int]:
    return clip[0, :, 0, 0].tolist()


def bytes_of(frames: Sequence[int]) -> list[int]:
    """Frame numbers as the red channel shows them."""
    return [frame % 256 for frame in frames]


def alone(slot: Tensor) -> bool:
    """Whether its memory holds nothing else, such as the frames it was cut out of."""
    return slot.untyped_storage().nbytes() == slot.numel() * slot.element_size()
