"""Whether a recipe's runs would wait for their data on this machine, and how many workers that takes.

Looking through, decoding, resizing, stacking, the way to the device, augmentation and the step are each timed
by themselves, in turns and in one process; then the loader with the recipe's workers. Nothing is kept.
"""

from __future__ import annotations

import copy
import logging
import math
import os
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

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.data.loader import Loader, Stream, merged, slices
from vidssl.data.samples import Endless, Parcel, Sample, collate
from vidssl.data.sources.token_store import TokenStore
from vidssl.engine.logging import shown_messages, terminal
from vidssl.engine.process import num_cpus
from vidssl.engine.speed import deterministic
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource
from vidssl.train.trial import Trial, random_states_kept

R = TypeVar("R")
_EVEN = 1.1  # data and step that differ by less are balanced
_FEWEST = 4  # samples of a round that are made anew, whatever time is left
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


def bench(recipe: Recipe, *, seconds: float = 20.0, console: Console | None = None) -> None:
    """Times the parts of a recipe's loading and of its step, and prints which of them limits a run.

    Args:
        seconds: that it takes, about; a step or a batch that takes longer is waited for.

    Raises:
        UsageError: for all that training would refuse, and if a step's loss is not finite.
    """
    console = console or terminal()
    found = measured(recipe, seconds, console)
    console.print(_table(found))
    for line in (verdict(found), "Nothing was kept."):
        console.print(line, highlight=False)


def measured(recipe: Recipe, seconds: float, console: Console) -> Measured:
    """What ``bench`` prints, measured; the console gets messages of the parts. Raises as ``bench``."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("bench looks at one process: start it without torchrun")
    build.check(recipe)
    with shown_messages(console), random_states_kept(), deterministic(recipe.run.deterministic):
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
        cores=num_cpus(),
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
