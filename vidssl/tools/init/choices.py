"""Values of a recipe for given videos and a given machine, and the reason of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, Literal, TypeVar, get_args

from vidssl.errors import UsageError, counted
from vidssl.tools.collection.survey import Seen, enlarged, rates_differ, suitable_clip
from vidssl.tools.init.order import OrderProbe

T = TypeVar("T")
ObjectiveName = Literal["svt", "bevt", "vimpac", "videomae"]
NEEDS_TOKENIZER = ("bevt", "vimpac")
PATCH = 8  # pixels and rows of a cell of the small network, and of a tokenizer's id
_DIRECTIONS = {
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "anticlockwise",
    "counterclockwise",
    "rise",
    "fall",
}


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value and why it is that."""

    value: T
    why: str


@dataclass(frozen=True)
class Machine:
    """What trains: a GPU or the cores of a CPU, for so many minutes; None where passes are counted."""

    gpu: bool
    cores: int
    minutes: float | None

    @property
    def words(self) -> str:
        if self.gpu:
            return "a GPU"
        return f"{counted(self.cores, 'core')} without a GPU"


@dataclass(frozen=True)
class Choices:
    """The values that all objectives share, so that their runs can be compared."""

    size: Choice[int]
    num_frames: Choice[int]
    frame_stride: Choice[int]
    patch: int
    network: Choice[dict[str, object]]
    batch_size: Choice[int]
    flip: Choice[float]
    workers: Choice[int]


def choose(seen: Sequence[Seen], machine: Machine, order: OrderProbe | None) -> Choices:
    """Values by the training samples, the machine, and what the classes need.

    Raises:
        UsageError: if there are too few samples or they are too small.
    """
    if len(seen) < 4:
        raise UsageError(f"{counted(len(seen), 'training video')}: nothing is learned from fewer than four")
    size = _size(seen, machine)
    clip = suitable_clip(seen, 16 if machine.gpu and median(one.frames for one in seen) >= 16 else 8)
    batch = _batch(len(seen), machine)
    workers = Choice(1, "one process decodes beside the training")
    if machine.gpu:
        workers = Choice(
            max(1, min(8, machine.cores - 1)), "processes that decode; 'vidssl bench' measures them"
        )
    return Choices(
        size,
        Choice(
            clip.num_frames, "frames of a clip" if machine.gpu else "frames of a clip that a CPU has time for"
        ),
        Choice(clip.frame_stride, _stride_reason(seen, clip.span, clip.fits)),
        16 if machine.gpu and size.value >= 96 else PATCH,
        _network(machine, size.value),
        batch,
        _flip(seen, order),
        workers,
    )


def _size(seen: Sequence[Seen], machine: Machine) -> Choice[int]:
    wanted = 112 if machine.gpu else 64 if (machine.minutes or 0) <= 30 else 96
    short = sorted(min(one.height, one.width) for one in seen)[len(seen) // 10]
    size = min(wanted, max(32, short // 16 * 16))
    why = f"pixels: {size // PATCH} x {size // PATCH} cells a frame, what {machine.words} trains in the time"
    if size < wanted:
        why = f"pixels: most videos have a short side of {short} or more, and are not enlarged"
    elif number := enlarged(seen, size):
        why += f"; {number} of {len(seen)} videos are smaller and are enlarged"
    return Choice(size, why)


def _stride_reason(seen: Sequence[Seen], span: int, fits: float) -> str:
    rate = median([one.fps for one in seen if one.fps > 0] or [0.0])
    lasts = f" or {span / rate:.2g} s" if rate else ""
    why = f"a clip spans {span} frames{lasts}, as {fits:.0%} of the videos do"
    if rates_differ(seen):
        why += "; frame rates differ, so it lasts longer in some"
    return why


def _network(machine: Machine, size: int) -> Choice[dict[str, object]]:
    if machine.gpu:
        patch = 16 if size >= 96 else PATCH
        keys = {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": [2, patch, patch]}
        return Choice(
            {"type": "vit", **keys, "class_token": True}, "ViT-S, the smallest of the published sizes"
        )
    keys = {"embed_dim": 128, "depth": 4, "num_heads": 4, "patch_size": [2, PATCH, PATCH]}
    why = "that of recipes/comparison: it learns within minutes on a CPU"
    return Choice({"type": "vit", **keys, "class_token": True, "init_std": 0.08}, why)


def _batch(samples: int, machine: Machine) -> Choice[int]:
    most = 64 if machine.gpu else 32
    batch = most
    while batch > samples // 2 and batch > 2:
        batch //= 2
    why = f"clips a step, of {counted(samples, 'video')}"
    return Choice(batch, why if batch == most else f"{why}: no batch holds a video twice")


def _flip(seen: Sequence[Seen], order: OrderProbe | None) -> Choice[float]:
    words = {
        word
        for one in seen
        for name in one.labels.values()
        for word in name.lower().replace("-", "_").split("_")
    }
    if found := sorted(words & _DIRECTIONS):
        return Choice(0.0, f"clips are not mirrored: a class is called '{found[0]}'")
    if order is not None and order.order_may_matter:
        return Choice(
            0.0, "clips are not mirrored: classes seem to differ in their motion, perhaps in its direction"
        )
    return Choice(0.5, "of the clips are mirrored: nothing says that left and right are classes")


def steps_for(
    seconds_a_step: float | None, machine: Machine, samples: int, batch_size: int, most_epochs: int = 800
) -> Choice[int]:
    """Steps for the time there is, and no more than so many passes over the videos."""
    epoch = samples / batch_size
    most = max(50, round(most_epochs * epoch))
    if seconds_a_step is None or machine.minutes is None:
        steps = min(most, 20_000)
        return Choice(
            steps, f"{steps / epoch:.0f} passes over the videos; not timed here: 'vidssl bench' does"
        )
    fitting = max(20, int(machine.minutes * 60 * 0.85 / seconds_a_step))
    if fitting > most:
        return Choice(
            most, f"{most_epochs} passes over the videos, about {most * seconds_a_step / 60:.0f} min here"
        )
    return Choice(
        fitting,
        f"{machine.minutes:g} min at {seconds_a_step:.2g} s a step as measured here; "
        f"{fitting / epoch:.0f} passes over the videos",
    )


def check_objective(name: str) -> ObjectiveName:
    """The name as one of those that ``init`` knows.

    Raises:
        UsageError: for another.
    """
    for known in get_args(ObjectiveName):
        if name == known:
            return known
    raise UsageError(f"--objective {name}: 'vidssl init' knows {', '.join(get_args(ObjectiveName))}")
