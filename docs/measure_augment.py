"""SVT's colour augmentation of a batch at once on the device, beside torchvision's clip by clip in a worker.

    OMP_NUM_THREADS=1 python docs/measure_augment.py

The same operations with the same chances and strengths on SVT's ten views of some videos: by ``colour`` on
the batch, floats on the device; by torchvision as a worker has it, on one clip after the other,
one draw for all its frames, on bytes and on floats. In turns and on one thread; on a CPU processor time
counts. Printed is how many times as long torchvision takes, over all rounds, and of thirds of them the
extremes. Where there is a GPU it has the batch, and the worker stays on the CPU.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from vidssl.data.augment.batch import SVT_BLUR, SVT_SOLARISE, ColourAugment
from vidssl.data.views.svt import GlobalLocal
from vidssl.engine.speed import pick_device
from vidssl.interfaces import Batch

DEVICE = pick_device("auto")
KERNEL = 13  # pixels: three standard deviations of the widest blur to either side, as ``colour`` has it
Clips = dict[str, tuple[Tensor, ...]]


def worker(view: str, slot: int) -> Callable[[Tensor], Tensor]:
    """What a worker does with a clip [T, 3, H, W] of one slot."""
    blur, solarise = SVT_BLUR[view], SVT_SOLARISE.get(view, (0.0,))
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(KERNEL, (0.1, 2.0))], p=blur[slot % len(blur)]),
            v2.RandomSolarize(0.5, p=solarise[slot % len(solarise)]),
        ]
    )


def one_by_one(views: Clips, seed: int) -> None:
    torch.manual_seed(seed)
    for name, slots in views.items():
        for slot, clips in enumerate(slots):
            change = worker(name, slot)
            for clip in clips:
                change(clip.transpose(0, 1))


def at_once(views: Clips, seed: int) -> None:
    ColourAugment()(Batch(views=views, indices={}), torch.Generator().manual_seed(seed))
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def ratio(theirs: Sequence[float], own: Sequence[float]) -> str:
    """Of all rounds, and the extremes of three thirds: luck decides how much a round has to do."""
    thirds = sorted(sum(theirs[third::3]) / sum(own[third::3]) for third in range(3))
    return f"{sum(theirs) / sum(own):.2f} ({thirds[0]:.2f} to {thirds[-1]:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shapes = GlobalLocal().shapes
    pixels = {
        name: tuple(torch.randint(256, (given.videos, 3, *size), dtype=torch.uint8) for size in sizes)
        for name, sizes in shapes.items()
    }
    floats = {name: tuple(slot.float() / 255 for slot in slots) for name, slots in pixels.items()}
    batch = {name: tuple(slot.to(DEVICE) for slot in slots) for name, slots in floats.items()}
    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
    acts: dict[str, Callable[[int], None]] = {
        "at once": partial(at_once, batch),
        "torchvision, bytes": partial(one_by_one, pixels),
        "torchvision, floats": partial(one_by_one, floats),
    }
    took: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(given.rounds + 1):
        for name, act in acts.items():
            started = clock()
            act(turn)
            took[name] += [clock() - started] * (turn > 0)
    print(f"{DEVICE.type}, torch {torch.__version__}\n\n| over the batch at once | |\n| --- | ---: |")
    for name in [*acts][1:]:
        print(f"| {name} | {ratio(took[name], took['at once'])} |")


if __name__ == "__main__":
    main()
