"""Annotations as people have them (a CSV of videos or segments), and the rows of the lists made of them."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from vidssl.config.strict_yaml import nearest
from vidssl.data.classes import SEPARATOR, TARGET, check_cell
from vidssl.data.decode.decode import VideoFacts, probe
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listing, find_files
from vidssl.data.sources.lists import ROOT_NOTE, list_notes, read_text, rows_of_csv
from vidssl.engine.process import check_writable, make_folder, write_text
from vidssl.errors import UsageError, counted, printable
from vidssl.interfaces import UnreadableSample

_MADE_BY = "made by"
CUTS = "vidssl data prepare"  # whose lists grow with what is prepared


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


def refuse_existing(out: Path, maker: str = "", text: str = "") -> None:
    """Raises UsageError where a list would be written over, which may have been mended by hand.

    Args:
        maker: what a list that may be written over begins with in its note on how it was made.
        text: that is to be written; a list that is there already may be the same.
    """
    mine = maker and list_notes(out).get(_MADE_BY, "").startswith(maker)
    if out.exists() and not mine and not (out.is_file() and out.read_bytes() == text.encode()):
        raise UsageError(f"{out}: is there already. Remove it, or name another with '--out'")
    check_writable(out, "'--out' puts it elsewhere")


def write_lists(
    lists: Mapping[Path, Sequence[Row]], root: Path, maker: str, notes: Iterable[tuple[str, str]] = ()
) -> None:
    """Write rows as CSV lists that name their root: none where another is there already.

    Args:
        lists: path -> rows; each file appears in one piece.
        root: folder that paths are relative to; a list states it relative to its own folder.
        maker: the command, for a note on how they were made, which stands before the header.
        notes: names and values of further ones.

    Raises:
        UsageError: if one cannot be written, or a row lacks what another has.
    """
    texts = {out: _text(out, rows, root, ((_MADE_BY, maker), *notes)) for out, rows in lists.items()}
    for out, text in texts.items():
        refuse_existing(out, CUTS if maker.startswith(CUTS) else "", text)
    for out, text in texts.items():
        make_folder(out.parent)
        write_text(out, text)


def _text(out: Path, rows: Sequence[Row], root: Path, notes: Iterable[tuple[str, str]]) -> str:
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
    return text.getvalue()


def shown(count: int, rows: Sequence[Row]) -> str:
    """``12 segments of 3 files``, or ``12 videos``."""
    if rows and rows[0].times is not None:
        return f"{counted(count, 'segment')} of {counted(len({row.path for row in rows}), 'file')}"
    return counted(count, "video")


# what a column is, by the names that annotations give it
_KNOWN = {
    "path": ("path", "file", "filename", "file_name", "video", "video_id", "video_name", "clip", "name"),
    "start": ("start", "time_start", "start_time", "start_seconds", "start_sec", "begin", "onset"),
    "end": ("end", "time_end", "end_time", "end_seconds", "end_sec", "stop", "offset"),
    "start_frame": ("start_frame", "frame_start", "first_frame", "begin_frame"),
    "end_frame": ("end_frame", "frame_end", "last_frame", "stop_frame"),
    "group": ("group",),
}
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")  # 1:02:03.5


@dataclass(frozen=True)
class Found:
    """Rows of a list, and what is to be told of what was left out: title -> lines."""

    rows: Sequence[Row]
    told: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Columns:
    """Name in the file of each column that is known by what it is; the others are labels."""

    path: str
    start: str | None
    end: str | None
    frames: bool
    group: str | None
    labels: tuple[str, ...]


def read_annotations(
    path: Path,
    root: Path,
    columns: Mapping[str, str],
    group: str | None,
    unit: str | None,
    joined: Sequence[str] | None = None,
) -> Found:
    """The rows of a CSV file with a header, for the videos below a folder.

    A video is found by its path below the root, by its file name, or by that without its ending. Start and
    end are seconds, or clock times (``1:02:03.5``), from the first frame; where they are frames, these count
    from 0 and the frame at the end is the first that no longer belongs.

    Args:
        columns: name in the file -> "path", "start", "end", "group", or another name for a label.
        group: the column that names groups.
        unit: "seconds" or "frames"; by default as the columns' names say.
        joined: labels (all where none is named) whose classes in several rows of one sample become a set.

    Raises:
        UsageError: if it is no such file, or names none of the videos.
    """
    lines, table = _table(path)
    known = _columns(path, table[0], columns, group, unit)
    videos = _Videos(root)
    seen: dict[tuple[str, tuple[float, float] | None], Row] = {}
    rows, missing, empty = [], [], []
    for line, cells in zip(lines, table[1], strict=True):
        key = videos.find(cells[known.path], f"{path}:{line}")
        if key is None:
            missing.append(f"line {line}: {cells[known.path]}")
            continue
        times = _times(cells, known, videos, key, f"{path}:{line}")
        if times is not None and not 0 <= times[0] < times[1]:
            empty.append(f"line {line}: {key} from {times[0]:g} to {times[1]:g} s")
            continue
        called = {name: columns.get(name, name) for name in known.labels}
        labels = {
            label: check_cell(label, _cell(cells, name, path, line), f"{path}:{line}")
            for name, label in called.items()
            if not joined or label in joined
        }
        row = Row(key, labels, times, printable(cells[known.group], one_line=True) if known.group else "")
        if joined is not None and (before := seen.get((key, times))) is not None:
            if before.group != row.group:
                raise UsageError(f"{path}:{line}: {key} has the groups {before.group} and {row.group}")
            row = replace(row, labels=_joined(before.labels, labels, f"{path}:{line}"))
            seen[key, times] = row
        if seen.setdefault((key, times), row) != row:
            raise UsageError(
                f"{path}:{line}: {key} is listed twice with different labels, "
                f"{_shown(seen[key, times].labels)} and {_shown(labels)}. Several labels take a "
                "column each; '--join' makes run|jump of several classes of one label"
            )
        rows.append(row)
    if not rows:
        names = f", such as {missing[0]}" if missing else ""
        raise UsageError(
            f"{path}: none of its {counted(len(lines), 'row')} names a video below {root}{names}"
        )
    listed = {row.path for row in rows}
    told = {
        "Rows without a video, left out": missing,
        "Rows whose segment is empty, left out": empty,
        "Videos that no row names, left out": [key for key in videos.keys if key not in listed],
    }
    return Found(_once(rows), told)


def _joined(one: Mapping[str, str], other: Mapping[str, str], where: str) -> dict[str, str]:
    """The sets of two rows' classes."""
    for label in one:
        if label.startswith(TARGET) and one[label] != other[label]:
            raise UsageError(f"{where}: a second number of '{label}', {other[label]} after {one[label]}")
    found = {}
    for label, cell in one.items():
        sets = list(dict.fromkeys(each for each in (cell, other[label]) if each != SEPARATOR)) or [SEPARATOR]
        found[label] = check_cell(label, SEPARATOR.join(sets), where) if len(sets) > 1 else sets[0]
    return found


