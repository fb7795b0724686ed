"""Commands that are struck at each of their file operations: killed, signalled, or refused the operation.

A file operation is what Python tells its audit hooks of (files opened for writing, files and folders made,
renamed and removed) below the folder that the command works in, in whichever of its processes. A command
survives that is killed, and whose next start ends as one that was left alone; or that is refused an operation
and ends with one line in words or does without, and whose next start ends so too.
"""

import errno
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.reliability.world import make_world, run_all

SECONDS = 60  # of a core that a command may take
PATIENCE = 600  # seconds until one that waits is taken for hung
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_MADE = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


@dataclass(frozen=True)
class Strike:
    """What happens before the file operation of a number, from 1.

    Attributes:
        signals: sent to the whole group of processes, one after the other.
        error: that the operation is refused with instead; that and all after it, if ``lasting``.
        reads: whether files opened for reading count too.
    """

    at: int = 0
    signals: tuple[signal.Signals, ...] = ()
    error: int = 0
    lasting: bool = False
    reads: bool = False


class _Hook:
    """Counts file operations of a process and of those that it forks."""

    def __init__(self, folder: Path, strike: Strike, count: mmap.mmap) -> None:
        self.folder, self.strike, self.count = f"{folder}{os.sep}", strike, count

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" and event not in _MADE:
            return
        if event == "open":
            mode, flags = arguments[1:3]
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & _WRITES
            if not writes and not self.strike.reads:
                return
        if not isinstance(arguments[0], (str, bytes)):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(self.folder):
            return
        number = struct.unpack("q", self.count[:8])[0] + 1
        self.count[:8] = struct.pack("q", number)
        if number == self.strike.at or (self.strike.lasting and number > self.strike.at > 0):
            for each in self.strike.signals:
                os.killpg(0, each)
                time.sleep(0.01)
            if self.strike.error:
                raise OSError(self.strike.error, os.strerror(self.strike.error), path)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: by a signal; 124: it took too long), output, operations."""

    code: int
    said: str
    operations: int

    @property
    def fault(self) -> str:
        """What is wrong with its end; empty if nothing is."""
        if "Traceback (most recent call last)" in self.said:
            last = [line for line in self.said.splitlines() if line and not line.startswith(" ")]
            return f"traceback: {last[-1][:100] if last else ''}"
        if self.code == 124:
            return f"more than {PATIENCE} s"
        if self.code not in (0, 1, 2, 130):
            return f"exit code {self.code}: {self.said[-100:]!r}"
        if self.code == 2 and not self.said.rstrip().splitlines()[-1:]:
            return "exit code 2 without a word"
        return ""


def ran(words: Sequence[str], folder: Path, strike: Strike | None = None) -> Ended:
    """A command in a fork of this process, which has the package imported already, in a group of its own."""
    count = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _in_child(words, folder, strike or Strike(), count, output.fileno())
        until = time.monotonic() + PATIENCE
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        late = found[0] == 0
        left = _left_behind(child)
        status = os.waitpid(child, 0)[1] if late else found[1]
        output.seek(0)
        said = output.read().decode(errors="replace")
    code = 124 if late else os.waitstatus_to_exitcode(status)
    if left and not late:
        said += "Traceback (most recent call last)\nprocesses are left"
    return Ended(code, said, struct.unpack("q", count[:8])[0])


def _left_behind(group: int) -> bool:
    """Whether processes of a group live on for some seconds, which they then do no more."""
    until = time.monotonic() + 5
    try:
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _in_child(words: Sequence[str], folder: Path, strike: Strike, count: mmap.mmap, output: int) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        from vidssl.cli.main import main

        sys.addaudithook(_Hook(folder, strike, count))
        code = main(words)
    except BaseException:
        traceback.print_exc()
    try:
        from multiprocessing.util import _exit_function

        _exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
        code = 70
    os._exit(code)


@dataclass(frozen=True)
class Struck:
    """A command, what there is before it, and what it makes.

    Attributes:
        again: the command that goes on after a kill.
        before: commands whose results are there; with ``words`` themselves last, struck at its second run.
        made: of the folder; equal after a run left alone and one that was struck.
        left: patterns of files that may not be there in the end.
    """

    name: str
    words: tuple[str, ...]
    made: Callable[[Path], object]
    before: tuple[tuple[str, ...], ...] = ()
    again: tuple[str, ...] = ()


LEFT = ("**/.*.tmp", "**/*.part", "**/.*.part")
TRAIN = ("train", "small.yaml", "run.resume=auto")
PREPARE = ("data", "prepare", "videos", "--short-side", "32", "--processes", "1", "--out")
LIST = ("data", "list", "videos", "--out", "l.csv")
INIT = ("init", "mine.yaml", "--videos", "videos", "--minutes", "0.01", "--objective", "videomae")


def commands() -> list[Struck]:
    """Those that write files."""
    shard = ("data", "shard", "videos", "--out", "shards", "--processes", "1")
    features = ("features", "runs/small", "videos", "--out", "f.safetensors")
    evaluate = ("eval", "runs/small", "--protocol", "knn", "evaluator.k=1")
    index = ("data", "index", "shards", "--out", "shards/other.jsonl", "--processes", "1")
    return [
        Struck("train", TRAIN, _run),
        Struck("train --resume", ("train", "--resume", "runs/small"), _run, (TRAIN,)),
        Struck("eval", evaluate, _scores, (TRAIN,)),
        Struck("data check", ("data", "check", "videos", "--processes", "1"), _manifest),
        Struck("data prepare", (*PREPARE, "small"), _prepared),
        Struck("data prepare --jpeg-shards", (*PREPARE, "jpegs", "--jpeg-shards"), _jpegs),
        Struck("data shard", shard, _tars),
        Struck("data index", index, _index, (shard,)),
        Struck("tokenize", ("tokenize", "tokens.yaml", "--out", "tokens"), _ids),
        Struck("features", features, _vectors, (TRAIN,)),
        Struck("data list", LIST, _lists),
        Struck("data split", ("data", "split", "l.csv", "--fractions", "0.5,0.5"), _lists, (LIST,)),
        Struck("export", ("export", "runs/small", "--to", "safetensors"), _exported, (TRAIN,)),
        Struck("push", ("push", "runs/small", "pushed"), _pushed, (TRAIN,)),
        Struck("report", ("report", "runs/small", "--no-pictures"), _page, (TRAIN, evaluate)),
        Struck("init", INIT, _begun),
        Struck("grid", ("grid", "g.yaml"), _cells),
    ]


def _bytes(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def _rows(path: Path, *without: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def _run(folder: Path) -> object:
    """Weights, states and metrics; of the newest folder, since a kill before any checkpoint leaves one."""
    run = max((path.parent for path in folder.glob("runs/*/resume")), key=lambda path: path.stat().st_mtime)
    files = sorted([*run.glob("checkpoints/*.safetensors"), *run.glob("resume/*.safetensors")])
    keys = [
        {key: value for key, value in row.items() if key in ("step", "loss", "accuracy", "grad_norm", "lr")}
        for row in _rows(run / "metrics.jsonl")
    ]
    return {str(path.relative_to(run)): _tensors(path) for path in files}, keys


def _scores(folder: Path) -> object:
    (file,) = folder.glob("runs/small/scores/*.json")
    found = json.loads(file.read_text())
    return {key: found[key] for key in ("scores",)}


def _manifest(folder: Path) -> object:
    return _rows(folder / "videos.manifest.jsonl", "clip_seconds")


def _prepared(folder: Path) -> object:
    rows = _rows(folder / "small.manifest.jsonl", "clip_seconds", "mtime_ns")
    return _bytes(folder, "small/*/*.mp4"), sorted(map(str, rows))


def _jpegs(folder: Path) -> object:
    from vidssl.build.registry import SOURCES

    source = SOURCES["jpeg_shards"](root=str(folder / "jpegs"))
    frames = [source.read(i, range(source.info(i).num_frames)).numpy() for i in range(len(source))]
    return sorted((source.key(i), str(source.labels(i)), bytes(frames[i])) for i in range(len(source)))


def _tars(folder: Path) -> object:
    import tarfile

    found = []
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar if member.isfile()]
    return sorted(found), len(_rows(folder / "shards" / "index.jsonl"))


def _index(folder: Path) -> object:
    return _rows(folder / "shards" / "other.jsonl")


def _ids(folder: Path) -> object:
    return _bytes(folder, "tokens/shards/*.ids")


def _vectors(folder: Path) -> object:
    return _tensors(folder / "f.safetensors")


def _lists(folder: Path) -> object:
    return _bytes(folder, "l*.csv")


def _exported(folder: Path) -> object:
    return _tensors(folder / "runs/small/export/safetensors/model.safetensors")


def _pushed(folder: Path) -> object:
    return _tensors(folder / "pushed/model.safetensors"), sorted(_bytes(folder / "pushed", "**/*"))


def _page(folder: Path) -> object:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return "</html>" in text, text.count("<table")


def _begun(folder: Path) -> object:
    from vidssl.config.recipe import load_recipe

    return load_recipe(str(folder / "mine.yaml")).objective.type


def _cells(folder: Path) -> object:
    rows = (folder / "runs/g/scores.csv").read_text().splitlines()
    return len(rows), sorted(_bytes(folder, "runs/g/*/checkpoints/*.safetensors"))


def struck(
    command: Struck, world: Path, strikes: Sequence[Strike], most: int
) -> Iterator[tuple[str, list[str]]]:
    """For each kind of strike its name and the faults of its tries, an empty text for each that was survived.

    Args:
        world: videos and recipes.
        strikes: kinds, without ``at``.
        most: places that are tried of each; if there are more, they are spread evenly.
    """
    base = world.with_name(f"{world.name}-base")
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(world, base, symlinks=True)
    for words in command.before:
        ended = ran(words, base)
        assert ended.code == 0, ended.said
    place = world.with_name(f"{world.name}-struck")
    for strike in strikes:
        _copied(base, place)
        alone = ran(command.words, place, Strike(reads=strike.reads))
        assert alone.code == 0, f"{command.words}: {alone.said}"
        wanted = command.made(place)
        spots = range(1, alone.operations + 1)
        if len(spots) > most:
            spots = sorted({1 + round(i * (alone.operations - 1) / (most - 1)) for i in range(most)})
        faults = []
        for at in spots:
            _copied(base, place)
            here = Strike(at, strike.signals, strike.error, strike.lasting, strike.reads)
            faults.append(_tried(command, place, here, wanted))
            if faults[-1] and os.environ.get("VERBOSE"):
                print(f"    {command.name}, operation {at} of {alone.operations}: {faults[-1]}", flush=True)
        yield _named(strike), faults
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(base, ignore_errors=True)


def _copied(base: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place, symlinks=True)


def _tried(command: Struck, place: Path, strike: Strike, wanted: object) -> str:
    ended = ran(command.words, place, strike)
    killed = signal.SIGKILL in strike.signals
    by_default = -ended.code in strike.signals  # as before a command has anything to save
    if not killed and not by_default and ended.fault:
        return f"struck: {ended.fault}"
    if killed and ended.code != -signal.SIGKILL:
        return f"not killed: exit code {ended.code}"
    again = ran(command.again or command.words, place)
    if strike.reads and again.code == 1 and "cannot be read" in again.said:
        return ""  # the file that was refused is named as bad, and stays so
    if again.code == 2 and "is there already" in again.said:  # so it has to be whole
        again = Ended(0, "", 0)
    if again.code or again.fault:
        return f"again: exit code {again.code}, {again.fault or again.said[-300:]!r}"
    try:
        if command.made(place) != wanted:
            return "again: another result than of a run left alone"
    except (OSError, ValueError, KeyError) as error:
        return f"again: {error!r}"
    left = [str(path.relative_to(place)) for pattern in LEFT for path in place.glob(pattern)]
    if strike.signals:  # a run that was ended before its first checkpoint is begun anew in another folder
        first = "runs/small/" if len(list(place.glob("runs/*"))) > 1 else "\0"
        left = [name for name in left if not name.startswith(first)]
    return f"left behind: {', '.join(left)}" if left else ""


def _named(strike: Strike) -> str:
    if strike.error:
        where = "reads and writes" if strike.reads else "writes"
        return f"{errno.errorcode[strike.error]} {'from then on' if strike.lasting else 'once'}, {where}"
    return " ".join(each.name for each in strike.signals)


STRIKES = (
    Strike(signals=(signal.SIGKILL,)),
    Strike(signals=(signal.SIGINT,)),
    Strike(signals=(signal.SIGTERM,)),
    Strike(signals=(signal.SIGHUP,)),
    Strike(signals=(signal.SIGUSR1,)),
    Strike(signals=(signal.SIGUSR1, signal.SIGTERM)),
    Strike(signals=(signal.SIGINT, signal.SIGINT)),
    Strike(error=errno.ENOSPC),
    Strike(error=errno.ENOSPC, lasting=True),
    Strike(error=errno.EIO),
    Strike(error=errno.EACCES, reads=True),
    Strike(error=errno.ENOENT, reads=True),
)


def measure(folder: Path, most: int, only: Sequence[str] = ()) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Name of each command and strike, how often it was tried, and how it fell how often."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir()
    world = folder / "world"
    world.mkdir()
    make_world(world, ())
    warm = shutil.copytree(world, folder / "warm")
    run_all(warm, [words for each in commands() for words in (*each.before, each.words)])
    for command in commands():
        strikes = [
            strike
            for strike in STRIKES
            if not only or any(word in f"{command.name}: {_named(strike)}" for word in only)
        ]
        if not strikes:
            continue
        for name, faults in struck(command, world, strikes, most):
            fallen: dict[str, int] = {}
            for fault in filter(None, faults):
                fallen[fault] = fallen.get(fault, 0) + 1
            yield f"{command.name}: {name}", len(faults), fallen
