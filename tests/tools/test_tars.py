"""Tars as a stream: names in them, samples by WebDataset's rule, and where they end."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from data_clips import write_clip
from data_shards import write_tar
from PIL import Image

from vidssl.data.sources.tar.storage import Address
from vidssl.tools.data.look import ShardToLookAt, look_at
from vidssl.tools.data.pack import DamagedTar, Onward, split_name, walk_tar


@pytest.mark.parametrize(
    ("name", "key", "ending"),
    [
        ("0001.mp4", "0001", "mp4"),
        ("a.b/c.d.e.MP4", "a.b/c", "d.e.mp4"),
        ("./train/0001.json", "train/0001", "json"),
        ("README", "README", ""),
        ("a/.hidden.mp4", "a/.hidden.mp4", ""),
        ("a/._x.mp4", "a/._x.mp4", ""),
        ("a.b/c", "a.b/c", ""),
        ("x.", "x", ""),
    ],
)
def test_names_are_parted_as_webdataset_has_it(name: str, key: str, ending: str) -> None:
    assert split_name(name) == (key, ending)


def test_a_stream_goes_onward_and_a_little_back() -> None:
    data = bytes(range(256)) * 20
    stream = Onward(BytesIO(data))
    assert stream.read(6) + stream.read(4) == data[:10]
    stream.seek(0)
    assert stream.read(3000) == data[:3000]
    assert stream.seek(2999) == 2999
    assert stream.read(2) == data[2999:3001]
    stream.seek(4000)
    assert stream.read(10) == data[4000:4010]
    stream.seek(3500)
    assert stream.read() == data[3500:]
    stream.seek(len(data) + 512)
    assert stream.read(1) == b""
    with pytest.raises(OSError, match="only forwards"):
        stream.seek(100)


def test_a_walk_through_a_stream_sees_the_end(tmp_path: Path) -> None:
    one, other = (write_clip(tmp_path / f"{n}.mp4", 5 + n).read_bytes() for n in range(2))
    data = write_tar(tmp_path / "0.tar", {"a.mp4": one, "b.mp4": other[:1024]}).read_bytes()
    assert [info.name for _, info in walk_tar(Onward(BytesIO(data)))] == ["a.mp4", "b.mp4"]
    with pytest.raises(DamagedTar, match="no header of a file where one should be"):
        list(walk_tar(Onward(BytesIO(data[:1024] + b"x" * 5000))))


def test_hostile_members_are_left_out_in_words_and_the_others_stay(tmp_path: Path) -> None:
    about = {"labels": {"class": 10**30, "other": ["x"]}, "segments": [[0, 1]], "key": "a\0b", "sha256": ""}
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    files: dict[str, bytes | None] = {f"{name}.png": picture.getvalue() for name in "abc"}
    files |= {"a.json": b"[" * 100_000, "b.json": json.dumps(about).encode(), "b.cls": b"9" * 5000}
    files |= {"c.json": b'{"labels": {"class": "walk"}}', "end.txt": b"x" * 512}
    content = write_tar(tmp_path / "0.tar", files).read_bytes().rstrip(b"\0")
    vast = tarfile.TarInfo("d.png")
    vast.size = 1 << 43
    (tmp_path / "0.tar").write_bytes(content + vast.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    seen = look_at(ShardToLookAt(Address(str(tmp_path)), "0.tar", tmp_path / "note"))
    found = {member.entry.key: member.entry for member in seen.shard.members}
    assert {key: entry.status for key, entry in found.items()} == {
        "a.png": "ok", "b.png": "ok", "c.png": "ok", "d.png": "unreadable",
    }  # fmt: skip
    assert [found[key].labels for key in ("b.png", "c.png")] == [{}, {"class": "walk"}]
    assert "above 1,000,000, taken for none" in seen.flaw
    assert "cut off" in found["d.png"].reason


def test_targets_are_numbers_of_any_kind_and_never_ids(tmp_path: Path) -> None:
    picture = BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    given = {"a": -3, "b": 2.5, "c": 5_000_000, "d": "abc"}
    files: dict[str, bytes | None] = {}
    for name, number in given.items():
        files |= {
            f"{name}.png": picture.getvalue(),
            f"{name}.json": json.dumps({"labels": {"target:x": number}}).encode(),
        }
    write_tar(tmp_path / "0.tar", files)
    seen = look_at(ShardToLookAt(Address(str(tmp_path)), "0.tar", tmp_path / "note"))
    found = [member.entry.labels.get("target:x") for member in seen.shard.members]
    assert found == ["-3", "2.5", "5000000", None]
