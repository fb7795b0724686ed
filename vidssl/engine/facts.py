"""Facts in the metadata of our own files, each checked once when it is read.

Metadata may be damaged or come from anywhere. Every fact is read under its type and range, and what does not
fit is an error that names file and field.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TypeVar, get_type_hints

from vidssl.config.schema import convert
from vidssl.config.strict_yaml import MAX_DEPTH, Node
from vidssl.errors import UsageError

Record = TypeVar("Record")


class Facts:
    """The metadata of a file.

    Args:
        path: of the file.
        metadata: field -> text.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._metadata = metadata

    def text(self, field: str) -> str:
        """A field as it stands.

        Raises:
            UsageError: if it is missing.
        """
        if field not in self._metadata:
            raise UsageError(f"{self._path}: its metadata lacks '{field}': damaged, or not written by vidssl")
        return self._metadata[field]

    def json(self, field: str) -> Node:
        """A field that holds JSON.

        Raises:
            UsageError: if it is missing or not valid JSON.
        """
        try:
            value = json.loads(self.text(field))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{self._path}: its metadata: {field}: not valid JSON ({error})") from None
        return _tree(value, f"{self._path}: its metadata", field)

    def count(self, field: str, lowest: int = 0) -> int:
        """A field that holds a whole number of at least ``lowest``; errors as ``json``."""
        return count(self.json(field), lowest)

    def number(self, field: str) -> float:
        """A field that holds a finite number of at least 0; errors as ``json``."""
        node = self.json(field)
        value = convert(node, float)
        if not isinstance(value, float) or not 0 <= value < math.inf:
            raise node.error(f"must be finite and at least 0, got {value}")
        return value


def count(node: Node, lowest: int = 0) -> int:
    """A whole number from ``lowest`` on that fits into 63 bits.

    Raises:
        UsageError: for anything else.
    """
    value = convert(node, int)
    if not isinstance(value, int) or not lowest <= value < 2**63:
        raise node.error(f"must be a whole number from {lowest} to 2**63 - 1")
    return value


def record(node: Node, kind: type[Record]) -> Record:
    """A dataclass from a mapping of its fields; those with a default may be left out, counts start at 0.

    Raises:
        UsageError: for a missing or unknown field, or one of another type.
    """
    hints = get_type_hints(kind)
    defaults = {field.name: field.default is not MISSING for field in fields(kind)}  # type: ignore[arg-type]
    required = [name for name, optional in defaults.items() if not optional]
    entries = node.entries(required, list(defaults))
    found = {
        name: count(entry) if hints[name] is int else convert(entry, hints[name])
        for name, entry in entries.items()
    }
    return kind(**found)


def _tree(value: object, where: str, path: str) -> Node:
    if path.count(".") + path.count("[") > MAX_DEPTH:
        raise Node(None, where, path).error(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return Node({key: _tree(entry, where, f"{path}.{key}") for key, entry in value.items()}, where, path)
    if isinstance(value, list):
        return Node(tuple(_tree(item, where, f"{path}[{i}]") for i, item in enumerate(value)), where, path)
    assert value is None or isinstance(value, (str, int, float)), "JSON has nothing else"
    return Node(value, where, path)
