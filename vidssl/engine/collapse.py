"""Signs that a network collapses to one answer for everything: measures, and a watch over them."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.engine.gather import sum_over_processes
from vidssl.interfaces import Band, LossOutput

RECENT_CLIPS = 512
_SHORTEST = 100  # steps
_RUN_SHARE = 0.05  # of the run
EARLY = (
    0.25  # fraction of a run in which predictions and features of masked clips have yet to find themselves
)
CURE = "Try a lower learning rate or a longer warm-up"


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, of distributions [..., K] to [...]; ln K at most."""
    return torch.special.entr(probabilities).sum(dim=-1)


@torch.no_grad()
def predicted_perplexity(logits: Tensor) -> Tensor:
    """How many equally frequent ids would be as varied as the likeliest ones of ``logits`` [M, V].

    Those of all processes together. 1 if all are the same, or there is none.
    """
    ids = logits.argmax(dim=1)
    counts = torch.zeros(logits.shape[1], device=ids.device)
    counts.index_add_(0, ids, torch.ones_like(ids, dtype=counts.dtype))
    counts = sum_over_processes(counts)
    return entropy(counts / counts.sum().clamp_min(1)).exp()


def feature_std(features: Tensor) -> Tensor:
    """How far clips lie apart: the standard deviation of L2-normalised features over clips, times sqrt(D).

    About 1 if they spread in all directions, 0 if all are alike (SimSiam, Sec. 4.1). Each view is measured
    by itself: that views differ from one another is no spread.

    Args:
        features: [B, V, D].
    """
    units = F.normalize(features, dim=-1)
    return units.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])


def rank_me(features: Tensor) -> Tensor:
    """The effective number of dimensions of features [N, D]: RankMe (Garrido et al. 2023, Sec. 3).

    The exponential of the entropy of the normalised singular values, from 1 to the smaller of N and D, so
    that few clips cannot have a large one. Rows of zeros change nothing. NaN if a feature is not finite.
    """
    if not bool(torch.isfinite(features).all()):
        return features.new_tensor(math.nan, dtype=torch.float32)
    rows = features.cpu().double()  # squares below need the precision, and some devices lack it
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return entropy(shares).exp().float().to(features.device)


class RecentFeatures:
    """The features of the last clips that this process learned from, and their measures of collapse.

    Adding costs next to nothing; ``measures`` takes an eigenvalue problem of ``RECENT_CLIPS`` rows at most.
    """

    def __init__(self) -> None:
        self._batches: deque[Tensor] = deque()

    def add(self, features: Tensor) -> None:
        """Keeps features [B, D]; the oldest are forgotten."""
        self._batches.append(features.detach().float())
        count = sum(map(len, self._batches))
        while count - len(self._batches[0]) >= RECENT_CLIPS:
            count -= len(self._batches.popleft())

    def measures(self) -> dict[str, float]:
        """``rankme`` and ``feature_std``; nothing before there are features of two clips."""
        if sum(map(len, self._batches)) < 2:
            return {}
        features = self._all()
        return {"rankme": float(rank_me(features)), "feature_std": float(feature_std(features[:, None]))}

    def tensors(self) -> dict[str, Tensor]:
        """State for a resume; ``load`` takes it back."""
        return {"features": self._all()} if self._batches else {}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores the state of ``tensors``."""
        self._batches = deque([tensors["features"].to(device)] if "features" in tensors else [])

    def _all(self) -> Tensor:
        return torch.cat(tuple(self._batches))[-RECENT_CLIPS:]


@dataclass
class _Memory:
    """Of one band: the metric's highest value, since when it is outside, whether that was reported."""

    best: float = -math.inf
    since: int = -1  # -1: it is inside
    said: bool = False


class CollapseWatch:
    """Watches a run's logged metrics and reports once each time one has left its band.

    A metric has left its band when it has been outside at every look for 100 steps and a twentieth of the
    run (ours). When it has come back and leaves again, it is reported again.

    Args:
        bands: an objective's.
    """

    def __init__(self, bands: Sequence[Band] = ()) -> None:
        self._features = RecentFeatures()
        self._bands = tuple(bands)
        self._memory = [_Memory() for _ in self._bands]

    def add(self, output: LossOutput) -> None:
        """Remembers the features of a step that was taken, if there are any."""
        if output.features is not None:
            self._features.add(output.features)

    def measures(self) -> dict[str, float]:
        """``rankme`` and ``feature_std`` of the last features; nothing where there are none."""
        return self._features.measures()

    def look(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> list[str]:
        """The sentences that are due after ``step`` steps, mostly none; metrics may be absent."""
        patience = max(_SHORTEST, _RUN_SHARE * total_steps)
        due = []
        for band, memory in zip(self._bands, self._memory, strict=True):
            value = metrics.get(band.metric, math.nan)
            if math.isnan(value) or step < band.after * total_steps:
                continue
            outside = band.left(value, memory.best)
            memory.best = max(memory.best, value)
            if not outside:
                memory.since, memory.said = -1, False
            elif memory.since < 0:
                memory.since = step
            elif step - memory.since >= patience and not memory.said:
                memory.said = True
                due.append(_sentence(band, step, step - memory.since, value, memory.best))
        return due

    def tensors(self) -> dict[str, Tensor]:
        """State for a resume; ``load`` takes it back."""
        rows = [[memory.best, memory.since, memory.said] for memory in self._memory]
        return self._features.tensors() | {"bands": torch.tensor(rows, dtype=torch.float64).view(-1, 3)}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores the state of ``tensors``; starts anew where there are now other bands."""
        self._features.load(tensors, device)
        rows = tensors["bands"].tolist() if "bands" in tensors else []
        if len(rows) == len(self._bands):
            self._memory = [_Memory(best, int(since), bool(said)) for best, since, said in rows]


def _sentence(band: Band, step: int, steps: int, value: float, best: float) -> str:
    cure = f" {band.cure}" if band.cure else ""
    return (
        f"step {step}: for {steps} steps {band.says} ({band.metric} is {value:.3g}, {band.edge(best)}).{cure}"
    )


# bands of a sound run


def feature_bands(cure: str = CURE, *, after: float = 0.0) -> tuple[Band, Band]:
    """Bands of RankMe and the features' standard deviation: a quarter of the run's highest value (ours).

    Args:
        after: fraction of the run that is left out of account.
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
