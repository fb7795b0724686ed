"""Masked prediction of a tokenizer's ids: the mechanism that BEVT and VIMPAC share, heads, measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.collapse import predicted_perplexity
from vidssl.engine.gather import OwnRows, num_processes, sum_over_processes
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Features, FilledIn, LossOutput, Masker, Tokenizer, Yardstick
from vidssl.interfaces.grids import GridSize, common_grid, expand_mask

StreamName = Literal["image", "video"]
Replace = Literal["mask", "bert"]

MASKED, RANDOM = 0.8, 0.1  # fractions of the hidden cells; BERT, and VIMPAC, App. G.3


@dataclass(frozen=True)
class MaskedClips:
    """Clips with a part hidden.

    Attributes:
        features: the backbone's, of what is visible.
        ids: int64 [B, t, h, w], of the whole clips.
        hidden: bool [B, t, h, w], the ids to predict; on the CPU, unless padding decides too, so that no step
            waits for a GPU to say how many they are.
    """

    features: Features
    ids: Tensor
    hidden: Tensor


class TokenPrediction(nn.Module):
    """Hides part of a clip and predicts the tokenizer's ids there (BEVT, Sec. 3; VIMPAC, Sec. 3.1).

    One encoder serves all streams. Over a backbone with stages each stream has a decoder of its own; the norm
    and the layer that end in the vocabulary are shared, and the norm is the encoder's own last one, as BEVT
    published it. Over one without stages each stream has one linear layer (BEVT, Table 8).

    Args:
        streams: those that will be asked for.
        tied: whether the head over a backbone that reads ids is VIMPAC's, tied to its embedding.
        replace: stand-in for hidden ids: the mask token, or with "bert" BERT's mixture, see ``corrupt``.

    Raises:
        ValueError: if the backbone takes no mask, or has no use for ``replace``.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        masker: Masker,
        streams: tuple[StreamName, ...] = ("video",),
        *,
        tied: bool = False,
        replace: Replace = "mask",
    ) -> None:
        super().__init__()
        if not backbone.takes_mask:
            raise ValueError(f"part of the input is hidden, and {type(backbone).__name__} takes no mask")
        if replace not in ("mask", "bert"):
            raise ValueError(f"replace must be 'mask' or 'bert', got '{replace}'")
        if replace == "bert" and backbone.input_kind == "pixels":
            raise ValueError(
                f"replace 'bert' puts random ids in the place of some, and {type(backbone).__name__} reads "
                "pixels: set replace to 'mask', or take a backbone that reads ids"
            )
        self.backbone = backbone
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.masker = masker
        self.replace = replace
        self.vocab_size = tokenizer.vocab_size
        embedding = backbone.token_embedding() if tied else None
        if embedding is not None:
            self.head: TiedHead | StagesHead | LinearHeads = TiedHead(embedding)
        elif len(backbone.stage_dims) > 1:
            self.head = StagesHead(backbone, tokenizer, streams)
        else:
            self.head = LinearHeads(backbone, tokenizer, streams)

    def encode_masked(self, clips: Tensor, generator: torch.Generator, slots: int = 1) -> MaskedClips:
        """Draws a mask for each clip and encodes what it leaves.

        Args:
            clips: [B, 3, T, H, W] in [0, 1], or ids [B, t, h, w] already; those that are none of the
                tokenizer's (padding) are neither hidden nor predicted.
            slots: how many clips of each video follow one another, see ``gather.OwnRows``.
        """
        ids = ids_of(clips, self.tokenizer)
        id_grid: GridSize = tuple(ids.shape[1:])  # type: ignore[assignment]
        rows = OwnRows(len(ids), slots)
        if self.replace == "bert":
            groups = self.masker.groups(rows.all, id_grid, generator)
            seen, mask = corrupt(ids, groups, self.vocab_size, generator, slots)
            hidden = rows.of(groups) >= 0
        else:
            seen = reads_of(clips, ids, self.backbone)
            grid = self.backbone.grid(*seen.shape[-3:])
            drawn = rows.of(self.masker(rows.all, common_grid(grid, id_grid), generator))
            mask = expand_mask(drawn, grid).to(ids.device, non_blocking=True)
            hidden = expand_mask(drawn, id_grid)
        if clips.dim() == 4:  # only stored ids have padding
            hidden = hidden.to(ids.device) & (ids < self.vocab_size)
        return MaskedClips(self.backbone(seen, mask), ids, hidden)

    def encode_whole(self, clips: Tensor, ids: Tensor) -> Features:
        """Features of clips with nothing hidden, given their ids too."""
        return self.backbone(reads_of(clips, ids, self.backbone))

    def forward(self, masked: MaskedClips, name: str = "mask", stream: StreamName = "video") -> LossOutput:
        """Cross entropy, mean over the hidden ids of all processes (BEVT, Eq. 2 and 3; VIMPAC, Eq. 1).

        Metrics are ``loss_NAME`` and ``accuracy_NAME``; in training also the variety of the predicted ids, in
        evaluation mode two baselines at the same positions. ``features`` are the encoder's, pooled.
        """
        predictions = self._predict(masked, stream)
        logits, targets = predictions.logits, masked.ids.flatten()[predictions.positions]
        if not len(targets) and num_processes() == 1:
            raise ValueError("no id is hidden in the whole batch: all clips are padding")
        # processes may have hidden different numbers of ids; the mean of their losses is to be that over all
        own = torch.full((), float(len(targets)), device=targets.device)
        count = sum_over_processes(own) / num_processes()
        loss = F.cross_entropy(logits, targets, reduction="sum") / count
        metrics = {
            f"loss_{name}": loss.detach(),
            f"accuracy_{name}": (logits.detach().argmax(dim=1) == targets).float().sum() / count,
        }
        if self.training:
            metrics[f"predicted_perplexity_{name}"] = predicted_perplexity(logits)
        else:
            hidden = masked.hidden.to(masked.ids.device)
            copied = copy_nearest(masked.ids, hidden).flatten()[predictions.positions]
            metrics[f"most_frequent_{name}"] = most_frequent_accuracy(targets)
            metrics[f"copy_nearest_{name}"] = (copied == targets).float().sum() / count
        return LossOutput(loss, metrics, masked.features.pooled().detach())

    @torch.no_grad()
    def fill_in(self, clips: Tensor, generator: torch.Generator, stream: StreamName = "video") -> FilledIn:
        """Predictions where clips are hidden; arguments as those of ``encode_masked``."""
        masked = self.encode_masked(clips, generator)
        predicted = likeliest(masked.ids, self._predict(masked, stream), self.vocab_size)
        return FilledIn(masked.ids, masked.hidden.to(masked.ids.device), predicted)

    def _predict(self, masked: MaskedClips, stream: StreamName = "video") -> Predictions:
        if not isinstance(self.head, TiedHead):
            return self.head(stream, masked.features, masked.hidden, self.backbone.final_norm())
        embedding = self.backbone.token_embedding()
        if embedding is None:
            raise ValueError("the backbone had an embedding when the head was built, and has none now")
        return self.head(masked.features.patches, masked.hidden, embedding)


