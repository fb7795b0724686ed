"""Pictures of what goes into a step (views, masks, ids) and of what was learned (attention, predictions)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build, registry
from vidssl.config.files import find, read, spec_files
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.config.schema import PartSpec, construct
from vidssl.data.loader import Loader
from vidssl.engine import process, runfolder, speed
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.evaluate.subject import home, recipe_of, trained_backbone, trained_objective, trained_tokenizer
from vidssl.interfaces import ClassAttention, FilledPixels, MaskedPrediction, Tokenizer
from vidssl.interfaces.grids import GridSize, common_grid
from vidssl.pictures import drawings, pages
from vidssl.pictures.clips import Clips, Picture, clips_to_show

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
    """Draw pictures of a run, a checkpoint or a tokenizer: a PNG sheet, and for clips an animated WebP too.

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
        for path in save_drawing(drawing, Path(out or folder), f"{what}-{name}{_of(files, overrides, out)}"):
            say(f"Picture: {path}")
            keep(path)
    return 0


def _of(files: Sequence[str], overrides: Sequence[str], out: str | None) -> str:
    """The end of a picture's name, where it shows other videos than the run's own and lies beside those."""
    others = [Path(file).stem for file in files[:1]] or [w[:4] for w in overrides if w.startswith("data")][:1]
    return f"-{others[0]}" if others and out is None else ""


def draw_learned(checkpoint: Path, console: Console) -> None:
    """A picture of two videos that shows what a run has learned; none where its parts have none to show.

    It is made on the CPU: the run may still fill the GPU.
    """
    say = partial(print_line, console)
    read = read_checkpoint(checkpoint)
    recipe = recipe_of(read, "", trust=True)
    part = recipe.backbone
    what: Picture = "reconstruction"
    if part is not None and not registry.has_ability(
        registry.constructor_of(recipe.objective, registry.OBJECTIVE), MaskedPrediction
    ):
        if not registry.has_ability(registry.constructor_of(part, registry.BACKBONE), ClassAttention):
            return
        what = "attention"
    clips_of = partial(clips_to_show, what=what, say=say, videos=2)
    try:
        with torch.no_grad():
            drawing = _of_run(read, what, True, clips_of, say, on_cpu=True)
    except UsageError as error:  # a tokenizer that cannot draw, a clip that is too short: the run is done
        say(f"No picture: {error}")
        return
    folder = home(read) / "pictures"
    (path,) = save_drawing(replace(drawing, moves=False), folder, f"{what}-{checkpoint.stem}")
    say(f"Picture: {path}")


def _names_tokenizer(target: str) -> bool:
    """Whether a word is no run or checkpoint but a tokenizer.

    Raises:
        UsageError: if it is none of them.
    """
    path = runfolder.named_path(target)
    if path.is_dir() or path.suffix == ".safetensors":
        return False
    try:
        read("tokenizers", target)
    except UsageError:
        known = ", ".join(sorted(spec_files("tokenizers")))
        raise UsageError(f"{runfolder.no_run(target)}. Tokenizers: {known}") from None
    return True


def save_drawing(drawing: drawings.Drawing, folder: Path, name: str) -> list[Path]:
    """Writes the sheet, and for clips an animation; the files."""
    process.make_folder(folder, "name another with --out")
    png, moving = folder / f"{name}.png", folder / f"{name}.webp"
    pages.save_png(pages.sheet(drawing.title, (*drawing.strips, *drawing.details), drawing.legend), png)
    if not drawing.moves:
        return [png]
    pages.save_webp(pages.animation(drawing.title, drawing.strips), moving)
    return [png, moving]


def drawing_of_run(
    checkpoint: Checkpoint, what: Picture, *, trust: bool, say: Say, videos: int
) -> drawings.Drawing:
    """What a run has learned, on held-out videos of its recipe.

    Raises:
        UsageError: if it cannot be drawn, with the reason.
    """
    clips_of = partial(clips_to_show, what=what, say=say, videos=videos)
    with torch.no_grad():
        return _of_run(checkpoint, what, trust, clips_of, say)


