"""Words for texture and motion: codes of the space-time structure tensor (Bigun and Granlund 1987)."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vidssl.interfaces import Reconstruction, check_clip
from vidssl.tokenizers.frame_networks import of_length
from vidssl.tokenizers.vqvae import CodebookTokenizer, nearest_code

NUMBERS = 6  # of a cell, see ``describe``
_SPREADS = (0.43, 0.42, 0.45, 0.49, 0.44, 0.40)  # of them on moving waves: divided by these they weigh alike
_LEAST = 1e-4  # energy of gradients, of pixels in [0, 1], below which a cell is flat
_CONTRAST = 0.3  # of the waves that codes are drawn as
_FASTEST = 4.0  # of the ratio of temporal to spatial energy


class StructureTensor(CodebookTokenizer):
    """Ids that say which way a texture lies, how fine it is and how it moves, and not where its stripes are.

    Brightness gradients in space and time are multiplied in pairs and averaged over a cell and, with binomial
    weights, its neighbours: the structure tensor, from which orientation, scale and velocity follow. Being
    energies, they do not depend on phase, contrast or colour. The ids are those of the nearest of
    ``vocab_size`` codes, k-means by moving averages. Masked prediction then has to find out what moves where,
    as HuBERT's first targets are clusters of MFCCs (Hsu et al. 2021) and MaskFeat's are histograms of
    gradients (Wei et al. 2022).

    An image is a clip that stands still. A code is drawn as the wave it stands for, in the mean colour of the
    cells that had it: what a texture's stripes are and do, not where they are.

    Args:
        vocab_size: V, number of codes.
        stride: side of the square of pixels that one id stands for.
        temporal_stride: frames that one id stands for.
        ema_decay: share of the old average that a step keeps.
        revive_below: a code is dead when its average count falls below this fraction of an even share; 0
            keeps the dead dead.

    Raises:
        ValueError: if an argument is out of its range.
    """

    toy: ClassVar = {"vocab_size": 16, "temporal_stride": 1}

    def __init__(
        self,
        *,
        vocab_size: int = 64,
        stride: Literal[8, 16] = 8,
        temporal_stride: Literal[1, 2, 4] = 2,
        ema_decay: float = 0.95,
        revive_below: float = 0.03,
    ) -> None:
        super().__init__()
        if stride not in (8, 16) or temporal_stride not in (1, 2, 4) or vocab_size < 1:
            raise ValueError(
                "stride must be 8 or 16, temporal_stride 1, 2 or 4 and vocab_size at least 1, got "
                f"{stride}, {temporal_stride} and {vocab_size}"
            )
        self.vocab_size = vocab_size
        self.strides = (temporal_stride, stride, stride)
        self.colours = nn.Parameter(torch.full((vocab_size, 3), 0.5))
        self.spreads: Tensor
        self.register_buffer("spreads", torch.tensor(_SPREADS), persistent=False)
        self.add_codebook(NUMBERS, ema_decay=ema_decay, revive_below=revive_below)

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        return self._nearest(self._described(clip))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels [B, 3, t * temporal_stride, H, W] in [0, 1]: an image too comes back as a whole tubelet."""
        with torch.autocast(ids.device.type, enabled=False):
            waves = _waves(self.codebook[ids] * self.spreads, self.strides)
            return (_spread(self.colours[ids], self.strides) + waves).clamp(0, 1)

    def reconstruct(self, clip: Tensor) -> Reconstruction:
        """The mean colour of each cell's code, which learns; the regulariser is how far cells lie from it.

        In training the first frames join the statistics, standing still, so that images have their codes too.
        """
        with torch.no_grad():
            numbers = self._described(clip)
            ids = self._nearest(numbers)
            if self.training:
                still = self._described(clip[:, :, :1])
                vectors = torch.cat((numbers.flatten(0, 3), still.flatten(0, 3)))
                self.collect(vectors, torch.cat((ids.flatten(), self._nearest(still).flatten())))
            apart = F.mse_loss(numbers, self.codebook[ids])
        return Reconstruction(of_length(_spread(self.colours[ids], self.strides), clip.shape[2]), ids, apart)

    def _described(self, clip: Tensor) -> Tensor:
        check_clip(clip, self)
        self.grid(*clip.shape[2:])  # refuses sizes that leave a rest
        with torch.autocast(clip.device.type, enabled=False):  # targets do not depend on the run's precision
            return describe(clip.to(self.codebook.dtype), self.strides) / self.spreads

    def _nearest(self, numbers: Tensor) -> Tensor:
        vectors = rearrange(numbers, "b t h w d -> (b t) (h w) d")
        with torch.autocast(vectors.device.type, enabled=False):
            return nearest_code(vectors, self.codebook).view(numbers.shape[:-1])


