"""Folders and lists of videos and images: what is found, how it is labelled, divided and read."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_clips import cut_off, damage_middle, number_shown, write_clip
from PIL import Image

from vidssl.data.sources.listing import Listed, Listing, group_of, groups_of, select
from vidssl.data.sources.lists import listed_part
from vidssl.data.sources.official.videos import ucf101
from vidssl.data.sources.video_files import ImageFolder, VideoFolder, VideoList
from vidssl.errors import UsageError
from vidssl.evaluators.extract import Encoded, table_of
from vidssl.evaluators.scores import labelled_rows
from vidssl.interfaces import UnreadableSample


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 20, noise=40)


def fill(root: Path, clip: Path, *keys: str) -> Path:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, root / key)
    return root


def write_image(path: Path, **saving: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[0, 0] = (250, 10, 20)
    Image.fromarray(pixels).save(path, **saving)
    return path


def test_a_folder_for_each_class_labels_its_videos(tmp_path: Path, clip: Path) -> None:
    root = fill(
        tmp_path, clip, "walk/b.mp4", "run/deep/a.MP4", "walk/a.avi", "walk/notes.txt", "run/.hidden.mp4"
    )
    source = VideoFolder(root=str(root))
    assert source.label_classes == {"class": ("run", "walk")}
    assert [source.key(index) for index in range(len(source))] == [
        "run/deep/a.MP4",
        "walk/a.avi",
        "walk/b.mp4",
    ]
    assert [source.labels(index)["class"] for index in range(3)] == [0, 1, 1]
    info = source.info(2)
    assert (info.key, info.num_frames, info.fps, info.labels) == ("walk/b.mp4", 20, 30.0, {"class": 1})
    assert [number_shown(frame) for frame in source.read(2, [9, 4])] == [9, 4]


def test_a_folder_without_folders_holds_unlabelled_videos(tmp_path: Path, clip: Path) -> None:
    source = VideoFolder(root=str(fill(tmp_path, clip, "b.mp4", "a.mkv")))
    assert source.label_classes == {}
    assert [source.info(index).labels for index in range(2)] == [{}, {}]


def test_the_root_is_relative_to_the_working_folder(tmp_path: Path, clip: Path, monkeypatch) -> None:
    fill(tmp_path, clip, "data/run/a.mp4")
    monkeypatch.chdir(tmp_path)
    source = VideoFolder(root="data")
    monkeypatch.chdir("/")  # a source keeps its files when the process moves on
    assert source.info(0).num_frames == 20


def test_a_linked_folder_is_followed_and_a_circle_ends(tmp_path: Path, clip: Path) -> None:
    fill(tmp_path / "elsewhere", clip, "a.mp4")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "run").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "data")
    source = VideoFolder(root=str(tmp_path / "data"))
    assert [source.key(index) for index in range(len(source))] == ["run/a.mp4"]


def test_an_empty_or_missing_folder_is_named_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").touch()
    with pytest.raises(UsageError, match=rf"{tmp_path}: no video in it.*\.avi, \.mp4, \.mkv"):
        VideoFolder(root=str(tmp_path))
    with pytest.raises(UsageError, match=r"no such folder"):
        VideoFolder(root=str(tmp_path / "absent"))
    with pytest.raises(UsageError, match=r"is no folder"):
        ImageFolder(root=str(tmp_path / "run" / "a.txt"))


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path, clip: Path, monkeypatch) -> None:
    fill(tmp_path, clip, "run/a.mp4", "walk/b.mp4")
    real = os.scandir

    def refusing(path):
        if Path(path).name == "walk":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UsageError, match=r"walk: the folder cannot be read .Permission denied"):
        VideoFolder(root=str(tmp_path))


def test_videos_beside_class_folders_are_refused(tmp_path: Path, clip: Path) -> None:
    fill(tmp_path, clip, "run/a.mp4", "stray.mp4")
    with pytest.raises(UsageError, match=r"'stray.mp4' and 0 more lie beside folders"):
        VideoFolder(root=str(tmp_path))


def listing(*sizes: int) -> Listing:
    files = [
        Listed(f"{name}/{number}.mp4", {"class": name})
        for name, size in enumerate(sizes)
        for number in range(size)
    ]
    return Listing(tuple(files), {"class": tuple(map(str, range(len(sizes))))})


def keys_of(whole: Listing, part: str, limit: int | None = None, test_share: float = 0.25) -> set[str]:
    chosen = select(whole, part=part, test_share=test_share, limit=limit, where="here")
    return {file.key for file in chosen.files}


def test_train_and_test_divide_every_class() -> None:
    whole = listing(400, 2, 1)
    train, test = keys_of(whole, "train"), keys_of(whole, "test")
    assert not train & test
    assert train | test == keys_of(whole, "all")
    assert 70 < sum(key.startswith("0/") for key in test) < 130
    assert sum(key.startswith("1/") for key in test) == 1
    assert sum(key.startswith("2/") for key in test) == 0


def test_even_classes_of_two_have_one_to_test_and_one_to_train() -> None:
    whole = listing(*[2] * 20)
    assert {len(keys_of(listing(*[2] * 20), part)) for part in ("train", "test")} == {20}
    assert {key.split("/")[0] for key in keys_of(whole, "test")} == {str(number) for number in range(20)}


def test_a_class_keeps_a_training_file_however_large_the_test_share() -> None:
    assert len(keys_of(listing(5, 5), "train", test_share=0.999)) == 2


def test_files_of_one_group_fall_into_one_part() -> None:
    names = [f"Run/v_Run_g{group:02d}_c{clip:02d}.avi" for group in range(12) for clip in range(5)]
    listed = [Listed(name, {"class": 0}) for name in names]
    listed += [Listed(f"Jump/{n}.mp4", {"class": 1}, group=f"tape {n // 5}") for n in range(60)]
    whole = Listing(tuple(listed), {"class": ("Run", "Jump")})
    groups = {file.key: file.group or group_of(file.key) for file in listed}
    train, test = ({groups[key] for key in keys_of(whole, part)} for part in ("train", "test"))
    assert len(train) + len(test) == 24
    assert not train & test
    assert test


def test_added_files_move_no_other_between_parts() -> None:
    assert keys_of(listing(40), "test") == keys_of(listing(80), "test") & keys_of(listing(40), "all")


def test_a_limit_takes_a_sample_that_is_always_the_same() -> None:
    whole = listing(50, 50)
    few = keys_of(whole, "all", limit=20)
    assert len(few) == 20
    assert few == keys_of(whole, "all", limit=20) < keys_of(whole, "all", limit=30)
    assert 3 <= sum(key.startswith("0/") for key in few) <= 17


def labelled(*numbers: int) -> dict[str, int]:
    return {f"label{place}": number for place, number in enumerate(numbers, start=1)}


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.txt", "run/a b.mp4 1\nwalk/c.mp4 0\n", [{"class": 1}, {"class": 0}]),
        (
            "a.txt",
            'run/a b.mp4 "high" "long jump"\nwalk/c.mp4 "low" "dive"\n',
            [labelled(0, 1), labelled(1, 0)],
        ),
        ("a.txt", "run/a b.mp4\n\nwalk/c.mp4\n", [{}, {}]),
        ("a.csv", "\ufeffrun/a b.mp4,2,walk\nwalk/c.mp4,0,run\n", [labelled(1, 1), labelled(0, 0)]),
        (
            "a.csv",
            "path,kind,hue\nrun/a b.mp4,x,1\nwalk/c.mp4,y,0\n",
            [{"kind": 0, "hue": 1}, {"kind": 1, "hue": 0}],
        ),
        ("a.csv", "path,class\nrun/a b.mp4,x\nwalk/c.mp4,y\n", [{"class": 0}, {"class": 1}]),
        ("a.csv", 'run/a b.mp4;"a, b"\nwalk/c.mp4;c\n', [{"class": 0}, {"class": 1}]),
        ("a.tsv", "run/a b.mp4\tyes\nwalk/c.mp4\tno\n", [{"class": 1}, {"class": 0}]),
    ],
)
def test_lists_in_many_forms(tmp_path: Path, clip: Path, name: str, text: str, labels: list) -> None:
    fill(tmp_path, clip, "run/a b.mp4", "walk/c.mp4")
    (tmp_path / name).write_text(text)
    source = VideoList(root=str(tmp_path), list=str(tmp_path / name))
    assert [source.key(index) for index in range(len(source))] == ["run/a b.mp4", "walk/c.mp4"]
    assert [source.labels(index) for index in range(2)] == labels


def test_a_column_group_is_no_label_and_reaches_features_and_splits(tmp_path: Path, clip: Path) -> None:
    lines = ["path,class,group"]
    for number in range(24):
        (tmp_path / f"{number:02d}.mp4").symlink_to(clip)
        lines.append(f"{number:02d}.mp4,{number % 2},tape {number // 4}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    keys = {"root": str(tmp_path), "list": str(tmp_path / "all.csv")}
    source = VideoList(**keys)
    assert dict(source.label_classes) == {"class": ("0", "1")}
    numbers = torch.tensor([0, 3, 4])
    found = table_of(source, Encoded({"normal": torch.zeros(3, 1, 1)}, numbers, ()), torch.device("cpu"))
    assert found.groups == ("tape 0", "tape 0", "tape 1")
    assert labelled_rows(found, "class").groups.tolist() == [0, 0, 1]
    parts = [VideoList(**keys, part="train"), VideoList(**keys, part="test")]
    train, test = (groups_of(part, range(len(part))) for part in parts)
    assert len(train) + len(test) == 24
    assert test
    assert not set(train) & set(test)
    assert groups_of(VideoFolder(root=str(tmp_path)), range(24)) == ()


def test_a_kinetics_list_parts_its_columns_by_spaces(tmp_path: Path, clip: Path) -> None:
    (fill(tmp_path, clip, "a.mp4", "b.mp4") / "train.csv").write_text("a.mp4 5\nb.mp4 0\n")
    source = VideoList(root=str(tmp_path), list=str(tmp_path / "train.csv"))
    assert [source.labels(index)["class"] for index in range(2)] == [1, 0]
    assert source.label_classes == {"class": ("0", "5")}  # numbers need not be dense


def test_two_lists_share_one_numbering_of_classes(tmp_path: Path, clip: Path) -> None:
    fill(tmp_path, clip, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "train.txt").write_text("a.mp4 walk\nb.mp4 run\n")
    (tmp_path / "test.txt").write_text("c.mp4 walk\n")
    paths = {
        "root": str(tmp_path),
        "list": str(tmp_path / "train.txt"),
        "test_list": str(tmp_path / "test.txt"),
    }
    train, test, both = (VideoList(**paths, part=part) for part in ("train", "test", "all"))
    assert (len(train), len(test), len(both)) == (2, 1, 3)
    assert test.labels(0) == {"class": 1}
    assert test.label_classes == train.label_classes == {"class": ("run", "walk")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", r"list.txt:2: it has 0 labels, line 1 has 1"),
        ("a.mp4 1\nnonsense\n", r"list.txt:2: expected the path of a video, then its labels, got 'nonsense'"),
        ("a.mp4 -1\n", "has the class -1; classes count from 0"),
        ("a.mp4 1\na.mp4 2\n", "list.txt:2: a.mp4 is listed twice, first on line 1"),
        ("\n", "the list is empty"),
        ("x.mp4 1\ny.mp4 0\n", r"none of its 2 videos is there; looked for .*x\.mp4"),
    ],
)
def test_a_list_out_of_order_is_refused_with_its_line(
    tmp_path: Path, clip: Path, text: str, message: str
) -> None:
    (fill(tmp_path, clip, "a.mp4", "b.mp4") / "list.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        VideoList(root=str(tmp_path), list=str(tmp_path / "list.txt"))


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.csv: no such list"):
        VideoList(root=str(tmp_path), list=str(tmp_path / "absent.csv"))


def test_a_video_in_both_lists_is_refused(tmp_path: Path, clip: Path) -> None:
    (fill(tmp_path, clip, "a.mp4") / "one.txt").write_text("a.mp4 0\n")
    with pytest.raises(UsageError, match=r"trained and tested on"):
        VideoList(root=str(tmp_path), list=str(tmp_path / "one.txt"), test_list=str(tmp_path / "one.txt"))


def test_a_video_that_vanishes_shrinks_or_turns_to_noise_is_unreadable(tmp_path: Path, clip: Path) -> None:
    source = VideoFolder(root=str(fill(tmp_path, clip, "run/a.mp4")))
    assert source.info(0).num_frames == 20
    path = tmp_path / "run" / "a.mp4"

    damage_middle(path, share=0.6)
    with pytest.raises(UnreadableSample, match=r"^run/a.mp4: damaged"):
        source.read(0, [15])
    write_clip(path, 8)
    with pytest.raises(UnreadableSample, match=r"it shrank while in use"):
        source.read(0, [15])
    assert source.info(0).num_frames == 8
    path.write_bytes(os.urandom(5000))
    with pytest.raises(UnreadableSample, match=r"not a video"):
        source.info(0)
    path.unlink()
    with pytest.raises(UnreadableSample, match=r"^run/a.mp4: the file does not exist"):
        source.read(0, [15])


def test_images_are_videos_of_one_frame_turned_as_the_camera_noted(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held so that its top is on the right
    write_image(tmp_path / "cat" / "a.png")
    write_image(tmp_path / "dog" / "b.png", exif=turned)
    source = ImageFolder(root=str(tmp_path))
    assert source.label_classes == {"class": ("cat", "dog")}
    assert (source.info(0).num_frames, source.info(0).fps) == (1, 0.0)
    upright, rotated = source.read(0, [0, 0]), source.read(1, [0])
    assert tuple(upright.shape) == (2, 3, 4, 6)
    assert upright[1, :, 0, 0].tolist() == [250, 10, 20]
    assert tuple(rotated.shape) == (1, 3, 6, 4)
    assert rotated[0, :, 0, -1].tolist() == [250, 10, 20]


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.new(mode, (5, 7)).save(tmp_path / "x" / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    source = ImageFolder(root=str(tmp_path))
    assert {tuple(source.read(index, [0]).shape) for index in range(4)} == {(1, 3, 7, 5)}


def test_a_broken_image_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    Image.effect_noise((64, 64), 50).save(tmp_path / "x" / "a.png")
    cut_off(tmp_path / "x" / "a.png", 0.5)
    (tmp_path / "x" / "b.png").write_bytes(b"")
    source = ImageFolder(root=str(tmp_path))
    with pytest.raises(UnreadableSample, match=r"x/a.png: the image is truncated or damaged"):
        source.read(0, [0])
    with pytest.raises(UnreadableSample, match=r"x/b.png: the file is empty"):
        source.read(1, [0])


def test_a_part_that_there_is_not_is_refused_and_not_taken_for_another(tmp_path: Path) -> None:
    """Not only by recipes: from Python 'val' was read as train, and of two lists was a bare KeyError."""
    said = r"part must be one of 'all', 'train', 'test', got 'val'"
    listing = Listing((), {})
    with pytest.raises(ValueError, match=said):
        select(listing, part="val", test_share=0.25, limit=None, where="x")
    with pytest.raises(ValueError, match=said):
        listed_part("a.txt", "b.txt", "val")
    with pytest.raises(ValueError, match="part must be one of 'train', 'test', got 'val'"):
        ucf101(root=str(tmp_path), annotations=str(tmp_path), part="val")
