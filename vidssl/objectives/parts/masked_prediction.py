"""Mask-then-predict: VIMPAC's first task, on backbones that read ids and on those that read pixels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.collapse import predicted_perplexity
from vidssl.engine.gather import OwnRows, num_processes, share_of_mean, sum_over_processes
from vidssl.interfaces import Backbone, Features, FilledIn, LossOutput, Masker, Tokenizer
from vidssl.interfaces.grids import GridSize, common_grid, expand_mask
from vidssl.objectives.parts.heads import (
    FrozenTokenizer,
    LinearHead,
    Predictions,
    StagesDecoder,
    fit_strides,
    likeliest,
)
from vidssl.objectives.parts.losses import accuracy, copy_nearest, most_frequent_accuracy

StreamName = Literal["image", "video"]


@dataclass(frozen=True)
class StreamOutput:
    """The loss of one stream (Eq. 2 or 3), and what is logged of it, named after the stream.

    ``features``: [B, D], the encoder's, pooled.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    features: Tensor


class TokenPrediction(nn.Module):
    """Hides part of a clip and predicts the tokenizer's ids there (BEVT, Sec. 3).

    One encoder serves all streams. Each has a decoder of its own; the norm and the layer that end in the
    vocabulary are shared, and the norm is the encoder's own last one, as published. Over a backbone
    without stages each stream has one linear layer (Table 8).

    Args:
        streams: those that will be asked for.
    """

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker, streams: tuple[StreamName, ...]
    ) -> None:
        super().__init__()
        if not backbone.takes_mask:
            raise ValueError(f"part of the input is hidden, and {type(backbone).__name__} takes no mask")
        self.backbone = backbone
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.masker = masker
        if len(backbone.stage_dims) > 1:
            self.head: StagesHead | LinearHeads = StagesHead(backbone, tokenizer, streams)
        else:
            self.head = LinearHeads(backbone, tokenizer, streams)

    def forward(self, stream: StreamName, clip: Tensor, generator: torch.Generator) -> StreamOutput:
        """Loss and metrics of a clip [B, 3, T, H, W] in [0, 1]; T = 1 in the image stream.

        In training the metrics hold the variety of the predicted ids as well, in evaluation mode two
        baselines at the same positions, see ``losses``.
        """
        ids, hidden, features, predictions = self._predict(stream, clip, generator)
        targets = ids.flatten()[predictions.positions]
        # mean over all masked positions of the batch; processes may have different numbers of them
        share = share_of_mean(len(targets), targets.device)
        loss = F.cross_entropy(predictions.logits, targets) * share
        metrics = {
            f"loss_{stream}": loss.detach(),
            f"accuracy_{stream}": accuracy(predictions.logits.detach(), targets) * share,
        }
        if self.training:
            metrics[f"predicted_perplexity_{stream}"] = predicted_perplexity(predictions.logits)
        else:
            copied = copy_nearest(ids, hidden).flatten()[predictions.positions]
            metrics[f"most_frequent_{stream}"] = most_frequent_accuracy(targets)
            metrics[f"copy_nearest_{stream}"] = (copied == targets).float().mean() * share
        return StreamOutput(loss, metrics, features.pooled().detach())

    @torch.no_grad()
    def fill_in(self, stream: StreamName, clip: Tensor, generator: torch.Generator) -> FilledIn:
        """What is predicted where a clip [B, 3, T, H, W] is hidden."""
        ids, hidden, _, predictions = self._predict(stream, clip, generator)
        return FilledIn(ids, hidden, likeliest(ids, predictions, self.tokenizer.tokenizer.vocab_size))

    def _predict(
        self, stream: StreamName, clip: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Features, Predictions]:
        """Ids [B, t, h, w], which of them are hidden, the features and the predictions for the hidden."""
        ids = self.tokenizer(clip)
        pixels = self.backbone.input_kind == "pixels"
        grid = self.backbone.grid(*clip.shape[2:]) if pixels else self.backbone.grid(*ids.shape[1:])
        id_grid: GridSize = tuple(ids.shape[1:])
        rows = OwnRows(len(clip))
        mask = rows.of(self.masker(rows.all, common_grid(grid, id_grid), generator)).to(clip.device)
        hidden = expand_mask(mask, id_grid)
        features = self.backbone(clip if pixels else ids, expand_mask(mask, grid))
        return ids, hidden, features, self.head(stream, features, hidden, self.backbone.final_norm())


def describe_streams(metrics: Mapping[str, float], streams: Sequence[StreamName]) -> str:
    """What held-out metrics of masked prediction say, in plain words."""
    named = {"image": "single frames", "video": "clips"}
    return "; ".join(
        f"in {named[stream]} {metrics[f'accuracy_{stream}']:.1%} of the hidden ids are predicted right "
        f"(always the most frequent id: {metrics[f'most_frequent_{stream}']:.1%}, "
        f"copying the nearest visible id: {metrics[f'copy_nearest_{stream}']:.1%})"
        for stream in streams
    )


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


Replace = Literal["mask", "bert"]

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden cells; BERT, and VIMPAC, App. G.3


@dataclass(frozen=True)
class MaskedClips:
    """What a backbone made of clips of which part was hidden.

    Attributes:
        features: of the clips with that part hidden.
        ids: int64 [B, t, h, w], of the whole clips.
        hidden: bool [B, t, h, w], the ids to predict.
    """

    features: Features
    ids: Tensor
    hidden: Tensor


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
        vectors = self.norm(F.gelu(self.linear(patches[hidden])))
        return Predictions(F.linear(vectors, embedding, self.bias), hidden.flatten().nonzero()[:, 0])


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
    fates, noise, groups = (rows.of(drawn).to(ids.device) for drawn in (fates, noise, groups))
    fate = fates.gather(1, groups.clamp(min=0).flatten(1)).view_as(groups)
    fate = torch.where(groups < 0, 1.0, fate)
    changed = (fate >= MASKED) & (fate < MASKED + RANDOM) & (ids < vocab_size)
    return torch.where(changed, noise, ids), fate < MASKED


