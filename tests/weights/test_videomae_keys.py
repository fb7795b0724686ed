"""Weights of VideoMAE in every layout that they are published in: all of them arrive, biases too."""

import json
from pathlib import Path

import pytest
import torch
from released_layouts import videomae_encoder, write_videomae
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, Progress, Translated
from vidssl.maskers.videomae import RandomTube
from vidssl.objectives.videomae import VideoMAE
from vidssl.weights.load import load_init, load_rest

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "videomae" / "keys_base.json").read_text())
HUB = {  # published -> as transformers names them, within a block
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}


def toy(norm: str = "patches", positions: str = "line", key_bias: bool = False) -> ViT:
    torch.manual_seed(0)
    net = ViT(
        embed_dim=48,
        depth=2,
        num_heads=3,
        patch_size=(2, 8, 8),
        norm=norm,
        positions=positions,
        key_bias=key_bias,
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def of_hub(state: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    found = {}
    for key, x in state.items():
        if key.startswith("blocks."):
            number, _, inner = key.removeprefix("blocks.").partition(".")
            block = f"videomae.encoder.layer.{number}."
            if inner == "attn.qkv.weight":
                for part, rows in zip(("query", "key", "value"), x.chunk(3), strict=True):
                    found[f"{block}attention.attention.{part}.weight"] = rows
            elif inner in ("attn.q_bias", "attn.v_bias"):
                part = {"attn.q_bias": "query", "attn.v_bias": "value"}[inner]
                name = f"{part}.bias" if version == 5 else f"{part[0]}_bias"
                found[f"{block}attention.attention.{name}"] = x
            else:
                name, _, kind = inner.rpartition(".")
                found[f"{block}{HUB[name]}.{kind}"] = x
        elif key.startswith("patch_embed."):
            found[f"videomae.embeddings.patch_embeddings.projection.{key.rpartition('.')[2]}"] = x
        else:
            found[key if key.startswith("fc_norm") else f"videomae.layer{key}"] = x
    return found | {"decoder.norm.weight": torch.zeros(24), "mask_token": torch.zeros(1, 1, 24)}


def translated(net: ViT, state: dict[str, Tensor]) -> Translated:
    found = net.translate(state)
    assert found is not None
    return found


@pytest.mark.parametrize("layout", KEYS)
@pytest.mark.parametrize("key_bias", [False, True])
def test_every_published_key_of_the_encoder_fills_one_of_ours(layout: str, key_bias: bool) -> None:
    pooled = "fc_norm.weight" in KEYS[layout]
    with torch.device("meta"):
        net = ViT(positions="line", key_bias=key_bias, norm="mean" if pooled else "patches")
        state = {
            key.replace(".N.", f".{number}."): torch.empty(shape)
            for key, shape in KEYS[layout].items()
            for number in range(12)
        }
    found, own = translated(net, state), net.state_dict()
    assert found.layout == "VideoMAE, published"
    assert {key: x.shape for key, x in found.state.items()} == {key: own[key].shape for key in found.state}
    norms = {"norm.weight", "norm.bias"}  # which the library's default has not
    assert set(own) - set(found.state) - norms == {"mask_token"}
    assert set(found.dropped) <= {"mask_token", "encoder_to_decoder.weight", "head.weight", "head.bias"}


@pytest.mark.parametrize("layout", ["pretrained", "module", "transformers 4", "transformers 5"])
@pytest.mark.parametrize("key_bias", [False, True])
def test_a_file_of_each_layout_gives_the_same_network(layout: str, key_bias: bool, tmp_path: Path) -> None:
    norm = "patches" if layout == "pretrained" else "mean"
    source = toy(norm)
    state = videomae_encoder(source)
    content: dict[str, object] = {
        "pretrained": {"model": {f"encoder.{key}": x for key, x in state.items()}},
        "module": {"module": {**state, "head.weight": torch.zeros(5, 48)}, "epoch": 3},
        "transformers 4": of_hub(state, 4),
        "transformers 5": of_hub(state, 5),
    }[layout]
    torch.save(content, tmp_path / "weights.pth")
    net = toy(norm, key_bias=key_bias)
    report = load_init(net, str(tmp_path / "weights.pth"))
    assert report.new == ("mask_token",)
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(net(clip).pooled(), source(clip).pooled(), atol=1e-5)


def test_a_pretrained_file_gives_the_decoder_too_and_so_the_same_loss(tmp_path: Path) -> None:
    def made(net: ViT) -> VideoMAE:
        return VideoMAE(net, RandomTube(ratio=0.5), decoder_dim=16, decoder_depth=2, decoder_heads=2)

    source = made(toy())
    with torch.no_grad():
        for parameter in source.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = write_videomae(tmp_path / "checkpoint.pth", source.backbone, source.decoder)
    other = made(
        ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8), positions="line", key_bias=False)
    )
    load_init(other.backbone, str(file))
    report = load_rest(other, str(file))
    assert report.layout == "VideoMAE, published"
    assert all(key.startswith("backbone.") for key in report.new)
    clips = Batch({"clip": (torch.rand(2, 3, 4, 16, 16),)})
    losses = [
        each.eval()(clips, Progress(0, 1), torch.Generator().manual_seed(1)).loss for each in (source, other)
    ]
    assert torch.equal(*losses)
    torch.save({"module": videomae_encoder(toy("mean"))}, tmp_path / "finetuned.pth")
    with pytest.raises(UsageError, match="shares no key with VideoMAE"):
        load_rest(other, str(tmp_path / "finetuned.pth"))


def test_what_would_compute_something_else_is_refused_or_said() -> None:
    state = videomae_encoder(toy("mean"))
    with pytest.raises(UsageError, match=r"norm the mean of the patches \(fc_norm\): set backbone.norm=mean"):
        toy().translate(state)
    lost = {key: x for key, x in of_hub(state, 5).items() if not key.endswith(("query.bias", "value.bias"))}
    with pytest.raises(UsageError, match="lack the biases of queries and values"):
        toy("mean").translate(lost)
    found = translated(toy("mean", positions="axes"), state)
    assert found.layout == "VideoMAE, published, without its positions (positions: line)"
    vivit = {key.replace("videomae.", "vivit."): x for key, x in of_hub(state, 5).items()}
    assert toy("mean").translate({**vivit, "vivit.embeddings.cls_token": torch.zeros(1, 1, 48)}) is None
