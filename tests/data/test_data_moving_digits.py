"""The embedded data set: written once, whole or not at all, and true to the world it is drawn from."""

import csv
import hashlib
import inspect
import logging
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from vidssl.data.decode.decode import probe, read_frames
from vidssl.data.sources import moving_digits
from vidssl.data.sources.digits_world import DigitsWorld, labels, render
from vidssl.data.sources.moving_digits import MovingDigits, cache_folder, encode, prepare
from vidssl.data.sources.video_files import VideoList
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WORLD = DigitsWorld()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds twelve training and six test videos."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIDSSL_CACHE", str(folder))
        MovingDigits(split="train", num_videos=12)
        MovingDigits(split="test", num_videos=6)
    return folder


def video_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix == ".mp4")


def test_videos_show_the_world_and_carry_its_labels(written: Path, monkeypatch) -> None:
    monkeypatch.setenv("VIDSSL_CACHE", str(written))
    for split in ("train", "test"):
        source = MovingDigits(split=split, num_videos={"train": 12, "test": 6}[split])
        assert len(source) == {"train": 12, "test": 6}[split]
        for index in (0, 5):
            info = source.info(index)
            drawn = render(WORLD, seed=0, split=split, index=index).astype(float)
            frames = source.read(index, range(info.num_frames)).permute(0, 2, 3, 1).numpy()
            assert info.num_frames == WORLD.num_frames
            assert info.labels == labels(WORLD, seed=0, split=split, index=index) == source.labels(index)
            assert frames.shape == drawn.shape
            assert 10 * np.log10(255**2 / ((frames - drawn) ** 2).mean()) > 36
            assert np.array_equal(source.read(index, [6, 2]).permute(0, 2, 3, 1).numpy(), frames[[6, 2]])
    assert source.label_classes["direction"] == tuple("01234567")
    assert {name: len(classes) for name, classes in source.label_classes.items()} == WORLD.num_classes()
    assert source.key(5) == info.key == "test/000005.mp4"


def test_files_are_small_h264_videos(written: Path) -> None:
    files = video_files(written)
    assert len(files) == 18
    assert probe(files[0]).codec == "h264"
    assert probe(files[0]).num_frames == WORLD.num_frames
    assert np.mean([path.stat().st_size for path in files]) < 7000


def test_mpeg4_serves_where_h264_is_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(moving_digits.av, "codecs_available", {"mpeg4"})
    assert moving_digits._codec() == "mpeg4"
    drawn = render(WORLD, seed=0, split="train", index=0)
    (tmp_path / "a.mp4").write_bytes(encode(drawn, "mpeg4"))
    frames = read_frames(tmp_path / "a.mp4", range(len(drawn))).permute(0, 2, 3, 1).numpy()
    assert 10 * np.log10(255**2 / ((frames - drawn.astype(float)) ** 2).mean()) > 35


def test_the_same_frames_make_the_same_file() -> None:
    clips = [render(WORLD, seed=0, split="train", index=index) for index in range(40)]
    first, second = ([encode(clip, moving_digits._codec()) for clip in clips] for _ in range(2))
    assert first == second


def test_a_file_that_is_not_what_was_written_is_unreadable(cache: Path) -> None:
    source = MovingDigits(split="test", num_videos=2)
    origins = [source.origin(index) for index in range(2)]
    assert [hashlib.sha256(Path(each.file).read_bytes()).hexdigest() for each in origins] == [
        each.sha256 for each in origins
    ]
    shutil.copyfile(origins[0].file, origins[1].file)
    assert len(source.read(0, [0])) == 1
    with pytest.raises(UnreadableSample, match=r"^test/000001.mp4: it is not what was written; remove "):
        source.read(1, [0])


def test_the_manifest_is_a_list_as_users_have_them(written: Path) -> None:
    (manifest,) = written.rglob("test-6-*/manifest.csv")
    source = VideoList(root=str(manifest.parent), list=str(manifest))
    named = {name: int(source.label_classes[name][number]) for name, number in source.labels(3).items()}
    assert named == labels(WORLD, seed=0, split="test", index=3)


def test_the_defaults_are_those_of_the_world() -> None:
    keys = inspect.signature(MovingDigits).parameters
    assert {field.name: keys[field.name].default for field in fields(DigitsWorld)} == asdict(DigitsWorld())


