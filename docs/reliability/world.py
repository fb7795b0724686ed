"""A small world to attack: videos and everything that the package makes of them, in a minute on one core."""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
PACKAGE = Path(__file__).resolve().parent.parent.parent
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


def environment(**more: str) -> dict[str, str]:
    """This process's own, with the package in its path and one thread."""
    return os.environ | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | more


def vidssl(*words: str, folder: Path, seconds: float = 900.0, **more: str) -> tuple[int, str]:
    """Exit code and output of a command in a folder; code 124 if it took longer than it may."""
    command = [sys.executable, "-m", "vidssl", *words]
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment(**more),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return 124, f"more than {seconds:g} seconds"
    return ran.returncode, ran.stdout + ran.stderr


def make_world(folder: Path, commands: Sequence[tuple[str, ...]] = COMMANDS) -> Path:
    """Fills an empty folder: 8 videos of 2 classes, recipes, and what the commands make of them."""
    import torch
    from safetensors.torch import save_file

    from vidssl.tokenizers.vqvae import VQVAE

    for number in range(8):
        write_video(folder / "videos" / ("run", "walk")[number % 2] / f"{number}.mp4", 6 + number)
    (folder / "small.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    coder = VQVAE(vocab_size=8, code_dim=4, width=4, stride=4)
    weights = folder / "coder.safetensors"
    save_file({key: value.contiguous() for key, value in coder.state_dict().items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "tokens.yaml").write_text(TOKENS.replace("SHA", digest))
    for words in commands:
        code, said = vidssl(*words, folder=folder)
        if code:
            sys.exit(f"vidssl {' '.join(words)} ended with {code}: {said[-2000:]}")
    return folder


def import_what_is_used(world: Path, commands: Sequence[tuple[str, ...]]) -> None:
    """Has this process import what commands import, so that each of its forks need not.

    Args:
        world: is copied, and the copy removed; commands that fail there are left out.
    """
    place, names = world.with_name(f"{world.name}-warm"), world.with_name("modules.json")
    shutil.copytree(world, place, symlinks=True)
    if os.fork() == 0:
        from vidssl.cli.main import main

        os.chdir(place)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        for words in commands:
            with contextlib.suppress(Exception):
                main(words)
        names.write_text(json.dumps(list(sys.modules)))
        os._exit(0)
    os.wait()
    shutil.rmtree(place)
    for name in json.loads(names.read_text()):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def make_attacked(folder: Path) -> Path:
    """The same, with a capture, a file of features and events at the places where they are attacked."""
    folder.mkdir()
    make_world(folder)
    run = folder / "runs" / "small"
    shutil.copy(min((run / "features").glob("*.safetensors")), folder / "features.safetensors")
    lines = [{"step": 1, "kind": "skipped", "text": "x"}, {"step": 2, "kind": "collapse", "text": "y"}]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    vidssl("train", "small.yaml", "optim.lr=1e15", "name=broken", folder=folder)  # leaves a capture
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
