"""Kinetics, SSv2, Diving48, HowTo100M and EPIC-KITCHENS by their official lists, made in miniature."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from data_clips import number_shown, write_clip
from official_files import fill, keys, labelled

from vidssl.data.sources.official.videos import (
    EpicKitchens100,
    diving48,
    howto100m,
    kinetics,
    something_something_v2,
)
from vidssl.data.views.uniform import UniformClips
from vidssl.errors import UsageError


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="vidssl")


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
    ],
)
def test_kinetics_lies_in_many_ways(tmp_path: Path, files: tuple[str, ...], caplog) -> None:
    source = kinetics(**k400(tmp_path, *files))
    want = ("testifying", "massaging person's head", "playing guitar")
    assert labelled(source) == dict(zip(files, want, strict=True))
    assert source.label_classes == {"class": tuple(sorted(want))}
    assert caplog.records[-1].getMessage() == "Kinetics train.csv: 3 of 3 found, 3 classes"


def test_kinetics_files_of_the_bare_id_are_segments(tmp_path: Path, caplog) -> None:
    source = kinetics(**k400(tmp_path, "---QUuC4vJs.mp4", "-_x1Y2z3Aa0.mp4", "0aBcDeFgHiJ.mp4"))
    assert sorted(labelled(source)) == [
        "---QUuC4vJs.mp4#t=84,94",
        "-_x1Y2z3Aa0.mp4#t=6,16",
        "0aBcDeFgHiJ.mp4#t=103,113",
    ]
    assert "3 named without times: of those longer than" in caplog.records[-1].getMessage()


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
        "replacement_for_corrupted_k400/-_x1Y2z3Aa0.mp4#t=6,16": "massaging person's head",
        "0aBcDeFgHiJ_000103_000113.mp4": "playing guitar",
    }


def test_a_clip_of_two_kinetics_classes_is_found_in_the_folder_of_each(tmp_path: Path, caplog) -> None:
    text = (
        "label,youtube_id,time_start,time_end,split\na b,0aBcDeFgHiJ,1,11,train\nc,0aBcDeFgHiJ,1,11,train\n"
    )
    both = kinetics(**k400(tmp_path, "c/0aBcDeFgHiJ_000001_000011.mp4", "a_b/0aBcDeFgHiJ.mp4", text=text))
    assert labelled(both) == {"c/0aBcDeFgHiJ_000001_000011.mp4": "c", "a_b/0aBcDeFgHiJ.mp4#t=1,11": "a b"}
    shutil.rmtree(tmp_path / "train")
    kinetics(**k400(tmp_path, "0aBcDeFgHiJ_000001_000011.mp4", text=text))
    assert caplog.records[-1].getMessage().endswith("1 of 1 found, 2 classes, 1 listed twice")


def test_two_times_of_one_video_are_two_samples(tmp_path: Path) -> None:
    text = "label,youtube_id,time_start,time_end,split\na,0aBcDeFgHiJ,1,11,train\nb,0aBcDeFgHiJ,51,61,train\n"
    source = kinetics(**k400(tmp_path, "0aBcDeFgHiJ.mp4", text=text))
    assert labelled(source) == {"0aBcDeFgHiJ.mp4#t=1,11": "a", "0aBcDeFgHiJ.mp4#t=51,61": "b"}


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
        ("label,youtube_id,time_start,time_end\na,x,1,2\n,y,1,2\n", r"1 of 2 videos has no label"),
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
        ("labels", "[", r"labels.json: not valid JSON"),
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
    assert "1 entry starts later than frame 0; such files are read whole" in caplog.text
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


KITCHEN_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


def kitchen_row(name: str, start: str, stop: str, verb: int, noun: int) -> str:
    video = name.rpartition("_")[0]
    return (
        f"{name},{video[:3]},{video},00:00:00.100,{start},{stop},1,9,open door,open,{verb},door,{noun},"
        f"\"['door', 'tap']\",\"[{noun}, 1]\"\n"
    )


def kitchen(folder: Path, *, names: bool = True) -> dict[str, str]:
    """Two videos of six seconds in the release's layout, at 30 frames a second that show their number."""
    for video in ("P01_01", "P02_101"):
        write_clip(folder / video[:3] / "videos" / f"{video}.MP4", 180)
    lists = fill(folder / "annotations")
    train = (
        kitchen_row("P01_01_0", "00:00:00.14", "00:00:01.37", 3, 3)
        + kitchen_row("P01_01_1", "00:00:05.00", "00:00:05.50", 0, 1)
        + kitchen_row("P01_01_2", "00:00:05.00", "00:00:05.50", 3, 1)
    )
    validation = kitchen_row("P02_101_0", "00:00:03.00", "00:00:05.00", 3, 3) + kitchen_row(
        "P02_101_1", "00:00:04.00", "00:00:05.00", 0, 3
    )
    (lists / "EPIC_100_train.csv").write_text(KITCHEN_COLUMNS + train)
    (lists / "EPIC_100_validation.csv").write_text(KITCHEN_COLUMNS + validation)
    if names:
        for kind, words in (("verb", "take put wash open"), ("noun", "tap spoon plate door")):
            rows = "".join(f"{n},{key},\"['{key}']\",things\n" for n, key in enumerate(words.split()))
            (lists / f"EPIC_100_{kind}_classes.csv").write_text(f"id,key,instances,category\n{rows}")
    return {"root": str(folder), "annotations": str(lists)}


