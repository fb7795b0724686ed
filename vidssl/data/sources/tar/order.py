"""In which order to read samples that lie in shards: each once an epoch, and few shards open at a time.

The order is arithmetic, not a queue. Shards are shuffled and laid end to end, samples shuffled within
each. The line is cut into as many equal stretches ("lanes") as a batch has places, and each place of the
batch walks along one lane, a sample a step. So a batch mixes as many shards as it has samples, while a
process, which fills always the same places, keeps to its own part of the line: shards are hardly ever
read by two. What comes at a position depends on the seed, the shards and the batch size alone, never on
processes or workers, and any position can be entered at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from vidssl.data.samples import mix

_KEPT = 4096  # shards whose shuffled samples are kept: one for each lane of most batches


class ShardOrder:
    """One epoch's order of samples that are numbered as they lie, shard by shard.

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
