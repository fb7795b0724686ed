"""Learning-rate schedules: their keys in a recipe, and the plan in steps that they make."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vidssl.config.schema import Count, check_fields
from vidssl.errors import counted


def cosine_between(first: float, last: float, step: int, total_steps: int) -> float:
    """Half a cosine from ``first`` at step 0 towards ``last``, which the step after the run would have.

    SVT moves its weight decay and its teacher's momentum along it.
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))


def warmup_line(step: int, warmup_steps: int, warmup_start: float) -> float:
    """Rises from ``warmup_start`` at step 0 to 1 at ``warmup_steps``, the first step behind the warm-up."""
    return 1.0 if step >= warmup_steps else 1 - (1 - step / warmup_steps) * (1 - warmup_start)


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_start: float, final: float) -> float:
    """Fraction of the peak learning rate at ``step`` (0 is the first).

    Half a cosine from 1 to ``final`` over the whole run; during warm-up it is multiplied by a line that
    rises from ``warmup_start`` to 1, as BEVT's released training does.
    """
    return cosine_between(1.0, final, step, total_steps) * warmup_line(step, warmup_steps, warmup_start)


def epoch_cosine_factor(
    step: int, epochs: float, steps_per_epoch: float, warmup_steps: int, warmup_start: float, final: float
) -> float:
    """``cosine_factor`` whose cosine stands still within an epoch; the warm-up rises at every step.

    BEVT's released finetuning and SVT's linear probe move so.
    """
    done = min(epochs_before(step, steps_per_epoch) / epochs, 1.0)
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    return cosine * warmup_line(step, warmup_steps, warmup_start)


def warmup_cosine_factor(
    step: int, total_steps: int, warmup_steps: int, warmup_start: float, final: float
) -> float:
    """A line from ``warmup_start`` to 1, both reached within the warm-up, then half a cosine to ``final``.

    The schedule of DINO's and SVT's releases. The cosine starts behind the warm-up, at 1: the peak comes
    twice, at the last step of the warm-up and at the next.
    """
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / max(1, warmup_steps - 1)
    return cosine_between(1.0, final, step - warmup_steps, total_steps - warmup_steps)


def linear_factor(step: int, total_steps: int, warmup_steps: int, final: float, cooldown_steps: int) -> float:
    """A line from 0 at step 0 to 1 at ``warmup_steps``, then one to ``final`` over the run's last steps.

    VIMPAC's schedule, where the cool-down begins behind the warm-up: the first step of a warm-up has no
    learning rate at all.
    """
    if step < warmup_steps:
        return step / warmup_steps
    left = min(max(total_steps - step, 0) / cooldown_steps, 1.0)
    return final + (1 - final) * left


def multistep_factor(
    step: int, drop_steps: tuple[int, ...], gamma: float, warmup_steps: int, warmup_start: float
) -> float:
    """``gamma`` once for each drop that lies behind or at ``step``, times the warm-up's line."""
    return gamma ** bisect_right(drop_steps, step) * warmup_line(step, warmup_steps, warmup_start)


def epochs_before(step: int, steps_per_epoch: float) -> int:
    """Whole epochs before a step; a step that an epoch begins with belongs to it, whatever is rounded."""
    return int(step / steps_per_epoch * (1 + 1e-12))


EpochOf = Literal["video", "image"]


