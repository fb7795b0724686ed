"""What a finetuning protocol's parts must have in common, checked before any run or data is touched."""

from collections.abc import Mapping
from typing import TypeVar

import torch

from vidssl.components import (
    AUGMENT,
    BACKBONE,
    OBJECTIVE,
    OPTIMIZER,
    SCHEDULE,
    SOURCE,
    VIEW_SAMPLER,
    Kind,
    constructor_of,
)
from vidssl.finetune_protocol import FinetuneProtocol
from vidssl.interfaces import Objective
from vidssl.objectives.classification import Classification
from vidssl.run_spec import RunSpec
from vidssl.schema import bind, construct
from vidssl.sections import PartSpec
from vidssl.spec import Node

Component = TypeVar("Component")
_ABOUT_DATA = ("label", "num_classes")  # keys of the objective that the videos decide


def check_finetune_protocol(protocol: FinetuneProtocol) -> None:
    """Builds the parts of a protocol, with a stand-in for the backbone, and checks that its views fit.

    Raises:
        UsageError: at the first thing that is wrong, with its place.
    """
    objective = _objective(protocol)
    for part, kind in ((protocol.optim, OPTIMIZER), (protocol.schedule, SCHEDULE)):
        _construct(part, kind)
    if protocol.augment is not None:
        _construct(protocol.augment, AUGMENT)
    construct(Node(protocol.run, protocol.node.where, "run"), RunSpec)
    _check_views(protocol.train_views, objective.needs_views)
    tested = protocol.views if protocol.data is None else protocol.data.views
    if tested is not None:
        _check_views(tested, objective.needs_views)
    if protocol.data is not None:
        for source in (protocol.data.train, protocol.data.test):
            bind(source.node, constructor_of(source, SOURCE), source.apart)


def objective_keys(protocol: FinetuneProtocol) -> dict[str, object]:
    """All keys of the objective, defaults too, but for those that the videos decide.

    Raises:
        UsageError: for an unknown key, or a value of a wrong type.
    """
    part = protocol.objective
    values = bind(_with_stand_ins(part), Classification, part.apart)
    return {key: value for key, value in values.items() if key not in _ABOUT_DATA}


def _with_stand_ins(part: PartSpec) -> Node:
    stand_in = {key: Node(2 if key == "num_classes" else "", part.node.where, "") for key in _ABOUT_DATA}
    return Node({**part.node.mapping(), **stand_in}, part.node.where, part.node.path)


def _objective(protocol: FinetuneProtocol) -> Objective:
    part = protocol.objective
    entries = part.node.mapping()
    if constructor_of(part, OBJECTIVE) is not Classification:
        raise entries["type"].error("a protocol finetunes with the objective 'classification'")
    for key in _ABOUT_DATA:
        if key in entries:
            raise entries[key].error("the videos decide it: leave it out (labels are chosen by 'labels')")
    with torch.device("meta"):
        backbone = BACKBONE.table["vit"](embed_dim=6, depth=1, num_heads=1)
        return construct(_with_stand_ins(part), Classification, backbone, apart=part.apart)


def _check_views(part: PartSpec, needed: Mapping[str, int]) -> None:
    """The views are those that the objective reads, as many slots of each.

    Raises:
        UsageError: if not.
    """
    slots = {name: len(shapes) for name, shapes in _construct(part, VIEW_SAMPLER).shapes.items()}
    if set(slots) != set(needed) or len(set(slots.values())) != 1:
        given = ", ".join(f"{count} of '{name}'" for name, count in slots.items())
        raise part.node.error(
            f"gives {given}; the objective reads {', '.join(needed)}, as many of each: set objective.views"
        )


def _construct(part: PartSpec, kind: Kind[Component]) -> Component:
    return construct(part.node, constructor_of(part, kind), apart=part.apart)
