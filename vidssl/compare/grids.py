"""Tables before they have a look, and the looks: for a terminal, a page, a paper."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
    table = Table(title=Text(grid.title), title_justify="left", title_style="bold")
    for head, numbers in zip(grid.heads, _numeric(grid), strict=True):
        table.add_column(Text(head), justify="right" if numbers else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell.replace(" (", "\n(")) for cell in row))
    return table


def _numeric(grid: Grid) -> list[bool]:
    """Which columns hold numbers alone, or dashes."""
    columns = zip(*grid.rows, strict=True)
    return [all(_NUMBER.fullmatch(cell) for cell in cells) for cells in columns]
