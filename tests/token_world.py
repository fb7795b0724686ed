"""A few videos, two tokenizers, a recipe and finished token stores, made once for all tests of a process."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data_clips import write_clip
from rich.console import Console
from safetensors.torch import save

from vidssl.config.recipe import load_recipe
from vidssl.data.sources.token_store import CROPS
from vidssl.errors import UsageError
from vidssl.tokenizers.vqvae import VQVAE
from vidssl.tools.tokenize import tokenize
from vidssl.train.run import train_recipe

LENGTHS = {"a/0.mp4": 48, "a/1.mp4": 33, "a/2.mp4": 54, "b/0.mp4": 39, "b/1.mp4": 6}
HELD = {"a/8.mp4": 30, "b/9.mp4": 24}  # to test on
FPS = 10.0
RECIPE = """\
name: toy
objective: {type: vimpac, head_layers: 2, head_hidden_dim: 8, head_dim: 4}
backbone: {type: factorized, vocab_size: 8, embed_dim: 8, depth: 2, num_heads: 2, num_frames: 4,
  height: 4, width: 4}
tokenizer: toy
masker: {type: block_3d, num_blocks: 2}
data:
  video:
    source: {type: video_folder, root: videos}
    views: {type: clip_pair, num_frames: 4, fps: 10.0, size: 16}
    batch_size: 4
optim: {type: adamw, lr: 1e-2}
schedule: {type: cosine, steps: 1}
run: {workers: 0, device: cpu, log_every_steps: 1}
"""
STORED = ("data.video.source={type: token_store, root: store}", "data.video.views.type=stored_clip_pair")


def make_tokenizer(folder: Path, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = VQVAE(vocab_size=8, code_dim=4, width=4, stride=4)
    content = save({key: value.contiguous() for key, value in net.state_dict().items()})
    (folder / f"{name}.safetensors").write_bytes(content)
    (folder / f"{name}.yaml").write_text(
        f"type: vqvae\nvocab_size: 8\ncode_dim: 4\nwidth: 4\nstride: 4\nweights: {name}.safetensors\n"
        f"sha256: {hashlib.sha256(content).hexdigest()}\nsource: a test\nlicence: MIT\n"
    )


def token_world(base: Path) -> Path:
    """The folder below ``base``; the store ``store`` has one transform, ``three`` and ``twelve`` more."""
    folder = base / "token_world"
    if folder.exists():
        return folder
    (folder / "tokenizers").mkdir(parents=True)
    make_tokenizer(folder / "tokenizers", "toy", 0)
    make_tokenizer(folder / "tokenizers", "other", 1)
    for key, length in LENGTHS.items():
        write_clip(folder / "videos" / key, length, noise=80)
    for key, length in HELD.items():
        write_clip(folder / "held" / key, length, noise=80)
    (folder / "toy.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fill("store")
        fill("held_store", "data.video.source.root=held")
        fill("three", crops=("top", "middle", "far"))
        fill("twelve", resize=(1.0, 1.25), crops=CROPS, flip="both")
    return folder


def fill(out: str, *overrides: str, **asked: object) -> str:
    """What ``vidssl tokenize`` said."""
    console = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    given = {"fps": FPS, "videos_per_shard": 2, **asked}
    with console.file:
        tokenize.tokenize(load_recipe("toy.yaml", overrides), Path(out), **given, console=console)
    return console.export_text()


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def first_step(*overrides: str) -> dict[str, float]:
    """All that was logged of a run's first step but times and memory."""
    recipe = load_recipe("toy.yaml", overrides)
    _, result = train_recipe(recipe, Console(quiet=True))
    record = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[0])
    return {
        name: value for name, value in record.items() if not re.search("second|wait|memory|off_cpu", name)
    }
