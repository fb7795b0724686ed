"""Networks out of runs, files and the hub, and runs into it with a model card (``vidssl push``)."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from vidssl import __version__
from vidssl.backbones import BACKBONES
from vidssl.build import build
from vidssl.compare import runs, tables
from vidssl.config.recipe import Recipe
from vidssl.config.strict_yaml import dump
from vidssl.engine import runfolder, speed
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.engine.process import make_folder, write_atomically, write_text
from vidssl.errors import UsageError, counted
from vidssl.evaluate import evaluate, score_file, subject
from vidssl.evaluators.fitted import ENDING
from vidssl.interfaces import Backbone, Objective
from vidssl.interfaces.pretrained import CONFIG, HUB, WEIGHTS, config_of, fetched, load_pretrained


def load(run: str | Path, *, trust: bool = False) -> Backbone:
    """The trained network of a run, on the CPU and in eval mode: ``network(clips).pooled()`` is [B, D].

    Args:
        run: a run's folder (its newest checkpoint is taken), a checkpoint, a folder that ``save_pretrained``
            or ``vidssl push`` wrote, or ``hf:OWNER/NAME`` of one on the hub.
        trust: run code and open addresses that the recipe inside names, though you did not train it here.

    Raises:
        UsageError: if there is no network, or its weights are damaged.
    """
    folder = fetched(run)
    if (folder / CONFIG).is_file() and (found := _saved(folder)) is not None:
        return found
    checkpoint = read_checkpoint(evaluate.find_checkpoint(str(folder)))
    recipe = subject.recipe_of(checkpoint, "load its tensors with vidssl.api.read_checkpoint", trust=trust)
    if recipe.backbone is None:
        raise UsageError(
            f"{run}: trained a tokenizer, no network with features: vidssl.api.load_objective(...).encoder()"
        )
    network = subject.trained_backbone(recipe, checkpoint).eval()
    network.started_from = str(checkpoint.path)  # of a training that goes on from it
    return network


def _saved(folder: Path) -> Backbone | None:
    """The network of a folder with a configuration; None for one of a class that only its recipe names."""
    own = []

    def class_of(name: str) -> type[Backbone] | None:
        own.append(_own_class(name) is None)
        return _own_class(name)

    try:
        return load_pretrained(folder, class_of)
    except UsageError:
        if any(own) and (folder / "recipe.yaml").is_file():
            return None
        raise


def _own_class(name: str) -> type[Backbone] | None:
    try:
        found = BACKBONES.constructor(name, "vidssl.backbones")
    except AttributeError:
        return None
    return found if isinstance(found, type) else None


def load_objective(run: str | Path, *, trust: bool = False) -> Objective:
    """The whole objective of a run with its heads and decoders, on the CPU and in eval mode.

    Args:
        run: as for ``load``; a folder of ``save_pretrained`` holds none.
        trust: as for ``load``.

    Raises:
        UsageError: if there is none, or weights that its recipe names are missing.
    """
    checkpoint = read_checkpoint(evaluate.find_checkpoint(str(fetched(run))))
    recipe = subject.recipe_of(checkpoint, "build the objective and load its tensors yourself", trust=trust)
    return subject.trained_objective(recipe, checkpoint, lambda line: None).eval()


def model_card(
    recipe: Recipe, checkpoint: Checkpoint, scores: Sequence[score_file.ScoreFile], *, name: str, licence: str
) -> str:
    """A README.md with the front matter that model hubs read.

    Args:
        scores: of the checkpoint, under all protocols.
        name: what the run is loaded by, ``hf:OWNER/NAME`` or a folder.
        licence: its identifier; empty where none was given, which the card says.
    """
    return "\n".join([*_front(recipe, scores, licence), *_body(recipe, checkpoint, scores, name, licence)])


def _front(recipe: Recipe, scores: Sequence[score_file.ScoreFile], licence: str) -> list[str]:
    classifies = recipe.objective.type == "classification"
    backbone = "" if recipe.backbone is None else recipe.backbone.type
    front: dict[str, object] = {
        "library_name": "vidssl",
        "pipeline_tag": "video-classification" if classifies else "feature-extraction",
        "tags": tuple(filter(None, ("video", "self-supervised-learning", recipe.objective.type, backbone))),
    }
    if licence:
        front["license"] = licence
    results = [
        {
            "task": {"type": "video-classification"},
            "dataset": {"name": _test_videos(file), "type": _test_videos(file)},
            "metrics": ({"name": f"{name}, {file.name}, {row.label}", "type": kind, "value": row.top1},),
        }
        for file in scores
        for row in next(iter(file.scores.values()))
        for name, kind in [("top 1", "accuracy") if row.measure == "top-1" else (row.measure, row.measure)]
    ]
    if results:
        front["model-index"] = ({"name": recipe.name, "results": tuple(results)},)
    return ["---", dump(front).rstrip(), "---", ""]


def _test_videos(file: score_file.ScoreFile) -> str:
    return file.card.get("data.test.type", "videos")


def _body(
    recipe: Recipe, checkpoint: Checkpoint, scores: Sequence[score_file.ScoreFile], name: str, licence: str
) -> list[str]:
    steps, what = checkpoint.step, recipe.objective.type
    network = "a tokenizer" if recipe.backbone is None else f"a network of type `{recipe.backbone.type}`"
    lines = [
        f"# {recipe.name}",
        "",
        f"{network.capitalize()}, trained by `{what}` for {steps} steps with vidssl {__version__}.",
        "",
        "## How to load it",
        "",
        "```python",
        "from vidssl import api as v",
        "",
        f"network = v.load({json.dumps(name)})  # in eval mode",
        "# clips: float32 [B, 3, T, H, W] in [0, 1]",
        "features = network(clips).pooled()  # [B, D]",
        "```",
        "",
        f"`vidssl eval {name} --protocol linear`, `vidssl features {name} videos/ -o features.npz`",
        "and all other commands take it where a run may stand.",
        "",
        "## Data",
        "",
    ]
    for stream, spec in recipe.data.streams.items():
        lines.append(f"- {stream}: `{spec.source.type}`, {spec.batch_size} samples a step")
    lines += ["", f"Licence: {licence or 'not stated by who pushed it'}.", "", "## Scores", ""]
    if scores:
        lines += ["Brackets hold 95 % intervals.", ""]
        lines += [
            line
            for grid in runs.run_grids(scores, each=False)[: len(scores)]
            for line in (tables.markdown(grid), "")
        ]
        lines += ["Scores may be compared with others of the same card:", ""]
        for file in scores:
            lines += ["<details>", f"<summary>{file.name}: {file.card_sha256[:12]}</summary>", "", "```"]
            lines += [f"{key}: {value}" for key, value in file.card.items()]
            lines += ["```", "", "</details>", ""]
    else:
        lines += [f"None yet: `vidssl eval {name} --protocol linear` makes some.", ""]
    return [*lines, "## Recipe", "", "```yaml", checkpoint.recipe.rstrip(), "```", ""]


CARD = "README.md"


def push(
    run: str,
    target: str,
    *,
    licence: str = "",
    private: bool = False,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Write a run, its newest checkpoint with card, recipe and scores, to a folder or a hub; exit code 0.

    Args:
        run: folder of the run, or a checkpoint.
        target: a folder, which is made, or ``hf:OWNER/NAME``.
        licence: identifier of the licence of the weights, such as apache-2.0; the card says if there is none.
        private: on the hub, for its owner alone.
        trust: as for ``vidssl eval``.

    Raises:
        UsageError: if there is no such run, the folder holds something else, or the hub refuses.
    """
    console = console or terminal()
    with shown_messages(console):
        say = partial(print_line, console)
        checkpoint = read_checkpoint(evaluate.find_checkpoint(run))
        recipe = subject.recipe_of(checkpoint, "save its network with Backbone.save_pretrained", trust=trust)
        if not target.startswith(HUB):
            folder = Path(target)
            check_target(folder)
            written = write_folder(checkpoint, recipe, folder, name=target, licence=licence)
            say(f"Written: {folder} ({counted(len(written), 'file')}). To load it: v.load({target!r})")
            return 0
        repository = target.removeprefix(HUB)
        with tempfile.TemporaryDirectory() as made:
            write_folder(checkpoint, recipe, Path(made), name=target, licence=licence)
            say(f"Pushed: {_upload(Path(made), repository, private)}. To load it: v.load({target!r})")
    return 0


