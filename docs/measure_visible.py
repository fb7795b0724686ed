"""FLOPs of a step of VideoMAE, and what a pass of its encoder takes, by the fraction of cells that is hidden.

    OMP_NUM_THREADS=1 python docs/measure_visible.py [S] [B] [L]

FLOPs are counted by PyTorch (matrix products and attention, forward and backward) of one clip at the papers'
sizes; seconds are those of four blocks of ViT-S on two clips of 16 x 112 x 112, the median of 7.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, Progress
from vidssl.interfaces.grids import places_of
from vidssl.maskers.videomae import RandomTube
from vidssl.objectives.videomae import VideoMAE

SIZES = {"S": (384, 12, 6, 192, 4, 3), "B": (768, 12, 12, 384, 4, 6), "L": (1024, 24, 16, 512, 12, 8)}


def counted(step: Callable[[], Tensor]) -> float:
    """GFLOP of a forward and backward pass."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step().backward()
    return counter.get_total_flops() / 1e9


def flops(size: str) -> tuple[float, float]:
    """GFLOP of VideoMAE's step on one clip, and of the encoder's pass over the whole clip."""
    dim, depth, heads, *decoder = SIZES[size]
    net = ViT(embed_dim=dim, depth=depth, num_heads=heads, positions="line", key_bias=False, init_std=None)
    keys = dict(zip(("decoder_dim", "decoder_depth", "decoder_heads"), decoder, strict=True))
    objective, clip = VideoMAE(net, RandomTube(), **keys), torch.rand(1, 3, 16, 224, 224)
    batch = Batch({"clip": (clip,)})
    step = counted(lambda: objective(batch, Progress(0, 1), torch.Generator().manual_seed(0)).loss)
    return step, counted(lambda: net(clip).pooled().square().sum())


def seconds(step: Callable[[], Tensor]) -> float:
    """Processor seconds of a forward and backward pass, the median of 7."""
    found = []
    for _ in range(8):
        started = time.process_time()
        step().backward()
        found.append(time.process_time() - started)
    return statistics.median(found[1:])


def main() -> None:
    for size in sys.argv[1:]:
        step, whole = flops(size)
        print(f"ViT-{size}: a step {step:.0f} GFLOP, the encoder over the whole clip {whole:.0f}", flush=True)
    torch.manual_seed(0)
    net, clips = ViT(embed_dim=384, depth=4, num_heads=6), torch.rand(2, 3, 16, 112, 112)
    whole = seconds(lambda: net(clips).pooled().square().sum())
    for ratio in (0.5, 0.75, 0.9):
        hidden = RandomTube(ratio=ratio)(2, net.grid(16, 112, 112), torch.Generator().manual_seed(0))
        keep = places_of(~hidden)
        part = seconds(lambda keep=keep: net.forward_visible(clips, keep).pooled().square().sum())
        print(
            f"{ratio:.0%} hidden: {part / whole:.3f} of the time of a pass over the whole clips", flush=True
        )


if __name__ == "__main__":
    main()
