"""Data sets read by their official files, each made here in miniature and to the letter."""

import inspect
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from data_clips import number_shown, write_clip

from vidssl.data import SOURCES, diving48, hmdb51, howto100m, kinetics, something_something_v2, ucf101
from vidssl.data_check.check import CheckRequest, check_data
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource
from vidssl.schema import keys_of
from vidssl.scoring.extraction import Encoded, table_of

PAGES = Path(__file__).parent.parent / "docs" / "data"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 8)


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vidssl")


def fill(root: Path, *keys: str) -> Path:
    """Files by name only: a source opens none before it is asked for one."""
    root.mkdir(parents=True, exist_ok=True)
    for key in keys:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
    return root


def labelled(source: DataSource) -> dict[str, str]:
    """Key -> name of the class."""
    classes = source.label_classes["class"]
    return {source.key(i): classes[source.labels(i)["class"]] for i in range(len(source))}


def keys(source: DataSource) -> list[str]:
    return [source.key(i) for i in range(len(source))]


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
    train, test = (ucf101(**given, part=part) for part in ("train", "test"))  # type: ignore[arg-type]
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
        "v_ApplyEyeMakeup_g08_c01, and max_missing_share (0.01) allows 0: fetch them, or state a larger share"
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
            ucf101(**given | changed, part="train")  # type: ignore[arg-type]
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
    check_data(CheckRequest(tmp_path / "UCF-101", out=out, processes=1))
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
    train, test = (hmdb51(**given, part=part) for part in ("train", "test"))  # type: ignore[arg-type]
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


KINETICS_CSV = (
    "label,youtube_id,time_start,time_end,split,is_cc\r\n"
    "testifying,---QUuC4vJs,84,94,train,0\r\n"
    "massaging person's head,-_x1Y2z3Aa0,6,16,train,1\r\n"
    '"playing guitar",0aBcDeFgHiJ,103,113,train,0\r\n'
)


def k400(folder: Path, *files: str, text: str = KINETICS_CSV) -> dict[str, str]:
    path = folder / "train.csv"
    path.write_text(text, newline="")
    return {"root": str(fill(folder / "train", *files)), "list": str(path)}


@pytest.mark.parametrize(
    "files",
    [
        (
            "testifying/---QUuC4vJs_000084_000094.mp4",
            "massaging person's head/-_x1Y2z3Aa0_000006_000016.mp4",
            "playing guitar/0aBcDeFgHiJ_000103_000113.mp4",
        ),
        (
            "testifying/---QUuC4vJs_000084_000094.mp4",
            "massaging_person's_head/-_x1Y2z3Aa0_000006_000016.mkv",
            "playing_guitar/0aBcDeFgHiJ_000103_000113.mp4",
        ),
        (
            "---QUuC4vJs_000084_000094.mp4",
            "-_x1Y2z3Aa0_000006_000016.mp4",
            "0aBcDeFgHiJ_000103_000113.mp4",
        ),
        ("---QUuC4vJs.mp4", "-_x1Y2z3Aa0.mp4", "0aBcDeFgHiJ.mp4"),
    ],
)
def test_kinetics_lies_in_many_ways(tmp_path: Path, files: tuple[str, ...], caplog) -> None:
    source = kinetics(**k400(tmp_path, *files))
    want = ("testifying", "massaging person's head", "playing guitar")
    assert labelled(source) == dict(zip(files, want, strict=True))
    assert source.label_classes == {"class": tuple(sorted(want))}
    assert caplog.records[-1].getMessage() == "Kinetics train.csv: 3 of 3 found, 3 classes"


def test_kinetics_replacements_come_before_what_they_replace(tmp_path: Path) -> None:
    source = kinetics(
        **k400(
            tmp_path,
            "testifying/---QUuC4vJs_000084_000094.mp4",
            "replacement/replacement_for_corrupted_k400/---QUuC4vJs_000084_000094.mp4",
            "x/-_x1Y2z3Aa0_000006_000016.mp4",
            "replacement_for_corrupted_k400/-_x1Y2z3Aa0.mp4",
            "0aBcDeFgHiJ_000103_000113.mp4",
        )
    )
    assert labelled(source) == {
        "replacement/replacement_for_corrupted_k400/---QUuC4vJs_000084_000094.mp4": "testifying",
        "replacement_for_corrupted_k400/-_x1Y2z3Aa0.mp4": "massaging person's head",
        "0aBcDeFgHiJ_000103_000113.mp4": "playing guitar",
    }


