"""Checks that the parts of a recipe fit each other, before data are opened; each raises ``UsageError``."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from torch import nn

from vidssl.build import registry
from vidssl.build.part_checks import StreamShapes, try_masker
from vidssl.build.registry import SOURCE, TOKENIZER, constructor_of, resolved_part
from vidssl.config.protocol import FinetuneProtocol, Protocol
from vidssl.config.recipe import UNKNOWN_SHA256, Recipe, RunSpec, TokenizerSpec, WeightsSpec
from vidssl.config.schema import PartSpec, bind, construct
from vidssl.config.strict_yaml import Node
from vidssl.data.classes import LabelClasses, label_kind
from vidssl.data.loader import Stream
from vidssl.data.sources.token_store import TokenStore
from vidssl.data.views.stored import StoredViews
from vidssl.data.views.vimpac import PairOfClips
from vidssl.engine import accumulate, distributed, optim, process, schedules, speed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    Backbone,
    ComparesVideos,
    DataSource,
    EncodesVisible,
    Evaluator,
    Masker,
    Objective,
    PatchEvaluator,
    Tokenizer,
    UnreadableSample,
    ViewSampler,
)
from vidssl.interfaces.grids import GridSize, common_grid
from vidssl.objectives.classification import Classification

_MOST_LOOKED_AT = 32  # videos of a stream, at the start of a run
Maskers = tuple[Masker | None, Masker | None]  # of the input, and of what a decoder fills in


def masker_parts(recipe: Recipe) -> tuple[PartSpec | None, PartSpec | None]:
    """The sections of both maskers."""
    return recipe.masker, recipe.decoder_masker


def check_sections(recipe: Recipe, takes: Mapping[str, bool]) -> None:
    """Refuse a missing section of a part, and one that the objective does not take.

    Args:
        takes: part -> whether the objective must have it.
    """
    sections = recipe.node.mapping()
    name = recipe.objective.type
    for part, needed in takes.items():
        if needed and part not in sections:
            raise recipe.objective.node.error(f"'{name}' needs a {part}: add a '{part}' section")
    for part in registry.OBJECTIVE.parts:
        if part in sections and part not in takes:
            raise sections[part].error(f"unused: objective '{name}' takes no {part}. Remove the section")


def check_label(recipe: Recipe, classes: LabelClasses) -> None:
    """Refuse a label of sets or numbers for classes; without ``classes`` the videos are not opened yet."""
    if recipe.objective.type == "classification":
        given = recipe.objective.node.mapping().get("label")
        label = str(given.value) if given and given.value else next(iter(classes), "")
        if (kind := label_kind(label, classes.get(label, ()))) != "class":
            at, which = given or recipe.objective.node, f"'{label}' is a {kind}"
            raise at.error(f"objective 'classification' takes a label of one class a video, and {which}")


def check_streams(recipe: Recipe) -> None:
    """Refuse held-out samples for one stream of two: a batch needs every stream."""
    streams = recipe.data.streams
    without = [name for name, stream in streams.items() if stream.test_source is None]
    if 0 < len(without) < len(streams):
        raise streams[without[0]].node.error("missing 'test_source': give it for every stream or for none")


def check_repeats(objective: Objective, streams: Mapping[str, Stream]) -> list[str]:
    """Lines on streams that repeat what they give: samples within a batch, or the clips of a pair.

    Raises:
        UsageError: if the objective tells the samples of a batch apart.
    """
    lines = [
        f"data.{name}: a batch of {stream.batch_size} is larger than the data set of {len(stream)} samples, "
        "so that it holds samples more than once"
        for name, stream in streams.items()
        if 0 < len(stream) < stream.batch_size
    ]
    if lines and isinstance(objective, ComparesVideos):
        raise UsageError(
            f"{lines[0]}, and {type(objective).__name__} would tell a video apart from itself: lower "
            "batch_size, or take more videos"
        )
    return [*lines, *(line for name, stream in streams.items() for line in _short_videos(name, stream))]


def _short_videos(name: str, stream: Stream) -> Iterator[str]:
    """A line if videos have only one place for the clips of a pair; looks at the headers of a few."""
    views = stream.views
    if not isinstance(views, PairOfClips):
        return
    count = len(stream.source)
    looked = range(0, count, -(-count // _MOST_LOOKED_AT) or 1)
    short = []
    for index in looked:
        with suppress(UnreadableSample):
            short += [index] * views.is_one_clip(stream.source.info(index))
    if short:
        found = counted(len(short), "video looked at", "videos looked at", of=len(looked), verb="have")
        yield (
            f"data.{name}: {found} only one place for a clip ({views.num_frames} frames {views.frame_stride} "
            f"apart), the first {stream.source.key(short[0])}: both clips of such a pair are the same, and a "
            "contrast learns nothing from them. Lower num_frames or frame_stride, or raise fps"
        )


def check_monitor(recipe: Recipe, encoder: nn.Module) -> None:
    """Refuse a kNN probe in the course of the run without a network to probe, or videos."""
    if recipe.run.knn_every_steps is None:
        return
    at = recipe.node.mapping()["run"].mapping()["knn_every_steps"]
    if not isinstance(encoder, Backbone):
        raise at.error(
            f"objective '{recipe.objective.type}' trains a tokenizer, which has no features to probe"
        )
    if recipe.data.probe is None:
        raise at.error("needs labelled videos: add 'data.probe'")


def check_speed(recipe: Recipe, objective: Objective) -> None:
    """Refuse switches of ``run`` for speed and memory that are not for such networks."""
    refused = speed.refusal(objective, recipe.run)
    if refused is not None:
        raise recipe.node.mapping()["run"].mapping()[refused[0]].error(refused[1])


def check_batches(recipe: Recipe, objective: Objective) -> None:
    """Refuse batches in which the objective could not compare what it compares."""
    check_whole(objective, recipe.run, distributed.launched())
    for stream in recipe.data.streams.values():
        if stream.samples_per_decode == 1:
            continue
        at = stream.node.mapping()["samples_per_decode"]
        if isinstance(objective, ComparesVideos):
            name = recipe.objective.type
            raise at.error(f"objective '{name}' tells the videos of a batch apart: leave it out")
        parts = recipe.run.accumulate
        if stream.batch_size % (stream.samples_per_decode * parts):
            raise at.error(
                f"batch_size {stream.batch_size} does not divide into {stream.samples_per_decode} samples of "
                "each video" + f" in {parts} parts (run.accumulate)" * (parts > 1)
            )
    if isinstance(objective, ComparesVideos):
        for stream in recipe.data.streams.values():
            parts = recipe.run.accumulate if objective.splits_batch else 1
            with recipe.objective.node.located():
                objective.check_batch(stream.batch_size // parts)


def check_whole(objective: Objective, run: RunSpec, num_processes: int) -> None:
    """Refuse to take apart what an objective, or a part of the run, needs whole."""
    joint = isinstance(objective, accumulate.JointLoss) and not objective.splits_batch
    if run.accumulate > 1 and not (objective.splits_batch or joint):
        raise UsageError(
            f"run.accumulate is {run.accumulate}, and {type(objective).__name__} looks at each batch as a "
            "whole (its clips are compared with each other, or statistics taken over all): set "
            "run.accumulate=1"
        )
    if num_processes == 1 or run.parallel == "ddp":
        return
    if run.accumulate > 1 and joint:
        raise UsageError(
            "run.parallel is fsdp, and the cached features of run.accumulate take networks that are whole in "
            "each process: set run.parallel=ddp or run.accumulate=1"
        )
    if run.knn_every_steps is not None:
        raise UsageError(
            "run.parallel is fsdp, and run.knn_every_steps asks rank 0 for what takes the network whole: set "
            "run.parallel=ddp or run.knn_every_steps=null, and 'vidssl eval' the checkpoints"
        )


def check_epochs(recipe: Recipe, schedule: schedules.Schedule) -> None:
    """Refuse to count epochs of a stream that there is not."""
    if schedule.counts_epochs and schedule.epoch_of not in recipe.data.streams:
        raise recipe.schedule.node.error(
            f"epochs are counted of the '{schedule.epoch_of}' stream, and data has only "
            f"{', '.join(recipe.data.streams)}: set 'epoch_of'"
        )


def check_groups(recipe: Recipe, objective: Objective, update: optim.Update) -> None:
    """Refuse keys that ask for layers of an encoder that does not name them, or is not trained."""
    with recipe.optim.node.located():
        update.groups(objective)


def check_patches(protocol: Protocol, evaluator: Evaluator) -> None:
    """Refuse keys on patch tokens that the evaluator does not read, and patch tokens of all stages."""
    sections, name = protocol.node.mapping(), protocol.evaluator.type
    for key, given in (("blocks", protocol.blocks), ("future", protocol.future)):
        if given and not isinstance(evaluator, PatchEvaluator):
            raise sections[key].error(f"unused: evaluator '{name}' reads no patch tokens")
    if protocol.blocks and protocol.future is not None:
        raise sections["future"].error("predicted cells stand beside the last block's: leave blocks out")
    if isinstance(evaluator, PatchEvaluator):
        if protocol.layers != "last":
            raise sections["layers"].error(f"evaluator '{name}' reads patch tokens of the last layer")
    elif protocol.patches is not None:
        raise sections["patches"].error(f"unused: evaluator '{name}' reads no patch tokens")


def check_tokenizer(recipe: Recipe, objective: Objective, tokenizer: Tokenizer | None) -> None:
    """Refuse a tokenizer without weights that is not trained: random targets teach nothing."""
    spec = recipe.tokenizer
    learns = tokenizer is not None and bool(tokenizer.state_dict())
    if spec is not None and spec.weights is None and learns and objective.encoder() is not tokenizer:
        raise spec.node.error(
            f"has no weights, and objective '{recipe.objective.type}' does not train it. "
            "Name a file of tokenizers/, or give 'weights', 'sha256', 'source' and 'licence'"
        )


def check_inputs(
    recipe: Recipe,
    takes: Mapping[str, bool],
    backbone: Backbone | None,
    tokenizer: Tokenizer | None,
    maskers: Maskers,
) -> None:
    """Refuse a backbone that reads ids where nothing makes them, or others, or takes no mask that is drawn.

    Args:
        takes: as for ``check_sections``.
    """
    if backbone is None or recipe.backbone is None:
        return
    at, name = recipe.backbone.node, recipe.backbone.type
    if backbone.input_kind == "tokens" and "tokenizer" not in takes:
        able = registry.names_with(registry.BACKBONE, "input_kind", "pixels")
        raise at.error(
            f"'{name}' reads token ids, and objective '{recipe.objective.type}' has only pixels. "
            f"Backbones that read those: {able}"
        )
    if backbone.input_kind == "tokens" and recipe.tokenizer is None:
        raise at.error(f"'{name}' reads token ids: add a 'tokenizer' section that makes them")
    ids = None if backbone.input_kind == "pixels" or tokenizer is None else tokenizer.vocab_size
    if ids is not None and backbone.vocab_size not in (None, ids):
        raise at.error(
            f"'{name}' reads ids of a vocabulary of {backbone.vocab_size}, and the tokenizer's has {ids}: "
            f"set vocab_size to {ids}"
        )
    if getattr(registry.constructor_of(recipe.objective, registry.OBJECTIVE), "visible_only", False):
        if takes.get("masker") or maskers[0] is not None:
            _check_visible(recipe, backbone, maskers)
    elif maskers[0] is not None and not backbone.takes_mask:
        able = registry.names_with(registry.BACKBONE, "takes_mask", True)
        raise at.error(
            f"'{name}' takes no mask, and objective '{recipe.objective.type}' masks its input. "
            f"Backbones that take one: {able}"
        )


def _check_visible(recipe: Recipe, backbone: Backbone, maskers: Maskers) -> None:
    """The backbone can encode visible cells alone, and every clip has as many of them."""
    assert recipe.backbone is not None, "there is one"
    name, objective = recipe.objective.type, registry.constructor_of(recipe.objective, registry.OBJECTIVE)
    ways = ("equal_counts", "cuts_splits")[: 1 + getattr(objective, "reads_splits", False)]
    if not isinstance(backbone, EncodesVisible) or not backbone.encodes_visible:
        able = registry.names_of(registry.BACKBONE, EncodesVisible, needs="visible_needs")
        raise recipe.backbone.node.error(
            f"'{recipe.backbone.type}' cannot leave hidden cells out, and objective '{name}' encodes visible "
            f"ones alone. Backbones that can: {able}"
        )
    for part, masker in zip(masker_parts(recipe), maskers, strict=True):
        if part is not None and masker is not None and not any(getattr(masker, way) for way in ways):
            able = ", ".join(registry.names_with(registry.MASKER, way, True) for way in ways)
            raise part.node.error(
                f"'{part.type}' hides different numbers of cells in the clips of a batch, and objective "
                f"'{name}' needs the same. Maskers that keep to it: {able}"
            )


def check_views(recipe: Recipe, objective: Objective, shapes: StreamShapes) -> None:
    """Refuse views that are missing, have too few slots, are given twice or never read."""
    needed, data, name = objective.needs_views, recipe.data, recipe.objective.type
    givers: dict[str, str] = {}
    for stream, given in shapes.items():
        at = data.streams[stream].views.node
        for view in given:
            if view in givers:
                raise at.error(f"view '{view}' already comes from the '{givers[view]}' stream")
            if view not in needed:
                raise at.error(f"unused: objective '{name}' reads no view '{view}', only {', '.join(needed)}")
            givers[view] = stream
    for view, count in needed.items():
        if view not in givers:
            has = ", ".join(f"'{given}'" for given in givers) or "none"
            raise data.node.error(f"objective '{name}' needs the view '{view}', and the streams give {has}")
        slots = len(shapes[givers[view]][view])
        if slots < count:
            at = data.streams[givers[view]].views.node
            raise at.error(f"objective '{name}' needs {count} of the view '{view}', got {slots}")


def check_grids(
    recipe: Recipe,
    shapes: StreamShapes,
    backbone: Backbone | None,
    tokenizer: Tokenizer | None,
    maskers: Maskers,
) -> None:
    """Refuse sizes of clips that a part does not take, grids that do not nest, and masks that fail there."""
    for size in sizes_of(shapes):
        ids = patches = None
        if tokenizer is not None:
            with _located(recipe.tokenizer, recipe, size):
                ids = tokenizer.grid(*size)
        if backbone is not None:
            with _located(recipe.backbone, recipe, size):
                patches = backbone.grid(*(ids if backbone.input_kind == "tokens" and ids else size))
        for part, masker in zip(masker_parts(recipe), maskers, strict=True):
            if masker is None or patches is None:
                continue
            with _located(recipe.tokenizer, recipe, size):
                grid = patches if ids is None else common_grid(patches, ids)
            with _located(part, recipe, size):
                try_masker(masker, grid)


def sizes_of(shapes: StreamShapes) -> list[GridSize]:
    """The sizes (T, H, W) of all views, each once."""
    return sorted({size for views in shapes.values() for slots in views.values() for size in slots})


@contextmanager
def _located(at: PartSpec | TokenizerSpec | None, recipe: Recipe, size: GridSize) -> Iterator[None]:
    """Errors of a part name its section and the clip's size."""
    try:
        yield
    except ValueError as error:
        raise (recipe if at is None else at).node.error(f"{error} ({_in_words(size)})") from error


