"""Weights of other projects, from files or by name; nothing that is read can execute code."""

import argparse
import importlib
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import timm
import torch
import torchvision
from torch import Tensor

from vidssl.engine.checkpoint import read_tensors
from vidssl.errors import UsageError

# where training scripts keep the network inside a checkpoint; of student and teacher, the teacher is
# what SVT and DINO evaluate
_WRAPPERS = ("teacher", "state_dict", "model_state", "model", "module", "student")

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


def read_foreign(init: str) -> Mapping[str, Tensor]:
    """Flat weights from a file, or from timm or torchvision.

    Args:
        init: ``timm:NAME``, ``torchvision:NAME`` or ``pytorchvideo:NAME``, whose weights those libraries
            fetch and keep; or a file (safetensors, or what ``torch.save`` wrote). ``FILE#student`` names the
            part of a nested checkpoint; without it the first of teacher, state_dict, model_state, model,
            module, student.

    Raises:
        UsageError: if the weights cannot be had, or the file is damaged, holds no weights, or would execute
            code.
    """
    library, _, name = init.partition(":")
    if library in ("timm", "torchvision", "pytorchvideo") and name:
        return _of_library(library, name)
    file, _, part = init.partition("#")
    path = Path(file)
    if path.suffix == ".safetensors":
        return read_tensors(path)[1]
    return _unwrapped(_read_pickle(path), part, path)


def pytorchvideo_hub() -> ModuleType:
    """PyTorchVideo's networks by name, imported when first asked for: that is slow, and warns of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pytorchvideo.models.hub")


def _of_library(library: str, name: str) -> Mapping[str, Tensor]:
    try:
        if library == "timm":
            return timm.create_model(name, pretrained=True).state_dict()
        if library == "pytorchvideo":
            return getattr(pytorchvideo_hub(), name)(pretrained=True).state_dict()
        return torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)
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
        # training scripts keep their options in a Namespace, which does nothing when it is read
        with torch.serialization.safe_globals([argparse.Namespace]):
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


def _unwrapped(content: object, part: str, path: Path) -> dict[str, Tensor]:
    """The tensors of the innermost mapping that a checkpoint keeps its network in."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{path}: holds a {type(content).__name__} and not a mapping of names to weights")
    if part:
        if not isinstance(content.get(part), Mapping):
            raise UsageError(f"{path}: has no part '{part}'; its parts: {', '.join(map(str, content))[:200]}")
        return _unwrapped(content[part], "", path)
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return _unwrapped(content[wrapper], "", path)
    found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not found:
        raise UsageError(f"{path}: holds no weights; its parts: {', '.join(map(str, content))[:200]}")
    return found
