"""From files to a list, from a list to parts, and what a check says of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from recordings import moving, write_frames, write_recording, write_takes
from rich.console import Console

from vidssl.backbones.pixels import Pixels
from vidssl.cli.main import main
from vidssl.data.sources.lists import list_notes, list_root, read_lists
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.sources.video_files import VideoList
from vidssl.data.views.uniform import UniformClips
from vidssl.engine import logging
from vidssl.errors import UsageError
from vidssl.evaluators.extract import extract
from vidssl.tools.collection.make_list import make_list
from vidssl.tools.collection.split import Rule, given_out, parted, split_list, united
from vidssl.tools.collection.survey import Seen, suitable_clip, survey_lines
from vidssl.tools.data.check import check_data


def said() -> Console:
    return Console(file=io.StringIO(), width=200)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of unequal size before two cameras, a copy encoded anew, and a broken file."""
    root = tmp_path_factory.mktemp("own") / "takes"
    write_takes(root, {"left": 4, "right": 3, "rise": 1})
    copy = [frame.repeat(2, 0).repeat(2, 1) for frame in moving("left", 0, 1)]
    write_frames(root / "cam1_left_9.mp4", copy, crf=30)
    (root / "cam0_rise_9.mp4").write_bytes((root / "cam0_rise_0.mp4").read_bytes()[:900])
    return root


def listed(takes: Path, out: Path, group: str | None = None) -> Path:
    make_list(
        takes, pattern="{camera}_{action}_{take}", labels=["action"], group=group, out=out, console=said()
    )
    return out


def test_labels_and_groups_come_from_a_pattern(takes: Path, tmp_path: Path) -> None:
    out = listed(takes, tmp_path / "takes.csv", "camera")
    (found,) = read_lists(out)
    assert found.label_classes == {"action": ("left", "right", "rise")}
    first = {file.path: (found.class_names(file)["action"], file.group) for file in found.files}
    assert first["cam1_right_2.mp4"] == ("right", "cam1")
    assert len(first) == 18
    assert list_root(out).resolve() == takes.resolve()
    assert "pattern" in list_notes(out)["made by"]
    source = VideoList(root=str(takes), list=str(out))
    assert source.group(0) == "cam0"
    assert len(source) == 18


def test_a_pattern_that_fits_in_two_ways_is_told_and_narrowed(takes: Path, tmp_path: Path) -> None:
    console = said()
    make_list(takes, pattern="{camera}_{action}", out=tmp_path / "a.csv", console=console)
    assert "fits in two ways" in text_of(console)
    assert "camera=cam0_left action=0" in text_of(console)
    console = said()
    make_list(takes, pattern="{camera:cam\\d}_{action:[a-z]+}_*", out=tmp_path / "b.csv", console=console)
    assert "two ways" not in text_of(console)
    assert "action': 3 classes" in text_of(console)
    with pytest.raises(UsageError, match=r"fits none of 18 paths, such as cam0_left_0\.mp4"):
        make_list(takes, pattern="{camera}-{action}", out=tmp_path / "c.csv", console=said())
    with pytest.raises(UsageError, match="is there already"):
        make_list(takes, out=tmp_path / "b.csv", console=said())


def test_a_split_that_was_ended_between_two_lists_goes_on(takes: Path, tmp_path: Path) -> None:
    path, rule = listed(takes, tmp_path / "takes.csv"), Rule(duplicates=False)
    files = [tmp_path / f"takes.{part}.csv" for part in ("train", "val", "test")]
    split_list(listed(takes, path), rule, console=said())
    texts = [file.read_text() for file in files]
    files[1].unlink()
    split_list(path, rule, console=said())
    assert [file.read_text() for file in files] == texts
    files[1].unlink()
    files[2].write_text("mended by hand")
    with pytest.raises(UsageError, match=r"takes\.test\.csv: is there already"):
        split_list(path, rule, console=said())
    assert not files[1].exists(), "all or none"


