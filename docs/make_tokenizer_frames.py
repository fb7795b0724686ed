"""Frames for `recipes/tokenizer_general.yaml`: made textures, moving digits, and frames of free footage.

python docs/make_tokenizer_frames.py CLIPS general_frames      # CLIPS: the folder with airplane/, sign/, ...

Made textures are "dead leaves" (Matheron 1968; Lee et al. 2001): ellipses and boxes that cover each other,
their radii spread as in photographs, each filled with noise whose spectrum falls as 1/f^a. They have the
edges and the spectrum of photographs and nobody's rights. Footage is CC0, CC-BY-4.0, BSD-3-Clause or
Apache-2.0, named below: that of `TRAIN` is learned from, that of `VAL` chose the settings.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidssl import api as v

Array = NDArray[np.float64]
SIDE = 112
TRAIN = (
    *("airplane/IR_AIRPLANE_010.mp4", "helicopter/IR_HELICOPTER_018.mp4", "helicopter/V_HELICOPTER_010.mp4"),
    *(
        "mixed/multistream.mp4",
        "mixed/hevc_10bit.mp4",
        "mixed/non_zero_start.mp4",
        "mixed/odd_321x241_vp9.mp4",
    ),
    "mixed/rotated_90_3frames.mov",
)
VAL = ("airplane/V_AIRPLANE_015.mp4", "sign/no.mkv", "sign/yes.mkv")


def noise(rng: np.random.Generator) -> Array:
    """A texture [3, SIDE, SIDE] of mean 0 and variance 1, its channels mostly alike."""
    frequency = (
        np.hypot(np.fft.fftfreq(SIDE)[:, None] * rng.uniform(0.5, 2), np.fft.rfftfreq(SIDE)) + 0.5 / SIDE
    )
    spectrum = np.fft.rfft2(rng.standard_normal((3, SIDE, SIDE))) * frequency ** -rng.uniform(0.6, 2.0)
    field = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
    field -= field.mean((1, 2), keepdims=True)
    field /= field.std((1, 2), keepdims=True)
    return field[:1] + rng.uniform(0.0, 0.3) * field


def colour(rng: np.random.Generator) -> Array:
    """A colour [3, 1, 1] in [0, 1], more often pale than not."""
    grey = rng.uniform(0, 1)
    return (grey + rng.uniform(0, 1) ** 2 * rng.uniform(-0.4, 0.4, 3)).clip(0, 1)[:, None, None]


def leaves(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [SIDE, SIDE, 3] of leaves over a ground, as a lens and a sensor would show it."""
    textures = [noise(rng) for _ in range(4)]
    y, x = np.mgrid[:SIDE, :SIDE]
    picture = colour(rng) + 0.2 * rng.uniform(0, 1) ** 2 * textures[0]
    smallest, number = rng.uniform(2, 12), int(rng.integers(5, 120))
    for _ in range(number):
        radius = min(smallest / np.sqrt(rng.uniform(1e-3, 1)), SIDE)  # a density that falls as radius^-3
        turn, flat, (top, left) = rng.uniform(0, np.pi), rng.uniform(0.3, 1), rng.uniform(-8, SIDE + 8, 2)
        along = (x - left) * np.cos(turn) + (y - top) * np.sin(turn)
        across = (y - top) * np.cos(turn) - (x - left) * np.sin(turn)
        inside = (np.hypot(along, across / flat) < radius) if rng.uniform() < 0.7 else (
            np.maximum(abs(along), abs(across) / flat) < radius)  # fmt: skip
        shade = rng.uniform(-0.3, 0.3) * along / radius
        fill = colour(rng) + shade + 0.25 * rng.uniform(0, 1) ** 2 * textures[int(rng.integers(4))]
        picture = np.where(inside, fill, picture)
    return photographed(picture, rng)


def photographed(picture: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred a little, with less contrast, and with a sensor's noise."""
    blur = np.exp(
        -np.square(
            np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)) * np.pi * rng.uniform(0.3, 2)
        )
    )
    picture = np.fft.irfft2(np.fft.rfft2(picture.clip(0, 1)) * blur, s=(SIDE, SIDE))
    picture = 0.5 + rng.uniform(0.5, 1) * (picture - 0.5) + rng.uniform(-0.15, 0.15)
    picture = picture + rng.uniform(0, 0.02) * rng.standard_normal(picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def save(pixels: NDArray[np.uint8], path: Path) -> None:
    """A PNG whose short side is at most 128."""
    image = Image.fromarray(pixels)
    shrink = max(1.0, min(image.size) / 128)
    image.resize((round(image.width / shrink), round(image.height / shrink)), Image.Resampling.LANCZOS).save(
        path
    )


def footage(clips: Path, names: tuple[str, ...], out: Path, most: int) -> None:
    """At most so many frames of each clip, evenly spread over it."""
    source = v.VideoFolder(root=str(clips))
    for index in range(len(source)):
        if (key := source.key(index)) in names:
            count = source.info(index).num_frames
            numbers = sorted(set(np.linspace(0, count - 1, most).round().astype(int).tolist()))
            for number, frame in zip(numbers, source.read(index, numbers), strict=True):
                save(frame.permute(1, 2, 0).numpy(), out / f"clip-{Path(key).stem}-{number:04d}.png")


def main() -> None:
    clips, out = Path(sys.argv[1]), Path(sys.argv[2])
    for part, seed, count, names in (("train", 0, 2000, TRAIN), ("val", 1, 0, VAL)):
        (out / part).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        for number in range(count):
            save(leaves(rng), out / part / f"leaves-{number:04d}.png")
        for pattern in ("photographs", "waves") if count else ():
            world = v.MovingDigits(
                split="train", size=96, pattern=pattern, ground=1.0, photo_shrink=1, limit=400
            )
            for number in range(len(world)):
                save(
                    world.read(number, [0])[0].permute(1, 2, 0).numpy(),
                    out / part / f"{pattern}-{number:04d}.png",
                )
        footage(clips, names, out / part, 50)


if __name__ == "__main__":
    main()
