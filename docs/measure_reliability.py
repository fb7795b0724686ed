"""Attacks runs, commands and files: kills, signals and refusals at their file operations, and hostile files.

    python docs/measure_reliability.py --kills 20
    python docs/measure_reliability.py --kills 10 --processes 2
    python docs/measure_reliability.py --strikes 6 [--only SIGKILL eval:]
    python docs/measure_reliability.py --files 8 [--only manifest]

``--strikes`` has each command that writes files killed, signalled, or refused an operation (a full disk, a
disk that fails, rights, a file that is gone) at so many of its file operations, and starts it again: the
result must be that of a command left alone, nothing half-written may stay, and what it says must be words.
``docs/reliability/strikes.py`` has the commands and strikes. About an hour on a core for 6.

``--files`` damages each kind of file that the package writes and reads again: bytes cut, turned and grown,
entries of JSON missing or of another kind, bombs, checksums brought up to date by whoever tampers. A reader
survives that reads the file or refuses it in words, within 20 seconds of a core and 3 GiB; the number given
is about how many tries there are for each place in a file. ``docs/reliability/hostile_files.py`` has the
kinds. About ten minutes on two CPU cores; with VERBOSE=1 in the environment each try that fell is named.

Each of the three laptop recipes is shortened to 40 steps of 8 videos with a checkpoint every 3 steps. SIGKILL
comes at a moment drawn uniformly from the time that the whole run took: also while the package is imported,
the data are opened and a checkpoint is written. The same command (``run.resume=auto``) starts again, until as
many kills as asked for have hit a living process and the run has ended by itself. Equal means: every tensor
of the last checkpoint and of the last resume state, bit for bit. Some minutes for 20 kills on two CPU cores.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("bevt", "svt", "vimpac")
SHORT = (
    "schedule.steps=40", "schedule.warmup_steps=2", "data.video.batch_size=8", "data.video.test_source=null",
    "run.checkpoint_every_steps=3", "run.log_every_steps=2", "run.resume=auto", "run.device=cpu",
)  # fmt: skip
EXTRA = {
    "bevt": ("data.image.batch_size=8", "data.image.test_source=null"),
    "vimpac": ("objective.negatives=7",),
}


def command(name: str, out: Path, processes: int) -> list[str]:
    """What starts a shortened run, or lets it go on."""
    run = [
        "-m",
        "vidssl",
        "train",
        str(RECIPES / f"{name}.yaml"),
        f"run.out={out}",
        *SHORT,
        *EXTRA.get(name, ()),
    ]
    if processes == 1:
        return [sys.executable, *run]
    start = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    return [sys.executable, *start, *run]


def begin(words: list[str]) -> "subprocess.Popen[bytes]":
    """The command in a process group of its own, so that a kill takes its workers with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ended(process: "subprocess.Popen[bytes]") -> None:
    """Waits for the end of a run, which must be a good one."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"a run ended with {process.returncode}: {said.decode()[-2000:]}")


def same(one: Path, other: Path) -> bool:
    """Whether the newest checkpoint and resume state of two runs hold the same tensors."""
    for folder in ("checkpoints", "resume"):
        files = [sorted((run / folder).glob("*.safetensors"))[-1] for run in (one, other)]
        if files[0].name != files[1].name:
            return False
        first, second = map(load_file, files)
        if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True


def measure(name: str, kills: int, processes: int, luck: random.Random) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        started = time.monotonic()
        ended(begin(command(name, whole, processes)))
        seconds = time.monotonic() - started
        done = before_checkpoint = 0
        while done < kills:
            process = begin(command(name, killed, processes))
            try:
                process.wait(timeout=luck.random() * seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                done += 1
                before_checkpoint += not any(killed.glob("*/resume/*.safetensors"))
            else:  # it was done before its kill: begin another
                ended(process)
                if not same(whole / name, newest(killed, name)):
                    return f"| {name} | {processes} | {done} | {before_checkpoint} | NOT equal |"
                os.rename(killed, Path(folder) / f"done-{done}-{time.monotonic_ns()}")
        ended(begin(command(name, killed, processes)))
        equal = same(whole / name, newest(killed, name))
    return f"| {name} | {processes} | {kills} | {before_checkpoint} | {'yes' if equal else 'NOT equal'} |"


def newest(out: Path, name: str) -> Path:
    """The folder that the run ended in: kills before its first checkpoint leave empty ones."""
    return max(
        (path.parent for path in out.glob(f"{name}*/resume")),
        key=lambda path: path.stat().st_mtime,
    )


def attack(number: int, only: Sequence[str], kind: str) -> int:
    """Prints a table of what was tried and survived; exit code 1 if something fell."""
    sys.path.insert(0, str(RECIPES.parent))
    torch.set_num_threads(1)  # before forks
    from docs.reliability import hostile_files, strikes
    from docs.reliability.world import make_attacked

    fell: list[str] = []
    tries = survivals = 0
    print(f"| {kind} | tried | survived |\n| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        place = Path(folder) / "world"
        rows = (
            hostile_files.measure(make_attacked(place), number, only)
            if kind == "file"
            else strikes.measure(place, number, only)
        )
        for name, tried, fallen in rows:
            survived = tried - sum(fallen.values())
            tries, survivals = tries + tried, survivals + survived
            print(f"| {name} | {tried} | {survived} |", flush=True)
            fell += [f"{name}: {count} x {how}" for how, count in fallen.items()]
    print(f"| all | {tries} | {survivals} |", *fell, sep="\n")
    return int(bool(fell))


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--files",
        type=int,
        metavar="N",
        help="damage files instead, about N times each",
    )
    parser.add_argument(
        "--strikes", type=int, metavar="N", help="strike commands instead, at N of their file operations each"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=(),
        help="rows whose names hold one of these",
    )
    arguments = parser.parse_args()
    if arguments.files is not None:
        sys.exit(attack(arguments.files, arguments.only, "file"))
    if arguments.strikes is not None:
        sys.exit(attack(arguments.strikes, arguments.only, "command"))
    print("| recipe | processes | kills | before any checkpoint | ends as the run left alone |")
    print("| --- | --- | --- | --- | --- |")
    luck = random.Random(arguments.seed)
    for name in NAMES:
        print(measure(name, arguments.kills, arguments.processes, luck), flush=True)


if __name__ == "__main__":
    main()
