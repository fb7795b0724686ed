"""A recipe trained from end to end: built, run or resumed, and its result reported."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import OBJECTIVE, constructor_of, resolved_text
from vidssl.config.recipe import Recipe, overridden, read_recipe
from vidssl.config.strict_yaml import load
from vidssl.data.loader import Stream
from vidssl.engine import distributed, own_code, speed
from vidssl.engine.logging import format_duration, print_line, say_wrapped, shown_messages, terminal
from vidssl.engine.process import Cpus, check_writable, sole_process, write_text
from vidssl.engine.resume import FREE, LENGTH, changed_keys, find_run, no_state
from vidssl.engine.runfolder import RunFolder, check_name, named_run
from vidssl.errors import UsageError, agreed, counted
from vidssl.interfaces import Backbone, Objective
from vidssl.objectives.classification import Classification
from vidssl.train import monitors, start, trial
from vidssl.train.loop import Monitor, TrainResult

STOPPED = 130  # exit code after Ctrl-C or a signal, as a shell has it: the run can be resumed


Draw = Callable[[Path, Console], None]  # draws a picture of a checkpoint, and names it


def run_recipe(
    recipe: Recipe,
    console: Console | None = None,
    resume: Path | None = None,
    *,
    cpus: Cpus | None = None,
    draw: Draw | None = None,
) -> int:
    """Train what a recipe describes, report the result and what to do next.

    Where a launcher has started several processes, they train together and rank 0 prints.

    Args:
        resume, cpus: as for ``train_recipe``.
        draw: called by rank 0 when all steps are done.

    Returns:
        Exit code: 0, or 130 if the run was asked to stop before its last step.
    """
    started = time.monotonic()
    with distributed.processes(recipe.run.device, timeout_minutes=recipe.run.timeout_minutes) as world:
        console = (console or terminal()) if world.first else terminal(quiet=True)
        with shown_messages(console):
            objective, result = train_recipe(recipe, console, resume, cpus=cpus)
        _conclude(result, objective, time.monotonic() - started, console)
        if draw is not None and world.first and result.steps == result.total_steps:
            draw(result.checkpoint, console)
        if world.first:
            for line in _next(result, objective, recipe):
                print_line(console, line)
    return 0 if result.steps == result.total_steps else STOPPED


def train_recipe(
    recipe: Recipe,
    console: Console,
    resume: Path | None = None,
    stop_after: int | None = None,
    *,
    cpus: Cpus | None = None,
) -> tuple[Objective, TrainResult]:
    """Build what a recipe describes, train it, and hand it over as it is then.

    Args:
        resume: folder of a run of this recipe to resume; otherwise ``run.resume`` decides.
        stop_after: steps of the run after which to stop.
        cpus: by which to choose the number of threads; None leaves it as it is.
    """
    build.check(recipe)
    build.check_ready(recipe, with_init=resume is None)
    if resume is None:
        check_name(recipe.name)
        check_writable(Path(recipe.run.out) / recipe.name, "name one you can write with run.out=FOLDER")
    world = distributed.here()
    say, text = logging.getLogger(__name__).info, resolved_text(recipe)
    if resume is None and recipe.run.resume == "auto":
        found = world.from_first(lambda: _found(recipe, text, say))
        resume = Path(found) if found else None
    if cpus is not None:
        recipe = _on_cpus(recipe, cpus, resume, say)
    longer = None if resume is None else _longer(recipe, RunFolder(resume))
    counted = build.schedule(recipe).counts_epochs
    if longer is not None and not counted:
        _check_longer(longer, recipe, dict.fromkeys(recipe.data.streams, 1.0))
    streams, test_streams = world.one_first(lambda: (build.streams(recipe), build.test_streams(recipe)))
    if longer is not None:
        if counted:
            _check_longer(longer, recipe, {name: len(s) / s.batch_size for name, s in streams.items()})
        world.from_first(partial(_note_longer, longer, recipe, say))
    torch.manual_seed(recipe.seed)
    objective = build.objective(recipe, say=say, with_init=resume is None)
    if resume is None and world.first and recipe.tokenizer is not None:
        trial.tell_fit(recipe.tokenizer.part.type, objective, streams, say)
    result = start.train(
        objective,
        streams,
        optim=build.optim(recipe),
        schedule=build.schedule(recipe),
        name=recipe.name,
        seed=recipe.seed,
        run=recipe.run,
        augment=build.augment(recipe),
        test_streams=test_streams,
        recipe_text=text,
        code=own_code.files_of(str(leaf.value) for tree in recipe.trees for leaf in own_code.code_in(tree)),
        resume=resume,
        stop_after=stop_after,
        monitor=_monitor(recipe, objective),
        console=console,
        world=world,
        from_weights=None not in (recipe.start.init, recipe.rest_init),
    )
    if isinstance(objective, Classification) and world.first:
        _note_classes(objective, streams, RunFolder(result.folder))
    return objective, result


def _on_cpus(recipe: Recipe, cpus: Cpus, resume: Path | None, say: Callable[[str], None]) -> Recipe:
    """Takes as many threads as there are CPUs free, and no more data workers than can run beside them.

    A run that resumes takes those that it began with, and ``run.deterministic`` all CPUs: sums of another
    number of threads differ in their last digits.
    """
    run, threads = recipe.run, cpus.threads
    if run.deterministic:
        threads = cpus.allowed
    elif resume is not None:
        threads = min(RunFolder(resume).began_with_threads() or threads, cpus.allowed)
    torch.set_num_threads(threads)
    workers = run.workers if cpus.free >= 1.5 else min(run.workers, 1)
    if speed.pick_device(run.device).type == "cpu" or cpus.free < cpus.allowed / 2:
        say(
            f"CPUs: {cpus.allowed}, {cpus.free:.1f} of them free: {counted(threads, 'thread')} "
            f"(OMP_NUM_THREADS=N for another number), {counted(workers, 'data worker')} a stream"
        )
    return replace(recipe, run=replace(run, workers=workers))


def _note_classes(objective: Classification, streams: Mapping[str, Stream], folder: RunFolder) -> None:
    """Keeps the names of the classes that were learned, for ``vidssl predict``."""
    for stream in streams.values():
        for label, names in stream.source.label_classes.items():
            if objective.label in (None, label):
                text = json.dumps({"label": label, "classes": names, "average": "probabilities"})
                write_text(folder.classes, text + "\n")


@dataclass(frozen=True)
class _Longer:
    """A run that is to have another length: its folder, the recipe it was trained by, and steps done."""

    folder: RunFolder
    before: Recipe
    done: int


def _longer(recipe: Recipe, folder: RunFolder) -> _Longer | None:
    """Refuse another recipe than the run's own; None where not even its length differs.

    Raises:
        UsageError: naming the keys that differ, or if there is no state to resume from.
    """
    path = folder.path / "recipe.yaml"
    before = read_recipe(load(path), path.parent)
    changed = changed_keys(resolved_text(before), resolved_text(recipe))
    others = [key for key in changed if key not in LENGTH]
    if others:
        raise UsageError(
            f"{folder.path} was begun with another recipe: {', '.join(others)} "
            f"{agreed(len(others), 'differ')}. A run resumes with its own; only keys of "
            f"{', '.join(FREE)} may change, and {' or '.join(LENGTH)} under a constant learning rate. For "
            f"another recipe start a new run, from these weights with backbone.init={folder.path}"
        )
    if not folder.states():
        raise no_state(folder)
    return _Longer(folder, before, folder.step_of(folder.states()[-1])) if changed else None


def _check_longer(longer: _Longer, recipe: Recipe, steps_per_epoch: Mapping[str, float]) -> None:
    """Refuse another length if a run of that length would have taken other steps up to here.

    Raises:
        UsageError: with the reason, and what to do instead.
    """
    update, done = build.optim(recipe).update, longer.done
    objective = constructor_of(recipe.objective, OBJECTIVE)
    try:
        old, new = (build.schedule(each).plan(steps_per_epoch) for each in (longer.before, recipe))
    except ValueError as error:
        raise recipe.schedule.node.error(str(error)) from error
    steps = {*range(0, done, max(1, done // 10_000)), max(0, done - 1)}
    why = ""
    if new.total_steps < done:
        why = f"the run has taken {counted(done, 'step')} and would have {new.total_steps}"
    elif isinstance(objective, type) and issubclass(objective, Objective) and objective.follows_length:
        why = f"objective '{recipe.objective.type}' moves its teacher's momentum along the whole run"
    elif any(update.weight_decay_at(old, step) != update.weight_decay_at(new, step) for step in steps):
        why = "optim.final_weight_decay moves the weight decay along the whole run"
    elif any(old.factor(step) != new.factor(step) for step in steps):
        taken = counted(done, "step")
        why = f"schedule '{recipe.schedule.type}' would have given the {taken} other learning rates"
    if why:
        raise UsageError(
            f"{longer.folder.path}: cannot get another length: {why}. Start a new run from its weights "
            f"(vidssl train RECIPE backbone.init={longer.folder.path}); a run can be made longer before the "
            "cool-down of 'schedule={type: linear, steps: N, cooldown_steps: M}', at any time with final: 1"
        )


def _note_longer(longer: _Longer, recipe: Recipe, say: Callable[[str], None]) -> str:
    """Writes the new length into the run's recipe; keys of ``run`` stay as they were."""
    with sole_process(longer.folder.path, say):
        text = resolved_text(replace(longer.before, schedule=recipe.schedule))
        write_text(longer.folder.path / "recipe.yaml", text)
    return ""


