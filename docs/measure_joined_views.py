"""Is an MLP faster on all of SVT's views at once than on the views of each shape alone? Prints time ratios.

python docs/measure_joined_views.py
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# name -> (width, clips, tokens of each view of a clip): ViT-S at the paper's views, and recipes/svt.yaml
SIZES = {
    "paper": (
        384,
        1,
        [t * s for t, s in ((16, 196), (8, 196), *((t, 36) for t in (2, 2, 4, 4, 8, 8, 16, 16)))],
    ),
    "laptop": (128, 32, [144, 72, 32, 32]),
}


def main() -> None:
    for name, (width, clips, views) in SIZES.items():
        up, down = torch.randn(4 * width, width), torch.randn(width, 4 * width)
        groups = [torch.randn(tokens * count * clips, width) for tokens, count in Counter(views).items()]

        def mlp(x: Tensor, up: Tensor = up, down: Tensor = down) -> Tensor:
            return F.linear(F.gelu(F.linear(x, up)), down)

        def alone(groups: list[Tensor] = groups) -> list[Tensor]:
            return [mlp(group) for group in groups]

        def joined(groups: list[Tensor] = groups) -> list[Tensor]:
            return list(mlp(torch.cat(groups)).split([len(group) for group in groups]))

        ratios = sorted(seconds(joined) / seconds(alone) for _ in range(11))[1:-1]
        print(f"{name}: joined / alone {ratios[4]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
