"""The command ``vidssl data check`` (each file once, a manifest), and what all of ``data`` report."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from vidssl.config.strict_yaml import dump_flow
from vidssl.data.classes import label_kind, told_label
from vidssl.data.decode.content import LIMITS, Limits
from vidssl.data.decode.decode import VideoFacts
from vidssl.data.decode.examine import CLIP_FRAMES, CLIP_STRIDE, FileToExamine, examine
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listing, list_folder, select, shared_groups
from vidssl.data.sources.lists import list_root, read_lists
from vidssl.data.sources.manifest import FileRecord, Manifest, header
from vidssl.data.sources.tar.index import ShardIndex
from vidssl.engine.logging import format_duration, print_line, terminal
from vidssl.engine.process import check_writable, num_cpus, write_atomically
from vidssl.errors import UsageError, counted, printable
from vidssl.interfaces import UnreadableSample
from vidssl.tools.collection.annotations import rows_of
from vidssl.tools.collection.glimpses import FRAMES, SIDE, alike, glimpses
from vidssl.tools.collection.survey import Seen, contact_sheets, survey_lines, survey_table
from vidssl.tools.data.runner import CLEAN, FLAWED, Journal, refuse_missing, runner

_NAMED = 20  # files that are listed one by one, of each kind


def say(console: Console, line: str) -> None:
    """Print one line, whatever is in it."""
    print_line(console, printable(line, one_line=True))


def print_list(console: Console, title: str, lines: Sequence[str], *, show_all: bool, of: int = 0) -> None:
    """Print a title with a count and the first lines; nothing where there are none.

    Args:
        of: how many there are, where ``lines`` holds only the first.
    """
    count = of or len(lines)
    if not count:
        return
    shown = lines if show_all else lines[:_NAMED]
    say(console, f"{title}: {count}")
    for line in shown:
        say(console, f"  {line}")
    if len(shown) < count:
        say(console, f"  and {count - len(shown)} more ('--all' shows them)")


def format_size(count: float) -> str:
    """Bytes with three digits: ``1.23 GB``."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit != "bytes" else counted(round(count), "byte")


def shard_report(
    index: ShardIndex, out: str, at: str, console: Console, *, flaws: Sequence[str] = (), show_all: bool
) -> bool:
    """Print the contents of shards, the bad files, and the line for recipes.

    Args:
        out: address of the shards.
        at: of their index, as a recipe has to name it; empty where the source looks for it.
        flaws: of shards as such.

    Returns:
        Whether all is well.
    """
    bad = np.nonzero(~index.usable)[0].tolist()
    good = len(index) - len(bad)
    size = format_size(int(index.shard_bytes.sum()))
    say(
        console,
        f"{counted(good, 'file', of=len(index), verb='lie')} "
        f"in {counted(len(index.shards), 'shard')}, {size}, at {out}",
    )
    for name, numbers in index.labels.items():
        there = int((numbers[index.usable] >= 0).sum())
        say(
            console,
            f"Label '{name}': {counted(there, 'file', of=good, verb='have')} it, "
            + told_label(name, numbers[index.usable].tolist(), index.label_classes[name]),
        )
    print_list(console, "Flaws", flaws, show_all=show_all)
    named = [index.member(number).entry for number in bad[: None if show_all else _NAMED]]
    reasons = [f"{entry.key}: {entry.reason}" for entry in named]
    print_list(console, "Bad, in no shard", reasons, show_all=show_all, of=len(bad))
    say(console, f"Index: {index.where}")
    if good:
        keys = {"type": "tar_shards", "root": out, **({"index": at} if at else {})}
        say(console, f"In recipes: source: {dump_flow(keys)}")
    else:
        say(console, "None of the files can be used, so there is nothing to train on")
    return not bad and not flaws


_TIMED = 100  # files that a clip is read from against the clock


