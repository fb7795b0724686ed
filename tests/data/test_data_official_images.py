"""ImageNet by its official files, and videos as folders of frames."""

import logging
from pathlib import Path

import pytest
import torch
from official_files import labelled
from PIL import Image

from vidssl.data.sources.frame_folders import FrameFolders
from vidssl.data.sources.official.listed import ImageNet
from vidssl.data.views.random import SingleClip
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vidssl")


def write(root: Path, *keys: str, grey: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        # lossless pixels under any name: what a file is called does not decide how it is decoded
        Image.new("RGB", size, (grey,) * 3).save(root / key, format="PNG")
    return root


def write_video(folder: Path, count: int, name: str = "img_{:05d}.jpg", first: int = 1) -> Path:
    for number in range(count):
        write(folder, name.format(number + first), grey=10 * number)
    return folder


TRAIN = ("train/n01443537/n01443537_2.JPEG", "train/n01440764/n01440764_10026.JPEG")
FLAT = ("val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000001.JPEG")
SOLUTION = (
    "ImageId,PredictionString\n"
    "ILSVRC2012_val_00000002,n01440764 85 1 499 272 \n"
    "ILSVRC2012_val_00000001,n01443537 10 20 30 40 n01443537 1 2 3 4 \n"
)
SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 great white shark\n"


def test_imagenet_is_read_by_the_folders_of_its_synsets(tmp_path: Path, caplog) -> None:
    root = write(tmp_path, *TRAIN, "val/n01440764/ILSVRC2012_val_00000002.JPEG")
    source = ImageNet(root=str(root), part="train")
    assert labelled(source) == {TRAIN[1]: "n01440764", TRAIN[0]: "n01443537"}
    assert caplog.records[-1].getMessage() == "ImageNet train: 2 images of 2 classes found"
    assert (source.info(0).num_frames, source.info(0).fps) == (1, 0.0)
    assert tuple(source.read(0, [0, 0]).shape) == (2, 3, 4, 6)
    assert len(ImageNet(root=str(root), part="val")) == 1
    assert len(ImageNet(root=str(root), part="train", limit=1)) == 1


def test_imagenet_s_flat_validation_images_take_a_solution(tmp_path: Path, caplog) -> None:
    root = write(tmp_path, *FLAT)
    (tmp_path / "LOC_val_solution.csv").write_text(SOLUTION)
    source = ImageNet(root=str(root), part="val", solution=str(tmp_path / "LOC_val_solution.csv"))
    assert labelled(source) == {FLAT[1]: "n01443537", FLAT[0]: "n01440764"}
    assert tuple(source.read(0, [0]).shape) == (1, 3, 4, 6)
    assert caplog.records[-1].getMessage() == "ImageNet val: 2 of 2 found, 2 classes"
    with pytest.raises(UsageError, match=r"val: ILSVRC2012_val_00000001.JPEG and 1 more lie in no synset's"):
        ImageNet(root=str(root), part="val")


def test_imagenet_s_missing_images_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, FLAT[0])
    (tmp_path / "s.csv").write_text(SOLUTION)
    with pytest.raises(UsageError, match=r"ImageNet val: 1 of 2 found.*ILSVRC2012_val_00000001"):
        ImageNet(root=str(root), part="val", solution=str(tmp_path / "s.csv"))
    some = ImageNet(root=str(root), part="val", solution=str(tmp_path / "s.csv"), max_missing_share=0.5)
    assert (len(some), some.num_listed()) == (1, 2)


def test_imagenet_s_mapping_names_classes_and_numbers_all_of_them(tmp_path: Path) -> None:
    root = write(tmp_path, TRAIN[0])
    (tmp_path / "LOC_synset_mapping.txt").write_text(SYNSETS)
    source = ImageNet(root=str(root), part="train", synsets=str(tmp_path / "LOC_synset_mapping.txt"))
    assert labelled(source) == {TRAIN[0]: "n01443537 goldfish, Carassius auratus"}
    assert len(source.label_classes["class"]) == 3
    write(tmp_path, "train/n09999999/a.JPEG")
    with pytest.raises(UsageError, match=r"it lacks the synset n09999999 and 0 more"):
        ImageNet(root=str(root), part="train", synsets=str(tmp_path / "LOC_synset_mapping.txt"))


def test_imagenet_in_wrong_places_says_how_it_must_lie(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train: no such folder.*ImageNet must lie.*docs/data/imagenet.md"):
        ImageNet(root=str(tmp_path), part="train")
    write(tmp_path, TRAIN[0])
    with pytest.raises(ValueError, match=r"solution is for the part val"):
        ImageNet(root=str(tmp_path), part="train", solution="x.csv")
    (tmp_path / "s.csv").write_text("ImageId,PredictionString\na,tench\n")
    (tmp_path / "val").mkdir()
    with pytest.raises(UsageError, match=r"s.csv:2: expected a synset such as n01440764, got 'tench'"):
        ImageNet(root=str(tmp_path), part="val", solution=str(tmp_path / "s.csv"))


def test_folders_of_frames_are_videos_of_a_stated_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "run" / "b", 3)
    write_video(tmp_path / "run" / "a", 12, "{}.png", first=0)  # 10 comes after 9, not after 1
    write_video(tmp_path / "walk" / "deep" / "c", 1, "frame_{:06d}.PNG")
    source = FrameFolders(root=str(tmp_path), fps=12.0)
    assert labelled(source) == {"run/a": "run", "run/b": "run", "walk/deep/c": "walk"}
    info = source.info(0)
    assert (info.key, info.num_frames, info.fps, info.labels) == ("run/a", 12, 12.0, {"class": 0})
    assert source.read(0, [11, 2, 2])[:, 0, 0, 0].tolist() == [110, 20, 20]
    views = SingleClip(num_frames=4, frame_stride=1, size=4)
    assert views.sample(source, 0, torch.Generator())["clip"][0].shape == (3, 4, 4, 4)


