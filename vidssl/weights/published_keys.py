"""Keys of published checkpoints in the names of this package: VIMPAC, DALL-E's tokenizer, V-JEPA."""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.interfaces import Translated
from vidssl.weights.vit_keys import V_JEPA_2, V_JEPA_2_1, joined_attention

_POSITIONS = "backbone.positional_embedding."
_LAYERS = "backbone.transformer.resblocks."
_AXIS_TABLES = ("positions.time", "positions.height", "positions.width")

# ours, published; where a released post-norm model has "output.", a pre-norm one has nothing
_NAMES = (
    (r"embedding\.weight", "backbone.embedding.weight"),
    (r"class_token", "backbone.cls_param"),
    (r"positions\.cls", _POSITIONS + "cls_pos_embedding"),
    (r"positions\.time", _POSITIONS + "temporal_pos_embedding"),
    (r"positions\.(height|width)", _POSITIONS + r"\1_pos_embedding"),
    (r"positions\.plane", _POSITIONS + "spatial_pos_embedding"),
    (r"positions\.joint", _POSITIONS + "positional_embedding"),
    (r"embed_norm\.(.+)", r"backbone.ln_pre.\1"),
    (r"last_norm\.(.+)", r"backbone.ln_post.\1"),
    (r"layers\.(\d+)\.attentions\.(\d+)\.proj\.(.+)", _LAYERS + r"\1.attention_blocks.\2.output.dense.\3"),
    (r"layers\.(\d+)\.attention_norms\.(\d+)\.(.+)", _LAYERS + r"\1.attention_blocks.\2.output.LayerNorm.\3"),
    (r"layers\.(\d+)\.mlp\.fc1\.(.+)", _LAYERS + r"\1.mlp.c_fc.\2"),
    (r"layers\.(\d+)\.mlp\.fc2\.(.+)", _LAYERS + r"\1.mlp.c_proj.\2"),
    (r"layers\.(\d+)\.mlp_norm\.(.+)", _LAYERS + r"\1.ln.\2"),
)
_QKV = re.compile(r"layers\.(\d+)\.attentions\.(\d+)\.branches\.(\d+)\.qkv\.(.+)")


def resize_table(table: Tensor, rows: int) -> Tensor:
    """A position table [n, D] with another number of rows: linear, half-pixel centres, as published."""
    if len(table) == rows:
        return table
    resized = F.interpolate(table.t().unsqueeze(0), size=rows, mode="linear", align_corners=False)
    return resized.squeeze(0).t()


def published_keys(ours: str, *, post_norm: bool) -> tuple[str, ...]:
    """The names in VIMPAC's released checkpoints of what ``Factorized`` calls so.

    There is one, but for our query, key and value in one tensor: their names come in this order.

    Raises:
        ValueError: if it is no parameter of ``Factorized``.
    """
    found = _QKV.fullmatch(ours)
    if found:
        layer, block, branch, rest = found.groups()
        start = f"{_LAYERS}{layer}.attention_blocks.{block}.attentions.{branch}.attention"
        return tuple(f"{start}.{part}.{rest}" for part in ("query", "key", "value"))
    for pattern, replacement in _NAMES:
        if re.fullmatch(pattern, ours):
            name = re.sub(pattern, replacement, ours)
            return (name if post_norm else name.replace(".output.", "."),)
    raise ValueError(f"'{ours}' is no parameter of Factorized")


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a VIMPAC checkpoint, pre-trained or finetuned."""
    return any(key.startswith(_LAYERS) for key in state)


def from_published(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, post_norm: bool) -> Translated:
    """Parameters of ``Factorized`` out of a VIMPAC checkpoint; its heads are dropped.

    Args:
        state: of the checkpoint, pre-trained or finetuned.
        ours: ``Factorized.state_dict()``, for the names and shapes.
        post_norm: whether the network's norms stand behind the residuals.

    Raises:
        UsageError: if the checkpoint's norms stand elsewhere.
    """
    stored_post_norm = any(".output.dense." in key for key in state)
    if stored_post_norm != post_norm:
        wanted = "post" if stored_post_norm else "pre_published"
        raise UsageError(f"this VIMPAC checkpoint needs a backbone with norm: {wanted}")
    names = {key: published_keys(key, post_norm=post_norm) for key in ours}
    found = {
        key: torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
        for key, parts in names.items()
        if all(part in state for part in parts)
    }
    used = {part for key in found for part in names[key]}
    return _fitted(found, ours, "VIMPAC, published", tuple(key for key in state if key not in used))


def with_resized_tables(state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> Translated:
    """The state of a ``Factorized`` for one whose position tables have other lengths."""
    found = {key: state[key] for key in ours if key in state}
    return _fitted(found, ours, "vidssl", tuple(key for key in state if key not in ours))


def _fitted(
    found: Mapping[str, Tensor], ours: Mapping[str, Tensor], layout: str, dropped: tuple[str, ...]
) -> Translated:
    reshaped = tuple(key for key in _AXIS_TABLES if key in found and len(found[key]) != len(ours[key]))
    resized = {key: resize_table(found[key], len(ours[key])) for key in reshaped}
    return Translated({**found, **resized}, layout, reshaped, dropped)


_PUBLISHED = re.compile(
    r"blocks\.(?:"
    r"(?P<end>input|output\.conv)"
    r"|group_(?P<group>\d+)\.block_(?P<block>\d+)\.(?:(?P<shortcut>id_path)|res_path\.conv_(?P<conv>\d+))"
    r")\.(?P<kind>[wb])"
)


def own_key(published: str) -> str:
    """Our name, below ``encoder`` or ``decoder``, of a published parameter like ``blocks.input.w``.

    Raises:
        ValueError: if it is no parameter of the dVAE.
    """
    found = _PUBLISHED.fullmatch(published)
    if found is None:
        raise ValueError(f"'{published}' is no parameter of the DALL-E dVAE")
    kind = {"w": "weight", "b": "bias"}[found["kind"]]
    if found["end"]:
        return f"{'input' if found['end'] == 'input' else 'output'}.{kind}"
    block = f"groups.{int(found['group']) - 1}.{int(found['block']) - 1}"
    return (
        f"{block}.shortcut.{kind}" if found["shortcut"] else f"{block}.path.{int(found['conv']) - 1}.{kind}"
    )


def networks_in(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The networks of the dVAE that a state holds, whatever stands before their names.

    So the release's own files, a checkpoint of BEVT with the frozen encoder inside, and files of this package
    all read alike. Encoder and decoder differ in their first layer: 7x7 on pixels, or 1x1 on codes.

    Returns:
        ``encoder`` and ``decoder``, those there are: our names -> tensors.

    Raises:
        ValueError: if one of them is there twice.
    """
    by_prefix: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        prefix, ours = _own_name(key)
        if ours is not None:
            by_prefix.setdefault(prefix, {})[ours] = tensor
    networks: dict[str, dict[str, Tensor]] = {}
    for prefix, tensors in by_prefix.items():
        first = tensors.get("input.weight")
        if first is None or first.ndim != 4:
            continue  # some other network that also has 'groups' or 'blocks'
        name = "decoder" if first.shape[-1] == 1 else "encoder"
        if name in networks:
            raise ValueError(f"there is a second {name}, under '{prefix}'")
        networks[name] = tensors
    return networks


