"""TimeSformer against the release's numbers, and where the release is silently wrong."""

import json

import pytest
import torch
from einops import rearrange
from timesformer_reference import FOLDER, Plain, golden_net, load, load_published, off, published, toy
from torch import Tensor

from vidssl.backbones.timesformer import DividedBlock, TimeSformer

CASES = [
    ("full", "full"),
    ("lowres", "px24"),
    ("lowres", "px16"),
    ("lowres", "px48"),
    ("nonsquare", "h16w32"),
    ("nonsquare", "h40w24"),
    ("fewer_frames", "t2"),
    ("fewer_frames", "t3"),
    ("fewer_frames", "t4"),
    ("fewer_frames", "t4px24"),
    ("more_frames", "t12px16"),
    ("more_frames", "t16px24"),
    ("more_frames", "t64px16"),
]


@pytest.fixture(scope="module")
def net() -> TimeSformer:
    return golden_net()


# the release's numbers


@pytest.mark.parametrize(("file", "case"), CASES)
def test_tokens_match_the_release(net: TimeSformer, file: str, case: str) -> None:
    golden = load(f"model_{file}")
    with torch.no_grad():
        embedded = net._embed(golden[f"{case}/input"], None)
        features = net(golden[f"{case}/input"])
    assert off(embedded, golden[f"{case}/embed"]) < 1e-5
    assert features.cls is not None
    assert off(features.cls, golden[f"{case}/tokens"][:, 0]) < 1e-5
    assert off(published(features.patches), golden[f"{case}/tokens"][:, 1:]) < 1e-5


def test_every_step_of_a_block_matches_the_release(net: TimeSformer) -> None:
    golden = load("model_full")
    seen: dict[str, Tensor] = {}
    block = net.blocks[0]
    assert isinstance(block, DividedBlock)
    names = ("temporal_norm1", "temporal_attn", "temporal_fc", "norm1", "attn", "norm2", "mlp")
    hooks = [
        getattr(block, name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in names
    ]
    with torch.no_grad():
        first = block(golden["full/embed"], 8)
        assert off(net.blocks[1](first, 8), golden["full/block_1"]) < 1e-5
    for hook in hooks:
        hook.remove()
    assert off(first, golden["full/block_0"]) < 1e-5
    seen["temporal_fc"] = rearrange(seen["temporal_fc"], "(b p) t d -> b (p t) d", b=2)
    for name in names:
        assert off(seen[name], golden[f"full/inner_0_{name}"]) < 1e-5, name


def test_gradients_match_the_release() -> None:
    net, golden = golden_net(), load("model_grad")
    clip = load("model_full")["full/input"].requires_grad_()
    loss = (net(clip).pooled() * golden["weight"]).sum()
    loss.backward()
    assert off(loss, golden["loss"]) < 5e-5
    assert clip.grad is not None
    assert off(clip.grad, golden["grad_input"]) < 5e-5
    grads = {key: p.grad for key, p in net.named_parameters() if key != "mask_token"}
    assert {f"grad/{key}" for key in grads} == {key for key in golden if key.startswith("grad/")}
    for key, grad in grads.items():
        assert grad is not None, key
        assert off(grad, golden[f"grad/{key}"]) < 5e-5, key


def test_epsilon_of_the_norms_matches_the_release() -> None:
    golden = load("model_eps")
    shrunken = {key.removeprefix("state/"): x for key, x in golden.items() if key.startswith("state/")}
    net = load_published(toy(), {**load("weights"), **shrunken})
    with torch.no_grad():
        features = net(golden["tiny/input"])
    assert off(features.pooled(), golden["tiny/tokens"][:, 0]) < 1e-5
    assert off(published(features.patches), golden["tiny/tokens"][:, 1:]) < 1e-5


def test_names_shapes_and_number_of_parameters_are_those_of_the_release() -> None:
    expected = json.loads((FOLDER / "keys_vitb.json").read_text())
    with torch.device("meta"):
        base = TimeSformer()
    shapes = {key: list(x.shape) for key, x in base.state_dict().items()}
    assert shapes.pop("mask_token") == [768]
    assert shapes == expected["backbone"]
    count = sum(p.numel() for p in base.parameters()) - base.mask_token.numel()
    assert count == expected["backbone_parameters"] == 121_258_752


# where the release is silently wrong


def test_plane_of_as_many_patches_as_the_table_but_another_shape_is_resized(net: TimeSformer) -> None:
    clip = load("model_nonsquare")["h16w64/input"]
    cls, patches, _ = Plain(net, "divided", heads=3, patch=8)(clip[0])
    with torch.no_grad():
        features = net(clip)
    assert off(features.pooled()[0], cls) < 1e-5
    assert off(features.patches[0], patches) < 1e-5


def test_the_release_uses_the_table_of_such_a_plane_as_it_lies(
    net: TimeSformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load("model_nonsquare")
    with torch.no_grad():
        assert off(net(golden["h16w64/input"]).pooled(), golden["h16w64/tokens"][:, 0]) > 0.01
        as_it_lies = net.pos_embed[0, 1:].view(2, 8, 48)
        monkeypatch.setattr(TimeSformer, "_places", lambda self, h, w: as_it_lies)
        features = net(golden["h16w64/input"])
    assert off(features.pooled(), golden["h16w64/tokens"][:, 0]) < 1e-5
    assert off(published(features.patches), golden["h16w64/tokens"][:, 1:]) < 1e-5


def test_final_norm_is_the_one_behind_the_patches(net: TimeSformer) -> None:
    tokens = load("model_full")["full/block_1"]
    with torch.no_grad():
        assert off(net.final_norm()(tokens), load("model_full")["full/tokens"]) < 1e-5
