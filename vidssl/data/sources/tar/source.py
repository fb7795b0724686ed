"""Tar shards as a source: any number of videos and images in large files, on a disk or behind an address.

A shard is a tar file of the WebDataset convention. Its index (``tar.index``) says where each
sample lies, so that one is read in one piece and decoded from memory, at once or in any order.
"""

import logging
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.config.schema import Quiet
from vidssl.data.decode.content import Content
from vidssl.data.decode.decode import VideoFacts, part_of
from vidssl.data.decode.decoders import choose_decoder
from vidssl.data.decode.images import read_image
from vidssl.data.samples import mix
from vidssl.data.sources.listing import Listed, Listing, ListKeys, ListPart, named_listing, select
from vidssl.data.sources.lists import listed_part
from vidssl.data.sources.manifest import Segment
from vidssl.data.sources.tar.index import IMAGE, INDEX, Member, ShardIndex
from vidssl.data.sources.tar.reader import ShardCache, ShardReader
from vidssl.data.sources.tar.storage import TIMEOUT_SECONDS, TRIES, Address, file_address
from vidssl.data.sources.video_files import ShortVideos, VideoKeys
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    DataSource,
    EpochOrder,
    KnowsGroups,
    KnowsMissing,
    KnowsOrigins,
    OrdersEpochs,
    Origin,
    SampleInfo,
    UnreadableSample,
)

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class TarShards(ListKeys, VideoKeys, DataSource, KnowsGroups, KnowsMissing, OrdersEpochs, KnowsOrigins):
    """Tar shards that ``vidssl data shard`` packed, or ``vidssl data index`` looked through.

    Keys are those of the files that were packed, so lists that go with them go with the shards.

    Args:
        root: folder of the shards, relative to the working folder, or an address that fsspec knows, such as
            s3://bucket/k400 or https://host/k400; for credentials see fsspec's configuration.
        index: path or address of the index; by default index.jsonl below ``root``.
        list, test_list, part, test_share, limit: see ``ListKeys``.
        decoder, short, min_frames, square_pixels: see ``VideoKeys``.
        order: "shards" reads few shards at a time, as many as a batch has samples, and mixes them; "samples"
            shuffles all samples, for disks that answer any read at once.
        cache: a folder of this machine in which shards are kept that were fetched whole; without it each
            sample is asked for by itself.
        cache_gib: how much the folder may hold.
        timeout_seconds: that a service elsewhere may stay silent; for https://, s3:// and gs://.
        tries: how often what fails elsewhere is tried in all, 1 to 10, after pauses of 0.5, 2, 8 and then
            30 seconds. A sample that stays out of reach is unreadable.
    """

    index: str | None = None
    order: Literal["shards", "samples"] = "shards"
    cache: str | None = None
    cache_gib: float = 100.0
    timeout_seconds: Quiet[float] = TIMEOUT_SECONDS
    tries: Quiet[int] = TRIES

    def __post_init__(self) -> None:
        if self.list is None and self.test_list is not None:
            raise ValueError("'test_list' goes with 'list'")
        where = self.list or self.root
        self._short = ShortVideos(self.short, self.min_frames)
        self._decoder = choose_decoder(self.decoder)
        self._address = Address(self.root, timeout_seconds=self.timeout_seconds, tries=self.tries)
        self._index = _read_index(self._address, self.index, self.timeout_seconds, self.tries)
        if self.list is None and self.part == "all" and self.limit is None and not self._index.segments:
            chosen = _Chosen.all_of(self._index)
            self._groups: dict[str, str] = {}
        else:
            listing, part = _listing(self._index, self.list, self.test_list, self.part)
            listing = select(listing, part, self.test_share, self.limit, where=where)
            chosen = _Chosen.listed(self._index, listing, where)
            self._groups = {file.key: file.group for file in listing.files if file.group}
        self._num_listed = len(chosen.numbers)
        chosen = _usable(chosen, self._index, self._short, where)
        self._numbers, self._labels, self._segments = chosen.numbers, chosen.labels, chosen.segments
        self.label_classes = chosen.label_classes
        self._reader = _reader(self._address, self._index, self.cache, self.cache_gib)
        self._reader.refuse_missing(np.unique(self._index.shard[self._numbers]).tolist())
        self._last: tuple[int, Member] | None = None  # views ask for facts, then for frames

    def __len__(self) -> int:
        return len(self._numbers)

    def num_listed(self) -> int:
        return self._num_listed

    def key(self, index: int) -> str:
        return Listed(self._index.key(int(self._numbers[index])), {}, self._segment(index)).key

    def labels(self, index: int) -> Mapping[str, int]:
        given = {name: int(numbers[index]) for name, numbers in self._labels.items()}
        return {name: number for name, number in given.items() if number >= 0}

    def group(self, index: int) -> str:
        return self._groups.get(self.key(index), "")

    def info(self, index: int) -> SampleInfo:
        _, facts, own = self._look(index)
        length, times = self._short.length(len(own)), self._short.times(part_of(facts.uneven_times, own))
        return SampleInfo(self.key(index), length, facts.fps, self.labels(index), times)

    def origin(self, index: int) -> Origin:
        key, checksum = self._index.key_and_checksum(number := int(self._numbers[index]))
        local = self._address.local
        store = str(self._address if local is None else local.resolve())
        segment = self._segment(index)
        return Origin(
            file=f"{store}: {key}",
            version=checksum,
            bytes=int(self._index.length[number]),
            sha256=checksum,
            store=store,
            segment=None if segment is None else segment.seconds,
        )

    def epoch_order(self, seed: int, batch_size: int) -> EpochOrder:
        if self.order == "samples":
            return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).numpy()
        counts = np.bincount(self._index.shard[self._numbers], minlength=len(self._index.shards))
        return ShardOrder(counts.tolist(), batch_size=batch_size, seed=seed)

    def soon(self, index: int) -> None:
        if self.order == "shards":
            self._reader.soon(int(self._numbers[index]))

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        member, facts, own = self._look(index)
        key = self.key(index)
        length = self._short.length(len(own))
        if not frames or min(frames) < 0 or max(frames) >= length:
            raise ValueError(f"{key} has {counted(length, 'frame')}, asked for {[*frames]}")
        wanted = [own[frame] for frame in self._short.within(frames, len(own))]
        number = int(self._numbers[index])
        content = self._reader.read(number, key)
        try:
            return self._decode(content, wanted, member, facts)
        except UnreadableSample:
            again = self._reader.mend(number, member, content)
            if again is None:
                raise
        return self._decode(again, wanted, member, facts)

    def _decode(self, content: bytes, frames: Sequence[int], member: Member, facts: VideoFacts) -> Tensor:
        key = member.entry.key
        if member.entry.container == IMAGE:
            return read_image(Content(key, content), key).expand(len(frames), -1, -1, -1)
        return self._decoder.read(Content(key, content), frames, facts)

    def _segment(self, index: int) -> Segment | None:
        return None if self._segments is None else self._segments[index]

    def _look(self, index: int) -> tuple[Member, VideoFacts, range]:
        """Record and facts of a sample's file, and the numbers of the frames that belong to it."""
        if self._last is None or self._last[0] != index:
            self._last = (index, self._index.member(int(self._numbers[index])))
        member = self._last[1]
        if member.entry.facts is None:
            raise UnreadableSample(member.entry.key, f"{self._index.where} says nothing of its frames")
        facts, segment = member.entry.facts, self._segment(index)
        if self.square_pixels:
            facts = facts.with_square_pixels()
        if segment is None:
            return member, facts, range(facts.num_frames)
        own = segment.frames_of(self.key(index), facts)
        return member, facts, own


