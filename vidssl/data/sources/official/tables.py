"""The files that official lists are written in: lines of words, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from vidssl.data.sources import lists
from vidssl.data.sources.listing import VIDEO_EXTENSIONS
from vidssl.data.sources.official.listed import DataSet
from vidssl.errors import counted


def read_text(data_set: DataSet, path: Path) -> str:
    """The text of an official file, whatever its line ends and byte order mark.

    Raises:
        UsageError: if it cannot be read, or is no text in UTF-8 or UTF-16.
    """
    try:
        return lists.read_text(path)
    except FileNotFoundError:
        raise data_set.error(
            f"{path}: no such file (paths are relative to the working folder, {Path.cwd()})"
        ) from None
    except OSError as error:
        raise data_set.error(f"{path}: it cannot be read ({error})") from error


def read_lines(data_set: DataSet, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that holds any."""
    for number, line in enumerate(read_text(data_set, path).splitlines(), start=1):
        if line.strip():
            yield number, line.split()


def read_csv(data_set: DataSet, path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and cells by column of each row, stripped of spaces.

    Raises:
        UsageError: if a needed column is missing, or a row is shorter than the header.
    """
    reader = csv.reader(read_text(data_set, path).splitlines())
    header = [name.strip() for name in next(reader, [])]
    lacking = [name for name in needed if name not in header]
    if lacking:
        raise data_set.error(
            f"{path}: its first line must name the columns {', '.join(needed)}; it lacks "
            f"{', '.join(lacking)} and reads {','.join(header)[:80]!r}"
        )
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) < len(header):
            raise data_set.error(
                f"{path}:{reader.line_num}: {counted(len(cells), 'column')} of {len(header)}"
            )
        yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=False)}


def read_json(data_set: DataSet, path: Path) -> object:
    """What a JSON file holds."""
    try:
        return json.loads(read_text(data_set, path))
    except ValueError as error:
        raise data_set.error(f"{path}: it is no JSON ({error})") from error


def read_entries(data_set: DataSet, path: Path, needed: tuple[str, ...]) -> list[Mapping[str, object]]:
    """A JSON file that is a list of objects, each with the needed keys."""
    rows = read_json(data_set, path)
    if not isinstance(rows, list) or not rows:
        raise data_set.error(f"{path}: it must be a list of entries, one a video")
    for place, row in enumerate(rows):
        lacking = [name for name in needed if not isinstance(row, dict) or name not in row]
        if lacking:
            raise data_set.error(f"{path}: entry {place} lacks {', '.join(lacking)}: {str(row)[:80]}")
    return rows


def without_extension(name: str) -> str:
    """A name less the extension of a video, if it has one; dots elsewhere are part of it."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in VIDEO_EXTENSIONS else name
