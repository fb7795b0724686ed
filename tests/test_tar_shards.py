"""The source ``tar_shards``: what lies in shards comes out, and what is wrong with them is told."""

import gc
import io
import multiprocessing
import os
import pickle
import re
import tarfile
import threading
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import torch
from data_clips import number_shown, write_clip
from PIL import Image

from vidssl.abilities import num_listed
from vidssl.data import places, shard_cache
from vidssl.data.addresses import Address
from vidssl.data.decode import VideoFacts
from vidssl.data.examine import FileToExamine, examine
from vidssl.data.images import read_image
from vidssl.data.loader import Loader, Stream
from vidssl.data.manifest import Entry, hash_content
from vidssl.data.shard_index import IMAGE, INDEX, Member, Shard, write_index
from vidssl.data.tar_shards import TarShards
from vidssl.data.views import SingleClip
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample

CLASSES = {"class": ("run", "walk")}
LENGTHS = {"run/0.mp4": 10, "walk/1.avi": 12, "run/2.mkv": 14, "walk/3.mp4": 16, "run/4.mp4": 18}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Five clips that show their frames' numbers, an image, and a file that is no video."""
    root = tmp_path_factory.mktemp("videos")
    for key, length in LENGTHS.items():
        write_clip(root / key, length, codec="mpeg4" if key.endswith("avi") else "libx264")
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "walk" / "5.png")
    (root / "run" / "6.mp4").write_text("not found, sorry")
    return root


def entry_of(root: Path, key: str) -> Entry:
    labels = {"class": key.split("/")[0]}
    path = root / key
    if path.suffix != ".png":
        return examine(FileToExamine(root, key, labels))
    facts = VideoFacts(1, 1, 0.0, 20, 30, 0, "png", "", (), (), 0.0)
    size = path.stat().st_size
    return Entry(key, "ok", "", size, 0, hash_content(path), labels, facts, IMAGE, "unknown", 1)


def pack(root: Path, name: str, keys: list[str]) -> tuple[bytes, Shard]:
    """A tar of files, and what its index says."""
    entries = [entry_of(root, key) for key in keys]
    file, starts = io.BytesIO(), {}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, entry in enumerate(entries):
            if entry.usable:
                member = tarfile.TarInfo(f"{number:08d}{Path(entry.key).suffix}")
                member.size = entry.bytes
                tar.addfile(member, io.BytesIO((root / entry.key).read_bytes()))
                starts[entry.key] = file.tell() - (entry.bytes + 511) // 512 * 512
    members = tuple(Member(entry, starts.get(entry.key, -1)) for entry in entries)
    return file.getvalue(), Shard(name, len(file.getvalue()), members)


@pytest.fixture(scope="module")
def packed(videos: Path) -> dict[str, bytes]:
    """Name -> content of two shards and their index."""
    first, one = pack(videos, "00000.tar", ["run/0.mp4", "walk/1.avi", "run/6.mp4", "walk/5.png"])
    second, two = pack(videos, "more/00001.tar", ["run/2.mkv", "walk/3.mp4", "run/4.mp4"])
    index = io.BytesIO()
    write_index(index, [one, two], CLASSES)
    return {"00000.tar": first, "more/00001.tar": second, INDEX: index.getvalue()}


class Counting(fsspec.get_filesystem_class("memory")):
    """Counts what is fetched, over all processes."""

    protocol = "counting"
    log: Path

    def get_file(self, path, lpath, **more) -> None:
        with Counting.log.open("a") as log:
            log.write(f"{path}\n")
        super().get_file(path, lpath, **more)

    def cat_file(self, path, start=None, end=None, **more):
        if start is not None:
            with Counting.log.open("a") as log:
                log.write("range\n")
        return super().cat_file(path, start, end, **more)


fsspec.register_implementation("counting", Counting, clobber=True)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "PAUSES_SECONDS", ())
    Counting.log = tmp_path / "fetched.txt"
    Counting.log.touch()


