"""Evaluation protocols: how a model is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from vidssl.config.few_labels import FewLabels
from vidssl.config.files import read
from vidssl.config.recipe import Recipe, overridden
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
from vidssl.config.strict_yaml import Node, moved

Layers = Literal["last", "all", "patches"]
ViewAverage = Literal["scores", "probabilities"]
Average = Literal["features", ViewAverage]
FrameOrder = Literal["normal", "single", "shuffled", "reversed"]
OverlapRule = Literal["error", "allow"]
PatchType = Literal["float16", "bfloat16"]
_BELOW = ("run.device", "run.precision", "run.workers")  # of the evaluation, not of the protocol
_OPTIONAL = (
    "layers",
    "average",
    "frames",
    "batch_size",
    "views",
    "train_views",
    "data",
    "patches",
    "few_labels",
    "overlap",
)


@dataclass(frozen=True)
class Protocol:
    """How a model is measured.

    Attributes:
        layers: "last" for the last layer's vector, "all" for the means of all stages side by side, "patches"
            for the mean of the last patches though there is a class token, which BEVT, say, never trains.
        average: over the views of a video: "features" before the probe; or each view is a sample to the
            probe, and its "scores" as they are or the "probabilities" made of them are averaged.
        frames: orders of a test clip's frames that the probe is scored on; it learns on "normal" ones.
        batch_size: clips that go through the encoder together.
        views: test views, used instead of those of ``data``; None where it has none of its own.
        train_views: of the videos to learn from; None for the test views.
        data: used instead of the recipe's ``data.probe`` where given. Its views are those of the
            protocol where it has some.
        patches: how patch tokens are kept; None for the default, float16, or where the evaluator reads none.
        few_labels: how many of the labelled videos are learned from; None for all.
        overlap: whether test videos that are learned from are an error, or allowed and stated.
    """

    name: str
    evaluator: PartSpec
    layers: Layers
    average: Average
    frames: tuple[FrameOrder, ...]
    batch_size: int
    views: PartSpec | None
    train_views: PartSpec | None
    data: ProbeSpec | None
    patches: PatchType | None
    few_labels: FewLabels | None
    overlap: OverlapRule
    node: Node = field(repr=False)


def load_protocol(name: str, overrides: Sequence[str] = (), recipe: Recipe | None = None) -> Protocol:
    """The protocol of a file or name, with dotted overrides applied.

    Args:
        recipe: its ``data.probe`` stands in for the ``data`` of a protocol that has none, so that
            overrides can change a part of it.

    Raises:
        UsageError: for anything wrong with the file that shows without knowing the components.
    """
    return read_protocol(protocol_tree(name, overrides, recipe))


def protocol_tree(name: str, overrides: Sequence[str] = (), recipe: Recipe | None = None) -> Node:
    """The tree of a file or name in ``evaluation``; arguments and errors as those of ``load_protocol``."""
    node = read("evaluation", name)[0]
    probe = recipe.data.node.mapping().get("probe") if recipe else None
    sections = node.mapping()
    if probe is None or probe.value is None or "data" in sections:
        return overridden(node, overrides)
    data = moved(probe, "data")
    tree = overridden(replace(node, value={**sections, "data": data}), overrides)
    return _without_views_of(data, tree)


def _without_views_of(data: Node, tree: Node) -> Node:
    """The tree without the recipe's views, unchanged by overrides, where the protocol has views itself."""
    sections = tree.mapping()
    own, mine = sections.get("views"), sections["data"]
    if own is None or own.value is None or not isinstance(mine.value, Mapping):
        return tree
    # what an override changed is another node; views that a user wrote are never dropped unsaid
    rest = {key: entry for key, entry in mine.value.items() if entry is not data.mapping().get("views")}
    return replace(tree, value={**sections, "data": replace(mine, value=rest)})


def read_protocol(node: Node) -> Protocol:
    """The protocol in a tree.

    Raises:
        UsageError: at the first thing that is wrong.
    """
    entries = node.entries(("name", "evaluator"), _OPTIONAL, below=_BELOW)
    # null takes a section away, so that an override can
    sections = {
        key: entry for key, entry in entries.items() if key not in _OPTIONAL or entry.value is not None
    }
    return Protocol(
        name=read_text(sections["name"]),
        evaluator=read_part(sections["evaluator"]),
        layers=_layers(sections),
        average=_average(sections),
        frames=read_frames(sections),
        batch_size=read_count(sections, "batch_size", default=32, lowest=1),
        views=read_optional_part(sections, "views"),
        train_views=read_optional_part(sections, "train_views"),
        data=read_data(sections),
        patches=_patches(sections),
        few_labels=read_few_labels(sections),
        overlap=read_overlap(sections),
        node=replace(node, value=sections),
    )


