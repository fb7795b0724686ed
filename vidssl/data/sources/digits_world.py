"""Moving digits: short clips whose every factor is known, made from what scikit-learn ships.

A clip shows one hand-written digit (``load_digits``, 8x8 samples enlarged) over a ground: one of two colour
photographs (``load_sample_images``), or waves, a texture made anew for each clip, so that none can be
learned by heart. Either the digit travels over a still ground (``object``) or the ground pans behind a digit
that stays put (``pan``). Five labels, drawn independently, say what there is to learn: ``digit`` and
``texture`` can be read from one frame, ``direction``, ``speed`` and ``profile`` only from several, the first
and the last of them only in their order.

The world is a measuring instrument, which sets two rules for the motion:

- A path runs symmetrically about a centre that is uniform over the frame (``object``) or over the
  photograph (``pan``; waves are the same everywhere), and every path played backwards is a path of another
  label, so that no set of frames without their order tells a direction from its opposite, or acceleration
  from braking.
- The digit leaves at one edge and enters at the other (the frame is a torus), so that its position
  in a single frame is uniform whatever its motion.

Train, val and test share neither a digit sample nor a pixel of a photograph nor a texture.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

LABEL_NAMES = ("digit", "texture", "direction", "speed", "profile")
PROFILES = ("constant", "accelerating", "decelerating")

_SPLITS = ("train", "test", "val")  # in this order: the place of a split is part of its clips' seeds
_DIGIT_FRACTION = 0.7  # of the digit samples that train gets; the rest is test's
_VAL_FRACTION = 0.1  # of them that val gets, out of train's, in worlds that have one
_PHOTO_FRACTION = 0.58  # of each photograph's width: both parts need some of the flower in its centre
_STROKE = (0.3, 0.7)  # ink of the enlarged digit that becomes clear and opaque: bilinear ink is grey
_EASE = 0.7  # a changing speed runs from (1 - _EASE) to (1 + _EASE) times its mean
_NUM_WAVES = 24  # of a texture: fewer show a grid, more look no different
_ORIENTATIONS = 3  # of textures, evenly spaced
_WAVELENGTHS = ((7.0, 9.5), (12.0, 17.0))  # pixels, of fine and of coarse textures
_SPREAD = (
    np.pi * 25.0 / 180.0
)  # of the waves of a texture to either side: parallel waves would hide motion along them
_LEAST_CONTRAST = 0.43  # of a texture's two colours, in brightness, before ``ground``
_LUMA = (0.299, 0.587, 0.114)
_JITTER = 1.0  # pixels by which the digit trembles in pan mode: a digit glued to the lens is no video


@dataclass(kw_only=True, eq=False)
class DigitsWorld:
    """Appearance and difficulty of the clips.

    Attributes:
        mode: what moves: the digit over a still ground, or the ground behind the digit.
        pattern: the ground: one of two "photographs", or "waves": a sum of waves of one of three orientations
            and two scales, six classes of the label ``texture``, in two colours, dark to bright; waves,
            phases and colours are drawn for each clip.
        size: side of the square frame in pixels.
        num_frames: frames of a clip.
        digit_size: side of the digit's box in pixels, at most ``size``.
        num_directions: 4 or 8 directions, evenly spaced; label k points at 360 k / n degrees,
            counted from "right" towards "down".
        speeds: mean speed of each value of the label ``speed``, in pixels a frame.
        ground: brightness of the ground, 0 (black) to 1; the digit is always white.
        photo_shrink: the photographs (427x640) are reduced by this factor first; 2 shows more of
            them in a frame.
        noise: standard deviation of what is added to every value of every frame, of pixels in [0, 1].
    """

    mode: Literal["object", "pan"] = "object"
    size: int = 48
    num_frames: int = 8
    digit_size: int = 40
    num_directions: Literal[4, 8] = 8
    speeds: tuple[float, ...] = (1.0, 2.0)
    ground: float = 0.1
    photo_shrink: int = 2
    pattern: Literal["photographs", "waves"] = "photographs"
    noise: float = 0.0

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
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"noise must lie in [0, 1), got {self.noise}")
        if self.pattern == "photographs":
            self._check_photographs()
        elif self.pattern == "waves":
            self._check_waves()
        else:
            raise ValueError(f"pattern must be 'photographs' or 'waves', got {self.pattern!r}")

    def _check_photographs(self) -> None:
        height, width = _photo(0, "test", self.photo_shrink).shape[:2]
        if min(height, width) < self._window():
            raise ValueError(
                f"a clip needs {self._window()} pixels of a photograph, which has {height}x{width}: lower "
                f"size, num_frames or speeds, or photo_shrink ({self.photo_shrink})"
            )

    def _check_waves(self) -> None:
        half = _WAVELENGTHS[0][0] / 2.0
        fastest = max(self.speeds) * (1.0 + _EASE)
        if self.mode == "pan" and fastest >= half:
            raise ValueError(
                f"speeds: {max(self.speeds)} pixels a frame on average are up to {fastest:.1f}, and waves "
                f"that move by half a wavelength ({half}) or more in a frame look as if they went backwards"
            )

    @property
    def has_val(self) -> bool:
        """Whether train leaves digit samples and textures to a third split, to choose settings by."""
        return self.pattern == "waves"

    def _window(self) -> int:
        """Side of the piece of photograph that one clip can show, in pixels."""
        travel = max(self.speeds) * (self.num_frames - 1) if self.mode == "pan" else 0.0
        return self.size + int(np.ceil(travel)) + 2

    def num_classes(self) -> dict[str, int]:
        """Number of values of each label."""
        textures = 2 if self.pattern == "photographs" else _ORIENTATIONS * len(_WAVELENGTHS)
        counts = (10, textures, self.num_directions, len(self.speeds), len(PROFILES))
        return dict(zip(LABEL_NAMES, counts, strict=True))


def labels(world: DigitsWorld, *, seed: int, split: str, index: int) -> dict[str, int]:
    """The labels of one clip, independent and uniform, in the order of ``LABEL_NAMES``."""
    return _draw_labels(world, _generator(world, seed, split, index))


def render(world: DigitsWorld, *, seed: int, split: str, index: int) -> NDArray[np.uint8]:
    """Draw one clip, a pure function of its arguments: uint8 [T, H, W, 3], RGB."""
    rng = _generator(world, seed, split, index)
    drawn = _draw_labels(world, rng)  # first, as in `labels`: both read the same numbers
    path = _path(world, drawn)
    ink = _ink(world, drawn, path, split, rng)
    if world.pattern == "waves":
        ground = _waves(
            drawn["texture"], np.zeros_like(path[:1]) if world.mode == "object" else path, world, rng
        )
    else:
        photo = _photo(drawn["texture"], split, world.photo_shrink)
        ground = _still(photo, world, rng) if world.mode == "object" else _pan(photo, path, world, rng)
    ground = ground * np.float32(world.ground)
    frames = ground + ink[..., None] * (255.0 - ground)
    if world.noise:
        frames += np.float32(255.0 * world.noise) * rng.standard_normal(frames.shape, dtype=np.float32)
        frames = frames.clip(0.0, 255.0)
    return (frames + 0.5).astype(np.uint8)


def digit_masks(world: DigitsWorld, *, seed: int, split: str, index: int) -> NDArray[np.bool_]:
    """Where the digit of a clip covers more than half of what is behind it: bool [T, H, W]."""
    rng = _generator(world, seed, split, index)
    drawn = _draw_labels(world, rng)
    return _ink(world, drawn, _path(world, drawn), split, rng) > 0.5


def _ink(
    world: DigitsWorld, drawn: dict[str, int], path: Array, split: str, rng: np.random.Generator
) -> Array:
    """Opacity of the digit of a clip: float32 [T, H, W]; what ``render`` draws next comes after it."""
    digit = _pick_digit(world, drawn["digit"], split, rng)
    place = rng.uniform(0.0, world.size, size=2)
    tremble = path if world.mode == "object" else rng.uniform(-_JITTER, _JITTER, size=path.shape)
    return _draw_digit(digit, place + tremble, world)


def _generator(world: DigitsWorld, seed: int, split: str, index: int) -> np.random.Generator:
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if split == "val" and not world.has_val:
        raise ValueError(
            "split val: train and test share out the two photographs; take pattern 'waves', which has one"
        )
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


def _waves(texture: int, path: Array, world: DigitsWorld, rng: np.random.Generator) -> Array:
    """A texture made of waves that moves along ``path`` [T, 2]: float32 [T, H, W, 3].

    Each wave is exact at any sub-pixel place, so nothing is interpolated, and it has no edges.
    """
    shortest, longest = _WAVELENGTHS[texture // _ORIENTATIONS]
    lengths = np.exp(rng.uniform(np.log(shortest), np.log(longest), _NUM_WAVES))
    angles = np.pi * (texture % _ORIENTATIONS) / _ORIENTATIONS + rng.uniform(-_SPREAD, _SPREAD, _NUM_WAVES)
    vectors = 2.0 * np.pi / lengths * np.stack([np.sin(angles), np.cos(angles)])  # (y, x), radians a pixel
    phases = rng.uniform(0.0, 2.0 * np.pi, _NUM_WAVES) - path @ vectors
    rows, columns = np.exp(1j * np.arange(world.size)[:, None] * vectors[:, None]).astype(np.complex64)
    frames = np.exp(1j * phases).astype(np.complex64)[:, None] * rows  # [T, H, waves]
    height = (frames @ columns.T).real * np.float32(np.sqrt(2.0 / _NUM_WAVES))  # variance 1
    share = (0.5 + 0.5 * np.tanh(0.9 * height))[..., None]
    dark, bright = _two_colours(rng)
    return (dark + share * (bright - dark)).astype(np.float32)


def _two_colours(rng: np.random.Generator) -> Array:
    """A dark and a bright colour, uniform but for their distance in brightness: float32 [2, 3], 0 to 255."""
    while True:
        colours = rng.uniform(0.0, 1.0, (2, 3))
        if (colours[1] - colours[0]) @ _LUMA >= _LEAST_CONTRAST:
            return (255.0 * colours).astype(np.float32)


def _pick_digit(world: DigitsWorld, digit: int, split: str, rng: np.random.Generator) -> Array:
    samples = _digits(split, world.has_val)[digit]
    return samples[int(rng.integers(len(samples)))]


@cache
def _digits(split: str, has_val: bool = False) -> tuple[Array, ...]:
    """The split's samples of each digit: ten arrays float32 [n, 8, 8] in [0, 1]."""
    from sklearn.datasets import load_digits  # here: importing scikit-learn takes a second

    data = load_digits()
    pools = []
    for digit in range(10):
        samples = (data.images[data.target == digit] / 16.0).astype(np.float32)
        cut = int(len(samples) * _DIGIT_FRACTION)
        kept = cut - int(len(samples) * _VAL_FRACTION) if has_val else cut
        parts = {"train": samples[:kept], "val": samples[kept:cut], "test": samples[cut:]}
        pools.append(parts[split])
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
