"""Checkpoints of small networks under the names of the releases of V-JEPA 2, 2.1 and VideoMAE."""

from pathlib import Path

import torch
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.objectives.parts.predictor import Predictor, VisibleDecoder

_PREDICTOR = {
    "enter.": "predictor_embed.",
    "blocks.": "predictor_blocks.",
    "norm.": "predictor_norm.",
    "head.": "predictor_proj.",
    "context_head.": "predictor_proj_context.",
    "clip_vector": "video_mod_embed",
    "image_vector": "img_mod_embed",
}


def vjepa_encoder(net: ViT) -> dict[str, Tensor]:
    """The weights of a network as the releases of V-JEPA name them, with their prefix."""
    found = {}
    for key, x in net.state_dict().items():
        if key.startswith(("embed_image", "mask_token")) and not net.levels:
            continue
        name = key.replace("embed_clip.", "patch_embed.").replace("embed_image.", "patch_embed_img.")
        if net.levels and key.startswith("norm."):
            name = key.replace("norm.", f"norms_block.{len(net.levels) - 1}.")
        name = name.replace("level_norms.", "norms_block.")
        name = name.replace("clip_vector", "video_mod_embed").replace("image_vector", "img_mod_embed")
        if name != "mask_token":
            found[f"module.backbone.{name}"] = x[None, None] if name.endswith("mod_embed") else x
    return found


def vjepa_predictor(predictor: Predictor, num_tokens: int = 10) -> dict[str, Tensor]:
    """The same of a predictor, whose first mask token is the one that was trained."""
    found = {}
    for key, x in predictor.state_dict().items():
        if key == "mask_tokens":
            tokens = [x[0], *(torch.zeros_like(x[0]) for _ in range(num_tokens - 1))]
            found |= {f"module.backbone.mask_tokens.{n}": one[None, None] for n, one in enumerate(tokens)}
            continue
        own = next(name for name in _PREDICTOR if key.startswith(name))
        theirs = _PREDICTOR[own] + key.removeprefix(own)
        found[f"module.backbone.{theirs}"] = x[None, None] if theirs.endswith("mod_embed") else x
    return found


def write_vjepa(path: Path, teacher: ViT, student: ViT, predictor: Predictor) -> Path:
    """A whole checkpoint of V-JEPA 2, as its training writes it."""
    content = {"encoder": vjepa_encoder(student), "predictor": vjepa_predictor(predictor)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "target_encoder": vjepa_encoder(teacher), "opt": {}, "epoch": 3}, path)
    return path


def videomae_encoder(net: ViT) -> dict[str, Tensor]:
    """The weights of a network as the release of VideoMAE names them, without a prefix."""
    state = {key: x for key, x in net.state_dict().items() if not key.startswith(("mask_token", "embed_"))}
    return state | {
        f"patch_embed.proj.{kind}": getattr(net.embed_clip.proj, kind) for kind in ("weight", "bias")
    }


def write_videomae(path: Path, net: ViT, decoder: VisibleDecoder) -> Path:
    """A whole checkpoint of VideoMAE's pre-training."""
    state = {f"encoder.{key}": x for key, x in videomae_encoder(net).items()}
    for key, x in decoder.state_dict().items():
        if key == "enter.weight":
            state["encoder_to_decoder.weight"] = x
        elif key == "mask_token":
            state["mask_token"] = x[None, None]
        else:
            state[f"decoder.{key}"] = x
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "epoch": 3}, path)
    return path
