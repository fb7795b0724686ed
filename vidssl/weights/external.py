"""Weights of other projects, from files or by name; nothing that is read can execute code.

Pixel statistics and attention heads are facts that weights depend on and their tensors do not show: with
other ones the same tensors compute something else, and no shape differs.
"""

import argparse
import importlib
import pathlib
import pickle
import struct
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vidssl.engine import checkpoint, speed
from vidssl.errors import UsageError
from vidssl.weights.vit_keys import IMAGE_VIT, V_JEPA_2, V_JEPA_2_1, VIDEO_MAE

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
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    struct.error,
)  # fmt: skip


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
    content = checkpoint.read_tensors(path)[1] if path.suffix == ".safetensors" else _read_pickle(path)
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
        shown = next((line.strip() for line in cause if "Unsupported" in line or "GLOBAL" in line), "")
        shown = shown or cause[0].partition(". ")[0]  # what follows is how to run its code
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


_KEYS = ("mean", "std", "num_heads")
# published under more than one normalisation of pixels
_AMBIGUOUS = (IMAGE_VIT, VIDEO_MAE)
# V-JEPA: one normalisation, and the heads of each width
_V_JEPA_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_V_JEPA_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}


@dataclass(frozen=True)
class Stated:
    """Facts of weights besides their tensors.

    Attributes:
        mean, std: of the training pixels, per channel; None where not known.
        num_heads: of the attention blocks in order, equal neighbours once; empty where not known.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    num_heads: tuple[int, ...] = ()


def stated_by_library(init: str) -> Stated | None:
    """The facts of ``timm:NAME`` and the like, from the library's own settings; None for a file.

    Raises:
        UsageError: if the library has no such network.
    """
    library, name = library_of(init)
    if not library:
        return None
    if library == "pytorchvideo":
        return Stated(*PYTORCHVIDEO_PIXELS)

    def look() -> Stated:
        with speed.on_meta():
            if library == "timm":
                import timm  # here: importing takes a second

                net: Any = timm.create_model(
                    name, pretrained=False
                )  # timm's networks share names, not a class
                pixels = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
            else:
                import torchvision

                net = torchvision.models.get_model(name, weights=None)
                preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
                pixels = preset.mean, preset.std
        return Stated(tuple(pixels[0]), tuple(pixels[1]), heads_of(net))

    return of_library(library, name, look)


def stated_by_layout(layout: str, embed_dim: int) -> Stated | None:
    """The facts of a layout that is published in one form for each width; None for others."""
    if not layout.startswith((V_JEPA_2, V_JEPA_2_1)):
        return None
    heads = _V_JEPA_HEADS.get(embed_dim)
    return Stated(*_V_JEPA_PIXELS, () if heads is None else (heads,))


def stated_in(network: nn.Module) -> Stated:
    """The facts of a network: its buffers ``normalise.mean`` and ``normalise.std``, and its heads."""
    buffers = dict(network.named_buffers())
    mean, std = (buffers.get(f"normalise.{name}") for name in ("mean", "std"))
    if mean is None or std is None:
        return Stated(num_heads=heads_of(network))
    return Stated(_rounded(mean.flatten().tolist()), _rounded(std.flatten().tolist()), heads_of(network))


def heads_of(network: nn.Module) -> tuple[int, ...]:
    """Heads of modules called ``attn``, in order, equal neighbours once."""
    found = [
        getattr(module, "num_heads", None)
        for name, module in network.named_modules()
        if name.endswith("attn") and isinstance(getattr(module, "num_heads", None), int)
    ]
    return tuple(
        heads for heads, before in zip(found, [None, *found], strict=False) if heads and heads != before
    )


def check_stated(
    network: nn.Module, stated: Stated, source: str, given: Collection[str] | None
) -> tuple[str, ...]:
    """Holds what is known of weights against a network.

    Args:
        given: keys that the user has set; None where that is not known. Pixel statistics that were set stay,
            and the report states both.

    Returns:
        lines for the report.

    Raises:
        UsageError: if the network has other heads, or other pixel statistics that were not asked for.
    """
    own, notes = stated_in(network), []
    if stated.num_heads and own.num_heads and stated.num_heads != own.num_heads:
        raise UsageError(
            f"{source}: weights of attention with {_listed(stated.num_heads)} heads, and the network has "
            f"{_listed(own.num_heads)}: set backbone.num_heads={_listed(stated.num_heads)}"
        )
    pairs = [(name, getattr(stated, name), getattr(own, name)) for name in ("mean", "std")]
    differ = [
        (name, theirs, ours)
        for name, theirs, ours in pairs
        if theirs and ours and max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > 1e-3
    ]
    for name, theirs, ours in differ:
        if name not in (given or ()):
            wanted = " ".join(f"backbone.{key}={list(value)}" for key, value, _ in differ)
            raise UsageError(
                f"{source}: trained on pixels normalised with {name} {list(theirs)}, and the network has "
                f"{list(ours)}: set {wanted} (of a network of timm, give the very name as backbone.name); a "
                f"{name} that the recipe states itself is kept"
            )
        notes.append(f"pixels: trained with {name} {list(theirs)}, the recipe states {list(ours)}")
    return tuple(notes)


def check_unstated(
    network: nn.Module, layout: str, source: str, given: Collection[str] | None
) -> tuple[str, ...]:
    """Facts that a file of weights leaves open, as the network has them; else as ``check_stated``.

    Raises:
        UsageError: if a layout is published with several normalisations of pixels and numbers of heads, and
            the recipe does not state which.
    """
    own = stated_in(network)
    missing = [key for key in _KEYS if given is not None and key not in given]
    if layout.startswith(_AMBIGUOUS) and missing:
        values = {"mean": own.mean, "std": own.std, "num_heads": own.num_heads}
        shown = ", ".join(f"backbone.{key} (here {_listed(values[key] or ())})" for key in missing)
        raise UsageError(
            f"{source}: such files do not hold the pixels' mean and std or the number of heads, and come "
            f"with several: state {shown}. Published ViTs have 64 channels a head"
        )
    if not own.num_heads:
        return ()
    pixels = f", pixels' mean {list(own.mean)} and std {list(own.std)}" if own.mean and own.std else ""
    return (f"not in the file, as the network has them: {_listed(own.num_heads)} heads{pixels}",)


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


def _listed(values: tuple[float, ...]) -> str:
    return str(values[0]) if len(values) == 1 else str(list(values))