def _found(recipe: Recipe, text: str, say: Callable[[str], None]) -> str:
    """The run that ``run.resume`` resumes; an empty text if there is none."""
    found = find_run(Path(recipe.run.out), recipe.name, text, say)
    return "" if found is None else str(found.path)


def _monitor(recipe: Recipe, objective: Objective) -> Monitor | None:
    encoder = objective.encoder()
    wanted = recipe.run.knn_every_steps is not None and isinstance(encoder, Backbone)
    return monitors.KnnMonitor(recipe, encoder) if wanted and isinstance(encoder, Backbone) else None


def resume_run(
    run: str,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    *,
    cpus: Cpus | None = None,
    draw: Draw | None = None,
) -> int:
    """Resume a run at the very step of its newest checkpoint, under the recipe in its folder.

    Args:
        run: its folder.
        overrides: of keys of ``run``, for the time that is left; others are refused.
        cpus, draw: as for ``run_recipe``.

    Returns:
        As ``run_recipe``.

    Raises:
        UsageError: if it is no run's folder, or the recipe is changed.
    """
    with distributed.told_once_a_machine():
        path = named_run(run).path / "recipe.yaml"
        moved = [word for word in overrides if word.split("=")[0] in ("run.out", "run.resume")]
        if moved:
            raise UsageError(f"{moved[0]}: a run that resumes stays in its folder, {run}")
        recipe = read_recipe(overridden(load(path), overrides), path.parent)
    return run_recipe(recipe, console, resume=Path(run), cpus=cpus, draw=draw)


