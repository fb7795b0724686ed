"""``vidssl selftest gpu``: what of the package works on this machine's GPU, and how fast, in one command.

Each part has a process of its own and a share of the time: one that runs out of memory, lacks a package or
never ends is a row of the table with its reason, and the next one begins.
"""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console

import vidssl
from vidssl.build import build
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.data.decode.decoders import why_unusable
from vidssl.engine.logging import print_line, terminal
from vidssl.engine.process import check_writable, write_text
from vidssl.engine.runfolder import RunFolder, describe_environment
from vidssl.engine.speed import peak_memory
from vidssl.errors import UsageError, counted
from vidssl.evaluators.knn import nearest
from vidssl.tools.bench import measured, verdict
from vidssl.tools.dry_run import count_flops
from vidssl.train.run import train_recipe
from vidssl.train.trial import Trial, random_batch

Where = Literal["cuda", "cpu"]
Status = Literal["ok", "failed", "absent", "not run"]
Numbers = Mapping[str, float | str | None]

_LAPTOP = ("bevt", "svt", "vimpac", "videomae", "vjepa", "lejepa")
_STEPS = {"cuda": 100, "cpu": 3}  # of each run that is compared with another
_LEAST_SECONDS, _GRACE = 5.0, 15.0  # in which no part gets anywhere; beside its share, to import and to end
# TFLOP/s of matrix products of bf16 into fp32, dense, by the makers' data sheets; words of the device's name
_PEAKS: Mapping[tuple[str, ...], float] = {
    ("B200",): 2250, ("GH200",): 989, ("H200",): 989, ("H200", "NVL"): 835, ("H100",): 989,
    ("H100", "NVL"): 835, ("H100", "PCIe"): 756, ("H20",): 148, ("A100",): 312, ("A40",): 150,
    ("A30",): 165, ("A10",): 125, ("L40S",): 362, ("L40",): 181, ("L4",): 121, ("A6000",): 155,
    ("6000", "Ada"): 364, ("4090",): 165, ("3090",): 71,
}  # fmt: skip
_CUT_DOWN = {"Laptop", "MIG", "Max"}  # words of devices that are slower than their name


def peak_flops(name: str) -> float | None:
    """FLOP/s that a device can do at most in bf16, dense; None for one that is not in the table."""
    words = set(re.split(r"[^A-Za-z0-9]+", name))
    known = [row for row in _PEAKS if words.issuperset(row)]
    return None if not known or words & _CUT_DOWN else _PEAKS[max(known, key=len)] * 1e12


@dataclass(frozen=True)
class Row:
    """What a part found.

    Attributes:
        said: in words.
        numbers: what was measured, by name.
        seconds: that it took, its process's start included.
        log: last lines of what a part that failed has printed.
    """

    part: str
    status: Status
    said: str
    numbers: Numbers = field(default_factory=dict)
    seconds: float = 0.0
    log: Sequence[str] = ()


@dataclass(frozen=True)
class Bench:
    """Where a part runs.

    Attributes:
        seconds: that it should take.
        file: that gets the row; what is there when a part is stopped stands.
    """

    name: str
    device: Where
    seconds: float
    file: Path

    def found(self, status: Status, said: str, numbers: Numbers | None = None) -> None:
        """Writes the row down, over an earlier one."""
        write_text(self.file, json.dumps(asdict(Row(self.name, status, said, dict(numbers or {})))))


@dataclass(frozen=True)
class Part:
    """A check: how much of the time it gets, beside the others, and what it does."""

    weight: float
    run: Callable[[Bench], None]