def prediction_yardstick(name: str, of: str = "") -> Yardstick:
    """``accuracy_NAME`` beside its baselines.

    Args:
        of: which ids, " of clips" say.
    """
    return Yardstick(
        metric=f"accuracy_{name}",
        label=f"hidden ids{of}",
        says=f"{{}} of the hidden ids{of} are predicted right",
        baselines={
            "the most frequent id": f"most_frequent_{name}",
            "copying the nearest id": f"copy_nearest_{name}",
        },
        unit="%",
    )


def ids_of(clips: Tensor, tokenizer: FrozenTokenizer) -> Tensor:
    """Ids int64 [B, t, h, w] of clips [B, 3, T, H, W]; those that are ids already are taken as they are."""
    return clips.long() if clips.dim() == 4 else tokenizer(clips)


def reads_of(clips: Tensor, ids: Tensor, backbone: Backbone) -> Tensor:
    """The backbone's input of both.

    Raises:
        ValueError: if it reads pixels, and the clips are stored as ids.
    """
    if backbone.input_kind == "tokens":
        return ids
    if clips.dim() == 4:
        raise ValueError(f"{type(backbone).__name__} reads pixels, and the clips are given as ids")
    return clips


def corrupt(
    ids: Tensor, groups: Tensor, vocab_size: int, generator: torch.Generator, slots: int = 1
) -> tuple[Tensor, Tensor]:
    """BERT's corruption: of the hidden groups 80 % are masked, 10 % get random ids, 10 % stay as they are.

    Args:
        ids: int64 [B, t, h, w].
        groups: int64 [all rows, t, h, w], those of all processes; cells of a row with one number share their
            fate; -1 where nothing is hidden.
        vocab_size: random ids are below it; so are those that they may take the place of.
        slots: see ``gather.OwnRows``.

    Returns:
        The ids with the random ones put in, and bool [B, t, h, w], where to mask.
    """
    device, rows = generator.device, OwnRows(len(ids), slots)
    fates = torch.rand((rows.all, int(groups.max()) + 1), generator=generator, device=device)
    noise = torch.randint(vocab_size, (rows.all, *ids.shape[1:]), generator=generator, device=device)
    fates, noise, groups = (
        rows.of(drawn).to(ids.device, non_blocking=True) for drawn in (fates, noise, groups)
    )
    fate = fates.gather(1, groups.clamp(min=0).flatten(1)).view_as(groups)
    fate = torch.where(groups < 0, 1.0, fate)
    changed = (fate >= MASKED) & (fate < MASKED + RANDOM) & (ids < vocab_size)
    return torch.where(changed, noise, ids), fate < MASKED


