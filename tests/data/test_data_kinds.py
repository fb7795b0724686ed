"""Kinds of files that people train on: each made small, looked at by ``data check``, read and thinned out."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from data_clips import (
    copy_packets,
    cut_off,
    damage_middle,
    number_shown,
    numbered_frame,
    orient_clip,
    write_animation,
    write_clip,
    write_sound,
)
from data_prepared import check
from PIL import Image

from vidssl.data.decode import decode
from vidssl.data.decode.content import Limits
from vidssl.data.decode.decode import OUT_OF_ORDER, probe, read_frames
from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.manifest import Manifest, header
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views import times as times_module
from vidssl.data.views.times import kept_frames, svt_fps
from vidssl.errors import UsageError
from vidssl.interfaces import SampleInfo, UnreadableSample
from vidssl.tools.data.encode import H264, Jpegs
from vidssl.tools.data.prepare import prepare_data

FRAMES = 24
UNEVEN = [n + 5 * max(n - 12, 0) for n in range(FRAMES)]  # in 1/30 s: half at 30 frames a second, half at 5
LASTS = (40,) * 12 + (200,) * 12
WIDE = Fraction(2)
NO_INDEX = "files have no exact index"


@dataclass(frozen=True)
class Kind:
    """How a file is made, and what there is to find.

    Attributes:
        make: writes it at a path.
        status, reason, no_seeking: part of what the manifest says.
        frames: that can be read, which show their numbers; None for frames that show none.
        rate: mean frames a second.
        uneven: whether frames are unevenly spaced.
    """

    make: Callable[[Path], object]
    status: str = "ok"
    reason: str = ""
    no_seeking: str = ""
    frames: int | None = FRAMES
    rate: float = 30.0
    uneven: bool = False


def remuxed(path: Path) -> None:
    copy_packets(write_clip(path.with_name("whole.mp4"), FRAMES), path, stored_order=True)
    path.with_name("whole.mp4").unlink()


def in_fields(path: Path) -> None:
    write_clip(path, FRAMES, options={"x264-params": "interlaced=1"})


def with_longer_sound(path: Path) -> None:
    """Matroska without tags, whose header's duration is that of the sound."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        video = container.add_stream("mpeg4", rate=30)
        video.height, video.width, video.pix_fmt = 48, 128, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for _ in range(100):
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 44100
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"OTHERTAG"))


def cut(path: Path, **how) -> None:
    cut_off(write_clip(path, FRAMES, noise=60, max_b_frames=0, **how), 0.6)


VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
FASTSTART = {"container_options": {"movflags": "faststart"}}
KINDS = {
    "h264.mp4": Kind(lambda path: write_clip(path, FRAMES)),
    "vp9.webm": Kind(lambda path: write_clip(path, FRAMES, **VP9)),
    "vp8.webm": Kind(lambda path: write_clip(path, FRAMES, codec="libvpx"), no_seeking="vp8 packets are not"),
    "packed.avi": Kind(lambda path: write_clip(path, FRAMES, codec="mpeg4"), no_seeking="B-frames may be"),
    "program.mpg": Kind(lambda path: write_clip(path, FRAMES, codec="mpeg2video"), no_seeking=NO_INDEX),
    "flash.flv": Kind(
        lambda path: write_clip(path, FRAMES, codec="flv1", max_b_frames=0), no_seeking=NO_INDEX
    ),
    "media.wmv": Kind(
        lambda path: write_clip(path, FRAMES, codec="wmv2", max_b_frames=0), no_seeking=NO_INDEX
    ),
    "remuxed.mp4": Kind(remuxed, no_seeking=OUT_OF_ORDER),
    "uneven.mp4": Kind(lambda path: write_clip(path, FRAMES, times=UNEVEN), rate=8.85, uneven=True),
    "uneven.ts": Kind(
        lambda path: write_clip(path, FRAMES, times=UNEVEN), rate=8.85, uneven=True, no_seeking=NO_INDEX
    ),
    "dropped.avi": Kind(
        lambda path: write_clip(path, FRAMES, codec="mpeg4", max_b_frames=0, times=UNEVEN),
        rate=8.85,
        uneven=True,
    ),
    "moving.gif": Kind(
        lambda path: write_animation(path, FRAMES, LASTS), rate=8.5, uneven=True, no_seeking=NO_INDEX
    ),
    "moving.webp": Kind(
        lambda path: write_animation(path, FRAMES, LASTS), rate=8.5, uneven=True, no_seeking=NO_INDEX
    ),
    "turned.mp4": Kind(lambda path: orient_clip(write_clip(path, FRAMES), (0, 1, 1, 0)), frames=None),
    "wide.mp4": Kind(lambda path: write_clip(path, FRAMES, pixel_aspect=WIDE)),
    "fields.mp4": Kind(in_fields),
    "sound_longer.mkv": Kind(with_longer_sound),
    "cut.mp4": Kind(
        lambda path: cut(path, **FASTSTART), "cut", "frames of the 24 promised are there", "cut off"
    ),
    "cut.mkv": Kind(cut, "cut", "bytes are missing"),
    "cut.webm": Kind(lambda path: cut(path, **VP9), "cut", "bytes are missing"),
    "damaged.mp4": Kind(
        lambda path: damage_middle(write_clip(path, 60, gop=6, noise=60, **FASTSTART)),
        "damaged",
        "do not decode",
    ),
    "sound.mp4": Kind(write_sound, "unreadable", "no video stream in it (only audio)"),
    "text.mp4": Kind(lambda path: path.write_text("404 not found\n"), "unreadable", "a text file"),
    "empty.gif": Kind(lambda path: path.write_bytes(b""), "unreadable", "the file is empty"),
    "half.webp": Kind(
        lambda path: cut_off(write_animation(path, FRAMES, (40,)), 0.5), "unreadable", "damaged"
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds")
    for name, kind in KINDS.items():
        kind.make(root / name)
    return root


@pytest.fixture(scope="module")
def checked(made: Path) -> tuple[Manifest, str]:
    code, text = check(made, out=made / "m.jsonl")
    assert code == 1
    return Manifest(made / "m.jsonl"), text


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gets_its_status_and_every_frame_its_number(made: Path, checked, name: str) -> None:
    kind, entry = KINDS[name], checked[0].entry(name)
    assert (entry.status, kind.reason in entry.reason) == (kind.status, True), entry.reason
    assert bool(entry.reason) == (kind.status != "ok")
    if not entry.usable:
        return
    facts = entry.facts
    assert kind.no_seeking in facts.no_seeking
    assert bool(facts.no_seeking) == bool(kind.no_seeking)
    if kind.frames is not None:
        count = kind.frames if kind.status == "ok" else facts.num_frames
        assert facts.num_frames == count > 3
        for known in (facts, probe(made / name)):
            frames = [number_shown(frame) for frame in read_frames(made / name, range(count), known)]
            assert frames == list(range(count))
            assert number_shown(read_frames(made / name, [count - 2], known)[0]) == count - 2
    if kind.status == "ok":
        assert facts.fps == pytest.approx(kind.rate, rel=0.06)
        assert bool(facts.uneven_times) == kind.uneven


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.uneven])
def test_uneven_videos_are_thinned_out_by_time(made: Path, checked, name: str) -> None:
    for source in (VideoFolder(root=str(made)), VideoFolder(root=str(made), manifest=str(made / "m.jsonl"))):
        index = [source.key(place) for place in range(len(source))].index(name)
        info = source.info(index)
        times, kept = np.array(info.times), kept_frames(info, 4.0)
        assert abs(len(kept) / 4.0 - times[-1]) < 0.3
        late = np.abs(times[kept] - np.arange(len(kept)) / 4.0)
        assert late.max() <= np.diff(times).max() / 2 + 1e-9


def test_the_full_scan_finds_an_order_that_the_first_frames_do_not_show(made: Path, monkeypatch) -> None:
    monkeypatch.setattr(decode, "_FIRST_ORDER", 1)
    assert probe(made / "remuxed.mp4").no_seeking == ""
    facts = examine(FileToExamine(made, "remuxed.mp4", {})).facts
    assert (facts.no_seeking, facts.num_frames, len(facts.pts), facts.keyframes) == (
        OUT_OF_ORDER,
        FRAMES,
        0,
        (),
    )
    assert number_shown(read_frames(made / "remuxed.mp4", [7], facts)[0]) == 7


def test_what_is_unusual_is_reported(checked) -> None:
    _, text = checked
    said = " ".join(text.split())
    assert "rotated or mirrored │ 1 │" in said
    assert "pixels not square │ 2:1, 128x48 shown 256x48 (1): 'square_pixels: true' applies it │" in said
    assert "interlaced, read as stored │ 1 │" in said


