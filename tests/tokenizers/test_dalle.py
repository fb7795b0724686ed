"""The DALL-E dVAE against the release's numbers, and its settings."""

import json
from typing import Any

import pytest
import torch
from bevt_reference import FOLDER, difference, load

from vidssl.tokenizers.dalle import DALLE, map_pixels, unmap_pixels
from vidssl.tokenizers.frame_networks import halve
from vidssl.weights.published_keys import networks_in, own_key


def toy(golden: dict[str, torch.Tensor], **keys: Any) -> DALLE:
    networks = networks_in(golden)
    model = DALLE(vocab_size=24, width=8, decoder_width=16, with_decoder="decoder" in networks, **keys)
    model.load_state_dict({f"{name}.{key}": x for name, part in networks.items() for key, x in part.items()})
    return model.eval()


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load("dvae")


def clip_of(golden: dict[str, torch.Tensor]) -> torch.Tensor:
    """[3, 3, 1, 48, 56]"""
    return golden["pixels_u8"][:, :, None].float() / 255


@torch.no_grad()
def test_every_group_and_the_logits_match_the_release(golden: dict[str, torch.Tensor]) -> None:
    model = toy(golden)
    seen: list[torch.Tensor] = []
    for group in model.encoder.groups:
        group.register_forward_hook(lambda module, taken, given: seen.append(given))
    logits = model.encoder(map_pixels(clip_of(golden)[:, :, 0]))
    assert difference(logits, golden["logits"]) < 1e-5
    pooled = [torch.nn.functional.max_pool2d(x, 2) for x in seen[:3]] + seen[3:]
    for number, group in enumerate(pooled, start=1):
        assert difference(group, golden[f"enc/group_{number}"]) < 1e-5


def test_ids_match_the_release(golden: dict[str, torch.Tensor]) -> None:
    assert torch.equal(toy(golden).encode(clip_of(golden))[:, 0], golden["tokens"])


def test_reconstruction_matches_the_release(golden: dict[str, torch.Tensor]) -> None:
    pixels = toy(golden).decode(golden["tokens"][:, None])
    assert difference(pixels[:, :, 0], golden["reconstruction"]) < 1e-5


def test_ids_of_the_joint_step_match_the_release() -> None:
    """The frozen encoder inside the model's own state, on half-size frames of a clip and on images."""
    step, model = load("two_stream_step"), toy(load("weights"))
    images = step["image_second_u8"][:, :, None].float() / 255
    clip = step["video_second_u8"].transpose(0, 1)[None].float() / 255
    assert torch.equal(model.encode(images)[:, 0], step["token_ids_2d"])
    assert torch.equal(model.encode(clip)[0], step["token_ids_3d"])


def test_pixels_are_mapped_as_in_the_release() -> None:
    table = json.loads((FOLDER / "map_pixels.json").read_text())
    levels, mapped = torch.tensor(table["uint8_to_mapped"]).unbind(1)
    torch.testing.assert_close(map_pixels(levels / 255), mapped, rtol=0, atol=1e-7)
    given, unmapped = torch.tensor(table["unmap"]).unbind(1)
    torch.testing.assert_close(unmap_pixels(given), unmapped, rtol=0, atol=2e-7)


def test_the_published_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        model = DALLE()
    assert model.decoder is not None
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in model.decoder.parameters()) == 43_829_766
    assert (model.vocab_size, model.strides) == (8192, (1, 8, 8))


