"""Weights of other projects, from files or by name; nothing that is read can execute code."""

import argparse
import importlib
import pathlib
import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vidssl.engine.checkpoint import read_tensors
from vidssl.errors import UsageError

# where training scripts keep the network inside a checkpoint; of student and teacher, the teacher is
# what SVT, DINO and V-JEPA evaluate
_WRAPPERS = (
    *("teacher", "target_encoder", "ema_encoder"),
    *("state_dict", "model_state", "model", "module", "student", "encoder"),
)

_LIBRARIES = ("timm", "torchvision", "pytorchvideo")
# mean and std of its Kinetics networks, which its code does not hold
PYTORCHVIDEO_PIXELS = ((0.45,) * 3, (0.225,) * 3)

Answer = TypeVar("Answer")


def _scalar(module: str) -> Callable[..., Any]:
    """The maker of numpy's numbers, under the name that files of one of its versions give it."""

    def scalar(*given: Any) -> Any:
        make: Any = np.float64(0).__reduce__()[0]
        return make(*given)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


# what training scripts keep beside the weights, and does nothing when it is read
_HARMLESS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    _scalar("numpy._core.multiarray"),
    _scalar("numpy.core.multiarray"),  # before numpy 2
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]

# what torch.load raises for damaged files; from LookupError on for bytes that happen to read as a pickle
_DAMAGE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True)
class Taken:
    """Weights out of a source, and lines on which part of it they are and how to take another."""

    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def read_external(init: str) -> Taken:
    """Flat weights from a file, or from timm or torchvision.

    Args:
        init: ``timm:NAME``, ``torchvision:NAME`` or ``pytorchvideo:NAME``, whose weights those libraries
            fetch and keep; or a file (safetensors, or what ``torch.save`` wrote). ``FILE#student`` names the
            part of a nested checkpoint, or what stands before a dot in the tensors' names
            (``FILE#encoder_q``); without it the first of teacher, target_encoder, ema_encoder, state_dict,
            model_state, model, module, student, encoder.

    Raises:
        UsageError: if the weights cannot be had, or the file is damaged, holds no weights, or would execute
            code.
    """
    library, name = library_of(init)
    if library:
        return Taken(of_library(library, name, lambda: _fetched(library, name)))
    file, _, part = init.partition("#")
    path = Path(file)
    content = read_tensors(path)[1] if path.suffix == ".safetensors" else _read_pickle(path)
    return _unwrapped(content, part, path)


def library_of(init: str) -> tuple[str, str]:
    """The library and the name of ``timm:NAME`` and the like; empty texts for a file."""
    library, _, name = init.partition(":")
    return (library, name) if library in _LIBRARIES and name else ("", "")


def pytorchvideo_hub() -> ModuleType:
    """PyTorchVideo's networks by name, imported when first asked for: that is slow, and warns of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pytorchvideo.models.hub")


def _fetched(library: str, name: str) -> Mapping[str, Tensor]:
    if library == "timm":
        import timm  # here: importing takes a second

        return timm.create_model(name, pretrained=True).state_dict()
    if library == "pytorchvideo":
        return getattr(pytorchvideo_hub(), name)(pretrained=True).state_dict()
    import torchvision

    return torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)


def of_library(library: str, name: str, ask: Callable[[], Answer]) -> Answer:
    """The answer of a library that is asked for a network.

    Raises:
        UsageError: if it cannot.
    """
    try:
        return ask()
    except (OSError, RuntimeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{library}:{name}: {library} cannot give these weights ({' '.join(str(error).split())}). "
            "Without a network, fetch them where there is one and give the file: init=FILE in a recipe, "
            "weights=FILE to eval"
        ) from error


def _read_pickle(path: Path) -> object:
    if not path.is_file():
        raise UsageError(f"{path}: no such file, and no run folder")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = str(error).split("Please file an issue")[0].split("\n")
        shown = next((line.strip() for line in cause if "Unsupported" in line or "GLOBAL" in line), cause[0])
        raise UsageError(
            f"{path}: holds more than weights, or is no file of torch.save, and is not read ({shown}). "
            "Save only its state dict where you trust it, or as safetensors"
        ) from error
    except _DAMAGE as error:
        raise UsageError(f"{path}: damaged or cut short ({' '.join(str(error).split())[:200]})") from error


def _unwrapped(content: object, part: str, path: Path, parts: tuple[str, ...] = ()) -> Taken:
    """The tensors of the innermost mapping that a checkpoint keeps its network in.

    Args:
        parts: of the mappings around this one, for messages.
    """
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: holds a {type(content).__name__} and not a mapping of names to weights")
    if isinstance(content.get(part), Mapping):
        taken = _unwrapped(content[part], "", path)
        return replace(taken, notes=(f"part taken: '{part}', as asked", *taken.notes))
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if wrapper is not None:
        taken = _unwrapped(content[wrapper], part, path, (*parts, *map(str, content)))
        others = [
            f"{path}#{key}" for key, value in content.items() if key != wrapper and _holds_weights(value)
        ]
        more = f"; others: {', '.join(others)}" if others else ""
        return replace(taken, notes=(f"part taken: '{wrapper}'{more}", *taken.notes))
    found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not found:
        raise UsageError(f"{path}: holds no weights; its parts: {', '.join(map(str, content))[:200]}")
    if not part:
        return Taken(found)
    inside = {
        behind: value
        for key, value in found.items()
        for _, dot, behind in [f".{key}".partition(f".{part}.")]
        if dot
    }
    if not inside:
        begin = ", ".join(dict.fromkeys(key.split(".")[0] for key in found))
        around = f"its parts: {', '.join(parts)[:200]}; " if parts else ""
        raise UsageError(f"{path}: has no part '{part}'; {around}tensors begin with {begin[:200]}")
    return Taken(inside, (f"part taken: tensors below '{part}.', as asked",))


def _holds_weights(value: object) -> bool:
    """Whether a part of a checkpoint is a network's: names to tensors, or a wrapper of such."""
    if not isinstance(value, Mapping):
        return False
    inner = [entry for key, entry in value.items() if isinstance(key, str)]
    return any(isinstance(entry, Tensor) and entry.dim() > 1 for entry in inner) or any(
        _holds_weights(value.get(wrapper)) for wrapper in _WRAPPERS
    )