_OURS = re.compile(r"(?:input|output|groups\.\d+\.\d+\.(?:shortcut|path\.\d))\.(?:weight|bias)")


def _own_name(key: str) -> tuple[str, str | None]:
    """The prefix of a parameter's name, and our name; None if it is not of the dVAE."""
    for pattern, renamed in ((_PUBLISHED, own_key), (_OURS, str)):
        found = re.search(rf"(?:^|\.)({pattern.pattern})$", key)
        if found:
            return key[: found.start()], renamed(found[1])
    return "", None


_VJEPA_NAMES = {
    "predictor_embed.": "enter.",
    "predictor_blocks.": "blocks.",
    "predictor_norm.": "norm.",
    "predictor_proj.": "head.",
    "predictor_proj_context.": "context_head.",
}
_HUB_NAMES = {
    "embeddings.predictor_embeddings.": "enter.",
    "layer.": "blocks.",
    "layernorm.": "norm.",
    "proj.": "head.",
}
_VECTORS = {"video_mod_embed": "clip_vector", "img_mod_embed": "image_vector"}
_HUB_TOKENS = "embeddings.mask_tokens"


def to_predictor(state: Mapping[str, Tensor], num_tokens: int) -> Translated | None:
    """Parameters of ``objectives.parts.predictor.Predictor``; None if they are no predictor of V-JEPA's.

    A release has a mask token for each pair of a mask generator and a clip length, and trains the one of its
    clip length's number, the same for all generators. With one length, as in pre-training, that is the first,
    from which all of ours start.

    Args:
        state: with any prefix that all keys share.
        num_tokens: mask tokens of the predictor.
    """
    marks = ("mask_tokens.0", _HUB_TOKENS)
    found = next((key.removesuffix(mark) for mark in marks for key in state if key.endswith(mark)), None)
    if found is None:
        return None
    own = {key.removeprefix(found): x for key, x in state.items() if key.startswith(found)}
    hub = _HUB_TOKENS in own
    names = _HUB_NAMES if hub else _VJEPA_NAMES
    made: dict[str, Tensor] = {}
    for key, x in (joined_attention(own) if hub else own).items():
        theirs = next((name for name in names if key.startswith(name)), None)
        if theirs is not None:
            made[names[theirs] + key.removeprefix(theirs)] = x
        elif key in _VECTORS:
            made[_VECTORS[key]] = x.flatten()
    tokens = own[_HUB_TOKENS].flatten(0, 2) if hub else own["mask_tokens.0"].flatten(0, 1)
    made["mask_tokens"] = torch.cat([tokens[:1]] * num_tokens)
    layout = V_JEPA_2_1 if "context_head.weight" in made else V_JEPA_2
    dropped = tuple(
        key for key in state if not key.startswith(found) or ("tokens." in key and not key.endswith(".0"))
    )
    return Translated(made, layout, ("mask_tokens",), dropped)
