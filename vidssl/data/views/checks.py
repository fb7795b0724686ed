"""What the settings of views and augmentations must be, and the sentences for when they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def check_counts(counts: Mapping[str, int | Sequence[int]]) -> None:
    """Raises ValueError unless every number, and every number of a list, is at least 1."""
    for name, given in counts.items():
        numbers = (given,) if isinstance(given, int) else given
        if any(number < 1 for number in numbers):
            raise ValueError(f"{name} must be at least 1, got {given}")


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError unless every number lies in (0, 1]."""
    for name, share in shares.items():
        if not 0.0 < share <= 1.0:
            raise ValueError(f"{name} must be above 0 and at most 1, got {share}")


def check_chances(chances: Mapping[str, float]) -> None:
    """Raises ValueError unless every number lies in [0, 1]."""
    for name, chance in chances.items():
        if not 0.0 <= chance <= 1.0:
            raise ValueError(f"{name} must lie between 0 and 1, got {chance}")


def check_range(name: str, given: tuple[float, float], *, highest: float = float("inf")) -> None:
    """Raises ValueError unless two numbers rise from above 0 to at most ``highest``."""
    if not 0.0 < given[0] <= given[1] <= highest:
        most = "" if highest == float("inf") else f" and at most {highest:g}"
        raise ValueError(f"{name} must be two numbers above 0{most}, rising, got {given}")


def check_num_crops(num_crops: int) -> None:
    """Raises ValueError unless it is 1 or 3."""
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")


def check_fps(fps: float | None) -> None:
    """Raises ValueError for a frame rate of 0 or below."""
    if fps is not None and fps <= 0:
        raise ValueError(f"fps must be above 0, got {fps}")
