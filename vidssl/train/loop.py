"""The training loop."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from vidssl.config.recipe import RunSpec
from vidssl.data.loader import Loader, Stream
from vidssl.data.sources.origins import Overlap
from vidssl.engine import accumulate, distributed, gather, optim, process, runfolder, schedules, speed
from vidssl.engine.checkpoint import broken_weights, listed, save_checkpoint
from vidssl.engine.guard import Conditions, Guard, save_capture
from vidssl.engine.logging import Track, TrainDisplay, over_processes
from vidssl.engine.parallel import Parallel, whole
from vidssl.engine.resume import Moving, Restored, save_state
from vidssl.errors import UsageError, counted
from vidssl.interfaces import Augment, Progress
from vidssl.train.monitors import measure

Monitor = Callable[[], Mapping[str, float]]

_PRECISIONS = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        checkpoint: the newest checkpoint.
        steps: optimizer steps done.
        steps_before: those of them that earlier calls did.
        total_steps: steps the schedule asked for; more than ``steps`` if the run was stopped.
        skipped: those of ``steps`` that were not taken, as their loss or gradient was not finite.
        skipped_last: of these, the last ones of the run; its weights have given no finite loss then.
        test_metrics: the objective's metrics on held-out streams, empty if there were none.
        test_overlap: which of the held-out videos are trained on.
    """

    folder: Path
    checkpoint: Path
    steps: int
    steps_before: int
    total_steps: int
    test_metrics: Mapping[str, float]
    skipped: int = 0
    skipped_last: int = 0
    test_overlap: Overlap = field(default_factory=Overlap)


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Everything of a run that stays the same from its first step to its last; ``Moving`` is what changes.

    Attributes:
        parallel: calls the objective.
        update: learning rates, weight decay and clipping.
        dtype: of the forward pass under autocast, None for full precision.
        augment: applied to every batch on the device.
        start: the steps done before, and the seconds that they took.
        stop_after: steps of the run after which to stop.
        stop: set by a signal.
    """

    run: RunSpec
    world: distributed.World
    parallel: Parallel
    update: optim.Update
    plan: schedules.StepPlan
    device: torch.device
    dtype: torch.dtype | None
    augment: Augment | None
    streams: Mapping[str, Stream]
    test_streams: Mapping[str, Stream]
    folder: runfolder.RunFolder
    recipe_text: str
    start: Restored
    stop_after: int | None
    monitor: Monitor | None
    loader: Loader
    display: TrainDisplay
    track: Track
    stop: process.StopRequest

    @property
    def seconds(self) -> float:
        """Of the whole run up to now."""
        return self.start.seconds + time.monotonic() - self.display.started


def train_steps(fixed: Fixed, moving: Moving) -> TrainResult:
    """All steps from the first to the last, or to the one after which a stop is asked for.

    A checkpoint is the last thing that a step does: whatever is logged up to it is in the log by then.
    """
    run, plan, world, display = fixed.run, fixed.plan, fixed.world, fixed.display
    objective, optimizer, scaler, generator = (
        moving.objective, moving.optimizer, moving.scaler, moving.generator,
    )  # fmt: skip
    guard, done, tested = _guard(fixed, moving), fixed.start.step, {}
    for step in range(fixed.start.step, plan.total_steps):
        progress = Progress(step, plan.total_steps, plan.steps_per_epoch)
        fixed.update.set_rates(optimizer, plan, step)

        # fetch
        try:
            # of several processes the others may be at work on this step
            with fixed.stop.ends_wait() if world.size == 1 else nullcontext():
                loaded = next(fixed.loader)
        except process.StopAsked:  # a machine that is taken back does not wait for slow data
            _save(fixed, moving, step)
            break
        guard.begin(progress, loaded)
        batch = loaded.to(fixed.device)
        if fixed.augment is not None:
            with gather.in_parts(run.accumulate):
                batch = fixed.augment(batch, generator)

        # forward, backward, clip
        optimizer.zero_grad(set_to_none=True)
        micro_batches = accumulate.split_batch(batch, run.accumulate)
        output = accumulate.forward_backward(
            fixed.parallel, micro_batches, progress, generator, scaler=scaler, dtype=fixed.dtype
        )
        scaler.unscale_(optimizer)
        grad_norm = fixed.update.clip_gradients(objective.parameters())

        # look, step
        if guard.passes(output.loss, grad_norm, speed.scale_of(scaler)):
            scaler.step(optimizer)
            scaler.update()
            objective.after_step(progress, generator)
            moving.watch.add(output)
            moving.window.add(output.metrics, grad_norm, loaded, fixed.loader.waited_seconds)
        else:
            speed.lower(scaler)
            moving.window.add({}, None, loaded, fixed.loader.waited_seconds)
        done, finished = step + 1, step + 1 == plan.total_steps
        # looked at once: a signal that comes below waits for the next step
        stopped, collapse = world.any(bool(fixed.stop) or done == fixed.stop_after), ""

        # log
        display.step(done)
        if finished or done % run.log_every_steps == 0:
            means = _means(fixed, moving, step)
            _log(fixed, done, means)
            display.metrics(done, means)
            collapse = _look(fixed, moving, done, means)
        due = finished or done % run.checkpoint_every_steps == 0
        tested = _test(fixed) if due else {}
        if tested:
            _log(fixed, done, {f"test_{key}": value for key, value in tested.items()})
            display.tested(done, tested)
        if fixed.monitor is not None and run.knn_every_steps and done % run.knn_every_steps == 0:
            found, failed = json.loads(world.from_first(partial(_monitored, fixed.monitor)))
            if found:
                _log(fixed, done, found)
                display.probed(done, found)
            if failed:
                _say(fixed, done, "unscored", f"The kNN probe finds nothing, and training goes on: {failed}")

        # save
        if due or stopped or collapse:
            _save(fixed, moving, done)
        if collapse:
            raise UsageError(f"{collapse} The run stops, as run.on_collapse says; it is saved as it is")
        if stopped:
            break
    return _result(fixed, moving, done, tested)


def _result(fixed: Fixed, moving: Moving, done: int, tested: Mapping[str, float]) -> TrainResult:
    """
    Raises:
        UsageError: if not one step was taken.
    """
    checkpoint, skipped = fixed.folder.checkpoint_path(done), moving.skips.not_taken
    if done and skipped == done:
        raise UsageError(
            f"no step was taken: no loss and gradient of {counted(done, 'step')} was finite, and the "
            f"weights in {checkpoint} are those that the run began with. Lower optim.lr, lengthen the "
            "warm-up, set run.precision=fp32, or look for the input that does it"
        )
    return TrainResult(
        fixed.folder.path, checkpoint, steps=done, steps_before=fixed.start.step,
        total_steps=fixed.plan.total_steps, test_metrics=tested, skipped=skipped,
        skipped_last=moving.skips.in_a_row,
    )  # fmt: skip


def _guard(fixed: Fixed, moving: Moving) -> Guard:
    """Keeps steps whose loss or gradient is not finite from being taken."""
    conditions = Conditions(
        fixed.recipe_text,
        _PRECISIONS[fixed.dtype],
        fixed.device.type,
        parts=fixed.run.accumulate,
        rank=fixed.world.rank,
        world=fixed.world.size,
    )

    return Guard(
        moving.objective,
        moving.generator,
        moving.skips,
        most_in_a_row=fixed.run.max_skipped_steps,
        say=lambda step, text: _say(fixed, step, "skipped", text),
        capture=partial(save_capture, fixed.folder, fixed.streams, conditions),
        agree=fixed.world.any,
        state=lambda: whole(moving.objective.state_dict()),
    )


def _means(fixed: Fixed, moving: Moving, step: int) -> dict[str, float]:
    """Metrics of the steps since the last line of the log, over all processes, and the rates of this step."""
    measured = moving.window.means() | moving.watch.measures()
    means = over_processes(fixed.world.gather(measured)) | {"lr": fixed.update.lr_at(fixed.plan, step)}
    if fixed.update.final_weight_decay is not None:
        means["weight_decay"] = fixed.update.weight_decay_at(fixed.plan, step)
    means |= speed.scale_metrics(moving.scaler) | moving.skips.metrics()
    return means | {"memory_gib": speed.peak_memory(fixed.device) / 2**30}


def _look(fixed: Fixed, moving: Moving, done: int, metrics: Mapping[str, float]) -> str:
    """Reports signs of collapse; the first of them if the run is to stop for it, or an empty text."""
    signs = moving.watch.look(done, fixed.plan.total_steps, metrics)
    for sign in signs:
        _say(fixed, done, "collapse", sign)
    return signs[0] if signs and fixed.run.on_collapse == "stop" else ""


def _monitored(monitor: Monitor) -> str:
    """What it finds, and why it finds nothing: features that are not finite, say, which ends no training."""
    try:
        return json.dumps([dict(monitor()), ""])
    except UsageError as error:
        return json.dumps([{}, str(error)])


def _say(fixed: Fixed, step: int, kind: str, text: str) -> None:
    if fixed.world.first:
        fixed.folder.note(step, kind, text)
    fixed.display.say(text)


def _log(fixed: Fixed, done: int, metrics: Mapping[str, float]) -> None:
    if fixed.world.first:
        record = {"step": done, "seconds": fixed.seconds, **metrics}
        fixed.folder.log(record)
        fixed.track(record)


def _save(fixed: Fixed, moving: Moving, done: int) -> None:
    """A checkpoint and its resume state; written by rank 0, to which the others give their shards.

    Weights that are not finite are not saved, so that older checkpoints, which are, stay.
    """
    folder, run, world = fixed.folder, fixed.run, fixed.world
    found = broken_weights(moving.objective, moving.optimizer)
    if world.any(bool(found)):
        older = folder.newest_checkpoint()
        which = listed(found) if found else "tensors of another process"
        raise UsageError(
            f"step {done}: {which} of weights and optimizer hold NaN or inf, and nothing of them is saved. "
            "Lower optim.lr, lengthen the warm-up or set run.precision=fp32, and train again. "
            + (f"The newest finite checkpoint is {older}" if older else "No checkpoint was written before")
        )
    save_checkpoint(
        folder.checkpoint_path(done), moving.objective, step=done, recipe=fixed.recipe_text, write=world.first
    )
    save_state(folder, moving, step=done, seconds=fixed.seconds, world=world)
    # as long as steps are skipped, what was saved before them is the last that is known to work
    if world.first and not moving.skips.in_a_row:
        folder.prune(run.keep_checkpoints, run.keep_every_steps)


def _test(fixed: Fixed) -> dict[str, float]:
    """Metrics on held-out streams, none where there are no such streams."""
    if not fixed.test_streams:
        return {}
    fixed.parallel.share_buffers()
    found = measure(
        fixed.parallel,
        fixed.test_streams,
        batches=fixed.run.test_batches,
        device=fixed.device,
        autocast=speed.use_bfloat16(fixed.run.precision, fixed.device),
    )
    return over_processes(fixed.world.gather(found))
