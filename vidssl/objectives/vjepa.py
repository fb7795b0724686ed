"""V-JEPA: features of hidden cells are predicted, as a running average of the encoder sees them."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.engine.collapse import CURE, EARLY, feature_bands
from vidssl.engine.gather import OwnRows, mean_over_processes
from vidssl.engine.speed import full_precision
from vidssl.interfaces import (
    Backbone,
    Band,
    Batch,
    EncodesVisible,
    Features,
    Foresees,
    LossOutput,
    Masker,
    Objective,
    Progress,
    Split,
    Translated,
    VisibleFeatures,
    Watched,
    Yardstick,
)
from vidssl.layers.transformer import rows_at
from vidssl.objectives.parts.distillation import check_shares, follow
from vidssl.objectives.parts.predictor import Foresight, Predictor, distance_weights, joined_levels
from vidssl.weights.published_keys import to_predictor

_CURE = f"{CURE}, or a teacher_momentum nearer to 1"


class VJEPA(Objective, Watched, Foresees):
    """Predicts a teacher's features of hidden cells from those of seen ones (V-JEPA 2, Assran et al. 2025).

    The student encodes seen cells alone; the teacher, its running average, the whole clip. A narrow predictor
    says what the teacher has at the hidden cells, normed without parameters at each depth; the loss is the
    mean absolute error, and the mean over the groups of masks. V-JEPA 2.1: ``context_weight`` adds the same
    loss at the seen cells, and a backbone with ``levels`` is supervised at each. What is saved and evaluated
    is the teacher.

    Metrics:

    - ``loss``; ``loss_group0``, ``loss_group1``, ... at hidden cells, of each group of masks; with
      ``context_weight`` also ``loss_context``, at seen ones.
    - ``loss_of_mean``: that at hidden cells over that of predicting the batch's mean target; 1 is what can be
      had without looking. The loss itself rises while targets become richer, which is no harm; this does not.
    - ``target_std``: standard deviation of the normed targets over cells and clips, mean over channels: 0 if
      all cells are alike, at most about 1.
    - ``teacher_student_gap``: mean absolute difference of the teacher's and the student's normed features at
      the cells that the student sees.

    Args:
        teacher_momentum: share of itself that the teacher keeps in each step, and the knob that collapse
            depends on. Published: 0.99925 throughout, for runs of 100,000 steps; short ones need less.
        predictor_dim, predictor_depth, predictor_heads: width, blocks and heads of the predictor.
        predictor_positions: order of its rotary angles; V-JEPA 2's weights need "rotary_tiled", see ``vit``.
        predictor_span: as ``position_span`` of ``vit``; 16 in V-JEPA 2.1.
        predictor_modality: as ``modality`` of ``vit``; true in V-JEPA 2.1.
        context_weight: of the loss at seen cells; 0.5 in V-JEPA 2.1.
        context_from_step: the weight is 0 up to this step; 15,000 in V-JEPA 2.1.
        context_full_step: from here on it is whole, and rises in a line before; 30,000 in V-JEPA 2.1.
        context_by_distance: whether a seen cell's error is divided by the root of its distance to the next
            predicted one; V-JEPA 2.1, but not in its cool-down.
    """

    needs_views: Mapping[str, int] = {"clip": 1}
    splits_batch = True
    visible_only = True
    reads_splits = True
    toy: ClassVar = {"predictor_dim": 12, "predictor_depth": 1, "predictor_heads": 2}

    def __init__(
        self,
        backbone: Backbone,
        masker: Masker,
        *,
        teacher_momentum: float = 0.99925,
        predictor_dim: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        predictor_positions: Literal["rotary", "rotary_tiled"] = "rotary",
        predictor_span: int | None = None,
        predictor_modality: bool = False,
        context_weight: float = 0.0,
        context_from_step: int = 0,
        context_full_step: int = 0,
        context_by_distance: bool = True,
    ) -> None:
        super().__init__()
        _check_parts(backbone, masker)
        check_shares({"teacher_momentum": teacher_momentum})
        if context_weight < 0 or not 0 <= context_from_step <= context_full_step:
            raise ValueError(
                "context_weight is not negative, and context_from_step not behind context_full_step, got "
                f"{context_weight}, {context_from_step} and {context_full_step}"
            )
        self.masker = masker
        self.teacher_momentum = teacher_momentum
        self.context_weight = context_weight
        self.context_steps = (context_from_step, context_full_step)
        self.context_by_distance = context_by_distance
        self.student = backbone
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)
        self.predictor = Predictor(
            backbone.embed_dim,
            backbone.num_levels,
            num_tokens=masker.num_splits,
            dim=predictor_dim,
            depth=predictor_depth,
            num_heads=predictor_heads,
            tiled=predictor_positions == "rotary_tiled",
            span=predictor_span,
            dense=context_weight > 0,
            modality=predictor_modality,
        )
        self.train()

    def train(self, mode: bool = True) -> "VJEPA":
        """As of every module, but that the teacher never drops anything."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        slots = batch.views["clip"]
        clips = torch.cat(tuple(slots)) if len(slots) > 1 else slots[0]
        splits = self._splits(clips, len(slots), generator)
        with torch.no_grad():
            whole = self.teacher(clips)
            targets = normed_levels(whole).flatten(1, 3)
        losses, contexts, gaps = [], [], []
        for group, split in enumerate(splits):
            seen, predicted, context = self._predict(clips, split, group)
            losses.append((predicted - rows_at(targets, split.predicted)).abs().mean())
            wanted = rows_at(targets, split.seen)
            with torch.no_grad():
                gaps.append((normed_levels(seen) - wanted).abs().mean())
            if context is not None:
                errors = (context - wanted).abs().mean(dim=2)
                if self.context_by_distance:
                    errors = errors * distance_weights(split.seen, split.predicted, seen.grid)
                contexts.append(errors.mean())
        hidden = torch.stack(losses).mean()
        loss, metrics = hidden, {f"loss_group{i}": x.detach() for i, x in enumerate(losses)}
        if contexts:
            dense = torch.stack(contexts).mean()
            loss = loss + self.context_weight_at(progress.step) * dense
            metrics["loss_context"] = dense.detach()
        metrics |= {"loss": loss.detach(), "teacher_student_gap": torch.stack(gaps).mean()}
        metrics |= _against_mean(hidden.detach(), targets, splits)
        return LossOutput(loss, metrics, whole.pooled()[: len(slots[0])])

    def _splits(self, clips: Tensor, slots: int, generator: torch.Generator) -> tuple[Split, ...]:
        """This process's rows of what is drawn for all."""
        rows = OwnRows(len(clips), slots)
        drawn = self.masker.splits(rows.all, self.student.grid(*clips.shape[2:]), generator)
        own = ((rows.of(one.seen), rows.of(one.predicted)) for one in drawn)
        return tuple(
            Split(*(places.to(clips.device, non_blocking=True) for places in split)) for split in own
        )

    def _predict(
        self, clips: Tensor, split: Split, group: int
    ) -> tuple[VisibleFeatures, Tensor, Tensor | None]:
        """What the student has at the seen cells, and float32 predictions for the others, and for these."""
        assert isinstance(self.student, EncodesVisible), "checked when it was made"
        seen = self.student.forward_visible(clips, split.seen)
        predicted, context = self.predictor(joined_levels(seen), seen, split.predicted, group)
        return seen, full_precision(predicted), None if context is None else full_precision(context)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """The predictor of V-JEPA 2 or 2.1, as released (FILE#predictor) or as transformers has it."""
        found = to_predictor(state, self.masker.num_splits)
        if found is None:
            return None
        return Translated(
            {f"predictor.{key}": x for key, x in found.state.items()},
            found.layout,
            tuple(f"predictor.{key}" for key in found.reshaped),
            found.dropped,
        )

    def encoder(self) -> Backbone:
        return self.teacher

    def trained_encoder(self) -> Backbone:
        return self.student

    def foresight(self, *, seconds: float, fps: float, num_slots: int) -> Backbone:
        ahead = int(seconds * fps / self.teacher.strides[0])
        return Foresight(self.teacher, self.predictor, ahead=ahead, num_slots=num_slots)

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        follow(self.teacher, self.student, self.teacher_momentum)

    def context_weight_at(self, step: int) -> float:
        """The weight of the loss at seen cells in a step."""
        first, last = self.context_steps
        if step >= last:
            return self.context_weight
        return self.context_weight * max(0, step - first) / (last - first)

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(
                metric="loss_of_mean",
                label="error on hidden features",
                says="the loss on the features of hidden cells is {} of that of the mean target",
                baselines={"the mean target": 1.0},
                unit="%",
                lower_is_better=True,
            ),
            Yardstick(
                metric="target_std",
                label="deviation of targets",
                says="targets deviate by {} from cell to cell",
                baselines={"all alike": 0.0},
            ),
        )

    def bands(self) -> tuple[Band, ...]:
        return (
            Band(
                metric="target_std",
                says="the teacher has given all cells ever more alike features: the network is collapsing",
                cure=_CURE,
                share_of_best=0.25,
                after=EARLY,
            ),
            *feature_bands(_CURE, after=EARLY),
        )


