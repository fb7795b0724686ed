"""FLOPs of a step of VideoMAE, and what a pass of its encoder takes, by the fraction of cells that is hidden.

    OMP_NUM_THREADS=1 python docs/measure_visible.py [S] [B] [L]
    python docs/measure_visible.py jepa     # of V-JEPA 2 and LeVJEPA, without computing anything

FLOPs are counted by PyTorch (matrix products and attention, forward and backward) of one clip at the papers'
sizes, V-JEPA 2's in one batch of 24, whose masks are cut to one length; seconds are those of four blocks of
ViT-S on two clips of 16 x 112 x 112, the median of 7.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, Progress
from vidssl.interfaces.grids import places_of
from vidssl.maskers.bevt import Random3D
from vidssl.maskers.videomae import RandomTube
from vidssl.maskers.vjepa import MultiBlock
from vidssl.objectives.lejepa import LeJEPA
from vidssl.objectives.videomae import VideoMAE
from vidssl.objectives.vjepa import VJEPA

JEPA_SIZES: dict[str, dict[str, Any]] = {
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "L": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "g": {"embed_dim": 1408, "depth": 40, "num_heads": 22, "mlp_ratio": 48 / 11},
}
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


def vjepa_flops(size: str) -> float:
    """GFLOP of a step of V-JEPA 2 on one clip of 16 x 256 x 256 out of 24."""
    with torch.device("meta"):
        net = ViT(**JEPA_SIZES[size], positions="rotary_tiled")
        objective = VJEPA(net, MultiBlock(cut="first"), predictor_positions="rotary_tiled")
        batch = Batch({"clip": (torch.empty(24, 3, 16, 256, 256),)})
    draw = torch.Generator().manual_seed(0)
    return counted(lambda: objective(batch, Progress(0, 1), draw).loss) / 24


def levjepa_flops(size: str) -> float:
    """GFLOP of the encoder in a step of LeVJEPA on one clip, eleven views of it."""
    with torch.device("meta"):
        net = ViT(**JEPA_SIZES[size] | {"patch_size": (1, 16, 16)}, positions="rotary", class_token=True)
        objective = LeJEPA(net, Random3D(ratio=0.95), head_layers=2)
        locals_ = (torch.empty(1, 3, 16, 96, 96),) * 10
        batch = Batch({"global": (torch.empty(1, 3, 16, 224, 224),), "local": locals_})
    draw = torch.Generator().manual_seed(0)
    return counted(lambda: objective.forward_part(batch, Progress(0, 1), draw).vectors.sum())


def seconds(step: Callable[[], Tensor]) -> float:
    """Processor seconds of a forward and backward pass, the median of 7."""
    found = []
    for _ in range(8):
        started = time.process_time()
        step().backward()
        found.append(time.process_time() - started)
    return statistics.median(found[1:])


def main() -> None:
    if sys.argv[1:] == ["jepa"]:
        for size in JEPA_SIZES:
            print(f"ViT-{size}: V-JEPA 2 {vjepa_flops(size):.0f} GFLOP, LeVJEPA {levjepa_flops(size):.0f}")
        return
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
