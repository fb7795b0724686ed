"""The training loop, and what happens around it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build.checks import check_repeats, check_whole
from vidssl.config.recipe import RunSpec
from vidssl.data.loader import Loader, Stream, numbered_alike, slices
from vidssl.data.sources.origins import (
    Overlap,
    Video,
    changes,
    read_videos,
    shared_videos,
    videos_of,
    write_videos,
)
from vidssl.engine.capture import Conditions, save_capture
from vidssl.engine.checkpoint import save_checkpoint
from vidssl.engine.collapse import CollapseWatch
from vidssl.engine.distributed import World, here, take_device
from vidssl.engine.guard import Guard
from vidssl.engine.logging import (
    Track,
    TrainDisplay,
    Window,
    check_trackers,
    open_trackers,
    over_processes,
    print_line,
    terminal,
)
from vidssl.engine.nonfinite import broken_weights, listed
from vidssl.engine.optim import Optim
from vidssl.engine.own_code import keep_own
from vidssl.engine.parallel import Parallel, whole
from vidssl.engine.precision import autocast_dtype, loss_scaler, peak_memory, scale_metrics, use_bfloat16
from vidssl.engine.process import StopAsked, StopRequest, sole_process, stop_requests
from vidssl.engine.resume import Moving, Restored, restore, save_state
from vidssl.engine.runfolder import RunFolder, create_run, named_run
from vidssl.engine.schedules import Schedule, StepPlan
from vidssl.engine.speed import deterministic, prepare
from vidssl.engine.step import Augment, Stepper
from vidssl.errors import UsageError
from vidssl.interfaces import ComparesVideos, Objective, Progress, Watched
from vidssl.objectives.classification import Classification
from vidssl.train.monitors import measure

Monitor = Callable[[], Mapping[str, float]]

TRAIN = "source"  # last word of the keys of what is trained on
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


@dataclass(frozen=True)
class _Fixed:
    """What stays the same from the first step of a run to the last."""

    run: RunSpec
    world: World
    stepper: Stepper
    streams: Mapping[str, Stream]
    plan: StepPlan
    folder: RunFolder
    test_streams: Mapping[str, Stream]
    recipe_text: str
    stop_after: int | None
    monitor: Monitor | None
    track: Track


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
    code: Mapping[str, bytes] | None = None,
    resume: Path | str | None = None,
    stop_after: int | None = None,
    monitor: Monitor | None = None,
    console: Console | None = None,
    world: World | None = None,
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
        code: files of the recipe's own parts (``files_of``), kept in the run's folder.
        resume: folder of a run to go on with, at the very step of its newest checkpoint: all further steps
            are those that the run would have taken. No folder is made then, ``name`` is not used.
        stop_after: steps of the run after which to stop as Ctrl-C would.
        monitor: called every ``run.knn_every_steps`` steps, by the first process; what it measures is logged.
        world: the processes that train together, each calling this; by default those of torch's process
            group. Of streams they take slices, and the first of them writes and speaks.

    Raises:
        UsageError: if the loss is not finite for too many steps or for all of them, the weights become NaN
            or inf, the network collapses and the run is to stop then, another process trains in the folder,
            the disk is full, too many videos cannot be read, or the run cannot go on. Checkpoints written
            before stay, and are finite.
    """
    run, world = run or RunSpec(), world or here()
    _check_arguments(objective, streams, optim, schedule, run)
    check_trackers(run.trackers)
    console = (console or terminal()) if world.first else terminal(quiet=True)
    device = take_device(run.device, world.local_rank)
    objective.to(device).train()
    prepare(objective, run)
    check_whole(objective, run, world.size)
    say = partial(print_line, console)
    for line in check_repeats(objective, streams):
        say(line)
    distinct = isinstance(objective, ComparesVideos)
    streams = {name: replace(each, distinct=distinct) for name, each in streams.items()}
    streams = slices(streams, world.rank, world.size, run.accumulate)
    test_streams = numbered_alike(test_streams or {}, streams)
    _check_classes(objective, streams, test_streams)
    test_streams = {name: replace(each, distinct=distinct, once=True) for name, each in test_streams.items()}
    test_streams = slices(test_streams, world.rank, world.size)
    parallel, dtype = Parallel(objective, world, run.parallel, device), autocast_dtype(run.precision, device)
    stepper = Stepper(parallel, optim.update, device, dtype, augment, run.accumulate)
    watch = CollapseWatch(objective.bands() if isinstance(objective, Watched) else ())
    generator = torch.Generator(device).manual_seed(seed)
    scaler = loss_scaler(dtype, device)
    moving = Moving(objective, optim.build(objective), generator, Window(), watch, scaler=scaler)
    if not world.first:
        torch.manual_seed(seed + world.rank)  # of dropout and drop path; all else is drawn by ``generator``
    plan = _plan(schedule, streams)
    folder = RunFolder(Path(world.from_first(lambda: _folder(run, name, recipe_text, resume))))
    say(f"Run folder: {folder.path}")
    videos = _listed(streams, test_streams) if world.first else {}
    with sole_process(folder.path, say) if world.first else nullcontext():
        world.from_first(lambda: _note_videos(folder, videos, run, say, resumes=resume is not None))
        start = Restored(0, 0.0)
        if resume is not None:
            start = restore(folder, moving, say=say, world=world)
            say(f"Goes on after step {start.step} of {plan.total_steps}.")
        if resume is not None and world.first:
            folder.note_resume(start.step)
            if not moving.skips.in_a_row:  # a kill behind the last save has left one more than are kept
                folder.prune(run.keep_checkpoints, run.keep_every_steps)
        if world.first and recipe_text:
            keep_own(folder.path, recipe_text, code or {}, say)
        with (
            deterministic(run.deterministic),
            stop_requests() as stop,
            TrainDisplay(plan.total_steps, console, start.step) as display,
            Loader(
                streams,
                start_step=start.step,
                say=world.speaker(display.say),
                restarted=partial(_restarted, folder, world, display),
            ) as loader,
            open_trackers(
                run.trackers if world.first else (), folder.path, config=recipe_text, first_step=start.step
            ) as track,
        ):
            fixed = _Fixed(
                run, world, stepper, streams, plan, folder, test_streams, recipe_text, stop_after, monitor,
                track,
            )  # fmt: skip
            result = _descend(moving, fixed, start, loader, display, stop)
    return replace(result, test_overlap=_test_overlap(videos))


