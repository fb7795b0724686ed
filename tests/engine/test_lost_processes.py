"""Two processes of a launcher: a stop is agreed on, a lost one ends the others, errors are told once."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from toy_runs import assert_same_end, make_world, records, skip_without_shards

from vidssl.engine.runfolder import RunFolder

pytestmark = pytest.mark.slow

LONG = ["schedule.steps=60", "run.checkpoint_every_steps=4", "run.log_every_steps=3", "run.workers=1"]
SECONDS = 300  # after which a test gives up
Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def start(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts ``vidssl`` in two processes, as a launcher does; none of them outlives the test."""
    monkeypatch.chdir(world)
    started: list[subprocess.Popen[str]] = []

    def starts(*words: str, size: int = 2) -> list["subprocess.Popen[str]"]:
        port = free_port()
        for rank in range(size):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            environment = os.environ | {key: str(value) for key, value in variables.items()}
            environment |= {"MASTER_ADDR": "127.0.0.1", "VIDSSL_CACHE": str(world / "cache")}
            command = [sys.executable, "-m", "vidssl", *words]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-size:]

    yield starts
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def end(processes: Sequence["subprocess.Popen[str]"]) -> tuple[list[int], str]:
    """Exit codes, and all that was said."""
    said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def wait_for_state(folder: RunFolder, behind: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.stem[5:]) > behind for path in folder.states()):
            return
        time.sleep(0.01)
    raise AssertionError(f"no state behind step {behind}: {process.communicate()[0]}")


@pytest.mark.parametrize(
    ("name", "more"),
    [("bevt", []), ("svt", []), ("vimpac", []), ("svt", ["run.parallel=fsdp"])],
    ids=["bevt", "svt", "vimpac", "svt-fsdp"],
)
def test_two_processes_stopped_and_killed_end_as_the_whole_run_does(name, more, start):
    """Signals and kills hit either process at random moments; drop path and dropout are on."""
    if more:
        skip_without_shards()
    words = [f"{name}.yaml", *LONG, *more]
    label = f"{name}{len(more)}"
    codes, said = end(start("train", *words, f"name=whole-{label}"))
    assert codes == [0, 0], said
    whole, run = (RunFolder(Path("runs") / f"{kind}-{label}") for kind in ("whole", "broken"))
    processes = start("train", *words, f"name=broken-{label}")
    reached = 0
    for blow in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        wait_for_state(run, reached, processes[0])
        time.sleep(random.random() / 2)
        processes[random.randrange(2)].send_signal(blow)
        codes, said = end(processes)
        if blow == signal.SIGKILL:
            assert sorted(codes) == [-9, 2], said
            assert said.count("another process of this run has ended") == 1, said
        else:
            assert codes == [130, 130], said
            assert said.count("the network so far is saved") == 1
        reached = max(int(path.stem[5:]) for path in run.states())
        processes = start("train", "--resume", str(run.path))
    codes, said = end(processes)
    assert codes == [0, 0], said
    assert_same_end(whole, run)


def test_a_process_that_answers_no_more_ends_the_others_in_time(start):
    processes = start("train", "bevt.yaml", *LONG, "name=frozen", "run.timeout_minutes=0.1")
    wait_for_state(RunFolder(Path("runs/frozen")), 0, processes[0])
    processes[1].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    codes, said = end(processes[:1])
    assert codes == [2], said
    assert time.monotonic() - stopped < 60
    assert "given no answer for 0.1 minutes (run.timeout_minutes)" in said
    processes[1].send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bevt.yaml", "data.video.batch_size=3"], "data.video.batch_size is 3, of all processes together"),
        (["bevt.yaml", "data.video.batch_sise=3"], "unknown key"),
        (["gone.yaml"], "gone"),
        (["bevt.yaml", "run.out=/proc/nowhere"], "cannot make the run folder"),
        (["--resume", "nowhere"], "no run to go on with"),
        (["vimpac.yaml", "run.parallel=fsdp", "run.accumulate=2"], "cached features of run.accumulate"),
    ],
)
def test_what_is_wrong_is_told_once(words, message, start):
    codes, said = end(start("train", *words))
    assert codes == [2, 2], said
    assert said.count("vidssl: ") == 1, said
    assert message in said
    assert "Traceback" not in said


def test_another_number_of_processes_goes_on(start):
    skip_without_shards()
    run = RunFolder(Path("runs/moved"))
    words = ["svt.yaml", "name=moved", "run.checkpoint_every_steps=2", "run.log_every_steps=1"]
    codes, said = end(start("train", *words, "run.parallel=fsdp"))
    assert codes == [0, 0], said
    for path in (run.state_path(6), run.checkpoint_path(6)):
        path.unlink()
    codes, said = end(start("train", "--resume", str(run.path), size=1))
    assert codes == [0], said
    assert "Resumes after step 4 of 6." in said
    assert "saved by 2 processes and resumes with 1" in said
    for path in (run.state_path(6), run.checkpoint_path(6)):
        path.unlink()
    codes, said = end(start("train", "--resume", str(run.path), "run.parallel=ddp"))
    assert codes == [0, 0], said
    assert "The run was saved by" not in said  # step 4 still is that of the two


def test_torchrun_starts_them_and_the_first_speaks(world, monkeypatch):
    monkeypatch.chdir(world)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    ]
    done = subprocess.run(
        [*command, "-m", "vidssl", "train", "bevt.yaml", "name=torchrun"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"VIDSSL_CACHE": str(world / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder: runs/torchrun") == 2  # at the start and at the end
    assert len(re.findall("^step 6/6", done.stdout, re.MULTILINE)) == 1
    assert "Warning" not in done.stderr
    assert not Path("runs/torchrun-2").exists()


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize("moment", ["while they import", "while they train"])
def test_processes_end_with_a_torchrun_that_is_killed(moment, world, monkeypatch):
    monkeypatch.chdir(world)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    name = "orphans" + str(len(moment))
    launcher = subprocess.Popen(
        [*command, "-m", "vidssl", "train", "bevt.yaml", f"name={name}", *LONG, "schedule.steps=100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"VIDSSL_CACHE": str(world / "cache")},
    )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    try:
        deadline = time.monotonic() + SECONDS
        while len(ranks := [int(each) for each in children.read_text().split()]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while moment == "while they train" and not RunFolder(Path("runs", name)).states():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.0)
        assert all(map(running, ranks))
    finally:
        launcher.kill()
        launcher.wait()
    deadline = time.monotonic() + 10
    while any(map(running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [rank for rank in ranks if running(rank)]
    for rank in left:
        os.kill(rank, signal.SIGKILL)
    assert not left


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_gpus_have_the_losses_of_one(parallel, start):
    words = ["svt.yaml", "backbone.drop_path=0", "run.device=cuda", "run.precision=fp32"]
    words += ["run.log_every_steps=1", f"run.parallel={parallel}"]
    for size in (1, 2):
        codes, said = end(start("train", *words, f"name=gpus-{parallel}-{size}", size=size))
        assert codes == [0] * size, said
    one, two = (records(RunFolder(Path("runs") / f"gpus-{parallel}-{size}")) for size in (1, 2))
    assert [record["loss"] for record in two if "loss" in record] == pytest.approx(
        [record["loss"] for record in one if "loss" in record], abs=1e-4
    )