# heads: from features to logits over the vocabulary, at hidden ids only


class TiedHead(nn.Module):
    """Predicts ids with the embedding that they are read with, and a bias of its own (VIMPAC, Eq. 16, 17).

    The backbone's special ids are classes as well, as published; nothing is ever one of them.
    """

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        rows, dim = embedding.shape
        self.linear = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)  # as in BERT; published code
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, patches: Tensor, hidden: Tensor, embedding: Tensor) -> Predictions:
        """Logits over the rows of ``embedding`` for the hidden cells of [B, t, h, w, D]."""
        positions = places_in(hidden, patches.device)
        vectors = self.norm(F.gelu(self.linear(patches.flatten(0, -2)[positions])))
        return Predictions(F.linear(vectors, embedding, self.bias), positions)


class LinearHeads(nn.Module):
    """One linear layer for each stream."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, streams: tuple[StreamName, ...]) -> None:
        super().__init__()
        cell, ids = _cell_strides(backbone, tokenizer, backbone.strides), tokenizer.strides
        self.heads = nn.ModuleDict(
            {
                stream: LinearHead(
                    backbone.embed_dim,
                    tokenizer.vocab_size,
                    fit_strides(_seen_by(stream, cell), _seen_by(stream, ids)),
                )
                for stream in streams
            }
        )

    def forward(
        self, stream: StreamName, features: Features, hidden: Tensor, norm: nn.Module | None
    ) -> Predictions:
        """Logits at the hidden ids. The features come out of the norm already."""
        return self.heads[stream](features.patches, hidden)


class StagesHead(nn.Module):
    """A decoder for each stream, then a norm and a layer to the vocabulary that all share."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, streams: tuple[StreamName, ...]) -> None:
        super().__init__()
        skip_dim, dim = backbone.stage_dims[-2:]
        skip, last = (_cell_strides(backbone, tokenizer, strides) for strides in backbone.stage_strides[-2:])
        up = fit_strides(last, skip)
        if prod(up.merge) > 1:
            raise ValueError(f"the last stage is to be the coarsest: its cells span {last}, before it {skip}")
        self.decoders = nn.ModuleDict(
            {
                stream: StagesDecoder(
                    (skip_dim, dim),
                    (1, *up.split[1:]) if stream == "image" else up.split,
                    fit_strides(_seen_by(stream, skip), _seen_by(stream, tokenizer.strides)),
                )
                for stream in streams
            }
        )
        self.norm = nn.LayerNorm(dim) if backbone.final_norm() is None else None
        self.to_vocab = nn.Linear(dim, tokenizer.vocab_size)
        nn.init.trunc_normal_(self.to_vocab.weight, std=0.02)
        nn.init.zeros_(self.to_vocab.bias)

    def forward(
        self, stream: StreamName, features: Features, hidden: Tensor, norm: nn.Module | None
    ) -> Predictions:
        """Logits at the hidden ids; ``norm`` is the encoder's last one, if it has one."""
        vectors, positions = self.decoders[stream](features.stages, hidden)
        last_norm = norm if self.norm is None else self.norm
        if last_norm is None:
            raise ValueError("the backbone had a final norm when the head was built, and has none now")
        return Predictions(self.to_vocab(last_norm(vectors)), positions)


