"""Frames and tubelets through a tokenizer: chunk by chunk, and the networks of trainable tokenizers."""

from collections.abc import Callable

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