def check_target(folder: Path) -> None:
    """Refuse to write a network into a folder that holds anything but one that was written there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file, not a folder; name a new folder")
    held = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if WEIGHTS not in held and set(held) - {CONFIG}:  # without weights where a write was ended
        raise UsageError(f"{folder}: holds other files ({held[0]}): name a new folder")


def write_folder(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, *, name: str, licence: str
) -> list[Path]:
    """Everything of a run that others need; the files.

    Weights, the network's configuration, recipe, scores and kept probes of this checkpoint, names of classes,
    the recipe's own parts as text, and a card. Not what tells of this machine: environment, lists of videos.
    """
    run = runfolder.RunFolder.of(checkpoint.path)
    make_folder(folder)
    if checkpoint.path.absolute() != (folder / WEIGHTS).absolute():
        _copy(checkpoint.path, folder / WEIGHTS)
    write_text(folder / "recipe.yaml", checkpoint.recipe)
    if recipe.backbone is not None:
        with speed.on_meta():
            config = config_of(build.network(recipe.backbone))
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    stem = f"step-{checkpoint.step:06d}"
    scores = sorted(run.scores.glob(f"*-{stem}.json"))
    others = [*scores, *run.scores.glob(f"*-{stem}{ENDING}")]
    for path in [*others, run.classes, *(path for path in (run.path / "code").rglob("*") if path.is_file())]:
        copy = folder / path.relative_to(run.path)
        if path.is_file() and path.absolute() != copy.absolute():
            make_folder(copy.parent)
            _copy(path, copy)
    read: list[score_file.ScoreFile] = [score_file.read_scores(path) for path in scores]
    write_text(folder / CARD, model_card(recipe, checkpoint, read, name=name, licence=licence))
    return [path for path in folder.rglob("*") if path.is_file()]


def _copy(path: Path, copy: Path) -> None:
    def write(temporary: Path) -> None:
        shutil.copyfile(path, temporary)

    write_atomically(copy, write)


def _upload(folder: Path, repository: str, private: bool) -> str:
    """Puts a folder on the hub; its address there."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise UsageError("install what pushes: pip install 'vidssl[hub]'") from None
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        found = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="vidssl push")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UsageError(f"hf:{repository}: cannot be pushed: {' '.join(str(error).split())}") from error
    return str(found)
