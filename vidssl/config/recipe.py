"""Recipes and tokenizer files as frozen dataclasses.

Anything wrong with a file that shows without knowing the components raises a ``UsageError`` with its line.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from vidssl.config import few_labels, files, schema
from vidssl.config.strict_yaml import Node, load, moved, override, parse
from vidssl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Where and how a run takes place.

    Attributes:
        out: folder that the run's own folder is made in.
        device: "auto" is the GPU where there is one.
        precision: of the forward pass; "auto" is bf16 on a GPU and fp32 on a CPU. Under "fp16" the loss is
            scaled, and what is only measured (features, test metrics) is in fp32.
        compile: torch.compile for the backbone's blocks, each once for every shape.
        activation_checkpointing: the backbone's blocks keep their inputs alone, and are computed again for
            the gradient: less memory, more time, the same numbers. "elementwise" computes again what takes
            little time, norms, activations and copies, and keeps what matrix products make.
        channels_last: memory layout of convolutions that overlap.
        deterministic: only algorithms that give the same numbers in every run on a GPU; slower. On a CPU that
            is so anyway, from the same number of threads: all CPUs, whatever else runs.
        workers: processes that decode, for each stream of each training process; 0 decodes in that itself.
        log_every_steps: how often metrics, their means since the last time, are printed and written.
        checkpoint_every_steps: how often to save, and to measure on held-out streams.
        test_batches: of the held-out streams, a measurement.
        knn_every_steps: how often to classify the test videos of ``data.probe`` by their nearest neighbours
            (k = 200, temperature 0.07, as VIMPAC's code); null never does.
        accumulate: parts that each step's batch goes through the network in, one after another, to save
            memory; their gradients are averaged. Where an objective compares all samples of a batch (VIMPAC's
            ``negatives_from``), features are cached and the gradients are those of the whole batch.
        parallel: how several processes (``torchrun``) train together. "ddp" keeps the whole network in each,
            "fsdp" a shard of it, for networks that are too large for that. Means nothing to one process.
        timeout_minutes: how long processes wait for each other before one is taken for lost.
        keep_checkpoints: how many checkpoints a run can resume from; older ones keep their weights alone.
        keep_every_steps: of the older ones the weights of multiples of this are kept; null keeps them all.
        max_skipped_steps: of steps in a row whose loss or gradient is not finite; none of them is taken, and
            with the last of so many the run stops and leaves a capture.
        trackers: where metrics go besides ``metrics.jsonl``; their packages are the extras of these names.
        on_changed_data: whether a run resumes on a list of videos that is not the one that it began with.
        on_collapse: whether a sign of collapse, a metric that has left its band, stops the run.
        resume: "auto" resumes the newest run of this name and recipe where there is one, so that a
            scheduler can repeat one command.
    """

    out: str = "runs"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool | Literal["elementwise"] = False
    channels_last: bool = False
    deterministic: bool = False
    workers: schema.Index = 1
    log_every_steps: schema.Count = 10
    checkpoint_every_steps: schema.Count = 200
    test_batches: schema.Count = 8
    knn_every_steps: schema.Count | None = None
    accumulate: schema.Count = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout_minutes: Annotated[float, schema.above_zero] = 30.0
    keep_checkpoints: schema.Count = 2
    keep_every_steps: schema.Count | None = None
    max_skipped_steps: schema.Count = 10
    trackers: Annotated[tuple[Literal["tensorboard", "wandb"], ...], schema.named_once] = ()
    on_changed_data: Literal["stop", "resume"] = "stop"
    on_collapse: Literal["warn", "stop"] = "warn"
    resume: Literal["never", "auto"] = "never"

    def __post_init__(self) -> None:
        schema.check_fields(self)


STREAMS = ("video", "image")
UNKNOWN_SHA256 = "unknown"
MIN_MATCHED = 0.9  # of a backbone's numbers: fraction that ``init`` must fill where a recipe does not set it
# keys that a recipe may leave out, by which a short name typed without its section is recognised
_BELOW = ("schedule.epochs", "schedule.steps", *(f"run.{key.name}" for key in fields(RunSpec)))


@dataclass(frozen=True, kw_only=True)
class InitSpec:
    """The weights that a backbone starts from.

    Attributes:
        init: a run, file or ``timm:`` name; None for random weights.
        init_min_matched: fraction of the backbone's numbers that must come from there (``load_init``).
        init_window: attention window of the network that ``init`` is of; None where the weights show it.
    """

    init: schema.Quiet[schema.Text | None] = None
    init_min_matched: schema.Quiet[schema.Fraction] = MIN_MATCHED
    init_window: schema.Quiet[tuple[schema.Count, schema.Count, schema.Count] | None] = None


