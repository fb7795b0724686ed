"""A step whose loss or gradient is not finite is taken by no process and leaves no trace."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vidssl.engine.capture import Attempt, random_states
from vidssl.engine.checkpoint import broken_weights, listed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Batch, Objective, Progress

_LEAST_SCALE = 1.0  # a loss that is not even scaled up overflows for another reason


@dataclass
class Skips:
    """How many steps of a run were not taken.

    Attributes:
        total: because the loss or the gradient was not finite.
        in_a_row: of these, the last ones without a step between them.
        scaled_down: because float16 gradients overflowed, whereupon the scale of the loss is lowered.
    """

    total: int = 0
    in_a_row: int = 0
    scaled_down: int = 0

    @property
    def not_taken(self) -> int:
        """Steps that changed nothing, for either reason."""
        return self.total + self.scaled_down

    def metrics(self) -> dict[str, float]:
        """For the log: only what there has been."""
        counts = {"skipped_steps": self.total, "scaled_down_steps": self.scaled_down}
        return {name: float(count) for name, count in counts.items() if count}

    def tensors(self) -> dict[str, Tensor]:
        """State for a resume; ``load`` takes it back."""
        return {"counts": torch.tensor([self.total, self.in_a_row, self.scaled_down])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores the state of ``tensors``."""
        if "counts" in tensors:
            self.total, self.in_a_row, self.scaled_down = (int(count) for count in tensors["counts"])


class Buffers:
    """A copy of what an objective's buffers hold.

    A forward pass may change them (statistics of batch norms, of codebooks, of features), and all of that
    belongs to the step. What an objective collects elsewhere it applies in ``after_step`` alone.
    """

    def __init__(self, objective: Objective) -> None:
        self._places = [(module, name) for module in objective.modules() for name in module._buffers]
        self._live: list[Tensor | None] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copies all as they are."""
        live = [module._buffers[name] for module, name in self._places]
        if list(map(id, live)) != list(map(id, self._live)):  # at first, and where one was put anew
            self._live = live
            self._copies = [torch.empty_like(buffer) for buffer in live if buffer is not None]
        if self._copies:
            torch._foreach_copy_(self._copies, self._tensors())

    @torch.no_grad()
    def restore(self) -> None:
        """Puts all back to what ``keep`` found."""
        for (module, name), buffer in zip(self._places, self._live, strict=True):
            module._buffers[name] = buffer
        if self._copies:
            torch._foreach_copy_(self._tensors(), self._copies)

    def _tensors(self) -> list[Tensor]:
        return [buffer for buffer in self._live if buffer is not None]


class Guard:
    """Looks at each step's loss and gradient before the optimizer does.

    ``begin`` goes before the batch is augmented, ``passes`` between the backward pass and the optimizer. If
    that says no, neither optimizer nor ``after_step`` may run; then weights, averages, centre and codebook
    are as they were. Random states are not put back: what follows draws on.

    Args:
        generator: the objective's.
        skips: counts, which a resume restores.
        most_in_a_row: of skipped steps; with the last of them the run stops.
        say: gets a line for each skipped step, after the number of that step, from 1.
        capture: keeps a step for ``vidssl replay`` and logs where; all processes call it together.
        agree: whether a flag is up in any process.
        state: the objective's weights and buffers; all processes call it together.
    """

    def __init__(
        self,
        objective: Objective,
        generator: torch.Generator,
        skips: Skips,
        *,
        most_in_a_row: int,
        say: Callable[[int, str], None],
        capture: Callable[[Attempt], Path],
        agree: Callable[[bool], bool] = bool,
        state: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._objective = objective
        self._generator = generator
        self._skips = skips
        self._most = most_in_a_row
        self._say = say
        self._capture = capture
        self._agree = agree
        self._state = state or objective.state_dict
        self._buffers = Buffers(objective)
        self._begun: tuple[Progress, Batch, dict[str, Tensor]] | None = None

    def begin(self, progress: Progress, batch: Batch) -> None:
        """Remembers what is before the step.

        Args:
            batch: as the loader gives it, uint8.
        """
        self._buffers.keep()
        self._begun = (progress, batch, random_states(self._generator))

    def passes(self, loss: Tensor, grad_norm: Tensor, scale: float | None = None) -> bool:
        """Whether the step may be taken, the same in all processes.

        Args:
            loss: before any scaling.
            grad_norm: before clipping, after unscaling.
            scale: that the loss was multiplied by for float16; None where it was not. An infinite
                gradient under a finite loss then asks for a lower scale; it is counted by itself.

        Raises:
            UsageError: at the last skipped step in a row that may be, and at the first one if weights are NaN
                or inf, since no later step can be taken; a capture of it is left.
        """
        # the one place where a step waits for its device
        number = torch.stack((loss, grad_norm.to(loss))).isfinite().tolist()
        overflow = scale is not None and scale > _LEAST_SCALE
        bad = self._agree(not number[0] or not (number[1] or overflow))
        if not bad and not (scale is not None and self._agree(not number[1])):
            self._skips.in_a_row = 0
            return True
        self._buffers.restore()
        if not bad:
            self._skips.scaled_down += 1
            return False
        self._skip(float(loss), float(grad_norm), scale)
        return False

    def _skip(self, loss: float, grad_norm: float, scale: float | None) -> None:
        assert self._begun is not None, "begin comes before passes"
        progress, batch, random = self._begun
        self._skips.total += 1
        self._skips.in_a_row += 1
        found = f"step {progress.step + 1}: the loss is {loss:.4g}, the gradient norm {grad_norm:.4g}"
        if math.isfinite(loss) and math.isfinite(grad_norm):
            found = f"step {progress.step + 1}: another process's loss or gradient is not finite"
        row, total = self._skips.in_a_row, self._skips.total
        weights = broken_weights(self._objective)
        hopeless = self._agree(bool(weights))
        if row < self._most and not hopeless:
            self._say(progress.step + 1, f"{found}. The step is not taken ({row} in a row, {total} in all).")
            return
        path = self._capture(Attempt(progress, batch, random, loss, grad_norm, self._state(), scale))
        why = f"so it has been for {counted(row, 'step')} in a row (run.max_skipped_steps)"
        if hopeless:
            which = listed(weights) if weights else "tensors of another process"
            why = f"in the weights {which} hold NaN or inf, so that no later step can be taken"
        before = progress.step + 1 - row
        raise UsageError(
            f"{found}, and {why}: the run stops. "
            f"'vidssl replay {path}' shows where it begins. Lower optim.lr, lengthen the warm-up or set "
            "run.precision=fp32. "
            + (
                f"The weights since step {before} gave no finite loss: of the checkpoints use one before that"
                if before
                else "Not one step gave a finite loss"
            )
        )
