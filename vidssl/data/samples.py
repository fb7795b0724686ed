"""Batches of decoded samples, made in this process or in workers that no bad file ends."""

import hashlib
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import gcd
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidssl.data.views.crops import Views
from vidssl.data.views.stored import StoredViews
from vidssl.data.workers import WorkerDied, Workers, take_folder
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, EpochOrder, OrdersEpochs, SampleInfo, UnreadableSample, ViewSampler

_log = logging.getLogger(__name__)
_AHEAD = 32  # batches from where a source is told of a sample to where it is read
_DESCRIPTORS, _ENOUGH = 256, 4096  # open files that workers take at least, and that are always enough
_LAST_SECONDS = 2  # of a worker that is told to end
# in shared memory: what a batch's tensors take to whole pages, the queue of a worker, and what all have
_TASKS = 3  # of a worker: itself, and the threads that fill its queues
_PAGES, _QUEUE, _QUEUES = 4 * 4096, 3 * 4096, 8 * 4096


@dataclass(frozen=True)
class Failure:
    """A sample that could not be read, and why."""

    index: int
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class Sample:
    """A sample as it was asked for: its views, or None if it could not be read, and failures on the way.

    ``labels``: label name -> class number for every label that the source knows, -1 where this one lacks it.
    """

    index: int
    views: Views | None
    failures: tuple[Failure, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Parcel:
    """A batch on its way from a worker; it may be empty if nothing in it could be read.

    Attributes:
        indices: int64 [B].
        views: name -> slots, each uint8 [B, 3, T, H, W].
        labels: label name -> int64 [B], -1 where a sample lacks the label.
    """

    indices: Tensor
    views: Views
    failures: tuple[Failure, ...]
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    def pin_memory(self) -> "Parcel":
        """The same in page-locked memory; the name is the one that DataLoader looks for."""
        views = {name: tuple(slot.pin_memory() for slot in slots) for name, slots in self.views.items()}
        labels = {name: numbers.pin_memory() for name, numbers in self.labels.items()}
        return replace(self, views=views, labels=labels)


class InOrder(Dataset[Sample]):
    """The samples of a source by number."""

    def __init__(self, source: DataSource, views: ViewSampler) -> None:
        self.source = source
        self.views = views

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, mix(index))

    def draw(self, index: int, seed: int, reads: "SharedReads | None" = None, number: int = 0) -> Sample:
        """One sample's views, their randomness from this seed alone.

        Args:
            reads: of several samples of one decode: what they draw before they read, times, is the same, and
                what comes after it, crops, is each one's own.
            number: of the sample among those.
        """
        generator = torch.Generator().manual_seed(seed)
        if reads is not None and number:
            reads.generator, reads.seed = generator, mix(seed, number)
        try:
            views = self.views.sample(self.source if reads is None else reads, index, generator)
            given = self.source.labels(index)
        except UnreadableSample as error:
            return Sample(index, None, (Failure(index, error.key, error.reason),))
        return Sample(index, views, labels={name: given.get(name, -1) for name in self.source.label_classes})


