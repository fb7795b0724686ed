"""``vidssl data shard``: each file once, where the index says, verified, resumable; originals untouched."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from data_clips import write_clip
from data_shards import content, members, pack, read_index, rows
from PIL import Image

from vidssl.cli import main
from vidssl.data.addresses import Address
from vidssl.data.examine import FileToExamine, examine
from vidssl.data.places import Folder, Remote
from vidssl.data_check.check import CheckRequest, check_data
from vidssl.data_shard import shard
from vidssl.data_shard.pack import CannotWrite, ShardToPack, pack_shard
from vidssl.data_shard.plan import Plan, PlannedFile, make_plan
from vidssl.data_shard.report import flow
from vidssl.engine.lock import sole_process
from vidssl.errors import UsageError

KEYS = ["run/a.mp4", "run/b.c.MP4", "run/ü 1.mp4", "walk/d.avi", "walk/e.mp4"]
TWO = 4500 + 2 * 2048  # bytes of a shard that holds two or three of them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for number, key in enumerate(KEYS):
        write_clip(root / key, 5 + number, codec="mpeg4" if key.endswith("avi") else "libx264")
    return root


@pytest.fixture
def crew() -> None:
    """Work is done by processes."""


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch) -> None:
    """Otherwise it is done in this process, which is quicker."""
    if "crew" not in request.fixturenames:
        monkeypatch.setattr(shard, "work", lambda tasks, job, **_: ((task, job(task)) for task in tasks))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "videos"))


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All five packed, and what was said."""
    out = tmp_path_factory.mktemp("done") / "shards"
    code, text = pack(made, out, shard_bytes=TWO)
    assert code == 0, text
    return out, text


CLASSES = {"class": ("run", "walk")}


def files(count: int = 40, size: int = 10_000) -> list[PlannedFile]:
    return [
        PlannedFile(f"{name}/{n:03d}.mp4", {"class": name}, size, n)
        for name in CLASSES["class"]
        for n in range(count)
    ]


def plan(given: list[PlannedFile], classes: Mapping = CLASSES, **how: object) -> Plan:
    return make_plan(given, classes, **{"seed": 0, "shard_bytes": 100_000, **how})  # type: ignore[arg-type]


def test_a_plan_holds_every_file_once_and_numbers_samples_on() -> None:
    made = plan(files())
    assert sorted(f.key for s in made.shards for f in s.files) == sorted(f.key for f in files())
    assert [s.name for s in made.shards[:2]] == ["00000.tar", "00001.tar"]
    ends = [s.first + len(s.files) for s in made.shards]
    assert [s.first for s in made.shards] == [0, *ends[:-1]]
    assert (made.num_files, made.bytes) == (80, 800_000)
    assert {len(s.files) for s in made.shards[:-1]} == {8}  # headers count too


def test_a_plan_parts_neighbours_and_the_seed_decides_how() -> None:
    order = [[f.key for f in s.files] for s in plan(files()).shards]
    assert all({key[:3] for key in keys} == {"run", "wal"} for keys in order[:-1])
    assert order == [[f.key for f in s.files] for s in plan(files()[::-1]).shards]
    assert order != [[f.key for f in s.files] for s in plan(files(), seed=1).shards]


def test_a_large_file_has_a_shard_of_its_own_and_a_missing_one_takes_no_room() -> None:
    sizes = [10, 10**6, -1, 10, 10**6]
    made = plan([PlannedFile(f"{n}.mp4", {}, size, 0) for n, size in enumerate(sizes)], {})
    for one in made.shards:
        assert len(one.files) == 1 or sum(f.bytes for f in one.files) < 100_000
    assert len(made.shards) >= 3
    assert plan([], {}).shards == ()
    with pytest.raises(ValueError, match="shard_bytes must be at least 1"):
        plan(files(), shard_bytes=0)


