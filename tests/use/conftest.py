"""Tiny runs that several tests use: one of VideoMAE's objective, one finetuned; made once."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data_clips import write_clip
from tests.toy_runs import VIT
from vidssl.cli.main import main

DIGITS = "type: moving_digits, size: 16, digit_size: 12, num_frames: 4"
VIEWS = "{type: uniform_clips, num_frames: 4, frame_stride: 1, size: 16}"
RECIPE = f"""
name: tiny
objective: {{type: videomae, decoder_dim: 8, decoder_depth: 1, decoder_heads: 2}}
backbone: {VIT}
masker: {{type: random_tube, ratio: 0.5}}
decoder_masker: {{type: running_cell}}
data:
  video:
    source: {{{DIGITS}, split: train, num_videos: 8}}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 16}}
    batch_size: 4
  probe:
    train: {{{DIGITS}, split: train, num_videos: 24}}
    test: {{{DIGITS}, split: test, num_videos: 12}}
    views: {VIEWS}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 2}}
run: {{workers: 0, device: cpu, log_every_steps: 1, checkpoint_every_steps: 2, test_batches: 1}}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``world`` is a copy of."""
    folder = tmp_path_factory.mktemp("trained")
    with inside(folder):
        (folder / "tiny.yaml").write_text(RECIPE)
        assert main(["train", "tiny.yaml"]) == 0
        for name, length in {"long": 31, "middle": 10, "short": 6}.items():
            write_clip(folder / "videos" / f"{name}.mp4", length)
    return folder


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def world(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with ``runs/tiny``, and ``videos`` of 31, 10 and 6 frames at 30 fps.

    Each file of tests has one, as they leave protocols, scores and probes there.
    """
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    with inside(folder):
        yield folder


@pytest.fixture
def tiny(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, relative to the working folder, which is its world."""
    monkeypatch.chdir(world)
    return Path("runs/tiny")
