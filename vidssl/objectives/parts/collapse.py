"""What SVT's collapse shows in: measures of targets and features, and the bands of a sound run."""

import math

import torch
from torch import Tensor, nn

from vidssl.engine.collapse import RECENT_CLIPS, entropy, feature_std, rank_me
from vidssl.engine.gather import gather_rows
from vidssl.interfaces import Band, Progress

LOOK_EVERY_STEPS = 20  # at what takes milliseconds or waits for the device
EARLY = 0.25  # share of a run in which predictions and features of masked clips have yet to find themselves
CURE = "Try a lower learning rate or a longer warm-up"
_CURE = (
    "What has helped: Sinkhorn targets, batch norm in the head, fewer prototypes, a lower teacher_temp, a "
    "lower learning rate"
)


def feature_bands(cure: str = CURE, *, after: float = 0.0) -> tuple[Band, Band]:
    """Bands of RankMe and of the features' deviation: a quarter of the highest value of the run (ours).

    Args:
        after: share of the run that is left out of account.
    """
    return (
        Band(
            metric="rankme",
            says="the features have used ever fewer dimensions: clips look ever more alike to the network",
            cure=cure,
            share_of_best=0.25,
            zero=1.0,
            after=after,
        ),
        Band(
            metric="feature_std",
            says="the features have lain ever closer together: clips look ever more alike to the network",
            cure=cure,
            share_of_best=0.25,
            after=after,
        ),
    )


def distillation_bands(num_prototypes: int) -> tuple[Band, ...]:
    """Bands of what ``CollapseMonitor`` and the loss over that many prototypes, K, give (ours).

    Of a loss of ln K, the entropy of a mean over 64 targets is at most ln 64 = 4.2 nats, and 0.2 nats are the
    share of about 1.2 prototypes.
    """
    return (
        Band(
            metric="loss",
            says=f"the loss has stayed at ln({num_prototypes}), as if the student gave all prototypes the "
            "same share for every clip: nothing has been learned",
            cure=_CURE,
            apart_from=math.log(num_prototypes),
        ),
        Band(
            metric="batch_entropy",
            says="the teacher has given nearly all clips the same prototype: the network is collapsing",
            cure=_CURE,
            lowest=0.2,
        ),
        Band(
            metric="teacher_student_kl",
            says="the student has said the same as the teacher of every view, whatever it sees",
            cure=_CURE,
            lowest=0.01,
        ),
        *feature_bands(_CURE),
    )


def prediction_bands(name: str) -> tuple[Band, Band]:
    """Bands of the variety of the ids that are predicted, ``predicted_perplexity_NAME`` (ours).

    That all predictions are the most frequent id is how masked prediction begins.
    """
    metric = f"predicted_perplexity_{name}"
    return (
        Band(
            metric=metric,
            says="one and the same id has been predicted for every hidden cell: nothing has been learned",
            cure=CURE,
            lowest=1.02,
            after=EARLY,
        ),
        Band(
            metric=metric,
            says="ever fewer different ids have been predicted for the hidden cells",
            cure=CURE,
            share_of_best=0.25,
            zero=1.0,
            after=EARLY,
        ),
    )


def contrast_bands() -> tuple[Band]:
    """The band of the gap between the cosines of clips of one video and of different videos (ours)."""
    return (
        Band(
            metric="positive_negative_gap",
            says="clips of one video have been hardly more alike to the network than clips of different ones",
            cure=f"{CURE}, or more negatives",
            lowest=0.02,
            after=EARLY,
        ),
    )


class CollapseMonitor(nn.Module):
    """Measures targets and features of each batch.

    In training, RankMe is taken every ``LOOK_EVERY_STEPS`` steps of the last ``RECENT_CLIPS`` clips of all
    processes, whose features are part of the state: a resumed run logs the same. In evaluation mode it is
    that of the batch, and nothing is kept.

    Args:
        num_prototypes: K.
        dim: D.
    """

    recent: Tensor
    last_rank: Tensor

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        self.log_k = math.log(num_prototypes)
        self.register_buffer("recent", torch.zeros(RECENT_CLIPS, dim))
        self.register_buffer("last_rank", torch.tensor(0.0))

    @torch.no_grad()
    def forward(
        self, loss: Tensor, targets: Tensor, features: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Metrics: entropies of ``targets`` [N, K], spread and rank of ``features`` [V, B, D].

        Args:
            loss: the cross entropy of the student's answers with the targets.
        """
        by_clip = features.detach().float().transpose(0, 1)
        by_clip = gather_rows(by_clip.contiguous()) if self.training else by_clip
        each, mean = entropy(targets).mean(), entropy(targets.mean(dim=0))
        return {
            "teacher_entropy": each,
            "teacher_entropy_share": each / self.log_k,
            # the cross entropy less the entropy: what the student could still win
            "teacher_student_kl": loss.detach() - each,
            "batch_entropy": mean,
            "batch_entropy_share": mean / self.log_k,
            "feature_std": feature_std(by_clip),
            "rankme": self._rank(by_clip[:, 0], progress.step),
        }

    def _rank(self, features: Tensor, step: int) -> Tensor:
        if not self.training:
            return rank_me(features)
        newest = torch.cat((self.recent, features))[-RECENT_CLIPS:]
        # a batch that is no number is not kept: its step is not taken either
        self.recent.copy_(torch.where(torch.isfinite(features).all(), newest, self.recent))
        if step % LOOK_EVERY_STEPS == 0:
            self.last_rank.copy_(rank_me(self.recent))
        return self.last_rank.clone()