def normed_levels(features: Features | VisibleFeatures) -> Tensor:
    """Features of all depths side by side, each normed over its channels without parameters, in float32."""
    levels = features.levels or (features.patches,)
    return torch.cat([F.layer_norm(full_precision(x), x.shape[-1:]) for x in levels], dim=-1)


@torch.no_grad()
def _against_mean(loss: Tensor, targets: Tensor, splits: tuple[Split, ...]) -> dict[str, Tensor]:
    """``loss_of_mean`` and ``target_std``, over all processes."""
    mean = mean_over_processes(targets.mean(dim=(0, 1)))
    square = mean_over_processes(targets.square().mean(dim=(0, 1)))
    from_mean = (targets - mean).abs().mean(dim=2)
    blind = torch.stack([from_mean.gather(1, split.predicted).mean() for split in splits]).mean()
    return {
        "loss_of_mean": mean_over_processes(loss) / mean_over_processes(blind).clamp(min=1e-12),
        "target_std": (square - mean.square()).clamp(min=0).sqrt().mean(),
    }


def _check_parts(backbone: Backbone, masker: Masker) -> None:
    if not isinstance(backbone, EncodesVisible) or not backbone.encodes_visible:
        raise ValueError(
            f"seen cells alone are encoded, and {type(backbone).__name__} cannot leave cells out"
        )
    if not masker.equal_counts and not masker.cuts_splits:
        raise ValueError(
            f"{type(masker).__name__} hides different numbers of cells in the clips of a batch, and does not "
            "cut them to the same"
        )
