"""The embedded data set: moving digits as real video files, written once into the user's cache folder."""

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from vidssl.data.decode.content import Content, why_not_a_file
from vidssl.data.decode.decode import read_frames
from vidssl.data.sources.digits_world import LABEL_NAMES, DigitsWorld, digit_masks, labels, render
from vidssl.data.sources.origins import origin_of
from vidssl.engine.process import locked
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, KnowsMasks, KnowsOrigins, Origin, SampleInfo, UnreadableSample

_log = logging.getLogger(__name__)

_FPS = 8
_MANIFEST = "manifest.csv"
_CHECKSUMS = "sha256.txt"  # as sha256sum writes and reads them
_LATER_KEYS = {"pattern": "photographs", "noise": 0.0}
_ALWAYS = object()  # equal to no key's value
_SAY_EVERY_SECONDS = 5.0
_BYTES_A_FRAME = 4000  # of 64x64 pixels with noise, rounded up; what the disk must have room for
# crisp, and still small: 41 dB and 5 kB (H.264), 38 dB and 4 kB (MPEG-4) for 8 frames of 48x48; the rest is
# lost to the halved colour resolution of yuv420p, which users' files have too
_QUALITY = {
    "libx264": {"crf": "10", "preset": "veryfast", "x264-params": "mbtree=0:rc-lookahead=0"},
    "mpeg4": {"qmin": "2", "qmax": "2"},
}
# with B-frames or its lookahead libx264 writes other bytes now and then, decoded up to 7 of 255 apart, even
# on one thread: in 28 of 1,000 encodings in one process with the lookahead alone, in none of 1,000 without
_ENCODING = {"threads": 1, "max_b_frames": 0}


@dataclass(kw_only=True, eq=False)
class MovingDigits(DigitsWorld, DataSource, KnowsOrigins, KnowsMasks):
    """Short videos of a digit that moves over a ground, with every factor known as a label.

    Labels: digit, texture, direction, speed and profile, see ``digits_world``. The videos are files, H.264 or
    MPEG-4, in ``$VIDSSL_CACHE``, else ``$XDG_CACHE_HOME/vidssl``, else ``~/.cache/vidssl``;
    they are written when they are first asked for, a few hundred a second. Which pixels are the digit's is
    exact; as classes of pixels there are the ground and the ten digits.

    Args:
        split: "train", "test" and "val" share neither a digit sample nor a pixel of a photograph; "val", to
            choose settings by, is there where ``pattern`` is "waves".
        num_videos: of this split; by default 4000 to train, 1000 to test and 1000 in val.
        limit: use only the first so many of them.
        seed: of the whole world.
        mode, size, num_frames, digit_size, num_directions, speeds, ground, photo_shrink, pattern, noise: see
            ``DigitsWorld``.
    """

    split: Literal["train", "test", "val"]
    num_videos: int | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        DigitsWorld.__post_init__(self)
        default = 4000 if self.split == "train" else 1000
        num_videos = default if self.num_videos is None else self.num_videos
        for name, number, least in (
            ("num_videos", num_videos, 1),
            ("limit", self.limit, 1),
            ("seed", self.seed, 0),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}")
        self._folder = prepare(self, seed=self.seed, split=self.split, num_videos=num_videos)
        self._rows = _read_manifest(self._folder)[: self.limit]
        self._checksums = _read_checksums(self._folder)
        self.label_classes = {
            name: tuple(str(number) for number in range(total)) for name, total in self.num_classes().items()
        }
        self.mask_classes = ("ground", *self.label_classes["digit"])

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        return f"{self.split}/{self._rows[index][0]}"

    def labels(self, index: int) -> dict[str, int]:
        return self._rows[index][1]

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.key(index), self.num_frames, float(_FPS), self.labels(index))

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        path = self._folder / self._rows[index][0]
        try:
            content = path.read_bytes()
        except OSError:
            raise UnreadableSample(self.key(index), why_not_a_file(path)) from None
        if hashlib.sha256(content).hexdigest() != self._checksums[path.name]:
            raise UnreadableSample(
                self.key(index), f"it is not what was written; remove {self._folder}, which is then made anew"
            )
        try:
            return read_frames(Content(str(path), content), frames)
        except UnreadableSample as error:
            raise UnreadableSample(self.key(index), error.reason) from error

    def object_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        number = int(Path(self._rows[index][0]).stem)
        masks = digit_masks(self, seed=self.seed, split=self.split, index=number)
        return torch.from_numpy(masks[list(frames)].astype(np.uint8))

    def class_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        return self.object_masks(index, frames) * (1 + self.labels(index)["digit"])

    def origin(self, index: int) -> Origin:
        path = self._folder / self._rows[index][0]
        checksum = self._checksums[path.name]
        return replace(origin_of(path), version=checksum, sha256=checksum)