def selftest_gpu(
    *,
    device: Where = "cuda",
    seconds: float | None = None,
    only: Sequence[str] = (),
    out: str = "selftest-gpu.json",
    console: Console | None = None,
) -> int:
    """Runs all parts, and writes what they found as JSON and, beside it, as a table in Markdown.

    Args:
        device: "cpu" goes through the same parts with small sizes, and says nothing of a GPU.
        seconds: that all of it takes at most; 480 on a GPU, 120 on a CPU.
        only: names of parts, or how they begin; all if empty.
        out: the JSON file.

    Returns:
        Exit code: 0, or 1 if a part failed.

    Raises:
        UsageError: without a GPU, unless a CPU is asked for; for an unknown part.
    """
    console = console or terminal()
    if device == "cuda" and not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise UsageError(
            f"selftest gpu needs a CUDA device, and torch {torch.__version__}, which {built}, sees none; "
            "--device cpu goes through the same parts on the CPU, with small sizes"
        )
    parts = {name: part for name, part in PARTS.items() if not only or name.startswith(tuple(only))}
    if not parts:
        raise UsageError(f"--only: no part begins with {' or '.join(only)}; there are {', '.join(PARTS)}")
    until = time.monotonic() + (seconds or (480.0 if device == "cuda" else 120.0))
    file, rows = Path(out), list[Row]()
    check_writable(file, "name another with --out", lambda line: print_line(console, line))
    with tempfile.TemporaryDirectory(prefix="vidssl-selftest-") as folder:
        for name, part in parts.items():
            waiting = [PARTS[each].weight for each in list(parts)[len(rows) :]]
            left = until - time.monotonic()
            bench = Bench(name, device, left * part.weight / sum(waiting), Path(folder) / "row.json")
            row = _in_own_process(bench, left)
            rows.append(row)
            print_line(console, f"{row.status:7} {row.part}: {row.said}")
            found = {"environment": describe_environment(), "device": device, "rows": [*map(asdict, rows)]}
            write_text(file, json.dumps(found, indent=1) + "\n")
            write_text(file.with_suffix(".md"), page(rows, device))
    failed = [row.part for row in rows if row.status == "failed"]
    print_line(console, f"{_heading(device)} {file} and {file.with_suffix('.md')} are written.")
    print_line(console, f"Failed: {', '.join(failed)}." if failed else "Nothing failed.")
    return 1 if failed else 0


def _in_own_process(bench: Bench, left: float) -> Row:
    """A part's row, whatever becomes of its process; with it end all that it has started."""
    if left < _LEAST_SECONDS:
        return Row(bench.name, "not run", "the time was up")
    bench.file.unlink(missing_ok=True)
    began, log = time.monotonic(), bench.file.with_suffix(".log")
    limit = min(left, 2 * bench.seconds + _GRACE)
    words = [bench.name, bench.device, str(bench.seconds), str(bench.file)]
    # in a folder without recipes of the user's, and so that a checkout that is not installed is found
    paths = [str(Path(vidssl.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "VIDSSL_CACHE": str(bench.file.parent / "cache"),
    }
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "vidssl.tools.selftest_gpu", *words],
            stdout=said, stderr=subprocess.STDOUT, cwd=bench.file.parent, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_all(process)
    return _row_of(bench, code, time.monotonic() - began, log.read_text(encoding="utf-8", errors="replace"))


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, and those of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _row_of(bench: Bench, code: int | None, seconds: float, log: str) -> Row:
    """The row that a part has left, or why there is none."""
    found = json.loads(bench.file.read_text()) if bench.file.exists() else {}
    lines = [line for line in log.splitlines() if line.strip()]
    if code == 0 and found:
        return Row(**found | {"seconds": seconds})
    why = f"no end within {seconds:.0f} s" if code is None else lines[-1] if lines else f"exit code {code}"
    if code is None and found:  # the first of its measurements stand
        return Row(**found | {"seconds": seconds, "said": f"{found['said']}; then {why}"})
    status: Status = "not run" if code is None else "failed"
    return Row(bench.name, status, why, found.get("numbers", {}), seconds, lines[-20:])


# parts: the machine


def _device(bench: Bench) -> None:
    """Name and size of the device, and what it reaches in one matrix product and in a copy."""
    on_gpu = bench.device == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
    matrix = torch.randn(side, side, device=bench.device, dtype=dtype)
    reached = 2 * side**3 / _shortest(lambda: matrix @ matrix, on_gpu)
    source = torch.empty((1 << 30) if on_gpu else (1 << 26), dtype=torch.uint8, device=bench.device)
    copied = 2 * source.nbytes / _shortest(source.clone, on_gpu)
    numbers: dict[str, float | str | None] = {"matmul_flops": reached, "copy_bytes_per_second": copied}
    said = f"a matrix product reaches {reached / 1e12:.3g} TFLOP/s, a copy {copied / 1e9:.3g} GB/s"
    if on_gpu:
        about = torch.cuda.get_device_properties(0)
        peak = peak_flops(about.name)
        numbers |= {
            "name": about.name, "memory_bytes": about.total_memory, "peak_flops": peak,
            "capability": f"{about.major}.{about.minor}", "cuda": torch.version.cuda,
        }  # fmt: skip
        known = "unknown peak" if peak is None else f"peak {peak / 1e12:.0f} TFLOP/s"
        said = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {known}; bf16 {said}"
    bench.found("ok", said, numbers)


def _shortest(do: Callable[[], object], on_gpu: bool) -> float:
    """Seconds of the fastest of some calls."""
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        do()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken)


