"""Whether a recipe's runs would wait for their data on this machine, and how many workers that takes.

Looking through, decoding, resizing, stacking, the way to the device, augmentation and the step are each timed
by themselves, in turns and in one process; then the loader with the recipe's workers. Nothing is kept.
"""

import copy
import logging
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.data.loader import Loader, Stream, merged, slices
from vidssl.data.samples import Endless, Parcel, Sample, collate
from vidssl.data.sources.token_store import TokenStore
from vidssl.engine import process, speed
from vidssl.engine.logging import shown_messages, terminal
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Batch, DataSource
from vidssl.train.trial import Trial, random_batch, random_states_kept

R = TypeVar("R")
_EVEN = 1.1  # data and step that differ by less are balanced
_FEWEST = 4  # samples of a round that are made anew, whatever time is left
_CLOCK = 1e-6  # seconds; what is quicker takes none by the processor's clock
_ROUNDS = 3  # at the least, after the first


@dataclass(frozen=True)
class StreamTimes:
    """Seconds that one worker spends on a batch of a stream.

    Attributes:
        batch_size: samples of a batch.
        clips: of each sample, over all its views.
        look: what a source does before its pixels, such as looking a file through that no manifest knows.
        decode: reading the frames that all views of a sample need.
        views: what samplers do besides: choosing, resizing, cropping.
        stack: putting samples together.
    """

    batch_size: int
    clips: int
    look: float
    decode: float
    views: float
    stack: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.look + self.decode + self.views + self.stack


@dataclass(frozen=True)
class Measured:
    """Times of one step of a recipe on a machine, in seconds.

    Attributes:
        streams: name -> what one worker takes for its batch.
        transfer: of the batch to the device, pixels as floats.
        augment: on the device.
        descend: forward pass, backward pass, update.
        loader: for a batch by the loader with ``workers`` processes a stream, nothing beside it.
        workers: processes that decode, for each stream; 0 decodes in the training process.
        cores: that this process may use.
        step_cores: that the step itself keeps busy: one beside a GPU, else torch's threads.
    """

    streams: Mapping[str, StreamTimes]
    transfer: float
    augment: float
    descend: float
    loader: float
    workers: int
    cores: int
    step_cores: int

    @property
    def step(self) -> float:
        """All that a training process does when the batch is there."""
        return self.transfer + self.augment + self.descend

    @property
    def workers_wanted(self) -> int:
        """So many that no stream is slower than the step."""
        return max(math.ceil(stream.seconds / self.step) for stream in self.streams.values())

    @property
    def cores_wanted(self) -> int:
        """So many that workers and step do not wait for each other."""
        return (
            math.ceil(sum(stream.seconds for stream in self.streams.values()) / self.step) + self.step_cores
        )


def bench(
    recipe: Recipe, *, seconds: float = 20.0, floor: bool = False, console: Console | None = None
) -> None:
    """Times the parts of a recipe's loading and of its step, and prints which of them limits a run.

    Args:
        seconds: that it takes, about; a step or a batch that takes longer is waited for.
        floor: times the step on random clips beside its own floor (``measure_floor``), and no loading.

    Raises:
        UsageError: for all that training would refuse, and if a step's loss is not finite.
    """
    console = console or terminal()
    if floor:
        build.check(recipe)
        with random_states_kept(), speed.deterministic(recipe.run.deterministic):
            torch.manual_seed(recipe.seed)
            plan = build.schedule(recipe).plan(dict.fromkeys(recipe.data.streams, 100.0))
            trial = Trial(recipe, build.untrained(recipe), plan)
            console.print(_floor_table(measure_floor(trial, random_batch(recipe), seconds)))
        return
    found = measured(recipe, seconds, console)
    console.print(_table(found))
    for line in (verdict(found), "Nothing was kept."):
        console.print(line, highlight=False)