def _of_run(
    checkpoint: Checkpoint, what: Picture, trust: bool, clips_of: ClipsOf, say: Say, *, on_cpu: bool = False
) -> drawings.Drawing:
    without = "without one its parts and data are not known, and nothing can be drawn"
    recipe = recipe_of(checkpoint, without, trust=trust)
    if on_cpu:
        recipe = replace(recipe, run=replace(recipe.run, device="cpu"))
    title, owner = f"{recipe.name}, step {checkpoint.step}: ", str(checkpoint.path)
    device = speed.pick_device(recipe.run.device)
    if recipe.backbone is None:
        if what == "attention":
            raise UsageError(f"{owner}: this run trained a tokenizer, which has no class token")
        return _tokenizer(trained_tokenizer(recipe, checkpoint), recipe, clips_of, title, owner)
    if what == "attention":
        _require(
            recipe.backbone, registry.BACKBONE, ClassAttention, "does not expose its class token's attention"
        )
        network = trained_backbone(recipe, checkpoint)
        assert isinstance(network, ClassAttention), "its class was looked at"
        clips = clips_of(recipe)
        network.to(device).eval()
        with refusals_of(owner):
            weights = network.class_attention(clips.pixels.to(device))
        return drawings.attention_drawing(clips, weights.float().cpu(), title)
    _require(recipe.objective, registry.OBJECTIVE, MaskedPrediction, "predicts nothing that is hidden")
    objective = trained_objective(recipe, checkpoint, say)
    assert isinstance(objective, MaskedPrediction), "its class was looked at"
    clips = clips_of(recipe)
    objective.to(device).eval()
    with refusals_of(owner):
        filled = objective.fill_in(clips.pixels.to(device), torch.Generator().manual_seed(0))
        if isinstance(filled, FilledPixels):
            return drawings.filled_drawing(clips, filled, title)
        assert recipe.tokenizer is not None, "without one there are no ids to predict"
        # printed for the objective's already
        tokenizer = build.tokenizer(recipe.tokenizer, say=lambda said: None).to(device)
        return drawings.prediction_drawing(clips, filled, tokenizer, title)


def _tokenizer(
    tokenizer: Tokenizer, recipe: Recipe | None, clips_of: ClipsOf, title: str, owner: str
) -> drawings.Drawing:
    device = speed.pick_device("auto" if recipe is None else recipe.run.device)
    clips = clips_of(recipe)
    tokenizer.to(device)
    with refusals_of(owner):
        ids = tokenizer.encode(clips.pixels.to(device))
        return drawings.tokenizer_drawing(clips, tokenizer.decode(ids).cpu(), title)


def _require(part: PartSpec, kind: registry.Kind[object], ability: type, lacks: str) -> None:
    """Refuses a component whose class lacks an ability, with the names of those that have it."""
    if not registry.has_ability(registry.constructor_of(part, kind), ability):
        raise part.node.error(
            f"{kind.word} '{part.type}' {lacks}; these do: {registry.names_of(kind, ability)}"
        )


