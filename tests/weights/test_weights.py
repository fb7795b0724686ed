"""Weights of other projects in our networks: same outputs, every key reported, no code executed."""

import argparse
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vidssl.backbones.video_swin import VideoSwin, relative_index
from vidssl.backbones.vit import ViT
from vidssl.engine.checkpoint import FORMAT
from vidssl.errors import UsageError
from vidssl.weights.load import load_init, load_state
from vidssl.weights.swin import resize_bias_table

GOLDEN = Path(__file__).parents[1] / "golden" / "bevt"
NONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def toy_swin(window: tuple[int, int, int] = (2, 4, 4), seed: int = 1) -> VideoSwin:
    torch.manual_seed(seed)
    return VideoSwin(
        embed_dim=12, depths=(2, 2), num_heads=(2, 3), window=window, drop_path=0.0, **NONE
    ).eval()


def image_swin(window: int = 4) -> SwinTransformer:
    torch.manual_seed(0)
    net = SwinTransformer(
        img_size=32, patch_size=4, window_size=window, embed_dim=12, depths=(2, 2), num_heads=(2, 3),
        num_classes=5,
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def random_state(net: torch.nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {
        key: torch.randn_like(value) * 0.3 if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }


@torch.no_grad()
def test_an_image_swin_of_timm_gives_its_features_of_images_and_of_still_clips(tmp_path: Path) -> None:
    theirs, ours = image_swin(), toy_swin()
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    report = load_init(ours, str(tmp_path / "swin.pth"))
    image = torch.rand(2, 3, 32, 32)
    wanted = theirs.forward_features(image)
    torch.testing.assert_close(ours(image[:, :, None]).patches[:, 0], wanted, atol=1e-5, rtol=1e-5)
    still = ours(image[:, :, None].expand(-1, -1, 4, -1, -1)).patches
    torch.testing.assert_close(still, wanted[:, None].expand_as(still), atol=1e-5, rtol=1e-5)
    assert report.new == ("mask_token",)
    assert set(report.unused) == {"head.fc.weight", "head.fc.bias"}
    assert report.layout == "image Swin"
    assert "embed_clip.proj.weight" in report.reshaped
    assert "embed_image.proj.weight" not in report.reshaped
    assert "stages.*.*.attn.bias_table x4" in str(report)


@torch.no_grad()
def test_the_authors_and_simmim_layouts_are_the_same_weights(tmp_path: Path) -> None:
    theirs = image_swin().state_dict()
    authors = {
        f"encoder.{re.sub(r'layers.1.downsample', 'layers.0.downsample', key)}": value
        for key, value in theirs.items()
    }
    torch.save({"model": authors, "epoch": 3}, tmp_path / "authors.pth")
    torch.save(theirs, tmp_path / "timm.pth")
    one, other = toy_swin(), toy_swin()
    load_init(one, str(tmp_path / "authors.pth"))
    load_init(other, str(tmp_path / "timm.pth"))
    torch.testing.assert_close(one.state_dict(), other.state_dict(), atol=0, rtol=0)


@torch.no_grad()
def test_torchvisions_swin3d_gives_its_features(tmp_path: Path) -> None:
    theirs = SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=[2, 4, 4],
        num_classes=5,
    ).eval()  # fmt: skip
    theirs.load_state_dict(random_state(theirs))
    torch.save(theirs.state_dict(), tmp_path / "swin3d.pth")
    ours = toy_swin()
    report = load_init(ours, str(tmp_path / "swin3d.pth"))
    clip = torch.rand(2, 3, 4, 32, 32)
    wanted = theirs.norm(theirs.features(theirs.patch_embed(clip)))
    torch.testing.assert_close(ours(clip).patches, wanted, atol=1e-5, rtol=1e-5)
    assert report.layout == "torchvision swin3d"
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert all(key == "mask_token" or key.startswith("embed_image.") for key in report.new)
    assert report.reshaped == ()


def published_checkpoint() -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(GOLDEN / "weights.safetensors").items()}


def golden_swin(window: tuple[int, int, int] = (2, 3, 3)) -> VideoSwin:
    return VideoSwin(embed_dim=4, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window=window)


def test_a_released_bevt_checkpoint_loads_and_its_tokenizer_and_decoders_are_dropped(tmp_path: Path) -> None:
    weights = {
        key if key.startswith("cls_head.") else f"backbone.{key.removeprefix('backbone.')}": value
        for key, value in published_checkpoint().items()
    }
    weights["cls_head.vae_encoder.blocks.input.w"] = torch.zeros(1)
    torch.save(
        {"meta": {"epoch": 150}, "state_dict": weights, "optimizer": {"step": 1}}, tmp_path / "bevt.pth"
    )
    ours = golden_swin()
    report = load_init(ours, str(tmp_path / "bevt.pth"))
    assert report.new == ()
    assert "cls_head.vae_encoder.blocks.input.w" in report.unused
    assert all(key.startswith(("cls_head.", "fpn", "lm_down")) for key in report.unused)
    for key in ("stages.1.1.attn.bias_table", "embed_image.proj.weight"):
        published = {"stages.1.1.attn.bias_table": "layers.1.blocks.1.attn.relative_position_bias_table"}.get(
            key, "patch_embed_2d.proj.weight"
        )
        torch.testing.assert_close(
            ours.state_dict()[key].flatten(), weights[f"backbone.{published}"].flatten(), atol=0, rtol=0
        )