def measured(recipe: Recipe, seconds: float, console: Console) -> Measured:
    """What ``bench`` prints, measured; the console gets messages of the parts. Raises as ``bench``."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("bench looks at one process: start it without torchrun")
    build.check(recipe)
    with shown_messages(console), random_states_kept(), speed.deterministic(recipe.run.deterministic):
        streams = slices(build.streams(recipe), 0, 1, recipe.run.accumulate)
        torch.manual_seed(recipe.seed)
        objective = build.objective(recipe, say=logging.getLogger(__name__).info)
        plan = build.schedule(recipe).plan({name: len(s) / s.batch_size for name, s in streams.items()})
        return measure_parts(recipe, streams, Trial(recipe, objective, plan), seconds)


# the report


def verdict(found: Measured) -> str:
    """Which of data and step limits a run, and how many workers and cores it wants: one sentence."""
    wanted, cores = found.workers_wanted, counted(found.cores_wanted, "core")
    here = f"and this machine has {counted(found.cores, 'core')}."
    ratio = found.loader / found.step
    with_workers = f"with run.workers={found.workers} a batch takes"
    if found.workers == 0:
        return (
            "One after the other: with run.workers=0 every step waits for its batch, which is "
            f"{ratio / (1 + ratio):.0%} of the time, mostly {_most(found)}; run.workers={wanted} and {cores} "
            f"would hide it, {here}"
        )
    if ratio > _EVEN:
        start = f"Data limit: {with_workers} {ratio:.3g} times as long as its step, mostly {_most(found)}"
        if wanted > found.workers:
            return f"{start}; the recipe wants run.workers={wanted} and {cores}, {here}"
        return (
            f"{start}, though by what one worker takes run.workers={wanted} is enough: the recipe wants "
            f"{cores} for itself, {here}"
        )
    if ratio < 1 / _EVEN:
        return (
            f"The step limits: {with_workers} {ratio:.2g} of its step's time, for which "
            f"run.workers={wanted} and {cores} are enough, {here}"
        )
    return (
        f"Balanced: {with_workers} as long as its step; the recipe wants "
        f"run.workers={max(wanted, found.workers + 1)} and {cores} so as not to wait for slow files, {here}"
    )


def _most(found: Measured) -> str:
    """The part that workers spend most time on, of the stream that takes the longest."""
    slowest = max(found.streams.values(), key=lambda stream: stream.seconds)
    parts = {
        "looking files through (a manifest saves that)": slowest.look,
        "decoding": slowest.decode,
        "resizing and cropping": slowest.views,
        "putting samples together": slowest.stack,
    }
    return max(parts, key=lambda name: parts[name])


def _speed(number: int, seconds: float) -> str:
    """How many a second; nothing for what takes no time."""
    if seconds < 1e-5:
        return "-"
    return f"{number / seconds:,.0f}" if number > 100 * seconds else f"{number / seconds:.3g}"


def _table(found: Measured) -> Table:
    table = Table(title="for one step", title_justify="left", caption_justify="left")
    for number, head in enumerate(("", "seconds", "of the step", "samples/s", "clips/s")):
        table.add_column(head, justify="right" if number else "left")

    def row(name: str, seconds: float, samples: int, clips: int) -> None:
        speeds = [_speed(number, seconds) for number in (samples, clips)]
        table.add_row(name, f"{seconds:.2g}", f"{seconds / found.step:.0%}", *speeds)

    for name, stream in found.streams.items():
        parts = {
            "look through": stream.look,
            "decode": stream.decode,
            "resize, crop": stream.views,
            "stack": stream.stack,
            "one worker": stream.seconds,
        }
        for part, seconds in parts.items():
            row(f"{name}: {part}", seconds, stream.batch_size, stream.batch_size * stream.clips)
        table.add_section()
    samples = sum(stream.batch_size for stream in found.streams.values())
    clips = sum(stream.batch_size * stream.clips for stream in found.streams.values())
    row("to the device", found.transfer, samples, clips)
    row("augment", found.augment, samples, clips)
    row("forward, backward, update", found.descend, samples, clips)
    table.add_section()
    row(f"loader, run.workers={found.workers}", found.loader, samples, clips)
    table.caption = "Each by itself: what runs beside the step shares its memory and, on a CPU, its cores."
    return table


# what is measured


def measure_parts(recipe: Recipe, streams: Mapping[str, Stream], trial: Trial, seconds: float) -> Measured:
    """Times every part, in turns, for two thirds of the time, and the loader for the rest.

    A batch is filled up with samples that are there already where making all anew would take too long.

    Raises:
        UsageError: if samples cannot be read, or a step's loss is no number.
    """
    makers = {name: _Maker(stream) for name, stream in streams.items()}
    rounds: list[tuple[dict[str, StreamTimes], list[float]]] = []
    skipped = 2 if recipe.run.compile else 1
    until = time.perf_counter() + seconds * 2 / 3
    for turn in count():
        if turn >= skipped + _ROUNDS and time.perf_counter() > until:
            break
        made = {name: maker.make(seconds / 8 / len(makers)) for name, maker in makers.items()}
        times = _device_times(trial, turn, {name: parcel for name, (parcel, _) in made.items()})
        if turn >= skipped:
            rounds.append(({name: found for name, (_, found) in made.items()}, times))
    transfer, augment, descend = (
        statistics.median(column) for column in zip(*(times for _, times in rounds), strict=True)
    )
    on_gpu = trial.device.type == "cuda"
    return Measured(
        {name: _mean([found[name] for found, _ in rounds]) for name in makers},
        transfer,
        augment,
        descend,
        loader=_loader_seconds(streams, recipe.run.workers, seconds / 3),
        workers=recipe.run.workers,
        cores=process.num_cpus(),
        step_cores=1 if on_gpu else torch.get_num_threads(),
    )


def _device_times(trial: Trial, turn: int, parcels: Mapping[str, Parcel]) -> list[float]:
    """Seconds of a batch's way to the device, of augmentation, and of the step."""
    if trial.device.type == "cuda":  # as the loader hands batches over
        parcels = {name: parcel.pin_memory() for name, parcel in parcels.items()}
    batch, transfer = trial.timed(partial(merged(parcels).to, trial.device))
    batch, augment = trial.timed(partial(trial.augment, batch))
    _, descend = trial.timed(partial(trial.descend, turn, batch))
    return [transfer, augment, descend]


