"""``vidssl data prepare``: the same frames under the same keys, verified, resumable, originals untouched."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from array import array
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from data_clips import cut_off, damage_middle, write_clip
from data_prepared import SMALL, UNEVEN, numbers, run, write_three
from rich.console import Console

from vidssl.cli.main import main
from vidssl.data.decode.decode import probe, read_frames
from vidssl.data.sources.jpeg_shards import JpegShards
from vidssl.data.sources.manifest import Manifest
from vidssl.data.sources.video_files import VideoFolder, VideoList
from vidssl.engine.process import file_sha256, sole_process
from vidssl.errors import UsageError
from vidssl.interfaces import UnreadableSample
from vidssl.tools.data import prepare
from vidssl.tools.data.encode import H264, Form, Jpegs, pictures
from vidssl.tools.data.prepare import Prediction, print_prediction

KEYS = ["run/a.mp4", "run/b.mp4", "walk/c.avi"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_three(tmp_path_factory.mktemp("made"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "videos"))


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """All three in either form, and what was said."""
    folder = tmp_path_factory.mktemp("done")
    found = {}
    for name, form in {"h264": SMALL, "jpegs": Jpegs(short_side=24, quality=90)}.items():
        code, text = run(made, folder / name, form, processes=2)
        assert code == 0, text
        found[name] = folder / name, text
    return found


@pytest.mark.parametrize("name", ["h264", "jpegs"])
def test_frame_i_of_the_result_is_frame_i_of_the_source(done, name: str) -> None:
    root = str(done[name][0])
    source = VideoFolder(root=root) if name == "h264" else JpegShards(root=root)
    assert [source.key(index) for index in range(len(source))] == KEYS
    assert source.label_classes == {"class": ("run", "walk")}
    assert [source.labels(index)["class"] for index in range(3)] == [0, 0, 1]
    for index, count in enumerate((20, len(UNEVEN), 13)):
        assert source.info(index).num_frames == count
        order = [count - 1, 3, 0, 3]
        clip = source.read(index, order)
        assert clip.dtype == torch.uint8
        # 48 high, of which 24 stay; on its side 48 wide
        assert clip.shape == ((4, 3, 64, 24) if index == 1 else (4, 3, 24, 64))
        assert numbers(clip, turned=index == 1) == order


def test_files_have_the_stated_groups_and_seek_exactly(done) -> None:
    for key in KEYS:
        facts = probe(done["h264"][0] / key)
        assert (facts.codec, facts.no_seeking, facts.rotation) == ("h264", "", 0)
        assert [start.number for start in facts.keyframes] == list(range(0, facts.num_frames, 4))


def test_times_and_rates_are_kept(made: Path, done) -> None:
    before, after = (probe(folder / "run/b.mp4") for folder in (made, done["h264"][0]))
    times = [round((pts - after.pts[0]) * after.tick_seconds * 30, 3) for pts in after.pts]
    assert times == UNEVEN
    assert after.fps == pytest.approx(before.fps, rel=1e-4)
    even = probe(done["h264"][0] / "walk/c.avi")  # its own say nothing
    assert even.fps == pytest.approx(30)
    assert {later - earlier for earlier, later in zip(even.pts, even.pts[1:], strict=False)} == {
        round(1 / 30 / even.tick_seconds)
    }
    shards = JpegShards(root=str(done["jpegs"][0]))
    assert [shards.info(index).fps for index in range(3)] == pytest.approx([30, before.fps, 30])


def test_pixels_are_those_of_the_source(made: Path, done) -> None:
    small = read_frames(made / "run/a.mp4", [7])[:, :, ::2, ::2].float()
    for source in (VideoFolder(root=str(done["h264"][0])), JpegShards(root=str(done["jpegs"][0]))):
        assert (source.read(0, [7]).float() - small).abs().mean() < 5


def test_small_and_odd_sizes_are_never_enlarged(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", 3)
    run(tmp_path / "videos", tmp_path / "out", H264())
    facts = probe(tmp_path / "out" / "a.mp4")
    assert (facts.height, facts.width) == (48, 128)
    run(tmp_path / "videos", tmp_path / "odd", H264(short_side=27))
    facts = probe(tmp_path / "odd" / "a.mp4")
    assert (facts.height, facts.width) == (26, 72)


def test_the_manifest_serves_as_it_is(done) -> None:
    folder, text = done["h264"]
    path = folder.with_name("h264.manifest.jsonl")
    assert f"Manifest: {path}" in text
    entries = list(Manifest(path))
    assert [(entry.key, entry.status, entry.labels, entry.gop) for entry in entries] == [
        (key, "ok", {"class": key.split("/")[0]}, 4) for key in KEYS
    ]
    source = VideoFolder(root=str(folder), manifest=str(path), short="skip", min_frames=14)
    assert [source.key(index) for index in range(len(source))] == KEYS[:2]
    assert numbers(source.read(0, [5, 19])) == [5, 19]


def test_the_gain_is_predicted_and_measured(done) -> None:
    for _, text in done.values():
        assert "3 videos below" in text
        assert "Measured: " in text
        assert "a clip of 16 frames at stride 4 is read in 0." in text or "is read in 1." in text
        assert "3 clips timed (predicted: " in text


@pytest.mark.parametrize(("gain", "slower"), [(0.3, True), (1.0, False), (4.0, False), (0.0, False)])
def test_videos_that_would_be_read_more_slowly_are_better_left_alone(tmp_path: Path, gain, slower) -> None:
    console = Console(file=StringIO(), width=200)
    print_prediction(Prediction(8, 1000, 0.5, gain, 500, 60.0), tmp_path, 2, console)
    assert ("These videos are read more slowly for it: leave them" in console.file.getvalue()) == slower


def test_a_prediction_comes_before_the_rest(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(prepare, "_SAMPLE", 1)
    _, text = run(root, tmp_path / "out")
    assert text.index("Predicted from 1 video: ") < text.index("3 of 3 videos are prepared")
    assert "The disk may fill up" not in text
    monkeypatch.setattr(
        "vidssl.tools.data.prepare.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1)
    )
    assert "The disk may fill up: 1 byte left" in run(root, tmp_path / "other")[1]


def test_originals_are_untouched(made: Path, done) -> None:
    assert sorted(path.relative_to(made).as_posix() for path in made.rglob("*.*")) == KEYS


def test_bad_files_are_skipped_and_listed(root: Path, tmp_path: Path) -> None:
    (root / "run" / "empty.mp4").touch()
    damage_middle(write_clip(root / "run" / "spoilt.mp4", 40, noise=60))
    cut_off(write_clip(root / "walk" / "short.avi", 40, codec="mpeg4", noise=60), 0.5)
    code, text = run(root, tmp_path / "out")
    assert code == 1
    assert "Skipped: 2\n  run/empty.mp4: the file is empty (0 bytes)\n  run/spoilt.mp4: damaged: " in text
    assert not list((tmp_path / "out").rglob(".*.part"))
    manifest = Manifest(tmp_path / "out.manifest.jsonl")
    assert manifest.entry("run/empty.mp4").status == "unreadable"
    assert manifest.entry("walk/short.avi").status == "ok"  # what is there of it decodes
    source = VideoFolder(root=str(tmp_path / "out"), manifest=None)
    assert len(source) == 4
    write_clip(root / "run" / "empty.mp4", 5)  # mended: tried again
    assert "run/empty.mp4" not in run(root, tmp_path / "out")[1]


def test_a_lost_or_spoilt_frame_moves_no_other_up(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    facts = probe(path)
    with pytest.raises(UnreadableSample, match="damaged: frame 20 of 21 does not decode"):
        list(pictures(path, replace(facts, num_frames=21, no_seeking="cut", pts=facts.pts[:0]), (24, 64)))
    with pytest.raises(UnreadableSample, match="damaged: frame 1 of 20 does not decode"):
        list(pictures(path, replace(facts, pts=array("q", (2 * pts for pts in facts.pts))), (24, 64)))
    spoilt = damage_middle(write_clip(tmp_path / "b.avi", 40, codec="mpeg4", noise=60, max_b_frames=0))
    with pytest.raises(UnreadableSample, match="of its packets are spoilt, the first is"):
        list(pictures(spoilt, replace(probe(spoilt), no_seeking="cut", pts=facts.pts[:0]), (24, 64)))


def test_a_result_that_is_gone_is_made_again(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out")
    (tmp_path / "out" / "run" / "a.mp4").unlink()
    assert "1 video below" in run(root, tmp_path / "out")[1]
    assert numbers(read_frames(tmp_path / "out" / "run" / "a.mp4", [19])) == [19]


def test_a_result_that_differs_too_much_is_not_kept(root: Path, tmp_path: Path) -> None:
    code, text = run(root, tmp_path / "out", H264(short_side=24, crf=51, max_difference=0.5))
    assert code == 1
    assert "run/a.mp4: what was made of it did not pass the check: a frame differs from the source by" in text
    assert "--max-difference allows 0.5" in text
    assert [path.name for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".mp4", ".avi")] == []


@pytest.mark.parametrize("lost", ["frame", "order"])
def test_a_result_with_other_frames_is_not_kept(root: Path, tmp_path: Path, monkeypatch, lost: str) -> None:
    from vidssl.tools.data import encode as makers

    real = makers._encode

    def wrong(shown, *others):
        frames = list(shown)
        real(iter(frames[:-1] if lost == "frame" else frames[::-1]), *others)

    monkeypatch.setattr(makers, "_encode", wrong)
    code, text = run(root, tmp_path / "out")
    assert (code, text.count("did not pass the check")) == (1, 3)


@pytest.mark.parametrize("form", [SMALL, Jpegs(short_side=24)])
def test_what_is_finished_is_not_made_again(root: Path, tmp_path: Path, form: Form) -> None:
    out = tmp_path / "out"
    run(root, out, form)
    before = contents(out)
    code, text = run(root, out, form)
    assert code == 0
    assert "0 videos below" in text
    assert "3 are done already" in text
    assert contents(out) == before
    os.utime(root / "run" / "a.mp4", ns=(1, 1))
    assert "1 video below" in run(root, out, form)[1]


def contents(out: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("prepared.jsonl", ".lock")
    }


@pytest.mark.parametrize("form", [SMALL, Jpegs(short_side=24)])
def test_a_kill_in_the_middle_of_a_write_is_mended(root: Path, tmp_path: Path, form: Form) -> None:
    out = tmp_path / "out"
    run(root, out, form)
    whole = contents(out)
    journal = out / "prepared.jsonl"
    lines = journal.read_bytes().strip().split(b"\n")
    journal.write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:25])  # one is done, one was being noted
    for path in out.glob("*.jpegs"):
        with path.open("ab") as shard:
            shard.write(b"half a block")
    (out / "run").mkdir(exist_ok=True)
    (out / "run" / ".b.mp4.part").write_bytes(b"half a file")
    _, text = run(root, out, form)
    assert "2 videos below" in text
    (out / "run" / ".b.mp4.part").unlink(missing_ok=True)
    done = Path(json.loads(lines[1])["key"]).name
    if isinstance(form, H264):  # the others are encoded again, and rounding may differ by where memory lies
        assert contents(out).keys() == whole.keys()
        assert contents(out)[done] == whole[done]
    source = VideoFolder(root=str(out)) if isinstance(form, H264) else JpegShards(root=str(out))
    assert [numbers(source.read(index, [2, 9]), index == 1) for index in range(3)] == [[2, 9]] * 3
    if isinstance(form, Jpegs):
        rows = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()][1:]
        assert (out / "00000.jpegs").stat().st_size == sum(json_bytes(journal)[row["key"]] for row in rows)


def test_a_kill_before_the_first_line_is_mended(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepared.jsonl").write_text('{"kind":"vid')
    for left in (3, 0):
        assert f"{left} videos below" in run(root, tmp_path / "out")[1]


def json_bytes(journal: Path) -> dict[str, int]:
    rows = [
        json.loads(line)
        for line in journal.read_bytes().split(b"\n")
        if line.startswith(b'{"key"') and line.endswith(b"}")
    ]
    return {row["key"]: row["bytes"] for row in rows}


@pytest.mark.parametrize("form", [SMALL, Jpegs(short_side=24)])
def test_a_full_disk_stops_the_work_and_keeps_what_is_finished(
    root: Path, tmp_path: Path, form: Form, crew
) -> None:
    write_clip(root / "run" / "large.mp4", 8, height=128, noise=120, gop=4)
    out = tmp_path / "out"
    large = H264(short_side=128) if isinstance(form, H264) else Jpegs(short_side=128, max_difference=99)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # of each file, for want of a full disk
    try:
        with pytest.raises(
            UsageError, match=r"cannot write .*: File too large\. \d of 4 videos (is|are) prepared"
        ):
            run(root, out, large, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.rglob(".*.part"))
    code, text = run(root, out, large, processes=1)
    assert code == 0
    assert "4 of 4 videos are prepared" in text


def test_a_disk_that_fills_up_within_the_journal_keeps_what_is_finished(
    root: Path, tmp_path: Path, crew
) -> None:
    for number in range(4):
        shutil.copy(root / "walk" / "c.avi", root / "walk" / f"{number}{'long' * 50}.avi")
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(root, whole, processes=1)
    limit = (whole / "prepared.jsonl").stat().st_size - 100  # in the midst of the last line
    assert limit > max(path.stat().st_size for path in whole.rglob("*.mp4"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # of each file, for want of a full disk
    try:
        for _ in range(2):  # trying again on the full disk loses nothing either
            with pytest.raises(
                UsageError, match=r"cannot write to .*\. [456] of 7 videos are prepared"
            ) as full:
                run(root, out, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    code, text = run(root, out, processes=1)
    assert code == 0
    done = re.search(r"(\d) of 7 videos are prepared", str(full.value))[1]
    assert f"{7 - int(done)} video" in text
    assert f"; {done} are done already" in text
    assert "; 7 are done already" in run(root, out)[1]


def test_the_line_for_recipes_reads_back_as_yaml(tmp_path: Path) -> None:
    write_clip(tmp_path / "videos" / "a.mp4", 3)
    out = tmp_path / "out: 1e-5, [x]"
    line = run(tmp_path / "videos", out, Jpegs(short_side=24))[1].splitlines()[-1]
    source = yaml.safe_load(line.removeprefix("In recipes: source: "))
    assert source == {"type": "jpeg_shards", "root": str(out)}


def test_segments_of_a_list_are_told_to_stay_segments_of_whole_files(root: Path, tmp_path: Path) -> None:
    listed = root / "list.csv"
    listed.write_text("path,class,start,end\nrun/a.mp4,run,0,0.2\nrun/a.mp4,walk,0.2,0.4\n")
    code, text = run(listed, tmp_path / "out")
    assert code == 0
    assert "\nThe list names 2 segments of 1 file. Files are taken whole, not cut; " in text
    assert len(Manifest(tmp_path / "out.manifest.jsonl").entry("run/a.mp4").segments) == 2


def test_places_that_could_cost_originals_are_refused(root: Path, tmp_path: Path) -> None:
    for out in (root, root / "small", root.parent):
        with pytest.raises(UsageError, match="lie one in the other"):
            run(root, out)
    listed = tmp_path / "list.txt"
    for key in (str(root / "run" / "a.mp4"), "../videos/run/a.mp4"):
        listed.write_text(f"{key} 1\n")
        with pytest.raises(UsageError, match="leads out of"):
            run(listed, tmp_path / "out", root=root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="holds files and no prepared"):
        run(root, tmp_path / "full")
    run(root, tmp_path / "out")
    with pytest.raises(UsageError, match=r"was prepared with other settings \(now crf 20\)"):
        run(root, tmp_path / "out", H264(short_side=24, gop=4, crf=20))


def test_one_folder_has_one_process(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        sole_process(tmp_path / "out", print),
        pytest.raises(UsageError, match=f"process {os.getpid()} .*is preparing videos in this folder"),
    ):
        run(root, tmp_path / "out")


def test_the_command_line(root: Path, tmp_path: Path, capsys) -> None:
    out = str(tmp_path / "out")
    assert main(["data", "prepare", str(root), "--out", out, "--short-side", "24", "--gop", "3"]) == 0
    assert "3 of 3 videos are prepared" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "prepared.jsonl").read_text().split("\n")[1])["gop"] == 3
    for options, said in {
        ("--gop", "3", "--jpeg-shards"): "--gop goes without --jpeg-shards",
        ("--quality", "3"): "--quality goes with --jpeg-shards",
        ("--crf", "99"): "--crf must lie between 0 and 51, got 99",
        ("--processes", "0"): "--processes: expected a whole number of at least 1",
    }.items():
        assert main(["data", "prepare", str(root), "--out", out, *options]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same(root: Path, tmp_path: Path) -> None:
    for number in range(40):
        shutil.copy(root / "run" / "a.mp4", root / "run" / f"copy{number}.mp4")
    for name, options in {"h264": ["--gop", "4"], "jpegs": ["--jpeg-shards"]}.items():
        command = [sys.executable, "-m", "vidssl", "data", "prepare", str(root), "--processes", "2", *options]
        out, whole = tmp_path / name, tmp_path / f"{name}_whole"
        subprocess.run([*command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL, timeout=120)
        kills = 0
        for wanted in (3, 12, 25):
            process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline and lines(out) < wanted:
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert kills >= 2
        subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, timeout=120)
        read = VideoFolder if name == "h264" else JpegShards
        one, other = (read(root=str(folder)) for folder in (out, whole))
        assert len(one) == len(other) == 43
        for index in range(43):
            assert one.key(index) == other.key(index)
            clips = [read.read(index, [0, 7, 12]).float() for read in (one, other)]
            assert float((clips[0] - clips[1]).abs().mean()) < 1  # of 255 grey levels


def lines(out: Path) -> int:
    journal = out / "prepared.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_segments_are_cut_into_files_with_a_list_that_keeps_their_recordings_together(
    made: Path, tmp_path: Path
) -> None:
    table = tmp_path / "parts.csv"
    table.write_text(
        "path,action,start,end\nrun/a.mp4,up,0.1,0.4\nrun/a.mp4,down,0.4,0.6\nwalk/c.avi,up,0.2,9\n"
    )
    console = Console(file=StringIO(), width=200)
    code = prepare.prepare_data(table, tmp_path / "cut", SMALL, root=made, cut=True, console=console)
    assert code == 0, console.file.getvalue()
    whole = VideoList(root=str(made), list=str(table))
    cut = VideoList(
        root=str(tmp_path / "cut"),
        list=str(tmp_path / "cut.csv"),
        manifest=str(tmp_path / "cut.manifest.jsonl"),
    )
    assert [cut.key(n) for n in range(3)] == ["run/a.t0.1-0.4.mp4", "run/a.t0.4-0.6.mp4", "walk/c.t0.2-9.mp4"]
    assert [cut.group(n) for n in range(3)] == ["run/a.mp4", "run/a.mp4", "walk/c.avi"]
    for index in range(3):
        assert cut.labels(index) == whole.labels(index)
        every = range(whole.info(index).num_frames)
        assert cut.info(index).num_frames == len(every)
        assert numbers(cut.read(index, every)) == numbers(whole.read(index, every))
    assert prepare.prepare_data(table, tmp_path / "cut", SMALL, root=made, cut=True, console=console) == 0
    assert "3 are done already" in console.file.getvalue()
    with pytest.raises(UsageError, match=r"parts\.csv: is there already"):
        prepare.prepare_data(table, tmp_path / "parts", SMALL, root=made, cut=True, console=console)
    with pytest.raises(UsageError, match="none are listed"):
        prepare.prepare_data(made, tmp_path / "x", SMALL, cut=True, console=console)