def _conclude(result: TrainResult, objective: Objective, seconds: float, console: Console) -> None:
    if result.steps < result.total_steps:
        lines = [
            f"Stopped after {result.steps} of {counted(result.total_steps, 'step')}; the network so far "
            "is saved."
        ]
    elif result.steps_before == result.steps:
        lines = [f"All of the run's {counted(result.steps, 'step', verb='were')} done before."]
    else:
        which = f"steps {result.steps_before + 1} to {result.steps}"
        what = which if result.steps_before else counted(result.steps, "step")
        skipped = f"; skipped as not finite: {result.skipped}" if result.skipped else ""
        lines = [f"Trained {what} in {format_duration(seconds)}{skipped}."]
    if result.skipped_last:
        last = result.steps - result.skipped_last
        lines += [
            f"NOT FINITE: loss or gradient of the last {counted(result.skipped_last, 'step')}. The "
            "weights since "
            f"step {last} gave no finite loss: of the checkpoints use one before that."
        ]
    for line in lines:
        say_wrapped(console, line)
    if result.test_metrics:
        say_wrapped(console, _learned(result, objective), "bold")
    print_line(console, f"Run folder: {result.folder}")
    print_line(console, f"Checkpoint: {result.checkpoint}")


def _learned(result: TrainResult, objective: Objective) -> str:
    """What the pretext task has taught, by the objective's own yardsticks."""
    metrics = result.test_metrics
    known = [each for each in objective.yardsticks() if each.metric in metrics]
    # ids may be predicted better than by the commonest one and worse than by copying
    beaten = [one for each in known for one in each.beaten(metrics)]
    verdict = "Learned" if all(beaten) else "Learned in part" if any(beaten) else "Not learned yet"
    return f"{verdict if beaten else 'Measured'}, {_on_test(result)}: {objective.describe(metrics)}."


def _next(result: TrainResult, objective: Objective, recipe: Recipe) -> list[str]:
    """The next command."""
    if result.steps < result.total_steps:
        return [f"To resume: vidssl train --resume {result.folder}"]
    if not isinstance(objective.encoder(), Backbone):
        return [f"Next: vidssl eval {result.folder} --protocol tokenizer"]
    if recipe.data.probe is None:
        return [f"Next: vidssl eval {result.folder} --protocol linear data=RECIPE (one with labelled videos)"]
    return [f"Next: vidssl eval {result.folder} --protocol linear"]


def _on_test(result: TrainResult) -> str:
    """Which videos the objective's metrics were measured on."""
    found = result.test_overlap
    if found.keys:
        were = agreed(len(found.keys), "were")
        return f"on {found.total} held-out videos, of which {len(found.keys)} {were} trained on"
    if found.unknown:
        return "on held-out videos, of which it is not known whether they were trained on"
    return "on held-out videos, never trained on"
