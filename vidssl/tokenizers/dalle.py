"""The discrete VAE of DALL-E (Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation")."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.speed import full_precision
from vidssl.interfaces import Tokenizer, check_clip
from vidssl.tokenizers.frame_networks import ResizeKernel, as_weights, halve, in_chunks

_EPSILON = 0.1  # of the logit-Laplace likelihood: pixels are squeezed into [0.1, 0.9] (App. A.3)
_NUM_GROUPS = 4  # of blocks; between them the sides are halved: one id for 8x8 pixels

# Pixels that go through the network together; at the published width each takes a kilobyte in every
# activation of its first layers. Four frames of up to 128x128 on a CPU.
_CPU_PIXELS, _GPU_PIXELS = 2**16, 2**20
_CPU_FRAMES, _GPU_FRAMES = 4, 256

WeightPrecision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[WeightPrecision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class DALLE(Tokenizer):
    """The DALL-E dVAE on single frames: 8192 codes, one for every 8x8 pixels of its input.

    What VIMPAC and BEVT predict: VIMPAC of frames at their own size (stride 8), BEVT at half of it
    (``input_scale: 0.5``, stride 16), shrunk by a kernel without a low-pass (``resize_kernel``, see
    ``vidssl.tokenizers.frame_networks``). It normalises pixels for itself and is never trained here.

    Ids do not depend on autocast: the run's precision is the run's affair, and ``precision`` is the
    tokenizer's. The last convolution and the choice of the code are in fp32 always, as in the release, whose
    other convolutions are in fp16 on a GPU. Lower precision changes the ids whose first two logits nearly
    tie: on a toy encoder with random weights 5 % in bf16 and 1 % in fp16.

    Args:
        vocab_size: V, number of codes.
        width: channels of the encoder's first group of blocks, and of the decoder's last (``n_hid``); each
            group has twice the channels of the one on twice its resolution.
        num_blocks: residual blocks a group (``n_blk_per_group``).
        decoder_width: channels between the codes and the decoder's first block (``n_init``).
        with_decoder: whether the weights hold the decoder too. Only pictures need it.
        input_scale: 1.0, or 0.5 to halve frames first.
        resize_kernel: how they are halved; required with 0.5, and of no use otherwise.
        precision: of all convolutions of the encoder but the last.

    Raises:
        ValueError: if an argument is out of its range.
    """

    toy: ClassVar = {"vocab_size": 16, "width": 8, "num_blocks": 1, "decoder_width": 8}

    def __init__(
        self,
        *,
        vocab_size: int = 8192,
        width: int = 256,
        num_blocks: int = 2,
        decoder_width: int = 128,
        with_decoder: bool = True,
        input_scale: float = 1.0,
        resize_kernel: ResizeKernel | None = None,
        precision: WeightPrecision = "fp32",
    ) -> None:
        super().__init__()
        if min(vocab_size, num_blocks, decoder_width) < 1 or width < 4 or width % 4:
            raise ValueError(
                "vocab_size, num_blocks and decoder_width must be at least 1 and width a multiple of 4, "
                f"got {vocab_size}, {num_blocks}, {decoder_width} and {width}"
            )
        if input_scale not in (0.5, 1.0):
            raise ValueError(f"input_scale must be 1.0 or 0.5, got {input_scale}")
        if (input_scale == 1.0) != (resize_kernel is None):
            raise ValueError(
                "resize_kernel says how frames are halved: give it with input_scale 0.5 and only then, "
                f"got {resize_kernel} with {input_scale}"
            )
        if precision not in _DTYPES:
            raise ValueError(f"precision must be one of {', '.join(_DTYPES)}, got '{precision}'")
        self.vocab_size = vocab_size
        self.resize_kernel = resize_kernel
        self.precision = precision
        stride = 2 ** (_NUM_GROUPS - 1) * (1 if resize_kernel is None else 2)
        self.strides = (1, stride, stride)
        self.encoder = DVAEEncoder(width, num_blocks, vocab_size)
        self.decoder = DVAEDecoder(vocab_size, decoder_width, width, num_blocks) if with_decoder else None

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        check_clip(clip, self)
        self.grid(*clip.shape[2:])  # refuses sizes that leave a rest
        frames = rearrange(clip, "b c t h w -> (b t) c h w")
        ids = in_chunks(
            self._encode_frames, frames, self._frames_at_once(clip.shape[3], clip.shape[4], clip.device)
        )
        return rearrange(ids, "(b t) h w -> b t h w", b=len(clip))

    def _frames_at_once(self, height: int, width: int, device: torch.device) -> int:
        """How many frames go through together: a matter of their size alone, so that ids are too."""
        pixels = height * width if self.resize_kernel is None else height * width // 4
        on_cpu = device.type == "cpu"
        most, count = (_CPU_PIXELS, _CPU_FRAMES) if on_cpu else (_GPU_PIXELS, _GPU_FRAMES)
        while count > 1 and count * pixels > most:
            count //= 2
        return count

    def _encode_frames(self, frames: Tensor) -> Tensor:
        return self.logits(frames).argmax(dim=1)

    def logits(self, frames: Tensor) -> Tensor:
        """How well each code fits, float32 [N, V, h, w], for frames [N, 3, H, W] in [0, 1]."""
        frames = full_precision(frames)
        if self.resize_kernel is not None:
            frames = halve(frames, self.resize_kernel)
        frames = as_weights(frames, self.encoder)
        kind, dtype = frames.device.type, _DTYPES[self.precision]
        with torch.autocast(kind, dtype=dtype, enabled=dtype != torch.float32):
            features = self.encoder.features(map_pixels(frames))
        with torch.autocast(kind, enabled=False):
            return self.encoder.output(full_precision(features))

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [0, 1]; with ``input_scale`` 0.5 enlarged to the clip's size, bilinearly.

        Raises:
            ValueError: if this tokenizer was made without a decoder.
        """
        if self.decoder is None:
            raise ValueError(
                "this DALL-E tokenizer has no decoder (with_decoder: false): its ids cannot be drawn. "
                "'vidssl convert encoder.pkl decoder.pkl OUT.safetensors' makes weights that have one"
            )
        codes = rearrange(ids, "b t h w -> (b t) h w")
        height, width = (side * self.strides[1] for side in ids.shape[2:])
        with torch.autocast(ids.device.type, enabled=False):
            size = self._frames_at_once(height, width, ids.device)
            frames = torch.cat([self._decode_frames(chunk) for chunk in codes.split(size)])
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(ids))

    def _decode_frames(self, ids: Tensor) -> Tensor:
        assert self.decoder is not None
        codes = as_weights(F.one_hot(ids, self.vocab_size).permute(0, 3, 1, 2), self.decoder)
        frames = unmap_pixels(self.decoder(codes)[:, :3].sigmoid())  # the other channels are scales
        if self.resize_kernel is None:
            return frames
        return F.interpolate(frames, scale_factor=2.0, mode="bilinear", align_corners=False)


