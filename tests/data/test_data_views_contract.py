"""What every view sampler and every augmentation of the tables promises."""

from collections.abc import Sequence

import pytest
import torch
from ramp import Ramp, alone, seeded
from torch import Tensor

from vidssl.config.schema import bind, keys_of
from vidssl.config.strict_yaml import dump, parse
from vidssl.data import AUGMENTS, VIEWS
from vidssl.data.samples import InOrder, Parcel, collate
from vidssl.data.views.stored import StoredViews
from vidssl.interfaces import Batch, ViewSampler

# a small one of each
TOY_VIEWS: dict[str, dict[str, object]] = {
    "clip_pair": {"size": 6, "num_frames": 3},
    "corner_clip": {"size": 6, "num_frames": 3},
    "global_local": {"size": 8, "local_size": 4},
    "clip_crops": {"size": 8, "local_size": 4},
    "interval_clips": {"size": 8, "local_size": 4},
    "multi_scale_clip": {"size": 6, "num_frames": 3, "frame_stride": 2},
    "random_resized_clip": {"size": 6, "num_frames": 3, "short_side": 10},
    "random_segments": {"size": 6, "num_frames": 3},
    "segment_middles": {"size": 6, "num_frames": 3},
    "single_clip": {"size": 6, "num_frames": 3, "frame_stride": 2},
    "single_image": {"size": 6},
    "slow_fast": {"sizes": (8, 4)},
    "slow_fast_train": {"sizes": (8, 4)},
    "svt_published": {"size": 8, "local_size": 4},
    "svt_published_test": {"size": 6, "num_clips": 2},
    "uniform_clips": {"size": 6, "num_clips": 2, "num_crops": 3, "num_frames": 3, "starts": "end_to_end"},
}
CUT = [name for name, entry in VIEWS.items() if not issubclass(entry, StoredViews)]  # out of pixels
MEASURING = ("segment_middles", "slow_fast", "svt_published_test", "uniform_clips")
VIDEOS = [(9, 7, 12), (40, 13, 7), (1, 5, 5), (2, 200, 190), (300, 8, 8)]


def views(name: str) -> ViewSampler:
    return VIEWS[name](**TOY_VIEWS[name])


def slots_of(given: dict[str, tuple[Tensor, ...]]) -> list[Tensor]:
    return [slot for slots in given.values() for slot in slots]


def test_every_sampler_of_the_table_is_looked_at() -> None:
    assert set(TOY_VIEWS) == set(CUT)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("shape", VIDEOS, ids=str)
def test_slots_are_what_was_announced_from_one_read(name: str, shape: tuple[int, int, int]) -> None:
    sampler, video = views(name), Ramp(*shape)
    given = sampler.sample(video, 0, seeded(0))
    assert {view: tuple(tuple(slot.shape) for slot in slots) for view, slots in given.items()} == {
        view: tuple((3, *size) for size in sizes) for view, sizes in sampler.shapes.items()
    }
    assert all(slot.dtype == torch.uint8 and alone(slot) for slot in slots_of(given))
    assert len(video.reads) == 1


@pytest.mark.parametrize("name", CUT)
def test_views_follow_their_generator_and_those_for_measuring_have_no_luck(name: str) -> None:
    video = Ramp(300, 40, 60)
    one, same, other = (slots_of(views(name).sample(video, 0, seeded(seed))) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    equal = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert equal == (name in MEASURING)


@pytest.mark.parametrize("name", CUT)
def test_rows_and_columns_of_a_view_rise(name: str) -> None:
    """No view is mirrored or turned by the sampler."""
    for slot in slots_of(views(name).sample(Ramp(30, 50, 60), 0, seeded(0))):
        rows, columns = slot[1, 0].int(), slot[2, 0].int()
        assert bool((rows.diff(dim=0) > 0).all() & (rows.diff(dim=1) == 0).all())
        assert bool((columns.diff(dim=1) > 0).all() & (columns.diff(dim=0) == 0).all())


@pytest.mark.parametrize("table", [VIEWS, AUGMENTS], ids=["views", "augments"])
def test_defaults_can_be_written_in_a_recipe(table) -> None:
    for entry in table.values():
        defaults = {key: found.default for key, found in keys_of(entry).items()}
        assert bind(parse(dump(defaults), str), entry) == defaults
        entry(**defaults)


def test_chances_are_written_as_a_number_or_for_each_view() -> None:
    text = "jitter: {image: [1]}\nblur: {global: [1.0, 0.1], local: [0.5]}\nsolarise: 0\n"
    given = bind(parse(text, str), AUGMENTS["colour"])
    assert given["jitter"] == {"image": (1.0,)}
    assert given["blur"] == {"global": (1.0, 0.1), "local": (0.5,)}
    assert given["solarise"] == 0.0


TOY_AUGMENTS: dict[str, dict[str, object]] = {
    "per_clip": {},
    "colour": {"blur": 0.5, "solarise": 0.5, "hue": 0.1},
    "finetune": {},
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmented_views_keep_names_shapes_and_range(name: str) -> None:
    pixels = {
        "global": (torch.rand(6, 3, 4, 8, 8), torch.rand(6, 3, 2, 8, 8)),
        "image": (torch.rand(3, 3, 1, 6, 6),),
    }
    kept = {view: tuple(slot.clone() for slot in slots) for view, slots in pixels.items()}
    given = AUGMENTS[name](**TOY_AUGMENTS[name])(Batch(views=pixels), seeded(0)).views
    same = AUGMENTS[name](**TOY_AUGMENTS[name])(Batch(views=pixels), seeded(0)).views
    for view, slots in pixels.items():
        for before, copy, after, again in zip(slots, kept[view], given[view], same[view], strict=True):
            assert torch.equal(before, copy)
            assert after.shape == before.shape
            assert after.dtype == torch.float32
            assert 0 <= float(after.min()) <= float(after.max()) <= 1
            assert torch.equal(after, again)
    assert list(given) == list(pixels)


class ColoursInnermost(Ramp):
    """The same pixels, in memory as decoders give them."""

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return super().read(index, frames).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", CUT)
def test_a_batch_keeps_the_layout_of_decoded_frames_and_its_floats_have_the_usual_one(name: str) -> None:
    samples = InOrder(ColoursInnermost(40, 13, 7), views(name))
    parcel = collate([samples.draw(0, seed=1), samples.draw(0, seed=2)])
    whole, floats = (slots_of(each) for each in (parcel.views, parcel_on_cpu(parcel).views))
    singly = [views(name).sample(samples.source, 0, seeded(seed)) for seed in (1, 2)]
    for number, (slot, clip) in enumerate(zip(whole, floats, strict=True)):
        assert slot.permute(0, 2, 3, 4, 1).is_contiguous()
        assert torch.equal(slot, torch.stack([slots_of(each)[number] for each in singly]))
        assert clip.is_contiguous()
        assert torch.equal(clip, slot.float() / 255)


def parcel_on_cpu(parcel: Parcel) -> Batch:
    return Batch(views=parcel.views, indices={}).to(torch.device("cpu"))


def test_counts_that_no_view_has_are_refused_before_they_are_made() -> None:
    """A checkpoint's recipe may come from anywhere: two thousand million clips took all memory."""
    for keys in ({"num_clips": 2_000_000_000}, {"num_frames": 2_000_000_000}, {"size": 2_000_000_000}):
        name = next(iter(keys))
        with pytest.raises(ValueError, match=f"{name} must be at most 100,000, got 2000000000"):
            VIEWS["uniform_clips"](**({"num_frames": 2, "frame_stride": 1, "size": 16} | keys))