def test_the_digest_of_a_plan_follows_from_all_that_shards_hold() -> None:
    given = files()
    assert plan(given).digest == plan(given[::-1]).digest
    first = given[0]
    others = [
        plan(given, seed=1),
        plan(given, shard_bytes=100_001),
        plan(given, images=True),
        plan(given, {"class": ("walk", "run")}),
        plan(given[1:]),
        *(
            plan([replace(first, **change), *given[1:]])
            for change in ({"bytes": 1}, {"mtime_ns": 9}, {"key": "x.mp4"}, {"labels": {"class": "walk"}})
        ),
    ]
    assert len({plan(given).digest, *(other.digest for other in others)}) == len(others) + 1


def test_every_file_lies_where_the_index_says(made: Path, done) -> None:
    out, text = done
    found = rows(out / "index.jsonl")
    assert sorted(row["key"] for row in found) == KEYS
    for row in found:
        assert content(out, row) == (made / row["key"]).read_bytes()
        assert row["status"] == "ok"
        assert row["frames"] == 5 + KEYS.index(row["key"])
        assert row["labels"] == {"class": row["key"].split("/")[0]}
    index = read_index(out / "index.jsonl")
    assert index.label_classes == CLASSES
    assert len(index.shards) > 1
    assert [(out / name).stat().st_size for name in index.shards] == list(index.shard_bytes)
    assert "5 of 5 files lie in" in text
    assert "Label 'class': 2 classes, 5 of 5 files have it" in text


def test_the_tars_are_as_webdataset_has_them(made: Path, done) -> None:
    out, _ = done
    number = 0
    for path in sorted(out.glob("*.tar")):
        there = list(members(path).items())
        for (video, data), (about, text), (cls, digits) in zip(
            there[::3], there[1::3], there[2::3], strict=True
        ):
            assert (about, cls) == (f"{number:08d}.json", f"{number:08d}.cls")
            row = json.loads(text)
            assert video == f"{number:08d}{Path(row['key']).suffix.lower()}"
            assert data == (made / row["key"]).read_bytes()
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert CLASSES["class"][int(digits)] == row["labels"]["class"] == row["key"].split("/")[0]
            assert (row["frames"], row["fps"]) == (5 + KEYS.index(row["key"]), 30.0)
            number += 1
    assert number == 5


def contents(out: Path) -> dict[str, str]:
    there = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def test_originals_are_untouched_and_nothing_is_left_over(made: Path, done) -> None:
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*.*")) == KEYS
    shards = {f"0000{n}.tar" for n in range(len(read_index(done[0] / "index.jsonl").shards))}
    assert contents(done[0]).keys() == {"index.jsonl", ".sharding/plan.json", *shards}


def test_the_same_files_give_the_same_shards(made: Path, done, tmp_path: Path) -> None:
    pack(made, tmp_path / "out", shard_bytes=TWO, processes=1)
    assert contents(tmp_path / "out") == contents(done[0])


def test_bad_files_lie_in_no_tar_and_are_listed(root: Path, tmp_path: Path) -> None:
    (root / "run" / "empty.mp4").touch()
    (root / "walk" / "text.mp4").write_text("no video at all")
    code, text = pack(root, tmp_path / "out")
    assert code == 1
    assert "5 of 7 files lie in 1 shards" in text
    assert "Bad, in no shard: 2\n" in text
    assert "\n  run/empty.mp4: the file is empty (0 bytes)\n" in text
    bad = [row for row in rows(tmp_path / "out" / "index.jsonl") if row["start"] < 0]
    assert {row["key"]: row["status"] for row in bad} == dict.fromkeys(
        ("run/empty.mp4", "walk/text.mp4"), "unreadable"
    )
    assert len(members(tmp_path / "out" / "00000.tar")) == 15
    assert pack(root, tmp_path / "out")[0] == 1  # once more: nothing to do, and still bad
    for path in (*root.glob("*/*.mp4"), *root.glob("*/*.MP4"), *root.glob("*/*.avi")):
        path.write_text("no video at all")
    code, text = pack(root, tmp_path / "none")
    assert code == 1
    assert "0 of 7 files lie in" in text
    assert "In recipes" not in text
    assert members(tmp_path / "none" / "00000.tar") == {}