def _tests(bench: Bench) -> None:
    """The repository's own tests for a GPU."""
    root = Path(vidssl.__file__).parent.parent
    if not (root / "pyproject.toml").is_file() or not (root / "tests" / "conftest.py").is_file():
        bench.found("absent", "only the package is installed; the tests lie in the repository")
        return
    if find_spec("pytest") is None:
        bench.found("absent", "pytest is not installed")
        return
    files = [
        str(path) for path in sorted((root / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    words = ["-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if bench.device == "cpu":
        words.append("--collect-only")
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    last = done.stdout.strip().splitlines()[-1].strip("= ")
    if bench.device == "cpu" and done.returncode == 0:
        bench.found("not run", f"needs a GPU; {last}")
    else:
        bench.found("failed" if done.returncode else "ok", last)


def _faiss(bench: Bench) -> None:
    """Neighbours by faiss where the features are, held against plain torch."""
    generator = torch.Generator().manual_seed(0)
    train, test = (
        F.normalize(torch.randn(rows, 64, generator=generator), dim=1).to(bench.device)
        for rows in (20_000, 500)
    )
    try:
        found = nearest(train, test, 20, "faiss")[0]
    except UsageError as error:
        bench.found("absent", str(error))
        return
    difference = float((found - nearest(train, test, 20, "torch")[0]).abs().max())
    status: Status = "ok" if difference < 1e-4 else "failed"
    bench.found(
        status, f"similarities differ from torch's by {difference:.1e} at most", {"difference": difference}
    )


def _nvdec(bench: Bench) -> None:
    """The decoder of the GPU, on the package's own clip."""
    why = why_unusable(bench.device)
    name = "NVDEC" if bench.device == "cuda" else "torchcodec on the CPU"
    bench.found("absent" if why else "ok", why or f"{name} gives the frames of the package's own clip")


# parts: two runs compared


@dataclass(frozen=True)
class Compared:
    """The first steps of a recipe, taken in two ways.

    Attributes:
        one, other: overrides; "DEVICE" in them is the device under test.
        begin, end: how far the first loss, and the mean of the last tenth, may lie apart, of their size.
        group: whether the other is one of several processes, though the only one.
    """

    recipe: str
    one: tuple[str, ...]
    other: tuple[str, ...]
    begin: float
    end: float
    group: bool = False

    def run(self, bench: Bench) -> None:
        torch.backends.cudnn.allow_tf32 = False  # convolutions of fp32 are to be that
        steps, until = _STEPS[bench.device], time.monotonic() + bench.seconds
        losses, speeds = list[list[float]](), list[float]()
        for number, words in enumerate((self.one, self.other)):
            recipe = _laptop(self.recipe, [word.replace("DEVICE", bench.device) for word in words])
            seconds = max(1.0, (until - time.monotonic()) / (2 - number))
            with _group_of_one(bench) if self.group and number else nullcontext():
                curve, speed = _curve(recipe, steps, seconds)
            losses, speeds = [*losses, curve], [*speeds, speed]
        taken = min(map(len, losses))
        if taken == 0:
            bench.found("not run", f"no step was taken within {bench.seconds:.0f} s")
            return
        first, last = apart(*losses)
        ok = first <= self.begin and last <= self.end  # NaN is not
        bench.found(
            "ok" if ok else "failed",
            f"loss of step 1 differs by {first:.1e} ({self.begin:.0e} allowed), the last tenth of "
            f"{counted(taken, 'step')} by {last:.1e} ({self.end:.0e}); "
            f"{speeds[0] / speeds[1]:.3g} times as fast",
            {"steps": taken, "first": first, "last": last, "speed": speeds[0] / speeds[1]},
        )  # fmt: skip


def apart(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """How far two curves lie apart, of their size: in the first step, and in the mean of the last tenth.

    Of the steps that both have, one at the least.
    """
    taken = min(len(one), len(other))
    last = slice(taken - max(1, taken // 10), taken)
    pairs = ((one[0], other[0]), (statistics.fmean(one[last]), statistics.fmean(other[last])))
    first, end = (abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
    return first, end


def _laptop(name: str, words: Sequence[str]) -> Recipe:
    """A laptop recipe on a few videos, which are made in seconds, and without tests on others."""
    streams = load_recipe(name).data.streams
    own = [
        word
        for stream in streams
        for word in (f"data.{stream}.source.num_videos=256", f"data.{stream}.test_source=null")
    ]
    run = ["run.out=runs", "run.log_every_steps=1", "run.checkpoint_every_steps=1000000"]
    return load_recipe(name, [*own, *run, "data.probe=null", *words])


def _curve(recipe: Recipe, steps: int, seconds: float) -> tuple[list[float], float]:
    """Losses of the first steps of a run, as many as the time allows, and the median seconds of one."""
    with _stopped_after(seconds):
        _, result = train_recipe(recipe, terminal(quiet=True), stop_after=steps)
    lines = RunFolder(result.folder).metrics.read_text().splitlines() if result.steps else []
    records = [record for record in map(json.loads, lines) if "loss" in record]
    at = [float(record["seconds"]) for record in records]
    between = [later - earlier for earlier, later in pairwise(at)]
    return [float(record["loss"]) for record in records], statistics.median(between) if between else math.nan


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Asks the run within it to stop, as a scheduler would, once the time is over."""
    before, over = signal.signal(signal.SIGUSR1, signal.SIG_IGN), threading.Event()

    def ask() -> None:
        wait = seconds
        while not over.wait(wait):  # again and again: before its first step a run does not listen
            os.kill(os.getpid(), signal.SIGUSR1)
            wait = 0.5

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def _group_of_one(bench: Bench) -> Iterator[None]:
    """A process group whose only member this process is."""
    backend = "cpu:gloo,cuda:nccl" if bench.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _loader(bench: Bench) -> None:
    """Whether a laptop recipe's run would wait for its data here."""
    recipe = _laptop("bevt", [f"run.device={bench.device}"])
    found = measured(recipe, bench.seconds, terminal(quiet=True))
    bench.found("ok", verdict(found), {"loader_seconds": found.loader, "step_seconds": found.step})


# parts: sizes of the papers


@dataclass(frozen=True)
class Size:
    """A step on random clips of a paper's size; with half the batch where memory does not suffice.

    Attributes:
        small: further overrides on a CPU.
        batch: videos of the first try.
    """

    recipe: str
    batch: int
    words: tuple[str, ...] = ()
    small: tuple[str, ...] = ()

    def run(self, bench: Bench) -> None:
        batch, until = self.batch if bench.device == "cuda" else 2, time.monotonic() + bench.seconds
        while True:
            try:
                numbers = self._measure(bench, batch, compiled=False, seconds=bench.seconds / 4)
                break
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
            torch.cuda.empty_cache()
        said = self._say(bench, batch, numbers)
        if time.monotonic() < until:
            left = until - time.monotonic()
            compiled = self._measure(bench, batch, compiled=True, seconds=left / 2)
            numbers |= {f"compiled_{name}": value for name, value in compiled.items()}
            said += f"; compiled {compiled['clips_per_second']:.3g} clips/s"
        bench.found("ok", said, {"batch": batch, **numbers})

    def _say(self, bench: Bench, batch: int, numbers: Mapping[str, float | None]) -> str:
        """What the first measurement found; written down before the next one begins."""
        share = "MFU unknown" if numbers["mfu"] is None else f"MFU {numbers['mfu']:.0%}"
        said = (
            f"{numbers['clips_per_second']:.3g} clips/s, {share}, {(numbers['peak_bytes'] or 0) / 2**30:.3g} "
            f"GiB with batches of {batch}"
        )
        bench.found("ok", said, {"batch": batch, **numbers})
        return said

    def _measure(
        self, bench: Bench, batch: int, *, compiled: bool, seconds: float
    ) -> dict[str, float | None]:
        on_gpu, words = bench.device == "cuda", [*self.words, *(() if bench.device == "cuda" else self.small)]
        words = [word.replace("BATCH-1", str(max(1, batch - 1))) for word in words]
        recipe = load_recipe(
            self.recipe,
            [
                *words, f"data.video.batch_size={batch}", "run.accumulate=1", f"run.device={bench.device}",
                f"run.precision={'bf16' if on_gpu else 'fp32'}", f"run.compile={str(compiled).lower()}",
            ],
        )  # fmt: skip
        build.check(recipe)
        torch.manual_seed(0)
        trial = Trial(recipe, build.untrained(recipe), build.schedule(recipe).plan({"video": 100.0}))
        batch_of_noise = random_batch(recipe)
        flops = count_flops(lambda: trial.take(0, batch_of_noise))
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        trial.timed(lambda: trial.take(1, batch_of_noise))
        until, took = time.monotonic() + seconds, list[float]()
        while not took or time.monotonic() < until:
            took.append(trial.timed(lambda: trial.take(2 + len(took), batch_of_noise))[1])
        step = statistics.median(took)
        peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
        clips = batch * sum(len(slots) for slots in batch_of_noise.views.values())
        return {
            "clips_per_second": clips / step, "step_seconds": step, "flops_per_clip": flops / clips,
            "mfu": None if peak is None else flops / step / peak, "peak_bytes": peak_memory(trial.device),
        }  # fmt: skip


_CLASSES = ("objective={type: classification, num_classes: 400}", "masker=null")
_SMALL = ("data.video.views.num_frames=4", "data.video.views.size=32", "backbone.embed_dim=48")
_SMALL_SWIN = "{type: video_swin, embed_dim: 12, depths: [1, 1], num_heads: [2, 2], window: [2, 4, 4]}"
_SMALL_IDS = (
    "{type: factorized, vocab_size: 8192, num_frames: 4, height: 4, width: 4, embed_dim: 16, depth: 2, "
    "num_heads: 2}"
)
_SMALL_VIT = (*_SMALL, "backbone.depth=2", "backbone.num_heads=2")
_SMALL_DECODER = ("objective.decoder_dim=24", "objective.decoder_depth=1", "objective.decoder_heads=2")
_SMALL_VIDEOMAE = (*_SMALL_VIT, *_SMALL_DECODER, "masker.ratio=0.5")
_SIZES: Mapping[str, Size] = {
    "ViT-B 16x224": Size("paper/videomae_base_k400", 32, _CLASSES, _SMALL_VIT),
    "Swin-B (BEVT) 16x224": Size(
        "paper/bevt_v", 16, (), (*_SMALL[:2], f"backbone={_SMALL_SWIN}", "masker.min_block=1"),
    ),
    "VIMPAC large_half": Size(
        "paper/vimpac_large_128", 32, ("objective.negatives=BATCH-1",),
        (*_SMALL[:2], f"backbone={_SMALL_IDS}"),
    ),
    "VideoMAE-B": Size("paper/videomae_base_k400", 32, (), _SMALL_VIDEOMAE),
    "VideoMAE-L": Size("paper/videomae_large_k400", 32, (), _SMALL_VIDEOMAE),
    "V-JEPA-L": Size(
        "paper/vjepa2_large", 24, (),
        (*_SMALL_VIT, *(word.replace("decoder", "predictor") for word in _SMALL_DECODER)),
    ),
}  # fmt: skip

_FP32, _HERE = "run.precision=fp32", "run.device=DEVICE"
PARTS: Mapping[str, Part] = {
    "device": Part(1, _device),
    "tests": Part(4, _tests),
    **{
        f"losses {name}": Part(3, Compared(name, (_FP32, "run.device=cpu"), (_FP32, _HERE), 1e-3, 0.05).run)
        for name in _LAPTOP
    },
    "bf16": Part(2, Compared("bevt", (_FP32, _HERE), (_HERE, "run.precision=bf16"), 0.02, 0.1).run),
    "compile": Part(4, Compared("bevt", (_FP32, _HERE), (_FP32, _HERE, "run.compile=true"), 1e-3, 0.05).run),
    "fsdp": Part(
        2, Compared("bevt", (_FP32, _HERE), (_FP32, _HERE, "run.parallel=fsdp"), 1e-3, 0.05, group=True).run
    ),
    "faiss": Part(1, _faiss),
    "nvdec": Part(1, _nvdec),
    "loader": Part(2, _loader),
    **{f"size {name}": Part(5, size.run) for name, size in _SIZES.items()},
}


# the table


def _heading(device: Where) -> str:
    if device == "cpu":
        return "NOT A GPU: the CPU, small sizes; the parts run, and nothing here says how a GPU fares."
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}."


def page(rows: Sequence[Row], device: Where) -> str:
    """The tables of rows in Markdown: what was checked, and what the papers' sizes reach."""
    lines = [_heading(device), "", "| part | | |", "| --- | --- | --- |"]
    lines += [f"| {row.part} | {row.status} | {row.said.replace('|', '/')} |" for row in rows]
    sizes = [row for row in rows if "clips_per_second" in row.numbers]
    if sizes:
        lines += ["", "| | batch | clips/s | TFLOP a clip | MFU | compiled | MFU | peak GiB |"]
        lines += ["| --- |" + " ---: |" * 7]
    for row in sizes:
        numbers, name = row.numbers, row.part.removeprefix("size ")
        cells = [
            _cell(numbers, "batch"),
            _cell(numbers, "clips_per_second"),
            _cell(numbers, "flops_per_clip", 1e12),
        ]
        cells += [
            _share(numbers, "mfu"),
            _cell(numbers, "compiled_clips_per_second"),
            _share(numbers, "compiled_mfu"),
        ]
        lines.append(f"| {' | '.join([name, *cells, _cell(numbers, 'peak_bytes', 2**30)])} |")
    return "\n".join(lines) + "\n"


def _cell(numbers: Numbers, name: str, unit: float = 1.0) -> str:
    value = numbers.get(name)
    return f"{value / unit:.3g}" if isinstance(value, int | float) else ""


def _share(numbers: Numbers, name: str) -> str:
    value = numbers.get(name)
    return f"{value:.0%}" if isinstance(value, int | float) else ""


if __name__ == "__main__":
    _name, _on, _seconds, _file = sys.argv[1:]
    PARTS[_name].run(Bench(_name, "cuda" if _on == "cuda" else "cpu", float(_seconds), Path(_file)))
