"""Several samples of one decode: the same frames, crops of their own, whatever cuts the batch."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from test_data_views_contract import TOY_VIEWS
from torch import Tensor
from toy_runs import recipe_text

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.recipe import recipe_from_text
from vidssl.data import VIEWS
from vidssl.data.loader import Loader, Stream, slices
from vidssl.data.samples import Endless
from vidssl.data.views.random import RandomResizedClip
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, DataSource, SampleInfo, UnreadableSample, ViewSampler

CLIP = RandomResizedClip(num_frames=2, frame_stride=1, size=8)
# where nothing but times is random, if that
NO_CROPS = ("clip_pair", "uniform_clips", "segment_middles", "slow_fast", "svt_published_test")


class Noise(DataSource):
    """Videos of 40 frames of noise; counts what is read of each."""

    label_classes: Mapping[str, tuple[str, ...]] = {"class": ("a", "b")}

    def __init__(self, length: int, bad: Sequence[int] = ()) -> None:
        self.length, self.bad = length, bad
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.length

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), 40, 10.0, {"class": index % 2})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if index in self.bad:
            raise UnreadableSample(str(index), "spoilt")
        self.reads.append(index)
        pixels = torch.randint(256, (40, 3, 24, 32), generator=torch.Generator().manual_seed(index))
        return pixels[list(frames)].to(torch.uint8)


def take(count: int, stream: Stream, start_step: int = 0) -> list[Batch]:
    with Loader({"video": stream}, start_step=start_step, say=lambda line: None) as loader:
        return [next(loader) for _ in range(count)]


def test_a_batch_holds_each_video_so_many_times_and_reads_it_once() -> None:
    source = Noise(10)
    batches = take(5, Stream(source, CLIP, batch_size=8, samples_per_decode=4))
    shown = torch.cat([batch.indices["video"] for batch in batches]).view(10, 4)
    assert torch.equal(shown, shown[:, :1].expand(-1, 4))
    assert sorted(shown[:, 0].tolist()) == list(range(10))  # five batches are one epoch of ten videos
    assert sorted(source.reads) == sorted(shown[:, 0].tolist())  # ahead, in turn
    labels = torch.cat([batch.labels["video"]["class"] for batch in batches])
    assert torch.equal(labels, shown.flatten() % 2)
    clips = torch.cat([batch.views["clip"][0] for batch in batches]).flatten(1)
    assert len(clips.unique(dim=0)) == 40  # a crop each
    # the first sample of a video is the one that it gives alone
    alone = take(5, Stream(Noise(10), CLIP, batch_size=2))
    assert torch.equal(clips[::4], torch.cat([batch.views["clip"][0] for batch in alone]).flatten(1))


def test_slices_workers_and_later_starts_change_nothing() -> None:
    stream = Stream(Noise(10), CLIP, batch_size=8, samples_per_decode=2, seed=3)
    whole = [batch.views["clip"][0] for batch in take(4, stream)]
    halves = [take(4, slices({"video": stream}, rank, 2)["video"]) for rank in range(2)]
    for step, clips in enumerate(whole):
        parts = [half[step].views["clip"][0] for half in halves]
        assert torch.equal(torch.cat(parts), clips)
    assert torch.equal(take(1, stream, start_step=3)[0].views["clip"][0], whole[3])
    # asked for in any order, as several workers do
    samples = Endless(Noise(10), CLIP, batch_size=8, seed=3, tries=1, samples_per_decode=2)
    for position in (5, 0, 4):
        assert torch.equal(samples[position].views["clip"][0], whole[0][position])


def test_a_video_that_cannot_be_read_is_replaced_for_all_of_its_samples() -> None:
    batches = take(
        5, Stream(Noise(5, bad=[2]), CLIP, batch_size=4, samples_per_decode=4, max_unreadable_share=0.5)
    )
    for batch in batches:
        assert len(set(batch.indices["video"].tolist())) == 1
        assert 2 not in batch.indices["video"]


@pytest.mark.parametrize("name", [name for name in VIEWS if not name.startswith("stored")])
def test_every_view_of_pixels_reads_once(name: str) -> None:
    views: ViewSampler = VIEWS[name](**TOY_VIEWS[name])
    source = Noise(1)
    samples = Endless(source, views, batch_size=4, seed=0, tries=1, samples_per_decode=4)
    first, *others = (samples[number].views for number in range(4))
    assert source.reads == [0]
    assert first is not None
    same = [
        all(torch.equal(a, b) for view in first for a, b in zip(first[view], other[view], strict=True))
        for other in others
        if other is not None
    ]
    assert len(same) == 3
    assert all(same) == (name in NO_CROPS)


def test_the_recipe_key_is_kept_and_what_does_not_fit_is_refused() -> None:
    text = recipe_text("videomae").replace("batch_size: 4", "batch_size: 4, samples_per_decode: 2")
    recipe = recipe_from_text(text, "toy")
    build.check(recipe)
    assert "samples_per_decode: 2" in resolved_text(recipe)
    assert "samples_per_decode" not in resolved_text(recipe_from_text(recipe_text("videomae"), "toy"))
    assert build.streams(recipe)["video"].samples_per_decode == 2
    assert build.test_streams(recipe)["video"].samples_per_decode == 1
    with pytest.raises(UsageError, match="samples_per_decode: batch_size 4 does not divide into 3 samples"):
        build.check(recipe_from_text(text.replace("decode: 2", "decode: 3"), "toy"))
    with pytest.raises(UsageError, match=r"2 processes of 4 samples of a decode"):
        slices({"video": Stream(Noise(8), CLIP, batch_size=4, samples_per_decode=4)}, 0, 2)
    with pytest.raises(ValueError, match="do not divide into those of 3 to a decode"):
        Stream(Noise(8), CLIP, batch_size=4, samples_per_decode=3)
    pair = recipe_text("vimpac_contrast").replace("batch_size: 4", "batch_size: 4, samples_per_decode: 2")
    with pytest.raises(UsageError, match="'vimpac_contrast' tells the videos of a batch apart: leave it out"):
        build.check(recipe_from_text(pair, "toy"))
