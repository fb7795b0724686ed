"""VIMPAC: mask-then-predict, and InfoNCE between two clips of a video, on the same masked clips."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.accumulate import JointLoss, PartOutput
from vidssl.engine.collapse import EARLY, contrast_bands, feature_bands, prediction_bands
from vidssl.engine.gather import OwnRows, gather_rows, rank
from vidssl.engine.speed import full_precision
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    Backbone,
    Band,
    Batch,
    ComparesVideos,
    FilledIn,
    LossOutput,
    MaskedPrediction,
    Masker,
    Objective,
    Progress,
    Tokenizer,
    Watched,
    Yardstick,
)
from vidssl.layers.transformer import BatchNorm
from vidssl.objectives.parts.masked_prediction import (
    FrozenTokenizer,
    MaskedClips,
    Replace,
    TokenPrediction,
    ids_of,
    prediction_yardstick,
)


@dataclass(frozen=True)
class Contrast:
    """InfoNCE of a batch.

    Attributes:
        loss: mean over both directions, in nats.
        accuracy: share of clips whose nearest other clip is that of the same video.
        num_videos: n, over all processes. A clip is told apart from 2n - 2 others.
        gap: mean cosine of clips of one video, less that of clips of different ones. No gradient.
    """

    loss: Tensor
    accuracy: Tensor
    num_videos: int
    gap: Tensor


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Contrast:
    """Each clip finds the other one of its video among all clips but itself (VIMPAC, Eq. 5 and 6).

    The loss is that of this process's rows among the rows of all processes; the mean over processes is the
    loss of the whole batch, and their averaged gradients are its gradient.

    Args:
        first: [B, D], vectors of one clip of each video; B is the same in all processes.
        second: [B, D], of another clip of the same videos.
        temperature: gamma; the cosines are divided by it.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(full_precision(x), dim=1) for x in (first, second))
        others = torch.cat((gather_rows(first), gather_rows(second)))
        n = len(others) // 2
        own = torch.arange(len(first), device=first.device) + rank() * len(first)
        itself, partner = torch.cat((own, own + n)), torch.cat((own + n, own))
        cosines = torch.cat((first, second)) @ others.t()
        similarity = cosines / temperature
        similarity = similarity.scatter(1, itself.unsqueeze(1), -math.inf)
        return Contrast(
            loss=F.cross_entropy(similarity, partner),
            accuracy=(similarity.detach().argmax(dim=1) == partner).float().mean(),
            num_videos=n,
            gap=_gap(cosines.detach(), itself, partner),
        )


def _gap(cosines: Tensor, itself: Tensor, partner: Tensor) -> Tensor:
    """How much more alike than others partners are; each row has its own and its partner's column."""
    own, positive = (cosines.gather(1, column.unsqueeze(1)).squeeze(1) for column in (itself, partner))
    negative = (cosines.sum(dim=1) - own - positive) / max(1, cosines.shape[1] - 2)
    return (positive - negative).mean()


