"""Moving digits: short clips whose every factor is known, made from what scikit-learn ships.

A clip shows one hand-written digit (``load_digits``, 8x8 samples enlarged) over one of two colour
photographs (``load_sample_images``). Either the digit travels over a still photograph (``object``)
or the photograph pans behind a digit that stays put (``pan``). Five labels, drawn independently,
say what there is to learn: ``digit`` and ``texture`` can be read from one frame, ``direction``,
``speed`` and ``profile`` only from several, the first and the last of them only in their order.

The world is a measuring instrument, which sets two rules for the motion:

- A path runs symmetrically about a centre that is uniform over the frame (``object``) or over the
  photograph (``pan``), and every path played backwards is a path of another label, so that no set
  of frames without their order tells a direction from its opposite, or acceleration from braking.
- The digit leaves at one edge and enters at the other (the frame is a torus), so that its position
  in a single frame is uniform whatever its motion.

Train and test share neither a digit sample nor a pixel of a photograph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

LABEL_NAMES = ("digit", "texture", "direction", "speed", "profile")
PROFILES = ("constant", "accelerating", "decelerating")

_SPLITS = ("train", "test")
_DIGIT_FRACTION = 0.7  # of the digit samples that train gets
_PHOTO_FRACTION = 0.58  # of each photograph's width: both parts need some of the flower in its centre
_STROKE = (0.3, 0.7)  # ink of the enlarged digit that becomes clear and opaque: bilinear ink is grey
_EASE = 0.7  # a changing speed runs from (1 - _EASE) to (1 + _EASE) times its mean
_JITTER = 1.0  # pixels by which the digit trembles in pan mode: a digit glued to the lens is no video


@dataclass(kw_only=True, eq=False)
class DigitsWorld:
    """Appearance and difficulty of the clips.

    Attributes:
        mode: what moves: the digit over a still photograph, or the photograph behind the digit.
        size: side of the square frame in pixels.
        num_frames: frames of a clip.
        digit_size: side of the digit's box in pixels, at most ``size``.
        num_directions: 4 or 8 directions, evenly spaced; label k points at 360 k / n degrees,
            counted from "right" towards "down".
        speeds: mean speed of each value of the label ``speed``, in pixels a frame.
        ground: brightness of the photograph, 0 (black) to 1; the digit is always white.
        photo_shrink: the photographs (427x640) are reduced by this factor first; 2 shows more of
            them in a frame.
    """

    mode: Literal["object", "pan"] = "object"
    size: int = 48
    num_frames: int = 8
    digit_size: int = 40
    num_directions: Literal[4, 8] = 8
    speeds: tuple[float, ...] = (1.0, 2.0)
    ground: float = 0.1
    photo_shrink: int = 2

    def __post_init__(self) -> None:
        if self.mode not in ("object", "pan"):
            raise ValueError(f"mode must be 'object' or 'pan', got {self.mode!r}")
        if self.num_directions not in (4, 8):
            raise ValueError(f"num_directions must be 4 or 8, got {self.num_directions}")
        if self.num_frames < 1 or self.photo_shrink < 1:
            raise ValueError("num_frames and photo_shrink must be at least 1")
        if not 8 <= self.digit_size <= self.size:
            raise ValueError(f"digit_size must lie between 8 and size ({self.size}), got {self.digit_size}")
        if not 0.0 <= self.ground <= 1.0:
            raise ValueError(f"ground must lie between 0 and 1, got {self.ground}")
        if not self.speeds or min(self.speeds) <= 0:
            raise ValueError(f"speeds must hold positive numbers, got {self.speeds}")
        height, width = _photo(0, "test", self.photo_shrink).shape[:2]
        if min(height, width) < self._window():
            raise ValueError(
                f"a clip needs {self._window()} pixels of a photograph, which has {height}x{width}: lower "
                f"size, num_frames or speeds, or photo_shrink ({self.photo_shrink})"
            )

    def _window(self) -> int:
        """Side of the piece of photograph that one clip can show, in pixels."""
        travel = max(self.speeds) * (self.num_frames - 1) if self.mode == "pan" else 0.0
        return self.size + int(np.ceil(travel)) + 2

    def num_classes(self) -> dict[str, int]:
        """Number of values of each label."""
        counts = (10, 2, self.num_directions, len(self.speeds), len(PROFILES))
        return dict(zip(LABEL_NAMES, counts, strict=True))


def labels(world: DigitsWorld, *, seed: int, split: str, index: int) -> dict[str, int]:
    """The labels of one clip, independent and uniform, in the order of ``LABEL_NAMES``."""
    return _draw_labels(world, _generator(seed, split, index))


def render(world: DigitsWorld, *, seed: int, split: str, index: int) -> NDArray[np.uint8]:
    """Draw one clip, a pure function of its arguments: uint8 [T, H, W, 3], RGB."""
    rng = _generator(seed, split, index)
    drawn = _draw_labels(world, rng)  # first, as in `labels`: both read the same numbers
    digit = _pick_digit(drawn["digit"], split, rng)
    photo = _photo(drawn["texture"], split, world.photo_shrink)
    path = _path(world, drawn)
    place = rng.uniform(0.0, world.size, size=2)
    if world.mode == "object":
        ink = _draw_digit(digit, place + path, world)
        ground = _still(photo, world, rng)
    else:
        ink = _draw_digit(digit, place + rng.uniform(-_JITTER, _JITTER, size=path.shape), world)
        ground = _pan(photo, path, world, rng)
    ground = ground * np.float32(world.ground)
    return (ground + ink[..., None] * (255.0 - ground) + 0.5).astype(np.uint8)


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    return np.random.default_rng([seed, _SPLITS.index(split), index])


def _draw_labels(world: DigitsWorld, rng: np.random.Generator) -> dict[str, int]:
    return {name: int(rng.integers(count)) for name, count in world.num_classes().items()}


def _path(world: DigitsWorld, drawn: dict[str, int]) -> Array:
    """Offsets (y, x) from the middle of the path in pixels: float32 [T, 2], first and last opposite."""
    steps = world.num_frames - 1
    ramp = np.linspace(-_EASE, _EASE, steps) if steps > 1 else np.zeros(steps)
    sign = {"constant": 0.0, "accelerating": 1.0, "decelerating": -1.0}[PROFILES[drawn["profile"]]]
    lengths = world.speeds[drawn["speed"]] * (1.0 + sign * ramp)
    travelled = np.concatenate([[0.0], np.cumsum(lengths)])
    angle = 2.0 * np.pi * drawn["direction"] / world.num_directions
    centred = travelled - travelled[-1] / 2.0
    return (centred[:, None] * np.array([np.sin(angle), np.cos(angle)])).astype(np.float32)


def _draw_digit(digit: Array, centres: NDArray[np.floating], world: DigitsWorld) -> Array:
    """Opacity of the digit about ``centres`` (y, x), round the edges: float32 [T, H, W] in [0, 1]."""
    rows = _tent_weights(centres[:, 0], world)
    columns = _tent_weights(centres[:, 1], world)
    grey = rows @ digit @ columns.transpose(0, 2, 1)  # exact bilinear enlargement at any sub-pixel place
    low, high = _STROKE
    return np.clip((grey - low) / (high - low), 0.0, 1.0)


def _tent_weights(centres: NDArray[np.floating], world: DigitsWorld) -> Array:
    """Bilinear weights of the sample's 8 cells in each pixel along one axis: float32 [T, size, 8]."""
    pixels = np.arange(world.size, dtype=np.float32) + 0.5
    half = world.size / 2.0
    apart = (pixels[None] - centres[:, None].astype(np.float32) + half) % world.size - half
    cells = apart * (8.0 / world.digit_size) + 3.5  # in cells of the sample, 0 at its first
    return np.maximum(1.0 - np.abs(cells[..., None] - np.arange(8, dtype=np.float32)), 0.0)