def put(packed: dict[str, bytes], root: str) -> str:
    place = Address(root)
    for name, content in packed.items():
        with place.write(name) as file:
            file.write(content)
    return root


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


def fetched() -> list[str]:
    return [re.sub(r"^.*[0-9a-f]{32}/", "", line) for line in Counting.log.read_text().splitlines()]


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
        UsageError, match=r"1 of 2 shards are not there, such as 00000.tar. Copy them, or make"
    ):
        TarShards(root=str(folder))
    (tmp_path / "list.csv").write_text("run/2.mkv,1\n")
    assert len(TarShards(root=str(folder), list=str(tmp_path / "list.csv"))) == 1


def reasons(source: TarShards) -> dict[str, str]:
    """Key -> what is said of it, of samples that cannot be read."""
    found = {}
    for index in range(len(source)):
        try:
            source.read(index, [0, 0])
        except UnreadableSample as error:
            found[error.key] = error.reason
    assert set(found) <= {source.key(index) for index in range(len(source))}
    return found


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
        assert "make the index anew: 'vidssl data index'" in reason or "as the index says" in reason


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


def test_shards_are_fetched_once(elsewhere: str, tmp_path: Path) -> None:
    for _ in range(2):
        source = TarShards(root=elsewhere, cache=str(tmp_path / "cache"))
        assert not reasons(source)
    assert sorted(fetched()) == ["00000.tar", "more/00001.tar"]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [".lock"]


def _read_all(source: TarShards, barrier, results) -> None:
    barrier.wait(20)
    results.put(len(reasons(source)))


def test_processes_share_what_one_of_them_fetches(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    source = TarShards(root=elsewhere, cache=str(tmp_path / "cache"))
    whole = Counting.get_file
    monkeypatch.setattr(Counting, "get_file", lambda *given, **more: (time.sleep(0.2), whole(*given, **more)))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    crew = [context.Process(target=_read_all, args=(source, barrier, results)) for _ in range(4)]
    for process in crew:
        process.start()
    assert [results.get(timeout=20) for _ in crew] == [0] * 4
    for process in crew:
        process.join(20)
    assert sorted(fetched()) == ["00000.tar", "more/00001.tar"]


def test_a_cached_shard_that_is_damaged_is_fetched_anew(elsewhere: str, tmp_path: Path, packed) -> None:
    cache = tmp_path / "cache"
    whole = {name.removeprefix("more/"): content for name, content in packed.items() if name != INDEX}
    source = TarShards(root=elsewhere, cache=str(cache))
    for spoil in (lambda content: content[:700], lambda content: bytes(len(content)), _noise_behind_header):
        assert not reasons(source)
        for path in cache.glob("*.tar"):
            path.write_bytes(spoil(path.read_bytes()))
        assert not reasons(source)
        assert not reasons(source)
        assert {path.name[17:]: path.read_bytes() for path in cache.glob("*.tar")} == whole


def _noise_behind_header(content: bytes) -> bytes:
    return content[:512] + bytes(988) + content[1500:]


def test_what_a_killed_process_left_is_fetched_anew(elsewhere: str, tmp_path: Path, packed) -> None:
    cache = tmp_path / "cache"
    source = TarShards(root=elsewhere, cache=str(cache))
    assert not reasons(source)
    for path in cache.glob("*.tar"):
        size = path.stat().st_size
        path.with_name(f".{path.name}.{size}.part").write_bytes(path.read_bytes()[:99])
        path.unlink()
    orphan = cache / f".{'0' * 16}-00009.tar.{1 << 40}.part"
    orphan.write_bytes(b"half")
    assert not reasons(source)
    assert sorted(fetched()) == sorted(2 * ["00000.tar", "more/00001.tar"])
    assert [path.name for path in cache.glob(".*")] == [".lock"]


def test_the_oldest_shard_makes_room(elsewhere: str, tmp_path: Path, packed, monkeypatch, caplog) -> None:
    sizes = {name: len(content) for name, content in packed.items() if name != INDEX}
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "thesis.txt").write_text("mine")
    source = TarShards(root=elsewhere, cache=str(cache), cache_gib=max(sizes.values()) / 2**30)
    assert not reasons(source)
    assert "is full (all" in caplog.text
    assert "samples are read one by one" in caplog.text
    assert fetched() == ["00000.tar", *["range"] * 3]
    monkeypatch.setattr(shard_cache, "IN_USE_SECONDS", 0.0)
    assert not reasons(source)
    assert fetched() == ["00000.tar", *["range"] * 3, "more/00001.tar"]
    assert [path.name[17:] for path in cache.glob("*.tar")] == ["00001.tar"]
    assert (cache / "thesis.txt").read_text() == "mine"


