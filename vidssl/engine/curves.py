"""Curves that learning rates, weight decays and momenta follow: pure functions of the step, 0 the first."""

import math
from bisect import bisect_right


def cosine_between(first: float, last: float, step: int, total_steps: int) -> float:
    """Half a cosine from ``first`` at step 0 towards ``last``, which the step after the run would have.

    SVT moves its weight decay and its teacher's momentum along it.
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))


def warmup_line(step: int, warmup_steps: int, warmup_start: float) -> float:
    """Rises from ``warmup_start`` at step 0 to 1 at ``warmup_steps``, the first step behind the warm-up."""
    return 1.0 if step >= warmup_steps else 1 - (1 - step / warmup_steps) * (1 - warmup_start)


def cosine_factor(step: int, total_steps: int, warmup_steps: int, warmup_start: float, final: float) -> float:
    """The share of the peak learning rate at ``step`` (0 is the first).

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
    share = min(epochs_before(step, steps_per_epoch) / epochs, 1.0)
    cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
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
