"""Signs that a network has come to say the same of everything: measures, and who looks at them."""

import logging
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.gather import gather_rows, rank
from vidssl.interfaces import Progress

LOOK_EVERY_STEPS = 20  # at what takes milliseconds or waits for the device
RECENT_CLIPS = 512
_SHORTEST = 100  # steps
_RUN_SHARE = 0.05  # of the run
_FALL = 0.25

logger = logging.getLogger(__name__)


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, of distributions [..., K] to [...]; ln K at most."""
    return torch.special.entr(probabilities).sum(dim=-1)


def feature_std(features: Tensor) -> Tensor:
    """How far clips lie apart: the deviation of L2-normalised features over clips, times sqrt(D).

    About 1 if they spread in all directions, 0 if all are alike (SimSiam, Sec. 4.1). Each view is measured
    by itself: that views differ from one another is no spread.

    Args:
        features: [B, V, D].
    """
    units = F.normalize(features, dim=-1)
    return units.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])


def rank_me(features: Tensor) -> Tensor:
    """The effective number of dimensions of features [N, D]: RankMe (Garrido et al. 2023, Sec. 3).

    The exponential of the entropy of the singular values' shares. It lies from 1 to the smaller of N and D,
    so features of few clips cannot have a large one. Rows of zeros change nothing. Not a number where a
    feature is none.
    """
    if not bool(torch.isfinite(features).all()):
        return features.new_tensor(math.nan, dtype=torch.float32)
    rows = features.cpu().double()  # squares below need the precision, and some devices lack it
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return entropy(shares).exp().float().to(features.device)


class CollapseWatch:
    """Looks at a run's measures now and then, and says once of each sign of collapse that it is there.

    A sign is spoken of once it has been there at every look for 100 steps and a twentieth of the run:

    - ``loss``: within 1 % of ln K, what a student pays that gives every prototype the same share.
    - ``targets``: the entropy of their mean over a batch is below 5 % of what it could be.
    - ``rank``: RankMe, counted from 1, is below a quarter of the highest there has been.
    - ``spread``: the features' deviation is below a quarter of the highest there has been.

    What it remembers begins with the process, not with the run.

    Args:
        num_prototypes: K.
    """

    def __init__(self, num_prototypes: int) -> None:
        self.num_prototypes = num_prototypes
        self._highest = {"rank": 0.0, "spread": 0.0}
        self._since: dict[str, int] = {}
        self._said: set[str] = set()

    def look(self, step: int, total_steps: int, measures: Mapping[str, float]) -> list[str]:
        """The sentences that are due at this step, mostly none.

        Args:
            measures: ``loss`` in nats; ``targets``, the entropy of the mean target as a share of what it
                could be; ``rank``, RankMe less 1; ``spread``, the features' deviation.
        """
        present = self._present(measures)
        self._since = {sign: self._since.get(sign, step) for sign in present}
        patience = max(_SHORTEST, _RUN_SHARE * total_steps)
        due = [sign for sign in present if step - self._since[sign] >= patience and sign not in self._said]
        self._said.update(due)
        return [f"step {step}: {self._sentence(sign, step - self._since[sign], measures)}" for sign in due]

    def _present(self, measures: Mapping[str, float]) -> list[str]:
        log_k = math.log(self.num_prototypes)
        signs = []
        if abs(measures["loss"] - log_k) < 0.01 * log_k:
            signs.append("loss")
        if measures["targets"] < 0.05:
            signs.append("targets")
        for name, highest in self._highest.items():
            if measures[name] < _FALL * highest:
                signs.append(name)
            self._highest[name] = max(highest, measures[name])
        return signs

    def _sentence(self, sign: str, steps: int, measures: Mapping[str, float]) -> str:
        cure = (
            "What has helped: Sinkhorn targets, batch norm in the head, fewer prototypes, "
            "a lower teacher_temp, a lower learning rate"
        )
        value = measures[sign] + (sign == "rank")
        if sign == "loss":
            return (
                f"the loss has stayed within 1 % of ln({self.num_prototypes}) = "
                f"{math.log(self.num_prototypes):.3f} for {steps} steps, as if the student gave all "
                f"prototypes the same share for every clip: nothing is learned. {cure}"
            )
        if sign == "targets":
            return (
                f"for {steps} steps the teacher has given nearly all clips the same prototype (the entropy "
                f"of the mean target is {value:.1%} of what it could be): the network is collapsing. {cure}"
            )
        highest = self._highest[sign] + (sign == "rank")
        named = "RankMe of the features" if sign == "rank" else "the deviation of the features over clips"
        return (
            f"for {steps} steps {named} has been far below the highest of this run ({value:.3g}, it was "
            f"{highest:.3g}): clips look ever more alike to the network. {cure}"
        )


class CollapseMonitor(nn.Module):
    """Measures targets and features of each batch, and warns when they show a sign of collapse.

    In training, RankMe is taken every ``LOOK_EVERY_STEPS`` steps of the last ``RECENT_CLIPS`` clips of all
    processes, whose features are part of the state: a resumed run logs the same. In evaluation mode it is
    that of the batch, and nothing is kept or said.

    Args:
        num_prototypes: K.
        dim: D.
    """

    recent: Tensor
    last_rank: Tensor

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.watch = CollapseWatch(num_prototypes)
        self.log_k = math.log(num_prototypes)
        self.register_buffer("recent", torch.zeros(RECENT_CLIPS, dim))
        self.register_buffer("last_rank", torch.tensor(0.0))

    @torch.no_grad()
    def forward(
        self, loss: Tensor, targets: Tensor, features: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Metrics: entropies of ``targets`` [N, K], spread and rank of ``features`` [V, B, D]."""
        by_clip = features.detach().float().transpose(0, 1)
        by_clip = gather_rows(by_clip.contiguous()) if self.training else by_clip
        each, mean = entropy(targets).mean(), entropy(targets.mean(dim=0))
        metrics = {
            "teacher_entropy": each,
            "teacher_entropy_share": each / self.log_k,
            "batch_entropy": mean,
            "batch_entropy_share": mean / self.log_k,
            "feature_std": feature_std(by_clip),
            "rankme": self._rank(by_clip[:, 0], progress.step),
        }
        if self.training and progress.step % LOOK_EVERY_STEPS == 0 and rank() == 0:
            # what few targets can differ by is less than what K prototypes allow
            possible = math.log(max(2, min(len(targets), self.watch.num_prototypes)))
            measures = {
                "loss": float(loss),
                "targets": float(mean) / possible,
                "rank": float(metrics["rankme"]) - 1,
                "spread": float(metrics["feature_std"]),
            }
            for sentence in self.watch.look(progress.step, progress.total_steps, measures):
                logger.warning(sentence)
        return metrics

    def _rank(self, features: Tensor, step: int) -> Tensor:
        if not self.training:
            return rank_me(features)
        newest = torch.cat((self.recent, features))[-RECENT_CLIPS:]
        # a batch that is no number is not kept: its step is not taken either
        self.recent.copy_(torch.where(torch.isfinite(features).all(), newest, self.recent))
        if step % LOOK_EVERY_STEPS == 0:
            self.last_rank.copy_(rank_me(self.recent))
        return self.last_rank.clone()
