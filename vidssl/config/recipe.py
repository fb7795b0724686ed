"""Recipes and tokenizer files as frozen dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, cast

from vidssl.config.few_labels import Subset
from vidssl.config.files import read
from vidssl.config.schema import (
    PartSpec,
    ProbeSpec,
    check_fields,
    construct,
    convert,
    read_count,
    read_optional_part,
    read_part,
    read_probe,
    read_text,
)
from vidssl.config.strict_yaml import Node, override, parse
from vidssl.errors import UsageError
from vidssl.interfaces.grids import GridSize


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
            the gradient: less memory, more time, the same numbers.
        channels_last: memory layout of convolutions that overlap.
        deterministic: only algorithms that give the same numbers in every run on a GPU; slower. On a CPU that
            is so anyway.
        workers: processes that decode, for each stream of each training process; 0 decodes in that itself.
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
        keep_checkpoints: how many checkpoints one can go on from; older ones keep their weights alone.
        keep_every_steps: of the older ones the weights of multiples of this are kept; null keeps them all.
        max_skipped_steps: of steps in a row whose loss or gradient is no number; none of them is taken, and
            with the last of so many the run stops and leaves a capture.
        trackers: where metrics go besides ``metrics.jsonl``; their packages are the extras of these names.
        on_changed_data: whether a run resumes on a list of videos that is not the one that it began with.
        on_collapse: whether a sign of collapse, a metric that has left its band, stops the run.
        resume: "auto" goes on with the newest run of this name and recipe where there is one, so that a
            scheduler can repeat one command.
    """

    out: str = "runs"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    channels_last: bool = False
    deterministic: bool = False
    workers: int = 1
    log_every_steps: int = 10
    checkpoint_every_steps: int = 200
    test_batches: int = 8
    knn_every_steps: int | None = None
    accumulate: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout_minutes: float = 30.0
    keep_checkpoints: int = 2
    keep_every_steps: int | None = None
    max_skipped_steps: int = 10
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    on_changed_data: Literal["stop", "resume"] = "stop"
    on_collapse: Literal["warn", "stop"] = "warn"
    resume: Literal["never", "auto"] = "never"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.timeout_minutes <= 0:
            raise ValueError(f"timeout_minutes must be above 0, got {self.timeout_minutes}")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers are named once each, got {', '.join(self.trackers)}")
        counts = {
            "log_every_steps": self.log_every_steps,
            "checkpoint_every_steps": self.checkpoint_every_steps,
            "test_batches": self.test_batches,
            "knn_every_steps": self.knn_every_steps,
            "accumulate": self.accumulate,
            "keep_checkpoints": self.keep_checkpoints,
            "keep_every_steps": self.keep_every_steps,
            "max_skipped_steps": self.max_skipped_steps,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")


STREAMS = ("video", "image")
UNKNOWN_SHA256 = "unknown"
MIN_MATCHED = 0.9  # of a backbone's numbers: share that ``init`` must fill where a recipe says nothing
# keys that a recipe may leave out, by which a short name typed without its section is recognised
_BELOW = ("schedule.epochs", "schedule.steps", *(f"run.{key.name}" for key in fields(RunSpec)))
_WEIGHTS_KEYS = ("weights", "sha256", "source", "licence", "command")


@dataclass(frozen=True)
class WeightsSpec:
    """Weights that a tokenizer file names, and what it says of them.

    Attributes:
        path: the file, absolute.
        sha256: of the file, in hexadecimal; ``UNKNOWN_SHA256`` where only the user has the file.
        source: where the weights come from.
        licence: under which they may be used.
        command: what made them, where one did.
        node: the ``weights`` key.
    """

    path: Path
    sha256: str
    source: str
    licence: str
    command: str | None
    node: Node


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer: its class and keys, and its weights unless a recipe trains it.

    Attributes:
        name: of the file in ``tokenizers/``; None where it is written into a recipe.
        node: the key that names it, or the mapping.
    """

    part: PartSpec
    weights: WeightsSpec | None
    name: str | None
    node: Node


@dataclass(frozen=True)
class StreamSpec:
    """A stream of training samples: where from, which views of each, how many a step.

    Attributes:
        test_source: held-out samples that the objective's metrics are measured on, through the same views.
        subset: the draw of labelled samples of ``source`` that is trained on; None for all.
    """

    source: PartSpec
    test_source: PartSpec | None
    views: PartSpec
    batch_size: int
    subset: Subset | None
    node: Node


@dataclass(frozen=True)
class DataSpec:
    """The data of a recipe.

    Attributes:
        streams: by name, ``video`` and ``image``; at least one.
        max_unreadable_share: of a source's samples; past it, training stops with their list.
    """

    streams: Mapping[str, StreamSpec]
    probe: ProbeSpec | None
    max_unreadable_share: float
    node: Node


@dataclass(frozen=True)
class Recipe:
    """A whole experiment.

    Attributes:
        init: what the backbone starts from, a run, file or ``timm:`` name; None for random weights.
        init_min_matched: share of the backbone's numbers that must come from there (``load_init``).
        init_window: attention window of the network that ``init`` is of; None where the weights tell.
        node: the whole tree, overrides applied.
    """

    name: str
    seed: int
    objective: PartSpec
    backbone: PartSpec | None
    init: str | None
    init_min_matched: float
    init_window: GridSize | None
    tokenizer: TokenizerSpec | None
    masker: PartSpec | None
    data: DataSpec
    augment: PartSpec | None
    optim: PartSpec
    schedule: PartSpec
    run: RunSpec
    node: Node = field(repr=False)

    @property
    def trees(self) -> tuple[Node, ...]:
        """The whole tree, and that of a tokenizer file that it names."""
        return (self.node,) if self.tokenizer is None else (self.node, self.tokenizer.part.node)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file or name, with dotted overrides (``optim.lr=1e-3``) applied.

    Raises:
        UsageError: for anything wrong with the file that shows without knowing the components.
    """
    tree, path = read("recipes", name)
    return read_recipe(overridden(tree, overrides), path.parent)


def recipe_from_text(text: str, name: str) -> Recipe:
    """The recipe in a text of one's own; ``name`` is for messages.

    Raises:
        UsageError: as ``load_recipe``.
    """
    return read_recipe(parse(text, lambda line: f"{name}:{line}"), Path.cwd())


def load_tokenizer_spec(name: str) -> TokenizerSpec:
    """The tokenizer file of a path or name.

    Raises:
        UsageError: as ``load_recipe``, and if the file names no weights.
    """
    node, path = read("tokenizers", name)
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

    Raises:
        UsageError: at the first thing that is wrong.
    """
    optional = ("seed", "backbone", "tokenizer", "masker", "augment", "run")
    entries = node.entries(("name", "objective", "data", "optim", "schedule"), optional, below=_BELOW)
    # null takes a section away, so that an override can
    sections = {
        key: entry for key, entry in entries.items() if key not in optional or entry.value is not None
    }
    backbone = read_optional_part(
        sections, "backbone", apart=("type", "init", "init_min_matched", "init_window")
    )
    init = backbone.node.mapping().get("init") if backbone else None
    return Recipe(
        name=read_text(sections["name"]),
        seed=read_count(sections, "seed", default=0, lowest=0),
        objective=read_part(sections["objective"]),
        backbone=backbone,
        init=None if init is None or init.value is None else read_text(init),
        init_min_matched=_min_matched(backbone),
        init_window=_init_window(backbone),
        tokenizer=_recipe_tokenizer(sections["tokenizer"], folder) if "tokenizer" in sections else None,
        masker=read_optional_part(sections, "masker"),
        data=_data(sections["data"]),
        augment=read_optional_part(sections, "augment"),
        optim=read_part(sections["optim"]),
        schedule=read_part(sections["schedule"]),
        run=construct(sections["run"], RunSpec) if "run" in sections else RunSpec(),
        node=replace(node, value=sections),
    )


def _min_matched(backbone: PartSpec | None) -> float:
    entries = {} if backbone is None else backbone.node.mapping()
    if "init_min_matched" not in entries:
        return MIN_MATCHED
    share = convert(entries["init_min_matched"], float)
    if "init" not in entries:
        raise entries["init_min_matched"].error("says something of 'init', and there is none")
    if not isinstance(share, float) or not 0 <= share <= 1:
        raise entries["init_min_matched"].error(f"must lie between 0 and 1, got {share}")
    return share


def _init_window(backbone: PartSpec | None) -> GridSize | None:
    entries = {} if backbone is None else backbone.node.mapping()
    if "init_window" not in entries:
        return None
    if "init" not in entries:
        raise entries["init_window"].error("says something of 'init', and there is none")
    window = cast(GridSize, convert(entries["init_window"], tuple[int, int, int]))
    if min(window) < 1:
        raise entries["init_window"].error(f"must be positive, got {window}")
    return window


def _recipe_tokenizer(node: Node, folder: Path) -> TokenizerSpec:
    if not isinstance(node.value, str):
        return _tokenizer(node, folder)
    try:
        path = read("tokenizers", node.value)[1]
    except UsageError as error:
        raise node.error(str(error)) from None
    return replace(load_tokenizer_spec(str(path)), name=node.value, node=node)


def _tokenizer(node: Node, folder: Path) -> TokenizerSpec:
    part = read_part(node, ("type", *_WEIGHTS_KEYS))
    entries = node.mapping()
    if "weights" not in entries:
        stray = [key for key in _WEIGHTS_KEYS if key in entries]
        if stray:
            raise entries[stray[0]].error("says something of weights, but there is no 'weights'")
        return TokenizerSpec(part, None, None, node)
    missing = [key for key in ("sha256", "source", "licence") if key not in entries]
    if missing:
        raise node.error(f"missing {', '.join(repr(key) for key in missing)}, which weights need")
    if entries["sha256"].value == UNKNOWN_SHA256 and "command" not in entries:
        raise entries["sha256"].error("may only be 'unknown' where 'command' says how the file is made")
    weights = WeightsSpec(
        path=(folder / read_text(entries["weights"])).resolve(),
        sha256=read_text(entries["sha256"]).lower(),
        source=read_text(entries["source"]),
        licence=read_text(entries["licence"]),
        command=read_text(entries["command"]) if "command" in entries else None,
        node=entries["weights"],
    )
    return TokenizerSpec(part, weights, None, node)


def _data(node: Node) -> DataSpec:
    given = node.entries((), (*STREAMS, "probe", "max_unreadable_share"))
    entries = {key: entry for key, entry in given.items() if entry.value is not None}  # as in read_recipe
    streams = {name: _stream(entries[name]) for name in STREAMS if name in entries}
    if not streams:
        raise node.error(f"no stream: give one or more of {', '.join(STREAMS)}")
    share = convert(entries["max_unreadable_share"], float) if "max_unreadable_share" in entries else 0.01
    if not isinstance(share, float) or not 0 <= share <= 1:
        raise entries["max_unreadable_share"].error(f"must lie between 0 and 1, got {share}")
    return DataSpec(streams, read_probe(entries["probe"]) if "probe" in entries else None, share, node)


def _stream(node: Node) -> StreamSpec:
    optional = ("test_source", "subset")
    given = node.entries(("source", "views", "batch_size"), optional)
    entries = {key: entry for key, entry in given.items() if key not in optional or entry.value is not None}
    return StreamSpec(
        source=read_part(entries["source"]),
        test_source=read_optional_part(entries, "test_source"),
        views=read_part(entries["views"]),
        batch_size=read_count(entries, "batch_size", default=1, lowest=1),
        subset=construct(entries["subset"], Subset) if "subset" in entries else None,
        node=node,
    )
