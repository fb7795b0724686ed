"""What a manifest says of a data set as a whole, on the console."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from vidssl.class_numbers import counted_classes
from vidssl.data.decode import VideoFacts
from vidssl.data.examine import CLIP_FRAMES, CLIP_STRIDE
from vidssl.data.listing import Listing
from vidssl.data.manifest import Entry, Manifest
from vidssl.data_check.leaks import Leak, duplicates
from vidssl.engine.display import format_duration
from vidssl.errors import counted, printable
from vidssl.interfaces import UnreadableSample

_FRAMES_THERE = re.compile(r" \(\d+ of \d+ frames are there\)")
_NAMED = 20  # files that are listed one by one, of each kind


@dataclass(frozen=True)
class Overlap:
    """What a test part has in common with what is trained on.

    Attributes:
        where: which two, in words.
        content: videos with the same bytes.
        group: videos cut from the same video.
        chosen: the user named this division; otherwise it is that of the sources' ``part``.
    """

    where: str
    content: Sequence[Leak]
    group: Sequence[Leak]
    chosen: bool


@dataclass(frozen=True)
class Found:
    """A scanned data set."""

    manifest: Manifest
    out: Path
    overlaps: tuple[Overlap, ...]
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
    def bad(self) -> list[Entry]:
        return [entry for entry in self.manifest if not entry.usable]

    @property
    def flawed(self) -> bool:
        """Whether anything is there that its owner must decide on."""
        return bool(self.bad or self.empty) or any(o.chosen and (o.content or o.group) for o in self.overlaps)


def report(found: Found, console: Console, *, show_all: bool) -> None:
    """Print a summary, then what is wrong."""
    usable = [
        # without what takes up memory
        (entry, replace(entry.facts, pts=array("q"), keyframes=()))
        for entry in found.manifest
        if entry.usable and entry.facts
    ]
    console.print(_summary(found.manifest, usable))
    limit = None if show_all else _NAMED
    for label, names in found.listing.label_classes.items():
        numbers = [sample.labels.get(label, -1) for sample in found.listing.files]
        _say(console, f"Label '{label}': {counted_classes(numbers, names)}")
    if found.listing.segments():
        _say(console, f"Segments: {len(found.listing.files)} of {counted(len(found.manifest), 'file')}")
    cut = [entry for entry in found.manifest if entry.status == "cut"]
    _list(console, "Left out by sources", [f"{e.key}: {e.status}: {e.reason}" for e in found.bad], limit)
    _list(console, "Segments that their files do not reach, left out", found.empty, limit)
    _list(console, "Cut off, used as far as they go", [f"{e.key}: {e.reason}" for e in cut], limit)
    _list(console, "The same content", [" = ".join(keys) for keys in duplicates(found.manifest)], limit)
    for overlap in found.overlaps:
        for kind, leaks in (("content", overlap.content), ("group", overlap.group)):
            title = f"Leaks, the same {kind} in {overlap.where}"
            _list(console, title, [f"{leak.test} ({leak.train})" for leak in leaks], limit)
    _say(console, f"Manifest: {found.out} (in recipes: 'manifest: {found.out}')")


def _summary(manifest: Manifest, usable: Sequence[tuple[Entry, VideoFacts]]) -> Table:
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


def _list(console: Console, title: str, lines: Sequence[str], limit: int | None) -> None:
    if not lines:
        return
    _say(console, f"{title}: {len(lines)}")
    shown = lines[:limit]
    for line in shown:
        _say(console, f"  {line}")
    if len(shown) < len(lines):
        _say(console, f"  and {len(lines) - len(shown)} more ('--all' shows them)")


def _say(console: Console, line: str) -> None:
    console.print(printable(line, one_line=True), soft_wrap=True, markup=False, highlight=False)
