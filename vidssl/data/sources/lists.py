"""Lists of videos: a text or CSV file with a path on each line, its labels, perhaps times of a segment."""

import csv
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import get_args

from vidssl.data.classes import check_cell, ordered_classes
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listed, Listing, ListPart, check_choice
from vidssl.data.sources.manifest import Segment
from vidssl.errors import UsageError, counted, printable

_log = logging.getLogger(__name__)

_PATH = rf"(?:[^\"].*?\.(?:{'|'.join(VIDEO_EXTENSIONS)})|\"[^\"]+\")"
_PATH_THEN_LABELS = re.compile(rf"({_PATH})(?:\s+(\S.*))?", re.IGNORECASE)
_WORD = re.compile(r'"([^"]*)"|(\S+)')
# Kinetics lists are called .csv and part their columns by a space
_PATH_THEN_DELIMITER = re.compile(rf"{_PATH}([,;\t ])", re.IGNORECASE)
_TIMES = {"start": "start", "end": "end", "time_start": "start", "time_end": "end"}  # columns, no labels
_GROUP = "group"  # nor is this one
ROOT_NOTE = "root"  # in the lines that a list may open with: the folder of its paths

Exists = Callable[[str], bool]


@dataclass(frozen=True)
class _Line:
    line: int
    path: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """A list as it stands: names of the columns behind the path, and a cell of each in every row."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[_Line, ...]

    @property
    def labels(self) -> dict[str, int]:
        """Name of a label -> its column."""
        return {name: place for place, name in enumerate(self.columns) if name not in (*_TIMES, _GROUP)}

    def group(self, row: _Line) -> str:
        """The source that a row's video was cut from with others; empty where the list names none."""
        return row.cells[self.columns.index(_GROUP)] if _GROUP in self.columns else ""

    def segment(self, row: _Line) -> Segment | None:
        """The segment of a row's times; None where the list has none."""
        found = {
            _TIMES[name]: cell for name, cell in zip(self.columns, row.cells, strict=True) if name in _TIMES
        }
        if not found:
            return None
        try:
            start, end = float(found["start"]), float(found["end"])
        except ValueError:
            start, end = math.nan, math.nan
        if not 0 <= start < end < math.inf:
            raise UsageError(
                f"{self.path}:{row.line}: a segment needs its start and its end in seconds, the end behind "
                f"the start, got {found['start']!r} and {found['end']!r}"
            )
        return Segment(start, end)


def read_lists(*paths: Path, exists: Exists | None = None, labels_needed: bool = True) -> list[Listing]:
    """The lists in these files, with one numbering of classes over all of them.

    A CSV list may open with a header, whose further columns name the labels; without one a single label is
    called "class", several "label1", "label2" and so on. Labels are whole numbers or names of classes; a set
    of them is ``run|jump``, none of them ``|``; cells of a column called "target:NAME" are any numbers. The
    columns "start" and "end" (also "time_start", "time_end") are no labels: the sample is that segment. Nor
    is "group", which names the source that a video was cut from with others.

    Args:
        paths: of the lists.
        exists: whether there is a file of this path, by which a header is told from a video; by default
            below ``list_root``.
        labels_needed: whether a list without labels beside one with them is an error.

    Raises:
        UsageError: for a list that is missing, empty or not in order, with the line.
    """
    tables = [_read_table(path, exists or _below(list_root(path))) for path in paths]
    first = tables[0].labels
    for table in tables:
        if set(table.labels) != set(first) and (table.labels or labels_needed):
            raise UsageError(
                f"{table.path}: its labels are {_shown(table.labels)}, those of {paths[0]} {_shown(first)}"
            )
    cells = {
        name: [row.cells[table.labels[name]] for table in tables if table.labels for row in table.rows]
        for name in first
    }
    classes = {
        name: ordered_classes(map(_canonical(values), values), name, paths[0])
        for name, values in cells.items()
    }
    numbers = {name: {one: place for place, one in enumerate(found)} for name, found in classes.items()}
    return [_listing(table, {name: _canonical(values) for name, values in cells.items()}, numbers, classes)
            for table in tables]  # fmt: skip


def list_notes(path: Path) -> dict[str, str]:
    """What a list says of itself in the lines that it opens with: ``# root: videos``."""
    notes = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in takewhile(lambda line: line.startswith("# "), file):
                name, _, value = line[2:].strip().partition(": ")
                notes[name] = value
    except OSError:  # reading it as a list says why
        pass
    return notes


def list_root(path: Path) -> Path:
    """The folder that a list's paths are relative to: as its first lines state it, else its own."""
    return Path(os.path.normpath(path.parent / list_notes(path).get(ROOT_NOTE, "")))


def _below(folder: Path) -> Exists:
    return lambda path: (folder / path).is_file()


