"""VideoMAE against the ``transformers`` library's: encoder, decoder, loss and gradients of random weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidssl.backbones.vit import ViT
from vidssl.interfaces import Batch, Masker, Progress
from vidssl.interfaces.grids import GridSize
from vidssl.maskers.videomae import RandomTube
from vidssl.objectives.videomae import VideoMAE
from vidssl.weights.load import load_init, load_rest

transformers = pytest.importorskip("transformers", reason="the extra 'parity' is not installed")

BLOCK = {  # theirs -> ours
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


class Fixed(Masker):
    """Gives one mask, whatever is drawn."""

    equal_counts = True

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        return self.mask


def blocks(theirs: dict[str, Tensor], prefix: str, own: str, number: int) -> dict[str, Tensor]:
    found = {}
    for i in range(number):
        block = f"{prefix}.{i}."
        for name, mine in BLOCK.items():
            for kind in ("weight", "bias"):
                found[f"{own}.{i}.{mine}.{kind}"] = theirs[f"{block}{name}.{kind}"]
        inner = f"{block}attention.attention."
        qkv = [theirs[f"{inner}{name}.weight"] for name in ("query", "key", "value")]
        found[f"{own}.{i}.attn.qkv.weight"] = torch.cat(qkv)
        for name, mine in (("query", "q_bias"), ("value", "v_bias")):
            found[f"{own}.{i}.attn.{mine}"] = theirs[f"{inner}{name}.bias"]
    return found


def ours_of(theirs: dict[str, Tensor], depth: int, decoder_depth: int) -> dict[str, Tensor]:
    """Their state, or their gradients, under our names."""
    end = "videomae.embeddings.patch_embeddings.projection"
    found = {
        "backbone.embed_clip.proj.weight": theirs[f"{end}.weight"],
        "backbone.embed_clip.proj.bias": theirs[f"{end}.bias"],
        "backbone.norm.weight": theirs["videomae.layernorm.weight"],
        "backbone.norm.bias": theirs["videomae.layernorm.bias"],
        "decoder.enter.weight": theirs["encoder_to_decoder.weight"],
        "decoder.mask_token": theirs["mask_token"].flatten(),
    }
    for name in ("norm", "head"):
        for kind in ("weight", "bias"):
            found[f"decoder.{name}.{kind}"] = theirs[f"decoder.{name}.{kind}"]
    found |= blocks(theirs, "videomae.encoder.layer", "backbone.blocks", depth)
    return found | blocks(theirs, "decoder.decoder_layers", "decoder.blocks", decoder_depth)


@pytest.mark.parametrize(
    ("dim", "depth", "heads", "decoder", "size", "patch"),
    [
        (24, 2, 2, (12, 1, 2), (4, 32, 32), 8),
        (48, 3, 4, (24, 2, 3), (6, 48, 32), 8),
        pytest.param(384, 12, 6, (192, 4, 3), (16, 224, 224), 16, marks=pytest.mark.slow),
        pytest.param(768, 12, 12, (384, 4, 6), (16, 224, 224), 16, marks=pytest.mark.slow),
    ],
    ids=["tiny", "oblong", "small", "base"],
)
@pytest.mark.parametrize("normed", [True, False])
def test_loss_and_every_gradient_are_those_of_transformers(
    dim: int, depth: int, heads: int, decoder: GridSize, size: GridSize, patch: int, normed: bool
) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=size[1:],
        patch_size=patch,
        num_frames=size[0],
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        decoder_hidden_size=decoder[0],
        decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2],
        decoder_intermediate_size=4 * decoder[0],
        norm_pix_loss=normed,
        use_mean_pooling=False,  # else there is no norm behind the encoder, which the release has
        layer_norm_eps=1e-6,  # the published code's; the library's own default is 1e-12
    )
    theirs = transformers.VideoMAEForPreTraining(config).double()
    theirs.decoder.norm.eps = 1e-6  # the library has torch's default there, the release this
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # no bias is zero
    net = ViT(
        embed_dim=dim, depth=depth, num_heads=heads, patch_size=(2, patch, patch), positions="line",
        key_bias=False, init_std=None,
    )  # fmt: skip
    clips = torch.rand(2, 3, *size, dtype=torch.float64)
    grid = net.grid(*size)
    mask = RandomTube(ratio=0.75)(2, grid, torch.Generator().manual_seed(1))
    objective = VideoMAE(
        net,
        Fixed(mask),
        norm="channel" if normed else "none",
        decoder_dim=decoder[0],
        decoder_depth=decoder[1],
        decoder_heads=decoder[2],
    ).double()
    state = ours_of(theirs.state_dict(), depth, decoder[1])
    assert objective.load_state_dict(state, strict=False).unexpected_keys == []

    pixels = net.normalise(clips).transpose(1, 2)
    expected = theirs(pixels, bool_masked_pos=mask.flatten(1))
    seen = theirs.videomae(pixels, bool_masked_pos=mask.flatten(1)).last_hidden_state
    expected.loss.backward()
    output = objective(Batch({"clip": (clips,)}), Progress(0, 1), torch.Generator())
    output.loss.backward()

    decoded = objective._decode(clips, torch.Generator(), 1, None)
    assert torch.allclose(decoded.visible.patches, seen, atol=1e-5)
    assert torch.allclose(decoded.predicted, expected.logits, atol=1e-5)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for key, gradient in ours_of(gradients, depth, decoder[1]).items():
        own = objective.get_parameter(key).grad
        assert own is not None, key
        assert (own - gradient).norm() <= 1e-5 * gradient.norm(), key


@pytest.mark.parametrize("pooled", [True, False])
def test_networks_of_transformers_load_and_give_its_features(pooled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=96, use_mean_pooling=pooled, layer_norm_eps=1e-6,
    )  # fmt: skip
    kind = transformers.VideoMAEForVideoClassification if pooled else transformers.VideoMAEModel
    theirs = kind(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    net = ViT(
        embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8), positions="line", key_bias=False,
        norm="mean" if pooled else "patches",
    ).eval()  # fmt: skip
    report = load_init(net, str(tmp_path / "model.safetensors"))
    assert report.new == ("mask_token",)
    clip = torch.rand(1, 3, 4, 32, 32)
    with torch.no_grad():
        given = net.normalise(clip).transpose(1, 2)
        tokens = (theirs.videomae if pooled else theirs)(given).last_hidden_state
        expected = theirs.fc_norm(tokens.mean(1)) if pooled else tokens.mean(1)
        assert torch.allclose(net(clip).pooled(), expected, atol=1e-5)


def test_a_pretrained_model_of_transformers_gives_the_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=96, decoder_hidden_size=12, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=48, use_mean_pooling=False,
    )  # fmt: skip
    theirs = transformers.VideoMAEForPreTraining(config)
    theirs.save_pretrained(tmp_path)
    net = ViT(
        embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8), positions="line", key_bias=False
    )  # fmt: skip
    objective = VideoMAE(net, RandomTube(ratio=0.5), decoder_dim=12, decoder_depth=2, decoder_heads=2)
    load_rest(objective, str(tmp_path / "model.safetensors"))
    state, own = ours_of(theirs.state_dict(), 2, 2), objective.state_dict()
    wanted = {key for key in state if key.startswith("decoder.")}
    assert wanted == {key for key in own if key.startswith("decoder.")}
    assert all(torch.equal(own[key], state[key]) for key in wanted)