def test_folders_of_frames_without_classes_have_no_label(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / name, 2)
    source = FrameFolders(root=str(tmp_path), fps=25.0)
    assert (len(source), source.label_classes, source.labels(0)) == (2, {}, {})


def test_folders_of_frames_divide_by_hash(tmp_path: Path) -> None:
    for number in range(8):
        write_video(tmp_path / "x" / str(number), 1)
    train, test = (FrameFolders(root=str(tmp_path), fps=1.0, part=part) for part in ("train", "test"))
    assert len(train) + len(test) == 8
    assert 1 <= len(test) < 8


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("my a 3 1\r\nb 2 0\n", [{"class": 0}, {"class": 1}]),
        ("my a 1\nb 0\n", [{"class": 0}, {"class": 1}]),
        ("my a/\nb\n", [{}, {}]),
    ],
)
def test_lists_of_folders_of_frames(tmp_path: Path, text: str, labels: list, caplog) -> None:
    write_video(tmp_path / "my a", 3)
    write_video(tmp_path / "b", 4)
    (tmp_path / "list.txt").write_text(text, newline="")
    source = FrameFolders(root=str(tmp_path), fps=25.0, list=str(tmp_path / "list.txt"))
    assert [source.key(i) for i in range(2)] == ["b", "my a"]
    assert [source.labels(i) for i in range(2)] == labels
    assert source.info(0).num_frames == (2 if "b 2 0" in text else 4)  # no more than the list says
    assert "list.txt: 2 of 2 found" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 3 1\nb 1\n", r"different numbers of columns"),
        ("a 1\na 2\n", r"list.txt:2: a is listed twice"),
        ("\n", r"the list is empty"),
        ("x 1\ny 2\n", r"none of the 2 folders of .*list.txt is in it, not even x"),
        ("a 1\nx 2\n", r"1 of 2 found, 2 classes; 1 \(50.0%\) are missing, such as x"),
    ],
)
def test_lists_of_folders_of_frames_out_of_order_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_video(tmp_path / "a", 3)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        FrameFolders(root=str(tmp_path), fps=25.0, list=str(tmp_path / "list.txt"))


def test_missing_folders_of_frames_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "a", 3)
    (tmp_path / "list.txt").write_text("a 1\nx 2\n")
    source = FrameFolders(
        root=str(tmp_path), fps=25.0, list=str(tmp_path / "list.txt"), max_missing_share=0.5
    )
    assert (len(source), source.num_listed()) == (1, 2)


def test_frames_beside_flow_take_a_prefix(tmp_path: Path) -> None:
    write_video(tmp_path / "a", 3)
    write_video(tmp_path / "a", 2, "flow_x_{:05d}.jpg")
    with pytest.raises(UsageError, match=r"images of several kinds \(flow_x_, img_\): say which by the key"):
        FrameFolders(root=str(tmp_path), fps=25.0)
    assert FrameFolders(root=str(tmp_path), fps=25.0, prefix="img_").info(0).num_frames == 3
    with pytest.raises(UnreadableSample, match=r"^a: no image x_00001.jpg or the like in it"):
        FrameFolders(root=str(tmp_path), fps=25.0, prefix="x_").info(0)


def test_frames_that_are_missing_damaged_or_of_another_size_make_a_video_unreadable(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_video(tmp_path / name, 4)
    (tmp_path / "a" / "img_00002.jpg").unlink()
    (tmp_path / "b" / "img_00002.jpg").write_bytes(b"")
    write(tmp_path, "c/img_00002.jpg", size=(8, 4))
    (tmp_path / "list.txt").write_text("a 4 0\nb 4 0\nc 4 0\nd 5 0\n")
    source = FrameFolders(root=str(tmp_path), fps=25.0, list=str(tmp_path / "list.txt"))
    with pytest.raises(UnreadableSample, match=r"^a: image 2 is missing between img_00001.jpg and img_00004"):
        source.info(0)
    with pytest.raises(UnreadableSample, match=r"^b/img_00002.jpg: the file is empty"):
        source.read(1, [1])
    with pytest.raises(UnreadableSample, match=r"^c: its frames are of different sizes"):
        source.read(2, [0, 1])
    with pytest.raises(UnreadableSample, match=r"^d: 4 frames are there, the list promises 5"):
        source.info(3)


def test_folders_of_frames_in_wrong_places_say_how_they_must_lie(tmp_path: Path) -> None:
    page = r".*docs/data/frame_folders.md"
    with pytest.raises(UsageError, match=r"no image below it" + page):
        FrameFolders(root=str(tmp_path), fps=25.0)
    with pytest.raises(UsageError, match=r"no such folder" + page):
        FrameFolders(root=str(tmp_path / "absent"), fps=25.0)
    write_video(tmp_path / "x" / "a", 1)
    write_video(tmp_path / "b", 1)
    with pytest.raises(UsageError, match=r"b holds frames and lies beside folders"):
        FrameFolders(root=str(tmp_path), fps=25.0)
    write_video(tmp_path, 1)
    with pytest.raises(UsageError, match=r"images lie in it and not in a folder for each video"):
        FrameFolders(root=str(tmp_path), fps=25.0)
    with pytest.raises(ValueError, match=r"fps must be above 0"):
        FrameFolders(root=str(tmp_path), fps=0.0)
