"""Batches of decoded samples, made in this process or in workers that no bad file ends."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vidssl.abilities import EpochOrder, OrdersEpochs
from vidssl.data.deaths import WorkerDied, Workers
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, UnreadableSample, ViewSampler

Views = dict[str, tuple[Tensor, ...]]


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
    """What was asked for: a sample's views, or None if it could not be read; and what failed on the way.

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

    def pin_memory(self) -> Parcel:
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

    def draw(self, index: int, seed: int) -> Sample:
        """One sample's views, their randomness from this seed alone."""
        try:
            views = self.views.sample(self.source, index, torch.Generator().manual_seed(seed))
            given = self.source.labels(index)
        except UnreadableSample as error:
            return Sample(index, None, (Failure(index, error.key, error.reason),))
        return Sample(index, views, labels={name: given.get(name, -1) for name in self.source.label_classes})


class Endless(Dataset[Sample]):
    """The samples of a source in an order without end, shuffled anew in every epoch.

    Args:
        batch_size: of all processes together; sources that have an order of their own go by it.
        seed: decides the order and every random view.
        tries: samples of the order to try, from the one asked for on, until one can be read.
    """

    def __init__(
        self, source: DataSource, views: ViewSampler, *, batch_size: int, seed: int, tries: int
    ) -> None:
        self.samples = InOrder(source, views)
        self.length = len(source)
        self.batch_size = batch_size
        self.seed = seed
        self.tries = tries
        self._epoch = -1
        self._order: EpochOrder = range(0)

    def index(self, position: int, attempt: int = 0) -> int:
        """The number of the sample at a position, or of the one to read in its place at a later attempt."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._new_order(mix(self.seed, epoch))
        return int(self._order[(place + attempt) % self.length])

    def _new_order(self, seed: int) -> EpochOrder:
        source = self.samples.source
        if isinstance(source, OrdersEpochs):
            return source.epoch_order(seed, self.batch_size)
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(seed)).numpy()

    def __getitem__(self, position: int) -> Sample:
        epoch, place = divmod(position, self.length)
        failures: tuple[Failure, ...] = ()
        for attempt in range(self.tries):
            index = self.index(position, attempt)
            sample = self.samples.draw(index, mix(self.seed, epoch, place))
            failures += sample.failures
            if sample.views is not None:
                return replace(sample, failures=failures)
        return Sample(-1, None, failures)


def mix(*numbers: int) -> int:
    """One seed out of several numbers, such that neighbours share nothing."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def parcels(
    samples: Dataset[Sample], batches: Iterable[list[int]], *, workers: int, timeout_seconds: float
) -> Iterator[Parcel]:
    """The batches in order, decoded ahead of time by ``workers`` processes, or when asked for by this one.

    Raises:
        WorkerDied: if a worker ends by itself or is killed.
        UsageError: if a worker gives no batch for ``timeout_seconds``.
    """
    # a fork shares torch's 500 MB and starts at once
    context = "fork" if sys.platform == "linux" else "spawn"
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


def _obey_the_next(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