def _listing(
    table: _Table,
    spelled: dict[str, Callable[[str], str]],
    numbers: dict[str, dict[str, int]],
    classes: dict[str, tuple[str, ...]],
) -> Listing:
    files = []
    lines: dict[str, int] = {}
    for row in table.rows:
        labels = {name: numbers[name][spelled[name](row.cells[at])] for name, at in table.labels.items()}
        file = Listed(row.path, labels, table.segment(row), table.group(row))
        if lines.setdefault(file.key, row.line) != row.line:
            raise UsageError(
                f"{table.path}:{row.line}: {file.key} is listed twice, first on line {lines[file.key]}"
            )
        files.append(file)
    return Listing(tuple(files), classes)


def _canonical(cells: Sequence[str]) -> Callable[[str], str]:
    """How a class is spelled: "007" is class 7 where all are numbers."""
    if all(re.fullmatch(r"-?[0-9]+", cell) for cell in cells):
        return lambda cell: str(int(cell))
    return lambda cell: cell


def listed_part(
    first: str, held_out: str | None, part: ListPart, *, exists: Exists | None = None
) -> tuple[Listing, ListPart]:
    """The videos of one list, or of one for training and one for testing.

    Args:
        first: path of the list.
        held_out: path of the test videos'; numbers classes together with ``first``.
        part: what is wanted.
        exists: as ``read_lists`` has it.

    Returns:
        The videos, and the part of them that is still to be selected: "all" if ``held_out`` decides it.

    Raises:
        UsageError: if a list is not in order, or a video is in both.
    """
    check_choice("part", part, get_args(ListPart))
    paths = (Path(path) for path in (first, held_out) if path is not None)
    lists = read_lists(*paths, exists=exists)
    if held_out is None:
        return lists[0], part
    learned = lists[0].by_file()
    for file in lists[1].files:
        others = [other.segment for other in learned.get(file.path, ())]
        if any(not (file.segment and other) or file.segment.overlaps(other) for other in others):
            raise UsageError(
                f"{held_out}: {file.key} is in {first} too, so it would be trained and tested on"
            )
    both = Listing(lists[0].files + lists[1].files, lists[0].label_classes)
    return {"all": both, "train": lists[0], "test": lists[1]}[part], "all"


