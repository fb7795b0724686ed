"""Facts in files of our own, each checked once when it is read: metadata of tensors, and objects of JSON.

A file may be damaged or come from anywhere. Every fact is read under its type and range, and what does not
fit is an error that names the field, and with it the file and line.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from vidssl.config.schema import convert
from vidssl.config.strict_yaml import MAX_DEPTH, Node
from vidssl.errors import UsageError

Record = TypeVar("Record")
Choice = TypeVar("Choice")


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
            value = parsed(self.text(field))
        except ValueError as error:
            raise UsageError(f"{self._path}: its metadata: {field}: {error}") from None
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


HIGHEST = 2**63 - 1
_NEEDED = object()


def parsed(text: str | bytes) -> object:
    """A value of JSON, whatever is wrong with the text.

    Raises:
        ValueError: if it is no JSON, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None


class Row:
    """An object of JSON out of a file of ours, often a line of many.

    Each method gives the value of an entry that it holds for valid, or ``default`` where it has no such
    entry. Without a default the entry is needed.

    Args:
        value: as ``parsed`` gave it.
        above: of which entry it is the value, for messages.

    Raises:
        ValueError: from every method, naming the entry; and if ``value`` is no object.
    """

    def __init__(self, value: object, above: str = "") -> None:
        self._above = f"{above}." if above else ""
        if not isinstance(value, dict):
            raise ValueError(f"{above or 'it'} must be an object of JSON, got {_shown(value)}")
        self._entries: dict[str, object] = value

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def entries(self) -> Iterator[tuple[str, object]]:
        """Names and values, as they are."""
        return iter(self._entries.items())

    def value(self, name: str, default: object = _NEEDED) -> object:
        """Whatever it is."""
        if name in self._entries:
            return self._entries[name]
        if default is _NEEDED:
            raise ValueError(f"'{self._above}{name}' is missing")
        return default

    def text(self, name: str, default: object = _NEEDED) -> str:
        value = self.value(name, default)
        return value if isinstance(value, str) else self._refuse(name, "text", value)

    def path(self, name: str, default: object = _NEEDED) -> str:
        """Text that can be the name of a file."""
        value = self.text(name, default)
        try:
            if "\0" not in os.fsencode(value).decode("latin-1"):
                return value
        except UnicodeEncodeError:
            pass
        return self._refuse(name, "the name of a file", value)

    def whole(self, name: str, default: object = _NEEDED, *, lowest: int = 0, highest: int = HIGHEST) -> int:
        """A whole number."""
        value = self.value(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        return self._refuse(name, f"a whole number from {lowest} to {highest}", value)

    def real(self, name: str, default: object = _NEEDED, *, lowest: float = 0.0) -> float:
        """A finite number."""
        value = self.value(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value < math.inf:
            return float(value) if abs(value) < _LARGEST else self._refuse(name, "a smaller number", value)
        return self._refuse(name, f"a finite number from {lowest:g} on", value)

    def real_or_none(self, name: str) -> float | None:
        """A finite number, or None for one that is null or missing."""
        return None if self.value(name, None) is None else self.real(name)

    def reals(self, name: str) -> list[float]:
        """A list of finite numbers."""
        row = Row({str(place): value for place, value in enumerate(self.items(name))}, f"{self._above}{name}")
        return [row.real(place) for place, _ in row.entries()]

    def flag(self, name: str, default: object = _NEEDED) -> bool:
        value = self.value(name, default)
        return value if isinstance(value, bool) else self._refuse(name, "true or false", value)

    def one_of(self, name: str, choices: Sequence[Choice]) -> Choice:
        """One of a few values."""
        value = self.value(name)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        return self._refuse(name, f"one of {', '.join(map(str, choices))}", value)

    def items(self, name: str, default: object = _NEEDED) -> Sequence[Any]:
        """A list."""
        value = self.value(name, default)
        return value if isinstance(value, (list, tuple)) else self._refuse(name, "a list", value)

    def whole_numbers(self, name: str, default: object = _NEEDED) -> Sequence[int]:
        """A list of whole numbers of 64 bits."""
        values = self.items(name, default)
        if all(type(value) is int and abs(value) <= HIGHEST for value in values):
            return values
        return self._refuse(name, "a list of whole numbers", values)

    def row(self, name: str, default: object = _NEEDED) -> "Row":
        """An object within."""
        return Row(self.value(name, default), f"{self._above}{name}")

    def parts(self, name: str, *names: str) -> "Row":
        """A list of as many values as there are names, as an object of these."""
        return parts(self.value(name), f"{self._above}{name}", names)

    def texts(self, name: str, default: object = _NEEDED) -> dict[str, str]:
        """An object whose values are all text."""
        row = self.row(name, default)
        return {key: row.text(key) for key, _ in row.entries()}

    def many_texts(self, name: str, default: object = _NEEDED) -> tuple[str, ...]:
        """A list of texts."""
        values = tuple(self.items(name, default))
        if all(isinstance(value, str) for value in values):
            return values
        return self._refuse(name, "a list of texts", values)

    def names(self) -> dict[str, tuple[str, ...]]:
        """An object whose values are lists of texts."""
        return {key: self.many_texts(key) for key, _ in self.entries()}

    def _refuse(self, name: str, wanted: str, value: object) -> NoReturn:
        raise ValueError(f"'{self._above}{name}' must be {wanted}, got {_shown(value)}")


_LARGEST = 1e300  # beyond, an int is no float


def parts(values: object, above: str, names: Sequence[str]) -> Row:
    """A list of JSON as an object with a name for each value; else as ``Row``."""
    if not isinstance(values, (list, tuple)) or len(values) != len(names):
        raise ValueError(f"{above} must be a list of {', '.join(names)}, got {_shown(values)}")
    return Row(dict(zip(names, values, strict=True)), above)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # an int of thousands of digits
        return "a huge number"


def _tree(value: object, where: str, path: str) -> Node:
    if path.count(".") + path.count("[") > MAX_DEPTH:
        raise Node(None, where, path).error(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        return Node({key: _tree(entry, where, f"{path}.{key}") for key, entry in value.items()}, where, path)
    if isinstance(value, list):
        return Node(tuple(_tree(item, where, f"{path}[{i}]") for i, item in enumerate(value)), where, path)
    assert value is None or isinstance(value, (str, int, float)), "JSON has nothing else"
    return Node(value, where, path)