def test_longer_windows_get_resized_tables_and_the_report_says_so(tmp_path: Path) -> None:
    save_file(published_checkpoint(), tmp_path / "bevt.safetensors")
    ours = golden_swin(window=(4, 3, 3))
    report = load_init(ours, str(tmp_path / "bevt.safetensors"))
    assert len(report.reshaped) == 8
    assert all(key.endswith("bias_table") for key in report.reshaped)


@torch.no_grad()
def test_a_checkpoint_of_this_package_with_shorter_windows_has_its_tables_resized(tmp_path: Path) -> None:
    source, ours = toy_swin(window=(2, 4, 4), seed=0), toy_swin(window=(4, 4, 4))
    source.load_state_dict(random_state(source))
    state = {f"encoder.{key}": value for key, value in source.state_dict().items()}
    save_file(state, tmp_path / "own.safetensors", metadata={"format": FORMAT, "step": "1", "recipe": ""})
    report = load_init(ours, str(tmp_path / "own.safetensors"))
    tables = [key for key in ours.state_dict() if key.endswith("bias_table")]
    assert sorted(report.reshaped) == sorted(tables)
    assert report.new == report.unused == ()
    assert "of them resized" in str(report)
    for key in tables:
        wanted = resize_bias_table(source.state_dict()[key], (2, 4, 4), (4, 4, 4))
        assert torch.equal(ours.state_dict()[key], wanted)
    assert torch.equal(ours.embed_clip.proj.weight, source.embed_clip.proj.weight)


def test_every_key_of_the_released_swin_b_is_loaded_or_named(tmp_path: Path) -> None:
    published = json.loads((GOLDEN / "keys_swin_b.json").read_text())["pretrain_two_stream"]
    with torch.device("meta"):
        ours = VideoSwin(variant="base")
        state = {key: torch.empty(shape) for key, shape in published.items()}
    found = ours.translate(state)
    assert found is not None
    own = ours.state_dict()
    assert set(found.state) == set(own)
    assert all(found.state[key].shape == own[key].shape for key in own)
    weights = [key for key in published if not key.endswith("relative_position_index")]
    assert len(found.state) + len(found.dropped) == len(weights)


