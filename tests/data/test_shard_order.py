"""Reading samples from shards: each once an epoch, few shards for each process, exact resume."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from vidssl.data.loader import Stream
from vidssl.data.samples import Endless
from vidssl.data.sources.tar.source import ShardOrder
from vidssl.data.views.random import SingleClip
from vidssl.interfaces import DataSource, EpochOrder, OrdersEpochs, SampleInfo

NODES, GPUS, WORKERS, SHARDS = 64, 8, 8, 100_000
WORLD = NODES * GPUS
BATCH = 4 * WORLD


class Sharded(DataSource, OrdersEpochs):
    """So many samples in each shard, and no pixels."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        self.label_classes = {}
        self.total = sum(counts)

    def __len__(self) -> int:
        return self.total

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(str(index), 1, 0.0, {})

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return torch.zeros(len(frames), 3, 8, 8, dtype=torch.uint8)

    def epoch_order(self, seed: int, batch_size: int) -> EpochOrder:
        return ShardOrder(self.counts, batch_size=batch_size, seed=seed)


def stream_of(counts: Sequence[int], batch_size: int = BATCH) -> Stream:
    return Stream(Sharded(counts), SingleClip(num_frames=1, frame_stride=1, size=8), batch_size=batch_size)


def uneven(shards: int, mean: int) -> list[int]:
    """As sharding by size leaves them, a few empty ones among them."""
    return torch.randint(0, 2 * mean + 1, (shards,), generator=torch.Generator().manual_seed(0)).tolist()


def samples_of(stream: Stream) -> Endless:
    return Endless(stream.source, stream.views, batch_size=stream.batch_size, seed=stream.seed, tries=1)


def read_by_worker(stream: Stream, worker: int, workers: int, steps: range) -> Iterator[int]:
    """Positions in the endless order that one worker reads: DataLoader deals steps out in turns."""
    for step in steps[worker::workers]:
        yield from stream.positions(step)


def count(
    stream: Stream, world: int, workers: int, steps: range, *, epoch: int, samples: Endless | None = None
) -> tuple[np.ndarray, list[int]]:
    """How often each sample of an epoch is read by all workers, and how many shards each process reads from.

    Args:
        samples: shared by all workers; without it each has its own, as in life.
    """
    counts = stream.source.counts
    shard_of = np.repeat(np.arange(len(counts)), counts)
    seen = np.zeros(len(stream), dtype=np.int64)
    opened = []
    for rank in range(world):
        mine = stream.share(rank, world)
        found = [
            own.index(position)
            for worker in range(workers)
            for own in [samples or samples_of(stream)]
            for position in read_by_worker(mine, worker, workers, steps)
            if position // len(stream) == epoch
        ]
        np.add.at(seen, found, 1)
        opened.append(len(np.unique(shard_of[found])))
    return seen, opened


def steps_of(stream: Stream, epoch: int) -> range:
    """All steps that read a sample of an epoch; the first and the last may read of its neighbours too."""
    return range(epoch * len(stream) // stream.batch_size, -(-(epoch + 1) * len(stream) // stream.batch_size))


@pytest.mark.slow
def test_64_nodes_of_8_gpus_of_8_workers_read_every_sample_of_100_000_shards_once() -> None:
    stream = stream_of(uneven(SHARDS, mean=2))
    assert len(stream) % BATCH  # so that the second epoch begins and ends within a batch
    samples = samples_of(stream)
    seen, opened = count(stream, WORLD, WORKERS, steps_of(stream, 1), epoch=1, samples=samples)
    assert seen.min() == 1
    assert seen.max() == 1
    # a process reads its part of the line of shards, and at the ends of its lanes what others read too
    assert max(opened) < 1.2 * SHARDS / WORLD


@pytest.mark.slow
def test_workers_that_know_nothing_of_each_other_read_every_sample_once() -> None:
    stream = stream_of(uneven(SHARDS, mean=2))
    seen, _ = count(stream, WORLD, WORKERS, steps_of(stream, 0), epoch=0)
    assert seen.min() == seen.max() == 1


def test_a_job_that_goes_on_with_fewer_nodes_reads_what_was_left_and_nothing_twice() -> None:
    stream = stream_of(uneven(2_000, mean=10), batch_size=96)
    steps = steps_of(stream, 1)
    middle = steps[len(steps) // 3]
    before, _ = count(stream, 32, 4, range(steps[0], middle), epoch=1)
    after, _ = count(stream, 6, 3, range(middle, steps[-1] + 1), epoch=1)
    assert 0 < before.sum() < len(stream)
    assert (before + after == 1).all()


def test_batches_do_not_depend_on_processes_or_parts() -> None:
    stream = stream_of(uneven(50, mean=7), batch_size=12)
    samples = samples_of(stream)

    def batch(step: int, world: int, parts: int = 1) -> list[int]:
        shares = (stream.share(rank, world, parts).positions(step) for rank in range(world))
        return sorted(samples.index(position) for share in shares for position in share)

    for step in (0, 7, 40, 100):
        assert batch(step, 1) == batch(step, 3) == batch(step, 2, parts=3)


def test_each_place_of_a_batch_walks_through_its_shards_one_after_another() -> None:
    counts = [10] * 40
    order = ShardOrder(counts, batch_size=8, seed=3)
    for lane in range(8):
        shards = [order[step * 8 + lane] // 10 for step in range(50)]
        assert len(set(shards)) == 5
        assert sum(one != other for one, other in pairwise(shards)) == 4


def test_a_batch_mixes_as_many_shards_as_it_has_samples() -> None:
    order = ShardOrder([10] * 40, batch_size=8, seed=3)
    for step in range(50):
        assert len({order[step * 8 + lane] // 10 for lane in range(8)}) == 8


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    counts = uneven(20, mean=5)
    orders = [
        [order[place] for place in range(len(order))]
        for order in (ShardOrder(counts, batch_size=4, seed=seed) for seed in (0, 0, 1))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(sum(counts)))


def test_shards_are_shuffled() -> None:
    lines = [ShardOrder([1] * 30, batch_size=1, seed=seed) for seed in (0, 1)]
    shards = [[line[place] for place in range(30)] for line in lines]
    assert shards[0] != sorted(shards[0])
    assert shards[0] != shards[1]


def test_samples_are_shuffled_within_their_shard() -> None:
    order = ShardOrder([30, 30], batch_size=1, seed=0)
    first = [order[place] for place in range(30)]
    second = [order[place] for place in range(30, 60)]
    assert first != sorted(first)
    assert [index % 30 for index in first] != [index % 30 for index in second]


@pytest.mark.parametrize(
    ("counts", "batch_size"), [([1], 1), ([3], 8), ([0, 0, 5], 2), ([2, 2, 2], 6), ([5, 1, 0, 9], 4)]
)
def test_small_data_is_read_once_too(counts: list[int], batch_size: int) -> None:
    order = ShardOrder(counts, batch_size=batch_size, seed=1)
    assert sorted(order[place] for place in range(len(order))) == list(range(sum(counts)))


def test_places_outside_an_epoch_are_refused() -> None:
    order = ShardOrder([2, 3], batch_size=2, seed=0)
    for place in (-1, 5):
        with pytest.raises(IndexError, match="of an epoch of 5"):
            order[place]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        ShardOrder([2], batch_size=0, seed=0)
    with pytest.raises(ValueError, match="not negative, got 1 and -2"):
        ShardOrder([-2, 3], batch_size=1, seed=0)
