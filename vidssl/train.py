"""The training loop, and what happens around it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vidssl.abilities import Watched
from vidssl.data.loader import Loader, Stream
from vidssl.engine.capture import Conditions, save_capture
from vidssl.engine.checkpoint import save_checkpoint
from vidssl.engine.collapse import CollapseWatch
from vidssl.engine.devices import pick_device, use_bfloat16
from vidssl.engine.display import TrainDisplay
from vidssl.engine.gather import num_processes, rank
from vidssl.engine.grad_cache import JointLoss, backward_in_parts
from vidssl.engine.guard import Guard
from vidssl.engine.lock import sole_process
from vidssl.engine.optim import Optim, Update
from vidssl.engine.parts import mean_output, split_batch
from vidssl.engine.resume import Moving, Restored, restore, save_state
from vidssl.engine.runfolder import RunFolder, create_run
from vidssl.engine.schedules import Schedule, StepPlan
from vidssl.engine.signals import StopRequest, stop_requests
from vidssl.engine.window import Window
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, LossOutput, Objective, Progress
from vidssl.recipe import RunSpec

Augment = Callable[[Batch, torch.Generator], Batch]
Metrics = Mapping[str, Tensor]
Monitor = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        folder: the run's folder.
        checkpoint: the newest checkpoint.
        steps: optimizer steps done.
        total_steps: steps the schedule asked for; more than ``steps`` if the run was stopped.
        test_metrics: the objective's metrics on held-out streams, empty if there were none.
    """

    folder: Path
    checkpoint: Path
    steps: int
    total_steps: int
    test_metrics: Mapping[str, float]


@dataclass(frozen=True)
class _Fixed:
    """What stays the same from the first step of a run to the last."""

    run: RunSpec
    streams: Mapping[str, Stream]
    plan: StepPlan
    update: Update
    folder: RunFolder
    device: torch.device
    autocast: bool
    augment: Augment | None
    test_streams: Mapping[str, Stream]
    recipe_text: str
    stop_after: int | None
    monitor: Monitor | None


