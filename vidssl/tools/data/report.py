"""What a manifest says of a data set as a whole, on the console."""

from __future__ import annotations

import json
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from vidssl.data.classes import counted_classes
from vidssl.data.decode.decode import VideoFacts
from vidssl.data.decode.examine import CLIP_FRAMES, CLIP_STRIDE
from vidssl.data.sources.listing import Listing
from vidssl.data.sources.manifest import Entry, Manifest
from vidssl.data.sources.tar.index import ShardIndex
from vidssl.engine.logging import format_duration
from vidssl.errors import counted, printable
from vidssl.interfaces import UnreadableSample
from vidssl.tools.data.encode import Prepared
from vidssl.tools.data.leaks import Leak, duplicates

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


_SLOWER = 0.9  # a gain below this is more than chance


@dataclass(frozen=True)
class Prediction:
    """What a few videos say of all.

    Attributes:
        videos: that it is made from.
        bytes: of all results.
        size: bytes of a result for one of its source.
        gain: how many times as fast a clip is read; 0 if none was timed.
        bytes_left: of those that are still to be made.
        core_seconds: for these.
    """

    videos: int
    bytes: int
    size: float
    gain: float
    bytes_left: int
    core_seconds: float


def predict(done: Sequence[Prepared], sizes: Sequence[int]) -> Prediction | None:
    """What the results so far say of all; None if there is none.

    Args:
        done: what was tried.
        sizes: in bytes of all sources.
    """
    made = [row for row in done if not row.reason]
    read = sum(row.source[0] for row in made)
    if not read:
        return None
    size = sum(row.bytes for row in made) / read
    everything = sum(max(one, 0) for one in sizes)
    left = max(everything - sum(max(row.source[0], 0) for row in done), 0)
    seconds = left * sum(row.seconds for row in made) / read
    return Prediction(len(made), round(size * everything), size, gain(made), round(size * left), seconds)


def gain(rows: Sequence[Prepared]) -> float:
    """How many times as fast clips are read from results as from their sources; 0 if none was timed."""
    timed = [row for row in rows if row.before > 0 and row.after > 0]
    return sum(row.before for row in timed) / sum(row.after for row in timed) if timed else 0.0


def tell_prediction(prediction: Prediction | None, out: Path, processes: int, console: Console) -> None:
    """Print it, with what the disk has room for."""
    if prediction is None:
        say(console, "Nothing can be predicted: none of the first videos could be prepared")
        return
    free = shutil.disk_usage(out).free
    say(
        console,
        f"Predicted from {counted(prediction.videos, 'video')}: {format_size(prediction.bytes)} in all, "
        f"{prediction.size:.2f} times the originals; {_prepare_speed(prediction.gain)}; "
        f"{format_duration(prediction.core_seconds / processes)} to go",
    )
    if 0 < prediction.gain < _SLOWER:
        say(
            console,
            "These videos are read more slowly for it: leave them as they are, or try another form or size "
            "in another folder. To end it here, Ctrl-C",
        )
    if prediction.bytes_left > free:
        say(console, f"The disk may fill up: {format_size(free)} left. What is finished stays in any case")


def prepare_report(
    rows: Sequence[Prepared],
    where: Path,
    prediction: Prediction | None,
    out: Path,
    console: Console,
    *,
    show_all: bool,
) -> None:
    """Print what was made and what was skipped.

    Args:
        where: the manifest or index.
        prediction: what was thought of it before.
    """
    made, skipped = [row for row in rows if not row.reason], [row for row in rows if row.reason]
    say(console, f"{len(made)} of {len(rows)} videos are prepared in {out}")
    if made:
        before, after = sum(row.source[0] for row in made), sum(row.bytes for row in made)
        timed = sum(row.after > 0 for row in made)
        thought = (
            f" (predicted: {format_size(prediction.bytes)}; {_prepare_speed(prediction.gain)})"
            if prediction
            else ""
        )
        say(
            console,
            f"Measured: {format_size(after)} in all, {after / before:.2f} times the originals; "
            f"{_prepare_speed(gain(made))}, {counted(timed, 'clip')} timed{thought}",
        )
    if skipped:
        say(console, f"Skipped: {len(skipped)}")
        shown = skipped if show_all else skipped[:_NAMED]
        for row in shown:
            say(console, f"  {row.key}: {row.reason}")
        if len(shown) < len(skipped):
            say(console, f"  and {len(skipped) - len(shown)} more ('--all' shows them)")
    if where.name == "index.jsonl":
        say(console, f"In recipes: source: {{type: jpeg_shards, root: {out}}}")
    else:
        say(console, f"Manifest: {where} (in recipes: 'root: {out}' and 'manifest: {where}')")


def _prepare_speed(gain: float) -> str:
    if not gain:
        return "no clip was timed"
    return f"a clip of {CLIP_FRAMES} frames at stride {CLIP_STRIDE} is read in {1 / gain:.2f} of the time"


def format_size(count: int) -> str:
    """Bytes with three digits: ``1.23 GB``."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit != "bytes" else counted(count, "byte")


def say(console: Console, line: str) -> None:
    """Print one line, whatever is in it."""
    console.print(printable(line, one_line=True), soft_wrap=True, markup=False, highlight=False)


_PLAIN = re.compile(r"[\w./~][\w./~:@=+-]*")


def shard_report(
    index: ShardIndex, out: str, at: str, console: Console, *, flaws: Sequence[str] = (), show_all: bool
) -> bool:
    """Print what the shards hold, what is bad, and the line for recipes.

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
        f"{good} of {len(index)} files lie in {counted(len(index.shards), 'shard')}, {size}, at {out}",
    )
    for name, numbers in index.labels.items():
        there = int((numbers[index.usable] >= 0).sum())
        say(
            console,
            f"Label '{name}': {there} of {good} files have it, "
            + counted_classes(numbers[index.usable].tolist(), index.label_classes[name]),
        )
    limit = None if show_all else _NAMED
    _shard_list(console, "Flaws", flaws, limit)
    named = [index.member(number).entry for number in bad[:limit]]
    _shard_list(console, "Bad, in no shard", [f"{e.key}: {e.reason}" for e in named], limit, of=len(bad))
    say(console, f"Index: {index.where}")
    if good:
        keys = {"type": "tar_shards", "root": out, **({"index": at} if at else {})}
        say(console, f"In recipes: source: {flow(keys)}")
    else:
        say(console, "None of the files can be used, so there is nothing to train on")
    return not bad and not flaws


def flow(keys: Mapping[str, str]) -> str:
    """A mapping of names as YAML, on one line."""
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in keys.items()) + "}"


def _scalar(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not value.endswith(":") and not _looks_otherwise(value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _looks_otherwise(value: str) -> bool:
    """Whether YAML could take a word for a number, a truth or nothing."""
    return bool(
        re.fullmatch(r"[\d._+-]+|~|null|true|false|yes|no|on|off|[yn]|[\d.]+e\d+|0[xo]\w+", value.lower())
    )


def _shard_list(
    console: Console, title: str, lines: Sequence[str], limit: int | None, of: int | None = None
) -> None:
    count = len(lines) if of is None else of
    if not count:
        return
    say(console, f"{title}: {count}")
    shown = lines[:limit]
    for line in shown:
        say(console, f"  {line}")
    if len(shown) < count:
        say(console, f"  and {count - len(shown)} more ('--all' shows them)")
