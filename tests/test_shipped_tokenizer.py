"""The tokenizer that ships: its file is sound and does what its recipe says."""

from pathlib import Path

import numpy as np
import torch

from vidssl import build
from vidssl.data.digits_world import World, render
from vidssl.tokenizers.measure import measure

WEIGHTS = Path(__file__).parents[1] / "tokenizers" / "weights"


def test_weights_that_ship_are_small() -> None:
    files = list(WEIGHTS.glob("*.safetensors"))
    assert files
    assert all(path.stat().st_size <= 2_000_000 for path in files)


def test_digits_of_unseen_videos_come_back_and_every_code_is_used() -> None:
    tokenizer = build.tokenizer("moving_digits")
    frames = np.stack([render(World(), seed=0, split="test", index=i) for i in range(60)])
    clips = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 255
    measured = measure(tokenizer, clips, torch.Generator().manual_seed(0))
    assert measured.psnr > 21
    assert measured.used_codes > 0.9 * measured.vocab_size
    assert measured.perplexity > 12
    assert measured.flicker < 0.15
