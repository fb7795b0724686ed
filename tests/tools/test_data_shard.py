"""``vidssl data shard``: each file once, where the index says, verified; originals untouched."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from data_clips import write_clip
from data_shards import (
    KEYS,
    TWO,
    content,
    contents,
    members,
    pack,
    pack_five,
    read_index,
    rows,
    write_five,
)
from PIL import Image

from vidssl.cli.main import main
from vidssl.config.strict_yaml import dump_flow, parse, plain
from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.sources.tar.storage import Address
from vidssl.engine.process import sole_process
from vidssl.errors import UsageError
from vidssl.tools.data.check import check_data
from vidssl.tools.data.pack import ShardToPack, pack_shard
from vidssl.tools.data.runner import CannotWrite


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_five(tmp_path_factory.mktemp("made"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "videos"))


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All five packed, and what was said."""
    return pack_five(made, tmp_path_factory.mktemp("done") / "shards")


CLASSES = {"class": ("run", "walk")}


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
    assert "Label 'class': 5 of 5 files have it, 2 classes: run (" in text


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


def test_originals_are_untouched_and_nothing_is_left_over(made: Path, done) -> None:
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*.*")) == KEYS
    shards = {f"0000{n}.tar" for n in range(len(read_index(done[0] / "index.jsonl").shards))}
    assert contents(done[0]).keys() == {"index.jsonl", ".sharding/plan.json", *shards}


def test_the_same_files_give_the_same_shards(made: Path, done, tmp_path: Path) -> None:
    pack(made, tmp_path / "out", shard_bytes=TWO, processes=1)
    assert contents(tmp_path / "out") == contents(done[0])


@pytest.mark.parametrize("way", ["open", "read_bytes"])
def test_a_file_that_cannot_be_read_for_a_moment_is_read_again(made, done, tmp_path, monkeypatch, way):
    struck: set[Path] = set()
    whole = getattr(Path, way)

    def but_once(path: Path, *given: object, **more: object) -> object:
        if made in path.parents and path not in struck:
            struck.add(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return whole(path, *given, **more)

    monkeypatch.setattr(Path, way, but_once)
    pack_five(made, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(done[0])
    assert len(struck) == 5


def test_bad_files_lie_in_no_tar_and_are_listed(root: Path, tmp_path: Path) -> None:
    (root / "run" / "empty.mp4").touch()
    (root / "walk" / "text.mp4").write_text("no video at all")
    code, text = pack(root, tmp_path / "out")
    assert code == 1
    assert "5 of 7 files lie in 1 shard, " in text
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
    check_data(root, processes=2)
    write_clip(root / "walk" / "e.mp4", 12)  # changed since: looked at again
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    real = examine.__globals__["probe"]
    monkeypatch.setitem(
        examine.__globals__, "probe", lambda p, limits: (decoded / p.name).touch() or real(p, limits)
    )
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
    real = Address.write

    @contextmanager
    def write(self, name):
        with real(self, name) as file:
            yield file
        path = self.local / name
        data = path.read_bytes()
        path.write_bytes(data[:600] + (b"?" + data[601:] if spoil == "content" else b""))

    monkeypatch.setattr(Address, "write", write)
    packed = pack_shard(task(made, tmp_path / "out", "run/a.mp4", "walk/e.mp4"))
    assert isinstance(packed, CannotWrite)
    assert "00007.tar: it reads back otherwise than it was written" in packed.reason


def test_an_address_elsewhere_gets_the_same_shards(made: Path, done, tmp_path: Path) -> None:
    out = f"shelf://{tmp_path}/bucket/k400"
    code, text = pack(made, out, shard_bytes=TWO)
    assert code == 0, text
    assert "keeps no locks: take care that no second process packs into it" in text
    assert contents(tmp_path / "bucket" / "k400") == contents(done[0])
    assert f'source: {{type: tar_shards, root: "{out}"}}' in text
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

    monkeypatch.setattr(Address, "write", full)
    packed = pack_shard(replace(task(made, tmp_path), out=Address(f"shelf://{tmp_path}/bucket")))
    assert isinstance(packed, CannotWrite)
    assert packed.reason.endswith(f"(in {tempfile.gettempdir()}; TMPDIR names another folder)")


def test_an_address_that_processes_do_not_share_is_refused(made: Path, crew) -> None:
    with pytest.raises(UsageError, match=r"written, but gone: 1 shard, such as 00000\.tar"):
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
    [
        "shards",
        "s3://a/b",
        "C: d",
        "a, b",
        "123",
        "null",
        "my shards",
        "a#b",
        "x}",
        "ü",
        "'q'",
        "a:",
        "1e3",
        "1e-5",
        ".inf",
        ".nan",
        "on",
        "True",
    ],
)
def test_the_line_for_recipes_is_yaml(root: str) -> None:
    line = dump_flow({"type": "tar_shards", "root": root})
    keys = {"type": "tar_shards", "root": root}
    assert yaml.safe_load(line) == plain(parse(line, lambda line: "here")) == keys


def test_the_command_line(root: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert main(["data", "shard", str(root), "--out", out, "--shard-mb", "1", "--seed", "5"]) == 0
    assert "In recipes: source: {type: tar_shards, root: " in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / ".sharding" / "plan.json").read_text())
    assert (settings["seed"], settings["shard_bytes"], settings["images"]) == (5, 10**6, False)
    (root / "run" / "empty.mp4").touch()
    assert main(["data", "shard", str(root), "--out", f"{out}2"]) == 1
    for arguments, said in {
        (
            str(root),
            "--out",
            out,
            "--shard-mb",
            "0",
        ): "expected a whole number of at least 1, got 0",
        (
            str(root),
            "--out",
            out,
            "--processes",
            "0",
        ): "expected a whole number of at least 1, got 0",
        ("a", "b", "--out", out): "data shard takes one folder, list or manifest, got a b",
        (str(root), "--out", "nosuch://a"): "no kind of address begins with nosuch://",
    }.items():
        assert main(["data", "shard", *arguments]) == 2
        assert said in capsys.readouterr().err