def test_what_is_written_is_said_where_nobody_has_asked_for_messages(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    MovingDigits(split="train", num_videos=2)
    assert [line.partition(" to ")[0] for line in caplog.messages] == [
        "Writing 2 moving digits videos (train)"
    ]


def test_written_once_and_said_where_and_how_large(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vidssl")
    MovingDigits(split="test", num_videos=3)
    folder = prepare(WORLD, seed=0, split="test", num_videos=3)
    assert len([line for line in caplog.messages if line.startswith("Writing 3 moving digits videos")]) == 1
    assert f"MB in all, to {folder}" in caplog.messages[-1]
    assert folder.is_relative_to(cache)
    before = {path: path.stat().st_mtime_ns for path in video_files(cache)}
    MovingDigits(split="test", num_videos=3)
    assert {path: path.stat().st_mtime_ns for path in video_files(cache)} == before
    assert len(before) == 3


def test_other_worlds_seeds_and_sizes_lie_apart(cache: Path) -> None:
    folders = {
        prepare(world, seed=seed, split=split, num_videos=number)
        for world, seed, split, number in [
            (WORLD, 0, "train", 2),
            (WORLD, 1, "train", 2),
            (WORLD, 0, "test", 2),
            (WORLD, 0, "train", 3),
            (DigitsWorld(ground=0.5), 0, "train", 2),
        ]
    }
    assert len(folders) == 5


def test_other_drawing_code_makes_another_data_set(cache: Path, monkeypatch) -> None:
    before = prepare(WORLD, seed=0, split="train", num_videos=1)
    monkeypatch.setattr(moving_digits, "render", lambda world, **which: render(world, **which) // 2)
    assert prepare(WORLD, seed=0, split="train", num_videos=1) != before


def test_a_limit_takes_the_first_videos_and_writes_no_others(written: Path, monkeypatch) -> None:
    monkeypatch.setenv("VIDSSL_CACHE", str(written))
    assert len(MovingDigits(split="train", num_videos=12, limit=5)) == 5
    assert len(video_files(written)) == 18


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("VIDSSL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("VIDSSL_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "vidssl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "vidssl"


def build(number: int, out: Path) -> None:
    folder = prepare(WORLD, seed=0, split="train", num_videos=number)
    with (folder / "manifest.csv").open() as file:
        out.write_text(str(len(list(csv.DictReader(file)))))


@pytest.mark.slow
def test_two_processes_that_start_at_once_build_one_data_set(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=build, args=(150, tmp_path / str(n))) for n in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert [(tmp_path / str(n)).read_text() for n in range(2)] == ["150", "150"]
    assert len(video_files(cache)) == 150
    assert not list(cache.rglob("*.unfinished"))
    # both drew every number alike, so only times tell that each file was written once
    made = [path.stat().st_mtime_ns for path in video_files(cache)]
    assert made == sorted(made)


@pytest.mark.slow
def test_a_killed_build_is_taken_up_where_it_stopped(cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    builder = context.Process(target=build, args=(400, tmp_path / "out"))
    builder.start()
    deadline = time.monotonic() + 30
    while len(video_files(cache)) < 30 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(builder.pid or 0, signal.SIGKILL)
    builder.join(30)
    done = video_files(cache)
    assert 30 <= len(done) < 400
    kept = {path.name: path.stat().st_mtime_ns for path in done}

    folder = prepare(WORLD, seed=0, split="train", num_videos=400)
    assert len(video_files(folder)) == 400
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    whole = encode(render(WORLD, seed=0, split="train", index=len(kept)), "libx264")
    assert (folder / f"{len(kept):06d}.mp4").read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIDSSL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be written there .Not a directory.*VIDSSL_CACHE"):
        MovingDigits(split="test", num_videos=2)


def test_a_full_disk_is_found_out_beforehand_and_while_writing(cache: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(UsageError, match=r"it may need 0 MB and 0 MB are free.*VIDSSL_CACHE"):
            MovingDigits(split="test", num_videos=2)
    with monkeypatch.context() as patch:

        def full(path: Path, content: bytes) -> None:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UsageError, match=r"No space left on device.*VIDSSL_CACHE"):
            MovingDigits(split="test", num_videos=2)
    source = MovingDigits(split="test", num_videos=2)
    assert [len(source.read(index, range(8))) for index in range(len(source))] == [8, 8]


def test_a_video_that_was_lost_is_an_unreadable_sample(cache: Path) -> None:
    source = MovingDigits(split="test", num_videos=2)
    video_files(cache)[1].unlink()
    with pytest.raises(UnreadableSample, match=r"^test/000001.mp4: the file does not exist"):
        source.read(1, [0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_videos": 0}, "num_videos must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"digit_size": 500}, "digit_size"),
    ],
)
def test_impossible_keys_are_refused(cache: Path, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingDigits(split="test", **keys)
    assert not cache.exists()
