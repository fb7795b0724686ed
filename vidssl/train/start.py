"""Before the first step of training: arguments checked, streams sliced, the folder made or resumed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import checks, registry
from vidssl.config.recipe import RunSpec
from vidssl.config.strict_yaml import parse
from vidssl.data.loader import Loader, Stream, numbered_alike, slices
from vidssl.data.sources import origins
from vidssl.engine import collapse, distributed, logging, own_code, process, schedules, speed
from vidssl.engine.optim import Optim
from vidssl.engine.parallel import Parallel
from vidssl.engine.resume import Moving, Restored, restore
from vidssl.engine.runfolder import RunFolder, create_run, named_run
from vidssl.errors import UsageError
from vidssl.interfaces import Augment, ComparesVideos, Objective, Watched
from vidssl.objectives.classification import Classification
from vidssl.train.loop import Fixed, Monitor, TrainResult, train_steps

TRAIN = "source"  # last word of the keys of what is trained on


def train(
    objective: Objective,
    streams: Mapping[str, Stream],
    *,
    optim: Optim,
    schedule: schedules.Schedule,
    name: str,
    seed: int = 0,
    run: RunSpec | None = None,
    augment: Augment | None = None,
    test_streams: Mapping[str, Stream] | None = None,
    probe: registry.Probe | None = None,
    recipe_text: str = "",
    code: Mapping[str, bytes] | None = None,
    resume: Path | str | None = None,
    stop_after: int | None = None,
    monitor: Monitor | None = None,
    console: Console | None = None,
    world: distributed.World | None = None,
    from_weights: bool = False,
) -> TrainResult:
    """Minimise an objective over streams of views; log, test and save on the way.

    Args:
        objective: moved to the device, trained in place.
        streams: name -> stream; one batch of each goes into every step.
        optim: the optimizer's settings.
        schedule: of the learning rate; it says how long the run is.
        name: of the run; its folder is made in ``run.out``.
        seed: of the order of videos, views, masks and all else that is random, but not of initial weights.
        run: where the folder goes, device, precision, and how often to log, test and save.
        augment: applied to every batch on the device.
        test_streams: held-out streams that give the same views.
        probe: labelled videos to train probes on, those to test on, and views of both, for ``vidssl eval``.
        recipe_text: the resolved recipe, kept in the checkpoints so that commands can read them; where there
            is none, it is written of the parts as they were made (``recipe_of_parts``).
        code: files of the recipe's own parts (``files_of``), kept in the run's folder.
        resume: folder of a run to resume at the very step of its newest checkpoint; it takes the further
            steps that it would have taken. No folder is made then, ``name`` is not used.
        stop_after: steps of the run after which to stop as Ctrl-C would.
        monitor: called every ``run.knn_every_steps`` steps, by rank 0; its measures are logged.
        console: where progress is printed; by default the terminal.
        world: the processes that train together, each calling this; by default those of torch's process
            group. Of streams they take slices; rank 0 writes and prints.
        from_weights: whether all of the objective starts from weights of another training, so that signs of
            collapse count from the first step on.

    Raises:
        UsageError: if the loss is not finite for too many steps or for all of them, the weights become NaN
            or inf, the network collapses and the run is to stop then, another process trains in the folder,
            the disk is full, too many videos cannot be read, or the run cannot resume. Checkpoints written
            before stay, and are finite.
    """
    run, world = run or RunSpec(), world or distributed.here()
    _check_arguments(objective, streams, optim, schedule, run)
    logging.check_trackers(run.trackers)
    console = (console or logging.terminal()) if world.first else logging.terminal(quiet=True)
    if not recipe_text:
        labelled = probe and dict(zip(("train", "test", "views"), probe, strict=True))
        rest = {"name": name, "seed": seed, "probe": labelled, "augment": augment, "optim": optim}
        rest |= {"schedule": schedule}
        recipe_text = registry.recipe_of_parts(objective, streams, test_streams or {}, run, rest)
        own = own_code.code_in(parse(recipe_text, lambda line: f"line {line}")) if recipe_text else ()
        code = own_code.files_of(str(leaf.value) for leaf in own)
    device = distributed.take_device(run.device, world.local_rank)
    objective.to(device).train()
    speed.prepare(objective, run)
    checks.check_whole(objective, run, world.size)
    say = partial(logging.say_wrapped, console)
    for line in checks.check_repeats(objective, streams):
        say(line)
    distinct = isinstance(objective, ComparesVideos)
    streams = {name: replace(each, distinct=distinct) for name, each in streams.items()}
    streams = slices(streams, world.rank, world.size, run.accumulate)
    test_streams = numbered_alike(test_streams or {}, streams)
    _check_classes(objective, streams, test_streams)
    test_streams = {name: replace(each, distinct=distinct, once=True) for name, each in test_streams.items()}
    test_streams = slices(test_streams, world.rank, world.size)
    parallel = Parallel(objective, world, run.parallel, device)
    dtype = speed.autocast_dtype(run.precision, device)
    watch = watch_of(objective, from_weights=from_weights)
    # the CPU's on every device: the same masks everywhere, and no draw waits for a GPU
    generator = torch.Generator().manual_seed(seed)
    scaler = speed.loss_scaler(dtype, device)
    moving = Moving(objective, optim.build(objective), generator, logging.Meter(), watch, scaler=scaler)
    if not world.first:
        torch.manual_seed(seed + world.rank)  # of dropout and drop path; all else is drawn by ``generator``
    plan = _plan(schedule, streams)
    folder = RunFolder(Path(world.from_first(lambda: _folder(run, name, recipe_text, resume))))
    say(f"Run folder: {folder.path}")
    videos = _listed(streams, test_streams) if world.first else {}
    fresh = resume is None and world.first
    with process.sole_process(folder.path, say) if world.first else nullcontext(), _used(folder, fresh=fresh):
        world.from_first(lambda: _note_videos(folder, videos, run, say, resumes=resume is not None))
        start = Restored(0, 0.0)
        if resume is not None:
            start = restore(folder, moving, say=say, world=world)
            say(f"Resumes after step {start.step} of {plan.total_steps}.")
        if resume is not None and world.first:
            folder.note_resume(start.step)
            if not moving.skips.in_a_row:  # a kill behind the last save has left one more than are kept
                folder.prune(run.keep_checkpoints, run.keep_every_steps)
        if world.first and recipe_text:
            own_code.keep_own(folder.path, recipe_text, code or {}, say)
        with (
            speed.deterministic(run.deterministic),
            process.stop_requests() as stop,
            logging.TrainDisplay(
                plan.total_steps, console, start.step, objective.yardsticks(), on_cpu=device.type == "cpu"
            ) as display,
            Loader(
                streams,
                start_step=start.step,
                say=world.speaker(display.say),
                restarted=partial(_restarted, folder, world, display),
            ) as loader,
            logging.open_trackers(
                run.trackers if world.first else (), folder.path, config=recipe_text, first_step=start.step
            ) as track,
        ):
            fixed = Fixed(
                run=run, world=world, parallel=parallel, update=optim.update, plan=plan, device=device,
                dtype=dtype, augment=augment, streams=streams, test_streams=test_streams, folder=folder,
                recipe_text=recipe_text, start=start, stop_after=stop_after, monitor=monitor,
                loader=loader, display=display, track=track, stop=stop,
            )  # fmt: skip
            result = train_steps(fixed, moving)
    return replace(result, test_overlap=_test_overlap(videos))


@contextmanager
def _used(folder: RunFolder, *, fresh: bool) -> Iterator[None]:
    """Leaves no folder behind of a fresh run that ends with a mistake before its first step is logged."""
    try:
        yield
    except UsageError:
        if fresh:
            folder.remove_unused()
        raise


def watch_of(objective: Objective, *, from_weights: bool) -> collapse.CollapseWatch:
    """The watch over an objective's metrics; ``from_weights`` as ``train`` has it."""
    bands = objective.bands() if isinstance(objective, Watched) else ()
    return collapse.CollapseWatch([replace(band, after=0.0) for band in bands] if from_weights else bands)


