"""One schema for recipes, protocols and components, read from YAML and written back.

The keyword-only parameters of a constructor are the keys of a mapping: those of a component's ``__init__``,
or the fields of a frozen dataclass. ``construct`` checks a mapping against them and calls it; ``written``
gives the mapping back with every default. Nothing is coerced but whole numbers to floats.

A parameter called ``node`` is no key: it gets the mapping itself. Where there is one, the class is a section
of a spec, and null takes a key away, so that an override can. ``Annotated`` adds rules to a type: functions
that return the value and raise ``ValueError`` for one out of range, whose message gets the key's place.
"""

import inspect
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vidssl.config.strict_yaml import Node, Scalar, nearest
from vidssl.errors import UsageError

Made = TypeVar("Made")
Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


def quiet(value: Value) -> Value:
    """The mark of a key that came later than others: it is written only where it differs from its default."""
    return value


Quiet = Annotated[Value, quiet]


def at_least(lowest: float) -> Callable[[Number], Number]:
    """The rule that a number is not below ``lowest``."""

    def rule(number: Number) -> Number:
        if number < lowest:
            raise ValueError(f"must be at least {lowest}, got {number}")
        return number

    return rule


def above_zero(number: Number) -> Number:
    """The rule that a number is positive."""
    if number <= 0:
        raise ValueError(f"must be above 0, got {number}")
    return number


def _fraction(number: float) -> float:
    if not 0 <= number <= 1:
        raise ValueError(f"must lie between 0 and 1, got {number}")
    return number


def _filled(text: str) -> str:
    if not text:
        raise ValueError("expected text, got ''")
    return text


def named_once(names: tuple[Value, ...]) -> tuple[Value, ...]:
    """The rule that a list holds nothing twice."""
    if len(set(names)) < len(names):
        raise ValueError(f"must name nothing twice, got {', '.join(map(str, names))}")
    return names


Text = Annotated[str, _filled]
Count = Annotated[int, at_least(1)]
Index = Annotated[int, at_least(0)]
Fraction = Annotated[float, _fraction]


@dataclass(frozen=True)
class Key:
    """A keyword-only parameter: its annotation, and its default unless it is required."""

    wanted: object
    default: object = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def is_quiet(self, value: object) -> bool:
        """Whether the key is left out with this value, so that what was kept before it came is equal."""
        return quiet in get_args(self.wanted) and value == self.default


def keys_of(constructor: Callable[..., object]) -> dict[str, Key]:
    """The keys that a constructor takes: its keyword-only parameters.

    Raises:
        ValueError: for a parameter without a type or of one that YAML lacks, and for ``**kwargs``, which
            would swallow misspelt keys.
    """
    return _keys_of(constructor)


@cache
def _keys_of(constructor: Callable[..., object]) -> dict[str, Key]:
    # of a dataclass as a class: the annotations of inherited fields are names of another module
    generated = is_dataclass(constructor) and not (
        "__init__" in vars(constructor) and "__dataclass_fields__" not in vars(constructor)
    )  # not of a plain class that derives from a dataclass and has a constructor of its own
    of_class = inspect.isclass(constructor) and not generated
    if inspect.isclass(constructor) and _inherits_constructor(constructor):
        return {}
    hints = get_type_hints(constructor.__init__ if of_class else constructor, include_extras=True)
    factories = {
        each.name: each.default_factory()
        for each in (fields(constructor) if generated and is_dataclass(constructor) else ())
        if each.default_factory is not MISSING
    }
    keys = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise ValueError(f"{constructor.__name__} takes **{name}; name its keys one by one")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "node":
            if name not in hints:
                raise ValueError(f"parameter '{name}' of {constructor.__name__} has no type annotation")
            try:
                describe(hints[name])
            except TypeError as error:
                raise ValueError(f"parameter '{name}' of {constructor.__name__}: {error}") from None
            keys[name] = Key(hints[name], factories.get(name, parameter.default))
    return keys


