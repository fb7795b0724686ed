"""Frames and tubelets through a tokenizer: chunk by chunk, halved before it, and the networks of trainable
ones.

The kernel that halves decides the ids. One without a low-pass lets fine texture through as false coarse
texture: on a harsh test picture the published kernel and an antialiased one lie 24 grey levels apart. Ids
made with one are other targets than ids made with the other.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_weights(x: Tensor, network: nn.Module) -> Tensor:
    """The tensor in the type of a network's weights."""
    return x.to(next(network.parameters()).dtype)


def in_chunks(network: Callable[[Tensor], Tensor], frames: Tensor, size: int) -> Tensor:
    """Outputs of ``network`` for frames [N, ...], ``size`` of them at a time.

    That bounds the memory, and on a CPU it makes what a frame gives the same whatever stands beside it:
    oneDNN and MKL choose their kernels by shape, and kernels differ in the last bit, which is enough to flip
    an id that lies between two codes. There the last chunk is filled up, so that all have the same shape.
    """
    missing = -len(frames) % size if frames.device.type == "cpu" else 0
    if missing:
        frames = F.pad(frames, (*(0,) * (2 * frames.ndim - 1), missing))
    out = torch.cat([network(chunk) for chunk in frames.split(size)])
    return out[: len(out) - missing]


def of_length(pixels: Tensor, num_frames: int) -> Tensor:
    """A reconstruction at the length of the clip that it was made of.

    A tokenizer whose ids stand for several frames sees an image as a still tubelet and gives a tubelet back;
    the mean of its frames is the image.

    Args:
        pixels: [B, 3, T', H, W].
        num_frames: T of the clip.

    Returns:
        [B, 3, T, H, W].
    """
    return pixels.mean(dim=2, keepdim=True) if num_frames == 1 else pixels


def centred(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as numbers in [-1, 1]."""
    return pixels * 2 - 1


def _initialise(layer: nn.Module) -> None:
    """Keeps the signal's size from layer to layer; with PyTorch's own start it fades over the encoder."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    elif isinstance(layer, nn.ConvTranspose2d):
        fan_in = layer.in_channels * (layer.kernel_size[0] // layer.stride[0]) ** 2
        nn.init.normal_(layer.weight, std=(2 / fan_in) ** 0.5)
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class _Residual(nn.Module):
    """Looks at the eight neighbours channel by channel, then mixes the channels of each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.apply(_initialise)
        nn.init.zeros_(self.narrow.weight)  # at first the block is not there

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.neighbours(x))))


def frame_encoder(
    width: int, code_dim: int, stride: int, num_res_blocks: int, *, num_frames: int = 1
) -> nn.Sequential:
    """[N, 3 * num_frames, H, W] to [N, code_dim, H / stride, W / stride].

    Patches of 4x4 pixels, halved until one cell spans ``stride`` pixels. Frames of a tubelet lie one after
    another in the channels, so that the first layer sees what moves between them.
    """
    layers: list[nn.Module] = [nn.Conv2d(3 * num_frames, width, 4, stride=4)]
    for _ in range(_num_halvings(stride)):
        layers += [nn.GELU(), nn.Conv2d(width, width, 2, stride=2)]
    layers = [layer.apply(_initialise) for layer in [*layers, nn.Conv2d(width, code_dim, 1)]]
    return nn.Sequential(*layers[:-1], *(_Residual(width) for _ in range(num_res_blocks)), layers[-1])


def frame_decoder(
    width: int, code_dim: int, stride: int, num_res_blocks: int, *, num_frames: int = 1
) -> nn.Sequential:
    """[N, code_dim, h, w] to [N, 3 * num_frames, h * stride, w * stride].

    The encoder backwards, its convolutions overlapping so that the cells do not show as squares.
    """
    layers: list[nn.Module] = []
    for _ in range(_num_halvings(stride)):
        layers += [nn.GELU(), nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)]
    to_pixels = nn.Conv2d(width, 3 * num_frames * 4 * 4, 3, padding=1)
    layers += [nn.GELU(), to_pixels, nn.PixelShuffle(4)]
    first, *layers = (
        layer.apply(_initialise) for layer in [nn.Conv2d(code_dim, width, 3, padding=1), *layers]
    )
    # From a grey picture instead of bright noise: the noise had to be unlearned first, at steps so long
    # that the network stayed behind for good (4 to 6 dB after 500 steps, and once it never left grey).
    to_pixels.weight.data.mul_(0.1)
    return nn.Sequential(first, *(_Residual(width) for _ in range(num_res_blocks)), *layers)


def _num_halvings(stride: int) -> int:
    return {4: 0, 8: 1, 16: 2}[stride]


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
