"""Attentive probe of V-JEPA (Bardes et al. 2024) and V-JEPA 2 (Assran et al. 2025)."""

import copy
import math
from collections.abc import Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidssl.errors import UsageError
from vidssl.evaluators.attentive_network import AttentiveNetwork
from vidssl.evaluators.held_out import pair_in_words, some_folds
from vidssl.interfaces import LabelledFeatures, LabelledPatches, PatchEvaluator, PatchTokens

SMALL = 100  # samples, below which every fold is held out in turn: it costs a training of every pair a fold
Pair = tuple[float, float]  # learning rate, weight decay
Variant = Literal["scaled", "vjepa", "vjepa2"]
_VJEPA_LAST_DECAY = 1e-6


class Attentive(PatchEvaluator):
    """A learned query attends to frozen patch tokens; AdamW, the rate falling along a cosine to 0.

    Tokens are frozen and each clip's are computed once, where the published probes draw new crops every
    epoch. All pairs of rates and decays learn side by side from each batch, as V-JEPA 2's do, but a held-out
    part of *train* chooses among them, and the best is trained again on all.
    """

    def __init__(
        self,
        *,
        lr: float | tuple[float, ...] = (3e-4, 1e-3, 3e-3),
        weight_decay: float | tuple[float, ...] = 0.01,
        depth: int = 1,
        num_queries: int = 1,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        batch_size: int = 64,
        epochs: int = 20,
        held_out: float = 0.2,
        variant: Variant = "scaled",
    ) -> None:
        """
        Args:
            lr: at the first step, used as it is whatever the batch.
            weight_decay: AdamW's, of matrices and queries; of biases and norms in "vjepa2" alone.
            depth: blocks, the last of which is the cross-attention: V-JEPA has 1, V-JEPA 2 has 4.
            num_queries: learned queries, whose findings stand side by side.
            num_heads: of every attention; the width of the tokens must be a multiple.
            mlp_ratio: width of the MLPs' hidden layer, in widths of a token.
            batch_size: samples a step; an epoch's last batch may be smaller.
            held_out: share of the training videos that chooses where several pairs are given. Of fewer than
                100 samples each such share is held out in turn.
            variant: initial weights and steps as in the release of V-JEPA or V-JEPA 2, or "scaled", whose
                initial weights follow the tokens' width. The releases' rate falls to 0 at the last step, not
                after it. "vjepa" clips gradients at a norm of 1, and its decay falls along a cosine to 1e-6.

        Raises:
            ValueError: if a number is out of its range.
        """
        self.rates = (lr,) if isinstance(lr, float) else lr
        self.decays = (weight_decay,) if isinstance(weight_decay, float) else weight_decay
        if not self.rates or min(self.rates) <= 0 or not self.decays or min(self.decays) < 0:
            raise ValueError(f"lr must be above 0 and weight_decay at least 0, got {lr}, {weight_decay}")
        if not 0 < held_out < 1 or mlp_ratio <= 0:
            raise ValueError(
                f"held_out must lie between 0 and 1, mlp_ratio above 0, got {held_out}, {mlp_ratio}"
            )
        counts = {"depth": depth, "num_queries": num_queries, "num_heads": num_heads}
        counts |= {"batch_size": batch_size, "epochs": epochs}
        for name, number in counts.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.depth = depth
        self.num_queries = num_queries
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.batch_size = batch_size
        self.epochs = epochs
        self.held_out = held_out
        self.variant = variant

    def settled(
        self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator
    ) -> tuple["Attentive", str]:
        """A probe of the rate and decay that name most held-out samples right; of equal ones the first.

        Raises:
            UsageError: if heads do not divide the tokens' width, or there are too few videos to hold any out.
        """
        assert isinstance(train, LabelledPatches), "it reads patches"
        if train.tokens.width % self.num_heads:
            raise UsageError(
                f"tokens of width {train.tokens.width} do not divide among {self.num_heads} heads: "
                "set evaluator.num_heads"
            )
        pairs = tuple(product(self.rates, self.decays))
        if len(pairs) == 1:
            return self, ""
        right = [0] * len(pairs)
        for kept, held in some_folds(train, self.held_out, generator, small=SMALL):
            networks = self._fit(train, kept.cpu(), pairs, generator)
            logits = self._logits(networks, train.tokens.of(held), train.labels.device)
            labels = train.labels[held]
            right = [n + int((part.argmax(1) == labels).sum()) for n, part in zip(right, logits, strict=True)]
        rate, decay = pairs[right.index(max(right))]
        fixed = Attentive(
            lr=rate,
            weight_decay=decay,
            depth=self.depth,
            num_queries=self.num_queries,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            batch_size=self.batch_size,
            epochs=self.epochs,
            held_out=self.held_out,
            variant=self.variant,
        )
        return fixed, pair_in_words(rate, decay, self.rates, self.decays)

    def patch_scores(self, train: LabelledPatches, test: PatchTokens, generator: torch.Generator) -> Tensor:
        """Logits float32 [M, K] on the device of the labels, where the probe is trained too.

        ``generator`` (CPU) draws the held-out parts, the initial weights and the order. On CUDA the network
        runs under bfloat16 autocast.

        Raises:
            UsageError: as ``settled``.
        """
        fixed = self.settled(train, generator)[0]
        pairs = ((fixed.rates[0], fixed.decays[0]),)
        network = self._fit(train, torch.arange(len(train.labels)), pairs, generator)[0]
        return self._logits([network], test, train.labels.device)[0]

    def _fit(
        self, train: LabelledPatches, rows: Tensor, pairs: tuple[Pair, ...], generator: torch.Generator
    ) -> list[nn.Module]:
        """A network for each pair, all from the same start and through the same batches of ``rows`` (CPU)."""
        device = train.labels.device
        networks = [network.to(device) for network in self._fresh(train, len(pairs), generator)]
        optimizer = torch.optim.AdamW(
            [
                group
                for network, pair in zip(networks, pairs, strict=True)
                for group in parameter_groups(network, *pair, everything=self.variant == "vjepa2")
            ]
        )
        first = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        steps = -(-len(rows) // self.batch_size) * self.epochs
        with torch.enable_grad():
            for step, some in enumerate(self._batches(rows, generator), self.variant != "scaled"):
                scale = (1 + math.cos(math.pi * step / steps)) / 2
                for group, (rate, decay) in zip(optimizer.param_groups, first, strict=True):
                    group["lr"] = rate * scale
                    if self.variant == "vjepa" and decay:
                        group["weight_decay"] = _VJEPA_LAST_DECAY + (decay - _VJEPA_LAST_DECAY) * scale
                tokens, labels = train.tokens.read(some, device), train.labels[some.to(device)]
                with _autocast(device):
                    losses = [F.cross_entropy(network(tokens).float(), labels) for network in networks]
                optimizer.zero_grad()
                # the networks share no weight, so each has the gradient of its own loss
                torch.stack(losses).sum().backward()
                if self.variant == "vjepa":
                    for network in networks:
                        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        return networks

    def _fresh(self, train: LabelledPatches, number: int, generator: torch.Generator) -> list[nn.Module]:
        """That many networks with the same weights."""
        first = AttentiveNetwork(
            embed_dim=train.tokens.width,
            num_classes=train.num_classes,
            num_queries=self.num_queries,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            generator=generator,
            published=self.variant != "scaled",
        )
        return [first, *(copy.deepcopy(first) for _ in range(number - 1))]

    def _batches(self, rows: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.epochs):
            yield from rows[torch.randperm(len(rows), generator=generator)].split(self.batch_size)

    @torch.no_grad()
    def _logits(self, networks: list[nn.Module], tokens: PatchTokens, device: torch.device) -> list[Tensor]:
        """Of each network, float32 [M, K]."""
        parts = []
        for some in torch.arange(len(tokens)).split(self.batch_size):
            batch = tokens.read(some, device)
            with _autocast(device):
                parts.append(torch.stack([network(batch).float() for network in networks]))
        return list(torch.cat(parts, dim=1))


def parameter_groups(
    network: nn.Module, lr: float, weight_decay: float, *, everything: bool = False
) -> list[dict[str, object]]:
    """What decays, matrices and queries or ``everything``, and what does not, biases and norms."""
    decayed = [parameter for parameter in network.parameters() if everything or parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if not everything and parameter.ndim <= 1]
    return [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
