import math

import pytest
import torch

from vidssl.backbones.blocks import sincos_positions
from vidssl.backbones.vit import ViT
from vidssl.layers.transformer import Attention, line_positions, rotary_positions

CPU = torch.device("cpu")


def small(class_token: bool = False) -> ViT:
    return ViT(embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8), class_token=class_token).eval()


@pytest.mark.parametrize("size", [(2, 16, 16), (8, 64, 64), (4, 24, 40), (1, 32, 16)])
def test_takes_clips_of_any_length_and_size(size: tuple[int, int, int]) -> None:
    vit = small()
    grid = vit.grid(*size)
    assert vit(torch.rand(2, 3, *size)).patches.shape == (2, *grid, 24)


def test_refuses_a_size_that_is_no_whole_number_of_patches() -> None:
    with pytest.raises(ValueError, match="whole multiples"):
        small()(torch.rand(1, 3, 3, 16, 16))


def test_class_token_is_what_is_pooled() -> None:
    features = small(class_token=True)(torch.rand(2, 3, 4, 16, 16))
    assert features.cls is not None
    assert torch.equal(features.pooled(), features.cls)
    assert features.patches.shape == (2, 2, 2, 2, 24)
    assert small()(torch.rand(2, 3, 4, 16, 16)).cls is None


def test_class_token_is_kept_apart_from_the_patches() -> None:
    with_token, without = small(class_token=True), small()
    without.load_state_dict(with_token.state_dict(), strict=False)
    for vit in (with_token, without):
        for block in vit.blocks:
            for parameter in block.parameters():
                torch.nn.init.zeros_(parameter)  # tokens pass through as they are
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        features = with_token(clip)
        assert torch.equal(features.patches, without(clip).patches)
        assert torch.equal(features.pooled()[0], with_token.norm(with_token.class_token))


def test_order_of_frames_and_place_in_the_frame_are_seen() -> None:
    vit, clip = small(), torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        pooled = vit(clip).pooled()
        later_first = torch.cat((clip[:, :, 2:], clip[:, :, :2]), dim=2)
        assert not torch.allclose(vit(later_first).pooled(), pooled, atol=1e-4)
        lower_first = torch.cat((clip[..., 8:, :], clip[..., :8, :]), dim=3)
        assert not torch.allclose(vit(lower_first).pooled(), pooled, atol=1e-4)


def test_position_codes_are_separate_for_each_axis_and_tell_all_cells_apart() -> None:
    codes = sincos_positions((3, 4, 5), 20, CPU)
    assert codes.shape == (3, 4, 5, 20)
    assert codes.flatten(0, 2).unique(dim=0).shape[0] == 60
    time, row, column = codes.split((8, 6, 6), dim=-1)
    assert torch.equal(time, time[:, :1, :1].expand_as(time))
    assert torch.equal(row, row[:1, :, :1].expand_as(row))
    assert torch.equal(column, column[:1, :1].expand_as(column))


def test_position_codes_do_not_depend_on_the_size_of_the_grid() -> None:
    large = sincos_positions((4, 6, 6), 12, CPU)
    assert torch.equal(sincos_positions((2, 3, 5), 12, CPU), large[:2, :3, :5])


def test_odd_width_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ValueError, match="even number of channels"):
        ViT(embed_dim=27, depth=1, num_heads=1)


def test_line_positions_are_one_ladder_over_the_flattened_grid() -> None:
    table = line_positions(24, 8, CPU)
    for place, channel in ((0, 0), (5, 2), (23, 7)):
        angle = place / 10_000 ** (2 * (channel // 2) / 8)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert float(table[place, channel]) == pytest.approx(expected, abs=1e-6)
    vit = ViT(embed_dim=8, depth=1, num_heads=2, patch_size=(2, 8, 8), positions="line")
    assert torch.equal(vit._codes((2, 3, 4), CPU).flatten(0, 2), table)
    assert not any("position" in key for key in vit.state_dict())


def test_a_bias_of_keys_changes_nothing() -> None:
    torch.manual_seed(0)
    with_bias, without = (Attention(12, 2, key_bias=key_bias) for key_bias in (True, False))
    torch.nn.init.normal_(with_bias.qkv.bias)
    q, _, v = with_bias.qkv.bias.detach().chunk(3)
    state = {key: x for key, x in with_bias.state_dict().items() if key != "qkv.bias"}
    without.load_state_dict(state | {"q_bias": q, "v_bias": v})
    x = torch.rand(2, 5, 12)
    assert torch.allclose(with_bias(x), without(x), atol=1e-6)


def test_the_norm_of_the_mean_is_what_is_pooled() -> None:
    vit = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8), norm="mean").eval()
    torch.nn.init.normal_(vit.fc_norm.weight)
    features = vit(torch.rand(2, 3, 4, 16, 16))
    assert torch.allclose(features.pooled(), vit.fc_norm(features.patches.mean(dim=(1, 2, 3))))
    assert vit.final_norm() is None
    with pytest.raises(ValueError, match="leave class_token and levels out"):
        ViT(embed_dim=12, depth=1, num_heads=2, norm="mean", class_token=True)