def test_pixels_are_made_square_by_a_key(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "wide.mp4", tmp_path)
    turned = write_clip(tmp_path / "turned.mp4", 4, pixel_aspect=WIDE)
    orient_clip(turned, (0, 1, -1, 0))
    assert VideoFolder(root=str(tmp_path)).read(1, [3]).shape == (1, 3, 48, 128)
    square = VideoFolder(root=str(tmp_path), square_pixels=True)
    assert [square.read(index, [3]).shape for index in range(2)] == [(1, 3, 256, 48), (1, 3, 48, 256)]
    assert number_shown(square.read(1, [9])[0]) == 9


def test_still_webp_images_are_no_videos_and_animations_are_found_in_classes(tmp_path: Path) -> None:
    write_animation(tmp_path / "run" / "a.gif", 5, (50,))
    write_animation(tmp_path / "walk" / "b.webp", 6, (50,))
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "thumbnail.webp")
    source = VideoFolder(root=str(tmp_path))
    assert [(source.key(n), source.info(n).num_frames) for n in range(len(source))] == [
        ("run/a.gif", 5),
        ("walk/b.webp", 6),
    ]
    assert [number_shown(frame) for frame in source.read(1, [4, 0])] == [4, 0]


@pytest.mark.parametrize(
    ("limits", "name", "reason"),
    [
        (Limits(max_pixels=48 * 128 - 1), "h264.mp4", "a frame of 128x48 has more than 6,143 pixels"),
        (Limits(max_pixels=48 * 128 - 1), "moving.webp", "a frame of 128x48 has more than 6,143 pixels"),
        (Limits(max_frames=FRAMES - 1), "h264.mp4", "it has more than 23 frames"),
        (Limits(max_frames=FRAMES - 1), "moving.gif", "it has more than 23 frames"),
        (Limits(max_frames=FRAMES - 1), "moving.webp", "it has more than 23 frames"),
        (Limits(max_seconds=-1), "moving.gif", "it cannot be read within -1 seconds"),
        (Limits(max_seconds=-1), "moving.webp", "it cannot be read within -1 seconds"),
    ],
)
def test_a_file_past_a_limit_is_refused_in_a_sentence(
    made: Path, limits: Limits, name: str, reason: str
) -> None:
    entry = examine(FileToExamine(made, name, {}, limits=limits))
    assert (entry.status, entry.reason.startswith(reason)) == ("unreadable", True), entry.reason
    assert examine(FileToExamine(made, name, {}, limits=Limits(48 * 128, FRAMES))).status == "ok"


def test_what_a_manifest_let_in_is_read_past_the_usual_limits(made: Path, monkeypatch) -> None:
    facts = probe(made / "moving.gif")
    monkeypatch.setattr(decode, "LIMITS", Limits(max_pixels=1, max_frames=1))
    assert number_shown(read_frames(made / "moving.gif", [20], facts)[0]) == 20
    with pytest.raises(UnreadableSample, match="more than 1 pixels"):
        read_frames(made / "moving.gif", [20])


