"""The network that is scored, with its weights, how it is run, and where its scores go."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from vidssl.build import build
from vidssl.build.registry import BACKBONE, resolved_part
from vidssl.config import protocol, schema, strict_yaml
from vidssl.config.recipe import Recipe, RunSpec, TokenizerSpec, overridden, read_recipe, recipe_from_text
from vidssl.data.sources.origins import Video, read_videos, shared_videos
from vidssl.engine import own_code, process, runfolder, speed
from vidssl.engine.checkpoint import Checkpoint, load_objective
from vidssl.errors import UsageError, agreed, counted
from vidssl.interfaces import Backbone, Foresees, Objective, Tokenizer
from vidssl.interfaces.pretrained import WEIGHTS
from vidssl.objectives import OBJECTIVES
from vidssl.weights.load import check_whole, load_whole, own_checkpoint


@dataclass(frozen=True)
class NetworkSpec:
    """The part of a recipe that concerns scoring: how a network is made and run.

    Attributes:
        keys: its type and all of its keys, defaults too.
        backbone: the section that makes it; None for what no recipe can name.
        tokenizer: of a network that reads ids; others may have one too.
        seed: of random weights, and of probes.
        run: device, precision and workers.
        max_unreadable_share: of the videos that are finetuned on.
    """

    keys: Mapping[str, object]
    backbone: schema.PartSpec | None
    tokenizer: TokenizerSpec | None = None
    seed: int = 0
    run: RunSpec = field(default_factory=RunSpec)
    max_unreadable_share: float = 0.01


@dataclass(frozen=True)
class Pretraining:
    """The videos that a network was trained on before it is scored, as far as they are known.

    Attributes:
        videos: the training videos, those of the runs that its weights started from too.
        labelled: those of them whose labels were learned from.
        how: ", without labels" where that is certain, else empty.
        unknown: what of it is not known, and why; empty where all is.
    """

    videos: tuple[Video, ...] = ()
    labelled: tuple[Video, ...] = ()
    how: str = ""
    unknown: str = ""


@dataclass(frozen=True)
class Subject:
    """A network that is scored.

    Attributes:
        title: what tables are headed with.
        source: path of the checkpoint, or the name that a user gave.
        step: of the training; 0 for networks that were trained elsewhere or not at all.
        recipe: its text: a run's resolved recipe, or the network's own keys.
        weights: sha256 of them.
        spec: how it is made and run.
        networks: column of a table -> the network with the weights that stand there.
        starts: column of a table of finetuning -> its ``backbone.init``, None for random weights.
        folder: where features and finetuned runs go.
        scores: folder of scores.
        stem: that names of files of scores end in.
        pretraining: what it was trained on.
        objectives: makes, for each column of ``networks``, the objective that its network is the encoder of,
            with its weights; None for networks of none.
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
    objectives: Callable[[], Mapping[str, Objective]] | None = None

    def foreseeing(self, future: protocol.FutureSpec) -> Mapping[str, Backbone]:
        """The networks with what their predictors say of a time to come.

        Raises:
            UsageError: if they have none.
        """
        made = {} if self.objectives is None else self.objectives()
        if not made or not all(isinstance(each, Foresees) for each in made.values()):
            raise UsageError(
                f"future: {self.title} has no predictor of what comes after a clip, as runs of objective "
                "'vjepa' have, and its recipes that name weights for it (objective.init): recipe:adapt/vjepa"
            )
        return {
            name: cast(Foresees, each).foresight(
                seconds=future.seconds, fps=future.fps, num_slots=future.num_slots
            )
            for name, each in made.items()
        }


def spec_of(recipe: Recipe) -> NetworkSpec:
    """The part of a recipe with a backbone that concerns scoring."""
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
    return scores_of(checkpoint.path)[0]


def scores_of(checkpoint: Path) -> tuple[Path, Path]:
    """The folder of a checkpoint's run, or its own where it lies elsewhere, and that of its scores."""
    run = runfolder.RunFolder.of(checkpoint)
    begun = checkpoint.parent.name == run.checkpoints.name and (run.path / "recipe.yaml").is_file()
    if begun or run.scores.is_dir() or checkpoint.name == WEIGHTS:
        return run.path, run.scores
    return checkpoint.parent, checkpoint.parent


