"""The component tables, how a ``type`` finds its class, and specs with every default written out."""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

from vidssl.backbones import BACKBONES
from vidssl.config.protocol import FinetuneProtocol, MaskProtocol, PatchType, Protocol, TokenizerProtocol
from vidssl.config.recipe import STREAMS, Recipe, RunSpec
from vidssl.config.schema import PartSpec, bind, keys_of, node_of, parts_of, written
from vidssl.config.strict_yaml import Node, dump, nearest, plain
from vidssl.data import AUGMENTS, SOURCES, VIEWS
from vidssl.data.loader import Stream
from vidssl.engine import optim, schedules
from vidssl.evaluators import EVALUATORS
from vidssl.interfaces import (
    Augment,
    Backbone,
    DataSource,
    Evaluator,
    Masker,
    Objective,
    PatchEvaluator,
    Tokenizer,
    ViewSampler,
)
from vidssl.interfaces.pretrained import Recorded
from vidssl.interfaces.table import Table
from vidssl.maskers import MASKERS
from vidssl.objectives import OBJECTIVES
from vidssl.tokenizers import TOKENIZERS

Component = TypeVar("Component", covariant=True)
Probe = tuple[DataSource, DataSource, ViewSampler]  # labelled videos to learn from and to test on, and views
NAMELESS = "python:"  # before the class of a part that no recipe can name


@dataclass(frozen=True)
class Kind(Generic[Component]):
    """A kind of component.

    Attributes:
        word: what one of them is called.
        table: name -> class.
        interface: that every one of them derives from; ``object`` where there is none.
        parts: positional parameters that their constructors may have.
    """

    word: str
    table: Mapping[str, Callable[..., Component]]
    interface: type
    parts: tuple[str, ...] = ()


OBJECTIVE: Kind[Objective] = Kind(
    "objective", OBJECTIVES, Objective, parts=("backbone", "tokenizer", "masker", "decoder_masker")
)
BACKBONE: Kind[Backbone] = Kind("backbone", BACKBONES, Backbone)
TOKENIZER: Kind[Tokenizer] = Kind("tokenizer", TOKENIZERS, Tokenizer)
MASKER: Kind[Masker] = Kind("masker", MASKERS, Masker)
EVALUATOR: Kind[Evaluator] = Kind("evaluator", EVALUATORS, Evaluator)
SOURCE: Kind[DataSource] = Kind("source", SOURCES, DataSource)
VIEW_SAMPLER: Kind[ViewSampler] = Kind("view sampler", VIEWS, ViewSampler)
AUGMENT: Kind[Augment] = Kind("augmentation", AUGMENTS, object)
OPTIMIZER: Kind[optim.Optim] = Kind("optimizer", optim.OPTIMIZERS, optim.Optim)
SCHEDULE: Kind[schedules.Schedule] = Kind("schedule", schedules.SCHEDULES, schedules.Schedule)

KINDS: Mapping[str, Kind[object]] = {
    "objectives": OBJECTIVE,
    "backbones": BACKBONE,
    "tokenizers": TOKENIZER,
    "maskers": MASKER,
    "evaluators": EVALUATOR,
    "sources": SOURCE,
    "views": VIEW_SAMPLER,
    "augments": AUGMENT,
    "optimizers": OPTIMIZER,
    "schedules": SCHEDULE,
}


def constructor_of(part: PartSpec, kind: Kind[Component]) -> Callable[..., Component]:
    """The class that a part's ``type`` names, in the table or as ``my_file.py:MyClass``."""
    at = part.node.mapping()["type"]
    if part.type.startswith(NAMELESS):
        raise at.error(
            "was made in Python, and cannot be made again: that takes a class in a file that trains nothing "
            "as it is imported, and keys that YAML has. Videos are named anew by data.train, data.test"
        )
    if ".py:" not in part.type:
        file = Path(part.type.partition(":")[0]).with_suffix(".py")
        if part.type not in kind.table and file.is_file():
            raise at.error(f"a class of a file is written FILE.py:CLASS, such as {file}:{_first_class(file)}")
        if part.type not in kind.table:
            choices = ", ".join(sorted(kind.table))
            hint = nearest(part.type, kind.table, "")
            hint = f"{hint} " if hint.startswith("Did") else ""
            raise at.error(f"unknown {kind.word} '{part.type}'. {hint}There are: {choices}")
        return kind.table[part.type]
    try:
        found = _class_in_file(part.type)
        _check_kind(found, part.type, kind)
    except ValueError as error:
        raise at.error(str(error)) from error
    return cast(Callable[..., Component], found)


