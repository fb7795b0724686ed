"""What a checkpoint holds, as the objects that its recipe describes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vidssl import build
from vidssl.engine.checkpoint import Checkpoint, load_objective
from vidssl.engine.own_code import addresses_in, code_in, kept_code, own_run, with_kept_code
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Objective, Tokenizer
from vidssl.recipe import Recipe, overridden, read_recipe
from vidssl.spec import parse
from vidssl.weights.load import check_whole, load_whole


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
    run = checkpoint.path.absolute().parent.parent
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
    node = parse(text, lambda line: f"{file}:{line}")
    recipe = read_recipe(node, folder)
    code = [leaf for tree in recipe.trees for leaf in code_in(tree)]
    addresses = [leaf for tree in recipe.trees for leaf in addresses_in(tree)]
    named = {(leaf.path, str(leaf.value)) for leaf in (*code, *addresses)}
    if not named:
        return read_recipe(overridden(node, overrides), folder)
    own = own_run(text, run)
    if own is None and not trust:
        shown = ", ".join(f"{path}: {value}" for path, value in sorted(named))
        copies = f" Its copies of them lie in {run / 'code'}." if kept_code(run) else ""
        raise UsageError(
            f"{file}: its recipe runs code or fetches from elsewhere ({shown}), and is not one that you "
            f"trained here with these very files; nothing was imported or fetched.{copies} Read what it "
            "names, and add --trust if you trust it"
        )
    return read_recipe(overridden(with_kept_code(node, own or run), overrides), folder)


def trained_backbone(recipe: Recipe, checkpoint: Checkpoint) -> Backbone:
    """The backbone with its trained weights, on the CPU.

    Raises:
        UsageError: if the weights are of another architecture, which is looked at before memory is taken.
    """
    try:
        with torch.device("meta"):
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