@dataclass(frozen=True, kw_only=True)
class RestSpec:
    """The weights that an objective starts from, besides its backbone's.

    Attributes:
        init: a run, whose student, predictor and heads are taken, or a file; None for random weights.
    """

    init: schema.Quiet[schema.Text | None] = None


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """Weights that a tokenizer file names.

    Attributes:
        weights: the file; absolute in a recipe or tokenizer file that has been read.
        sha256: of the file, in hexadecimal; ``UNKNOWN_SHA256`` where only the user has the file.
        source: where the weights come from.
        licence: under which they may be used.
        command: that made them, where one did.
    """

    weights: schema.Text
    sha256: Annotated[schema.Text, str.lower]
    source: schema.Text
    licence: schema.Text
    command: schema.Quiet[schema.Text | None] = None
    node: Node = field(repr=False)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.weights)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer: its class and keys, and its weights unless a recipe trains it.

    Attributes:
        name: of the file in ``tokenizers/``; None where it is written into a recipe.
        node: the key that names it, or the mapping.
    """

    part: schema.PartSpec
    weights: WeightsSpec | None
    name: str | None
    node: Node


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream of training samples: where from, which views of each, how many a step.

    Attributes:
        test_source: held-out samples that the objective's metrics are measured on, through the same views.
        samples_per_decode: of ``batch_size``, how many are cut from one decoded video.
        subset: the draw of labelled samples of ``source`` that is trained on; None for all.
        balance: the label whose classes are seen equally often: samples of rare ones come several times an
            epoch, those without the label never. None takes each sample once.
    """

    source: schema.SourceSpec
    test_source: schema.Quiet[schema.SourceSpec | None] = None
    subset: schema.Quiet[few_labels.Subset | None] = None
    balance: schema.Quiet[schema.Text | None] = None
    views: schema.ViewsSpec
    batch_size: schema.Count
    samples_per_decode: schema.Quiet[schema.Count] = 1
    node: Node = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The data of a recipe; ``video`` or ``image`` or both.

    Attributes:
        max_unreadable_share: fraction of a source's samples; past it, training stops with their list.
    """

    video: schema.Quiet[StreamSpec | None] = None
    image: schema.Quiet[StreamSpec | None] = None
    probe: schema.Quiet[schema.ProbeSpec | None] = None
    max_unreadable_share: schema.Fraction = 0.01
    node: Node = field(repr=False)

    def __post_init__(self) -> None:
        if not self.streams:
            raise ValueError(f"no stream: give one or more of {', '.join(STREAMS)}")

    @property
    def streams(self) -> dict[str, StreamSpec]:
        """By name; at least one."""
        both = {"video": self.video, "image": self.image}
        return {name: stream for name, stream in both.items() if stream is not None}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment.

    Attributes:
        node: the whole tree, overrides applied.
    """

    name: schema.Text
    seed: schema.Index = 0
    objective: Annotated[schema.PartSpec, "objectives", RestSpec]
    backbone: schema.Quiet[Annotated[schema.PartSpec, "backbones", InitSpec] | None] = None
    tokenizer: schema.Quiet[TokenizerSpec | None] = None
    masker: schema.Quiet[Annotated[schema.PartSpec, "maskers"] | None] = None
    decoder_masker: schema.Quiet[Annotated[schema.PartSpec, "maskers"] | None] = None
    data: DataSpec
    augment: schema.Quiet[schema.AugmentSpec | None] = None
    optim: schema.OptimizerSpec
    schedule: schema.ScheduleSpec
    run: RunSpec = RunSpec()
    node: Node = field(repr=False)

    @property
    def start(self) -> InitSpec:
        """The weights that the backbone starts from."""
        beside = None if self.backbone is None else self.backbone.beside
        return beside if isinstance(beside, InitSpec) else InitSpec()

    @property
    def rest_init(self) -> str | None:
        """The weights that the objective starts from, besides its backbone's."""
        beside = self.objective.beside
        return beside.init if isinstance(beside, RestSpec) else None

    @property
    def trees(self) -> tuple[Node, ...]:
        """The whole tree, and that of a tokenizer file that it names."""
        return (self.node,) if self.tokenizer is None else (self.node, self.tokenizer.part.node)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file or name, with dotted overrides (``optim.lr=1e-3``) applied."""
    tree, path = files.read("recipes", name)
    return read_recipe(overridden(tree, overrides), path.parent)


def recipe_from_text(text: str, name: str) -> Recipe:
    """The recipe in a text of one's own; ``name`` is for messages."""
    return read_recipe(parse(text, lambda line: f"{name}:{line}"), Path.cwd())


def load_tokenizer_spec(name: str) -> TokenizerSpec:
    """The tokenizer file of a path or name.

    Raises:
        UsageError: as ``load_recipe``, and if the file names no weights.
    """
    node, path = files.read("tokenizers", name)
    spec = replace(_tokenizer(node, path.parent), name=name)
    if spec.weights is None:
        raise node.error("missing 'weights': only a recipe that trains its tokenizer may hold one without")
    return spec


def overridden(node: Node, overrides: Sequence[str]) -> Node:
    """The tree with overrides applied in their order."""
    for text in overrides:
        node = override(node, text)
    return node


