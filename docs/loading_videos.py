"""The videos of ``measure_loading.py``: moving textures under grain, and a token store of any ids."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from vidssl.data.sources.token_store import ShardWriter, StoredVideo, StoreInfo, Transform, write_info
from vidssl.data.views.times import kept_frames
from vidssl.interfaces import DataSource


@dataclass(frozen=True)
class Kind:
    """Videos that are made."""

    name: str
    codec: str
    fps: int
    num_frames: int
    height: int
    width: int
    gop: int
    b_frames: int
    bits_per_second: int | None  # None: quality stays, x264's usual
    grain: float
    ending: str
    options: Mapping[str, str]


KINDS = (
    Kind("H.264 340x256, GOP 250", "libx264", 30, 300, 256, 340, 250, 3, None, 4.0, "mp4", {"crf": "23"}),
    Kind("H.264 854x480, GOP 250", "libx264", 30, 150, 480, 854, 250, 3, None, 4.0, "mov", {"crf": "23"}),
    Kind("Xvid 320x240, GOP 12", "mpeg4", 25, 180, 240, 320, 12, 0, 450_000, 2.0, "avi", {"vtag": "XVID"}),
)


def make_videos(kind: Kind, folder: Path, count: int) -> Path:
    """Writes some videos into a folder, and returns it."""
    folder.mkdir()
    for number in range(count):
        with av.open(str(folder / f"{number}.{kind.ending}"), "w") as container:
            stream = container.add_stream(kind.codec, rate=kind.fps, options=dict(kind.options))
            stream.height, stream.width, stream.pix_fmt = kind.height, kind.width, "yuv420p"
            stream.codec_context.gop_size = kind.gop
            stream.codec_context.max_b_frames = kind.b_frames
            if kind.bits_per_second:
                stream.bit_rate = kind.bits_per_second
            for picture in pictures(kind, np.random.default_rng(number)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
            container.mux(stream.encode(None))
    return folder


def pictures(kind: Kind, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Four ellipses of texture in front of another, each on a way of its own, under grain."""
    height, width, room = kind.height, kind.width, 80
    back = texture(rng, height + room, width + room)
    shapes = [texture(rng, height // 2, width // 3) for _ in range(4)]
    down, across = np.mgrid[-1 : 1 : 1j * (height // 2), -1 : 1 : 1j * (width // 3)]
    inside = (down**2 + across**2 < 1)[..., None]
    grain = kind.grain * rng.standard_normal((height + room, width + room, 1)).astype(np.float32)
    start, speed = rng.uniform(0, 2 * math.pi, (5, 2)), rng.uniform(0.01, 0.05, (5, 2))
    for number in range(kind.num_frames):
        share = 0.5 + 0.5 * np.sin(start + speed * number)  # of the room, for each thing that moves
        top, left = (share[4] * room).astype(int)
        picture = back[top : top + height, left : left + width].copy()
        for shape, place in zip(shapes, share, strict=False):
            top, left = (place * (height - height // 2, width - width // 3)).astype(int)
            part = picture[top : top + height // 2, left : left + width // 3]
            part[:] = np.where(inside, shape, part)
        top, left = rng.integers(0, room, 2)
        yield (picture + grain[top : top + height, left : left + width]).clip(0, 255).astype(np.uint8)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    sum_ = np.zeros((height, width, 3), np.float32) + rng.uniform(90, 160, 3).astype(np.float32)
    for cells, strength in ((3, 60), (8, 35), (24, 22), (64, 14)):
        coarse = torch.from_numpy(rng.standard_normal((1, 3, cells, cells)).astype(np.float32))
        fine = F.interpolate(coarse, (height, width), mode="bicubic")[0]
        sum_ += strength * fine.permute(1, 2, 0).numpy()
    return sum_


def make_token_store(folder: Path, originals: DataSource) -> None:
    """What ``vidssl tokenize`` writes for VIMPAC, but any ids: which they are makes no difference here."""
    transforms = (Transform(128, "middle", False),)
    count = len(originals)
    info = StoreInfo("", {}, 8192, 128, (16, 16), 2.0, transforms, {}, "", count, count, {})
    write_info(folder, info)
    with ShardWriter(folder, info, 0) as writer:
        for index in range(count):
            video = originals.info(index)
            length = len(kept_frames(video, 2.0))
            ids = np.random.default_rng(index).integers(0, 8192, (1, length, 16, 16)).astype(np.uint16)
            writer.add(StoredVideo(video.key, {}, length, 2.0, 0), ids)
        writer.finish()
