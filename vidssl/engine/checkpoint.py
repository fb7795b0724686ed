"""Checkpoints: one safetensors file that holds the weights and describes them.

Keys are ``encoder.*`` (what is exported and evaluated) and ``objective.*`` (heads, decoders). The
metadata carries the step and the whole resolved recipe, so a checkpoint can be evaluated wherever it
is copied to.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from vidssl.engine.facts import Facts
from vidssl.engine.parallel import own_shards, spread_state, whole
from vidssl.engine.process import write_atomically
from vidssl.errors import UsageError
from vidssl.interfaces import Objective

FORMAT = "vidssl checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: where it was read from.
        step: optimizer steps behind it.
        recipe: text of the resolved recipe.
        encoder: the encoder's state.
        objective: everything else the objective had, under its own names.
    """

    path: Path
    step: int
    recipe: str
    encoder: Mapping[str, Tensor]
    objective: Mapping[str, Tensor]


def encoder_prefix(objective: Objective) -> str:
    """Where the encoder sits inside its objective, e.g. ``backbone.``."""
    return prefix_of(objective.encoder(), objective)


def prefix_of(part: nn.Module, whole: nn.Module) -> str:
    """Where a module sits inside another, as its parameters' names begin there."""
    for name, module in whole.named_modules():
        if module is part:
            return f"{name}." if name else ""
    raise ValueError(f"{type(whole).__name__}'s {type(part).__name__} is not one of its own sub-modules")


def save_checkpoint(path: Path, objective: Objective, *, step: int, recipe: str, write: bool = True) -> None:
    """Write the objective's weights to ``path`` in one piece.

    Args:
        write: off in all processes of a run but one: they only give their shards of sharded weights.

    Raises:
        UsageError: if the file cannot be written; an older one of that name is left as it was.
    """
    prefix = encoder_prefix(objective)
    state = whole(objective.state_dict(), keep=write)
    if not write:
        return
    tensors = {
        f"encoder.{key.removeprefix(prefix)}" if key.startswith(prefix) else f"objective.{key}": value
        for key, value in state.items()
    }
    save_tensors(path, tensors, {"format": FORMAT, "step": json.dumps(step), "recipe": recipe})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file in one piece; a tensor of two names is written twice.

    Raises:
        UsageError: if the file cannot be written; an older one of that name is left as it was.
    """
    written: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().contiguous().cpu()
        place = tensor.untyped_storage().data_ptr()
        written[key] = tensor.clone() if place in seen else tensor
        seen.add(place)
    write_atomically(path, lambda temporary: _save(written, temporary, metadata))


def load_objective(objective: Objective, checkpoint: Checkpoint) -> None:
    """Put an objective back to what ``save_checkpoint`` wrote of it.

    Raises:
        UsageError: if the checkpoint is of another objective or network, or its weights are not finite.
    """
    state = objective_state(objective, checkpoint)
    refuse_broken(checkpoint.path, state, buffers_of(objective))
    try:
        objective.load_state_dict(spread_state(objective, state))
    except RuntimeError as error:
        raise UsageError(
            f"{checkpoint.path}: of another objective or network: {' '.join(str(error).split())}"
        ) from error


def objective_state(objective: Objective, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's weights under the objective's own names."""
    prefix = encoder_prefix(objective)
    return {f"{prefix}{key}": value for key, value in checkpoint.encoder.items()} | dict(checkpoint.objective)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # the library wraps a full disk in its own type
        raise OSError(str(error)) from error


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint. Nothing in it can execute code.

    Raises:
        UsageError: if the file is missing, cut short, or not a checkpoint of this package, or its metadata
            are damaged.
    """
    path = Path(path)
    metadata, tensors = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(
            f"{path}: a safetensors file, but no checkpoint that 'vidssl train' wrote (its metadata lacks "
            f"format: {FORMAT!r})"
        )
    facts = Facts(path, metadata)
    return Checkpoint(
        path,
        step=facts.count("step"),
        recipe=facts.text("recipe"),
        encoder=below(tensors, "encoder."),
        objective=below(tensors, "objective."),
    )


def read_tensors(
    path: Path, *, only: Collection[str] | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, or those tensors of them that ``only`` names.

    Raises:
        UsageError: if the file is missing or cut short.
    """
    if not path.is_file():
        raise UsageError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if only is None else only
            return file.metadata() or {}, {key: file.get_tensor(key) for key in names}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path}: damaged or cut short ({error}); take another checkpoint, or make it again"
        ) from error


def tensors_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, and over the metadata."""
    made = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        made.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


_NAMED = 3  # tensors that a message lists


def broken(tensors: Mapping[str, Tensor], buffers: frozenset[str] = frozenset()) -> list[str]:
    """Names of the tensors that hold NaN or inf.

    Args:
        buffers: names of those that may hold -inf, as attention masks do.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()]
    values = own_shards([tensors[name].detach() for name in names])
    sound = [
        (value < torch.inf).all() if name in buffers else value.isfinite().all()
        for name, value in zip(names, values, strict=True)
    ]
    if not sound:
        return []
    found = torch.stack([each.cpu() for each in sound]).tolist()
    return [name for name, fine in zip(names, found, strict=True) if not fine]


def buffers_of(module: nn.Module) -> frozenset[str]:
    """Names of a module's buffers."""
    return frozenset(name for name, _ in module.named_buffers())


def broken_weights(module: nn.Module, optimizer: Optimizer | None = None) -> list[str]:
    """Names of a module's weights and buffers, and of an optimizer's state, that hold NaN or inf."""
    found = broken(module.state_dict(), buffers_of(module))
    if optimizer is None:
        return found
    state = {
        f"{kind} of {name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    return found + broken(state)


def refuse_broken(source: object, tensors: Mapping[str, Tensor], buffers: frozenset[str]) -> None:
    """Refuses weights that are not finite.

    Raises:
        UsageError: naming ``source``, how many tensors hold NaN or inf, and some of them.
    """
    found = broken(tensors, buffers)
    if found:
        raise UsageError(
            f"{source}: not finite (NaN or inf): {listed(found)} of {len(tensors)}. The training that wrote "
            "these weights diverged: take an earlier checkpoint or other weights"
        )


def listed(names: list[str]) -> str:
    """How many tensors, and which: ``3 tensors (a, b, c)``."""
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:_NAMED])}{more})"