def _in_words(size: GridSize) -> str:
    frames, height, width = size
    return (
        f"an image of {height}x{width}"
        if frames == 1
        else f"a clip of {counted(frames, 'frame')} at {height}x{width}"
    )


def check_finetune_protocol(protocol: FinetuneProtocol) -> None:
    """Builds the parts of a protocol, with a stand-in for the backbone, and checks that its views fit."""
    objective = _objective(protocol)
    for part, kind in ((protocol.optim, registry.OPTIMIZER), (protocol.schedule, registry.SCHEDULE)):
        _construct(part, kind)
    if protocol.augment is not None:
        _construct(protocol.augment, registry.AUGMENT)
    construct(Node(protocol.run, protocol.node.where, "run"), RunSpec)
    _check_views(protocol.train_views, objective.needs_views)
    tested = protocol.views if protocol.data is None else protocol.data.views
    if tested is not None:
        _check_views(tested, objective.needs_views)
    if protocol.data is not None:
        for source in (protocol.data.train, protocol.data.test):
            bind(source.node, registry.constructor_of(source, registry.SOURCE), source.apart)


def _objective(protocol: FinetuneProtocol) -> Objective:
    part = protocol.objective
    entries = part.node.mapping()
    if registry.constructor_of(part, registry.OBJECTIVE) is not Classification:
        raise entries["type"].error("a protocol finetunes with the objective 'classification'")
    for key in registry.DECIDED_BY_VIDEOS:
        if key in entries:
            raise entries[key].error("the videos decide it: leave it out (labels are chosen by 'labels')")
    with speed.on_meta():
        backbone = registry.BACKBONE.table["vit"](embed_dim=6, depth=1, num_heads=1)
        return construct(registry.with_stand_ins(part).node, Classification, backbone, apart=part.apart)