class ProjectionHead(nn.Module):
    """From a clip's vector to the one that is contrasted: linear layers with BatchNorm and ReLU between.

    The last layer has no bias, and usually no norm (VIMPAC, Eq. 18; published code).

    Args:
        dim: width of the input.
        num_layers: linear layers.
        hidden_dim: width of all layers but the last.
        out_dim: width of the last.
        norm_last: whether a BatchNorm follows the last layer as well.
    """

    def __init__(self, dim: int, *, num_layers: int, hidden_dim: int, out_dim: int, norm_last: bool) -> None:
        super().__init__()
        if min(num_layers, hidden_dim, out_dim) < 1:
            raise ValueError(
                "head_layers, head_hidden_dim and head_dim must be positive, got "
                f"{num_layers}, {hidden_dim} and {out_dim}"
            )
        dims = [dim] + [hidden_dim] * (num_layers - 1)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.linears.append(nn.Linear(dims[-1], out_dim, bias=False))
        self.norms = nn.ModuleList(BatchNorm(hidden_dim) for _ in dims[1:])
        if norm_last:
            self.norms.append(BatchNorm(out_dim))
        for linear in self.linears:
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim] to [B, out_dim]."""
        last = len(self.linears) - 1
        for i, linear in enumerate(self.linears):
            x = linear(x)
            x = self.norms[i](x) if i < len(self.norms) else x
            x = x.relu() if i < last else x
        return x


NegativesFrom = Literal["batch", "part"]
_CONTRAST = Yardstick(
    metric="accuracy_contrast",
    label="clips that find their video",
    says="of all clips of a batch the nearest is the other clip of its video for {} of them",
    baselines={"chance": "chance_contrast"},
    unit="%",
)


class VIMPAC(JointLoss, MaskedPrediction, Watched, ComparesVideos):
    """Predicts hidden tokens, and tells clips of one video from those of others (VIMPAC, Eq. 6).

    L = L_mask + alpha gamma L_cl, both on the same masked clips: two of every video. The contrast is taken on
    the class token behind a head, or on the mean of the patches where the backbone has no class token.

    Metrics:

    - ``loss_mask``: Eq. 1, and ``accuracy_mask``, over the hidden ids; in evaluation mode also
      ``most_frequent_mask``, the accuracy of the best constant answer, and ``copy_nearest_mask``, that of
      copying the nearest visible id.
    - ``loss_contrast``: gamma L_cl, the paper's "CL-Loss": both directions added up.
    - ``predicted_perplexity_mask``: in training, how many equally frequent ids would be as varied as those
      predicted.
    - ``accuracy_contrast``: how often the other clip of its video is the nearest one to a clip;
      ``chance_contrast``: how often it would be by chance.
    - ``positive_negative_gap``: mean cosine of clips of one video, less that of clips of different ones.
    - ``negatives``: other videos that a clip is told apart from, as Table 11 counts: of a step's whole batch,
      all processes together, or of a part of it, see ``negatives_from``.
    - ``loss_mask_of_chance`` and ``loss_contrast_of_chance``: nats over those of guessing, ln V and
      ln(2 negatives + 1); 1 is chance.

    Args:
        contrastive_weight: alpha; 1 in the paper. For one task alone there are the objectives
            vimpac_predict and vimpac_contrast.
        temperature: gamma; 0.2 in the published code, the paper does not state it.
        head_layers: linear layers of the contrastive head; 3 in the paper, 2 in the released small script.
        head_hidden_dim: their width; 4096 in the paper, 2048 in the released small script.
        head_dim: width of what is contrasted.
        head_norm_last: whether a BatchNorm ends the head.
        contrast_on: clips as they are masked for prediction, or whole, which costs a second pass of the
            encoder (Table 12).
        replace: what stands in the place of hidden ids: the mask token; or with "bert" the mask token for
            80 %, random ids for 10 %, and the ids themselves for 10 % (App. G.3), decided for a whole block
            where the masker hides blocks.
        negatives: the number that there must be, so that it is no accident of the batch; null takes what
            there is.
        negatives_from: where ``run.accumulate`` splits a step's batch: "batch" keeps all of its videos as
            negatives, by cached features, which cost a second forward pass; "part" contrasts each part in
            itself, as the paper accumulates 1024 videos with 127 negatives (App. C.1).
    """

    toy: ClassVar = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8}

    needs_views: Mapping[str, int] = {"clip": 2}

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        masker: Masker,
        *,
        contrastive_weight: float = 1.0,
        temperature: float = 0.2,
        head_layers: int = 3,
        head_hidden_dim: int = 4096,
        head_dim: int = 256,
        head_norm_last: bool = False,
        contrast_on: Literal["masked", "whole"] = "masked",
        replace: Replace = "mask",
        negatives: int | None = None,
        negatives_from: NegativesFrom = "batch",
    ) -> None:
        super().__init__()
        if contrastive_weight <= 0:
            raise ValueError(
                f"contrastive_weight must be above 0, got {contrastive_weight}; for prediction alone "
                "there is the objective vimpac_predict"
            )
        if contrast_on not in ("masked", "whole"):
            raise ValueError(f"contrast_on must be 'masked' or 'whole', got '{contrast_on}'")
        self.contrastive_weight = contrastive_weight
        self.contrast_on = contrast_on
        self.splits_batch = negatives_from == "part"
        self.prediction = TokenPrediction(backbone, tokenizer, masker, tied=True, replace=replace)
        self.contrast = ClipContrast(
            ProjectionHead(
                backbone.embed_dim,
                num_layers=head_layers,
                hidden_dim=head_hidden_dim,
                out_dim=head_dim,
                norm_last=head_norm_last,
            ),
            temperature=temperature,
            negatives=negatives,
            negatives_from=negatives_from,
        )

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        clips = _side_by_side(batch.views["clip"], exactly=2)
        masked = self.prediction.encode_masked(clips, generator, slots=2)
        predicted = predicted_ids(self.prediction, masked)
        contrasted = self.joint_loss(self._vectors(clips, masked))
        return LossOutput(
            loss=predicted.loss + contrasted.loss,
            metrics={**predicted.metrics, **contrasted.metrics},
            features=contrasted.features,
        )

    def forward_part(self, batch: Batch, progress: Progress, generator: torch.Generator) -> PartOutput:
        clips = _side_by_side(batch.views["clip"], exactly=2)
        masked = self.prediction.encode_masked(clips, generator, slots=2)
        own = partial(predicted_ids, self.prediction, masked)
        weight = masked.hidden.sum().to(clips.device, non_blocking=True)
        return PartOutput(self._vectors(clips, masked), weight, own)

    def joint_loss(self, vectors: Tensor) -> LossOutput:
        contrasted = self.contrast(vectors)
        return LossOutput(self.contrastive_weight * contrasted.loss, contrasted.metrics, contrasted.features)

    def _vectors(self, clips: Tensor, masked: MaskedClips) -> Tensor:
        """[B, 2, D], of both clips of each video."""
        whole = self.contrast_on == "whole"
        features = self.prediction.encode_whole(clips, masked.ids) if whole else masked.features
        return by_video(features.pooled())

    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        return self.prediction.fill_in(clips, generator)

    def check_batch(self, num_videos: int) -> None:
        self.contrast.check(num_videos)

    def encoder(self) -> Backbone:
        return self.prediction.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return prediction_yardstick("mask"), _CONTRAST

    def bands(self) -> tuple[Band, ...]:
        return (*prediction_bands("mask"), *contrast_bands(), *feature_bands(after=EARLY))


class VIMPACPredict(Objective, MaskedPrediction, Watched):
    """Mask-then-predict alone (VIMPAC, Eq. 1; "MP" in Tables 7, 8 and 15); metrics and keys as VIMPAC's.

    Reads every clip that a video gives, one or more.

    Args:
        replace: see ``VIMPAC``.
    """

    needs_views: Mapping[str, int] = {"clip": 1}
    splits_batch = True

    def __init__(
        self, backbone: Backbone, tokenizer: Tokenizer, masker: Masker, *, replace: Replace = "mask"
    ) -> None:
        super().__init__()
        self.prediction = TokenPrediction(backbone, tokenizer, masker, tied=True, replace=replace)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        slots = batch.views["clip"]
        masked = self.prediction.encode_masked(_side_by_side(slots), generator, len(slots))
        predicted = predicted_ids(self.prediction, masked)
        return replace(predicted, features=masked.features.pooled().detach()[: len(slots[0])])

    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        return self.prediction.fill_in(clips, generator)

    def encoder(self) -> Backbone:
        return self.prediction.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (prediction_yardstick("mask"),)

    def bands(self) -> tuple[Band, ...]:
        return (*prediction_bands("mask"), *feature_bands(after=EARLY))


class VIMPACContrast(JointLoss, Watched, ComparesVideos):
    """Contrast between clips alone (VIMPAC, Eq. 5; "CL" in Tables 7 and 12); metrics and keys as VIMPAC's.

    With a masker the clips are masked, as the paper does to have no other augmentation; without one they
    are whole, and any backbone will do. A backbone that reads ids needs a tokenizer; no other may have one.

    Args:
        temperature, head_layers, head_hidden_dim, head_dim, head_norm_last: see ``VIMPAC``.
        negatives, negatives_from: likewise.
    """

    toy: ClassVar = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8}

    needs_views: Mapping[str, int] = {"clip": 2}

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer | None = None,
        masker: Masker | None = None,
        *,
        temperature: float = 0.2,
        head_layers: int = 3,
        head_hidden_dim: int = 4096,
        head_dim: int = 256,
        head_norm_last: bool = False,
        negatives: int | None = None,
        negatives_from: NegativesFrom = "batch",
    ) -> None:
        super().__init__()
        if (tokenizer is None) == (backbone.input_kind == "tokens"):
            raise ValueError(
                f"{type(backbone).__name__} reads {backbone.input_kind}, "
                + ("and nothing makes them: give a tokenizer" if tokenizer is None else "no tokenizer's ids")
            )
        self.splits_batch = negatives_from == "part"
        self.backbone = backbone
        self.tokenizer = None if tokenizer is None else FrozenTokenizer(tokenizer)
        self.masker = masker
        self.contrast = ClipContrast(
            ProjectionHead(
                backbone.embed_dim,
                num_layers=head_layers,
                hidden_dim=head_hidden_dim,
                out_dim=head_dim,
                norm_last=head_norm_last,
            ),
            temperature=temperature,
            negatives=negatives,
            negatives_from=negatives_from,
        )

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        return self.joint_loss(self.forward_part(batch, progress, generator).vectors)

    def forward_part(self, batch: Batch, progress: Progress, generator: torch.Generator) -> PartOutput:
        reads = _side_by_side(batch.views["clip"], exactly=2)
        if self.tokenizer is not None:
            reads = ids_of(reads, self.tokenizer)
        mask = None
        if self.masker is not None:
            grid = self.backbone.grid(*reads.shape[-3:])
            rows = OwnRows(len(reads), slots=2)
            mask = rows.of(self.masker(rows.all, grid, generator)).to(reads.device, non_blocking=True)
        return PartOutput(by_video(self.backbone(reads, mask).pooled()), torch.zeros((), device=reads.device))

    def joint_loss(self, vectors: Tensor) -> LossOutput:
        return self.contrast(vectors)

    def check_batch(self, num_videos: int) -> None:
        self.contrast.check(num_videos)

    def encoder(self) -> Backbone:
        return self.backbone

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (_CONTRAST,)

    def bands(self) -> tuple[Band, ...]:
        return (*contrast_bands(), *feature_bands(after=EARLY))


class ClipContrast(nn.Module):
    """The contrastive head, and gamma L_cl with its metrics."""

    def __init__(
        self,
        head: ProjectionHead,
        *,
        temperature: float,
        negatives: int | None,
        negatives_from: NegativesFrom,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if negatives is not None and negatives < 1:
            raise ValueError(f"negatives must be at least 1 or null, got {negatives}")
        if negatives_from not in ("batch", "part"):
            raise ValueError(f"negatives_from must be 'batch' or 'part', got '{negatives_from}'")
        self.head = head
        self.temperature = temperature
        self.negatives = negatives
        self.negatives_from = negatives_from

    def forward(self, vectors: Tensor) -> LossOutput:
        """Of the vectors [B, 2, D] of two clips of each video."""
        first, second = self.head(vectors.transpose(0, 1).flatten(0, 1)).chunk(2)
        contrast = info_nce(first, second, self.temperature)
        self.check(contrast.num_videos)
        loss = 2 * self.temperature * contrast.loss  # both directions are added up, not averaged (Eq. 5)
        chance = math.log(2 * contrast.num_videos - 1)
        metrics = {
            "loss_contrast": loss.detach(),
            "loss_contrast_of_chance": contrast.loss.detach() / chance,
            "accuracy_contrast": contrast.accuracy,
            "positive_negative_gap": contrast.gap,
            "negatives": torch.full((), contrast.num_videos - 1.0, device=loss.device),
            "chance_contrast": torch.full((), 1 / (2 * contrast.num_videos - 1), device=loss.device),
        }
        return LossOutput(loss, metrics, vectors[:, 0].detach())

    def check(self, num_videos: int) -> None:
        """Refuses a number of videos that the contrast is not between."""
        if num_videos < 2:
            raise UsageError("the contrast needs other videos in a batch, and there is one: raise batch_size")
        if self.training and self.negatives is not None and num_videos != self.negatives + 1:
            meet = "a step's batch" if self.negatives_from == "batch" else "batch_size over run.accumulate"
            raise UsageError(
                f"objective.negatives is {self.negatives}, and {num_videos} videos that meet ({meet}) give "
                f"{num_videos - 1}: make them {self.negatives + 1}, or set that (negatives_from says whether "
                "the parts of run.accumulate meet)"
            )


def predicted_ids(prediction: TokenPrediction, masked: MaskedClips) -> LossOutput:
    """Eq. 1 and its metrics."""
    found = prediction(masked)
    of_chance = found.loss.detach() / math.log(max(2, prediction.vocab_size))
    return replace(found, metrics={**found.metrics, "loss_mask_of_chance": of_chance})


def by_video(vectors: Tensor) -> Tensor:
    """[B, 2, D] of the vectors [2B, D] of all first clips and then of all second ones."""
    return vectors.unflatten(0, (2, -1)).transpose(0, 1)


def _side_by_side(slots: Sequence[Tensor], exactly: int | None = None) -> Tensor:
    """All first clips, then all second ones, and so on, as one batch."""
    if exactly is not None and len(slots) != exactly:
        raise ValueError(
            f"the contrast is between {counted(exactly, 'clip')} of a video, and the views give {len(slots)}"
        )
    if len({slot.shape for slot in slots}) > 1:
        raise ValueError(f"clips of one shape are needed, got {[tuple(slot.shape) for slot in slots]}")
    return torch.cat(tuple(slots))
