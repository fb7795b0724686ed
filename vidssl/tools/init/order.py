"""Whether classes can be told from one frame, or by what changes over time: a quick probe of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.evaluators.held_out import folds
from vidssl.evaluators.linear import fit_logistic, standardisation
from vidssl.evaluators.statistics import LEVEL, Difference, paired_difference
from vidssl.interfaces import LabelledFeatures
from vidssl.tools.collection.glimpses import Glimpse

FRAMES, SIDE = 16, 32  # of a glimpse
MOST = 300  # samples that are looked at: the probe takes a minute at most
_CELLS, _PARTS = 4, 3  # rows and columns, and parts of the time, that motion is summed over
_PENALTY, _ITERATIONS = 100.0, 60
_ADDS = 0.05  # that motion adds, from which on it may matter
_FEWEST = 4  # samples of a class, or it cannot be probed


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
    gain: Difference

    @property
    def order_matters(self) -> bool:
        return self.gain.mean > 0 and self.gain.p < LEVEL

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
    gain = paired_difference(one, ordered, groups=unit)
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
    parts = folds(train, 0.2, torch.Generator().manual_seed(0), small=10**9)
    for kept, held in parts:
        mean, scale = standardisation(vectors[kept])
        rows = (vectors - mean) / scale
        weight, bias = fit_logistic(
            rows[kept], labels[kept], num_classes, _PENALTY, max_iterations=_ITERATIONS
        )
        found[held] = (rows[held] @ weight.T + bias).argmax(1) == labels[held]
    return found.numpy() if parts else None
