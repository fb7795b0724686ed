"""Pictures of what a run learned: where its class token looks, and what it predicts where it sees nothing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.build.registry import BACKBONE, OBJECTIVE, Kind, constructor_of, has_ability, names_of
from vidssl.config.files import find, read, spec_files
from vidssl.config.recipe import Recipe
from vidssl.config.schema import PartSpec
from vidssl.engine.atomic import make_folder
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.engine.precision import pick_device
from vidssl.engine.runfolder import named_path, no_run
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.evaluate.subject import home, recipe_of, trained_backbone, trained_objective, trained_tokenizer
from vidssl.interfaces import ClassAttention, FilledPixels, MaskedPrediction, Tokenizer
from vidssl.pictures.clips import Clips, Picture, clips_to_show
from vidssl.pictures.drawings import (
    Drawing,
    attention_drawing,
    filled_drawing,
    prediction_drawing,
    tokenizer_drawing,
)
from vidssl.pictures.pages import animation, save_gif, save_png, save_webp, sheet

ClipsOf = Callable[[Recipe | None], Clips]  # clips to draw of a run, or of no run's tokenizer


def show(
    target: str | None,
    what: Picture,
    *,
    videos: int | None = None,
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: str | None = None,
    trust: bool = False,
    console: Console | None = None,
    keep: Callable[[Path], None] = lambda path: None,
) -> int:
    """Draw pictures of a run, a checkpoint or a tokenizer: a PNG sheet, and for clips a GIF as well.

    Args:
        target: run folder, checkpoint, or name or file of a tokenizer; None for the newest run.
        what: "attention" or "reconstruction".
        videos, files, overrides: as for ``clips_to_show``.
        out: folder for the pictures; None for ``pictures`` in the run's own.
        trust: use code and addresses that the run's recipe names, whoever trained it.
        keep: gets the path of each picture.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or terminal()
    say = partial(print_line, console)
    clips_of = partial(clips_to_show, what=what, say=say, videos=videos, files=files, overrides=overrides)
    with shown_messages(console), torch.no_grad():
        if target is not None and _names_tokenizer(target):
            if what == "attention":
                raise UsageError(f"{target}: a tokenizer has no class token: --what reconstruction")
            tokenizer = build.tokenizer(target, say=say)
            drawing = _tokenizer(tokenizer, None, clips_of, f"{Path(target).stem}: ", target)
            folder, name = Path("pictures"), find("tokenizers", target).stem
        else:
            checkpoint = read_checkpoint(find_checkpoint(target))
            drawing = _of_run(checkpoint, what, trust, clips_of, say)
            folder, name = home(checkpoint) / "pictures", checkpoint.path.stem
        for path in save_drawing(drawing, Path(out or folder), f"{what}-{name}"):
            say(f"Picture: {path}")
            keep(path)
    return 0


def draw_learned(checkpoint: Path, console: Console) -> None:
    """A picture of two videos that shows what a run has learned; none where its parts have none to show.

    It is made on the CPU: the run may still fill the GPU.
    """
    say = partial(print_line, console)
    read = read_checkpoint(checkpoint)
    recipe = recipe_of(read, "", trust=True)
    part = recipe.backbone
    what: Picture = "reconstruction"
    if part is not None and not has_ability(constructor_of(recipe.objective, OBJECTIVE), MaskedPrediction):
        if not has_ability(constructor_of(part, BACKBONE), ClassAttention):
            return
        what = "attention"
    clips_of = partial(clips_to_show, what=what, say=say, videos=2)
    try:
        with torch.no_grad():
            drawing = _of_run(read, what, True, clips_of, say, on_cpu=True)
    except UsageError as error:  # a tokenizer that cannot draw, a clip that is too short: the run is done
        say(f"No picture: {error}")
        return
    path = save_drawing(replace(drawing, moves=False), home(read) / "pictures", f"{what}-{checkpoint.stem}")[
        0
    ]
    say(f"Picture: {path}")


def _names_tokenizer(target: str) -> bool:
    """Whether a word is no run or checkpoint but a tokenizer.

    Raises:
        UsageError: if it is none of them.
    """
    path = named_path(target)
    if path.is_dir() or path.suffix == ".safetensors":
        return False
    try:
        read("tokenizers", target)
    except UsageError:
        known = ", ".join(sorted(spec_files("tokenizers")))
        raise UsageError(f"{no_run(target)}. Tokenizers: {known}") from None
    return True


