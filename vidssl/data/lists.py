"""Lists of videos: a text or CSV file with a path and its labels on each line."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidssl.data.listing import VIDEO_EXTENSIONS, Listed, Listing, Part
from vidssl.errors import UsageError

_PATH = rf".+?\.(?:{'|'.join(VIDEO_EXTENSIONS)})"
_PATH_THEN_LABELS = re.compile(rf"({_PATH})(?:\s+(\S.*))?", re.IGNORECASE)
# Kinetics lists are called .csv and part their columns by a space
_PATH_THEN_DELIMITER = re.compile(rf'{_PATH}"?([,;\t ])', re.IGNORECASE)


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    cells: tuple[str, ...]


def read_lists(*paths: Path, labels_needed: bool = True) -> list[Listing]:
    """The lists in these files, with one numbering of classes over all of them.

    A CSV list may open with a header, whose further columns name the labels; without one a single label is
    called "class", several "label1", "label2" and so on. Labels are whole numbers or names of classes.

    Args:
        paths: of the lists.
        labels_needed: whether a list without labels beside one with them is an error.

    Raises:
        UsageError: for a list that is missing, empty or not in order, with the line.
    """
    tables = [_read_table(path) for path in paths]
    names = tables[0][0]
    for path, (others, _) in zip(paths, tables, strict=True):
        if others != names and (others or labels_needed):
            raise UsageError(f"{path}: its labels are {_shown(others)}, those of {paths[0]} {_shown(names)}")
    rows = [row for _, table in tables for row in table if row.cells]
    classes = {
        name: _classes([row.cells[column] for row in rows], name, paths) for column, name in enumerate(names)
    }
    numbers = {name: {cell: place for place, cell in enumerate(values)} for name, values in classes.items()}
    return [
        Listing(
            tuple(
                Listed(row.path, {n: _number(numbers[n], row.cells[c]) for c, n in enumerate(own)})
                for row in table
            ),
            classes,
        )
        for own, table in tables
    ]


def listed_part(first: str, held_out: str | None, part: Part) -> tuple[Listing, Part]:
    """The videos of one list, or of one for training and one for testing.

    Args:
        first: path of the list.
        held_out: path of the test videos'; numbers classes together with ``first``.
        part: what is wanted.

    Returns:
        The videos, and the part of them that is still to be selected: "all" if ``held_out`` decides it.

    Raises:
        UsageError: if a list is not in order, or a video is in both.
    """
    lists = read_lists(*(Path(path) for path in (first, held_out) if path is not None))
    if held_out is None:
        return lists[0], part
    twice = {file.key for file in lists[0].files} & {file.key for file in lists[1].files}
    if twice:
        raise UsageError(f"{held_out}: {min(twice)} is in {first} too, so it would be trained and tested on")
    both = Listing(lists[0].files + lists[1].files, lists[0].label_classes)
    return {"all": both, "train": lists[0], "test": lists[1]}[part], "all"


def _number(places: dict[str, int], cell: str) -> int:
    return places[cell] if cell in places else places[str(int(cell))]  # "007" is class 7


def _classes(cells: Sequence[str], name: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """Class names in number order: as they stand where all are numbers, else sorted."""
    if not all(re.fullmatch(r"-?\d+", cell) for cell in cells):
        return tuple(sorted(set(cells)))
    numbers = [int(cell) for cell in cells]
    if min(numbers) < 0:
        raise UsageError(f"{paths[0]}: label '{name}' has the class {min(numbers)}; classes count from 0")
    return tuple(str(number) for number in range(max(numbers) + 1))


def _read_table(path: Path) -> tuple[tuple[str, ...], list[_Row]]:
    """Label names and rows of one list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such list (paths are relative to the working folder, {Path.cwd()})"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: it is no text, so no list; of files themselves give the folder that they lie in"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: the list cannot be read ({error.strerror})") from error
    if text.startswith('{"kind":'):
        raise UsageError(
            f"{path}: it is no list but what 'vidssl data' wrote. Give the folder or the list that it was "
            "made of; sources take a manifest by the key 'manifest'"
        )
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    rows = _csv_rows(text) if is_csv else _text_rows(text, path)
    if not rows:
        raise UsageError(f"{path}: the list is empty; each line holds a path, then its labels")
    header = rows.pop(0).cells if is_csv and not _PATH_THEN_LABELS.fullmatch(rows[0].path) else None
    if not rows:
        raise UsageError(f"{path}: the list has a header and nothing below it")
    width = len(rows[0].cells) if header is None else len(header)
    for row in rows:
        if len(row.cells) != width or not all(row.cells):
            raise UsageError(
                f"{path}:{row.line}: expected a path and {width} labels, none empty, got {len(row.cells)}"
            )
    lines: dict[str, int] = {}
    for row in rows:
        if lines.setdefault(row.path, row.line) != row.line:
            raise UsageError(
                f"{path}:{row.line}: {row.path} is listed twice, first on line {lines[row.path]}"
            )
    if header is not None:
        return header, rows
    return ("class",) if width == 1 else tuple(f"label{number + 1}" for number in range(width)), rows


def _csv_rows(text: str) -> list[_Row]:
    first = text.lstrip().split("\n")[0]
    behind_path = _PATH_THEN_DELIMITER.match(first)
    delimiter = behind_path[1] if behind_path else next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    rows = []
    for cells in reader:
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            rows.append(_Row(reader.line_num, stripped[0], tuple(stripped[1:])))
    return rows


def _text_rows(text: str, path: Path) -> list[_Row]:
    """A path up to its extension, which may hold spaces, then labels parted by white space."""
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        match = _PATH_THEN_LABELS.fullmatch(content.strip())
        if match is None:
            raise UsageError(
                f"{path}:{line}: expected the path of a video, then its labels, got {content.strip()[:80]!r}"
            )
        rows.append(_Row(line, match[1], tuple((match[2] or "").split())))
    return rows


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
