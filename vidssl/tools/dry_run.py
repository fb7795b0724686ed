"""A recipe tried out: everything is built, two steps are taken, and what a run would cost is shown.

Nothing is kept: no run folder, no weights, and random states are put back. Only data sets may write what they
keep for themselves (made videos, lists of files).
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vidssl.build import build
from vidssl.build.checks import check_repeats
from vidssl.build.registry import MASKER, constructor_of
from vidssl.config.recipe import Recipe, RunSpec
from vidssl.config.schema import construct
from vidssl.data.loader import Loader, Stream
from vidssl.engine.logging import format_duration, print_line, shown_messages, terminal
from vidssl.engine.resume import optimizer_tensors
from vidssl.engine.schedules import StepPlan
from vidssl.engine.speed import deterministic, peak_memory, pick_device
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Masker, Objective, Tokenizer
from vidssl.interfaces.grids import GridSize, common_grid
from vidssl.train.trial import Trial, frozen_tokenizer, random_states_kept

_ROWS = 16  # masks that are drawn to say how much is hidden


@dataclass(frozen=True)
class PartSize:
    """A part of an objective: where it lies, what becomes of it, and how many numbers it has."""

    name: str
    fate: str
    parameters: int


@dataclass(frozen=True)
class ViewSize:
    """A view as it is seen.

    Attributes:
        clip: (T, H, W) in pixels.
        cells: the backbone's grid; None where there is no backbone.
        ids: the tokenizer's grid; None where there is none.
        hidden: mean number of cells that a mask hides, and of how many; None where nothing is masked.
    """

    name: str
    slots: int
    batch_size: int
    clip: GridSize
    cells: GridSize | None
    ids: GridSize | None
    hidden: tuple[float, int] | None


@dataclass(frozen=True)
class StepCost:
    """Costs of a step.

    Attributes:
        flops: of forward and backward pass, as PyTorch counts them: matrix products, convolutions, attention.
        seconds: of a step after the first.
        data_seconds: to make its batch, in this process and with nothing beside it.
        memory: peak bytes, of the GPU or of this process.
        metrics: of the last step.
        weights, state: bytes of a checkpoint, and of what resuming needs besides.
    """

    flops: int
    seconds: float
    data_seconds: float
    memory: int
    metrics: Mapping[str, float]
    weights: int
    state: int


def dry_run(recipe: Recipe, console: Console | None = None) -> None:
    """Builds what a recipe describes, takes two steps on two batches and prints what a run would take.

    Raises:
        UsageError: for all that training would refuse, and if a step's loss is not finite.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--dry-run looks at one process: start it without torchrun")
    console = console or terminal()
    build.check(recipe)
    with shown_messages(console), random_states_kept(), deterministic(recipe.run.deterministic):
        streams = build.streams(recipe)
        torch.manual_seed(recipe.seed)
        objective = build.objective(recipe, say=logging.getLogger(__name__).info)
        for line in check_repeats(objective, streams):
            print_line(console, line)
        plan = build.schedule(recipe).plan({name: len(s) / s.batch_size for name, s in streams.items()})
        parts, views = part_sizes(objective), view_sizes(recipe, objective)
        cost = two_steps(recipe, objective, streams, plan)
    step = _step_table(pick_device(recipe.run.device), cost)
    for table in (
        _part_table(parts),
        _view_table(views),
        step,
        _run_table(recipe.run, plan.total_steps, cost),
    ):
        console.print(table)
    console.print("Nothing was kept.", highlight=False)


# what there is


