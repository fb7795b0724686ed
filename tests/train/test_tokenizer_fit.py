"""What is said of a tokenizer before the first step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidssl.build import build
from vidssl.data.loader import Stream
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.views.random import SingleClip
from vidssl.interfaces import DataSource, SampleInfo
from vidssl.objectives.parts.masked_prediction import FrozenTokenizer
from vidssl.train.trial import frozen_tokenizer, random_states_kept, tell_fit


class Noise(DataSource):
    """Videos of pixels that no tokenizer keeps."""

    def __init__(self) -> None:
        self.label_classes = {}

    def __len__(self) -> int:
        return 3

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), 4, 10.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (len(frames), 3, 48, 48), dtype=torch.uint8, generator=generator)


def said(objective: nn.Module, source: DataSource, kind: str = "vqvae") -> list[str]:
    views = SingleClip(num_frames=4, frame_stride=1, size=48)
    lines: list[str] = []
    with random_states_kept():
        tell_fit(kind, objective, {"video": Stream(source, views, batch_size=2)}, lines.append)
    return lines


def test_videos_that_a_tokenizer_was_not_made_for_are_told_with_the_way_out() -> None:
    holder = nn.ModuleList([FrozenTokenizer(build.tokenizer("moving_digits", say=lambda text: None))])
    assert frozen_tokenizer(holder) is not None
    (good,) = said(holder, MovingDigits(split="train", num_videos=8))
    assert "teaches little" not in good
    poor, cure = said(holder, Noise())
    assert "it was made for others" in poor
    assert "vidssl init" in cure
    assert said(holder, Noise(), "structure_tensor") == [], "its ids are words for motion"
    assert said(nn.Linear(1, 1), Noise()) == []
