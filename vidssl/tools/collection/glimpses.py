"""A few frames of every sample of a list, read in several processes, and near-duplicates found by them.

The perceptual hash of a sample is five small grey frames. Of two samples that are the same, the pictures
agree and so does what changes in them; the second tells two takes before one camera from a copy of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from vidssl.data.decode.decode import probe, read_frames
from vidssl.data.sources.manifest import Segment
from vidssl.data.workers import Lost
from vidssl.engine.process import num_cpus
from vidssl.interfaces import UnreadableSample
from vidssl.tools.collection.annotations import Row
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


FRAMES, SIDE = 5, 16  # of a hash
PICTURES = 0.96  # least correlation of the frames' mean
CHANGES = 0.9  # least correlation of what changes over time
STILL = 0.99  # of the frames alone, where nothing changes in either
_MOVES = 1.5  # grey levels: standard deviation over time, below which what changes is noise of the encoder
_BLOCK = 1024  # samples compared at once


def hash_of(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The grey frames of a sample, float32 [5, 16, 16], for frames uint8 [5, 3, 16, 16]."""
    luma = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    return np.einsum("tchw,c->thw", frames.astype(np.float32), luma)


def alike(seen: Sequence[Glimpse]) -> list[tuple[int, int]]:
    """Pairs of samples that show the same, the lower number first.

    Args:
        seen: 5 frames of 16 by 16 pixels each; those that could not be read are like none.
    """
    numbers = [number for number, one in enumerate(seen) if not one.reason]
    if len(numbers) < 2:
        return []
    hashes = np.stack([hash_of(seen[number].frames) for number in numbers])  # [N, F, h, w]
    mean = hashes.mean(1)
    change = (hashes - mean[:, None]).reshape(len(hashes), -1)
    moves = change.std(1) >= _MOVES
    pictures, changes = _unit(mean.reshape(len(hashes), -1)), _unit(change)
    found = []
    for start in range(0, len(numbers), _BLOCK):
        block = slice(start, start + _BLOCK)
        same = pictures[block] @ pictures.T
        both, neither = moves[block, None] & moves[None], ~moves[block, None] & ~moves[None]
        agree = both & (same > PICTURES) & (changes[block] @ changes.T > CHANGES) | neither & (same > STILL)
        rows, columns = np.nonzero(agree)
        found += [
            (numbers[start + a], numbers[b]) for a, b in zip(rows, columns, strict=True) if start + a < b
        ]
    return found


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = rows - rows.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
