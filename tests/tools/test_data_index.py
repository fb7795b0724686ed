"""``vidssl data index``: shards that others made, each sample where it lies, whatever is wrong with a tar."""

import gzip
import json
import os
import shutil
import signal
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from data_clips import write_clip
from data_shards import content, look, pack, read_index, rows, write_tar
from PIL import Image

from vidssl.cli.main import main
from vidssl.data.decode import examine
from vidssl.data.decode.examine import examine_content
from vidssl.data.sources.tar.storage import Address
from vidssl.errors import UsageError
from vidssl.tools.data import index, look as looking
from vidssl.tools.data.index import Seen
from vidssl.tools.data.look import SeenShard, ShardToLookAt, look_at


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Four videos of 5 to 8 frames."""
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{n}.mp4", 5 + n).read_bytes() for n in range(4)]


def picture(colour: int) -> bytes:
    data = BytesIO()
    Image.new("RGB", (40, 30), (colour, 99, 199)).save(data, "JPEG")
    return data.getvalue()


def test_every_video_is_found_with_its_label(clips: list[bytes], tmp_path: Path) -> None:
    """Whatever lies before what; keys are names in the tar."""
    files = {
        "./train": None,
        "./train/a.cls": b"1\n",
        "./train/a.mp4": clips[0],
        "./train/b.mp4": clips[1],
        "./train/b.txt": b"a caption",
        "./train/b.left.mp4": clips[2],
        "./train/._b.mp4": b"what a Mac leaves",
        "./train/c.AVI": clips[3],
        "./train/gone.json": b'{"status": "failed to download"}',
        "./train/b.cls": b"007",
        "./train/c.json": b'{"key": "000012", "labels": {"class": "run", "who": 3}}',
    }
    write_tar(tmp_path / "s" / "x" / "00000.tar", files)
    code, text = look(tmp_path / "s")
    assert code == 0, text
    found = rows(tmp_path / "s" / "index.jsonl")
    assert {row["key"]: row["labels"] for row in found} == {
        "train/a.mp4": {"class": "1"},
        "train/b.mp4": {"class": "7"},
        "train/b.left.mp4": {"class": "7"},
        "train/c.AVI": {"class": "run", "who": "3"},
    }
    assert [content(tmp_path / "s", row) for row in found] == clips
    assert [row["frames"] for row in found] == [5, 6, 7, 8]
    assert {(row["shard"], row["status"]) for row in found} == {("x/00000.tar", "ok")}
    assert "Samples without video or image, left out: 1" in text
    assert "Label 'who': 1 of 4 files has it, 1 class: 3 (1)" in text
    assert text.endswith(f"In recipes: source: {{type: tar_shards, root: {tmp_path}/s}}\n")
    assert not list((tmp_path / "s").glob("*.part"))


def test_classes_are_numbered_as_cls_states(clips: list[bytes], tmp_path: Path) -> None:
    numbers = {f"{n}.cls": str(n).encode() for n in (0, 2)}
    write_tar(tmp_path / "a" / "0.tar", {"0.mp4": clips[0], "2.mp4": clips[1], **numbers})
    look(tmp_path / "a")
    assert read_index(tmp_path / "a" / "index.jsonl").label_classes == {"class": ("0", "2")}
    names = {
        f"{n}.json": json.dumps({"labels": {"class": name}}).encode() for n, name in ((0, "walk"), (2, "run"))
    }
    write_tar(tmp_path / "b" / "0.tar", {"0.mp4": clips[0], "2.mp4": clips[1], **numbers, **names})
    look(tmp_path / "b")
    both = read_index(tmp_path / "b" / "index.jsonl")
    assert both.label_classes == {"class": ("walk", "run")}
    assert both.labels["class"].tolist() == [0, 1]
    numbers["2.cls"] = b"0"  # two names of one number
    write_tar(tmp_path / "c" / "0.tar", {"0.mp4": clips[0], "2.mp4": clips[1], **numbers, **names})
    look(tmp_path / "c")
    assert read_index(tmp_path / "c" / "index.jsonl").label_classes == {"class": ("run", "walk")}


def test_one_class_that_is_none_spoils_no_label(clips: list[bytes], tmp_path: Path) -> None:
    wrong = {"b": "-1", "c": "2000000000", "d": "9" * 5000}
    files = {f"{name}.cls": text.encode() for name, text in {"a": "5", **wrong}.items()}
    files |= {f"{name}.mp4": clip for name, clip in zip("abcd", clips, strict=True)}
    write_tar(tmp_path / "0.tar", files)
    code, text = look(tmp_path)
    assert code == 1
    assert "0.tar: 2 classes below 0 or above 1,000,000, taken for none: -1, 2000000000 (4 samples in" in text
    found = {row["key"]: row["labels"] for row in rows(tmp_path / "index.jsonl")}
    assert found == {"a.mp4": {"class": "5"}, "b.mp4": {}, "c.mp4": {}, "d.mp4": {"class": "9" * 5000}}


def test_images_are_samples_where_no_videos_are(clips: list[bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "a" / "0.tar", {"1.jpg": picture(1), "1.cls": b"4", "2.png": b"no picture"})
    code, text = look(tmp_path / "a")
    assert (code, "2.png: " in text) == (1, True)
    found = rows(tmp_path / "a" / "index.jsonl")
    kept = ("container", "codec", "frames", "fps", "height", "width")
    assert [found[0][name] for name in kept] == ["image", "jpeg", 1, 0.0, 30, 40]
    assert content(tmp_path / "a", found[0]) == picture(1)
    assert found[1]["start"] == -1
    thumbnails = {"1.jpg": picture(1), "1.mp4": clips[0], "2.jpg": picture(2), "2.json": b"{}"}
    write_tar(tmp_path / "b" / "0.tar", thumbnails)
    write_tar(tmp_path / "b" / "1.tar", {"3.jpg": picture(3)})
    code, text = look(tmp_path / "b")
    assert code == 0
    assert [row["key"] for row in rows(tmp_path / "b" / "index.jsonl")] == ["1.mp4"]
    assert "Samples without video or image, left out: 2" in text


def test_keys_that_come_in_several_shards_get_the_shards_name(clips: list[bytes], tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"part{n}.tar", {"0.mp4": clips[n], "1.mp4": clips[n + 2]})
    write_tar(tmp_path / "part2.tar", {"7.mp4": clips[0]})
    look(tmp_path)
    assert [row["key"] for row in rows(tmp_path / "index.jsonl")] == [
        *("part0/0.mp4", "part0/1.mp4", "part1/0.mp4", "part1/1.mp4", "part2/7.mp4")
    ]


def test_of_two_files_of_a_name_the_later_one_counts(clips: list[bytes], tmp_path: Path) -> None:
    for number in (1, 2):
        with tarfile.open(tmp_path / "0.tar", "a") as tar:
            info = tarfile.TarInfo("x.mp4")
            info.size = len(clips[number])
            tar.addfile(info, BytesIO(clips[number]))
    assert look(tmp_path)[0] == 0
    (row,) = rows(tmp_path / "index.jsonl")
    assert content(tmp_path, row) == clips[2]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_form_of_tar(clips: list[bytes], tmp_path: Path, form: int) -> None:
    name = "/".join(["d" * 60] * (2 if form == tarfile.USTAR_FORMAT else 6)) + "/ü.mp4"
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(clips[0])
        tar.addfile(info, BytesIO(clips[0]))
    assert look(tmp_path)[0] == 0
    (row,) = rows(tmp_path / "index.jsonl")
    assert (row["key"], content(tmp_path, row)) == (name, clips[0])


def test_bad_files_and_links_are_listed_by_name(clips: list[bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.mp4": clips[0], "b.mp4": b"", "c.mp4": b"no video"})
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        link = tarfile.TarInfo("d.mp4")
        link.type, link.linkname = tarfile.LNKTYPE, "a.mp4"
        tar.addfile(link)
    code, text = look(tmp_path)
    assert code == 1
    assert (
        "Bad, in no shard: 3\n  b.mp4: the file is empty (0 bytes)\n  c.mp4: a text file, not a video" in text
    )
    assert "d.mp4: it is a link, or no regular file, inside its tar" in text
    assert [row["start"] for row in rows(tmp_path / "index.jsonl")] == [512, -1, -1, -1]


@pytest.mark.parametrize("where", ["content", "header", "rubbish", "no end", "empty", "text"])
def test_a_damaged_tar_is_used_as_far_as_it_goes(clips: list[bytes], tmp_path: Path, where: str) -> None:
    path = write_tar(tmp_path / "1.tar", {"b.mp4": clips[1], "c.mp4": clips[2]})
    write_tar(tmp_path / "0.tar", {"a.mp4": clips[0]})
    whole = path.read_bytes()
    second = 1024 + len(clips[1]) // 512 * 512  # where the header of the second file begins
    path.write_bytes(
        {
            "content": whole[: second + 700],
            "header": whole[: second + 100],
            "rubbish": whole[:second] + bytes(range(256)) * 8,
            "no end": whole[: second + 512 + len(clips[2]) + -len(clips[2]) % 512],
            "empty": b"",
            "text": b"<html>404</html>" * 100,
        }[where]
    )
    code, text = look(tmp_path)
    found = {row["key"]: row for row in rows(tmp_path / "index.jsonl")}
    good = {key for key, row in found.items() if row["start"] >= 0}
    if where == "no end":  # as tars are that were joined, or made by simple programs
        assert (code, good) == (0, {"a.mp4", "b.mp4", "c.mp4"})
        return
    assert code == 1
    assert "Flaws: 1\n  1.tar: damaged" in text
    assert good == ({"a.mp4"} if where in ("empty", "text") else {"a.mp4", "b.mp4"})
    assert ("c.mp4: it is cut off with its tar" in text) == (where == "content")


def test_compressed_shards_are_refused_with_the_way_out(clips: list[bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", {"a.mp4": clips[0]})
    packed = tmp_path / "1.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(
        UsageError, match=r"compressed, 1 shard such as 1\.tar\.gz.*unpack them to plain \.tar"
    ):
        look(tmp_path)
    packed.rename(tmp_path / "1.tar")  # by its name it is none
    code, text = look(tmp_path)
    assert (code, "1.tar: compressed with gzip: unpack it to a plain .tar" in text) == (1, True)


def test_places_without_shards_are_refused(clips: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no \.tar in it"):
        look(tmp_path)
    with pytest.raises(UsageError, match="gone: no such folder"):
        look(tmp_path / "gone")
    with pytest.raises(UsageError, match="is a file"):
        look(write_tar(tmp_path / "0.tar", {"a.mp4": clips[0]}))
    with pytest.raises(UsageError, match="say with --out where its index goes"):
        look(f"shelf://{tmp_path}")


def test_an_address_elsewhere_is_read_as_a_stream(clips: list[bytes], tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s" / "0.tar", {"a.txt": b"x" * 5000, "a.mp4": clips[0], "b.mp4": clips[1], "b.cls": b"2"}
    )
    out = tmp_path / "here.jsonl"
    code, text = look(f"shelf://{tmp_path}/s", out=out)
    assert code == 0, text
    assert text.endswith(f'source: {{type: tar_shards, root: "shelf://{tmp_path}/s", index: {out}}}\n')
    assert [content(tmp_path / "s", row) for row in rows(out)] == clips[:2]
    look(tmp_path / "s")
    assert out.read_bytes() == (tmp_path / "s" / "index.jsonl").read_bytes()


def test_shards_of_ours_give_the_same_index(tmp_path: Path) -> None:
    for n, key in enumerate(("b/0.mp4", "a/x.y.MP4", "b/ü 2.mp4")):
        write_clip(tmp_path / "v" / key, 5 + n)
    (tmp_path / "v" / "list.csv").write_text("path,class,who\nb/0.mp4,5,x\na/x.y.MP4,3,y\nb/ü 2.mp4,5,y\n")
    pack(tmp_path / "v" / "list.csv", tmp_path / "s", shard_bytes=7000)
    with pytest.raises(UsageError, match="was written by 'data shard'"):
        look(tmp_path / "s")
    look(tmp_path / "s", out=tmp_path / "again.jsonl")
    one, other = rows(tmp_path / "s" / "index.jsonl"), rows(tmp_path / "again.jsonl")
    assert [{**row, "mtime_ns": 0} for row in one] == other
    (tmp_path / "s" / "index.jsonl").unlink()
    look(tmp_path / "s")
    assert rows(tmp_path / "s" / "index.jsonl") == other


@pytest.fixture
def three(clips: list[bytes], tmp_path: Path) -> Path:
    for n in range(3):
        write_tar(tmp_path / "s" / f"{n}.tar", {f"{n}.mp4": clips[n], f"{n}.cls": str(n).encode()})
    return tmp_path / "s"


def test_it_goes_on_where_a_kill_left_off(three: Path, clips: list[bytes], monkeypatch) -> None:
    look(three)
    whole = (three / "index.jsonl").read_bytes()
    (three / "index.jsonl").unlink()
    looked: list[str] = []

    def stop(task: ShardToLookAt):
        if task.name == "2.tar" and looked.append("stopped") is None:
            raise KeyboardInterrupt
        return look_at(task)

    with monkeypatch.context() as patch:
        patch.setattr(index, "look_at", stop)
        with pytest.raises(KeyboardInterrupt):
            look(three)
    part = three / "index.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"address": "half a li')
    write_tar(three / "1.tar", {"1.mp4": clips[1], "1.cls": b"1"})  # written anew: looked at again
    looked.clear()
    monkeypatch.setattr(index, "look_at", lambda task: looked.append(task.name) or look_at(task))
    code, text = look(three)
    assert (code, looked) == (0, ["1.tar", "2.tar"])
    assert "2 shards at" in text
    assert "1 are looked through already" in text
    assert (three / "index.jsonl").read_bytes() == whole
    assert not part.exists()


def test_what_is_known_of_other_shards_is_not_taken_over(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.jsonl"
    look(three, out=out)
    seen = look_at(ShardToLookAt(Address(str(three)), "0.tar", tmp_path / "note"))
    assert isinstance(seen, SeenShard)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy2(three / "0.tar", other / "0.tar")  # as far as size and time tell, the same
    known = Seen(out.with_name("i.jsonl.part"), Address(str(three)))
    known.add(seen)
    assert known.has("0.tar")
    assert not Seen(out.with_name("i.jsonl.part"), Address(str(other))).has("0.tar")
    assert not known.has("1.tar")


def test_a_shard_that_cannot_be_read_keeps_the_others(three: Path, monkeypatch) -> None:
    def fail(task: ShardToLookAt):
        if task.name == "1.tar":
            (three / "1.tar").rename(three / "1.away")
        return look_at(task)

    with monkeypatch.context() as patch:
        patch.setattr(index, "look_at", fail)
        with pytest.raises(
            UsageError, match=r"1\.tar: No such file or directory\. 1 of 3 shards could not be read"
        ):
            look(three)
    assert not (three / "index.jsonl").exists()
    (three / "1.away").rename(three / "1.tar")
    code, text = look(three)
    assert code == 0
    assert "1 shard at" in text
    assert len(rows(three / "index.jsonl")) == 3


def test_a_connection_that_breaks_is_tried_again(three: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(looking, "PAUSES_SECONDS", (0.0, 0.0))
    failures = [1, 1]
    real = looking._look

    def break_twice(task: ShardToLookAt):
        if failures:
            failures.pop()
            raise OSError(5, "the connection broke")
        return real(task)

    monkeypatch.setattr(looking, "_look", break_twice)
    assert look(f"shelf://{three}", out=tmp_path / "i.jsonl")[0] == 0
    failures.extend([1] * 9)
    with pytest.raises(UsageError, match=r"the connection broke\. 3 of 3 shards could not be read"):
        look(f"shelf://{three}", out=tmp_path / "j.jsonl")


def killer(given):
    if given.name == "b.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return examine_content(given)


def test_a_file_that_takes_its_process_down_is_bad_and_no_other(
    clips: list[bytes], tmp_path: Path, monkeypatch, crew
) -> None:
    monkeypatch.setattr(examine, "examine_content", killer)
    write_tar(tmp_path / "0.tar", {"a.mp4": clips[0], "b.mp4": clips[1], "c.mp4": clips[2]})
    write_tar(tmp_path / "1.tar", {"d.mp4": clips[3]})
    code, text = look(tmp_path)
    assert code == 1
    assert "b.mp4: it could not be looked at: the process that had it ended (SIGKILL)" in text
    good = {row["key"] for row in rows(tmp_path / "index.jsonl") if row["start"] >= 0}
    assert good == {"a.mp4", "c.mp4", "d.mp4"}


def test_the_command_line(three: Path, tmp_path: Path, capsys) -> None:
    assert main(["data", "index", str(three), "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 files lie in 3 shards" in said
    assert f"Index: {three}/index.jsonl" in said
    assert main(["data", "index", str(three), "--out", str(tmp_path / "x" / "i.jsonl")]) == 0
    assert "index: " in capsys.readouterr().out
    for arguments, error in {
        ("a", "b"): "data index takes the address of shards, got a b",
        (str(three), "--processes", "0"): "--processes: expected a whole number of at least 1, got 0",
        (str(tmp_path / "gone"),): "no such folder",
    }.items():
        assert main(["data", "index", *arguments]) == 2
        assert error in capsys.readouterr().err
