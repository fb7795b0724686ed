"""From specs to objects. The one module that sees every kind of component at once.

Whatever is wrong with a spec raises a ``UsageError`` with its place.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from vidssl.build import checks, part_checks, registry
from vidssl.build.checks import check_go_together, check_reads_ids, check_stored, check_stored_views
from vidssl.config import files, grid, protocol as protocols, published
from vidssl.config.recipe import (
    STREAMS,
    UNKNOWN_SHA256,
    Recipe,
    TokenizerSpec,
    WeightsSpec,
    load_recipe,
    load_tokenizer_spec,
)
from vidssl.config.schema import PartSpec, ProbeSpec, bind, construct, keys_of, parts_of
from vidssl.data.loader import Stream
from vidssl.data.sources.datasets import balanced, labelled_subset
from vidssl.data.views.stored import StoredViews
from vidssl.engine import checkpoint, runfolder, schedules, speed
from vidssl.engine.logging import Say, check_trackers
from vidssl.engine.optim import Optim
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, DataSource, Evaluator, Objective, Tokenizer, ViewSampler
from vidssl.weights.load import check_init, load_init, load_rest, load_whole, read_weights


def objective(recipe: Recipe, say: Say = print, *, with_init: bool = True) -> Objective:
    """The objective of a recipe with its parts, on the CPU; backbone and the rest start from their ``init``.

    Args:
        say: gets a line on what each ``init`` loaded.
        with_init: off for a run that resumes, whose weights are its own.

    Raises:
        UsageError: if the parts do not fit, or weights are missing or altered.
    """
    made_tokenizer = None if recipe.tokenizer is None else tokenizer(recipe.tokenizer, say=say)
    made_backbone = None if recipe.backbone is None else backbone(recipe, with_init=with_init, say=say)
    made = _assemble(recipe, made_backbone, made_tokenizer, _maskers(recipe))
    if with_init and recipe.rest_init is not None:
        with recipe.objective.node.mapping()["init"].located():
            report = load_rest(made, recipe.rest_init)
            if recipe.start.init is not None:  # what the backbone's report has told is not new
                told = tuple(
                    checkpoint.prefix_of(part, made) for part in (made.encoder(), made.trained_encoder())
                )
                report = replace(report, new=tuple(k for k in report.new if not k.startswith(told)))
            say(f"objective: {report}")
    return made


def untrained(recipe: Recipe) -> Objective:
    """The objective with random weights everywhere, also where the recipe names some.

    What a step costs does not depend on them. Under ``on_meta`` there are shapes alone.
    """
    return _assemble(
        recipe, _optional(recipe.backbone, registry.BACKBONE), _bare_tokenizer(recipe), _maskers(recipe)
    )


def backbone(recipe: Recipe, *, with_init: bool = True, say: Say = print) -> Backbone:
    """The backbone of a recipe.

    Args:
        with_init: start it from ``backbone.init`` where the recipe has that.
        say: gets what was loaded, or that the weights are random.

    Raises:
        UsageError: if the recipe has none, its keys are wrong, or ``init`` cannot be loaded.
    """
    if recipe.backbone is None:
        raise recipe.node.error("missing 'backbone'")
    made = _construct(recipe.backbone, registry.BACKBONE)
    if with_init and recipe.start.init is None:
        say(f"backbone: {recipe.backbone.type} starts from RANDOM weights ('backbone.init' names others)")
    elif with_init and recipe.start.init is not None:
        with recipe.backbone.node.mapping()["init"].located():
            report = load_init(
                made,
                recipe.start.init,
                min_matched=recipe.start.init_min_matched,
                window=recipe.start.init_window,
                given=_stated_keys(recipe.backbone),
            )
        say(str(report))
    return made


def _stated_keys(part: PartSpec) -> set[str]:
    """Keys that a section states, and those that have no default to fall back on or do not exist."""
    keys = keys_of(registry.constructor_of(part, registry.BACKBONE))
    return {key for key in ("mean", "std", "num_heads") if key not in keys} | set(part.node.mapping())


def tokenizer(spec: TokenizerSpec | Path | str, *, say: Say = print) -> Tokenizer:
    """A tokenizer with its weights, frozen and in eval mode; one without weights is there to be trained.

    Args:
        spec: a recipe's, or the name or path of a file in ``tokenizers``.
        say: gets one line if the weights could not be verified, for want of a digest to compare with.

    Raises:
        UsageError: if the weights file is missing, altered or of another architecture.
    """
    spec = load_tokenizer_spec(str(spec)) if isinstance(spec, (str, Path)) else spec
    if spec.weights is None:
        return _construct(spec.part, registry.TOKENIZER)
    state = _verified(spec.weights, say)
    made = _construct(spec.part, registry.TOKENIZER)
    load_whole(made, state, spec.weights.path)
    path = Path(spec.name or "")
    made.named = str(path.resolve()) if path.is_file() else spec.name
    return made.requires_grad_(False).eval()


def _verified(weights: WeightsSpec, say: Say) -> Mapping[str, torch.Tensor]:
    origin, at = _origin(weights), weights.node.mapping()["weights"]
    try:
        content = weights.path.read_bytes()
    except OSError as error:
        raise at.error(f"{weights.path}: {error.strerror}. {origin}") from None
    digest = hashlib.sha256(content).hexdigest()
    if weights.sha256 == UNKNOWN_SHA256:
        say(
            f"{weights.path}: NOT VERIFIED, its tokenizer file does not know the sha256 that it should have. "
            f"If you trust this file, write there: sha256: {digest}"
        )
    elif digest != weights.sha256:
        raise at.error(
            f"{weights.path}: the file was altered, its sha256 is {digest} and not {weights.sha256}. {origin}"
        )
    return read_weights(weights.path)


def _origin(weights: WeightsSpec) -> str:
    made = f". They are made by: {weights.command}" if weights.command else ""
    return f"The weights come from: {weights.source} (licence: {weights.licence}){made}"


def streams(recipe: Recipe) -> dict[str, Stream]:
    """The training streams of a recipe; opens its data."""
    return {
        name: _stream(recipe, name, stream.source, recipe.seed)
        for name, stream in recipe.data.streams.items()
    }


def test_streams(recipe: Recipe) -> dict[str, Stream]:
    """The held-out streams of a recipe, the same for every seed; empty if it has none."""
    return {
        name: _stream(recipe, name, stream.test_source, seed=0)
        for name, stream in recipe.data.streams.items()
        if stream.test_source is not None
    }


def _stream(recipe: Recipe, name: str, part: PartSpec, seed: int) -> Stream:
    spec = recipe.data.streams[name]
    opened, sampler = source(part), views(spec.views)
    checks.check_label(recipe, opened.label_classes)
    check_stored(recipe.tokenizer, part, spec.views, opened, sampler)
    if spec.subset is not None and part is spec.source:
        opened = labelled_subset(opened, spec.subset)
    if spec.balance is not None and part is spec.source:
        opened = balanced(opened, spec.balance)
    return Stream(
        source=opened,
        views=sampler,
        batch_size=spec.batch_size,
        samples_per_decode=spec.samples_per_decode if part is spec.source else 1,
        # streams over one source must not walk it in step
        seed=seed * len(STREAMS) + STREAMS.index(name),
        workers=recipe.run.workers,
        max_unreadable_share=recipe.data.max_unreadable_share,
    )


def network(part: PartSpec) -> Backbone:
    """A backbone with fresh weights, drawn from torch's global generator."""
    return _construct(part, registry.BACKBONE)


