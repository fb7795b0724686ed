"""Specs as text with every default written out: what a run keeps of its recipe."""

from dataclasses import asdict
from pathlib import Path

from vidssl.build.checks import objective_keys
from vidssl.build.registry import (
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
from vidssl.config.few_labels import FewLabels, Subset
from vidssl.config.protocol import FinetuneProtocol, PatchType, Protocol
from vidssl.config.recipe import MIN_MATCHED, Recipe, TokenizerSpec
from vidssl.config.schema import PartSpec, ProbeSpec, bind
from vidssl.config.strict_yaml import dump, plain
from vidssl.interfaces import PatchEvaluator


def resolved_text(recipe: Recipe) -> str:
    """The recipe as YAML text, every default written out; it loads to the same recipe."""
    tree: dict[str, object] = {
        "name": recipe.name,
        "seed": recipe.seed,
        "objective": resolved_part(recipe.objective, OBJECTIVE),
    }
    if recipe.backbone is not None:
        init: dict[str, object] = {} if recipe.init is None else {"init": recipe.init}
        if recipe.init is not None and recipe.init_min_matched != MIN_MATCHED:
            init["init_min_matched"] = recipe.init_min_matched
        if recipe.init_window is not None:
            init["init_window"] = recipe.init_window
        tree["backbone"] = resolved_part(recipe.backbone, BACKBONE) | init
    if recipe.tokenizer is not None:
        tree["tokenizer"] = _resolved_tokenizer(recipe.tokenizer)
    if recipe.masker is not None:
        tree["masker"] = resolved_part(recipe.masker, MASKER)
    tree["data"] = _resolved_data(recipe)
    if recipe.augment is not None:
        tree["augment"] = resolved_part(recipe.augment, AUGMENT)
    tree["optim"] = resolved_part(recipe.optim, OPTIMIZER)
    tree["schedule"] = resolved_part(recipe.schedule, SCHEDULE)
    tree["run"] = asdict(recipe.run)
    return dump(tree)


def protocol_text(protocol: Protocol | FinetuneProtocol) -> str:
    """The protocol as YAML text, every default written out."""
    if isinstance(protocol, FinetuneProtocol):
        return dump(_resolved_finetune(protocol))
    tree: dict[str, object] = {
        "name": protocol.name,
        "evaluator": resolved_part(protocol.evaluator, EVALUATOR),
        "layers": protocol.layers,
        "average": protocol.average,
        "frames": protocol.frames,
        "batch_size": protocol.batch_size,
    }
    patches = patch_type(protocol)
    if patches is not None:
        tree["patches"] = patches
    if protocol.few_labels is not None:
        tree["few_labels"] = given_keys(protocol.few_labels)
    if protocol.overlap == "allow":
        tree["overlap"] = protocol.overlap
    if protocol.views is not None and protocol.data is None:
        tree["views"] = resolved_part(protocol.views, VIEW_SAMPLER)
    if protocol.train_views is not None:
        tree["train_views"] = resolved_part(protocol.train_views, VIEW_SAMPLER)
    if protocol.data is not None:
        tree["data"] = _resolved_probe(protocol.data)
    return dump(tree)


def patch_type(protocol: Protocol) -> PatchType | None:
    """How patch tokens are kept for a protocol; None where its evaluator reads none."""
    made = constructor_of(protocol.evaluator, EVALUATOR)
    reads = isinstance(made, type) and issubclass(made, PatchEvaluator)
    return (protocol.patches or "float16") if reads else None


def given_keys(section: FewLabels | Subset) -> dict[str, object]:
    """Its keys, but for the one of two that was not given."""
    return {key: value for key, value in asdict(section).items() if value is not None}


def _resolved_finetune(protocol: FinetuneProtocol) -> dict[str, object]:
    """All but what the run that is finetuned decides: its backbone's other keys, and how it runs."""
    tree: dict[str, object] = {
        "name": protocol.name,
        "objective": {"type": protocol.objective.type, **objective_keys(protocol)},
        "train_views": resolved_part(protocol.train_views, VIEW_SAMPLER),
        "batch_size": plain(protocol.batch_size),
        "optim": resolved_part(protocol.optim, OPTIMIZER),
        "schedule": resolved_part(protocol.schedule, SCHEDULE),
    }
    if protocol.augment is not None:
        tree["augment"] = resolved_part(protocol.augment, AUGMENT)
    for key, section in (("backbone", protocol.backbone), ("run", protocol.run)):
        tree[key] = {name: plain(entry) for name, entry in section.items()}
    tree |= {"average": protocol.average, "frames": protocol.frames}
    tree |= {"seed": protocol.seed, "labels": protocol.labels}
    tree |= {"test_batch_size": protocol.test_batch_size, "compare_untrained": protocol.compare_untrained}
    if protocol.few_labels is not None:
        tree["few_labels"] = given_keys(protocol.few_labels)
    if protocol.overlap == "allow":
        tree["overlap"] = protocol.overlap
    if protocol.data is not None:
        tree["data"] = _resolved_probe(protocol.data)
    return tree


def resolved_part(part: PartSpec, kind: Kind[object]) -> dict[str, object]:
    """A component's type and all of its keys, defaults too."""
    return {"type": part.type, **bind(part.node, constructor_of(part, kind), part.apart)}


def _resolved_tokenizer(spec: TokenizerSpec) -> object:
    if spec.name is not None:
        return str(Path(spec.name).resolve()) if Path(spec.name).is_file() else spec.name
    tree, weights = resolved_part(spec.part, TOKENIZER), spec.weights
    if weights is None:
        return tree
    tree |= {"weights": str(weights.path), "sha256": weights.sha256}
    tree |= {"source": weights.source, "licence": weights.licence}
    return tree if weights.command is None else tree | {"command": weights.command}


def _resolved_data(recipe: Recipe) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, stream in recipe.data.streams.items():
        test = (
            {} if stream.test_source is None else {"test_source": resolved_part(stream.test_source, SOURCE)}
        )
        subset = {} if stream.subset is None else {"subset": given_keys(stream.subset)}
        tree[name] = {
            "source": resolved_part(stream.source, SOURCE),
            **test,
            **subset,
            "views": resolved_part(stream.views, VIEW_SAMPLER),
            "batch_size": stream.batch_size,
        }
    if recipe.data.probe is not None:
        tree["probe"] = _resolved_probe(recipe.data.probe)
    return tree | {"max_unreadable_share": recipe.data.max_unreadable_share}


def _resolved_probe(probe: ProbeSpec) -> dict[str, object]:
    return {
        "train": resolved_part(probe.train, SOURCE),
        "test": resolved_part(probe.test, SOURCE),
        "views": resolved_part(probe.views, VIEW_SAMPLER),
    }
