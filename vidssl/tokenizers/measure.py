"""What a tokenizer keeps, how much of its codebook it uses, and how steady its ids are."""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from vidssl.interfaces import Tokenizer


@dataclass(frozen=True)
class TokenizerMeasure:
    """How good a tokenizer is on some clips.

    Attributes:
        psnr: of encoding and decoding, in dB, from the mean squared error over all pixels.
        perplexity: exp of the entropy of the ids: how many equally frequent codes would be as varied.
        used_codes: codes that occur at least once.
        vocab_size: codes there are.
        flicker: share of the ids that differ between two noisy copies of one frame.
    """

    psnr: float
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
) -> TokenizerMeasure:
    """Measures a tokenizer on clips.

    Args:
        tokenizer: on the clips' device.
        clips: float32 [N, 3, T, H, W] in [0, 1].
        generator: draws the noise.
        noise: standard deviation of the noise behind ``flicker``; 0.01 is two and a half grey levels,
            about what a video codec leaves.
        batch_size: clips that are encoded together; it changes no result on a CPU.

    Raises:
        ValueError: if there is no clip.
    """
    if len(clips) == 0:
        raise ValueError("a tokenizer is measured on at least one clip, got none")
    histogram = torch.zeros(tokenizer.vocab_size, dtype=torch.long)
    squared_error, changed, compared = 0.0, 0, 0
    for batch in clips.split(batch_size):
        ids = tokenizer.encode(batch)
        histogram += torch.bincount(ids.flatten().cpu(), minlength=tokenizer.vocab_size)
        squared_error += float((tokenizer.decode(ids) - batch).square().sum())
        first, second = (tokenizer.encode(_noisy_still(batch, noise, generator)) for _ in range(2))
        changed += int((first != second).sum())
        compared += first.numel()
    return TokenizerMeasure(
        psnr=float(psnr(torch.tensor(squared_error / clips.numel()))),
        perplexity=float(perplexity(histogram)),
        used_codes=int((histogram > 0).sum()),
        vocab_size=tokenizer.vocab_size,
        flicker=changed / compared,
    )


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; infinite where nothing is lost."""
    return -10 * mean_squared_error.log10()


def perplexity(histogram: Tensor) -> Tensor:
    """exp of the entropy of counts [V]: V if all are equal, 1 if one code takes all."""
    shares = histogram.double() / histogram.sum()
    return torch.special.entr(shares).sum().exp()


def _noisy_still(clips: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The first frame of each clip for the clip's length, with fresh noise in every pixel."""
    still = repeat(clips[:, :, 0], "b c h w -> b c t h w", t=clips.shape[2])
    drawn = torch.randn(still.shape, generator=generator, device=generator.device).to(still.device)
    return (still + noise * drawn).clamp(0, 1)
