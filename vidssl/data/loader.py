"""Batches from sources: an endless order that any step can be entered at, and one pass for measuring.

Nothing here has a state worth saving. Position g = step * batch_size + j of a stream is place g % N of
epoch g // N; the epoch's order and the randomness of each place are functions of seed, epoch and place.
So a run resumes at a step with the batches it would have had, whatever the number of workers, and
processes that share a stream take slices of each batch.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import count
from types import TracebackType

from torch import Tensor

from vidssl.data.classes import LabelClasses, numbered_together, renumbered
from vidssl.data.samples import Endless, Failure, InOrder, Parcel, Views, bytes_of_batch, parcels
from vidssl.data.workers import WorkerDied
from vidssl.errors import UsageError, agreed, counted
from vidssl.interfaces import Batch, DataSource, UnreadableSample, ViewSampler
from vidssl.interfaces.pretrained import Shown

_log = logging.getLogger(__name__)
_NAMED = 20  # unreadable samples that an error lists one by one
_RESTARTS = 2  # of a stream's workers, within the steps after which a death is
_FORGIVEN = 1000


@dataclass(frozen=True)
class Stream:
    """One kind of sample for training: which source, which views of it, how many a step.

    A sample that cannot be read is replaced by the next of the epoch's order; a worker that dies by another.

    Attributes:
        batch_size: samples a step, of all processes together.
        samples_per_decode: how many of them follow one another that are cut from one video, whose frames are
            decoded once (repeated augmentation): the same frames in crops of their own. An epoch has as many
            times the source's samples.
        seed: decides the order and every random view.
        workers: processes that decode; 0 decodes in this one. The batches are the same.
        max_unreadable_share: of the source; past it training stops with the list.
        timeout_seconds: how long a batch may take with workers before the run is given up.
        rank: which slice of each batch, see ``share``.
        world: number of slices.
        parts: micro-batches that a batch is taken in one after another; each of them is sliced by itself.
        classes: labels whose classes are to be numbered otherwise than the source has them, by name.
        distinct: no batch holds a sample twice, see ``Endless``.
        once: no batch spans two epochs, for measuring: the last one of an epoch is smaller. It is left out
            where it cannot be shared among the processes, or, if ``distinct``, has no two samples for each.
    """

    source: DataSource
    views: ViewSampler
    _: KW_ONLY
    batch_size: int
    samples_per_decode: int = 1
    seed: int = 0
    workers: int = 0
    max_unreadable_share: float = 0.01
    timeout_seconds: float = 900.0
    rank: int = 0
    world: int = 1
    parts: int = 1
    classes: LabelClasses = field(default_factory=dict)
    distinct: bool = False
    once: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ValueError(
                f"batch_size must be at least 1 and workers at least 0, got {self.batch_size}, {self.workers}"
            )
        if self.samples_per_decode < 1 or (self.samples_per_decode > 1 and (self.distinct or self.once)):
            raise ValueError(
                f"samples_per_decode must be at least 1, and 1 where the videos of a batch are told apart or "
                f"measured on, got {self.samples_per_decode}"
            )
        if self.batch_size % self.world:
            raise ValueError(f"batch_size {self.batch_size} does not divide among {self.world} processes")
        if self.batch_size // self.world % self.parts:
            raise ValueError(
                f"a process's {self.batch_size // self.world} samples do not divide into {self.parts} parts"
            )
        together = self.batch_size // self.world // self.parts
        if together % self.samples_per_decode:
            raise ValueError(
                f"{together} samples at a time do not divide into those of {self.samples_per_decode} to a "
                "decode (samples_per_decode)"
            )

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.source) * self.samples_per_decode

    def share(self, rank: int, world: int, parts: int = 1) -> "Stream":
        """The slice of every batch, or of every part of each, that one of ``world`` processes takes."""
        return replace(self, rank=rank, world=world, parts=parts)

    def positions(self, step: int) -> Sequence[int]:
        """Positions in the endless order that make up this process's slice of a step's batch."""
        size, start = self.batch_size // self.world // self.parts, step * self.batch_size
        if self.once:
            epoch, batch = divmod(step, self.batches_of_pass())
            left = len(self) - batch * self.batch_size
            size = min(size, left // self.world // self.parts)
            start = epoch * len(self) + batch * self.batch_size
        first = start + self.rank * size
        starts = (first + part * self.world * size for part in range(self.parts))
        return [place for start in starts for place in range(start, start + size)]

    def batches_of_pass(self) -> int:
        """Batches of one pass over the source, the smaller last one among them.

        Raises:
            UsageError: if there is none.
        """
        whole, left = divmod(len(self), self.batch_size)
        fewest = self.world * self.parts * (2 if self.distinct else 1)
        if not whole and left < fewest:
            raise UsageError(
                f"{counted(len(self), 'sample')} to measure on {agreed(len(self), 'are')} "
                f"too few: {fewest} or more are needed"
            )
        return whole + (left >= fewest)


def slices(streams: Mapping[str, Stream], rank: int, world: int, parts: int = 1) -> dict[str, Stream]:
    """Slices that one of ``world`` processes takes of streams whose batches are split into micro-batches.

    Raises:
        UsageError: if a batch does not divide among them.
    """
    for name, stream in streams.items():
        each = stream.samples_per_decode
        if stream.batch_size % (world * parts * each):
            shares = [f"{parts} parts (run.accumulate)"] * (parts > 1) + [f"{world} processes"] * (world > 1)
            shares += [f"{each} samples of a decode (samples_per_decode)"] * (each > 1)
            raise UsageError(
                f"data.{name}.batch_size is {stream.batch_size}, of all processes together, and does not "
                f"divide among {' of '.join(shares)}"
            )
    return {name: stream.share(rank, world, parts) for name, stream in streams.items()}


def numbered_alike(test: Mapping[str, Stream], train: Mapping[str, Stream]) -> dict[str, Stream]:
    """Test streams whose class numbers are those of the training streams, by name."""
    return {
        name: replace(
            stream, classes=numbered_together(train[name].source.label_classes, stream.source.label_classes)
        )
        if name in train
        else stream
        for name, stream in test.items()
    }


class Loader(Shown):
    """An endless iterator over the batches of several streams, merged; leaving its context ends its workers.

    Its length is an epoch's: the batches in which every stream's samples have come once at least.

    Args:
        streams: name -> stream; no two may give a view of the same name.
        start_step: the step whose batch comes first.
        say: gets a line for each sample that cannot be read, once; by default the log, as a warning.
        restarted: gets the step and a line when a worker has died and new ones make its batches again, the
            same ones; by default ``say`` gets the line.

    Attributes:
        waited_seconds: how long the last batch was waited for.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        *,
        start_step: int = 0,
        say: Callable[[str], None] | None = None,
        restarted: Callable[[int, str], None] | None = None,
    ) -> None:
        if not isinstance(streams, Mapping) or not all(isinstance(each, Stream) for each in streams.values()):
            raise TypeError(
                "streams must be names with a Stream each, such as {'video': Stream(source, views)}"
            )
        given = [view for stream in streams.values() for view in stream.views.shapes]
        if len(set(given)) < len(given):
            raise ValueError(f"two streams give a view of the same name: {', '.join(given)}")
        say = say or _log.warning
        restarted = restarted or (lambda step, line: say(line))
        self.waited_seconds = 0.0
        self._length = max((-(-len(each) // each.batch_size) for each in streams.values()), default=0)
        # of all streams, which share the machine's shared memory
        size = sum(bytes_of_batch(each.views, each.batch_size // each.world) for each in streams.values())
        self._streams = {
            name: _sound(name, stream, _batches(name, stream, start_step, size, restarted), say)
            for name, stream in streams.items()
        }

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Batch:
        started = time.monotonic()
        found = {name: next(batches) for name, batches in self._streams.items()}
        self.waited_seconds = time.monotonic() - started
        return merged(found)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for batches in self._streams.values():
            batches.close()


def merged(parcels: Mapping[str, Parcel]) -> Batch:
    """One batch of those of all streams, by name."""
    views: Views = {}
    for parcel in parcels.values():
        views |= parcel.views
    return Batch(
        views=views,
        indices={name: parcel.indices for name, parcel in parcels.items()},
        labels={name: parcel.labels for name, parcel in parcels.items()},
    )


def _batches(
    name: str, stream: Stream, step: int, size: int, restarted: Callable[[int, str], None]
) -> Generator[Parcel, None, None]:
    """A stream's batches from a step on. Workers of which one died are replaced, unless that comes too often.

    A batch is a function of its step, so that those of the new ones are those that were to come.
    """
    if not len(stream):
        raise UsageError(f"the stream '{name}' has no samples")
    # one failure more than may be is enough to stop, so a worker need not look further
    tries = min(_allowed(stream) + 1, len(stream.source))
    samples = Endless(
        stream.source,
        stream.views,
        batch_size=stream.batch_size,
        seed=stream.seed,
        tries=tries,
        distinct=stream.distinct,
        samples_per_decode=stream.samples_per_decode,
    )
    deaths: list[int] = []
    while True:
        found = parcels(
            samples,
            (list(stream.positions(later)) for later in count(step)),
            workers=stream.workers,
            batch_bytes=size,
            timeout_seconds=stream.timeout_seconds,
            name=name,
        )
        try:
            for parcel in found:
                yield parcel
                step += 1
        except WorkerDied as error:
            deaths = [*(death for death in deaths if death > step - _FORGIVEN), step]
            if len(deaths) > _RESTARTS:
                raise UsageError(f"{name}: {error} ({len(deaths)} died within {_FORGIVEN} steps)") from error
            restarted(step, f"{name}: {error}. New workers go on, with the same batches")


def _sound(
    name: str, stream: Stream, batches: Generator[Parcel, None, None], say: Callable[[str], None]
) -> Generator[Parcel, None, None]:
    """The batches; names each unreadable sample once and stops when they are many."""
    allowed = _allowed(stream)
    failed: dict[int, Failure] = {}
    with closing(batches):
        for parcel in batches:
            for failure in parcel.failures:
                if failure.index not in failed:
                    failed[failure.index] = failure
                    say(f"{name}: an unreadable sample was replaced by the next: {failure}")
            if len(failed) > allowed or len(failed) == len(stream.source):
                raise UsageError(
                    f"{name}: {len(failed)} of {counted(len(stream.source), 'sample')} cannot be read, and "
                    f"data.max_unreadable_share ({stream.max_unreadable_share:g}) allows {allowed}. Mend "
                    f"them, take them out or raise that fraction.{_listed([*failed.values()])}"
                )
            own = stream.source.label_classes
            yield replace(
                parcel,
                labels={
                    label: renumbered(numbers, own[label], stream.classes.get(label, own[label]))
                    for label, numbers in parcel.labels.items()
                },
            )


def _allowed(stream: Stream) -> int:
    """How many of its samples may be unreadable."""
    return int(stream.max_unreadable_share * len(stream.source))


def iterate_once(
    source: DataSource,
    views: ViewSampler,
    *,
    batch_size: int,
    workers: int = 0,
    unreadable: Callable[[UnreadableSample], None],
) -> Iterator[tuple[Tensor, Views]]:
    """Every readable sample of a source once, in order, for measuring.

    Args:
        views: any randomness of theirs depends on the sample's number alone.
        unreadable: called with what is wrong with each sample that is left out.

    Yields:
        Sample numbers int64 [B], and their views: name -> slots, each uint8 [B, 3, T, H, W].

    Raises:
        UsageError: if no sample can be read.
    """
    numbers = list(range(len(source)))
    batches = [numbers[start : start + batch_size] for start in range(0, len(source), batch_size)]
    failed: list[Failure] = []
    size = bytes_of_batch(views, batch_size)
    found = parcels(InOrder(source, views), batches, workers=workers, batch_bytes=size, timeout_seconds=900.0)
    for parcel in found:
        for failure in parcel.failures:
            failed.append(failure)
            unreadable(UnreadableSample(failure.key, failure.reason))
        if len(parcel.indices):
            yield parcel.indices, parcel.views
    if len(failed) == len(source):
        raise UsageError(f"none of the {counted(len(source), 'sample')} can be read.{_listed(failed)}")


def _listed(failures: Sequence[Failure]) -> str:
    """The first of them, a line each."""
    lines = [f"\n  {failure}" for failure in failures[:_NAMED]]
    more = len(failures) - _NAMED
    return "".join(lines) + (f"\n  and {more} more" if more > 0 else "")
