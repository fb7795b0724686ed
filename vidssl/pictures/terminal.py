"""Curves for a terminal, drawn with the dots of Braille letters: two across and four down in each."""

import math
from collections.abc import Sequence

_BLANK = 0x2800
_DOTS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # [row][column] of a letter, from the top left


def curve(steps: Sequence[float], values: Sequence[float], *, width: int, height: int) -> list[str]:
    """A curve as lines of text, the earliest step at the left and the highest value at the top.

    Neighbouring points are joined. Values that are no numbers leave a gap.

    Args:
        steps: rising; as many as values.
        width: in letters.
        height: in lines.

    Returns:
        ``height`` lines of ``width`` letters.
    """
    letters = [[_BLANK] * width for _ in range(height)]
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        before: tuple[float, float] | None = None
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                before = None
                continue
            place = (
                _share(step, steps[0], steps[-1]) * (2 * width - 1),
                (1 - _share(value, low, high)) * (4 * height - 1),
            )
            _join(letters, before or place, place)
            before = place
    return ["".join(map(chr, line)) for line in letters]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _join(letters: list[list[int]], start: tuple[float, float], end: tuple[float, float]) -> None:
    count = max(1, math.ceil(max(abs(end[0] - start[0]), abs(end[1] - start[1]))))
    for number in range(count + 1):
        column = round(start[0] + (end[0] - start[0]) * number / count)
        row = round(start[1] + (end[1] - start[1]) * number / count)
        letters[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