def test_half_input_gives_the_ids_of_the_halved_frames(golden: dict[str, torch.Tensor]) -> None:
    clip = torch.rand(2, 3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    half = torch.stack([halve(frames, "opencv_lanczos4") for frames in clip.unbind(2)], dim=2)
    model = toy(golden, input_scale=0.5, resize_kernel="opencv_lanczos4")
    assert model.strides == (1, 16, 16)
    assert model.grid(3, 48, 64) == (3, 3, 4)
    ids = model.encode(clip)
    assert torch.equal(ids, toy(golden).encode(half))
    assert model.decode(ids).shape == clip.shape
    antialiased = toy(golden, input_scale=0.5, resize_kernel="pillow_lanczos").encode(clip)
    assert not torch.equal(ids, antialiased)


def test_half_input_refuses_frames_of_no_whole_ids(golden: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="whole multiples"):
        toy(golden, input_scale=0.5, resize_kernel="area").encode(torch.rand(1, 3, 1, 48, 56))


def test_encoder_outputs_do_not_depend_on_the_batch_by_a_single_bit(golden: dict[str, torch.Tensor]) -> None:
    model, outputs = toy(golden), []
    model.encoder.output.register_forward_hook(lambda module, taken, given: outputs.append(given))
    clip = torch.rand(21, 3, 1, 32, 32)
    model.encode(clip)
    together = torch.cat(outputs)[:21]
    outputs.clear()
    for each in clip:
        model.encode(each[None])
    assert torch.equal(together, torch.stack([output[0] for output in outputs]))


def test_large_frames_go_through_in_smaller_chunks(golden: dict[str, torch.Tensor]) -> None:
    model, sizes = toy(golden), []
    model.encoder.input.register_forward_hook(lambda module, taken, given: sizes.append(len(taken[0])))
    for side, most in ((32, 4), (112, 4), (176, 2), (256, 1)):
        sizes.clear()
        model.encode(torch.zeros(1, 3, 3, side, side))
        assert set(sizes) == {most}


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision_stops_before_the_last_convolution(
    golden: dict[str, torch.Tensor], precision: str, dtype: torch.dtype
) -> None:
    model, given = toy(golden, precision=precision), {}
    for name in ("input", "output"):
        layer = getattr(model.encoder, name)
        layer.register_forward_hook(lambda module, taken, out, name=name: given.update({name: out.dtype}))
    ids = model.encode(clip_of(golden))[:, 0]
    assert given == {"input": dtype, "output": torch.float32}
    assert 0 < (ids != golden["tokens"]).float().mean() < 0.1  # near ties fall the other way, the rest do not


def test_ids_of_lower_precision_do_not_depend_on_the_run_s(golden: dict[str, torch.Tensor]) -> None:
    model = toy(golden, precision="fp16")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = model.encode(clip_of(golden))
    assert torch.equal(under_autocast, model.encode(clip_of(golden)))


def test_without_a_decoder_ids_cannot_be_drawn(golden: dict[str, torch.Tensor]) -> None:
    model = toy({key: x for key, x in golden.items() if not key.startswith("decoder.")})
    assert torch.equal(model.encode(clip_of(golden))[:, 0], golden["tokens"])
    with pytest.raises(ValueError, match=r"no decoder .*vidssl convert"):
        model.decode(golden["tokens"][:, None])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"width": 6}, "width a multiple of 4"),
        ({"vocab_size": 0}, "at least 1"),
        ({"input_scale": 0.7}, "must be 1.0 or 0.5, got 0.7"),
        ({"input_scale": 0.5}, "give it with input_scale 0.5 and only then, got None with 0.5"),
        ({"resize_kernel": "area"}, "only then, got area with 1.0"),
        ({"precision": "int8"}, "fp32, bf16, fp16, got 'int8'"),
    ],
)
def test_arguments_out_of_range_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DALLE(**{"width": 8, "vocab_size": 8, **keys})


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("blocks.input.w", "input.weight"),
        ("blocks.output.conv.b", "output.bias"),
        ("blocks.group_3.block_2.res_path.conv_4.w", "groups.2.1.path.3.weight"),
        ("blocks.group_2.block_1.id_path.b", "groups.1.0.shortcut.bias"),
    ],
)
def test_published_names_have_ours(published: str, ours: str) -> None:
    assert own_key(published) == ours


def test_names_of_other_networks_are_refused_and_left_aside(golden: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'blocks\.0\.w' is no parameter"):
        own_key("blocks.0.w")
    others = {"backbone.norm.weight": torch.zeros(3), "head.groups.0.0.path.0.weight": torch.zeros(3)}
    found = networks_in({**golden, **others})
    assert {name: len(part) for name, part in found.items()} == {"encoder": 74, "decoder": 76}
    assert networks_in(others) == {}
    with pytest.raises(ValueError, match="second encoder, under 'copy'"):
        networks_in({**golden, **{key.replace("encoder.", "copy."): x for key, x in golden.items()}})


def test_ids_and_pixels_in_float64_are_those_of_float32(golden: dict[str, torch.Tensor]) -> None:
    model, clip = toy(golden), clip_of(golden)
    ids, pixels = model.encode(clip), model.decode(model.encode(clip))
    model.double()
    assert torch.equal(model.encode(clip.double()), ids)
    assert torch.equal(model.encode(clip), ids)
    torch.testing.assert_close(model.decode(ids), pixels.double(), atol=1e-5, rtol=1e-5)
