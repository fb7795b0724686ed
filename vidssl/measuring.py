"""An objective's metrics on held-out streams, in the course of a run."""

from collections.abc import Mapping

import torch

from vidssl.data.loader import Loader, Stream
from vidssl.engine.parallel import Parallel
from vidssl.engine.window import Window
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
    """The objective's metrics in eval mode, mean over the first batches; the same ones at every call.

    Of several processes each measures its slices, and what is a mean over clips is that of all in their mean.
    """
    generator = torch.Generator(device).manual_seed(0)
    window = Window()
    parallel.objective.eval()
    with Loader(streams) as loader:
        for _ in range(batches):
            batch = next(loader).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                output = parallel(batch, Progress(0, 1), generator)
            window.add(output.metrics)
    parallel.objective.train()
    return window.means()
