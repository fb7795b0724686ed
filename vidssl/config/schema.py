"""Constructors as schemas: the keys of a component are the keyword-only parameters of its constructor.

``construct`` checks a mapping against them and calls it. Nothing is coerced but whole numbers to floats.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vidssl.config.strict_yaml import Node, Scalar, nearest
from vidssl.errors import UsageError

Part = TypeVar("Part")


@dataclass(frozen=True)
class Key:
    """A keyword-only parameter: its annotation, and its default unless it is required."""

    wanted: object
    default: object = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def keys_of(constructor: Callable[..., object]) -> dict[str, Key]:
    """The keys that a constructor takes: its keyword-only parameters.

    Raises:
        ValueError: for a parameter without a type or of one that YAML lacks, and for ``**kwargs``, which
            would swallow misspelt keys.
    """
    # of a dataclass as a class: the annotations of inherited fields are names of another module
    of_class = inspect.isclass(constructor) and not is_dataclass(constructor)
    hints = get_type_hints(constructor.__init__ if of_class else constructor)
    keys = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise ValueError(f"{constructor.__name__} takes **{name}; name its keys one by one")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if name not in hints:
                raise ValueError(f"parameter '{name}' of {constructor.__name__} has no type annotation")
            try:
                describe(hints[name])
            except TypeError as error:
                raise ValueError(f"parameter '{name}' of {constructor.__name__}: {error}") from None
            keys[name] = Key(hints[name], parameter.default)
    return keys


def parts_of(constructor: Callable[..., object]) -> dict[str, bool]:
    """The parts that a constructor takes: name of each positional parameter -> whether it must be given."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind in positional
    }


def bind(node: Node, constructor: Callable[..., object], apart: Collection[str] = ()) -> dict[str, object]:
    """All keys of a constructor with their values: a mapping's, checked, and defaults for the others.

    Args:
        node: the mapping.
        constructor: its keyword-only parameters are the schema.
        apart: keys of the mapping that are not the constructor's, ``type`` above all.

    Raises:
        UsageError: for an unknown or missing key, or a value of a wrong type.
    """
    keys = keys_of(constructor)
    required = [key for key in keys if keys[key].required]
    entries = node.entries(required, [*keys, *apart], lambda key: describe(keys[key].wanted))
    return {
        name: convert(entries[name], key.wanted) if name in entries else key.default
        for name, key in keys.items()
    }


def construct(
    node: Node, constructor: Callable[..., Part], *parts: object, apart: Collection[str] = ()
) -> Part:
    """Calls a constructor with its positional parts and the keys of a mapping.

    Raises:
        UsageError: for what ``bind`` refuses, and, with the mapping's place, what the constructor does.
    """
    values = bind(node, constructor, apart)
    try:
        return constructor(*parts, **values)
    except ValueError as error:
        raise node.error(str(error)) from error


def check_fields(made: object) -> None:
    """Holds the fields of a dataclass to their annotations, as if its values had been read from YAML.

    A dataclass that is a section calls it in ``__post_init__``, so that Python is as strict as a recipe.

    Raises:
        UsageError: naming the class, the field, its value and what it may be.
    """
    hints, where = get_type_hints(type(made)), type(made).__name__
    for name in (each.name for each in fields(cast(Any, made)) if each.init):
        value = getattr(made, name)
        try:
            node = _node_of(value, where, name)
        except TypeError:
            raise UsageError(f"{where}: {name}: expected {describe(hints[name])}, got {value!r}") from None
        convert(node, hints[name])


def _node_of(value: object, where: str, path: str) -> Node:
    """A value of Python as if read from YAML; numbers of numpy are numbers. TypeError for what YAML lacks."""
    if isinstance(value, (tuple, list)):
        return Node(tuple(_node_of(each, where, path) for each in value), where, path)
    if isinstance(value, Real) and not isinstance(value, bool):
        return Node(int(value) if isinstance(value, Integral) else float(value), where, path)
    if value is None or isinstance(value, (str, bool)):
        return Node(value, where, path)
    raise TypeError(f"YAML has no {type(value).__name__}")


def convert(node: Node, wanted: object) -> object:
    """The value as the annotation asks for it; whole numbers become floats, nothing else is coerced.

    Raises:
        UsageError: if the value is of another type or not among the choices.
        TypeError: for an annotation that no YAML value can have, a defect of the constructor.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted in (bool, int, float, str):
        return _scalar(node, wanted)
    if wanted is type(None) and node.value is None:
        return None
    if origin is Literal:
        return _choice(node, arguments)
    if origin in (Union, types.UnionType):
        return _member(node, wanted, arguments)
    if origin is tuple and isinstance(node.value, tuple):
        every = [arguments[0]] * len(node.value) if arguments[-1] is ... else arguments
        if len(every) == len(node.value):
            return tuple(convert(item, kind) for item, kind in zip(node.value, every, strict=True))
    if inspect.isclass(origin) and issubclass(origin, Mapping) and isinstance(node.value, Mapping):
        return {key: convert(entry, arguments[1]) for key, entry in node.value.items()}
    raise _mismatch(node, wanted)


def _scalar(node: Node, wanted: object) -> Scalar:
    value = node.value
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is not type(value) or isinstance(value, (tuple, Mapping)):
        raise _mismatch(node, wanted)
    return value


def _choice(node: Node, choices: tuple[object, ...]) -> object:
    for choice in choices:
        if choice == node.value and type(choice) is type(node.value):
            return choice
    names = [str(choice) for choice in choices]
    hint = nearest(str(node.value), names, "Choices") if isinstance(node.value, str) else ""
    raise node.error(f"expected {describe(Literal[choices])}, got {node.shown()}. {hint}".removesuffix(". "))


def _member(node: Node, wanted: object, members: tuple[object, ...]) -> object:
    if node.value is None and type(None) in members:
        return None
    real = [member for member in members if member is not type(None)]
    if len(real) == 1:
        return convert(node, real[0])
    for member in real:
        try:
            return convert(node, member)
        except UsageError:
            continue
    raise _mismatch(node, wanted)


def _mismatch(node: Node, wanted: object) -> UsageError:
    hint = ""
    if wanted is bool and str(node.value).lower() in ("on", "off", "yes", "no", "true", "false"):
        hint = ". Only true and false, in small letters, are truth values"
    elif wanted is str and isinstance(node.value, (bool, int, float)):
        hint = ". Put it in quotes"
    return node.error(f"expected {describe(wanted)}, got {node.shown()}{hint}")


def describe(wanted: object) -> str:
    """An annotation in words: ``a list of 3 whole numbers``.

    Raises:
        TypeError: for an annotation that no YAML value can have.
    """
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    origin, arguments = get_origin(wanted), get_args(wanted)
    if isinstance(wanted, type) and wanted in names:
        return names[wanted]
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is tuple:
        count = "any number" if arguments[-1] is ... else str(len(arguments))
        kinds = sorted({describe(kind) for kind in arguments if kind is not ...})
        return f"a list of {count} ({', '.join(kinds)})"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"keys, each with {describe(arguments[1])}"
    raise TypeError(f"no YAML value has the type {wanted}")


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
