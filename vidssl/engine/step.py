"""One step of training: forward, backward, clip, look, step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidssl.engine.accumulate import JointLoss, backward_in_parts, mean_output, split_batch
from vidssl.engine.gather import in_parts
from vidssl.engine.guard import Guard
from vidssl.engine.optim import Update
from vidssl.engine.parallel import Parallel
from vidssl.engine.precision import lower, scale_of
from vidssl.engine.resume import Moving
from vidssl.interfaces import Augment, Batch, LossOutput, Progress

Metrics = Mapping[str, Tensor]


@dataclass(frozen=True)
class Stepper:
    """How a step is taken, from the first to the last.

    Attributes:
        parallel: calls the objective of the run.
        dtype: of the forward pass under autocast, None for full precision.
        augment: applied to every batch on the device.
        parts: that a batch goes through the network in.
    """

    parallel: Parallel
    update: Update
    device: torch.device
    dtype: torch.dtype | None
    augment: Augment | None
    parts: int

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def take(
        self, moving: Moving, guard: Guard, batch: Batch, progress: Progress
    ) -> tuple[Metrics, Tensor | None]:
        """One step down the gradient of a batch; its metrics, and the gradient's norm before clipping.

        There are none if the step is not taken.
        """
        guard.begin(progress, batch)
        batch = batch.to(self.device)
        if self.augment is not None:
            with in_parts(self.parts):
                batch = self.augment(batch, moving.generator)
        moving.optimizer.zero_grad(set_to_none=True)
        output = self._backward(moving, split_batch(batch, self.parts), progress)
        moving.scaler.unscale_(moving.optimizer)
        grad_norm = self.update.clip_gradients(moving.objective.parameters())
        if not guard.passes(output.loss, grad_norm, scale_of(moving.scaler)):
            lower(moving.scaler)
            return {}, None
        moving.scaler.step(moving.optimizer)
        moving.scaler.update()
        moving.objective.after_step(progress, moving.generator)
        moving.watch.add(output)
        return output.metrics, grad_norm

    def _backward(self, moving: Moving, parts: Sequence[Batch], progress: Progress) -> LossOutput:
        """Gradients of a batch in parts; its loss, without gradient, and metrics.

        Each part counts alike, as in the releases of BEVT and VIMPAC, unless the parts are to meet.
        """
        objective, scaled = moving.objective, moving.scaler.scale
        if len(parts) > 1 and isinstance(objective, JointLoss) and not objective.splits_batch:
            output = backward_in_parts(
                objective, parts, progress, moving.generator, autocast=self.autocast, scale=scaled
            )
            self.parallel.average_gradients()
            return output
        outputs = []
        for number, part in enumerate(parts, 1):
            with self.parallel.averaging(number == len(parts)):
                with self.autocast():
                    output = self.parallel(part, progress, moving.generator)
                scaled(output.loss / len(parts)).backward()
            outputs.append(LossOutput(output.loss.detach(), output.metrics, output.features))
        return mean_output(outputs)
