"""UCF101 and HMDB51 by their official lists, made here in miniature; what all official data sets share."""

import inspect
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from data_clips import number_shown, write_clip
from official_files import fill, keys, labelled

from vidssl.config.schema import keys_of
from vidssl.data import SOURCES
from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.listing import ListPart
from vidssl.data.sources.official.videos import hmdb51, ucf101
from vidssl.errors import UsageError
from vidssl.evaluators.extract import Encoded, table_of
from vidssl.tools.data.check import check_data

PAGES = Path(__file__).parents[2] / "docs" / "data"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 8)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vidssl")


UCF_CLASSES = "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 Archery\r\n"  # CRLF as published; not sorted here
UCF_TRAIN = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
    "Archery/v_Archery_g09_c01.avi 3 \r\n"
)
UCF_TEST = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\nArchery/v_Archery_g01_c01.avi\r\n\r\n"
UCF_FILES = [line.split()[0] for line in (UCF_TRAIN + UCF_TEST).splitlines() if line]


def ucf(folder: Path, *, train: str = UCF_TRAIN, test: str = UCF_TEST, files: Sequence[str] = UCF_FILES):
    """Root and annotations of a small UCF101 whose splits are all the same."""
    lists = fill(folder / "ucfTrainTestlist")
    (lists / "classInd.txt").write_bytes(UCF_CLASSES.encode())
    for split in (1, 2, 3):
        (lists / f"trainlist0{split}.txt").write_bytes(train.encode())
        (lists / f"testlist0{split}.txt").write_bytes(test.encode())
    return {"root": str(fill(folder / "UCF-101", *files)), "annotations": str(lists)}


def test_ucf101_takes_classes_and_parts_from_its_lists(tmp_path: Path, caplog) -> None:
    given = ucf(tmp_path)
    train, test = (ucf101(**given, part=part) for part in ("train", "test"))
    assert train.label_classes == {"class": ("ApplyEyeMakeup", "HandstandPushups", "Archery")}
    assert test.label_classes == train.label_classes
    assert labelled(train) == {
        key: key.split("/")[0] for key in sorted(line.split()[0] for line in UCF_TRAIN.splitlines())
    }
    assert set(labelled(test)) == set(UCF_FILES) - set(labelled(train))
    assert [record.getMessage() for record in caplog.records] == [
        "UCF101 split 1 train: 4 of 4 found, 3 classes",
        "UCF101 split 1 test: 2 of 2 found, 3 classes",
    ]


