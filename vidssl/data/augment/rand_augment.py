"""Augmentation for finetuning: flip, RandAugment, random erasing; one draw for all frames of a clip."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor

from vidssl.data.augment.batch import change_rows, numbers_of_rows
from vidssl.data.views.checks import check_chances, check_range
from vidssl.interfaces import Batch

FULL_MAGNITUDE = 30.0
_ATTEMPTS = 10
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_FLIP, _ERASE, _BOX = 0, 1, 2  # columns of the numbers drawn; a box takes four for each attempt
_OPS = _BOX + 4 * _ATTEMPTS  # an operation takes two


@dataclass(frozen=True)
class Operation:
    """One of RandAugment's.

    Attributes:
        change: (frames [N, 3, H, W], strength, fill) -> frames.
        strength: (magnitude as a fraction of the largest, width, height) -> strength.
        signed: the strength is negative half of the time.
    """

    change: Callable[[Tensor, float, float], Tensor]
    strength: Callable[[float, int, int], float]
    signed: bool


def _images() -> ModuleType:
    """torchvision's operations; imported here, since importing takes a second."""
    from torchvision.transforms.v2 import functional

    return functional


def _moved(frames: Tensor, across: float, down: float, fill: float) -> Tensor:
    return _affine(frames, fill, translate=(int(across), int(down)))


def _sheared(frames: Tensor, across: float, down: float, fill: float) -> Tensor:
    shear = (math.degrees(math.atan(across)), math.degrees(math.atan(down)))
    return _affine(frames, fill, shear=shear, center=[0.0, 0.0])


def _turned(frames: Tensor, degrees: float, fill: float) -> Tensor:
    return _affine(frames, fill, angle=-degrees)


def _affine(
    frames: Tensor,
    fill: float,
    *,
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    return _images().affine(
        frames,
        angle=angle,
        translate=list(translate),
        scale=1.0,
        shear=list(shear),
        interpolation=_images().InterpolationMode.BILINEAR,
        fill=[fill] * 3,
        center=center,
    )


# torchvision's set and strengths; no inversion
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda f, s, fill: f, lambda m, w, h: 0.0, False),
    "shear_x": Operation(lambda f, s, fill: _sheared(f, s, 0.0, fill), lambda m, w, h: 0.3 * m, True),
    "shear_y": Operation(lambda f, s, fill: _sheared(f, 0.0, s, fill), lambda m, w, h: 0.3 * m, True),
    "translate_x": Operation(
        lambda f, s, fill: _moved(f, s, 0.0, fill), lambda m, w, h: 150 / 331 * w * m, True
    ),
    "translate_y": Operation(
        lambda f, s, fill: _moved(f, 0.0, s, fill), lambda m, w, h: 150 / 331 * h * m, True
    ),
    "rotate": Operation(_turned, lambda m, w, h: 30 * m, True),
    "brightness": Operation(
        lambda f, s, fill: _images().adjust_brightness(f, 1 + s), lambda m, w, h: 0.9 * m, True
    ),
    "colour": Operation(
        lambda f, s, fill: _images().adjust_saturation(f, 1 + s), lambda m, w, h: 0.9 * m, True
    ),
    "contrast": Operation(
        lambda f, s, fill: _images().adjust_contrast(f, 1 + s), lambda m, w, h: 0.9 * m, True
    ),
    "sharpness": Operation(
        lambda f, s, fill: _images().adjust_sharpness(f, 1 + s), lambda m, w, h: 0.9 * m, True
    ),
    "posterise": Operation(
        lambda f, s, fill: _images().posterize(f, int(s)), lambda m, w, h: 8 - round(4 * m), False
    ),
    "solarise": Operation(lambda f, s, fill: _images().solarize(f, s), lambda m, w, h: 1 - m, False),
    "auto_contrast": Operation(lambda f, s, fill: _images().autocontrast(f), lambda m, w, h: 0.0, False),
    "equalise": Operation(lambda f, s, fill: _images().equalize(f), lambda m, w, h: 0.0, False),
}