def save_drawing(drawing: Drawing, folder: Path, name: str, animated: str = ".gif") -> list[Path]:
    """Writes the sheet, and for clips an animation, ".gif" or ".webp"; the files."""
    make_folder(folder, "name another with --out")
    png, moving = folder / f"{name}.png", folder / f"{name}{animated}"
    save_png(sheet(drawing.title, (*drawing.strips, *drawing.details), drawing.legend), png)
    if not drawing.moves:
        return [png]
    (save_gif if animated == ".gif" else save_webp)(animation(drawing.title, drawing.strips), moving)
    return [png, moving]


def drawing_of_run(checkpoint: Checkpoint, what: Picture, *, trust: bool, say: Say, videos: int) -> Drawing:
    """What a run has learned, on held-out videos of its recipe.

    Raises:
        UsageError: if it cannot be drawn, with the reason.
    """
    clips_of = partial(clips_to_show, what=what, say=say, videos=videos)
    with torch.no_grad():
        return _of_run(checkpoint, what, trust, clips_of, say)


def _of_run(
    checkpoint: Checkpoint, what: Picture, trust: bool, clips_of: ClipsOf, say: Say, *, on_cpu: bool = False
) -> Drawing:
    without = "without one its parts and data are not known, and nothing can be drawn"
    recipe = recipe_of(checkpoint, without, trust=trust)
    if on_cpu:
        recipe = replace(recipe, run=replace(recipe.run, device="cpu"))
    title, owner = f"{recipe.name}, step {checkpoint.step}: ", str(checkpoint.path)
    device = pick_device(recipe.run.device)
    if recipe.backbone is None:
        if what == "attention":
            raise UsageError(f"{owner}: this run trained a tokenizer, which has no class token")
        return _tokenizer(trained_tokenizer(recipe, checkpoint), recipe, clips_of, title, owner)
    if what == "attention":
        _require(recipe.backbone, BACKBONE, ClassAttention, "does not expose its class token's attention")
        network = trained_backbone(recipe, checkpoint)
        assert isinstance(network, ClassAttention), "its class was looked at"
        clips = clips_of(recipe)
        network.to(device).eval()
        with refusals_of(owner):
            weights = network.class_attention(clips.pixels.to(device))
        return attention_drawing(clips, weights.float().cpu(), title)
    _require(recipe.objective, OBJECTIVE, MaskedPrediction, "predicts nothing that is hidden")
    objective = trained_objective(recipe, checkpoint, say)
    assert isinstance(objective, MaskedPrediction), "its class was looked at"
    clips = clips_of(recipe)
    objective.to(device).eval()
    with refusals_of(owner):
        filled = objective.fill_in(clips.pixels.to(device), torch.Generator().manual_seed(0))
        if isinstance(filled, FilledPixels):
            return filled_drawing(clips, filled, title)
        assert recipe.tokenizer is not None, "without one there are no ids to predict"
        # printed for the objective's already
        tokenizer = build.tokenizer(recipe.tokenizer, say=lambda said: None).to(device)
        return prediction_drawing(clips, filled, tokenizer, title)


def _tokenizer(
    tokenizer: Tokenizer, recipe: Recipe | None, clips_of: ClipsOf, title: str, owner: str
) -> Drawing:
    device = pick_device("auto" if recipe is None else recipe.run.device)
    clips = clips_of(recipe)
    tokenizer.to(device)
    with refusals_of(owner):
        ids = tokenizer.encode(clips.pixels.to(device))
        return tokenizer_drawing(clips, tokenizer.decode(ids).cpu(), title)


def _require(part: PartSpec, kind: Kind[object], ability: type, lacks: str) -> None:
    """Refuses a component whose class lacks an ability, with the names of those that have it."""
    if not has_ability(constructor_of(part, kind), ability):
        raise part.node.error(f"{kind.word} '{part.type}' {lacks}; these do: {names_of(kind, ability)}")


@contextmanager
def refusals_of(owner: str) -> Iterator[None]:
    """Raise the ValueError of a part (a size, a missing decoder) as an error of the file it came from."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{owner}: {error}") from error
