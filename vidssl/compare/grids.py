"""Tables before they have a look, and the looks: for a terminal, a page, a paper."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
MANY = 7  # columns, which fit into a terminal of 80 only without room between them
_NUMBER = re.compile(r"([-+±()\d.,%eE ]| to | of )*")


@dataclass(frozen=True)
class Grid:
    """A table before it has a look: rows of as many cells as there are heads; without rows, its title."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table."""
    if not grid.rows:
        return f"{grid.title}\n"

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(grid.heads), line(["---"] * len(grid.heads)), *map(line, grid.rows)]
    return f"{grid.title}\n\n" + "\n".join(lines) + "\n"


def latex(grid: Grid) -> str:
    """The grid as a LaTeX table, for a document that loads ``booktabs``; a grid without rows is a comment."""
    if not grid.rows:
        return f"% {grid.title}\n"

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(map(latex_text, cells)) + r" \\"

    columns = "".join("r" if numbers else "l" for numbers in _numeric(grid))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(grid.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"  \toprule",
            line(grid.heads),
            r"  \midrule",
            *map(line, grid.rows),
            r"  \bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would take for a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def drawn(grid: Grid) -> Table | Text:
    """The grid as a table for a terminal."""
    if not grid.rows:
        return Text(grid.title, style="bold")
    padding = (0, 1) if len(grid.heads) < MANY else (0, 0)
    table = Table(title=Text(grid.title), title_justify="left", title_style="bold", padding=padding)
    columns = zip(grid.heads, _numeric(grid), zip(*grid.rows, strict=True), strict=True)
    for head, numbers, cells in columns:
        # a name of a run may break, a number and a word may not
        words = [word for word in head.split() if "/" not in word] + [
            w for cell in cells for w in cell.split()
        ]
        width = max(map(len, words), default=None) if numbers else None
        justify: Literal["left", "right"] = "right" if numbers else "left"
        table.add_column(Text(head), justify=justify, overflow="fold", min_width=width)
    for row in grid.rows:
        table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row))
    return table


def _numeric(grid: Grid) -> list[bool]:
    """Which columns hold numbers alone, or dashes."""
    columns = zip(*grid.rows, strict=True)
    return [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