def _mean(found: Sequence[StreamTimes]) -> StreamTimes:
    """Files differ, so that it is the mean of rounds that counts."""
    parts = {
        part: statistics.fmean(getattr(times, part) for times in found)
        for part in ("look", "decode", "views", "stack")
    }
    return StreamTimes(found[0].batch_size, found[0].clips, **parts)


def _loader_seconds(streams: Mapping[str, Stream], workers: int, seconds: float) -> float:
    """For a batch, when one is asked for after the other; in whole turns of the workers."""
    turn = max(1, workers)
    with Loader(streams) as loader:
        for _ in range(turn):  # they begin at once, so that their first batches come at once
            next(loader)
        started, taken = time.perf_counter(), 0
        while taken == 0 or time.perf_counter() - started < seconds:
            for _ in range(turn):
                next(loader)
            taken += turn
        return (time.perf_counter() - started) / taken


# the floor of a step


_PRODUCTS = re.compile(r"^(mm|addmm|bmm|baddbmm|.*convolution.*|_scaled_dot_product_.*attention.*)$")
_KINDS = {  # of all other operations, by their names
    "copies, concatenations, fills": r"copy|clone|^cat$|stack|contiguous|fill_|zero|^ones|^full|pad|repeat|"
    "slice_back|select_back|roll|flip|^empty|^new_|arange|_tensor",
    "norms, softmax, losses": "norm|softmax|nll|logsumexp",
    "random draws": "bernoulli|dropout|rand|multinomial|uniform|normal_",
    "indexing, sorting": "index|gather|scatter|embedding|nonzero|masked|sort|topk|argm|where",
    "optimizer, averages": "_fused_|_foreach_|lerp",
}
_BY_ELEMENT, _REST = "element by element", "Python, launching"


@dataclass(frozen=True)
class Floor:
    """A step, and what it takes at the least.

    Attributes:
        step: seconds; on a CPU those of the processor.
        floor: of the step's matrix products, convolutions and attention alone, forward and backward.
        ratio: the median over rounds of step / floor, taken in turns.
        above: what else -> seconds of the step, the longest first.
    """

    step: float
    floor: float
    ratio: float
    above: Mapping[str, float]


