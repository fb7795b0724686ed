"""Which frames and which squares of them make up a view."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ramp import Ramp, alone, bytes_of, frames_of, seeded
from safetensors.torch import load_file
from torch import Tensor

from vidssl.data.augment.batch import PerClipAugment
from vidssl.data.views.crops import crop_boxes, resized
from vidssl.data.views.random import (
    MultiScaleClip,
    RandomResizedClip,
    RandomSegments,
    SingleClip,
    SingleImage,
)
from vidssl.data.views.svt import SlowFastTrain
from vidssl.data.views.times import clip_frames, last_start
from vidssl.data.views.uniform import SegmentMiddles, SlowFast, UniformClips
from vidssl.data.views.vimpac import ClipPair, CornerClip
from vidssl.interfaces import Batch

GOLDEN = Path(__file__).parents[1] / "golden" / "bevt"
SAMPLING = json.loads((GOLDEN / "sampling.json").read_text())


@pytest.mark.parametrize("setting", ["pretrain_train", "k400_train"])
def test_clip_starts_and_frames_are_those_of_the_published_sampler(setting: str) -> None:
    length, stride = {"pretrain_train": (16, 8), "k400_train": (32, 2)}[setting]
    for case in SAMPLING[setting]:
        total = case["total_frames"]
        assert last_start(total, length, stride) == case["start_max"]
        start = case["example"][0]
        assert clip_frames(start, total, length=length, stride=stride) == case["example"]


def test_test_clips_are_those_of_the_published_sampler() -> None:
    assert len(SAMPLING["k400_test"]) == 6
    for case in SAMPLING["k400_test"]:
        video = Ramp(case["total_frames"])
        views = UniformClips(num_clips=case["num_clips"], num_frames=32, frame_stride=2, size=8)
        slots = views.sample(video, 0, seeded(0))["clip"]
        assert [frames_of(slot) for slot in slots] == [bytes_of(clip) for clip in case["frame_inds"]]
        assert len(video.reads) == 1
        assert len(set(video.reads[0])) == len(video.reads[0])


def test_three_crops_are_the_published_boxes() -> None:
    assert len(SAMPLING["three_crop"]) == 5
    for case in SAMPLING["three_crop"]:
        boxes = [(top, left) for left, top, _, _ in case["xyxy"]]
        assert crop_boxes(*case["hw"], 224, 3) == boxes
        assert crop_boxes(*case["hw"], 224, 1) == boxes[2:]
        height, width = case["hw"]
        assert crop_boxes(width, height, 224, 3) == [(left, top) for top, left in boxes]


@pytest.mark.parametrize("num_crops", [1, 3])
def test_middles_of_segments_are_those_of_the_published_sampler(num_crops: int) -> None:
    assert len(SAMPLING["ssv2_test"]) == 7
    for case in SAMPLING["ssv2_test"]:
        video = Ramp(case["total_frames"])
        slots = SegmentMiddles(num_frames=case["clip_len"], num_crops=num_crops, size=8).sample(
            video, 0, seeded(0)
        )["clip"]
        assert [frames_of(slot) for slot in slots] == [case["frame_inds"]] * num_crops


def test_random_frames_of_segments_range_as_in_the_published_sampler() -> None:
    assert len(SAMPLING["ssv2_train"]) == 7
    for case in SAMPLING["ssv2_train"]:
        views = RandomSegments(num_frames=case["clip_len"], size=2)
        drawn = torch.tensor(
            [
                frames_of(views.sample(Ramp(case["total_frames"], 2, 2), 0, seeded(n))["clip"][0])
                for n in range(60)
            ]
        )
        assert drawn.amin(0).tolist() == case["per_slot_min"]
        assert drawn.amax(0).tolist() == case["per_slot_max"]


def test_random_resized_clips_start_where_single_clips_do() -> None:
    views, video = RandomResizedClip(num_frames=4, frame_stride=2, size=4), Ramp(12)
    clips = [frames_of(views.sample(video, 0, seeded(seed))["clip"][0]) for seed in range(100)]
    assert {tuple(clip) for clip in clips} == {(s, s + 2, s + 4, s + 6) for s in range(5)}


@pytest.mark.parametrize("short_side", [None, 40])
def test_random_resized_clips_show_boxes_of_the_areas_asked_for(short_side: int | None) -> None:
    views = RandomResizedClip(num_frames=2, frame_stride=1, size=16, area=(0.25, 0.25), short_side=short_side)
    corners = set()
    for seed in range(20):
        clip = views.sample(Ramp(2, 100, 120), 0, seeded(seed))["clip"][0].float()
        assert torch.equal(clip[1:, 0], clip[1:, 1])
        # of 16 points the centres are seen: 15 steps of a 16th of the box's side
        rows, columns = ((clip[channel].max() - clip[channel].min()) * 16 / 15 for channel in (1, 2))
        assert float(rows * columns) / 12_000 == pytest.approx(0.25, rel=0.15)
        assert 0.7 < columns / rows < 1.4
        corners.add((int(clip[1].min()), int(clip[2].min())))
    assert len(corners) > 10


def test_every_start_that_fits_is_drawn_alike_often() -> None:
    views, video = SingleClip(num_frames=4, frame_stride=2, size=8), Ramp(12)
    starts = [frames_of(views.sample(video, 0, seeded(seed))["clip"][0])[0] for seed in range(500)]
    counts = [starts.count(start) for start in range(max(starts) + 1)]
    assert len(counts) == 5
    assert min(counts) > 70


def test_a_video_shorter_than_the_clip_goes_round() -> None:
    clip = SingleClip(num_frames=4, frame_stride=2, size=8).sample(Ramp(5), 0, seeded(0))["clip"][0]
    assert frames_of(clip) == [0, 2, 4, 1]


@pytest.mark.parametrize(
    "views",
    [
        SingleClip(num_frames=2, size=8),
        SingleImage(size=8),
        UniformClips(num_frames=2, size=8),
        SegmentMiddles(num_frames=2, num_crops=1, size=8),
        CornerClip(num_frames=2, size=8, resize=(1.0,)),
    ],
    ids=lambda views: type(views).__name__,
)
def test_a_video_of_the_wanted_size_keeps_its_pixels(views) -> None:
    ((slot,),) = views.sample(Ramp(20), 0, seeded(3)).values()
    assert torch.equal(slot[1, 0], torch.arange(8, dtype=torch.uint8)[:, None].expand(8, 8))
    assert torch.equal(slot[2, 0], torch.arange(8, dtype=torch.uint8).expand(8, 8))


@pytest.mark.parametrize(
    "views",
    [
        SingleClip(num_frames=3, frame_stride=1, size=6),
        SingleClip(num_frames=3, frame_stride=1, size=(6, 10)),
        SingleClip(num_frames=3, frame_stride=1, size=(10, 6), fit="pad"),
        SingleImage(size=(6, 10), fit="stretch"),
        UniformClips(num_clips=2, num_crops=3, num_frames=2, frame_stride=1, size=(6, 10)),
        UniformClips(num_clips=2, num_frames=2, frame_stride=1, size=(10, 6), fit="pad"),
        SingleImage(size=6),
        UniformClips(num_clips=2, num_crops=3, num_frames=3, frame_stride=2, size=6),
        UniformClips(num_clips=2, num_frames=3, frame_stride=2, size=6, fps=7.0, starts="end_to_end"),
        RandomResizedClip(num_frames=3, size=6),
        RandomResizedClip(num_frames=3, size=6, short_side=10),
        RandomSegments(num_frames=3, size=6),
        SegmentMiddles(num_frames=3, size=6),
        ClipPair(num_frames=3, size=6),
        CornerClip(num_frames=3, size=6),
    ],
    ids=lambda views: type(views).__name__,
)
@pytest.mark.parametrize("shape", [(9, 7, 12), (9, 13, 7), (1, 5, 5), (2, 200, 190)])
def test_slots_have_the_shapes_that_are_announced(views, shape: tuple[int, int, int]) -> None:
    given = views.sample(Ramp(*shape), 0, seeded(0))
    assert {name: tuple(tuple(slot.shape) for slot in slots) for name, slots in given.items()} == {
        name: tuple((3, *size) for size in sizes) for name, sizes in views.shapes.items()
    }
    assert all(slot.dtype == torch.uint8 and alone(slot) for slots in given.values() for slot in slots)


def test_the_same_generator_gives_the_same_view_and_another_a_different_one() -> None:
    views, video = SingleClip(num_frames=3, frame_stride=1, size=20), Ramp(100, 40, 60)
    one, same, other = (views.sample(video, 0, seeded(seed))["clip"][0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_crops_reach_both_ends_of_the_long_side() -> None:
    views = SingleClip(num_frames=1, frame_stride=1, size=16, short_side=(16, 16))
    for channel, shape in ((1, (18, 16)), (2, (16, 18))):
        clips = [views.sample(Ramp(1, *shape), 0, seeded(seed))["clip"][0] for seed in range(30)]
        assert {int(clip[channel].min()) for clip in clips} == {0, 1, 2}


@pytest.mark.parametrize("views", [SingleClip, UniformClips])
def test_whole_frames_are_stretched_or_padded_with_black(views) -> None:
    keys = {"num_frames": 1, "frame_stride": 1}
    video = Ramp(1, 20, 40)  # green counts rows, blue columns
    (stretched,) = views(**keys, size=16, fit="stretch").sample(video, 0, seeded(0))["clip"]
    for channel, last in ((1, 19), (2, 39)):
        assert int(stretched[channel].min()) <= 1
        assert int(stretched[channel].max()) >= last - 1
    (padded,) = views(**keys, size=16, fit="pad").sample(video, 0, seeded(0))["clip"]
    assert not padded[:, :, :4].any()
    assert not padded[:, :, 12:].any()
    assert torch.equal(
        padded[:, :, 4:12], views(**keys, size=(8, 16), fit="stretch").sample(video, 0, seeded(0))["clip"][0]
    )
    with pytest.raises(ValueError, match="fit: pad shows whole frames"):
        views(size=16, fit="pad", **({"num_crops": 3} if views is UniformClips else {"short_side": (16, 20)}))


def test_a_part_that_is_not_square_has_the_frame_s_scale_in_both_directions() -> None:
    views = UniformClips(num_frames=1, frame_stride=1, size=(10, 20))
    wide, high = (views.sample(Ramp(1, *shape), 0, seeded(0))["clip"][0] for shape in ((20, 60), (40, 40)))
    # half the size: of the wide one the middle 40 columns, of the high one the middle 20 rows
    assert [int(wide[1].min()), int(wide[1].max()), int(wide[2].min()), int(wide[2].max())] == pytest.approx(
        [0, 19, 10, 49], abs=1
    )
    assert [int(high[1].min()), int(high[1].max()), int(high[2].min()), int(high[2].max())] == pytest.approx(
        [10, 29, 0, 39], abs=1
    )
    places = {
        tuple(
            SingleClip(num_frames=1, frame_stride=1, size=(10, 20))
            .sample(Ramp(1, 20, 60), 0, seeded(seed))["clip"][0][:, 0, 0, 0]
            .tolist()
        )
        for seed in range(10)
    }
    assert len(places) > 5, "drawn anew"


def test_sizes_reach_both_ends_of_the_range() -> None:
    views = SingleClip(num_frames=1, frame_stride=1, size=16, short_side=(16, 32))
    clips = [views.sample(Ramp(1, 16, 18), 0, seeded(seed))["clip"][0] for seed in range(200)]
    rows = [int(clip[1].max()) - int(clip[1].min()) for clip in clips]  # 15 at scale 1, half of it at scale 2
    assert max(rows) == 15
    assert min(rows) <= 8


def test_the_default_range_of_the_short_side_is_the_published_one() -> None:
    assert SingleClip(size=224).short_side == (256, 320)
    assert SingleImage(size=112).short_side == (128, 160)


class Stripes(Ramp):
    """Bright stripes, four columns apart, in front of black."""

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        row = torch.tensor([0, 200, 200, 0], dtype=torch.uint8).repeat(16)
        return row.expand(len(frames), 3, 64, 64).clone()


@pytest.mark.parametrize(
    "make",
    [
        lambda **keys: SingleClip(num_frames=1, size=16, short_side=(16, 16), **keys),
        lambda **keys: SingleImage(size=16, short_side=(16, 16), **keys),
        lambda **keys: UniformClips(num_frames=1, size=16, **keys),
        lambda **keys: SegmentMiddles(num_frames=1, size=16, **keys),
        lambda **keys: RandomResizedClip(num_frames=1, size=16, area=(1.0, 1.0), aspect=(1.0, 1.0), **keys),
        lambda **keys: RandomSegments(num_frames=1, size=16, area=(1.0, 1.0), short_side=16, **keys),
        lambda **keys: SlowFast(num_frames=(1, 1), sizes=(16, 16), **keys),
        lambda **keys: SlowFastTrain(num_frames=(1, 1), sizes=(16, 16), **keys),
    ],
)
def test_shrinking_averages_over_pixels_unless_a_key_says_otherwise(make) -> None:
    def shown(**keys: str) -> Tensor:
        slots = make(**keys).sample(Stripes(1, 64, 64), 0, seeded(0)).values()
        return torch.stack([slot[0].float() for views in slots for slot in views])

    assert (shown() - 100).abs().max() < 30
    for interpolation in ("bilinear", "bicubic"):  # some columns show the bright middle of a stripe alone
        assert (shown(interpolation=interpolation).amax((1, 2, 3)) > 190).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", ["shrunk", "grown"])
def test_without_antialiasing_resizing_is_opencvs(interpolation: str, size: str) -> None:
    golden = load_file(GOLDEN / "opencv_resize.safetensors")
    expected = golden[f"{size}/{interpolation}"].int()
    found = resized(golden[f"{size}/input"][None], *expected.shape[1:], interpolation)[0]
    assert found.dtype == torch.uint8
    assert (found.int() - expected).abs().max() <= 1
    assert (found != expected).float().mean() < {"bilinear": 0.4, "bicubic": 0.01}[interpolation]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SingleClip(num_frames=0), "num_frames must be at least 1"),
        (lambda: SingleImage(size=224, short_side=(200, 300)), "not below size"),
        (lambda: SingleImage(size=224, short_side=(300, 250)), "rising"),
        (lambda: UniformClips(num_crops=2), "num_crops must be 1 or 3"),
        (lambda: RandomResizedClip(short_side=0), "short_side must be at least 1"),
        (lambda: RandomResizedClip(area=(0.0, 1.0)), "area must be two numbers above 0"),
        (lambda: RandomSegments(num_frames=0), "num_frames must be at least 1"),
        (lambda: SegmentMiddles(num_crops=5), "num_crops must be 1 or 3"),
        (lambda: UniformClips(fps=0.0), "fps must be above 0"),
        (lambda: PerClipAugment(flip=1.5), "flip must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_flip_takes_whole_clips_and_about_half_of_them() -> None:
    clip = torch.rand(64, 3, 4, 5, 6)
    image = torch.rand(64, 3, 1, 5, 6)
    batch = Batch(views={"clip": (clip, clip), "image": (image,)}, indices={"video": torch.arange(64)})
    given = PerClipAugment(flip=0.5)(batch, seeded(0))
    assert torch.equal(given.indices["video"], torch.arange(64))
    drawn = []
    for before, after in zip((clip, clip, image), (*given.views["clip"], *given.views["image"]), strict=True):
        flipped = (after == before.flip(-1)).flatten(1).all(1)
        assert torch.equal(flipped, ~(after == before).flatten(1).all(1))
        assert 16 < int(flipped.sum()) < 48
        drawn.append(flipped)
    assert not torch.equal(drawn[0], drawn[1])


def test_no_flip_and_always_flip() -> None:
    clip = torch.rand(5, 3, 2, 4, 4)
    for flip, expected in ((0.0, clip), (1.0, clip.flip(-1))):
        given = PerClipAugment(flip=flip)(Batch(views={"clip": (clip,)}), seeded(0))
        assert torch.equal(given.views["clip"][0], expected)


def test_multi_scale_boxes_have_neighbouring_scales_and_thirteen_places() -> None:
    """VideoMAE's: on 100x160 sides of 100, 87, 75 and 66, of which neighbours make ten pairs."""

    class Places(Ramp):
        def read(self, index: int, frames: Sequence[int]) -> Tensor:
            rows, columns = torch.meshgrid(torch.arange(100), torch.arange(160), indexing="ij")
            return torch.stack((rows, columns, rows)).to(torch.uint8).expand(len(frames), -1, -1, -1)

    sampler, found = MultiScaleClip(num_frames=1, frame_stride=1, size=100), []
    for seed in range(600):
        clip = sampler.sample(Places(4, 100, 160), 0, seeded(seed))["clip"][0].float()[:, 0]
        edges = (clip[0, 0, 0], clip[0, -1, 0], clip[1, 0, 0], clip[1, 0, -1])
        top, bottom, left, right = (round(float(edge)) for edge in edges)
        found.append((bottom - top + 1, right - left + 1, top, left))
    pairs = {(tall, wide) for tall, wide, _, _ in found}
    sides = (100, 87, 75, 66)
    assert pairs == {(a, b) for a in sides for b in sides if abs(a - b) <= 13}
    whole = {(top, left) for tall, wide, top, left in found if (tall, wide) == (75, 75)}
    assert whole <= {(6 * a, 21 * b) for a in range(5) for b in range(5) if a % 2 == b % 2}
    assert len(whole) > 8
