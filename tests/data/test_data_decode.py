"""Frames by number, from files of every kind, whole and broken."""

import itertools
import json
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from data_clips import (
    copy_packets,
    cut_off,
    damage_middle,
    number_shown,
    orient_clip,
    turn_clip,
    write_clip,
    write_sound,
)
from PIL import Image

from vidssl.data.decode import container as video_file, decode
from vidssl.data.decode.content import LIMITS
from vidssl.data.decode.decode import probe, read_frames
from vidssl.interfaces import UnreadableSample

CLIPS = os.environ.get("VIDSSL_CLIPS")
needs_clips = pytest.mark.skipif(not CLIPS, reason="VIDSSL_CLIPS does not name the folder of real clips")

# what it stands for: file name, codec, what else the writer is told, whether timestamps lead to a frame
KINDS = {
    "h264 with B-frames": ("a.mp4", "libx264", {}, True),
    "h264 of one long group": ("a.mp4", "libx264", {"gop": 250}, True),
    "h264 of open groups": (
        "a.mp4",
        "libx264",
        {"options": {"sc_threshold": "0", "x264-params": "open-gop=1:bframes=2:b-adapt=0"}},
        True,
    ),
    "hevc of open groups": ("a.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}, True),
    "variable rate": ("a.mp4", "libx264", {"times": [n + n // 4 * 3 for n in range(60)]}, True),
    "start far from zero": ("a.mp4", "libx264", {"times": [n + 5000 for n in range(60)]}, True),
    "matroska": ("a.mkv", "libx264", {}, True),
    "mpeg-4 avi": ("a.avi", "mpeg4", {"max_b_frames": 0}, True),
    "motion jpeg": ("a.avi", "mjpeg", {"max_b_frames": 0, "options": {"strict": "unofficial"}}, True),
    "avi with B-frames": ("a.avi", "mpeg4", {}, False),
    "mpeg program stream": ("a.mpg", "mpeg2video", {}, False),
    "transport stream": ("a.ts", "libx264", {}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_found_by_its_number(tmp_path: Path, kind: str) -> None:
    name, codec, how, seekable = KINDS[kind]
    path = write_clip(tmp_path / name, 60, codec=codec, **how)
    facts = probe(path)
    assert facts.num_frames == 60
    assert (facts.no_seeking == "") == seekable, facts.no_seeking
    numbers = random.Random(0).sample(range(60), 12)
    assert [number_shown(read_frames(path, [number], facts)[0]) for number in numbers] == numbers
    assert [number_shown(frame) for frame in read_frames(path, numbers, facts)] == numbers


def test_seeking_alone_finds_all_frames_where_it_is_said_to(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 60)
    facts = probe(path)
    monkeypatch.setattr(decode, "_read_in_order", None)
    assert [number_shown(frame) for frame in read_frames(path, range(60), facts)] == list(range(60))


def test_seeking_decodes_only_from_the_keyframe_on(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, max_b_frames=0)
    facts = probe(path)
    seen = []
    real = video_file.OpenVideo.frames_from

    def counted(self, pts, unused):
        for frame in real(self, pts, unused):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file.OpenVideo, "frames_from", counted)
    read_frames(path, [50], facts)
    assert [facts.pts.index(pts) for pts in seen] == [48, 49, 50]


@pytest.mark.parametrize("pyramid", ["none", "strict", "normal"])
def test_h264_frames_that_no_other_needs_are_left_out_and_the_others_keep_their_bits(
    tmp_path: Path, pyramid: str
) -> None:
    options = {"sc_threshold": "0", "x264-params": f"b-pyramid={pyramid}:b-adapt=0"}
    path = write_clip(tmp_path / "a.mp4", 60, gop=30, max_b_frames=3, noise=60, options=options)
    facts = probe(path)
    every = read_frames(path, range(60))  # from the start, all of them
    for numbers in ([3, 5, 21, 40], [1], [59], range(30, 60, 4)):
        assert torch.equal(read_frames(path, numbers, facts), every[list(numbers)]), numbers
    with video_file.open_video(path) as video:
        unused = set(facts.pts) - {facts.pts[5]}
        decoded = {frame.pts for frame in video.frames_from(facts.keyframes[0].pts, unused)}
    # of every four frames three are B; with a pyramid one of the three is referred to
    assert [number for number in range(13) if facts.pts[number] in decoded] == (
        [0, 4, 5, 8, 12] if pyramid == "none" else [0, 2, 4, 5, 6, 8, 10, 12]
    )


def test_a_spoilt_keyframe_is_what_decoding_in_order_makes_of_it(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 13, noise=60, gop=12, max_b_frames=0)
    with av.open(str(path)) as container:
        last = bytes([packet for packet in container.demux(video=0) if packet.size][-1])
    spoilt = last[: len(last) // 2] + bytes(len(last) - len(last) // 2)
    path.write_bytes(path.read_bytes().replace(last, spoilt))
    facts = probe(path)
    assert [keyframe.number for keyframe in facts.keyframes] == [0, 12]
    assert torch.equal(read_frames(path, [12], facts)[0], read_frames(path, range(13))[12])


def test_a_file_that_cannot_be_entered_midway_is_read_from_its_start(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 30)
    facts = probe(path)
    monkeypatch.setattr(video_file.OpenVideo, "frames_from", lambda self, pts, unused: iter(()))
    assert number_shown(read_frames(path, [17], facts)[0]) == 17


@pytest.mark.parametrize(("shift", "any_frame"), [(20, False), (-3, True)])
def test_a_seek_that_goes_astray_gives_no_frame(tmp_path: Path, shift: int, any_frame: bool) -> None:
    path = write_clip(tmp_path / "a.avi", 60, codec="mpeg4", max_b_frames=0)
    facts = probe(path)

    class Astray:
        def __init__(self, container) -> None:
            self.demux, self.real_seek = container.demux, container.seek

        def seek(self, pts: int, **how) -> None:
            self.real_seek(pts + shift, **{**how, "any_frame": any_frame})

    with video_file.open_video(path) as video:
        video.container = Astray(video.container)
        assert list(video.frames_from(facts.keyframes[2].pts)) == []


def test_frames_in_front_of_a_cut_are_not_counted(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", 60, gop=30, max_b_frames=0)
    path = copy_packets(whole, tmp_path / "cut.mp4", hide=20)
    facts = probe(path)
    assert (facts.num_frames, facts.promised_frames, facts.no_seeking) == (40, 60, "")
    assert [number_shown(frame) for frame in read_frames(path, [0, 7, 39], facts)] == [20, 27, 59]


def test_a_file_that_lost_its_first_keyframe_counts_from_the_first_frame_that_decodes(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", 60, max_b_frames=0, gop=30)
    path = copy_packets(whole, tmp_path / "cut.mkv", skip=4)
    facts = probe(path)
    assert (facts.num_frames, facts.no_seeking) == (30, "it does not start with a keyframe")
    assert [number_shown(frame) for frame in read_frames(path, [29, 0], facts)] == [59, 30]


def test_timestamps_are_not_trusted_if_the_first_frame_does_not_come_out(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    real = video_file.OpenVideo.frames
    monkeypatch.setattr(video_file.OpenVideo, "frames", lambda self: itertools.islice(real(self), 1, None))
    facts = probe(path)
    assert (facts.num_frames, facts.no_seeking) == (19, "its first frame cannot be decoded")
    assert [number_shown(frame) for frame in read_frames(path, [0, 18], facts)] == [1, 19]


class Packets:
    """What the scan asks of an open video, its packets (pts, key) written down."""

    def __init__(self, *packets: tuple[int | None, bool], codec: str = "h264") -> None:
        self.format, self.codec, self.promised_frames, self.reorders = "mov", codec, 0, False
        self._packets = [
            SimpleNamespace(size=1, pts=pts, is_keyframe=key, is_discard=False, is_corrupt=False)
            for pts, key in packets
        ]

    def packets(self) -> list[SimpleNamespace]:
        return self._packets


@pytest.mark.parametrize(
    ("video", "why"),
    [
        (Packets((0, True), (2, False), (1, False)), ""),
        (Packets((0, True), (1, False), (1, False)), "its timestamps are missing or repeated"),
        (Packets((0, True), (None, False), (1, False)), "its timestamps are missing or repeated"),
        (Packets((0, False), (1, True), (2, False)), "it does not start with a keyframe"),
        (Packets((0, False), (1, False)), "it does not start with a keyframe"),
        (Packets((0, True), (1, False), codec="vp8"), "vp8 packets are not frames one to one"),
    ],
)
def test_packets_are_frames_only_where_nothing_speaks_against_it(video: Packets, why: str) -> None:
    assert decode._scan_packets(video, "a", LIMITS).distrust == why


def test_order_and_repeats_are_kept_with_and_without_facts(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    numbers = [7, 3, 7, 19, 0]
    for facts in (None, probe(path)):
        clip = read_frames(path, numbers, facts)
        assert tuple(clip.shape) == (5, 3, 48, 128)
        assert [number_shown(frame) for frame in clip] == numbers


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "a.mp4", 8)
    upright = read_frames(path, [5])[0].numpy()
    turn_clip(path, degrees)
    facts = probe(path)
    expected = np.rot90(upright, k=-degrees // 90, axes=(1, 2))  # a phone's matrix turns clockwise
    assert (facts.height, facts.width) == expected.shape[1:]
    for known in (None, facts):
        assert np.array_equal(read_frames(path, [5], known)[0].numpy(), expected)


@pytest.mark.parametrize(
    "matrix",
    [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)],
)
def test_all_eight_orientations_are_as_the_display_matrix_says(tmp_path: Path, matrix) -> None:
    path = write_clip(tmp_path / "a.mp4", 6, noise=60)
    stored = read_frames(path, [5])[0]
    orient_clip(path, matrix)
    a, b, c, d = matrix
    rows, columns = np.mgrid[: stored.shape[1], : stored.shape[2]]
    x, y = a * columns + c * rows, b * columns + d * rows
    expected = torch.empty((3, int(np.ptp(y)) + 1, int(np.ptp(x)) + 1), dtype=torch.uint8)
    expected[:, y - y.min(), x - x.min()] = stored
    for known in (None, probe(path)):
        assert torch.equal(read_frames(path, [5], known)[0], expected)


def test_facts_of_a_plain_file(tmp_path: Path) -> None:
    facts = probe(write_clip(tmp_path / "a.mp4", 25, gop=10, max_b_frames=0))
    assert (facts.num_frames, facts.promised_frames, facts.fps) == (25, 25, 30.0)
    assert (facts.height, facts.width, facts.rotation, facts.codec) == (48, 128, 0, "h264")
    assert [keyframe.number for keyframe in facts.keyframes] == [0, 10, 20]


def test_a_number_past_the_end_is_the_callers_mistake(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    with pytest.raises(ValueError, match="below 5"):
        read_frames(path, [5], probe(path))
    with pytest.raises(UnreadableSample, match="frame 5 was asked for, 5 frames decode"):
        read_frames(path, [5])


def test_a_file_cut_off_behind_its_index_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, container_options={"movflags": "faststart"}, noise=60)
    facts = probe(cut_off(path, 0.6))
    assert 10 < facts.num_frames < 60
    assert facts.promised_frames == 60
    assert "cut off" in facts.no_seeking
    clip = read_frames(path, range(facts.num_frames), facts)
    assert [number_shown(frame) for frame in clip] == list(range(facts.num_frames))


def test_damage_in_the_middle_says_how_much_decodes_and_moves_no_number(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, gop=6, noise=60, container_options={"movflags": "faststart"})
    damage_middle(path)
    facts = probe(path)
    assert facts.num_frames == 60
    with pytest.raises(UnreadableSample, match=r"damaged: \d+ of the 60 frames it promises can be decoded"):
        read_frames(path, range(60), facts)
    assert [number_shown(frame) for frame in read_frames(path, [3, 58], facts)] == [3, 58]


SPOILT = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "git-lfs pointer": (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "git lfs pull",
    ),
    "text": (lambda path: path.write_text("404 not found\n"), "a text file.*404 not found"),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(20000)), "not a video"),
    "zeros": (lambda path: path.write_bytes(bytes(20000)), "nothing but zeros"),
    "header zeroed": (
        lambda path: path.write_bytes(bytes(64) + write_clip(path, 30).read_bytes()[64:]),
        "header is damaged: the first 64 bytes",
    ),
    "index missing": (lambda path: cut_off(write_clip(path, 30, noise=60), 0.6), r"truncated.*\(moov\)"),
    "sound only": (write_sound, "no video stream in it .only audio"),
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "pipe": (os.mkfifo, "no regular file"),
    "playlist": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
        "a text file",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, kind: str) -> None:
    spoil, reason = SPOILT[kind]
    path = tmp_path / "a.mp4"
    spoil(path)
    with pytest.raises(UnreadableSample) as caught:
        probe(path)
    assert caught.value.key == str(path)
    assert re.search(reason, caught.value.reason), caught.value.reason


def test_an_image_called_mp4_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    Image.fromarray(np.full((20, 30, 3), 77, dtype=np.uint8)).save(path, format="png")
    facts = probe(path)
    assert facts.num_frames == 1
    assert read_frames(path, [0], facts).unique().tolist() == [77]


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "cover.png")
    image = (tmp_path / "cover.png").read_bytes()
    body = b"\0image/png\0\x03\0" + image
    cover = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    length = len(cover).to_bytes(4, "big")
    synchsafe = sum((int.from_bytes(length, "big") >> 7 * place & 127) << 8 * place for place in range(4))
    tag = b"ID3\x03\0\0" + synchsafe.to_bytes(4, "big") + cover
    song = write_sound(tmp_path / "a.mp3", codec="libmp3lame")
    (tmp_path / "a.mp4").write_bytes(tag + song.read_bytes())
    with pytest.raises(UnreadableSample, match=r"no video stream in it .only audio"):
        probe(tmp_path / "a.mp4")


def test_a_title_that_is_no_utf8_does_not_matter(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", 6, codec="mpeg4", max_b_frames=0)
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\xe9\xe8", 1))
    assert probe(path).num_frames == 6


def test_patience_with_one_file_ends(tmp_path: Path, monkeypatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    with video_file.open_video(path) as video, monkeypatch.context() as clock:
        clock.setattr(video_file.time, "monotonic", lambda: float("inf"))
        with pytest.raises(UnreadableSample, match="cannot be read within 300 seconds"):
            next(video.frames())


@needs_clips
def test_real_clips_give_exactly_the_frames_asked_for() -> None:
    root = Path(CLIPS or "")
    means = json.loads((root / "frame_means.json").read_text())
    assert len(means) == 28
    for name, expected in means.items():
        facts = probe(root / name)
        assert facts.num_frames == len(expected), name
        rng = random.Random(name)
        numbers = sorted(rng.sample(range(len(expected)), min(len(expected), 8)))
        clip = read_frames(root / name, numbers, facts).float().mean(dim=(1, 2, 3))
        single = rng.randrange(len(expected))
        alone = read_frames(root / name, [single], facts).float().mean()
        assert np.allclose(clip, [expected[number] for number in numbers], atol=0.0101), name
        assert abs(float(alone) - expected[single]) < 0.0101, name


# frames that can be read one by one from the first on, or what is said instead
BAD_CLIPS = {
    "audio_only.mp4": "no video stream in it (only audio)",
    "avi_named.mp4": 90,
    "corrupt_middle.avi": 76,
    "corrupt_middle.mp4": "damaged: 51 of the 90 frames it promises can be decoded, frame 36 cannot",
    "edit_list_nonkey_start.mp4": 47,
    "h264_10bit.mp4": 30,
    "header_damaged.mp4": "the header is damaged: the first 64 bytes are zeros",
    "lfs_pointer.mp4": "a Git-LFS pointer of 131 bytes, not the file itself: fetch it with 'git lfs pull'",
    "odd_319x239_yuv444.mp4": 30,
    "one_fps_3frames.mp4": 3,
    "one_frame.mp4": 1,
    "png_named.mp4": 1,
    "portrait_rotation90.mp4": 30,
    "random_bytes.mp4": "not a video: no known format (random or encrypted bytes, or a damaged header)",
    "text.mp4": "a text file, not a video (it begins with 'this is not a video')",
    "tiny_16x12.mp4": 30,
    "truncated.avi": 44,
    "truncated_faststart.mp4": 53,
    "truncated_no_moov.mp4": (
        "truncated: 30647 of at least 49191 bytes are there, and the index (moov) that follows is missing"
    ),
    "zero_bytes.mp4": "the file is empty (0 bytes)",
}


@needs_clips
def test_real_broken_clips_are_read_or_explained() -> None:
    folder = Path(CLIPS or "") / "bad"
    outcomes: dict[str, int | str] = {}
    for path in sorted(folder.iterdir()):
        try:
            facts = probe(path)
            outcomes[path.name] = len(read_frames(path, range(facts.num_frames), facts))
        except UnreadableSample as error:
            outcomes[path.name] = error.reason
    assert outcomes == BAD_CLIPS


@pytest.mark.parametrize("degrees", [0, 90])
@pytest.mark.parametrize("width", [50, 128])
def test_pictures_whose_rows_ffmpeg_pads_come_whole(tmp_path: Path, width: int, degrees: int) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 40, width, "yuv420p"
        for picture in np.random.default_rng(0).integers(256, size=(3, 40, width, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    if degrees:
        turn_clip(path, degrees)
    expected = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.reformat(format="rgb24", threads=1).to_ndarray()
            expected.append(np.rot90(picture, frame.rotation // 90))
    found = read_frames(path, [0, 1, 2]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, np.stack(expected))
