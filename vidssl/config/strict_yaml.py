"""Strict YAML: every value with its file and line, and the nearest valid name for every misspelt one.

Knows nothing of video. Whatever cannot be read raises a ``UsageError`` that names the place.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vidssl.errors import UsageError

Scalar = str | int | float | bool | None

MAX_DEPTH = 32  # nesting of brackets; deeper is no recipe, and would exhaust Python's stack
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
# many times as fast as the one in Python, which stands in where PyYAML was built without libyaml
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_KEY_PATH = re.compile(r"\w+(\.\w+)*")
_SYNONYMS = {"gpu": "cuda"}  # what people type, and what it is called here
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A value of a YAML text that remembers where it stands. Equal values are equal wherever they stand.

    Attributes:
        value: a scalar, a tuple of nodes, or a mapping of nodes.
        where: ``recipes/bevt.yaml:15`` (for an entry of a mapping, its key's line), or the override's text.
        path: dotted key, empty at the root.
    """

    value: "Scalar | tuple[Node, ...] | Mapping[str, Node]"
    where: str = field(compare=False)
    path: str = field(compare=False)

    def error(self, problem: str) -> UsageError:
        """The error to raise about this value: where it stands, its key and the problem, on one line."""
        place = f"{self.where}: {self.path}" if self.path else self.where
        return UsageError(f"{place}: {' '.join(problem.split())}")

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors that are raised inside become errors about this value."""
        try:
            yield
        except ValueError as error:
            raise self.error(str(error)) from error

    def mapping(self) -> "Mapping[str, Node]":
        """The entries of a mapping; a ``UsageError`` if this is none."""
        if not isinstance(self.value, Mapping):
            raise self.error(f"expected keys with values, got {self.shown()}")
        return self.value

    def entries(
        self,
        required: Collection[str],
        optional: Collection[str] = (),
        wanted: Callable[[str], str] | None = None,
        below: Collection[str] = (),
    ) -> "Mapping[str, Node]":
        """The entries of a mapping that has all of the required keys and none but those named.

        Args:
            wanted: describes the value of a required key.
            below: dotted keys that may stand below this mapping, besides those that do.

        Raises:
            UsageError: at an unknown key (with the same key further below, or the nearest known one) or for a
                missing one.
        """
        entries, known = self.mapping(), [*required, *optional]
        for key, entry in entries.items():
            if key not in known:
                deeper = _deeper(self, key, below)
                hint = f"Did you mean {deeper}?" if deeper else nearest(key, known, "Known keys")
                raise entry.error(f"unknown key. {hint}")
        missing = [key for key in required if key not in entries]
        if missing:
            words = {key: wanted(key) if wanted else "" for key in missing}
            named = [repr(key) + (f" ({words[key]})" if words[key] else "") for key in missing]
            raise self.error(f"missing {', '.join(named)}")
        return entries

    def shown(self) -> str:
        """The value as an error message names it."""
        if isinstance(self.value, Mapping):
            return "a mapping"
        if isinstance(self.value, tuple):
            return f"a list of {len(self.value)}"
        if self.value is None:
            return "nothing"
        return repr(self.value) if isinstance(self.value, str) else dump_flow(self.value)


def _deeper(node: Node, key: str, below: Collection[str]) -> str:
    """``'optim.lr'``: the dotted names of a key further below a mapping; empty if there are none, or many."""
    prefix = f"{node.path}." if node.path else ""
    names = dict.fromkeys([*_paths(node), *(f"{prefix}{name}" for name in below)])
    found = [name for name in names if name.endswith(f".{key}") and name != f"{prefix}{key}"]
    return " or ".join(f"'{name}'" for name in found) if len(found) <= 4 else ""


def _paths(node: Node) -> Iterator[str]:
    """Dotted names of all that stands below a mapping."""
    for entry in node.value.values() if isinstance(node.value, Mapping) else ():
        yield entry.path
        yield from _paths(entry)


def nearest(name: str, choices: Iterable[str], label: str) -> str:
    """``Did you mean 'x'?`` where a choice is close to ``name``, otherwise all choices after ``label``."""
    names = sorted(set(choices))
    close = difflib.get_close_matches(_SYNONYMS.get(name, name), names, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"{label}: {', '.join(names) or 'none'}"


def load(path: Path) -> Node:
    """The tree of a YAML file, every value with its file and line."""
    name = displayed(path)
    return parse(read_file(path), lambda line: f"{name}:{line}")


def read_file(path: Path) -> str:
    """The text of a file in UTF-8."""
    name = displayed(path)
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None


def displayed(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the working folder."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved)


def parse(text: str, where: Callable[[int], str], path: str = "") -> Node:
    """The tree of a YAML text. Anchors, aliases, merge keys, tags and repeated keys are refused.

    Args:
        text: one YAML document.
        where: from a line number to the place that messages name.
        path: dotted key at which the text stands.
    """
    try:
        events = _events(text)
    except yaml.MarkedYAMLError as error:
        raise UsageError(f"{where(_line(error.problem_mark))}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{where(line)}: not valid YAML: {error.reason}") from None
    _refuse_indirection(events, where)
    values = (event for event in events if isinstance(event, (yaml.NodeEvent, yaml.CollectionEndEvent)))
    first = next(values, None)
    return (
        Node(None, where(1), path)
        if first is None
        else _node(first, values, where, _line(first.start_mark), path)
    )


def _events(text: str) -> list[yaml.Event]:
    """All events. Of what the C parser refuses, or takes more lightly (tabs), the slow one judges."""
    if "\t" not in text:
        with suppress(yaml.YAMLError):
            return list(yaml.parse(text, Loader=_LOADER))
    return list(yaml.parse(text, Loader=yaml.SafeLoader))


def _refuse_indirection(events: Sequence[yaml.Event], where: Callable[[int], str]) -> None:
    depth = documents = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        problem = ""
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            problem = "anchors (&) and aliases (*) are refused: write the value out"
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            problem = f"the tag {event.tag!r} is refused: write the plain value"
        elif depth > MAX_DEPTH:
            problem = f"nested more than {MAX_DEPTH} deep"
        elif documents > 1:
            problem = "not valid YAML: but found another document"
        if problem:
            raise UsageError(f"{where(_line(event.start_mark))}: {problem}")


def _line(mark: Any) -> int:
    line: int = mark.line  # the C parser has marks of its own
    return line + 1


def _node(
    event: yaml.Event, rest: Iterator[yaml.Event], where: Callable[[int], str], line: int, path: str
) -> Node:
    """The value that begins with an event; takes those that belong to it from the rest."""
    place = where(line)
    if isinstance(event, yaml.ScalarEvent):
        scalar = event.value if event.style else _plain(event.value, Node(None, place, path))
        return Node(scalar, place, path)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Node] = []
        while not isinstance(item := next(rest), yaml.SequenceEndEvent):
            items.append(_node(item, rest, where, _line(item.start_mark), f"{path}[{len(items)}]"))
        return Node(tuple(items), place, path)
    entries: dict[str, Node] = {}
    while not isinstance(key := next(rest), yaml.MappingEndEvent):
        at = Node(None, where(_line(key.start_mark)), path)
        if not isinstance(key, yaml.ScalarEvent):
            raise at.error("a key must be a word")
        value = next(rest)
        if isinstance(event, yaml.MappingStartEvent) and event.flow_style:
            _refuse_missing_blank(key.value, value, at)
        if key.value == "<<":
            raise at.error("merge keys (<<) are refused: write the keys out")
        entry = _node(value, rest, where, _line(key.start_mark), f"{path}.{key.value}" if path else key.value)
        if key.value in entries:
            raise entry.error(f"repeated key, already set at {entries[key.value].where}")
        entries[key.value] = entry
    return Node(entries, place, path)


def _refuse_missing_blank(key: str, value: yaml.Event, at: Node) -> None:
    """``{lr:1e-3}`` is a key 'lr:1e-3' without a value to YAML."""
    name, colon, rest = key.partition(":")
    if colon and rest and isinstance(value, yaml.ScalarEvent) and value.value == "":
        raise at.error(f"'{key}': a blank is missing behind the colon: write '{name}: {rest}'")


def _plain(text: str, at: Node) -> Scalar:
    """The value of an unquoted scalar. PyYAML itself takes 1e-4 for text, on for true and 012 for ten."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if text in (".inf", "+.inf", "-.inf"):
        return -math.inf if text[0] == "-" else math.inf
    if _LEADING_ZERO.fullmatch(text):
        raise at.error(f"{text} is octal to YAML: write {int(text)}, or '{text}' in quotes if text is meant")
    if _INT.fullmatch(text):
        return int(text)
    if not _FLOAT.fullmatch(text):
        return text
    if math.isinf(float(text)):
        raise at.error(f"{text} is too large a number")
    return float(text)


