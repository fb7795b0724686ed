"""The source ``jpeg_shards``, and what else than folders is prepared."""

from io import StringIO
from pathlib import Path

import pytest
from data_prepared import numbers, run, write_three
from rich.console import Console

from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.manifest import Manifest
from vidssl.data.sources.origins import Overlap, shared_videos, videos_of
from vidssl.data.sources.video_files import VideoList
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample
from vidssl.tools.data import prepare
from vidssl.tools.data.check import check_data
from vidssl.tools.data.encode import Jpegs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_three(tmp_path / "videos")


def test_shards_leave_out_what_was_skipped(root: Path, tmp_path: Path, caplog) -> None:
    (root / "run" / "empty.mp4").touch()
    assert run(root, tmp_path / "out", Jpegs(short_side=24))[0] == 1
    source = JpegShards(root=str(tmp_path / "out"))
    assert len(source) == 3
    assert (
        "1 of 4 videos are left out: they could not be prepared (most of all: the file is empty"
        in caplog.text
    )


def test_shards_roll_over(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 1)
    run(root, tmp_path / "out", Jpegs(short_side=24))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.jpegs")) == [
        "00000.jpegs",
        "00001.jpegs",
        "00002.jpegs",
    ]
    source = JpegShards(root=str(tmp_path / "out"))
    assert [numbers(source.read(index, [9, 1]), index == 1) for index in range(3)] == [[9, 1]] * 3


def test_damaged_shards_are_unreadable_samples(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", Jpegs(short_side=24))
    source = JpegShards(root=str(tmp_path / "out"))
    shard = tmp_path / "out" / "00000.jpegs"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 3])
    bad = []
    for index in range(3):
        try:
            source.read(index, [0, 9])
        except UnreadableSample as error:
            bad.append(error.reason)
    assert bad
    assert set(bad) == {"00000.jpegs: its shard ends early"}
    shard.write_bytes(content[:2000] + bytes(len(content) - 2000))
    with pytest.raises(UnreadableSample, match="damaged"):
        [source.read(index, [9]) for index in range(3)]
    shard.unlink()
    with pytest.raises(UnreadableSample, match="cannot be read"):
        JpegShards(root=str(tmp_path / "out")).read(0, [0])


def test_lists_and_manifests_are_read_too(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,kind,speed\nwalk/c.avi,slow,3\nrun/a.mp4,fast,7\nrun/gone.mp4,fast,7\n")
    code, text = run(listed, tmp_path / "out", root=root)
    assert code == 1
    assert "run/gone.mp4: the file does not exist" in text
    source = VideoList(root=str(tmp_path / "out"), list=str(listed))
    assert len(source) == 3
    assert Manifest(tmp_path / "out.manifest.jsonl").entry("walk/c.avi").labels == {
        "kind": "slow",
        "speed": "3",
    }
    (root / "run" / "b.mp4").write_bytes(b"")
    check_data(root, processes=1, out=tmp_path / "m.jsonl", console=Console(file=StringIO()))
    code, text = run(tmp_path / "m.jsonl", tmp_path / "shards", Jpegs(short_side=24))
    assert code == 1
    assert "1 is bad by the manifest" in text
    assert "run/b.mp4: unreadable: the file is empty" in text
    split = tmp_path / "test.csv"
    split.write_text("walk/c.avi,1\n")
    first = tmp_path / "train.csv"
    first.write_text("run/a.mp4,4\n")
    shards = JpegShards(root=str(tmp_path / "shards"), list=str(first), test_list=str(split), part="test")
    assert (shards.key(0), shards.labels(0), len(shards)) == ("walk/c.avi", {"class": 0}, 1)
    assert shards.label_classes == {"class": ("1", "4")}
    originals = videos_of(VideoList(root=str(root), list=str(split)))
    assert shared_videos(originals, videos_of(shards)) == Overlap(("walk/c.avi",), 1, 0)
    with pytest.raises(UsageError, match=r"1 of the 3 videos of .* are not in it, such as run/gone.mp4"):
        JpegShards(root=str(tmp_path / "shards"), list=str(listed))
