"""From a run and a protocol to scores."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from vidssl import build
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.display import shown_messages
from vidssl.engine.runfolder import RunFolder, newest_run
from vidssl.errors import UsageError
from vidssl.finetune import finetune_run
from vidssl.finetune_protocol import FinetuneProtocol, load_any_protocol
from vidssl.interfaces import Backbone
from vidssl.protocol import Protocol
from vidssl.recipe import Recipe
from vidssl.runs import STOPPED
from vidssl.scoring.feature_store import FeatureStore
from vidssl.scoring.report import report
from vidssl.scoring.scores import probe
from vidssl.scoring.subject import Subject, spec_of, subject_of
from vidssl.scoring.trained import recipe_of, trained_backbone


def find_checkpoint(target: str | None) -> Path:
    """The checkpoint that a word names: a file, a run folder's newest, or without a word the newest run's.

    Raises:
        UsageError: if there is none.
    """
    if target is None:
        run = newest_run(Path("runs"))
    elif Path(target).is_dir():
        run = RunFolder(Path(target))
    else:
        return Path(target)
    newest = run.newest_checkpoint()
    if newest is None:
        raise UsageError(f"{run.path}: no checkpoint in it; is it the folder of a run of 'vidssl train'?")
    return newest


def evaluate_run(
    target: str | None,
    protocols: Sequence[str],
    overrides: Sequence[str],
    console: Console | None = None,
) -> int:
    """Score a checkpoint beside the same network untrained, print one table a protocol, keep the scores.

    Args:
        target: run folder or checkpoint; None for the newest run below ``runs``.
        protocols: names of files in ``evaluation``, or paths.
        overrides: ``key=value`` for the protocols.

    Returns:
        Exit code: 0, or 130 if finetuning was asked to stop before its last step.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or Console()
    with shown_messages(console):
        checkpoint = read_checkpoint(find_checkpoint(target))
        recipe = _network_recipe(checkpoint)
        read = [_protocol(name, overrides, recipe) for name in protocols]
        for protocol in read:
            build.check_any_protocol(protocol)
        networks = {"trained": trained_backbone(recipe, checkpoint), "untrained": _untrained(recipe)}
        return score_subject(subject_of(checkpoint, spec_of(recipe), networks), read, console)


def score_subject(
    subject: Subject, protocols: Sequence[Protocol | FinetuneProtocol], console: Console
) -> int:
    """Score a network under protocols that were checked; exit code and errors as ``evaluate_run``."""
    store = FeatureStore(subject.spec, subject.networks, folder=subject.folder / "features", console=console)
    for protocol in protocols:
        if isinstance(protocol, FinetuneProtocol):
            if not finetune_run(subject, protocol, console):
                return STOPPED
            continue
        features = store.tables(protocol)
        evaluator = build.evaluator(protocol.evaluator)
        scores = {
            name: probe(evaluator, *tables, average=protocol.average, seed=subject.spec.seed)
            for name, tables in features.items()
        }
        videos = dict(zip(("train", "test"), next(iter(features.values())), strict=True))
        report(subject, protocol, scores, videos, console)
    return 0


def _network_recipe(checkpoint: Checkpoint) -> Recipe:
    recipe = recipe_of(checkpoint, "measure it in Python with vidssl.api.extract and vidssl.api.probe")
    if recipe.backbone is None:
        raise UsageError(
            f"{checkpoint.path}: this run trained a tokenizer, which has no features to probe: "
            "--protocol tokenizer measures it"
        )
    return recipe


def _protocol(name: str, overrides: Sequence[str], recipe: Recipe) -> Protocol | FinetuneProtocol:
    protocol = load_any_protocol(name, overrides, recipe)
    if protocol.data is None:
        raise UsageError(
            f"{name}: neither the protocol nor the run's recipe names labelled videos: add e.g. "
            "'data.train={type: video_folder, root: FOLDER, part: train}' "
            "'data.test={type: video_folder, root: FOLDER, part: test}' "
            "'data.views={type: uniform_clips, num_frames: 16, frame_stride: 4, size: 112}'"
        )
    return protocol


def _untrained(recipe: Recipe) -> Backbone:
    """The same network as it was drawn before training, and before any ``backbone.init``."""
    torch.manual_seed(recipe.seed)
    return build.backbone(recipe, with_init=False)
