"""The source ``tar_shards``: what lies in shards comes out, and what is wrong with them is told."""

import gc
import pickle
from collections import Counter
from itertools import chain
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from counted_shards import (
    CLASSES,
    LENGTHS,
    Counting,
    count_fetches,
    pack,
    pack_two,
    put,
    reasons,
    write_videos,
)
from data_clips import number_shown

from vidssl.data.decode.decode import VideoFacts
from vidssl.data.decode.images import read_image
from vidssl.data.loader import Loader, Stream
from vidssl.data.sources.manifest import FileRecord
from vidssl.data.sources.origins import shared_videos, videos_of
from vidssl.data.sources.tar.index import INDEX, Member, Shard, write_index
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.tar.storage import Address
from vidssl.data.sources.video_files import VideoFolder
from vidssl.data.views.random import SingleClip
from vidssl.errors import UsageError
from vidssl.interfaces import num_listed


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Five clips that show their frames' numbers, an image, and a file that is no video."""
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def packed(videos: Path) -> dict[str, bytes]:
    """Name -> content of two shards and their index."""
    return pack_two(videos)


@pytest.fixture(autouse=True)
def _counted(monkeypatch, tmp_path: Path) -> None:
    count_fetches(tmp_path / "fetched.txt", monkeypatch)


@pytest.fixture(params=["folder", "address", "cache"])
def keys(request, packed: dict[str, bytes], tmp_path: Path) -> dict[str, object]:
    """The source's keys for shards in a folder, elsewhere, and elsewhere but kept here."""
    if request.param == "folder":
        return {"root": put(packed, str(tmp_path / "shards"))}
    root = put(packed, f"counting://{uuid4().hex}")
    return {"root": root} if request.param == "address" else {"root": root, "cache": str(tmp_path / "cache")}


@pytest.fixture
def folder(packed: dict[str, bytes], tmp_path: Path) -> Path:
    return Path(put(packed, str(tmp_path / "shards")))


@pytest.fixture
def elsewhere(packed: dict[str, bytes]) -> str:
    return put(packed, f"counting://{uuid4().hex}")


def shown(source: TarShards, key: str, frames: list[int]) -> list[int]:
    (index,) = (index for index in range(len(source)) if source.key(index) == key)
    return [number_shown(frame) for frame in source.read(index, frames)]


def test_every_sample_comes_out_as_it_was_packed(keys, videos: Path, caplog) -> None:
    source = TarShards(**keys)
    order = ["run/0.mp4", "walk/1.avi", "walk/5.png", "run/2.mkv", "walk/3.mp4", "run/4.mp4"]
    assert [source.key(index) for index in range(len(source))] == order
    assert source.label_classes == CLASSES
    for index, key in enumerate(order):
        info = source.info(index)
        assert (info.key, info.labels) == (key, {"class": int(key.startswith("walk"))})
        assert source.labels(index) == info.labels
        assert (info.num_frames, info.fps) == ((LENGTHS[key], 30.0) if key in LENGTHS else (1, 0.0))
        if key in LENGTHS:
            assert shown(source, key, [LENGTHS[key] - 1, 3, 3]) == [LENGTHS[key] - 1, 3, 3]
    assert torch.equal(source.read(2, [0, 0])[1], read_image(videos / "walk/5.png", "")[0])
    assert num_listed(source) == 7
    same = shared_videos(videos_of(source), videos_of(VideoFolder(root=str(videos))))
    assert (len(same.keys), same.unknown) == (5, 0)
    assert len(shared_videos(videos_of(VideoFolder(root=str(videos))), videos_of(source)).keys) == 5
    (line,) = caplog.text.splitlines()
    assert "1 of 7 samples are left out (most of all: a text file, not a video" in line


def test_frames_that_are_not_there_are_refused(folder: Path) -> None:
    source = TarShards(root=str(folder))
    for frames in ([], [-1], [10]):
        with pytest.raises(ValueError, match=r"run/0.mp4 has 10 frames, asked for \["):
            source.read(0, frames)


