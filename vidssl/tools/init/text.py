"""A recipe's YAML text, each value with its reason in a comment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidssl.config import grid, strict_yaml
from vidssl.engine.logging import format_duration
from vidssl.errors import counted
from vidssl.evaluators.statistics import detectable_difference
from vidssl.tools.init.choices import Choice, Choices, Machine, ObjectiveName

_WIDTH = 30  # column that reasons begin in


@dataclass(frozen=True)
class Sources:
    """Where samples come from: the keys of the source named once, those of its parts, and of what is watched.

    Attributes:
        shared: the source.
        train, test: keys that differ in the parts.
        watched: keys of the source that a stream's metrics are measured on, where it is not the test part.
        probed: whether there are labels to probe.
        tested: labelled videos to test on.
    """

    shared: Mapping[str, object]
    train: Mapping[str, object]
    test: Mapping[str, object]
    watched: Mapping[str, object] | None
    probed: bool
    tested: int = 0


def _line(indent: int, key: str, value: object, why: str = "") -> str:
    text = f"{'  ' * indent}{key}: {strict_yaml.dump_flow(value)}"
    return f"{text:<{_WIDTH - 1}} # {why}" if why else text


def _section(indent: int, key: str, why: str = "") -> str:
    text = f"{'  ' * indent}{key}:"
    return f"{text:<{_WIDTH - 1}} # {why}" if why else text


def recipe_text(
    name: str,
    objective: ObjectiveName,
    choices: Choices,
    sources: Sources,
    steps: Choice[int],
    *,
    tokenizer: Choice[str] | None,
    heading: Sequence[str],
) -> str:
    """The whole file."""
    lines = [f"# {line}".rstrip() for line in heading]
    lines += [_line(0, "name", name), _line(0, "seed", 0), *_objective(objective, choices)]
    lines += [_section(0, "backbone", choices.network.why)]
    lines += [_line(1, key, value) for key, value in choices.network.value.items()]
    if tokenizer is not None:
        lines.append(_line(0, "tokenizer", tokenizer.value, tokenizer.why))
    lines += _masker(objective, choices)
    lines += _data(objective, choices, sources)
    if objective == "svt":
        lines += [_section(0, "augment", "colours as SVT's official code has them, DINO's blur")]
        lines += [_line(1, "type", "colour"), _line(1, "flip", choices.flip.value, choices.flip.why)]
        colours = {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "grey": 0.2}
        lines += [_line(1, key, value) for key, value in colours.items()]
    else:
        lines += [
            "augment:",
            _line(1, "type", "per_clip"),
            _line(1, "flip", choices.flip.value, choices.flip.why),
        ]
    lines += _optim(objective, choices)
    warmup = max(1, steps.value // 10)
    lines += ["schedule:", _line(1, "type", "cosine"), _line(1, "steps", steps.value, steps.why)]
    lines += [_line(1, "warmup_steps", warmup, "a tenth")]
    every = max(1, steps.value // 4)
    lines += ["run:", _line(1, "workers", choices.workers.value, choices.workers.why)]
    lines += [_line(1, "log_every_steps", max(1, steps.value // 40), "forty lines in all")]
    lines += [_line(1, "checkpoint_every_steps", every, "four times; held-out videos are measured then")]
    return "\n".join(lines) + "\n"


def _objective(objective: ObjectiveName, choices: Choices) -> list[str]:
    batch = choices.batch_size.value
    keys: dict[str, tuple[object, str]] = {
        "svt": {
            "out_dim": (128, "65536 in the official code; few videos have few prototypes"),
            "head_hidden": (256, "small, as the network"),
            "bottleneck": (64, ""),
            "head_norm": (True, "without it or Sinkhorn a short run stays at ln K"),
            "targets": ("sinkhorn", "as DINOv2"),
            "teacher_temp": (0.05, ""),
            "teacher_momentum": (0.95, "0.996 averages over more steps than a short run has"),
            "freeze_last_layer_epochs": (0, ""),
            "correspondences": (["lg", "gg"], "SVT, Table 4"),
        },
        "bevt": {"image_weight": (1.0, "lambda, BEVT, Eq. 4"), "video_weight": (1.0, "")},
        "vimpac": {
            "contrastive_weight": (1.0, "alpha, VIMPAC, Sec. 3.3"),
            "head_layers": (2, "official code, small model"),
            "head_hidden_dim": (256, "small, as the network"),
            "head_dim": (64, "256 in the paper"),
            "negatives": (batch - 1, "all other videos of the batch; 127 in the paper"),
        },
        "videomae": {
            "decoder_dim": (
                64 if choices.network.value["embed_dim"] == 128 else 192,
                "half the network's width",
            ),
            "decoder_depth": (2, "4 in the paper"),
            "decoder_heads": (4 if choices.network.value["embed_dim"] == 128 else 3, ""),
        },
    }[objective]  # type: ignore[assignment]
    lines = ["objective:", _line(1, "type", objective)]
    return lines + [_line(1, key, value, why) for key, (value, why) in keys.items()]


def _masker(objective: ObjectiveName, choices: Choices) -> list[str]:
    side = choices.size.value // choices.patch
    if objective == "bevt":
        keys = {
            "type": "tube",
            "ratio": 0.5,
            "length": [0.5, 1.0],
            "min_block": min(3, side),
            "placement": "circular",
        }
        return [
            _section(0, "masker", "official code; the block is ours"),
            *(_line(1, *pair) for pair in keys.items()),
        ]
    if objective == "vimpac":
        return [_line(0, "masker", {"type": "block_3d", "num_blocks": 5}, "VIMPAC, Sec. 3.2")]
    if objective == "videomae":
        keys = {"type": "random_tube", "ratio": 0.75 if side < 14 else 0.9}
        return [_line(0, "masker", keys, f"0.9 of 14 x 14 cells in the paper; a frame has {side} x {side}")]
    return []


def _data(objective: ObjectiveName, choices: Choices, sources: Sources) -> list[str]:
    lines = ["data:", _section(1, "source", "named once; streams and the probe take their part of it")]
    lines += [_line(2, key, value) for key, value in sources.shared.items()]
    lines += [_line(1, "train", dict(sources.train)), _line(1, "test", dict(sources.test))]
    watched = []
    if sources.watched is not None:
        watched = [
            _line(2, "test_source", dict(sources.watched), "watched while training; test is for the probe")
        ]
    lines += ["  video:", *watched, "    views:", *_views(objective, choices)]
    lines += [_line(2, "batch_size", choices.batch_size.value, choices.batch_size.why)]
    if objective == "bevt":
        lines += [_section(1, "image", "frames of the same videos: one of BEVT's choices (Table 7)")]
        lines += [*watched, _line(2, "views", {"type": "single_image", "size": choices.size.value})]
        lines += [_line(2, "batch_size", choices.batch_size.value)]
    if sources.probed:
        views = {
            "type": "uniform_clips", "num_clips": 2, "num_frames": choices.num_frames.value,
            "frame_stride": choices.frame_stride.value, "size": choices.size.value,
        }  # fmt: skip
        lines += [_section(1, "probe", "two clips of each video, their features averaged")]
        lines += ["    views:", *(_line(3, key, value) for key, value in views.items())]
    return lines


def _views(objective: ObjectiveName, choices: Choices) -> list[str]:
    size, frames, stride = choices.size, choices.num_frames, choices.frame_stride
    if objective == "svt":
        local = max(16, size.value * 2 // 3 // choices.patch * choices.patch)
        few = max(2, frames.value // 2)
        return [
            _line(3, "type", "global_local"),
            _line(
                3,
                "num_frames",
                [frames.value, few],
                "two globals of different frame rates; 16 and 8 in the paper",
            ),
            _line(3, "size", size.value, size.why),
            _line(3, "area", [0.4, 1.0], "official code"),
            _line(3, "local_frames", [few, few], "eight locals in the paper"),
            _line(3, "local_extent", 0.5, "an eighth in the paper, of longer videos"),
            _line(3, "local_size", local, "two thirds"),
            _line(3, "local_area", [0.2, 0.6], "a large part of the frame: what moves must be in it"),
        ]
    kind = "clip_pair" if objective == "vimpac" else "single_clip"
    lines = [
        _line(3, "type", kind),
        _line(3, "num_frames", frames.value, frames.why),
        _line(3, "frame_stride", stride.value, stride.why),
    ]
    if objective == "vimpac":
        lines.append(_line(3, "fps", None, "frames as they are"))
    return [*lines, _line(3, "size", size.value, f"{size.why}; a random square")]


def _optim(objective: ObjectiveName, choices: Choices) -> list[str]:
    rate = {"svt": 1e-3, "bevt": 2e-3, "vimpac": 1.5e-3, "videomae": 1.5e-3}[objective]
    why = "as recipes/comparison, for this network and 32 clips a step"
    batch = choices.batch_size.value
    if choices.network.value["embed_dim"] != 128:
        rate, why = 5e-4, "for a network of this width and 64 clips a step"
    elif batch < 32:
        rate, why = (
            rate * (batch / 32) ** 0.5,
            f"recipes/comparison's, by the root of {batch} of its 32 clips a step",
        )
    betas = [0.9, 0.95] if objective == "videomae" else [0.9, 0.98]
    return [
        "optim:",
        _line(1, "type", "adamw"),
        _line(1, "lr", float(f"{rate:.2g}"), why),
        _line(1, "weight_decay", 0.05),
        _line(1, "betas", betas),
        _line(1, "clip_norm", 3.0 if objective == "bevt" else 1.0),
    ]


_DIFFER = 0.3  # of the test videos, that two networks name differently: an example


def what_can_show(tested: int) -> str:
    """What a test of so many videos can and cannot show, in a sentence."""
    alike = np.zeros(tested, bool)
    other = alike.copy()
    other[: max(1, round(_DIFFER * tested))] = True
    points = 100 * detectable_difference(alike, other)
    return (
        f"{counted(tested, 'test video')}: of two networks that part on {_DIFFER:.0%} of them a difference "
        f"of {points:.0f} points is seen in four of five such tests (by formula); smaller ones are missed"
    )


def runs_in_words(machine: Machine, objectives: int) -> str:
    """How many runs a grid of so many objectives has, and how long they take."""
    count = objectives * len(grid.GridSpec.seeds)
    time = (
        "" if machine.minutes is None else f", {format_duration(60 * machine.minutes * count)} and the scores"
    )
    return f"{objectives} objectives with {len(grid.GridSpec.seeds)} seeds, {count} runs{time}"


def grid_text(out: Path, videos: Path, files: Mapping[ObjectiveName, Path], machine: Machine) -> str:
    """The grid that trains and compares the recipes of several objectives."""
    time = (
        "as many passes"
        if machine.minutes is None
        else f"{format_duration(60 * machine.minutes)} of training"
    )
    lines = [
        f"# {runs_in_words(machine, len(files))}. Written by 'vidssl init'.",
        "#",
        f"#   vidssl grid {out}              # goes on where it was stopped; seeds=[0] for a first look",
        f"#   vidssl report runs/{out.stem} -o {out.stem}.html",
        _line(0, "name", out.stem),
        _line(
            0,
            "question",
            f"Which objective learns most from {videos.name}, network and clips equal, in {time}?",
        ),
        "cells:",
        *(_line(1, name, {"recipe": path.as_posix()}) for name, path in files.items()),
        _line(0, "seeds", list(grid.GridSpec.seeds)),
        _line(0, "protocols", ["linear"]),
    ]
    return "\n".join(lines) + "\n"


def tokenizer_text(name: str, choices: Choices, sources: Sources, steps: int) -> str:
    """The recipe of a tokenizer of single frames of the same videos."""
    size = choices.size.value
    lines = [
        "# A tokenizer of single frames of the same videos. Written by 'vidssl init'.",
        _line(0, "name", name),
        _line(0, "seed", 0),
        _line(0, "objective", {"type": "tokenizer", "loss": "l2", "commitment_weight": 0.25}),
        "tokenizer:",
        _line(1, "type", "vqvae"),
        _line(1, "vocab_size", 256, "enough for textures, few enough to be learned in minutes"),
        _line(1, "stride", choices.patch, "an id for each cell of the network"),
        _line(1, "code_dim", 16),
        _line(1, "width", 64),
        _line(1, "num_res_blocks", 0, "an id is then a matter of its own cell, and easier to predict"),
        _line(1, "ema_decay", 0.95),
        _line(1, "revive_below", 0.03),
        "data:",
        "  source:",
        *(_line(2, key, value) for key, value in sources.shared.items()),
        _line(1, "train", dict(sources.train)),
        _line(1, "test", dict(sources.test)),
        "  image:",
        *([] if sources.watched is None else [_line(2, "test_source", dict(sources.watched))]),
        _line(2, "views", {"type": "single_image", "size": size}),
        _line(2, "batch_size", min(32, 2 * choices.batch_size.value)),
        _line(
            0,
            "optim",
            {"type": "adamw", "lr": 4e-3, "weight_decay": 0.0, "betas": [0.9, 0.98], "clip_norm": 1.0},
        ),
        _line(0, "schedule", {"type": "cosine", "steps": steps, "warmup_steps": max(1, steps // 20)}),
        _line(0, "run", {"log_every_steps": max(1, steps // 10), "checkpoint_every_steps": steps}),
    ]
    return "\n".join(lines) + "\n"