def _listed(
    streams: Mapping[str, Stream], test_streams: Mapping[str, Stream]
) -> dict[str, tuple[Video, ...]]:
    """The key of each source in a recipe -> its videos."""
    train = {f"data.{name}.{TRAIN}": videos_of(stream.source) for name, stream in streams.items()}
    return train | {f"data.{name}.test_source": videos_of(each.source) for name, each in test_streams.items()}


def _test_overlap(videos: Mapping[str, Sequence[Video]]) -> Overlap:
    parts: dict[bool, list[Video]] = {True: [], False: []}
    for name, part in videos.items():
        parts[name.endswith(f".{TRAIN}")] += part
    return shared_videos(parts[True], parts[False])


def _note_videos(
    folder: RunFolder,
    videos: Mapping[str, Sequence[Video]],
    run: RunSpec,
    say: Callable[[str], None],
    *,
    resumes: bool,
) -> str:
    """Keeps the lists of videos in a run's folder; of one that resumes, holds them against those of before.

    Raises:
        UsageError: if they have changed and ``run.on_changed_data`` does not allow that.
    """
    if resumes and not folder.videos.is_file():
        return ""  # begun by an earlier version
    if resumes:
        changed = changes(read_videos(folder.videos), videos)
        if not changed:
            return ""
        said = f"{folder.path}: the videos are not those that the run began with: {changed}"
        if run.on_changed_data == "stop":
            raise UsageError(
                f"{said}. Put them back; or resume on the videos as they are, with other batches than an "
                "uninterrupted run, by run.on_changed_data=resume"
            )
        say(f"{said}. It resumes with other batches than an uninterrupted run (run.on_changed_data=resume).")
        number = len(folder.video_lists())
        folder.videos.rename(folder.path / f"videos-{number}.json.gz")
    write_videos(folder.videos, videos)
    return ""