@dataclass(frozen=True)
class _Chosen:
    """Samples of an index: which, and their labels.

    Attributes:
        numbers: int64 [samples], rising.
        labels: label name -> int32 [samples], class number or -1.
        label_classes: label name -> names of its classes.
        segments: [samples], of each a Segment or None; None if all samples are whole files.
    """

    numbers: NDArray[np.int64]
    labels: Mapping[str, NDArray[np.int32]]
    label_classes: Mapping[str, tuple[str, ...]]
    segments: NDArray[np.object_] | None = None

    @classmethod
    def all_of(cls, index: ShardIndex) -> "_Chosen":
        return cls(np.arange(len(index)), index.labels, index.label_classes)

    @classmethod
    def listed(cls, index: ShardIndex, listing: Listing, where: str) -> "_Chosen":
        """Those of a listing, with its labels.

        Raises:
            UsageError: if the index lacks any.
        """
        found = [(index.number(file.path), file) for file in listing.files]
        unknown = [file.path for number, file in found if number is None]
        if unknown:
            raise UsageError(
                f"{index.where}: {len(unknown)} of the {counted(len(found), 'file')} of {where} are not "
                "in the index, "
                f"such as {unknown[0]}. Keys are paths below the folder that shards were made of; what was "
                "added since is packed by making the shards anew with 'vidssl data shard'"
            )
        numbers = np.array([number for number, _ in found], dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        labels = {
            name: np.array([file.labels.get(name, -1) for _, file in found], dtype=np.int32)[order]
            for name in listing.label_classes
        }
        segments = None
        if any(file.segment is not None for file in listing.files):
            segments = np.array([file.segment for file in listing.files], dtype=object)[order]
        return cls(numbers[order], labels, listing.label_classes, segments)

    def only(self, kept: NDArray[np.bool_]) -> "_Chosen":
        """Those for which ``kept`` is True."""
        labels = {name: numbers[kept] for name, numbers in self.labels.items()}
        segments = None if self.segments is None else self.segments[kept]
        return _Chosen(self.numbers[kept], labels, self.label_classes, segments)


def _listing(
    index: ShardIndex, first: str | None, held_out: str | None, part: ListPart
) -> tuple[Listing, ListPart]:
    """The listed samples, or all that are indexed, and the part of them that is still to be selected."""
    if first is not None:
        return listed_part(first, held_out, part, exists=lambda path: index.number(path) is not None)
    columns = {name: [*names, ""] for name, names in index.label_classes.items()}  # -1 is the last
    files = (
        (
            path,
            {name: names[index.labels[name][number]] for name, names in columns.items()
             if index.labels[name][number] >= 0},
            index.segments.get(number, ()),
        )
        for number, path in enumerate(index.keys())
    )  # fmt: skip
    return named_listing(files, index.label_classes), part


def _usable(chosen: _Chosen, index: ShardIndex, short: ShortVideos, where: str) -> _Chosen:
    """Those that can be used; says how many cannot.

    Raises:
        UsageError: if none can.
    """
    bad = ~index.usable[chosen.numbers]
    num_frames = index.num_frames[chosen.numbers]
    if chosen.segments is not None:
        num_frames = np.array([*map(partial(_length, index), chosen.numbers, chosen.segments)])
    too_short = ~bad & (short.rule == "skip") & (num_frames < short.min_frames)
    reasons = Counter(index.member(int(number)).entry.reason for number in chosen.numbers[bad])
    if too_short.any():
        reasons[f"shorter than {counted(short.min_frames, 'frame')}"] = int(too_short.sum())
    most = f"(most of all: {reasons.most_common(1)[0][0]})" if reasons else ""
    total = len(chosen.numbers)
    if reasons.total() == total:
        raise UsageError(
            f"{index.where}: none of the {counted(total, 'sample')} of {where} can be used {most}".rstrip()
        )
    if reasons:
        _log.warning("%s: %d of %d samples are left out %s", index.where, reasons.total(), total, most)
    return chosen.only(~(bad | too_short))


def _length(index: ShardIndex, number: int, segment: Segment | None) -> int:
    """Frames of a sample; 0 for a segment that its file does not reach."""
    facts = index.member(int(number)).entry.facts
    if segment is None or facts is None:
        return int(index.num_frames[number])
    with suppress(UnreadableSample):
        return len(segment.frames_of("", facts))
    return 0


def _read_index(address: Address, index: str | None, seconds: float, tries: int) -> ShardIndex:
    place, name = address, INDEX
    if index is not None:
        place, name = file_address(index, timeout_seconds=seconds, tries=tries)
    where = place.file(name)
    try:
        return ShardIndex(place.read(name), where)
    except FileNotFoundError as error:
        raise UsageError(
            f"{where}: there is no index of tar shards. 'vidssl data shard' writes it with the shards; "
            "'vidssl data index' makes one of shards that are there, and 'index' names it"
        ) from error
    except NotADirectoryError as error:
        raise UsageError(f"{place} is a file; give the folder that it lies in") from error
    except OSError as error:
        raise UsageError(f"{where}: the index cannot be read: {error.strerror or error}") from error


def _reader(address: Address, index: ShardIndex, cache: str | None, gib: float) -> ShardReader:
    if cache is None:
        return ShardReader(address, index, None)
    largest = int(index.shard_bytes.max(initial=0))
    return ShardReader(address, index, ShardCache(Path(cache), gib=gib, source=address, largest=largest))


_KEPT = 4096  # shards whose shuffled samples are kept: one for each lane of most batches


class ShardOrder:
    """One epoch's order of samples, numbered as they lie, shard by shard; few shards are open at a time.

    The order is arithmetic, not a queue. Shards are shuffled and laid end to end, samples shuffled within
    each. The line is cut into as many equal stretches ("lanes") as a batch has places, and each place of the
    batch walks along one lane, a sample a step. So a batch mixes as many shards as it has samples, while a
    process, which fills always the same places, keeps to its own part of the line: shards are hardly ever
    read by two. What comes at a position depends on the seed, the shards and the batch size alone, never on
    processes or workers, and any position can be entered at.

    Args:
        counts: samples of each shard; none of its samples may be left to read, then it counts 0.
        batch_size: of all processes together; makes as many lanes.
        seed: decides the order.

    Raises:
        ValueError: if a count is negative or ``batch_size`` is less than 1.
    """

    def __init__(self, counts: Sequence[int], *, batch_size: int, seed: int) -> None:
        if batch_size < 1 or min(counts, default=0) < 0:
            least = min(counts, default=0)
            raise ValueError(
                f"batch_size must be at least 1 and counts not negative, got {batch_size} and {least}"
            )
        generator = torch.Generator().manual_seed(seed)
        self._shards: list[int] = torch.randperm(len(counts), generator=generator).tolist()
        self._counts = counts
        self._firsts = [0, *accumulate(counts)]  # of each shard, in the numbering of samples
        self._ends = list(accumulate(counts[shard] for shard in self._shards))  # of each shard on the line
        self._seed = seed
        self._lanes = batch_size
        self._shuffled: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, place: int) -> int:
        """The number of the sample at a place of the epoch, both from 0."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} of an epoch of {len(self)}")
        length, longer = divmod(len(self), self._lanes)  # the first lanes are longer by one
        step, lane = divmod(place, self._lanes)
        return self._on_line(lane * length + min(lane, longer) + step)

    def _on_line(self, spot: int) -> int:
        where = bisect_right(self._ends, spot)
        shard = self._shards[where]
        start = self._ends[where] - self._counts[shard]
        return self._firsts[shard] + int(self._within(shard)[spot - start])

    def _within(self, shard: int) -> Tensor:
        """The samples of a shard, shuffled; numbers from 0."""
        if shard not in self._shuffled:
            generator = torch.Generator().manual_seed(mix(self._seed, shard))
            self._shuffled[shard] = torch.randperm(self._counts[shard], generator=generator)
            if len(self._shuffled) > _KEPT:
                self._shuffled.popitem(last=False)
        self._shuffled.move_to_end(shard)
        return self._shuffled[shard]
