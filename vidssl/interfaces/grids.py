"""Arithmetic on grids of cells, (t, h, w)."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from einops import repeat
from torch import Tensor

GridSize = tuple[int, int, int]
Given = ParamSpec("Given")
Made = TypeVar("Made")


def kept(maxsize: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """``lru_cache`` for functions that make tensors: a trace makes its own, which mean nothing outside it."""

    def of(make: Callable[Given, Made]) -> Callable[Given, Made]:
        cached = lru_cache(maxsize)(make)

        @wraps(make)
        def _call(*args: Given.args, **keys: Given.kwargs) -> Made:
            return make(*args, **keys) if torch.compiler.is_compiling() else cached(*args, **keys)  # type: ignore[arg-type]

        return _call

    return of


def divide_exactly(size: tuple[int, int, int], strides: GridSize, owner: str) -> GridSize:
    """Cells that tile a clip of ``size`` (frames, rows, columns) exactly.

    Raises:
        ValueError: if an axis leaves a rest.
    """
    if any(s < 1 or s % stride for s, stride in zip(size, strides, strict=True)):
        raise ValueError(
            f"{owner} takes clips whose (frames, height, width) are whole multiples of {strides}, got {size}"
        )
    t, h, w = (s // stride for s, stride in zip(size, strides, strict=True))
    return t, h, w


def common_grid(a: GridSize, b: GridSize) -> GridSize:
    """The finest grid whose cells are whole cells of both, on which one mask can be drawn for both.

    BEVT's patches (8, 56, 56) and ids (16, 14, 14) share (8, 14, 14) (Sec. 3).

    Raises:
        ValueError: if on some axis neither count is a whole multiple of the other.
    """
    t, h, w = (min(x, y) for x, y in zip(a, b, strict=True))
    if any(max(x, y) % min(x, y) for x, y in zip(a, b, strict=True)):
        raise ValueError(f"grids {a} and {b} do not nest")
    return t, h, w


def expand_mask(mask: Tensor, grid: GridSize) -> Tensor:
    """Repeat a mask's cells until it covers a finer grid.

    BEVT draws one mask on 8x14x14 and needs it twice: on the backbone's 8x56x56 patches, where it
    hides inputs, and on the tokenizer's 16x14x14 ids, where it picks the loss (Sec. 3, Eq. 3).

    Args:
        mask: bool [B, t, h, w], True where hidden.
        grid: (t', h', w'), each a whole multiple of t, h, w.

    Returns:
        bool [B, t', h', w'].

    Raises:
        ValueError: if ``grid`` is not a whole multiple of the mask's own grid.
    """
    own = tuple(mask.shape[1:])
    if len(own) != 3 or any(fine % coarse for fine, coarse in zip(grid, own, strict=True)):
        raise ValueError(f"a mask on {own} cannot be expanded to {grid}: not a whole multiple on every axis")
    factors = {f"f{axis}": fine // coarse for axis, fine, coarse in zip("thw", grid, own, strict=True)}
    return repeat(mask, "b t h w -> b (t ft) (h fh) (w fw)", **factors)


def places_of(mask: Tensor) -> Tensor:
    """Numbers of the marked cells, int64 [B, n] in raster order, of bool [B, t, h, w] with n in each row.

    Raises:
        ValueError: if the rows differ in their number.
    """
    flat = mask.flatten(1)
    numbers = flat.nonzero()[:, 1]
    count = len(numbers) // len(flat)
    # a sum of each row waits for the device no more than nonzero has
    if len(numbers) != count * len(flat) or not bool((flat.sum(dim=1) == count).all()):
        raise ValueError("the clips of a batch must have as many hidden cells each: take another masker")
    return numbers.view(len(flat), count)
