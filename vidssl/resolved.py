"""Specs as text with every default written out: what a run keeps of its recipe."""

from dataclasses import asdict
from pathlib import Path

from vidssl.components import (
    AUGMENT,
    BACKBONE,
    EVALUATOR,
    MASKER,
    OBJECTIVE,
    OPTIMIZER,
    SCHEDULE,
    SOURCE,
    TOKENIZER,
    VIEW_SAMPLER,
    Kind,
    constructor_of,
)
from vidssl.protocol import Protocol
from vidssl.recipe import Recipe, TokenizerSpec
from vidssl.schema import bind
from vidssl.sections import PartSpec, ProbeSpec
from vidssl.spec import dump


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML text, every default written out; it loads to the same recipe."""
    tree: dict[str, object] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "objective": _resolved(recipe.objective, OBJECTIVE),
    }
    if recipe.backbone is not None:
        init = {} if recipe.init is None else {"init": recipe.init}
        tree["backbone"] = _resolved(recipe.backbone, BACKBONE) | init
    if recipe.tokenizer is not None:
        tree["tokenizer"] = _resolved_tokenizer(recipe.tokenizer)
    if recipe.masker is not None:
        tree["masker"] = _resolved(recipe.masker, MASKER)
    tree["data"] = _resolved_data(recipe)
    if recipe.augment is not None:
        tree["augment"] = _resolved(recipe.augment, AUGMENT)
    tree["optim"] = _resolved(recipe.optim, OPTIMIZER)
    tree["schedule"] = _resolved(recipe.schedule, SCHEDULE)
    tree["run"] = asdict(recipe.run)
    return dump(tree)


def protocol_text(protocol: Protocol) -> str:
    """The protocol as YAML text, every default written out."""
    tree: dict[str, object] = {
        "name": protocol.name,
        "evaluator": _resolved(protocol.evaluator, EVALUATOR),
        "layers": protocol.layers,
        "average": protocol.average,
        "frames": protocol.frames,
        "batch_size": protocol.batch_size,
    }
    if protocol.views is not None and protocol.data is None:
        tree["views"] = _resolved(protocol.views, VIEW_SAMPLER)
    if protocol.train_views is not None:
        tree["train_views"] = _resolved(protocol.train_views, VIEW_SAMPLER)
    if protocol.data is not None:
        tree["data"] = _resolved_probe(protocol.data)
    return dump(tree)


def _resolved(part: PartSpec, kind: Kind[object]) -> dict[str, object]:
    return {"type": part.type, **bind(part.node, constructor_of(part, kind), part.apart)}


def _resolved_tokenizer(spec: TokenizerSpec) -> object:
    if spec.name is not None:
        return str(Path(spec.name).resolve()) if Path(spec.name).is_file() else spec.name
    tree, weights = _resolved(spec.part, TOKENIZER), spec.weights
    if weights is None:
        return tree
    tree |= {"weights": str(weights.path), "sha256": weights.sha256}
    tree |= {"source": weights.source, "licence": weights.licence}
    return tree if weights.command is None else tree | {"command": weights.command}


def _resolved_data(recipe: Recipe) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, stream in recipe.data.streams.items():
        test = {} if stream.test_source is None else {"test_source": _resolved(stream.test_source, SOURCE)}
        tree[name] = {
            "source": _resolved(stream.source, SOURCE),
            **test,
            "views": _resolved(stream.views, VIEW_SAMPLER),
            "batch_size": stream.batch_size,
        }
    if recipe.data.probe is not None:
        tree["probe"] = _resolved_probe(recipe.data.probe)
    return tree | {"max_unreadable_share": recipe.data.max_unreadable_share}


def _resolved_probe(probe: ProbeSpec) -> dict[str, object]:
    return {
        "train": _resolved(probe.train, SOURCE),
        "test": _resolved(probe.test, SOURCE),
        "views": _resolved(probe.views, VIEW_SAMPLER),
    }
