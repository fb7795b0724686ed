"""``vidssl push``: a run as a folder that others load, here or on a hub of models."""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.engine.atomic import make_folder, write_atomically, write_text
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.engine.precision import on_meta
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError, counted
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.evaluate.score_file import ScoreFile, read_scores
from vidssl.evaluate.subject import recipe_of
from vidssl.evaluators.fitted import ENDING
from vidssl.interfaces.pretrained import CONFIG, HUB, WEIGHTS, config_of
from vidssl.use.card import model_card

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
        checkpoint = read_checkpoint(find_checkpoint(run))
        recipe = recipe_of(checkpoint, "save its network with Backbone.save_pretrained", trust=trust)
        if not target.startswith(HUB):
            folder = Path(target)
            _check_target(folder)
            written = write_folder(checkpoint, recipe, folder, name=target, licence=licence)
            say(f"Written: {folder} ({counted(len(written), 'file')}). To load it: v.load({target!r})")
            return 0
        repository = target.removeprefix(HUB)
        with tempfile.TemporaryDirectory() as made:
            write_folder(checkpoint, recipe, Path(made), name=target, licence=licence)
            say(f"Pushed: {_upload(Path(made), repository, private)}. To load it: v.load({target!r})")
    return 0


def _check_target(folder: Path) -> None:
    """Refuse to write into a folder that holds anything but a run that was pushed there."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file, not a folder")
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if held and WEIGHTS not in held:
        raise UsageError(f"{folder}: holds other files ({held[0]}): name a new folder, or hf:OWNER/NAME")


def write_folder(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, *, name: str, licence: str
) -> list[Path]:
    """Everything of a run that others need; the files.

    Weights, the network's configuration, recipe, scores and kept probes of this checkpoint, names of classes,
    the recipe's own parts as text, and a card. Not what tells of this machine: environment, lists of videos.
    """
    run = RunFolder.of(checkpoint.path)
    make_folder(folder)
    if checkpoint.path.absolute() != (folder / WEIGHTS).absolute():
        _copy(checkpoint.path, folder / WEIGHTS)
    write_text(folder / "recipe.yaml", checkpoint.recipe)
    if recipe.backbone is not None:
        with on_meta():
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
    read: list[ScoreFile] = [read_scores(path) for path in scores]
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