def _check_arguments(
    objective: Objective, streams: Mapping[str, Stream], optim: Optim, schedule: Schedule, run: RunSpec
) -> None:
    """Refuse what a recipe could not say and Python can, before anything is made.

    Raises:
        TypeError: for an argument of another kind.
        UsageError: if a view that the objective reads comes from no stream.
    """
    if not isinstance(streams, Mapping) or not all(isinstance(each, Stream) for each in streams.values()):
        raise TypeError("streams must be names with a Stream each, such as {'video': Stream(source, views)}")
    for name, given, wanted, example in (
        ("optim", optim, Optim, "AdamW(lr=1e-3) of vidssl.api: settings, not an optimizer of torch.optim"),
        ("schedule", schedule, Schedule, "Cosine(epochs=100) of vidssl.api"),
        ("run", run, RunSpec, "RunSpec(device='cpu') of vidssl.api"),
    ):
        if not isinstance(given, wanted):
            kind = given if isinstance(given, type) else type(given)
            raise TypeError(f"{name} must be such as {example}, got {kind.__module__}.{kind.__qualname__}")
    slots = {view: len(shapes) for each in streams.values() for view, shapes in each.views.shapes.items()}
    for view, count in objective.needs_views.items():
        if slots.get(view, 0) < count:
            has = ", ".join(f"{number} of '{name}'" for name, number in slots.items()) or "none"
            raise UsageError(
                f"{type(objective).__name__} reads {count} of the view '{view}', and the streams give {has}"
            )


def _folder(run: RunSpec, name: str, recipe_text: str, resume: Path | str | None) -> str:
    folder = create_run(Path(run.out), name, recipe_text) if resume is None else named_run(str(resume))
    return str(folder.path)


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
    run, plan, folder, window, world = fixed.run, fixed.plan, fixed.folder, moving.window, fixed.world
    guard = _guard(moving, fixed, display)
    done, tested, collapse = start.step, {}, ""
    for step in range(start.step, plan.total_steps):
        progress = Progress(step, plan.total_steps, plan.steps_per_epoch)
        fixed.stepper.update.set_rates(moving.optimizer, plan, step)
        try:
            # of several processes the others may be at work on this step
            with stop.ends_wait() if world.size == 1 else nullcontext():
                batch = next(loader)
        except StopAsked:  # a machine that is taken back does not wait for slow data
            _save(moving, fixed, step, start.seconds + time.monotonic() - display.started)
            break
        metrics, grad_norm = fixed.stepper.take(moving, guard, batch, progress)

        done, finished = step + 1, step + 1 == plan.total_steps
        # looked at once: a signal that comes below waits for the next step
        stopped = world.any(bool(stop) or done == fixed.stop_after)
        seconds = start.seconds + time.monotonic() - display.started
        window.add(metrics, grad_norm, batch, loader.waited_seconds)
        display.step(done)
        if finished or done % run.log_every_steps == 0:
            means = over_processes(world.gather(window.means() | moving.watch.measures()))
            means |= _rates(fixed, step) | scale_metrics(moving.scaler) | moving.skips.metrics()
            means["memory_gib"] = peak_memory(fixed.stepper.device) / 2**30
            _log(fixed, {"step": done, "seconds": seconds, **means})
            display.metrics(done, means)
            collapse = _look(moving, fixed, display, done, means)
            stopped = stopped or bool(collapse)
        due = finished or done % run.checkpoint_every_steps == 0
        tested = _test(fixed) if due else {}
        if tested:
            _log(fixed, {"step": done, "seconds": seconds, **{f"test_{key}": v for key, v in tested.items()}})
        if fixed.monitor is not None and run.knn_every_steps and done % run.knn_every_steps == 0:
            found = json.loads(world.from_first(partial(_monitored, fixed.monitor)))
            _log(fixed, {"step": done, "seconds": seconds, **found})
            display.metrics(done, found)
        if due or stopped:
            _save(moving, fixed, done, seconds)
        if collapse:
            raise UsageError(f"{collapse} The run stops, as run.on_collapse says; it is saved as it is")
        if stopped:
            break
    checkpoint, skipped = folder.checkpoint_path(done), moving.skips.not_taken
    if done and skipped == done:
        raise UsageError(
            f"no step was taken: no loss and gradient of {done} step{'s' * (done > 1)} was finite, and the "
            f"weights in {checkpoint} are those that the run began with. Lower optim.lr, lengthen the "
            "warm-up, set run.precision=fp32, or look for the input that does it"
        )
    return TrainResult(
        folder.path, checkpoint, done, start.step, plan.total_steps, tested, skipped, moving.skips.in_a_row
    )