def read_recipe(node: Node, folder: Path) -> Recipe:
    """The recipe in a tree.

    Args:
        folder: that paths of tokenizer weights are relative to.
    """
    node = _with_shared_source(node)
    recipe = schema.construct(
        node, Recipe, below=_BELOW, readers={"tokenizer": lambda entry: _recipe_tokenizer(entry, folder)}
    )
    entries = {} if recipe.backbone is None else recipe.backbone.node.mapping()
    for key in ("init_min_matched", "init_window"):
        if key in entries and "init" not in entries:
            raise entries[key].error("describes 'init', and there is none")
    return recipe


def _with_shared_source(root: Node) -> Node:
    """The tree with ``data.source`` written out wherever it is meant.

    ``data: {source: ..., train: ..., test: ...}`` names a source once; ``train`` and ``test`` hold the keys
    that differ in these parts. Streams and the probe then need no sources of their own: one that is left out
    is the shared one of its part, and one without ``type`` holds keys that differ from that.

    Raises:
        UsageError: if parts of a shared source are given without it, or nothing takes it.
    """
    data = root.mapping().get("data")
    if data is None or not isinstance(data.value, Mapping):
        return root
    entries = dict(data.value)
    given = [entries.pop(key, None) for key in ("source", "train", "test")]
    source, *differ = (None if each is None or each.value is None else each for each in given)
    if source is None:
        stray = next((part for part in differ if part is not None), None)
        if stray is not None:
            raise stray.error("holds keys that differ from 'data.source', and there is none")
        return replace(root, value={**root.mapping(), "data": replace(data, value=entries)})
    if "type" not in source.mapping():
        raise source.error("missing 'type'")
    train, test = (source if part is None else _changed(source, part) for part in differ)
    wanted = {name: {"source": train, "test_source": test} for name in STREAMS}
    if differ[1] is None:  # without a test part nothing is held out
        for sources in wanted.values():
            del sources["test_source"]
    wanted["probe"] = {"train": train, "test": test}
    used = False
    for name, sources in wanted.items():
        section = entries.get(name)
        if section is None or not isinstance(section.value, Mapping):
            continue
        own = dict(section.value)
        for key, shared in sources.items():
            mine = own.get(key)
            if mine is None or (isinstance(mine.value, Mapping) and "type" not in mine.value):
                whole = shared if mine is None else _changed(shared, mine)
                own[key] = moved(whole, f"data.{name}.{key}")
                used = True
        entries[name] = replace(section, value=own)
    if not used:
        raise source.error("nothing takes it: every stream and the probe have sources of their own")
    return replace(root, value={**root.mapping(), "data": replace(data, value=entries)})


def _changed(source: Node, keys: Node) -> Node:
    """A source with other values of some keys; one with a ``type`` stands for itself."""
    changes = keys.mapping()
    return keys if "type" in changes else replace(source, value={**source.mapping(), **changes})


def _recipe_tokenizer(node: Node, folder: Path) -> TokenizerSpec:
    if not isinstance(node.value, str):
        return _tokenizer(node, folder)
    if (Path(node.value) / "recipe.yaml").is_file():
        return _of_run(Path(node.value), node)
    try:
        path = files.read("tokenizers", node.value)[1]
    except UsageError as error:
        raise node.error(str(error)) from None
    return replace(load_tokenizer_spec(str(path)), name=node.value, node=node)


def _of_run(run: Path, node: Node) -> TokenizerSpec:
    """The tokenizer that a run trained, with the weights of its newest checkpoint."""
    spec = read_recipe(load(run / "recipe.yaml"), run).tokenizer
    if spec is None or spec.weights is not None:
        raise node.error(f"{run}: this run trained no tokenizer")
    checkpoints = (run / "checkpoints").glob("step-*.safetensors")
    newest = max(checkpoints, key=lambda path: (len(path.name), path.name), default=None)
    if newest is None:
        raise node.error(f"{run}: there is no checkpoint of this run yet")
    weights = WeightsSpec(
        weights=str(newest.resolve()),
        sha256=hashlib.sha256(newest.read_bytes()).hexdigest(),
        source=f"the run {run}",
        licence="as its videos",
        node=replace(node, value={"weights": node}),
    )
    return TokenizerSpec(replace(spec.part, beside=weights), weights, None, node)


def _tokenizer(node: Node, folder: Path) -> TokenizerSpec:
    entries = node.mapping()
    stray = [key.name for key in fields(WeightsSpec) if key.name in entries]
    if stray and "weights" not in entries:
        raise entries[stray[0]].error("describes weights, but there is no 'weights'")
    part = schema.convert(node, Annotated[schema.PartSpec, "tokenizers", WeightsSpec])
    assert isinstance(part, schema.PartSpec), "convert gives what the annotation asks for"
    weights = part.beside
    if not isinstance(weights, WeightsSpec):
        return TokenizerSpec(part, None, None, node)
    if weights.sha256 == UNKNOWN_SHA256 and weights.command is None:
        raise entries["sha256"].error("may only be 'unknown' where 'command' gives how the file is made")
    weights = replace(weights, weights=str((folder / weights.weights).resolve()))
    return TokenizerSpec(replace(part, beside=weights), weights, None, node)