def source(part: PartSpec) -> DataSource:
    """A data source; looks at its files."""
    return _construct(part, registry.SOURCE)


def views(part: PartSpec) -> ViewSampler:
    """A view sampler."""
    return _construct(part, registry.VIEW_SAMPLER)


def optim(recipe: Recipe) -> Optim:
    """The optimizer's settings."""
    return _construct(recipe.optim, registry.OPTIMIZER)


def schedule(recipe: Recipe) -> schedules.Schedule:
    """The schedule."""
    made = _construct(recipe.schedule, registry.SCHEDULE)
    checks.check_epochs(recipe, made)
    return made


def evaluator(part: PartSpec) -> Evaluator:
    """An evaluator."""
    return _construct(part, registry.EVALUATOR)


def augment(recipe: Recipe) -> registry.Augment | None:
    """The augmentation of every batch on the training device; None for none."""
    return _optional(recipe.augment, registry.AUGMENT)


def _optional(part: PartSpec | None, kind: registry.Kind[registry.Component]) -> registry.Component | None:
    return None if part is None else _construct(part, kind)


def _bare_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of a recipe without its weights."""
    return None if recipe.tokenizer is None else _construct(recipe.tokenizer.part, registry.TOKENIZER)


def _maskers(recipe: Recipe) -> checks.Maskers:
    """The masker of the input and that of the decoder."""
    return _optional(recipe.masker, registry.MASKER), _optional(recipe.decoder_masker, registry.MASKER)


def _construct(part: PartSpec, kind: registry.Kind[registry.Component], *parts: object) -> registry.Component:
    def make() -> registry.Component:
        return construct(part.node, registry.constructor_of(part, kind), *parts, apart=part.apart)

    try:
        return part_checks.attempted(part.type, "__init__", make) if _is_own(part) else make()
    except UsageError:
        raise
    except ValueError as error:
        raise part.node.error(str(error)) from error


def _assemble(
    recipe: Recipe, backbone: Backbone | None, tokenizer: Tokenizer | None, maskers: checks.Maskers
) -> Objective:
    masker, decoder_masker = maskers
    made = {"backbone": backbone, "tokenizer": tokenizer, "masker": masker, "decoder_masker": decoder_masker}
    takes = parts_of(registry.constructor_of(recipe.objective, registry.OBJECTIVE))
    checks.check_sections(recipe, takes)
    checks.check_inputs(recipe, takes, backbone, tokenizer, maskers)  # first: it names parts that would do
    objective = _construct(recipe.objective, registry.OBJECTIVE, *(made[name] for name in takes))
    checks.check_tokenizer(recipe, objective, tokenizer)
    return objective


# What follows needs neither data, weights nor a GPU.


def check(recipe: Recipe) -> None:
    """Builds a recipe on the meta device and checks that its parts fit each other."""
    samplers = {name: views(stream.views) for name, stream in recipe.data.streams.items()}
    shapes = {name: sampler.shapes for name, sampler in samplers.items()}
    for stream in recipe.data.streams.values():
        _check_keys(stream.source, registry.SOURCE)
        if stream.test_source is not None:
            _check_keys(stream.test_source, registry.SOURCE)
    if recipe.data.probe is not None:
        _check_probe(recipe.data.probe)
    checks.check_streams(recipe)
    checks.check_label(recipe, {})
    update = optim(recipe).update
    schedule(recipe)
    _check_augment(recipe, shapes)
    maskers = _maskers(recipe)
    _try_parts(recipe, shapes)
    with speed.on_meta():
        bare_tokenizer, bare_backbone = _bare_tokenizer(recipe), _optional(recipe.backbone, registry.BACKBONE)
        objective = _assemble(recipe, bare_backbone, bare_tokenizer, maskers)
    with recipe.objective.node.located():
        part_checks.check_declared(objective)
    checks.check_groups(recipe, objective, update)
    checks.check_monitor(recipe, objective.encoder())
    checks.check_speed(recipe, objective)
    checks.check_batches(recipe, objective)
    for name, sampler in samplers.items():
        check_stored_views(recipe, name, sampler, bare_backbone)
    if recipe.data.probe is not None and recipe.backbone is not None and bare_backbone is not None:
        probed = views(recipe.data.probe.views)
        check_reads_ids(bare_backbone, recipe.backbone.type, "data.probe", probed, recipe.backbone.node)
    checks.check_views(recipe, objective, shapes)
    checks.check_grids(recipe, shapes, bare_backbone, bare_tokenizer, maskers)
    if _is_own(recipe.objective) and not any(isinstance(each, StoredViews) for each in samplers.values()):
        _try_objective(recipe, shapes)


# Parts of this package are run by its tests, and take minutes at paper scale: only a user's own are tried.


def _is_own(part: PartSpec | None) -> bool:
    return part is not None and ".py:" in part.type


def _try_parts(recipe: Recipe, shapes: part_checks.StreamShapes) -> None:
    """Runs a user's own tokenizer and backbone on two random clips, and on images where there are such."""
    own_tokenizer = recipe.tokenizer is not None and _is_own(recipe.tokenizer.part)
    if not own_tokenizer and not _is_own(recipe.backbone):
        return
    by_size = sorted(checks.sizes_of(shapes), key=math.prod, reverse=True)
    smallest = {size[0] == 1: size for size in by_size}.values()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        tokenizer = _bare_tokenizer(recipe)
        if recipe.tokenizer is not None and tokenizer is not None and own_tokenizer:
            with recipe.tokenizer.node.located():
                for size in smallest:
                    part_checks.try_tokenizer(tokenizer, size)
        if recipe.backbone is not None and _is_own(recipe.backbone):
            net = _construct(recipe.backbone, registry.BACKBONE)
            ids_of = tokenizer if net.input_kind == "tokens" else None
            with recipe.backbone.node.located():
                for size in smallest:
                    part_checks.try_backbone(net, size if ids_of is None else ids_of.grid(*size))


