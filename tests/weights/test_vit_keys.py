"""Weights of SVT, TimeSformer and image ViTs under our names: which key fills which, and what comes out."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timesformer_reference import FOLDER, load, noisy, toy
from torch import Tensor

from vidssl.backbones.blocks import IMAGENET_MEAN, IMAGENET_STD
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.vit import ViT
from vidssl.engine.checkpoint import FORMAT
from vidssl.errors import UsageError
from vidssl.interfaces import Translated
from vidssl.weights.external import Stated, check_stated, stated_by_library
from vidssl.weights.load import load_init


def translated(net: TimeSformer | ViT, state: dict[str, Tensor]) -> Translated:
    found = net.translate(state)
    assert found is not None
    return found


def filled(net: TimeSformer | ViT, state: dict[str, Tensor]) -> TimeSformer | ViT:
    """The network with what it takes of the state, all of it."""
    found = translated(net, state)
    assert net.load_state_dict(dict(found.state), strict=False).unexpected_keys == []
    return net


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: x for key, x in state.items()}


def image_vit(depth: int = 2, image: int = 32, **keys: object) -> torch.nn.Module:
    """A plain image ViT of timm with noise in every parameter."""
    net = timm.models.VisionTransformer(
        img_size=image, patch_size=8, embed_dim=48, depth=depth, num_heads=3, num_classes=5, **keys
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


# names


def test_every_key_of_the_release_fills_one_of_ours_of_the_same_shape() -> None:
    expected = json.loads((FOLDER / "keys_vitb.json").read_text())
    with torch.device("meta"):
        base = TimeSformer()
        release = {f"backbone.{key}": torch.empty(shape) for key, shape in expected["backbone"].items()}
        release |= {f"head.{key}": torch.empty(shape) for key, shape in expected["head"].items()}
    found = translated(base, release)
    own = base.state_dict()
    assert found.layout == "SVT, published"
    assert found.reshaped == ()
    assert set(found.dropped) == {f"head.{key}" for key in expected["head"]}
    assert set(own) - set(found.state) == {"mask_token"}
    assert len(found.state) == len(expected["backbone"]) == 247
    for key, x in found.state.items():
        assert x is release[f"backbone.{key}"], key
        assert x.shape == own[key].shape


@pytest.mark.parametrize(
    ("prefix", "layout"),
    [
        ("", "TimeSformer, published"),
        ("model.", "TimeSformer, published"),
        ("backbone.", "SVT, published"),
        ("module.backbone.", "SVT, published"),
    ],
)
def test_published_prefixes_are_found(prefix: str, layout: str) -> None:
    weights = load("weights")
    found = translated(toy(), {**under(prefix, weights), f"{prefix}head.weight": torch.zeros(5, 48)})
    assert found.layout == layout
    assert found.dropped == (f"{prefix}head.weight",)
    assert all(torch.equal(found.state[key], x) for key, x in weights.items())


def test_of_student_and_teacher_the_teacher_is_taken() -> None:
    teacher = load("weights")
    student = {key: -x for key, x in teacher.items()}
    both = {**under("student.module.backbone.", student), **under("teacher.backbone.", teacher)}
    found = translated(toy(), both)
    assert torch.equal(found.state["norm.weight"], teacher["norm.weight"])
    assert len(found.dropped) == len(student)
    with pytest.raises(UsageError, match=r"several networks.*FILE#a, FILE#b"):
        toy().translate({**under("a.", teacher), **under("b.", student)})


def test_training_checkpoint_of_the_release_loads_from_its_file(tmp_path: Path) -> None:
    teacher = load("weights")
    student = under("module.backbone.", {key: -x for key, x in teacher.items()})
    checkpoint = {
        "student": {**student, "module.head.mlp.0.weight": torch.zeros(3, 48)},
        "teacher": {**under("backbone.", teacher), "head.mlp.0.weight": torch.zeros(3, 48)},
        "motion_teacher": 0,
        "epoch": 3,
        "args": argparse.Namespace(arch="timesformer"),
        "dino_loss": {"center": torch.zeros(1, 5)},
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    net = toy()
    report = load_init(net, str(tmp_path / "checkpoint.pth"))
    assert torch.equal(net.norm.weight, teacher["norm.weight"])
    assert (len(report.loaded), report.new, report.unused) == (47, ("mask_token",), ("head.mlp.0.weight",))
    load_init(net, f"{tmp_path / 'checkpoint.pth'}#student")
    assert torch.equal(net.norm.weight, -teacher["norm.weight"])


def test_what_is_no_vision_transformer_is_not_translated() -> None:
    assert toy().translate({"layer1.0.conv1.weight": torch.zeros(2, 2)}) is None
    swin = {
        "patch_embed.proj.weight": torch.zeros(4, 3, 1, 4, 4),
        "layers.0.blocks.0.attn.qkv.weight": torch.zeros(3),
    }
    assert toy().translate(swin) is None
    assert ViT(embed_dim=48, depth=2, num_heads=3).translate(swin) is None


@pytest.mark.parametrize("temporal_init", ["copy", "random"])
def test_image_weights_fill_what_the_release_fills(temporal_init: str) -> None:
    golden = json.loads((FOLDER / "inflate.json").read_text())
    net = TimeSformer(
        embed_dim=12,
        depth=golden["blocks"],
        num_heads=2,
        patch_size=8,
        size=32,
        temporal_init=temporal_init,
    )
    own = noisy(net).state_dict()  # what is to become zero must not just be so already
    image = {key: torch.full_like(own[key], i) for i, key in enumerate(golden["mapping"], start=1)}
    found = translated(net, image)
    filled_by: dict[str, list[str]] = {key: [] for key in image}
    for key, x in found.state.items():
        number = int(x.unique())
        if number:
            filled_by[list(image)[number - 1]].append(key)
    expected = golden["mapping"]
    if temporal_init == "random":  # golden["paper_variant"]
        expected = {key: [k for k in keys if ".temporal_" not in k] for key, keys in expected.items()}
    assert {key: set(keys) for key, keys in filled_by.items()} == {k: set(v) for k, v in expected.items()}
    zero = {key for key, x in found.state.items() if not x.any()}
    copied = {key for keys in filled_by.values() for key in keys if ".temporal_" in key}
    assert set(found.reshaped) == copied | zero
    patterns = {key.replace("blocks.N.", "") for key in golden["left_at_initialisation"]}
    assert {key.split(".", 2)[-1] if key.startswith("blocks") else key for key in zero} == patterns
    assert len(zero) == 1 + 2 * golden["blocks"]
    assert found.layout == "image ViT (timm, DINO)"


def test_fresh_values_stay_where_temporal_attention_is_to_be_random() -> None:
    torch.manual_seed(0)
    net = TimeSformer(embed_dim=48, depth=2, num_heads=3, patch_size=8, size=32, temporal_init="random")
    fresh = {key: x.clone() for key, x in net.state_dict().items()}
    filled(net, dict(image_vit().state_dict()))
    for key, x in net.state_dict().items():
        kept = key == "mask_token" or ".temporal_" in key or key == "time_embed"
        assert torch.equal(x, fresh[key]) == kept, key


# what comes out


def image_net(temporal_init: str = "copy", size: int = 32, **keys: object) -> TimeSformer:
    return TimeSformer(
        embed_dim=48,
        depth=2,
        num_heads=3,
        patch_size=8,
        size=size,
        temporal_init=temporal_init,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        **keys,
    ).eval()


@pytest.mark.parametrize("temporal_init", ["copy", "random"])
def test_frames_come_out_as_the_image_model_gives_them(temporal_init: str) -> None:
    image = image_vit()
    net = filled(image_net(temporal_init), dict(image.state_dict()))
    clip = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        tokens = image.forward_features(clip[:, :, 0])
        single, still = net(clip), net(clip.expand(-1, -1, 4, -1, -1))
    assert torch.allclose(single.pooled(), tokens[:, 0], atol=1e-5)
    assert torch.allclose(single.patches[:, 0].flatten(1, 2), tokens[:, 1:], atol=1e-5)
    # frames that are all alike give each their own class token, and the mean of equals is one of them
    assert torch.allclose(still.pooled(), tokens[:, 0], atol=1e-5)
    assert torch.allclose(still.patches[:, 3].flatten(1, 2), tokens[:, 1:], atol=1e-5)


def test_vit_tiny_of_timm_gives_its_own_features_at_full_size() -> None:
    torch.manual_seed(0)
    image = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    net = TimeSformer(embed_dim=192, depth=12, num_heads=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval()
    found = translated(net, dict(image.state_dict()))
    assert found.dropped == ("head.weight", "head.bias")
    net.load_state_dict(dict(found.state), strict=False)
    frame = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = image.forward_features((frame - 0.5) / 0.5)[:, 0]
        assert torch.allclose(net(frame.unsqueeze(2)).pooled(), expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["joint", "space"])
def test_other_kinds_of_attention_take_image_weights_too(attention: str) -> None:
    image = image_vit()
    net = filled(image_net(attention=attention), dict(image.state_dict()))
    clip = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        expected = image.forward_features(clip[:, :, 0])[:, 0]
        assert torch.allclose(net(clip).pooled(), expected, atol=1e-5)


def test_flat_patch_weights_are_folded() -> None:
    state = dict(image_vit().state_dict())
    flat = {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}
    for net in (image_net(), ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8))):
        expected, found = translated(net, state).state, translated(net, flat).state
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


# tables of positions


@pytest.mark.parametrize("rule", ["nearest", "bilinear", "bicubic"])
def test_loading_into_other_tables_changes_nothing_at_their_size(rule: str) -> None:
    large = noisy(toy(rule=rule, num_frames=8, size=48))
    small = toy(rule=rule, num_frames=4, size=24)
    found = translated(small, dict(large.state_dict()))
    assert set(found.reshaped) == {"pos_embed", "time_embed"}
    small.load_state_dict(dict(found.state))
    clip = torch.rand(1, 3, 4, 24, 24)
    with torch.no_grad():
        assert torch.equal(small(clip).pooled(), large(clip).pooled())


def test_places_are_resized_in_both_directions_and_the_class_slot_is_kept() -> None:
    golden = load("inflate_resize")
    net = toy(size=24, num_frames=8)
    source = {
        **load("weights"),
        "pos_embed": golden["source/pos_embed"],
        "time_embed": golden["source/time_embed"],
    }
    found = translated(net, source)
    table = golden["source/pos_embed"][0]
    assert torch.equal(found.state["pos_embed"][0, 0], table[0])
    for row in range(3):
        for column in range(3):
            expected = table[1 + (row * 4 // 3) * 4 + column * 4 // 3]
            assert torch.equal(found.state["pos_embed"][0, 1 + row * 3 + column], expected)
    assert torch.equal(found.state["time_embed"], golden["loaded/time_embed"])


def test_the_release_resizes_places_as_one_line() -> None:
    golden = load("inflate_resize")
    line = F.interpolate(golden["source/pos_embed"][:, 1:].mT, size=9, mode="nearest").mT
    assert torch.equal(golden["loaded/pos_embed"][:, 1:], line)


# what must not pass in silence


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: image_vit(depth=3), "blocks.2.norm1.weight"),
        (lambda: image_vit(init_values=1e-5), "blocks.0.ls1.gamma"),
        (lambda: image_vit(qk_norm=True), "blocks.0.attn.q_norm.weight"),
        (lambda: image_vit(pre_norm=True), "norm_pre.weight"),
        (lambda: image_vit(reg_tokens=2, no_embed_class=True), "reg_token"),
    ],
)
def test_parts_that_the_network_lacks_are_refused(make: Callable[[], torch.nn.Module], named: str) -> None:
    state = dict(make().state_dict())
    for net in (image_net(), ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8))):
        with pytest.raises(UsageError, match=f"another architecture.*{named}"):
            net.translate(state)


def test_temporal_attention_is_not_dropped_in_silence() -> None:
    for net in (toy(attention="joint"), ViT(embed_dim=48, depth=2, num_heads=3)):
        with pytest.raises(UsageError, match=r"temporal_attn.*Are depth and attention the same"):
            net.translate(load("weights"))


def test_table_without_a_slot_for_the_class_token_is_refused() -> None:
    with pytest.raises(UsageError, match="pos_embed has 16 positions"):
        image_net(size=24).translate(dict(image_vit(no_embed_class=True).state_dict()))


def test_mask_token_of_a_decoder_is_dropped_and_ours_is_taken() -> None:
    state = dict(image_vit().state_dict())
    found = translated(image_net(), {**state, "mask_token": torch.ones(1, 1, 48)})
    assert "mask_token" not in found.state
    assert "mask_token" in found.dropped
    assert torch.equal(
        translated(image_net(), {**state, "mask_token": torch.ones(48)}).state["mask_token"], torch.ones(48)
    )


# ViT


def test_image_weights_in_a_vit_give_still_clips_what_their_frame_gives() -> None:
    torch.manual_seed(0)
    image = image_vit()
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8), class_token=True).eval()
    state = dict(image.state_dict())
    found = translated(net, state)
    assert set(found.dropped) == {"pos_embed", "head.weight", "head.bias"}
    assert set(found.reshaped) == {"embed_clip.proj.weight", "embed_image.proj.weight", "class_token"}
    assert set(net.state_dict()) - set(found.state) == {"mask_token"}
    net.load_state_dict(dict(found.state), strict=False)
    frame = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        embedded = image.patch_embed(net.normalise(frame)[:, :, 0])
        assert torch.allclose(net.embed_image(net.normalise(frame)).flatten(1, 3), embedded, atol=1e-5)
        still = net.embed_clip(net.normalise(frame.expand(-1, -1, 2, -1, -1)))
        assert torch.allclose(still.flatten(1, 3), embedded, atol=1e-5)
        assert torch.allclose(net.class_token, (image.cls_token + image.pos_embed[:, :1]).flatten())
        tokens = torch.rand(2, 5, 48)
        expected = image.norm(image.blocks(tokens))
        assert torch.allclose(net.norm(net.blocks[1](net.blocks[0](tokens))), expected, atol=1e-5)


def test_vit_without_a_class_token_drops_that_of_the_image_model() -> None:
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8))
    assert "cls_token" in translated(net, dict(image_vit().state_dict())).dropped


def video_mae() -> dict[str, Tensor]:
    """Weights in VideoMAE's layout: patches of two frames, and no bias of keys."""
    state = dict(image_vit().state_dict())
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        q, _, v = state.pop(key).chunk(3)
        state |= {key.replace("qkv.bias", "q_bias"): q, key.replace("qkv.bias", "v_bias"): v}
    for key in ("cls_token", "pos_embed", "head.weight", "head.bias"):
        del state[key]
    weight = torch.randn(48, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    state["patch_embed.proj.weight"] = weight
    return {**under("encoder.", state), "mask_token": torch.zeros(1, 1, 24), "decoder.head.weight": weight}


def test_videomaes_patches_are_those_of_clips_and_its_keys_have_no_bias(tmp_path: Path) -> None:
    torch.save({"model": video_mae()}, tmp_path / "mae.pth")
    net = ViT(embed_dim=48, depth=2, num_heads=3, patch_size=(2, 8, 8))
    report = load_init(net, str(tmp_path / "mae.pth"))
    source = video_mae()
    weight = source["encoder.patch_embed.proj.weight"]
    assert torch.equal(net.embed_clip.proj.weight, weight)
    assert torch.equal(net.embed_image.proj.weight, weight.sum(2, keepdim=True))
    own = net.state_dict()["blocks.1.attn.qkv.bias"]
    assert torch.equal(own[:48], source["encoder.blocks.1.attn.q_bias"])
    assert not own[48:96].any()
    assert torch.equal(own[96:], source["encoder.blocks.1.attn.v_bias"])
    assert report.layout.startswith("VideoMAE")
    assert set(report.unused) == {"mask_token", "decoder.head.weight"}


def test_patches_of_two_frames_are_refused_by_a_timesformer_and_odd_shapes_by_all(tmp_path: Path) -> None:
    torch.save({"model": video_mae()}, tmp_path / "mae.pth")
    with pytest.raises(UsageError, match=r"mae.pth: .*patches of 2 frames.*load them into 'vit'"):
        load_init(image_net(), str(tmp_path / "mae.pth"))
    for shape in ((48, 3, 8), (48,)):
        state = {**image_vit().state_dict(), "patch_embed.proj.weight": torch.zeros(shape)}
        with pytest.raises(UsageError, match="a patch embedding has"):
            image_net().translate(state)


# what tensors do not show


@pytest.mark.parametrize(
    ("keys", "given", "message"),
    [
        ({"num_heads": 6}, None, r"mean \[0.5, 0.5, 0.5\].*backbone.mean=.* backbone.std=\[0.5, 0.5, 0.5\]"),
        ({"num_heads": 6}, ("mean",), r"normalised with std"),
        ({"num_heads": 12, "mean": (0.5,) * 3, "std": (0.5,) * 3}, None, "6 heads.*backbone.num_heads=6"),
    ],
)
def test_pixel_statistics_and_heads_of_timm_are_held_against_the_network(
    keys: dict[str, object], given: tuple[str, ...] | None, message: str
) -> None:
    net = TimeSformer(embed_dim=24, depth=1, **keys)
    with pytest.raises(UsageError, match=message):
        load_init(net, "timm:vit_small_patch16_224", given=given)


def test_pixel_statistics_that_a_recipe_states_are_kept_with_a_line() -> None:
    stated = stated_by_library("timm:vit_small_patch16_224")
    assert stated == Stated((0.5,) * 3, (0.5,) * 3, (6,))
    net = TimeSformer(embed_dim=24, depth=1, num_heads=6)
    lines = check_stated(net, stated, "timm:x", given=("mean", "std"))
    assert len(lines) == 2
    assert "trained with std [0.5, 0.5, 0.5], the recipe states [0.229, 0.224, 0.225]" in lines[1]
    imagenet = Stated(IMAGENET_MEAN, IMAGENET_STD, (3, 6, 12, 24))
    assert stated_by_library("torchvision:swin3d_t") == imagenet
    assert check_stated(net, Stated(IMAGENET_MEAN, IMAGENET_STD, (6,)), "torchvision:x", None) == ()


def test_a_recipe_states_what_a_file_of_an_image_vit_leaves_open(tmp_path: Path) -> None:
    torch.save(image_vit().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UsageError, match=r"vit.pth: .*backbone.num_heads \(here 3\)"):
        load_init(image_net(), str(tmp_path / "vit.pth"), given={"mean", "std"})
    report = load_init(image_net(), str(tmp_path / "vit.pth"), given={"mean", "std", "num_heads"})
    assert "3 heads, pixels' mean [0.0, 0.0, 0.0] and std [1.0, 1.0, 1.0]" in str(report)


def test_a_checkpoint_of_other_heads_is_refused(tmp_path: Path) -> None:
    net = ViT(embed_dim=48, depth=1, num_heads=3, patch_size=(2, 8, 8))
    state = {f"encoder.{key}": value for key, value in net.state_dict().items()}
    recipe = "data: {video: {}}\nbackbone: {type: vit, num_heads: 6}"
    save_file(state, tmp_path / "a.safetensors", metadata={"format": FORMAT, "step": "1", "recipe": recipe})
    with pytest.raises(UsageError, match="6 heads, and the network has 3"):
        load_init(net, str(tmp_path / "a.safetensors"))


# which part


def test_the_part_that_was_taken_is_reported_and_another_can_be(tmp_path: Path) -> None:
    state = dict(image_vit().state_dict())
    torch.save({"model": state, "model_ema": {key: -x for key, x in state.items()}}, tmp_path / "ema.pth")
    net = image_net()
    report = str(load_init(net, str(tmp_path / "ema.pth")))
    assert f"part taken: 'model'; others: {tmp_path / 'ema.pth'}#model_ema" in report
    assert torch.equal(net.norm.bias, state["norm.bias"])
    report = str(load_init(net, f"{tmp_path / 'ema.pth'}#model_ema"))
    assert "part taken: 'model_ema', as asked" in report
    assert torch.equal(net.norm.bias, -state["norm.bias"])


def test_of_two_encoders_one_is_chosen_by_its_name(tmp_path: Path) -> None:
    state = dict(image_vit().state_dict())
    both = {**under("encoder_q.", state), **under("encoder_k.", {key: -x for key, x in state.items()})}
    torch.save({"model": both, "acc": np.float64(71.2)}, tmp_path / "two.pth")
    with pytest.raises(UsageError, match=r"two.pth: .*FILE#encoder_q, FILE#encoder_k"):
        load_init(image_net(), str(tmp_path / "two.pth"))
    net = image_net()
    load_init(net, f"{tmp_path / 'two.pth'}#encoder_k")
    assert torch.equal(net.norm.bias, -state["norm.bias"])
