"""The tokenizers that ship: their files are sound and do what their recipes say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from vidssl.build import build
from vidssl.config.recipe import load_tokenizer_spec
from vidssl.data.sources.digits_world import DigitsWorld, render
from vidssl.errors import UsageError
from vidssl.tokenizers.measure import measure

WEIGHTS = Path(__file__).parents[2] / "tokenizers" / "weights"


def test_weights_that_ship_are_small() -> None:
    files = list(WEIGHTS.glob("*.safetensors"))
    assert files
    assert all(path.stat().st_size <= 2_000_000 for path in files if path.name != "dalle.safetensors")


@pytest.mark.parametrize("name", ["dalle_stride8", "dalle_stride16"])
def test_the_weights_of_the_dvae_are_asked_for_with_where_and_how(name: str) -> None:
    spec = load_tokenizer_spec(name)
    assert spec.weights is not None
    without = replace(spec, weights=replace(spec.weights, weights="none.safetensors"))
    with pytest.raises(UsageError) as caught:
        build.tokenizer(without)
    for part in (
        "none.safetensors: No such file",
        "https://cdn.openai.com/dall-e/encoder.pkl",
        "Modified MIT",
        "vidssl convert encoder.pkl decoder.pkl tokenizers/weights/dalle.safetensors",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "psnr", "perplexity", "flicker"),
    [("moving_digits", 21, 12, 0.15), ("moving_digits_fsq", 20.5, 10, 0.2)],
)
def test_digits_of_unseen_videos_come_back_and_every_code_is_used(
    name: str, psnr: float, perplexity: float, flicker: float
) -> None:
    tokenizer = build.tokenizer(name)
    frames = np.stack([render(DigitsWorld(), seed=0, split="test", index=i) for i in range(24)])
    clips = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255
    measured = measure(tokenizer, clips, torch.Generator().manual_seed(0))
    assert measured.psnr > psnr
    assert measured.used_codes > 0.9 * measured.vocab_size
    assert measured.perplexity > perplexity
    assert measured.flicker < flicker


def test_the_general_one_rebuilds_photographs_that_the_digits_one_does_not() -> None:
    photographs = [image[100:324, 400:624].astype(np.float32) / 255 for image in load_sample_images().images]
    pictures = torch.from_numpy(np.stack(photographs)).permute(0, 3, 1, 2)  # parts that no frame was cut from
    clips = torch.nn.functional.interpolate(pictures, scale_factor=0.5, mode="area")[:, :, None]
    general, digits = (
        measure(build.tokenizer(name), clips, torch.Generator().manual_seed(0)).psnr
        for name in ("general", "moving_digits")
    )
    assert general > 20
    assert general > digits + 5


def test_words_of_motion_are_all_used_and_tell_moving_waves_from_still_ones() -> None:
    tokenizer = build.tokenizer("moving_digits_motion")
    world = DigitsWorld(mode="pan", pattern="waves", ground=0.7, digit_size=28, speeds=(0.7, 1.6), noise=0.03)
    frames = np.stack([render(world, seed=0, split="test", index=i) for i in range(40)])
    clips = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255
    ids = tokenizer.encode(clips)
    shares = torch.bincount(ids.flatten(), minlength=64) / ids.numel()
    assert int((shares > 0).sum()) > 54
    assert float(torch.special.entr(shares).sum().exp()) > 38
    still = tokenizer.encode(clips[:, :, :1])
    common = shares.topk(20).indices  # of what moves
    assert float(torch.isin(still, common).float().mean()) < 0.25
