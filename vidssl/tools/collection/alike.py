"""Near-duplicates: samples that show the same, though they were encoded, scaled or named anew.

The perceptual hash of a sample is five small grey frames. Of two samples that are the same, the pictures
agree and so does what changes in them; the second tells two takes before one camera from a copy of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vidssl.tools.collection.glimpses import Glimpse

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
