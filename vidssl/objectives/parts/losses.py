"""Losses, and the baselines that a loss is read against: pure functions of their arguments."""

import torch
from torch import Tensor


def accuracy(logits: Tensor, ids: Tensor) -> Tensor:
    """Share of the rows of ``logits`` [M, V] whose largest entry is at ``ids`` [M]."""
    return (logits.argmax(dim=1) == ids).float().mean()


def most_frequent_accuracy(ids: Tensor) -> Tensor:
    """Accuracy of the best constant answer to ``ids`` [M], chosen in hindsight from these very ids.

    An upper bound for whoever has to choose before: no model is flattered by it.
    """
    return ids.bincount().max() / len(ids)


def copy_nearest(ids: Tensor, hidden: Tensor) -> Tensor:
    """Fill each hidden position with the id of the nearest visible one.

    Near is meant in steps between neighbouring positions along time, rows and columns. Among equally near
    ones, those reached through earlier frames come first, then later frames, rows above, below, columns
    left, right.

    Args:
        ids: int64 [B, t, h, w], not negative; what stands at hidden positions is not read.
        hidden: bool [B, t, h, w].

    Returns:
        int64 [B, t, h, w], equal to ``ids`` where visible.

    Raises:
        ValueError: if nothing is visible in one of the clips.
    """
    if bool(hidden.flatten(1).all(dim=1).any()):
        raise ValueError("a clip without one visible position leaves nothing to copy from")
    filled = torch.where(hidden, -1, ids)
    while bool((filled < 0).any()):
        grown = filled
        for axis in (1, 2, 3):
            for step, edge in ((1, 0), (-1, -1)):
                neighbour = filled.roll(step, axis)
                neighbour.select(axis, edge).fill_(-1)
                grown = torch.where(grown < 0, neighbour, grown)
        filled = grown
    return filled
