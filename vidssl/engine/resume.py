"""State of a run besides its weights, for a resume at the very step; and the runs that can be resumed.

A resume state is a safetensors file in ``resume/`` that belongs to the checkpoint of its step: the
optimizer's tensors, the random states, and what was measured since the last log line. Schedules are
functions of the step and batches are functions of their place, so nothing of them is kept.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from vidssl.config.strict_yaml import Node, parse
from vidssl.engine import checkpoint as checkpoints, collapse, distributed, guard, parallel, process, speed
from vidssl.engine.facts import Facts
from vidssl.engine.logging import Meter
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.interfaces import Objective

FORMAT = "vidssl resume state 1"
FREE = ("run",)  # sections of a recipe that may change when a run resumes
LENGTH = ("schedule.steps", "schedule.epochs")  # keys that may change where no step taken depends on them


@dataclass(frozen=True)
class Moving:
    """Everything of a run that changes from step to step, and that a resume must find as it was.

    An objective keeps what it changes in parameters and persistent buffers; randomness comes from
    ``generator`` or from torch's global generators.
    """

    objective: Objective
    optimizer: Optimizer
    generator: torch.Generator
    window: Meter
    watch: collapse.CollapseWatch = field(default_factory=collapse.CollapseWatch)
    skips: guard.Skips = field(default_factory=guard.Skips)
    scaler: GradScaler = field(default_factory=lambda: speed.loss_scaler(None, torch.device("cpu")))


@dataclass(frozen=True)
class Restored:
    """Where a run resumes: steps done, and the seconds that they took."""

    step: int
    seconds: float


def save_state(
    folder: RunFolder, moving: Moving, *, step: int, seconds: float, world: distributed.World | None = None
) -> None:
    """Writes the resume state that belongs to the checkpoint of ``step``, which is there already.

    Args:
        world: all processes call this together, and rank 0 writes.

    Raises:
        UsageError: if it cannot be written; older ones stay.
    """
    world = world or distributed.World()
    optimizer = parallel.whole(optimizer_tensors(moving.optimizer), keep=world.first)
    everybodys = world.gather_tensors(_own_tensors(moving))
    if not world.first:
        return
    tensors = {f"optimizer.{key}": value for key, value in optimizer.items()}
    for number, own in enumerate(everybodys):
        tensors |= {f"{_owner(number)}{key}": value for key, value in own.items()}
    tensors = {key: value.detach().cpu() for key, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "step": json.dumps(step),
        "seconds": json.dumps(seconds),
        "processes": json.dumps(world.size),
        "weights_sha256": process.file_sha256(folder.checkpoint_path(step)),
    }
    checkpoints.save_tensors(
        folder.state_path(step),
        tensors,
        {**metadata, "digest": checkpoints.tensors_digest(tensors, metadata)},
    )


def _own_tensors(moving: Moving) -> dict[str, Tensor]:
    """State of each process by itself."""
    return {
        **{f"window.{key}": value for key, value in moving.window.tensors().items()},
        **{f"watch.{key}": value for key, value in moving.watch.tensors().items()},
        **{f"skips.{key}": value for key, value in moving.skips.tensors().items()},
        **{f"scaler.{key}": value for key, value in speed.scaler_tensors(moving.scaler).items()},
        **{f"random.{key}": value for key, value in guard.random_states(moving.generator).items()},
    }


def _owner(number: int) -> str:
    """Prefix of a process's own tensors; rank 0's are those of a run of one process."""
    return f"process{number}." if number else ""


def restore(
    folder: RunFolder, moving: Moving, *, say: Callable[[str], None], world: distributed.World | None = None
) -> Restored:
    """Puts a run back to its newest step that is whole on disk, and takes away what was written after that.

    It may resume with another number of processes than it was saved by.

    Args:
        say: gets a line for each damaged file that is passed over, and where numbers of processes differ.
        world: all processes call this together; the folder must be there for each of them.

    Raises:
        UsageError: if there is no state to resume from.
    """
    world = world or distributed.World()
    found: list[_Whole] = []

    def newest() -> str:
        found.append(_newest_whole(folder, moving.objective, say))
        return str(found[0].step)

    step = int(world.from_first(newest))
    state = found[0] if found else _read_whole(folder, folder.state_path(step))
    checkpoints.load_objective(moving.objective, state.checkpoint)
    load_optimizer(moving.optimizer, checkpoints.below(state.tensors, "optimizer."))
    _load_own(moving, state, world, say)
    world.barrier()
    if world.first:
        folder.forget_after(step)
    return Restored(step, state.facts.number("seconds"))


@dataclass(frozen=True)
class _Whole:
    """A checkpoint and its resume state, both undamaged."""

    step: int
    checkpoint: checkpoints.Checkpoint
    facts: Facts
    tensors: Mapping[str, Tensor]


def _newest_whole(folder: RunFolder, objective: Objective, say: Callable[[str], None]) -> _Whole:
    """The newest state that is undamaged and finite; earlier versions saved others too."""
    for path in reversed(folder.states()):
        try:
            found = _read_whole(folder, path)
            weights = checkpoints.objective_state(objective, found.checkpoint)
            buffers = checkpoints.buffers_of(objective)
            checkpoints.refuse_broken(found.checkpoint.path, weights, buffers)
            checkpoints.refuse_broken(path, checkpoints.below(found.tensors, "optimizer."), frozenset())
            return found
        except UsageError as error:
            say(f"{error}. The state before it is used.")
    raise no_state(folder)


def no_state(folder: RunFolder) -> UsageError:
    """The error about a run that there is nothing to resume of."""
    return UsageError(
        f"{folder.path}: no state to resume from (they lie in {folder.resume.name}/ beside the checkpoints). "
        "Start a new run, from these weights with backbone.init"
    )


def _read_whole(folder: RunFolder, path: Path) -> _Whole:
    facts, tensors = _read_state(path)
    step = facts.count("step")
    checkpoint = checkpoints.read_checkpoint(folder.checkpoint_path(step))
    if process.file_sha256(checkpoint.path) != facts.text("weights_sha256"):
        raise UsageError(f"{checkpoint.path}: damaged, its checksum is not that of what was written")
    guard.check_random_states(checkpoints.below(tensors, "random."), path)
    return _Whole(step, checkpoint, facts, tensors)


def _load_own(moving: Moving, state: _Whole, world: distributed.World, say: Callable[[str], None]) -> None:
    """Gives a process what it had of its own; of another number of processes, what the first had."""
    saved = state.facts.count("processes", 1)
    if saved != world.size:
        say(
            f"The run was saved by {saved} process{'es' if saved > 1 else ''} and resumes with {world.size}: "
            "from the same weights, with the same batches and masks, but not bit for bit. Sums are "
            "taken in another order, dropout and drop path draw anew, and the next line of the log is a mean "
            "over rank 0's metrics up to here."
        )
    known = saved == world.size or world.first
    own = checkpoints.below(state.tensors, _owner(world.rank if saved == world.size else 0))
    device = next(moving.objective.parameters()).device
    moving.window.load(checkpoints.below(own, "window."), device)
    moving.watch.load(checkpoints.below(own, "watch."), device)
    moving.skips.load(checkpoints.below(own, "skips."))
    speed.load_scaler(moving.scaler, checkpoints.below(own, "scaler."))
    if not _set_random_states(moving.generator, checkpoints.below(own, "random."), device, torchs_too=known):
        say("The run resumes on another kind of device: dropout and drop path draw anew.")


def find_run(out: Path, name: str, recipe: str, say: Callable[[str], None]) -> RunFolder | None:
    """The newest run of a name below ``out`` that can resume with a recipe; None where there is none.

    Args:
        recipe: text of the resolved recipe.
        say: gets a line for each run of that name whose recipe is another.
    """
    last = Path(name).name  # a name such as ``exp1/second`` has folders
    beside = (out / name).parent.glob("*/recipe.yaml")
    found = [path.parent for path in beside if _is_of(path.parent.name, last)]
    for folder in map(RunFolder, sorted(found, key=_number, reverse=True)):
        if not folder.states():
            continue
        try:
            changed = changed_keys((folder.path / "recipe.yaml").read_text(encoding="utf-8"), recipe)
        except (OSError, ValueError) as error:  # another's fault is no reason not to train
            say(f"{folder.path}: its recipe cannot be read ({error}), so this is no part of it.")
            continue
        if not changed:
            return folder
        say(f"{folder.path} has another recipe ({', '.join(changed)}), so this is no part of it.")
    return None


def _is_of(folder: str, name: str) -> bool:
    return re.fullmatch(re.escape(name) + r"(-\d+)?", folder) is not None


def _number(path: Path) -> int:
    """Which run of its name a folder is: ``bevt-3`` is the third."""
    match = re.search(r"-(\d+)$", path.name)
    return int(match[1]) if match else 1


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as ``exp_avg.backbone.norm.weight`` -> tensor; its groups carry the names."""
    return {
        f"{key}.{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimizer what ``optimizer_tensors`` took; rates are left to the schedule.

    Raises:
        UsageError: if there is state of a parameter that the optimizer does not have.
    """
    names = [name for group in optimizer.param_groups for name in group["names"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if name not in numbers:
            raise UsageError(f"the resume state has {kind} of '{name}', which is no trained parameter here")
        number = numbers[name]
        if value.dim() and value.shape != parameters[number].shape:
            raise UsageError(
                f"the resume state has {kind} of '{name}' in the shape {tuple(value.shape)}, and the "
                f"parameter has {tuple(parameters[number].shape)}"
            )
        placed = _laid_out_like(parallel.spread_like(value, parameters[number]), parameters[number])
        state.setdefault(number, {})[kind] = placed
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A parameter's state with its strides (``run.channels_last``), as the fused optimizer wants them."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def changed_keys(before: str, after: str) -> list[str]:
    """Dotted keys in which two recipes differ, each once, without those of the sections that may change."""
    old, new = (_flat(parse(text, lambda line: f"line {line}")) for text in (before, after))
    keys = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    return sorted(key for key in keys if key.split(".")[0] not in FREE)


def _flat(node: Node) -> dict[str, Node]:
    if not isinstance(node.value, Mapping):
        return {node.path: node}
    return {key: leaf for entry in node.value.values() for key, leaf in _flat(entry).items()}


def _set_random_states(
    generator: torch.Generator, states: Mapping[str, Tensor], device: torch.device, *, torchs_too: bool = True
) -> bool:
    """Whether all could be set: torch's own numbers on a GPU do not go on where a CPU's stopped.

    Args:
        device: that the network is on.
        torchs_too: off where torch's own generators stay as they are, and are not set to another process's.
    """
    generator.set_state(states["objective"])
    if torchs_too:
        torch.set_rng_state(states["cpu"])
    on_gpu = device.type == "cuda"
    if on_gpu and torchs_too and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    return on_gpu == ("cuda" in states)


def _read_state(path: Path) -> tuple[Facts, dict[str, Tensor]]:
    """A resume state whose content is what was written.

    Raises:
        UsageError: if it is damaged or no resume state.
    """
    metadata, tensors = checkpoints.read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path}: no resume state (its metadata lacks format: {FORMAT!r})")
    if metadata.pop("digest", "") != checkpoints.tensors_digest(tensors, metadata):
        raise UsageError(f"{path}: damaged, its checksum is not that of what was written")
    return Facts(path, {"processes": "1", **metadata}), tensors  # older files lack it
