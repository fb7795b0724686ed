"""From a backbone's features to logits over a tokenizer's vocabulary, at hidden positions only."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.precision import full_precision
from vidssl.errors import UsageError
from vidssl.interfaces import Tokenizer
from vidssl.interfaces.grids import GridSize


@dataclass(frozen=True)
class Fit:
    """How cells of features and ids lie over each other.

    Attributes:
        merge: cells of features under one id, on each axis.
        split: ids within one cell of features, on each axis. On no axis are both above 1.
    """

    merge: GridSize
    split: GridSize


def fit_strides(cell: GridSize, ids: GridSize) -> Fit:
    """The fit of cells to ids that span so many frames, rows and columns of pixels.

    Raises:
        ValueError: if on some axis neither is a whole multiple of the other.
    """
    if any(max(c, i) % min(c, i) for c, i in zip(cell, ids, strict=True)):
        raise ValueError(
            f"features on cells of {cell} (frames, rows, columns of pixels) cannot predict ids of {ids}: "
            "on every axis one must be a whole multiple of the other"
        )
    merge = tuple(max(1, i // c) for c, i in zip(cell, ids, strict=True))
    split = tuple(max(1, c // i) for c, i in zip(cell, ids, strict=True))
    return Fit(merge, split)  # type: ignore[arg-type]


@dataclass(frozen=True)
class HiddenIds:
    """Where the hidden ids are.

    Attributes:
        cells: bool [B, t, h, w], cells of features that hold at least one.
        within: bool [C, ids of a cell], which ones, for each such cell.
        positions: int64 [M], the same ids in the same order, as places in ``ids.flatten()``.
    """

    cells: Tensor
    within: Tensor
    positions: Tensor


def find_hidden(hidden: Tensor, split: GridSize) -> HiddenIds:
    """The hidden ids, bool [B, t, h, w], sorted by cells of ``split`` ids."""
    place = torch.arange(hidden.numel(), device=hidden.device).view_as(hidden)
    by_cell, place = _group(hidden.unsqueeze(-1), split), _group(place.unsqueeze(-1), split)
    cells = by_cell.any(dim=-1)
    within = by_cell[cells]
    return HiddenIds(cells, within, place[cells][within])


@dataclass(frozen=True)
class Predictions:
    """Logits [M, V] and the places in ``ids.flatten()``, int64 [M], that they are for."""

    logits: Tensor
    positions: Tensor


def likeliest(ids: Tensor, predictions: Predictions, vocab_size: int) -> Tensor:
    """``ids`` [B, t, h, w] with the likeliest id of the vocabulary put wherever there is a prediction."""
    filled = ids.flatten().clone()
    filled[predictions.positions] = predictions.logits[:, :vocab_size].argmax(dim=1)
    return filled.view_as(ids)


class LinearHead(nn.Module):
    """One linear layer from a cell to all ids in it: for backbones without stages (BEVT, Table 8)."""

    def __init__(self, dim: int, vocab_size: int, fit: Fit) -> None:
        super().__init__()
        self.fit = fit
        self.linear = nn.Linear(prod(fit.merge) * dim, prod(fit.split) * vocab_size)
        _init_linear(self.linear)

    def forward(self, patches: Tensor, hidden: Tensor) -> Predictions:
        """Predictions from features [B, t, h, w, D] at the hidden ids, bool [B, t', h', w']."""
        found, cells = _hidden_cells(patches, hidden, self.fit)
        logits = self.linear(cells).unflatten(1, (prod(self.fit.split), -1))
        return Predictions(logits[found.within], found.positions)


class StagesDecoder(nn.Module):
    """From the last two stages of a backbone to one vector a hidden id (BEVT, Fig. 3).

    The last stage is brought up to the grid of the one before it and fused with it; where ids are finer
    than that, in the paper in time alone, each fused cell is spread over its ids. Nothing here is nonlinear.
    All but the first step is done for cells with hidden ids only.

    Args:
        dims: widths of the last two stages; the decoder keeps the last one's.
        up: cells of the stage before the last under one of the last, on each axis.
        fit: of the stage before the last to the ids.
    """

    def __init__(self, dims: tuple[int, int], up: GridSize, fit: Fit) -> None:
        super().__init__()
        skip_dim, dim = dims
        self.fit = fit
        self.up_factor = up
        self.up = Spread(dim, up)
        self.fuse = nn.Linear(prod(fit.merge) * (skip_dim + dim), dim)
        self.spread = Spread(dim, fit.split) if prod(fit.split) > 1 else None
        _init_linear(self.fuse)

    def forward(self, stages: tuple[Tensor, ...], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [M, D] for the hidden ids, bool [B, t, h, w], and their places in ``ids.flatten()``."""
        p, q, r = self.up_factor
        skip = stages[-2]
        up = rearrange(self.up(stages[-1]), "b t h w (p q r) d -> b (t p) (h q) (w r) d", p=p, q=q, r=r)
        if up.shape[:-1] != skip.shape[:-1]:
            raise ValueError(
                f"the last stage, {tuple(stages[-1].shape[1:4])}, is not the one before it, "
                f"{tuple(skip.shape[1:4])}, divided by {self.up_factor}: give clips of a size that every "
                "stage halves exactly"
            )
        found, cells = _hidden_cells(torch.cat((skip, up), dim=-1), hidden, self.fit)
        fused = self.fuse(cells)
        spread = fused.unsqueeze(1) if self.spread is None else self.spread(fused)
        return spread[found.within], found.positions


class Spread(nn.Module):
    """A transposed convolution whose kernel is its stride: every cell becomes several, each on its own."""

    def __init__(self, dim: int, factor: GridSize) -> None:
        super().__init__()
        # the convolution holds the weights in their usual shape; ``forward`` applies them as one matmul
        self.conv = nn.ConvTranspose3d(dim, dim, kernel_size=factor, stride=factor)

    def forward(self, cells: Tensor) -> Tensor:
        """[..., D] to [..., prod(factor), D]."""
        spread = cells @ self.conv.weight.flatten(1)
        return spread.unflatten(-1, (cells.shape[-1], -1)).mT + self.conv.bias


def _hidden_cells(features: Tensor, hidden: Tensor, fit: Fit) -> tuple[HiddenIds, Tensor]:
    """The hidden ids, and the features of the C cells that hold them, [C, prod(merge) * D]."""
    grid = tuple(
        size // merge * split
        for size, merge, split in zip(features.shape[1:4], fit.merge, fit.split, strict=True)
    )
    if grid != tuple(hidden.shape[1:]) or any(
        size % merge for size, merge in zip(features.shape[1:4], fit.merge, strict=True)
    ):
        raise ValueError(
            f"features on {tuple(features.shape[1:4])} do not cover ids on {tuple(hidden.shape[1:])}, "
            f"{fit.merge} to one or one to {fit.split}"
        )
    found = find_hidden(hidden, fit.split)
    return found, _group(features, fit.merge)[found.cells]


def _group(x: Tensor, size: GridSize) -> Tensor:
    """[B, t, h, w, D] to groups of ``size`` cells side by side, [B, t', h', w', prod(size) * D]."""
    p, q, r = size
    return rearrange(x, "b (t p) (h q) (w r) d -> b t h w (p q r d)", p=p, q=q, r=r)


def _init_linear(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


class FrozenTokenizer(nn.Module):
    """Holds a tokenizer outside parameters, state and training mode; it still moves along with ``to``.

    Checkpoints therefore do not carry it (the published ones do, 54 M parameters of them), and no
    optimizer, clipping or ``train()`` reaches it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        # within a tuple PyTorch does not see it
        self._held = (tokenizer.eval().requires_grad_(False),)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._held[0]

    def forward(self, clip: Tensor) -> Tensor:
        """Ids of a clip, in full precision whatever the training runs in: targets are not rounded.

        Raises:
            UsageError: if the clip is stored ids already, which an objective must ask for.
        """
        if clip.dim() == 4:
            raise UsageError(
                "the data gives stored ids, and the objective tokenizes pixels: take a source of videos"
            )
        with torch.no_grad(), torch.autocast(clip.device.type, enabled=False):
            return self.tokenizer.encode(full_precision(clip))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenTokenizer":
        super()._apply(fn, recurse)
        self.tokenizer._apply(fn, recurse)
        return self
