"""Plain vision transformers' parameters: of image models (timm, DINO, DeiT) and of TimeSformers (SVT's too).

All of them call their blocks' parameters alike; what differs is the wrapping, the positions and the tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted
from vidssl.interfaces import Translated
from vidssl.weights.swin import inflate_patch_weight

_PATCHES = "patch_embed.proj.weight"  # the key by which such a network is found among others, and its prefix
_PATCH_BIAS = "patch_embed.proj.bias"
_FIRST_BLOCK = "blocks.0.attn.qkv.weight"
IMAGE_VIT = "image ViT (timm, DINO)"
VIDEO_MAE = "VideoMAE, published"
V_JEPA_2 = "V-JEPA 2, published"
V_JEPA_2_1 = "V-JEPA 2.1, published"
_OLDER = "; its position table is not used, and V-JEPA 1, whose keys are the same, would need it"
# outside the blocks, and a network without them computes something else
_ALTERING = ("norm_pre", "dist_token", "reg_token", "register_tokens")


_LEVEL_NORM = "norms_block.{}."  # V-JEPA 2.1; the fourth is the last norm
_HUB_PATCHES = "embeddings.patch_embeddings.projection.weight"
_HUB_VJEPA_PATCHES = "encoder.embeddings.patch_embeddings.proj.weight"
_HUB_BLOCK = {  # names within a block of the transformers library -> the published ones
    "attention.output.dense": "attn.proj",
    "attention.attention.query.bias": "attn.q_bias",  # as transformers 5 saves it
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.q_bias": "attn.q_bias",  # as transformers 4 does, and files of the hub have it
    "attention.attention.v_bias": "attn.v_bias",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}


@dataclass(frozen=True)
class _Source:
    """A vision transformer found in a state: its tensors without their prefix, and the other keys.

    Attributes:
        whole_biases: whether queries, keys and values had one bias in the file.
    """

    tensors: Mapping[str, Tensor]
    prefix: str
    others: tuple[str, ...]
    chosen: str = ""
    whole_biases: bool = False

    @property
    def layout(self) -> str:
        return self._layout + self.chosen

    @property
    def _layout(self) -> str:
        if any(key.startswith((_LEVEL_NORM.format(0), "level_norms.")) for key in self.tensors):
            return V_JEPA_2_1
        if self.tensors[_PATCHES].ndim == 5 and self.whole_biases and "cls_token" not in self.tensors:
            return V_JEPA_2 + (_OLDER if "pos_embed" in self.tensors else "")
        if self.tensors[_PATCHES].ndim == 5:
            return VIDEO_MAE
        if any(key == "time_embed" or ".temporal_" in key for key in self.tensors):
            return "SVT, published" if "backbone." in self.prefix else "TimeSformer, published"
        return IMAGE_VIT


def to_timesformer(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], temporal_init: Literal["copy", "random"]
) -> Translated | None:
    """Parameters of ``TimeSformer`` out of another's, or out of an image ViT; None if it is neither.

    Tables of positions are handed on in their own size. What a source without temporal attention lacks is
    made so that the network does to each frame what the source does: ``temporal_fc`` and the times are zero,
    the temporal attention and its norm a copy of those of space or left out (SVT, Sec. 4.1).

    Args:
        state: with any prefix; of several networks the one with "teacher" in its prefix is taken.
        own: ``TimeSformer.state_dict()``, for the names and shapes.
        temporal_init: see there.

    Raises:
        UsageError: if the source has parameters that change what it computes, and the network does not.
    """
    source = _find(state)
    if source is None:
        return None
    found: dict[str, Tensor] = {}
    copied = []  # from another part, or zero
    for key, mine in own.items():
        if key == "mask_token" and key in source.tensors and source.tensors[key].shape != mine.shape:
            continue  # of a decoder (MAE), or of a network that hides patches in another place
        spatial = key.replace(".temporal_", ".")
        if key in source.tensors:
            found[key] = source.tensors[key]
        elif key == "time_embed" or ".temporal_fc." in key:
            found[key] = torch.zeros_like(mine)
            copied.append(key)
        elif temporal_init == "copy" and spatial in source.tensors:
            found[key] = source.tensors[spatial]
            copied.append(key)
    found[_PATCHES] = _folded(found[_PATCHES], own[_PATCHES].shape[2])
    if found[_PATCHES].ndim == 5:
        raise UsageError(
            f"patch embedding {tuple(found[_PATCHES].shape)} of patches of "
            f"{counted(found[_PATCHES].shape[2], 'frame')} "
            "(VideoMAE's layout), and a TimeSformer's patches are of one: load them into 'vit'"
        )
    return Translated(found, source.layout, tuple(copied), _dropped(source, set(found)))


def to_vit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Translated | None:
    """Parameters of ``ViT`` out of an image ViT, its patch embedding inflated, of VideoMAE or of V-JEPA.

    ``ViT`` has position codes of its own, so others are dropped, but for the class token's, which is part of
    what the token is. Of a patch embedding that is for clips alone, images get the sum over its frames; names
    may be those of the releases or of the transformers library. None if it is no such network.

    Args:
        state: with any prefix.
        own: ``ViT.state_dict()``, for the names and shapes.

    Raises:
        UsageError: if the source has parameters that change what it computes, and the network does not.
    """
    source = _find(_published_names(_vjepa_names(state)))
    if source is None:
        return None
    source = replace(source, tensors=_own_vjepa_names(source.tensors))
    if "fc_norm.weight" in source.tensors and "norm.weight" not in source.tensors and "norm.weight" in own:
        raise UsageError("these weights norm the mean of the patches (fc_norm): set backbone.norm=mean")
    if "blocks.0.attn.q_bias" in own:
        source = replace(source, tensors=_without_key_biases(source.tensors))
    used = {key for key in own if key in source.tensors and key != "mask_token"}
    found = {key: source.tensors[key] for key in used}
    made = []
    for name in ("embed_clip.proj", "embed_image.proj"):
        if f"{name}.weight" in used:  # V-JEPA 2.1 has both
            continue
        frames, rows = own[f"{name}.weight"].shape[2:4]
        patches = _folded(source.tensors[_PATCHES], rows)
        if patches.ndim == 5 and frames == 1:
            found[f"{name}.weight"] = patches.sum(dim=2, keepdim=True)
        else:
            found[f"{name}.weight"] = patches if patches.ndim == 5 else inflate_patch_weight(patches, frames)
        if found[f"{name}.weight"] is not source.tensors[_PATCHES]:
            made.append(f"{name}.weight")
        if _PATCH_BIAS in source.tensors:
            found[f"{name}.bias"] = source.tensors[_PATCH_BIAS]
    used |= {_PATCHES, _PATCH_BIAS}
    if "class_token" in own and "cls_token" in source.tensors:
        found["class_token"] = source.tensors["cls_token"].flatten()
        if "pos_embed" in source.tensors:
            found["class_token"] = found["class_token"] + source.tensors["pos_embed"][0, 0]
        made.append("class_token")
        used.add("cls_token")
    return Translated(found, source.layout, tuple(made), _dropped(source, used))


def layout_of(state: Mapping[str, Tensor]) -> str:
    """Whose layout a vision transformer's weights have; empty if they are of none.

    Raises:
        UsageError: if there are several networks in them.
    """
    source = _find(_published_names(_vjepa_names(state)))
    return "" if source is None else replace(source, tensors=_own_vjepa_names(source.tensors)).layout


def _vjepa_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """V-JEPA's published names for those of the transformers library; other states as they are."""
    prefix = next((k.removesuffix(_HUB_VJEPA_PATCHES) for k in state if k.endswith(_HUB_VJEPA_PATCHES)), None)
    if prefix is None:
        return state
    encoder, found = f"{prefix}encoder.", dict[str, Tensor]()
    for key, x in state.items():
        name = key.removeprefix(encoder)
        if name == key:
            found[key] = x  # of the predictor, or a classifier's
        else:
            name = name.replace("embeddings.patch_embeddings.", "patch_embed.").replace("layernorm.", "norm.")
            found[name.replace("layer.", "blocks.")] = x
    return joined_attention(found)


def joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``attention.query``, ``key`` and ``value`` of each block as one ``attn.qkv``, and its ``proj``."""
    found: dict[str, Tensor] = {}
    for key, x in state.items():
        if ".attention.query." in key:
            parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            found[key.replace(".attention.query.", ".attn.qkv.")] = torch.cat([state[part] for part in parts])
        elif ".attention.key." not in key and ".attention.value." not in key:
            found[key.replace(".attention.proj.", ".attn.proj.")] = x
    return found


def _own_vjepa_names(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """V-JEPA 2.1's norms, vectors and embedding of images under our names; others' tensors as they are."""
    levels = sum(key.startswith("norms_block.") and key.endswith(".weight") for key in tensors)
    names = {_LEVEL_NORM.format(number): f"level_norms.{number}." for number in range(levels - 1)}
    names |= {_LEVEL_NORM.format(levels - 1): "norm.", "patch_embed_img.": "embed_image."}
    found = {}
    for key, x in tensors.items():
        theirs = next((one for one in names if key.startswith(one)), None)
        found[key if theirs is None else names[theirs] + key.removeprefix(theirs)] = x
    for theirs, own in (("video_mod_embed", "clip_vector"), ("img_mod_embed", "image_vector")):
        if theirs in found:
            found[own] = found.pop(theirs).flatten()
    return found


def _folded(weight: Tensor, patch_size: int) -> Tensor:
    """Weights of a patch embedding as a convolution's, [D, 3, p, p]; some come flat, [D, 3*p*p]."""
    flat = weight.dim() == 2 and weight.shape[1] == 3 * patch_size**2
    return weight.unflatten(1, (3, patch_size, patch_size)) if flat else weight