def read_data(sections: Mapping[str, Node]) -> ProbeSpec | None:
    """The labelled data of a protocol, its own ``views`` put in; None where it names none.

    Raises:
        UsageError: if a part is missing, or the views are given twice.
    """
    if "data" not in sections:
        return None
    data = sections["data"]
    if "views" not in sections:
        return read_probe(data)
    if "views" in data.mapping():
        raise data.mapping()["views"].error("given twice: the protocol's own 'views' are the test views")
    return read_probe(replace(data, value={**data.mapping(), "views": sections["views"]}))


def _layers(sections: Mapping[str, Node]) -> Layers:
    return cast(Layers, convert(sections["layers"], Layers)) if "layers" in sections else "last"


def _average(sections: Mapping[str, Node]) -> Average:
    found = convert(sections["average"], Average) if "average" in sections else "features"
    choices: tuple[Average, ...] = get_args(Average)
    return next(choice for choice in choices if choice == found)


def _patches(sections: Mapping[str, Node]) -> PatchType | None:
    if "patches" not in sections:
        return None
    return "bfloat16" if convert(sections["patches"], PatchType) == "bfloat16" else "float16"


def read_overlap(sections: Mapping[str, Node]) -> OverlapRule:
    """Whether test videos may be learned from.

    Raises:
        UsageError: for another value than "error" and "allow".
    """
    return cast(OverlapRule, convert(sections["overlap"], OverlapRule)) if "overlap" in sections else "error"


def read_few_labels(sections: Mapping[str, Node]) -> FewLabels | None:
    """The amounts of labelled videos to learn from; None where nothing is said, for all.

    Raises:
        UsageError: for an unknown key, or a number out of its range.
    """
    return construct(sections["few_labels"], FewLabels) if "few_labels" in sections else None


def read_frames(sections: Mapping[str, Node]) -> tuple[FrameOrder, ...]:
    """The orders of a test clip's frames, in the order that ``FrameOrder`` names them.

    Raises:
        UsageError: if one is unknown or named twice, or "normal" is missing.
    """
    if "frames" not in sections:
        return ("normal",)
    found = convert(sections["frames"], tuple[FrameOrder, ...])
    assert isinstance(found, tuple), "convert gives what the annotation says"
    if "normal" not in found or len(set(found)) < len(found):
        raise sections["frames"].error("must hold 'normal', and nothing twice")
    choices: tuple[FrameOrder, ...] = get_args(FrameOrder)
    return tuple(choice for choice in choices if choice in found)


_REQUIRED = ("name", "objective", "train_views", "batch_size", "optim", "schedule")
_FINETUNE_OPTIONAL = (
    "average",
    "backbone",
    "augment",
    "run",
    "seed",
    "labels",
    "views",
    "frames",
    "test_batch_size",
    "compare_untrained",
    "data",
    "few_labels",
    "overlap",
)


@dataclass(frozen=True)
class FinetuneProtocol:
    """How a network is finetuned and then measured.

    Attributes:
        objective: ``classification`` with its keys, but for the label and its number of classes.
        backbone: keys of the recipe's backbone that are changed.
        train_views: a random clip of each video to learn from.
        batch_size: videos a step.
        run: keys of a recipe's ``run``; device, precision and workers are the pre-training's by default.
        seed: of the finetuning; None for the pre-training's.
        labels: a network is finetuned for each of them; None for every label the videos have.
        views: test views; None for those of ``data``.
        average: over the test views of a video: the "scores" of its classes as they are, or the
            "probabilities" made of them.
        frames: orders of a test clip's frames that the network is scored on.
        test_batch_size: videos that are tested together.
        compare_untrained: whether the network is also trained from its first, random weights.
        data: the videos; None where neither the protocol nor the recipe names any.
        few_labels: how many of the labelled videos are learned from; None for all.
        overlap: whether test videos that are learned from are an error, or allowed and stated.
    """

    name: str
    objective: PartSpec
    backbone: Mapping[str, Node]
    train_views: PartSpec
    batch_size: Node
    augment: PartSpec | None
    optim: PartSpec
    schedule: PartSpec
    run: Mapping[str, Node]
    seed: int | None
    labels: tuple[str, ...] | None
    views: PartSpec | None
    average: ViewAverage
    frames: tuple[FrameOrder, ...]
    test_batch_size: int
    compare_untrained: bool
    data: ProbeSpec | None
    few_labels: FewLabels | None
    overlap: OverlapRule
    node: Node = field(repr=False)


def load_any_protocol(
    name: str, overrides: Sequence[str] = (), recipe: Recipe | None = None
) -> Protocol | FinetuneProtocol:
    """The protocol of a file or name; one that has an ``objective`` finetunes.

    Raises:
        UsageError: as ``load_protocol``.
    """
    node = protocol_tree(name, overrides, recipe)
    return read_finetune_protocol(node) if "objective" in node.mapping() else read_protocol(node)


