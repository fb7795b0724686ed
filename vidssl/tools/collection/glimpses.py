"""A few frames of every sample of a list, read in several processes: enough to see what it is like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from vidssl.data.decode.decode import probe, read_frames
from vidssl.data.pool import Lost
from vidssl.data.sources.segments import Segment
from vidssl.engine.process import num_cpus
from vidssl.interfaces import UnreadableSample
from vidssl.tools.collection.rows import Row
from vidssl.tools.data.runner import runner

_PATIENCE_SECONDS = 300.0  # for one sample


@dataclass(frozen=True)
class Glimpse:
    """Frames of a sample, and what is known of it.

    Attributes:
        frames: uint8 [F, 3, height, width], evenly over the sample or following each other.
        num_frames: of the sample; 0 where it cannot be read.
        fps: mean frame rate of its file; 0 where that states none.
        height, width: of the file, in pixels.
        reason: why it cannot be read; empty where it can.
    """

    frames: NDArray[np.uint8]
    num_frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    reason: str = ""

    @property
    def seconds(self) -> float:
        """How long it lasts; 0 where that is not known."""
        return self.num_frames / self.fps if self.fps > 0 else 0.0


@dataclass(frozen=True)
class _Task:
    number: int
    root: Path
    row: Row
    places: tuple[float, ...]
    height: int
    width: int


def glimpses(
    rows: Sequence[Row], root: Path, console: Console, title: str, *, count: int, height: int, width: int
) -> list[Glimpse]:
    """A glimpse of each sample: frames in the middle of ``count`` equal parts of it, at one size.

    Args:
        title: of the bar.
        height, width: that frames are brought to, whatever their shape; 0 by 0 keeps it, with a short side
            of 96 pixels.
    """
    places = tuple((place + 0.5) / count for place in range(count))
    tasks = [_Task(number, root, row, places, height, width) for number, row in enumerate(rows)]
    none = np.zeros((0, 3, 1, 1), np.uint8)
    found = [Glimpse(none, reason="it was not looked at")] * len(rows)
    with runner(console, title, len(rows), num_cpus()) as crew:
        for task, seen in crew.run(tasks, _look, patience_seconds=_PATIENCE_SECONDS):
            found[task.number] = Glimpse(none, reason=seen.reason) if isinstance(seen, Lost) else seen
            crew.advance()
    return found


def _look(task: _Task) -> Glimpse:
    path = task.root / task.row.path
    try:
        facts = probe(path)
        own = range(facts.num_frames)
        if task.row.times is not None:
            own = Segment(*task.row.times).frames_of(task.row.path, facts)
        frames = read_frames(path, [own[int(place * len(own))] for place in task.places], facts)
    except UnreadableSample as error:
        return Glimpse(np.zeros((0, 3, 1, 1), np.uint8), reason=error.reason)
    height, width = task.height, task.width
    if not height:
        short = min(frames.shape[2:])
        height, width = (max(1, round(side * 96 / short)) for side in frames.shape[2:])
    # not torch's: its threads do not outlive the fork of a process
    pictures = (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames)
    small = np.stack([np.asarray(one.resize((width, height), Image.Resampling.BILINEAR)) for one in pictures])
    return Glimpse(small.transpose(0, 3, 1, 2), len(own), facts.fps, facts.height, facts.width)