@pytest.mark.parametrize("tiled", [False, True])
def test_rotary_positions_turn_neighbouring_channels_by_time_row_and_column(tiled: bool) -> None:
    """A slow, obvious version: channels of 20 are 6 for each axis, in 3 pairs, and 2 that rest."""
    turns = rotary_positions((2, 3, 4), 20, CPU, tiled=tiled)
    x = torch.rand(1, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    turned = turns.turn(x)[0, 0]
    for place, index in ((23, (1, 2, 3)), (6, (0, 1, 2))):
        for channel in range(18):
            axis, inner = channel // 6, channel % 6
            angle = index[axis] / 10_000 ** ((inner % 3 if tiled else inner // 2) / 3)
            partner = -x[0, 0, place, channel + 1] if inner % 2 == 0 else x[0, 0, place, channel - 1]
            expected = x[0, 0, place, channel] * math.cos(angle) + partner * math.sin(angle)
            assert float(turned[place, channel]) == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(turned[:, 18:], x[0, 0, :, 18:])


def test_true_rotation_keeps_lengths_and_depends_on_differences_alone() -> None:
    turns = rotary_positions((4, 4, 4), 18, CPU, tiled=False)
    q, k = torch.rand(2, 1, 1, 1, 18).expand(2, 1, 1, 64, 18)
    turned_q, turned_k = turns.turn(q), turns.turn(k)
    assert torch.allclose(turned_q.norm(dim=-1), q.norm(dim=-1), atol=1e-5)
    products = turned_q[0, 0] @ turned_k[0, 0].T
    step = 16 + 4 + 1  # a cell later, lower and further right
    assert float(products[0, step]) == pytest.approx(float(products[step, 2 * step]), abs=1e-4)
    tiled = rotary_positions((4, 4, 4), 18, CPU, tiled=True)
    assert not torch.allclose(tiled.turn(q).norm(dim=-1), q.norm(dim=-1), atol=1e-2)


def test_a_span_scales_rows_and_columns_and_never_times() -> None:
    wide = rotary_positions((3, 31, 16), 18, CPU, tiled=False, span=16)
    plain = rotary_positions((3, 16, 16), 18, CPU, tiled=False)
    assert torch.allclose(wide.cos.view(3, 31, 16, 18)[:, ::2], plain.cos.view(3, 16, 16, 18), atol=1e-6)


@pytest.mark.parametrize("positions", ["rotary", "rotary_tiled"])
def test_rotary_positions_alone_tell_places_apart(positions: str) -> None:
    torch.manual_seed(0)
    net = ViT(
        embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8), positions=positions, init_std=0.2
    ).eval()
    clip = torch.rand(1, 3, 4, 16, 16)
    with torch.no_grad():
        pooled = net(clip).pooled()
        assert not torch.allclose(net(clip.roll(2, dims=2)).pooled(), pooled, atol=1e-5)
        assert not torch.allclose(net(clip.roll(8, dims=3)).pooled(), pooled, atol=1e-5)


def test_block_causal_cells_know_no_later_ones_and_the_class_token_knows_all() -> None:
    torch.manual_seed(0)
    net = ViT(
        embed_dim=12, depth=2, num_heads=2, patch_size=(1, 8, 8), positions="rotary", class_token=True,
        attention="block_causal", init_std=0.3,
    ).eval()  # fmt: skip
    clip = torch.rand(1, 3, 4, 16, 16)
    other = torch.cat((clip[:, :, :2], torch.rand(1, 3, 2, 16, 16)), dim=2)
    with torch.no_grad():
        first, second = net(clip), net(other)
        assert torch.allclose(first.patches[:, :2], second.patches[:, :2], atol=1e-6)
        assert not torch.allclose(first.patches[:, 2], second.patches[:, 2], atol=1e-3)
        assert not torch.allclose(first.pooled(), second.pooled(), atol=1e-4)
        torch.nn.init.normal_(net.class_token)
        assert torch.allclose(net(clip).patches, first.patches, atol=1e-6)  # nobody looks at it
        within = clip.clone()
        within[:, :, 0, 8:] = 0.0
        assert not torch.allclose(net(within).patches[:, 0, 0], first.patches[:, 0, 0], atol=1e-4)


def test_levels_are_blocks_outputs_each_behind_a_norm_of_its_own() -> None:
    torch.manual_seed(0)
    net = ViT(
        embed_dim=12, depth=3, num_heads=2, patch_size=(2, 8, 8), levels=(0, 2), positions="rotary"
    ).eval()
    torch.nn.init.normal_(net.level_norms[0].weight)
    seen: list[torch.Tensor] = []
    net.blocks[0].register_forward_hook(lambda module, given, made: seen.append(made))
    clip = torch.rand(1, 3, 4, 16, 16)
    made = net(clip)
    assert (len(made.levels), net.num_levels) == (2, 2)
    assert torch.equal(made.levels[0].flatten(1, 3), net.level_norms[0](seen[0]))
    assert torch.equal(made.levels[1], made.patches)
    visible = net.forward_visible(clip, torch.arange(8)[None])
    assert torch.allclose(visible.levels[0], made.levels[0].flatten(1, 3), atol=1e-6)
    with pytest.raises(ValueError, match=r"rise to the last one, 2, got \[0, 1\]"):
        ViT(embed_dim=12, depth=3, num_heads=2, levels=(0, 1))


def test_clips_and_images_get_a_vector_of_their_own() -> None:
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8), modality=True).eval()
    clip, image = torch.rand(1, 3, 2, 16, 16), torch.rand(1, 3, 1, 16, 16)
    with torch.no_grad():
        before = net(clip).patches, net(image).patches
        torch.nn.init.normal_(net.image_vector)
        assert torch.equal(net(clip).patches, before[0])
        assert not torch.allclose(net(image).patches, before[1], atol=1e-3)


