"""Looks at every file of a listing once, in several processes, and writes the manifest.

Each result goes to the file ``<manifest>.part`` at once, so a scan that is ended goes on where it was; the
manifest itself is renamed into place when all is done. Files that an earlier manifest describes are not
decoded again while size and time, or content, are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vidssl.data.crew import Lost, work
from vidssl.data.examine import FileToExamine, examine
from vidssl.data.limits import LIMITS, Limits
from vidssl.data.listing import Listing
from vidssl.data.manifest import Entry, Manifest, header
from vidssl.engine.files import write_atomically
from vidssl.errors import UsageError

_TIMED = 100  # files that a clip is read from against the clock
_TRIES = 4  # each with PATIENCE_SECONDS: packets, frames, all frames, a clip


def scan(
    root: Path,
    listing: Listing,
    out: Path,
    *,
    processes: int,
    limits: Limits = LIMITS,
    seen: Callable[[Entry], None] = lambda entry: None,
) -> Manifest:
    """The manifest of these files, written to ``out``.

    Args:
        root: folder that keys are relative to.
        out: the manifest; what it says of unchanged files is kept.
        limits: that each file has to keep; with others than an earlier scan's a file is looked at again.
        seen: called with each entry as it is ready.

    Raises:
        UsageError: if ``out`` cannot be written, or is a file of another kind.
    """
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        earlier = Manifest(out) if out.exists() else None
        begun = _read_part(part)
        with part.open("ab") as file:
            file.write(b"\n")  # ends a line that a kill left unfinished
            files, segments = listing.whole(), listing.segments()
            tasks = _tasks(root, files, earlier, begun, limits)
            patience = limits.max_seconds * _TRIES
            for task, result in work(tasks, examine, processes=processes, patience_seconds=patience):
                entry = _lost(task, result) if isinstance(result, Lost) else result
                entry = replace(entry, segments=segments.get(entry.key, ()))
                file.write(entry.to_line().encode())
                file.flush()
                seen(entry)
    except OSError as error:
        raise UsageError(
            f"{out}: the manifest cannot be written ({error.strerror or error}); '--out' puts it elsewhere"
        ) from error
    write_atomically(out, lambda path: _assemble(part, root, files, path))
    part.unlink()
    return Manifest(out)


def _tasks(
    root: Path, listing: Listing, earlier: Manifest | None, begun: dict[str, bytes], limits: Limits
) -> Iterator[FileToExamine]:
    every = max(len(listing.files) // _TIMED, 1)
    for place, file in enumerate(listing.files):
        known = Entry.from_row(json.loads(begun[file.path])) if file.path in begun else None
        if known is None and earlier is not None and file.path in earlier:
            known = earlier.entry(file.path)
        if known is not None and (known.old or not limits.hold_for(known.reason)):
            known = None
        timed = place % every == 0
        yield FileToExamine(root, file.path, listing.class_names(file), known, timed=timed, limits=limits)


def _lost(task: FileToExamine, lost: Lost) -> Entry:
    # without size and time, so that the next scan tries again
    return Entry(task.key, "unreadable", f"it could not be looked at: {lost.reason}", labels=task.labels)


def _read_part(part: Path) -> dict[str, bytes]:
    """Whole lines of a scan that was ended, by key."""
    found: dict[str, bytes] = {}
    if not part.exists():
        return found
    for line in part.read_bytes().split(b"\n"):
        try:
            found[Entry.from_row(json.loads(line)).key] = line
        except (KeyError, TypeError, ValueError):  # the last line before a kill, or an empty one
            continue
    return found


def _assemble(part: Path, root: Path, listing: Listing, path: Path) -> None:
    found = _read_part(part)
    with path.open("wb") as file:
        file.write(header(root).encode())
        for listed in listing.files:
            file.write(found[listed.path] + b"\n")