@dataclass(frozen=True)
class StepPlan:
    """A schedule whose epochs have been turned into steps.

    Attributes:
        total_steps: of the whole run.
        steps_per_epoch: of the stream that epochs are counted of; need not be whole.
        curve: step -> fraction of the peak learning rate.
    """

    total_steps: int
    steps_per_epoch: float
    curve: Callable[[int], float]

    def factor(self, step: int) -> float:
        """Fraction of the peak learning rate at ``step`` (0 is the first)."""
        return self.curve(step)


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """A learning rate over a run: how long run and warm-up are, as a recipe counts them; subclasses bend it.

    Attributes:
        steps: optimizer steps of the whole run; or else
        epochs: passes over the stream named by ``epoch_of``.
        epoch_of: which stream's passes are epochs, "video" or "image".
        warmup_steps: of the warm-up; or else
        warmup_epochs: the same in passes; or else
        warmup_share: fraction of the whole run's steps, rounded down.

    Raises:
        ValueError: if a length is given twice or not at all, or is none.
    """

    steps: int | None = None
    epochs: float | None = None
    epoch_of: EpochOf = "video"
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    warmup_share: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the length of the run once: either 'steps' or 'epochs'")
        warmups = [w for w in (self.warmup_steps, self.warmup_epochs, self.warmup_share) if w is not None]
        if len(warmups) > 1:
            raise ValueError(
                "give the warm-up once: either 'warmup_steps' or 'warmup_epochs' or 'warmup_share'"
            )
        if (self.steps is not None and self.steps < 1) or (self.epochs is not None and self.epochs <= 0):
            raise ValueError(
                f"the run must be longer than nothing, got steps={self.steps}, epochs={self.epochs}"
            )
        if min(warmups, default=0) < 0:
            raise ValueError("the warm-up cannot be negative")
        if self.steps is not None:
            steps = (self.warmup_steps or 0) + int((self.warmup_share or 0) * self.steps)
            self._refuse_warmup_of(steps, self.steps)

    @property
    def bends_at_epochs(self) -> bool:
        """Whether the curve itself counts epochs, besides the run's length."""
        return False

    @property
    def counts_epochs(self) -> bool:
        """Whether anything is counted in epochs, so that the stream ``epoch_of`` must be there."""
        return self.epochs is not None or self.warmup_epochs is not None or self.bends_at_epochs

    def _refuse_warmup_of(self, warmup: int, total: int) -> None:
        """Raises ValueError if the warm-up would fill the whole run."""
        if warmup and warmup >= total:
            keys = ("warmup_steps", "warmup_epochs", "warmup_share")
            key = next(name for name in keys if getattr(self, name))
            way = f"schedule.{key}" + (f"={total // 10}" if key == "warmup_steps" else "")
            raise ValueError(
                f"a warm-up of {counted(warmup, 'step')} does not fit into a run of {total}; shorten it "
                f"with {way}"
            )

    def in_steps(self, steps_per_epoch: Mapping[str, float]) -> tuple[int, int, float]:
        """Steps of the run, of the warm-up and of an epoch, given those of one pass over each stream.

        A recipe without the stream ``epoch_of`` that counts no epochs has those of its other stream.

        Raises:
            ValueError: if epochs are counted of a stream that the recipe does not have, or warm-up would
                fill the whole run.
        """
        if self.epoch_of not in steps_per_epoch and self.counts_epochs:
            raise ValueError(
                f"epochs are counted of the '{self.epoch_of}' stream, and the recipe has only "
                f"{', '.join(steps_per_epoch)}: set 'epoch_of'"
            )
        epoch = steps_per_epoch.get(self.epoch_of) or next(iter(steps_per_epoch.values()))
        total = self.steps if self.steps is not None else max(1, round((self.epochs or 0) * epoch))
        warmup = round((self.warmup_epochs or 0) * epoch) + int((self.warmup_share or 0) * total)
        warmup += self.warmup_steps or 0
        self._refuse_warmup_of(warmup, total)
        return total, warmup, epoch

    @abstractmethod
    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        """The schedule in steps, given how many steps one pass over each stream takes.

        Raises:
            ValueError: as ``in_steps``.
        """


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Linear warm-up times half a cosine over the whole run, which is counted in steps or epochs (BEVT).

    Attributes:
        warmup_start: fraction of the peak at the first step (0.1 is BEVT's released code).
        final: fraction of the peak that the cosine ends at.
        moves_every: whether the cosine moves with each step (BEVT's pre-training) or with each epoch
            (its finetuning, and SVT's linear probe); the warm-up moves with each step.

    The other keys and what is refused: ``Schedule``.
    """

    warmup_start: float = 0.1
    final: float = 0.0
    moves_every: Literal["step", "epoch"] = "step"

    @property
    def bends_at_epochs(self) -> bool:
        return self.moves_every == "epoch"

    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        total, warmup, epoch = self.in_steps(steps_per_epoch)
        if self.bends_at_epochs:
            epochs = self.epochs or total / epoch
            curve = partial(epoch_cosine_factor, epochs=epochs, steps_per_epoch=epoch)
        else:
            curve = partial(cosine_factor, total_steps=total)
        shape = partial(curve, warmup_steps=warmup, warmup_start=self.warmup_start, final=self.final)
        return StepPlan(total, epoch, shape)


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Schedule):
    """Linear warm-up, both its ends included, then half a cosine over what is left (DINO, SVT).

    Attributes:
        warmup_start: fraction of the peak at the first step.
        final: fraction of the peak that the cosine ends at. SVT's release: 1e-6 of 6.25e-5, 0.016.

    The other keys and what is refused: ``Schedule``.
    """

    warmup_start: float = 0.0
    final: float = 0.0

    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        total, warmup, epoch = self.in_steps(steps_per_epoch)
        curve = partial(
            warmup_cosine_factor,
            total_steps=total,
            warmup_steps=warmup,
            warmup_start=self.warmup_start,
            final=self.final,
        )
        return StepPlan(total, epoch, curve)


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
    """Linear warm-up from 0, then a line down to the end of the run (VIMPAC), or only at its end.

    Attributes:
        warmup_share: fraction of the run's steps. VIMPAC: 0.1 for the small model, 0.05 for the large one.
        final: fraction of the peak that the line ends at; 1 holds the rate after the warm-up.
        cooldown_steps: last steps of the run, at least 1, over which the rate falls; it is constant
            before them, so that the run can be made longer up to there. Null: all steps after the warm-up.

    The other keys and what is refused: ``Schedule``.
    """

    final: float = 0.0
    cooldown_steps: Count | None = None

    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        total, warmup, epoch = self.in_steps(steps_per_epoch)
        cooldown = total - warmup if self.cooldown_steps is None else self.cooldown_steps
        if cooldown > total - warmup:
            raise ValueError(
                f"a cool-down of {counted(cooldown, 'step')} does not fit into the {total - warmup} "
                "after the warm-up; shorten it with 'cooldown_steps'"
            )
        curve = partial(
            linear_factor, total_steps=total, warmup_steps=warmup, final=self.final, cooldown_steps=cooldown
        )
        return StepPlan(total, epoch, curve)


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """The peak, multiplied by ``gamma`` at given steps or epochs; SVT's finetuning drops at epochs 11, 14.

    Attributes:
        drop_steps: first steps at the lower rates; or else
        drop_epochs: epochs, counted from 0, that begin with them.
        warmup_start: fraction of the peak at the first step of a warm-up, which multiplies.

    The other keys and what is refused: ``Schedule``.

    Raises:
        ValueError: if drops are given twice or not at all, or do not rise.
    """

    drop_steps: tuple[int, ...] | None = None
    drop_epochs: tuple[float, ...] | None = None
    gamma: float = 0.1
    warmup_start: float = 0.1

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if (self.drop_steps is None) == (self.drop_epochs is None):
            raise ValueError("give the drops of the rate once: either 'drop_steps' or 'drop_epochs'")
        drops = self.drop_epochs if self.drop_steps is None else self.drop_steps
        if not drops or min(drops) <= 0 or list(drops) != sorted(set(drops)):
            raise ValueError(f"the drops must rise and lie above 0, got {drops}")

    @property
    def bends_at_epochs(self) -> bool:
        return self.drop_epochs is not None

    def plan(self, steps_per_epoch: Mapping[str, float]) -> StepPlan:
        total, warmup, epoch = self.in_steps(steps_per_epoch)
        drops = self.drop_steps or tuple(math.ceil(at * epoch - 1e-6) for at in self.drop_epochs or ())
        if drops[-1] >= total:
            raise ValueError(f"the rate would drop at step {drops[-1]}, and the run ends after {total}")
        curve = partial(
            multistep_factor,
            drop_steps=drops,
            gamma=self.gamma,
            warmup_steps=warmup,
            warmup_start=self.warmup_start,
        )
        return StepPlan(total, epoch, curve)


SCHEDULES = {"cosine": Cosine, "warmup_cosine": WarmupCosine, "linear": LinearDecay, "multistep": MultiStep}
