"""``vidssl replay``: a step whose loss was not finite, repeated on a CPU with every module watched."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.data.loader import Loader, slices
from vidssl.engine.accumulate import JointLoss, backward_in_parts, split_batch
from vidssl.engine.gather import drawing_as, in_parts
from vidssl.engine.guard import Attempt, Capture, read_capture
from vidssl.engine.logging import print_line, terminal
from vidssl.errors import UsageError, counted
from vidssl.evaluate.subject import stored_recipe
from vidssl.interfaces import Batch, Objective

ReplayPrecision = Literal["fp32", "run"]
_NAMED = 10  # parameters that are listed one by one
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BadOutput:
    """The first output of a forward pass that is not finite.

    Attributes:
        name: of the module, as its parameters' names begin; empty for the objective itself.
        kind: its class.
        bad: values that are nan or infinite, of ``count``.
        shape: of the tensor that holds them.
        sound_input: whether all that it was given is finite.
    """

    name: str
    kind: str
    bad: int
    count: int
    shape: tuple[int, ...]
    sound_input: bool


@dataclass(frozen=True)
class Replay:
    """The results of a repeated step.

    Attributes:
        loss: of the batch, before scaling.
        first: the first output that is not finite, None where all are.
        parameters: names of those whose gradients are not finite, the last first, as a backward pass goes.
        weights: names of weights and buffers that were not finite before the step.
    """

    loss: float
    first: BadOutput | None
    parameters: tuple[str, ...]
    weights: tuple[str, ...]


def replay(
    name: str, *, precision: ReplayPrecision = "fp32", trust: bool = False, console: Console | None = None
) -> int:
    """Repeats the forward and the backward pass of a captured step and prints where it ceases to be finite.

    Args:
        name: the capture file.
        precision: "fp32", or the run's own.
        trust: use code and addresses that the recipe names, whoever trained it.

    Returns:
        Exit code 0, whether the step went wrong again or not.

    Raises:
        UsageError: if the file is no capture, or what its recipe names cannot be built.
    """
    say = partial(print_line, console or terminal())
    capture = read_capture(Path(name))
    if not capture.conditions.recipe:
        raise UsageError(f"{name}: holds no recipe, as the run was started by train() without recipe_text")
    run = Path(name).absolute().parent.parent
    recipe = stored_recipe(capture.conditions.recipe, Path(name), run, trust=trust)
    for line in _described(capture):
        say(line)
    objective = build.objective(recipe, say, with_init=False)
    _load(objective, capture)
    say(_compared_with_sources(capture, recipe))
    used = "fp32" if precision == "fp32" else capture.conditions.precision
    found = repeat(objective, capture, recipe, used)
    for line in _found(found, used, capture):
        say(line)
    return 0


def repeat(objective: Objective, capture: Capture, recipe: Recipe, precision: str) -> Replay:
    """The step once more: the batch augmented, forward and backward, part by part as in the run.

    Masks and augmentation are the step's own; so is dropout, if the step was taken on a CPU.
    """
    attempt, conditions = capture.attempt, capture.conditions
    generator = torch.Generator().manual_seed(recipe.seed)
    objective.train()
    weights = tuple(key for key, value in attempt.state.items() if not _finite(value))
    with torch.random.fork_rng(devices=[]), first_bad_output(objective) as found:
        generator.set_state(attempt.random["objective"])
        torch.set_rng_state(attempt.random["cpu"])
        batch = attempt.batch.to(torch.device("cpu"))
        augment = build.augment(recipe)
        with drawing_as(conditions.rank, conditions.world):
            if augment is not None:
                with in_parts(conditions.parts):
                    batch = augment(batch, generator)
            loss = _backward(objective, split_batch(batch, conditions.parts), attempt, generator, precision)
    parameters = tuple(
        key
        for key, value in reversed(list(objective.named_parameters()))
        if value.grad is not None and not _finite(value.grad)
    )
    return Replay(loss, found[0] if found else None, parameters, weights)


def _backward(
    objective: Objective, parts: Sequence[Batch], attempt: Attempt, generator: torch.Generator, precision: str
) -> float:
    """Gradients of a batch in parts, as the loop takes them; its loss."""
    autocast = partial(torch.autocast, "cpu", _DTYPES.get(precision), enabled=precision in _DTYPES)
    factor = attempt.scale if attempt.scale is not None and precision == "fp16" else 1.0
    if len(parts) > 1 and isinstance(objective, JointLoss) and not objective.splits_batch:
        joint = backward_in_parts(
            objective, parts, attempt.progress, generator, autocast=autocast, scale=lambda loss: loss * factor
        )
        return float(joint.loss)
    total = 0.0
    for part in parts:
        with autocast():
            output = objective(part, attempt.progress, generator)
        (output.loss * factor / len(parts)).backward()
        total += float(output.loss.detach()) / len(parts)
    return total


@contextmanager
def first_bad_output(network: nn.Module) -> Iterator[list[BadOutput]]:
    """Watches a network's forward passes; the list gets the first output that is not finite, if any.

    A module ends before the one that holds it, so that the first is the innermost.
    """
    found: list[BadOutput] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object, keywords: object, output: object) -> None:
            bad = None if found else next((t for t in tensors_in(output) if not _finite(t)), None)
            if bad is not None:
                count = int((~torch.isfinite(bad)).sum())
                sound = all(map(_finite, tensors_in((args, keywords))))
                found.append(
                    BadOutput(name, type(module).__name__, count, bad.numel(), tuple(bad.shape), sound)
                )

        return look

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in network.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def tensors_in(thing: object) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, mappings and dataclasses."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for entry in thing.values():
            yield from tensors_in(entry)
    elif isinstance(thing, Sequence) and not isinstance(thing, str):
        for entry in thing:
            yield from tensors_in(entry)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            yield from tensors_in(getattr(thing, field.name))


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _load(objective: Objective, capture: Capture) -> None:
    try:
        objective.load_state_dict(dict(capture.attempt.state))
    except RuntimeError as error:
        raise UsageError(
            f"{capture.path}: its weights are not those of its recipe: {' '.join(str(error).split())}"
        ) from error


def _described(capture: Capture) -> list[str]:
    attempt, conditions = capture.attempt, capture.conditions
    where = f"{conditions.precision} on {conditions.device}"
    lines = [
        f"Step {attempt.progress.step + 1} of {attempt.progress.total_steps}, {where}: the loss was "
        f"{attempt.loss:.6g}, the gradient norm {attempt.grad_norm:.6g}."
    ]
    if conditions.world > 1:
        lines += [
            f"This is the part of rank {conditions.rank} of {conditions.world}, repeated alone: a loss "
            "that compares clips of all processes will differ."
        ]
    if conditions.device != "cpu":
        lines += [
            f"Random numbers of {conditions.device} cannot be drawn on a CPU: masks and the like differ."
        ]
    for stream, places in capture.samples.items():
        lines += (
            [f"{stream}: {counted(len(places), 'sample')}, of epoch {places[0].epoch}:"] if places else []
        )
        lines += [f"  {place.key} (place {place.place})" for place in places]
    return lines


def _compared_with_sources(capture: Capture, recipe: Recipe) -> str:
    """Rebuilds the batch from its sources and compares it with the one that was kept."""
    attempt, conditions = capture.attempt, capture.conditions
    kept = "the views that the capture keeps are used"
    try:
        shares = slices(build.streams(recipe), conditions.rank, conditions.world, conditions.parts)
        with Loader(shares, start_step=attempt.progress.step) as loader:
            rebuilt = next(loader)
    except UsageError as error:
        return f"The batch cannot be rebuilt, {kept}: {str(error).splitlines()[0]}"
    if _same(rebuilt, attempt.batch):
        return "The batch was rebuilt from its sources and is the same, value by value."
    return f"The batch was rebuilt from its sources and is another: the data have changed; {kept}."


def _same(one: Batch, other: Batch) -> bool:
    mine, theirs = (
        {f"{name}.{number}": slot for name, slots in batch.views.items() for number, slot in enumerate(slots)}
        for batch in (one, other)
    )
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def _found(found: Replay, precision: str, capture: Capture) -> list[str]:
    lines = [f"Repeated in {precision} on a CPU: the loss is {found.loss:.6g}."]
    if found.weights:
        lines += [f"Not finite before the step already: {_listed(found.weights)}."]
    if found.first is not None:
        lines += [_first(found.first)]
    elif not math.isfinite(found.loss):
        lines += ["All outputs of modules are finite: the loss ceases to be so after them."]
    if found.parameters:
        lines += [f"Gradients that are not finite: {_listed(found.parameters)}."]
    if math.isfinite(found.loss) and not found.parameters:
        lines += ["Loss and gradients are finite here."]
        if precision != capture.conditions.precision:
            lines += ["So it may be the precision: try --precision run."]
    return lines


def _first(bad: BadOutput) -> str:
    given = "its input is finite" if bad.sound_input else "so is its input"
    return (
        f"The first module whose output is not finite: {bad.name or 'the objective itself'} ({bad.kind}), "
        f"{bad.bad} of {bad.count} values of {bad.shape}; {given}."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