def _inherits_constructor(made: type) -> bool:
    """Whether a class has no constructor but that of ``object`` or of torch's modules."""
    owner = next(each for each in made.__mro__ if "__init__" in vars(each))
    return owner.__module__ in ("builtins", "torch.nn.modules.module")


def parts_of(constructor: Callable[..., object]) -> dict[str, bool]:
    """The parts that a constructor takes: name of each positional parameter -> whether it must be given."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind in positional
    }


def bind(
    node: Node,
    constructor: Callable[..., object],
    apart: Collection[str] = (),
    *,
    below: Collection[str] = (),
    readers: Mapping[str, Callable[[Node], object]] | None = None,
) -> dict[str, object]:
    """All keys of a constructor with their values: a mapping's, checked, and defaults for the others.

    Args:
        node: the mapping.
        constructor: its keyword-only parameters are the schema.
        apart: keys of the mapping that are not the constructor's, ``type`` above all.
        below: as for ``Node.entries``.
        readers: of keys whose values the annotation alone cannot read.

    Raises:
        UsageError: for an unknown or missing key, or a value of a wrong type or out of its range.
    """
    keys, readers = keys_of(constructor), readers or {}
    required = [key for key in keys if keys[key].required]
    entries = node.entries(required, [*keys, *apart], lambda key: describe(keys[key].wanted), below)
    section = is_dataclass(constructor) and any(each.name == "node" for each in fields(constructor))
    if section:
        entries = {key: entry for key, entry in entries.items() if key in required or entry.value is not None}
    values: dict[str, object] = {"node": replace(node, value=entries)} if section else {}
    for name, key in keys.items():
        if name not in entries:
            values[name] = key.default
        elif name in readers:
            values[name] = readers[name](entries[name])
        else:
            values[name] = convert(entries[name], key.wanted)
    return values


def construct(
    node: Node,
    constructor: Callable[..., Made],
    *parts: object,
    apart: Collection[str] = (),
    below: Collection[str] = (),
    readers: Mapping[str, Callable[[Node], object]] | None = None,
) -> Made:
    """Calls a constructor with its positional parts and the keys of a mapping."""
    values = bind(node, constructor, apart, below=below, readers=readers)
    with node.located():
        return constructor(*parts, **values)


def written(section: object, part: Callable[["PartSpec"], Mapping[str, object]]) -> dict[str, object]:
    """The keys of a dataclass with their values, for ``dump``; ``construct`` reads them back to an equal one.

    Args:
        part: gives the keys of a component, which only its table knows.
    """
    tree, hints = {}, get_type_hints(type(section), include_extras=True)
    for each in fields(cast(Any, section)):
        value = getattr(section, each.name)
        if each.name != "node" and not Key(hints[each.name], each.default).is_quiet(value):
            tree[each.name] = _written(value, part)
    return tree


def _written(value: object, part: Callable[["PartSpec"], Mapping[str, object]]) -> object:
    if isinstance(value, PartSpec):
        beside = {} if value.beside is None else written(value.beside, part)
        return {**part(value), **beside}
    if isinstance(value, Node):
        return _written(value.value, part)
    if isinstance(value, Mapping):
        return {key: _written(entry, part) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_written(item, part) for item in value)
    return written(value, part) if is_dataclass(value) else value


def check_fields(made: object) -> None:
    """Holds the fields of a dataclass to their annotations, as if its values had been read from YAML.

    A dataclass that is a section calls it in ``__post_init__``, so that Python is as strict as a recipe.

    Raises:
        UsageError: naming the class, the field, its value and what it may be.
    """
    hints, where = get_type_hints(type(made), include_extras=True), type(made).__name__
    for name in (each.name for each in fields(cast(Any, made)) if each.init):
        value = getattr(made, name)
        try:
            node = node_of(value, where, name)
        except TypeError:
            raise UsageError(f"{where}: {name}: expected {describe(hints[name])}, got {value!r}") from None
        convert(node, hints[name])


def node_of(value: object, where: str, path: str) -> Node:
    """A value of Python as if read from YAML; numbers of numpy are numbers. TypeError for what YAML lacks."""
    if isinstance(value, Mapping):
        return Node({str(key): node_of(entry, where, path) for key, entry in value.items()}, where, path)
    if isinstance(value, (tuple, list)):
        return Node(tuple(node_of(each, where, path) for each in value), where, path)
    if isinstance(value, Real) and not isinstance(value, bool):
        return Node(int(value) if isinstance(value, Integral) else float(value), where, path)
    if value is None or isinstance(value, (str, bool)):
        return Node(value, where, path)
    raise TypeError(f"YAML has no {type(value).__name__}")


def convert(node: Node, wanted: object) -> object:
    """The value as the annotation asks for it; whole numbers become floats, nothing else is coerced.

    Raises:
        UsageError: if the value is of another type, not among the choices or against a rule.
        TypeError: for an annotation that no YAML value can have, a defect of the constructor.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Annotated:
        return _ruled(node, arguments[0], arguments[1:])
    if wanted in (bool, int, float, str):
        return _scalar(node, wanted)
    if wanted is type(None) and node.value is None:
        return None
    if wanted is Node:
        return node
    if isinstance(wanted, type) and is_dataclass(wanted):
        return construct(node, wanted)
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


