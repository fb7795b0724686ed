"""Frames halved for a tokenizer that reads half the backbone's resolution. The kernel decides the ids.

A kernel without a low-pass lets fine texture through as false coarse texture: on a harsh test picture the
published kernel and an antialiased one lie 24 grey levels apart. Ids made with one are other targets than ids
made with the other.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ResizeKernel = Literal["opencv_lanczos4", "pillow_lanczos", "bicubic", "area"]

# axis weights of whole-number arithmetic: for each output cell its taps, (source index, weight)
_Taps = tuple[tuple[tuple[int, int], ...], ...]
_OPENCV_BITS = 11
_PILLOW_BITS = 22


def halve(frames: Tensor, kernel: ResizeKernel) -> Tensor:
    """Frames at half their height and width, on their own device.

    - ``opencv_lanczos4``: what BEVT's release does. Lanczos with four lobes and no low-pass, in OpenCV's
      whole-number arithmetic. OpenCV works on uint8, so frames are first rounded to 256 levels (which they
      have unless an augmentation came in between), and so is the result.
    - ``pillow_lanczos``: what BEiT's release does. Lanczos with three lobes, stretched to act as a low-pass,
      in Pillow's whole-number arithmetic: rounded to 256 levels before, between its two passes and after.
    - ``bicubic``: PyTorch's, antialiased. Nothing is rounded; what overshoots is cut to [0, 1].
    - ``area``: the mean of each 2x2 square. Nothing is rounded.

    Args:
        frames: float32 [N, C, H, W] in [0, 1].

    Returns:
        float32 [N, C, H / 2, W / 2] in [0, 1].

    Raises:
        ValueError: if a side is odd, or there is no such kernel.
    """
    if kernel not in KERNELS:
        raise ValueError(f"no resize kernel '{kernel}'. There are: {', '.join(KERNELS)}")
    height, width = frames.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"frames are halved, which needs even sides, got {height}x{width}")
    return KERNELS[kernel](frames)


def _opencv_lanczos4(frames: Tensor) -> Tensor:
    # both passes keep whole numbers of 11 bits more each; one rounding at the end
    x = _rounded(frames)
    x = _weighted_sum(x, _opencv_taps(x.shape[-1]), axis=-1)
    x = _weighted_sum(x, _opencv_taps(x.shape[-2]), axis=-2)
    return _shifted(x, 2 * _OPENCV_BITS).float() / 255


def _pillow_lanczos(frames: Tensor) -> Tensor:
    x = _rounded(frames)
    for axis in (-1, -2):
        x = _shifted(_weighted_sum(x, _pillow_taps(x.shape[axis]), axis=axis), _PILLOW_BITS)
    return x.float() / 255


def _bicubic(frames: Tensor) -> Tensor:
    size = [side // 2 for side in frames.shape[-2:]]
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def _area(frames: Tensor) -> Tensor:
    return F.avg_pool2d(frames, 2)


KERNELS: Mapping[ResizeKernel, Callable[[Tensor], Tensor]] = {
    "opencv_lanczos4": _opencv_lanczos4,
    "pillow_lanczos": _pillow_lanczos,
    "bicubic": _bicubic,
    "area": _area,
}


def _rounded(frames: Tensor) -> Tensor:
    """Pixels as whole numbers 0 to 255; exact for what came from uint8."""
    return (frames.float() * 255).round().clamp(0, 255).to(torch.int32)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits, rounded, halves up, cut to 0..255."""
    return ((x + (1 << bits - 1)) >> bits).clamp(0, 255)


def _weighted_sum(x: Tensor, taps: _Taps, axis: int) -> Tensor:
    """One pass along an axis, in whole numbers; int32 holds the largest sums of both libraries."""
    indices = torch.tensor([[index for index, _ in row] for row in taps], device=x.device)
    weights = torch.tensor([[weight for _, weight in row] for row in taps], dtype=x.dtype, device=x.device)
    shape = (-1, *(1 for _ in range(-axis - 1)))  # a weight per output cell, whatever comes after the axis
    out = x.index_select(axis, indices[:, 0]) * weights[:, 0].view(shape)
    for k in range(1, indices.shape[1]):
        out += x.index_select(axis, indices[:, k]) * weights[:, k].view(shape)
    return out


@cache
def _opencv_taps(size: int) -> _Taps:
    """Eight taps around the middle between two pixels; beyond the border the last pixel is repeated."""
    distances = [k - 3.5 for k in range(8)]
    weights = _whole([_lanczos(d, 4) for d in distances], _OPENCV_BITS)
    return tuple(
        tuple((min(max(2 * i + k - 3, 0), size - 1), w) for k, w in enumerate(weights))
        for i in range(size // 2)
    )


@cache
def _pillow_taps(size: int) -> _Taps:
    """Twelve taps within three output cells; at the border those outside fall away and the rest make up."""
    rows = []
    for i in range(size // 2):
        inside = [j for j in range(2 * i - 5, 2 * i + 7) if 0 <= j < size]
        weights = _whole([_lanczos((j - 2 * i - 0.5) / 2, 3) for j in inside], _PILLOW_BITS)
        row = list(zip(inside, weights, strict=True))
        rows.append(tuple(row + [(0, 0)] * (12 - len(row))))
    return tuple(rows)


def _lanczos(distance: float, lobes: int) -> float:
    """sinc(d) sinc(d / lobes)."""
    x = math.pi * distance
    return lobes * math.sin(x) * math.sin(x / lobes) / x**2


def _whole(weights: list[float], bits: int) -> list[int]:
    """Weights that sum to one as whole numbers of so many bits after the point."""
    total = sum(weights)
    return [round(weight / total * (1 << bits)) for weight in weights]
