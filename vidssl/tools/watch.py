"""Curves of runs in the terminal, over one another, while they train or afterwards."""

import fnmatch
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from vidssl.config.strict_yaml import nearest
from vidssl.engine.facts import Row, parsed
from vidssl.engine.logging import UNTRACKED as HIDDEN, format_metric, terminal
from vidssl.engine.process import trains_in
from vidssl.engine.runfolder import RunFolder, last_begun, named_run
from vidssl.errors import UsageError

_BLANK = 0x2800
_DOTS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # [row][column] of a letter from the top left


@dataclass(frozen=True)
class Line:
    """A curve of a plot: values over steps that rise, as many; dashed on held-out videos; a mark ends it."""

    steps: Sequence[float]
    values: Sequence[float]
    style: str = ""
    dashed: bool = False
    mark: str = ""


def plot(lines: Sequence[Line], *, width: int, height: int) -> Text:
    """Curves over one another on common axes, the earliest step at the left and the highest value at the top.

    Neighbouring points are joined. Values that are not finite leave a gap. A letter has the style of the last
    line that runs through it.

    Args:
        width: in letters.
        height: in lines of text.
    """
    letters = [[_BLANK] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]
    low, high = _range(value for line in lines for value in line.values)
    first, last = _range(step for line in lines for step in line.steps)
    marks: dict[tuple[int, int], str] = {}
    for line in lines:
        before: tuple[float, float] | None = None
        for step, value in zip(line.steps, line.values, strict=True):
            if not math.isfinite(value):
                before = None
                continue
            place = (
                _share(step, first, last) * (2 * width - 1),
                (1 - _share(value, low, high)) * (4 * height - 1),
            )
            for column, row in _joined(before or place, place):
                if line.dashed and before and column % 4 > 1:
                    continue
                letters[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
                styles[row // 4][column // 2] = line.style
            before = place
        if line.mark and before:
            row, column = round(before[1]) // 4, round(before[0]) // 2
            while (row, column) in marks and column:
                column -= 1
            marks[row, column] = line.mark
    for (row, column), mark in marks.items():
        letters[row][column] = ord(mark)
    rows = [
        Text.assemble(*((chr(letter), style) for letter, style in zip(*row, strict=True)))
        for row in zip(letters, styles, strict=True)
    ]
    return Text("\n").join(rows)


def _range(values: Iterable[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _joined(start: tuple[float, float], end: tuple[float, float]) -> Iterator[tuple[int, int]]:
    """The dots, column and row, of a line from one point to another."""
    count = max(1, math.ceil(max(abs(end[0] - start[0]), abs(end[1] - start[1]))))
    for number in range(count + 1):
        yield (
            round(start[0] + (end[0] - start[0]) * number / count),
            round(start[1] + (end[1] - start[1]) * number / count),
        )


FIRST = ("loss*", "accuracy*", "knn*", "rankme*", "grad_norm", "lr")
TESTED = "test_"  # before the name of a metric on held-out videos; drawn over that in training, dashed
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2")  # Okabe and Ito
PANEL_WIDTH, PANEL_HEIGHT = 38, 5  # of a curve, in letters; two fit into 80 columns
_LAST_STEP, _LARGEST = 2**53, 1e300  # beyond, a number is not one that was logged
SECONDS = 2.0  # between looks at the file


@dataclass(frozen=True)
class Curve:
    """One metric over the steps at which it was logged."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(metrics: Path) -> list[Curve]:
    """The curves in a ``metrics.jsonl``, in the order in which they were first logged.

    A last line that is cut, as a run writes it, is left out.

    Raises:
        UsageError: if another line is no record.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = Row(parsed(line))
            step = record.whole("step", highest=_LAST_STEP)
        except ValueError as error:
            raise UsageError(f"{metrics}:{number}: no line of metrics ({error})") from error
        for name, value in record.entries():
            if name not in HIDDEN and isinstance(value, (int, float)):
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(float(value) if abs(value) <= _LARGEST else math.copysign(math.inf, value))
    return [Curve(name, tuple(steps), tuple(values)) for name, (steps, values) in found.items()]


def chosen(names: Sequence[str], patterns: Sequence[str], most: int) -> list[str]:
    """The metrics to draw: those that patterns (``loss*``) name, or by default a few of
    ``FIRST``, one of each pattern in turn.

    Raises:
        UsageError: if a pattern names none.
    """
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"--metric {pattern}: the run logged none. {nearest(pattern, names, 'There are')}"
            )
    matches = [fnmatch.filter(names, pattern) for pattern in patterns or FIRST]
    order = [name for turn in zip_longest(*matches) for name in turn if name is not None]
    order += [] if patterns else names
    return list(dict.fromkeys(order))[: None if patterns else most]


def watch_run(
    runs: Sequence[str], patterns: Sequence[str], *, once: bool = False, console: Console | None = None
) -> int:
    """Draws curves of runs over one another; on a terminal anew every two seconds while one of them trains.

    Args:
        runs: their folders; none for the one that was begun last below ``runs``.
        patterns: of metrics' names; none for the usual ones.
        once: draw once, whatever the runs do.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there is no such run, or none logged what is asked for.
    """
    console = console or terminal()
    folders = [named_run(run) for run in dict.fromkeys(runs)] or [last_begun(Path("runs"))]
    if not once and console.is_terminal and _train(folders):
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while _train(folders):
                live.update(_page(folders, patterns, console), refresh=True)
                time.sleep(SECONDS)
    console.print(_page(folders, patterns, console))
    return 0


def _train(folders: Sequence[RunFolder]) -> bool:
    return any(trains_in(folder.path) for folder in folders)


def _page(folders: Sequence[RunFolder], patterns: Sequence[str], console: Console) -> RenderableType:
    lines: list[RenderableType] = []
    metrics: dict[str, list[Line]] = {}  # without "test_" -> the lines of its panel
    logged: list[str] = []
    for place, folder in enumerate(folders):
        curves = read_curves(folder.metrics) if folder.metrics.is_file() else []
        style = COLOURS[place % len(COLOURS)] if len(folders) > 1 else ""
        plain = len(folders) > 1 and (console.color_system is None or console.no_color)
        letter = chr(ord("a") + place % 26) if plain else ""  # in the place of a colour
        mark = Text(f"{letter or '━━'} " if style else "", style=style)
        head = _headline(folder, curves) if curves else f"nothing logged yet in {folder.path}"
        lines.append(Text.assemble(mark, head, no_wrap=True, overflow="ellipsis"))
        for each in curves:
            dashed = each.name.startswith(TESTED)
            line = Line(each.steps, each.values, style, dashed, letter)
            metrics.setdefault(each.name.removeprefix(TESTED), []).append(line)
            logged.append(each.name)
    if not metrics:
        return Group(*lines)
    across = max(1, console.width // (PANEL_WIDTH + 2))
    most = across * max(1, (console.height - 4) // (PANEL_HEIGHT + 3)) if console.is_terminal else 8
    found = chosen(list(dict.fromkeys(logged)) if patterns else list(metrics), patterns, most)
    drawn = dict.fromkeys(name.removeprefix(TESTED) for name in found)
    lines.append(Columns([_panel(name, metrics[name]) for name in drawn], padding=(0, 0)))
    if left := [name for name in metrics if name not in drawn]:
        lines.append(Text(f"also logged (--metric NAME): {', '.join(left)}", style="dim"))
    return Group(*lines)


def _headline(folder: RunFolder, curves: Sequence[Curve]) -> str:
    state = "training" if trains_in(folder.path) else "not training now"
    events = _counts(folder.events)
    counts = "".join(f", {count} {kind}" for kind, count in events.items())
    return f"step {max(each.steps[-1] for each in curves)}, {state}{counts}: {folder.path}"


def _counts(events: Path) -> Mapping[str, int]:
    """Counts of a run's events, by kind."""
    counts: dict[str, int] = {}
    if events.is_file():
        for line in events.read_bytes().splitlines(keepends=True):
            with suppress(ValueError):  # of a line that is cut or damaged
                kind = Row(parsed(line)).text("kind")
                counts[kind] = counts.get(kind, 0) + 1
    return counts


def _panel(name: str, lines: Sequence[Line]) -> Panel:
    """A metric's curves, with their range beside them, that of the steps below, and the last values above."""
    low, high = (
        format_metric(name, value) if abs(value) < 1e6 else f"{value:.2e}"
        for value in _range(v for line in lines for v in line.values)
    )
    first, last = (f"{step:.0f}" for step in _range(step for line in lines for step in line.steps))
    gutter = max(len(low), len(high)) + 1
    width = PANEL_WIDTH - 4 - gutter
    rows = plot(lines, width=width, height=PANEL_HEIGHT).split("\n")
    sides = [high, *[""] * (PANEL_HEIGHT - 2), low]
    body = [
        Text.assemble((f"{side:>{gutter - 1}} ", "dim"), row) for side, row in zip(sides, rows, strict=True)
    ]
    steps = f"{first}{last:>{max(1, width - len(first))}}" if first != last else first
    body.append(Text(" " * gutter + steps, style="dim"))
    title = Text(name)
    for line in lines:
        words = (line.mark, "test" if line.dashed else "", format_metric(name, line.values[-1]))
        value = f" {' '.join(filter(None, words))}"
        if len(title) + len(value) <= PANEL_WIDTH - 4:
            title.append(value, f"bold {line.style}")
    return Panel(Text("\n").join(body), title=title, width=PANEL_WIDTH, padding=(0, 1))
