"""Charts by matplotlib (SVG takes a page's colours), and confusion matrices as pictures."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from vidssl.config.strict_yaml import nearest
from vidssl.engine import process, runfolder
from vidssl.engine.logging import print_line, terminal
from vidssl.errors import UsageError, counted
from vidssl.evaluate import report, score_file
from vidssl.evaluators import differences, scores
from vidssl.pictures import pages

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

    process.write_atomically(path, write)


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
            axes.set_xlim(min(0.0, *(100 * dot.low for dot in panels[label])), 100)
            axes.grid(axis="x", alpha=0.2, color=_INK)
            if place + across >= len(panels):  # the lowest of its column
                axes.set_xlabel("score in %")
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
        mark = _mark(look, hollow=dot.name in hollow)
        axes.plot((100 * dot.low, 100 * dot.high), (row, row), color=mark["color"], linewidth=1.6)
        axes.plot(100 * dot.value, row, linestyle="", markersize=6, clip_on=False, **mark)


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
                axes.plot(
                    curve.steps, curve.values, linestyle="--" if curve.dashed else "-", linewidth=1.4,
                    markersize=4, markevery=-(-len(curve.steps) // 8),
                    **_mark(names.index(curve.name), hollow=curve.dashed),
                )  # fmt: skip
            dashed = any(curve.dashed for curve in panels[metric])
            axes.set_title(f"{metric}, held out dashed and hollow" if dashed else metric)
            axes.grid(alpha=0.2, color=_INK)
            axes.locator_params(axis="x", integer=True, min_n_ticks=1)
            axes.ticklabel_format(useOffset=False)  # "1e-5-2.249" above the axis is no number that one reads
            axes.set_xlabel("step")
        _legend(figure, names)
    return figure


def _mark(number: int, *, hollow: bool = False) -> dict[str, Any]:
    """Colour and mark of the line of this number; no two of the first 49 have both alike."""
    colour = COLOURS[number % len(COLOURS)]
    marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    return {"color": colour, "marker": marker, "markerfacecolor": "none" if hollow else colour}


def _legend(figure: "Figure", names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    if len(names) < 2:
        return
    handles = [Line2D([], [], markersize=5, label=name, **_mark(i)) for i, name in enumerate(names)]
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
                    places, values, yerr=ends, capsize=3, linewidth=1.2, markersize=5, **_mark(number),
                )  # fmt: skip
            axes.set_xticks(range(len(levels)), levels)
            axes.set_xlabel(axis)
            axes.set_title(label)
            axes.grid(axis="y", alpha=0.2, color=_INK)
        for row in grid:
            row[0].set_ylabel("accuracy in %")
        _legend(figure, others)
    return figure


MOST_COUNTED, MOST_NAMED = 32, 128  # classes of whose pairs the counts, and whose names, can be read
NUM_MISTAKES = 10  # the most frequent ones, listed in words
_WIDEST_NAME, _LARGEST_TEXT, _SMALL_CELL, _SIDE = 190, 13, 11, 900  # pixels
_BRIGHT = 0.55  # fraction of a row from which on a count is written in dark ink
_PALE = (235, 235, 235)


def show_confusion(
    target: str,
    *,
    protocol: str | None = None,
    label: str | None = None,
    setting: str | None = None,
    network: str | None = None,
    out: str | None = None,
    console: Console | None = None,
) -> int:
    """Draw the confusion matrices of a run's scores, as PNG files.

    Args:
        target: run folder or file of scores.
        protocol: whose scores; may be left out where there are those of one.
        label: of one label alone, instead of a picture for each.
        setting: of an evaluator that has several, "k=5" for one; the first where none is named.
        network: column of the scores' table; the first where none is named.
        out: folder for the pictures; None for ``pictures`` in the run's own.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no such scores, or they name no classes.
    """
    console = console or terminal()
    file = _chosen(score_file.find_scores(runfolder.named_path(target)), protocol, target)
    network = _known(network, list(file.scores), "network", file)
    rows = [score for score in file.scores[network] if score.frames == "normal"]
    if label is not None:
        label = _known(label, [row.label for row in rows], "label", file)
        rows = [row for row in rows if row.label == label]
    rows = [row for row in rows if row.names_classes]
    if not rows:
        raise UsageError(f"{file.path}: no row names one class a video: retrieval, mAP and R2 name none")
    setting = _known(setting, [row.setting for row in rows], "setting", file)
    own = Path(target) / "pictures" if Path(target).is_dir() else file.path.parent
    folder = own if out is None else Path(out)
    process.make_folder(folder, "name another with --out")
    for row in rows:
        if row.setting == setting:
            words = (file.path.stem, row.label, row.setting, network)
            name = "-".join(word for word in words if word).replace("/", "_").replace(" ", "_")
            path = folder / f"confusion-{name}.png"
            pages.save_png(confusion_page(file, network, row), path)
            print_line(console, f"Picture: {path}")
    return 0


def _chosen(files: Sequence[score_file.ScoreFile], protocol: str | None, target: str) -> score_file.ScoreFile:
    names = [file.name for file in files]
    if protocol is None and len(files) > 1:
        raise UsageError(f"{target}: has scores of {', '.join(names)}: choose with --protocol")
    wanted = names[0] if protocol is None else protocol
    if wanted not in names:
        raise UsageError(f"{target}: no scores of '{wanted}'. {nearest(wanted, names, 'There are')}")
    return files[names.index(wanted)]


def _known(word: str | None, names: Sequence[str], kind: str, file: score_file.ScoreFile) -> str:
    if word is not None and word not in names:
        raise UsageError(f"{file.path}: no {kind} '{word}'. {nearest(word, names, 'There are')}")
    return names[0] if word is None else word


def confusion_page(file: score_file.ScoreFile, network: str, row: scores.Score) -> Image.Image:
    """The matrix of a row of scores, what it is of, its most frequent mistakes, and a scale."""
    names = file.classes[row.label]
    matrix = differences.confusion(file.classes_of(row.label), row.predicted, len(names))
    words = ", ".join(word for word in (file.name, row.label, row.setting, f"{network} network") if word)
    right = report.percent(int(matrix.trace()) / row.num_test)
    drawn = " in the first draw" if row.draws else ""
    facts = (
        f"{words}: {right} % of {counted(row.num_test, 'video')} right{drawn}",
        f"{file.checkpoint}, step {file.step}; card {file.card_sha256[:8]}",
        "a row for each true class, a column for each class that was named",
    )
    picture = matrix_picture(matrix, names)
    mistakes = pages.below([pages.line(text) for text in most_frequent_mistakes(matrix, names)], gap=0)
    gap = Image.new("RGB", (pages.MARGIN, 1), pages.PAPER)
    parts = (pages.below([*map(pages.line, facts)], gap=0), pages.beside([picture, gap, mistakes]), _scale())
    return pages.framed(pages.below(parts, gap=pages.MARGIN))


def matrix_picture(matrix: Tensor, names: Sequence[str]) -> Image.Image:
    """A cell for each pair of classes coloured by its fraction of the row, with counts and names if they fit.

    Args:
        matrix: int64 [K, K], a row for each true class.
        names: of the K classes.
    """
    side = _cell_side(matrix)
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    colours = pages.heat_colours(shares).repeat_interleave(side, 0).repeat_interleave(side, 1)
    cells = Image.fromarray(colours.contiguous().numpy())
    if len(names) <= MOST_COUNTED:
        _write_counts(cells, matrix, shares, side)
    if len(names) > MOST_NAMED:
        return cells
    videos = matrix.sum(1).tolist()
    left = _written([f"{name} ({n})" for name, n in zip(names, videos, strict=True)], side, to_right=True)
    above = _written(names, side, to_right=False).rotate(90, expand=True)
    corner = Image.new("RGB", (left.width, above.height), pages.PAPER)
    return pages.below([pages.beside([corner, above]), pages.beside([left, cells])])


def _cell_side(matrix: Tensor) -> int:
    if len(matrix) > MOST_NAMED:
        return max(1, _SIDE // len(matrix))
    if len(matrix) > MOST_COUNTED:
        return _SMALL_CELL
    return max(pages.LINE + pages.GAP, pages.width_of(str(int(matrix.max()))) + 2 * pages.GAP)


def _write_counts(cells: Image.Image, matrix: Tensor, shares: Tensor, side: int) -> None:
    draw = ImageDraw.Draw(cells)
    for row, column in matrix.nonzero().tolist():
        ink = pages.INK if shares[row, column] >= _BRIGHT else _PALE
        middle = (column * side + side // 2, row * side + side // 2)
        draw.text(middle, str(int(matrix[row, column])), fill=ink, font=pages.font(), anchor="mm")


def _written(names: Sequence[str], side: int, *, to_right: bool) -> Image.Image:
    """Names below each other, one every ``side`` pixels, ending at the right or beginning at the left."""
    size = min(_LARGEST_TEXT, side - 1)
    short = [pages.cut(name, _WIDEST_NAME, size) for name in names]
    picture = Image.new(
        "RGB", (max(pages.width_of(name, size) for name in short), side * len(names)), pages.PAPER
    )
    draw = ImageDraw.Draw(picture)
    for place, name in enumerate(short):
        middle = place * side + side // 2
        at, anchor = ((picture.width - 1, middle), "rm") if to_right else ((0, middle), "lm")
        draw.text(at, name, fill=pages.INK, font=pages.font(size), anchor=anchor)
    return picture


def most_frequent_mistakes(matrix: Tensor, names: Sequence[str]) -> list[str]:
    """Lines on which class is taken for which most often, and how often."""
    wrong = matrix - torch.diag(matrix.diagonal())
    videos = matrix.sum(1).tolist()
    ranked = wrong.flatten().sort(descending=True, stable=True)
    lines = [
        f"{names[place // len(names)]} as {names[place % len(names)]}: {n} of {videos[place // len(names)]}"
        for n, place in zip(ranked.values.tolist()[:NUM_MISTAKES], ranked.indices.tolist(), strict=False)
        if n > 0
    ]
    return ["most frequent mistakes:", *lines] if lines else ["no mistakes"]


def _scale() -> Image.Image:
    steps = pages.heat_colours(torch.linspace(0, 1, 256).expand(pages.LINE, 256))
    bar = Image.fromarray(steps.contiguous().numpy())
    return pages.beside([pages.line("none of the row"), bar, pages.line("all of it")])
