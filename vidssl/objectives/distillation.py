"""Self-distillation: targets from a teacher, the loss against them, and how the teacher follows (DINO; SVT).

Logits are called so before any temperature. ``V`` views, ``B`` clips, ``K`` prototypes (outputs of the head).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidssl.engine.gather import max_over_processes, num_processes, sum_over_processes


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
            mean = sum_over_processes(torch.stack(self._seen).mean(dim=0)) / num_processes()
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


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the teacher's parameters to ``momentum * teacher + (1 - momentum) * student``.

    Buffers stay: the statistics of a teacher's batch norms are its own.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
