"""What a checkpoint holds, as the objects that its recipe describes."""

from collections.abc import Callable

from vidssl import build
from vidssl.engine.checkpoint import Checkpoint, load_objective
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Objective, Tokenizer
from vidssl.recipe import Recipe, recipe_from_text
from vidssl.weights.load import load_whole


def recipe_of(checkpoint: Checkpoint, otherwise: str) -> Recipe:
    """The recipe that a checkpoint carries.

    Args:
        otherwise: what can be done with a checkpoint that was trained without one, for the message.

    Raises:
        UsageError: if it carries none.
    """
    if not checkpoint.recipe:
        raise UsageError(f"{checkpoint.path}: was trained without a recipe; {otherwise}")
    return recipe_from_text(checkpoint.recipe, str(checkpoint.path))


def trained_backbone(recipe: Recipe, checkpoint: Checkpoint) -> Backbone:
    """The backbone with its trained weights, on the CPU."""
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
