"""Pictures of what goes into a step: views, masks, ids; of a run, or of a recipe before it is trained."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build
from vidssl.build.registry import MASKER, TOKENIZER, constructor_of
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.config.schema import construct
from vidssl.data.loader import Loader
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.engine.precision import on_meta
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.evaluate.subject import home, recipe_of, trained_tokenizer
from vidssl.interfaces import Tokenizer
from vidssl.interfaces.grids import GridSize, common_grid
from vidssl.pictures.clips import Clips, clips_to_show
from vidssl.pictures.drawings import Drawing, masks_drawing, tokens_drawing, views_drawing
from vidssl.pictures.show import refusals_of, save_drawing

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
            clips = clips_to_show(
                recipe, "reconstruction", say, videos=videos, files=files, overrides=overrides
            )
            with refusals_of(recipe.name):
                if what == "masks":
                    drawing = masks_drawing(clips, _masks(recipe, clips), title)
                else:
                    tokenizer = tokenizer or _tokenizer_of(recipe, say)
                    ids = tokenizer.encode(clips.pixels)
                    drawing = tokens_drawing(clips, ids, tokenizer.decode(ids), tokenizer.vocab_size, title)
        for path in save_drawing(drawing, Path(out or folder), f"{what}-{name}", animated=".webp"):
            say(f"Picture: {path}")
    return 0


def _tokenizer_of(recipe: Recipe, say: Say) -> Tokenizer:
    spec = recipe.tokenizer
    made = None if spec is None else build.tokenizer(spec, say=say)
    if spec is None or made is None or (spec.weights is None and made.state_dict()):
        raise UsageError(f"{recipe.name}: there is no trained tokenizer in this recipe")
    return made


def _views(recipe: Recipe, videos: int, title: str) -> Drawing:
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
    return views_drawing(found, title)


def _masks(recipe: Recipe, clips: Clips) -> Tensor:
    """Masks of a few draws on the grid that backbone and tokenizer share: bool [D, B, t, h, w]."""
    if recipe.masker is None or recipe.backbone is None:
        raise UsageError(f"{recipe.name}: nothing is hidden: the recipe has no masker")
    part = recipe.masker
    masker = construct(part.node, constructor_of(part, MASKER), apart=part.apart)
    size: GridSize = (clips.pixels.shape[2], clips.pixels.shape[3], clips.pixels.shape[4])
    ids = None
    with on_meta():
        network = build.backbone(recipe, with_init=False)
        if recipe.tokenizer is not None:
            named = recipe.tokenizer.part
            ids = construct(named.node, constructor_of(named, TOKENIZER), apart=named.apart).grid(*size)
    cells = network.grid(*(ids if network.input_kind == "tokens" and ids is not None else size))
    grid = cells if ids is None else common_grid(cells, ids)
    return torch.stack(
        [masker(len(clips.keys), grid, torch.Generator().manual_seed(draw)) for draw in range(NUM_DRAWS)]
    )