def test_a_clip_of_two_kinetics_classes_is_found_in_the_folder_of_each(tmp_path: Path, caplog) -> None:
    text = (
        "label,youtube_id,time_start,time_end,split\na b,0aBcDeFgHiJ,1,11,train\nc,0aBcDeFgHiJ,1,11,train\n"
    )
    both = kinetics(**k400(tmp_path, "c/0aBcDeFgHiJ_000001_000011.mp4", "a_b/0aBcDeFgHiJ.mp4", text=text))
    assert labelled(both) == {"c/0aBcDeFgHiJ_000001_000011.mp4": "c", "a_b/0aBcDeFgHiJ.mp4": "a b"}
    shutil.rmtree(tmp_path / "train")
    kinetics(**k400(tmp_path, "0aBcDeFgHiJ_000001_000011.mp4", text=text))
    assert caplog.records[-1].getMessage().endswith("1 of 1 found, 2 classes, 1 listed twice")


def test_two_times_of_one_video_do_not_share_a_file(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end,split\na,0aBcDeFgHiJ,1,11,train\nb,0aBcDeFgHiJ,51,61,train\n"
    source = kinetics(**k400(tmp_path, "0aBcDeFgHiJ.mp4", text=text), max_missing_share=0.5)
    assert labelled(source) == {"0aBcDeFgHiJ.mp4": "a"}


def test_kinetics_s_test_list_may_have_no_labels(tmp_path: Path) -> None:
    text = "youtube_id,time_start,time_end,split\n0aBcDeFgHiJ,1,11,test\n"
    source = kinetics(**k400(tmp_path, "0aBcDeFgHiJ_000001_000011.mp4", text=text))
    assert (source.label_classes, source.labels(0)) == ({}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 3\nb.mp4 1\n", r"lacks youtube_id, time_start, time_end and reads 'a.mp4 3'.*kinetics.md"),
        ("label,youtube_id,time_start,time_end\na,x,soon,9\n", r"train.csv:2: times must be in seconds"),
        ("label,youtube_id,time_start,time_end\na,x\n", r"train.csv:2: 2 columns of 4"),
        ("label,youtube_id,time_start,time_end\na,x,1,2\n,y,1,2\n", r"1 of 2 videos have no label"),
        ("label,youtube_id,time_start,time_end\n", r"the list is empty"),
    ],
)
def test_kinetics_lists_out_of_order_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        kinetics(**k400(tmp_path, "x.mp4", text=text))


SSV2_LABELS = {"Holding something next to something": "1", "Putting something on a surface": "0"}
SSV2_TRAIN = [
    {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    },
    {"id": "9", "label": "putting cup on a surface", "template": "Putting [something] on a surface"},
]


def ssv2(folder: Path, prefix: str = "") -> dict[str, str]:
    lists = fill(folder / "labels")
    for name, content in {
        "labels": SSV2_LABELS,
        "train": SSV2_TRAIN,
        "validation": SSV2_TRAIN[:1],
        "test": [{"id": "11"}, {"id": "12"}],
    }.items():
        (lists / f"{prefix}{name}.json").write_text(json.dumps(content))
    files = (f"{name}.webm" for name in (9, 11, 12, 78687))
    return {"root": str(fill(folder / "20bn-something-something-v2", *files)), "annotations": str(lists)}


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_something_something_s_class_is_the_template_without_brackets(tmp_path: Path, prefix: str) -> None:
    source = something_something_v2(**ssv2(tmp_path, prefix), part="train")
    assert labelled(source) == {
        "78687.webm": "Holding something next to something",
        "9.webm": "Putting something on a surface",
    }
    first = "Putting something on a surface"  # by its number, not its place in the file or the alphabet
    assert source.label_classes["class"][0] == first