@dataclass(kw_only=True, eq=False)
class FinetuneAugment:
    """Flip, RandAugment and random erasing for finetuning, one draw for all frames of a clip.

    RandAugment changes a clip by ``num_ops`` operations, each drawn from the same fourteen. BEVT on
    Something-Something: ``flip: 0.5``, ``num_ops: 4``, ``magnitude: 7``, ``erase: 0.25`` (its published code
    crops first, and draws four different ones of another library's operations); on Kinetics only the flip.

    Args:
        flip: chance of a mirror image. 0 where classes have a direction.
        num_ops: operations on each clip; 0 for none.
        magnitude: of all operations, 0 to 30; timm's scale ends at 10 instead.
        fill: grey of what moving, turning and shearing uncover.
        erase: chance that a box is erased: filled with ImageNet's mean colour, which is 0 once it is
            normalised, as timm's "const" mode and BEVT's published code have it.
        erase_area: smallest and largest fraction of the frame that the box covers.
        erase_aspect: smallest and largest height / width of the box.
    """

    flip: float = 0.5
    num_ops: int = 4
    magnitude: float = 7.0
    fill: float = 0.5
    erase: float = 0.25
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        check_chances({"flip": self.flip, "fill": self.fill, "erase": self.erase})
        if self.num_ops < 0:
            raise ValueError(f"num_ops must be at least 0, got {self.num_ops}")
        if not 0.0 <= self.magnitude <= FULL_MAGNITUDE:
            raise ValueError(f"magnitude must lie between 0 and {FULL_MAGNITUDE:g}, got {self.magnitude}")
        check_range("erase_area", self.erase_area, highest=1.0)
        check_range("erase_aspect", self.erase_aspect)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with every slot of every view augmented.

        What a clip becomes depends on the generator's state, its view, its slot and its row in the batch,
        not on the other rows or how many there are.

        Args:
            batch: views float32 [B, 3, T, H, W] in [0, 1] on one device.
            generator: on any device.
        """
        columns = _OPS + 2 * self.num_ops
        views = {}
        for name, slots in batch.views.items():
            numbers = numbers_of_rows(generator, len(slots[0]), len(slots) * columns)
            parts = numbers.split(columns, dim=1)
            views[name] = tuple(self._changed(clip, part) for clip, part in zip(slots, parts, strict=True))
        return replace(batch, views=views)

    def _changed(self, clip: Tensor, numbers: Tensor) -> Tensor:
        mirrored = (numbers[:, _FLIP] < self.flip).to(clip.device)
        clip = torch.where(mirrored.view(-1, 1, 1, 1, 1), clip.flip(-1), clip)
        for turn in range(self.num_ops):
            picks, signs = numbers[:, _OPS + 2 * turn], numbers[:, _OPS + 2 * turn + 1]
            self._operate(clip, (picks * len(OPERATIONS)).long(), signs < 0.5)
        mask = erased(
            clip.shape[3],
            clip.shape[4],
            numbers[:, _BOX:_OPS].unflatten(1, (_ATTEMPTS, 4)),
            self.erase_area,
            self.erase_aspect,
        )
        mask &= (numbers[:, _ERASE] < self.erase).view(-1, 1, 1)
        colour = torch.tensor(_IMAGENET_MEAN, device=clip.device).view(1, 3, 1, 1, 1)
        return torch.where(mask.to(clip.device)[:, None, None], colour, clip)

    def _operate(self, clip: Tensor, picks: Tensor, negative: Tensor) -> None:
        """One operation on each clip, in place; clips that share one are changed together."""
        height, width = clip.shape[3:]
        for number, operation in enumerate(OPERATIONS.values()):
            strength = operation.strength(self.magnitude / FULL_MAGNITUDE, width, height)
            for sign in (1, -1) if operation.signed else (1,):
                chosen = picks == number
                if operation.signed:
                    chosen = chosen & (negative if sign < 0 else ~negative)
                change_rows(clip, chosen, self._on_frames(operation, sign * strength))

    def _on_frames(self, operation: Operation, strength: float) -> Callable[[Tensor], Tensor]:
        def change(clips: Tensor) -> Tensor:
            frames = rearrange(clips, "n c t h w -> (n t) c h w")
            changed = operation.change(frames, strength, self.fill)
            return rearrange(changed, "(n t) c h w -> n c t h w", n=len(clips))

        return change


def erased(
    height: int, width: int, numbers: Tensor, area: tuple[float, float], aspect: tuple[float, float]
) -> Tensor:
    """A random box of each clip: the first of the attempts that is smaller than the frame; none if none is.

    Args:
        numbers: [N, attempts, 4] in [0, 1): area, shape, and place from top and left.
        area: smallest and largest fraction of the frame.
        aspect: smallest and largest height / width, drawn uniformly on a logarithmic scale.

    Returns:
        bool [N, height, width], True inside the box.
    """
    pixels = height * width * (area[0] + (area[1] - area[0]) * numbers[..., 0])
    logs = math.log(aspect[0]), math.log(aspect[1])
    shape = torch.exp(logs[0] + (logs[1] - logs[0]) * numbers[..., 1])
    heights, widths = (pixels * shape).sqrt().round(), (pixels / shape).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.int().argmax(1, keepdim=True)  # of equal values the first
    box_height, box_width = heights.gather(1, first), widths.gather(1, first)
    top = (numbers[..., 2].gather(1, first) * (height - box_height + 1)).floor()
    left = (numbers[..., 3].gather(1, first) * (width - box_width + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + box_height)
    in_columns = (columns >= left) & (columns < left + box_width)
    return in_rows[:, :, None] & in_columns[:, None, :] & fits.any(1).view(-1, 1, 1)
