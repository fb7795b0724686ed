"""The command ``vidssl data check``: which files, which parts of them, where the manifest goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.data.limits import LIMITS, Limits
from vidssl.data.listing import VIDEO_EXTENSIONS, Listing, list_folder, select
from vidssl.data.lists import read_lists
from vidssl.data.manifest import Manifest
from vidssl.data.operand import refuse_missing
from vidssl.data_check.leaks import same_content, same_group
from vidssl.data_check.report import Found, Overlap, report
from vidssl.data_check.scan import scan
from vidssl.engine.display import terminal
from vidssl.engine.files import check_writable
from vidssl.errors import UsageError, counted

CLEAN, FLAWED = 0, 1


@dataclass(frozen=True)
class CheckRequest:
    """What to look at.

    Attributes:
        path: a folder of videos, or a list of them.
        root: folder that the paths of a list are relative to; by default the list's own.
        test_list: held-out videos of a list; it may lack the labels, as UCF101's do.
        against: manifests of other data that must have no video in common with this.
        out: where the manifest goes; by default beside ``path``, never in the folder that is looked at.
        processes: that decode; by default one for each core.
        test_share: as ``video_folder`` and ``video_list`` have it, where there is no ``test_list``.
        show_all: name every file that something is wrong with, not only the first few.
        limits: that each file has to keep.
    """

    path: Path
    root: Path | None = None
    test_list: Path | None = None
    against: Sequence[Path] = ()
    out: Path | None = None
    processes: int | None = None
    test_share: float = 0.25
    show_all: bool = False
    limits: Limits = LIMITS


def check_data(request: CheckRequest, console: Console | None = None) -> int:
    """Scan, write the manifest and print what was found.

    Returns:
        Exit code: 0 if every file can be used and none leaks, 1 if the manifest names damaged or unreadable
        files, or videos are in train and test.

    Raises:
        UsageError: if there is nothing to look at or the manifest cannot be written.
    """
    console = console or terminal()
    root, listing, parts = _what(request)
    others = [(path, Manifest(path)) for path in request.against]
    out = request.out or _beside(request.path)
    check_writable(out, "'--out' puts the manifest elsewhere")
    manifest = _scan(root, listing, out, request, console)
    given = request.test_list is not None
    train, test = ([manifest.entry(path) for path in part] for part in parts)
    where = "train and " + (
        str(request.test_list)
        if given
        else f"test as 'part' divides them (test_share {request.test_share:g})"
    )
    overlaps = [Overlap(where, same_content(train, test), same_group(train, test), chosen=given)]
    for path, other in others:
        content, group = (find(other, manifest) for find in (same_content, same_group))
        overlaps.append(Overlap(f"this and {path}", content, group, chosen=True))
    found = Found(manifest, out, tuple(overlaps), listing)
    report(found, console, show_all=request.show_all)
    return FLAWED if found.flawed else CLEAN


def _what(request: CheckRequest) -> tuple[Path, Listing, tuple[list[str], list[str]]]:
    """Root, files, and the paths of the training and of the test part."""
    refuse_missing(request.path, "folder or list")
    if request.path.is_dir():
        if request.test_list is not None or request.root is not None:
            raise UsageError(f"{request.path}: --test-list and --root go with a list, not with a folder")
        listing = list_folder(request.path, VIDEO_EXTENSIONS, "video")
        return request.path, listing, _parts(listing, request)
    root = request.root or request.path.parent
    paths = (path for path in (request.path, request.test_list) if path is not None)
    train, *others = read_lists(*paths, exists=lambda key: (root / key).is_file(), labels_needed=False)
    if not others:
        return root, train, _parts(train, request)
    (test,) = others
    once = {file.key: file for file in (*train.files, *test.files)}
    return root, Listing(tuple(once.values()), train.label_classes), ([*train.by_file()], [*test.by_file()])


def _parts(listing: Listing, request: CheckRequest) -> tuple[list[str], list[str]]:
    """Paths of the training and of the test part; the latter is empty where no class has two files."""
    where = str(request.path)
    train = select(listing, part="train", test_share=request.test_share, limit=None, where=where)
    paths = set(train.by_file())
    return sorted(paths), sorted(listing.by_file().keys() - paths)


def _beside(path: Path) -> Path:
    whole = path.absolute().resolve()
    return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}.manifest.jsonl")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _scan(root: Path, listing: Listing, out: Path, request: CheckRequest, console: Console) -> Manifest:
    processes = request.processes or _cores()
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
            limits=request.limits,
            seen=lambda entry: bar.advance(task),
        )
