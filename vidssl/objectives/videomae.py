"""VideoMAE: a large part of a clip is hidden, what is left encoded, and the hidden pixels predicted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidssl.engine.collapse import CURE, EARLY, feature_bands, predicted_perplexity, prediction_bands
from vidssl.engine.gather import OwnRows, mean_over_processes, share_of_mean
from vidssl.interfaces import (
    Backbone,
    Band,
    Batch,
    EncodesVisible,
    FilledIn,
    FilledPixels,
    LossOutput,
    MaskedPrediction,
    Masker,
    Objective,
    Progress,
    Tokenizer,
    Translated,
    VisibleFeatures,
    Watched,
    Yardstick,
)
from vidssl.interfaces.grids import GridSize, expand_mask, places_of
from vidssl.layers.transformer import rows_at
from vidssl.objectives.parts.masked_prediction import (
    FrozenTokenizer,
    accuracy,
    copy_nearest,
    fit_strides,
    most_frequent_accuracy,
    prediction_yardstick,
)
from vidssl.objectives.parts.predictor import (
    TargetNorm,
    VisibleDecoder,
    cut_tubelets,
    join_tubelets,
    scale_of,
)
from vidssl.weights.vit_keys import to_decoder


@dataclass(frozen=True)
class Decoded:
    """What a decoder says of some cells of masked clips.

    Attributes:
        hidden: bool [B, t, h, w], the cells that the encoder did not see.
        wanted: int64 [B, m], numbers of the cells that were decoded.
        counts: bool [B, m], those of them that the loss is taken on: all, or the hidden ones.
        predicted: [B, m, numbers of a cell].
    """

    visible: VisibleFeatures
    hidden: Tensor
    wanted: Tensor
    counts: Tensor
    predicted: Tensor


class VideoMAE(Objective, MaskedPrediction, Watched):
    """Encodes visible cells alone and predicts the hidden ones (VideoMAE, Tong et al. 2022).

    The encoder never meets a mask token; a narrow decoder does. With a ``decoder_masker`` the decoder fills
    in only the cells that this leaves, and the loss is taken on those of them that the encoder did not see:
    dual masking (VideoMAE v2, Wang et al. 2023, Sec. 3.2).

    Metrics, target pixels:

    - ``loss``: mean squared error of the targets, over hidden cells.
    - ``loss_of_mean``: that over the loss of the best constant prediction of the batch, the mean target; 1 is
      what can be had without looking.
    - ``psnr``: of the filled-in pixels, in dB, each cell with its true mean and standard deviation where the
      target has neither; in evaluation mode also ``psnr_of_mean``, of each cell's true mean colour.

    Target tokens: ``loss_mask``, ``loss_mask_of_chance``, ``accuracy_mask`` and the others as VIMPAC's.

    Args:
        target: "pixels", or "tokens": the ids that a tokenizer gives the hidden cells, as BEVT's.
        norm: of the pixels, see ``scale_of``; null is "channel", VideoMAE's. No other target has one.
        decoder_dim: width of the decoder: 192 for ViT-S, 384 for B, 512 for L and 640 for H (published code).
        decoder_depth: its blocks: 4 for S and B, 12 for L and H (published scripts).
        decoder_heads: heads of each.
    """

    needs_views: Mapping[str, int] = {"clip": 1}
    splits_batch = True
    visible_only = True
    toy: ClassVar = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}

    def __init__(
        self,
        backbone: Backbone,
        masker: Masker,
        tokenizer: Tokenizer | None = None,
        decoder_masker: Masker | None = None,
        *,
        target: Literal["pixels", "tokens"] = "pixels",
        norm: TargetNorm | None = None,
        decoder_dim: int = 384,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
    ) -> None:
        super().__init__()
        _check_parts(backbone, tokenizer, (masker, decoder_masker), target, norm)
        self.backbone = backbone
        self.masker = masker
        self.decoder_masker = decoder_masker
        self.tokenizer = None if tokenizer is None else FrozenTokenizer(tokenizer)
        self.norm: TargetNorm = norm or "channel"
        self.ids_of_cell = (1, 1, 1) if tokenizer is None else _ids_of_cell(backbone, tokenizer)
        numbers = 3 * prod(backbone.strides)
        if tokenizer is not None:
            numbers = prod(self.ids_of_cell) * tokenizer.vocab_size
        self.decoder = VisibleDecoder(
            backbone.embed_dim, numbers, dim=decoder_dim, depth=decoder_depth, num_heads=decoder_heads
        )

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        slots = batch.views["clip"]
        clips = torch.cat(tuple(slots)) if len(slots) > 1 else slots[0]
        decoded = self._decode(clips, generator, len(slots), self.decoder_masker)
        share = 1.0 if self.decoder_masker is None else share_of_mean(int(decoded.counts.sum()), clips.device)
        measured = self._pixel_loss if self.tokenizer is None else self._token_loss
        output = measured(clips, decoded, share)
        return LossOutput(output.loss, output.metrics, decoded.visible.pooled().detach()[: len(slots[0])])

    def _decode(
        self, clips: Tensor, generator: torch.Generator, slots: int, decoder_masker: Masker | None
    ) -> Decoded:
        if clips.shape[2] == 1 and self.backbone.strides[0] > 1:
            raise ValueError("videomae learns from clips, got single images")
        grid, rows = self.backbone.grid(*clips.shape[2:]), OwnRows(len(clips), slots)
        hidden = rows.of(self.masker(rows.all, grid, generator))
        decodes = hidden
        if decoder_masker is not None:
            decodes = ~rows.of(decoder_masker(rows.all, grid, generator))
        keep, wanted = (places_of(mask).to(clips.device, non_blocking=True) for mask in (~hidden, decodes))
        hidden = hidden.to(clips.device, non_blocking=True)
        assert isinstance(self.backbone, EncodesVisible), "checked when it was made"
        visible = self.backbone.forward_visible(clips, keep)
        counts = hidden.flatten(1).gather(1, wanted)
        return Decoded(visible, hidden, wanted, counts, self.decoder(visible, wanted))

    def _pixel_loss(self, clips: Tensor, decoded: Decoded, share: Tensor | float) -> LossOutput:
        """``share``: how many times the mean count of all processes this one's is."""
        tubelets = rows_at(cut_tubelets(clips, decoded.visible.grid), decoded.wanted)
        shift, scale = scale_of(tubelets, self.norm)
        target = (tubelets - shift) / scale
        weights = decoded.counts.to(target.dtype) / decoded.counts.sum()  # [B, m]
        errors = (decoded.predicted.unflatten(2, (-1, 3)) - target).square().mean(dim=2)  # [B, m, 3]
        loss = (errors.mean(dim=-1) * weights).sum() * share
        with torch.no_grad():
            mean = mean_over_processes((target * weights[..., None, None]).sum(dim=(0, 1)) * share)
            square = mean_over_processes((target.square().mean(dim=(2, 3)) * weights).sum() * share)
            spread = square - mean.square().mean()
            squared = mean_over_processes(
                ((errors * scale.squeeze(2).square()).mean(dim=-1) * weights).sum() * share
            )
            metrics = {
                "loss": loss.detach(),
                "loss_of_mean": loss.detach() / spread.clamp(min=1e-12),
                "psnr": -10 * squared.log10(),
            }
            if not self.training:
                flat = mean_over_processes(
                    (tubelets.var(dim=2, correction=0).mean(dim=-1) * weights).sum() * share
                )
                metrics["psnr_of_mean"] = -10 * flat.log10()
        return LossOutput(loss, metrics)

    def _token_loss(self, clips: Tensor, decoded: Decoded, share: Tensor | float) -> LossOutput:
        ids = self._ids(clips)
        targets = rows_at(_by_cell(ids, self.ids_of_cell), decoded.wanted)[decoded.counts].flatten()
        logits = self._logits(decoded.predicted)[decoded.counts].flatten(0, 1)
        loss = F.cross_entropy(logits, targets)
        vocab_size = logits.shape[1]
        metrics = {
            "loss_mask": loss.detach(),
            "loss_mask_of_chance": loss.detach() / math.log(max(2, vocab_size)),
            "accuracy_mask": accuracy(logits.detach(), targets),
        }
        if self.training:
            metrics["predicted_perplexity_mask"] = predicted_perplexity(logits)
        else:
            copied = copy_nearest(ids, expand_mask(decoded.hidden, _grid_of(ids)))
            found = rows_at(_by_cell(copied, self.ids_of_cell), decoded.wanted)[decoded.counts].flatten()
            metrics["most_frequent_mask"] = most_frequent_accuracy(targets)
            metrics["copy_nearest_mask"] = (found == targets).float().mean()
        return LossOutput(loss * share, {name: value * share for name, value in metrics.items()})

    def _ids(self, clips: Tensor) -> Tensor:
        assert self.tokenizer is not None, "asked for with target tokens alone"
        return self.tokenizer(clips)

    def _logits(self, predicted: Tensor) -> Tensor:
        """[B, m, ids of a cell, V]."""
        return predicted.unflatten(2, (prod(self.ids_of_cell), -1))

    @torch.no_grad()
    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn | FilledPixels:
        decoded = self._decode(clips, generator, 1, None)
        grid, row = decoded.visible.grid, torch.arange(len(clips), device=clips.device)[:, None]
        if self.tokenizer is not None:
            ids = self._ids(clips)
            filled = _by_cell(ids, self.ids_of_cell).clone()  # a view of the ids where a cell holds one
            filled[row, decoded.wanted] = self._logits(decoded.predicted).argmax(dim=-1)
            hidden = expand_mask(decoded.hidden, _grid_of(ids))
            return FilledIn(ids, hidden, _on_grid(filled, grid, self.ids_of_cell))
        tubelets = cut_tubelets(clips, grid)
        own = rows_at(tubelets, decoded.wanted)
        shift, scale = scale_of(own, self.norm)
        made, flat = tubelets.clone(), tubelets.clone()
        made[row, decoded.wanted] = (decoded.predicted.float().unflatten(2, (-1, 3)) * scale + shift).clamp(
            0, 1
        )
        flat[row, decoded.wanted] = own.mean(dim=2, keepdim=True).expand_as(own)
        size: GridSize = tuple(clips.shape[2:])  # type: ignore[assignment]
        return FilledPixels(join_tubelets(made, grid, size), join_tubelets(flat, grid, size), decoded.hidden)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """The decoder of VideoMAE or VideoMAE v2, as released or as transformers has it."""
        found = to_decoder(state)
        if found is None:
            return None
        return replace(found, state={f"decoder.{key}": x for key, x in found.state.items()})

    def encoder(self) -> Backbone:
        return self.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        if self.tokenizer is not None:
            return (prediction_yardstick("mask"),)
        return (
            Yardstick(
                metric="loss_of_mean",
                label="error on hidden pixels",
                says="the loss on hidden pixels is {} of that of the best constant",
                baselines={"the best constant": 1.0},
                unit="%",
                lower_is_better=True,
            ),
            Yardstick(
                metric="psnr",
                label="hidden pixels",
                says="they are filled in at {}",
                baselines={"each cell in its true mean colour": "psnr_of_mean"},
                unit="dB",
            ),
        )

    def bands(self) -> tuple[Band, ...]:
        if self.tokenizer is not None:
            return (*prediction_bands("mask"), *feature_bands(after=EARLY))
        stuck = Band(
            metric="loss_of_mean",
            says="the loss has stayed at that of predicting the mean: nothing has been learned",
            cure=CURE,
            apart_from=1.0,
            after=EARLY,
        )
        return (stuck, *feature_bands(after=EARLY))


