"""Numbers that papers report, in tables of their own: never in a column with what was measured here."""

import csv
import io
from collections.abc import Mapping, Sequence

from vidssl.compare.grids import Grid
from vidssl.config.published import QuotedTable

_BARE = ("data_set", "metric", "evaluation")  # whose value needs no name
_IN_PERCENT = ("top-1", "mask accuracy")


def quoted_grid(table: QuotedTable, title: str) -> Grid:
    """A paper's table, marked as quoted.

    Args:
        title: of the paper.
    """
    filled = [place for place in range(len(table.columns)) if any(row.cells[place] for row in table.rows)]
    heads = (*(_words(table.columns[place]) for place in filled), *map(_head, table.heads))
    digits = [max(_digits(row.values[place]) for row in table.rows) for place in range(len(table.heads))]
    rows = tuple(
        (
            *(row.cells[place] or "-" for place in filled),
            *("-" if v is None else f"{v:.{n}f}" for v, n in zip(row.values, digits, strict=True)),
        )
        for row in table.rows
    )
    shared = "; ".join(f"{_words(name)}: {value}" for name, value in table.shared.items())
    caption = f"quoted, not measured here: {title}, Table {table.number}, {table.title}"
    return Grid(f"{caption} ({shared})" if shared else caption, heads or ("method",), rows)


def _head(settings: Mapping[str, str]) -> str:
    """``UCF101, linear, top-1 %``: on what, how, and what was measured."""
    order = sorted(settings, key=lambda name: (name == "metric") - (name == "data_set"))
    words = [settings[name] if name in _BARE else f"{_words(name)} {settings[name]}" for name in order]
    return ", ".join(words) + (" %" if settings.get("metric") in _IN_PERCENT else "")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _digits(value: float | None) -> int:
    return 0 if value is None else len(repr(value).partition(".")[2])


def quoted_csv(tables: Sequence[QuotedTable]) -> str:
    """A line for every number, with a header; settings stand in one cell (``size: 224; frames: 16``)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("quoted_from", "table", "row", "method", "settings", "data_set", "metric", "value"))
    for table in tables:
        for n in table.numbers():
            settings = "; ".join(f"{name}: {value}" for name, value in n.settings.items())
            writer.writerow((n.paper, n.table, n.row, n.method, settings, n.data_set, n.metric, n.value))
    return text.getvalue()
