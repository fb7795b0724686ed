"""The command ``vidssl data list``: a list of videos with labels from folders, paths or annotations."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vidssl.data.classes import label_kind, ordered_classes, told_label
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, find_files, list_folder
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, counted, printable
from vidssl.tools.collection.annotations import (
    Found,
    Row,
    read_annotations,
    rows_of,
    shown,
    write_lists,
)
from vidssl.tools.data.check import print_list, say
from vidssl.tools.data.runner import CLEAN

_FIELD = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}|(\*\*/)|(\*)")
_TIMES_AND_GROUP = ("start", "end", "group")


def make_list(
    root: Path,
    *,
    pattern: str | None = None,
    annotations: Path | None = None,
    labels: Sequence[str] = (),
    group: str | None = None,
    columns: Mapping[str, str] | None = None,
    unit: str | None = None,
    join: bool = False,
    out: Path | None = None,
    show_all: bool = False,
    console: Console | None = None,
) -> int:
    """Find the videos below a folder and write a list of them.

    Args:
        root: the folder; by itself its folders are the classes.
        pattern: of paths, such as ``{camera}_{action}_{take}.mp4``.
        annotations: a CSV file with a row for each video or segment.
        labels: fields of the pattern, or columns of the annotations, that are labels; by default all that are
            neither path, times nor group.
        group: the field or column that names what must not be parted: a person, a recording, a source.
        columns: of the annotations: what a column is called there -> what it is ("path", "start", "end"), or
            another name of a label, such as "target:speed" for a number.
        unit: of start and end, "seconds" or "frames"; by default as the names of the columns say.
        join: make a set, ``jump|run``, of the labels of several rows of one video or segment.
        out: the list; by default NAME.csv beside the folder.
        show_all: name all that is left out, not the first few.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no videos, or what should tell their labels tells none.
    """
    console = console or terminal()
    named = root if root.name not in ("", "..") else root.resolve()
    out = out or named.with_name(f"{named.name}.csv")
    if pattern is not None and annotations is not None:
        raise UsageError("--pattern and --annotations: give one of the two")
    if annotations is None and (columns or unit or join):
        raise UsageError("--column, --unit and --join are for --annotations, and there are none")
    if annotations is not None:
        found = read_annotations(annotations, root, columns or {}, group, unit, labels if join else None)
        how = f"annotations {annotations}"
    elif pattern is not None:
        found, how = from_pattern(root, pattern, group), f"pattern {pattern}"
    else:
        if group is not None:
            raise UsageError("--group names a field of --pattern or a column of --annotations")
        listed = rows_of(list_folder(root, VIDEO_EXTENSIONS, "video"))
        found, how = Found(listed), "a folder for each class"
    rows = _with_labels(found.rows, labels)
    write_lists({out: rows}, root, f"vidssl data list, labels from {how}")
    for title, lines in found.told.items():
        print_list(console, title, lines, show_all=show_all)
    say(console, f"{shown(len(rows), rows)}{_groups(rows)}")
    _say_labels(console, rows)
    say(console, f"List: {out}")
    say(console, f"Next: vidssl data check {out}, then vidssl data split {out}")
    return CLEAN


def from_pattern(root: Path, pattern: str, group: str | None) -> Found:
    """Rows of the videos whose paths a pattern fits, with a label for each of its fields.

    ``{name}`` stands for one character or more but a slash, as few as possible, ``{name:REGEX}`` for what a
    regular expression fits, ``*`` for anything but a slash, ``**/`` for folders. A pattern without a slash is
    held against file names, and one without an ending fits every ending. The fields ``start``, ``end`` and
    ``group`` are what lists call so, and one that begins with an underscore is left out.

    Raises:
        UsageError: if the pattern has no field, is malformed or fits no path.
    """
    few, many = (_compiled(pattern, greedy) for greedy in (False, True))
    keys = find_files(root, VIDEO_EXTENSIONS)
    rows, unfit, unclear = [], [], []
    for key in keys:
        subject = key if "/" in pattern else key.rpartition("/")[2]
        match, other = few.fullmatch(subject), many.fullmatch(subject)
        if match is None or other is None:
            unfit.append(key)
            continue
        if match.groupdict() != other.groupdict():
            unclear.append(f"{key}: {_pairs(match.groupdict())}, or {_pairs(other.groupdict())}")
        rows.append(_row(key, match.groupdict(), group))
    if not rows:
        example = f", such as {unfit[0]}" if unfit else ""
        raise UsageError(
            f"{root}: the pattern {pattern!r} fits none of {counted(len(keys), 'path')}{example}"
        )
    told = {
        "The pattern does not fit, left out": unfit,
        "Paths that the pattern fits in two ways, the first was taken; {name:REGEX} says more": unclear,
    }
    return Found(rows, told)


def _compiled(pattern: str, greedy: bool) -> re.Pattern[str]:
    few = "" if greedy else "?"
    parts, at, names = [], 0, []
    for match in _FIELD.finditer(pattern):
        name, expression, folders, anything = match.groups()
        parts.append(re.escape(pattern[at : match.start()]))
        at = match.end()
        if folders:
            parts.append("(?:[^/]+/)*")
        elif anything:
            parts.append(f"[^/]*{few}")
        elif name in names:
            parts.append(f"(?P={name})")
        else:
            names.append(name)
            parts.append(f"(?P<{name}>{expression or f'[^/]+{few}'})")
    if not names:
        raise UsageError(f"the pattern {pattern!r} has no field, such as {{action}}")
    rest = pattern[at:]
    ending = "" if re.search(r"\.\w+$", rest) else r"\.\w+"
    try:
        return re.compile("".join(parts) + re.escape(rest) + ending)
    except re.error as error:
        raise UsageError(f"the pattern {pattern!r}: {error}") from error


def _pairs(fields: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _row(key: str, fields: Mapping[str, str], group: str | None) -> Row:
    if group is not None and group not in fields:
        raise UsageError(f"--group {group}: the pattern has no such field; it has {', '.join(fields)}")
    labels = {
        name: printable(value, one_line=True)
        for name, value in fields.items()
        if name not in (*_TIMES_AND_GROUP, group) and not name.startswith("_")
    }
    times = None
    if "start" in fields and "end" in fields:
        try:
            times = float(fields["start"]), float(fields["end"])
        except ValueError:
            raise UsageError(f"{key}: its start and end are no seconds: {_pairs(fields)}") from None
    return Row(key, labels, times, printable(fields.get(group or "group", ""), one_line=True))


def _with_labels(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Rows with these labels alone; with all where none is named."""
    if not names:
        return list(rows)
    known = list(rows[0].labels)
    missing = [name for name in names if name not in known]
    if missing:
        raise UsageError(f"--labels {missing[0]}: there is no such label; there are {', '.join(known)}")
    return [replace(row, labels={name: row.labels[name] for name in names}) for row in rows]


def _groups(rows: Sequence[Row]) -> str:
    count = len({row.group for row in rows if row.group})
    return f" in {counted(count, 'group')}" if count else ""


def _say_labels(console: Console, rows: Sequence[Row]) -> None:
    for name in rows[0].labels:
        values = [row.labels[name] for row in rows]
        classes = ordered_classes(values, name, "the list")
        number = {value: place for place, value in enumerate(classes)}
        words = told_label(
            name, [number.get(value, number.get(_plain(value), -1)) for value in values], classes
        )
        say(console, f"Label '{name}': {words}")
        if label_kind(name, classes) == "class" and max(Counter(values).values()) == 1 and len(rows) > 2:
            say(console, f"  every row has a '{name}' of its own: an ID is no label; '--labels' names those")
    if not rows[0].labels:
        say(console, "No labels: enough to train on, not to probe")


def _plain(value: str) -> str:
    return str(int(value)) if value.isdecimal() else value