def finetunes(name: str) -> bool:
    """Whether the protocol of a file or name finetunes.

    Raises:
        UsageError: if there is no such protocol.
    """
    return "objective" in read("evaluation", name)[0].mapping()


def read_finetune_protocol(node: Node) -> FinetuneProtocol:
    """The protocol in a tree.

    Raises:
        UsageError: at the first thing that is wrong.
    """
    entries = node.entries(_REQUIRED, _FINETUNE_OPTIONAL, below=("schedule.epochs", "schedule.steps"))
    # null takes a section away, so that an override can
    sections = {key: entry for key, entry in entries.items() if key in _REQUIRED or entry.value is not None}
    read_count(sections, "batch_size", default=1, lowest=1)
    return FinetuneProtocol(
        name=read_text(sections["name"]),
        objective=read_part(sections["objective"]),
        backbone=_keys(sections, "backbone", but="init"),
        train_views=read_part(sections["train_views"]),
        batch_size=sections["batch_size"],
        augment=read_optional_part(sections, "augment"),
        optim=read_part(sections["optim"]),
        schedule=read_part(sections["schedule"]),
        run=_keys(sections, "run", but="out"),
        seed=read_count(sections, "seed", default=0, lowest=0) if "seed" in sections else None,
        labels=_labels(sections),
        views=read_optional_part(sections, "views"),
        average="scores" if _finetune_average(sections) == "scores" else "probabilities",
        frames=read_frames(sections),
        test_batch_size=read_count(sections, "test_batch_size", default=8, lowest=1),
        compare_untrained=_flag(sections, "compare_untrained"),
        data=read_data(sections),
        few_labels=read_few_labels(sections),
        overlap=read_overlap(sections),
        node=replace(node, value=sections),
    )


def _keys(sections: Mapping[str, Node], name: str, *, but: str) -> Mapping[str, Node]:
    """The entries of a section, none where it is missing; ``but`` is decided elsewhere."""
    entries = sections[name].mapping() if name in sections else {}
    if but in entries:
        raise entries[but].error(f"is not for a protocol to say: the run that is evaluated decides '{but}'")
    return entries


def _labels(sections: Mapping[str, Node]) -> tuple[str, ...] | None:
    if "labels" not in sections:
        return None
    found = convert(sections["labels"], tuple[str, ...])
    assert isinstance(found, tuple), "convert gives what the annotation says"
    if not found or len(set(found)) < len(found):
        raise sections["labels"].error("must name one or more labels, none of them twice")
    return found


def _finetune_average(sections: Mapping[str, Node]) -> object:
    return convert(sections["average"], ViewAverage) if "average" in sections else None


def _flag(sections: Mapping[str, Node], key: str) -> bool:
    return convert(sections[key], bool) is True if key in sections else False


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What is measured.

    Attributes:
        videos: how many, evenly spread over the source; one clip of each.
        noise: standard deviation of the noise behind the flicker.
        shown: videos on the sheet of reconstructions.
    """

    videos: int = 200
    noise: float = 0.01
    shown: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.videos, self.shown) < 1:
            raise ValueError(f"videos and shown must be at least 1, got {self.videos} and {self.shown}")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")


@dataclass(frozen=True)
class TokenizerProtocol:
    """How tokenizers are measured.

    Attributes:
        batch_size: clips that are encoded together.
        views: the clip of a video; the first slot of the first view is taken.
        test: where the videos come from.
    """

    name: str
    measure: MeasureSpec
    batch_size: int
    views: PartSpec
    test: PartSpec
    node: Node = field(repr=False)


def measures_tokenizers(name: str) -> bool:
    """Whether the protocol of a file or name measures tokenizers.

    Raises:
        UsageError: if there is no such protocol.
    """
    return "measure" in read("evaluation", name)[0].mapping()


def load_tokenizer_protocol(name: str, overrides: Sequence[str] = ()) -> TokenizerProtocol:
    """The protocol of a file or name, with dotted overrides applied.

    Raises:
        UsageError: for anything wrong with the file that shows without knowing the components.
    """
    node = overridden(read("evaluation", name)[0], overrides)
    sections = node.entries(("name", "measure", "views", "data"), ("batch_size",))
    data = sections["data"].entries(("test",))
    return TokenizerProtocol(
        name=read_text(sections["name"]),
        measure=construct(sections["measure"], MeasureSpec),
        batch_size=read_count(sections, "batch_size", default=32, lowest=1),
        views=read_part(sections["views"]),
        test=read_part(data["test"]),
        node=node,
    )