def describe(clip: Tensor, cell: tuple[int, int, int]) -> Tensor:
    """Six numbers of each cell of clips [B, 3, T, H, W] in [0, 1]: float [B, t, h, w, 6].

    With E the energy of the spatial gradients: (xx - yy) / E and 2 xy / E, orientation by its double angle;
    log E / variance, the mean frequency; 2 xt / E and 2 yt / E, the motion across the stripes; sqrt(tt / E),
    its speed in pixels a frame.

    Args:
        cell: frames, rows and columns of pixels of a cell. An image is repeated for so many frames.
    """
    grey = clip.mean(dim=1)
    if grey.shape[1] == 1:
        grey = grey.expand(-1, cell[0], -1, -1)
    grey = F.avg_pool2d(_padded(grey, (0, 1, 1)), 3, stride=1)  # noise has the largest gradients
    around = _padded(grey, (1, 1, 1))
    x = (around[:, 1:-1, 1:-1, 2:] - around[:, 1:-1, 1:-1, :-2]) / 2.0
    y = (around[:, 1:-1, 2:, 1:-1] - around[:, 1:-1, :-2, 1:-1]) / 2.0
    t = (around[:, 2:, 1:-1, 1:-1] - around[:, :-2, 1:-1, 1:-1]) / 2.0
    t[:, 0], t[:, -1] = 2.0 * t[:, 0], 2.0 * t[:, -1]  # one-sided there

    def of_cells(x: Tensor) -> Tensor:
        cells = rearrange(x, "b (t p) (h q) (w r) -> b t h w p q r", p=cell[0], q=cell[1], r=cell[2])
        return cells.mean(dim=(-3, -2, -1))

    pairs = ((x, x), (y, y), (t, t), (x, y), (x, t), (y, t), (grey, grey))
    # one after the other: a product is in the cache still when it is averaged
    means = torch.stack([*(of_cells(one * other) for one, other in pairs), of_cells(grey)], dim=1)
    xx, yy, tt, xy, xt, yt, square, mean = _with_neighbours(means).unbind(1)
    energy = xx + yy + _LEAST
    variance = (square - mean * mean).clamp(min=0.0) + _LEAST
    speed = (tt / energy).clamp(max=_FASTEST).sqrt()
    fine = (energy / variance).log()
    return torch.stack(
        ((xx - yy) / energy, 2 * xy / energy, fine, 2 * xt / energy, 2 * yt / energy, speed), -1
    )


def _waves(numbers: Tensor, cell: tuple[int, int, int]) -> Tensor:
    """Waves that ``describe`` would give these numbers [B, t, h, w, 6]: [B, 1, T, H, W] around 0.

    Their phase is counted from the clip's corner, so that those of equal neighbours join.
    """
    even, odd, fine, across_x, across_y, _ = _spread(numbers, cell).unbind(1)  # each [B, T, H, W]
    angle, length = torch.atan2(odd, even) / 2.0, (fine / 2.0).exp()
    x, y = length * angle.cos(), length * angle.sin()  # radians a pixel
    turn = (across_x * x + across_y * y) / 2.0  # radians a frame
    t, row, column = (torch.arange(size, device=numbers.device) for size in even.shape[1:])
    phase = x * column + y * row[:, None] + turn * t[:, None, None]
    return (_CONTRAST * torch.hypot(even, odd) * phase.cos())[:, None]


def _spread(vectors: Tensor, cell: tuple[int, int, int]) -> Tensor:
    """[B, t, h, w, D] as [B, D, T, H, W], each cell alike."""
    return repeat(vectors, "b t h w d -> b d (t p) (h q) (w r)", p=cell[0], q=cell[1], r=cell[2])


def _with_neighbours(means: Tensor) -> Tensor:
    """[B, N, t, h, w] averaged with the cells on both sides along each axis, with weights 1, 2, 1."""
    flat = means.flatten(0, 1)
    for axis in (1, 2, 3):
        pad = tuple(int(axis == other) for other in (1, 2, 3))
        wide, size = _padded(flat, pad), flat.shape[axis]
        before, after = wide.narrow(axis, 0, size), wide.narrow(axis, 2, size)
        flat = (before + 2.0 * flat + after) / 4.0
    return flat.view_as(means)


def _padded(x: Tensor, pad: tuple[int, ...]) -> Tensor:
    """[B, T, H, W] with its edges repeated, ``pad`` of each on both sides of the last three axes."""
    t, h, w = pad
    return F.pad(x[:, None], (w, w, h, h, t, t), mode="replicate")[:, 0]
