"""Swin weights for ``VideoSwin``: layouts of files, names of parameters, images' weights inflated."""

import re
from collections.abc import Iterator, Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.errors import UsageError, counted
from vidssl.interfaces import Translated
from vidssl.interfaces.grids import GridSize

_TABLE = "relative_position_bias_table"
_OWN_TABLE = "attn.bias_table"
_OWN_PATCHES = "embed_clip.proj.weight"
_INDEX = "relative_position_index"  # the row of the table for each pair of a window's cells
_DERIVED = (_INDEX, "attn_mask")  # buffers that follow from the window
_LONGEST = 32  # cells of a window in time, where no index tells it
_FIRST_BLOCK = "layers.0.blocks.0.attn.qkv.weight"
_PATCHES = "patch_embed.proj.weight"
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")  # wrappers that image checkpoints come in
# ours, published; a stage's own number stands between
_PUBLISHED = (
    (r"embed_clip\.(.+)", r"patch_embed.\1"),
    (r"embed_image\.(.+)", r"patch_embed_2d.\1"),
    (r"stages\.(\d+)\.(\d+)\.attn\.bias_table", r"layers.\1.blocks.\2.attn.relative_position_bias_table"),
    (r"stages\.(\d+)\.(\d+)\.(.+)", r"layers.\1.blocks.\2.\3"),
    (r"merges\.(\d+)\.(.+)", r"layers.\1.downsample.\2"),
    (r"(norm\..+|mask_token)", r"\1"),
)


def read_swin(
    state: Mapping[str, Tensor],
    ours: Mapping[str, Tensor],
    window: GridSize,
    source_window: GridSize | None = None,
) -> Translated | None:
    """Weights for ``VideoSwin`` out of any known layout, None if it is none of them.

    Known: the releases of BEVT and Video Swin, pre-trained or finetuned; torchvision's ``swin3d``; and image
    Swins as their authors, timm or SimMIM write them, which are inflated (BEVT, Sec. 3.3). Bias tables of
    other windows are resized, those of ``VideoSwin`` itself too: those of images bicubically, those of
    clips along all three axes, trilinearly, as BEVT's code does.

    Args:
        ours: ``VideoSwin.state_dict()``, for the names and shapes.
        window: of the network.
        source_window: of the network that the weights are of; by default the weights' own index of
            positions, else the one window, square in space, that has tables of their length.

    Raises:
        UsageError: if tables are of another window than ``source_window``, or of several possible ones.
    """
    source = {without_prefixes(key): value for key, value in state.items() if not key.endswith(_DERIVED)}
    known = source_window or _window_of_index(state)
    if _OWN_PATCHES in source:
        fitted, resized, windows = _resized(source, window, known, _OWN_TABLE)
        dropped = tuple(key for key in source if key not in ours)
        return Translated(fitted, f"VideoSwin{windows}", tuple(resized), dropped)
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
    return Translated(found, layout, tuple(reshaped), tuple(key for key in source if key not in used))


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


# names: ours, torchvision's, and those of the published checkpoints


def published_key(ours: str) -> str:
    """The name of a ``VideoSwin`` parameter in the released Video Swin and BEVT checkpoints, without prefix.

    Raises:
        ValueError: if it is no parameter of ``VideoSwin``.
    """
    for pattern, replacement in _PUBLISHED:
        if re.fullmatch(pattern, ours):
            return re.sub(pattern, replacement, ours)
    raise ValueError(f"'{ours}' is no parameter of VideoSwin")


def torchvision_key(ours: str) -> str:
    """The name of a ``VideoSwin`` parameter in torchvision's ``swin3d``.

    Raises:
        ValueError: if torchvision has none: the image embedding, the mask token.
    """
    key = published_key(ours)
    if key == "mask_token" or key.startswith("patch_embed_2d."):
        raise ValueError(f"torchvision's swin3d has no '{ours}'")
    key = re.sub(r"layers\.(\d+)\.blocks\.(.+)", lambda m: f"features.{2 * int(m[1])}.{m[2]}", key)
    key = re.sub(r"layers\.(\d+)\.downsample\.(.+)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}", key)
    return key.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")


