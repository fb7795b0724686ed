"""V-JEPA's predictor: its parameters in the release and in the transformers library, under our names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidssl.interfaces import Translated
from vidssl.weights.vit_keys import V_JEPA_2, V_JEPA_2_1, joined_attention

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
