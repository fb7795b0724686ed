"""A recipe trained from end to end: built, run or gone on with, and what came of it said."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from vidssl import build
from vidssl.engine.display import format_duration, shown_messages
from vidssl.engine.distributed import here, processes, told_once_a_machine
from vidssl.engine.own_code import code_in, files_of
from vidssl.engine.resume import find_run
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Objective
from vidssl.knn_monitor import KnnMonitor
from vidssl.recipe import Recipe, overridden, read_recipe
from vidssl.resolved import resolved_text
from vidssl.spec import load
from vidssl.train import Monitor, TrainResult, train

STOPPED = 130  # exit code after Ctrl-C, SIGTERM or SIGUSR1, as a shell has it: the run can go on


def run_recipe(recipe: Recipe, console: Console | None = None, resume: Path | None = None) -> int:
    """Train what a recipe describes, say what came of it and what to do next.

    Where a launcher has started several processes, they train together and the first one speaks.

    Args:
        resume: as for ``train_recipe``.

    Returns:
        Exit code: 0, or 130 if the run was asked to stop before its last step.
    """
    started = time.monotonic()
    with processes(recipe.run.device, timeout_minutes=recipe.run.timeout_minutes) as world:
        console = (console or Console()) if world.first else Console(quiet=True)
        with shown_messages(console):
            objective, result = train_recipe(recipe, console, resume)
        _conclude(result, objective, time.monotonic() - started, console)
    return 0 if result.steps == result.total_steps else STOPPED


def train_recipe(
    recipe: Recipe, console: Console, resume: Path | None = None, stop_after: int | None = None
) -> tuple[Objective, TrainResult]:
    """Build what a recipe describes, train it, and hand it over as it is then.

    Args:
        resume: folder of a run of this recipe to go on with; otherwise ``run.resume`` decides.
        stop_after: steps of the run after which to stop.
    """
    build.check(recipe)
    world = here()
    say, text = logging.getLogger(__name__).info, resolved_text(recipe)
    if resume is None and recipe.run.resume == "auto":
        found = world.from_first(lambda: _found(recipe, text, say))
        resume = Path(found) if found else None
    # before the weights: a missing file ends it
    streams, test_streams = world.one_first(lambda: (build.streams(recipe), build.test_streams(recipe)))
    torch.manual_seed(recipe.seed)
    objective = build.objective(recipe, say=say, with_init=resume is None)
    result = train(
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
        code=files_of(str(leaf.value) for tree in recipe.trees for leaf in code_in(tree)),
        resume=resume,
        stop_after=stop_after,
        monitor=_monitor(recipe, objective),
        console=console,
        world=world,
    )
    return objective, result


def _found(recipe: Recipe, text: str, say: Callable[[str], None]) -> str:
    """The run that ``run.resume`` goes on with; nothing if there is none."""
    found = find_run(Path(recipe.run.out), recipe.name, text, say)
    return "" if found is None else str(found.path)


def _monitor(recipe: Recipe, objective: Objective) -> Monitor | None:
    encoder = objective.encoder()
    wanted = recipe.run.knn_every_steps is not None and isinstance(encoder, Backbone)
    return KnnMonitor(recipe, encoder) if wanted and isinstance(encoder, Backbone) else None


def resume_run(run: str, overrides: Sequence[str] = (), console: Console | None = None) -> int:
    """Go on with a run at the very step of its newest checkpoint, under the recipe in its folder.

    Args:
        run: its folder.
        overrides: of keys of ``run``, for the time that is left; others are refused.

    Returns:
        As ``run_recipe``.

    Raises:
        UsageError: if it is no run's folder, or the recipe is changed.
    """
    path = Path(run) / "recipe.yaml"
    with told_once_a_machine():
        if not path.is_file():
            raise UsageError(f"{run}: no run to go on with: there is no {path.name} in it")
        moved = [word for word in overrides if word.split("=")[0] in ("run.out", "run.resume")]
        if moved:
            raise UsageError(f"{moved[0]}: a run that goes on stays in its folder, {run}")
        recipe = read_recipe(overridden(load(path), overrides), path.parent)
    return run_recipe(recipe, console, resume=Path(run))


def _conclude(result: TrainResult, objective: Objective, seconds: float, console: Console) -> None:
    if result.steps < result.total_steps:
        lines = [
            f"Stopped after {result.steps} of {result.total_steps} steps; the network so far is saved.",
            f"To go on: vidssl train --resume {result.folder}",
        ]
    elif result.steps_before == result.steps:
        lines = [f"All {result.steps} steps were done before."]
    else:
        which = f"steps {result.steps_before + 1} to {result.steps}"
        what = which if result.steps_before else f"{result.steps} step{'s' * (result.steps > 1)}"
        skipped = f"; skipped as not finite: {result.skipped}" if result.skipped else ""
        lines = [f"Trained {what} in {format_duration(seconds)}{skipped}."]
    if result.skipped_last:
        last = result.steps - result.skipped_last
        lines += [
            f"NOT FINITE: loss or gradient of the last {result.skipped_last} steps. The weights since "
            f"step {last} gave no finite loss: of the checkpoints use one before that."
        ]
    lines += [f"Run folder: {result.folder}", f"Checkpoint: {result.checkpoint}"]
    if result.test_metrics:
        lines += ["On test videos, never trained on: " + objective.describe(result.test_metrics)]
    if isinstance(objective.encoder(), Backbone):
        lines += [f"Next: vidssl eval {result.folder} --protocol linear"]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
