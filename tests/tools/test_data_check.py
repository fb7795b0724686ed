"""``vidssl data check``: the scan, what survives its end, duplicates, leaks and what is printed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from data_clips import cut_off, damage_middle, write_clip
from data_prepared import check

from vidssl.cli.main import main
from vidssl.data.decode import examine
from vidssl.data.decode.decode import probe
from vidssl.data.sources.listing import group_of
from vidssl.data.sources.lists import read_lists
from vidssl.data.sources.manifest import FileRecord, Manifest, Status
from vidssl.errors import UsageError
from vidssl.tools.data import check as scan, runner
from vidssl.tools.data.check import duplicates, same_content, same_group

CLIPS = os.environ.get("VIDSSL_CLIPS")
needs_clips = pytest.mark.skipif(not CLIPS, reason="VIDSSL_CLIPS does not name the folder of real clips")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    for place, name in enumerate(("a", "b", "c")):
        write_clip(root / "run" / f"{name}.mp4", 12 + place)
    write_clip(root / "walk" / "d.avi", 12, codec="mpeg4")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Two classes, four good videos."""
    return Path(shutil.copytree(made, tmp_path / "videos"))


def test_a_folder_in_order_is_scanned_and_summed_up(root: Path) -> None:
    code, text = check(root)
    assert code == 0
    manifest = Manifest(root.parent / "videos.manifest.jsonl")
    assert [entry.key for entry in manifest] == ["run/a.mp4", "run/b.mp4", "run/c.mp4", "walk/d.avi"]
    assert [entry.labels for entry in manifest] == [{"class": "run"}] * 3 + [{"class": "walk"}]
    assert sorted(path.name for path in root.rglob("*.*")) == ["a.mp4", "b.mp4", "c.mp4", "d.avi"]
    for said in (
        "4 usable videos found of 4 listed",
        "ok (4)",
        "51 in all, 12 to 14, median 12 a video",
        "mov h264 (3), avi mpeg4 (1)",
        "B-frames may be packed with others (1)",
        "clips a second per core (16 frames, stride 4",
        "Manifest: ",
    ):
        assert said in text, said