def _guard(moving: Moving, fixed: _Fixed, display: TrainDisplay) -> Guard:
    """What keeps steps that are no numbers from being taken."""
    conditions = Conditions(
        fixed.recipe_text,
        _PRECISIONS[fixed.stepper.dtype],
        fixed.stepper.device.type,
        parts=fixed.stepper.parts,
        rank=fixed.world.rank,
        world=fixed.world.size,
    )

    def say(step: int, text: str) -> None:
        if fixed.world.first:
            fixed.folder.note(step, "skipped", text)
        display.say(text)

    return Guard(
        moving.objective,
        moving.generator,
        moving.skips,
        most_in_a_row=fixed.run.max_skipped_steps,
        say=say,
        capture=partial(save_capture, fixed.folder, fixed.streams, conditions),
        agree=fixed.world.any,
        state=lambda: whole(moving.objective.state_dict()),
    )


def _restarted(folder: RunFolder, world: World, display: TrainDisplay, step: int, text: str) -> None:
    """Says, and notes, that data workers were replaced."""
    if world.first:
        folder.note(step, "restarted", text)
    world.speaker(display.say)(text)


def _look(
    moving: Moving, fixed: _Fixed, display: TrainDisplay, done: int, metrics: Mapping[str, float]
) -> str:
    """Says what signs of collapse there are; the first of them if the run is to stop for it, or nothing."""
    signs = moving.watch.look(done, fixed.plan.total_steps, metrics)
    for sign in signs if fixed.world.first else ():
        fixed.folder.note(done, "collapse", sign)
        display.say(sign)
    return signs[0] if signs and fixed.run.on_collapse == "stop" else ""


def _rates(fixed: _Fixed, step: int) -> dict[str, float]:
    """What the schedule set for a step, for the log; weight decay only where it moves."""
    rates = {"lr": fixed.stepper.update.lr_at(fixed.plan, step)}
    if fixed.stepper.update.final_weight_decay is not None:
        rates["weight_decay"] = fixed.stepper.update.weight_decay_at(fixed.plan, step)
    return rates


def _monitored(monitor: Monitor) -> str:
    return json.dumps(dict(monitor()))


def _log(fixed: _Fixed, record: Mapping[str, float]) -> None:
    if fixed.world.first:
        fixed.folder.log(record)
        fixed.track(record)


def _save(moving: Moving, fixed: _Fixed, done: int, seconds: float) -> None:
    """A checkpoint and what going on takes; by the first process, to which the others give their shards.

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
    save_state(folder, moving, step=done, seconds=seconds, world=world)
    # as long as steps are skipped, what was saved before them is the last that is known to work
    if world.first and not moving.skips.in_a_row:
        folder.prune(run.keep_checkpoints, run.keep_every_steps)


def _test(fixed: _Fixed) -> dict[str, float]:
    """Metrics on held-out streams, none where there are no such streams."""
    if not fixed.test_streams:
        return {}
    fixed.stepper.parallel.share_buffers()
    found = measure(
        fixed.stepper.parallel,
        fixed.test_streams,
        batches=fixed.run.test_batches,
        device=fixed.stepper.device,
        autocast=use_bfloat16(fixed.run.precision, fixed.stepper.device),
    )
    return over_processes(fixed.world.gather(found))


def _check_classes(
    objective: Objective, streams: Mapping[str, Stream], test_streams: Mapping[str, Stream]
) -> None:
    """Refuses test videos of classes that the objective has no number for, before a step is taken."""
    if not isinstance(objective, Classification):
        return
    for name, stream in test_streams.items():
        for label, names in stream.classes.items():
            new = names[len(streams[name].source.label_classes[label]) :]
            if new and objective.label in (None, label) and len(names) > objective.num_classes:
                raise UsageError(
                    f"data.{name}.test_source: label '{label}' has classes that no training video has "
                    f"({', '.join(new[:5])}): leave these videos out, or set "
                    f"objective.num_classes={len(names)}, and they count as wrong"
                )