def _try_objective(recipe: Recipe, shapes: part_checks.StreamShapes) -> None:
    """Takes a step with a user's own objective and the recipe's parts, fresh, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        objective = untrained(recipe)
        batch_size = max(stream.batch_size for stream in recipe.data.streams.values())
        with recipe.objective.node.located():
            part_checks.try_objective(objective, shapes, batch_size=batch_size)


def check_ready(recipe: Recipe, *, with_init: bool) -> None:
    """Check, before data are opened, that there is what a training takes besides them; reads no weights.

    Args:
        with_init: off for a run that resumes.

    Raises:
        UsageError: if the device, a tracker's package or a file of weights is missing.
    """
    speed.pick_device(recipe.run.device)
    check_trackers(recipe.run.trackers)
    weights = None if recipe.tokenizer is None else recipe.tokenizer.weights
    if weights is not None and not weights.path.is_file():
        raise weights.node.mapping()["weights"].error(f"{weights.path}: no such file. {_origin(weights)}")
    if with_init and recipe.start.init is not None and recipe.backbone is not None:
        with recipe.backbone.node.mapping()["init"].located():
            check_init(recipe.start.init)
    if with_init and recipe.rest_init is not None:
        with recipe.objective.node.mapping()["init"].located():
            check_init(recipe.rest_init)


def _check_augment(recipe: Recipe, shapes: part_checks.StreamShapes) -> None:
    """Lets the augmentation act on one black clip of each slot: it may name views that there are not."""
    act = augment(recipe)
    if act is None or recipe.augment is None:
        return
    slots = {view: len(given) for stream in shapes.values() for view, given in stream.items()}
    black = {view: (torch.zeros(1, 3, 1, 32, 32),) * count for view, count in slots.items()}
    with recipe.augment.node.located():
        act(Batch(black), torch.Generator().manual_seed(0))


def check_protocol(protocol: protocols.Protocol) -> None:
    """Checks the parts of a protocol."""
    made = evaluator(protocol.evaluator)
    if _is_own(protocol.evaluator):
        with protocol.evaluator.node.located(), torch.random.fork_rng(devices=[]):
            part_checks.try_evaluator(made)
    checks.check_patches(protocol, made)
    if made.score_kind == "found" and protocol.average != "features":
        raise protocol.node.mapping()["average"].error(
            f"evaluator '{protocol.evaluator.type}' reports what was found, which has no {protocol.average}: "
            "average features"
        )
    for part in (protocol.views, protocol.train_views):
        if part is not None:
            _check_test_views(part)
    if protocol.data is not None:
        _check_probe(protocol.data, protocol.train_views)


def check_any_protocol(protocol: protocols.Protocol | protocols.FinetuneProtocol) -> None:
    """``check_protocol``, or the same for one that finetunes."""
    runfolder.check_name(protocol.name, folders=False)
    if isinstance(protocol, protocols.FinetuneProtocol):
        checks.check_finetune_protocol(protocol)
        if protocol.data is not None:
            check_go_together(protocol.data.test, protocol.data.views, views(protocol.data.views))
    else:
        check_protocol(protocol)


def check_tokenizer_protocol(protocol: protocols.TokenizerProtocol) -> None:
    """``check_protocol`` for one that measures tokenizers."""
    views(protocol.views)
    _check_keys(protocol.data.test, registry.SOURCE)


def check_mask_protocol(protocol: protocols.MaskProtocol) -> None:
    """``check_protocol`` for one that measures patch tokens on masks."""
    runfolder.check_name(protocol.name, folders=False)
    for part in (protocol.data.test, protocol.data.train):
        if part is not None:
            _check_keys(part, registry.SOURCE)


def check_file(kind: files.SpecKind, path: Path) -> None:
    """Checks a spec file."""
    if kind == "recipes":
        recipe = load_recipe(str(path))
        runfolder.check_name(recipe.name)
        check(recipe)
    elif kind == "grids":
        for cell, recipe in grid.check_grid(str(path)):
            try:
                check(recipe)
            except UsageError as error:
                raise UsageError(f"{error} (cell {cell})") from error
    elif kind == "evaluation" and path.name == files.PUBLISHED.name:
        published.load_published(path)
    elif kind == "evaluation" and protocols.measures_tokenizers(str(path)):
        check_tokenizer_protocol(protocols.load_tokenizer_protocol(str(path)))
    elif kind == "evaluation" and protocols.measures_masks(str(path)):
        check_mask_protocol(protocols.load_mask_protocol(str(path)))
    elif kind == "evaluation":
        check_any_protocol(protocols.load_protocol(str(path)))
    else:
        with speed.on_meta():
            _construct(load_tokenizer_spec(str(path)).part, registry.TOKENIZER)


def _check_probe(probe: ProbeSpec, train_views: PartSpec | None = None) -> None:
    """``train_views``: of the videos to learn from, where those are not seen as the test videos are."""
    _check_keys(probe.train, registry.SOURCE)
    _check_keys(probe.test, registry.SOURCE)
    for source, part in ((probe.train, train_views or probe.views), (probe.test, probe.views)):
        _check_test_views(part)
        check_go_together(source, part, views(part))


def _check_test_views(part: PartSpec) -> None:
    """The i-th slots of all names are one test view, so every name has as many."""
    sampler = views(part)
    counts = {name: len(slots) for name, slots in sampler.shapes.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of '{name}'" for name, count in counts.items())
        raise part.node.error(f"gives {shown}: features need as many views of every name")


def _check_keys(part: PartSpec, kind: registry.Kind[object]) -> None:
    bind(part.node, registry.constructor_of(part, kind), part.apart)
