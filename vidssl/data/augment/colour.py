"""Changes of colour and sharpness, batched: each clip of a batch by a factor of its own.

Clips are float32 [N, 3, T, H, W] in [0, 1], factors float32 [N] on the same device; so are the results,
cut off at 0 and 1. One clip of one frame gives what torchvision's function of the same purpose gives.
"""

import math
from typing import Literal

import torch
from torch import Tensor

ContrastAbout = Literal["clip", "frame"]


def luma(clip: Tensor) -> Tensor:
    """Brightness as the eye weighs the colours (ITU-R 601), [N, 1, T, H, W]."""
    red, green, blue = clip.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def brightness(clip: Tensor, factor: Tensor) -> Tensor:
    """Nearer to black for a factor below 1, brighter above."""
    return (clip * _column(factor)).clamp_(0.0, 1.0)


def contrast(clip: Tensor, factor: Tensor, about: ContrastAbout = "clip") -> Tensor:
    """Nearer to the mean grey for a factor below 1: of the whole clip, or of each frame.

    About each frame's own mean, a clip's frames move by different amounts: so SVT's published code.
    """
    mean = luma(clip).mean(dim=(2, 3, 4) if about == "clip" else (3, 4), keepdim=True)
    return _blended(clip, mean, factor)


def saturation(clip: Tensor, factor: Tensor) -> Tensor:
    """Nearer to grey for a factor below 1."""
    return _blended(clip, luma(clip), factor)


def hue(clip: Tensor, turn: Tensor) -> Tensor:
    """All hues moved by a fraction of the colour circle, -0.5 to 0.5."""
    value, low = clip.amax(1, keepdim=True), clip.amin(1, keepdim=True)
    chroma = value - low
    red, green, blue = clip.split(1, dim=1)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # each channel falls from the value by the chroma, over a third of the circle, towards its opposite
    start = torch.tensor([5.0, 3.0, 1.0], device=clip.device).view(1, 3, 1, 1, 1)
    place = (start + sixth + 6 * _column(turn)) % 6
    return (value - chroma * torch.minimum(place, 4 - place).clamp_(0.0, 1.0)).clamp_(0.0, 1.0)


def grey(clip: Tensor) -> Tensor:
    """The brightness in all three channels."""
    return luma(clip).expand_as(clip)


def solarise(clip: Tensor, threshold: float) -> Tensor:
    """Values from ``threshold`` on are turned into their negative."""
    return torch.where(clip >= threshold, 1 - clip, clip)


def blur(clip: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur of each frame, borders mirrored.

    Args:
        sigma: [N], standard deviations in pixels.
        radius: of the kernel in pixels, for all clips; cut down to what a frame can mirror.
    """
    height, width = clip.shape[3:]
    down = _mixing(height, sigma, min(radius, height - 1))
    across = _mixing(width, sigma, min(radius, width - 1))
    # two products of matrices: a kernel for each clip would need as many groups of a convolution
    return (down[:, None, None] @ clip @ across.mT[:, None, None]).clamp_(0.0, 1.0)


def blur_radius(largest_sigma: float) -> int:
    """Three standard deviations."""
    return max(1, math.ceil(3 * largest_sigma))


def _mixing(length: int, sigma: Tensor, radius: int) -> Tensor:
    """[N, length, length]: how much of each pixel (column) a blurred pixel (row) takes."""
    place = torch.arange(length, device=sigma.device)
    distance = place[None, :] - place[:, None]
    before = -place[None, :] - place[:, None]  # of the pixel's mirror image past the near border
    behind = 2 * (length - 1) + before  # and past the far one
    inside_before, inside_behind = (place > 0)[None, :], (place < length - 1)[None, :]
    weights = _weights(distance, sigma, radius)
    weights += _weights(before, sigma, radius) * inside_before
    weights += _weights(behind, sigma, radius) * inside_behind
    kernel = _weights(torch.arange(-radius, radius + 1, device=sigma.device), sigma, radius)
    return weights / kernel.sum(1).view(-1, 1, 1)


def _weights(distance: Tensor, sigma: Tensor, radius: int) -> Tensor:
    scale = sigma.view(-1, *(1 for _ in distance.shape))
    return torch.exp(-0.5 * (distance / scale) ** 2) * (distance.abs() <= radius)


def _blended(clip: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    factor = _column(factor)
    return (clip * factor + other * (1 - factor)).clamp_(0.0, 1.0)


def _column(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1, 1)
