"""Grids of recipes: one base recipe, what is varied in it, and for how long each cell trains."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Literal

from vidssl.config.files import read
from vidssl.config.recipe import Recipe, overridden, read_recipe
from vidssl.config.schema import Count, Index, Quiet, Text, above_zero, construct, named_once
from vidssl.config.strict_yaml import Node, dump_flow, nearest, parse, plain, put
from vidssl.errors import UsageError

CELL = "cell"  # name of the one axis of a grid that lists its cells
BASE = "recipe"  # key of a cell or level that names another base recipe
Measure = Literal["epochs", "steps", "flops", "seconds"]
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MOST = 1000  # cells
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=]+")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all cells train for, one of these.

    Attributes:
        epochs: passes over the stream that the cell's schedule counts.
        steps: of the optimizer.
        flops: of forward and backward passes in all; a cell takes as many steps as fit.
        seconds: of training; a cell takes as many steps as fit by its speed on this machine.
    """

    epochs: Annotated[float, above_zero] | None = None
    steps: Count | None = None
    flops: Annotated[float, above_zero] | None = None
    seconds: Annotated[float, above_zero] | None = None

    def __post_init__(self) -> None:
        if len(self.given) != 1:
            raise ValueError("name one of epochs, steps, flops and seconds that all cells train for")
        if not math.isfinite(self.amount):
            raise ValueError(f"{self.measure} must be finite, got {self.amount}")

    @property
    def given(self) -> dict[str, float]:
        """What was written."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def measure(self) -> str:
        """Its name."""
        return next(iter(self.given))

    @property
    def amount(self) -> float:
        """How much of it."""
        return next(iter(self.given.values()))


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """A grid as its file has it.

    Attributes:
        name: of the folder below ``runs`` that its runs lie in.
        question: that it answers, in one sentence.
        recipe: the base, a file or name; None where each cell names its own.
        set: dotted key -> value, in every cell.
        axes: axis -> level -> what it sets; or an axis that is a dotted key -> list of its values. The cells
            are all combinations.
        skip: axis -> level, or list of levels, of combinations that are left out.
        cells: cell -> what it sets, instead of axes.
        seeds: each cell is trained with every one of them.
        equal: what all cells train for; None leaves each recipe its own length.
        protocols: that each run is scored under.
        labels: that the tables are about; none for all.
    """

    name: Text
    question: Text
    recipe: Quiet[Text | None] = None
    set: Quiet[Mapping[str, Node]] = field(default_factory=dict)
    axes: Quiet[Mapping[str, Node]] = field(default_factory=dict)
    skip: Quiet[tuple[Node, ...]] = ()
    cells: Quiet[Mapping[str, Node]] = field(default_factory=dict)
    seeds: Annotated[tuple[Index, ...], named_once] = (0, 1, 2)
    equal: Quiet[Budget | None] = None
    protocols: Annotated[tuple[Text, ...], named_once] = ("knn",)
    labels: Quiet[Annotated[tuple[Text, ...], named_once]] = ()
    node: Node = field(repr=False)


@dataclass(frozen=True)
class Cell:
    """One combination of levels.

    Attributes:
        levels: axis -> level; of a grid that lists its cells, ``CELL`` -> name.
        tree: of the recipe, without seed and length.
        folder: that paths in the recipe are relative to.
    """

    levels: Mapping[str, str]
    tree: Node = field(repr=False)
    folder: Path

    @property
    def name(self) -> str:
        """Of its runs' folders, before the seed."""
        words = (f"{axis.rpartition('.')[2]}_{level}" if "." in axis else level
                 for axis, level in self.levels.items())  # fmt: skip
        return "-".join(_UNSAFE.sub("_", word).strip("_") for word in words)

    def recipe(self, values: Mapping[str, object] | None = None) -> Recipe:
        """The recipe.

        Args:
            values: dotted key -> value, for seed, names and length.
        """
        tree = self.tree
        for key, value in (values or {}).items():
            tree = put(tree, key, parse(dump_flow(value), lambda line: "set by the grid", key))
        return read_recipe(tree, self.folder)

    def of_length(self, measure: Literal["epochs", "steps"], amount: float) -> dict[str, object]:
        """Values that give the schedule a length, however its recipe counts it."""
        other = "steps" if measure == "epochs" else "epochs"
        schedule = self.tree.mapping()["schedule"].mapping()
        return {f"schedule.{measure}": amount, **({f"schedule.{other}": None} if other in schedule else {})}


