"""Attentive probe of V-JEPA (Bardes et al. 2024) and V-JEPA 2 (Assran et al. 2025)."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidssl.config import protocol, schema
from vidssl.engine.speed import use_bfloat16
from vidssl.errors import UsageError
from vidssl.evaluators.held_out import Pairs, best_pair, rates_and_decays, shown
from vidssl.interfaces import (
    Fits,
    JointPatches,
    LabelledFeatures,
    LabelledPatches,
    LearnsTogether,
    PatchEvaluator,
    PatchTokens,
)
from vidssl.interfaces.pretrained import Recorded

INIT_STD = 0.02  # V-JEPA's; where weights are scaled, of queries and of matrices that read 1024 channels


class AttentiveNetwork(Recorded, nn.Module):
    """Patch tokens to logits.

    Args:
        num_queries: learned queries; what they find goes side by side into the linear layer.
        depth: blocks, the last of which is the cross-attention.
        published: draw weights as both releases do, a normal of standard deviation 0.02 (cut at -2 and 2, a
            hundred times that), and divide those that end branch l by the root of 2 l: projections
            and MLPs of block l, counted from 1, and the MLP of the cross-attention, which counts as the
            block before it. Otherwise the standard deviation follows the width that a matrix reads, with a
            cut at twice that, so that narrow networks start on V-JEPA's scale.
        generator: draws the weights, on the CPU.
        heads: classes of each of several labels: each has a query and a linear layer of its own, and their
            logits stand side by side; ``num_classes`` and ``num_queries`` are their sum and their number.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        generator: torch.Generator,
        published: bool = False,
        heads: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SelfAttention(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
            for _ in range(depth - 1)
        )
        self.queries = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.pool = CrossAttention(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.head = nn.Linear(num_queries * embed_dim, num_classes) if not heads else None
        self.heads = nn.ModuleList(nn.Linear(embed_dim, classes) for classes in heads)
        _draw(self.queries, INIT_STD, generator, cut=not published)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scale = 1.0 if published else math.sqrt(1024 / module.in_features)
                _draw(module.weight, INIT_STD * scale, generator, cut=not published)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if published:
            self._divide_ends_of_branches()

    @torch.no_grad()
    def _divide_ends_of_branches(self) -> None:
        for name, weight in self.named_parameters():
            if name.endswith(("project.weight", "mlp.3.weight")):
                number = int(name.split(".")[1]) + 1 if name.startswith("blocks") else len(self.blocks)
                weight.div_(math.sqrt(2 * max(number, 1)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, K] of tokens [B, n, D]."""
        for block in self.blocks:
            tokens = block(tokens)
        found = self.pool(self.queries, tokens)
        if self.head is not None:
            return self.head(found.flatten(1))
        return torch.cat([head(found[:, query]) for query, head in enumerate(self.heads)], dim=1)


class CrossAttention(nn.Module):
    """Queries attend to normed tokens; what they find is added to them, and an MLP's answer to that.

    The values' matrix makes what is found; there is no further projection: V-JEPA's code defines one and does
    not apply it, V-JEPA 2's has none.

    There are a few queries and a thousand tokens, so the matrices of keys and values are applied to the
    queries and to what was found, not to each token: (K s) . q = s . (K^T q), and the sum of V s is V times
    the sum of s. The result is the same; at V-JEPA's width it takes a sixtieth of the products. A bias of the
    keys would add the same to all tokens, which a softmax does not see, so they have none.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """[B, q, D] of queries [q, D], the same for all clips, and tokens [B, n, D]."""
        tokens = self.norm(tokens)
        query, key, value = (
            rearrange(part, pattern, h=self.num_heads)
            for part, pattern in (
                (self.query(queries), "q (h d) -> h q d"),
                (self.key.weight, "(h d) c -> h d c"),
                (self.value.weight, "(h d) c -> h d c"),
            )
        )
        sought = torch.einsum("hqd,hdc->hqc", query, key) / math.sqrt(query.shape[-1])
        weights = torch.einsum("bnc,hqc->bhqn", tokens, sought).softmax(-1)
        found = torch.einsum("bhqc,hdc->bqhd", torch.einsum("bhqn,bnc->bhqc", weights, tokens), value)
        attended = queries + found.flatten(2) + self.value.bias
        return attended + self.mlp(attended)


class SelfAttention(nn.Module):
    """A pre-norm block of a ViT."""

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(embed_dim)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim)
        self.project = nn.Linear(embed_dim, embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, n, D] of [B, n, D]."""
        query, key, value = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.project(attend(query, key, value, self.num_heads))
        return tokens + self.mlp(tokens)


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of query [B, q, D] over key and value [B, n, D], [B, q, D]."""
    heads = [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def _mlp(embed_dim: int, mlp_ratio: float) -> nn.Sequential:
    hidden = int(embed_dim * mlp_ratio)
    return nn.Sequential(
        nn.LayerNorm(embed_dim), nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim)
    )


def _draw(weight: Tensor, std: float, generator: torch.Generator, *, cut: bool) -> None:
    if cut:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    else:
        nn.init.normal_(weight, std=std, generator=generator)


SMALL = 100  # samples, below which every fold is held out in turn: it costs a training of every pair a fold
Variant = Literal["scaled", "vjepa", "vjepa2"]
Loss = Literal["softmax", "focal"]
_VJEPA_LAST_DECAY = 1e-6


@dataclass(frozen=True)
class _Task:
    """What is learned: patch tokens of N samples, labels int64 [N, L] of L labels, and classes of each."""

    tokens: PatchTokens
    labels: Tensor
    classes: tuple[int, ...]


class Attentive(PatchEvaluator, Fits, LearnsTogether):
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
        balance: schema.Quiet[protocol.Balance] = "none",
        together: schema.Quiet[tuple[str, ...]] = (),
        loss: schema.Quiet[Loss] = "softmax",
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
            epochs: passes over the training samples.
            held_out: fraction of the training videos that chooses where several pairs are given. Of fewer
                than 100 samples each such part is held out in turn.
            variant: initial weights and steps as in the release of V-JEPA or V-JEPA 2, or "scaled", whose
                initial weights follow the tokens' width. The releases' rate falls to 0 at the last step, not
                after it. "vjepa" clips gradients at a norm of 1, and its decay falls along a cosine to 1e-6.
            balance: of unequal classes, as ``LinearSGD`` has it; "none" for labels learned together.
            together: names of labels that one probe learns at once, each with a query and a linear layer
                of its own, by the sum of their losses; pairs are chosen by the last one, by how often it is
                among the best five. Empty: a probe for each label.
            loss: "softmax", or "focal": that of RetinaNet (Lin et al. 2017, alpha 0.25, gamma 2) on each
                class's sigmoid, summed over a batch, as V-JEPA 2's anticipation has it.

        Raises:
            ValueError: if a number is out of its range.
        """
        self.rates, self.decays = rates_and_decays(lr, weight_decay)
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
        self.balance: protocol.Balance = balance
        if balance != "none" and (together or loss == "focal"):
            raise ValueError("balance is of one label and the softmax: leave it, or together and loss, out")
        if together and num_queries != 1:
            raise ValueError("labels learned together have a query each: leave num_queries out")
        self.together = together
        self.loss: Loss = loss

    def settled(
        self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator
    ) -> tuple["Attentive", str]:
        """A probe of the rate and decay that name most held-out samples right; of equal ones the first.

        Raises:
            UsageError: if heads do not divide the tokens' width, or there are too few videos to hold any out.
        """
        assert isinstance(train, LabelledPatches), "it reads patches"
        return self._settled(train, _task(train), generator)

    def _settled(
        self, train: LabelledPatches, task: _Task, generator: torch.Generator
    ) -> tuple["Attentive", str]:
        """``settled`` by ``train``'s label, the last of the task's."""
        if train.tokens.width % self.num_heads:
            raise UsageError(
                f"tokens of width {train.tokens.width} do not divide among {self.num_heads} heads: "
                "set evaluator.num_heads"
            )
        best = 5 if len(task.classes) > 1 else 1

        def right_of(kept: Tensor, held: Tensor, pairs: Pairs) -> list[int]:
            networks = self._fit(task, kept.cpu(), pairs, generator)
            logits = self._logits(networks, train.tokens.of(held), train.labels.device)
            named = [
                part[:, -train.num_classes :].topk(min(best, train.num_classes)).indices for part in logits
            ]
            return [int((part == train.labels[held][:, None]).sum()) for part in named]

        fixed = copy.copy(self)
        (fixed.rates, fixed.decays), words = best_pair(
            train, self.held_out, generator, self.rates, self.decays, right_of, small=SMALL
        )
        return fixed, words

    def patch_scores(self, train: LabelledPatches, test: PatchTokens, generator: torch.Generator) -> Tensor:
        """Logits float32 [M, K] on the device of the labels, where the probe is trained too.

        ``generator`` (CPU) draws the held-out parts, the initial weights and the order. On a GPU
        that has bfloat16 the network runs under its autocast.

        Raises:
            UsageError: as ``settled``.
        """
        return self._logits([self.fit(train, generator)], test, train.labels.device)[0]

    def fit(self, train: LabelledFeatures | LabelledPatches, generator: torch.Generator) -> nn.Module:
        assert isinstance(train, LabelledPatches), "it reads patches"
        return self._fit_all(train, _task(train), generator)[0]

    def _fit_all(
        self, train: LabelledPatches, task: _Task, generator: torch.Generator
    ) -> tuple[nn.Module, str]:
        """The network that all samples teach, and the pair that they chose, in words."""
        fixed, words = self._settled(train, task, generator)
        pairs = ((fixed.rates[0], fixed.decays[0]),)
        return self._fit(task, torch.arange(len(task.labels)), pairs, generator)[0], words

    def joint_scores(
        self, train: JointPatches, test: PatchTokens, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], str]:
        labels = torch.stack([train.labels[name] for name in self.together], dim=1)
        task = _Task(train.tokens, labels, tuple(train.num_classes[name] for name in self.together))
        last = LabelledPatches(train.tokens, labels[:, -1], task.classes[-1], train.groups)
        network, words = self._fit_all(last, task, generator)
        parts = self._logits([network], test, labels.device)[0].split(task.classes, dim=1)
        return dict(zip(self.together, parts, strict=True)), words

    def _fit(self, train: _Task, rows: Tensor, pairs: Pairs, generator: torch.Generator) -> list[nn.Module]:
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
        of_rows = train.labels[rows.to(device)].unbind(1)
        epochs = [shown(labels, self.balance, k) for labels, k in zip(of_rows, train.classes, strict=True)]
        rows, weights = rows[epochs[0][0]], [each for _, each in epochs]
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
                    losses = [
                        self._loss(network(tokens).float(), labels, train.classes, weights)
                        for network in networks
                    ]
                optimizer.zero_grad()
                # the networks share no weight, so each has the gradient of its own loss
                torch.stack(losses).sum().backward()
                if self.variant == "vjepa":
                    for network in networks:
                        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        return networks

    def _loss(
        self, logits: Tensor, labels: Tensor, classes: Sequence[int], weights: Sequence[Tensor]
    ) -> Tensor:
        """The sum over labels, of logits [B, sum of classes], labels [B, L] and weights [K] of each label."""
        losses = [
            focal_loss(part, truth)
            if self.loss == "focal"
            else F.cross_entropy(part, truth, weight, reduction="sum") / len(truth)
            for part, truth, weight in zip(
                logits.split(list(classes), dim=1), labels.unbind(1), weights, strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _fresh(self, train: _Task, number: int, generator: torch.Generator) -> list[nn.Module]:
        """That many networks with the same weights."""
        first = AttentiveNetwork(
            embed_dim=train.tokens.width,
            num_classes=sum(train.classes),
            num_queries=max(self.num_queries, len(train.classes)),
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            generator=generator,
            published=self.variant != "scaled",
            heads=train.classes if len(train.classes) > 1 else (),
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


def _task(train: LabelledPatches) -> _Task:
    return _Task(train.tokens, train.labels[:, None], (train.num_classes,))


def focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """RetinaNet's loss (Lin et al. 2017, Eq. 5) on the sigmoid of each class, summed over all [B, K].

    Args:
        labels: int64 [B].
        alpha: weight of the true class; that of the others is 1 - alpha.
        gamma: power of what is missing to the right answer, by which easy ones count less.
    """
    truth = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missing = (logits.sigmoid() - truth).abs()
    return (losses * missing**gamma * (alpha * truth + (1 - alpha) * (1 - truth))).sum()


def parameter_groups(
    network: nn.Module, lr: float, weight_decay: float, *, everything: bool = False
) -> list[dict[str, object]]:
    """Parameters that decay (matrices and queries, or ``everything``) and that do not (the rest)."""
    decayed = [parameter for parameter in network.parameters() if everything or parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if not everything and parameter.ndim <= 1]
    return [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bfloat16("auto", device))
