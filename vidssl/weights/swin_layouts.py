"""Which layout a file of Swin weights has, and the same weights as ``VideoSwin``'s own."""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted
from vidssl.interfaces.grids import GridSize
from vidssl.weights.inflate import image_name, inflate_swin, resize_bias_table, without_prefixes
from vidssl.weights.swin_keys import from_published, from_torchvision, published_key, torchvision_key

_TABLE = "relative_position_bias_table"
_OWN_TABLE = "attn.bias_table"
_OWN_PATCHES = "embed_clip.proj.weight"
_INDEX = "relative_position_index"  # the row of the table for each pair of a window's cells
_DERIVED = (_INDEX, "attn_mask")  # buffers that follow from the window
_LONGEST = 32  # cells of a window in time, where nothing tells it
_FIRST_BLOCK = "layers.0.blocks.0.attn.qkv.weight"
_PATCHES = "patch_embed.proj.weight"


class SwinWeights(NamedTuple):
    """Swin weights under ``VideoSwin``'s keys.

    Attributes:
        reshaped: own keys whose tensors were inflated or resized.
        dropped: keys of the source, without wrappers, that ``VideoSwin`` lacks.
    """

    state: dict[str, Tensor]
    layout: str
    reshaped: tuple[str, ...]
    dropped: tuple[str, ...]


def read_swin(
    state: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    window: GridSize,
    source_window: GridSize | None = None,
) -> SwinWeights | None:
    """Weights for ``VideoSwin`` out of any known layout, None if it is none of them.

    Known: the releases of BEVT and Video Swin, pre-trained or finetuned; torchvision's ``swin3d``; and image
    Swins as their authors, timm or SimMIM write them, which are inflated (BEVT, Sec. 3.3). Bias tables of
    other windows are resized, those of ``VideoSwin`` itself too: those of images bicubically, those of
    clips along all three axes, trilinearly, as BEVT's code does.

    Args:
        ours: ``VideoSwin.state_dict()``, for the names and shapes.
        window: of the network.
        source_window: of the network that the weights are of; by default what the weights' own index of
            positions says, else the one window, square in space, that has tables of their length.

    Raises:
        UsageError: if tables are of another window than ``source_window``, or of several possible ones.
    """
    source = {without_prefixes(key): value for key, value in state.items() if not key.endswith(_DERIVED)}
    known = source_window or _window_of_index(state)
    if _OWN_PATCHES in source:
        fitted, resized, windows = _resized(source, window, known, _OWN_TABLE)
        dropped = tuple(key for key in source if key not in ours)
        return SwinWeights(fitted, f"VideoSwin{windows}", tuple(resized), dropped)
    if _PATCHES not in source:
        return None
    if "features.0.0.attn.qkv.weight" in source:
        fitted, resized, windows = _resized(source, window, known)
        found = from_torchvision(fitted, ours)
        names, layout = {key: torchvision_key(key) for key in found}, f"torchvision swin3d{windows}"
    elif _FIRST_BLOCK not in source:
        return None
    elif source[_PATCHES].ndim == 5:
        fitted, resized, windows = _resized(source, window, known)
        found = from_published(fitted, ours)
        names, layout = {key: published_key(key) for key in found}, f"Video Swin, published{windows}"
    else:
        source = _merging_before_its_stage(source)
        found = inflate_swin(source, ours, window)
        names, layout = {key: image_name(key, source) for key in found}, "image Swin"
        resized = [name for name in names.values() if name == _PATCHES or name.endswith(_TABLE)]
    reshaped = (key for key, name in names.items() if name in resized and key != "embed_image.proj.weight")
    used = set(names.values())
    return SwinWeights(found, layout, tuple(reshaped), tuple(key for key in source if key not in used))


def _resized(
    source: Mapping[str, Tensor], window: GridSize, known: GridSize | None, suffix: str = _TABLE
) -> tuple[dict[str, Tensor], list[str], str]:
    """Bias tables of other windows resized, their names, and words on both windows; all else as it is."""
    fitted, resized, words = dict(source), [], ""
    for name, table in source.items():
        if not name.endswith(suffix):
            continue
        old = known or _window_of_length(name, len(table), window)
        if len(table) != _length(old):
            raise UsageError(
                f"{name} has {counted(len(table), 'row')}, and windows of {old} have {_length(old)}: "
                "backbone.init_window names the window that the weights were trained with"
            )
        if old != window:
            fitted[name] = resize_bias_table(table, old, window)
            resized.append(name)
            words = f", windows of {old} resized to {window}"
    return fitted, resized, words


def _length(window: GridSize) -> int:
    """Rows of a window's bias table."""
    return prod(2 * size - 1 for size in window)


def _window_of_length(name: str, rows: int, window: GridSize) -> GridSize:
    """The network's own window if its tables are as long, else the one square window with such a table."""
    if rows == _length(window):
        return window
    found = [
        (t, side, side)
        for side in range(2, _LONGEST + 1)
        for t in range(1, _LONGEST + 1)
        if _length((t, side, side)) == rows
    ]
    if len(found) != 1:
        which = (
            f"which may be of windows of {' or '.join(map(str, found))}" if found else "of unknown windows"
        )
        raise UsageError(
            f"{name} has {counted(rows, 'row')}, {which}: give the window that the weights were trained "
            "with, "
            "backbone.init_window=[8, 7, 7]"
        )
    return found[0]


def _window_of_index(state: Mapping[str, Tensor]) -> GridSize | None:
    """The window that an index of relative positions belongs to; None where there is none or it fits none."""
    for name, index in state.items():
        if not name.endswith(_INDEX) or index.is_floating_point():
            continue
        cells = round(index.numel() ** 0.5)
        if cells * cells != index.numel() or not cells:
            return None
        rows = index.reshape(cells, cells)[:, 0]  # of each cell against the first
        for t, h, w in _cuboids(cells):
            axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
            of_cell = (axes[0] * (2 * h - 1) + axes[1]) * (2 * w - 1) + axes[2]
            if torch.equal(rows.cpu() - rows[0].cpu(), of_cell.flatten()):
                return t, h, w
    return None


def _cuboids(cells: int) -> Iterator[GridSize]:
    for t in range(1, cells + 1):
        for h in range(1, cells // t + 1):
            if cells % (t * h) == 0:
                yield t, h, cells // (t * h)


def _merging_before_its_stage(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Patch merging counted to the stage before it, as published; timm counts it to the one behind."""
    if any(name.startswith("layers.0.downsample.") for name in source):
        return dict(source)
    return {
        re.sub(r"layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name): value
        for name, value in source.items()
    }
