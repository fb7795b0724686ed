"""The parts of the training videos that choose settings, so that the test videos never do."""

import warnings
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vidssl.config.protocol import Balance
from vidssl.data.classes import class_weights, repeated
from vidssl.errors import LabelError, counted
from vidssl.interfaces import LabelledFeatures, LabelledPatches

Pairs = tuple[tuple[float, float], ...]  # learning rate, weight decay
SMALL = 500  # samples, below which every fold is held out in turn: a fifth of 120 videos chooses by chance


def folds(
    train: LabelledFeatures | LabelledPatches, share: float, generator: torch.Generator, *, small: int = SMALL
) -> list[tuple[Tensor, Tensor]]:
    """Row numbers that are kept and that are held out: once, or of a small training set fold by fold.

    Folds have the classes in equal parts (stratified), and no group is parted.

    Args:
        share: fraction of the samples that is held out; 0.2 makes five folds.
        generator: on the CPU.
        small: samples, below which every fold is held out in turn.

    Returns:
        Pairs of int64 [n] and [m] on the device of the labels, n + m = N; none where every class has one
        group, so that nothing can be held out without losing its class.
    """
    from sklearn.model_selection import (  # here: importing takes a second
        StratifiedGroupKFold,
        StratifiedKFold,
    )

    labels = train.labels.cpu().numpy()
    groups = None if train.groups is None else train.groups.cpu().numpy()
    units = np.arange(len(labels)) if groups is None else groups
    most = np.bincount(np.unique(np.stack((labels, units)), axis=1)[0]).max()
    number = min(max(2, round(1 / share)), int(most))
    if number < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    splits = kind(number, shuffle=True, random_state=seed).split(labels, labels, groups)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes of fewer videos than folds, as here
        for kept, held in splits:
            if len(kept) and len(held):
                found.append((_rows(kept, train.labels), _rows(held, train.labels)))
            if len(labels) >= small:
                break
    return found


def _rows(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(like.device)


def chosen_in_words(name: str, value: float, tried: Sequence[float]) -> str:
    """``penalty 1000 (the largest tried)``: a choice at the edge of its grid asks for a wider one."""
    edges = {min(tried): "the smallest tried", max(tried): "the largest tried"} if len(tried) > 1 else {}
    return f"{name} {value:g}" + (f" ({edges[value]})" if value in edges else "")


def rates_and_decays(
    lr: float | tuple[float, ...], weight_decay: float | tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Learning rates and weight decays to choose among.

    Raises:
        ValueError: if there is none of either, or one out of its range.
    """
    rates = (lr,) if isinstance(lr, float) else lr
    decays = (weight_decay,) if isinstance(weight_decay, float) else weight_decay
    if not rates or min(rates) <= 0 or not decays or min(decays) < 0:
        raise ValueError(f"lr must be above 0 and weight_decay at least 0, got {lr}, {weight_decay}")
    return rates, decays


def shown(labels: Tensor, balance: Balance, num_classes: int) -> tuple[Tensor, Tensor]:
    """Rows that an epoch shows, and the weights of the classes in the mean loss, by what balances classes.

    Args:
        labels: int64 [N].

    Returns:
        int64 [M], rows on the CPU, and float32 [K] on the device of the labels.
    """
    rows = torch.tensor(repeated(labels.tolist())) if balance == "sampling" else torch.arange(len(labels))
    weights = (
        class_weights(labels, num_classes) if balance == "loss" else labels.new_ones(num_classes).float()
    )
    return rows, weights


def best_pair(
    train: LabelledFeatures | LabelledPatches,
    share: float,
    generator: torch.Generator,
    rates: Sequence[float],
    decays: Sequence[float],
    right_of: Callable[[Tensor, Tensor, Pairs], Sequence[int]],
    *,
    small: int = SMALL,
) -> tuple[tuple[tuple[float], tuple[float]], str]:
    """The rate and decay that name most held-out samples right, of equal ones the first; and in words.

    Args:
        share, small: as for ``folds``.
        right_of: of rows kept, rows held out and pairs: how many of the held-out each pair gets right.

    Returns:
        No words where there is but one pair.

    Raises:
        LabelError: if there are too few videos to hold any out.
    """
    pairs = tuple(product(rates, decays))
    if len(pairs) == 1:
        return ((pairs[0][0],), (pairs[0][1],)), ""
    found = folds(train, share, generator, small=small)
    if not found:
        raise LabelError(
            f"{counted(len(train.labels), 'video')}, one of each class, are too few to hold out "
            f"{share:g} of them: give one lr and one weight_decay"
        )
    right = [sum(counts) for counts in zip(*(right_of(*fold, pairs) for fold in found), strict=True)]
    rate, decay = pairs[right.index(max(right))]
    words = f"{chosen_in_words('lr', rate, rates)}, {chosen_in_words('decay', decay, decays)}"
    return ((rate,), (decay,)), words
