"""``ViT`` in the layouts of timm's image transformers and of the transformers library's VideoMAE."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.errors import UsageError
from vidssl.interfaces.grids import GridSize

EPS = 1e-6  # of every LayerNorm of ``ViT``


def _check(vit: ViT, layout: str, needs: Mapping[str, object]) -> None:
    """Refuse a network that this layout cannot say.

    Raises:
        UsageError: with the key and the values that it can.
    """
    keys = vit.made_with()
    for key, value in needs.items():
        allowed = value if isinstance(value, tuple) and value else (value,)
        if keys[key] not in allowed:
            shown = " or ".join(map(str, allowed))
            raise UsageError(f"{layout}: has no ViT of {key}: {keys[key]}, only {shown}")


def timm_arguments(vit: ViT, size: tuple[int, int]) -> dict[str, object]:
    """Keywords of timm's ``VisionTransformer`` that make the same network of images.

    Args:
        size: height and width of the images.

    Raises:
        UsageError: if timm has no such network.
    """
    _check(vit, "timm", {"positions": ("axes", "line"), "attention": "full"})
    keys = vit.made_with()
    if vit.strides[1] != vit.strides[2]:
        raise UsageError(f"timm: has no ViT of patches that are not square, {vit.strides[1:]}")
    pools_first = keys["norm"] == "mean"
    return {
        "img_size": list(size),
        "patch_size": vit.strides[1],
        "embed_dim": vit.embed_dim,
        "depth": keys["depth"],
        "num_heads": keys["num_heads"],
        "mlp_ratio": keys["mlp_ratio"],
        "class_token": vit.gives_cls,
        "global_pool": "token" if vit.gives_cls else "avg",
        "fc_norm": pools_first,
    }


def timm_state(vit: ViT, size: tuple[int, int], *, of_images: bool) -> dict[str, Tensor]:
    """Weights of timm's ``VisionTransformer`` that does to an image what ``vit`` does to it.

    Args:
        of_images: of an image (one frame), for a network that learned from such; else of a clip whose frames
            are all this image, as long as one patch: the patch embedding is then summed over its frames.
    """
    own = vit.state_dict()
    embed = "embed_image" if of_images else "embed_clip"
    grid = (1, size[0] // vit.strides[1], size[1] // vit.strides[2])
    zeros = torch.zeros(1, *grid, vit.embed_dim)
    marked = vit._marked(zeros, vit._codes(grid, zeros.device), 1 if of_images else vit.strides[0])
    positions = marked.flatten(1, 3).detach()
    found = {
        "patch_embed.proj.weight": own[f"{embed}.proj.weight"].sum(2),
        "patch_embed.proj.bias": own[f"{embed}.proj.bias"],
    }
    if vit.class_token is not None:
        positions = torch.cat((torch.zeros(1, 1, vit.embed_dim), positions), dim=1)
        found["cls_token"] = own["class_token"].view(1, 1, -1)
    found["pos_embed"] = positions
    for key, value in own.items():
        if key.startswith(("norm.", "fc_norm.")) or (key.startswith("blocks.") and "_bias" not in key):
            found[key] = value
        elif key.endswith("attn.q_bias"):
            parts = (value, torch.zeros_like(value), own[key.replace("q_bias", "v_bias")])
            found[key.replace("q_bias", "qkv.bias")] = torch.cat(parts)
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def videomae_config(vit: ViT, size: GridSize) -> dict[str, object]:
    """Keywords of transformers' ``VideoMAEConfig``.

    Args:
        size: (frames, height, width) of a clip.

    Raises:
        UsageError: if that library has no such network.
    """
    needs = {"positions": "line", "attention": "full", "class_token": False, "modality": False}
    _check(vit, "huggingface (VideoMAE)", {**needs, "norm": "patches"})
    if size[1] != size[2] or vit.strides[1] != vit.strides[2]:
        raise UsageError(f"huggingface (VideoMAE): takes squares, in square patches, got clips of {size}")
    keys = vit.made_with()
    width = vit.blocks[0].mlp.fc1.out_features  # type: ignore[union-attr]
    return {
        "image_size": size[1],
        "num_frames": size[0],
        "patch_size": vit.strides[1],
        "tubelet_size": vit.strides[0],
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": keys["depth"],
        "num_attention_heads": keys["num_heads"],
        "intermediate_size": width,
        "layer_norm_eps": EPS,
        "qkv_bias": True,
        "use_mean_pooling": False,
    }


def videomae_state(vit: ViT) -> dict[str, Tensor]:
    """Weights under the names of transformers' ``VideoMAEModel``; those of images are left out.

    A bias of keys, which softmax takes away again, has no place there.
    """
    own, dim = vit.state_dict(), vit.embed_dim
    found = {
        "embeddings.patch_embeddings.projection.weight": own["embed_clip.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["embed_clip.proj.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    names = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    for number in range(len(vit.blocks)):
        ours, theirs = f"blocks.{number}.", f"encoder.layer.{number}."
        for name, other in names.items():
            for kind in ("weight", "bias"):
                found[f"{theirs}{other}.{kind}"] = own[f"{ours}{name}.{kind}"]
        weights = own[f"{ours}attn.qkv.weight"].split(dim)
        biases = own[f"{ours}attn.qkv.bias"].split(dim) if f"{ours}attn.qkv.bias" in own else None
        for place, part in enumerate(("query", "key", "value")):
            found[f"{theirs}attention.attention.{part}.weight"] = weights[place]
        for place, part in ((0, "q"), (2, "v")):
            bias = own[f"{ours}attn.{part}_bias"] if biases is None else biases[place]
            name = {"q": "query", "v": "value"}[part]
            found[f"{theirs}attention.attention.{name}.bias"] = bias
    return {key: value.detach().clone().contiguous() for key, value in found.items()}