def check_data(
    path: Path,
    *,
    root: Path | None = None,
    test_list: Path | None = None,
    against: Sequence[Path] = (),
    out: Path | None = None,
    processes: int | None = None,
    test_share: float = 0.25,
    sheets: Path | None = None,
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
        sheets: folder for a picture of each class; None draws none.
        show_all: name every bad file, not only the first few.
        limits: that each file has to keep.

    Returns:
        Exit code: 0 if every file can be used and none leaks, 1 if the manifest names damaged or unreadable
        files, or videos are in train and test.

    Raises:
        UsageError: if there is nothing to look at or the manifest cannot be written.
    """
    console = console or terminal()
    root, listing, parts = _files(path, root, test_list, test_share)
    others = [(other, Manifest(other)) for other in against]
    out = out or _beside(path)
    check_writable(out, "'--out' puts the manifest elsewhere")
    processes, count = processes or num_cpus(), len(listing.by_file())
    say(console, f"Looking at {counted(count, 'file')} below {root}, {processes} at a time")
    manifest = _scan(root, listing, out, limits, console, processes)
    train, test = ([manifest.entry(path) for path in part] for part in parts)
    divided = f"test as 'part' divides them (test_share {test_share:g})"
    where = f"train and {test_list or divided}"
    given = test_list is not None
    overlaps = [SharedVideos(where, same_content(train, test), same_group(train, test), chosen=given)]
    if given:
        overlaps[0] = replace(overlaps[0], alike=_near_duplicates(listing, root, parts, manifest, console))
    for other_path, other in others:
        content, group = (find(other, manifest) for find in (same_content, same_group))
        overlaps.append(SharedVideos(f"this and {other_path}", content, group, chosen=True))
    found = Scanned(manifest, out, tuple(overlaps), listing)
    report(found, console, show_all=show_all)
    if sheets is not None and (rows := [row for row in rows_of(listing) if manifest.entry(row.path).usable]):
        for picture in contact_sheets(rows, root, sheets, console):
            say(console, f"Picture: {picture}")
    return FLAWED if found.flawed else CLEAN


def _files(
    path: Path, root: Path | None, test_list: Path | None, test_share: float
) -> tuple[Path, Listing, tuple[list[str], list[str]]]:
    """Root, files, and the paths of the training and of the test part."""
    refuse_missing(path, "folder or list")
    if path.is_dir():
        if test_list is not None or root is not None:
            raise UsageError(f"{path}: --test-list and --root go with a list, not with a folder")
        listing = list_folder(path, VIDEO_EXTENSIONS, "video")
        return path, listing, _parts(listing, test_share, str(path))
    root = root or list_root(path)
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
    root: Path, listing: Listing, out: Path, limits: Limits, console: Console, processes: int
) -> Manifest:
    """The manifest of these files, written to ``out``; its entries of unchanged files are kept.

    Raises:
        UsageError: if ``out`` cannot be written, or is a file of another kind.
    """
    journal = Journal(out.with_name(out.name + ".part"))
    files, segments = listing.whole(), listing.segments()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        earlier = _earlier(out, console)
        places = _entries(journal)

        def known(key: str) -> FileRecord | None:
            entry = FileRecord.from_row(journal.row(places[key])) if key in places else None
            if entry is None and earlier is not None and key in earlier:
                entry = earlier.entry(key)
            # with other limits than an earlier scan's a file is looked at again
            return None if entry is None or entry.old or not limits.hold_for(entry.reason) else entry

        with runner(console, "scan", len(files.files), processes) as crew:
            for entry in crew.examine(_tasks(root, files, known, limits), examine, limits):
                entry = replace(entry, segments=segments.get(entry.key, ()))
                places[entry.key] = journal.add(entry.to_line().encode().removesuffix(b"\n"))
    except OSError as error:
        raise UsageError(
            f"{out}: the manifest cannot be written ({error.strerror or error}); '--out' puts it elsewhere"
        ) from error

    def assemble(path: Path) -> None:
        with path.open("wb") as file:
            file.write(header(root).encode())
            for listed in files.files:
                file.write(journal.line(places[listed.path]) + b"\n")

    write_atomically(out, assemble)
    journal.remove()
    return Manifest(out)


def _earlier(out: Path, console: Console) -> Manifest | None:
    """An earlier manifest; None if there is none, and with a line if it is damaged.

    Raises:
        UsageError: if the file is none, and would be written over.
    """
    if not out.exists():
        return None
    try:
        manifest = Manifest(out)
        for _ in manifest:  # every line is looked at before the long scan
            pass
        return manifest
    except UsageError as error:
        with out.open("rb") as file:
            if not file.readline().startswith(header(Path())[:20].encode()):
                raise
        say(console, f"{error}. All files are looked at again")
        return None


def _tasks(
    root: Path, listing: Listing, known: Callable[[str], FileRecord | None], limits: Limits
) -> Iterator[FileToExamine]:
    every = max(len(listing.files) // _TIMED, 1)
    for place, file in enumerate(listing.files):
        timed, labels = place % every == 0, listing.class_names(file)
        yield FileToExamine(root, file.path, labels, known(file.path), timed=timed, limits=limits)


def _entries(journal: Journal) -> dict[str, tuple[int, int]]:
    """Where the entries of a scan that was ended lie, by key."""
    found = {}
    for place, row in journal.rows():
        try:
            found[FileRecord.from_row(row).key] = place
        except ValueError:
            continue
    return found


# videos that a data set holds twice, and what its test part has in common with its training part


@dataclass(frozen=True)
class Leak:
    """A test video and the first training video that it has something in common with."""

    test: str
    train: str


def duplicates(entries: Iterable[FileRecord]) -> list[tuple[str, ...]]:
    """Keys of files with the same content, each set of them sorted."""
    by_content: dict[str, list[str]] = {}
    for entry in entries:
        if entry.sha256:
            by_content.setdefault(entry.sha256, []).append(entry.key)
    return sorted(tuple(sorted(keys)) for keys in by_content.values() if len(keys) > 1)


def same_content(train: Iterable[FileRecord], test: Iterable[FileRecord]) -> list[Leak]:
    """Test videos whose very bytes are those of a training video."""
    first: dict[str, str] = {}
    for entry in train:
        first.setdefault(entry.sha256, entry.key)
    first.pop("", None)
    return [Leak(entry.key, first[entry.sha256]) for entry in test if entry.sha256 in first]


def same_group(train: Iterable[FileRecord], test: Iterable[FileRecord]) -> list[Leak]:
    """Test videos cut from the same video as a training video, by names of UCF101 and HMDB51."""
    keys = ([entry.key for entry in entries] for entries in (train, test))
    return [Leak(*pair) for pair in shared_groups(*keys)]


def _near_duplicates(
    listing: Listing, root: Path, parts: tuple[list[str], list[str]], manifest: Manifest, console: Console
) -> list[Leak]:
    """Test samples that show the same as a training sample, though the files differ."""
    train, test = map(set, parts)
    rows = [row for row in rows_of(listing) if manifest.entry(row.path).usable]
    seen = glimpses(rows, root, console, "near-duplicates", count=FRAMES, height=SIDE, width=SIDE)
    leaks = []
    for pair in alike(seen):
        for one, other in (pair, pair[::-1]):
            a, b = rows[one].path, rows[other].path
            same = manifest.entry(a).sha256 == manifest.entry(b).sha256
            if a in test and b in train and not same:
                leaks.append(Leak(a, b))
    return leaks


@dataclass(frozen=True)
class SharedVideos:
    """The videos that a test part has in common with what is trained on.

    Attributes:
        where: which two, in words.
        content: videos with the same bytes.
        group: videos cut from the same video.
        alike: videos of another content that show the same; looked for where the user named the division.
        chosen: the user named this division; otherwise it is that of the sources' ``part``.
    """

    where: str
    content: Sequence[Leak]
    group: Sequence[Leak]
    chosen: bool
    alike: Sequence[Leak] = ()


# the report


@dataclass(frozen=True)
class Scanned:
    """A scanned data set."""

    manifest: Manifest
    out: Path
    overlaps: tuple[SharedVideos, ...]
    listing: Listing

    @cached_property
    def empty(self) -> list[str]:
        """Segments that their files do not reach, and why."""
        found = []
        for sample in self.listing.files:
            entry = self.manifest.entry(sample.path)
            if sample.segment is not None and entry.usable and entry.facts is not None:
                try:
                    sample.segment.frames_of(sample.key, entry.facts)
                except UnreadableSample as error:
                    found.append(str(error))
        return found

    @cached_property
    def seen(self) -> list[Seen]:
        """The samples that can be used, as a survey takes them."""
        found = []
        for sample in self.listing.files:
            entry = self.manifest.entry(sample.path)
            if not entry.usable or entry.facts is None:
                continue
            facts, frames = entry.facts, entry.facts.num_frames
            if sample.segment is not None:
                try:
                    frames = len(sample.segment.frames_of(sample.key, facts))
                except UnreadableSample:
                    continue
            names = self.listing.class_names(sample)
            found.append(Seen(names, frames, facts.fps, facts.height, facts.width))
        return found

    @cached_property
    def bad(self) -> list[FileRecord]:
        return [entry for entry in self.manifest if not entry.usable]

    @property
    def flawed(self) -> bool:
        """Whether anything is there that its owner must decide on."""
        return bool(self.bad or self.empty) or any(
            o.chosen and (o.content or o.group or o.alike) for o in self.overlaps
        )


def report(found: Scanned, console: Console, *, show_all: bool) -> None:
    """Print a summary, then the faults."""
    usable = [
        # without what takes up memory
        (entry, replace(entry.facts, pts=array("q"), keyframes=()))
        for entry in found.manifest
        if entry.usable and entry.facts
    ]
    console.print(_summary(found.manifest, usable))
    for label, names in found.listing.label_classes.items():
        numbers = [sample.labels.get(label, -1) for sample in found.listing.files]
        say(console, f"Label '{label}': {told_label(label, numbers, names)}")
    if seen := found.seen:
        for label, names in found.listing.label_classes.items():
            if label_kind(label, names) != "number":
                console.print(survey_table(seen, label, show_all=show_all))
        for line in survey_lines(seen):
            say(console, line)
    if found.listing.segments():
        say(console, f"Segments: {len(found.listing.files)} of {counted(len(found.manifest), 'file')}")
    cut = [entry for entry in found.manifest if entry.status == "cut"]
    lists = {
        "Left out by sources": [f"{e.key}: {e.status}: {e.reason}" for e in found.bad],
        "Segments that their files do not reach, left out": found.empty,
        "Cut off, used as far as they go": [f"{e.key}: {e.reason}" for e in cut],
        "The same content": [" = ".join(keys) for keys in duplicates(found.manifest)],
    }
    for overlap in found.overlaps:
        kinds = (
            ("content", overlap.content),
            ("group", overlap.group),
            ("pictures, encoded anew,", overlap.alike),
        )
        for kind, leaks in kinds:
            title = f"Leaks, the same {kind} in {overlap.where}"
            lists[title] = [f"{leak.test} ({leak.train})" for leak in leaks]
    for title, lines in lists.items():
        print_list(console, title, lines, show_all=show_all)
    say(console, f"Manifest: {found.out} (in recipes: 'manifest: {dump_flow(str(found.out))}')")


_FRAMES_THERE = re.compile(r" \(\d+ of \d+ frames are there\)")


def _summary(manifest: Manifest, usable: Sequence[tuple[FileRecord, VideoFacts]]) -> Table:
    table = Table(title=f"{len(usable)} usable videos found of {len(manifest)} listed", show_header=False)
    statuses: Counter[str] = Counter(entry.status for entry in manifest)
    table.add_row("status", _counted(statuses))
    if not usable:
        return table
    facts = [one for _, one in usable]
    seconds = sum(one.num_frames / one.fps for one in facts if one.fps > 0)
    lengths = [one.num_frames for one in facts]
    table.add_row("frames", f"{sum(lengths):,} in all, {_spread(lengths)} a video")
    table.add_row("duration", format_duration(seconds))
    table.add_row("frames a second", _counted(Counter(f"{one.fps:.4g}" for one in facts)))
    table.add_row("spacing of frames", _counted(Counter(entry.rate for entry, _ in usable)))
    table.add_row("size", _counted(Counter(f"{one.width}x{one.height}" for one in facts)))
    table.add_row("rotated or mirrored", str(sum(one.rotation != 0 or one.mirrored for one in facts)))
    aspects = Counter(_aspect(one) for one in facts if one.pixel_aspect != 1.0)
    if aspects:
        table.add_row("pixels not square", f"{_counted(aspects)}: 'square_pixels: true' applies it")
    interlaced = sum(entry.interlaced for entry, _ in usable)
    if interlaced:
        table.add_row("interlaced, read as stored", str(interlaced))
    table.add_row("file, codec", _counted(Counter(f"{e.container} {one.codec}" for e, one in usable)))
    table.add_row("longest group of pictures", f"{_spread([entry.gop for entry, _ in usable])} frames")
    by_start = Counter(_FRAMES_THERE.sub("", one.no_seeking) for one in facts if one.no_seeking)
    table.add_row("read only from the start, by PyAV", _counted(by_start) or "none")
    table.add_row("decoding alone, from memory", _speed([entry.clip_seconds for entry, _ in usable]))
    return table


def _aspect(facts: VideoFacts) -> str:
    shown = facts.with_square_pixels()
    ratio = Fraction(facts.pixel_aspect).limit_denominator(1000)
    sizes = f"{facts.width}x{facts.height} shown {shown.width}x{shown.height}"
    return f"{ratio.numerator}:{ratio.denominator}, {sizes}"


def _speed(seconds: Iterable[float]) -> str:
    timed = [each for each in seconds if each > 0]
    if not timed:
        return "not timed"
    return (
        f"{len(timed) / sum(timed):.0f} clips a second per core ({CLIP_FRAMES} frames, stride {CLIP_STRIDE}, "
        f"full size; {counted(len(timed), 'clip')} timed during a scan)"
    )


def _spread(numbers: Sequence[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}, median {median(numbers):.0f}"


def _counted(kinds: Counter[str]) -> str:
    """The commonest with their counts: ``mp4 (12), avi (3), 4 more kinds (5)``."""
    shown = [f"{kind} ({count})" for kind, count in kinds.most_common(5)]
    rest = kinds.total() - sum(count for _, count in kinds.most_common(5))
    return ", ".join(shown) + (f", {len(kinds) - 5} more kinds ({rest})" if rest else "")
