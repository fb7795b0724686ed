"""The toy models of tests/golden/vimpac, built from our parts with the release's weights."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidssl.backbones.factorized import Factorized
from vidssl.interfaces import Batch, Masker, Tokenizer
from vidssl.interfaces.grids import GridSize
from vidssl.objectives.vimpac import VIMPAC

FOLDER = Path(__file__).parent / "golden" / "vimpac"
VOCAB = 64
TOY = {"embed_dim": 32, "depth": 2, "num_heads": 4, "vocab_size": VOCAB}
HALF = {"attention_dim": 16, "mlp_ratio": 2.0}
# file -> grid of ids, keys that differ from the toy's
MODELS: dict[str, tuple[GridSize, dict[str, object]]] = {
    "model_T_HW": ((4, 8, 8), {}),
    "model_T_H_W": ((4, 8, 8), {"layout": "T,H,W"}),
    "model_TpHpW": ((4, 8, 8), {"layout": "T|H|W", "embed_dim": 48, "num_heads": 6}),
    "model_HW_T": ((4, 8, 8), {"layout": "H|W,T"}),
    "model_T_HW_nonsquare": ((3, 6, 10), {}),
    "model_T_HW_pad": ((4, 8, 8), {}),
    "model_T_HW_half": ((4, 8, 8), HALF),
    "model_T_HW_pos_default": ((4, 8, 8), {"positions": "joint"}),
    "model_T_HW_pos_temporal": ((4, 8, 8), {"positions": "temporal"}),
    "model_T_HW_preact": ((4, 8, 8), {"norm": "pre_published"}),
    "model_T_HW_bn_after": ((2, 4, 4), {}),
    "model_T_HW_realvocab_pad": (
        (4, 4, 4),
        {"vocab_size": 8192, "embed_dim": 8, "num_heads": 2, "depth": 1},
    ),
}

# ours, the release's
HEAD_KEYS = (
    (r"prediction\.head\.linear\.(.+)", r"mlm_head.transform.0.\1"),
    (r"prediction\.head\.norm\.(.+)", r"mlm_head.transform.2.\1"),
    (r"prediction\.head\.bias", r"mlm_head.bias"),
    (r"contrast\.head\.linears\.(\d+)\.(.+)", r"cls_head.mlp.linear_\1.\2"),
    (r"contrast\.head\.norms\.(\d+)\.(.+)", r"cls_head.mlp.bn_\1.\2"),
)


def load(name: str) -> dict[str, Tensor]:
    """Tensors of a file, ids as int64."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return {key: x.long() if x.dtype == torch.int16 else x for key, x in tensors.items()}


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose key starts so, without it."""
    return {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}


def head_key(ours: str) -> str:
    for pattern, replacement in HEAD_KEYS:
        if re.fullmatch(pattern, ours):
            return re.sub(pattern, replacement, ours)
    raise KeyError(ours)


def toy_backbone(name: str) -> Factorized:
    (t, h, w), keys = MODELS[name]
    return Factorized(**{**TOY, "num_frames": t, "height": h, "width": w, "dropout": 0.0, **keys})


class Ids(Tokenizer):
    """Stands for a tokenizer whose ids are given as the clips."""

    strides = (1, 8, 8)

    def __init__(self, vocab_size: int = VOCAB) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def encode(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


class Given(Masker):
    """A mask that is known already."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        assert self.mask.shape == (batch_size, *grid)
        return self.mask


def toy_vimpac(backbone: Factorized, state: Mapping[str, Tensor], mask: Tensor, **keys: object) -> VIMPAC:
    """The objective with all weights of a release's state, backbone and heads."""
    linears = [key for key in state if re.fullmatch(r"cls_head\.mlp\.linear_\d+\.weight", key)]
    out_dim, hidden_dim = state[sorted(linears)[-1]].shape
    objective = VIMPAC(
        backbone,
        Ids(backbone.vocab_size),
        Given(mask),
        **{
            "head_layers": len(linears),
            "head_hidden_dim": hidden_dim,
            "head_dim": out_dim,
            "head_norm_last": f"cls_head.mlp.bn_{len(linears) - 1}.weight" in state,
            **keys,
        },
    )
    objective.load_state_dict(own_state(objective, state))
    return objective


def own_state(objective: VIMPAC, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state (or gradients) under the release's names, as the objective's own: no key may be left over."""
    translated = objective.encoder().translate(state)
    assert translated is not None
    heads = part({key: x for key, x in objective.state_dict().items() if "backbone" not in key}, "")
    found = {f"prediction.backbone.{key}": x for key, x in translated.state.items()}
    found |= {key: state[head_key(key)] for key in heads if head_key(key) in state}
    assert not set(translated.dropped) - {head_key(key) for key in heads}
    return found


def two_clips(ids: Tensor) -> Batch:
    """A batch of ids [2B, t, h, w], all first clips before all second ones."""
    return Batch(views={"clip": ids.chunk(2)})


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b|, of tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {key: p.grad for key, p in module.named_parameters() if p.grad is not None}