def test_deep_layers_start_smaller_by_the_root_of_twice_their_number() -> None:
    nets = []
    for shrink in (False, True):
        torch.manual_seed(0)
        nets.append(ViT(embed_dim=12, depth=3, num_heads=2, shrink_deep=shrink))
    for number, (plain, shrunk) in enumerate(zip(nets[0].blocks, nets[1].blocks, strict=True), 1):
        assert torch.allclose(shrunk.attn.proj.weight * (2 * number) ** 0.5, plain.attn.proj.weight)
        assert torch.allclose(shrunk.mlp.fc2.weight * (2 * number) ** 0.5, plain.mlp.fc2.weight)
        assert torch.equal(shrunk.mlp.fc1.weight, plain.mlp.fc1.weight)


# V-JEPA 2 and 2.1: embed_dim, depth, num_heads, mlp_ratio; parameters of the encoder: as the files have them
# (2's L and g), as their keys come to (2.1's B, L and g), by hand (H and G); what the authors list.
# With its predictor of 22,282,880 parameters H has the 653.9 M of the hub's model.
NEWER = {"positions": "rotary", "position_span": 16, "modality": True}
VJEPA_SIZES = {
    "2 L": (1024, 24, 16, 4.0, 303_885_312, "300M"),
    "2 H": (1280, 32, 16, 4.0, 631_648_000, "600M"),
    "2 g": (1408, 40, 22, 48 / 11, 1_012_173_952, "1B"),
    "2.1 B": (768, 12, 12, 4.0, 86_833_152, "80M"),
    "2.1 L": (1024, 24, 16, 4.0, 304_680_960, "300M"),
    "2.1 g": (1408, 40, 22, 48 / 11, 1_013_267_968, "1B"),
    "2.1 G": (1664, 48, 26, 4.0, 1_599_776_256, "2B"),
}
LEVELS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}


def count_by_hand(dim: int, depth: int, hidden: int, newer: bool) -> int:
    """Patches of 2 x 16 x 16, blocks, last norm; 2.1: patches of images, two vectors, three more norms."""
    block = 2 * 2 * dim + 4 * dim * dim + 4 * dim + 2 * dim * hidden + hidden + dim
    patches = 3 * 2 * 256 * dim + dim
    return patches + depth * block + 2 * dim + newer * (3 * 256 * dim + dim + 2 * dim + 3 * 2 * dim)


@pytest.mark.parametrize("name", VJEPA_SIZES)
def test_encoders_of_v_jepa_have_as_many_parameters_as_the_releases(name: str) -> None:
    dim, depth, heads, ratio, published, listed = VJEPA_SIZES[name]
    newer = name.startswith("2.1")
    keys = {**NEWER, "levels": LEVELS[depth]} if newer else {"positions": "rotary_tiled"}
    with torch.device("meta"):
        net = ViT(embed_dim=dim, depth=depth, num_heads=heads, mlp_ratio=ratio, **keys)
    own = ("mask_token",) if newer else ("mask_token", "embed_image")  # which the releases lack
    assert sum(p.numel() for key, p in net.named_parameters() if not key.startswith(own)) == published
    assert count_by_hand(dim, depth, int(dim * ratio), newer) == published
    assert name != "2 H" or round((published + 22_282_880) / 1e5) == 6539
    unit = {"M": 1e6, "B": 1e9}[listed[-1]]
    assert published == pytest.approx(float(listed[:-1]) * unit, rel=0.21)  # one digit, cut off or rounded


def test_positions_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="even number of them, at least 6, got 4"):
        ViT(embed_dim=8, depth=1, num_heads=2, positions="rotary")
    with pytest.raises(ValueError, match="position_span is of rotary positions"):
        ViT(embed_dim=12, depth=1, num_heads=2, position_span=16)
    with pytest.raises(ValueError, match="expected one of full, block_causal, got causal"):
        ViT(embed_dim=12, depth=1, num_heads=2, attention="causal")


def test_more_blocks_than_a_network_has_are_refused_before_they_are_built() -> None:
    """A checkpoint's recipe may come from anywhere: two thousand million blocks had no end."""
    with pytest.raises(ValueError, match="depth must be at most 1,000, got 2000000000"):
        ViT(embed_dim=8, depth=2_000_000_000, num_heads=2, patch_size=(2, 8, 8))
