"""Which classes are recognised, and what the others are taken for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidssl.evaluators.scores import Score

NUM_NAMED = 3  # best and worst classes in the line of a label


def confusion(truth: Sequence[int], predicted: Sequence[int], num_classes: int) -> Tensor:
    """How many videos of each class are given each class: int64 [K, K], a row a true class."""
    places = torch.tensor(truth) * num_classes + torch.tensor(predicted)
    return places.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def counted(matrix: Tensor) -> list[str]:
    """A matrix of counts as a line of text for each row, ``0:12 3:1``: column and count, zeros left out."""
    return [" ".join(f"{column}:{row[column]}" for column in row.nonzero()[:, 0].tolist()) for row in matrix]


def best_and_worst(score: Score, truth: Sequence[int], names: Sequence[str]) -> str:
    """One line: the classes that are right most and least often, and what these are taken for instead.

    Args:
        truth: classes of the videos that were predicted.
        names: of the classes, at least two of which have videos.
    """
    matrix = confusion(truth, score.predicted, len(names))
    videos = matrix.sum(1)
    there = (videos > 0).nonzero()[:, 0].tolist()
    share = (matrix.diagonal() / videos.clamp(min=1)).tolist()
    ranked = sorted(there, key=lambda number: -share[number])
    some = min(NUM_NAMED, len(ranked) // 2)
    worst = [number for number in reversed(ranked[-some:]) if share[number] < 1]
    if not worst:
        return f"{score.label}: all of {len(ranked)} classes 100 %"
    best = [_of(names[number], share[number]) for number in ranked[:some]]
    worse = [_of(names[n], share[n]) + _instead(score, matrix, n, names) for n in worst]
    return f"{score.label}: best {', '.join(best)}; worst {', '.join(worse)}"


def _of(name: str, share: float) -> str:
    return f"{name} {100 * share:.0f} %"


def _instead(score: Score, matrix: Tensor, number: int, names: Sequence[str]) -> str:
    """`` (as x)`` for the class that is named most often in its place, if one is."""
    others = matrix[number].clone()
    others[number] = 0
    if not score.names_classes or not others.any():
        return ""
    return f" (as {names[int(others.argmax())]})"