class MaskThenPredict(nn.Module):
    """Hides part of a clip's ids and predicts them from the rest (VIMPAC, Sec. 3.1, Eq. 1).

    Over a backbone that reads ids the head is VIMPAC's, tied to its embedding. Over one that reads pixels
    it is BEVT's: a decoder where there are stages, else one linear layer.

    Args:
        replace: what stands in the place of hidden ids, see ``VIMPAC``.
    """

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker, *, replace: Replace) -> None:
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
        embedding = backbone.token_embedding()
        if embedding is not None:
            self.head: TiedHead | StagesHead | LinearHeads = TiedHead(embedding)
        elif len(backbone.stage_dims) > 1:
            self.head = StagesHead(backbone, tokenizer, ("video",))
        else:
            self.head = LinearHeads(backbone, tokenizer, ("video",))

    def encode_masked(self, clips: Tensor, generator: torch.Generator, slots: int = 1) -> MaskedClips:
        """Draws a mask for each clip and encodes what it leaves.

        Args:
            clips: [B, 3, T, H, W] in [0, 1], or ids [B, t, h, w] already; those that are none of the
                tokenizer's (padding) are neither hidden nor predicted.
            slots: how many clips of each video follow one another, see ``gather.OwnRows``.
        """
        ids = ids_of(clips, self.tokenizer)
        id_grid: GridSize = tuple(ids.shape[1:])  # type: ignore[assignment]
        predictable, rows = ids < self.vocab_size, OwnRows(len(ids), slots)
        if self.replace == "bert":
            groups = self.masker.groups(rows.all, id_grid, generator)
            seen, mask = corrupt(ids, groups, self.vocab_size, generator, slots)
            hidden = (rows.of(groups).to(ids.device) >= 0) & predictable
            return MaskedClips(self.backbone(seen, mask), ids, hidden)
        reads = reads_of(clips, ids, self.backbone)
        grid = self.backbone.grid(*reads.shape[-3:])
        mask = rows.of(self.masker(rows.all, common_grid(grid, id_grid), generator)).to(ids.device)
        hidden = expand_mask(mask, id_grid) & predictable
        return MaskedClips(self.backbone(reads, expand_mask(mask, grid)), ids, hidden)

    def encode_whole(self, clips: Tensor, ids: Tensor) -> Features:
        """Features of clips with nothing hidden, given their ids too."""
        return self.backbone(reads_of(clips, ids, self.backbone))

    def forward(self, masked: MaskedClips) -> LossOutput:
        """Cross-entropy, mean over the hidden ids of all processes, and what is logged of it.

        In training the metrics hold the variety of the predicted ids as well, in evaluation mode two
        baselines at the same positions, see ``losses``.
        """
        predictions = self._predict(masked)
        targets = masked.ids.flatten()[predictions.positions]
        if not len(targets) and num_processes() == 1:
            raise ValueError("no id is hidden in the whole batch: all clips are padding")
        # processes may have hidden different numbers of ids; the mean of their losses is to be that over all
        count = sum_over_processes(torch.tensor(float(len(targets)), device=targets.device)) / num_processes()
        loss = F.cross_entropy(predictions.logits, targets, reduction="sum") / count
        # of the means below; one of nothing is no number, and counts for nothing
        share = len(targets) / count if num_processes() > 1 else 1.0
        metrics = {
            "loss_mask": loss.detach(),
            "loss_mask_of_chance": loss.detach() / math.log(max(2, self.vocab_size)),
            "accuracy_mask": (accuracy(predictions.logits.detach(), targets) * share).nan_to_num(),
        }
        if self.training:
            metrics["predicted_perplexity_mask"] = predicted_perplexity(predictions.logits)
        else:
            copied = copy_nearest(masked.ids, masked.hidden).flatten()[predictions.positions]
            metrics["most_frequent_mask"] = most_frequent_accuracy(targets)
            metrics["copy_nearest_mask"] = ((copied == targets).float().mean() * share).nan_to_num()
        return LossOutput(loss, metrics)

    @torch.no_grad()
    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        """What is predicted where clips are hidden; arguments as those of ``encode_masked``."""
        masked = self.encode_masked(clips, generator)
        predicted = likeliest(masked.ids, self._predict(masked), self.vocab_size)
        return FilledIn(masked.ids, masked.hidden, predicted)

    def _predict(self, masked: MaskedClips) -> Predictions:
        if not isinstance(self.head, TiedHead):
            return self.head("video", masked.features, masked.hidden, self.backbone.final_norm())
        embedding = self.backbone.token_embedding()
        if embedding is None:
            raise ValueError("the backbone had an embedding when the head was built, and has none now")
        return self.head(masked.features.patches, masked.hidden, embedding)


def ids_of(clips: Tensor, tokenizer: FrozenTokenizer) -> Tensor:
    """Ids int64 [B, t, h, w] of clips [B, 3, T, H, W]; those that are ids already are taken as they are."""
    return clips.long() if clips.dim() == 4 else tokenizer(clips)


def reads_of(clips: Tensor, ids: Tensor, backbone: Backbone) -> Tensor:
    """What the backbone reads of both.

    Raises:
        ValueError: if it reads pixels, and the clips are stored as ids.
    """
    if backbone.input_kind == "tokens":
        return ids
    if clips.dim() == 4:
        raise ValueError(f"{type(backbone).__name__} reads pixels, and the clips are given as ids")
    return clips