class _Calls(TorchDispatchMode):
    """Notes the calls of a step, in order, and the seconds of all that are no products, by kind."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self._trial = trial
        self._kept: dict[str, Callable[[], object]] = {}
        self.order: list[Callable[[], object]] = []
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        made, seconds = self._trial.timed(partial(func, *args, **kwargs), cpu=True)
        if _PRODUCTS.match(name):
            leaves = tree_leaves((args, kwargs))
            given = [(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves]
            # calls alike share the tensors of the first, so that a step's are not all kept
            key = f"{func} {given}"
            if key not in self._kept:
                args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
                self._kept[key] = partial(func, *args, **kwargs)
            self.order.append(self._kept[key])
        else:
            kind = next((kind for kind, names in _KINDS.items() if re.search(names, name)), _BY_ELEMENT)
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        return made


def measure_floor(trial: Trial, batch: Batch, seconds: float) -> Floor:
    """Times a step with a batch, in turns with its products alone: the same calls, shapes, strides and types.

    Nothing that computes the same loss with these operations can be faster than the floor; other orders of
    computing, or larger kernels, may be.

    Args:
        batch: as the loader gives it.
        seconds: for the turns; there are three at the least.
    """
    trial.take(0, batch)
    calls = _Calls(trial)
    with torch.compiler.set_stance("force_eager"), calls:
        trial.take(1, batch)

    def products() -> None:
        with torch.no_grad():
            for call in calls.order:
                call()

    if trial.compiled:
        trial.take(2, batch)
    products()
    turns, until = list[tuple[float, float]](), time.perf_counter() + seconds
    while len(turns) < _ROUNDS or time.perf_counter() < until:
        jobs = (partial(trial.take, 3 + len(turns), batch), products)
        step, floor = (max(trial.timed(job, cpu=True)[1], _CLOCK) for job in jobs)
        turns.append((step, floor))
    step, floor = (statistics.median(column) for column in zip(*turns, strict=True))
    ratio = statistics.median(step / floor for step, floor in turns)
    rest = max(0.0, step - floor - sum(calls.seconds.values()))
    above = sorted((calls.seconds | {_REST: rest}).items(), key=lambda item: -item[1])
    return Floor(step, floor, ratio, dict(above))


def _floor_table(found: Floor) -> Table:
    table = Table(title="a step and its floor", title_justify="left", caption_justify="left")
    for number, head in enumerate(("", "seconds", "of the step")):
        table.add_column(head, justify="right" if number else "left")
    rows = {"matrix products, convolutions, attention": found.floor, **found.above, "the step": found.step}
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2g}", f"{seconds / found.step:.0%}")
    table.caption = f"The step takes {found.ratio:.2f} of its floor."
    return table


class _Maker:
    """Makes batches of a stream as a worker does, one after the other in its endless order."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._look, self._decode = _Watch(), _Watch()
        source = _watched(stream.source, self._look, self._decode)
        self._samples = Endless(
            source,
            stream.views,
            batch_size=stream.batch_size,
            seed=stream.seed,
            tries=len(source),
            samples_per_decode=stream.samples_per_decode,
        )
        self._clips = sum(len(slots) for slots in stream.views.shapes.values())
        self._position = 0

    def make(self, seconds: float) -> tuple[Parcel, StreamTimes]:
        """A batch, and what it took; of new samples as many as fit into the time."""
        size, samples = self._stream.batch_size, list[Sample]()
        self._look.seconds = self._decode.seconds = 0.0
        with _one_thread():
            started = time.perf_counter()
            while len(samples) < size:
                samples.append(self._next())
                if len(samples) >= _FEWEST and time.perf_counter() - started > seconds:
                    break
            made = time.perf_counter()
            parcel = collate([samples[place % len(samples)] for place in range(size)])
            stack = time.perf_counter() - made
        look, decode = self._look.seconds, self._decode.seconds
        views = max(0.0, made - started - look - decode)
        factor = size / len(samples)
        times = StreamTimes(size, self._clips, look * factor, decode * factor, views * factor, stack)
        return parcel, times

    def _next(self) -> Sample:
        sample = self._samples[self._position]
        self._position += 1
        if sample.views is None:
            raise UsageError(
                f"none of the {counted(len(sample.failures), 'sample')} can be read, such as "
                f"{sample.failures[0]}"
            )
        return sample


class _Watch:
    """Adds up the seconds spent in calls.

    Attributes:
        seconds: so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, call: Callable[..., R]) -> Callable[..., R]:
        """``call``, timed."""

        def timed(*given: object) -> R:
            started = time.perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def _watched(source: DataSource, look: _Watch, decode: _Watch) -> DataSource:
    """A source like the given one, whose calls are timed; of the same class, for views that ask for it."""
    watched = copy.copy(source)
    calls = {"info": look, "labels": look, "read": decode}
    if isinstance(source, TokenStore):
        calls["read_ids"] = decode
    for name, watch in calls.items():  # bound to the source, whose calls of its own are not timed twice
        setattr(watched, name, watch.over(getattr(source, name)))
    return watched


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as workers have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
