import math

import pytest
import torch

from vidssl.backbones.positions import sincos_positions
from vidssl.backbones.vit import ViT
from vidssl.layers.transformer import Attention, line_positions

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
    with pytest.raises(ValueError, match="set one of the two"):
        ViT(embed_dim=12, depth=1, num_heads=2, norm="mean", class_token=True)