def test_something_something_s_test_part_has_labels_where_its_answers_are(tmp_path: Path) -> None:
    given = ssv2(tmp_path)
    assert something_something_v2(**given, part="test").label_classes == {}
    (tmp_path / "labels" / "test-answers.csv").write_text(
        "12;Holding something next to something\r\n11;Putting something on a surface\r\n"
    )
    assert labelled(something_something_v2(**given, part="test")) == {
        "11.webm": "Putting something on a surface",
        "12.webm": "Holding something next to something",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels", '{"a": "0", "b": "2"}', r"labels.json: its 2 templates must be numbered from 0 on"),
        ("labels", "[", r"labels.json: it is no JSON"),
        ("labels", '{"Holding something next to something": "0"}', r"video 9 is of the class 'Putting"),
        ("train", '[{"id": "9"}]', r"train.json: entry 0 lacks template"),
        ("train", "[]", r"train.json: it must be a list of entries"),
    ],
)
def test_something_something_out_of_order_is_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    given = ssv2(tmp_path)
    (tmp_path / "labels" / f"{name}.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        something_something_v2(**given, part="train")


VOCAB = [["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "15Twis", "FREE"], ["Inward", "35som"]]


def diving(folder: Path) -> dict[str, str]:
    lists = fill(folder / "annotations")
    (lists / "Diving48_vocab.json").write_text(json.dumps(VOCAB))
    for name, label in {"train": 0, "V2_train": 2, "test": 1, "V2_test": 1}.items():
        rows = [
            {"vid_name": f"-0aB_{'train' in name:05d}", "label": label, "start_frame": 0, "end_frame": 167}
        ]
        (lists / f"Diving48_{name}.json").write_text(json.dumps(rows))
    return {"root": str(fill(folder / "rgb", "-0aB_00000.mp4", "-0aB_00001.mp4")), "annotations": str(lists)}


def test_diving48_has_two_versions_of_its_labels(tmp_path: Path) -> None:
    given = diving(tmp_path)
    assert labelled(diving48(**given, part="train")) == {"-0aB_00001.mp4": "Inward 35som"}
    assert labelled(diving48(**given, part="train", version=1)) == {
        "-0aB_00001.mp4": "Back 15som 05Twis FREE"
    }
    assert labelled(diving48(**given, part="test")) == {"-0aB_00000.mp4": "Back 15som 15Twis FREE"}


def test_diving48_says_that_late_starts_are_not_used_and_refuses_unknown_dives(
    tmp_path: Path, caplog
) -> None:
    given, path = diving(tmp_path), tmp_path / "annotations" / "Diving48_V2_train.json"
    path.write_text(json.dumps([{"vid_name": "-0aB_00001", "label": 1, "start_frame": 30, "end_frame": 90}]))
    diving48(**given, part="train")
    assert "1 entries start later than frame 0; their files are read whole" in caplog.text
    path.write_text(json.dumps([{"vid_name": "-0aB_00001", "label": 3}]))
    with pytest.raises(
        UsageError, match=r"-0aB_00001 has the label 3, Diving48_vocab.json 3 dives from 0 on"
    ):
        diving48(**given, part="train")


@pytest.mark.parametrize(
    "text",
    [
        "video_id,category_1,category_2,rank,task_id\n---QUuC4vJs,Food,Drinks,5,103\n0aBcDeFgHiJ,Food,Fish,1,7\n",
        "video_id\n---QUuC4vJs\n0aBcDeFgHiJ\n",
        "---QUuC4vJs \r\n\r\nfood/0aBcDeFgHiJ.mp4\r\n",
    ],
)
def test_howto100m_is_a_list_of_ids(tmp_path: Path, text: str, caplog) -> None:
    (tmp_path / "list.csv").write_text(text, newline="")
    root = fill(tmp_path / "videos", "a/---QUuC4vJs.webm", "b/0aBcDeFgHiJ.mp4", "b/unlisted.mp4")
    source = howto100m(root=str(root), list=str(tmp_path / "list.csv"))
    assert keys(source) == ["a/---QUuC4vJs.webm", "b/0aBcDeFgHiJ.mp4"]
    assert (source.label_classes, source.labels(0)) == ({}, {})
    assert caplog.records[-1].getMessage() == "HowTo100M list.csv: 2 of 2 found"


def test_a_list_of_paths_with_labels_is_not_howto100m(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 3\n")
    with pytest.raises(UsageError, match=r"list.txt:1: expected one id, got 'a.mp4 3'"):
        howto100m(root=str(tmp_path), list=str(tmp_path / "list.txt"))


OFFICIAL = ("kinetics", "ucf101", "hmdb51", "something_something_v2", "diving48", "howto100m")


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
