"""The training loop, and what happens around it."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from vidssl import build
from vidssl.data.loader import Loader, Stream
from vidssl.engine.checkpoint import save_checkpoint
from vidssl.engine.devices import pick_device, use_bfloat16
from vidssl.engine.display import TrainDisplay, format_duration, shown_messages
from vidssl.engine.optim import Optim
from vidssl.engine.runfolder import RunFolder, create_run
from vidssl.engine.schedules import Schedule
from vidssl.engine.signals import stop_requests
from vidssl.engine.window import Window
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, Objective, Progress
from vidssl.recipe import Recipe, RunSpec
from vidssl.resolved import resolved_text

STOPPED = 130  # exit code after Ctrl-C or SIGTERM, as a shell has it


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


def train(
    objective: Objective,
    streams: Mapping[str, Stream],
    *,
    optim: Optim,
    schedule: Schedule,
    name: str,
    seed: int = 0,
    run: RunSpec | None = None,
    augment: Callable[[Batch, torch.Generator], Batch] | None = None,
    test_streams: Mapping[str, Stream] | None = None,
    recipe_text: str = "",
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

    Raises:
        UsageError: if the loss stops being a number, the disk is full or too many videos cannot be read.
            Checkpoints written before stay.
    """
    run, console = run or RunSpec(), console or Console()
    device = pick_device(run.device)
    autocast = use_bfloat16(run.precision, device)
    objective.to(device).train()
    update, optimizer = optim.update, optim.build(objective)
    try:
        plan = schedule.plan({name: len(stream) / stream.batch_size for name, stream in streams.items()})
    except ValueError as error:
        raise UsageError(f"schedule: {error}") from error
    generator = torch.Generator(device).manual_seed(seed)
    folder = create_run(Path(run.out), name, recipe_text)
    console.print(f"Run folder: {folder.path}", soft_wrap=True, highlight=False, markup=False)
    window, test_metrics, done = Window(), {}, 0
    with (
        stop_requests() as stop,
        TrainDisplay(plan.total_steps, console) as display,
        Loader(streams, say=display.say) as loader,
    ):
        for step in range(plan.total_steps):
            progress = Progress(step, plan.total_steps, plan.steps_per_epoch)
            update.set_rates(optimizer, plan, step)
            batch = next(loader).to(device)
            if augment is not None:
                batch = augment(batch, generator)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                output = objective(batch, progress, generator)
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            grad_norm = update.clip_gradients(objective.parameters())
            _check_finite(output.loss, grad_norm, step, folder)
            optimizer.step()
            objective.after_step(progress, generator)

            done = step + 1
            last = done == plan.total_steps or bool(stop)
            window.add(output.metrics, grad_norm, batch, loader.waited_seconds)
            display.step(done)
            if last or done % run.log_every_steps == 0:
                means = window.means() | {"lr": update.lr_at(plan, step)}
                if update.final_weight_decay is not None:
                    means["weight_decay"] = update.weight_decay_at(plan, step)
                folder.log({"step": done, "seconds": time.monotonic() - display.started, **means})
                display.metrics(done, means)
            if last or done % run.checkpoint_every_steps == 0:
                save_checkpoint(folder.checkpoint_path(done), objective, step=done, recipe=recipe_text)
                if test_streams:
                    test_metrics = measure(
                        objective, test_streams, batches=run.test_batches, device=device, autocast=autocast
                    )
                    record = {f"test_{name}": value for name, value in test_metrics.items()}
                    folder.log({"step": done, "seconds": time.monotonic() - display.started, **record})
            if last:  # and not `if stop`: a signal that came during logging waits for the next step
                break
    return TrainResult(folder.path, folder.checkpoint_path(done), done, plan.total_steps, test_metrics)


def _check_finite(loss: Tensor, grad_norm: Tensor, step: int, folder: RunFolder) -> None:
    loss, grad_norm = loss.detach(), grad_norm.detach()
    if not bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
        raise UsageError(
            f"step {step}: the loss is {float(loss)}, the gradient norm {float(grad_norm)}; the run stops. "
            f"Lower optim.lr, lengthen the warm-up or set run.precision=fp32. Checkpoints up to here are in "
            f"{folder.checkpoints}"
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


def run_recipe(recipe: Recipe, console: Console | None = None) -> int:
    """Train what a recipe describes, say what came of it and what to do next.

    Returns:
        Exit code: 0, or 130 if the run was asked to stop before its last step.
    """
    console = console or Console()
    started = time.monotonic()
    with shown_messages(console):
        objective, result = train_recipe(recipe, console)
    _conclude(result, objective, time.monotonic() - started, console)
    return 0 if result.steps == result.total_steps else STOPPED


def train_recipe(recipe: Recipe, console: Console) -> tuple[Objective, TrainResult]:
    """Build what a recipe describes, train it, and hand it over as it is then."""
    build.check(recipe)
    torch.manual_seed(recipe.seed)
    objective = build.objective(recipe, say=logging.getLogger(__name__).info)
    result = train(
        objective,
        build.streams(recipe),
        optim=build.optim(recipe),
        schedule=build.schedule(recipe),
        name=recipe.name,
        seed=recipe.seed,
        run=recipe.run,
        augment=build.augment(recipe),
        test_streams=build.test_streams(recipe),
        recipe_text=resolved_text(recipe),
        console=console,
    )
    return objective, result


def _conclude(result: TrainResult, objective: Objective, seconds: float, console: Console) -> None:
    if result.steps < result.total_steps:
        lines = [f"Stopped after {result.steps} of {result.total_steps} steps; the network so far is saved."]
    else:
        lines = [f"Trained {result.steps} steps in {format_duration(seconds)}."]
    lines += [f"Run folder: {result.folder}", f"Checkpoint: {result.checkpoint}"]
    if result.test_metrics:
        lines += ["On test videos, never trained on: " + objective.describe(result.test_metrics)]
    if isinstance(objective.encoder(), Backbone):
        lines += [f"Next: vidssl eval {result.folder} --protocol linear"]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
