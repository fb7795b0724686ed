"""Masked token prediction on one stream: what BEVT and its variants are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.collapse import predicted_perplexity
from vidssl.engine.gather import OwnRows, share_of_mean
from vidssl.grids import GridSize, common_grid, expand_mask
from vidssl.interfaces import Backbone, Features, FilledIn, Masker, Tokenizer
from vidssl.objectives.frozen import FrozenTokenizer
from vidssl.objectives.heads import LinearHead, Predictions, StagesDecoder, fit_strides, likeliest
from vidssl.objectives.losses import accuracy, copy_nearest, most_frequent_accuracy

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