def train(
    objective: Objective,
    streams: Mapping[str, Stream],
    *,
    optim: Optim,
    schedule: Schedule,
    name: str,
    seed: int = 0,
    run: RunSpec | None = None,
    augment: Augment | None = None,
    test_streams: Mapping[str, Stream] | None = None,
    recipe_text: str = "",
    resume: Path | None = None,
    stop_after: int | None = None,
    monitor: Monitor | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Minimise an objective over streams of views; log, test and save on the way.

    Args:
        objective: moved to the device, trained in place.
        streams: name -> stream; one batch of each goes into every step.
        name: of the run; its folder is made in ``run.out``.
        run: where the folder goes, device, precision, and how often to log, test and save.
        augment: applied to every batch on the device.
        test_streams: held-out streams that give the same views.
        recipe_text: the resolved recipe, kept in the checkpoints so that ``vidssl eval`` can read them.
        resume: folder of a run to go on with, at the very step of its newest checkpoint: all further steps
            are those that the run would have taken. No folder is made then, ``name`` is not used.
        stop_after: steps of the run after which to stop as Ctrl-C would.
        monitor: called every ``run.knn_every_steps`` steps; what it measures is logged.

    Raises:
        UsageError: if the loss is no number for too many steps, the network collapses and the run is to stop
            then, another process trains in the folder, the disk is full, too many videos cannot be read, or
            the run cannot go on. Checkpoints written before stay.
    """
    run, console = run or RunSpec(), console or Console()
    device = pick_device(run.device)
    objective.to(device).train()
    _check_parts(objective, streams, run.accumulate)
    watch = CollapseWatch(objective.bands() if isinstance(objective, Watched) else ())
    generator = torch.Generator(device).manual_seed(seed)
    moving = Moving(objective, optim.build(objective), generator, Window(), watch)
    plan = _plan(schedule, streams)
    folder = create_run(Path(run.out), name, recipe_text) if resume is None else RunFolder(resume)
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(f"Run folder: {folder.path}")
    fixed = _Fixed(
        run, streams, plan, optim.update, folder, device, use_bfloat16(run.precision, device), augment,
        test_streams or {}, recipe_text, stop_after, monitor,
    )  # fmt: skip
    with sole_process(folder.path, say):
        start = Restored(0, 0.0)
        if resume is not None:
            start = restore(folder, moving, recipe=recipe_text, say=say)
            folder.note_resume(start.step)
            say(f"Goes on after step {start.step} of {plan.total_steps}.")
        with (
            stop_requests() as stop,
            TrainDisplay(plan.total_steps, console, start.step) as display,
            Loader(streams, start_step=start.step, say=display.say) as loader,
        ):
            return _descend(moving, fixed, start, loader, display, stop)


def _check_parts(objective: Objective, streams: Mapping[str, Stream], parts: int) -> None:
    if parts > 1 and not objective.splits_batch and not isinstance(objective, JointLoss):
        raise UsageError(
            f"run.accumulate is {parts}, and {type(objective).__name__} looks at each batch as a whole (its "
            "clips are compared with each other, or statistics taken over all): set run.accumulate=1"
        )
    for name, stream in streams.items():
        if stream.batch_size // stream.world % parts:
            raise UsageError(
                f"run.accumulate is {parts}, and {stream.batch_size // stream.world} samples of the stream "
                f"'{name}' a step and process do not divide into as many parts"
            )


def _plan(schedule: Schedule, streams: Mapping[str, Stream]) -> StepPlan:
    try:
        return schedule.plan({name: len(stream) / stream.batch_size for name, stream in streams.items()})
    except ValueError as error:
        raise UsageError(f"schedule: {error}") from error


def _descend(
    moving: Moving,
    fixed: _Fixed,
    start: Restored,
    loader: Loader,
    display: TrainDisplay,
    stop: StopRequest,
) -> TrainResult:
    """All steps from ``start`` to the last, or to the one after which a stop is asked for.

    A checkpoint is the last thing that a step does: what is logged up to it is in the log when it is there.
    """
    run, plan, folder, window = fixed.run, fixed.plan, fixed.folder, moving.window
    guard = _guard(moving, fixed, display)
    done, tested, collapse = start.step, {}, ""
    for step in range(start.step, plan.total_steps):
        progress = Progress(step, plan.total_steps, plan.steps_per_epoch)
        fixed.update.set_rates(moving.optimizer, plan, step)
        batch = next(loader)
        metrics, grad_norm = _step(moving, fixed, guard, batch, progress)

        done, finished = step + 1, step + 1 == plan.total_steps
        # looked at once: a signal that comes below waits for the next step
        stopped = bool(stop) or done == fixed.stop_after
        seconds = start.seconds + time.monotonic() - display.started
        window.add(metrics, grad_norm, batch, loader.waited_seconds)
        display.step(done)
        if finished or done % run.log_every_steps == 0:
            means = window.means() | _rates(fixed, step) | moving.watch.measures() | moving.skips.metrics()
            folder.log({"step": done, "seconds": seconds, **means})
            display.metrics(done, means)
            collapse = _look(moving, fixed, display, done, means)
            stopped = stopped or bool(collapse)
        due = finished or done % run.checkpoint_every_steps == 0
        tested = _test(moving.objective, fixed) if due else {}
        if tested:
            folder.log({"step": done, "seconds": seconds, **{f"test_{key}": v for key, v in tested.items()}})
        if fixed.monitor is not None and run.knn_every_steps and done % run.knn_every_steps == 0:
            found = fixed.monitor()
            folder.log({"step": done, "seconds": seconds, **found})
            display.metrics(done, found)
        if due or stopped:
            save_checkpoint(
                folder.checkpoint_path(done), moving.objective, step=done, recipe=fixed.recipe_text
            )
            save_state(folder, moving, step=done, seconds=seconds)
            folder.prune(run.keep_checkpoints, run.keep_every_steps)
        if collapse:
            raise UsageError(f"{collapse} The run stops, as run.on_collapse says; it is saved as it is")
        if stopped:
            break
    return TrainResult(folder.path, folder.checkpoint_path(done), done, plan.total_steps, tested)


def _step(
    moving: Moving, fixed: _Fixed, guard: Guard, batch: Batch, progress: Progress
) -> tuple[Metrics, Tensor | None]:
    """One step down the gradient of a batch; its metrics, and the gradient's norm before clipping.

    There are none if the step is not taken.
    """
    guard.begin(progress, batch)
    batch = batch.to(fixed.device)
    if fixed.augment is not None:
        batch = fixed.augment(batch, moving.generator)
    moving.optimizer.zero_grad(set_to_none=True)
    output = _backward(moving, fixed, split_batch(batch, fixed.run.accumulate), progress)
    grad_norm = fixed.update.clip_gradients(moving.objective.parameters())
    if not guard.passes(output.loss, grad_norm):
        return {}, None
    moving.optimizer.step()
    moving.objective.after_step(progress, moving.generator)
    moving.watch.add(output)
    return output.metrics, grad_norm


def _backward(moving: Moving, fixed: _Fixed, parts: Sequence[Batch], progress: Progress) -> LossOutput:
    """Gradients of a batch in parts; its loss, without gradient, and metrics.

    Each part counts alike, as in the releases of BEVT and VIMPAC, unless the parts are to meet.
    """
    objective = moving.objective
    autocast = partial(torch.autocast, fixed.device.type, dtype=torch.bfloat16, enabled=fixed.autocast)
    if len(parts) > 1 and isinstance(objective, JointLoss) and not objective.splits_batch:
        return backward_in_parts(objective, parts, progress, moving.generator, autocast=autocast)
    outputs = []
    for part in parts:
        with autocast():
            output = objective(part, progress, moving.generator)
        (output.loss / len(parts)).backward()
        outputs.append(LossOutput(output.loss.detach(), output.metrics, output.features))
    return mean_output(outputs)


def _guard(moving: Moving, fixed: _Fixed, display: TrainDisplay) -> Guard:
    """What keeps steps that are no numbers from being taken."""
    conditions = Conditions(
        fixed.recipe_text,
        "bf16" if fixed.autocast else "fp32",
        fixed.device.type,
        parts=fixed.run.accumulate,
        rank=rank(),
        world=num_processes(),
    )

    def say(step: int, text: str) -> None:
        fixed.folder.note(step, "skipped", text)
        display.say(text)

    return Guard(
        moving.objective,
        moving.generator,
        moving.skips,
        most_in_a_row=fixed.run.max_skipped_steps,
        say=say,
        capture=partial(save_capture, fixed.folder, fixed.streams, conditions),
    )


def _look(
    moving: Moving, fixed: _Fixed, display: TrainDisplay, done: int, metrics: Mapping[str, float]
) -> str:
    """Says what signs of collapse there are; the first of them if the run is to stop for it, or nothing."""
    signs = moving.watch.look(done, fixed.plan.total_steps, metrics)
    for sign in signs:
        fixed.folder.note(done, "collapse", sign)
        display.say(sign)
    return signs[0] if signs and fixed.run.on_collapse == "stop" else ""


def _rates(fixed: _Fixed, step: int) -> dict[str, float]:
    """What the schedule set for a step, for the log; weight decay only where it moves."""
    rates = {"lr": fixed.update.lr_at(fixed.plan, step)}
    if fixed.update.final_weight_decay is not None:
        rates["weight_decay"] = fixed.update.weight_decay_at(fixed.plan, step)
    return rates


def _test(objective: Objective, fixed: _Fixed) -> dict[str, float]:
    """Metrics on held-out streams, none where there are no such streams."""
    if not fixed.test_streams:
        return {}
    return measure(
        objective,
        fixed.test_streams,
        batches=fixed.run.test_batches,
        device=fixed.device,
        autocast=fixed.autocast,
    )


@torch.no_grad()
def measure(
    objective: Objective,
    streams: Mapping[str, Stream],
    *,
    batches: int,
    device: torch.device,
    autocast: bool,
) -> dict[str, float]:
    """The objective's metrics in eval mode, mean over the first batches; the same ones at every call."""
    generator = torch.Generator(device).manual_seed(0)
    window = Window()
    objective.eval()
    with Loader(streams) as loader:
        for _ in range(batches):
            batch = next(loader).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                output = objective(batch, Progress(0, 1), generator)
            window.add(output.metrics)
    objective.train()
    return window.means()
