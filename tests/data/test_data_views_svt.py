"""SVT's views: which frames and boxes, against what the published sampler does, and what the paper says."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ramp import Ramp, bytes_of, frames_of, seeded
from safetensors.torch import load_file
from torch import Tensor

from vidssl.data.views.crops import random_box, svt_crop_boxes, svt_resize_short_side
from vidssl.data.views.svt import (
    LOCAL_FRAMES,
    ClipCrops,
    GlobalLocal,
    IntervalClips,
    SlowFastTrain,
    SVTPublished,
    svt_global_frames,
    svt_local_frames,
)
from vidssl.data.views.times import svt_test_frames
from vidssl.data.views.uniform import SlowFast, SVTPublishedTest
from vidssl.interfaces import DataSource, SampleInfo

GOLDEN = Path(__file__).parents[1] / "golden" / "svt"
VIEWS = json.loads((GOLDEN / "views.json").read_text())


class Noted(DataSource):
    """A video of one pixel whose reads are all that matters."""

    label_classes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, num_frames: int, fps: float) -> None:
        self.facts = SampleInfo("noted", num_frames, fps, {})

    def __len__(self) -> int:
        return 1

    def info(self, index: int) -> SampleInfo:
        return self.facts

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return (
            torch.tensor([[frame // 256, frame % 256, 0] for frame in frames], dtype=torch.uint8)
            .view(-1, 3, 1, 1)
            .expand(-1, -1, 2, 2)
        )


def numbers_of(clip: Tensor) -> list[int]:
    return (clip[0, :, 0, 0].int() * 256 + clip[1, :, 0, 0].int()).tolist()


def test_published_index_rules() -> None:
    cases = [(case, example) for case in VIEWS["temporal"] for example in case["examples"]]
    assert len(cases) == 18
    for case, example in cases:
        first, last = example["window"]
        lengths = [view["frames"] for view in case["views"]]
        assert svt_global_frames(first, last, lengths[:2]) == example["indices"][:2]
        for length, expected in zip(lengths[2:], example["indices"][2:], strict=True):
            assert svt_local_frames(first, last, expected[0] - first, length) == expected


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=[pytest.mark.slow] * (case["source_frames"] > 200), id=str(case["source_frames"])
        )
        for case in VIEWS["temporal"]
    ],
)
def test_published_windows_and_starts(case: dict) -> None:
    """The spans and starts of 150 draws, against 2000 of the published sampler's."""
    lengths = [view["frames"] for view in case["views"]]
    window_frames = 10_000 if case["whole_video_decoded"] else 256
    views = SVTPublished(
        num_frames=(lengths[0], lengths[1]),
        local_frames=tuple(lengths[2:]),
        size=2,
        local_size=2,
        window_frames=window_frames,
    )
    video = Noted(case["source_frames"], case["source_fps"])
    firsts: list[list[int]] = []
    for seed in range(150):
        given = views.sample(video, 0, seeded(seed))
        clips = [numbers_of(slot) for slot in (*given["global"], *given["local"])]
        assert [len(clip) for clip in clips] == lengths
        spans = [clip[-1] - clip[0] for clip in clips]
        for span, view in zip(spans, case["views"], strict=True):
            stated = view["span_last_minus_first"]
            assert stated["min"] <= span <= stated["max"]
        firsts.append([clip[0] for clip in clips])
    for place, view in enumerate(case["views"]):
        drawn = torch.tensor([first[place] for first in firsts]).float()
        stated = view["first"]
        width = stated["max"] - stated["min"]
        assert stated["min"] - 0.03 * width <= drawn.min()
        assert drawn.max() <= stated["max"] + 0.03 * width
        assert abs(float(drawn.mean()) - stated["mean"]) < 4 * (width / 12**0.5) / 150**0.5 + 0.5


def test_published_test_frames() -> None:
    cases = VIEWS["eval_indices_real"]
    assert len(cases) == 30
    for case in cases:
        given = [
            svt_test_frames(
                case["source_frames"],
                case["source_fps"],
                clip=clip,
                num_clips=case["clips"],
                length=case["frames"],
                window_frames=case["frames"] * case["sampling_rate"],
            )
            for clip in range(case["clips"])
        ]
        assert given == case["indices_per_clip"]


