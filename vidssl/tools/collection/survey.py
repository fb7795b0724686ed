"""What the samples of a collection are like: durations, sizes and rates of each class, suitable clips."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vidssl.data.classes import label_of_one_class
from vidssl.engine.logging import format_duration
from vidssl.engine.process import make_folder
from vidssl.errors import counted
from vidssl.pictures.pages import FrameRow, Strip, save_png, sheet
from vidssl.tools.collection.annotations import Row
from vidssl.tools.collection.glimpses import glimpses

SIZES = (112, 224)  # sides of views that are asked about
_STRIDES = (1, 2, 3, 4, 6, 8, 12, 16)
_LONGEST_SECONDS = 2.5  # of a clip: 16 frames at stride 4, the papers' clip, last about 2.1
_FITS = 0.9  # fraction of the samples that a clip should fit into
_CLASSES = 20  # that a table shows
_SHOWN, _MOMENTS = 8, 4  # samples of a contact sheet, and frames of each


@dataclass(frozen=True)
class Seen:
    """A sample as far as a survey looks: labels by name, frames, frame rate (0: unknown), size in pixels."""

    labels: Mapping[str, str]
    frames: int
    fps: float
    height: int
    width: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps if self.fps > 0 else 0.0


@dataclass(frozen=True)
class Clip:
    """A clip: frames, the step between them, and the fraction of samples that are as long."""

    num_frames: int
    frame_stride: int
    fits: float

    @property
    def span(self) -> int:
        """Frames from its first to its last."""
        return (self.num_frames - 1) * self.frame_stride + 1


def suitable_clip(seen: Sequence[Seen], num_frames: int) -> Clip:
    """The widest clip of so many frames that fits nine in ten samples and lasts no longer than a paper's."""
    lengths = np.array([one.frames for one in seen])
    rate = median([one.fps for one in seen if one.fps > 0] or [25.0])
    found = Clip(num_frames, 1, float((lengths >= num_frames).mean()))
    for stride in _STRIDES[1:]:
        clip = Clip(num_frames, stride, float((lengths >= (num_frames - 1) * stride + 1).mean()))
        if clip.fits >= _FITS and clip.span / rate <= _LONGEST_SECONDS:
            found = clip
    return found


def rates_differ(seen: Sequence[Seen]) -> bool:
    """Whether a stride means another time in one sample than in another."""
    rates = [one.fps for one in seen if one.fps > 0]
    return bool(rates) and max(rates) > 1.25 * min(rates)


def enlarged(seen: Sequence[Seen], size: int) -> int:
    """How many samples are smaller than a view."""
    return sum(min(one.height, one.width) < size for one in seen)


def survey_lines(seen: Sequence[Seen]) -> list[str]:
    """Lines on what views will do to the samples."""
    short = [min(one.height, one.width) for one in seen]
    sizes = ", ".join(f"{enlarged(seen, size)} of {len(seen)} in views of {size}" for size in SIZES)
    lines = [f"Short side {min(short)} to {max(short)} pixels; will be enlarged: {sizes}"]
    rate = median([one.fps for one in seen if one.fps > 0] or [0.0])
    words = []
    for count in (8, 16):
        clip = suitable_clip(seen, count)
        lasts = f", {clip.span / rate:.2g} s" if rate else ""
        words.append(f"{count} at stride {clip.frame_stride} ({clip.span} frames{lasts}) in {clip.fits:.0%}")
    lines.append(f"Frames of a clip that suit the durations: {'; '.join(words)} of the samples")
    if rates_differ(seen):
        lines.append("Frame rates differ: 'fps' of views makes a clip last equally long in all of them")
    return lines


def survey_table(seen: Sequence[Seen], label: str, *, show_all: bool = False) -> Table:
    """A row for each class of a label."""
    table = Table(title=f"label '{label}'", title_justify="left", caption_justify="left")
    for head in ("class", "videos", "in all", "seconds each", "sizes", "frames a second"):
        table.add_column(head, justify="left" if head in ("class", "sizes", "frames a second") else "right")
    by_class: dict[str, list[Seen]] = {}
    for one in seen:
        if label in one.labels:
            by_class.setdefault(one.labels[label], []).append(one)
    names = sorted(by_class)
    for name in names if show_all else names[:_CLASSES]:
        own = by_class[name]
        seconds = [one.seconds for one in own]
        each = f"{min(seconds):.3g} to {max(seconds):.3g}, median {median(seconds):.3g}"
        sizes = Counter(f"{one.width}x{one.height}" for one in own)
        rates = Counter(f"{one.fps:.4g}" for one in own)
        table.add_row(
            name, str(len(own)), format_duration(sum(seconds)), each, _common(sizes), _common(rates)
        )
    if len(names) > _CLASSES and not show_all:
        table.caption = f"{len(names) - _CLASSES} more classes: '--all' shows them"
    return table


def _common(kinds: Counter[str]) -> str:
    shown = [f"{kind} ({count})" if len(kinds) > 1 else kind for kind, count in kinds.most_common(3)]
    return ", ".join(shown) + (f", {len(kinds) - 3} more" if len(kinds) > 3 else "")


def contact_sheets(rows: Sequence[Row], root: Path, folder: Path, console: Console) -> list[Path]:
    """A PNG of frames for each class of the first label of single classes, in a new folder; their paths."""
    make_folder(folder, "name another with --sheets")
    label = label_of_one_class({name: [row.labels[name] for row in rows] for name in rows[0].labels})
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row.labels[label] if label else "all", []).append(row)
    chosen = {name: own[:: max(1, len(own) // _SHOWN)][:_SHOWN] for name, own in by_class.items()}
    flat = [row for own in chosen.values() for row in own]
    seen = iter(glimpses(flat, root, console, "contact sheets", count=_MOMENTS, height=0, width=0))
    paths = []
    for name, own in chosen.items():
        strips = []
        for row in own:
            glimpse = next(seen)
            if glimpse.reason:
                continue
            at = row.times or (0.0, glimpse.seconds)
            step = (at[1] - at[0]) / _MOMENTS
            heads = tuple(f"{at[0] + step * (place + 0.5):.1f} s" for place in range(_MOMENTS))
            frames = torch.from_numpy(glimpse.frames).permute(0, 2, 3, 1)
            strips.append(Strip(row.path, heads, (FrameRow("", frames),)))
        if strips:
            path = folder / (re.sub(r"[^\w.-]+", "_", name) + ".png")
            save_png(sheet(f"{name}: {counted(len(by_class[name]), 'sample')}", strips), path)
            paths.append(path)
    return paths
