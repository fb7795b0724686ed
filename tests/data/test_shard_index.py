"""The index of tar shards: what is written comes back, and what is damaged is named."""

from array import array
from io import BytesIO

import pytest

from vidssl.data.decode.decode import Keyframe, VideoFacts
from vidssl.data.sources.manifest import FileRecord
from vidssl.data.sources.tar.index import Member, Shard, ShardIndex, parse_shards, write_index
from vidssl.errors import UsageError

CLASSES = {"class": ("run", "walk")}


def entry(key: str, name: str = "walk", frames: int = 5) -> FileRecord:
    keyframes = (Keyframe(0, 0),)
    facts = VideoFacts(
        frames, frames, 30.0, 48, 128, 0, "h264", "", array("q", range(frames)), keyframes, 0.5
    )
    return FileRecord(key, "ok", "", 100, 7, "ab" * 32, {"class": name}, facts, "mov", "constant", frames)


def bad(key: str) -> FileRecord:
    return FileRecord(key, "unreadable", "the file is empty (0 bytes)", 0)


def two_shards() -> list[Shard]:
    return [
        Shard("00000.tar", 4096, (Member(entry("a/ü 1.mp4"), 512), Member(bad("b.mp4"), -1))),
        Shard("more/00001.tar", 8192, (Member(entry("c.mp4", "run", 9), 1536),)),
    ]


def text_of(shards: list[Shard], plan: str = "") -> bytes:
    file = BytesIO()
    write_index(file, shards, CLASSES, plan)
    return file.getvalue()


def test_what_is_written_comes_back() -> None:
    shards = two_shards()
    index = ShardIndex(text_of(shards, "p1"), "there")
    assert (index.label_classes, index.plan) == (CLASSES, "p1")
    assert index.shards == ("00000.tar", "more/00001.tar")
    assert index.shard_bytes.tolist() == [4096, 8192]
    assert [index.member(number) for number in range(3)] == [m for shard in shards for m in shard.members]
    assert index.shard.tolist() == [0, 0, 1]
    assert index.start.tolist() == [512, -1, 1536]
    assert index.length.tolist() == [100, 0, 100]
    assert index.usable.tolist() == [True, False, True]
    assert index.num_frames.tolist() == [5, 0, 9]
    assert index.labels["class"].tolist() == [1, -1, 0]


def test_keys_are_found() -> None:
    index = ShardIndex(text_of(two_shards()), "there")
    assert list(index.keys()) == ["a/ü 1.mp4", "b.mp4", "c.mp4"]
    assert [index.number(key) for key in ("a/ü 1.mp4", "b.mp4", "c.mp4")] == [0, 1, 2]
    assert index.number("d.mp4") is None


def test_parts_of_an_index_come_back() -> None:
    shards = two_shards()
    assert parse_shards("".join(shard.to_lines() for shard in shards).encode()) == shards
    with pytest.raises(ValueError, match=r"00000.tar has 2 samples, 1 is there"):
        parse_shards("".join(shards[0].to_lines().splitlines(keepends=True)[:2]).encode())


def test_a_key_is_written_once() -> None:
    twins = [Shard("0.tar", 999, (Member(entry("a"), 512),)), Shard("1.tar", 999, (Member(entry("a"), 512),))]
    with pytest.raises(ValueError, match=r"1.tar: the key 'a' comes twice"):
        text_of(twins)
    text = text_of(twins[:1]) + twins[1].to_lines().encode()
    with pytest.raises(UsageError, match="the key 'a' comes twice"):
        ShardIndex(text, "there")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"kind":"vidssl tar shards"', b'"kind":"a manifest"', "there:1: .*not that of an index"),
        (b'"version":1', b'"version":2', "there:1: .*of version 2, this program reads version 1"),
        (b'"walk"]', b'"hop"]', "there:3: .*'walk' is no class of the label 'class'"),
        (b'"start":512', b'"start":"512"', "there:3: .*'start' must be a whole number .*got '512'"),
        (
            b'"start":1536',
            b'"start":1537',
            "there:6: .*bytes from 1537 on are no place in more",
        ),
        (b'"start":1536', b'"start":0', "there:6: .*100 bytes from 0 on are no place"),
        (b'"start":512', b'"start":4096', "there:3: .*100 bytes from 4096 on are no place in 00000.tar"),
        (b',"start":512', b"", "there:3: .*'start' is missing"),
        (b'"samples":1', b'"samples":2', r"there:6: .*more/00001.tar lacks 1 sample"),
        (b'"samples":2', b'"samples":1', "there:4: .*'shard' is missing"),
    ],
)
def test_a_damaged_index_is_named_with_the_line(old: bytes, new: bytes, message: str) -> None:
    text = text_of(two_shards())
    assert old in text
    with pytest.raises(UsageError, match=message) as caught:
        ShardIndex(text.replace(old, new), "there")
    assert "vidssl data shard" in str(caught.value)


def test_a_line_whose_facts_are_damaged_is_named_when_they_are_wanted() -> None:
    text = text_of(two_shards())
    for old, new in ((b'"keyframes":[[0,0]]', b'"keyframes":[[0,0'), (b'"gop":9', b'"gap":9')):
        index = ShardIndex(text.replace(old, new), "there")
        assert index.key(2) == "c.mp4"
        with pytest.raises(UsageError, match=r"there:6: a damaged line .* 'vidssl data index'"):
            index.member(2)


def test_keys_that_look_like_json_are_read() -> None:
    keys = ['a,"promised_frames":3', 'b","start":7}', "c\\", 'd\udcff"', 'd?"']
    members = tuple(Member(entry(key), 512) for key in keys)
    index = ShardIndex(text_of([Shard("0.tar", 999, members)]), "there")
    assert list(index.keys()) == keys
    assert [index.number(key) for key in keys] == [0, 1, 2, 3, 4]
    assert tuple(index.member(number) for number in range(5)) == members


def test_an_index_cut_off_anywhere_is_damaged() -> None:
    text = text_of(two_shards())
    for length in (0, 1, len(text) // 2, len(text) - 2):
        with pytest.raises(UsageError, match="the index is damaged"):
            ShardIndex(text[:length], "there")
