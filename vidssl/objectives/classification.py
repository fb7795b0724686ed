"""Classes of whole videos: what finetuning minimises, with Mixup and CutMix, and a supervised network."""

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.config.schema import Quiet
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, LossOutput, Objective, Progress, Tokenizer, Yardstick
from vidssl.objectives.parts.masked_prediction import (
    FrozenTokenizer,
    accuracy,
    ids_of,
    most_frequent_accuracy,
)


def mix(
    views: Sequence[Tensor], targets: Tensor, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Every clip mixed with its neighbour in the batch, by one draw for the whole batch.

    Mixup (Zhang et al. 2018) adds the two, CutMix (Yun et al. 2019) replaces a box, the same one in all
    frames; where both are on, a fair coin chooses, as VideoMAE has it.

    Args:
        views: clips [B, 3, T, H, W] of the same B videos, mixed alike whatever their sizes.
        targets: float [B, K], probabilities of the classes.
        mixup: alpha of Beta(alpha, alpha), from which the first clip's share comes; 0 is off.
        cutmix: the same for CutMix.
        generator: on any device.

    Returns:
        The mixed clips and their targets. Where both are off, what was given.

    Raises:
        UsageError: if clips are stored ids.
    """
    if not (mixup or cutmix):
        return list(views), targets
    if any(view.dim() == 4 for view in views):
        raise UsageError("mixup and cutmix mix pixels, and the data gives stored ids: set both to 0")
    # torch draws no Beta from a generator of one's own
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    random = np.random.default_rng(int(drawn))
    boxes = cutmix > 0 and (not mixup or random.random() < 0.5)
    alpha = cutmix if boxes else mixup
    share = float(random.beta(alpha, alpha))
    if boxes:
        centre = float(random.random()), float(random.random())
        cut = [_cut(view, share, centre) for view in views]
        mixed = [clip for clip, _ in cut]
        share = sum(kept for _, kept in cut) / len(cut)
    else:
        mixed = [view * share + view.roll(1, 0) * (1 - share) for view in views]
    return mixed, targets * share + targets.roll(1, 0) * (1 - share)


def _cut(clip: Tensor, share: float, centre: tuple[float, float]) -> tuple[Tensor, float]:
    """The clip with a box of its neighbour, and the share of the frame that remains its own.

    The box has (1 - share) of the area and may reach over the edge: what is left of it counts.
    """
    height, width = clip.shape[-2:]
    side = (1 - share) ** 0.5
    top, bottom = _span(height, side, centre[0])
    left, right = _span(width, side, centre[1])
    mixed = clip.clone()
    mixed[..., top:bottom, left:right] = clip.roll(1, 0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(size: int, side: float, centre: float) -> tuple[int, int]:
    middle, half = int(size * centre), int(size * side) // 2
    return max(0, middle - half), min(size, middle + half)


class Classifier(nn.Module):
    """A backbone, dropout and one linear layer on its pooled features."""

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float, head_std: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.normal_(self.head.weight, std=head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits [B, K] of videos whose clips (or ids) are given; features of several clips are averaged.

        Averaging before the layer, in training too, is how SVT joins its slow and its fast clip.
        """
        pooled = [self.backbone(x).pooled() for x in inputs]
        return self.head(self.dropout(torch.stack(pooled).mean(0) if len(pooled) > 1 else pooled[0]))


class Classification(Objective):
    """Supervised classification of videos by one label: cross entropy on the pooled features.

    Samples without the label are left out. Metrics: ``loss`` (with smoothed or mixed targets where those
    are on), ``accuracy`` (of the larger target) and, in evaluation mode, ``most_frequent``, the accuracy of
    the best constant answer.

    Args:
        num_classes: K, of the label.
        label: which of the labels; null where the videos have but one.
        views: names of the views that are read, a clip each. The features of several are averaged.
        dropout: before the linear layer.
        head_std: of the linear layer's initial weights: 0.01 in BEVT's code, 0 in VIMPAC (App. A.2).
        label_smoothing: share of the target that is spread over all classes.
        class_weights: of the loss, K numbers of 0 or more; null weighs all classes alike.
        mixup: alpha of mixup, 0 is off.
        cutmix: alpha of CutMix, 0 is off; if both are on, each batch gets one of them.
        ema_momentum: m in ``average = (1 - m) average + m weights`` after each step; the average is what is
            saved as encoder and answers in evaluation mode. null keeps none.
    """

    toy: ClassVar = {"num_classes": 3, "label": "class"}

    splits_batch = True

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer | None = None,
        *,
        num_classes: int,
        label: str | None = None,
        views: tuple[str, ...] = ("clip",),
        dropout: float = 0.0,
        head_std: float = 0.01,
        label_smoothing: float = 0.0,
        class_weights: Quiet[tuple[float, ...] | None] = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        ema_momentum: float | None = None,
    ) -> None:
        super().__init__()
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) < 0):
            raise ValueError(
                f"class_weights must be {num_classes} numbers of 0 or more, a class each, got {class_weights}"
            )
        _check_keys(num_classes, views, dropout, head_std, label_smoothing, mixup, cutmix, ema_momentum)
        _check_parts(backbone, tokenizer)
        self.needs_views = dict.fromkeys(views, 1)
        self.num_classes = num_classes
        self.label = label
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.mixup = mixup
        self.cutmix = cutmix
        self.ema_momentum = ema_momentum
        self.tokenizer = None if tokenizer is None else FrozenTokenizer(tokenizer)
        self.classifier = Classifier(backbone, num_classes, dropout=dropout, head_std=head_std)
        self.average: Classifier | None = None
        if ema_momentum is not None:
            self.average = copy.deepcopy(self.classifier).requires_grad_(False)

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        clips, numbers = self._labelled(batch)
        if not len(numbers):  # nothing to learn from: a loss of zero that still has its gradient
            loss = self.class_logits([batch.views[name][0] for name in self.needs_views]).sum() * 0
            return LossOutput(loss, {"loss": loss.detach()})
        targets = F.one_hot(numbers, self.num_classes).float()
        if self.training:
            clips, targets = mix(clips, targets, mixup=self.mixup, cutmix=self.cutmix, generator=generator)
        logits = self.class_logits(clips)
        loss = F.cross_entropy(
            logits,
            targets,
            weight=None if self.class_weights is None else logits.new_tensor(self.class_weights),
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        metrics = {"loss": loss.detach(), "accuracy": accuracy(logits.detach(), targets.argmax(1))}
        if not self.training:
            metrics["most_frequent"] = most_frequent_accuracy(numbers)
        return LossOutput(loss, metrics)

    def class_logits(self, clips: Sequence[Tensor]) -> Tensor:
        """Logits [B, K] of one clip a view, in the order of ``needs_views``, float32 in [0, 1].

        In evaluation mode those of the averaged weights, where an average is kept.
        """
        tokenizer = self.tokenizer
        inputs = clips if tokenizer is None else [ids_of(clip, tokenizer) for clip in clips]
        return (self.classifier if self.training else self.answering())(inputs)

    def answering(self) -> Classifier:
        """The network that is saved and measured: the averaged weights where an average is kept."""
        return self.classifier if self.average is None else self.average

    def trained_encoder(self) -> Backbone:
        return self.classifier.backbone

    def encoder(self) -> Backbone:
        return self.answering().backbone

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """Moves the average."""
        if self.average is None or self.ema_momentum is None:
            return
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.classifier.parameters()), self.ema_momentum
            )
            for kept, current in zip(self.average.buffers(), self.classifier.buffers(), strict=True):
                kept.copy_(current)  # statistics of batch norms are averages already

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(
                metric="accuracy",
                label="videos classified",
                says="{} of the videos are classified right",
                baselines={"the most frequent class": "most_frequent"},
                unit="%",
            ),
        )

    def _labelled(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """The clips that have the label, a tensor a view, and its class numbers, int64 [B].

        Raises:
            UsageError: if no stream or more than one has the label, or a class number is too large.
        """
        numbers = self._numbers(batch)
        known = numbers >= 0
        highest, unknown = torch.stack((numbers.max(), (~known).sum())).tolist()  # one wait for the device
        if highest >= self.num_classes:
            raise UsageError(
                f"objective.num_classes is {self.num_classes}, and a video is of class {highest}"
            )
        clips = [batch.views[name][0] for name in self.needs_views]
        if not unknown:
            return clips, numbers
        return [clip[known] for clip in clips], numbers[known]

    def _numbers(self, batch: Batch) -> Tensor:
        given = [(name, numbers) for labels in batch.labels.values() for name, numbers in labels.items()]
        found = [numbers for name, numbers in given if self.label in (None, name)]
        if len(found) != 1:
            wanted = "just one label" if self.label is None else f"the label '{self.label}' once"
            has = ", ".join(name for name, _ in given) or "none"
            raise UsageError(f"objective.label: needs {wanted}, and the videos have: {has}")
        return found[0]


def _check_parts(backbone: Backbone, tokenizer: Tokenizer | None) -> None:
    if backbone.input_kind == "tokens" and tokenizer is None:
        raise ValueError(f"{type(backbone).__name__} reads token ids: a tokenizer must make them")
    if backbone.input_kind == "pixels" and tokenizer is not None:
        raise ValueError(f"{type(backbone).__name__} reads pixels, so that nothing would use the tokenizer")


def _check_keys(
    num_classes: int,
    views: tuple[str, ...],
    dropout: float,
    head_std: float,
    label_smoothing: float,
    mixup: float,
    cutmix: float,
    ema_momentum: float | None,
) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if not views or len(set(views)) < len(views):
        raise ValueError(f"views must name one or more different views, got {', '.join(views) or 'none'}")
    for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
    if min(head_std, mixup, cutmix) < 0:
        raise ValueError(
            f"head_std, mixup and cutmix must be at least 0, got {head_std}, {mixup} and {cutmix}"
        )
    if ema_momentum is not None and not 0 < ema_momentum <= 1:
        raise ValueError(f"ema_momentum must lie above 0 and at most at 1, or be null, got {ema_momentum}")