def _first_class(file: Path) -> str:
    """The name of the first class in a file, without running it; a stand-in if there is none."""
    found = re.search(r"^class (\w+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else "CLASS"


def _class_in_file(address: str) -> type:
    file, _, name = address.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{file}: no such file (paths are relative to the working folder, {Path.cwd()})")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # a real module, so that data workers can import it again
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(path.stem)
    except (SyntaxError, ImportError) as error:
        raise ValueError(f"{file} cannot be imported: {error}") from error
    if Path(module.__file__ or "").resolve() != path:
        raise ValueError(f"there is another Python module called '{path.stem}' already: rename {file}")
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if name not in classes:
        own = [key for key, value in classes.items() if value.__module__ == path.stem]
        raise ValueError(f"{file} has no class '{name}'. {nearest(name, own, 'Its classes')}")
    return classes[name]


def _check_kind(found: type, address: str, kind: Kind[object]) -> None:
    """Names what a class from outside the package lacks."""
    if not issubclass(found, kind.interface):
        raise ValueError(f"{address} does not derive from vidssl.interfaces.{kind.interface.__name__}")
    lacking = sorted(getattr(found, "__abstractmethods__", ()))
    if lacking:
        raise ValueError(f"{address} lacks {', '.join(lacking)}, which every {kind.word} has")
    stray = [name for name in parts_of(found) if name not in kind.parts]
    if stray:
        allowed = f"only {', '.join(kind.parts)} may be" if kind.parts else "none may be"
        raise ValueError(
            f"{address}: its parameter '{stray[0]}' is positional, and {allowed}: put '*' before the keys"
        )
    keys_of(found)


def resolved_text(spec: Recipe | Protocol | FinetuneProtocol | TokenizerProtocol | MaskProtocol) -> str:
    """A recipe or protocol as YAML text, every default written out; it loads to the same one.

    Of a protocol that finetunes, what the run decides is left out: the label and its classes, the backbone's
    other keys, and how it runs.
    """

    def part(found: PartSpec) -> dict[str, object]:
        if isinstance(spec, FinetuneProtocol) and found is spec.objective:
            values = resolved_part(with_stand_ins(found), OBJECTIVE)
            return {key: value for key, value in values.items() if key not in DECIDED_BY_VIDEOS}
        return resolved_part(found, KINDS[found.table])

    if isinstance(spec, Protocol):
        spec = replace(spec, patches=patch_type(spec))
    tree = written(spec, part)
    if isinstance(spec, Recipe) and spec.tokenizer is not None:
        name, keys = spec.tokenizer.name, cast(Mapping[str, object], tree["tokenizer"])
        path = Path(name or "")
        tree["tokenizer"] = keys["part"] if name is None else str(path.resolve()) if path.is_file() else name
    return dump(tree)


def resolved_part(part: PartSpec, kind: Kind[object]) -> dict[str, object]:
    """A component's type and its keys, defaults too but those of keys that are quiet (``Quiet``)."""
    made = constructor_of(part, kind)
    keys, values = keys_of(made), bind(part.node, made, part.apart)
    kept = {
        name: value for name, value in values.items() if name not in keys or not keys[name].is_quiet(value)
    }
    return {"type": part.type, **kept}


def patch_type(protocol: Protocol) -> PatchType | None:
    """The type that a protocol keeps patch tokens in; None where its evaluator reads none."""
    made = constructor_of(protocol.evaluator, EVALUATOR)
    reads = isinstance(made, type) and issubclass(made, PatchEvaluator)
    return (protocol.patches or "float16") if reads else None


DECIDED_BY_VIDEOS = ("label", "num_classes")  # keys of the objective that finetunes


def with_stand_ins(part: PartSpec) -> PartSpec:
    """The objective of a protocol with values for the keys that the videos decide."""
    where = part.node.where
    stand_ins = {"label": Node("", where, ""), "num_classes": Node(2, where, "")}
    return replace(part, node=replace(part.node, value={**part.node.mapping(), **stand_ins}))


def names_with(kind: Kind[object], ability: str, value: object) -> str:
    """Names in a table whose classes have an attribute of that value, for messages."""
    names = sorted(name for name, entry in kind.table.items() if getattr(entry, ability) == value)
    return ", ".join(names) or "none"


def names_of(kind: Kind[object], ability: type, needs: str = "") -> str:
    """Names in a table whose classes have an ability, for messages.

    Args:
        needs: attribute of the classes that holds the key it takes, shown beside the name.
    """
    able = {name: made for name, made in sorted(kind.table.items()) if has_ability(made, ability)}
    keys = {name: getattr(made, needs) if needs else "" for name, made in able.items()}
    return ", ".join(f"{name} ({key})" if key else name for name, key in keys.items()) or "none"


def has_ability(constructor: object, ability: type) -> bool:
    """Whether a component's class derives from an ability."""
    return isinstance(constructor, type) and issubclass(constructor, ability)


def summary(constructor: Callable[..., object]) -> str:
    """The first line of a component's docstring, the sentence that ``vidssl list`` shows."""
    return (inspect.getdoc(constructor) or "").split("\n")[0]


# recipes of what was made in Python

_KIND_OF: Mapping[str, Kind[object]] = {  # key of a recipe -> what stands there
    "objective": OBJECTIVE, "backbone": BACKBONE, "tokenizer": TOKENIZER, "masker": MASKER,
    "decoder_masker": MASKER, "source": SOURCE, "test_source": SOURCE, "train": SOURCE, "test": SOURCE,
    "views": VIEW_SAMPLER, "augment": AUGMENT, "optim": OPTIMIZER, "schedule": SCHEDULE,
}  # fmt: skip


def recipe_of_parts(
    objective: Objective,
    streams: Mapping[str, Stream],
    test_streams: Mapping[str, Stream],
    run: RunSpec,
    rest: Mapping[str, object],
) -> str:
    """A recipe of what was made in Python, so that commands can read its run; empty for other streams.

    A part that no recipe can name stands in it as ``python:CLASS``, and is refused where it has to be made.
    """
    if not set(streams) <= set(STREAMS):
        return ""
    encoder = objective.encoder()
    parts = {"backbone": encoder if isinstance(encoder, Backbone) else None, **objective.made_with()}
    data: dict[str, object] = {
        name: {
            "source": each.source, "test_source": test_streams[name].source if name in test_streams else None,
            "views": each.views, "batch_size": each.batch_size,
            "samples_per_decode": each.samples_per_decode if each.samples_per_decode > 1 else None,
        }
        for name, each in streams.items()
    }  # fmt: skip
    data["probe"] = rest["probe"]
    data["max_unreadable_share"] = next(iter(streams.values())).max_unreadable_share
    tree = {
        "name": rest["name"], "seed": rest["seed"], "objective": objective,
        **{key: parts.get(key) for key in ("backbone", "tokenizer", "masker", "decoder_masker")},
        "data": data, **{key: rest[key] for key in ("augment", "optim", "schedule")},
    }  # fmt: skip
    return dump({**_named(tree), "run": written(run, lambda part: {})})


def _named(tree: Mapping[str, object]) -> dict[str, object]:
    """The tree with parts as a recipe has them, without what is None."""
    return {
        key: _named(value) if isinstance(value, Mapping)
        else named_part(value, _KIND_OF[key]) if key in _KIND_OF else value
        for key, value in tree.items() if value is not None
    }  # fmt: skip


def named_part(made: object, kind: Kind[object]) -> dict[str, object] | str:
    """The type and the keys that make a component again, the name of a tokenizer, or ``python:CLASS``."""
    if isinstance(made, Tokenizer) and made.named is not None:
        return made.named
    made_by, table, keys = type(made), kind.table, dict[str, object]()
    known = table.name_of(made_by) if isinstance(table, Table) else None
    name = known or next((key for key, each in table.items() if each is made_by), None) or _address(made_by)
    try:
        given = made.made_with(defaults=False) if isinstance(made, Recorded) else vars(made)
        _check_told(made_by, kind, None if isinstance(made, Recorded) else given)
        for key, entry in keys_of(made_by).items():
            if not entry.is_quiet(value := given.get(key, entry.default)):
                keys[key] = plain(node_of(value, "", key))
    except (TypeError, ValueError):  # YAML has no such value, or a key has no type
        name = None
    if name is None:
        return {"type": f"{NAMELESS}{made_by.__qualname__}"}
    init = made.started_from if isinstance(made, Backbone) else None
    return {"type": name, **keys} | ({} if init is None else {"init": init})


def _check_told(made_by: type, kind: Kind[object], given: Mapping[str, object] | None) -> None:
    """Raises ValueError if not all that a component was made with is known, by its record or by ``given``."""
    parameters = inspect.signature(made_by).parameters.values()
    if kind is not OBJECTIVE and any(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters):
        raise ValueError("positional parameters are those of parts, which only objectives have")
    if given is not None and any(key not in given for key in keys_of(made_by)):
        raise ValueError("keys that the component does not keep under their names")


def _address(made_by: type) -> str | None:
    """``FILE.py:CLASS`` of a class of one's own; None where its file would train as it is imported."""
    module = made_by.__module__
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    path = Path(getattr(sys.modules.get(module), "__file__", None) or "").resolve()
    if path.suffix != ".py" or "." in made_by.__qualname__ or "site-packages" in path.parts:
        return None
    if module == "__main__":
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if not any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in body):
            return None
    elif module != path.stem:
        return None  # of a package
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{made_by.__name__}"