def subject_of(
    checkpoint: Checkpoint,
    spec: NetworkSpec,
    networks: Mapping[str, Backbone],
    objectives: Callable[[], Mapping[str, Objective]] | None = None,
) -> Subject:
    """A checkpoint's encoder; scores go into its run's folder, or beside a checkpoint that lies elsewhere."""
    folder, scores = scores_of(checkpoint.path)
    pushed = checkpoint.path.name == WEIGHTS
    return Subject(
        title=f"{checkpoint.path}, step {checkpoint.step}",
        source=str(checkpoint.path),
        step=checkpoint.step,
        recipe=checkpoint.recipe,
        weights=process.file_sha256(checkpoint.path),
        spec=spec,
        networks=networks,
        starts={"finetuned": str(checkpoint.path), "from scratch": None},
        folder=folder,
        scores=scores,
        stem=(
            runfolder.RunFolder(folder).checkpoint_path(checkpoint.step) if pushed else checkpoint.path
        ).stem,
        pretraining=pretraining_of(checkpoint),
        objectives=objectives,
    )


def state_hash(network: nn.Module) -> str:
    """Of all weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def recipe_of(
    checkpoint: Checkpoint, otherwise: str, *, trust: bool = False, overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe that a checkpoint carries.

    Args:
        otherwise: what can be done with a checkpoint that was trained without one, for the message.
        trust: as for ``stored_recipe``.
        overrides: the user's own, applied afterwards.

    Raises:
        UsageError: if it carries none, or as ``stored_recipe``.
    """
    if not checkpoint.recipe:
        raise UsageError(f"{checkpoint.path}: was trained without a recipe; {otherwise}")
    run = runfolder.RunFolder.of(checkpoint.path.absolute()).path
    return stored_recipe(checkpoint.recipe, checkpoint.path, run, trust=trust, overrides=overrides)