def test_shards_being_fetched_take_room(elsewhere: str, tmp_path: Path, packed, caplog) -> None:
    size = max(len(content) for content in packed.values())
    cache = tmp_path / "cache"
    source = TarShards(root=elsewhere, cache=str(cache), cache_gib=2 * size / 2**30)
    with shard_cache._locked(cache / f".{'0' * 16}-00009.tar.{size}.part"):
        assert not reasons(source)
    assert fetched() == ["00000.tar", *["range"] * 3]


def test_the_shard_that_was_not_read_for_longest_goes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shard_cache, "IN_USE_SECONDS", 0.0)
    place = Address(f"counting://{uuid4().hex}")
    for name in ("a", "b", "c"):
        with place.write(name) as file:
            file.write(name.encode() * 1000)
    cache = shard_cache.ShardCache(tmp_path / "cache", gib=2500 / 2**30, source=place, largest=1000)
    for name, age in (("a", 300), ("b", 200)):
        assert cache.read_range(name, 1000, 999, 5) == name.encode()
        (path,) = (tmp_path / "cache").glob(f"*-{name}")
        os.utime(path, (time.time() - age,) * 2)
    cache.read_range("a", 1000, 0, 1)
    cache.read_range("c", 1000, 0, 1)
    assert {path.name[17:] for path in (tmp_path / "cache").glob("*-*")} == {"a", "c"}


def test_a_lock_is_of_the_file_that_has_the_name(tmp_path: Path) -> None:
    path, there = tmp_path / "lock", []

    def wait() -> None:
        with shard_cache._locked(path):
            there.append(path.exists())

    thread = threading.Thread(target=wait)
    with shard_cache._locked(path):
        thread.start()
        time.sleep(0.1)  # for it to wait for the file that goes away
        path.rename(tmp_path / "whole")
    thread.join(10)
    assert there == [True]


def test_a_full_disk_is_told_and_read_past(elsewhere: str, tmp_path: Path, monkeypatch, caplog) -> None:
    def full(self, path, lpath, **more) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Counting, "get_file", full)
    cache = tmp_path / "cache"
    assert not reasons(TarShards(root=elsewhere, cache=str(cache)))
    assert caplog.text.count("the cache of shards is full (No space left on device)") == 1
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_fetch_that_ends_early_is_told(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Counting, "get_file", lambda self, path, lpath: Path(lpath).write_bytes(b"half"))
    found = reasons(TarShards(root=elsewhere, cache=str(tmp_path / "cache")))
    assert len(found) == 6
    assert found["run/0.mp4"].startswith("00000.tar cannot be read: only 4 of its ")


def test_caches_that_cannot_be_are_refused(elsewhere: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache_gib \(1e-06\) is less than the largest shard"):
        TarShards(root=elsewhere, cache=str(tmp_path / "cache"), cache_gib=1e-6)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the cache of shards cannot be written"):
        TarShards(root=elsewhere, cache=str(tmp_path / "file"))


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


def good(number: int) -> Entry:
    facts = VideoFacts(9, 9, 30.0, 8, 8, 0, "h264", "", (), (), 0.1)
    labels = {"class": ("run", "walk")[number % 2]} if number else {}
    return Entry(f"{number}.mp4", "ok", "", 100, 7, "ab" * 32, labels, facts, "mov", "constant", 9)
