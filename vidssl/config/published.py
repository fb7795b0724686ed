"""Numbers that papers report: tables quoted from them in ``evaluation/published.yaml``."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidssl.config.files import PUBLISHED, spec_roots
from vidssl.config.strict_yaml import Node, load, nearest
from vidssl.errors import UsageError, counted

NEEDED = ("method", "data_set", "metric")  # that every number has
Cell = str | None


@dataclass(frozen=True)
class Quoted:
    """One number of a paper's table.

    Attributes:
        paper: short name, "bevt".
        table: its number in the paper.
        row: of the table, from 1.
        method: as the table names it.
        settings: all else in table, row and column, by name.
        data_set, metric: names of the file's own lists.
        value: in the metric's unit, percent for accuracies.
    """

    paper: str
    table: str
    row: int
    method: str
    settings: Mapping[str, str]
    data_set: str
    metric: str
    value: float


@dataclass(frozen=True)
class QuotedRow:
    """A row: its cells, None where the paper leaves one out, and its numbers."""

    number: int
    cells: tuple[Cell, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class QuotedTable:
    """A table of a paper.

    Attributes:
        paper: short name, "bevt".
        number: in the paper.
        title: what it is about, in our words.
        shared: what holds for all of it.
        columns: names of a row's cells.
        heads: what each of a row's numbers is.
    """

    paper: str
    number: str
    title: str
    shared: Mapping[str, str]
    columns: tuple[str, ...]
    heads: tuple[Mapping[str, str], ...]
    rows: tuple[QuotedRow, ...]

    def numbers(self) -> Iterator[Quoted]:
        """Every number with its settings."""
        for row in self.rows:
            given = {
                name: cell for name, cell in zip(self.columns, row.cells, strict=True) if cell is not None
            }
            for head, value in zip(self.heads, row.values, strict=True):
                if value is not None:
                    fields = {**self.shared, **given, **head}
                    method, data_set, metric = (fields.pop(name) for name in NEEDED)
                    yield Quoted(self.paper, self.number, row.number, method, fields, data_set, metric, value)

    def of_data_sets(self, names: Collection[str]) -> "QuotedTable":
        """The same table with the numbers on these data sets alone; it may have no row left."""

        def data_set(row: QuotedRow, head: Mapping[str, str]) -> Cell:
            given = dict(zip(self.columns, row.cells, strict=True))
            return {**self.shared, **given, **head}["data_set"]

        kept = [
            tuple(
                value if data_set(row, head) in names else None
                for head, value in zip(self.heads, row.values, strict=True)
            )
            for row in self.rows
        ]
        places = [i for i in range(len(self.heads)) if any(values[i] is not None for values in kept)]
        rows = tuple(
            replace(row, values=tuple(values[i] for i in places))
            for row, values in zip(self.rows, kept, strict=True)
            if any(value is not None for value in values)
        )
        return replace(self, heads=tuple(self.heads[i] for i in places), rows=rows)


@dataclass(frozen=True)
class Published:
    """All that is quoted.

    Attributes:
        papers: short name -> title.
        data_sets, metrics: name -> what it is.
        tables: in the order of the file.
    """

    papers: Mapping[str, str]
    data_sets: Mapping[str, str]
    metrics: Mapping[str, str]
    tables: tuple[QuotedTable, ...]

    def chosen(self, papers: Sequence[str] = (), data_sets: Sequence[str] = ()) -> tuple[QuotedTable, ...]:
        """The tables of some papers, with the numbers on some data sets; all where none is named.

        Names may be written in any case, with or without hyphens.
        """
        wanted = [_known(name, self.papers, "paper") for name in papers]
        on = [_known(name, self.data_sets, "data set") for name in data_sets]
        tables = [table for table in self.tables if not wanted or table.paper in wanted]
        if on:
            tables = [table.of_data_sets(on) for table in tables]
        return tuple(table for table in tables if table.rows)


def _known(name: str, names: Collection[str], kind: str) -> str:
    for known in names:
        if _bare(known) == _bare(name):
            return known
    raise UsageError(f"no {kind} '{name}' is quoted. {nearest(name, names, 'There are')}")


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def published_path() -> Path:
    """``evaluation/published.yaml`` of the working folder, or else the package's own."""
    paths = [root / PUBLISHED for root in spec_roots()]
    return next((path for path in paths if path.is_file()), paths[-1])


