"""Linear probes: logistic regression on frozen features, and SVT's by SGD on raw ones."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidssl.config import protocol, schema
from vidssl.evaluators.held_out import Pairs, best_pair, chosen_in_words, folds, rates_and_decays, shown
from vidssl.interfaces import Evaluator, Fits, LabelledFeatures, LabelledPatches
from vidssl.interfaces.pretrained import Recorded


class Logistic(Recorded, nn.Module):
    """Logits of vectors that are standardised first, in the precision of the weights.

    Args:
        width: D of the vectors.
        num_classes: K.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, *, width: int, num_classes: int) -> None:
        super().__init__()
        for name, shape in (("mean", ()), ("scale", ()), ("weight", (num_classes,)), ("bias", ())):
            last = num_classes if name == "bias" else width
            self.register_buffer(name, torch.zeros(*shape, last))

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor) -> "Logistic":
        """With these weights [K, D], and those of the standardisation."""
        made = cls(width=weight.shape[1], num_classes=len(weight))
        made.weight, made.bias, made.mean, made.scale = weight, bias, mean, scale
        return made

    def forward(self, vectors: Tensor) -> Tensor:
        """[M, K] of [M, D]."""
        standard = ((vectors - self.mean) / self.scale).to(self.weight.dtype)
        return standard @ self.weight.T + self.bias


class Linear(Evaluator, Fits):
    """Logistic regression on standardised features; held-out parts of *train* choose its penalty.

    Of the penalties the strongest wins whose held-out log loss is at most one standard error above the best
    one's (Breiman et al. 1984); the error is that of the difference between the two, over groups. Below 500
    videos that is by cross-validation.

    Of sets: a logistic regression for each class against the rest, whose one penalty has the largest held-out
    mean average precision. Of a number: ridge regression, its penalty chosen as above by squared errors.
    """

    learns = ("class", "set", "number")

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
            held_out: fraction of the training set that chooses among them; the winner is fitted again on all.
                Of fewer than 500 samples each such part is held out in turn.
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

    def settled(
        self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator
    ) -> tuple["Linear", str]:
        """A probe of one penalty; ``generator`` (CPU) draws the held-out parts."""
        assert isinstance(train, LabelledFeatures), "patches are for evaluators that read them"
        if len(self.penalties) == 1:
            return self, ""
        penalty, words = self._choose(train, generator)
        fixed = Linear(penalties=(penalty,), held_out=self.held_out, max_iterations=self.max_iterations)
        return fixed, words

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Logits [M, K] on the device of the features; ``generator`` (CPU) draws the held-out parts."""
        return self.fit(train, generator)(test_vectors)

    def fit(self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator) -> Logistic:
        assert isinstance(train, LabelledFeatures), "patches are for evaluators that read them"
        (penalty,) = self.settled(train, generator)[0].penalties
        mean, scale = standardisation(train.vectors)
        vectors = ((train.vectors - mean) / scale).to(_dtype(train.vectors))
        return Logistic.of(*self._fit(train, vectors, slice(None), penalty), mean, scale)

    def _choose(self, train: LabelledFeatures, generator: torch.Generator) -> tuple[float, str]:
        penalties = sorted(self.penalties, reverse=True)
        parts = folds(train, self.held_out, generator)
        if not parts:
            middle = sorted(penalties)[len(penalties) // 2]
            return middle, f"penalty {middle:g} (the middle one: too few videos to choose by)"
        losses = torch.cat([self._losses(train, *part, penalties) for part in parts])
        if train.kind == "set":
            penalty = penalties[
                int(losses.nanmean(0).nan_to_num(1.0).argmin())
            ]  # of equal ones the strongest
            return penalty, chosen_in_words("penalty", penalty, penalties)
        held = torch.cat([held for _, held in parts])
        worse = losses - losses[:, [int(losses.mean(0).argmin())]]
        groups = held if train.groups is None else train.groups[held]
        numbers = groups.unique(return_inverse=True)[1]
        rest = torch.zeros(int(numbers.max()) + 1, len(penalties), dtype=losses.dtype, device=losses.device)
        errors = rest.index_add(0, numbers, worse - worse.mean(0)).square().sum(0).sqrt() / len(losses)
        place = (worse.mean(0) <= errors).nonzero()[0, 0]  # the best itself at the latest
        penalty = penalties[int(place)]
        return penalty, chosen_in_words("penalty", penalty, penalties)

    def _losses(self, train: LabelledFeatures, kept: Tensor, held: Tensor, penalties: list[float]) -> Tensor:
        """Of each held-out sample log loss or squared error, [m, P]; of sets less their mAP, [1, P]."""
        columns = []
        for penalty in penalties:
            scores = self._held(train, kept, held, penalty)
            if train.outputs is None:
                columns.append(F.cross_entropy(scores, train.labels[held], reduction="none"))
            elif train.kind == "number":
                columns.append((scores - train.outputs.to(scores)[held]).square().sum(1))
            else:
                from vidssl.evaluators.statistics import mean_average_precision  # with scipy

                added, _ = mean_average_precision(scores.cpu().numpy(), train.outputs[held].cpu().numpy())
                columns.append(scores.new_tensor([-float(added.mean())]))
        return torch.stack(columns, dim=1)

    def _held(self, train: LabelledFeatures, kept: Tensor, held: Tensor, penalty: float) -> Tensor:
        """Scores [m, K] of held-out samples."""
        mean, scale = standardisation(train.vectors[kept])
        vectors = ((train.vectors - mean) / scale).to(_dtype(train.vectors))
        weight, bias = self._fit(train, vectors, kept, penalty)
        return vectors[held] @ weight.T + bias

    def _fit(
        self, train: LabelledFeatures, vectors: Tensor, rows: Tensor | slice, penalty: float
    ) -> tuple[Tensor, Tensor]:
        """Weight [K, D] and bias [K] of some rows of standardised vectors [N, D]."""
        if train.kind == "number":
            assert train.outputs is not None
            return fit_ridge(vectors[rows], train.outputs.to(vectors)[rows], penalty)
        labels = train.labels if train.outputs is None else train.outputs.to(vectors)
        steps = self.max_iterations
        return fit_logistic(vectors[rows], labels[rows], train.num_classes, penalty, max_iterations=steps)


def standardisation(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale [D] of the columns of vectors [N, D]: the standard deviation, 1 where they are constant.

    A column that is constant in train, but for rounding, tells nothing; a scale near 0 would let one test
    value that differs outweigh all others.
    """
    mean, std = vectors.mean(0), vectors.std(0)
    rounding = 10 * torch.finfo(vectors.dtype).eps * vectors.abs().amax(0)
    return mean, torch.where(std > rounding, std, 1.0)


