"""Lists as people have them: encodings, headers, names of classes, and segments of videos."""

import shutil
from pathlib import Path

import pytest
import torch
from data_clips import number_shown, write_clip
from data_shards import do_here
from rich.table import Table

from vidssl.cli.main import main
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.listing import select
from vidssl.data.sources.lists import read_lists
from vidssl.data.sources.manifest import Manifest
from vidssl.data.sources.official.videos import kinetics
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.video_files import VideoFolder, VideoList
from vidssl.data.views.uniform import UniformClips
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, printable
from vidssl.interfaces import DataSource, UnreadableSample


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 120 frames."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 120)


def test_sets_are_spelled_one_way_and_targets_are_numbers_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("path,what,target:speed\nv.mp4,run | jump,10\nw.mp4,jump|run|run,-2.5\nx.mp4,|,9e-1\n")
    (found,) = read_lists(path)
    assert found.label_classes == {"what": ("jump|run", "|"), "target:speed": ("-2.5", "9e-1", "10")}
    for cell, message in (("run|,1", "a.csv:2: the set 'run|' of 'what'"), ("run,inf", "cell is a number")):
        path.write_text(f"path,what,target:speed\nv.mp4,{cell}\n")
        with pytest.raises(UsageError, match=message.replace("|", "[|]")):
            read_lists(path)