def prepare(world: DigitsWorld, *, seed: int, split: str, num_videos: int) -> Path:
    """The folder of the videos, which are written first if they are not there.

    Its name holds a hash of all that decides what the files show; the first clip's pixels stand for the
    code that draws, so that a cache never outlives a change of it.

    Two processes may ask at once: one writes, the other waits. A process that is killed leaves a folder
    which the next one completes.

    Raises:
        UsageError: if the cache folder cannot be written or the disk is full.
    """
    codec = _codec()
    made_from = {
        "world": _keys(world),
        "seed": seed,
        "first_clip": hashlib.sha256(render(world, seed=seed, split=split, index=0).tobytes()).hexdigest(),
        "codec": codec,
        "quality": _QUALITY[codec],
        "encoding": _ENCODING,
    }
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache_folder() / "moving_digits" / f"{split}-{num_videos}-{digest}"
    if (folder / _MANIFEST).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = partial(_log.warning, "Another process is writing %s; waiting for it", folder)
        with locked(folder.with_suffix(".lock"), waiting):
            if not (folder / _MANIFEST).is_file():
                _check_room(folder.parent, world, num_videos)
                _write(folder, world, codec, seed=seed, split=split, num_videos=num_videos)
                (folder / "made_from.json").write_text(json.dumps(made_from, indent=2) + "\n")
    except OSError as error:
        raise UsageError(
            f"{folder.parent}: the moving digits cannot be written there ({error.strerror or error}). Set "
            "the environment variable VIDSSL_CACHE to a folder with room that you may write to"
        ) from error
    return folder


def _keys(world: DigitsWorld) -> dict[str, object]:
    """Name -> value of what decides the pixels; keys that came later count where they are used.

    So the folders of older worlds are still found.
    """
    given = {field.name: getattr(world, field.name) for field in fields(DigitsWorld)}
    return {name: value for name, value in given.items() if value != _LATER_KEYS.get(name, _ALWAYS)}


def cache_folder() -> Path:
    """Where data that the package makes is kept."""
    if os.environ.get("VIDSSL_CACHE"):
        return Path(os.environ["VIDSSL_CACHE"]).expanduser().absolute()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).absolute() / "vidssl"
    return Path.home() / ".cache" / "vidssl"


def _check_room(folder: Path, world: DigitsWorld, num_videos: int) -> None:
    needed = int(num_videos * world.num_frames * _BYTES_A_FRAME * max(1.0, (world.size / 64) ** 2))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"it may need {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free")


def _write(folder: Path, world: DigitsWorld, codec: str, *, seed: int, split: str, num_videos: int) -> None:
    """Fills a folder beside the final one, then renames it; takes up where a killed process left off."""
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(exist_ok=True)
    # a warning is shown in Python too
    _log.warning("Writing %d moving digits videos (%s) to %s, once", num_videos, split, folder)
    said, total_bytes, checksums = time.monotonic(), 0, list[str]()
    for index in range(num_videos):
        path = unfinished / f"{index:06d}.mp4"
        if not path.is_file():
            pending = path.with_suffix(".pending")
            pending.write_bytes(encode(render(world, seed=seed, split=split, index=index), codec))
            pending.rename(path)  # a video that has its name is whole
        content = path.read_bytes()
        checksums.append(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        total_bytes += len(content)
        if time.monotonic() - said > _SAY_EVERY_SECONDS:
            said = time.monotonic()
            _log.info("  %d of %d videos written", index + 1, num_videos)
    (unfinished / _CHECKSUMS).write_text("".join(checksums))
    with (unfinished / _MANIFEST).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *LABEL_NAMES])
        for index in range(num_videos):
            drawn = labels(world, seed=seed, split=split, index=index)
            writer.writerow([f"{index:06d}.mp4", *(drawn[name] for name in LABEL_NAMES)])
    unfinished.rename(folder)
    _log.info("Wrote %s, %.1f MB in all, to %s", counted(num_videos, "video"), total_bytes / 1e6, folder)


def _read_manifest(folder: Path) -> list[tuple[str, dict[str, int]]]:
    with (folder / _MANIFEST).open(newline="") as file:
        return [(row["path"], {name: int(row[name]) for name in LABEL_NAMES}) for row in csv.DictReader(file)]


def _read_checksums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what was written."""
    lines = (folder / _CHECKSUMS).read_text().splitlines()
    return {name: checksum for checksum, name in (line.split("  ") for line in lines)}


def _codec() -> str:
    """The encoder at hand: FFmpeg may be built without H.264."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def encode(frames: NDArray[np.uint8], codec: str) -> bytes:
    """An MP4 file of RGB frames [T, H, W, 3]."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(_FPS), options=_QUALITY[codec])
        assert isinstance(stream, VideoStream), "both are video codecs"
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = _ENCODING["threads"]
        stream.codec_context.max_b_frames = _ENCODING["max_b_frames"]
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()