@dataclass(frozen=True)
class Grid:
    """A grid, read: what its file says and the cells that it makes."""

    spec: GridSpec
    cells: tuple[Cell, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of what is varied."""
        return tuple(self.cells[0].levels)


def load_grid(name: str, overrides: Sequence[str] = ()) -> Grid:
    """The grid of a file or name.

    Args:
        overrides: of the recipe in every cell (``run.device=cuda``), and of the grid's own ``seeds``,
            ``equal``, ``protocols``, ``labels`` and ``name``.

    Raises:
        UsageError: for anything that is wrong with grid or recipes and shows without knowing the components.
    """
    tree = read("grids", name)[0]
    own = [word for word in overrides if word.split("=")[0].split(".")[0] in _OWN]
    spec = construct(overridden(tree, own), GridSpec)
    if bool(spec.axes) == bool(spec.cells):
        raise tree.error("give either 'axes', all of whose combinations are cells, or 'cells'")
    if not spec.seeds or not spec.protocols:
        raise tree.error("names no seeds" if not spec.seeds else "names no protocols")
    found = []
    for levels, parts in _combinations(spec):
        cell_tree, folder = _cell_tree(spec, parts)
        found.append(
            Cell(levels, overridden(cell_tree, [word for word in overrides if word not in own]), folder)
        )
    _check_apart(spec, found)
    return Grid(spec, tuple(found))


_OWN = ("name", "seeds", "equal", "protocols", "labels")


def _combinations(spec: GridSpec) -> Iterator[tuple[dict[str, str], list[Node]]]:
    """Levels of each cell, and what they set."""
    if spec.cells:
        yield from (({CELL: name}, [part]) for name, part in spec.cells.items())
        return
    axes = {name: _levels(name, node) for name, node in spec.axes.items()}
    if (count := math.prod(map(len, axes.values()))) > _MOST:
        raise spec.node.error(f"the axes have {count:,} combinations, and a grid {_MOST:,} at most")
    skipped = [_skipped(node, axes) for node in spec.skip]
    for chosen in product(*(levels.items() for levels in axes.values())):
        levels = dict(zip(axes, (name for name, _ in chosen), strict=True))
        if not any(all(levels[axis] in names for axis, names in rule.items()) for rule in skipped):
            yield levels, [part for _, part in chosen]


def _levels(axis: str, node: Node) -> dict[str, Node]:
    """Level -> what it sets."""
    if isinstance(node.value, tuple):
        if not _KEY.fullmatch(axis):
            raise node.error("a list of values is for an axis that is a dotted key, such as masker.ratio")
        levels = {_level_name(value): replace(node, value={axis: value}) for value in node.value}
        if len(levels) < len(node.value):
            raise node.error("a value stands there twice")
    else:
        levels = dict(node.mapping())
    if len(levels) < 2:
        raise node.error("an axis has two levels or more")
    return levels


def _level_name(node: Node) -> str:
    return node.value if isinstance(node.value, str) else dump_flow(plain(node))


def _skipped(node: Node, axes: Mapping[str, Mapping[str, Node]]) -> dict[str, tuple[str, ...]]:
    rule: dict[str, tuple[str, ...]] = {}
    for axis, given in node.mapping().items():
        if axis not in axes:
            raise given.error(f"no such axis. {nearest(axis, axes, 'There are')}")
        values = given.value if isinstance(given.value, tuple) else (given,)
        names = tuple(map(_level_name, values))
        for name in names:
            if name not in axes[axis]:
                raise given.error(f"no such level. {nearest(name, axes[axis], 'There are')}")
        rule[axis] = names
    return rule


def _cell_tree(spec: GridSpec, parts: Sequence[Node]) -> tuple[Node, Path]:
    """The recipe's tree of a cell: its base, what the grid sets, what the levels set, in this order."""
    bases = [part.mapping()[BASE] for part in parts if part.value is not None and BASE in part.mapping()]
    if len(bases) > 1:
        raise bases[1].error(f"another level names a base recipe already ({bases[0].where})")
    named = str(bases[0].value) if bases else spec.recipe
    if named is None:
        raise parts[0].error("neither the grid nor this cell names a base recipe: recipe: NAME")
    with (bases[0] if bases else spec.node).located():
        tree, path = read("recipes", named)
    for part in (replace(spec.node, value=spec.set), *parts):
        for key, value in {} if part.value is None else part.mapping().items():
            if key == BASE:
                continue
            if not _KEY.fullmatch(key):
                raise value.error("expected a dotted key of the recipe, such as optim.lr")
            tree = put(tree, key, value)
    return tree, path.parent


def _check_apart(spec: GridSpec, cells: Sequence[Cell]) -> None:
    """Refuses two cells of one name, or of one recipe."""
    for one, other in combinations(cells, 2):
        if one.name == other.name:
            raise spec.node.error(f"two cells would lie in the folder '{one.name}': name their levels apart")
        if _without_name(one.tree) == _without_name(other.tree):
            raise spec.node.error(f"the cells '{one.name}' and '{other.name}' are one recipe")
    if not cells:
        raise spec.node.error("all combinations are left out by 'skip'")


def _without_name(tree: Node) -> object:
    return {key: value for key, value in tree.mapping().items() if key != "name"}


def check_grid(name: str) -> Iterator[tuple[str, Recipe]]:
    """The recipes of a grid, by cell, for whoever checks them."""
    grid = load_grid(name)
    for cell in grid.cells:
        try:
            length = {} if grid.spec.equal is None else _stand_in(cell, grid.spec.equal)
            yield cell.name, cell.recipe(length)
        except UsageError as error:
            raise UsageError(f"{name}: cell {cell.name}: {error}") from error


def _stand_in(cell: Cell, equal: Budget) -> dict[str, object]:
    """The length of a cell as far as it is known before anything is measured."""
    if equal.measure in ("epochs", "steps"):
        return cell.of_length("epochs" if equal.measure == "epochs" else "steps", equal.amount)
    return {}