def test_a_list_names_files_labels_and_what_is_missing(made: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "path,class,who\nrun/a.mp4,9,ann\nwalk/e.mp4,3,bob\nrun/gone.mp4,0,ann\n"
    )
    code, text = pack(tmp_path / "list.csv", tmp_path / "out", root=made)
    assert (code, "run/gone.mp4: the file does not exist" in text) == (1, True)
    found = {row["key"]: row["labels"] for row in rows(tmp_path / "out" / "index.jsonl")}
    assert found["walk/e.mp4"] == {"class": "3", "who": "bob"}
    there = members(tmp_path / "out" / "00000.tar")
    for name in (name for name in there if name.endswith(".json")):
        about = json.loads(there[name])
        assert there[name.replace(".json", ".cls")].decode() == about["labels"]["class"]


def test_files_without_labels_have_no_cls(made: Path, tmp_path: Path) -> None:
    pack(made / "run", tmp_path / "out")
    assert {Path(name).suffix for name in members(tmp_path / "out" / "00000.tar")} == {".mp4", ".json"}


def test_a_manifest_spares_the_decoding(root: Path, tmp_path: Path, monkeypatch) -> None:
    (root / "run" / "empty.mp4").touch()
    manifest = tmp_path / "videos.manifest.jsonl"
    check_data(CheckRequest(root, processes=2))
    write_clip(root / "walk" / "e.mp4", 12)  # changed since: looked at again
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    real = examine.__globals__["probe"]
    monkeypatch.setitem(examine.__globals__, "probe", lambda p: (decoded / p.name).touch() or real(p))
    code, text = pack(manifest, tmp_path / "out")
    assert code == 1
    assert "run/empty.mp4: the file is empty" in text
    assert {path.name for path in decoded.iterdir()} == {"e.mp4"}
    found = {row["key"]: row for row in rows(tmp_path / "out" / "index.jsonl")}
    assert found["walk/e.mp4"]["frames"] == 12
    assert found["run/a.mp4"]["labels"] == {"class": "run"}
    assert content(tmp_path / "out", found["run/a.mp4"]) == (root / "run" / "a.mp4").read_bytes()


