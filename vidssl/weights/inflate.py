"""From an image Swin to a video one: what BEVT's stage one hands to stage two."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from vidssl.errors import counted
from vidssl.weights.swin_keys import published_key

_PREFIXES = ("module.", "model.", "backbone.", "encoder.")  # wrappers that image checkpoints come in
_TABLE = "attn.bias_table"


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
        elif key.endswith(_TABLE):
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
        if key.endswith(_TABLE):
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