def part_sizes(objective: Objective) -> list[PartSize]:
    """Backbones, heads and tokenizers of an objective; parameters that two parts share count in the first."""
    seen: set[int] = set()
    found = []
    for name, module in _parts(objective, ""):
        parameters = [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(parameter) for parameter in parameters}
        if parameters:
            trained = any(parameter.requires_grad for parameter in parameters)
            count = sum(parameter.numel() for parameter in parameters)
            found.append(PartSize(name, "trained" if trained else "an average, follows", count))
    tokenizer = frozen_tokenizer(objective)
    if tokenizer is not None:
        count = sum(parameter.numel() for parameter in tokenizer.parameters())
        found.append(PartSize("tokenizer", "frozen", count))
    return found


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Networks, and what lies beside them; what holds a network is taken apart."""
    holds = any(isinstance(part, Backbone | Tokenizer) for part in module.modules())
    if isinstance(module, Backbone | Tokenizer) or not holds:
        yield name, module
        return
    children = sorted(module.named_children(), key=lambda item: not isinstance(item[1], Backbone))
    for child, part in children:
        yield from _parts(part, f"{name}.{child}".lstrip("."))


def view_sizes(recipe: Recipe, objective: Objective) -> list[ViewSize]:
    """Tokens and hidden cells of every view."""
    encoder, tokenizer = objective.trained_encoder(), frozen_tokenizer(objective)
    part = recipe.masker
    masker = None if part is None else construct(part.node, constructor_of(part, MASKER), apart=part.apart)
    found = []
    for spec in recipe.data.streams.values():
        for name, slots in build.views(spec.views).shapes.items():
            for clip in dict.fromkeys(slots):
                ids = None if tokenizer is None else tokenizer.grid(*clip)
                reads_ids = isinstance(encoder, Backbone) and encoder.input_kind == "tokens"
                cells = encoder.grid(*(ids if reads_ids and ids is not None else clip))
                hidden = None if masker is None else _hidden(masker, cells, ids)
                found.append(ViewSize(name, slots.count(clip), spec.batch_size, clip, cells, ids, hidden))
    return found


def _hidden(masker: Masker, cells: GridSize, ids: GridSize | None) -> tuple[float, int]:
    grid = cells if ids is None else common_grid(cells, ids)
    mask = masker(_ROWS, grid, torch.Generator().manual_seed(0))
    return float(mask.flatten(1).sum(1).float().mean()), math.prod(grid)


# what a step takes


def two_steps(
    recipe: Recipe, objective: Objective, streams: Mapping[str, Stream], plan: StepPlan, timed: int = 1
) -> StepCost:
    """Takes steps as a run would; the first is counted, the ``timed`` after it are timed, by their median.

    Raises:
        UsageError: if a loss or gradient is not finite.
    """
    run, trial = recipe.run, Trial(recipe, objective, plan)
    slices = {name: replace(stream, workers=0, parts=run.accumulate) for name, stream in streams.items()}
    with Loader(slices) as loader:
        flops = count_flops(partial(trial.take, 0, next(loader)))
        batch, waited = trial.timed(lambda: next(loader))
        if run.compile:  # compiling is no part of a step
            trial.take(1, batch)
        metrics, took = trial.timed(partial(trial.take, 1, batch))
        waits, takes = [waited], [took]
        for step in range(2, timed + 1):
            batch, waited = trial.timed(lambda: next(loader))
            metrics, took = trial.timed(partial(trial.take, step, batch))
            waits, takes = [*waits, waited], [*takes, took]
    return StepCost(
        flops,
        median(takes),
        median(waits),
        peak_memory(trial.device),
        {name: float(value) for name, value in metrics.items()},
        weights=sum(value.nbytes for value in objective.state_dict().values()),
        state=sum(value.nbytes for value in optimizer_tensors(trial.moving.optimizer).values()),
    )


def count_flops(take: Callable[[], object]) -> int:
    """FLOPs of a step, as PyTorch counts them: matrix products, convolutions, attention."""
    counter = FlopCounterMode(display=False)
    with torch.compiler.set_stance("force_eager"), counter:  # what is compiled is not seen
        take()
    return counter.get_total_flops()


# what the run takes


def step_seconds(cost: StepCost, workers: int) -> float:
    """A step with its batch: workers decode beside the network, without them it waits."""
    if workers == 0:
        return cost.seconds + cost.data_seconds
    return max(cost.seconds, cost.data_seconds / workers)


def files_kept(run: RunSpec, total_steps: int) -> tuple[int, int]:
    """Checkpoints and resume states that lie on the disk when a run is done."""
    saved = {*range(run.checkpoint_every_steps, total_steps + 1, run.checkpoint_every_steps), total_steps}
    newest = sorted(saved)[-run.keep_checkpoints :]
    every = run.keep_every_steps
    kept = saved if every is None else {step for step in saved if step % every == 0} | {*newest}
    return len(kept), len(newest)


# tables


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", show_header=any(heads))
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    return table


def _part_table(parts: list[PartSize]) -> Table:
    table = _table("parameters", "part", "parameters", "is")
    for part in parts:
        table.add_row(part.name or "all", f"{part.parameters:,}", part.fate)
    trained = sum(part.parameters for part in parts if part.fate == "trained")
    table.add_section()
    table.add_row("", f"{trained:,}", "trained in all")
    return table


def _view_table(views: list[ViewSize]) -> Table:
    table = _table("tokens", "view", "a step", "pixels", "cells", "ids", "hidden")
    for view in views:
        hidden = "-"
        if view.hidden is not None:
            hidden = f"{view.hidden[0]:.0f} of {view.hidden[1]}"
        count = f"{view.batch_size}" if view.slots == 1 else f"{view.batch_size} x {view.slots}"
        table.add_row(view.name, count, _size(view.clip), _cells(view.cells), _cells(view.ids), hidden)
    table.caption = "Frames x rows x columns of one clip. What is hidden: cells of the mask, in the mean."
    return table


def _size(size: GridSize) -> str:
    return " x ".join(map(str, size))


def _cells(grid: GridSize | None) -> str:
    return "-" if grid is None else f"{_size(grid)} = {math.prod(grid)}"


def _step_table(device: torch.device, cost: StepCost) -> Table:
    where = "of the GPU" if device.type == "cuda" else "of this process"
    table = _table("a step", "", "")
    rows = {
        "forward and backward": f"{_flops(cost.flops)} ({_flops(cost.flops / cost.seconds)} a second)",
        "time": f"{cost.seconds:.3g} s",
        "to make its batch": f"{cost.data_seconds:.3g} s in one process",
        "peak memory": f"{_bytes(cost.memory)} {where}",
        **{name: f"{value:.4g}" for name, value in cost.metrics.items()},
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _run_table(run: RunSpec, total_steps: int, cost: StepCost) -> Table:
    checkpoints, states = files_kept(run, total_steps)
    seconds = step_seconds(cost, run.workers) * total_steps
    table = _table("the whole run, estimated", "", "")
    disk = checkpoints * cost.weights + states * cost.state
    rows = {
        "steps": f"{total_steps:,}",
        "forward and backward": _flops(cost.flops * total_steps),
        "time": format_duration(seconds),
        "checkpoints": f"{checkpoints} x {_bytes(cost.weights)}",
        "states to resume from": f"{states} x {_bytes(cost.state)}",
        "disk": _bytes(disk),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    by = "the step itself" if cost.seconds * run.workers >= cost.data_seconds else "decoding"
    if run.workers == 0:
        by = "both decoding and the step, one after the other"
    table.caption = f"Time is set by {by} (run.workers={run.workers}); tests, probes and saving come on top."
    return table


def _flops(count: float) -> str:
    for power, letter in ((15, "P"), (12, "T"), (9, "G")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {letter}FLOP"
    return f"{count / 1e6:.3g} MFLOP"


def _bytes(count: float) -> str:
    for power, letter in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {letter}"
    return f"{count / 2**10:.3g} KiB"