def test_a_list_chooses_and_labels(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,speed\nrun/4.mp4,fast\nwalk/1.avi,slow\nrun/6.mp4,fast\n")
    (tmp_path / "test.csv").write_text("path,speed\nrun/0.mp4,odd\n")
    lists = {"list": str(tmp_path / "train.csv"), "test_list": str(tmp_path / "test.csv")}
    source = TarShards(root=str(folder), **lists, part="train")
    assert [source.key(index) for index in range(len(source))] == ["walk/1.avi", "run/4.mp4"]  # as they lie
    assert source.label_classes == {"speed": ("fast", "odd", "slow")}
    assert [source.labels(index) for index in range(2)] == [{"speed": 2}, {"speed": 0}]
    assert num_listed(source) == 3
    assert TarShards(root=str(folder), **lists, part="test").key(0) == "run/0.mp4"
    (tmp_path / "train.csv").write_text("run/4.mp4,1\nrun/7.mp4,1\n")
    with pytest.raises(UsageError, match=r"index.jsonl: 1 of the 2 files of .*train.csv .*such as run/7.mp4"):
        TarShards(root=str(folder), list=str(tmp_path / "train.csv"))
    with pytest.raises(ValueError, match="'test_list' goes with 'list'"):
        TarShards(root=str(folder), test_list="x")


def test_parts_are_those_of_a_folder(folder: Path) -> None:
    parts = [TarShards(root=str(folder), part=part) for part in ("train", "test")]
    found = [{source.key(index) for index in range(len(source))} for source in parts]
    assert found[0] | found[1] == {*LENGTHS, "walk/5.png"}
    assert not found[0] & found[1]
    assert len(TarShards(root=str(folder), limit=3)) + 1 >= 3
    assert num_listed(TarShards(root=str(folder), limit=3)) == 3


def test_short_videos_follow_the_rule(folder: Path, caplog) -> None:
    source = TarShards(root=str(folder), short="loop", min_frames=13)
    assert source.info(0).num_frames == 13
    assert shown(source, "run/0.mp4", [9, 10, 12]) == [9, 0, 2]
    assert source.read(2, [12]).shape == (1, 3, 20, 30)
    padded = TarShards(root=str(folder), short="pad", min_frames=13)
    assert shown(padded, "run/0.mp4", [9, 10, 12]) == [9, 9, 9]
    caplog.clear()
    source = TarShards(root=str(folder), short="skip", min_frames=13)
    assert [source.key(index) for index in range(len(source))] == ["run/2.mkv", "walk/3.mp4", "run/4.mp4"]
    assert "4 of 7 samples are left out (most of all: shorter than 13 frames)" in caplog.text
    with pytest.raises(UsageError, match=r"none of the 7 samples of .* can be used"):
        TarShards(root=str(folder), short="skip", min_frames=99)


def test_orders_read_every_sample_once(folder: Path) -> None:
    for order in ("shards", "samples"):
        source = TarShards(root=str(folder), order=order, short="skip", min_frames=11)
        epochs = [source.epoch_order(seed, 2) for seed in range(8)]
        for epoch in epochs:
            assert sorted(int(epoch[place]) for place in range(len(source))) == [0, 1, 2, 3]
        assert len({tuple(int(epoch[place]) for place in range(4)) for epoch in epochs}) > 1
    kept = TarShards(root=str(folder), short="skip", min_frames=11)  # 1 of the first shard, 3 of the second
    for seed in range(8):
        line = [kept.epoch_order(seed, 1)[place] for place in range(4)]
        assert line[0] == 0 or line[-1] == 0  # one shard after the other


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_reads_every_sample_once(keys, workers: int) -> None:
    source = TarShards(**keys)
    views = SingleClip(num_frames=2, frame_stride=1, size=16)
    with Loader({"video": Stream(source, views, batch_size=2, workers=workers)}) as batches:
        indices = [next(batches).indices["video"].tolist() for _ in range(6)]
    assert [Counter(chain(*indices[start : start + 3])) for start in (0, 3)] == [Counter(range(6))] * 2


def test_a_copy_in_another_process_reads_too(keys) -> None:
    source = TarShards(**keys)
    expected = source.read(0, [7])
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(0, [7]), expected)


def test_the_index_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / INDEX).rename(tmp_path / "mine.jsonl")
    with pytest.raises(
        UsageError, match=r"shards/index.jsonl: there is no index of tar shards. 'vidssl data sh"
    ):
        TarShards(root=str(folder))
    assert len(TarShards(root=str(folder), index=str(tmp_path / "mine.jsonl"))) == 6
    with pytest.raises(UsageError, match=r"memory://nowhere/index.jsonl: there is no index of tar shards"):
        TarShards(root="memory://nowhere")
    (tmp_path / "mine.jsonl").write_text("x")
    with pytest.raises(UsageError, match=r"mine.jsonl:1: the index is damaged"):
        TarShards(root=str(folder), index=str(tmp_path / "mine.jsonl"))


def test_missing_shards_of_a_folder_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    (folder / "00000.tar").unlink()
    with pytest.raises(
        UsageError, match=r"1 of 2 shards is not there, such as 00000.tar. Copy them, or make"
    ):
        TarShards(root=str(folder))
    (tmp_path / "list.csv").write_text("run/2.mkv,1\n")
    assert len(TarShards(root=str(folder), list=str(tmp_path / "list.csv"))) == 1


