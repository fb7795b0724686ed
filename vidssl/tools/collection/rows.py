"""Rows of the lists that ``vidssl data`` writes, their files, and the lines that say how a list was made."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vidssl.data.sources.listing import Listing
from vidssl.data.sources.lists import ROOT_NOTE
from vidssl.engine.atomic import check_writable, write_text
from vidssl.errors import UsageError, counted, printable


@dataclass(frozen=True)
class Row:
    """A sample of a list.

    Attributes:
        path: below the root.
        labels: label name -> name of the class.
        times: start and end of a segment in seconds; None for the whole file.
        group: the source that it was cut from with others; empty where there is none.
    """

    path: str
    labels: Mapping[str, str] = field(default_factory=dict)
    times: tuple[float, float] | None = None
    group: str = ""


def rows_of(listing: Listing) -> list[Row]:
    """The samples of a list that was read."""
    return [
        Row(
            sample.path,
            listing.class_names(sample),
            sample.segment.seconds if sample.segment else None,
            sample.group,
        )
        for sample in listing.files
    ]


def refuse_existing(out: Path) -> None:
    """Raises UsageError where a list would be written over, which may have been mended by hand."""
    if out.exists():
        raise UsageError(f"{out}: is there already. Remove it, or name another with '--out'")
    check_writable(out, "'--out' puts it elsewhere")


def write_list(out: Path, rows: Sequence[Row], root: Path, notes: Iterable[tuple[str, str]] = ()) -> None:
    """Write rows as a CSV list that names its root.

    Args:
        out: the list; it appears in one piece.
        root: folder that paths are relative to; the list states it relative to its own folder.
        notes: names and values of lines on how it was made, which stand before the header.

    Raises:
        UsageError: if it cannot be written, or a row lacks what another has.
    """
    labels, timed = list(rows[0].labels), rows[0].times is not None
    grouped = any(row.group for row in rows)
    text = io.StringIO()
    relative = os.path.relpath(root.absolute(), out.parent.absolute())
    for name, note in ((ROOT_NOTE, Path(relative).as_posix()), *notes):
        text.write(f"# {name}: {printable(note, one_line=True)}\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", *labels, *(["start", "end"] if timed else []), *(["group"] if grouped else [])])
    for row in rows:
        if list(row.labels) != labels or (row.times is not None) != timed:
            raise UsageError(f"{out}: {row.path} has other labels or times than {rows[0].path}")
        times = [f"{second:.10g}" for second in row.times or ()]
        # what no source unites is a group of its own
        group = [row.group or row.path] if grouped else []
        table.writerow([row.path, *row.labels.values(), *times, *group])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out.parent}: the folder cannot be made ({error.strerror})") from error
    write_text(out, text.getvalue())


def shown(count: int, rows: Sequence[Row]) -> str:
    """``12 segments of 3 files``, or ``12 videos``."""
    if rows and rows[0].times is not None:
        return f"{counted(count, 'segment')} of {counted(len({row.path for row in rows}), 'file')}"
    return counted(count, "video")