def test_annotations_give_segments_in_seconds_clock_times_and_frames(tmp_path: Path) -> None:
    root = tmp_path / "long"
    rows = write_recording(root, "rec1", ["left", "right"])
    table = tmp_path / "notes.csv"
    table.write_text(
        f"video_id,action,start,end\n{rows}rec1,rise,0:00:02,0:02.5\ngone,left,0,1\nrec1,left,2,2\n"
    )
    console = said()
    make_list(root, annotations=table, out=tmp_path / "seconds.csv", console=console)
    assert "Rows without a video, left out: 1" in text_of(console)
    assert "segment is empty" in text_of(console)
    (found,) = read_lists(tmp_path / "seconds.csv")
    assert [file.segment.seconds for file in found.files if file.segment] == [(0, 1.6), (1.6, 3.2), (2, 2.5)]
    table.write_text(
        "clip;who;start_frame;end_frame;what\nrec1.mp4;ann;3;16;left\nrec1.mp4;bob;16;30;right\n"
    )
    make_list(root, annotations=table, group="who", out=tmp_path / "frames.csv", console=said())
    source = VideoList(root=str(root), list=str(tmp_path / "frames.csv"))
    assert [source.info(number).num_frames for number in (0, 1)] == [13, 14]
    assert source.group(1) == "bob"
    assert list(source.label_classes) == ["what"]


def test_annotations_name_what_is_wrong(tmp_path: Path) -> None:
    root = tmp_path / "long"
    write_frames(root / "a.mp4", moving("left", 0, 0, frames=2))
    table = tmp_path / "notes.csv"
    for text, message in (
        ("path,action\nb,left\n", "none of its 1 row names a video"),
        ("path,action,start\na,left,0\n", "a segment needs start and end"),
        ("path,action\na,left\na,right\n", "listed twice with different labels, left and right"),
        ("path,action\na,\n", "'action' is empty"),
        ("path,start,end\na,0,soon\n", "expected seconds, a clock time"),
        ("path,action\na,left||up\n", "notes.csv:2: the set 'left||up' of 'action' has an empty name"),
        ("path,target:speed\na,fast\n", "'target:speed' is a target, so each cell is a number, got 'fast'"),
        (f"path,action\na,{'x' * 200_000}\n", "notes.csv:2: field larger than field limit"),
    ):
        table.write_text(text)
        with pytest.raises(UsageError, match=message):
            make_list(root, annotations=table, out=tmp_path / "x.csv", console=said())


