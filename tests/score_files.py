"""Runs that have scores but were never trained: for what reads files of scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vidssl.evaluate.score_file import score_record
from vidssl.evaluate.subject import NetworkSpec, Subject
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.scores import Score, score
from vidssl.interfaces.evaluator import ScoreKind

NAMES = ("run", "jump", "swim", "fly")
PROTOCOL = """name: toy
evaluator: {type: knn, k: 20}
layers: last
data:
  train: {type: video_folder, root: here}
"""
RECIPE = """name: {name}
seed: {seed}
objective: {objective}
run: {{out: runs}}
"""


def scored(
    truth: Sequence[int],
    guess: Sequence[int],
    *,
    setting: str = "",
    label: str = "class",
    kind: ScoreKind = "logits",
    chosen: str = "",
    groups: Sequence[int] | None = None,
) -> Score:
    """The row of a label, from classes as they are and as they were named."""
    scores = torch.nn.functional.one_hot(torch.tensor(guess), len(NAMES)).float()
    numbers = torch.tensor(truth)
    units = None if groups is None else torch.tensor(groups)
    return score(
        scores, numbers, numbers, kind=kind, label=label, setting=setting, chosen=chosen, groups=units
    )


def write_run(
    folder: Path,
    truth: Sequence[int],
    guess: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    seed: int = 0,
    objective: str = "{type: svt}",
    protocol: str = PROTOCOL,
    kind: ScoreKind = "logits",
    step: int = 5,
    keys: Sequence[str] = (),
) -> tuple[Path, dict[str, FeatureTable]]:
    """The folder of a run with a file of scores.

    Args:
        guess: classes that the trained network named; or a mapping of networks.
    """
    keys = tuple(keys) or tuple(f"{number}.mp4" for number in range(len(truth)))
    vectors = torch.zeros(len(truth), 1, 1)
    table = FeatureTable(
        vectors, {"class": torch.tensor(truth)}, {"class": NAMES}, keys, len(truth) + 1, ("x",)
    )
    networks = guess if isinstance(guess, Mapping) else {"trained": guess}
    scores = {name: [scored(truth, row, kind=kind)] for name, row in networks.items()}
    videos = {"train": table, "test": table}
    return write_scores(folder, scores, videos, seed=seed, objective=objective, protocol=protocol, step=step)


def write_scores(
    folder: Path,
    scores: Mapping[str, Sequence[Score]],
    videos: dict[str, FeatureTable],
    *,
    seed: int = 0,
    objective: str = "{type: svt}",
    protocol: str = PROTOCOL,
    step: int = 5,
) -> tuple[Path, dict[str, FeatureTable]]:
    """The folder of a run with a file of these scores."""
    subject = Subject(
        title=str(folder),
        source=str(folder / f"checkpoints/step-{step:06d}.safetensors"),
        step=step,
        recipe=RECIPE.format(name=folder.name, seed=seed, objective=objective),
        weights="0" * 64,
        spec=NetworkSpec(keys={}, backbone=None),
        networks={},
        starts={},
        folder=folder,
        scores=folder / "scores",
        stem=f"step-{step:06d}",
    )
    subject.scores.mkdir(parents=True, exist_ok=True)
    path = subject.scores / f"toy-{subject.stem}.json"
    path.write_text(json.dumps(score_record(subject, protocol, scores, videos)))
    return path, videos
