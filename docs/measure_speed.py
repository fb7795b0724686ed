"""The switches of ``run``, each beside the same steps without it: time, memory, difference.

    OMP_NUM_THREADS=1 python docs/measure_speed.py [--rounds 5] [--compile | --compiled RECIPE ...]

Prints the tables of docs/performance.md, section "Switches". A ratio is that of the shortest of some steps
without the switch to the shortest with it, taken in turns: above 1 is faster. On a CPU it is of processor
time, which other processes hardly change; the GPU is used where there is one. Compiling takes minutes on a
CPU, so it is asked for.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vidssl import api as v
from vidssl.backbones import BACKBONES
from vidssl.build import build
from vidssl.config.recipe import load_recipe
from vidssl.engine.speed import autocast_dtype, loss_scaler, pick_device, prepare
from vidssl.interfaces import Backbone
from vidssl.train.trial import Trial, random_batch

DEVICE = pick_device("auto")
CLOCK = time.perf_counter if DEVICE.type == "cuda" else time.process_time


@dataclass
class Step:
    """A network and what it descends on."""

    network: Backbone
    clips: Tensor
    run: v.RunSpec

    def __post_init__(self) -> None:
        self.network.to(DEVICE).train()
        prepare(nn.ModuleList([self.network]), self.run)
        self.dtype = autocast_dtype(self.run.precision, DEVICE)
        self.scaler = loss_scaler(self.dtype, DEVICE)
        self.optimizer = v.AdamW(lr=1e-4).build(nn.ModuleList([self.network]))

    def features(self) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.network(self.clips).patches.float()

    def forward(self) -> Tensor:
        return self.features().square().mean()

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.forward()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def kept_bytes(self) -> int:
        """What the forward pass keeps for the backward pass, parameters left out."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.forward()
        own = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        del loss
        return sum(size for place, size in kept.items() if place not in own)


def video_swin() -> Backbone:
    return BACKBONES["video_swin"](embed_dim=48, depths=(2, 2, 2), num_heads=(3, 6, 12), drop_path=0.0)


def timesformer() -> Backbone:
    return BACKBONES["timesformer"](
        embed_dim=192, depth=6, num_heads=3, num_frames=8, size=112, drop_path=0.0
    )


def factorized() -> Backbone:
    return BACKBONES["factorized"](
        vocab_size=1024, num_frames=5, height=16, width=16, embed_dim=256, depth=4, num_heads=4, dropout=0.0
    )


def vit() -> Backbone:
    return BACKBONES["vit"](embed_dim=192, depth=6, num_heads=3, drop_path=0.0)


def resnet() -> Backbone:
    return BACKBONES["timm"](name="resnet50")


def convnext() -> Backbone:
    return BACKBONES["timm"](name="convnext_atto")


def regnety() -> Backbone:
    return BACKBONES["timm"](name="regnety_008")


def r3d() -> Backbone:
    return BACKBONES["torchvision"](name="r3d_18")


def s3d() -> Backbone:
    return BACKBONES["torchvision"](name="s3d")


def x3d() -> Backbone:
    return BACKBONES["pytorchvideo"](name="x3d_xs")


Case = tuple[str, Callable[[], Backbone], tuple[int, ...]]
OWN: tuple[Case, ...] = (
    ("video_swin, 3 stages of 48", video_swin, (1, 3, 8, 64, 64)),
    ("timesformer, 6 x 192", timesformer, (1, 3, 4, 112, 112)),
    ("factorized, 4 x 256", factorized, (1, 5, 8, 8)),
    ("vit, 6 x 192", vit, (1, 3, 8, 112, 112)),
)
PAPERS: tuple[Case, ...] = (  # widths and depths of the papers, on smaller clips
    ("Video Swin-T", lambda: BACKBONES["video_swin"](variant="tiny"), (1, 3, 16, 112, 112)),
    (
        "TimeSformer, ViT-S",
        lambda: BACKBONES["timesformer"](embed_dim=384, depth=12, num_heads=6, drop_path=0.1),
        (1, 3, 8, 112, 112),
    ),
    (
        "ViT-S over tubelets",
        lambda: BACKBONES["vit"](embed_dim=384, depth=12, num_heads=6),
        (1, 3, 16, 112, 112),
    ),
    (
        "VIMPAC small",
        lambda: BACKBONES["factorized"](variant="small", vocab_size=8192, num_frames=5, height=16, width=16),
        (2, 5, 16, 16),
    ),
)
CONVOLUTIONS: tuple[Case, ...] = (
    ("timm resnet50", resnet, (2, 3, 4, 64, 64)),
    ("timm convnext_atto", convnext, (2, 3, 4, 96, 96)),
    ("timm regnety_008", regnety, (1, 3, 4, 128, 128)),
    ("torchvision r3d_18", r3d, (2, 3, 8, 64, 64)),
    ("torchvision s3d", s3d, (2, 3, 16, 64, 64)),
    ("pytorchvideo x3d_xs", x3d, (2, 3, 4, 128, 128)),
)