def _check_parts(
    backbone: Backbone,
    tokenizer: Tokenizer | None,
    maskers: tuple[Masker | None, ...],
    target: str,
    norm: str | None,
) -> None:
    if not isinstance(backbone, EncodesVisible) or not backbone.encodes_visible:
        raise ValueError(
            f"visible cells alone are encoded, and {type(backbone).__name__} cannot leave cells out"
        )
    for masker in maskers:
        if masker is not None and not masker.equal_counts:
            raise ValueError(
                f"{type(masker).__name__} hides different numbers of cells in the clips of a batch"
            )
    if target not in ("pixels", "tokens") or norm not in (None, "channel", "patch", "none"):
        raise ValueError(
            f"target is pixels or tokens, norm channel, patch, none or null, got {target} and {norm}"
        )
    if (target == "tokens") != (tokenizer is not None):
        raise ValueError(
            "target tokens needs a tokenizer"
            if tokenizer is None
            else "target pixels reads no tokenizer: set target to tokens, or leave the tokenizer out"
        )
    if target == "tokens" and norm is not None:
        raise ValueError("norm is of pixels: leave it out where the target is tokens")


def _ids_of_cell(backbone: Backbone, tokenizer: Tokenizer) -> GridSize:
    """How many ids lie in one cell, on each axis.

    Raises:
        ValueError: if a cell is smaller than an id, or they do not nest.
    """
    fit = fit_strides(backbone.strides, tokenizer.strides)
    if prod(fit.merge) > 1:
        raise ValueError(
            f"cells of {backbone.strides} (frames, rows, columns of pixels) are smaller than ids of "
            f"{tokenizer.strides}: a cell must hold whole ids"
        )
    return fit.split


def _by_cell(ids: Tensor, split: GridSize) -> Tensor:
    """Ids [B, t', h', w'] as [B, cells, ids of a cell]."""
    p, q, r = split
    return rearrange(ids, "b (t p) (h q) (w r) -> b (t h w) (p q r)", p=p, q=q, r=r)


def _on_grid(cells: Tensor, grid: GridSize, split: GridSize) -> Tensor:
    """The inverse of ``_by_cell``."""
    (t, h, w), (p, q, r) = grid, split
    return rearrange(cells, "b (t h w) (p q r) -> b (t p) (h q) (w r)", t=t, h=h, w=w, p=p, q=q, r=r)


def _grid_of(ids: Tensor) -> GridSize:
    t, h, w = ids.shape[1:]
    return t, h, w