@contextmanager
def refusals_of(owner: str) -> Iterator[None]:
    """Raise the ValueError of a part (a size, a missing decoder) as an error of the file it came from."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{owner}: {error}") from error


Part = Literal["views", "masks", "tokens"]
NUM_VIDEOS, NUM_DRAWS = 2, 3


def show_part(
    target: str | None,
    what: Part,
    *,
    videos: int | None = None,
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
    out: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Draw what goes into a step of a run or recipe: a PNG sheet, and for clips an animated WebP as well.

    Args:
        target: run folder or checkpoint, or a recipe's name or file; None for the newest run.
        what: "views" as they were cut and augmented, "masks" over clips, "tokens" of the tokenizer.
        files, overrides: videos other than the recipe's, as for ``clips_to_show``; not for views.
        out: folder for the pictures; None for ``pictures`` in the run's own, or in the working folder.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or terminal()
    say = partial(print_line, console)
    with shown_messages(console), torch.no_grad():
        if target is None or Path(target).is_dir() or target.endswith(".safetensors"):
            checkpoint = read_checkpoint(find_checkpoint(target))
            recipe = recipe_of(checkpoint, "without one its parts are not known", trust=trust)
            folder, name = home(checkpoint) / "pictures", checkpoint.path.stem
            tokenizer = trained_tokenizer(recipe, checkpoint) if recipe.backbone is None else None
        else:
            recipe, tokenizer = load_recipe(target), None
            build.check(recipe)
            folder, name = Path("pictures"), recipe.name.replace("/", "-")
        title = f"{recipe.name}: "
        if what == "views":
            if files or overrides:
                raise UsageError("--what views shows the training videos: leave out --video, data and views")
            drawing = _views(recipe, videos or NUM_VIDEOS, title)
        else:
            clips = clips_to_show(recipe, what, say, videos=videos, files=files, overrides=overrides)
            with refusals_of(recipe.name):
                if what == "masks":
                    drawing = drawings.masks_drawing(clips, _masks(recipe, clips), title)
                else:
                    tokenizer = tokenizer or _tokenizer_of(recipe, say)
                    ids = tokenizer.encode(clips.pixels)
                    drawing = drawings.tokens_drawing(
                        clips, ids, tokenizer.decode(ids), tokenizer.vocab_size, title
                    )
        name = f"{what}-{name}{_of(files, overrides, out)}"
        for path in save_drawing(drawing, Path(out or folder), name):
            say(f"Picture: {path}")
    return 0


def _tokenizer_of(recipe: Recipe, say: Say) -> Tokenizer:
    spec = recipe.tokenizer
    made = None if spec is None else build.tokenizer(spec, say=say)
    if spec is None or made is None or (spec.weights is None and made.state_dict()):
        raise UsageError(f"{recipe.name}: there is no trained tokenizer in this recipe")
    return made


def _views(recipe: Recipe, videos: int, title: str) -> drawings.Drawing:
    """The first training videos of the first step, as they are cut and augmented."""
    streams = build.streams(recipe)
    few = {
        name: replace(stream, batch_size=max(videos, 1 + stream.distinct), workers=0, samples_per_decode=1)
        for name, stream in streams.items()
    }
    with Loader(few) as loader:
        batch = next(loader).to(torch.device("cpu"))
    augment = build.augment(recipe)
    changed = batch if augment is None else augment(batch, torch.Generator().manual_seed(recipe.seed))
    found = []
    for name, stream in few.items():
        keys = [stream.source.key(number) for number in batch.indices[name].tolist()]
        for place, key in enumerate(keys[:videos]):
            for view in stream.views.shapes:
                both = zip(batch.views[view], changed.views[view], strict=True)
                several = len(batch.views[view]) > 1
                for slot, (cut, augmented) in enumerate(both, 1):
                    called = f"{view} {slot}" if several else view
                    found.append((key, called, cut[place], augmented[place]))
    return drawings.views_drawing(found, title)


def _masks(recipe: Recipe, clips: Clips) -> Tensor:
    """Masks of a few draws on the grid that backbone and tokenizer share: bool [D, B, t, h, w]."""
    if recipe.masker is None or recipe.backbone is None:
        raise UsageError(f"{recipe.name}: nothing is hidden: the recipe has no masker")
    part = recipe.masker
    masker = construct(part.node, registry.constructor_of(part, registry.MASKER), apart=part.apart)
    size: GridSize = (clips.pixels.shape[2], clips.pixels.shape[3], clips.pixels.shape[4])
    ids = None
    with speed.on_meta():
        network = build.backbone(recipe, with_init=False)
        if recipe.tokenizer is not None:
            named = recipe.tokenizer.part
            ids = construct(
                named.node, registry.constructor_of(named, registry.TOKENIZER), apart=named.apart
            ).grid(*size)
    cells = network.grid(*(ids if network.input_kind == "tokens" and ids is not None else size))
    grid = cells if ids is None else common_grid(cells, ids)
    return torch.stack(
        [masker(len(clips.keys), grid, torch.Generator().manual_seed(draw)) for draw in range(NUM_DRAWS)]
    )