def step(make: Callable[[], Backbone], shape: tuple[int, ...], run: v.RunSpec) -> Step:
    torch.manual_seed(0)
    network = make()
    reads_ids = network.input_kind == "tokens"
    clips = torch.randint(0, 1024, shape) if reads_ids else torch.rand(shape)
    return Step(network, clips.to(DEVICE), run)


def seconds(steps: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """The shortest time of each, taken in turns after a first one that is thrown away."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 1):
        for found, take in zip(times, steps, strict=True):
            started = CLOCK()
            take()
            if turn:
                found.append(CLOCK() - started)
    return [min(found) for found in times]


def switches(compiled: bool) -> Iterator[tuple[str, v.RunSpec]]:
    yield "none", v.RunSpec(precision="fp32")
    yield "precision: bf16", v.RunSpec(precision="bf16")
    yield "precision: fp16", v.RunSpec(precision="fp16")
    yield "activation_checkpointing: true", v.RunSpec(precision="fp32", activation_checkpointing=True)
    yield (
        "activation_checkpointing: elementwise",
        v.RunSpec(precision="fp32", activation_checkpointing="elementwise"),
    )
    if compiled:
        yield "compile", v.RunSpec(precision="fp32", compile=True)


def print_compiled(recipes: list[str], rounds: int) -> None:
    """Whole steps of recipes with ``compile``, over the same steps without."""
    print("| recipe | fp32 | bf16 |\n| --- | ---: | ---: |")
    for name in recipes:
        ratios = []
        for precision in ("fp32", "bf16"):
            taken = []
            for compiled in ("false", "true"):
                recipe = load_recipe(name, [f"run.precision={precision}", f"run.compile={compiled}"])
                torch.manual_seed(0)
                plan = build.schedule(recipe).plan(dict.fromkeys(recipe.data.streams, 100.0))
                take = partial(Trial(recipe, build.untrained(recipe), plan).take, batch=random_batch(recipe))
                for number in range(2):  # compiled at the first, and once more for what differs at the second
                    take(number)
                taken.append(partial(take, 2))
            plain, compiled = seconds(taken, rounds)
            ratios.append(compiled / plain)
        print(f"| `{name}` | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


def print_papers(rounds: int) -> None:
    plain, lean = (
        v.RunSpec(precision="fp32", activation_checkpointing=how) for how in (False, "elementwise")
    )
    print("| network | elementwise, speed | kept |\n| --- | ---: | ---: |")
    for name, make, shape in PAPERS:
        one, other = step(make, shape, plain), step(make, shape, lean)
        before, after = seconds([one, other], rounds)
        print(f"| {name} | {before / after:.2f} | {other.kept_bytes() / one.kept_bytes():.2f} |", flush=True)


def print_own(rounds: int, compiled: bool) -> None:
    print("| network | switch | speed | kept for the gradient | features, difference |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, make, shape in OWN:
        made = {switch: step(make, shape, run) for switch, run in switches(compiled)}
        features = {switch: each.features().detach() for switch, each in made.items()}
        kept = {switch: each.kept_bytes() for switch, each in made.items()}
        times = dict(zip(made, seconds(list(made.values()), rounds), strict=True))
        for switch in list(made)[1:]:
            difference = float((features[switch] - features["none"]).norm() / features["none"].norm())
            print(
                f"| {name} | `{switch}` | {times['none'] / times[switch]:.2f} | "
                f"{kept[switch] / kept['none']:.2f} | {difference:.0e} |",
                flush=True,
            )


def print_channels_last(rounds: int) -> None:
    print("\n| network | speed |\n| --- | ---: |")
    for name, make, shape in CONVOLUTIONS:
        keys = {"precision": "fp32"}
        plain, last = (step(make, shape, v.RunSpec(channels_last=on, **keys)) for on in (False, True))
        times = seconds([plain, last], rounds)
        print(f"| {name} | {times[0] / times[1]:.2f} |", flush=True)


@torch.no_grad()
def print_average(rounds: int) -> None:
    """A teacher that follows, all tensors in one call and one after the other."""
    teacher, student = (list(vit().to(DEVICE).parameters()) for _ in range(2))

    def one_by_one() -> None:
        for kept, current in zip(teacher, student, strict=True):
            kept.lerp_(current, 0.01)

    times = seconds([one_by_one, lambda: torch._foreach_lerp_(teacher, student, 0.01)], 20 * rounds)
    print(f"\nThe teacher's update in one call, over a loop: {times[0] / times[1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--papers", action="store_true", help="'elementwise' at the papers' widths, and no more"
    )
    parser.add_argument(
        "--compiled", nargs="+", metavar="RECIPE", help="steps of recipes with 'compile', and no more"
    )
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or "CPU"
    print(
        f"{device}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    if arguments.papers:
        print_papers(arguments.rounds)
        return
    if arguments.compiled:
        print_compiled(arguments.compiled, arguments.rounds)
        return
    print_own(arguments.rounds, arguments.compile)
    print_channels_last(arguments.rounds)
    print_average(arguments.rounds)


if __name__ == "__main__":
    main()