def _check_views(part: PartSpec, needed: Mapping[str, int]) -> None:
    """Refuse views that the objective does not read, and unequal numbers of slots."""
    slots = {name: len(shapes) for name, shapes in _construct(part, registry.VIEW_SAMPLER).shapes.items()}
    if set(slots) != set(needed) or len(set(slots.values())) != 1:
        given = ", ".join(f"{count} of '{name}'" for name, count in slots.items())
        raise part.node.error(
            f"gives {given}; the objective reads {', '.join(needed)}, as many of each: set objective.views"
        )


def _construct(part: PartSpec, kind: registry.Kind[registry.Component]) -> registry.Component:
    return construct(part.node, registry.constructor_of(part, kind), apart=part.apart)


def tokenizer_keys(spec: TokenizerSpec) -> dict[str, object]:
    """All that a tokenizer's ids depend on: its type, all of its keys, and the sha256 of its weights."""
    assert spec.weights is not None, "refused without weights"
    keys: dict[str, object] = json.loads(json.dumps(resolved_part(spec.part, TOKENIZER)))
    return keys | {"weights_sha256": _weights_hash(spec.weights)}


def keys_hash(keys: dict[str, object]) -> str:
    """sha256 of ``tokenizer_keys``, by which stores are known."""
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _weights_hash(weights: WeightsSpec) -> str:
    if weights.sha256 != UNKNOWN_SHA256:
        return weights.sha256  # the file is checked against it wherever it is loaded
    try:
        return process.file_sha256(weights.path)
    except OSError as error:
        raise weights.node.mapping()["weights"].error(f"{weights.path}: {error.strerror}") from None