def test_prepare_takes_what_a_manifest_let_in(made: Path, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(made / "h264.mp4", root)
    check(root)
    monkeypatch.setattr(decode, "LIMITS", Limits(max_frames=5))
    manifest = tmp_path / "videos.manifest.jsonl"
    for path, code in ((root, 1), (manifest, 0)):
        assert prepare_data(path, tmp_path / str(code), Jpegs(), processes=1) == code


def test_other_limits_have_refused_files_looked_at_again(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(made / "h264.mp4", root)
    check(root, limits=Limits(max_frames=5))
    assert not Manifest(tmp_path / "videos.manifest.jsonl").entry("h264.mp4").usable
    check(root)
    assert Manifest(tmp_path / "videos.manifest.jsonl").entry("h264.mp4").usable


def test_every_cut_of_a_webm_is_noticed(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.webm", FRAMES, noise=60, codec="libvpx").read_bytes()
    for part in range(1, 12):
        (tmp_path / "a.webm").write_bytes(whole[: len(whole) * part // 12])
        assert examine(FileToExamine(tmp_path, "a.webm", {})).status in ("cut", "unreadable"), part


def test_a_stated_duration_is_held_against_what_decodes(tmp_path: Path) -> None:
    """As in a file that was cut and given a new length of bytes, or whose header states none."""
    path = write_clip(tmp_path / "a.mkv", FRAMES, noise=60)
    content = cut_off(path, 0.6).read_bytes()
    place = content.index(b"\x18\x53\x80\x67") + 4
    path.write_bytes(content[:place] + b"\x01" + b"\xff" * 7 + content[place + 8 :])
    entry = examine(FileToExamine(tmp_path, "a.mkv", {}))
    assert entry.status == "cut"
    assert entry.reason.startswith("it is cut off: its last 0.")


def test_a_manifest_of_an_earlier_version_is_read_and_a_scan_looks_again(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy(made / "wide.mp4", root)
    entry = examine(FileToExamine(root, "wide.mp4", {}))
    row = json.loads(entry.to_line())
    for name in ("mirrored", "pixel_aspect", "interlaced"):
        del row[name]
    manifest = tmp_path / "videos.manifest.jsonl"
    manifest.write_text(header(root) + json.dumps(row) + "\n")
    assert Manifest(manifest).entry("wide.mp4").facts == replace(entry.facts, pixel_aspect=1.0)
    assert VideoFolder(root=str(root), manifest=str(manifest)).info(0).num_frames == FRAMES
    check(root)
    assert Manifest(manifest).entry("wide.mp4").facts == entry.facts


@pytest.mark.parametrize(
    ("stated", "pts", "rate"),
    [
        ((0.0, 12.0, 12.0), range(48), 12.0),  # Theora
        ((1000.0, 1000.0, 30.0), range(0, 160, 4), 3.0),  # nonsense three times: the timestamps' own
        ((float("inf"), 0.0, 25.0), (), 25.0),
        ((0.0, 0.0, 0.0), (), 0.0),
        ((12.2, 12.0), range(48), 12.2),
    ],
)
def test_of_the_stated_rates_the_first_that_agrees_with_the_frames_counts(stated, pts, rate: float) -> None:
    assert decode._sound_rate(stated, pts, 1 / 12) == pytest.approx(rate)


def test_a_missing_rate_is_never_assumed_without_a_word(caplog) -> None:
    times_module._tell_assumed_rate.cache_clear()
    assert (svt_fps(SampleInfo("x", 9, 25.0, {})), svt_fps(SampleInfo("x", 1, 0.0, {}))) == (25.0, 30.0)
    assert not caplog.records
    assert svt_fps(SampleInfo("x", 9, 0.0, {})) == 30.0
    assert "states no frame rate" in caplog.text


@pytest.mark.parametrize("pts", [[0, 1, 10**15], [0, 1, 22], [0, 1, 2.5, 3, 19]])
def test_timestamps_of_a_manifest_are_those_of_its_frames(made: Path, tmp_path: Path, pts) -> None:
    row = json.loads(examine(FileToExamine(made, "h264.mp4", {})).to_line())
    (tmp_path / "m").write_text(header(made) + json.dumps(row | {"pts": pts}) + "\n")
    with pytest.raises(UsageError, match=r"m:2: a damaged line"):
        Manifest(tmp_path / "m").entry("h264.mp4")


@pytest.mark.parametrize("rule", ["loop", "pad"])
def test_short_videos_of_uneven_rate_are_lengthened_in_time(made: Path, tmp_path: Path, rule) -> None:
    shutil.copy(made / "uneven.mp4", tmp_path)
    info = VideoFolder(root=str(tmp_path), short=rule, min_frames=30).info(0)
    times, gap = np.array(info.times), info.times[FRAMES - 1] / (FRAMES - 1)
    assert len(times) == info.num_frames == 30
    steps = np.diff(times[FRAMES - 1 :])
    own = times[:6] if rule == "loop" else gap * np.arange(6)
    assert np.allclose(times[FRAMES:], times[FRAMES - 1] + gap + own)
    assert (steps > 0).all()


@pytest.mark.parametrize("form", [H264(short_side=24, gop=4), Jpegs(short_side=24)])
def test_prepared_videos_keep_times_and_the_shape_of_pixels(made: Path, tmp_path: Path, form) -> None:
    (tmp_path / "in").mkdir()
    for name in ("uneven.ts", "wide.mp4"):
        shutil.copy(made / name, tmp_path / "in")
    assert prepare_data(tmp_path / "in", tmp_path / "out", form, processes=1) == 0
    root = str(tmp_path / "out")
    source = JpegShards(root=root) if isinstance(form, Jpegs) else VideoFolder(root=root)
    assert np.allclose(source.info(0).times, np.array(UNEVEN) / 30, atol=1e-3)
    assert len(source.info(1).times) == 0
    if isinstance(form, H264):
        assert probe(tmp_path / "out" / "wide.mp4").pixel_aspect == 2.0
