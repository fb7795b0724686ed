"""Clips in other orders, views and names: what becomes of them on the way to a table of features."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vidssl.evaluators.features import encode_views, in_order
from vidssl.interfaces import Backbone, Features, Tokenizer


def numbered(videos: int, frames: int) -> Tensor:
    """A clip whose frame t is t everywhere, but for its first pixel, which is the video's number."""
    clip = torch.arange(frames).float()[None, None, :, None, None].repeat(videos, 3, 1, 2, 2)
    clip[:, :, :, 0, 0] = torch.arange(videos)[:, None, None].float()
    return clip


def frames_of(clip: Tensor) -> Tensor:
    return clip[:, 0, :, 1, 1]


VIDEOS = torch.arange(40)


def test_a_single_frame_is_one_of_the_clips_own_repeated():
    clip = numbered(40, 8)
    single = in_order(clip, "single", VIDEOS, draw=0)
    assert single.shape == clip.shape
    assert (single == single[:, :, :1]).all()
    assert torch.equal(single[:, :, :, 0, 0], clip[:, :, :, 0, 0])  # of the same video
    assert set(frames_of(single)[:, 0].tolist()) == set(range(8))  # any of them


def test_shuffled_frames_are_all_there_in_another_order():
    clip = numbered(40, 8)
    shuffled = frames_of(in_order(clip, "shuffled", VIDEOS, draw=0))
    assert torch.equal(shuffled.sort(1).values, frames_of(clip))
    assert len(shuffled.unique(dim=0)) > 35  # each video has a draw of its own


def test_reversed_frames_run_backwards():
    clip = numbered(2, 5)
    assert frames_of(in_order(clip, "reversed", VIDEOS[:2], draw=0)).tolist() == [[4, 3, 2, 1, 0]] * 2


@pytest.mark.parametrize("order", ["single", "shuffled"])
def test_orders_depend_on_the_video_and_not_on_its_batch(order):
    clip = numbered(40, 8)
    whole = in_order(clip, order, VIDEOS, draw=1)
    alone = in_order(clip[7:8], order, VIDEOS[7:8], draw=1)
    assert torch.equal(whole[7:8], alone)
    assert not torch.equal(whole, in_order(clip, order, VIDEOS, draw=2))


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="sorted"):
        in_order(numbered(1, 2), "sorted", VIDEOS[:1], draw=0)


class Weighted(Backbone):
    """Its vector is (mean over frames of t times the frame's mean, number of frames)."""

    embed_dim = 2
    strides = (1, 1, 1)

    def forward(self, x, mask=None):
        place = torch.arange(x.shape[2]).float()
        value = (x.mean(dim=(1, 3, 4)) * place).mean(1)
        vector = torch.stack([value, torch.full_like(value, x.shape[2])], dim=1)
        return Features(vector[:, None, None, None])


def encoded(views: dict[str, tuple[Tensor, ...]], *orders: str) -> tuple[dict[str, Tensor], Tensor]:
    def batches() -> Iterator[tuple[Tensor, dict[str, tuple[Tensor, ...]]]]:
        for rows in (slice(0, 2), slice(2, 3)):
            yield VIDEOS[:3][rows], {name: tuple(s[rows] for s in slots) for name, slots in views.items()}

    return encode_views(
        Weighted(), None, batches(), layers="last", orders=orders or ("normal",), device=torch.device("cpu"),
        autocast=False,
    )  # fmt: skip


def test_each_view_has_a_vector_of_its_own():
    clips = numbered(3, 4), numbered(3, 4) + 10
    vectors, numbers = encoded({"clip": clips})
    assert numbers.tolist() == [0, 1, 2]
    assert vectors["normal"].shape == (3, 2, 2)
    for place, clip in enumerate(clips):
        assert torch.equal(vectors["normal"][:, place], Weighted()(clip).pooled())


def test_slots_of_several_names_are_averaged_slot_by_slot():
    slow = numbered(3, 2), numbered(3, 2) + 10
    fast = numbered(3, 6), numbered(3, 6) + 8
    vectors, _ = encoded({"slow": slow, "fast": fast})
    assert vectors["normal"].shape == (3, 2, 2)
    for place in (0, 1):
        expected = (Weighted()(slow[place]).pooled() + Weighted()(fast[place]).pooled()) / 2
        assert torch.equal(vectors["normal"][:, place], expected)


def test_names_with_other_numbers_of_slots_are_no_views():
    with pytest.raises(ValueError, match="zip"):
        encoded({"slow": (numbered(3, 2),), "fast": (numbered(3, 2), numbered(3, 2))})


def test_other_orders_are_features_of_the_same_clips():
    clip = numbered(3, 4)
    vectors, _ = encoded({"clip": (clip,)}, "normal", "reversed", "single")
    assert torch.equal(vectors["normal"][:, 0], Weighted()(clip).pooled())
    assert torch.equal(vectors["reversed"][:, 0], Weighted()(clip.flip(2)).pooled())
    single = in_order(clip, "single", VIDEOS[:3], draw=0)
    assert torch.equal(vectors["single"][:, 0], Weighted()(single).pooled())


def test_a_network_that_reads_ids_sees_those_of_the_reordered_clip():
    class Rounding(Tokenizer):
        vocab_size, strides = 100, (1, 1, 1)

        def encode(self, clip):
            return clip[:, 0].long()

        def decode(self, ids):
            raise NotImplementedError

    class Reader(Weighted):
        input_kind = "tokens"

        def forward(self, x, mask=None):
            return super().forward(x[:, None].float())

    clip = numbered(3, 4)
    batches = iter([(VIDEOS[:3], {"clip": (clip,)})])
    vectors, _ = encode_views(
        Reader(), Rounding(), batches, layers="last", orders=("normal", "reversed"),
        device=torch.device("cpu"), autocast=False,
    )  # fmt: skip
    assert torch.equal(vectors["reversed"][:, 0], Weighted().forward(clip.flip(2)[:, :1]).pooled())
