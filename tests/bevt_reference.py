"""The toy model of tests/golden/bevt, built from our parts with the release's weights."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidssl.backbones.video_swin import VideoSwin
from vidssl.weights.swin import from_published

FOLDER = Path(__file__).parent / "golden" / "bevt"
VOCAB = 24

# ours, the release's
DECODER_KEYS = (
    (r"decoders\.video\.up\.conv\.(.+)", r"backbone.fpn_s.0.\1"),
    (r"decoders\.video\.fuse\.(.+)", r"backbone.lm_down_st.0.\1"),
    (r"decoders\.video\.spread\.conv\.(.+)", r"backbone.fpn_t.0.\1"),
    (r"decoders\.image\.up\.conv\.(.+)", r"backbone.fpn.0.\1"),
    (r"decoders\.image\.fuse\.(.+)", r"backbone.lm_down.\1"),
    (r"to_vocab\.(.+)", r"cls_head.lm_head.\1"),
)


def load(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max|b|, of tensors of one shape."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def toy_swin(window: tuple[int, int, int] = (2, 3, 3)) -> VideoSwin:
    """Reads values as they are: the reference inputs are normalised already."""
    return VideoSwin(
        embed_dim=4,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
        window=window,
        drop_path=0.0,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ).eval()


def load_swin(swin: VideoSwin, state: dict[str, Tensor]) -> VideoSwin:
    swin.load_state_dict(from_published(state, swin.state_dict()))
    return swin


def backbone_state() -> dict[str, Tensor]:
    prefix = "backbone."
    return {key.removeprefix(prefix): x for key, x in load("weights").items() if key.startswith(prefix)}


def load_head(head: nn.Module) -> None:
    """Loads the decoders and the vocabulary, all that ``head`` has."""
    state = load("weights")
    head.load_state_dict(
        {key: state[head_key(key)].reshape(own.shape) for key, own in head.state_dict().items()}
    )


def head_key(ours: str) -> str:
    for pattern, theirs in DECODER_KEYS:
        if re.fullmatch(pattern, ours):
            return re.sub(pattern, theirs, ours)
    raise KeyError(ours)


def dvae_ids(pixels: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Ids [B, h, w] of the toy DALL-E encoder for uint8 pixels [B, 3, H, W]."""
    prefix = "cls_head.vae_encoder.blocks."

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{prefix}{name}.w"]
        return nn.functional.conv2d(x, weight, state[f"{prefix}{name}.b"], padding=weight.shape[-1] // 2)

    x = conv(0.8 * pixels.float() / 255 + 0.1, "input")
    groups, blocks = 4, 2
    for group in range(1, groups + 1):
        for block in range(1, blocks + 1):
            name = f"group_{group}.block_{block}"
            path = x
            for layer in range(1, 5):
                path = conv(path.relu(), f"{name}.res_path.conv_{layer}")
            skip = conv(x, f"{name}.id_path") if f"{prefix}{name}.id_path.w" in state else x
            x = skip + path / (groups * blocks) ** 2
        x = nn.functional.max_pool2d(x, 2) if group < groups else x
    return conv(x.relu(), "output.conv").argmax(dim=1)


def every_position(grid: tuple[int, ...]) -> Tensor:
    return torch.ones(1, *grid, dtype=torch.bool)
