"""TimeSformer: against a plain restatement, any length and size, kinds of attention, masks, fresh weights."""

import pytest
import torch
from einops import rearrange
from timesformer_reference import Plain, golden_net, noisy, off, toy
from torch import Tensor

from vidssl.backbones.blocks import PositionResize, resize_positions
from vidssl.backbones.timesformer import DividedBlock, TimeSformer, from_frames, to_frames
from vidssl.interfaces import Batch, Progress, Tokenizer
from vidssl.maskers.bevt import Tube
from vidssl.objectives.bevt import BEVT

KINDS = pytest.mark.parametrize("attention", ["divided", "joint", "space"])


@pytest.fixture(scope="module")
def net() -> TimeSformer:
    return golden_net()


# any length, any size


@KINDS
@pytest.mark.parametrize("size", [(3, 16, 24), (1, 32, 32), (12, 8, 40)])
def test_agrees_with_a_plain_restatement(attention: str, size: tuple[int, int, int]) -> None:
    net = noisy(toy(attention=attention))
    clip = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, weights = net(clip), net.class_attention(clip)
    for i in range(2):
        cls, patches, weight = Plain(net, attention, heads=3, patch=8)(clip[i])
        assert off(features.pooled()[i], cls) < 2e-5
        assert off(features.patches[i], patches) < 2e-5
        assert off(weights[i], weight) < 1e-5


