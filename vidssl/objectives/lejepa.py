"""LeJEPA: views of a video agree, projections keep to a standard normal cloud (SIGReg); no teacher."""

import copy
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.engine.accumulate import JointLoss, PartOutput
from vidssl.engine.collapse import CURE, EARLY, feature_bands
from vidssl.engine.gather import OwnRows, num_processes, sum_over_processes
from vidssl.engine.speed import full_precision
from vidssl.interfaces import (
    Backbone,
    Band,
    Batch,
    EncodesVisible,
    LossOutput,
    Masker,
    Progress,
    Watched,
    Yardstick,
    places_of,
)
from vidssl.objectives.parts.distillation import check_shares, features_of_views, follow
from vidssl.objectives.vimpac import ProjectionHead

KNOTS = 17
_LAST_KNOT = 3.0
SIGREG_OF_NORMAL = 1.05  # of standard normal samples, whatever their number


def directions_of_step(step: int, dim: int, count: int, device: torch.device) -> Tensor:
    """Random unit vectors, float32 [dim, count], a function of the step alone: every process has the same."""
    drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(step))
    return F.normalize(drawn, dim=0).to(device)


def sigreg(projections: Tensor, directions: Tensor) -> Tensor:
    """The statistic of Epps and Pulley along each direction, times N, mean over directions (LeJEPA, Sec. 4).

    Along a direction the empirical characteristic function of N projections is held against that of a
    standard normal, exp(-t^2 / 2), at 17 points t from 0 to 3; squared differences are weighed by
    exp(-t^2 / 2) and integrated by trapezoids over both signs of t. Times N, standard normal samples have
    about 1.05 whatever N is. N counts the rows of all processes, whose means are taken together; each process
    gets the whole value.

    Args:
        projections: [..., B, K]; the mean is taken over what stands before B.
        directions: [K, M], unit vectors.
    """
    with torch.autocast(projections.device.type, enabled=False):
        rows = full_precision(projections)
        along = rows @ directions.to(rows.dtype)
        t = torch.linspace(0, _LAST_KNOT, KNOTS, dtype=along.dtype, device=along.device)
        normal = (-t.square() / 2).exp()
        weights = torch.full_like(t, 2 * _LAST_KNOT / (KNOTS - 1))
        weights[[0, -1]] /= 2
        angles = along.unsqueeze(-1) * t  # [..., B, M, knots]
        sums = torch.stack((angles.cos().sum(dim=-3), angles.sin().sum(dim=-3)))
        count = along.shape[-2] * num_processes()
        cos, sin = sum_over_processes(sums) / count
        squared = (cos - normal).square() + sin.square()
        return count * (squared * (weights * normal)).sum(dim=-1).mean()


_CURE = f"{CURE}, or a larger sigreg_weight"


