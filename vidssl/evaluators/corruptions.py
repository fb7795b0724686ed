"""Test clips with noise, blur, compression, dropped and frozen frames, each at five strengths.

Strengths of noise, blur and JPEG are those of ImageNet-C (Hendrycks and Dietterich 2019), whose images have
224 pixels: a blur is narrower on smaller clips, in proportion. Dropped and frozen frames are ours.
"""

import io
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from vidssl.errors import UsageError

STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, of pixels in [0, 1]
    "blur": (1, 2, 3, 4, 6),  # standard deviation in pixels, of a side of 224
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "dropped": (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4),  # of the frames are black
    "frozen": (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4),  # of the frames repeat what was shown before them
}
_SIDE = 224


def is_corrupted(frames: str) -> bool:
    """Whether a name of ``frames`` is that of a corruption: "noise-3"."""
    return "-" in frames


def corrupted(clip: Tensor, name: str, numbers: Tensor, *, draw: int) -> Tensor:
    """The clips with a corruption.

    What is random depends on a video's number and on ``draw`` alone; a stronger corruption draws the same
    noise, and drops or freezes the frames of a weaker one and more.

    Args:
        clip: float32 [B, 3, T, H, W] in [0, 1].
        name: kind and strength, "noise-1" to "frozen-5".
        numbers: int64 [B], numbers of the videos.
        draw: tells the clips of one video apart.

    Returns:
        As ``clip``.

    Raises:
        UsageError: for stored ids, which have no pixels.
    """
    if clip.dim() != 5:
        raise UsageError(f"frames: {name}: stored ids have no pixels to corrupt: name videos")
    kind, _, strength = name.partition("-")
    amount = STRENGTHS[kind][int(strength) - 1]
    if kind == "blur":
        return _blurred(clip, amount * min(clip.shape[3:]) / _SIDE)
    if kind == "jpeg":
        return torch.stack([_compressed(each, int(amount)) for each in clip.cpu()]).to(clip.device)
    rows = []
    for each, number in zip(clip.cpu(), numbers.tolist(), strict=True):
        generator = torch.Generator().manual_seed(65_537 * number + draw)
        if kind == "noise":
            rows.append((each + amount * torch.randn(each.shape, generator=generator)).clamp(0, 1))
        elif kind in ("dropped", "frozen"):
            rows.append(_lost(each, amount, kind == "frozen", generator))
        else:
            raise ValueError(f"unknown corruption '{kind}'")
    return torch.stack(rows).to(clip.device)


def _blurred(clip: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    frames = clip.transpose(1, 2).flatten(0, 1)
    # four standard deviations to each side, and no more than can be reflected at an edge
    half = min(max(1, round(4 * sigma)), min(clip.shape[3:]) - 1)
    blurred = gaussian_blur(frames, [2 * half + 1] * 2, [sigma, sigma])
    return blurred.unflatten(0, (len(clip), -1)).transpose(1, 2).contiguous()


def _compressed(clip: Tensor, quality: int) -> Tensor:
    """Each frame of [3, T, H, W] as a JPEG of that quality."""
    made = []
    for frame in (clip * 255).round().to(torch.uint8).permute(1, 2, 3, 0):
        file = io.BytesIO()
        Image.fromarray(frame.numpy()).save(file, format="JPEG", quality=quality)
        with Image.open(file) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        made.append(pixels.view(frame.shape))
    return torch.stack(made).permute(3, 0, 1, 2).float() / 255


def _lost(clip: Tensor, share: float, frozen: bool, generator: torch.Generator) -> Tensor:
    """Frames of [3, T, H, W] in black, or frozen: a share, one at least; never the first."""
    frames = clip.shape[1]
    order = 1 + torch.randperm(max(1, frames - 1), generator=generator)
    lost = order[: min(max(1, round(share * frames)), frames - 1)].tolist()
    clip = clip.clone()
    for frame in sorted(lost):
        clip[:, frame] = clip[:, frame - 1] if frozen else 0
    return clip