def _find(state: Mapping[str, Tensor]) -> _Source | None:
    """The vision transformer in a state.

    Raises:
        UsageError: if there are several and none is called teacher.
    """
    prefixes = [key.removesuffix(_PATCHES) for key in state if f".{key}".endswith(f".{_PATCHES}")]
    prefixes = [prefix for prefix in prefixes if prefix + _FIRST_BLOCK in state]
    if not prefixes:
        return None
    chosen = ""
    if len(prefixes) > 1:
        teachers = [prefix for prefix in prefixes if "teacher" in prefix]
        if len(teachers) != 1:
            ways = ", ".join(f"FILE#{prefix.rstrip('.')}" for prefix in prefixes)
            raise UsageError(f"there are several networks in these weights, choose one: {ways}")
        left = ", ".join(f"FILE#{prefix.rstrip('.')}" for prefix in prefixes if prefix not in teachers)
        chosen = f"; tensors below '{teachers[0]}' taken, others: {left}"
        prefixes = teachers
    prefix = prefixes[0]
    tensors = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    if tensors[_PATCHES].ndim not in (2, 4, 5):
        raise UsageError(
            f"{prefix}{_PATCHES} has the shape {tuple(tensors[_PATCHES].shape)}, and a patch embedding has "
            "[D, 3, h, w] for images, [D, 3, t, h, w] for clips"
        )
    others = tuple(key for key in state if not key.startswith(prefix))
    whole = "blocks.0.attn.qkv.bias" in tensors
    return _Source(_with_whole_biases(tensors), prefix, others, chosen, whole)


def _published_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """VideoMAE's published names for those of the transformers library; other states as they are.

    Raises:
        UsageError: if the biases of queries and values are missing.
    """
    prefix = next((key.removesuffix(_HUB_PATCHES) for key in state if key.endswith(_HUB_PATCHES)), None)
    if prefix is None or state[prefix + _HUB_PATCHES].ndim != 5 or f"{prefix}embeddings.cls_token" in state:
        return state  # ViViT's have a class token, and learned positions
    found: dict[str, Tensor] = _published_blocks(state, f"{prefix}encoder.layer.")
    for key, x in state.items():
        name = key.removeprefix(prefix)
        if key.startswith(f"{prefix}encoder.layer."):
            continue
        if name.startswith("embeddings.patch_embeddings.projection."):
            found[f"patch_embed.proj.{name.rpartition('.')[2]}"] = x
        elif name.startswith("layernorm.") or key.startswith("fc_norm."):
            found[name.replace("layernorm.", "norm.")] = x
        else:
            found[key] = x  # of the decoder and the classifier
    return found


