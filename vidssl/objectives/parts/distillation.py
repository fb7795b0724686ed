"""Self-distillation: targets from a teacher, the loss against them, and how the teacher follows (DINO; SVT).

Logits are called so before any temperature. ``V`` views, ``B`` clips, ``K`` prototypes (outputs of the head).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.collapse import RECENT_CLIPS, entropy, feature_bands, feature_std, rank_me
from vidssl.engine.gather import gather_rows, max_over_processes, mean_over_processes, sum_over_processes
from vidssl.interfaces import Backbone, Band, Batch, Progress
from vidssl.layers.transformer import BatchNorm

LOOK_EVERY_STEPS = 20  # at what takes milliseconds or waits for the device
_CURE = (
    "What has helped: Sinkhorn targets, batch norm in the head, fewer prototypes, a lower teacher_temp, a "
    "lower learning rate"
)


class DinoHead(nn.Module):
    """From features to logits over prototypes (DINO, App. C; SVT, Sec. 3.1).

    Parameters carry the published names: ``mlp.0``, ``mlp.2``, ... and ``last_layer.weight_g``, ``weight_v``.

    Args:
        widths: of the features, of each hidden layer and of the direction, at least the first and the last.
        num_prototypes: width of the logits.
        batch_norm: whether batch norm stands behind each hidden layer.
        norm_last_layer: whether prototypes keep length 1, or learn it.

    Raises:
        ValueError: if a width is below 1, or there are fewer than 2 prototypes.
    """

    def __init__(
        self, widths: tuple[int, ...], num_prototypes: int, *, batch_norm: bool, norm_last_layer: bool
    ) -> None:
        super().__init__()
        if min(widths) < 1 or num_prototypes < 2:
            raise ValueError(
                f"a head needs widths above 0 and 2 prototypes, got {widths} and {num_prototypes}"
            )
        layers: list[nn.Module] = []
        for width, hidden in pairwise(widths[:-1]):
            norm = [BatchNorm(hidden)] if batch_norm else []
            layers += [nn.Linear(width, hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(widths[-1], num_prototypes)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor, *, freeze_last: bool = False) -> Tensor:
        """Logits [N, K] of features [N, D].

        Args:
            freeze_last: let no gradient reach the prototypes.
        """
        return self.last_layer(F.normalize(self.mlp(features), dim=-1), frozen=freeze_last)


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are a direction times a length (weight normalisation).

    PyTorch's own keeps hooks that make it hard to copy, and renames its parameters.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1))
        # the first directions are those of PyTorch's linear layer, as published: the MLP's 0.02 is not for it
        self.weight_v = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())

    def forward(self, x: Tensor, *, frozen: bool) -> Tensor:
        weight = self.weight_g * F.normalize(self.weight_v, dim=-1)
        return F.linear(x, weight.detach() if frozen else weight)


@dataclass(frozen=True)
class TeacherTemp:
    """The temperature of the teacher's softmax: a line over the first epochs, then constant (DINO, App. C).

    Attributes:
        last: behind the warm-up.
        first: in epoch 0; None without a warm-up.
        warmup_epochs: epochs of the line, the last of which has ``last``; a single one has ``first``.

    Raises:
        ValueError: if a temperature is not above 0, or one of the warm-up's two numbers lacks the other.
    """

    last: float
    first: float | None = None
    warmup_epochs: int = 0

    def __post_init__(self) -> None:
        if (self.first is None) != (self.warmup_epochs == 0) or self.warmup_epochs < 0:
            raise ValueError(
                "give warmup_teacher_temp and warmup_teacher_temp_epochs together, or neither: got "
                f"{self.first} and {self.warmup_epochs}"
            )
        if self.last <= 0 or (self.first is not None and self.first <= 0):
            raise ValueError(f"temperatures are above 0, got {self.first} and {self.last} of the teacher")

    def at(self, epoch: int) -> float:
        """The temperature in an epoch, the first being 0."""
        if self.first is None or epoch >= self.warmup_epochs:
            return self.last
        return self.first + (self.last - self.first) * epoch / max(1, self.warmup_epochs - 1)


def pair_terms(targets: Tensor, log_probs: Tensor) -> Tensor:
    """Cross-entropy of each student view against each teacher view, mean over clips (SVT, Eq. 2 and 3).

    Args:
        targets: [V', B, K], the teacher's, each row summing to 1.
        log_probs: [V, B, K], the student's.

    Returns:
        [V', V].
    """
    # one teacher view at a time: all pairs at once would take V' * V * B * K numbers
    return torch.stack([-(target * log_probs).sum(dim=-1).mean(dim=-1) for target in targets])


class CentredTargets(nn.Module):
    """Softmax of the teacher's logits after a running mean has been taken off (DINO, Sec. 3.1).

    The mean is the one before this batch joins it. What batches have contributed joins it in ``after_step``,
    so a step that is not taken leaves no trace, and one made of several batches counts them as one.

    Args:
        num_prototypes: K.
        momentum: share of the old centre that an update keeps.
    """

    centre: Tensor

    def __init__(self, num_prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(num_prototypes))
        self._seen: list[Tensor] = []
        self._seen_at = -1

    def forward(self, logits: Tensor, temperature: float, step: int) -> Tensor:
        """Targets [N, K] for float32 logits [N, K], all of this process's; training remembers them."""
        if self.training:
            if step != self._seen_at:  # what an abandoned step left
                self._seen = []
            self._seen_at = step
            self._seen.append(logits.mean(dim=0))
        return ((logits - self.centre) / temperature).softmax(dim=-1)

    def metrics(self) -> dict[str, Tensor]:
        return {"centre_norm": self.centre.norm()}

    def after_step(self) -> None:
        """Moves the centre to the mean over what all processes have seen in this step."""
        if self._seen:
            mean = mean_over_processes(torch.stack(self._seen).mean(dim=0))
            self.centre.lerp_(mean, 1 - self.momentum)
            self._seen = []


class SinkhornTargets(nn.Module):
    """The teacher's probabilities after Sinkhorn-Knopp has spread them evenly over the prototypes.

    As DINOv2 uses it in place of centring (its Sec. 4; SwAV, Sec. 3.1): all views and all processes
    together. In evaluation mode the batch of this process alone.

    Args:
        iterations: each scales prototypes, then clips.

    Raises:
        ValueError: if there is no iteration.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"sinkhorn_iterations must be at least 1, got {iterations}")
        self.iterations = iterations

    def forward(self, logits: Tensor, temperature: float, step: int) -> Tensor:
        """Targets [N, K] for float32 logits [N, K], all of this process's."""
        log_q = logits / temperature
        for _ in range(self.iterations):
            # in logarithms: no prototype is so far off that its sum vanishes
            log_q = log_q - (_log_sum_over_rows(log_q) if self.training else log_q.logsumexp(dim=0))
            log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
        return log_q.exp()

    def metrics(self) -> dict[str, Tensor]:
        return {}

    def after_step(self) -> None:
        """Nothing is kept from batch to batch."""


def _log_sum_over_rows(x: Tensor) -> Tensor:
    """The logarithm of the sum of ``exp(x)`` [N, K] over the rows of all processes, [K]."""
    top = max_over_processes(x.amax(dim=0))
    return top + sum_over_processes((x - top).exp().sum(dim=0)).log()


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError if one does not lie in [0, 1], naming it."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the teacher's parameters to ``momentum * teacher + (1 - momentum) * student``.

    Buffers stay: the statistics of a teacher's batch norms are its own.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


Correspondence = Literal["lg", "gg", "ll", "gl"]  # the student's view, then the teacher's
Slot = tuple[str, int]  # name of a view, number of its slot

_NAMES = {"l": "local", "g": "global"}


def needed_views(correspondences: Sequence[Correspondence]) -> dict[str, int]:
    """View name -> the fewest slots with which every correspondence has a pair.

    Raises:
        ValueError: if there is no correspondence, or one comes twice.
    """
    if not correspondences or len(set(correspondences)) < len(correspondences):
        raise ValueError(
            f"correspondences must name some of lg, gg, ll, gl, each once, got {list(correspondences)}"
        )
    needed: dict[str, int] = {}
    for student, teacher in correspondences:
        for letter in (student, teacher):
            name = _NAMES[letter]
            needed[name] = max(needed.get(name, 1), 2 if student == teacher else 1)
    return dict(sorted(needed.items()))


@dataclass(frozen=True)
class Matching:
    """Which slots are read, and which pairs of them are matched.

    Attributes:
        student, teacher: the slots that each reads, globals first.
        pairs: correspondence -> its pairs, each as places in ``teacher`` and in ``student``.
    """

    student: tuple[Slot, ...]
    teacher: tuple[Slot, ...]
    pairs: Mapping[Correspondence, tuple[tuple[int, int], ...]]

    def mean(self, terms: Tensor, correspondences: Sequence[Correspondence]) -> Tensor:
        """The mean of [V', V], teacher's by student's views, over all pairs of some correspondences."""
        places = [pair for name in correspondences for pair in self.pairs[name]]
        return torch.stack([terms[pair] for pair in places]).mean()


def match_views(num_slots: Mapping[str, int], correspondences: Sequence[Correspondence]) -> Matching:
    """All pairs that correspondences match, but none of a view with itself.

    Args:
        num_slots: view name -> slots that there are.
    """

    def slots(letters: set[str]) -> tuple[Slot, ...]:
        names = [_NAMES[letter] for letter in "gl" if letter in letters]
        return tuple((name, slot) for name in names for slot in range(num_slots[name]))

    student = slots({name[0] for name in correspondences})
    teacher = slots({name[1] for name in correspondences})
    pairs = {
        name: tuple(
            (j, i)
            for j, target in enumerate(teacher)
            for i, source in enumerate(student)
            if target != source and (source[0], target[0]) == (_NAMES[name[0]], _NAMES[name[1]])
        )
        for name in correspondences
    }
    return Matching(student, teacher, pairs)


def read_slots(batch: Batch, slots: Sequence[Slot]) -> list[Tensor]:
    """The clips of slots."""
    return [batch.views[name][slot] for name, slot in slots]


def features_of_views(views: Sequence[Tensor], vectors: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Features [V, B, D] of V views [B, 3, T, H, W] of the same B clips; those of one shape go together.

    Args:
        vectors: gives [n * B, D] for n views, one behind the other, and n.
    """
    groups: dict[torch.Size, list[int]] = {}
    for place, view in enumerate(views):
        groups.setdefault(view.shape, []).append(place)
    features: dict[int, Tensor] = {}
    for places in groups.values():
        made = vectors(torch.cat([views[place] for place in places]), len(places))
        features.update(zip(places, made.chunk(len(places)), strict=True))
    return torch.stack([features[place] for place in range(len(views))])


class Projector(nn.Module):
    """A backbone and a head on its feature: the class token, or the mean over patches where there is none."""

    def __init__(self, backbone: Backbone, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Tensor], *, freeze_last: bool = False) -> tuple[Tensor, Tensor]:
        """Features [V, B, D] and logits [V, B, K] of V views [B, 3, T, H, W] of the same B clips.

        Views of one shape go through the backbone together, and all of them through the head.

        Args:
            freeze_last: see ``DinoHead``.
        """
        stacked = features_of_views(views, lambda clips, _: self.backbone(clips).pooled())
        logits = self.head(stacked.flatten(0, 1), freeze_last=freeze_last)
        return stacked, logits.unflatten(0, stacked.shape[:2])


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
        # a batch that is not finite is not kept: its step is not taken either
        self.recent.copy_(torch.where(torch.isfinite(features).all(), newest, self.recent))
        if step % LOOK_EVERY_STEPS == 0:
            self.last_rank.copy_(rank_me(self.recent))
        return self.last_rank.clone()