def test_images_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    picture = Image.new("RGB", (40, 30), (9, 99, 199))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "images" / "cat" / "a.JPG", exif=turned)
    picture.save(tmp_path / "images" / "cat" / "b.png")
    (tmp_path / "images" / "cat" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    write_clip(tmp_path / "images" / "cat" / "no.mp4", 3)
    code, text = pack(tmp_path / "images", tmp_path / "out", images=True)
    assert (code, "cat/c.png: " in text) == (1, True)
    found = {row["key"]: row for row in rows(tmp_path / "out" / "index.jsonl")}
    assert found.keys() == {"cat/a.JPG", "cat/b.png", "cat/c.png"}
    kept = ("container", "codec", "frames", "fps", "height", "width")
    assert [found["cat/a.JPG"][name] for name in kept] == ["image", "jpeg", 1, 0.0, 40, 30]
    assert [found["cat/b.png"][name] for name in kept] == ["image", "png", 1, 0.0, 30, 40]
    assert found["cat/b.png"]["mtime_ns"] == (tmp_path / "images" / "cat" / "b.png").stat().st_mtime_ns
    assert Image.open(BytesIO(content(tmp_path / "out", found["cat/b.png"]))).size == (40, 30)
    (tmp_path / "list.txt").write_text("cat/no.mp4 1\n")
    with pytest.raises(UsageError, match="--images goes with a folder"):
        pack(tmp_path / "list.txt", tmp_path / "other", images=True)


def task(root: Path, out: Path, *keys: str) -> ShardToPack:
    entries = tuple(examine(FileToExamine(root, key, {})) for key in keys)
    return ShardToPack(Address(str(out)), "00007.tar", 70, root, entries, {})


def test_a_file_that_changes_while_it_is_packed_is_left_out(root: Path, tmp_path: Path) -> None:
    given = task(root, tmp_path / "out", "run/a.mp4", "run/b.c.MP4", "walk/d.avi")
    path = root / "run" / "a.mp4"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (root / "walk" / "d.avi").unlink()
    packed = pack_shard(given)
    assert not isinstance(packed, CannotWrite)
    assert [(m.entry.status, m.start >= 0) for m in packed.members] == [
        ("unreadable", False),
        ("ok", True),
        ("unreadable", False),
    ]
    assert packed.members[0].entry.reason == "its content changed while it was being packed"
    assert packed.members[2].entry.reason == "it cannot be read (No such file or directory)"
    assert list(members(tmp_path / "out" / "00007.tar")) == ["00000071.mp4", "00000071.json"]


@pytest.mark.parametrize("spoil", ["content", "end"])
def test_a_shard_that_reads_back_otherwise_is_an_error(
    made: Path, tmp_path: Path, monkeypatch, spoil: str
) -> None:
    real = Folder.write

    @contextmanager
    def write(self, name):
        with real(self, name) as file:
            yield file
        path = self._folder / name
        data = path.read_bytes()
        path.write_bytes(data[:600] + (b"?" + data[601:] if spoil == "content" else b""))

    monkeypatch.setattr(Folder, "write", write)
    packed = pack_shard(task(made, tmp_path / "out", "run/a.mp4", "walk/e.mp4"))
    assert isinstance(packed, CannotWrite)
    assert "00007.tar: it reads back otherwise than it was written" in packed.reason


def test_what_is_finished_is_not_packed_again(root: Path, tmp_path: Path, done) -> None:
    out = tmp_path / "out"
    pack(root, out, shard_bytes=TWO)
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    code, text = pack(root, out, shard_bytes=TWO)
    assert code == 0
    assert "shards are packed already\n5 of 5 files lie in" in text
    assert contents(out) == before
    assert times == {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}


def stop_before_the_index(root: Path, out: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("vidssl.data_shard.parts.write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(root, out, shard_bytes=TWO)


def test_it_goes_on_where_a_kill_left_off(made: Path, done, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    stop_before_the_index(made, out, monkeypatch)
    assert (out / ".sharding" / "00001.jsonl").exists()
    (out / ".sharding" / "00000.jsonl").unlink()  # its tar was there, and not verified yet
    (out / "00000.tar").write_bytes(b"half")
    (out / ".00000.tar.99.tmp").write_bytes(b"half")
    (out / ".sharding" / ".00000.jsonl.99.tmp").write_bytes(b"half")
    packed = []
    real = pack_shard
    monkeypatch.setattr(shard, "pack_shard", lambda given: packed.append(given.name) or real(given))
    code, text = pack(made, out, shard_bytes=TWO)
    assert code == 0
    assert packed == ["00000.tar"]
    count = len(read_index(out / "index.jsonl").shards)
    assert f"; {count - 1} shards are packed already" in text
    assert contents(out) == contents(done[0])


def test_a_finished_shard_that_was_cut_since_is_packed_again(
    made: Path, done, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    stop_before_the_index(made, out, monkeypatch)
    os.truncate(out / "00001.tar", 100)
    (out / ".sharding" / "00000.jsonl").write_text('{"shard":"00000.tar"')
    pack(made, out, shard_bytes=TWO)
    assert contents(out) == contents(done[0])


def test_a_kill_between_index_and_tidying_is_mended(made: Path, done, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("vidssl.data_shard.parts.Parts._tidy", lambda self: None)
        pack(made, out, shard_bytes=TWO)
    assert (out / ".sharding" / "00000.jsonl").exists()
    assert "packed already" in pack(made, out, shard_bytes=TWO)[1]
    assert contents(out) == contents(done[0])


def test_another_plan_in_the_same_place_is_refused(root: Path, tmp_path: Path, monkeypatch) -> None:
    stop_before_the_index(root, tmp_path / "begun", monkeypatch)
    pack(root, tmp_path / "whole", shard_bytes=TWO)
    for out in (tmp_path / "begun", tmp_path / "whole"):
        before = contents(out)
        with pytest.raises(
            UsageError, match=rf"{out.name} has .*\(--shard-mb was {TWO / 10**6:g}\)\. Take another"
        ):
            pack(root, out)
        with pytest.raises(UsageError, match=r"\(--seed was 0\)"):
            pack(root, out, shard_bytes=TWO, seed=3)
        os.utime(root / "run" / "a.mp4", ns=(1, 1 + time.time_ns()))
        with pytest.raises(UsageError, match=r"\(files or labels were added, removed or changed since\)"):
            pack(root, out, shard_bytes=TWO)
        assert contents(out) == before
        os.utime(root / "run" / "a.mp4", ns=(1, (root / "walk" / "e.mp4").stat().st_mtime_ns))
        shutil.copystat(tmp_path / "videos" / "run" / "a.mp4", root / "run" / "a.mp4")
    shutil.rmtree(tmp_path / "whole" / ".sharding")
    with pytest.raises(UsageError, match="its files, or the settings of the call, are others now"):
        pack(root, tmp_path / "whole", shard_bytes=TWO, seed=3)


def test_a_full_disk_stops_the_work_and_keeps_what_is_finished(root: Path, tmp_path: Path) -> None:
    write_clip(root / "run" / "large.mp4", 20, height=128, noise=200, gop=1)
    large = (root / "run" / "large.mp4").stat().st_size
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (large // 2, hard))  # of each file, for want of a full disk
    try:
        with pytest.raises(
            UsageError, match=r"cannot write .*tar: File too large\. \d of \d shards are finished"
        ):
            pack(root, out, shard_bytes=TWO, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.rglob(".*.tmp"))
    assert not (out / "index.jsonl").exists()
    code, text = pack(root, out, shard_bytes=TWO)
    assert code == 0
    assert "6 of 6 files lie in" in text


def test_a_disk_that_may_fill_up_is_said_before(made: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "vidssl.data_shard.shard.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1)
    )
    assert "The disk may fill up: 1 bytes are free" in pack(made, tmp_path / "out")[1]


def killer(file: FileToExamine):
    if file.key == "run/a.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(file)


def test_a_file_that_takes_its_process_down_is_bad_and_no_other(
    made: Path, tmp_path: Path, monkeypatch, crew
) -> None:
    monkeypatch.setattr(shard, "examine", killer)
    code, text = pack(made, tmp_path / "out")
    assert code == 1
    assert "4 of 5 files lie in" in text
    assert "run/a.mp4: it could not be looked at: the process that had it ended (SIGKILL)" in text


def dying(given: ShardToPack):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_whose_process_dies_stops_the_work(made: Path, tmp_path: Path, monkeypatch, crew) -> None:
    monkeypatch.setattr(shard, "pack_shard", dying)
    with pytest.raises(
        UsageError, match=r"0000\d.tar could not be packed: the process .*SIGKILL.* same command"
    ):
        pack(made, tmp_path / "out")


def test_an_address_elsewhere_gets_the_same_shards(made: Path, done, tmp_path: Path) -> None:
    out = f"shelf://{tmp_path}/bucket/k400"
    code, text = pack(made, out, shard_bytes=TWO)
    assert code == 0, text
    assert "keeps no locks: take care that no second process packs into it" in text
    assert contents(tmp_path / "bucket" / "k400") == contents(done[0])
    assert f"source: {{type: tar_shards, root: {out}}}" in text
    assert "packed already" in pack(made, out, shard_bytes=TWO)[1]
    (tmp_path / "bucket" / "k400" / "index.jsonl").unlink()
    shutil.rmtree(tmp_path / "bucket" / "k400" / ".sharding")
    with pytest.raises(UsageError, match=r"holds files that are not of 'data shard', such as 00000\.tar"):
        pack(made, out, shard_bytes=TWO)


def test_a_full_folder_for_temporary_files_is_named(made: Path, tmp_path: Path, monkeypatch) -> None:
    @contextmanager
    def full(self, name):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(Remote, "write", full)
    packed = pack_shard(replace(task(made, tmp_path), out=Address(f"shelf://{tmp_path}/bucket")))
    assert isinstance(packed, CannotWrite)
    assert packed.reason.endswith(f"(in {tempfile.gettempdir()}; TMPDIR names another folder)")


def test_an_address_that_processes_do_not_share_is_refused(made: Path, crew) -> None:
    with pytest.raises(UsageError, match=r"1 shards that were written are not there, such as 00000\.tar"):
        pack(made / "run", "memory://nobody/sees", processes=1)


def test_places_of_no_use_are_refused(root: Path, tmp_path: Path) -> None:
    for out in (root, root / "shards", root.parent):
        with pytest.raises(UsageError, match="lie one in the other"):
            pack(root, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds files that are not of 'data shard', such as thesis"):
        pack(root, tmp_path / "full")
    (tmp_path / "busy").mkdir()
    with (
        sole_process(tmp_path / "busy", print),
        pytest.raises(UsageError, match=f"process {os.getpid()} .*is packing shards in this folder"),
    ):
        pack(root, tmp_path / "busy")
    (tmp_path / "shut").mkdir(mode=0o500)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make the folder"):
        pack(root, tmp_path / "file")


@pytest.mark.parametrize(
    "root",
    ["shards", "s3://a/b", "C: d", "a, b", "123", "null", "my shards", "a#b", "x}", "ü", "'q'", "a:", "1e3"],
)
def test_the_line_for_recipes_is_yaml(root: str) -> None:
    line = flow({"type": "tar_shards", "root": root})
    assert yaml.safe_load(line) == {"type": "tar_shards", "root": root}


def test_the_command_line(root: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert main(["data", "shard", str(root), "--out", out, "--shard-mb", "1", "--seed", "5"]) == 0
    assert "In recipes: source: {type: tar_shards, root: " in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / ".sharding" / "plan.json").read_text())
    assert (settings["seed"], settings["shard_bytes"], settings["images"]) == (5, 10**6, False)
    (root / "run" / "empty.mp4").touch()
    assert main(["data", "shard", str(root), "--out", f"{out}2"]) == 1
    for arguments, said in {
        (str(root), "--out", out, "--shard-mb", "0"): "--shard-mb must be at least 1, got 0",
        (str(root), "--out", out, "--processes", "0"): "--processes must be at least 1, got 0",
        ("a", "b", "--out", out): "data shard takes one folder, list or manifest, got a b",
        (str(root), "--out", "nosuch://a"): "no kind of address begins with nosuch://",
    }.items():
        assert main(["data", "shard", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_killed_commands_go_on_and_give_the_same(root: Path, tmp_path: Path) -> None:
    large = write_clip(root / "run" / "large.mp4", 20, height=128, noise=200, gop=1)
    assert large.stat().st_size > 100_000
    for number in range(60):
        shutil.copy(large, root / "run" / f"copy{number}.mp4")
    command = [
        sys.executable,
        "-m",
        "vidssl",
        "data",
        "shard",
        str(root),
        "--shard-mb",
        "1",
        "--processes",
        "2",
    ]
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run([*command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL, timeout=300)
    kills = 0
    for wanted in (1, 2, 3):
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while (
            process.poll() is None and time.monotonic() < deadline and len(list(out.glob("*.tar"))) < wanted
        ):
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert contents(out) == contents(whole)
    assert len(rows(out / "index.jsonl")) == 66
    assert re.fullmatch(r"\d{8}\.mp4", next(iter(members(out / "00001.tar"))))