def named(source: EpicKitchens100) -> list[str]:
    """Key and classes of each sample."""
    return [
        " ".join([source.key(i), *(source.label_classes[k][n] for k, n in source.labels(i).items())])
        for i in range(len(source))
    ]


def test_epic_kitchens_has_a_sample_a_segment_with_verb_noun_and_their_pair(tmp_path: Path, caplog) -> None:
    given = kitchen(tmp_path)
    train = EpicKitchens100(**given, part="train")
    assert named(train) == [
        "P01/videos/P01_01.MP4#t=0.14,1.37&id=P01_01_0 open door open door",
        "P01/videos/P01_01.MP4#t=5,5.5&id=P01_01_1 take spoon take spoon",
        "P01/videos/P01_01.MP4#t=5,5.5&id=P01_01_2 open spoon open spoon",  # at the same time
    ]
    assert train.label_classes["verb"] == ("take", "put", "wash", "open")
    assert train.label_classes["action"] == ("take spoon", "take door", "open spoon", "open door")
    assert "EPIC-KITCHENS-100 train: 3 of 3 found" in caplog.text
    assert {train.group(i) for i in range(3)} == {"P01/videos/P01_01.MP4"}
    frames = train.read(1, range(train.info(1).num_frames))
    assert [number_shown(frame) for frame in frames] == list(range(150, 165))
    test = EpicKitchens100(**given, part="validation")
    assert test.label_classes == train.label_classes
    assert len(test) == 2
    known = EpicKitchens100(**given, part="validation", known_actions=True)
    assert [known.key(0)] == ["P02/videos/P02_101.MP4#t=3,5&id=P02_101_0"]
    assert len(known) == 1
    unnamed = EpicKitchens100(**kitchen(tmp_path / "b", names=False), part="train")
    assert named(unnamed)[0].endswith(" 3 3 3 3")


def test_epic_kitchens_shows_what_comes_before_an_action_and_nothing_of_it(tmp_path: Path) -> None:
    given = kitchen(tmp_path)
    keys = {"anticipate": 1.0, "observe": 2.0}
    before = EpicKitchens100(**given, part="validation", **keys)
    assert before.key(0) == "P02/videos/P02_101.MP4#t=0,2&id=P02_101_0"
    numbers = [number_shown(f) for f in before.read(1, range(before.info(1).num_frames))]
    assert numbers == list(range(30, 90))  # the action starts at frame 120
    late = EpicKitchens100(**given, part="validation", **keys, before="stop")
    assert late.key(0).endswith("#t=2,4&id=P02_101_0")
    early = EpicKitchens100(**given, part="train", **keys)
    assert early.info(0).num_frames == 1  # of an action that starts at 0.14 seconds the first frame alone


def test_the_last_clip_ends_with_what_is_seen_and_begins_with_the_first_frame() -> None:
    views = UniformClips(num_frames=4, frame_stride=2, starts="last", size=48)
    assert views.ticks(20) == [[12, 14, 16, 18]]
    assert views.ticks(5) == [[0, 0, 1, 3]]
    assert views.ticks(1) == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match="'last' is of one clip, got num_clips 2"):
        UniformClips(num_clips=2, starts="last")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            kitchen_row("P01_01_0", "00:00:05.00", "00:00:04.00", 3, 3),
            r"train.csv:2: expected a start before",
        ),
        (kitchen_row("P01_01_0", "5.00", "6.00", 3, 3), r"expected a start before a stop as 00:00:01.89"),
        (kitchen_row("P01_01_0", "00:00:05.00", "00:00:06.00", 7, 3), r"verb_classes.csv: lacks the class 7"),
        ("", r"EPIC_100_train.csv: the list is empty.*docs/data/epic_kitchens_100.md"),
    ],
)
def test_epic_kitchens_lists_out_of_order_are_refused(tmp_path: Path, row: str, message: str) -> None:
    given = kitchen(tmp_path)
    (tmp_path / "annotations" / "EPIC_100_train.csv").write_text(KITCHEN_COLUMNS + row)
    with pytest.raises(UsageError, match=message):
        EpicKitchens100(**given, part="train")
