"""Which layout a file of Swin weights has, and the same weights as ``VideoSwin``'s own."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from vidssl.weights.inflate import image_name, inflate_swin, resize_bias_table, without_prefixes
from vidssl.weights.swin_keys import from_published, from_torchvision, published_key, torchvision_key

Window = tuple[int, int, int]
_TABLE = "relative_position_bias_table"
_OWN_TABLE = "attn.bias_table"
_OWN_PATCHES = "embed_clip.proj.weight"
_DERIVED = ("relative_position_index", "attn_mask")  # buffers that follow from the window
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


def read_swin(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], window: Window) -> SwinWeights | None:
    """Weights for ``VideoSwin`` out of any known layout, None if it is none of them.

    Known: the releases of BEVT and Video Swin, pre-trained or finetuned; torchvision's ``swin3d``; and image
    Swins as their authors, timm or SimMIM write them, which are inflated (BEVT, Sec. 3.3). Bias tables of
    other windows are resized, those of ``VideoSwin`` itself too: those of images bicubically, those of
    clips along time, trilinearly.

    Args:
        ours: ``VideoSwin.state_dict()``, for the names and shapes.
        window: of the network.
    """
    source = {without_prefixes(key): value for key, value in state.items() if not key.endswith(_DERIVED)}
    if _OWN_PATCHES in source:
        fitted, resized = _resized_in_time(source, window, _OWN_TABLE)
        dropped = tuple(key for key in source if key not in ours)
        return SwinWeights(fitted, "VideoSwin of another window", tuple(resized), dropped)
    if _PATCHES not in source:
        return None
    if "features.0.0.attn.qkv.weight" in source:
        fitted, resized = _resized_in_time(source, window)
        found = from_torchvision(fitted, ours)
        names, layout = {key: torchvision_key(key) for key in found}, "torchvision swin3d"
    elif _FIRST_BLOCK not in source:
        return None
    elif source[_PATCHES].ndim == 5:
        fitted, resized = _resized_in_time(source, window)
        found = from_published(fitted, ours)
        names, layout = {key: published_key(key) for key in found}, "Video Swin, published"
    else:
        source = _merging_before_its_stage(source)
        found = inflate_swin(source, ours, window)
        names, layout = {key: image_name(key, source) for key in found}, "image Swin"
        resized = [name for name in names.values() if name == _PATCHES or name.endswith(_TABLE)]
    reshaped = (key for key, name in names.items() if name in resized and key != "embed_image.proj.weight")
    used = set(names.values())
    return SwinWeights(found, layout, tuple(reshaped), tuple(key for key in source if key not in used))


def _resized_in_time(
    source: Mapping[str, Tensor], window: Window, suffix: str = _TABLE
) -> tuple[dict[str, Tensor], list[str]]:
    """Bias tables of windows of another length, resized, and their names; all else as it is."""
    plane = (2 * window[1] - 1) * (2 * window[2] - 1)
    fitted, resized = dict(source), []
    for name, table in source.items():
        if not name.endswith(suffix):
            continue
        length, rest = divmod(len(table), plane)
        if not rest and length % 2 and length != 2 * window[0] - 1:
            fitted[name] = resize_bias_table(table, ((length + 1) // 2, *window[1:]), window)
            resized.append(name)
    return fitted, resized


def _merging_before_its_stage(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Patch merging counted to the stage before it, as published; timm counts it to the one behind."""
    if any(name.startswith("layers.0.downsample.") for name in source):
        return dict(source)
    return {
        re.sub(r"layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name): value
        for name, value in source.items()
    }
