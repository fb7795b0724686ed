"""Files of our own that are damaged or tampered with: every entry is read under its type and range."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidssl.data.sources.jpeg_shards import JpegShards, shard_name
from vidssl.data.sources.manifest import FileRecord, Manifest, header, packed, unpacked
from vidssl.data.sources.origins import read_videos
from vidssl.data.sources.token_store import TokenStore
from vidssl.engine.facts import Row, parsed
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import read_scores

DEEP = "[" * (2 * sys.getrecursionlimit())


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda row: row.text("number"), "'number' must be text, got 3"),
        (lambda row: row.text("none"), "'none' is missing"),
        (lambda row: row.path("forged"), r"'forged' must be the name of a file, got 'a\\x00b'"),
        (lambda row: row.path("half"), r"'half' must be the name of a file, got '\\ud800'"),
        (lambda row: row.whole("yes"), "'yes' must be a whole number from 0 to .*, got True"),
        (lambda row: row.whole("number", highest=2), "'number' must be a whole number from 0 to 2, got 3"),
        (lambda row: row.real("nan"), "'nan' must be a finite number from 0 on, got nan"),
        (lambda row: row.real("huge"), "'huge' must be a smaller number"),
        (lambda row: row.row("inner").whole("number"), r"'inner.number' must be a whole number .*, got '3'"),
        (lambda row: row.parts("pair", "start", "end"), r"pair must be a list of start, end, got \[1\]"),
        (lambda row: row.many_texts("pair"), r"'pair' must be a list of texts, got \(1,\)"),
        (lambda row: row.one_of("number", (1, 2)), "'number' must be one of 1, 2, got 3"),
        (lambda row: parsed(DEEP), "not valid JSON"),
        (lambda row: parsed("9" * 5000), "not valid JSON"),
        (lambda row: Row([]), r"it must be an object of JSON, got \[\]"),
    ],
)
def test_what_does_not_fit_is_named(read: Callable[[Row], object], said: str) -> None:
    row = Row(
        {"number": 3, "yes": True, "nan": float("nan"), "huge": 10**400, "inner": {"number": "3"},
         "pair": [1], "forged": "a\0b", "half": "\ud800"}
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^{said}"):
        read(row)


def test_an_entry_that_is_not_there_is_the_default() -> None:
    row = Row({"frames": 7})
    assert (row.whole("frames", 1), row.whole("other", 1), row.real_or_none("other")) == (7, 1, None)


@pytest.mark.parametrize("short", [[0, 1], [0, 1, 2], [0, 1, -5, 1, 6], [2**62, 1, 2], [0, 2**40, 2**40]])
def test_time_stamps_of_another_number_of_frames_take_no_memory(short: list[int]) -> None:
    with pytest.raises(ValueError, match="'pts' must be"):
        unpacked(short, 2)
    assert unpacked(packed([5, 7, 9, 10]), 4).tolist() == [5, 7, 9, 10]


LINE = {
    "key": "a.mp4", "status": "ok", "reason": "", "bytes": 9, "mtime_ns": 0, "sha256": "",
    "labels": {"class": "a"}, "frames": 3, "promised_frames": 3, "fps": 30.0, "height": 8, "width": 8,
    "rotation": 0, "codec": "h264", "no_seeking": "", "pts": [0, 1, 2], "keyframes": [[0, 0]],
    "tick_seconds": 0.1, "container": "mov",
    "rate": "constant", "gop": 3, "clip_seconds": 0.0, "interlaced": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "fine"), ("labels", {"class": 3}), ("labels", []), ("frames", 2_000_000_000),
        ("fps", "30"), ("rotation", 45), ("pts", [0, 1, 10**9]), ("keyframes", [[3, 0]]),
        ("keyframes", [5]), ("bytes", 1.5), ("width", 0), ("tick_seconds", -1), ("segments", [[0, 1]]),
        ("key", 4), ("interlaced", "no"),
    ],
)  # fmt: skip
def test_a_manifest_names_line_and_field(field: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(header(Path("here")) + json.dumps(LINE) + "\n" + json.dumps(LINE | {field: value}) + "\n")
    with pytest.raises(UsageError, match=rf"m.jsonl:3: .*'?{field}"):
        assert len([*Manifest(path)]) == 0
    assert FileRecord.from_row(Row(LINE)).facts is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": {"class": 1}}, "'labels.class' must be a whole number from 0 to 0, got 1"),
        ({"frames": 10}, "10 frames from byte 0 on do not fit into 00000.jpegs"),
        ({"start": -1}, "'start' must be"),
        ({"shard": "../x"}, "'shard' must be the name of a shard"),
        ({"origin": {"file": 5, "segment": None}}, "'origin.file' must be text"),
        ({"pts": [0, 1, 5]}, "'pts' must be the timestamps of 1 frame"),
    ],
)
def test_an_index_of_jpeg_shards_is_held_against_its_shards(change: dict, said: str, tmp_path: Path) -> None:
    (tmp_path / shard_name(0)).write_bytes(bytes(40))
    head = {"kind": "vidssl JPEG shards", "version": 1, "label_classes": {"class": ["a"]}}
    row = {
        "key": "a",
        "labels": {},
        "reason": "",
        "frames": 1,
        "fps": 30.0,
        "shard": shard_name(0),
        "start": 0,
    }
    (tmp_path / "index.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(row | change)}\n")
    with pytest.raises(UsageError, match=rf"index.jsonl:2: the index is damaged \({said}"):
        JpegShards(root=str(tmp_path))


@pytest.mark.parametrize(
    "text", [DEEP, "{}", '{"format": "vidssl videos 1", "videos": {"a": [["k", 1, 2, 3, 4, 5]]}}']
)
def test_a_damaged_list_of_videos_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "videos.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(UsageError, match="damaged, or no list of videos"):
        read_videos(tmp_path / "videos.json.gz")


def test_scores_and_stores_that_are_bombs_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(DEEP)
    with pytest.raises(UsageError, match="damaged, or no file of scores"):
        read_scores(tmp_path / "x.json")
    (tmp_path / "store.json").write_text('{"format": 1, "grid": [2]}')
    with pytest.raises(UsageError, match=r"store.json: damaged: grid must be a list of rows, columns"):
        TokenStore(root=str(tmp_path))
