"""The cache of ``tar_shards``: shards are fetched once and whole, by whichever process, within their room."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from counted_shards import Counting, count_fetches, fetched, pack_two, put, reasons, write_videos

from vidssl.data import samples
from vidssl.data.sources.tar import reader as shard_cache
from vidssl.data.sources.tar.index import INDEX
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.tar.storage import Address
from vidssl.data.views.random import SingleClip
from vidssl.engine.process import locked
from vidssl.errors import UsageError

SECOND = ("run/2.mkv", "walk/3.mp4", "run/4.mp4")  # keys of the second shard


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> dict[str, bytes]:
    """Name -> content of two shards and their index."""
    return pack_two(write_videos(tmp_path_factory.mktemp("videos")))


@pytest.fixture(autouse=True)
def _counted(monkeypatch, tmp_path: Path) -> None:
    count_fetches(tmp_path / "fetched.txt", monkeypatch)


@pytest.fixture
def elsewhere(packed: dict[str, bytes]) -> str:
    return put(packed, f"counting://{uuid4().hex}")


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


@pytest.mark.parametrize("order", ["shards", "samples"])
def test_the_next_shard_is_fetched_while_one_is_read(
    elsewhere: str, tmp_path: Path, monkeypatch, order: str
) -> None:
    monkeypatch.setattr(samples, "_AHEAD", 2)
    source = TarShards(root=elsewhere, cache=str(tmp_path / "cache"), order=order)
    views = SingleClip(num_frames=1, frame_stride=1, size=16)
    endless = samples.Endless(source, views, batch_size=1, seed=0, tries=1)
    shards = [source.key(endless.index(place)) in SECOND for place in range(len(source))]
    monkeypatch.setattr(Address, "read_range", None)  # all comes from the cache
    for place in range(len(source)):
        assert endless[place].views is not None
        for thread in threading.enumerate():
            if thread.name == shard_cache._AHEAD:
                thread.join(20)
        seen = len(set(shards[: place + 3])) if order == "shards" else len(set(shards[: place + 1]))
        assert len(fetched()) == seen, place


def test_what_cannot_be_fetched_ahead_is_told_where_it_is_read(elsewhere: str, tmp_path: Path) -> None:
    source = TarShards(root=elsewhere, cache=str(tmp_path / "cache"))
    Address(elsewhere).remove("more/00001.tar")
    for index in range(len(source)):
        source.soon(index)
        for thread in threading.enumerate():
            if thread.name == shard_cache._AHEAD:
                thread.join(20)
    assert fetched() == ["00000.tar"]
    assert len(reasons(source)) == 3


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
    with locked(cache / f".{'0' * 16}-00009.tar.{size}.part"):
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
        with locked(path):
            there.append(path.exists())

    thread = threading.Thread(target=wait)
    with locked(path):
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
