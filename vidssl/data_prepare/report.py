"""What preparing will gain, and what it has gained, on the console."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vidssl.data.examine import CLIP_FRAMES, CLIP_STRIDE
from vidssl.data_prepare.makers import Prepared
from vidssl.engine.display import format_duration
from vidssl.errors import counted, printable

_SLOWER = 0.9  # a gain below this is more than chance
_NAMED = 20  # skipped files that are listed one by one


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
        f"{prediction.size:.2f} times the originals; {_speed(prediction.gain)}; "
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


def report(
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
            f" (predicted: {format_size(prediction.bytes)}; {_speed(prediction.gain)})" if prediction else ""
        )
        say(
            console,
            f"Measured: {format_size(after)} in all, {after / before:.2f} times the originals; "
            f"{_speed(gain(made))}, {counted(timed, 'clip')} timed{thought}",
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


def _speed(gain: float) -> str:
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