def _cell_strides(backbone: Backbone, tokenizer: Tokenizer, strides: GridSize) -> GridSize:
    """Strides in pixels; those of a backbone that reads ids count ids."""
    if backbone.input_kind == "pixels":
        return strides
    t, h, w = (own * ids for own, ids in zip(strides, tokenizer.strides, strict=True))
    return t, h, w


def _seen_by(stream: StreamName, strides: GridSize) -> GridSize:
    """Strides as a stream meets them: an image is one cell deep on every grid."""
    return (1, *strides[1:]) if stream == "image" else strides


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
        cells: int64 [C], the cells of features that hold at least one, as places in the flattened grids.
        within: int64 [M], each one's place among all ids of those cells, [C * ids of a cell].
        positions: int64 [M], the same ids in the same order, as places in ``ids.flatten()``.
    """

    cells: Tensor
    within: Tensor
    positions: Tensor


def find_hidden(hidden: Tensor, split: GridSize, device: torch.device) -> HiddenIds:
    """The hidden ids, bool [B, t, h, w] on any device, sorted by cells of ``split`` ids."""
    place = torch.arange(hidden.numel(), device=hidden.device).view_as(hidden)
    by_cell, place = _group(hidden.unsqueeze(-1), split), _group(place.unsqueeze(-1), split)
    cells = by_cell.any(dim=-1)
    within = by_cell[cells]
    positions = place[cells][within].to(device, non_blocking=True)
    return HiddenIds(places_in(cells, device), places_in(within, device), positions)


def places_in(mask: Tensor, device: torch.device) -> Tensor:
    """Where a mask on any device is True, as places in ``mask.flatten()``, int64 [M] on ``device``.

    How many there are is known without waiting for a GPU if the mask is on the CPU.
    """
    return mask.flatten().nonzero()[:, 0].to(device, non_blocking=True)


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
        return Predictions(logits.flatten(0, 1)[found.within], found.positions)


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
        return spread.flatten(0, 1)[found.within], found.positions


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
    found = find_hidden(hidden, fit.split, features.device)
    return found, _group(features, fit.merge).flatten(0, 3)[found.cells]


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
            return self.tokenizer.encode(clip.to(torch.promote_types(clip.dtype, torch.float32)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTokenizer:
        super()._apply(fn, recurse)
        self.tokenizer._apply(fn, recurse)
        return self


# measures: pure functions of their arguments


def accuracy(logits: Tensor, ids: Tensor) -> Tensor:
    """Share of the rows of ``logits`` [M, V] whose largest entry is at ``ids`` [M]."""
    return (logits.argmax(dim=1) == ids).float().mean()


def most_frequent_accuracy(ids: Tensor) -> Tensor:
    """Accuracy of the best constant answer to ``ids`` [M], chosen in hindsight from these very ids.

    An upper bound for whoever has to choose before: no model is flattered by it.
    """
    return (ids == ids.mode().values).sum() / len(ids)  # not bincount, which waits for a GPU


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
