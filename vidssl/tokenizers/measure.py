"""Measures of a tokenizer: what it keeps, how many codes it uses, how steady and how fast its ids are."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vidssl.interfaces import Tokenizer, as_clip
from vidssl.tokenizers.frame_networks import of_length

_WINDOW, _SIGMA = 11, 1.5  # of SSIM, in pixels (Wang et al. 2004, Sec. III.C)
_C1, _C2 = 0.01**2, 0.03**2  # K1 and K2 there, for pixels in [0, 1]


@dataclass(frozen=True)
class TokenizerMeasure:
    """How good a tokenizer is on some clips.

    Attributes:
        psnr: of encoding and decoding, in dB, from the mean squared error over all pixels.
        ssim: structural similarity of encoding and decoding, at most 1; mean over frames.
        perplexity: exp of the entropy of the ids: how many equally frequent codes would be as varied.
        used_codes: codes that occur at least once.
        vocab_size: codes there are.
        flicker: fraction of the ids that differ between two noisy copies of one frame.
    """

    psnr: float
    ssim: float
    perplexity: float
    used_codes: int
    vocab_size: int
    flicker: float


@torch.no_grad()
def measure(
    tokenizer: Tokenizer,
    clips: Tensor,
    generator: torch.Generator,
    *,
    noise: float = 0.01,
    batch_size: int = 32,
    device: torch.device | None = None,
) -> TokenizerMeasure:
    """Measures a tokenizer on clips.

    Args:
        clips: [N, 3, T, H, W], float32 in [0, 1] or uint8; sides of at least 11 pixels.
        generator: draws the noise.
        noise: standard deviation of the noise behind ``flicker``; 0.01 is two and a half grey levels,
            about what a video codec leaves.
        batch_size: clips that are encoded together; it changes no result on a CPU.
        device: the tokenizer's; None for that of the clips.

    Raises:
        ValueError: if there is no clip, or one has a side of less than 11 pixels.
    """
    if len(clips) == 0:
        raise ValueError("a tokenizer is measured on at least one clip, got none")
    histogram = torch.zeros(tokenizer.vocab_size, dtype=torch.long)
    squared_error, similarity, changed, compared = 0.0, 0.0, 0, 0
    for part in clips.split(batch_size):
        batch = as_clip(part.to(device or clips.device))
        ids = tokenizer.encode(batch)
        histogram += torch.bincount(ids.flatten().cpu(), minlength=tokenizer.vocab_size)
        made = of_length(tokenizer.decode(ids), batch.shape[2])
        squared_error += float((made - batch).square().sum())
        similarity += float(ssim(made, batch)) * len(batch)
        first, second = (tokenizer.encode(_noisy_still(batch, noise, generator)) for _ in range(2))
        changed += int((first != second).sum())
        compared += first.numel()
    return TokenizerMeasure(
        psnr=float(psnr(torch.tensor(squared_error / clips.numel()))),
        ssim=similarity / len(clips),
        perplexity=float(perplexity(histogram)),
        used_codes=int((histogram > 0).sum()),
        vocab_size=tokenizer.vocab_size,
        flicker=changed / compared,
    )


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; infinite where nothing is lost."""
    return -10 * mean_squared_error.log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of clips (Wang et al. 2004, Eq. 13), the mean over clips, frames and places.

    Of the brightness, 0.299 red + 0.587 green + 0.114 blue, under a Gaussian window of 11x11 pixels, where it
    lies wholly inside the frame, as the authors have it.

    Args:
        a, b: [B, 3, T, H, W] in [0, 1].

    Raises:
        ValueError: if a side is shorter than the window.
    """
    if min(a.shape[3:]) < _WINDOW:
        raise ValueError(f"SSIM looks at {_WINDOW}x{_WINDOW} pixels, and frames are {tuple(a.shape[3:])}")
    x, y = (_brightness(clip) for clip in (a, b))
    means = _windowed(torch.cat([x, y, x * x, y * y, x * y], dim=1))
    mean_x, mean_y, xx, yy, xy = means.split(1, dim=1)
    both, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    covariance, variances = xy - both, xx + yy - squares
    map_ = (2 * both + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variances + _C2))
    return map_.mean()


def _brightness(clip: Tensor) -> Tensor:
    """[B * T, 1, H, W] of [B, 3, T, H, W]; weights of ITU-R BT.601. In double: variances are differences."""
    weights = clip.new_tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return rearrange(torch.einsum("bcthw,c->bthw", clip.double(), weights), "b t h w -> (b t) 1 h w")


def _windowed(maps: Tensor) -> Tensor:
    """Gaussian means of maps [N, C, H, W] around every place that is five pixels from the border."""
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    line = (-offsets.square() / (2 * _SIGMA**2)).exp()
    line = (line / line.sum()).expand(maps.shape[1], 1, _WINDOW)
    maps = F.conv2d(maps, line[..., None], groups=maps.shape[1])
    return F.conv2d(maps, line[:, :, None], groups=maps.shape[1])


def perplexity(histogram: Tensor) -> Tensor:
    """exp of the entropy of counts [V]: V if all are equal, 1 if one code takes all."""
    shares = histogram.double() / histogram.sum()
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def ids_per_second(tokenizers: Sequence[Tokenizer], clip: Tensor, *, rounds: int = 3) -> list[float]:
    """How many ids each tokenizer makes of a batch in a second.

    They take turns, and the fastest turn of each counts, so that what else the machine does in the meantime
    falls on all alike.

    Args:
        clip: float32 [B, 3, T, H, W] in [0, 1], on the tokenizers' device.
    """
    counts = [tokenizer.encode(clip).numel() for tokenizer in tokenizers]  # and all are warm
    fastest = [math.inf] * len(tokenizers)
    for _ in range(rounds):
        for number, tokenizer in enumerate(tokenizers):
            fastest[number] = min(fastest[number], _seconds(tokenizer, clip))
    return [count / seconds for count, seconds in zip(counts, fastest, strict=True)]


def _seconds(tokenizer: Tokenizer, clip: Tensor) -> float:
    on_gpu = clip.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(clip.device)
    start = time.perf_counter()
    tokenizer.encode(clip)
    if on_gpu:
        torch.cuda.synchronize(clip.device)
    return time.perf_counter() - start


def _noisy_still(clips: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The first frame of each clip for the clip's length, with fresh noise in every pixel."""
    still = repeat(clips[:, :, 0], "b c h w -> b c t h w", t=clips.shape[2])
    drawn = torch.randn(still.shape, generator=generator, device=generator.device).to(still.device)
    return (still + noise * drawn).clamp(0, 1)
