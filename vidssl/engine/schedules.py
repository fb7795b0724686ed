"""Learning-rate schedules: pure functions of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_start: float, final: float) -> float:
    """The share of the peak learning rate at ``step`` (0 is the first).

    Half a cosine from 1 to ``final`` over the whole run; during warm-up it is multiplied by a line that
    rises from ``warmup_start`` to 1, as BEVT's released training does.
    """
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))
    if step >= warmup_steps:
        return cosine
    return cosine * (1 - (1 - step / warmup_steps) * (1 - warmup_start))


@dataclass(frozen=True)
class StepPlan:
    """A schedule whose epochs have been turned into steps."""

    total_steps: int
    warmup_steps: int
    warmup_start: float
    final: float

    def factor(self, step: int) -> float:
        """The share of the peak learning rate at ``step``."""
        return cosine_factor(step, self.total_steps, self.warmup_steps, self.warmup_start, self.final)


class Cosine:
    """Linear warm-up times half a cosine over the whole run, which is counted in steps or epochs."""

    def __init__(
        self,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        epoch_of: Literal["video", "image"] = "video",
        warmup_steps: int | None = None,
        warmup_epochs: float | None = None,
        warmup_start: float = 0.1,
        final: float = 0.0,
    ) -> None:
        """
        Args:
            steps: optimizer steps of the whole run; or else
            epochs: passes over the stream named by ``epoch_of``.
            warmup_start: share of the peak at the first step (0.1 is BEVT's released code).
            final: share of the peak that the cosine ends at.

        Raises:
            ValueError: if the length is given twice or not at all, or the warm-up is not shorter.
        """
        if (steps is None) == (epochs is None):
            raise ValueError("give the length of the run once: either 'steps' or 'epochs'")
        if warmup_steps is not None and warmup_epochs is not None:
            raise ValueError("give the warm-up once: either 'warmup_steps' or 'warmup_epochs'")
        if (steps is not None and steps < 1) or (epochs is not None and epochs <= 0):
            raise ValueError(f"the run must be longer than nothing, got steps={steps}, epochs={epochs}")
        if min(warmup_steps or 0, warmup_epochs or 0) < 0:
            raise ValueError("the warm-up cannot be negative")
        self.steps = steps
        self.epochs = epochs
        self.epoch_of = epoch_of
        self.warmup_steps = warmup_steps
        self.warmup_epochs = warmup_epochs
        self.warmup_start = warmup_start
        self.final = final

    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        """The schedule in steps, given how many steps one pass over each stream takes.

        Raises:
            ValueError: if epochs are counted of a stream that the recipe does not have, or warm-up would
                fill the whole run.
        """
        epoch = steps_per_epoch.get(self.epoch_of)
        if epoch is None and (self.epochs is not None or self.warmup_epochs is not None):
            raise ValueError(
                f"epochs are counted of the '{self.epoch_of}' stream, and the recipe has only "
                f"{', '.join(steps_per_epoch)}: set 'epoch_of'"
            )
        total = self.steps if self.steps is not None else max(1, round((self.epochs or 0) * (epoch or 0)))
        warmup = self.warmup_steps if self.warmup_epochs is None else round(self.warmup_epochs * (epoch or 0))
        if warmup and warmup >= total:
            raise ValueError(f"a warm-up of {warmup} steps does not fit into a run of {total}")
        return StepPlan(total, warmup or 0, self.warmup_start, self.final)


SCHEDULES = {"cosine": Cosine}