@pytest.mark.parametrize("fps", [25, 30])
@pytest.mark.parametrize("num_clips", [2, 3, 4])
def test_later_test_clips_start_once_where_their_share_of_the_starts_ends(fps: int, num_clips: int) -> None:
    """A decoder that works as the published one does, stamp by stamp; starts on whole frames among them."""
    stamps = 512  # ticks of the container's clock between two frames
    starts = set()
    for total in (200, 256, 257, 260, 264, 300, 304, 330):
        window = 256 / 30 * fps
        for clip in range(num_clips):
            start = max(total - window, 0) * clip / num_clips
            starts.add(start % 1 == 0 and start > 0)
            wanted = [n for n in range(total) if n * stamps >= int(start * stamps)]
            past_the_end = [n for n in wanted if n * stamps > int((start + window - 1) * stamps)]
            decoded = wanted[: wanted.index(past_the_end[0]) + 1] if past_the_end else wanted
            rows = torch.linspace(0, window - 1, 8).clamp(0, len(decoded) - 1).long().tolist()
            found = svt_test_frames(total, fps, clip=clip, num_clips=num_clips, length=8, window_frames=256)
            assert found == [decoded[row] for row in rows]
    assert True in starts or fps == 25


def test_published_test_views_are_cut_from_those_frames() -> None:
    case = next(case for case in VIEWS["eval_indices_real"] if case["clips"] == 3)
    video = Ramp(case["source_frames"], 8, 12, fps=case["source_fps"])
    views = SVTPublishedTest(num_clips=3, num_crops=3, num_frames=case["frames"], size=8)
    slots = views.sample(video, 0, seeded(0))["clip"]
    expected = [bytes_of(clip) for clip in case["indices_per_clip"] for _ in range(3)]
    assert [frames_of(slot) for slot in slots] == expected
    assert [int(slot[2, 0, 0, 0]) for slot in slots] == [0, 2, 4] * 3
    assert len(video.reads) == 1