def test_rows_are_joined_to_sets_and_a_column_becomes_a_target(takes: Path, tmp_path: Path) -> None:
    table = tmp_path / "notes.csv"
    names = sorted(path.stem for path in takes.glob("*.mp4"))[:4]
    rows = [
        f"{name},{what},{0.5 * n},{n % 2}" for n, name in enumerate(names) for what in ("b", "a")[: n + 1]
    ]
    table.write_text("clip,what,steering,side\n" + "\n".join(rows) + "\n")
    columns = {"steering": "target:steering", "side": "side"}
    with pytest.raises(UsageError, match="'--join' makes run"):
        make_list(takes, annotations=table, columns=columns, out=tmp_path / "x.csv", console=said())
    console, out = said(), tmp_path / "list.csv"
    make_list(takes, annotations=table, columns=columns, join=True, out=out, console=console)
    assert "Label 'what': several a video, 2 classes: a (3), b (4)" in text_of(console)
    assert "Label 'target:steering': a number, from 0 to 1.5" in text_of(console)
    (found,) = read_lists(out)
    assert found.label_classes["what"] == ("a|b", "b")
    assert found.label_classes["target:steering"] == ("0.0", "0.5", "1.0", "1.5")
    table.write_text("clip,target:x\n" + f"{names[0]},1\n{names[0]},2\n")
    with pytest.raises(UsageError, match="a second number of 'target:x', 2 after 1"):
        make_list(takes, annotations=table, join=True, out=tmp_path / "x.csv", console=said())
    table.write_text("clip,what\n" + f"{names[0]},|\n{names[0]},run\n{names[1]},|\n{names[1]},|\n")
    make_list(takes, annotations=table, join=True, out=tmp_path / "none.csv", console=said())
    assert read_lists(tmp_path / "none.csv")[0].label_classes["what"] == ("run", "|")
    table.write_text("clip,what,who\n" + f"{names[0]},a,g1\n{names[0]},b,g2\n")
    with pytest.raises(UsageError, match="has the groups g1 and g2"):
        make_list(takes, annotations=table, group="who", join=True, out=tmp_path / "x.csv", console=said())
    parts = tmp_path / "parts"
    split_list(out, Rule(fractions=(0.5, 0.5), duplicates=False), root=takes, out=parts, console=said())
    assert "stratified by side" in (parts / "list.train.csv").read_text()
    sets = tmp_path / "sets.csv"
    sets.write_text(
        "path,what\n" + "".join(f"{name}.mp4,{'a|b' if n else 'a'}\n" for n, name in enumerate(names))
    )
    split_list(sets, Rule((0.5, 0.5), duplicates=False), root=takes, console=(told := said()))
    assert "in 2 groups, not stratified: no label has one class a video" in text_of(told)
    assert ": all 2" not in text_of(told)
    with pytest.raises(UsageError, match="a target is a number"):
        split_list(out, Rule(stratify="target:steering"), root=takes, out=tmp_path / "y", console=said())


def test_a_split_keeps_duplicates_together_and_classes_in_every_part(takes: Path, tmp_path: Path) -> None:
    path, console = listed(takes, tmp_path / "takes.csv"), said()
    split_list(path, Rule(fractions=(0.5, 0.25, 0.25)), console=console)
    parts = {name: read_lists(tmp_path / f"takes.{name}.csv")[0] for name in ("train", "val", "test")}
    paths = {name: set(part.by_file()) for name, part in parts.items()}
    assert sum(map(len, paths.values())) == 17, "all but the broken one, none twice"
    assert any({"cam0_left_1.mp4", "cam1_left_9.mp4"} <= found for found in paths.values())
    for name in ("train", "test"):
        assert parts[name].label_classes["action"] == ("left", "right", "rise")
    text = text_of(console)
    assert "Unreadable, in no part: 1" in text
    assert "cam0_left_1.mp4 = cam1_left_9.mp4" in text
    assert "'rise' has 2 groups, and takes.val.csv lacks it" in text
    assert "seed 0, stratified by action" in list_notes(tmp_path / "takes.test.csv")["rule"]
    assert "to test on" not in text
    by_camera = listed(takes, tmp_path / "cameras.csv", group="camera")
    split_list(by_camera, Rule(fractions=(0.5, 0.5), duplicates=False), console=console)
    assert "1 group to test on: a test goes by groups, and fewer than 5 show no difference" in text_of(
        console
    )


