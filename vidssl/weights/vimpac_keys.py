"""VIMPAC's released checkpoints: their names for our parameters, and position tables of other lengths."""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.interfaces import Translated

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