def override(root: Node, text: str) -> Node:
    """The tree with one value replaced or added, ``data.video.batch_size=4``. The value is read as YAML.

    Raises:
        UsageError: naming the override, if it is no ``key=value`` or reaches into something that has no keys.
    """
    path, equals, value = text.partition("=")
    place = f"override '{text}'"
    if not equals or not _KEY_PATH.fullmatch(path):
        raise UsageError(f"{place}: write key=value with dots between keys, like optim.lr=1e-3")
    return _replaced(root, path.split("."), parse(value, lambda line: place, path))


def put(root: Node, path: str, leaf: Node) -> Node:
    """The tree with one value replaced or added; the value still names the place where it was written.

    Args:
        path: dotted key.

    Raises:
        UsageError: at the value, if it reaches into something that has no keys.
    """
    return _replaced(root, path.split("."), moved(leaf, path))


def moved(node: Node, path: str) -> Node:
    """The same values under another key, each still naming the place where it was written."""
    value = node.value
    if isinstance(value, Mapping):
        value = {key: moved(entry, f"{path}.{key}") for key, entry in value.items()}
    elif isinstance(value, tuple):
        value = tuple(moved(item, f"{path}[{i}]") for i, item in enumerate(value))
    return Node(value, node.where, path)


def _replaced(node: Node, keys: list[str], leaf: Node) -> Node:
    if not keys:
        return leaf
    if not isinstance(node.value, Mapping):
        has = f"{node.path} is {node.shown()}" if node.path else "the file holds no keys"
        raise leaf.error(f"{has}, which has no keys. Replace it whole: {node.path or 'key'}={{...}}")
    path = f"{node.path}.{keys[0]}" if node.path else keys[0]
    entry = node.value.get(keys[0], Node({}, leaf.where, path))
    return Node({**node.value, keys[0]: _replaced(entry, keys[1:], leaf)}, node.where, node.path)