def test_one_network_takes_every_length_and_size_of_the_paper() -> None:
    net = TimeSformer(embed_dim=12, depth=1, num_heads=2).eval()
    before = {key: x.shape for key, x in net.state_dict().items()}
    with torch.no_grad():
        for t, side in ((1, 224), (2, 96), (4, 160), (8, 224), (16, 112), (64, 96)):
            features = net(torch.rand(1, 3, t, side, side))
            assert features.patches.shape == (1, t, side // 16, side // 16, 12)
            assert torch.isfinite(features.pooled()).all()
    assert {key: x.shape for key, x in net.state_dict().items()} == before


def test_one_patch_wide_and_one_patch_high_clips_are_taken(net: TimeSformer) -> None:
    with torch.no_grad():
        assert net(torch.rand(1, 3, 2, 32, 8)).patches.shape == (1, 2, 4, 1, 48)
        assert net(torch.rand(1, 3, 2, 8, 8)).patches.shape == (1, 2, 1, 1, 48)


def test_rest_of_a_patch_is_refused(net: TimeSformer) -> None:
    with pytest.raises(ValueError, match=r"whole multiples of \(1, 8, 8\)"):
        net(torch.rand(1, 3, 2, 36, 32))


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (6, 6)), ((4, 4), (2, 8)), ((8, 1), (64, 1)), ((3, 5), (7, 4))]
)
def test_nearest_takes_the_floor(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.rand(*old, 2)
    resized = resize_positions(table, new, "nearest")
    for i in range(new[0]):
        for j in range(new[1]):
            assert torch.equal(resized[i, j], table[int(i * old[0] / new[0]), int(j * old[1] / new[1])])


def test_nearest_takes_the_published_entries() -> None:
    def line(old: int, new: int) -> list[float]:
        return (
            resize_positions(torch.arange(float(old)).view(old, 1, 1), (new, 1), "nearest").flatten().tolist()
        )

    assert line(14, 6) == [0, 2, 4, 7, 9, 11]
    assert line(8, 4) == [0, 2, 4, 6]
    assert line(8, 2) == [0, 4]
    assert line(8, 16) == [i // 2 for i in range(16)]


@pytest.mark.parametrize("rule", ["bilinear", "bicubic"])
def test_smooth_rules_keep_a_ramp_a_ramp(rule: PositionResize) -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(8.0), indexing="ij")
    table = torch.stack((rows, columns, torch.ones(12, 8)), dim=-1)
    resized = resize_positions(table, (24, 4), rule)
    # centres of cells stay over each other: cell i of 24 lies at (i + 0.5) / 2 - 0.5
    inner = resized[6:18, 1:3]
    assert torch.allclose(inner[:, 0, 0], (torch.arange(6.0, 18) + 0.5) / 2 - 0.5, atol=0.05)
    assert torch.allclose(inner[0, :, 1], (torch.arange(1.0, 3) + 0.5) * 2 - 0.5, atol=0.05)
    assert torch.allclose(resized[..., 2], torch.ones(24, 4))
    assert torch.equal(resize_positions(table, (12, 8), rule), table)


@pytest.mark.parametrize("rule", ["bilinear", "bicubic"])
def test_rule_of_resizing_is_used_for_places_and_times(net: TimeSformer, rule: str) -> None:
    smooth = golden_net(rule=rule)
    same, shorter, smaller = (
        torch.rand(1, 3, 8, 32, 32),
        torch.rand(1, 3, 4, 32, 32),
        torch.rand(1, 3, 8, 24, 24),
    )
    with torch.no_grad():
        assert torch.equal(smooth(same).pooled(), net(same).pooled())
        assert off(smooth(shorter).pooled(), net(shorter).pooled()) > 1e-3
        assert off(smooth(smaller).pooled(), net(smaller).pooled()) > 1e-3


# kinds of attention


def test_frames_and_tokens_turn_into_each_other() -> None:
    tokens = torch.rand(2, 1 + 6 * 4, 3)
    frames = to_frames(tokens, 4)
    assert frames.shape == (8, 7, 3)
    assert torch.equal(frames[4 + 2, 0], tokens[1, 0])
    assert torch.equal(frames[4 + 2, 1 + 5], tokens[1, 1 + 5 * 4 + 2])
    back = from_frames(frames, 4)
    assert torch.equal(back[:, 1:], tokens[:, 1:])
    assert torch.allclose(back[:, 0], tokens[:, 0])


def test_space_alone_sees_no_other_frame_and_no_order() -> None:
    net = noisy(toy(attention="space"))
    assert net.time_embed is None
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        whole, turned, single = net(clip), net(clip.flip(2)), net(clip[:, :, 2:3])
    assert off(whole.patches[:, 2], single.patches[:, 0]) < 1e-5
    assert off(whole.pooled(), turned.pooled()) < 1e-5
    assert net.blocks[0].state_dict().keys() == toy(attention="joint").blocks[0].state_dict().keys()


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_order_of_frames_is_seen(attention: str) -> None:
    net = noisy(toy(attention=attention))
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        assert off(net(clip).pooled(), net(clip.flip(2)).pooled()) > 1e-3


@KINDS
def test_class_attention_is_a_share(attention: str) -> None:
    net = noisy(toy(attention=attention))
    weights = net.class_attention(torch.rand(2, 3, 4, 16, 24))
    assert weights.shape == (2, 3, 4, 2, 3)
    total = weights.sum(dim=(-2, -1)) if attention != "joint" else weights.sum(dim=(-3, -2, -1))
    assert (weights > 0).all()
    assert (total < 1).all()


# masks


@KINDS
def test_mask_token_takes_the_place_of_patches_before_positions_are_added(attention: str) -> None:
    net = noisy(toy(attention=attention))
    clip, mask = torch.rand(2, 3, 4, 16, 16), torch.zeros(2, 4, 2, 2, dtype=torch.bool)
    mask[0, 1, 0, 1] = True
    with torch.no_grad():
        plain, hidden = net._embed(clip, None), net._embed(clip, mask)
        assert torch.equal(net(clip, torch.zeros_like(mask)).patches, net(clip).patches)
        changed = hidden[1, 1 + 1] if attention == "space" else hidden[0, 1 + 1 * 4 + 1]
        expected = net.mask_token + net._places(2, 2)[0, 1]
        if net.time_embed is not None:
            expected = expected + net.time_embed[0, 2]  # frame 1 of 4 takes entry 2 of 8
    assert off(changed, expected) < 1e-6
    assert int((plain != hidden).any(dim=-1).sum()) == 1


class EightColours(Tokenizer):
    vocab_size = 8
    strides = (1, 8, 8)

    def encode(self, clip: Tensor) -> Tensor:
        colour = rearrange(clip, "b c t (h q) (w r) -> b c t h w (q r)", q=8, r=8).mean(-1) > 0.5
        return (colour * torch.tensor([1, 2, 4]).view(3, 1, 1, 1)).sum(dim=1)

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


@KINDS
def test_bevt_trains_all_of_it_on_images_and_clips(attention: str) -> None:
    net = noisy(toy(attention=attention)).train()
    objective = BEVT(net, EightColours(), Tube(min_block=2))
    views = {"image": (torch.rand(2, 3, 1, 32, 32),), "clip": (torch.rand(2, 3, 4, 32, 32),)}
    output = objective(Batch(views=views), Progress(0, 10), torch.Generator().manual_seed(0))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


# fresh weights and training


def test_fresh_network_treats_every_frame_as_an_image() -> None:
    torch.manual_seed(0)
    net = TimeSformer(embed_dim=48, depth=3, num_heads=3, patch_size=8, size=32).eval()
    for block in net.blocks:
        assert isinstance(block, DividedBlock)
        assert not block.temporal_fc.weight.any()
        assert not block.temporal_fc.bias.any()
        assert block.temporal_attn.qkv.weight.any()
    assert net.time_embed is not None
    assert not net.time_embed.any()
    frame = torch.rand(1, 3, 1, 32, 32)
    with torch.no_grad():
        image, clip = net(frame), net(frame.expand(-1, -1, 6, -1, -1))
    assert off(clip.pooled(), image.pooled()) < 1e-5
    assert off(clip.patches[:, 4], image.patches[:, 0]) < 1e-5


def test_fresh_weights_have_the_published_deviations() -> None:
    torch.manual_seed(0)
    net = TimeSformer(embed_dim=96, depth=2, num_heads=3, patch_size=8, size=64, init_std=0.05)
    block = net.blocks[1]
    assert isinstance(block, DividedBlock)
    for linear in (block.attn.qkv, block.temporal_attn.proj, block.mlp.fc2):
        assert abs(float(linear.weight.detach().std()) - 0.05) < 0.002
        assert not linear.bias.any()
    for table in (net.pos_embed, net.cls_token):
        assert abs(float(table.detach().std()) - 0.02) < 0.004
    bound = (3 * 8 * 8) ** -0.5  # a convolution's own: uniform
    assert 0.9 * bound < float(net.patch_embed.proj.weight.detach().abs().max()) <= bound


def test_stochastic_depth_drops_places_frames_and_samples() -> None:
    torch.manual_seed(0)
    block = DividedBlock(8, 2, mlp_ratio=2.0, drop_path=0.5).train()
    tokens = torch.randn(3, 1 + 5 * 4, 8)
    torch.nn.init.normal_(block.temporal_fc.bias)
    moved = (block.along_time(tokens, 4) - tokens)[:, 1:].unflatten(1, (5, 4))
    dropped = (moved - block.temporal_fc.bias).abs().amax(dim=-1) < 1e-6
    assert torch.equal(dropped.all(dim=-1), dropped.any(dim=-1))  # whole places
    assert 0 < dropped.all(dim=-1).float().mean() < 1
    assert not dropped.all(dim=-1).all(dim=-1).any()  # not whole samples

    for layer in (block.temporal_fc.weight, block.temporal_fc.bias, block.mlp.fc2.weight, block.mlp.fc2.bias):
        torch.nn.init.zeros_(layer)
    moved = (block(tokens, 4) - tokens)[:, 1:].unflatten(1, (5, 4)).abs().amax(dim=-1) < 1e-6
    frames = moved.all(dim=1)
    assert torch.equal(frames, moved.any(dim=1))  # whole frames
    assert (frames.any(dim=1) & ~frames.all(dim=1)).any()  # not whole samples

    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(block.attn.proj.bias)
    torch.nn.init.ones_(block.mlp.fc2.bias)
    rest = torch.stack([(block(tokens, 4) - tokens).abs().amax(dim=-1) < 1e-6 for _ in range(8)])
    assert torch.equal(rest.all(dim=-1), rest.any(dim=-1))  # whole samples, the class token with them
    assert 0 < rest.float().mean() < 1


def test_first_block_drops_nothing_and_the_last_most() -> None:
    rates = [block.drop_path.rate for block in TimeSformer(embed_dim=12, depth=3, num_heads=2).blocks]
    assert rates == [0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size": 30, "patch_size": 8}, "size must be a whole number of patches"),
        ({"size": 0}, "size must be a whole number of patches"),
        ({"num_frames": 0}, "must be positive"),
        ({"depth": 0}, "must be positive"),
        ({"embed_dim": 10, "num_heads": 3}, "cannot be divided among 3 heads"),
        ({"attention": "joint", "temporal_init": "random"}, "has no temporal attention"),
    ],
)
def test_keys_that_make_no_network_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSformer(**{"embed_dim": 12, "depth": 1, "num_heads": 2, **keys})


def test_mask_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="mask must be"):
        toy()(torch.rand(1, 3, 2, 16, 16), torch.zeros(1, 2, 2, 3, dtype=torch.bool))
