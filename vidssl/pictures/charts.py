"""Charts by matplotlib: scores with intervals, curves, embeddings, effects; SVG takes a page's colours."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidssl.engine.atomic import write_atomically
from vidssl.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's (2008), which every kind of colour blindness tells apart; yellow is too pale for lines
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_INK = "#010203"  # in the SVG it becomes the colour of the page's text
_MOST_ROWS = 60  # of a chart of scores
_DOTS_A_INCH = 130
_MOST_DRAWN_AS_LINES = 200  # points of a map; more would make a page slow


@dataclass(frozen=True)
class Dot:
    """A score in [0, 1] with its 95 % interval; the ends are its own where there is none."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A metric of a run over its steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


def require_matplotlib() -> None:
    """
    Raises:
        UsageError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("charts need the package matplotlib: pip install 'vidssl[report]'")


@contextmanager
def _style() -> Iterator[None]:
    require_matplotlib()
    import matplotlib as mpl

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "vidssl", "text.parse_math": False, "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _INK, "axes.labelcolor": _INK,
        "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK, "figure.facecolor": "none",
        "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False, "axes.titlesize": 10,
        "axes.titlelocation": "left", "font.family": "sans-serif",
        "figure.constrained_layout.wspace": 0.06,  # 100 of a panel and 0 of the next are two numbers
    }  # fmt: skip
    with mpl.rc_context(settings):
        yield


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: "Figure") -> str:
    """A figure as an ``<svg>`` element for a page: no fixed size, text and axes in the page's own colour."""
    text = io.StringIO()
    with _style():
        figure.savefig(text, format="svg", dpi=_DOTS_A_INCH, metadata={"Date": None, "Creator": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", found))
    return found.replace(_INK, "currentColor")


def save_chart(figure: "Figure", path: Path) -> None:
    """Write a figure as a PNG or SVG file, by the name's ending, on white.

    Raises:
        UsageError: if it cannot be written.
    """
    kind = path.suffix[1:]
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}

    def write(temporary: Path) -> None:
        with _style():
            figure.savefig(temporary, format=kind, dpi=_DOTS_A_INCH, facecolor="white", metadata=metadata)

    write_atomically(path, write)


def scores_chart(
    panels: Mapping[str, Sequence[Dot]], chance: Mapping[str, float | None], hollow: Sequence[str] = ()
) -> "Figure":
    """A panel for each label: a line for each network, with its interval; chance as a dashed line.

    Args:
        panels: label -> scores.
        chance: label -> score of guessing.
        hollow: names of networks that are drawn hollow, as they were not trained; one that is called after
            another, as in "bevt, untrained", has the colour and the mark of that one.
    """
    names = list(dict.fromkeys(dot.name for dots in panels.values() for dot in dots))[:_MOST_ROWS]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    with _style():
        figure = _figure(2.2 + 2.6 * across, down * (0.75 + 0.26 * len(names)))
        grid = figure.subplots(down, across, sharey=True, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            label = list(panels)[place]
            _dots(axes, panels[label], names, hollow)
            guess = chance.get(label)
            if guess is not None:
                axes.axvline(100 * guess, color=_INK, linestyle="--", linewidth=0.8, alpha=0.6)
            axes.set_title(label)
            axes.set_xlim(0, 100)
            axes.grid(axis="x", alpha=0.2, color=_INK)
            if place + across >= len(panels):  # the lowest of its column
                axes.set_xlabel("accuracy in %")
        grid[0, 0].set_yticks(range(len(names)), names)
        grid[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _dots(axes: "Axes", dots: Sequence[Dot], names: Sequence[str], hollow: Sequence[str]) -> None:
    twins = {name: name.rpartition(", ")[0] for name in hollow}
    looks = [name for name in names if twins.get(name, "") not in names]
    for dot in dots:
        if dot.name not in names:
            continue
        row = names.index(dot.name)
        look = looks.index(dot.name if dot.name in looks else twins[dot.name])
        colour = COLOURS[look % len(COLOURS)]
        axes.plot((100 * dot.low, 100 * dot.high), (row, row), color=colour, linewidth=1.6)
        face = "none" if dot.name in hollow else colour
        marker = MARKERS[look % len(MARKERS)]
        axes.plot(
            100 * dot.value, row, marker, color=colour, markerfacecolor=face, markersize=6, clip_on=False
        )


def curves_chart(panels: Mapping[str, Sequence[Curve]]) -> "Figure":
    """A panel for each metric, its runs over one another.

    Args:
        panels: metric -> curves; those of one name have one colour, dashed where they were tested.
    """
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    with _style():
        figure = _figure(4.2 * across, 2.3 * down + 0.25 * min(len(names), 8))
        grid = figure.subplots(down, across, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            metric = list(panels)[place]
            for curve in panels[metric]:
                number = names.index(curve.name)
                # a single value has no line
                marker = MARKERS[number % len(MARKERS)] if len(curve.steps) < 3 else ""
                axes.plot(
                    curve.steps, curve.values, marker=marker, markersize=4, linewidth=1.4,
                    color=COLOURS[number % len(COLOURS)], linestyle="--" if curve.dashed else "-",
                )  # fmt: skip
            dashed = any(curve.dashed for curve in panels[metric])
            axes.set_title(f"{metric}, held out dashed" if dashed else metric)
            axes.grid(alpha=0.2, color=_INK)
            axes.set_xlabel("step")
        _legend(figure, names)
    return figure


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if len(names) < 2:
        return
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower left", ncols=2 if len(names) > 3 else 1)


def embedding_chart(
    points: NDArray[np.float64], labels: Sequence[int], classes: Sequence[str], title: str
) -> "Figure":
    """Points [N, 2], each in its class's colour and mark; beyond 14 classes the marks repeat."""
    with _style():
        figure = _figure(6.4, 4.6)
        axes = figure.subplots()
        numbers = np.asarray(labels)
        for number, name in enumerate(classes):
            own = points[numbers == number]
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            face = "none" if number // len(COLOURS) % 2 else colour
            axes.scatter(own[:, 0], own[:, 1], s=16, marker=marker, facecolors=face, edgecolors=colour,
                         linewidths=0.8, label=name, alpha=0.85,
                         rasterized=len(points) > _MOST_DRAWN_AS_LINES)  # fmt: skip
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        if len(classes) <= 28:
            axes.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, ncols=1 + (len(classes) > 14)
            )
    return figure


def effects_chart(panels: Mapping[str, Mapping[str, Sequence[Dot]]], axis: str) -> "Figure":
    """A panel for each label: levels of one axis along, a line for each level of the other.

    Args:
        panels: label -> level of the other axis -> a dot for each level of ``axis``.
        axis: its name.
    """
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    others = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    with _style():
        figure = _figure(1 + 2.9 * across, 2.6 * down + 0.25 * len(others))
        grid = figure.subplots(down, across, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            label = list(panels)[place]
            levels = list(dict.fromkeys(dot.name for dots in panels[label].values() for dot in dots))
            for number, other in enumerate(others):
                dots = panels[label].get(other, ())
                places = [levels.index(dot.name) + 0.06 * (number - (len(others) - 1) / 2) for dot in dots]
                values = [100 * dot.value for dot in dots]
                ends = [[100 * (d.value - d.low) for d in dots], [100 * (d.high - d.value) for d in dots]]
                axes.errorbar(
                    places, values, yerr=ends, color=COLOURS[number % len(COLOURS)], capsize=3,
                    marker=MARKERS[number % len(MARKERS)], linewidth=1.2, markersize=5,
                )  # fmt: skip
            axes.set_xticks(range(len(levels)), levels)
            axes.set_xlabel(axis)
            axes.set_title(label)
            axes.grid(axis="y", alpha=0.2, color=_INK)
        for row in grid:
            row[0].set_ylabel("accuracy in %")
        _legend(figure, others)
    return figure
