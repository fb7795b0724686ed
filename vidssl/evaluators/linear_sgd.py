"""Linear probe by SGD, as SVT publishes it: momentum, cosine per epoch, raw features."""

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vidssl.config.protocol import Balance
from vidssl.evaluators.held_out import Pairs, best_pair, rates_and_decays, shown
from vidssl.evaluators.linear import Logistic
from vidssl.interfaces import Evaluator, Fits, LabelledFeatures, LabelledPatches

INIT_STD = 0.01  # of the weights; biases start at 0 (SVT, published code)


class LinearSGD(Evaluator, Fits):
    """One linear layer trained by SGD with momentum; its rate falls epoch by epoch along a cosine to 0.

    Features are frozen and each is computed once, so no epoch sees other crops or flips of a video than
    another: the published probes draw new ones every epoch.
    """

    def __init__(
        self,
        *,
        lr: float | tuple[float, ...] = 8e-3,
        weight_decay: float | tuple[float, ...] = 0.0,
        momentum: float = 0.9,
        batch_size: int = 32,
        epochs: int = 20,
        held_out: float = 0.2,
        balance: Balance = "none",
    ) -> None:
        """
        Args:
            lr: for 256 samples a batch; ``lr * batch_size / 256`` is used, as in SVT's published code.
            weight_decay: of weights and biases.
            momentum: of the gradient's running sum.
            batch_size: samples a step; an epoch's last batch may be smaller.
            epochs: passes over the training samples.
            held_out: fraction of the training videos that chooses where several ``lr`` or ``weight_decay``
                are given. All pairs of them are trained side by side; the best is trained again on all.
                Of fewer than 500 samples each such part is held out in turn.
            balance: of unequal classes: "loss" weighs a sample by 1 / its class's share, "sampling" shows
                those of rare classes several times an epoch.

        Raises:
            ValueError: if a number is out of its range.
        """
        self.rates, self.decays = rates_and_decays(lr, weight_decay)
        if not 0 <= momentum < 1 or not 0 < held_out < 1:
            raise ValueError(f"momentum and held_out must lie below 1, got {momentum}, {held_out}")
        if batch_size < 1 or epochs < 1:
            raise ValueError(f"batch_size and epochs must be at least 1, got {batch_size}, {epochs}")
        self.momentum = momentum
        self.batch_size = batch_size
        self.epochs = epochs
        self.held_out = held_out
        self.balance: Balance = balance

    def settled(
        self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator
    ) -> tuple["LinearSGD", str]:
        """A probe of the rate and decay that name most held-out samples right; of equal ones the first.

        Raises:
            UsageError: if there are too few videos to hold any out.
        """
        assert isinstance(train, LabelledFeatures), "patches are for evaluators that read them"

        def right_of(kept: Tensor, held: Tensor, pairs: Pairs) -> list[int]:
            vectors, labels = train.vectors, train.labels
            weight, bias = self._fit(vectors[kept], labels[kept], train.num_classes, pairs, generator)
            logits = torch.einsum("nd,gkd->ngk", vectors[held], weight) + bias
            return (logits.argmax(2) == labels[held, None]).sum(0).tolist()

        fixed = copy.copy(self)
        (fixed.rates, fixed.decays), words = best_pair(
            train, self.held_out, generator, self.rates, self.decays, right_of
        )
        return fixed, words

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Logits [M, K]; ``generator`` (CPU) draws the held-out parts, the initial weights and the order."""
        return self.fit(train, generator)(test_vectors)

    def fit(self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator) -> Logistic:
        assert isinstance(train, LabelledFeatures), "patches are for evaluators that read them"
        fixed = self.settled(train, generator)[0]
        pairs = ((fixed.rates[0], fixed.decays[0]),)
        weight, bias = self._fit(train.vectors, train.labels, train.num_classes, pairs, generator)
        as_they_are = torch.zeros_like(weight[0, 0]), torch.ones_like(weight[0, 0])
        return Logistic.of(weight[0], bias[0], *as_they_are)

    def _fit(
        self, vectors: Tensor, labels: Tensor, num_classes: int, pairs: Pairs, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Weights [G, K, D] and biases [G, K] of G (rate, decay) pairs, from the same start and order."""
        device, width = vectors.device, vectors.shape[1]
        rates, decays = torch.tensor(pairs, device=device).unbind(1)
        start = torch.randn(num_classes, width + 1, generator=generator) * INIT_STD
        start[:, -1] = 0
        layers = start.to(device).repeat(len(pairs), 1, 1)  # [G, K, D + 1], the bias last
        velocity = torch.zeros_like(layers)
        inputs = F.pad(vectors, (0, 1), value=1.0)
        epoch_rows, weights = shown(labels, self.balance, num_classes)
        for epoch in range(self.epochs):
            scale = self.batch_size / 256 * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            order = epoch_rows[torch.randperm(len(epoch_rows), generator=generator)].to(device)
            for rows in order.split(self.batch_size):
                given = inputs[rows]
                shares = torch.einsum("bd,gkd->gbk", given, layers).softmax(2)
                wrong = (shares - F.one_hot(labels[rows], num_classes)) * weights[labels[rows]][:, None]
                # the gradient of the mean cross entropy, by hand: all pairs in one product
                gradient = torch.einsum("gbk,bd->gkd", wrong, given) / len(rows)
                gradient += decays[:, None, None] * layers
                velocity = self.momentum * velocity + gradient
                layers = layers - (rates * scale)[:, None, None] * velocity
        return layers[..., :-1], layers[..., -1]