def _dtype(vectors: Tensor) -> torch.dtype:
    return torch.float64 if vectors.device.type == "cpu" else torch.float32


def fit_logistic(
    vectors: Tensor, labels: Tensor, num_classes: int, penalty: float, *, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] that minimise ``sum of cross entropies + penalty/2 |weight|^2`` by L-BFGS.

    The same optimum as scikit-learn's ``LogisticRegression(C=1/penalty)``; this one also runs on a GPU.
    Labels [N, K] of 0 and 1 make K regressions of two classes each, as ``OneVsRestClassifier`` does.
    """
    loss_of = F.cross_entropy if labels.dim() == 1 else _binary_cross_entropy
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
        loss = loss_of(vectors @ weight.T + bias, labels) + penalty / (2 * len(labels)) * (
            weight.square().sum()
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return weight.detach(), bias.detach()


def _binary_cross_entropy(logits: Tensor, outputs: Tensor) -> Tensor:
    """Summed over classes, the mean over samples."""
    return F.binary_cross_entropy_with_logits(logits, outputs, reduction="sum") / len(logits)


def fit_ridge(vectors: Tensor, outputs: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [P, D] and bias [P] of least ``sum of squares + penalty |weight|^2``, scikit-learn's ``Ridge``.

    Solved among samples where they are fewer than columns.
    """
    middle, level = vectors.mean(0), outputs.mean(0)
    rows, wanted = vectors - middle, outputs - level
    few = len(rows) < rows.shape[1]
    gram = rows @ rows.T if few else rows.T @ rows
    gram.diagonal().add_(penalty)
    found = torch.linalg.solve(gram, wanted if few else rows.T @ wanted)
    weight = (rows.T @ found if few else found).T
    return weight, level - weight @ middle


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
        balance: schema.Quiet[protocol.Balance] = "none",
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
        self.balance: protocol.Balance = balance

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