def plain(node: Node) -> object:
    """The values of a tree as Python's own, for ``dump``."""
    if isinstance(node.value, Mapping):
        return {key: plain(entry) for key, entry in node.value.items()}
    return tuple(map(plain, node.value)) if isinstance(node.value, tuple) else node.value


def dump(tree: Mapping[str, object], width: int = 100) -> str:
    """YAML text that ``parse`` reads back to the same values; what fits on a line stands on one."""
    return "".join(f"{line}\n" for line in _block(tree, width))


def _block(tree: Mapping[str, object], width: int) -> list[str]:
    lines = []
    for key, value in tree.items():
        flat = f"{dump_flow(key)}: {dump_flow(value)}"
        if len(flat) <= width or not isinstance(value, Mapping):
            lines.append(flat)
        else:
            lines += [f"{dump_flow(key)}:", *(f"  {line}" for line in _block(value, width - 2))]
    return lines


def dump_flow(value: object) -> str:
    """One value on one line.

    Raises:
        TypeError: for a value that YAML has no words for.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{dump_flow(key)}: {dump_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(dump_flow(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float_text(value)
    if not isinstance(value, str):
        raise TypeError(f"{value!r} cannot be written as YAML")
    return _text(value)


@lru_cache(maxsize=4096)
def _text(value: str) -> str:
    # other YAML readers take on, no and True for truth values
    read = _plain(value, Node(None, "", "")) if _NEEDS_NO_QUOTES.fullmatch(value) else None
    if read == value == yaml.safe_load(value):
        return value
    return yaml.safe_dump(value, default_style='"', width=math.inf).rstrip("\n")


def _float_text(value: float) -> str:
    if math.isinf(value):
        return "-.inf" if value < 0 else ".inf"
    text = repr(value)
    # other YAML readers take 1e-05 for text, but not 1.0e-05
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
