"""Networks out of runs, checkpoints, folders and the hub, for use in Python."""

from pathlib import Path

from vidssl.backbones import BACKBONES
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import find_checkpoint
from vidssl.evaluate.subject import recipe_of, trained_backbone, trained_objective
from vidssl.interfaces import Backbone, Objective
from vidssl.interfaces.pretrained import CONFIG, fetched, load_pretrained


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
    checkpoint = read_checkpoint(find_checkpoint(str(folder)))
    recipe = recipe_of(checkpoint, "load its tensors with vidssl.api.read_checkpoint", trust=trust)
    if recipe.backbone is None:
        raise UsageError(
            f"{run}: trained a tokenizer, no network with features: vidssl.api.load_objective(...).encoder()"
        )
    return trained_backbone(recipe, checkpoint).eval()


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
    checkpoint = read_checkpoint(find_checkpoint(str(fetched(run))))
    recipe = recipe_of(checkpoint, "build the objective and load its tensors yourself", trust=trust)
    return trained_objective(recipe, checkpoint, lambda line: None).eval()