def _ruled(node: Node, wanted: object, rules: tuple[Any, ...]) -> object:
    if wanted is PartSpec:
        return _part(node, *rules)
    value = convert(node, wanted)
    try:
        for rule in rules:
            value = rule(value)
    except UsageError:
        raise
    except ValueError as error:
        raise node.error(str(error)) from error
    return value


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
    """An annotation in words: ``a list of 3 whole numbers``; empty for a section.

    Raises:
        TypeError: for an annotation that no YAML value can have.
    """
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    origin, arguments = get_origin(wanted), get_args(wanted)
    if isinstance(wanted, type) and wanted in names:
        return names[wanted]
    if origin is Annotated:
        return describe(arguments[0])
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
    if wanted is Node:
        return "a value"
    if isinstance(wanted, type) and is_dataclass(wanted):
        return ""
    raise TypeError(f"no YAML value has the type {wanted}")


@dataclass(frozen=True)
class PartSpec:
    """A component that a spec names. Written ``Annotated[PartSpec, "maskers"]`` in a section.

    Attributes:
        type: a name in the component's table, or ``my_file.py:MyClass``.
        node: the section, a mapping.
        apart: its keys that are not the constructor's.
        table: the component's table, as ``vidssl list`` names it.
        beside: those of ``apart`` that belong to a dataclass named after the table; None where none is given.
    """

    type: str
    node: Node
    apart: tuple[str, ...] = ("type",)
    table: str = ""
    beside: object = None


def _part(node: Node, table: str, beside: type[object] | None = None) -> PartSpec:
    entries = node.mapping()
    if "type" not in entries:
        raise node.error("missing 'type'")
    others = {} if beside is None else keys_of(beside)
    given = replace(node, value={key: entry for key, entry in entries.items() if key in others})
    made = construct(given, beside) if beside is not None and given.value else None
    name = cast(str, convert(entries["type"], Text))
    return PartSpec(name, node, ("type", *others), table, made)


SourceSpec = Annotated[PartSpec, "sources"]
ViewsSpec = Annotated[PartSpec, "views"]
ObjectiveSpec = Annotated[PartSpec, "objectives"]
OptimizerSpec = Annotated[PartSpec, "optimizers"]
ScheduleSpec = Annotated[PartSpec, "schedules"]
AugmentSpec = Annotated[PartSpec, "augments"]


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """Labelled data for probes: two sources and the views that features are taken from."""

    train: SourceSpec
    test: SourceSpec
    views: ViewsSpec
