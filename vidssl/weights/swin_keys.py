"""Names of Video Swin's parameters: ours, torchvision's, and those of the published checkpoints."""

import re
from collections.abc import Mapping

from torch import Tensor

# ours, published; a stage's own number stands between
_PUBLISHED = (
    (r"embed_clip\.(.+)", r"patch_embed.\1"),
    (r"embed_image\.(.+)", r"patch_embed_2d.\1"),
    (r"stages\.(\d+)\.(\d+)\.attn\.bias_table", r"layers.\1.blocks.\2.attn.relative_position_bias_table"),
    (r"stages\.(\d+)\.(\d+)\.(.+)", r"layers.\1.blocks.\2.\3"),
    (r"merges\.(\d+)\.(.+)", r"layers.\1.downsample.\2"),
    (r"(norm\..+|mask_token)", r"\1"),
)


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