def test_a_checkpoint_that_shares_nothing_is_an_error(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(UsageError, match="shares no key with VideoSwin"):
        load_init(toy_swin(), str(tmp_path / "resnet.pth"))


def test_weights_that_are_not_finite_are_refused_and_masks_of_minus_infinity_are_not() -> None:
    net = torch.nn.Linear(3, 2)
    net.register_buffer("mask", torch.full((2,), -torch.inf))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    load_state(net, state, "fine.pth")
    for key, value in (("weight", math.nan), ("bias", -math.inf), ("mask", math.inf), ("mask", math.nan)):
        broken = {**state, key: state[key].clone().fill_(value)}
        with pytest.raises(UsageError, match=rf"x.pth: not finite \(NaN or inf\): 1 tensor \({key}\) of 3"):
            load_state(net, broken, "x.pth")
    assert torch.isfinite(net.weight).all()


def test_an_image_swin_of_another_size_is_an_error_with_the_shapes(tmp_path: Path) -> None:
    torch.save(image_swin().state_dict(), tmp_path / "swin.pth")
    other = VideoSwin(embed_dim=24, depths=(2, 2), num_heads=(2, 3), window=(2, 4, 4))
    with pytest.raises(UsageError, match="weights of another architecture"):
        load_init(other, str(tmp_path / "swin.pth"))


def test_options_beside_the_weights_do_no_harm_and_a_part_can_be_named(tmp_path: Path) -> None:
    net, other = image_swin().state_dict(), image_swin().state_dict()
    other["norm.bias"] = other["norm.bias"] + 1
    torch.save({"args": argparse.Namespace(lr=1), "teacher": net, "student": other}, tmp_path / "both.pth")
    teacher, student = toy_swin(), toy_swin()
    load_init(teacher, str(tmp_path / "both.pth"))
    load_init(student, f"{tmp_path / 'both.pth'}#student")
    torch.testing.assert_close(student.norm.bias, teacher.norm.bias + 1)
    with pytest.raises(UsageError, match="has no part 'mother'; its parts: args, teacher, student"):
        load_init(teacher, f"{tmp_path / 'both.pth'}#mother")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_a_file_that_would_execute_code_is_refused_with_the_name_of_what_it_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(UsageError, match=r"holds more than weights.*(posix|nt)\.system"):
        load_init(toy_swin(), "hostile.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or cut short|is no file of torch.save"),
        (b"name: small\nseed: 0\n", "damaged or cut short|is no file of torch.save"),
        (b"hello", "damaged or cut short|is no file of torch.save"),
        (b"\x80\x02J1", "damaged or cut short|is no file of torch.save"),
        (b"PK\x03\x04 cut", "damaged|no file of torch.save"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cut.pth").write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        load_init(toy_swin(), str(tmp_path / "cut.pth"))
    assert "weights_only" not in str(error.value), "no word of how torch would run its code"


@pytest.mark.parametrize("init", ["timm:swin_base_patch4_window7_224.nonsense", "torchvision:swin3d_q"])
def test_unknown_names_of_libraries_are_errors_with_the_way_out(init: str) -> None:
    with pytest.raises(UsageError, match=r"cannot give these weights.*init=FILE"):
        load_init(toy_swin(), init)


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.pth: no such file, and no run folder"):
        load_init(toy_swin(), "nowhere.pth")


# windows


def published(window: tuple[int, int, int], with_index: bool) -> dict[str, Tensor]:
    """A table in the published layout whose rows hold their own distance in time, rows and columns."""
    axes = [torch.arange(1 - size, size).double() for size in window]
    table = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
    state = {f"layers.0.blocks.0.attn.{TABLE}": table[:, :2].contiguous()}
    state |= {"layers.0.blocks.0.attn.qkv.weight": torch.zeros(36, 12)}
    state |= {"patch_embed.proj.weight": torch.zeros(12, 3, 2, 4, 4)}
    if with_index:
        state["layers.0.blocks.0.attn.relative_position_index"] = relative_index(window)
    return state


TABLE = "relative_position_bias_table"


@pytest.mark.parametrize("new", [(8, 3, 7), (4, 2, 3), (16, 7, 7), (7, 8, 7), (8, 7, 7), (2, 4, 4)])
@pytest.mark.parametrize("way", ["length", "index", "key"])
def test_tables_of_published_windows_are_resized_along_all_axes(new: tuple[int, int, int], way: str) -> None:
    old = (8, 7, 7)
    if new == (7, 8, 7) and way == "length":
        return  # tables of one length: only the index or the key can tell
    net = VideoSwin(embed_dim=12, depths=(1,), num_heads=(2,), window=new)
    state = published(old, with_index=way == "index")
    found = net.translate_windows(state, old if way == "key" else None)
    assert found is not None
    table = state[f"layers.0.blocks.0.attn.{TABLE}"]
    sizes = [2 * size - 1 for size in old]
    wanted = F.interpolate(
        table.t().view(1, 2, *sizes), size=[2 * size - 1 for size in new], mode="trilinear"
    )
    made = found.state["stages.0.0.attn.bias_table"]
    torch.testing.assert_close(made, wanted.flatten(2)[0].t(), atol=0, rtol=0)
    assert (f"windows of {old} resized to {new}" in found.layout) == (new != old)


def test_a_window_that_nothing_tells_must_be_given() -> None:
    net = VideoSwin(embed_dim=12, depths=(1,), num_heads=(2,), window=(2, 4, 4))
    with pytest.raises(UsageError, match=r"81 rows.*\(5, 2, 2\).*init_window"):
        net.translate(published((5, 2, 2), with_index=False))
    with pytest.raises(UsageError, match="81 rows, and windows of \\(8, 7, 7\\) have 2535"):
        net.translate_windows(published((5, 2, 2), with_index=False), (8, 7, 7))
    with pytest.raises(UsageError, match="has no windows"):
        load_init(ViT(embed_dim=12, depth=1, num_heads=2), "x.pth", window=(8, 7, 7))


def test_another_window_of_a_checkpoint_with_tables_of_one_length_is_noticed(tmp_path: Path) -> None:
    source, ours = toy_swin(window=(2, 4, 3), seed=0), toy_swin(window=(2, 3, 4))
    source.load_state_dict(random_state(source))
    state = {f"encoder.{key}": value for key, value in source.state_dict().items()}
    recipe = "data: {video: {}}\nbackbone: {type: video_swin, window: [2, 4, 3]}"
    save_file(state, tmp_path / "own.safetensors", metadata={"format": FORMAT, "step": "1", "recipe": recipe})
    load_init(ours, str(tmp_path / "own.safetensors"))
    for key, value in source.state_dict().items():
        wanted = resize_bias_table(value, (2, 4, 3), (2, 3, 4)) if key.endswith("bias_table") else value
        assert torch.equal(ours.state_dict()[key], wanted)
