"""What is easily got wrong with data: each mistake is told in a sentence that names the way out."""

import shutil
from pathlib import Path

import pytest
from data_clips import write_clip
from PIL import Image

from vidssl.cli.main import main
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.video_files import VideoFolder, VideoList
from vidssl.errors import UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos, tar shards and JPEG shards made of it, its manifest, a folder of images."""
    root = tmp_path_factory.mktemp("made")
    for name, num_frames in (("run/a", 9), ("walk/b", 12)):
        (root / "videos" / name).parent.mkdir(parents=True)
        write_clip(root / "videos" / f"{name}.mp4", num_frames)
    (root / "images").mkdir()
    Image.new("RGB", (8, 8)).save(root / "images" / "a.jpg")
    (root / "list.csv").write_text("run/a.mp4,0\nwalk/b.mp4,1\n")
    for words in (
        ("shard", f"{root}/videos", "--out", f"{root}/tars", "--processes", "1"),
        ("prepare", f"{root}/videos", "--out", f"{root}/jpegs", "--jpeg-shards", "--processes", "1"),
        ("check", f"{root}/videos", "--processes", "1"),
    ):
        assert main(["data", *words]) == 0
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy to work in."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "lsit.csv", "--root", "videos"), "lsit.csv: no such folder or list (paths are"),
        (("shard", "lsit.csv", "--root", "videos", "--out", "x"), "no such folder, list or manifest"),
        (("prepare", "lsit.csv", "--root", "videos", "--out", "x"), "no such folder, list or manifest"),
        (("shard", "videos/run/a.mp4", "--out", "x"), "no text, so no list; of files themselves"),
        (("shard", "list.csv", "--out", "x"), "or say with --root which folder the paths of a list are"),
        (("prepare", "list.csv", "--out", "x"), "or say with --root which folder the paths of a list are"),
        (("check", "videos.manifest.jsonl"), "no list but what 'vidssl data' wrote. Give"),
        (("shard", "images", "--out", "x"), "holds a.jpg: images are read by 'image_folder'"),
        (("check", "tars"), "It holds 00000.tar: tar shards are read by 'tar_shards'"),
        (("shard", "videos", "--images", "--out", "x"), "videos are read by 'video_folder'"),
    ],
)
def test_commands_say_the_way_out(words: tuple[str, ...], said: str, here: Path, capsys) -> None:
    assert main(["data", *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_sources_say_the_way_out(here: Path) -> None:
    for make, said in (
        (lambda: TarShards(root="tars/00000.tar"), "tars/00000.tar is a file; give the folder"),
        (lambda: TarShards(root="jpegs"), "index of tar shards but of vidssl JPEG shards; make"),
        (lambda: JpegShards(root="tars"), "it is no index of JPEG shards but of vidssl tar shards"),
        (lambda: JpegShards(root="jpegs/00000.jpegs"), "writes it into the folder 'root'"),
        (lambda: VideoFolder(root="jpegs"), "00000.jpegs: JPEG shards are read by 'jpeg_shards'"),
        (lambda: VideoList(root="videos", list="videos.manifest.jsonl"), "by the key 'manifest'"),
    ):
        with pytest.raises(UsageError) as caught:
            make()
        assert said in str(caught.value)


def test_a_list_without_two_files_of_a_class_is_scanned(here: Path, capsys) -> None:
    assert main(["data", "check", "list.csv", "--root", "videos", "--processes", "1"]) == 0
    assert "2 usable videos found of 2 listed" in capsys.readouterr().out