def read_text(path: Path) -> str:
    """The text of a list in UTF-8, or in UTF-16 with its byte order mark.

    Raises:
        OSError: if it cannot be read.
        UsageError: if it is in another encoding, with what the first such line is in those that are common,
            or no text.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}{_why_no_text(data, error.start)}") from error
    if "\0" in text:
        raise UsageError(f"{path}{_why_no_text(data, text.index(chr(0)))}")
    return text


def _why_no_text(data: bytes, at: int) -> str:
    sample = data[:4096]
    zeros, control = 4 * max(sample[1::2].count(0), sample[::2].count(0)), rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]"
    if zeros > len(sample) and not re.search(control, sample):
        return ": it is UTF-16 without a byte order mark: save it as UTF-8"
    if zeros or re.search(control, sample):
        return ": it is no text, so no list; of files themselves give the folder that they lie in"
    line = data[data.rfind(b"\n", 0, at) + 1 :].split(b"\n")[0].rstrip(b"\r")
    readings = []
    for name in ("Latin-1", "GBK"):
        try:
            readings.append(f"as {name} it is {printable(line.decode(name), one_line=True)[:60]!r}")
        except UnicodeDecodeError:
            continue
    number = data.count(b"\n", 0, at) + 1
    way_out = "save the list as UTF-8 ('iconv -f ENCODING -t UTF-8')"
    return f":{number}: it is not UTF-8 ({', '.join(readings)}): {way_out}"


def _read_table(path: Path, exists: Exists) -> _Table:
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such list (paths are relative to the working folder, {Path.cwd()})"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: the list cannot be read ({error.strerror})") from error
    if text.startswith('{"kind":'):
        raise UsageError(
            f"{path}: it is no list but what 'vidssl data' wrote. Give the folder or the list that it was "
            "made of; sources take a manifest by the key 'manifest'"
        )
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    rows = _csv_rows(text, path) if is_csv else _text_rows(text, path, exists)
    if not rows:
        raise UsageError(f"{path}: the list is empty; each line holds a path, then its labels")
    header = rows.pop(0).cells if is_csv and _is_header(rows, exists) else None
    if not rows:
        raise UsageError(f"{path}: the list has a header and nothing below it")
    columns = _columns(path, header, len(rows[0].cells))
    for row in rows:
        if len(row.cells) != len(columns) or not all(row.cells):
            raise UsageError(f"{path}:{row.line}: {_why_uneven(row, len(columns), rows[0], header)}")
    known = set(_TIMES) | {_GROUP}
    rows = [
        replace(row, cells=tuple(cell if name in known else check_cell(name, cell, f"{path}:{row.line}")
                                 for name, cell in zip(columns, row.cells, strict=True)))
        for row in rows
    ]  # fmt: skip
    return _Table(path, columns, tuple(_with_slashes(rows, path, exists)))


def _columns(path: Path, header: tuple[str, ...] | None, width: int) -> tuple[str, ...]:
    if header is None:
        return ("class",) if width == 1 else tuple(f"label{number + 1}" for number in range(width))
    if len(set(header)) < len(header) or not all(header):
        raise UsageError(f"{path}: the columns of its header need different names, got {', '.join(header)}")
    times = sorted(_TIMES[name] for name in header if name in _TIMES)
    if times not in ([], ["end", "start"]):
        raise UsageError(
            f"{path}: a segment needs both columns, 'start' and 'end', in seconds; its header has "
            f"{', '.join(name for name in header if name in _TIMES)}"
        )
    return header


def _is_header(rows: Sequence[_Line], exists: Exists) -> bool:
    """Whether the first row names columns: it names no file, and nothing that looks like a missing one."""
    first = rows[0]
    if exists(first.path) or _PATH_THEN_LABELS.fullmatch(first.path):
        return False
    ending = Path(first.path).suffix
    alike = bool(ending) and any(Path(row.path).suffix == ending for row in rows[1:2])
    return not alike and not any(re.fullmatch(r"[0-9.]+", cell) for cell in first.cells)


def _why_uneven(row: _Line, width: int, first: _Line, header: tuple[str, ...] | None) -> str:
    if not all(row.cells):
        return "a label is empty"
    of = "its header" if header is not None else f"line {first.line}"
    longer = row.cells if len(row.cells) > width else first.cells
    hint = ""
    if any(not re.fullmatch(r"-?[0-9]+", cell) for cell in longer):
        hint = f'. A class name with a comma or a blank goes in quotes, "{", ".join(longer)}", in a .csv file'
    return f"it has {counted(len(row.cells), 'label')}, {of} has {width}{hint}"


def _with_slashes(rows: Sequence[_Line], path: Path, exists: Exists) -> list[_Line]:
    """Paths as Windows writes them become our own, where there is no file of that very name."""
    turned = [
        replace(row, path=row.path.replace("\\", "/"))
        if "\\" in row.path and not exists(row.path)
        else row
        for row in rows
    ]  # fmt: skip
    count = sum(one is not other for one, other in zip(turned, rows, strict=True))
    if count:
        _log.info("%s: backslashes in %d paths, as Windows has them, are read as slashes", path, count)
    return turned


def _csv_rows(text: str, path: Path) -> list[_Line]:
    lines = text.splitlines()
    for number in takewhile(lambda number: lines[number].startswith("# "), range(len(lines))):
        lines[number] = ""  # what says how a list was made is no row
    first = next((line for line in lines if line.strip()), "")
    behind_path = _PATH_THEN_DELIMITER.match(first)
    delimiter = behind_path[1] if behind_path else next((mark for mark in "\t;" if mark in first), ",")
    rows = []
    for number, cells in rows_of_csv(lines, path, delimiter, trim=True):
        file, *labels = (cell.strip() for cell in cells or [""])
        if file or any(labels):
            shown = tuple(printable(cell, one_line=True) for cell in labels)
            rows.append(_Line(number, file, shown))
            if delimiter == " " and '"' not in text:
                _refuse_words(rows[-1], path)
    return rows


def rows_of_csv(
    lines: Sequence[str], path: Path, delimiter: str = ",", *, trim: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row.

    Args:
        trim: whether spaces behind delimiters are left out.

    Raises:
        UsageError: for what is no row, as a cell of more than 131,072 characters.
    """
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=trim)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: {error}") from error


def _text_rows(text: str, path: Path, exists: Exists) -> list[_Line]:
    """A path up to its extension, which may hold spaces, then labels parted by white space."""
    rows = []
    for line, content in enumerate(text.splitlines(), start=1):
        content = content.strip()
        if not content:
            continue
        match = _PATH_THEN_LABELS.fullmatch(content)
        if match is not None:
            file, labels = match[1].strip('"'), match[2] or ""
        else:
            file = _longest_file(content, exists)
            labels = content[len(file) :]
        if not file:
            raise UsageError(
                f"{path}:{line}: expected the path of a video, then its labels, got "
                f"{printable(content[:80], one_line=True)!r}"
            )
        row = _Line(line, file, tuple(printable(a or b, one_line=True) for a, b in _WORD.findall(labels)))
        if '"' not in labels:
            _refuse_words(row, path)
        rows.append(row)
    return rows


def _longest_file(content: str, exists: Exists) -> str:
    """The file, of an ending that we do not know, that a line begins with; empty if there is none."""
    ends = [match.start() for match in re.finditer(r"\s", content)]
    return next((content[:end] for end in [len(content), *reversed(ends)] if exists(content[:end])), "")


def _refuse_words(row: _Line, path: Path) -> None:
    """Raises UsageError for several words that may be one class name or several labels."""
    if len(row.cells) > 1 and not all(re.fullmatch(r"-?[0-9]+", cell) for cell in row.cells):
        words = " ".join(row.cells)
        raise UsageError(
            f"{path}:{row.line}: is '{words}' one class name or {counted(len(row.cells), 'label')}? Put "
            "a name with "
            f'blanks in quotes ("{words}"), and each of several labels in its own'
        )


def _shown(names: Sequence[str] | dict[str, int]) -> str:
    return ", ".join(names) or "none"
