"""Linear probe: multinomial logistic regression on frozen features."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vidssl.evaluators.held_out import hold_out
from vidssl.interfaces import Evaluator, LabelledFeatures


class Linear(Evaluator):
    """Logistic regression on standardised features; a held-out part of *train* chooses its penalty."""

    def __init__(
        self,
        *,
        penalties: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0),
        held_out: float = 0.2,
        max_iterations: int = 300,
    ) -> None:
        """
        Args:
            penalties: L2 weights to try, lambda in ``sum of cross entropies + lambda/2 |W|^2``
                (scikit-learn's 1/C).
            held_out: share of the training set that chooses among them; the winner is fitted again on all.
            max_iterations: L-BFGS iterations a fit.

        Raises:
            ValueError: if a number is out of its range.
        """
        if not penalties or min(penalties) <= 0:
            raise ValueError(f"penalties must be one or more numbers above 0, got {penalties}")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out}")
        self.penalties = penalties
        self.held_out = held_out
        self.max_iterations = max_iterations

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Logits [M, K] on the device of the features; ``generator`` (CPU) draws the held-out part."""
        dtype = torch.float64 if test_vectors.device.type == "cpu" else torch.float32
        mean, std = train.vectors.mean(0), train.vectors.std(0).clamp_min(1e-6)
        vectors = ((train.vectors - mean) / std).to(dtype)
        penalty = self._choose(replace(train, vectors=vectors), generator)
        weight, bias = fit_logistic(
            vectors, train.labels, train.num_classes, penalty, max_iterations=self.max_iterations
        )
        return ((test_vectors - mean) / std).to(dtype) @ weight.T + bias

    def _choose(self, train: LabelledFeatures, generator: torch.Generator) -> float:
        vectors, labels = train.vectors, train.labels
        kept, held = hold_out(train, self.held_out, generator)
        if len(self.penalties) == 1 or len(held) == 0:
            return sorted(self.penalties)[len(self.penalties) // 2]

        def right(penalty: float) -> int:
            weight, bias = fit_logistic(
                vectors[kept], labels[kept], train.num_classes, penalty, max_iterations=self.max_iterations
            )
            return int(((vectors[held] @ weight.T + bias).argmax(1) == labels[held]).sum())

        # sorted from strong to weak: of equal scores the stronger penalty wins
        return max(sorted(self.penalties, reverse=True), key=right)


def fit_logistic(
    vectors: Tensor, labels: Tensor, num_classes: int, penalty: float, *, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] that minimise ``sum of cross entropies + penalty/2 |weight|^2`` by L-BFGS.

    The same optimum as scikit-learn's ``LogisticRegression(C=1/penalty)``; this one also runs on a GPU.
    """
    weight = torch.zeros(num_classes, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    bias = torch.zeros(num_classes, dtype=vectors.dtype, device=vectors.device)
    weight.requires_grad_()
    bias.requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(vectors @ weight.T + bias, labels) + penalty / (2 * len(labels)) * (
            weight.square().sum()
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()