def _once(rows: Sequence[Row]) -> list[Row]:
    """Each of several rows of a sample once, as the last has it."""
    return list({(row.path, row.times): row for row in rows}.values())


def _table(path: Path) -> tuple[list[int], tuple[tuple[str, ...], list[dict[str, str]]]]:
    """Line numbers, and the header with a mapping for each row."""
    try:
        text = read_text(path)
    except OSError as error:
        raise UsageError(f"{path}: the annotations cannot be read ({error.strerror})") from error
    first = text.lstrip().split("\n")[0]
    delimiter = max(",;\t", key=first.count)
    header: tuple[str, ...] = ()
    lines, rows = [], []
    for number, cells in rows_of_csv(text.splitlines(), path, delimiter, trim=True):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not header:
            header = tuple(cells)
            if len(set(header)) < len(header) or not all(header):
                raise UsageError(f"{path}: its header needs a name for each column, got {', '.join(header)}")
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"{path}:{number}: it has {counted(len(cells), 'cell')}, the header {len(header)}"
            )
        lines.append(number)
        rows.append(dict(zip(header, cells, strict=True)))
    if not rows:
        raise UsageError(f"{path}: no rows below a header, which names the columns (path, start, end, ...)")
    return lines, (header, rows)


def _columns(
    path: Path, header: Sequence[str], given: Mapping[str, str], group: str | None, unit: str | None
) -> _Columns:
    for name in (*given, *([group] if group else [])):
        if name not in header:
            raise UsageError(f"{path}: it has no column '{name}'. {nearest(name, header, 'Its columns')}")
    found = {meaning: name for name, meaning in given.items() if meaning in _KNOWN}
    for meaning, names in _KNOWN.items():
        here = [name for name in header if name.lower() in names and name not in given and name != group]
        if meaning not in found and here:
            found[meaning] = here[0]
    found["path"] = found.get("path", header[0])
    frames = "start_frame" in found and "start" not in found
    ends = ("start_frame", "end_frame") if frames else ("start", "end")
    start, end = (found.get(name) for name in ends)
    if (start is None) != (end is None):
        raise UsageError(
            f"{path}: a segment needs start and end; '--column NAME=start' and '--column NAME=end' say which "
            f"columns they are: {', '.join(header)}"
        )
    if unit is not None and start is None:
        raise UsageError(f"{path}: --unit {unit}: it has no columns of start and end")
    group = group or found.get("group")
    taken = {found["path"], start, end, group, *(found.get(name) for name in _KNOWN if name != "group")}
    labels = tuple(name for name in header if name not in taken)
    return _Columns(found["path"], start, end, frames if unit is None else unit == "frames", group, labels)


