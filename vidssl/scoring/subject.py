"""What is scored: a network with its weights, how it is run, and where its scores go."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vidssl.components import BACKBONE
from vidssl.engine.checkpoint import Checkpoint
from vidssl.engine.runfolder import RunFolder
from vidssl.interfaces import Backbone
from vidssl.recipe import Recipe, TokenizerSpec
from vidssl.resolved import resolved_part
from vidssl.run_spec import RunSpec
from vidssl.scoring.seen import Pretraining, pretraining_of
from vidssl.sections import PartSpec


@dataclass(frozen=True)
class NetworkSpec:
    """How a network is made and run: what of a recipe concerns scoring.

    Attributes:
        keys: its type and all of its keys, defaults too.
        backbone: the section that makes it; None for what no recipe can name.
        tokenizer: of a network that reads ids; others may have one too.
        seed: of random weights, and of probes.
        run: device, precision and workers.
        max_unreadable_share: of the videos that are finetuned on.
    """

    keys: Mapping[str, object]
    backbone: PartSpec | None
    tokenizer: TokenizerSpec | None = None
    seed: int = 0
    run: RunSpec = field(default_factory=RunSpec)
    max_unreadable_share: float = 0.01


@dataclass(frozen=True)
class Subject:
    """A network that is scored.

    Attributes:
        title: what tables are headed with.
        source: path of the checkpoint, or the name that a user gave.
        step: of the training; 0 for networks that were trained elsewhere or not at all.
        recipe: text that says what it is: a run's resolved recipe, or the network's own keys.
        weights: sha256 of them.
        spec: how it is made and run.
        networks: column of a table -> the network with the weights that stand there.
        starts: column of a table of finetuning -> its ``backbone.init``, None for random weights.
        folder: where features and finetuned runs go.
        scores: where scores go.
        stem: that names of files of scores end in.
        pretraining: what it was trained on.
    """

    title: str
    source: str
    step: int
    recipe: str
    weights: str
    spec: NetworkSpec
    networks: Mapping[str, Backbone]
    starts: Mapping[str, str | None]
    folder: Path
    scores: Path
    stem: str
    pretraining: Pretraining = field(default_factory=Pretraining)


def spec_of(recipe: Recipe) -> NetworkSpec:
    """What of a recipe with a backbone concerns scoring."""
    assert recipe.backbone is not None, "a run without a backbone is refused"
    return NetworkSpec(
        keys=resolved_part(recipe.backbone, BACKBONE),
        backbone=recipe.backbone,
        tokenizer=recipe.tokenizer,
        seed=recipe.seed,
        run=recipe.run,
        max_unreadable_share=recipe.data.max_unreadable_share,
    )


def home(checkpoint: Checkpoint) -> Path:
    """The run's folder, or for a checkpoint that lies elsewhere its own."""
    run = RunFolder(checkpoint.path.parent.parent)
    return run.path if run.scores.is_dir() else checkpoint.path.parent


def subject_of(checkpoint: Checkpoint, spec: NetworkSpec, networks: Mapping[str, Backbone]) -> Subject:
    """A checkpoint's encoder; scores go into its run's folder, or beside a checkpoint that lies elsewhere."""
    run = RunFolder(checkpoint.path.parent.parent)
    return Subject(
        title=f"{checkpoint.path}, step {checkpoint.step}",
        source=str(checkpoint.path),
        step=checkpoint.step,
        recipe=checkpoint.recipe,
        weights=_file_hash(checkpoint.path),
        spec=spec,
        networks=networks,
        starts={"finetuned": str(checkpoint.path), "from scratch": None},
        folder=home(checkpoint),
        scores=run.scores if run.scores.is_dir() else checkpoint.path.parent,
        stem=checkpoint.path.stem,
        pretraining=pretraining_of(checkpoint),
    )


def state_hash(network: nn.Module) -> str:
    """Of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
