"""Checks of the settings of views and augmentations, with their messages."""

from collections.abc import Mapping, Sequence

_MOST = 100_000  # frames, clips, pixels of a side: no view has as many, and making them would not end


def check_counts(made: object, *names: str) -> None:
    """Raises ValueError unless these numbers, or lists of such, are from 1 to 100,000, or None."""
    for name in names:
        check_number(name, getattr(made, name))


def check_number(name: str, given: int | Sequence[int | None] | None) -> None:
    """Raises ValueError unless this number, or each of a list, is from 1 to 100,000, or None."""
    numbers = given if isinstance(given, Sequence) else (given,)
    if any(number is not None and number < 1 for number in numbers):
        raise ValueError(f"{name} must be at least 1, got {given}")
    if any(number is not None and number > _MOST for number in numbers):
        raise ValueError(f"{name} must be at most {_MOST:,}, got {given}")


def check_fractions(made: object, *names: str) -> None:
    """Raises ValueError unless these numbers of an object lie in (0, 1]."""
    for name in names:
        if not 0.0 < getattr(made, name) <= 1.0:
            raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(made, name)}")


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


def check_test_clips(made: object, *names: str) -> None:
    """``check_counts``, and raises ValueError unless its ``num_crops`` is 1 or 3."""
    check_counts(made, *names)
    if (num_crops := getattr(made, "num_crops")) not in (1, 3):  # noqa: B009
        raise ValueError(f"num_crops must be 1 or 3, got {num_crops}")


def check_fps(fps: float | None) -> None:
    """Raises ValueError for a frame rate of 0 or below."""
    if fps is not None and fps <= 0:
        raise ValueError(f"fps must be above 0, got {fps}")
