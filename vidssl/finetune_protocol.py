"""Protocols that finetune: the whole network is trained on labelled videos before it is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vidssl.few_labels import FewLabels
from vidssl.protocol import (
    FrameOrder,
    OverlapRule,
    Protocol,
    ViewAverage,
    protocol_tree,
    read_data,
    read_few_labels,
    read_frames,
    read_overlap,
    read_protocol,
)
from vidssl.recipe import Recipe
from vidssl.schema import convert
from vidssl.sections import (
    PartSpec,
    ProbeSpec,
    read_count,
    read_optional_part,
    read_part,
    read_text,
)
from vidssl.spec import Node
from vidssl.spec_files import read

_REQUIRED = ("name", "objective", "train_views", "batch_size", "optim", "schedule")
_OPTIONAL = (
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
    entries = node.entries(_REQUIRED, _OPTIONAL, below=("schedule.epochs", "schedule.steps"))
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
        average="scores" if _average(sections) == "scores" else "probabilities",
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


def _average(sections: Mapping[str, Node]) -> object:
    return convert(sections["average"], ViewAverage) if "average" in sections else None


def _flag(sections: Mapping[str, Node], key: str) -> bool:
    return convert(sections[key], bool) is True if key in sections else False