class LeJEPA(JointLoss, Watched):
    """Invariance over views plus SIGReg (LeJEPA, Balestriero and LeCun 2025; of videos, LeVJEPA, 2026).

    Each view's vector is projected. The first term is the mean squared distance of all views to the mean of
    the global ones; the second, ``sigreg``, keeps each view's projections of a batch near a standard normal
    cloud, which rules collapse out. No teacher, no predictor, no stop-gradient, and one knob. All slots that
    the streams give are used. With a masker, the cells that it hides are dropped in training: 95 % of them
    in LeVJEPA, uniformly, ``masker: {type: random_cells, ratio: 0.95}``.

    Of the scalings in circulation this is the one of LeVJEPA and stable-pretraining: invariance plus
    ``sigreg_weight`` times a statistic that is multiplied by N. LeJEPA's example weighs invariance by 1 -
    ``sigreg_weight``.

    Metrics: ``loss``, ``loss_invariance`` and ``loss_sigreg``; 1.05 is that of standard normal samples.

    Args:
        views: which are read. Without locals, at least two globals.
        sigreg_weight: lambda.
        num_directions: random directions of a step.
        head_layers: linear layers of the projector, with batch norm and ReLU between.
        head_hidden_dim: width of all but the last.
        head_dim: width of the projections.
        average_momentum: share of itself that an average of the weights keeps in each update; the average is
            what is saved and evaluated, and has no part in training. LeVJEPA: 0.9999. Null for none.
        average_every_steps: steps from one update to the next. LeVJEPA: 32.
    """

    toy: ClassVar = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8, "num_directions": 16}
    visible_only = True  # where there is a masker

    def __init__(
        self,
        backbone: Backbone,
        masker: Masker | None = None,
        *,
        views: tuple[Literal["global", "local"], ...] = ("global", "local"),
        sigreg_weight: float = 0.02,
        num_directions: int = 1024,
        head_layers: int = 3,
        head_hidden_dim: int = 2048,
        head_dim: int = 256,
        average_momentum: float | None = None,
        average_every_steps: int = 1,
    ) -> None:
        super().__init__()
        _check_parts(backbone, masker, views)
        check_shares({"average_momentum": average_momentum or 0.0})
        if sigreg_weight < 0 or min(num_directions, average_every_steps) < 1:
            raise ValueError(
                "sigreg_weight is not negative, num_directions and average_every_steps are at least 1, got "
                f"{sigreg_weight}, {num_directions} and {average_every_steps}"
            )
        if average_momentum is None and average_every_steps != 1:
            raise ValueError("average_every_steps is of an average: set average_momentum, or leave it out")
        self.needs_views: Mapping[str, int] = dict.fromkeys(views, 1 if "local" in views else 2)
        self.masker = masker
        self.sigreg_weight = sigreg_weight
        self.num_directions = num_directions
        self.average_momentum = average_momentum
        self.average_every_steps = average_every_steps
        self.backbone = backbone
        self.average = None if average_momentum is None else copy.deepcopy(backbone).requires_grad_(False)
        self.head = ProjectionHead(
            backbone.embed_dim,
            num_layers=head_layers,
            hidden_dim=head_hidden_dim,
            out_dim=head_dim,
            norm_last=False,
        )
        self._step = self._num_globals = 0  # of the batch whose vectors come next

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        return self.joint_loss(self.forward_part(batch, progress, generator).vectors)

    def forward_part(self, batch: Batch, progress: Progress, generator: torch.Generator) -> PartOutput:
        self._step, self._num_globals = progress.step, len(batch.views["global"])
        slots = [slot for name in self.needs_views for slot in batch.views[name]]
        vectors = features_of_views(slots, lambda clips, views: self._vectors(clips, views, generator))
        return PartOutput(vectors.transpose(0, 1), torch.zeros((), device=vectors.device))

    def _vectors(self, clips: Tensor, views: int, generator: torch.Generator) -> Tensor:
        """[views * B, D] of clips of some views, one view behind the other."""
        if self.masker is None or not self.training:
            return self.backbone(clips).pooled()
        assert isinstance(self.backbone, EncodesVisible), "checked when it was made"
        rows = OwnRows(len(clips), views)
        hidden = rows.of(self.masker(rows.all, self.backbone.grid(*clips.shape[2:]), generator))
        return self.backbone.forward_visible(
            clips, places_of(~hidden).to(clips.device, non_blocking=True)
        ).pooled()

    def joint_loss(self, vectors: Tensor) -> LossOutput:
        """Of vectors [B, V, D], global views first."""
        by_view = vectors.transpose(0, 1)
        projected = full_precision(self.head(by_view.flatten(0, 1))).unflatten(0, by_view.shape[:2])
        centre = projected[: self._num_globals].mean(dim=0)
        invariance = (projected - centre).square().mean()
        directions = directions_of_step(
            self._step, projected.shape[-1], self.num_directions, projected.device
        )
        spread = sigreg(projected, directions)
        loss = invariance + self.sigreg_weight * spread
        metrics = {
            "loss": loss.detach(),
            "loss_invariance": invariance.detach(),
            "loss_sigreg": spread.detach(),
        }
        return LossOutput(loss, metrics, vectors[:, 0].detach())

    def encoder(self) -> Backbone:
        return self.backbone if self.average is None else self.average

    def trained_encoder(self) -> Backbone:
        return self.backbone

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        if self.average is None or (progress.step + 1) % self.average_every_steps:
            return
        follow(self.average, self.backbone, self.average_momentum or 0.0)
        for own, new in zip(self.average.buffers(), self.backbone.buffers(), strict=True):
            own.copy_(new)  # the average never sees a batch, and has no statistics of its own

    def yardsticks(self) -> tuple[Yardstick, ...]:
        return (
            Yardstick(
                metric="loss_invariance",
                label="distance of views",
                says="views lie {} (squared, a channel) from the mean of their video's global ones",
                lower_is_better=True,
            ),
            Yardstick(
                metric="loss_sigreg",
                label="SIGReg",
                # an aim, which no batch beats, and no baseline
                says=f"SIGReg of their projections is {{}}, {SIGREG_OF_NORMAL} of standard normal samples",
                lower_is_better=True,
            ),
        )

    def bands(self) -> tuple[Band, ...]:
        return feature_bands(_CURE, after=EARLY)


def _check_parts(backbone: Backbone, masker: Masker | None, views: tuple[str, ...]) -> None:
    if backbone.input_kind != "pixels":
        raise ValueError("lejepa matches views of pixels, and this backbone reads token ids")
    if "global" not in views or len(set(views)) < len(views) or not set(views) <= {"global", "local"}:
        raise ValueError(f"views are [global, local] or [global], got {[*views]}")
    if masker is not None and not masker.equal_counts:
        raise ValueError(f"{type(masker).__name__} hides different numbers of cells in the clips of a batch")
    if masker is not None and not (isinstance(backbone, EncodesVisible) and backbone.encodes_visible):
        raise ValueError(f"a masker drops cells, and {type(backbone).__name__} cannot leave cells out")
