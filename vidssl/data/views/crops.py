"""Which part of which frames a view shows. Pixels stay uint8; one box serves all frames of a view.

Resizing is bicubic and antialiased unless a key says otherwise: without antialiasing, shrinking a large video
flickers. The published codes resize without (``Interpolation``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vidssl.data.views.checks import check_counts, check_number, check_range
from vidssl.data.views.times import draw, draw_real
from vidssl.interfaces import DataSource

ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10

Draw = Literal["usual", "svt_published"]
Interpolation = Literal["bicubic_antialiased", "bicubic", "bilinear"]
Fit = Literal["crop", "pad", "stretch"]
Size = int | tuple[int, int]  # side of a square, or height and width
Views = dict[str, tuple[Tensor, ...]]
Shapes = Mapping[str, tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True)
class Box:
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class RandomResizedCrop:
    """How a view is cut at random: a box of random area and shape, resized to a square.

    Attributes:
        size: side of the square in pixels.
        area: smallest and largest fraction of the frame; None squeezes the whole frame into the square.
        aspect: smallest and largest width / height, drawn uniformly on a logarithmic scale.
        per_frame: a box for each frame instead of one for all: no longer one view, an ablation.
        interpolation: of the resizing, see ``resized``.
        draw: "usual" draws boxes as torchvision does, "svt_published" as SVT's code does.
    """

    size: int
    area: tuple[float, float] | None
    aspect: tuple[float, float] = ASPECT
    per_frame: bool = False
    interpolation: Interpolation = "bicubic_antialiased"
    draw: Draw = "usual"

    def __post_init__(self) -> None:
        check_counts(self, "size")
        check_range("aspect", self.aspect)
        if self.area is not None:
            check_range("area", self.area, highest=1.0)

    def __call__(
        self, frames: Tensor, generator: torch.Generator, rows: Sequence[int] | None = None
    ) -> Tensor:
        """uint8 [3, T, size, size] of frames [T, 3, H, W], or of ``rows`` of them, repeats kept."""
        rows = range(len(frames)) if rows is None else rows
        if self.per_frame:
            single = [self._cut(frames, [row], generator) for row in rows]
            return torch.cat(single, dim=1)
        return self._cut(frames, rows, generator)

    def _cut(self, frames: Tensor, rows: Sequence[int], generator: torch.Generator) -> Tensor:
        box = self._box(frames, generator)
        # the box first: rows are then copied no larger than they are shown
        inside = frames[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        return as_view(resized(picked(inside, rows), self.size, self.size, self.interpolation))

    def _box(self, frames: Tensor, generator: torch.Generator) -> Box:
        height, width = frames.shape[2:]
        if self.area is None:
            return Box(0, 0, height, width)
        return random_box(height, width, self.area, self.aspect, generator, self.draw)


class FramesOfClips:
    """The frames that several clips of one video need, read once.

    Args:
        clips: frame numbers of each clip.

    Attributes:
        pixels: uint8 [number of frames, 3, H, W].
    """

    def __init__(self, source: DataSource, index: int, clips: Sequence[Sequence[int]]) -> None:
        union = sorted({frame for clip in clips for frame in clip})
        self.pixels = source.read(index, union)
        self._row = {frame: row for row, frame in enumerate(union)}

    def rows(self, clip: Sequence[int]) -> list[int]:
        """Where the frames of a clip lie in ``pixels``."""
        return [self._row[frame] for frame in clip]

    def only(self, clips: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[int]]]:
        """The frames of some of the clips, and where those of each lie among them."""
        union = sorted({frame for clip in clips for frame in clip})
        row = {frame: place for place, frame in enumerate(union)}
        pixels = self.pixels if len(union) == len(self._row) else picked(self.pixels, self.rows(union))
        return pixels, [[row[frame] for frame in clip] for clip in clips]


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
    drawn: Draw = "usual",
) -> Box:
    """A box of random area and shape, inside these ranges; the middle if none of ten attempts fits.

    Args:
        drawn: "usual" takes the first attempt that fits; "svt_published", as SVT's code does, the last
            attempt's size at the last place that fitted, so a few boxes are cut off at the border, and lie
            outside the ranges.
    """
    place = None
    box_height = box_width = 1
    for _ in range(_ATTEMPTS):
        box_height, box_width = _random_size(height, width, area, aspect, generator)
        if box_height <= height and box_width <= width:
            place = draw(generator, 0, height - box_height), draw(generator, 0, width - box_width)
            if drawn == "usual":
                break
    if place is None:
        return _middle_box(height, width, aspect)
    top, left = place
    return Box(top, left, min(box_height, height - top), min(box_width, width - left))


def _random_size(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> tuple[int, int]:
    pixels = height * width * draw_real(generator, *area)
    shape = math.exp(draw_real(generator, math.log(aspect[0]), math.log(aspect[1])))
    return max(1, round(math.sqrt(pixels / shape))), max(1, round(math.sqrt(pixels * shape)))


def _middle_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    """The largest box in the middle whose shape is in the range."""
    box_height, box_width = height, width
    if width / height < aspect[0]:
        box_height = max(1, min(height, round(width / aspect[0])))
    elif width / height > aspect[1]:
        box_width = max(1, min(width, round(height * aspect[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def crop(frames: Tensor, top: int, left: int, size: Size, rows: Sequence[int] | None = None) -> Tensor:
    """Frames [T, 3, H, W], or ``rows`` of them -> [3, T, height, width], nothing resized."""
    tall, wide = sides(size)
    part = frames[:, :, top : top + tall, left : left + wide]
    return as_view(part if rows is None else picked(part, rows))


def as_view(frames: Tensor) -> Tensor:
    """Frames [T, 3, H, W] -> a view [3, T, H, W], in memory that holds nothing else.

    Colours that lie innermost stay there: taking them apart costs a worker a third of what resizing does, a
    device nothing, on the way to floats.
    """
    if frames.stride(1) != 1:
        return frames.transpose(0, 1).contiguous()
    return frames.permute(0, 2, 3, 1).contiguous().permute(3, 0, 1, 2)


def picked(frames: Tensor, rows: Sequence[int]) -> Tensor:
    """Some of the frames [T, 3, H, W], repeats kept, in memory as decoders give them: colours innermost.

    Indexing with a list would copy byte by byte, five times slower; and resizing is twice as fast so.
    """
    colours_last = frames.permute(0, 2, 3, 1)
    return torch.stack([colours_last[row] for row in rows]).permute(0, 3, 1, 2)


def resized(frames: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """Frames [T, 3, H, W], uint8 or float, at another size; a uint8 result is rounded and cut to 0..255.

    "bicubic" and "bilinear" do not smooth when shrinking. The published codes of BEVT and VideoMAE (OpenCV's
    INTER_CUBIC and INTER_LINEAR, equal to one of 255 levels), SVT and TimeSformer (PyTorch) resize so.
    """
    from torchvision.transforms.v2 import functional as resizing  # here: importing takes half a second

    name = "BILINEAR" if interpolation == "bilinear" else "BICUBIC"
    mode, antialias = resizing.InterpolationMode[name], interpolation == "bicubic_antialiased"
    if interpolation != "bicubic" or frames.is_floating_point():
        return resizing.resize(frames, [height, width], interpolation=mode, antialias=antialias)
    # as floats, which takes longer: between its two passes PyTorch's uint8 path cuts off what overshoots, and
    # ends up to 33 levels away on noise
    large = resizing.resize(frames.float(), [height, width], interpolation=mode, antialias=False)
    return large.round_().clamp_(0, 255).to(frames.dtype)


def resize_short_side(
    frames: Tensor, length: int, interpolation: Interpolation = "bicubic_antialiased"
) -> Tensor:
    """Frames [T, 3, H, W] whose short side has this length, as they are if it already has it."""
    height, width = frames.shape[2:]
    short = min(height, width)
    if short == length:
        return frames
    tall, wide = (int(side * length / short + 0.5) for side in (height, width))
    return resized(frames, tall, wide, interpolation)


def svt_resize_short_side(frames: Tensor, length: int) -> Tensor:
    """The same as SVT's published code tests: bilinear, not antialiased, the long side rounded down."""
    height, width = frames.shape[2:]
    short = min(height, width)
    if short == length:
        return frames
    return resized(frames, height * length // short, width * length // short, "bilinear")


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a view."""
    return (size, size) if isinstance(size, int) else size


def check_fit(fit: Fit, size: Size, short_side: tuple[int, int] | None = None, num_crops: int = 1) -> None:
    """Raises ValueError where a whole frame is asked for, and parts of it too, or for sides no view has."""
    check_number("size", size)
    if fit != "crop" and (short_side is not None or num_crops > 1):
        raise ValueError(f"fit: {fit} shows whole frames, and short_side and num_crops are for parts of them")


def whole(frames: Tensor, size: Size, fit: Fit, interpolation: Interpolation) -> Tensor:
    """[T, 3, H, W] -> [T, 3, height, width] with all of each frame: "stretch", or black beside it ("pad")."""
    (tall, wide), (height, width) = sides(size), frames.shape[2:]
    if fit == "stretch":
        return resized(frames, tall, wide, interpolation)
    scale = min(tall / height, wide / width)
    inner = resized(frames, max(1, round(height * scale)), max(1, round(width * scale)), interpolation)
    top, left = (tall - inner.shape[2]) // 2, (wide - inner.shape[3]) // 2
    return F.pad(inner, (left, wide - inner.shape[3] - left, top, tall - inner.shape[2] - top))


def covering(frames: Tensor, size: Size, length: int, interpolation: Interpolation) -> Tensor:
    """[T, 3, H, W] resized so that it covers a view whose short side has become ``length``.

    Of a square view that is the frames' own short side.
    """
    tall, wide = sides(size)
    if tall == wide:
        return resize_short_side(frames, length, interpolation)
    height, width = frames.shape[2:]
    scale = max(tall / height, wide / width) * length / min(tall, wide)
    new = max(tall, round(height * scale)), max(wide, round(width * scale))
    return frames if new == (height, width) else resized(frames, *new, interpolation)


def random_view(
    frames: Tensor,
    size: Size,
    short_side: tuple[int, int] | None,
    generator: torch.Generator,
    interpolation: Interpolation = "bicubic_antialiased",
    fit: Fit = "crop",
) -> Tensor:
    """[T, 3, H, W] -> [3, T, height, width]: short side to a random length of a range, then a random part.

    Frames that already have the wanted size are taken as they are; with another ``fit`` nothing is drawn.
    """
    tall, wide = sides(size)
    if fit != "crop":
        return as_view(whole(frames, size, fit, interpolation))
    if frames.shape[2:] != (tall, wide):
        length = draw(generator, *short_side_range(short_side, min(tall, wide)))
        frames = covering(frames, size, length, interpolation)
    # the last offset is drawn too; BEVT's published random crop never reaches it
    top = draw(generator, 0, frames.shape[2] - tall)
    left = draw(generator, 0, frames.shape[3] - wide)
    return crop(frames, top, left, size)


def short_side_range(short_side: tuple[int, int] | None, size: int) -> tuple[int, int]:
    """The range given, or the one that BEVT has for 224 pixels, 256 to 320, scaled to ``size``.

    Raises:
        ValueError: if a square of ``size`` does not fit, or the range falls.
    """
    if short_side is None:
        return round(size * 256 / 224), round(size * 320 / 224)
    if not size <= short_side[0] <= short_side[1]:
        raise ValueError(
            f"short_side must be two lengths, rising and not below size ({size}), got {short_side}"
        )
    return short_side


def crop_boxes(height: int, width: int, size: Size, num_crops: int) -> list[tuple[int, int]]:
    """(top, left) of 1 crop, the middle, or 3: the near end, the far end and the middle of the long side."""
    tall, wide = sides(size)
    down, right = (height - tall) // 2, (width - wide) // 2
    if num_crops == 1:
        return [(down, right)]
    # twice the rounded middle, not the very edge: on odd lengths BEVT's published crops leave out a pixel
    if height - tall > width - wide:
        return [(0, right), (2 * down, right), (down, right)]
    return [(down, 0), (down, 2 * right), (down, right)]


def svt_crop_boxes(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """The same as SVT's published code has them: near end, middle, far end, the middle rounded up."""
    down, right = -(-(height - size) // 2), -(-(width - size) // 2)
    if num_crops == 1:
        return [(down, right)]
    if height > width:
        return [(0, right), (down, right), (height - size, right)]
    return [(down, 0), (down, right), (down, width - size)]