@pytest.mark.parametrize(
    ("name", "content", "classes"),
    [
        ("a.txt", "v.mp4 0\n".encode("utf-16"), ("0",)),
        ("a.csv", "\ufeffpfad,class\nv.mp4,écrire\n".encode(), ("écrire",)),
        ("a.txt", b'"my videos/v.mp4" 0\n', ("0",)),
        ("a.txt", b'v.mp4 "playing guitar"\nw.mp4 "playing drums"\n', ("playing drums", "playing guitar")),
        ("a.csv", b'v.mp4, "catching, or throwing"\nw.mp4, walking\n', ("catching, or throwing", "walking")),
        ("a.txt", b"v.mp4 70\nw.mp4 007\nx.mp4 7\n", ("7", "70")),
    ],
)
def test_lists_are_read_as_people_have_them(
    tmp_path: Path, name: str, content: bytes, classes: tuple
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_lists(tmp_path / name)[0].label_classes == {"class": classes}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "v.mp4,écrire\n".encode("latin-1"),
            r"a.csv:1: it is not UTF-8 \(as Latin-1 it is 'v.mp4,écrire'",
        ),
        ("a.csv", "v.mp4,a\n跑/v.mp4,跑\n".encode("gbk"), r"a.csv:2: .* as GBK it is '跑/v.mp4,跑'\): save"),
        ("a.txt", b"\0\0\0\x1cftypisom\0\0\0\x01isommp41" + bytes(40) + b"\xff", "it is no text, so no list"),
        ("a.txt", "v.mp4 0\n".encode("utf-16-le"), "it is UTF-16 without a byte order mark"),
        ("a.txt", b"v.mp4 0\x00\x01", "it is no text"),
        (
            "a.csv",
            b"v.mp4,catching, or throwing\nw.mp4,walking\n",
            r'goes in quotes, "catching, or throwing"',
        ),
        ("a.txt", b"v.mp4 playing guitar\n", r"is 'playing guitar' one class name or 2 labels\? Put"),
        ("a.csv", b"v.mp4 playing guitar\n", r"is 'playing guitar' one class name or 2 labels\? Put"),
        ("a.csv", b"v.mp4,2000000000\nw.mp4,0\n", "class 2000000000. Numbers above 1,000,000 are IDs"),
        ("a.csv", b"path,class\nv.mp4,%s\n" % (b"x" * 200_000), "a.csv:2: field larger than field limit"),
        ("a.csv", b"path,start\nv.mp4,0\n", "a segment needs both columns, 'start' and 'end'"),
        ("a.csv", b"path,start,end\nv.mp4,3,2\n", r"a.csv:2: a segment needs .* got '3' and '2'"),
        (
            "a.csv",
            b"path,start,end\nv.mp4,0,1\nv.mp4,0,1.0\n",
            "v.mp4#t=0,1 is listed twice, first on line 2",
        ),
    ],
)
def test_others_are_refused_by_name_of_what_they_are(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_lists(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("b,x\na.xyz,y\n", ["b", "a.xyz"]),  # the first row names a file
        ("gone.xyz,x\na.xyz,y\n", ["gone.xyz", "a.xyz"]),  # it looks like the second, which does
        ("gone,5\na.xyz,6\n", ["gone", "a.xyz"]),  # no column is called 5
        ("file,class\na.xyz,x\n", ["a.xyz"]),
        ("sub\\b,0\na.xyz,1\n", ["sub/b", "a.xyz"]),
    ],
)
def test_a_header_is_told_from_files_by_looking(tmp_path: Path, text: str, keys: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.xyz", "b", "sub/b"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text(text)
    (found,) = read_lists(tmp_path / "list.csv")
    assert [file.path for file in found.files] == keys
    assert list(found.label_classes) == ["class"]


def test_a_text_list_names_files_of_any_ending(tmp_path: Path) -> None:
    (tmp_path / "a b.xyz").touch()
    (tmp_path / "list.txt").write_text("a b.xyz 3\n")
    (found,) = read_lists(tmp_path / "list.txt")
    assert (found.files[0].path, found.label_classes) == ("a b.xyz", {"class": ("3",)})


def test_folders_called_train_and_val_are_no_classes(tmp_path: Path, capsys) -> None:
    for name in ("train/run/a.mp4", "val/run/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=rf"folders train, val are parts.*'root: {tmp_path}/train' to learn"):
        VideoFolder(root=str(tmp_path))
    assert main(["data", "check", str(tmp_path)]) == 2
    assert f"'root: {tmp_path}/val' to test on" in capsys.readouterr().err


SEGMENTS = "path,start,end,class\na/v.mp4,1,2,run\na/v.mp4,2.5,9,walk\na/w.mp4,0,1,walk\n"
KEYS = ["a/v.mp4#t=1,2", "a/v.mp4#t=2.5,9", "a/w.mp4#t=0,1"]


@pytest.fixture
def here(tmp_path: Path, clip: Path, monkeypatch) -> Path:
    """Two videos, and a list of three segments of theirs."""
    (tmp_path / "videos/a").mkdir(parents=True)
    for name in "vw":
        shutil.copy(clip, tmp_path / f"videos/a/{name}.mp4")
    (tmp_path / "list.csv").write_text(SEGMENTS)
    monkeypatch.chdir(tmp_path)
    do_here(monkeypatch)
    return tmp_path


def check_segments(source: DataSource) -> None:
    assert [source.key(number) for number in range(3)] == KEYS
    named = [source.label_classes["class"][source.labels(number)["class"]] for number in range(3)]
    assert named == ["run", "walk", "walk"]
    infos = [source.info(number) for number in range(3)]
    assert [info.key for info in infos] == KEYS
    assert [info.num_frames for info in infos] == [30, 45, 30]  # the second ends with its file
    assert [number_shown(frame) for frame in source.read(1, [0, 44, 3])] == [75, 119, 78]


def test_segments_are_samples_of_their_own(here: Path) -> None:
    source = VideoList(root="videos", list="list.csv")
    check_segments(source)
    views = UniformClips(num_clips=1, num_frames=4, frame_stride=8, size=48)
    (clip,) = views.sample(source, 0, torch.Generator())["clip"]
    whole = VideoFolder(root="videos").read(0, [30, 38, 46, 54])
    assert torch.equal(clip, whole[..., 40:88].transpose(0, 1))


def test_segments_stay_through_check_prepare_and_shard(here: Path) -> None:
    for words in (
        ("check", "list.csv", "--root", "videos"),
        ("prepare", "list.manifest.jsonl", "--out", "jpegs", "--jpeg-shards"),
        ("prepare", "list.csv", "--root", "videos", "--out", "small"),
        ("shard", "list.manifest.jsonl", "--out", "tars"),
    ):
        assert main(["data", *words, "--processes", "1"]) == 0, words
    assert len(Manifest(Path("list.manifest.jsonl"))) == 2  # each file once
    assert [part[:2] for part in Manifest(Path("small.manifest.jsonl")).entry("a/v.mp4").segments] == [
        (1.0, 2.0),
        (2.5, 9.0),
    ]
    check_segments(VideoList(root="videos", list="list.csv", manifest="list.manifest.jsonl"))
    check_segments(VideoList(root="small", list="list.csv", manifest="small.manifest.jsonl"))
    for source in (JpegShards(root="jpegs"), JpegShards(root="jpegs", list="list.csv")):
        check_segments(source)
    by_tars = {
        source.key(n): source.info(n).num_frames for source in (TarShards(root="tars"),) for n in range(3)
    }
    assert by_tars == dict(zip(KEYS, [30, 45, 30], strict=True))
    shutil.move("tars/index.jsonl", "first.jsonl")  # what lies in the tars says it all
    assert main(["data", "index", "tars", "--processes", "1"]) == 0
    again = TarShards(root="tars", list="list.csv")
    number = [again.key(n) for n in range(3)].index(KEYS[1])
    assert [number_shown(frame) for frame in again.read(number, [0, 44])] == [75, 119]
    assert len(TarShards(root="tars")) == 3


def test_parts_keep_segments_of_a_file_together_and_refuse_frames_in_both(here: Path) -> None:
    rows = "".join(f"{name}.mp4,{at},{at + 1}\n" for name in "abcdefgh" for at in range(4))
    Path("many.csv").write_text("path,start,end\n" + rows)
    (whole,) = read_lists(Path("many.csv"))
    train, test = (
        {file.path for file in select(whole, part=part, test_share=0.5, limit=None, where="").files}
        for part in ("train", "test")
    )
    assert train
    assert test
    assert not train & test
    Path("test.csv").write_text("path,start,end,class\na/v.mp4,1.5,3,run\n")
    with pytest.raises(UsageError, match=r"a/v.mp4#t=1.5,3 is in list.csv too"):
        VideoList(root="videos", list="list.csv", test_list="test.csv")
    Path("test.csv").write_text("path,start,end,class\na/w.mp4,1,3,run\n")
    assert len(VideoList(root="videos", list="list.csv", test_list="test.csv", part="test")) == 1


def test_a_segment_behind_the_end_is_unreadable(here: Path, capsys) -> None:
    Path("list.csv").write_text("path,start,end\na/v.mp4,7,8\n")
    with pytest.raises(UnreadableSample, match=r"it lasts 4.0 s, and its segment begins at 7 s"):
        VideoList(root="videos", list="list.csv").info(0)
    Path("list.csv").write_text("path,start,end,class\na/v.mp4,7,8,run\na/v.mp4,0,2,run\na/w.mp4,0,2,walk\n")
    assert main(["data", "check", "list.csv", "--root", "videos", "--processes", "1"]) == 1
    out = capsys.readouterr().out
    assert "Label 'class': 2 classes: run (2), walk (1)" in out
    assert "Segments: 3 of 2 files" in out
    assert "  a/v.mp4#t=7,8: it lasts 4.0 s, and its segment begins at 7 s" in out
    assert len(VideoList(root="videos", list="list.csv", manifest="list.manifest.jsonl")) == 2


def test_kinetics_obeys_times_where_a_file_is_longer(here: Path) -> None:
    Path("k.csv").write_text("label,youtube_id,time_start,time_end,split\nx,v,1,2,train\nx,w,30,34,train\n")
    source = kinetics(root="videos", list="k.csv")
    assert source.info(0).num_frames == 30
    assert number_shown(source.read(0, [0])[0]) == 30
    assert source.info(1).num_frames == 120  # as long as its segment: it was cut to it
    Path("k.csv").write_text("label,youtube_id,time_start,time_end,split\nx,v,1,5,train\nx,v,30,34,train\n")
    with pytest.raises(UnreadableSample, match=r"one of the segments that are listed of it, but which"):
        kinetics(root="videos", list="k.csv").info(0)


def test_a_name_that_is_not_utf_8_works_everywhere(tmp_path: Path, clip: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v/a").mkdir(parents=True)
    shutil.copy(clip, "v/a/1.mp4")
    shutil.copy(clip, b"v/a/caf\xe9.mp4")
    for words in (
        ("check", "v"),
        ("prepare", "v", "--out", "j", "--jpeg-shards"),
        ("shard", "v", "--out", "t"),
    ):
        assert main(["data", *words, "--processes", "1"]) == 0
    assert "2 usable videos found of 2 listed" in capsys.readouterr().out
    for source in (
        VideoFolder(root="v", manifest="v.manifest.jsonl"),
        JpegShards(root="j"),
        TarShards(root="t"),
    ):
        number = [source.key(n) for n in range(2)].index(r"a/caf\xe9.mp4")
        assert number_shown(source.read(number, [9])[0]) == 9
    assert len(VideoFolder(root="v", part="train")) == 1


def test_text_from_outside_is_printable() -> None:
    for text, shown in (
        ("a\x1b[31m\x07", r"a\x1b[31m\x07"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\u202egpj.exe\x9b", r"\u202egpj.exe\x9b"),
        ("跑 é\t\n", "跑 é\t\n"),
    ):
        assert printable(text) == shown
    assert printable("a\nb\t", one_line=True) == r"a\nb\t"


def test_names_do_not_steer_the_terminal(tmp_path: Path, clip: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    name = "v/[red]\x1b[2J/a\nb\x07.mp4"
    Path(name).parent.mkdir(parents=True)
    shutil.copy(clip, name)
    Path("v/[red]\x1b[2J/no\nne\x9b.mp4").touch()
    assert main(["data", "check", "v", "--processes", "1"]) == 1
    assert main(["data", "prepare", "v", "--out", "p", "--processes", "1"]) == 1
    assert main(["data", "shard", "v", "--out", "t", "--processes", "1"]) == 1
    assert main(["data", "check", "v/[red]\x1b[2J/no\nne\x9b.mp4"]) == 2
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & {*out, *err}
    assert r"[red]\x1b[2J/no\nne\x9b.mp4: unreadable" in out
    source = VideoFolder(root="v")
    assert source.label_classes == {"class": (r"[red]\x1b[2J",)}
    assert source.key(0) == r"[red]\x1b[2J/a\nb\x07.mp4"
    assert source.info(0).num_frames == 120
    console = terminal()
    table = Table(title="[b]x[/b]")
    table.add_row("[red]\x1b[0m:smile:")
    console.print(table)
    shown = capsys.readouterr().out
    assert "[b]x[/b]" in shown
    assert r"[red]\x1b[0m:smile:" in shown
