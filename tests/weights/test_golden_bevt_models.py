"""BEVT's encoder and decoders against the release's numbers, at toy size and at Swin-B's names and shapes."""

import json

import pytest
import torch
import torch.nn.functional as F
from bevt_reference import (
    FOLDER,
    backbone_state,
    difference,
    every_position,
    head_key,
    load,
    load_head,
    load_swin,
    toy_swin,
)
from einops import rearrange
from torch import Tensor

from vidssl.backbones.video_swin import (
    PatchMerging,
    SwinBlock,
    VideoSwin,
    merge,
    partition,
    plan_windows,
    relative_index,
)
from vidssl.interfaces import Tokenizer
from vidssl.interfaces.grids import expand_mask
from vidssl.objectives.parts.masked_prediction import Predictions, StagesHead
from vidssl.weights.swin import (
    from_published,
    inflate_bias_table,
    inflate_swin,
    published_key,
    resize_bias_table,
    torchvision_key,
)

CPU = torch.device("cpu")


class FakeTokenizer(Tokenizer):
    vocab_size = 24
    strides = (1, 16, 16)

    def encode(self, clip: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


def in_order(x: Tensor, positions: Tensor) -> Tensor:
    return x[positions.argsort()]


@pytest.fixture(scope="module")
def swin() -> VideoSwin:
    return load_swin(toy_swin(), backbone_state())


@pytest.fixture(scope="module")
def head(swin: VideoSwin) -> StagesHead:
    head = StagesHead(swin, FakeTokenizer(), ("image", "video"))
    load_head(head)
    return head


def test_video_stages_match_under_a_mask(swin: VideoSwin) -> None:
    golden = load("video_stream")
    clip, mask = golden["input_i8"].float() / 32, golden["mask_in"].bool()
    assert torch.equal(expand_mask(mask, (4, 24, 24)), golden["mask_patches"].bool())
    with torch.no_grad():
        features = swin(clip, expand_mask(mask, swin.grid(8, 96, 96)))
    for i, stage in enumerate(features.stages):
        assert difference(rearrange(stage, "b t h w d -> b d t h w"), golden[f"out/stage{i + 1}"]) < 1e-5


def test_video_decoder_matches_at_every_step(swin: VideoSwin, head: StagesHead) -> None:
    golden = load("video_stream")
    stages = tuple(rearrange(golden[f"out/stage{i}"], "b d t h w -> b t h w d") for i in range(1, 5))
    decoder = head.decoders["video"]
    with torch.no_grad():
        up = rearrange(decoder.up(stages[3]), "b t h w (q r) d -> b d t (h q) (w r)", q=2)
        assert difference(up, golden["out/dec_up"]) < 1e-5
        fused = decoder.fuse(torch.cat((stages[2], rearrange(up, "b d t h w -> b t h w d")), dim=-1))
        assert difference(fused, golden["out/dec_fuse"]) < 1e-5
        vectors, positions = decoder(stages, every_position((8, 6, 6)))
        spread = rearrange(in_order(vectors, positions), "(t h w) d -> 1 d t h w", t=8, h=6)
        assert difference(spread, golden["out/dec_time"]) < 1e-5
        tokens = in_order(swin.norm(vectors), positions)[None]
        assert difference(tokens, golden["out/tokens"]) < 1e-5


def test_video_logits_match_at_hidden_positions(swin: VideoSwin, head: StagesHead) -> None:
    golden = load("video_stream")
    mask, hidden = golden["mask_in"].bool(), golden["mask_out"].bool()
    assert torch.equal(expand_mask(mask, (8, 6, 6)), hidden)
    with torch.no_grad():
        features = swin(golden["input_i8"].float() / 32, expand_mask(mask, (4, 24, 24)))
        got: Predictions = head("video", features, hidden, swin.final_norm())
    assert torch.equal(got.positions.sort().values, hidden.flatten().nonzero()[:, 0])
    assert difference(got.logits, golden["out/logits"].flatten(0, 1)[got.positions]) < 1e-5


def test_image_stream_matches_the_paper_s_path(swin: VideoSwin, head: StagesHead) -> None:
    golden = load("image_stream")
    image, mask = golden["input"].float()[:, :, None], golden["mask_in"].bool()[:, None]
    with torch.no_grad():
        features = swin(image, expand_mask(mask, swin.grid(1, 96, 96)))
        got = head("image", features, every_position((1, 6, 6)), swin.final_norm())
        vectors, positions = head.decoders["image"](features.stages, every_position((1, 6, 6)))
    for i, stage in enumerate(features.stages):
        ours = rearrange(stage, "b 1 h w d -> b d h w")
        assert difference(ours, golden[f"clean/stage{i + 1}"]) < 1e-5
    assert difference(in_order(vectors, positions), golden["clean/dec_fuse"].flatten(0, 2)) < 1e-5
    assert difference(in_order(got.logits, got.positions), golden["clean/logits"][0]) < 1e-5


def test_mask_token_replaces_normed_patch_embeddings(swin: VideoSwin) -> None:
    for name, clip, grid in (
        ("video_stream", lambda golden: golden["input_i8"].float() / 32, (4, 24, 24)),
        ("image_stream", lambda golden: golden["input"].float()[:, :, None], (1, 24, 24)),
    ):
        golden, seen = load(name), []
        hook = swin.stages[0][0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            mask = golden["mask_in"].bool()
            swin(clip(golden), expand_mask(mask if mask.dim() == 4 else mask[:, None], grid))
        hook.remove()
        key = "out/embed_masked" if name == "video_stream" else "official/embed_masked"
        expected = golden[key] if golden[key].dim() == 5 else golden[key][:, :, None]
        assert difference(rearrange(seen[0], "b t h w d -> b d t h w"), expected) < 1e-5


def test_encoder_matches_on_clips_whose_maps_are_odd() -> None:
    golden = load("finetune")
    state = {key: x for key, x in backbone_state().items() if not key.startswith("patch_embed_2d")}
    swin = toy_swin()
    swin.load_state_dict(from_published(state, swin.state_dict()), strict=False)
    with torch.no_grad():
        features = swin(golden["input"].float())
    for i, stage in enumerate(features.stages):
        assert difference(rearrange(stage, "b t h w d -> b d t h w"), golden[f"stage{i + 1}"]) < 1e-5
    assert difference(rearrange(features.patches, "b t h w d -> b d t h w"), golden["features"]) < 1e-5
    assert difference(features.pooled(), golden["pooled"]) < 1e-5


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_padding_and_clamped_windows_match(case: str) -> None:
    golden = load("odd_window")
    state = {key.removeprefix("state/"): x for key, x in golden.items() if key.startswith("state/")}
    swin = toy_swin(window=(4, 7, 7))
    swin.load_state_dict(from_published(state, swin.state_dict()), strict=False)
    clip = golden[f"{case}/input"].float()
    if clip.shape[2] == 1:
        # the fine-tuning model has no image embedding: it fills the one frame up with a frame of zeros
        clip = F.pad(clip, (0, 0, 0, 0, 0, 1))
    with torch.no_grad():
        features = swin(clip)
    assert tuple(features.stages[0].shape[1:4]) == swin.grid(*clip.shape[2:])
    for i, stage in enumerate(features.stages):
        ours = rearrange(stage, "b t h w d -> b d t h w")
        assert difference(ours, golden[f"{case}/stage{i + 1}"]) < 1e-5
    ours = rearrange(features.patches, "b t h w d -> b d t h w")
    assert difference(ours, golden[f"{case}/features"]) < 1e-5


def test_relative_index_matches() -> None:
    golden = load("window_ops")
    for key in ("1_3_3", "2_3_3", "4_7_7"):
        window = tuple(int(size) for size in key.split("_"))
        assert torch.equal(relative_index(window), golden[f"rel_index/{key}"].long())
    plan = plan_windows((1, 7, 7), (8, 7, 7), False, CPU)
    expected = golden["rel_index/8_7_7_image_submatrix"].long()
    assert torch.equal(plan.index.view(49, 49), expected)


def test_shift_masks_match() -> None:
    golden = load("window_ops")
    cases = {
        "grid_1_6_6_win_1_3_3_shift_0_1_1": ((1, 6, 6), (2, 3, 3)),
        "grid_2_14_14_win_2_7_7_shift_0_3_3": ((2, 14, 14), (2, 7, 7)),
        "grid_4_3_6_win_2_3_3_shift_1_0_1": ((4, 3, 6), (2, 3, 3)),
        "grid_4_6_6_win_2_3_3_shift_1_1_1": ((4, 6, 6), (2, 3, 3)),
        "grid_4_7_7_win_2_7_7_shift_1_0_0": ((4, 7, 7), (2, 7, 7)),
    }
    found = {key.removeprefix("shift_mask/") for key in golden if key.startswith("shift_mask/")}
    assert found == set(cases)
    for key, (grid, window) in cases.items():
        blocked = plan_windows(grid, window, True, CPU).blocked
        assert blocked is not None
        assert set(blocked.unique().tolist()) <= {0.0, -100.0}
        assert torch.equal(blocked[:, 0] != 0, golden[f"shift_mask/{key}"].bool())


def test_windows_are_cut_in_the_published_order() -> None:
    golden = load("window_ops")
    cells = torch.arange(2 * 4 * 6 * 6).view(2, 4, 6, 6, 1)
    for key, x in (("grid_4_6_6_win_2_3_3", cells), ("shifted_1_1_1", cells.roll([-1] * 3, (1, 2, 3)))):
        windows = partition(x, (2, 3, 3))
        assert torch.equal(windows.flatten(0, 1)[:, :, 0], golden[f"partition/{key}"].long())
        assert torch.equal(merge(windows, (4, 6, 6), (2, 3, 3)), x)


def test_patch_merging_pads_and_orders_channels_as_published() -> None:
    merging = PatchMerging(1)
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()
    merged = merging(torch.arange(1.0, 10).view(1, 1, 3, 3, 1))
    assert torch.equal(merged, load("window_ops")["merge_order/grid_3_3_padded"])


def test_shifted_block_matches() -> None:
    golden = load("window_ops")
    block = SwinBlock(8, 2, (2, 3, 3), shifted=True, mlp_ratio=4.0, drop_path=0.0).eval()
    prefix = "block/state/"
    state = {key.removeprefix(prefix): x for key, x in golden.items() if key.startswith(prefix)}
    state["attn.bias_table"] = state.pop("attn.relative_position_bias_table")
    block.load_state_dict(state)
    x = golden["block/input"]
    with torch.no_grad():
        attended = block.attn(block.norm1(x), plan_windows((4, 7, 6), (2, 3, 3), True, CPU))
        assert difference(attended, golden["block/part1"]) < 1e-5
        assert difference(block(x, block.plan(x)), golden["block/output"]) < 1e-5
    # the path taken while the bias learns gives the same
    assert difference(block(x, block.plan(x)).detach(), golden["block/output"]) < 1e-5


def test_names_and_shapes_are_those_of_the_released_swin_b() -> None:
    golden = json.loads((FOLDER / "keys_swin_b.json").read_text())
    with torch.device("meta"):
        swin = VideoSwin(variant="base")
        head = StagesHead(swin, FakeTokenizer(), ("image", "video"))
        head.to_vocab = torch.nn.Linear(1024, 8192)
    shapes = {f"backbone.{published_key(key)}": x.shape for key, x in swin.state_dict().items()}
    shapes |= {head_key(key): x.shape for key, x in head.state_dict().items()}
    released = {
        key: shape
        for key, shape in golden["pretrain_two_stream"].items()
        if not key.endswith("relative_position_index")
    }
    assert set(shapes) == set(released)
    # one-frame kernels and the mask token are kept with axes of length 1 more or less
    squeezed = {key: [size for size in shape if size != 1] for key, shape in shapes.items()}
    assert squeezed == {key: [size for size in shape if size != 1] for key, shape in released.items()}

    counts = golden["param_counts"]
    decoders = {name: sum(p.numel() for p in d.parameters()) for name, d in head.decoders.items()}
    assert decoders == {"image": counts["decoder_image"], "video": counts["decoder_video"]}
    encoder = sum(p.numel() for p in swin.parameters())
    assert encoder + sum(decoders.values()) == counts["pretrain_backbone"]
    pretraining_only = sum(p.numel() for p in swin.embed_image.parameters()) + 128
    assert encoder - pretraining_only + 1024 * 400 + 400 == counts["finetune_k400"]


def test_torchvision_keys_are_the_mapped_ones() -> None:
    golden = json.loads((FOLDER / "keys_swin_b.json").read_text())["official_to_torchvision"]
    with torch.device("meta"):
        keys = list(VideoSwin(variant="base").state_dict())
    ours = {
        f"backbone.{published_key(key)}": torchvision_key(key)
        for key in keys
        if key != "mask_token" and not key.startswith("embed_image.")
    }
    expected = {
        key: value
        for key, value in golden.items()
        if key.startswith("backbone.") and not key.endswith("relative_position_index")
    }
    assert ours == expected
    with pytest.raises(ValueError, match="has no 'mask_token'"):
        torchvision_key("mask_token")


@pytest.mark.parametrize("case", ["same", "resized"])
def test_image_weights_inflate_as_published(case: str) -> None:
    golden = load("inflate")
    source = {
        key.removeprefix(f"{case}/in/"): x for key, x in golden.items() if key.startswith(f"{case}/in/")
    }
    ours = toy_swin().state_dict()
    inflated = inflate_swin(source, ours, (2, 3, 3))
    prefix = f"{case}/out/"
    expected = {key.removeprefix(prefix): x for key, x in golden.items() if key.startswith(prefix)}
    expected = {key: x for key, x in expected.items() if not key.startswith("lm_down")}
    assert {published_key(key) for key in inflated} == set(expected)
    for key, tensor in inflated.items():
        assert tensor.shape == ours[key].shape
        assert difference(tensor, expected[published_key(key)].reshape(tensor.shape)) < 1e-5


def test_bias_tables_are_resized_trilinearly() -> None:
    golden = load("relpos_interp")
    for case, old, new in (("small", (2, 3, 3), (4, 3, 3)), ("ssv2", (8, 7, 7), (16, 7, 7))):
        resized = resize_bias_table(golden[f"{case}/in"], old, new)
        assert difference(resized, golden[f"{case}/out"]) < 1e-5
    with pytest.raises(ValueError, match="has 75 rows"):
        resize_bias_table(torch.zeros(74, 1), (2, 3, 3), (4, 3, 3))
    with pytest.raises(ValueError, match="no square window"):
        inflate_bias_table(torch.zeros(15, 1), (2, 3, 3))
