"""Curves of a run in the terminal, while it trains or afterwards."""

import fnmatch
import math
import time
from collections.abc import Mapping, Sequence
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
)  # [row][column] of a letter, from the top left


def curve(steps: Sequence[float], values: Sequence[float], *, width: int, height: int) -> list[str]:
    """A curve as lines of text, the earliest step at the left and the highest value at the top.

    Neighbouring points are joined. Values that are not finite leave a gap.

    Args:
        steps: rising; as many as values.
        width: in letters.
        height: in lines.

    Returns:
        ``height`` lines of ``width`` letters.
    """
    letters = [[_BLANK] * width for _ in range(height)]
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        before: tuple[float, float] | None = None
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                before = None
                continue
            place = (
                _share(step, steps[0], steps[-1]) * (2 * width - 1),
                (1 - _share(value, low, high)) * (4 * height - 1),
            )
            _join(letters, before or place, place)
            before = place
    return ["".join(map(chr, line)) for line in letters]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _join(letters: list[list[int]], start: tuple[float, float], end: tuple[float, float]) -> None:
    count = max(1, math.ceil(max(abs(end[0] - start[0]), abs(end[1] - start[1]))))
    for number in range(count + 1):
        column = round(start[0] + (end[0] - start[0]) * number / count)
        row = round(start[1] + (end[1] - start[1]) * number / count)
        letters[row // 4][column // 2] |= _DOTS[row % 4][column % 2]


FIRST = ("loss*", "test_loss*", "accuracy*", "test_accuracy*", "knn*", "rankme*", "grad_norm", "lr")
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


def chosen(curves: Sequence[Curve], patterns: Sequence[str], most: int) -> list[Curve]:
    """The curves to draw: those that patterns (``loss*``) name, or by default a few of
    ``FIRST``, one of each pattern in turn.

    Raises:
        UsageError: if a pattern names none.
    """
    names = [each.name for each in curves]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"--metric {pattern}: the run logged none. {nearest(pattern, names, 'There are')}"
            )
    matches = [fnmatch.filter(names, pattern) for pattern in patterns or FIRST]
    order = [name for turn in zip_longest(*matches) for name in turn if name is not None]
    order += [] if patterns else names
    by_name = {each.name: each for each in curves}
    return [by_name[name] for name in list(dict.fromkeys(order))[: None if patterns else most]]


def watch_run(
    run: str | None, patterns: Sequence[str], *, once: bool = False, console: Console | None = None
) -> int:
    """Draws a run's curves; on a terminal anew every two seconds for as long as the run trains.

    Args:
        run: its folder; None for the one that was begun last below ``runs``.
        patterns: of metrics' names; none for the usual ones.
        once: draw once, whatever the run does.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there is no such run, or it logged nothing of what is asked for.
    """
    console = console or terminal()
    folder = last_begun(Path("runs")) if run is None else named_run(run)
    if once or not console.is_terminal or not trains_in(folder.path):
        console.print(_page(folder, patterns, console))
        return 0
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while trains_in(folder.path):
            live.update(_page(folder, patterns, console), refresh=True)
            time.sleep(SECONDS)
    console.print(_page(folder, patterns, console))
    return 0


def _page(folder: RunFolder, patterns: Sequence[str], console: Console) -> RenderableType:
    curves = read_curves(folder.metrics) if folder.metrics.is_file() else []
    if not curves:
        return Text(f"nothing logged yet in {folder.path}")
    across = max(1, console.width // (PANEL_WIDTH + 2))
    most = across * max(1, (console.height - 4) // (PANEL_HEIGHT + 3)) if console.is_terminal else 8
    drawn = chosen(curves, patterns, most)
    left = [each.name for each in curves if each not in drawn]
    lines: list[RenderableType] = [Text(_headline(folder, curves), no_wrap=True, overflow="ellipsis")]
    lines.append(Columns([_panel(each) for each in drawn], padding=(0, 0)))
    if left:
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


def _panel(drawn: Curve) -> Panel:
    lines = curve(drawn.steps, drawn.values, width=PANEL_WIDTH - 4, height=PANEL_HEIGHT)
    low, high = min(drawn.values), max(drawn.values)
    span = f"{format_metric(drawn.name, low)} to {format_metric(drawn.name, high)}"
    foot = f"step {drawn.steps[0]} to {drawn.steps[-1]}, {span}"
    if len(foot) > PANEL_WIDTH - 4:  # its frame would cut off the last number
        foot = foot.removeprefix("step ").replace(" to ", "..")
    return Panel(
        Text("\n".join(lines)),
        title=Text.assemble(drawn.name, " ", (format_metric(drawn.name, drawn.values[-1]), "bold")),
        subtitle=Text(foot),
        width=PANEL_WIDTH,
        padding=(0, 1),
    )
