"""A small world to attack: videos and all that the package makes of them, in half a minute of a core."""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import av
import numpy as np

RECIPE = """\
name: small
objective: {type: classification, num_classes: 2, label: class}
backbone: {type: vit, embed_dim: 8, depth: 1, num_heads: 2, patch_size: [2, 8, 8]}
data:
  video:
    source: {type: video_folder, root: videos, part: train, test_share: 0.5}
    views: {type: single_clip, num_frames: 2, frame_stride: 1, size: 16}
    batch_size: 4
  probe:
    train: {type: video_folder, root: videos, part: train, test_share: 0.5}
    test: {type: video_folder, root: videos, part: test, test_share: 0.5}
    views: {type: uniform_clips, num_frames: 2, frame_stride: 1, size: 16, num_clips: 1, num_crops: 1}
augment: {type: per_clip}
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 6}
run: {workers: 0, device: cpu, log_every_steps: 1, checkpoint_every_steps: 2, max_skipped_steps: 2}
"""
GRID = """\
name: g
question: Does the rate matter?
recipe: small.yaml
axes: {optim.lr: [1e-3, 2e-3]}
seeds: [0]
"""
TOKENS = """\
name: tokens
objective: {type: vimpac, head_layers: 2, head_hidden_dim: 8, head_dim: 4}
backbone: {type: factorized, vocab_size: 8, embed_dim: 8, depth: 1, num_heads: 2, num_frames: 2, height: 4,
  width: 4}
tokenizer: {type: vqvae, vocab_size: 8, code_dim: 4, width: 4, stride: 4, weights: coder.safetensors,
  sha256: SHA, source: here, licence: none}
masker: {type: block_3d, num_blocks: 2}
data:
  video:
    source: {type: video_folder, root: videos}
    views: {type: clip_pair, num_frames: 2, fps: 30.0, size: 16}
    batch_size: 4
optim: {type: adamw, lr: 1e-2}
schedule: {type: cosine, steps: 1}
run: {workers: 0, device: cpu}
"""
SMALL = ("--short-side", "32", "--processes", "1")
COMMANDS = (
    ("data", "check", "videos", "--processes", "1"),
    ("data", "shard", "videos", "--out", "shards", "--processes", "1"),
    (
        "data",
        "prepare",
        "videos",
        "--out",
        "jpegs",
        "--jpeg-shards",
        "--short-side",
        "32",
        "--processes",
        "1",
    ),
    ("data", "prepare", "videos", "--out", "small", *SMALL),
    ("train", "small.yaml"),
    ("eval", "runs/small", "--protocol", "knn", "evaluator.k=1"),
    ("tokenize", "tokens.yaml", "--out", "tokens"),
)


def make_world(folder: Path, commands: Sequence[tuple[str, ...]] = COMMANDS) -> Path:
    """Fills an empty folder: 8 videos of 2 classes, recipes, and what the commands make of them."""
    import torch
    from safetensors.torch import save_file

    from vidssl.tokenizers.vqvae import VQVAE

    for number in range(8):
        write_video(folder / "videos" / ("run", "walk")[number % 2] / f"{number}.mp4", 6 + number)
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "g.yaml").write_text(GRID)
    torch.manual_seed(0)
    coder = VQVAE(vocab_size=8, code_dim=4, width=4, stride=4)
    weights = folder / "coder.safetensors"
    save_file({key: value.contiguous() for key, value in coder.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "tokens.yaml").write_text(TOKENS.replace("SHA", digest))
    for words, (code, said) in zip(commands, run_all(folder, commands), strict=True):
        if code:
            sys.exit(f"vidssl {' '.join(words)} ended with {code}: {said[-2000:]}")
    return folder


def run_all(folder: Path, commands: Sequence[tuple[str, ...]]) -> list[tuple[int, str]]:
    """Exit codes and outputs of commands in a folder, one after the other in a fork of this process.

    Afterwards this process has imported what they imported, so that each of its later forks need not.
    """
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os._exit(_run_each(folder, commands, output))
        os.waitpid(child, 0)
        output.seek(0)
        found = json.load(output)
    for name in found["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return [(code, said) for code, said in found["ended"]]


def _run_each(folder: Path, commands: Sequence[tuple[str, ...]], output: TextIO) -> int:
    from vidssl.cli.main import main

    os.chdir(folder)
    ended = []
    for words in commands:
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            for number in (1, 2):
                os.dup2(said.fileno(), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            try:
                code = main(words)
            except BaseException:
                code = 70
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            said.seek(0)
            ended.append((code, said.read()))
    json.dump({"ended": ended, "modules": list(sys.modules)}, output)
    output.flush()
    return 0


def make_attacked(folder: Path) -> Path:
    """The same, with a capture, a file of features and events at the places where they are attacked."""
    folder.mkdir()
    make_world(folder)
    run = folder / "runs" / "small"
    shutil.copy(min((run / "features").glob("*.safetensors")), folder / "features.safetensors")
    lines = [{"step": 1, "kind": "skipped", "text": "x"}, {"step": 2, "kind": "collapse", "text": "y"}]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_all(folder, [("train", "small.yaml", "optim.lr=1e15", "name=broken")])  # leaves a capture
    shutil.copy(min((folder / "runs" / "broken" / "captures").iterdir()), folder / "capture.safetensors")
    return folder


def write_video(path: Path, num_frames: int) -> Path:
    """An MP4 file of 48x32 pixels with a square that moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(num_frames):
            picture = np.full((32, 48, 3), 40, np.uint8)
            picture[8:24, 2 * number : 2 * number + 16] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