def _published_blocks(state: Mapping[str, Tensor], layers: str) -> dict[str, Tensor]:
    """The blocks that the transformers library keeps below ``layers``, under their published names.

    Raises:
        UsageError: if the biases of queries and values are missing.
    """
    found: dict[str, Tensor] = {}
    for key, x in state.items():
        if not key.startswith(layers):
            continue
        number, _, inner = key.removeprefix(layers).partition(".")
        theirs = next((one for one in _HUB_BLOCK if inner.startswith(one)), None)
        if theirs is not None:
            found[f"blocks.{number}.{_HUB_BLOCK[theirs]}{inner.removeprefix(theirs)}"] = x
        elif inner == "attention.attention.query.weight":
            parts = (key.replace(".query.", f".{part}.") for part in ("query", "key", "value"))
            found[f"blocks.{number}.attn.qkv.weight"] = torch.cat([state[part] for part in parts])
    if "blocks.0.attn.q_bias" not in found:
        raise UsageError(
            "these weights lack the biases of queries and values, which transformers 5 dropped in releases "
            "before September 2026: take the file that it read"
        )
    return found


def to_decoder(state: Mapping[str, Tensor]) -> Translated | None:
    """VideoMAE's decoder, under the names of ``VisibleDecoder``; None if there is none.

    Args:
        state: a pretrained network's, as published or of the transformers library, with any prefix.

    Raises:
        UsageError: if the biases of queries and values are missing.
    """
    enter = "encoder_to_decoder.weight"
    prefix = next((key.removesuffix(enter) for key in state if key.endswith(enter)), None)
    if prefix is None or f"{prefix}mask_token" not in state:
        return None
    hub = f"{prefix}decoder.decoder_layers."
    found = _published_blocks(state, hub) if any(key.startswith(hub) for key in state) else {}
    found |= {"enter.weight": state[f"{prefix}{enter}"], "mask_token": state[f"{prefix}mask_token"].flatten()}
    for key, x in state.items():
        name = key.removeprefix(f"{prefix}decoder.")
        if name != key and name.startswith(("blocks.", "norm.", "head.")):
            found[name] = x
    beside = tuple(key for key in state if not key.startswith(f"{prefix}decoder."))
    dropped = tuple(key for key in beside if key.removeprefix(prefix) not in (enter, "mask_token"))
    return Translated(found, VIDEO_MAE, dropped=dropped)


def _without_key_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``_with_whole_biases``; what keys have is lost, and softmax takes it away anyhow."""
    found = dict(tensors)
    for key in [key for key in tensors if key.endswith("attn.qkv.bias")]:
        q, _, v = found.pop(key).chunk(3)
        name = key.removesuffix("qkv.bias")
        found |= {f"{name}q_bias": q, f"{name}v_bias": v}
    return found


def _with_whole_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's and VideoMAE's blocks have no bias of keys, and keep the two others apart."""
    found = dict(tensors)
    for key in tensors:
        name = key.removesuffix("attn.q_bias")
        if name != key and f"{name}attn.v_bias" in tensors:
            q, v = found.pop(key), found.pop(f"{name}attn.v_bias")
            found[f"{name}attn.qkv.bias"] = torch.cat((q, torch.zeros_like(v), v))
    return found


def _dropped(source: _Source, used: set[str]) -> tuple[str, ...]:
    """Keys of the source that nothing came of: heads and the like.

    Raises:
        UsageError: if without one of them the network would compute something else.
    """
    left = [key for key in source.tensors if key not in used]
    needed = [key for key in left if key.startswith(("blocks.", *_ALTERING))]
    if needed:
        shown = ", ".join(needed[:3]) + (", ..." if len(needed) > 3 else "")
        raise UsageError(
            f"weights of another architecture: the network lacks {len(needed)} of their parameters "
            f"({shown}). Are depth and attention the same?"
        )
    return tuple(source.prefix + key for key in left) + source.others
