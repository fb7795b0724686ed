"""VIMPAC's views: frame rates, pairs of clips, corners, and the published rules for starts."""

import contextlib
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from ramp import Ramp, bytes_of, frames_of, seeded

from vidssl.build.checks import check_repeats
from vidssl.data.loader import Stream
from vidssl.data.views.times import kept_frames, neighbour_starts, vimpac_last_start
from vidssl.data.views.uniform import UniformClips
from vidssl.data.views.vimpac import ClipPair, CornerClip
from vidssl.interfaces import SampleInfo, UnreadableSample

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vimpac" / "clip_sampling.json").read_text())


def test_test_clips_are_those_of_the_published_sampler() -> None:
    assert len(GOLDEN["uniform_test_clips"]) == 160
    for case in GOLDEN["uniform_test_clips"]:
        views = UniformClips(
            num_clips=case["num_clips"],
            num_frames=case["clip_len"],
            frame_stride=case["stride"],
            size=8,
            starts="end_to_end",
        )
        slots = views.sample(Ramp(case["frames"]), 0, seeded(0))["clip"]
        for slot, stored in zip(slots, case["frame_index"], strict=True):
            held = stored + stored[-1:] * (case["clip_len"] - len(stored))  # the published code pads ids
            assert frames_of(slot) == held


def test_random_starts_range_as_in_the_published_sampler() -> None:
    for case in GOLDEN["random_train_clip_bounds"]:
        assert case["min_start"] == 0
        last = vimpac_last_start(case["frames"], case["clip_len"], case["stride"])
        assert last == case["max_start"]
    case = GOLDEN["random_train_clip_bounds"][2]
    views = ClipPair(num_frames=case["clip_len"], frame_stride=case["stride"], fps=None, size=4)
    video = Ramp(case["frames"], 4, 4)
    pairs = [[frames_of(slot) for slot in views.sample(video, 0, seeded(n))["clip"]] for n in range(400)]
    for slot in (0, 1):
        starts = [pair[slot][0] for pair in pairs]
        assert (min(starts), max(starts)) == (0, case["max_start"])
        assert abs(sum(starts) / 400 - case["max_start"] / 2) < 2
    one, other = torch.tensor([[pair[0][0], pair[1][0]] for pair in pairs]).float().T
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.15  # drawn independently


def test_second_starts_range_as_in_the_published_sampler() -> None:
    assert len(GOLDEN["second_clip_bounds_with_relevance_range"]) == 5
    for case in GOLDEN["second_clip_bounds_with_relevance_range"]:
        last = vimpac_last_start(case["frames"], case["clip_len"], 1)
        bounds = neighbour_starts(case["first_start"], last, case["relevance_range"])
        assert bounds == (case["min_second_start"], case["max_second_start"])


@pytest.mark.parametrize(("seconds", "fps", "most"), [(1.0, 10.0, 10), (1.0, None, 30), (0.0, 10.0, 0)])
def test_starts_are_at_most_so_many_seconds_apart(seconds: float, fps: float | None, most: int) -> None:
    views = ClipPair(num_frames=2, fps=fps, size=4, max_distance_seconds=seconds)
    video = Ramp(250, 4, 4, fps=30.0)
    distances = []
    for seed in range(300):
        one, other = (frames_of(slot)[0] for slot in views.sample(video, 0, seeded(seed))["clip"])
        distances.append(abs(other - one) / (30.0 / (fps or 30.0)))
    assert max(distances) == most


def test_a_pair_is_one_read_and_the_middle_of_each_frame() -> None:
    views, video = ClipPair(num_frames=3, fps=15.0, size=8), Ramp(60, 8, 14, fps=30.0)
    slots = views.sample(video, 0, seeded(1))["clip"]
    assert views.shapes == {"clip": ((3, 8, 8), (3, 8, 8))}
    assert len(video.reads) == 1
    for slot in slots:
        first = frames_of(slot)[0]
        assert frames_of(slot) == [first, first + 2, first + 4]
        assert (int(slot[2].min()), int(slot[2].max())) == (3, 10)


@pytest.mark.parametrize(
    ("num_frames", "own", "wanted", "kept"),
    [
        (90, 30.0, 2.0, [0, 15, 30, 45, 60, 75]),
        (100, 25.0, 2.0, [0, 13, 25, 38, 50, 63, 75, 88]),
        (5, 2.0, 4.0, [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]),
        (3, 30.0, 2.0, [0]),
        (1, 0.0, 2.0, [0]),
    ],
)
def test_another_frame_rate_keeps_the_nearest_frames(
    num_frames: int, own: float, wanted: float, kept: list[int]
) -> None:
    assert list(kept_frames(SampleInfo("x", num_frames, own, {}), wanted)) == kept


def test_of_a_video_of_uneven_rate_the_frames_nearest_in_time_are_kept() -> None:
    times = [0.0, 0.1, 0.2, 0.9, 1.0, 1.9, 2.0]
    kept = kept_frames(SampleInfo("x", 7, 3.0, {}, times), 2.0)
    assert kept == [0, 2, 4, 5, 6]  # at 0, 0.5 (0.2 is nearer than 0.9), 1, 1.5 and 2 seconds
    assert kept_frames(SampleInfo("x", 7, 3.0, {}, times), None) == range(7)


def test_a_thinned_video_lasts_as_long() -> None:
    for num_frames in (10, 77, 300):
        for own in (12.5, 23.976, 30.0):
            kept = list(kept_frames(SampleInfo("x", num_frames, own, {}), 4.0))
            assert abs(len(kept) / 4.0 - num_frames / own) <= 0.5 / 4.0
            ticks = torch.arange(len(kept)) / 4.0
            assert (torch.tensor(kept) / own - ticks).abs().max() <= 1.01 / own


