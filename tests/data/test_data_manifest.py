"""Manifests and sources that read them: what is left out, what has changed, how short videos are filled."""

import dataclasses
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from data_clips import cut_off, damage_middle, number_shown, turn_clip, write_clip, write_sound

from vidssl.data.decode import decoders
from vidssl.data.decode.decode import probe
from vidssl.data.decode.decoders import TorchCodec
from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.sources import video_files as videos
from vidssl.data.sources.manifest import FileRecord, Manifest, header
from vidssl.data.sources.video_files import VideoFolder, VideoList
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample

FASTSTART = {"container_options": {"movflags": "faststart"}, "noise": 60}


def look(path: Path, **how: object) -> FileRecord:
    return examine(FileToExamine(path.parent, path.name, {}, **how))


def write_manifest(root: Path, *keys: str, named: str = "manifest.jsonl") -> str:
    entries = [examine(FileToExamine(root, key, {})) for key in keys]
    (root / named).write_text(header(root) + "".join(entry.to_line() for entry in entries))
    return str(root / named)


MADE = {
    "whole": (lambda path: write_clip(path, 30), "ok", ""),
    "packed B-frames": (lambda path: write_clip(path.with_suffix(".avi"), 30, codec="mpeg4"), "ok", ""),
    "cut off": (
        lambda path: cut_off(write_clip(path, 60, **FASTSTART), 0.6) or path,
        "cut",
        r"it is cut off: \d+ frames of the 60 promised are there",
    ),
    "cut off without a promise": (
        lambda path: (
            cut_off(write_clip(path.with_suffix(".ts"), 60, codec="mpeg2video", noise=60), 0.7)
            or path.with_suffix(".ts")
        ),
        "cut",
        r"it is cut off: \d+ frames are there",
    ),
    "damaged": (
        lambda path: damage_middle(write_clip(path, 60, gop=6, **FASTSTART)),
        "damaged",
        r"\d+ of its 60 frames do not decode, the first is \d+",
    ),
    "sound": (lambda path: write_sound(path), "unreadable", r"no video stream in it .only audio"),
    "missing": (lambda path: path, "unreadable", "the file does not exist"),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_file_is_judged_by_decoding_all_of_it(tmp_path: Path, kind: str) -> None:
    make, status, reason = MADE[kind]
    entry = look(make(tmp_path / "a.mp4"))
    assert (entry.status, entry.usable) == (status, status in ("ok", "cut"))
    assert re.search(reason, entry.reason), entry.reason
    assert bool(entry.reason) == (status != "ok")


def test_a_spoilt_frame_in_an_avi_makes_it_damaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", 60, codec="mpeg4", max_b_frames=0, noise=60)
    damage_middle(path, share=0.2)
    assert look(path).status == "damaged"


def test_what_is_found_out_about_a_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, gop=25, max_b_frames=0)
    turn_clip(path, 90)
    entry = look(path, timed=True)
    assert (entry.container, entry.rate, entry.gop) == ("mov", "constant", 25)
    assert (entry.bytes, entry.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert entry.clip_seconds > 0
    assert entry.facts == probe(path)
    assert entry.facts.rotation == 270
    assert len(entry.sha256) == 64


@pytest.mark.parametrize(
    ("name", "how", "rate"),
    [
        ("a.mp4", {"times": [n + n // 4 * 3 for n in range(40)]}, "variable"),
        ("a.mkv", {}, "constant"),  # its timestamps are whole milliseconds: 33, 34, 33
        ("a.avi", {"codec": "mpeg4"}, "constant"),
    ],
)
def test_whether_frames_are_evenly_spaced(tmp_path: Path, name: str, how: dict, rate: str) -> None:
    assert look(write_clip(tmp_path / name, 40, **how)).rate == rate


@pytest.mark.parametrize("how", [{}, {"times": [n * n for n in range(30)]}, {"codec": "mpeg4"}])
def test_an_entry_survives_being_written(tmp_path: Path, how: dict) -> None:
    suffix = ".avi" if "codec" in how else ".mp4"
    entry = dataclasses.replace(look(write_clip(tmp_path / f"ä b{suffix}", 30, **how)), labels={"class": "é"})
    (tmp_path / "m").write_text(header(tmp_path) + entry.to_line())
    assert Manifest(tmp_path / "m").entry(entry.key) == entry


def test_a_steady_video_takes_three_numbers_for_its_timestamps(tmp_path: Path) -> None:
    assert '"pts":[0,512,299]' in look(write_clip(tmp_path / "a.mp4", 300)).to_line()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:-20], r"m:3: no line of a manifest .*make it anew"),
        (lambda text: "", "it describes no file"),
        (lambda text: text.replace("vidssl manifest", "other"), r"m:1: .*not that of a manifest"),
        (lambda text: text.replace('"version":1', '"version":9'), "version 9, not 1"),
        (lambda text: "a.mp4 0\n", "m:1: no line of a manifest"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_line(tmp_path: Path, spoil, message: str) -> None:
    lines = FileRecord("a", "unreadable", "x").to_line() + FileRecord("b", "unreadable", "x").to_line()
    (tmp_path / "m").write_text(spoil(header(tmp_path) + lines))
    with pytest.raises(UsageError, match=message):
        Manifest(tmp_path / "m")


def test_a_line_with_a_wrong_field_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(header(tmp_path) + '{"key":"a","status":"fine"}\n')
    with pytest.raises(UsageError, match="m:2: a damaged line"):
        Manifest(tmp_path / "m").entry("a")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    write_clip(root / "run" / "a.mp4", 20)
    write_clip(root / "run" / "b.mp4", 5)
    write_clip(root / "walk" / "c.mp4", 20)
    cut_off(write_clip(root / "walk" / "d.mp4", 60, **FASTSTART), 0.6)
    damage_middle(write_clip(root / "walk" / "e.mp4", 60, gop=6, **FASTSTART))
    (root / "walk" / "f.mp4").touch()
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Three good videos of 20, 5 and 20 frames, one that is cut off, one damaged, one unreadable."""
    return Path(shutil.copytree(made, tmp_path / "videos"))


ALL = ("run/a.mp4", "run/b.mp4", "walk/c.mp4", "walk/d.mp4", "walk/e.mp4", "walk/f.mp4")


def keys(source: VideoFolder | VideoList) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_bad_files_of_a_manifest_never_reach_a_worker(root: Path, caplog) -> None:
    manifest = write_manifest(root, *ALL)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(root=str(root), manifest=manifest)
    assert keys(source) == list(ALL[:4])
    assert source.num_listed() == 6
    assert caplog.messages == [f"{manifest}: 2 of 6 videos are left out: 1 damaged, 1 unreadable"]
    for index in range(len(source)):
        count = source.info(index).num_frames
        assert number_shown(source.read(index, [count - 1])[0]) == count - 1
    assert source.labels(3) == {"class": 1}


def test_lists_read_manifests_too_and_share_one_of_a_larger_folder(root: Path) -> None:
    manifest = write_manifest(root, *ALL)
    (root / "list.txt").write_text("walk/f.mp4 1\nwalk/c.mp4 1\n")
    source = VideoList(root=str(root), list=str(root / "list.txt"), manifest=manifest)
    assert keys(source) == ["walk/c.mp4"]
    assert source.num_listed() == 2


def test_the_parts_of_a_data_set_do_not_depend_on_the_manifest(root: Path) -> None:
    manifest = write_manifest(root, *ALL)
    for part in ("train", "test"):
        without, with_it = (
            set(keys(VideoFolder(root=str(root), part=part, manifest=given))) for given in (None, manifest)
        )
        assert with_it == without - {"walk/e.mp4", "walk/f.mp4"}


def test_with_a_manifest_no_file_is_looked_through(root: Path, monkeypatch) -> None:
    source = VideoFolder(root=str(root), manifest=write_manifest(root, *ALL))
    monkeypatch.setattr(videos, "probe", None)
    assert source.info(0).num_frames == 20
    assert [number_shown(frame) for frame in source.read(0, [17, 3])] == [17, 3]


def test_files_that_the_manifest_lacks_are_an_error(root: Path) -> None:
    manifest = write_manifest(root, *ALL[:4])
    with pytest.raises(UsageError, match=r"2 of 6 listed videos are not in the manifest, such as walk/e.mp4"):
        VideoFolder(root=str(root), manifest=manifest)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    manifest = write_manifest(tmp_path, "a.mp4")
    with pytest.raises(UsageError, match=r"none of the 1 listed videos can be used .1 unreadable"):
        VideoFolder(root=str(tmp_path), manifest=manifest)


def test_a_missing_manifest_says_how_to_make_one(root: Path) -> None:
    with pytest.raises(UsageError, match=r"absent: the manifest cannot be read .*'vidssl data check' makes"):
        VideoFolder(root=str(root), manifest=str(root / "absent"))


def test_a_file_that_changed_since_the_scan_is_unreadable(root: Path) -> None:
    source = VideoFolder(root=str(root), manifest=write_manifest(root, *ALL))
    path = root / "run" / "a.mp4"
    shutil.copyfile(path, root / "copy")
    os.utime(path, (1, 1))  # only its time: the content decides
    assert number_shown(source.read(0, [17])[0]) == 17
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableSample, match=r"run/a.mp4: its content has changed since it was sca"):
        source.info(0)
    write_clip(path, 12)
    with pytest.raises(UnreadableSample, match=r"bytes, when it was scanned it had \d+; have it"):
        source.read(0, [3])
    path.unlink()
    with pytest.raises(UnreadableSample, match="the file does not exist"):
        source.info(0)
    shutil.copyfile(root / "copy", path)
    assert source.info(0).num_frames == 20


@pytest.mark.parametrize(("short", "shown"), [("loop", [0, 4, 0, 1]), ("pad", [0, 4, 4, 4])])
@pytest.mark.parametrize("scanned", [True, False])
def test_short_videos_are_filled_by_rule(root: Path, short, shown: list[int], scanned: bool) -> None:
    manifest = write_manifest(root, *ALL) if scanned else None
    source = VideoFolder(root=str(root), manifest=manifest, short=short, min_frames=12)
    assert [source.info(index).num_frames for index in range(3)] == [20, 12, 20]
    assert [number_shown(frame) for frame in source.read(1, [0, 4, 5, 11])] == shown
    assert [number_shown(frame) for frame in source.read(0, [0, 19])] == [0, 19]
    with pytest.raises(UnreadableSample, match="frame 12 was asked for"):
        source.read(1, [12])


def test_short_videos_are_skipped_and_counted(root: Path, caplog) -> None:
    manifest = write_manifest(root, *ALL)
    with caplog.at_level(logging.WARNING):
        source = VideoFolder(root=str(root), manifest=manifest, short="skip", min_frames=6)
    assert keys(source) == ["run/a.mp4", "walk/c.mp4", "walk/d.mp4"]
    assert "1 shorter than 6 frames" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"short": "loop"}, "go together: got short loop, min_frames 1"),
        ({"min_frames": 9}, "go together: got short null, min_frames 9"),
        ({"short": "skip", "min_frames": 9}, "skip needs 'manifest'"),
        ({"short": "pad", "min_frames": 0}, "min_frames must be at least 1, got 0"),
    ],
)
def test_keys_for_short_videos_that_do_not_go_together(root: Path, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoFolder(root=str(root), **given)


def test_what_another_decoder_leaves_to_pyav_is_said(tmp_path: Path, monkeypatch, caplog) -> None:
    write_clip(tmp_path / "a.avi", 12, codec="mpeg4")
    write_clip(tmp_path / "b.mp4", 12)
    manifest = write_manifest(tmp_path, "a.avi", "b.mp4")
    monkeypatch.setattr(decoders, "choose_decoder", lambda name: TorchCodec("cpu"))
    with caplog.at_level(logging.WARNING):
        VideoFolder(root=str(tmp_path), manifest=manifest, decoder="torchcodec")
    assert caplog.messages == [
        f"{manifest}: 1 of 2 videos are read by PyAV, not torchcodec: 1 B-frames may be packed with others"
    ]
