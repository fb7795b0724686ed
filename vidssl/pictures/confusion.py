"""Confusion matrices as pictures: what the videos of each class are taken for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from vidssl.config.strict_yaml import nearest
from vidssl.engine.atomic import make_folder
from vidssl.engine.logging import print_line, terminal
from vidssl.engine.runfolder import named_path
from vidssl.errors import UsageError, counted
from vidssl.evaluate.report import percent
from vidssl.evaluate.score_file import ScoreFile, find_scores
from vidssl.evaluators.scores import Score, confusion
from vidssl.pictures import pages

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
    file = _chosen(find_scores(named_path(target)), protocol, target)
    network = _known(network, list(file.scores), "network", file)
    rows = [score for score in file.scores[network] if score.frames == "normal"]
    if not rows[0].names_classes:
        raise UsageError(f"{file.path}: retrieval finds videos and names no classes")
    if label is not None:
        label = _known(label, [row.label for row in rows], "label", file)
        rows = [row for row in rows if row.label == label]
    setting = _known(setting, [row.setting for row in rows], "setting", file)
    own = Path(target) / "pictures" if Path(target).is_dir() else file.path.parent
    folder = own if out is None else Path(out)
    make_folder(folder, "name another with --out")
    for row in rows:
        if row.setting == setting:
            words = (file.path.stem, row.label, row.setting, network)
            name = "-".join(word for word in words if word).replace("/", "_").replace(" ", "_")
            path = folder / f"confusion-{name}.png"
            pages.save_png(confusion_page(file, network, row), path)
            print_line(console, f"Picture: {path}")
    return 0


def _chosen(files: Sequence[ScoreFile], protocol: str | None, target: str) -> ScoreFile:
    names = [file.name for file in files]
    if protocol is None and len(files) > 1:
        raise UsageError(f"{target}: has scores of {', '.join(names)}: choose with --protocol")
    wanted = names[0] if protocol is None else protocol
    if wanted not in names:
        raise UsageError(f"{target}: no scores of '{wanted}'. {nearest(wanted, names, 'There are')}")
    return files[names.index(wanted)]


def _known(word: str | None, names: Sequence[str], kind: str, file: ScoreFile) -> str:
    if word is not None and word not in names:
        raise UsageError(f"{file.path}: no {kind} '{word}'. {nearest(word, names, 'There are')}")
    return names[0] if word is None else word


def confusion_page(file: ScoreFile, network: str, row: Score) -> Image.Image:
    """The matrix of a row of scores, what it is of, its most frequent mistakes, and a scale."""
    names = file.classes[row.label]
    matrix = confusion(file.classes_of(row.label), row.predicted, len(names))
    words = ", ".join(word for word in (file.name, row.label, row.setting, f"{network} network") if word)
    right = percent(int(matrix.trace()) / row.num_test)
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