def replace(root: str, name: str, content: bytes) -> None:
    place = Address(root)
    if place.local is None:
        with place.write(name) as file:
            file.write(content)
    else:
        (place.local / name).write_bytes(content)  # as the same file


def test_a_shard_of_another_length_is_told(keys, packed) -> None:
    source = TarShards(**keys)
    replace(str(keys["root"]), "00000.tar", packed["more/00001.tar"])
    found = reasons(source)
    assert set(found) == {"run/0.mp4", "walk/1.avi", "walk/5.png"}
    for reason in found.values():
        assert reason.startswith("00000.tar cannot be read: it has ")
        assert "make the index anew: 'vidssl data index'" in reason or "as the index states" in reason


def test_a_shard_that_has_grown_is_told(folder: Path) -> None:
    source = TarShards(root=str(folder))
    with (folder / "00000.tar").open("ab") as file:
        file.write(bytes(512))
    assert set(reasons(source)) == {"run/0.mp4", "walk/1.avi", "walk/5.png"}


def test_a_shard_that_is_cut_off_in_use_is_told(keys, packed) -> None:
    if "cache" in keys:
        pytest.skip("what was fetched stays whole")
    source = TarShards(**keys)
    assert not reasons(source)
    replace(str(keys["root"]), "00000.tar", packed["00000.tar"][:1500])
    found = reasons(source)
    assert set(found) == {"run/0.mp4", "walk/1.avi", "walk/5.png"}
    assert found["walk/5.png"].startswith("00000.tar cannot be read: it has 1500 bytes, not")


def test_a_shard_made_anew_in_the_same_length_is_told(keys, packed, videos: Path) -> None:
    other, _ = pack(videos, "00000.tar", ["walk/1.avi", "run/0.mp4", "walk/5.png"])
    assert len(other) == len(packed["00000.tar"])
    replace(str(keys["root"]), "00000.tar", other)
    found = reasons(TarShards(**keys))
    assert set(found) == {"run/0.mp4", "walk/1.avi"}  # the image lies where it lay
    assert found["run/0.mp4"].startswith(
        "00000.tar is damaged or was replaced: no file begins where the index"
    )


def test_noise_in_a_shard_costs_its_sample_only(keys, packed) -> None:
    content = bytearray(packed["00000.tar"])
    content[512:1500] = bytes(988)
    replace(str(keys["root"]), "00000.tar", bytes(content))
    found = reasons(TarShards(**keys))
    assert set(found) == {"run/0.mp4"}
    assert found["run/0.mp4"].startswith("00000.tar is damaged or was replaced: the content has changed")


def test_a_shard_that_goes_away_is_told(elsewhere: str) -> None:
    source = TarShards(root=elsewhere)
    Address(elsewhere).remove("00000.tar")
    assert reasons(source)["run/0.mp4"] == "00000.tar cannot be read: there is no such file"


def test_an_address_that_does_not_answer_is_told(elsewhere: str, monkeypatch) -> None:
    source = TarShards(root=elsewhere)

    def fail(self, path, start=None, end=None):
        raise ConnectionRefusedError("connection refused")

    monkeypatch.setattr(Counting, "cat_file", fail)
    with pytest.raises(
        UsageError, match=r"index.jsonl: the index cannot be read: it cannot be reached \(Connection"
    ):
        TarShards(root=elsewhere)
    assert "cannot be reached (ConnectionRefusedError" in reasons(source)["run/0.mp4"]


def test_few_objects_are_kept_for_many_samples(tmp_path: Path) -> None:
    shards = [
        Shard(
            f"{shard}.tar",
            1 << 20,
            tuple(Member(good(shard * 500 + place), 512) for place in range(500)),
        )
        for shard in range(3)
    ]
    with (tmp_path / INDEX).open("wb") as file:
        write_index(file, shards, CLASSES)
    for shard in shards:
        (tmp_path / shard.name).touch()
    assert TarShards(root=str(tmp_path)).labels(0) == {}
    assert TarShards(root=str(tmp_path)).labels(1) == {"class": 1}
    del shards
    gc.collect()
    gc.freeze()  # what is there is not counted
    try:
        source = TarShards(root=str(tmp_path), part="train")
        gc.collect()
        assert len(source) > 1000
        assert len(gc.get_objects()) < 300
    finally:
        gc.unfreeze()


def good(number: int) -> FileRecord:
    facts = VideoFacts(9, 9, 30.0, 8, 8, 0, "h264", "", (), (), 0.1)
    labels = {"class": ("run", "walk")[number % 2]} if number else {}
    return FileRecord(f"{number}.mp4", "ok", "", 100, 7, "ab" * 32, labels, facts, "mov", "constant", 9)