def test_ucf101_reads_the_split_that_is_asked_for(tmp_path: Path) -> None:
    given = ucf(tmp_path)
    (tmp_path / "ucfTrainTestlist" / "testlist03.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    assert len(ucf101(**given, part="test", split=1)) == 2
    assert len(ucf101(**given, part="test", split=3)) == 1


def test_ucf101_s_handstands_are_found_in_either_spelling_reencoded_or_flat(tmp_path: Path) -> None:
    files = [
        "v_HandstandPushups_g08_c01.mp4",
        *(f"{Path(key).stem}.mp4" for key in UCF_FILES if "HandStand" not in key),
    ]
    source = ucf101(**ucf(tmp_path, files=files), part="train")
    assert labelled(source)["v_HandstandPushups_g08_c01.mp4"] == "HandstandPushups"
    assert len(source) == 4


def test_groups_in_train_and_test_are_said(tmp_path: Path, caplog) -> None:
    leaking = UCF_TEST + "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c03.avi\n"
    files = [*UCF_FILES, "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c03.avi"]
    ucf101(**ucf(tmp_path, test=leaking, files=files), part="test")
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert (
        "UCF101 split 1 leaks: 1 of 3 test videos are cut from the same video as a training video, such as "
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c03.avi and ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
    ) in warning.getMessage()


def test_a_video_listed_for_train_and_test_is_refused(tmp_path: Path) -> None:
    twice = UCF_TEST + "Archery/v_Archery_g09_c01.avi\n"
    with pytest.raises(UsageError, match=r"Archery/v_Archery_g09_c01.avi and 0 more .* train and for test"):
        ucf101(**ucf(tmp_path, test=twice), part="train")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("Archery/v_Archery_g09_c01.avi 2\n", r"trainlist01.txt:1: class 2, but Archery is number 3"),
        ("Archery/v_Archery_g09_c01.avi 3\nDrumming/v_x.avi 4\n", r"trainlist01.txt:2: expected CLASS/VIDEO"),
        ("v_Archery_g09_c01.avi 3\n", r"trainlist01.txt:1: expected CLASS/VIDEO"),
        ("\n", r"trainlist01.txt: the list is empty"),
    ],
)
def test_ucf101_lists_out_of_order_are_refused_with_the_line(
    tmp_path: Path, train: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ucf101(**ucf(tmp_path, train=train), part="train")


@pytest.mark.parametrize("text", ["0 A\n1 B\n", "1 A\n3 B\n", "1 A\n1 B\n", "A\n", ""])
def test_class_numbers_of_ucf101_count_from_one_without_a_gap(tmp_path: Path, text: str) -> None:
    given = ucf(tmp_path)
    (tmp_path / "ucfTrainTestlist" / "classInd.txt").write_text(text)
    with pytest.raises(UsageError, match=r"classInd.txt.*(number|without a gap)"):
        ucf101(**given, part="train")


def test_missing_videos_are_counted_and_named_and_an_error_past_the_stated_share(
    tmp_path: Path, caplog
) -> None:
    given = ucf(tmp_path, files=UCF_FILES[1:])
    with pytest.raises(UsageError) as caught:
        ucf101(**given, part="train")
    assert str(caught.value) == (
        "UCF101 split 1 train: 3 of 4 found, 3 classes; 1 (25.0%) are missing, such as "
        "v_ApplyEyeMakeup_g08_c01, and max_missing_share (0.01) allows 0: fetch them, or state a larger "
        "fraction"
    )
    source = ucf101(**given, part="train", max_missing_share=0.25)
    assert (len(source), source.num_listed()) == (3, 4)
    assert caplog.records[-1].getMessage() == (
        "UCF101 split 1 train: 3 of 4 found, 3 classes; missing: v_ApplyEyeMakeup_g08_c01"
    )
    assert caplog.records[-1].levelno == logging.WARNING
    found = Encoded({"normal": torch.zeros(3, 2)}, torch.arange(3), ())
    assert table_of(source, found, torch.device("cpu")).num_listed == 4
    with pytest.raises(ValueError, match=r"max_missing_share must be at least 0 and below 1, got 1"):
        ucf101(**given, part="train", max_missing_share=1.0)


def test_wrong_places_are_one_line_that_says_how_the_data_must_lie(tmp_path: Path) -> None:
    given = ucf(tmp_path)
    nowhere, empty = str(tmp_path / "nowhere"), str(fill(tmp_path / "empty"))
    for changed, message in (
        ({"root": nowhere}, r"nowhere: no such folder"),
        (
            {"root": empty},
            r"empty: none of the 4 files of UCF101 split 1 train is below it, not even v_Apply",
        ),
        ({"annotations": nowhere}, r"nowhere/classInd.txt: no such file"),
        ({"root": f"{given['annotations']}/classInd.txt"}, r"is no folder"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            ucf101(**given | changed, part="train")
        assert "UCF101 must lie like this: root holds ApplyEyeMakeup/v_" in str(caught.value)
        assert str(caught.value).endswith("(docs/data/ucf101.md)")
        assert "\n" not in str(caught.value)


def test_official_videos_are_read_and_know_manifests_limits_and_short_videos(
    tmp_path: Path, clip: Path
) -> None:
    given = ucf(tmp_path)
    for key in UCF_FILES:
        shutil.copy(clip, tmp_path / "UCF-101" / key)
    (tmp_path / "UCF-101" / UCF_FILES[0]).write_bytes(b"noise")
    source = ucf101(**given, part="test", short="loop", min_frames=12)
    info = source.info(1)
    assert (info.key, info.num_frames, info.fps) == ("Archery/v_Archery_g01_c01.avi", 12, 30.0)
    assert info.labels == {"class": 2}
    assert [number_shown(frame) for frame in source.read(1, [7, 9])] == [7, 1]
    out = tmp_path / "m.jsonl"
    check_data(tmp_path / "UCF-101", out=out, processes=1)
    assert UCF_FILES[0] not in keys(ucf101(**given, part="train", manifest=str(out)))
    limited = ucf101(**given, part="train", limit=2)
    assert (len(limited), limited.num_listed()) == (2, 2)


HMDB_FILES = {
    "brush_hair": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n"
    "Blonde_brush_hair_u_nm_np1_fr_med_1.avi 2 \n",
    "wave": "#20_Rhythm_wave_u_nm_np1_fr_goo_0.avi 1 \nB(1)_wave_f_nm_np1_fr_goo_2.avi 2 \n"
    "C_wave_f_nm_np1_fr_goo_2.avi 0 \n",
}


def hmdb(folder: Path, texts: dict[str, str], split: int = 1) -> dict[str, str]:
    lists = fill(folder / "testTrainMulti_7030_splits", "._wave_test_split1.txt")
    for action, text in texts.items():
        (lists / f"{action}_test_split{split}.txt").write_text(text)
        (lists / f"{action}_test_split2.txt").write_text("never_read 9\n")
    files = [f"{action}/{line.split()[0]}" for action, text in texts.items() for line in text.splitlines()]
    return {"root": str(fill(folder / "videos", *files)), "annotations": str(lists)}


def test_hmdb51_marks_train_test_and_left_out(tmp_path: Path, caplog) -> None:
    given = hmdb(tmp_path, HMDB_FILES)
    train, test = (hmdb51(**given, part=part) for part in ("train", "test"))
    assert labelled(train) == {
        "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi": "brush_hair",
        "wave/#20_Rhythm_wave_u_nm_np1_fr_goo_0.avi": "wave",
    }
    assert labelled(test) == {
        "brush_hair/Blonde_brush_hair_u_nm_np1_fr_med_1.avi": "brush_hair",
        "wave/B(1)_wave_f_nm_np1_fr_goo_2.avi": "wave",
    }
    assert test.label_classes == {"class": ("brush_hair", "wave")}
    assert "HMDB51 split 1 test: 2 of 2 found, 2 classes" in caplog.text


def test_hmdb51_s_clips_of_one_film_in_train_and_test_are_said(tmp_path: Path, caplog) -> None:
    texts = {"wave": "Film_wave_u_nm_np1_fr_goo_0.avi 1 \nFilm_wave_f_cm_np2_ba_med_1.avi 2 \n"}
    hmdb51(**hmdb(tmp_path, texts), part="train")
    assert "HMDB51 split 1 leaks: 1 of 1 test videos" in caplog.text


def test_hmdb51_lists_that_are_missing_or_out_of_order_are_named(tmp_path: Path) -> None:
    given = hmdb(tmp_path, HMDB_FILES)
    with pytest.raises(UsageError, match=r"no file in it ends in _test_split3.txt.*docs/data/hmdb51.md"):
        hmdb51(**given, part="train", split=3)
    with pytest.raises(UsageError, match=r"brush_hair_test_split2.txt:1: expected a video and 0, 1"):
        hmdb51(**given, part="train", split=2)


OFFICIAL = (
    *("kinetics", "ucf101", "hmdb51", "something_something_v2", "diving48", "howto100m"),
    "epic_kitchens_100",
)


@pytest.mark.parametrize("name", [*OFFICIAL, "imagenet", "frame_folders"])
def test_every_data_set_has_its_page_and_says_all_its_keys(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert f"type: {name}" in page
    assert f"](data/{name}.md)" in (PAGES.parent / "data.md").read_text()
    told = inspect.getdoc(SOURCES[name]) or ""
    assert [key for key in keys_of(SOURCES[name]) if f"{key}:" not in told and f"{key}," not in told] == []


def test_official_videos_share_their_keys() -> None:
    shared = ("root", "max_missing_share", "limit", "manifest", "decoder", "short", "min_frames")
    for name in OFFICIAL:
        found = keys_of(SOURCES[name])
        reference = keys_of(SOURCES["video_list"]) | {"max_missing_share": found["max_missing_share"]}
        assert {key: found[key] for key in shared} == {key: reference[key] for key in shared}


def test_keys_of_sources_are_typed_where_they_are_written() -> None:
    """The module of a source need not import the types of the keys that it inherits."""
    module = sys.modules[SOURCES["ucf101"].__module__]
    assert "DecoderName" not in vars(module)
    wanted = {name: key.wanted for name, key in keys_of(SOURCES["video_folder"]).items()}
    assert wanted["decoder"] == DecoderName
    assert wanted["part"] == ListPart
