"""From scores of classes to what counts as right: views averaged, best class, best five."""

import torch
from torch import Tensor

from vidssl.config.protocol import Average
from vidssl.errors import UsageError
from vidssl.interfaces.evaluator import ScoreKind


def check_scores(scores: Tensor, rows: int, classes: int, who: str) -> None:
    """Holds what a probe gave to its contract: [rows, classes], finite.

    Raises:
        UsageError: naming ``who`` gave it, what it is and what was expected.
    """
    if not isinstance(scores, Tensor):
        raise UsageError(f"{who}: scores are {type(scores).__name__}, expected a tensor [{rows}, {classes}]")
    if scores.shape != (rows, classes) or not scores.is_floating_point():
        raise UsageError(
            f"{who}: scores are {scores.dtype} {[*scores.shape]}, expected floating-point [{rows}, "
            f"{classes}], a row a sample and a column a class"
        )
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        raise UsageError(
            f"{who}: the scores of {int((~finite).sum())} of {rows} samples are not finite (NaN or inf), so "
            "that no class can be named"
        )


def average_views(scores: Tensor, average: Average, kind: ScoreKind) -> Tensor:
    """The scores of videos from those of their views.

    Args:
        scores: [N, V, K].
        average: "scores" averages them as they are (SVT's published test sums them, which ranks classes
            the same way); "probabilities" the softmax of logits, as BEVT and VIMPAC test, or vote fractions.
        kind: what the scores are.

    Returns:
        [N, K].

    Raises:
        ValueError: if such scores cannot be averaged so.
    """
    if average == "scores" and kind != "found":
        return scores.mean(1)
    if average == "probabilities" and kind == "logits":
        return scores.softmax(-1).mean(1)
    if average == "probabilities" and kind == "votes":
        total = scores.sum(-1, keepdim=True)  # a view without any vote counts for no class
        return (scores / total.masked_fill(total == 0, 1.0)).mean(1)
    raise ValueError(f"{average} of views cannot be averaged where scores say what was {kind}")


def predict(scores: Tensor, truth: Tensor, kind: ScoreKind) -> Tensor:
    """The class [N] that scores [N, K] name: ``truth`` [N] where it is right, another where it is not."""
    best = scores.argmax(1)
    if kind != "found":
        return best
    return torch.where(_score_of(scores, truth) > 0, truth, best)


def in_top(scores: Tensor, truth: Tensor, count: int, kind: ScoreKind) -> Tensor:
    """bool [N]: whether the true class is among the ``count`` best. One without a vote never is."""
    among = (scores.topk(count, dim=1).indices == truth[:, None]).any(1)
    return among & (_score_of(scores, truth) > 0) if kind == "votes" else among


def _score_of(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None])[:, 0]