def _cell(cells: Mapping[str, str], name: str, path: Path, line: int) -> str:
    if not cells[name]:
        raise UsageError(f"{path}:{line}: '{name}' is empty; '--labels' names the columns that are labels")
    return printable(cells[name], one_line=True)


def _shown(labels: Mapping[str, str]) -> str:
    return ", ".join(labels.values()) or "none"


def _times(
    cells: Mapping[str, str], known: _Columns, videos: "_Videos", key: str, where: str
) -> tuple[float, float] | None:
    if known.start is None or known.end is None:
        return None
    start, end = (_number(cells[name], where) for name in (known.start, known.end))
    if not known.frames:
        return start, end
    facts = videos.facts(key, where)
    # rounded down, a time still lies behind that of the frame before
    return tuple(math.floor(_second(number, facts) * 1e4) / 1e4 for number in (start, end))  # type: ignore[return-value]


def _number(text: str, where: str) -> float:
    clock = _CLOCK.fullmatch(text)
    if clock:
        return 3600 * int(clock[1] or 0) + 60 * int(clock[2]) + float(clock[3])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{where}: expected seconds, a clock time (1:02:03.5) or a frame, got {text!r}")
    return value


def _second(number: float, facts: VideoFacts) -> float:
    """Time of a frame since the first one."""
    place = int(number)
    if facts.pts and 0 <= place < len(facts.pts) and facts.tick_seconds > 0:
        return (facts.pts[place] - facts.pts[0]) * facts.tick_seconds
    return place / facts.fps


class _Videos:
    """The videos below a folder, found by the names that annotations give them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.keys = find_files(root, VIDEO_EXTENSIONS)
        self._places: dict[str, set[str]] = {}
        self._facts: dict[str, VideoFacts] = {}
        for key in self.keys:
            path = PurePosixPath(key)
            for name in {key, path.name, path.stem, path.with_suffix("").as_posix()}:
                self._places.setdefault(name, set()).add(key)

    def find(self, name: str, where: str) -> str | None:
        """The key of a video; None where there is none.

        Raises:
            UsageError: if several are called so.
        """
        name = name.replace("\\", "/").removeprefix("./")
        found = self._places.get(name, set())
        places = {name} if name in found else found  # a whole path is meant, whatever else is called so
        if len(places) > 1:
            raise UsageError(f"{where}: {name!r} is {' and '.join(sorted(places)[:3])}: give the whole path")
        return next(iter(places), None)

    def facts(self, key: str, where: str) -> VideoFacts:
        """Times of a file's frames.

        Raises:
            UsageError: if it cannot be read.
        """
        if key not in self._facts:
            try:
                self._facts[key] = probe(self._root / key)
            except UnreadableSample as error:
                raise UsageError(f"{where}: frames of {key} have no times: {error.reason}") from error
        return self._facts[key]
