"""Values of a recipe for given videos and machine, with reasons; whether one frame tells the classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, Literal, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.engine.logging import format_duration
from vidssl.errors import UsageError, counted
from vidssl.evaluators import held_out, linear, statistics
from vidssl.interfaces import LabelledFeatures
from vidssl.tools.collection.glimpses import Glimpse
from vidssl.tools.collection.survey import Seen, enlarged, rates_differ, suitable_clip

FRAMES, SIDE = 16, 32  # of a glimpse
MOST = 300  # samples that are looked at: the probe takes a minute at most
_CELLS, _PARTS = 4, 3  # rows and columns, and parts of the time, that motion is summed over
_PENALTY, _ITERATIONS = 100.0, 60
_ADDS = 0.05  # that motion adds, from which on it may matter
_FEWEST = 4  # samples of a class, or it cannot be probed
_FEWEST_STEPS = 20


@dataclass(frozen=True)
class OrderProbe:
    """What pixels alone tell of a label, by cross-validation over training videos.

    Attributes:
        samples: that were probed.
        chance: the larger of guessing evenly and naming the commonest class.
        one_frame, in_order: fraction of them named right from the middle frame, and from it with motion.
        gain: of the second over the first.
    """

    samples: int
    chance: float
    one_frame: float
    in_order: float
    gain: statistics.Difference

    @property
    def order_matters(self) -> bool:
        return self.gain.mean > 0 and self.gain.p < statistics.LEVEL

    @property
    def order_may_matter(self) -> bool:
        """Whether it does, or seems to."""
        return self.order_matters or self.gain.mean > _ADDS

    @property
    def words(self) -> str:
        """One line for people."""
        found = (
            f"one frame names {self.one_frame:.0%}, frames in order {self.in_order:.0%} of {self.samples} "
            f"training videos (pixels alone, chance {self.chance:.0%})"
        )
        if self.order_matters:
            return f"{found}: motion tells classes apart that one frame does not (p {self.gain.p:.2g})"
        if self.gain.mean > _ADDS:
            return (
                f"{found}: motion seems to add to one frame, which so few cannot prove (p {self.gain.p:.2g})"
            )
        if self.one_frame > self.chance + 0.1:
            return f"{found}: much can be told from one frame, and motion is not seen to add to it"
        return f"{found}: pixels tell little either way"


def probe_order(
    seen: Sequence[Glimpse], classes: Sequence[str], groups: Sequence[int] | None = None
) -> OrderProbe | None:
    """The probe of samples with 16 frames of 32 by 32 pixels each.

    Logistic regression on the pixels of the middle frame, and on these with motion energy: products of the
    gradients in space and time, whose sign turns with the direction of motion (Adelson and Bergen 1985),
    summed over a grid of 4 by 4 cells and three parts of the time.

    Args:
        classes: of each sample.
        groups: number of each, that no fold parts.

    Returns:
        None where fewer than two classes have the samples for it.
    """
    names = sorted({name for name in classes if list(classes).count(name) >= _FEWEST})
    kept = [n for n, one in enumerate(seen) if not one.reason and classes[n] in names]
    if len(names) < 2 or len(kept) < 2 * _FEWEST:
        return None
    labels = torch.tensor([names.index(classes[n]) for n in kept])
    numbers = None if groups is None else torch.tensor([groups[n] for n in kept])
    clips = np.stack([seen[n].frames for n in kept]).astype(np.float32) / np.float32(255)
    still = clips[:, FRAMES // 2, :, ::2, ::2].reshape(len(kept), -1)
    moving = np.concatenate([still, motion(clips)], axis=1)
    one, ordered = (_right(torch.from_numpy(each), labels, len(names), numbers) for each in (still, moving))
    if one is None or ordered is None:
        return None
    counts = np.bincount(labels.numpy())
    unit = None if numbers is None else numbers.numpy()
    gain = statistics.paired_difference(one, ordered, groups=unit)
    chance = max(1 / len(names), float(counts.max() / counts.sum()))
    return OrderProbe(len(kept), chance, float(one.mean()), float(ordered.mean()), gain)


def motion(clips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Motion energy of clips [N, T, 3, H, W] in [0, 1], float32 [N, D], by place, time and direction."""
    grey = clips.mean(2)  # [N, T, H, W]
    middle = (grey[:, 1:] + grey[:, :-1]) / 2
    time = grey[:, 1:] - grey[:, :-1]
    down, across = np.gradient(middle, axis=(2, 3))
    products = np.stack([-down * time, -across * time, np.abs(time)], axis=1)  # [N, 3, T - 1, H, W]
    number, kinds, steps, height, width = products.shape
    cells = products.reshape(number, kinds, steps, _CELLS, height // _CELLS, _CELLS, width // _CELLS)
    sums = np.stack([part.sum(axis=(2, 4, 6)) for part in np.array_split(cells, _PARTS, axis=2)], axis=2)
    # signed square roots: one large motion does not outweigh all others
    return (np.sign(sums) * np.sqrt(np.abs(sums))).reshape(number, -1).astype(np.float32)


def _right(
    vectors: Tensor, labels: Tensor, num_classes: int, groups: Tensor | None
) -> NDArray[np.bool_] | None:
    """Which samples are named right while they are held out; None where nothing can be held out."""
    train = LabelledFeatures(vectors, labels, num_classes, groups)
    found = torch.zeros(len(labels), dtype=torch.bool)
    parts = held_out.folds(train, 0.2, torch.Generator().manual_seed(0), small=10**9)
    for kept, held in parts:
        mean, scale = linear.standardisation(vectors[kept])
        rows = (vectors - mean) / scale
        weight, bias = linear.fit_logistic(
            rows[kept], labels[kept], num_classes, _PENALTY, max_iterations=_ITERATIONS
        )
        found[held] = (rows[held] @ weight.T + bias).argmax(1) == labels[held]
    return found.numpy() if parts else None


T = TypeVar("T")
ObjectiveName = Literal["svt", "bevt", "vimpac", "videomae"]
NEEDS_TOKENIZER = ("bevt", "vimpac")
PATCH = 8  # pixels and rows of a cell of the small network, and of a tokenizer's id
_DIRECTIONS = {
    "left", "right", "up", "down", "clockwise", "anticlockwise", "counterclockwise", "rise", "fall",
}  # fmt: skip


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
    fitting = int(machine.minutes * 60 * 0.85 / seconds_a_step)
    if fitting < _FEWEST_STEPS:
        lasts = format_duration(_FEWEST_STEPS * seconds_a_step)
        return Choice(_FEWEST_STEPS, f"the fewest, about {lasts} here: more than there is time for")
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