def test_published_crops() -> None:
    golden = load_file(GOLDEN / "evalset.safetensors")
    for shape in ("crops_wide", "crops_tall"):
        frames = golden[f"{shape}/input"].transpose(0, 1)
        small = svt_resize_short_side(frames, 16)
        boxes = svt_crop_boxes(*small.shape[2:], 16, 3)
        for number, (top, left) in enumerate(boxes):
            cut = small[:, :, top : top + 16, left : left + 16].transpose(0, 1)
            torch.testing.assert_close(cut, golden[f"{shape}/crop{number}"], atol=1e-5, rtol=0)
        large = svt_resize_short_side(frames, 24)
        ((top, left),) = svt_crop_boxes(*large.shape[2:], 16, 1)
        cut = large[:, :, top : top + 16, left : left + 16].transpose(0, 1)
        torch.testing.assert_close(cut, golden[f"{shape}/center_from_24"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", VIEWS["spatial"], ids=lambda case: f"{case['source_hw']}{case['output']}")
def test_published_boxes(case: dict) -> None:
    """Statistics of 1000 boxes, against 2000 of the published code's."""
    height, width = case["source_hw"]
    area, aspect = tuple(case["scale_range"]), (3 / 4, 4 / 3)
    generator = seeded(0)
    boxes = [random_box(height, width, area, aspect, generator, "svt_published") for _ in range(1000)]
    areas = torch.tensor([box.height * box.width / (height * width) for box in boxes])
    shapes = torch.tensor([box.width / box.height for box in boxes])
    touching = [box.top + box.height == height or box.left + box.width == width for box in boxes]
    assert float(areas.mean()) == pytest.approx(case["area_fraction"]["mean"], rel=0.03)
    assert float(shapes.mean()) == pytest.approx(case["aspect_w_over_h"]["mean"], rel=0.03)
    assert sum(touching) / 1000 == pytest.approx(case["fraction_touching_bottom_or_right_edge"], abs=0.06)
    slack = 0.01  # whole pixels
    outside = (areas < area[0] - slack) | (areas > area[1] + slack)
    outside |= (shapes < aspect[0] * 0.96) | (shapes > aspect[1] * 1.04)
    stray = case["fraction_of_draws_outside_area_or_aspect_range"]
    assert float(outside.float().mean()) == pytest.approx(stray, abs=0.015)


@pytest.mark.parametrize("shape", [(256, 340), (455, 256), (30, 300)])
def test_usual_boxes_stay_in_range(shape: tuple[int, int]) -> None:
    generator = seeded(0)
    for _ in range(500):
        box = random_box(*shape, (0.4, 1.0), (3 / 4, 4 / 3), generator)
        assert 0 <= box.top <= shape[0] - box.height
        assert 0 <= box.left <= shape[1] - box.width
        assert 0.72 < box.width / box.height < 1.37
        if shape != (30, 300):  # too long for any box of that area: the middle is taken
            assert 0.39 < box.height * box.width / (shape[0] * shape[1]) <= 1
        else:
            assert (box.top, box.left, box.height, box.width) == (0, 130, 30, 40)


def small_views(**keys) -> GlobalLocal:
    return GlobalLocal(**{"size": 8, "local_size": 4} | keys)


def test_ten_views_come_from_one_read() -> None:
    views, video = small_views(), Ramp(200, 12, 16)
    given = views.sample(video, 0, seeded(0))
    assert {name: [tuple(slot.shape) for slot in slots] for name, slots in given.items()} == {
        "global": [(3, 16, 8, 8), (3, 8, 8, 8)],
        "local": [(3, length, 4, 4) for length in LOCAL_FRAMES],
    }
    assert len(video.reads) == 1
    shown = {frame for slots in given.values() for slot in slots for frame in frames_of(slot)}
    assert set(video.reads[0]) == shown
    assert len(video.reads[0]) == len(shown)


def test_paper_sizes_are_the_defaults() -> None:
    assert GlobalLocal().shapes == {
        "global": ((16, 224, 224), (8, 224, 224)),
        "local": tuple((length, 96, 96) for length in (2, 2, 4, 4, 8, 8, 16, 16)),
    }
    assert GlobalLocal(local_frames=()).shapes == {"global": ((16, 224, 224), (8, 224, 224))}


def test_globals_cover_nine_tenths_and_locals_an_eighth_anywhere() -> None:
    starts: dict[str, list[int]] = {"global": [], "local": []}
    views, video = small_views(num_frames=(16, 2), local_frames=(2, 4)), Ramp(200)
    for seed in range(200):
        for name, covered in (("global", 180), ("local", 25)):
            for slot in views.sample(video, 0, seeded(seed))[name]:
                frames = frames_of(slot)
                assert frames[-1] - frames[0] == covered - 1
                gaps = [after - before for before, after in pairwise(frames)]
                assert max(gaps) - min(gaps) <= 1
                starts[name].append(frames[0])
    assert (min(starts["global"]), max(starts["global"])) == (0, 20)
    assert min(starts["local"]) < 5
    assert max(starts["local"]) > 170
    assert 80 < sum(starts["local"]) / len(starts["local"]) < 95


def test_views_draw_parts_of_their_own() -> None:
    given = small_views().sample(Ramp(200), 0, seeded(0))
    starts = [frames_of(slot)[0] for slot in (*given["global"], *given["local"])]
    assert len(set(starts)) > 7


def test_varying_space_only_keeps_one_part_of_the_video() -> None:
    views = small_views(vary="space")
    assert views.shapes == small_views().shapes
    starts = set()
    for seed in range(20):
        given = views.sample(Ramp(200, 30, 40), 0, seeded(seed))
        ends = {(frames_of(slot)[0], frames_of(slot)[-1]) for slots in given.values() for slot in slots}
        assert len(ends) == 1
        boxes = {(int(slot[1, 0].min()), int(slot[2, 0].min())) for slot in given["local"]}
        assert len(boxes) > 1
        starts |= ends
    assert len(starts) > 5


def test_varying_time_only_shows_whole_frames() -> None:
    views = small_views(vary="time")
    assert {shape[1:] for shapes in views.shapes.values() for shape in shapes} == {(8, 8)}
    given = views.sample(Ramp(200, 8, 8), 0, seeded(0))
    for slot in (*given["global"], *given["local"]):
        assert torch.equal(slot[1, 0], torch.arange(8, dtype=torch.uint8)[:, None].expand(8, 8))
        assert torch.equal(slot[2, 0], torch.arange(8, dtype=torch.uint8).expand(8, 8))
    assert len({frames_of(slot)[0] for slot in given["local"]}) > 3


def test_one_box_serves_all_frames_of_a_view_unless_asked_otherwise() -> None:
    video = Ramp(200, 40, 50)
    for box_per_frame in (False, True):
        given = small_views(box_per_frame=box_per_frame).sample(video, 0, seeded(0))
        for slot in (*given["global"], given["local"][-1]):
            places = slot[1:].flatten(2).transpose(0, 1).flatten(1)  # rows and columns shown, frame by frame
            assert bool((places == places[0]).all()) != box_per_frame


def test_shrinking_averages_over_pixels_but_in_the_published_code() -> None:
    class Stripes(Ramp):
        def read(self, index: int, frames: Sequence[int]) -> Tensor:
            columns = torch.tensor([0, 200, 200, 0], dtype=torch.uint8).repeat(16)
            return columns.expand(len(frames), 3, 64, 64).clone()

    whole = {"area": (1.0, 1.0), "local_area": (1.0, 1.0), "aspect": (1.0, 1.0), "size": 16, "local_size": 16}
    for views, smooth in ((GlobalLocal(**whole), True), (SVTPublished(**whole), False)):
        given = views.sample(Stripes(40, 64, 64), 0, seeded(0))
        for slot in (given["global"][0], given["local"][0]):
            assert ((slot.float() - 100).abs().max() < 15) == smooth


def test_boxes_have_the_areas_asked_for() -> None:
    views = small_views(area=(0.5, 0.5), local_area=(0.1, 0.1), num_frames=(2,), local_frames=(2,))
    for seed in range(10):
        given = views.sample(Ramp(20, 100, 100), 0, seeded(seed))
        for name, area in (("global", 0.5), ("local", 0.1)):
            clip = given[name][0].float()
            # of the outermost of n points, the centres, n - 1 steps of the box's side / n are seen
            points = clip.shape[-1]
            rows, columns = ((clip[c, 0].max() - clip[c, 0].min()) * points / (points - 1) for c in (1, 2))
            assert float(rows * columns) / 10_000 == pytest.approx(area, rel=0.25)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    "views",
    [
        small_views(),
        SVTPublished(size=8, local_size=4),
        IntervalClips(size=8, local_size=4),
        ClipCrops(size=8, local_size=4),
        SlowFast(sizes=(8, 4)),
        SlowFastTrain(sizes=(8, 4)),
        SVTPublishedTest(size=8, num_clips=2),
    ],
    ids=lambda views: type(views).__name__,
)
def test_shortest_videos_give_the_announced_shapes(views, frames: int) -> None:
    given = views.sample(Ramp(frames, 9, 7, fps=0.0), 0, seeded(0))
    assert {name: tuple(tuple(slot.shape[1:]) for slot in slots) for name, slots in given.items()} == dict(
        views.shapes
    )
    assert all(slot.dtype == torch.uint8 for slots in given.values() for slot in slots)


def test_intervals_between_globals_fall_in_a_straight_line() -> None:
    views, video = IntervalClips(num_frames=4, frame_stride=2, local_frames=(), size=2), Ramp(47, 4, 4)
    intervals, first_is_early = [], 0
    for seed in range(1000):
        one, other = (frames_of(slot) for slot in views.sample(video, 0, seeded(seed))["global"])
        assert [b - a for a, b in pairwise(one)] == [2, 2, 2]
        intervals.append(abs(other[0] - one[0]))
        first_is_early += one[0] < other[0]
    assert max(intervals) <= 39
    halves = sum(interval < 20 for interval in intervals) / 1000
    assert halves == pytest.approx(0.744, abs=0.05)  # sum of 1 - t/40 for t < 20, over that for t < 40
    assert 410 < first_is_early < 570


def test_a_higher_power_spreads_intervals() -> None:
    views = IntervalClips(num_frames=4, frame_stride=2, local_frames=(), size=2, interval_power=20.0)
    starts = [[frames_of(s)[0] for s in views.sample(Ramp(47), 0, seeded(n))["global"]] for n in range(300)]
    assert sum(abs(one - other) < 20 for one, other in starts) / 300 == pytest.approx(0.52, abs=0.08)


def test_interval_clips_have_locals() -> None:
    given = IntervalClips(size=4, local_size=2, local_frames=(2, 16)).sample(Ramp(100), 0, seeded(0))
    assert [tuple(slot.shape) for slot in given["local"]] == [(3, 2, 2, 2), (3, 16, 2, 2)]
    assert {frames_of(slot)[-1] - frames_of(slot)[0] for slot in given["local"]} == {11}


def test_crops_of_a_clip_show_the_same_frames_and_other_places() -> None:
    views, video = (
        ClipCrops(num_frames=5, num_globals=2, local_frames=(5, 5, 3), size=8, local_size=4),
        Ramp(40),
    )
    starts, places = set(), set()
    for seed in range(30):
        given = views.sample(video, 0, seeded(seed))
        clip = frames_of(given["global"][0])
        assert [b - a for a, b in pairwise(clip)] == [2, 2, 2, 2]
        assert [frames_of(slot) for slot in given["global"]] == [clip, clip]
        assert [frames_of(slot) for slot in given["local"]] == [clip, clip, clip[::2]]
        starts.add(clip[0])
        places |= {int(slot[1, 0, 0, 0]) for slot in given["local"]}
    assert len(video.reads) == 30  # one for all views
    assert max(starts) > 20
    assert len(places) > 5


def test_slow_and_fast_cover_the_same_frames_with_as_many_slots() -> None:
    views, video = SlowFast(sizes=(8, 4)), Ramp(300, 8, 14)
    given = views.sample(video, 0, seeded(0))
    assert len(video.reads) == 1
    assert [frames_of(slot) for slot in given["slow"]] == [bytes_of(range(22, 278, 32))] * 3
    assert [frames_of(slot) for slot in given["fast"]] == [bytes_of(range(22, 278, 4))] * 3
    assert [int(slot[2, 0, 0, 0]) for slot in given["slow"]] == [0, 6, 3]
    assert SlowFast().shapes == {"slow": ((8, 224, 224),) * 3, "fast": ((64, 96, 96),) * 3}


def test_several_slow_fast_clips_spread_over_a_video() -> None:
    given = SlowFast(sizes=(8, 4), num_clips=2, num_crops=1).sample(Ramp(355), 0, seeded(0))
    assert [frames_of(slot)[0] for slot in given["slow"]] == [25, 75]
    assert [frames_of(slot)[0] for slot in given["fast"]] == [25, 75]


def test_the_longer_of_slow_and_fast_decides_where_both_may_start() -> None:
    views = SlowFast(sizes=(8, 4), num_frames=(2, 4), frame_strides=(8, 2), num_crops=1)
    given = views.sample(Ramp(24), 0, seeded(0))
    assert frames_of(given["slow"][0]) == [4, 12]
    assert frames_of(given["fast"][0]) == [4, 6, 8, 10]


def test_slow_fast_training_clips_start_together_at_random() -> None:
    starts = set()
    for seed in range(30):
        given = SlowFastTrain(sizes=(8, 4), num_frames=(2, 4), frame_strides=(8, 4)).sample(
            Ramp(40), 0, seeded(seed)
        )
        slow, fast = frames_of(given["slow"][0]), frames_of(given["fast"][0])
        assert slow == fast[::2]
        starts.add(slow[0])
    assert min(starts) < 4
    assert max(starts) > 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalLocal(num_frames=()), "at least one global"),
        (lambda: GlobalLocal(num_frames=(16, 0)), "num_frames must be at least 1"),
        (lambda: GlobalLocal(local_frames=(2, -1)), "local_frames must be at least 1"),
        (lambda: GlobalLocal(extent=1.2), "extent must be above 0 and at most 1"),
        (lambda: GlobalLocal(local_extent=0.0), "local_extent must be above 0"),
        (lambda: GlobalLocal(area=(0.4, 1.1)), "area must be two numbers above 0 and at most 1, rising"),
        (lambda: GlobalLocal(local_area=(0.4, 0.1)), "area must be two numbers"),
        (lambda: GlobalLocal(aspect=(0.0, 1.0)), "aspect must be two numbers above 0, rising"),
        (lambda: GlobalLocal(local_size=0), "size must be at least 1"),
        (lambda: SVTPublished(window_frames=0), "window_frames must be at least 1"),
        (lambda: IntervalClips(interval_power=0.0), "interval_power must be above 0"),
        (lambda: SlowFast(sizes=(8, 0)), "sizes must be at least 1"),
        (lambda: SlowFast(num_crops=2), "num_crops must be 1 or 3"),
        (lambda: SVTPublishedTest(size=224, short_side=200), "short_side must not be below size"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
