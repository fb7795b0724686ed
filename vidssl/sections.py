"""Sections that recipes and evaluation protocols share: components, and labelled data for probes."""

from collections.abc import Mapping
from dataclasses import dataclass

from vidssl.schema import convert
from vidssl.spec import Node


@dataclass(frozen=True)
class PartSpec:
    """A component that a spec names.

    Attributes:
        type: a name in the component's table, or ``my_file.py:MyClass``.
        node: the section, a mapping.
        apart: its keys that are not the constructor's.
    """

    type: str
    node: Node
    apart: tuple[str, ...] = ("type",)


@dataclass(frozen=True)
class ProbeSpec:
    """Labelled data for probes: two sources and the views that features are taken from."""

    train: PartSpec
    test: PartSpec
    views: PartSpec


def read_part(node: Node, apart: tuple[str, ...] = ("type",)) -> PartSpec:
    """The component in a section.

    Raises:
        UsageError: if the section names no ``type``.
    """
    entries = node.mapping()
    if "type" not in entries:
        raise node.error("missing 'type'")
    return PartSpec(read_text(entries["type"]), node, apart)


def read_optional_part(
    sections: Mapping[str, Node], key: str, apart: tuple[str, ...] = ("type",)
) -> PartSpec | None:
    """The component in a section, None where there is no such section."""
    return read_part(sections[key], apart) if key in sections else None


def read_probe(node: Node) -> ProbeSpec:
    """Labelled data.

    Raises:
        UsageError: if a source or the views are missing.
    """
    entries = node.entries(("train", "test", "views"))
    return ProbeSpec(read_part(entries["train"]), read_part(entries["test"]), read_part(entries["views"]))


def read_text(node: Node) -> str:
    """A text that is not empty.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(node.value, str) or not node.value:
        raise node.error(f"expected text, got {node.shown()}")
    return node.value


def read_count(sections: Mapping[str, Node], key: str, *, default: int, lowest: int) -> int:
    """A whole number of at least ``lowest``; ``default`` where the key is missing.

    Raises:
        UsageError: for anything else.
    """
    if key not in sections:
        return default
    value = convert(sections[key], int)
    if not isinstance(value, int) or value < lowest:
        raise sections[key].error(f"must be at least {lowest}, got {value}")
    return value