def test_a_video_without_a_frame_rate_is_unreadable_where_one_is_needed() -> None:
    video = Ramp(20, fps=0.0)
    for views in (ClipPair(size=8), CornerClip(size=8), UniformClips(size=8, fps=2.0)):
        with pytest.raises(UnreadableSample, match="ramp: it states no frame rate"):
            views.sample(video, 0, seeded(0))
    with pytest.raises(UnreadableSample, match="max_distance_seconds needs"):
        ClipPair(size=8, fps=None, max_distance_seconds=1.0).sample(video, 0, seeded(0))
    ClipPair(size=8, fps=None).sample(video, 0, seeded(0))


def test_a_short_video_holds_its_last_frame() -> None:
    for views in (ClipPair(num_frames=4, fps=15.0, size=8), CornerClip(num_frames=4, fps=15.0, size=8)):
        for slot in views.sample(Ramp(6, fps=30.0), 0, seeded(0))["clip"]:
            assert frames_of(slot) == [0, 2, 4, 4]


def test_videos_with_one_place_for_a_clip_are_reported_before_the_first_step() -> None:
    views = ClipPair(num_frames=7, frame_stride=3, fps=None, size=4)
    for total in (19, 20):  # 19 frames have one place for a clip, 20 have two
        source = Ramp(total, 4, 4)
        pairs = [views.sample(source, 0, seeded(seed))["clip"] for seed in range(20)]
        assert all(torch.equal(*pair) for pair in pairs) == (total == 19)
        lines = check_repeats(torch.nn.Module(), {"video": Stream(source, views, batch_size=1)})
        told = "data.video: 1 of 1 video looked at has only one place for a clip (7 frames 3 apart)"
        assert [line.split(", the first ramp: both clips")[0] for line in lines] == [told] * (total == 19)


def test_test_clips_at_a_frame_rate() -> None:
    views = UniformClips(num_clips=2, num_frames=3, frame_stride=2, fps=10.0, size=8, starts="end_to_end")
    slots = views.sample(Ramp(300, fps=30.0), 0, seeded(0))["clip"]
    assert [frames_of(slot) for slot in slots] == [bytes_of([0, 6, 12]), bytes_of([285, 291, 297])]
    middles = UniformClips(num_frames=3, frame_stride=2, fps=10.0, size=8)
    assert frames_of(middles.sample(Ramp(300, fps=30.0), 0, seeded(0))["clip"][0]) == [141, 147, 153]


def test_corners_are_the_six_of_the_paper() -> None:
    views, video = CornerClip(num_frames=2, fps=None, size=40), Ramp(20, 80, 120)
    seen = set()
    for seed in range(60):
        clip = views.sample(video, 0, seeded(seed))["clip"][0].float()
        scale = 1 if clip[1].max() - clip[1].min() > 70 else 1.25  # all rows, or 40 of 50
        pixels = 2 / scale  # of the video, for one of the view
        seen.add((scale, *(int(float(clip[channel].min()) / pixels + 0.01) for channel in (1, 2))))
    whole, larger = {(1, 0, left) for left in (0, 10, 20)}, {(1.25, 0, 0), (1.25, 5, 17), (1.25, 10, 35)}
    assert seen == whole | larger


def test_published_sizes_are_the_defaults() -> None:
    assert ClipPair().shapes == {"clip": ((5, 128, 128),) * 2}
    assert CornerClip().shapes == {"clip": ((10, 256, 256),)}
    assert CornerClip().resize == (1.0, 1.25)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipPair(num_frames=0), "num_frames must be at least 1"),
        (lambda: ClipPair(fps=-2.0), "fps must be above 0"),
        (lambda: ClipPair(max_distance_seconds=-1.0), "max_distance_seconds must be at least 0"),
        (lambda: CornerClip(resize=()), "resize must list numbers of at least 1"),
        (lambda: CornerClip(resize=(0.9,)), "resize must list numbers of at least 1"),
        (lambda: CornerClip(fps=0.0), "fps must be above 0"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("fps", "lowest", "highest"), [(2, 0.2, 0.25), (16, 0.0, 0.02)])
@pytest.mark.parametrize("rate", [25, 30])
def test_ffmpegs_frames_of_a_rate_come_later(rate: int, fps: int, lowest: float, highest: float) -> None:
    """The release thins videos out by this filter; docs/papers/vimpac.md quotes the seconds."""
    graph = av.filter.Graph()
    entry = graph.add_buffer(width=16, height=16, format="gray", time_base=Fraction(1, rate))
    thinned, end = graph.add("fps", f"fps={fps}"), graph.add("buffersink")
    entry.link_to(thinned)
    thinned.link_to(end)
    graph.configure()
    for number in range(200):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), format="gray")
        frame.pts, frame.time_base = number, Fraction(1, rate)
        graph.push(frame)
    graph.push(None)
    theirs = []
    with contextlib.suppress(av.error.EOFError):
        while True:
            theirs.append(int(graph.pull().to_ndarray()[0, 0]))
    ours = kept_frames(SampleInfo("", 200, float(rate), {}), float(fps))
    later = [(one - other) / rate for one, other in zip(theirs, ours, strict=False)]
    assert abs(len(theirs) - len(ours)) <= 1
    assert lowest <= sum(later) / len(later) <= highest