class SharedReads(DataSource):
    """A source of which one sample is read for several draws of its views, each frame decoded once.

    Attributes:
        generator: of a draw that is to differ from the first: reseeded when its frames have been read, so
            that it asks for the same ones; None for the first.
        seed: for that.
    """

    def __init__(self, source: DataSource) -> None:
        self.source = source
        self.label_classes = source.label_classes
        self.generator: torch.Generator | None = None
        self.seed = 0
        self._kept: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def __len__(self) -> int:
        return len(self.source)

    def info(self, index: int) -> SampleInfo:
        return self.source.info(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        wanted = index, tuple(frames)
        if wanted not in self._kept:
            self._kept[wanted] = self.source.read(index, frames)
        if self.generator is not None:
            self.generator.manual_seed(self.seed)
            self.seed = mix(self.seed)  # for a sampler that reads again
        return self._kept[wanted]


class Endless(Dataset[Sample]):
    """The samples of a source in an order without end, shuffled anew in every epoch.

    Args:
        batch_size: of all processes together; sources that have an order of their own go by it.
        seed: decides the order and every random view.
        tries: samples of the order to try, from the one asked for on, until one can be read.
        distinct: no batch holds a sample twice. Where a batch spans two epochs, those of the later epoch that
            the earlier one has brought already change places with the next ones of their epoch; in the place
            of a sample that cannot be read comes one that is not in the batch.
        samples_per_decode: so many positions in a row are samples of one video, whose frames are decoded
            once. Stored ids, which are not decoded, are drawn anew for each.
    """

    def __init__(
        self,
        source: DataSource,
        views: ViewSampler,
        *,
        batch_size: int,
        seed: int,
        tries: int,
        distinct: bool = False,
        samples_per_decode: int = 1,
    ) -> None:
        self.samples = InOrder(source, views)
        self.length = len(source)
        self.samples_per_decode = samples_per_decode
        self.batch_size = batch_size // samples_per_decode  # in videos, as are positions from here on
        self.seed = seed
        self.tries = tries
        self.distinct = distinct and batch_size <= self.length
        self._orders: dict[int, EpochOrder] = {}
        self._reads: tuple[int, SharedReads] | None = None  # of the video that was asked for last

    def index(self, position: int, attempt: int = 0) -> int:
        """The number of the sample at a position, or of the one to read in its place at a later attempt."""
        epoch, place = divmod(position, self.length)
        if attempt and self.distinct:
            return self._instead(position, attempt)
        return int(self._order(epoch)[(place + attempt) % self.length])

    def _instead(self, position: int, attempt: int) -> int:
        """The attempt-th sample beyond a position's batch, a batch further each time, so that no two meet."""
        epoch, place = divmod(position, self.length)
        size, first = self.batch_size, position - position % self.batch_size
        beside = {self.index(other) for other in range(first, first + size)}
        turn = self.length // gcd(self.length, size)  # steps of a batch until a place comes again
        order = self._order(epoch)
        found = (int(order[(place + n * size + n // turn) % self.length]) for n in range(1, self.length + 1))
        free = (index for index in found if index not in beside)
        instead = next(islice(free, attempt - 1, None), None)
        if instead is None:
            raise UsageError(
                f"{self.samples.source.key(self.index(position))} cannot be read, and of {self.length} "
                f"samples none is left to take its place in a batch of {size}, which may hold none twice: "
                "take it out of the list, or lower batch_size"
            )
        return instead

    def _order(self, epoch: int) -> EpochOrder:
        """An epoch's order, kept; where batches are distinct also that of the epoch beside it."""
        if epoch not in self._orders:
            made = self._distinct_order(epoch) if self.distinct else self._drawn_order(epoch)
            kept = self._orders.items() if self.distinct else ()
            self._orders = {**{key: order for key, order in kept if abs(key - epoch) == 1}, epoch: made}
        return self._orders[epoch]

    def _distinct_order(self, epoch: int) -> EpochOrder:
        """The drawn order, but that its first batch repeats nothing of the epoch before."""
        # what changes places lies in an epoch's first batch_size places, so that, unless the epoch is short,
        # its end is as it was drawn; a short one depends on those before, back to one that begins a batch
        long = self.length >= 2 * self.batch_size
        aligned = epoch % (self.batch_size // gcd(self.length, self.batch_size))
        first = epoch - min(aligned, 1 if long else aligned)
        order = self._drawn_order(first)
        for later in range(first + 1, epoch + 1):
            begun = later * self.length % self.batch_size  # of the batch, by the epoch before
            order = self._apart(order, self._drawn_order(later), begun) if begun else self._drawn_order(later)
        return order

    def _apart(self, before: EpochOrder, drawn: EpochOrder, begun: int) -> EpochOrder:
        taken = {int(before[place]) for place in range(self.length - begun, self.length)}
        left = self.batch_size - begun
        free = (place for place in range(left, self.length) if int(drawn[place]) not in taken)
        swaps: dict[int, int] = {}
        for place in range(left):
            if int(drawn[place]) in taken:
                other = next(free)  # there is one, as a batch is no larger than an epoch
                swaps |= {place: other, other: place}
        return _Swapped(drawn, swaps) if swaps else drawn

    def _drawn_order(self, epoch: int) -> EpochOrder:
        seed = mix(self.seed, epoch)
        source = self.samples.source
        if isinstance(source, OrdersEpochs):
            return source.epoch_order(seed, self.batch_size)
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(seed)).numpy()

    def __getitem__(self, position: int) -> Sample:
        position, number = divmod(position, self.samples_per_decode)
        epoch, place = divmod(position, self.length)
        seed, reads = mix(self.seed, epoch, place), None
        if self.samples_per_decode > 1 and isinstance(self.samples.views, StoredViews):
            seed = mix(seed, number) if number else seed
        elif self.samples_per_decode > 1:
            if self._reads is None or self._reads[0] != position:
                self._reads = position, SharedReads(self.samples.source)
            reads = self._reads[1]
            reads.generator = None
        later = place + _AHEAD * self.batch_size
        if isinstance(self.samples.source, OrdersEpochs) and later < self.length:
            self.samples.source.soon(int(self._order(epoch)[later]))
        failures: tuple[Failure, ...] = ()
        for attempt in range(self.tries):
            index = self.index(position, attempt)
            sample = self.samples.draw(index, seed, reads, number)
            failures += sample.failures
            if sample.views is not None:
                return replace(sample, failures=failures)
        return Sample(-1, None, failures)


@dataclass(frozen=True)
class _Swapped:
    """An order in which some places have changed with each other."""

    order: EpochOrder
    swaps: Mapping[int, int]

    def __getitem__(self, place: int, /) -> int:
        return int(self.order[self.swaps.get(place, place)])


def mix(*numbers: int) -> int:
    """One seed out of several numbers, such that neighbours have nothing in common."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def workers_that_fit(
    workers: int,
    batch_bytes: int,
    *,
    shared: int | None = None,
    descriptors: int | None = None,
    tasks: int | None = None,
) -> tuple[int, str]:
    """How many of so many workers the machine has memory, descriptors and processes for, and why not all.

    A worker that runs out of one of them hangs, and the training with it.

    Args:
        batch_bytes: of a batch; two of each worker and one more wait in shared memory, beside their queues.
        shared: bytes of it that are free; by default those of /dev/shm.
        descriptors: that this process may have open; by default as many as it is allowed to raise them to.
        tasks: processes and threads that this user may start yet.
    """
    if not workers or sys.platform != "linux":
        return workers, ""
    if descriptors is None:
        descriptors = _raised_descriptors()
    if descriptors < _DESCRIPTORS:
        return 0, f"this process may have {descriptors} files open, workers take {_DESCRIPTORS} (ulimit -n)"
    tasks = _tasks_left() if tasks is None else tasks
    if tasks < workers * _TASKS + 1:
        return max((tasks - 1) // _TASKS, 0), (
            f"{tasks} more processes may be started, a worker takes {_TASKS} (ulimit -u)"
        )
    if shared is None:
        status = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        shared = status.f_bavail * status.f_frsize if status else 0
    fit = workers
    while fit > 0 and _QUEUES + fit * _QUEUE + (2 * fit + 1) * (batch_bytes + _PAGES) > shared:
        fit -= 1
    if fit == workers:
        return workers, ""
    free, each = (f"{count / 2**20:.3g} MB" for count in (shared, batch_bytes))
    return fit, (f"/dev/shm has {free} free and a batch takes {each} (containers: --shm-size or --ipc=host)")


def _raised_descriptors() -> int:
    """Raises the limit of open files as far as this process may, up to a number that is always enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def _tasks_left() -> int:
    """Processes and threads that this user may start yet; for root there is no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() == 0 or limit in (resource.RLIM_INFINITY, -1):
        return _ENOUGH
    there = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if folder.stat().st_uid == os.geteuid():
                there += sum(1 for _ in (folder / "task").iterdir())
    return max(limit - there, 0)


def bytes_of_batch(views: ViewSampler, batch_size: int) -> int:
    """Of a batch as workers hand it over, three bytes a pixel."""
    return batch_size * sum(3 * math.prod(shape) for slots in views.shapes.values() for shape in slots)


def parcels(
    samples: Dataset[Sample],
    batches: Iterable[list[int]],
    *,
    workers: int,
    batch_bytes: int,
    timeout_seconds: float,
    name: str = "",
) -> Iterator[Parcel]:
    """The batches in order, decoded ahead of time by ``workers`` processes, or when asked for by this one.

    Args:
        batch_bytes: by which to tell how many workers the machine has memory for; the log has what it lacks.
        name: of the stream, for the log.

    Raises:
        WorkerDied: if a worker ends by itself or is killed.
        UsageError: if a worker gives no batch for ``timeout_seconds``.
    """
    # a fork shares torch's 500 MB and starts at once
    context = "fork" if sys.platform == "linux" else "spawn"
    given = workers
    workers, lack = workers_that_fit(given, batch_bytes)
    if lack:
        _log.warning("%s%d data workers instead of %d: %s", f"{name}: " * bool(name), workers, given, lack)
    if workers:
        take_folder()
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        timeout=timeout_seconds if workers else 0,
        multiprocessing_context=multiprocessing.get_context(context) if workers else None,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # without one it draws from, and so moves on, the global generator
    )
    others = set(multiprocessing.active_children())
    iterator = iter(loader)
    died, hung = "", ""
    with Workers(set(multiprocessing.active_children()) - others) as processes:
        try:
            while (parcel := processes.next(iterator)) is not None:
                yield parcel
        except WorkerDied as error:
            died = str(error)
        except UsageError as error:
            raise UsageError(_own_words(error)) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader "):  # a defect, not a worker that hangs
                raise
            hung = " ".join(str(error).split())
        finally:
            if died or hung:
                processes.kill()
            del iterator  # asks those that live to end
    if died:
        raise WorkerDied(f"a data worker died: {died}. run.workers=0 decodes in the training process")
    if hung:
        raise UsageError(
            f"a file or disk did not answer for {timeout_seconds:.0f} seconds: {hung}. run.workers=0 decodes "
            "in the training process"
        )


def _own_words(error: UsageError) -> str:
    """The message alone: from a worker it comes with a traceback in front."""
    return str(error).strip().split("\n")[-1].removeprefix(f"{UsageError.__module__}.{UsageError.__name__}: ")


def collate(samples: Sequence[Sample]) -> Parcel:
    """One batch of what could be read among samples."""
    found = [(sample, sample.views) for sample in samples if sample.views is not None]
    first, names = found[0] if found else (None, {})
    views = {
        name: tuple(stacked(slot) for slot in zip(*(views[name] for _, views in found), strict=True))
        for name in names
    }
    labels = {
        name: torch.tensor([sample.labels[name] for sample, _ in found], dtype=torch.int64)
        for name in (first.labels if first else ())
    }
    failures = tuple(failure for sample in samples for failure in sample.failures)
    indices = torch.tensor([sample.index for sample, _ in found], dtype=torch.int64)
    return Parcel(indices, views, failures, labels)


def stacked(clips: Sequence[Tensor]) -> Tensor:
    """Clips of one shape one above the other; pixels [3, T, H, W] keep their layout in memory."""
    if clips[0].ndim != 4 or clips[0].stride(0) != 1:
        return torch.stack([*clips])
    return torch.stack([clip.permute(1, 2, 3, 0) for clip in clips]).permute(0, 4, 1, 2, 3)


def _leave_signals_to_parent(worker: int) -> None:
    """A terminal or a scheduler signals the whole group of processes; the parent decides what comes of it.

    Workers end when the parent closes the loader, or when they find that it is gone. A second SIGTERM
    ends them: that is how Python, on its way out, rids itself of a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _obey_the_next)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    """Ends a worker, which takes away what it has half fetched; at once if it cannot within two seconds."""
    signal.signal(number, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LAST_SECONDS)
    raise SystemExit