def check_stored(
    tokenizer: TokenizerSpec | None, part: PartSpec, views: PartSpec, source: DataSource, sampler: ViewSampler
) -> None:
    """Refuse a store of another tokenizer than its reader's, and views that it does not hold.

    Args:
        part: section of the source.
        views: section of the sampler.
    """
    if not isinstance(source, TokenStore) or not isinstance(sampler, StoredViews):
        return
    if tokenizer is None:
        raise part.node.error("holds ids of a tokenizer, and the recipe has none: add its 'tokenizer'")
    keys, stored = tokenizer_keys(tokenizer), source.stored
    if keys_hash(keys) != stored.tokenizer:
        differ = [
            key
            for key in {**keys, **stored.tokenizer_keys}
            if keys.get(key) != stored.tokenizer_keys.get(key)
        ]
        raise part.node.error(
            f"{source.root} was made with another tokenizer ({stored.tokenizer}) than the recipe's "
            f"({keys_hash(keys)}): {', '.join(sorted(differ))} differ"
        )
    with views.node.located():
        source.check(sampler.wanted)


def check_stored_views(recipe: Recipe, name: str, views: ViewSampler, backbone: Backbone | None) -> None:
    """Refuse views of ids without a source of ids, the reverse, and parts of the recipe that need pixels.

    Opens no data.
    """
    stream = recipe.data.streams[name]
    for source in (stream.source, stream.test_source):
        if source is not None:
            check_go_together(source, stream.views, views)
    if not isinstance(views, StoredViews):
        return
    if backbone is not None and recipe.backbone is not None:
        check_reads_ids(backbone, recipe.backbone.type, f"data.{name}", views, recipe.backbone.node)
    if recipe.augment is not None:
        raise recipe.augment.node.error(
            f"changes pixels, and data.{name} gives stored ids: remove it (views choose among "
            "the stored transforms)"
        )


def check_go_together(source: PartSpec, views: PartSpec, sampler: ViewSampler) -> None:
    """Refuse views of ids of a source of pixels, and the reverse. Opens no data."""
    wants = isinstance(sampler, StoredViews)
    if (constructor_of(source, SOURCE) is TokenStore) == wants:
        return
    if wants:
        raise source.node.error(
            f"views '{views.type}' read stored ids: make it {{type: token_store, root: ...}}"
        )
    raise views.node.error(
        f"'{views.type}' cuts pixels, and the source holds ids: set views.type to stored_clip_pair or "
        "stored_clip, for tests stored_uniform_clips"
    )


def check_reads_ids(backbone: Backbone, name: str, data: str, sampler: ViewSampler, at: Node) -> None:
    """Refuse stored ids for a network that reads pixels."""
    if isinstance(sampler, StoredViews) and backbone.input_kind == "pixels":
        raise at.error(f"'{name}' reads pixels, and {data} gives stored ids")
