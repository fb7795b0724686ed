"""``vidssl data shard`` that was killed, or whose disk or process failed, goes on with the same result."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_clips import write_clip
from data_shards import TWO, contents, members, pack, pack_five, read_index, rows, write_five

from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.errors import UsageError
from vidssl.tools.data import shard
from vidssl.tools.data.pack import ShardToPack, pack_shard


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_five(tmp_path_factory.mktemp("made"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "videos"))


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All five packed, and what was said."""
    return pack_five(made, tmp_path_factory.mktemp("done") / "shards")


def test_what_is_finished_is_not_packed_again(root: Path, tmp_path: Path, done) -> None:
    out = tmp_path / "out"
    pack(root, out, shard_bytes=TWO)
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
    code, text = pack(root, out, shard_bytes=TWO)
    assert code == 0
    assert "3 shards packed already\n5 of 5 files lie in 3 shards, " in text
    assert contents(out) == before
    assert times == {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}


def stop_before_the_index(root: Path, out: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("vidssl.tools.data.shard.write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            pack(root, out, shard_bytes=TWO)


def test_it_goes_on_where_a_kill_left_off(made: Path, done, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    stop_before_the_index(made, out, monkeypatch)
    assert (out / ".sharding" / "00001.jsonl").exists()
    (out / ".sharding" / "00000.jsonl").unlink()  # its tar was there, and not verified yet
    (out / "00000.tar").write_bytes(b"half")
    (out / ".00000.tar.99.tmp").write_bytes(b"half")
    (out / ".sharding" / ".00000.jsonl.99.tmp").write_bytes(b"half")
    packed = []
    real = pack_shard
    monkeypatch.setattr(
        "vidssl.tools.data.pack.pack_shard", lambda given: packed.append(given.name) or real(given)
    )
    code, text = pack(made, out, shard_bytes=TWO)
    assert code == 0
    assert packed == ["00000.tar"]
    count = len(read_index(out / "index.jsonl").shards)
    assert f"; {count - 1} shards packed already" in text
    assert contents(out) == contents(done[0])


def test_a_finished_shard_that_was_cut_since_is_packed_again(
    made: Path, done, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    stop_before_the_index(made, out, monkeypatch)
    os.truncate(out / "00001.tar", 100)
    (out / ".sharding" / "00000.jsonl").write_text('{"shard":"00000.tar"')
    pack(made, out, shard_bytes=TWO)
    assert contents(out) == contents(done[0])


def test_a_kill_between_index_and_tidying_is_mended(made: Path, done, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("vidssl.tools.data.shard.Parts._tidy", lambda self: None)
        pack(made, out, shard_bytes=TWO)
    assert (out / ".sharding" / "00000.jsonl").exists()
    assert "packed already" in pack(made, out, shard_bytes=TWO)[1]
    assert contents(out) == contents(done[0])


def test_another_plan_in_the_same_place_is_refused(root: Path, tmp_path: Path, monkeypatch) -> None:
    stop_before_the_index(root, tmp_path / "begun", monkeypatch)
    pack(root, tmp_path / "whole", shard_bytes=TWO)
    for out in (tmp_path / "begun", tmp_path / "whole"):
        before = contents(out)
        with pytest.raises(
            UsageError, match=rf"{out.name} has .*\(--shard-mb was {TWO / 10**6:g}\)\. Take another"
        ):
            pack(root, out)
        with pytest.raises(UsageError, match=r"\(--seed was 0\)"):
            pack(root, out, shard_bytes=TWO, seed=3)
        os.utime(root / "run" / "a.mp4", ns=(1, 1 + time.time_ns()))
        with pytest.raises(UsageError, match=r"\(files or labels were added, removed or changed since\)"):
            pack(root, out, shard_bytes=TWO)
        assert contents(out) == before
        os.utime(root / "run" / "a.mp4", ns=(1, (root / "walk" / "e.mp4").stat().st_mtime_ns))
        shutil.copystat(tmp_path / "videos" / "run" / "a.mp4", root / "run" / "a.mp4")
    shutil.rmtree(tmp_path / "whole" / ".sharding")
    with pytest.raises(UsageError, match="its files, or the settings of the call, are others now"):
        pack(root, tmp_path / "whole", shard_bytes=TWO, seed=3)


def test_a_full_disk_stops_the_work_and_keeps_what_is_finished(root: Path, tmp_path: Path) -> None:
    write_clip(root / "run" / "large.mp4", 20, height=128, noise=200, gop=1)
    large = (root / "run" / "large.mp4").stat().st_size
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (large // 2, hard))  # of each file, for want of a full disk
    try:
        with pytest.raises(
            UsageError, match=r"cannot write .*tar: File too large\. \d of \d shards are finished"
        ):
            pack(root, out, shard_bytes=TWO, processes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.rglob(".*.tmp"))
    assert not (out / "index.jsonl").exists()
    code, text = pack(root, out, shard_bytes=TWO)
    assert code == 0
    assert "6 of 6 files lie in" in text


def test_a_disk_that_may_fill_up_is_said_before(made: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "vidssl.tools.data.shard.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1)
    )
    assert "The disk may fill up: free are 1 byte" in pack(made, tmp_path / "out")[1]


def killer(file: FileToExamine):
    if file.key == "run/a.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(file)


def test_a_file_that_takes_its_process_down_is_bad_and_no_other(
    made: Path, tmp_path: Path, monkeypatch, crew
) -> None:
    monkeypatch.setattr(shard, "examine", killer)
    code, text = pack(made, tmp_path / "out")
    assert code == 1
    assert "4 of 5 files lie in" in text
    assert "run/a.mp4: it could not be looked at: the process that had it ended (SIGKILL)" in text


def dying(given: ShardToPack):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_shard_whose_process_dies_stops_the_work(made: Path, tmp_path: Path, monkeypatch, crew) -> None:
    monkeypatch.setattr("vidssl.tools.data.pack.pack_shard", dying)
    with pytest.raises(
        UsageError, match=r"0000\d.tar could not be packed: the process .*SIGKILL.* same command"
    ):
        pack(made, tmp_path / "out")


@pytest.mark.slow
def test_killed_commands_go_on_and_give_the_same(root: Path, tmp_path: Path) -> None:
    large = write_clip(root / "run" / "large.mp4", 20, height=128, noise=200, gop=1)
    assert large.stat().st_size > 100_000
    for number in range(60):
        shutil.copy(large, root / "run" / f"copy{number}.mp4")
    command = [
        sys.executable,
        "-m",
        "vidssl",
        "data",
        "shard",
        str(root),
        "--shard-mb",
        "1",
        "--processes",
        "2",
    ]
    whole, out = tmp_path / "whole", tmp_path / "out"
    subprocess.run([*command, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL, timeout=300)
    kills = 0
    for wanted in (1, 2, 3):
        process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while (
            process.poll() is None and time.monotonic() < deadline and len(list(out.glob("*.tar"))) < wanted
        ):
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    subprocess.run([*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert contents(out) == contents(whole)
    assert len(rows(out / "index.jsonl")) == 66
    assert re.fullmatch(r"\d{8}\.mp4", next(iter(members(out / "00001.tar"))))