def test_files_that_are_nowhere_and_two_ways_to_split_are_refused(
    takes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(takes, tmp_path / "takes.csv")
    with pytest.raises(UsageError, match="none of its files below nowhere can be read, such as cam0"):
        split_list(path, Rule(), root=Path("nowhere"), console=said())
    for other in (["--fractions", "0.5,0.5"], ["--leave-one-group-out"]):
        assert main(["data", "split", str(path), "--folds", "2", *other]) == 2
        assert f"{other[0]}: not allowed with argument --folds" in capsys.readouterr().err


def test_a_check_names_near_duplicates_across_parts(takes: Path, tmp_path: Path) -> None:
    for name, path in (("train", "cam0_left_1.mp4"), ("test", "cam1_left_9.mp4")):
        (tmp_path / f"{name}.csv").write_text(
            f"path,action\n{path},left\ncam0_right_{len(name) % 2}.mp4,right\n"
        )
    console = said()
    code = check_data(
        tmp_path / "train.csv", root=takes, test_list=tmp_path / "test.csv", sheets=tmp_path, console=console
    )
    text = text_of(console)
    assert code == 1
    assert "Leaks, the same pictures" in text
    assert "cam1_left_9.mp4 (cam0_left_1.mp4)" in text
    assert "cam0_right_1.mp4 (" not in text
    assert "8 at stride 2 (15 frames, 1.5 s) in 100%" in text
    assert (tmp_path / "left.png").stat().st_size > 1000


def test_groups_are_never_parted_and_every_video_is_tested_once_in_folds() -> None:
    rng = np.random.default_rng(0)
    groups = [f"person {number}" for number in rng.integers(0, 12, 60)]
    classes = [("a", "b", "c")[number] for number in rng.integers(0, 3, 60)]
    units = united(groups, [(0, 1)])
    assert units[0] == units[1]
    folds = parted(units, classes, Rule(folds=4))
    tested = [number for name, found in folds.items() if name.endswith("test") for number in found]
    assert sorted(tested) == list(range(60))
    for fold in range(1, 5):
        train, test = ({groups[n] for n in folds[f"fold{fold}.{part}"]} for part in ("train", "test"))
        assert not train & test
    out = parted(units, classes, Rule(leave_one_group_out=True))
    assert len(out) == 2 * len(set(units))
    with pytest.raises(UsageError, match="3 parts of 2 groups"):
        parted([0, 0, 1], ["a", "b", "a"], Rule())


def test_shares_are_kept_class_by_class() -> None:
    table = np.repeat(np.eye(3, dtype=np.int64), (40, 20, 3), axis=0)
    where = np.array(given_out(table, np.array([0.7, 0.15, 0.15]), seed=1))
    counts = np.stack([table[where == part].sum(0) for part in range(3)])
    assert counts.tolist() == [[28, 14, 1], [6, 3, 1], [6, 3, 1]]
    assert given_out(table, np.array([0.7, 0.3]), 1) == given_out(table, np.array([0.7, 0.3]), 1)
    pair = np.eye(1, dtype=np.int64).repeat(2, 0)
    assert sorted(given_out(pair, np.array([0.6, 0.2, 0.2]), 0)) == [0, 2], "train, then test"


def test_progress_is_told_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = said()
    with logging.progress_bar(console, "scan", 3) as advance:
        advance()
    assert text_of(console) == "", "nothing in the first half minute"
    monkeypatch.setattr(logging, "LINE_SECONDS", 0.0)
    with logging.progress_bar(console, "scan", 3) as advance:
        advance()
    assert text_of(console).startswith("scan: 1 of 3, ")


def test_reading_features_is_told_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "LINE_SECONDS", 0.0)
    source = MovingDigits(split="train", size=16, digit_size=12, num_frames=4, num_videos=6)
    views, console = UniformClips(num_frames=2, frame_stride=1, size=16), said()
    table = extract(Pixels(), source, views, batch_size=2, workers=0, console=console, title="features")
    assert len(table.keys) == 6
    assert "features: 2 of 3, " in text_of(console)


def test_a_clip_is_as_wide_as_nine_in_ten_samples_and_two_seconds_allow() -> None:
    seen = [Seen({}, frames, 30.0, 120, 160) for frames in (20, *[60] * 19)]
    assert (suitable_clip(seen, 8).frame_stride, suitable_clip(seen, 16).frame_stride) == (8, 3)
    assert suitable_clip(seen, 8).fits == 0.95
    long = [Seen({}, 3000, 30.0, 300, 400)] * 3
    assert suitable_clip(long, 16).frame_stride == 4, "75 frames at most: 2.5 seconds"
    lines = "\n".join(survey_lines([*seen, Seen({}, 60, 15.0, 300, 400)]))
    assert "20 of 21 in views of 224" in lines
    assert "Frame rates differ" in lines
