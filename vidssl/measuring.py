"""An objective's metrics on held-out streams, in the course of a run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.data.loader import Loader, Stream
from vidssl.engine.parallel import Parallel
from vidssl.interfaces import Progress


@torch.no_grad()
def measure(
    parallel: Parallel,
    streams: Mapping[str, Stream],
    *,
    batches: int,
    device: torch.device,
    autocast: bool,
) -> dict[str, float]:
    """The objective's metrics in eval mode over the first batches, at most one pass; the same at every call.

    Each metric is the mean over batches, weighted by their samples. Of several processes each measures its
    slices, and what is a mean over clips is that of all in their mean.

    Args:
        streams: that give each sample once (``Stream.once``); of several, a shorter one begins anew.
    """
    generator = torch.Generator(device).manual_seed(0)
    found: dict[str, list[tuple[int, Tensor]]] = {}
    batches = min(batches, max(stream.batches_of_pass() for stream in streams.values()))
    parallel.objective.eval()
    with Loader(streams) as loader:
        for _ in range(batches):
            batch = next(loader).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                output = parallel(batch, Progress(0, 1), generator)
            rows = max(len(numbers) for numbers in batch.indices.values())
            for name, value in output.metrics.items():
                found.setdefault(name, []).append((rows, value.detach()))
    parallel.objective.train()
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[tuple[int, Tensor]]) -> float:
    rows, numbers = zip(*values, strict=True)
    stacked = torch.stack(numbers).float()
    if len(set(rows)) == 1:
        return float(stacked.mean())
    weights = torch.tensor(rows, device=stacked.device, dtype=stacked.dtype)
    return float((stacked * weights).sum() / weights.sum())
