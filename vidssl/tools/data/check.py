"""The command ``vidssl data check``: which files, which parts of them, where the manifest goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.decode.limits import LIMITS, Limits
from vidssl.data.pool import Lost, work
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listing, list_folder, select
from vidssl.data.sources.lists import read_lists
from vidssl.data.sources.manifest import Entry, Manifest, header
from vidssl.engine.atomic import check_writable, write_atomically
from vidssl.engine.logging import terminal
from vidssl.engine.process import num_cpus
from vidssl.errors import UsageError, counted
from vidssl.tools.data.inputs import refuse_missing
from vidssl.tools.data.leaks import same_content, same_group
from vidssl.tools.data.report import Found, Overlap, report

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


CLEAN, FLAWED = 0, 1


def check_data(
    path: Path,
    *,
    root: Path | None = None,
    test_list: Path | None = None,
    against: Sequence[Path] = (),
    out: Path | None = None,
    processes: int | None = None,
    test_share: float = 0.25,
    show_all: bool = False,
    limits: Limits = LIMITS,
    console: Console | None = None,
) -> int:
    """Scan, write the manifest and print what was found.

    Args:
        path: a folder of videos, or a list of them.
        root: folder that the paths of a list are relative to; by default the list's own.
        test_list: held-out videos of a list; it may lack the labels, as UCF101's do.
        against: manifests of other data that must have no video in common with this.
        out: where the manifest goes; by default beside ``path``, never in the folder that is looked at.
        processes: that decode; by default one for each core.
        test_share: as ``video_folder`` and ``video_list`` have it, where there is no ``test_list``.
        show_all: name every file that something is wrong with, not only the first few.
        limits: that each file has to keep.

    Returns:
        Exit code: 0 if every file can be used and none leaks, 1 if the manifest names damaged or unreadable
        files, or videos are in train and test.

    Raises:
        UsageError: if there is nothing to look at or the manifest cannot be written.
    """
    console = console or terminal()
    root, listing, parts = _what(path, root, test_list, test_share)
    others = [(other, Manifest(other)) for other in against]
    out = out or _beside(path)
    check_writable(out, "'--out' puts the manifest elsewhere")
    manifest = _scan(root, listing, out, processes or num_cpus(), limits, console)
    train, test = ([manifest.entry(path) for path in part] for part in parts)
    divided = f"test as 'part' divides them (test_share {test_share:g})"
    where = f"train and {test_list or divided}"
    given = test_list is not None
    overlaps = [Overlap(where, same_content(train, test), same_group(train, test), chosen=given)]
    for other_path, other in others:
        content, group = (find(other, manifest) for find in (same_content, same_group))
        overlaps.append(Overlap(f"this and {other_path}", content, group, chosen=True))
    found = Found(manifest, out, tuple(overlaps), listing)
    report(found, console, show_all=show_all)
    return FLAWED if found.flawed else CLEAN


def _what(
    path: Path, root: Path | None, test_list: Path | None, test_share: float
) -> tuple[Path, Listing, tuple[list[str], list[str]]]:
    """Root, files, and the paths of the training and of the test part."""
    refuse_missing(path, "folder or list")
    if path.is_dir():
        if test_list is not None or root is not None:
            raise UsageError(f"{path}: --test-list and --root go with a list, not with a folder")
        listing = list_folder(path, VIDEO_EXTENSIONS, "video")
        return path, listing, _parts(listing, test_share, str(path))
    root = root or path.parent
    paths = (each for each in (path, test_list) if each is not None)
    train, *others = read_lists(*paths, exists=lambda key: (root / key).is_file(), labels_needed=False)
    if not others:
        return root, train, _parts(train, test_share, str(path))
    (test,) = others
    once = {file.key: file for file in (*train.files, *test.files)}
    return root, Listing(tuple(once.values()), train.label_classes), ([*train.by_file()], [*test.by_file()])


def _parts(listing: Listing, test_share: float, where: str) -> tuple[list[str], list[str]]:
    """Paths of the training and of the test part; the latter is empty where no class has two files."""
    train = select(listing, part="train", test_share=test_share, limit=None, where=where)
    paths = set(train.by_file())
    return sorted(paths), sorted(listing.by_file().keys() - paths)


def _beside(path: Path) -> Path:
    whole = path.absolute().resolve()
    return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}.manifest.jsonl")


def _scan(
    root: Path, listing: Listing, out: Path, processes: int, limits: Limits, console: Console
) -> Manifest:
    console.print(
        f"Looking at {counted(len(listing.files), 'file')} below {root}, {processes} at a time",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    left = (TimeRemainingColumn(), TextColumn("left"))
    columns = (TextColumn("scan"), BarColumn(), MofNCompleteColumn(), *left)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(listing.files))
        return scan(
            root,
            listing,
            out,
            processes=processes,
            limits=limits,
            seen=lambda entry: bar.advance(task),
        )