def map_pixels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] squeezed into [0.1, 0.9], where a logit is finite (App. A.3)."""
    return (1 - 2 * _EPSILON) * pixels + _EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """The inverse of ``map_pixels``, cut to [0, 1]."""
    return ((mapped - _EPSILON) / (1 - 2 * _EPSILON)).clamp(0, 1)


class DVAEEncoder(nn.Module):
    """Frames to logits: a 7x7 convolution, four groups of blocks, pooled in between, a 1x1 convolution.

    Args:
        width: channels of the first group; 2, 4 and 8 times that in the others.
        num_blocks: a group.
        vocab_size: V.
    """

    def __init__(self, width: int, num_blocks: int, vocab_size: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, width, 7, padding=3)
        self.groups = _groups(width, [width * 2**g for g in range(_NUM_GROUPS)], num_blocks, (3, 3, 3, 1))
        self.output = nn.Conv2d(width * 2 ** (_NUM_GROUPS - 1), vocab_size, 1)

    def features(self, x: Tensor) -> Tensor:
        """Input of the last convolution, [N, 8 * width, H / 8, W / 8], of mapped pixels [N, 3, H, W]."""
        x = self.input(x)
        for number, group in enumerate(self.groups):
            x = group(x if number == 0 else F.max_pool2d(x, 2))
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, V, H / 8, W / 8] of mapped pixels [N, 3, H, W]."""
        return self.output(self.features(x))


class DVAEDecoder(nn.Module):
    """One-hot codes to pixels, the encoder backwards: doubled by repeating each cell between the groups.

    Args:
        vocab_size: V.
        input_width: channels after the first convolution.
        width: channels of the last group; 2, 4 and 8 times that in those before.
        num_blocks: a group.
    """

    def __init__(self, vocab_size: int, input_width: int, width: int, num_blocks: int) -> None:
        super().__init__()
        widths = [width * 2**g for g in reversed(range(_NUM_GROUPS))]
        self.input = nn.Conv2d(vocab_size, input_width, 1)
        self.groups = _groups(input_width, widths, num_blocks, (1, 3, 3, 3))
        self.output = nn.Conv2d(width, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Means and log-scales of the logit-Laplace, [N, 6, H, W], of codes [N, V, H / 8, W / 8]."""
        x = self.input(x)
        for number, group in enumerate(self.groups):
            x = group(x if number == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.output(F.relu(x))


class _Block(nn.Module):
    """Four convolutions beside the input, turned down so that many blocks start as gently as one."""

    def __init__(self, from_width: int, width: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        widths = [from_width, *[width // 4] * (len(kernels) - 1), width]
        self.path = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)
            for i, kernel in enumerate(kernels)
        )
        self.shortcut = nn.Identity() if from_width == width else nn.Conv2d(from_width, width, 1)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.path:
            y = convolution(F.relu(y))
        return self.shortcut(x) + self.gain * y


def _groups(from_width: int, widths: list[int], num_blocks: int, kernels: tuple[int, ...]) -> nn.ModuleList:
    gain = 1 / (len(widths) * num_blocks) ** 2
    groups = []
    for width in widths:
        entries = [from_width, *[width] * (num_blocks - 1)]
        groups.append(nn.Sequential(*(_Block(entry, width, kernels, gain) for entry in entries)))
        from_width = width
    return nn.ModuleList(groups)
