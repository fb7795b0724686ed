"""Facts that weights depend on and their tensors do not show: pixel statistics and attention heads.

With other ones the same tensors compute something else, and no shape differs.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from vidssl.engine.precision import on_meta
from vidssl.errors import UsageError
from vidssl.weights.external import PYTORCHVIDEO_PIXELS, library_of, of_library
from vidssl.weights.vit_keys import IMAGE_VIT, V_JEPA_2, V_JEPA_2_1, VIDEO_MAE

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
        with on_meta():
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
