"""A recipe with labelled videos, runs of it with random weights, and which videos an evaluation encodes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.recipe import recipe_from_text
from vidssl.engine.checkpoint import FORMAT
from vidssl.evaluate import feature_cache as feature_store
from vidssl.evaluators import extract as extraction


def recipe_text(
    name: str = "toy", *, num_videos: int = 12, num_crops: int = 1, steps: int = 5, seed: int = 0
) -> str:
    world = f"type: moving_digits, size: 32, digit_size: 24, num_frames: 4, num_videos: {num_videos}"
    return f"""
name: {name}
seed: {seed}
objective: {{type: bevt_video}}
backbone: {{type: vit, embed_dim: 16, depth: 1, num_heads: 2, patch_size: [2, 16, 16]}}
tokenizer: moving_digits
masker: {{type: tube, min_block: 1}}
data:
  video:
    source: {{{world}, split: train}}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 32}}
    batch_size: 4
  probe:
    train: {{{world}, split: train}}
    test: {{{world}, split: test}}
    views: {{type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32, num_crops: {num_crops}}}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: {steps}}}
run: {{workers: 0, device: cpu, test_batches: 1}}
"""


def make_run(folder: Path, text: str, *, seed: int, step: int = 5) -> None:
    """The folder of a run of that recipe, whose weights are random ones of the seed."""
    recipe = recipe_from_text(text, "toy.yaml")
    torch.manual_seed(seed)
    state = build.backbone(recipe).state_dict()
    for part in ("checkpoints", "scores"):
        (folder / part).mkdir(parents=True)
    save_file(
        {f"encoder.{key}": value for key, value in state.items()},
        folder / "checkpoints" / f"step-{step:06d}.safetensors",
        metadata={"format": FORMAT, "step": str(step), "recipe": resolved_text(recipe)},
    )


def encoder_passes(patch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the passes that an encoder makes over videos from now on."""
    passes: list[str] = []

    def counting(*given, title: str, **keys):
        passes.append(title)
        return extraction.encode(*given, title=title, **keys)

    patch.setattr(feature_store, "encode", counting)
    return passes