def from_published(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of ``VideoSwin`` out of a published state, those it has, under our names and in our shapes.

    The 2-D patch weights [D, 3, 4, 4] and the mask token [1, 1, D] hold the same numbers in another shape.

    Args:
        state: published names, without prefix.
        ours: ``VideoSwin.state_dict()``, for the names and shapes.
    """
    return _renamed(state, {key: published_key(key) for key in ours}, ours)


def from_torchvision(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of ``VideoSwin`` out of torchvision's ``swin3d``, under our names, without its head."""
    shared = [key for key in ours if key != "mask_token" and not key.startswith("embed_image.")]
    return _renamed(state, {key: torchvision_key(key) for key in shared}, ours)


def _renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    found = {key: (state[name], ours[key].shape) for key, name in names.items() if name in state}
    # a tensor of another size is handed on as it is, for whoever loads it to refuse
    return {
        key: tensor.reshape(shape) if tensor.numel() == shape.numel() else tensor
        for key, (tensor, shape) in found.items()
    }


# from images to clips: what BEVT's stage one hands to stage two


def inflate_patch_weight(weight: Tensor, num_frames: int) -> Tensor:
    """A 2-D patch embedding [D, 3, H, W] for patches of several frames, [D, 3, T, H, W].

    Repeated and divided by T, so that a still clip gives what its frame gave.
    """
    return weight.unsqueeze(2).repeat(1, 1, num_frames, 1, 1) / num_frames


def inflate_bias_table(table: Tensor, window: tuple[int, int, int]) -> Tensor:
    """A 2-D bias table [(2h-1)^2, heads] for space-time windows, the same for every distance in time.

    A table of another window is first resized bicubically.

    Raises:
        ValueError: if the table is not that of a square window.
    """
    side = round(len(table) ** 0.5)
    if side * side != len(table) or side % 2 == 0:
        raise ValueError(f"a bias table of {counted(len(table), 'row')} belongs to no square window")
    new = (2 * window[1] - 1, 2 * window[2] - 1)
    if (side, side) != new:
        image = table.t().unflatten(1, (side, side)).unsqueeze(0)
        table = F.interpolate(image, size=new, mode="bicubic").squeeze(0).flatten(1).t()
    return table.repeat(2 * window[0] - 1, 1)


def resize_bias_table(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """A bias table of space-time windows [prod(2 * old - 1), heads] resized trilinearly to other windows.

    BEVT goes from windows of (8, 7, 7) to (16, 7, 7) for Something-Something-v2.

    Raises:
        ValueError: if the table is not that of the old window.
    """
    old_sizes, new_sizes = (tuple(2 * size - 1 for size in window) for window in (old, new))
    rows = old_sizes[0] * old_sizes[1] * old_sizes[2]
    if len(table) != rows:
        raise ValueError(f"the bias table of windows {old} has {counted(rows, 'row')}, got {len(table)}")
    volume = table.t().unflatten(1, old_sizes).unsqueeze(0)
    resized = F.interpolate(volume, size=new_sizes, mode="trilinear")
    return resized.squeeze(0).flatten(1).t()


def inflate_swin(
    state: Mapping[str, Tensor], ours: Mapping[str, Tensor], window: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Parameters for ``VideoSwin`` out of an image Swin in the published layout, under our names.

    The image embedding is taken twice, as it is for images and inflated for clips; every bias table is
    repeated for each distance in time; ``fc_norm``, where there is one, becomes the final norm. What the
    image checkpoint lacks is left out.

    Args:
        state: of the image model, with or without its wrappers' prefixes.
        ours: ``VideoSwin.state_dict()``, for the names and shapes.
        window: of the video model.
    """
    source = {without_prefixes(key): tensor for key, tensor in state.items()}
    found = {}
    for key, own in ours.items():
        name = image_name(key, source)
        if name not in source:
            continue
        tensor = source[name]
        if key == "embed_clip.proj.weight":
            tensor = inflate_patch_weight(tensor, own.shape[2])
        elif key.endswith(_OWN_TABLE):
            tensor = inflate_bias_table(tensor, window)
        found[key] = tensor.reshape(own.shape) if tensor.numel() == own.numel() else tensor
    return found


def inflate_image_stage(state: Mapping[str, Tensor], window: tuple[int, int, int]) -> dict[str, Tensor]:
    """The state of a ``VideoSwin`` that has only met images, made ready for clips.

    Training on images leaves the clip embedding as it was drawn, and of the bias tables all but the part
    of temporal distance 0. Both are filled from what did learn, as ``inflate_swin`` does.

    Args:
        state: ``VideoSwin.state_dict()`` after training on images.
        window: of that model.
    """
    inflated = dict(state)
    for key, tensor in state.items():
        if key.endswith(_OWN_TABLE):
            planes = tensor.unflatten(0, (2 * window[0] - 1, -1))
            inflated[key] = inflate_bias_table(planes[window[0] - 1], window)
        elif key.startswith("embed_image."):
            clip_key = key.replace("embed_image.", "embed_clip.")
            depth = state["embed_clip.proj.weight"].shape[2]
            weight = key.endswith("proj.weight")
            inflated[clip_key] = inflate_patch_weight(tensor.squeeze(2), depth) if weight else tensor
    return inflated


def without_prefixes(key: str) -> str:
    """A name without what data-parallel training and whole models put before it."""
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


def image_name(ours: str, source: Mapping[str, Tensor]) -> str:
    """Where an image checkpoint keeps what ``VideoSwin`` calls so."""
    name = published_key(ours).replace("patch_embed_2d.", "patch_embed.")
    if name.startswith("norm.") and f"fc_{name}" in source:
        return f"fc_{name}"
    return name