def test_bad_files_are_listed_and_the_exit_code_is_one(root: Path, crew) -> None:
    (root / "run" / "x.mp4").touch()
    damage_middle(
        write_clip(root / "run" / "y.mp4", 60, gop=6, noise=60, container_options={"movflags": "faststart"})
    )
    cut_off(
        write_clip(root / "run" / "z.mp4", 60, noise=60, container_options={"movflags": "faststart"}), 0.6
    )
    code, text = check(root, processes=2)
    assert code == 1
    assert "5 usable videos found of 7 listed" in text
    assert (
        "Left out by sources: 2\n  run/x.mp4: unreadable: the file is empty (0 bytes)\n  run/y.mp4: da"
        in text
    )
    assert "Cut off, used as far as they go: 1\n  run/z.mp4: it is cut off" in text
    (root / "run" / "x.mp4").unlink()
    (root / "run" / "y.mp4").unlink()
    assert check(root)[0] == 0  # files that are cut off can be used


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that a scan, here in this process, decodes."""
    names: list[str] = []
    monkeypatch.setattr(examine, "probe", lambda path, limits: names.append(path.name) or probe(path))
    monkeypatch.setattr(runner, "work", lambda tasks, job, **_: ((task, job(task)) for task in tasks))
    return names


def test_only_changed_files_are_looked_at_again(root: Path, decoded: list[str]) -> None:
    check(root)
    before = Manifest(root.parent / "videos.manifest.jsonl")
    decoded.clear()
    write_clip(root / "run" / "b.mp4", 30)
    os.utime(root / "run" / "c.mp4", (1, 1))
    (root / "run" / "a.mp4").rename(root / "run" / "a2.mp4")
    (root / "walk").rename(root / "stroll")
    check(root)
    after = Manifest(root.parent / "videos.manifest.jsonl")
    assert decoded == ["a2.mp4", "b.mp4", "d.avi"]
    assert [entry.key for entry in after] == ["run/a2.mp4", "run/b.mp4", "run/c.mp4", "stroll/d.avi"]
    assert after.entry("run/b.mp4").facts.num_frames == 30
    assert after.entry("run/c.mp4").mtime_ns == 10**9
    assert after.entry("run/c.mp4").facts == before.entry("run/c.mp4").facts


def test_labels_are_those_of_the_last_list(root: Path, decoded: list[str]) -> None:
    for text in ("run/a.mp4 1\n", "run/a.mp4 yes\n"):
        (root / "list.txt").write_text(text)
        check(root / "list.txt")
    (entry,) = Manifest(root / "list.manifest.jsonl")
    assert (entry.labels, decoded) == ({"class": "yes"}, ["a.mp4"])


def test_a_scan_that_was_ended_goes_on(root: Path, decoded: list[str], monkeypatch) -> None:
    real = FileRecord.to_line
    monkeypatch.setattr(
        FileRecord, "to_line", lambda entry: 1 / 0 if entry.key == "run/c.mp4" else real(entry)
    )
    with pytest.raises(ZeroDivisionError):
        check(root)
    monkeypatch.setattr(FileRecord, "to_line", real)
    part = root.parent / "videos.manifest.jsonl.part"
    with part.open("a") as file:
        file.write('{"key":"run/c.mp4","status":"o')  # as a kill leaves it
    assert decoded == ["a.mp4", "b.mp4", "c.mp4"]
    decoded.clear()
    check(root)
    assert decoded == ["c.mp4", "d.avi"]
    assert len(Manifest(root.parent / "videos.manifest.jsonl")) == 4
    assert not part.exists()


def test_a_scan_that_was_ended_in_its_first_line_goes_on(root: Path, decoded: list[str]) -> None:
    (root.parent / "videos.manifest.jsonl.part").write_text('{"key":"run/a.mp4","status":"o')
    assert check(root)[0] == 0
    assert decoded == ["a.mp4", "b.mp4", "c.mp4", "d.avi"]


def test_a_file_that_takes_the_decoder_down_is_unreadable_and_tried_again(
    root: Path, monkeypatch, crew
) -> None:
    real = scan.examine

    def dies(file):
        if file.key == "run/b.mp4":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file)

    monkeypatch.setattr(scan, "examine", dies)
    code, text = check(root)
    assert code == 1
    assert "run/b.mp4: unreadable: it could not be looked at: the process that had it ended (SIGKILL)" in text
    monkeypatch.setattr(scan, "examine", real)
    assert check(root)[0] == 0


def processes_about(root: Path) -> Iterator[str]:
    """Processes that name this folder in their command, but for those that have ended."""
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(root).encode() in commands.read_bytes():
                yield commands.parent.name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_scan_leaves_no_process_and_goes_on(root: Path) -> None:
    for number in range(30):
        shutil.copy(root / "run" / "a.mp4", root / "run" / f"copy{number}.mp4")
    command = [sys.executable, "-m", "vidssl", "data", "check", str(root), "--processes", "2"]
    part = root.parent / "videos.manifest.jsonl.part"
    slow = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=slow, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(processes_about(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(processes_about(root))
    done = part.read_bytes().count(b'"sha256"') if part.exists() else 34
    assert done >= 4
    assert subprocess.run(command, env=slow, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert len(Manifest(root.parent / "videos.manifest.jsonl")) == 34


def entry(key: str, content: str = "") -> FileRecord:
    return FileRecord(key, "ok", sha256=content)


def test_duplicates_are_files_of_the_same_content() -> None:
    entries = [entry("c", "1"), entry("a", "1"), entry("b", "2"), entry("d"), entry("e")]
    assert duplicates(entries) == [("a", "c")]


def test_leaks_are_test_videos_with_a_counterpart_in_train() -> None:
    train = [entry("a", "1"), entry("b", "2"), entry("x/v_Run_g01_c01.avi", "3"), entry("d")]
    test = [entry("c", "1"), entry("e"), entry("x/v_Run_g01_c02.avi", "4"), entry("x/v_Jump_g01_c02.avi")]
    assert [(leak.test, leak.train) for leak in same_content(train, test)] == [("c", "a")]
    assert [(leak.test, leak.train) for leak in same_group(train, test)] == [
        ("x/v_Run_g01_c02.avi", "x/v_Run_g01_c01.avi")
    ]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Run/v_Run_g07_c01.avi", "Run/v_Run_g07_c04.avi", True),
        ("Run/v_Run_g07_c01.avi", "Run/v_Run_g08_c01.avi", False),
        ("Run/v_Run_g07_c01.avi", "Jump/v_Jump_g07_c01.avi", False),
        ("wave/Film_wave_f_nm_np1_fr_med_26.avi", "wave/Film_wave_u_cm_np2_ba_goo_3.avi", True),
        ("wave/Film_wave_f_nm_np1_fr_med_26.avi", "wave/Other_wave_f_nm_np1_fr_med_26.avi", False),
        (
            "brush_hair/A_b_brush_hair_u_nm_np1_ba_goo_0.avi",
            "brush_hair/A_b_brush_hair_h_cm_np1_ri_bad_2.avi",
            True,
        ),
        ("a/holiday.mp4", "a/holiday.mp4", False),
    ],
)
def test_groups_are_read_off_the_names_of_ucf101_and_hmdb51(one: str, other: str, same: bool) -> None:
    assert (bool(group_of(one)) and group_of(one) == group_of(other)) == same


def test_leaks_between_lists_are_errors_those_of_a_division_by_hash_a_warning(root: Path) -> None:
    shutil.copy(root / "run" / "a.mp4", root / "run" / "twin.mp4")
    (root / "train.txt").write_text("run/a.mp4 0\nrun/b.mp4 0\n")
    (root / "test.txt").write_text("run/twin.mp4 0\n")
    code, text = check(root / "train.txt", test_list=root / "test.txt")
    assert code == 1
    assert "The same content: 1\n  run/a.mp4 = run/twin.mp4\n" in text
    assert f"the same content in train and {root / 'test.txt'}: 1\n  run/twin.mp4 (run/a.mp4)" in text

    for number in range(1, 9):
        shutil.copy(root / "run" / "a.mp4", root / "run" / f"v_Run_g01_c0{number}.mp4")
    code, text = check(root)
    assert code == 0
    assert "the same content in train and test as 'part' divides them (test_share 0.25)" in text
    assert "the same group" not in text  # that division keeps groups together


def test_a_list_of_held_out_videos_may_lack_labels_as_ucf101s_do(root: Path) -> None:
    (root / "train.txt").write_text("run/a.mp4 1\nrun/b.mp4 1\nwalk/d.avi 2\n")
    (root / "test.txt").write_text("run/c.mp4\n")
    code, _ = check(root / "train.txt", test_list=root / "test.txt", root=root)
    assert code == 0
    manifest = Manifest(root / "train.manifest.jsonl")
    assert [dict(manifest.entry(key).labels) for key in ("run/c.mp4", "walk/d.avi")] == [{}, {"class": "2"}]
    with pytest.raises(UsageError, match=r"test.txt: its labels are none, those of .*train.txt class"):
        read_lists(root / "train.txt", root / "test.txt")


def test_other_data_may_have_nothing_in_common(root: Path, tmp_path: Path) -> None:
    check(root)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(root / "run" / "b.mp4", other / "same.mp4")
    code, text = check(other, against=[root.parent / "videos.manifest.jsonl"])
    assert code == 1
    assert f"the same content in this and {root.parent / 'videos.manifest.jsonl'}: 1" in text


def test_a_manifest_goes_where_it_is_told_to(root: Path, tmp_path: Path) -> None:
    check(root, out=tmp_path / "new" / "m.jsonl")
    assert len(Manifest(tmp_path / "new" / "m.jsonl")) == 4
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*'--out' puts the manifest elsewhere"):
        check(root, out=tmp_path / "file" / "m.jsonl")
    with pytest.raises(UsageError, match="it describes no file"):
        check(root, out=tmp_path / "file")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "takes one folder or list, got none"),
        (["a", "b"], "takes one folder or list, got a b"),
        (["a", "--processes", "0"], "--processes: expected a whole number of at least 1, got 0"),
        (["a", "--max-frames", "0"], "--max-frames: expected a whole number of at least 1, got 0"),
        (["a", "--test-share", "1"], "--test-share: expected a number between 0 and 1, got 1"),
        (["absent"], "absent: no such folder"),
        ([".", "--root", "x"], "--test-list and --root go with a list"),
        ([".", "--against", "absent"], "no video in it"),
    ],
)
def test_what_the_command_cannot_do_is_said(
    words: list[str], said: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_command_checks_a_folder(root: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(root)
    assert main(["data", "check", ".", "--processes", "1"]) == 0
    assert "4 usable videos found of 4 listed" in capsys.readouterr().out
    assert (root.parent / "videos.manifest.jsonl").exists()


# what a scan says of each broken or odd clip
BAD_CLIPS = {
    "audio_only.mp4": ("unreadable", "no video stream in it (only audio)"),
    "avi_named.mp4": ("ok", ""),
    "corrupt_middle.avi": ("damaged", "1 of its 76 packets is damaged, the first is 39"),
    "corrupt_middle.mp4": ("damaged", "39 of its 90 frames do not decode, the first is 36"),
    "edit_list_nonkey_start.mp4": ("ok", ""),
    "h264_10bit.mp4": ("ok", ""),
    "header_damaged.mp4": ("unreadable", "the header is damaged: the first 64 bytes are zeros"),
    "lfs_pointer.mp4": (
        "unreadable",
        "a Git-LFS pointer of 131 bytes, not the file itself: fetch it with 'git lfs pull'",
    ),
    "odd_319x239_yuv444.mp4": ("ok", ""),
    "one_fps_3frames.mp4": ("ok", ""),
    "one_frame.mp4": ("ok", ""),
    "png_named.mp4": ("ok", ""),
    "portrait_rotation90.mp4": ("ok", ""),
    "random_bytes.mp4": (
        "unreadable",
        "not a video: no known format (random or encrypted bytes, or a damaged header)",
    ),
    "text.mp4": ("unreadable", "a text file, not a video (it begins with 'this is not a video')"),
    "tiny_16x12.mp4": ("ok", ""),
    "truncated.avi": ("cut", "it is cut off: 44 frames of the 90 promised are there"),
    "truncated_faststart.mp4": ("cut", "it is cut off: 53 frames of the 90 promised are there"),
    "truncated_no_moov.mp4": (
        "unreadable",
        "truncated: 30647 of at least 49191 bytes are there, and the index (moov) that follows is missing",
    ),
    "zero_bytes.mp4": ("unreadable", "the file is empty (0 bytes)"),
}


@needs_clips
def test_every_real_broken_clip_gets_its_status_and_reason(tmp_path: Path) -> None:
    code, _ = check(Path(CLIPS or "") / "bad", out=tmp_path / "m.jsonl")
    assert code == 1
    assert {entry.key: (entry.status, entry.reason) for entry in Manifest(tmp_path / "m.jsonl")} == BAD_CLIPS


@pytest.mark.slow  # tests/data/test_data_decode.py counts and reads their frames
@needs_clips
def test_every_real_good_clip_is_sound(tmp_path: Path) -> None:
    root = Path(CLIPS or "")
    code, _ = check(root / "good", out=tmp_path / "m.jsonl")
    assert code == 0
    manifest = Manifest(tmp_path / "m.jsonl")
    counts = {f"good/{entry.key}": entry.facts.num_frames for entry in manifest if entry.facts}
    means = json.loads((root / "frame_means.json").read_text())
    assert counts == {name: len(frames) for name, frames in means.items()}
    assert {entry.status for entry in manifest} == {"ok"}
    assert [entry.key for entry in manifest if entry.rate != "constant"] == ["mixed/vfr.mp4"]


def test_the_page_on_data_explains_every_field_and_status(root: Path) -> None:
    check(root)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    lines = (root.parent / "videos.manifest.jsonl").read_text().splitlines()
    fields = {field for line in lines[1:] for field in json.loads(line)}
    assert len(fields) == 25
    missing = [name for name in (*fields, *get_args(Status)) if f"`{name}`" not in page]
    assert missing == []


def test_a_damaged_manifest_is_made_anew_and_another_file_is_not_written_over(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", 5)
    check(tmp_path / "videos")
    out = tmp_path / "videos.manifest.jsonl"
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])
    assert "All files are looked at again" in check(tmp_path / "videos")[1]
    assert out.read_bytes().splitlines()[0] == whole.splitlines()[0]
    assert len([*Manifest(out)]) == 1
    out.write_text("mine\n")
    with pytest.raises(UsageError, match="no line of a manifest"):
        check(tmp_path / "videos")
    assert out.read_text() == "mine\n"