def _still(photo: Array, world: DigitsWorld, rng: np.random.Generator) -> Array:
    """One random window of the photograph: float32 [1, H, W, 3]."""
    top, left = (int(rng.integers(side - world.size + 1)) for side in photo.shape[:2])
    return photo[None, top : top + world.size, left : left + world.size]


def _pan(photo: Array, path: Array, world: DigitsWorld, rng: np.random.Generator) -> Array:
    """Windows of the photograph whose content moves along ``path``: float32 [T, H, W, 3]."""
    size, frames = world.size, []
    reach = np.abs(path).max(axis=0)
    room = np.array(photo.shape[:2]) - size - 1
    # the middle of the window is drawn from a range that is the same for every label of this world
    margin = (world._window() - size) / 2.0
    middle = rng.uniform(margin, np.maximum(room - margin, margin))
    assert (reach <= margin + 1.0).all(), "a path cannot leave the window the world reserved"
    for y, x in np.clip(middle - path, 0.0, room):  # content moves along the path: the window against it
        top, left = int(y), int(x)
        down, right = np.float32(y - top), np.float32(x - left)
        piece = photo[top : top + size + 1, left : left + size + 1]
        piece = piece[:-1] + down * (piece[1:] - piece[:-1])
        frames.append(piece[:, :-1] + right * (piece[:, 1:] - piece[:, :-1]))
    return np.stack(frames)


def _pick_digit(digit: int, split: str, rng: np.random.Generator) -> Array:
    samples = _digits(split)[digit]
    return samples[int(rng.integers(len(samples)))]


@cache
def _digits(split: str) -> tuple[Array, ...]:
    """The split's samples of each digit: ten arrays float32 [n, 8, 8] in [0, 1]."""
    from sklearn.datasets import load_digits  # here: importing scikit-learn takes a second

    data = load_digits()
    pools = []
    for digit in range(10):
        samples = (data.images[data.target == digit] / 16.0).astype(np.float32)
        cut = int(len(samples) * _DIGIT_FRACTION)
        pools.append(samples[:cut] if split == "train" else samples[cut:])
    return tuple(pools)


@cache
def _photo(texture: int, split: str, shrink: int) -> Array:
    """The split's part of a photograph, left for train and right for test: float32 [H, W, 3], 0 to 255."""
    from sklearn.datasets import load_sample_images

    image = load_sample_images().images[texture].astype(np.float32)
    height, width = (side // shrink * shrink for side in image.shape[:2])
    blocks = image[:height, :width].reshape(height // shrink, shrink, width // shrink, shrink, 3)
    image = blocks.mean(axis=(1, 3))
    cut = int(image.shape[1] * _PHOTO_FRACTION)
    return image[:, :cut] if split == "train" else image[:, cut:]