def stored_recipe(
    text: str,
    file: Path,
    run: Path,
    *,
    trust: bool,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> Recipe:
    """The recipe in a text that a run has left, which may come from anywhere.

    Code and addresses in it are used where this user trained that recipe with those files of parts; parts
    are then taken from the run's copies if the original files are gone or changed.

    Args:
        file: that holds the text, for messages.
        run: folder of the run, if it lies in one.
        trust: use what it names, whoever trained it.
        overrides: the user's own.
        folder: that paths of tokenizer weights are relative to; default: the working folder.

    Raises:
        UsageError: if the recipe is wrong, or names code or addresses and is not trusted.
    """
    folder = folder or Path.cwd()
    node = strict_yaml.parse(text, lambda line: f"{file}:{line}")
    recipe = read_recipe(node, folder)
    code = [leaf for tree in recipe.trees for leaf in own_code.code_in(tree)]
    addresses = [leaf for tree in recipe.trees for leaf in own_code.addresses_in(tree)]
    named = {(leaf.path, str(leaf.value)) for leaf in (*code, *addresses)}
    if not named:
        return read_recipe(overridden(node, overrides), folder)
    own = own_code.own_run(text, run)
    if own is None and not trust:
        shown = ", ".join(f"{path}: {value}" for path, value in sorted(named))
        copies = f" Its copies of them lie in {run / 'code'}." if own_code.kept_code(run) else ""
        raise UsageError(
            f"{file}: its recipe runs code or fetches from elsewhere ({shown}), and is not one that you "
            f"trained here with these very files; nothing was imported or fetched.{copies} Read what it "
            "names, and add --trust if you trust it"
        )
    return read_recipe(overridden(own_code.with_kept_code(node, own or run), overrides), folder)


def trained_backbone(recipe: Recipe, checkpoint: Checkpoint) -> Backbone:
    """The backbone with its trained weights, on the CPU.

    Raises:
        UsageError: if the weights are of another architecture, which is looked at before memory is taken.
    """
    try:
        with speed.on_meta():
            bare = build.backbone(recipe, with_init=False)
    except (RuntimeError, OverflowError) as error:
        raise UsageError(
            f"{checkpoint.path}: the network of its recipe cannot be built: {' '.join(str(error).split())}"
        ) from error
    check_whole(bare, checkpoint.encoder, checkpoint.path)
    backbone = build.backbone(recipe, with_init=False)
    load_whole(backbone, checkpoint.encoder, checkpoint.path)
    return backbone


def trained_tokenizer(recipe: Recipe, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a recipe that trained it, frozen and in eval mode."""
    assert recipe.tokenizer is not None, "a recipe that trains a tokenizer has one"
    tokenizer = build.tokenizer(recipe.tokenizer)
    load_whole(tokenizer, checkpoint.encoder, checkpoint.path)
    return tokenizer.requires_grad_(False).eval()


def trained_objective(recipe: Recipe, checkpoint: Checkpoint, say: Callable[[str], None]) -> Objective:
    """The whole objective, heads and all, as it was when the checkpoint was written; on the CPU.

    Raises:
        UsageError: if weights that the recipe names are missing or altered, or those of the checkpoint are
            of another objective.
    """
    objective = build.objective(recipe, say, with_init=False)
    load_objective(objective, checkpoint)
    return objective


def untrained_objective(recipe: Recipe) -> Objective:
    """The whole objective as it was drawn before training, and before any ``init``."""
    torch.manual_seed(recipe.seed)
    return build.objective(recipe, lambda text: None, with_init=False)


_READS_LABELS = "classification"


def pretraining_of(checkpoint: Checkpoint) -> Pretraining:
    """The videos that a checkpoint was trained on, from the list of videos that each run keeps."""
    lists = runfolder.RunFolder.of(checkpoint.path).video_lists()
    if not lists or not checkpoint.recipe:
        return Pretraining(unknown=f"there is no list of what {checkpoint.path} was trained on")
    recipe = recipe_from_text(checkpoint.recipe, str(checkpoint.path))
    objective = recipe.objective.type
    videos = tuple(
        video
        for path in lists
        for name, listed in read_videos(path).items()
        if name.endswith(".source")
        for video in listed
    )
    labelled = videos if objective == _READS_LABELS else ()
    how = ", without labels" if objective in OBJECTIVES and not labelled else ""
    if recipe.start.init is None:
        return Pretraining(videos, labelled, how)
    before = _of_init(recipe.start.init)
    return Pretraining(
        (*before.videos, *videos),
        (*before.labelled, *labelled),
        how if before.how or not before.videos else "",
        before.unknown,
    )


def _of_init(init: str) -> Pretraining:
    try:
        first = own_checkpoint(init)
    except UsageError:
        first = None
    return (
        Pretraining(unknown=f"what {init} was trained on is not known")
        if first is None
        else pretraining_of(first)
    )


def check_seen(
    train: Sequence[Video], test: Sequence[Video], pretraining: Pretraining, rule: protocol.OverlapRule
) -> list[str]:
    """Notes below a table on test videos that were learned from before.

    Raises:
        UsageError: if there are any that were learned from with their labels, unless ``rule`` allows them.
    """
    notes = []
    for learned, where in ((train, "in train too"), (pretraining.labelled, "trained on with their labels")):
        found = shared_videos(learned, test)
        if found.keys and rule == "error":
            raise UsageError(found.refusal(where))
        if found.keys:
            notes.append(f"overlap: allow: {found.count()} are {where}, so scores are too high")
        if found.cut_apart:
            notes.append(
                f"{counted(found.cut_apart, 'test video', of=found.total, verb='are')} other "
                f"segments of files {where}"
            )
        if found.unknown:
            notes.append(_not_known(found.unknown, found.total, where, "their files cannot be compared"))
    seen, where = shared_videos(pretraining.videos, test), "seen in pretraining"
    if seen.keys:
        were = agreed(len(seen.keys), "were")
        notes.append(f"{len(seen.keys)} of {seen.total} test videos {were} {where}{pretraining.how}")
    elif pretraining.videos and not seen.unknown:
        notes.append(f"None of {seen.total} test videos was {where}")
    if pretraining.unknown:
        notes.append(_not_known(seen.total - len(seen.keys), seen.total, where, pretraining.unknown))
    elif seen.unknown:
        notes.append(_not_known(seen.unknown, seen.total, where, "their files cannot be compared"))
    return notes


def _not_known(count: int, total: int, where: str, why: str) -> str:
    return f"Whether {counted(count, 'test video', of=total, verb='are')} {where} is not known: {why}"