def _listed(
    streams: Mapping[str, Stream], test_streams: Mapping[str, Stream]
) -> dict[str, tuple[origins.Video, ...]]:
    """The key of each source in a recipe -> its videos."""
    train = {f"data.{name}.{TRAIN}": origins.videos_of(stream.source) for name, stream in streams.items()}
    return train | {
        f"data.{name}.test_source": origins.videos_of(each.source) for name, each in test_streams.items()
    }


def _test_overlap(videos: Mapping[str, Sequence[origins.Video]]) -> origins.Overlap:
    parts: dict[bool, list[origins.Video]] = {True: [], False: []}
    for name, part in videos.items():
        parts[name.endswith(f".{TRAIN}")] += part
    return origins.shared_videos(parts[True], parts[False])


def _note_videos(
    folder: RunFolder,
    videos: Mapping[str, Sequence[origins.Video]],
    run: RunSpec,
    say: logging.Say,
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
        changed = origins.changes(origins.read_videos(folder.videos), videos)
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
    origins.write_videos(folder.videos, videos)
    return ""


def _check_arguments(
    objective: Objective,
    streams: Mapping[str, Stream],
    optim: Optim,
    schedule: schedules.Schedule,
    run: RunSpec,
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
        ("schedule", schedule, schedules.Schedule, "Cosine(epochs=100) of vidssl.api"),
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


def _plan(schedule: schedules.Schedule, streams: Mapping[str, Stream]) -> schedules.StepPlan:
    try:
        return schedule.plan({name: len(stream) / stream.batch_size for name, stream in streams.items()})
    except ValueError as error:
        raise UsageError(f"schedule: {error}") from error


def _restarted(
    folder: RunFolder, world: distributed.World, display: logging.TrainDisplay, step: int, text: str
) -> None:
    """Says, and notes, that data workers were replaced."""
    if world.first:
        folder.note(step, "restarted", text)
    world.speaker(display.say)(text)


def _check_classes(
    objective: Objective, streams: Mapping[str, Stream], test_streams: Mapping[str, Stream]
) -> None:
    """Refuses test videos of classes that the objective does not know, before a step is taken."""
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
