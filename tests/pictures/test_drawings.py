"""What stands in each row of a picture, and which videos are shown."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vidssl.data.sources.video_files import VideoFiles
from vidssl.data.views.uniform import UniformClips
from vidssl.errors import UsageError
from vidssl.interfaces import FilledIn, SampleInfo, Tokenizer, UnreadableSample
from vidssl.pictures.clips import Clips, draw_clips
from vidssl.pictures.drawings import (
    HIDDEN,
    attention_drawing,
    prediction_drawing,
    strips_of,
    tokenizer_drawing,
)
from vidssl.pictures.pages import as_frames, heat_over


def clips(count: int = 2, frames: int = 4, size: int = 32) -> Clips:
    pixels = torch.rand(count, 3, frames, size, size, generator=torch.Generator().manual_seed(0))
    return Clips(pixels, tuple(f"video {i}" for i in range(count)))


class Flat(Tokenizer):
    """Every id is a flat grey of its own."""

    vocab_size = 256
    strides = (1, 8, 8)

    def encode(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        grey = ids.float().div(255).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return grey.unsqueeze(1).expand(-1, 3, -1, -1, -1)


def test_attention_lights_the_cells_that_have_it_and_says_how_much() -> None:
    shown, weights = clips(), torch.full((2, 3, 2, 4, 4), 0.01)
    weights[0, :, 1, 2, 3] = 0.16
    drawing = attention_drawing(shown, weights, "run: ")
    frames, attention = drawing.strips[0].rows
    assert torch.equal(frames.frames, as_frames(shown.pixels[0]))
    heat = torch.zeros(2, 4, 4)
    heat[1, 2, 3] = 1.0
    assert torch.equal(attention.frames, heat_over(frames.frames, heat))
    mean = (31 * 0.01 + 0.16) / 32
    assert drawing.strips[0].caption == f"video 0: {0.01 / mean:.2f} to {0.16 / mean:.2f} times the mean"
    assert drawing.strips[1].caption == "video 1: 1.00 to 1.00 times the mean"
    even = drawing.strips[1].rows[1].frames
    assert torch.equal(even, heat_over(as_frames(shown.pixels[1]), torch.zeros(2, 4, 4)))
    assert drawing.moves


def test_each_head_of_the_first_clip_has_a_row_and_a_scale_of_its_own() -> None:
    weights = torch.rand(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    drawing = attention_drawing(clips(), weights, "run: ")
    (details,) = drawing.details
    assert [row.label.split(",")[0] for row in details.rows] == ["head 1", "head 2", "head 3"]
    own = weights[0, 1]
    heat = (own - own.min()) / (own.max() - own.min())
    assert torch.equal(details.rows[1].frames, heat_over(as_frames(clips().pixels[0]), heat))
    mean = weights[1].mean(dim=0)
    heat = (mean - mean.min()) / (mean.max() - mean.min())
    assert torch.equal(drawing.strips[1].rows[1].frames, heat_over(as_frames(clips().pixels[1]), heat))


def test_the_rows_of_a_prediction_are_decoded_from_visible_and_predicted_ids() -> None:
    shown = clips(frames=2)
    ids = torch.arange(2 * 2 * 4 * 4).view(2, 2, 4, 4)
    hidden = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    hidden[:, :, :2] = True
    predicted = torch.where(hidden, 200, ids)
    predicted[0, 0, 0, 0] = ids[0, 0, 0, 0]  # one of 16 is right
    drawing = prediction_drawing(shown, FilledIn(ids, hidden, predicted), Flat(), "run: ")
    rows = {row.label: row.frames for row in drawing.strips[0].rows}
    assert list(rows) == ["frames", "tokenizer", "hidden", "prediction", "nearest id"]
    grey = {label: frames[:, 4::8, 4::8, 0].long() for label, frames in rows.items()}
    assert torch.equal(rows["frames"], as_frames(shown.pixels[0]))
    assert torch.equal(grey["tokenizer"], ids[0])
    assert torch.equal(grey["prediction"], predicted[0])
    # rows 0 and 1 are hidden, and row 2 is the nearest that is seen
    assert torch.equal(grey["nearest id"], ids[0][:, [2, 2, 2, 3]])
    assert (rows["hidden"][:, :16] == torch.tensor(HIDDEN, dtype=torch.uint8)).all()
    assert torch.equal(rows["hidden"][:, 16:], rows["frames"][:, 16:])
    assert drawing.strips[0].caption == (
        "video 0: 50% of the ids hidden, of these 6% predicted right, 0% by copying the nearest visible id"
    )


def test_a_tokenizers_error_stands_above_its_clip() -> None:
    shown = clips()
    drawing = tokenizer_drawing(shown, (shown.pixels + 0.1), "t: ")
    assert [strip.caption for strip in drawing.strips] == ["video 0: 20.0 dB", "video 1: 20.0 dB"]
    assert [row.label for row in drawing.strips[0].rows] == ["frames", "tokenizer"]


def test_images_fill_strips_of_eight() -> None:
    images = [torch.full((1, 4, 4, 3), i, dtype=torch.uint8) for i in range(11)]
    notes = [f"note {i}" for i in range(11)]
    strips = strips_of([f"key {i}" for i in range(11)], {"a": images, "b": images[::-1]}, notes, notes)
    assert [len(strip.headings) for strip in strips] == [8, 3]
    assert strips[1].headings == ("note 8", "note 9", "note 10")
    assert strips[1].caption == "key 8 to key 10"
    first, second = strips[1].rows
    assert first.frames[:, 0, 0, 0].tolist() == [8, 9, 10]
    assert second.frames[:, 0, 0, 0].tolist() == [2, 1, 0]


# which videos


class Numbered(VideoFiles):
    """Videos of one colour, their number; some of them broken."""

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        super().__init__([f"{i}.mp4" for i in range(count)])
        self.broken = broken

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.key(index), 4, 8.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if index in self.broken:
            raise UnreadableSample(self.key(index), "it is broken")
        return torch.full((len(frames), 3, 16, 16), index, dtype=torch.uint8)


VIEWS = UniformClips(num_frames=2, frame_stride=1, size=16)


@pytest.mark.parametrize(
    ("count", "broken", "asked", "expected"),
    [
        (100, (), 4, [0, 25, 50, 75]),
        (100, (), None, [0, 25, 50, 75]),
        (100, (25, 26, 75), 4, [0, 27, 50, 76]),
        (3, (), 4, [0, 1, 2]),
        (3, (1,), 3, [0, 2]),
        (3, (0,), 1, [1]),
    ],
)
def test_videos_lie_evenly_over_the_source_and_broken_ones_are_replaced(
    count: int, broken: Sequence[int], asked: int | None, expected: list[int]
) -> None:
    said: list[str] = []
    found = draw_clips(Numbered(count, broken), VIEWS, asked, said.append)
    assert [int(clip[0, 0, 0, 0] * 255) for clip in found.pixels] == expected
    assert found.keys == tuple(f"{i}.mp4" for i in expected)
    assert said == [f"left out: {i}.mp4: it is broken" for i in broken]


def test_videos_none_of_which_can_be_read_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"none of the 2 videos can be read, e\.g\. 0\.mp4: it is broken"):
        draw_clips(Numbered(2, (0, 1)), VIEWS, 4, lambda text: None)
