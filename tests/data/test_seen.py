"""Test videos that were learned from are found whatever source names them, and nothing is guessed."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidssl.data import SOURCES
from vidssl.data.sources.frame_folders import FrameFolders
from vidssl.data.sources.manifest import FileRecord, header
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.sources.origins import (
    Overlap,
    Video,
    changes,
    derived_origin,
    read_videos,
    recorded,
    shared_videos,
    versions_hash,
    videos_of,
    write_videos,
)
from vidssl.data.sources.video_files import ImageFolder, VideoFolder, VideoList
from vidssl.engine.process import file_sha256
from vidssl.errors import UsageError
from vidssl.evaluate.subject import Pretraining, check_seen
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.scores import probe
from vidssl.interfaces import KnowsOrigins, Origin


@pytest.fixture
def vids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of three files, no two of which have the same content, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "walk"):
        for number in range(3):
            path = tmp_path / "vids" / name / f"v{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {number} ".encode() * 40)  # some are of one size
    return tmp_path / "vids"


def listed(root: str, *keys: str) -> VideoList:
    Path("list.txt").write_text("".join(f"{key} 0\n" for key in keys))
    return VideoList(root=root, list="list.txt")


def in_both(*sources) -> tuple[str, ...]:
    return shared_videos(*map(videos_of, sources)).keys


def test_every_source_knows_its_files() -> None:
    assert len(SOURCES) > 10
    assert all(issubclass(each, KnowsOrigins) for each in SOURCES.values())


def test_one_file_is_found_under_any_spelling_link_and_copy(vids: Path) -> None:
    train = listed("vids", "run/v0.mp4", "run/v1.mp4")
    assert in_both(train, listed("vids", "run/v2.mp4", "walk/v1.mp4")) == ()
    assert in_both(train, listed("vids/../vids/walk", "../run/v1.mp4")) == ("../run/v1.mp4",)
    Path("elsewhere").symlink_to("vids")
    assert in_both(train, listed("elsewhere", "run/v0.mp4")) == ("run/v0.mp4",)
    Path("vids/link.mp4").symlink_to("run/v0.mp4")
    assert in_both(train, listed("vids", "link.mp4")) == ("link.mp4",)
    Path("copy.mp4").write_bytes(Path("vids/run/v0.mp4").read_bytes())
    assert in_both(train, listed(".", "copy.mp4", "vids/walk/v0.mp4")) == ("copy.mp4",)
    assert in_both(train, listed("vids", "run/v2.mp4", "gone.mp4")) == ()


def test_segments_of_one_file_are_the_same_where_they_have_time_in_common(vids: Path) -> None:
    def cut(*lines: str) -> tuple[Video, ...]:
        Path("cut.csv").write_text("path,label,start,end\n" + "".join(f"{line}\n" for line in lines))
        return videos_of(VideoList(root="vids", list="cut.csv"))

    train = cut("run/v0.mp4,a,0,10", "run/v1.mp4,a,0,10")
    test = cut("run/v0.mp4,a,10,20", "run/v1.mp4,a,9,20", "walk/v0.mp4,a,0,10")
    found = shared_videos(train, test)
    assert found == Overlap((test[1].key,), 3, 0, cut_apart=1)
    assert shared_videos(train, videos_of(listed("vids", "run/v0.mp4"))).keys == ("run/v0.mp4",)
    assert check_seen(train, (test[0], test[2]), Pretraining(), "error") == [
        "1 of 2 test videos is other segments of files in train too"
    ]
    write_videos(Path("videos.json.gz"), {"x": test})
    assert read_videos(Path("videos.json.gz"))["x"][0].origin.segment == (10.0, 20.0)


def test_parts_cut_with_other_shares_overlap(vids: Path) -> None:
    train = VideoFolder(root="vids", part="train")
    assert len(in_both(train, VideoFolder(root="vids", part="test", test_share=0.9))) == 2
    assert in_both(train, VideoFolder(root="vids", part="test")) == ()


def test_checksums_of_a_manifest_are_those_of_files_elsewhere(vids: Path) -> None:
    """The file of the manifest need not be read, and one that has changed since has none."""
    key, path = "run/v0.mp4", Path("vids/run/v0.mp4")
    sha256 = file_sha256(path)
    entry = FileRecord(key, "ok", bytes=path.stat().st_size, sha256=sha256)
    Path("m.jsonl").write_text(header(Path("vids")) + entry.to_line())
    Path("list.txt").write_text(f"{key} 0\n")
    with pytest.raises(UsageError, match="none of the 1 listed videos can be used"):
        VideoList(root="vids", list="list.txt", manifest="m.jsonl")  # without facts it is left out
    known = Origin("s3://bucket/a.mp4", bytes=path.stat().st_size, sha256=sha256)
    assert shared_videos([Video("a", known)], videos_of(listed("vids", key))).keys == (key,)
    other = replace(known, sha256="0" * 64)
    assert shared_videos([Video("a", other)], videos_of(listed("vids", key))) == Overlap((), 1, 0)


def test_what_was_made_of_a_file_is_compared_by_it_while_it_is_there(vids: Path) -> None:
    source = listed("vids", "run/v0.mp4", "run/v1.mp4")
    kept = [recorded(source.origin(index)) for index in range(2)]

    def stored(name: str) -> list[Video]:
        shard = Path(name) / "shard"
        shard.parent.mkdir(exist_ok=True)
        shard.touch()
        origins = [
            derived_origin(each, store=Path(name), key=str(n), made=shard) for n, each in enumerate(kept)
        ]
        return [Video(str(number), origin) for number, origin in enumerate(origins)]

    test = videos_of(listed("vids", "run/v0.mp4", "walk/v0.mp4"))
    assert shared_videos(stored("one"), test) == Overlap(("run/v0.mp4",), 2, 0)
    os.rename("vids", "moved")
    moved = videos_of(listed("moved", "run/v0.mp4", "walk/v0.mp4"))
    assert shared_videos(stored("one"), moved) == Overlap((), 2, 2)  # not known, and so it is said
    assert shared_videos(stored("one")[:1], stored("one")[1:]) == Overlap((), 1, 0)
    assert shared_videos(stored("one")[:1], stored("two")) == Overlap(("0",), 2, 1)
    kept = [{}, {}]  # a store of an earlier version
    assert shared_videos(stored("one")[:1], stored("one")) == Overlap(("0",), 2, 0)
    assert shared_videos(stored("one"), moved) == Overlap((), 2, 2)


def test_moving_digits_are_the_same_in_sets_of_other_sizes(vids: Path) -> None:
    small, large = (MovingDigits(split="test", num_videos=number) for number in (2, 3))
    assert in_both(small, large) == ("test/000000.mp4", "test/000001.mp4")
    assert in_both(large, MovingDigits(split="train", num_videos=2)) == ()
    folder = Path(small.origin(0).file).parent
    assert in_both(large, VideoList(root=str(folder), list=str(folder / "manifest.csv"))) == (
        "000000.mp4",
        "000001.mp4",
    )


def test_images_and_folders_of_frames_are_known_by_their_paths(vids: Path) -> None:
    for name in ("a", "b"):
        Path("frames", name).mkdir(parents=True)
        Path("frames", name, "img_00001.jpg").write_bytes(name.encode())
    one = FrameFolders(root="frames", fps=25)
    assert in_both(one, FrameFolders(root="frames/../frames", fps=10)) == ("a", "b")
    images = ImageFolder(root="frames")
    assert in_both(images, images) == ("a/img_00001.jpg", "b/img_00001.jpg")
    Path("linked/a").mkdir(parents=True)
    Path("linked/a/x.jpg").symlink_to(Path("frames/a/img_00001.jpg").absolute())
    assert in_both(images, ImageFolder(root="linked")) == ("a/x.jpg",)
    shard = Origin("/shards: a", "x", 1, "0" * 64, "/shards")
    assert shared_videos([Video("a", shard)], videos_of(images)).unknown == 2


def test_a_source_that_knows_no_files_compares_with_itself_alone(vids: Path) -> None:
    class Unknown:
        def __len__(self) -> int:
            return 2

    one, other = Unknown(), Unknown()
    assert shared_videos(videos_of(one), videos_of(one)) == Overlap(("0", "1"), 2, 0)
    assert shared_videos(videos_of(one), videos_of(other)) == Overlap((), 2, 2)
    assert check_seen(videos_of(one), videos_of(other), Pretraining(), "error") == [
        "Whether 2 of 2 test videos are in train too is not known: their files cannot be compared"
    ]


def test_an_overlap_is_an_error_that_counts_and_names_unless_it_is_allowed(vids: Path) -> None:
    train = videos_of(VideoFolder(root="vids"))
    says = r"^4 of 5 test videos \(run/v0.mp4, run/v1.mp4, run/v2.mp4 and 1 more\) are in train too: .*=allow"
    test = [*train[:4], Video("x", Origin("/elsewhere.mp4"))]
    with pytest.raises(UsageError, match=says):
        check_seen(train, test, Pretraining(), "error")
    (note,) = check_seen(train, test, Pretraining(), "allow")
    assert note.startswith("overlap: allow: 4 of 5 test videos (run/v0.mp4, ")
    assert check_seen(train[:2], train[2:], Pretraining(), "error") == []


def test_what_was_seen_in_pretraining_is_said_and_with_its_labels_refused(vids: Path) -> None:
    train, test = videos_of(VideoFolder(root="vids"))[:2], videos_of(VideoFolder(root="vids"))[2:]
    before = Pretraining((*train, *test[:3]), how=", without labels")
    assert check_seen(train, test, before, "error") == [
        "3 of 4 test videos were seen in pretraining, without labels"
    ]
    assert check_seen(train, test, Pretraining(train), "error") == [
        "None of 4 test videos was seen in pretraining"
    ]
    assert check_seen(train, test, replace(before, unknown="x.pt does not say"), "error")[1] == (
        "Whether 1 of 4 test videos is seen in pretraining is not known: x.pt does not say"
    )
    with pytest.raises(UsageError, match=r"^3 of 4 test videos .* are trained on with their labels"):
        check_seen(train, test, replace(before, labelled=before.videos), "error")


def test_a_probe_in_python_refuses_them_too(vids: Path) -> None:
    origins = tuple(video.origin for video in videos_of(VideoFolder(root="vids")))
    labels, classes = {"class": torch.arange(6) % 2}, {"class": ("run", "walk")}
    table = FeatureTable(torch.randn(6, 1, 4), labels, classes, tuple("abcdef"), 6, (), origins=origins)
    with pytest.raises(UsageError, match=r"^6 of 6 test videos \(a, b, c and 3 more\) are in train too"):
        probe(KNN(k=1), table, table)
    assert probe(KNN(k=1), table, table, overlap="allow")[0].top1 == 1.0
    assert probe(KNN(k=1), table, replace(table, origins=()))[0].top1 == 1.0


def test_a_list_of_videos_is_kept_and_its_changes_are_named(vids: Path) -> None:
    before = {"data.video.source": videos_of(VideoFolder(root="vids"))}
    write_videos(Path("videos.json.gz"), before)
    kept = read_videos(Path("videos.json.gz"))
    assert kept["data.video.source"][0] == Video(
        "run/v0.mp4", replace(before["data.video.source"][0].origin, version="")
    )
    assert changes(kept, before) == ""
    os.utime("vids/run/v2.mp4")  # a copy has another time
    os.rename("vids/run/v0.mp4", "vids/run/aaa.mp4")
    Path("vids/run/v1.mp4").write_bytes(b"other")
    assert changes(kept, {"data.video.source": videos_of(VideoFolder(root="vids"))}) == (
        "data.video.source has 6 videos, 6 before: 1 new (run/aaa.mp4), 1 gone (run/v0.mp4), "
        "1 of another size or content (run/v1.mp4)"
    )
    assert changes(kept, {"data.video.source": kept["data.video.source"][::-1]}) == (
        "data.video.source has 6 videos, 6 before: the same ones in another order"
    )
    Path("videos.json.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=re.escape("videos.json.gz: damaged, or no list of videos")):
        read_videos(Path("videos.json.gz"))


def test_features_depend_on_size_and_time_of_each_file(vids: Path) -> None:
    source = VideoFolder(root="vids")
    found = [versions_hash(source)]
    os.utime("vids/run/v2.mp4", ns=(1, 1))
    found.append(versions_hash(source))
    os.unlink("vids/run/v2.mp4")
    found.append(versions_hash(source))
    assert len(set(found)) == 3