def load_published(path: Path | None = None) -> Published:
    """The tables of a file.

    Args:
        path: None for ``published_path()``.
    """
    root = load(path or published_path())
    sections = root.entries(("data_sets", "metrics", "settings", "papers"))
    meanings = {name: _meanings(sections[name]) for name in ("data_sets", "metrics", "settings")}
    titles, tables = {}, []
    for paper, node in sections["papers"].mapping().items():
        entries = node.entries(("title", "tables"))
        titles[paper] = _text(entries["title"])
        tables += [
            _table(paper, name, entry, meanings) for name, entry in entries["tables"].mapping().items()
        ]
    return Published(titles, meanings["data_sets"], meanings["metrics"], tuple(tables))


def _meanings(node: Node) -> dict[str, str]:
    return {name: _text(entry) for name, entry in node.mapping().items()}


def _table(paper: str, number: str, node: Node, meanings: Mapping[str, Mapping[str, str]]) -> QuotedTable:
    entries = node.entries(("title", "columns", "values", "rows"), ("all",))
    shared = _fields(entries["all"], meanings) if "all" in entries else {}
    columns = tuple(_text(entry) for entry in _items(entries["columns"]))
    for name, entry in zip(columns, _items(entries["columns"]), strict=True):
        _check_name(entry, name, meanings)
    heads = tuple(_fields(entry, meanings) for entry in _items(entries["values"]))
    for entry, head in zip(_items(entries["values"]), heads, strict=True):
        _check_whole(entry, [*shared, *columns, *head])
    rows = tuple(
        _row(place, entry, columns, heads, meanings)
        for place, entry in enumerate(_items(entries["rows"]), start=1)
    )
    return QuotedTable(paper, number, _text(entries["title"]), shared, columns, heads, rows)


def _check_whole(node: Node, names: Sequence[str]) -> None:
    """Refuses numbers that lack one of what each must have, or have something twice."""
    for name in names:
        if names.count(name) > 1:
            raise node.error(f"'{name}' is given twice for these numbers: in 'all', 'columns' or here")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise node.error(f"neither 'all' nor 'columns' nor this gives the {missing[0]} of these numbers")


def _fields(node: Node, meanings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    fields = {}
    for name, entry in node.mapping().items():
        _check_name(entry, name, meanings)
        fields[name] = _value(entry, name, meanings)
    return fields


def _check_name(node: Node, name: str, meanings: Mapping[str, Mapping[str, str]]) -> None:
    known = ("data_set", "metric", *meanings["settings"])
    if name not in known:
        raise node.error(f"'{name}' is not among the file's 'settings'. {nearest(name, known, 'There are')}")


def _value(node: Node, name: str, meanings: Mapping[str, Mapping[str, str]]) -> str:
    text = _text(node)
    choices = {"data_set": "data_sets", "metric": "metrics"}
    if name in choices and text not in meanings[choices[name]]:
        known = nearest(text, meanings[choices[name]], "There are")
        raise node.error(f"'{text}' is not among the file's '{choices[name]}'. {known}")
    return text


def _row(
    number: int,
    node: Node,
    columns: Sequence[str],
    heads: Sequence[Mapping[str, str]],
    meanings: Mapping[str, Mapping[str, str]],
) -> QuotedRow:
    items = _items(node)
    if len(items) != len(columns) + len(heads):
        raise node.error(
            f"has {counted(len(items), 'entry', 'entries')}, expected {len(columns)} ({', '.join(columns)}) "
            f"and {counted(len(heads), 'number')}"
        )
    cells = tuple(
        None if item.value is None and name not in NEEDED else _value(item, name, meanings)
        for name, item in zip(columns, items, strict=False)
    )
    values = tuple(map(_number, items[len(columns) :]))
    if all(value is None for value in values):
        raise node.error("a row without a number")
    return QuotedRow(number, cells, values)


def _items(node: Node) -> tuple[Node, ...]:
    if not isinstance(node.value, tuple):
        raise node.error(f"expected a list, got {node.shown()}")
    return node.value


def _number(node: Node) -> float | None:
    value = node.value
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise node.error(f"expected a number, or null where the paper has none, got {node.shown()}")
    return float(value)


def _text(node: Node) -> str:
    value = node.value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise node.error(f"expected a word or a number, got {node.shown()}")
