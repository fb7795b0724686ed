"""Clips whose every frame shows its own number, and ways to spoil them. For tests."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

BITS = 8
SIDE = 16  # of a bit's square


def numbered_frame(number: int, height: int = 48) -> np.ndarray:
    """RGB [height, 128, 3]: the number in binary as dark and bright squares, the highest bit left."""
    row = np.repeat([200 if number >> bit & 1 else 50 for bit in reversed(range(BITS))], SIDE)
    return np.broadcast_to(row[None, :, None], (height, BITS * SIDE, 3)).astype(np.uint8)


def number_shown(frame: torch.Tensor) -> int:
    """The number that a frame [3, H, W] shows."""
    row = frame.float().mean(dim=(0, 1))
    bits = row.reshape(BITS, -1).mean(dim=1) > 125
    return int("".join(str(int(bit)) for bit in bits), 2)


def write_clip(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    container_options: dict[str, str] | None = None,
    **how: object,
) -> Path:
    """Writes a numbered clip; ``times`` are the frames' timestamps in units of 1/30 s.

    ``how``: other keys of ``_clip``.
    """
    if options is None and codec == "libx264":  # no keyframes but those of the regular groups
        options = {"sc_threshold": "0", "preset": "superfast"}
    given = (*(options or {}).items(),), (*(container_options or {}).items(),)
    stamps = tuple(range(num_frames) if times is None else times[:num_frames])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_clip(path.suffix, codec, *given, stamps, **how))
    return path


@cache  # many tests want the same clip
def _clip(
    suffix: str,
    codec: str,
    options: tuple[tuple[str, str], ...],
    container_options: tuple[tuple[str, str], ...],
    stamps: tuple[int, ...],
    *,
    gop: int = 12,
    max_b_frames: int = 2,
    height: int = 48,
    noise: int = 0,
    pixel_aspect: Fraction = Fraction(1),
) -> bytes:
    """A clip's file.

    ``noise`` makes the frames harder to compress, and so the file long enough to be damaged in its middle.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        with av.open(str(path), "w", options=dict(container_options)) as container:
            stream = container.add_stream(codec, rate=30, options=dict(options))
            stream.height, stream.width, stream.pix_fmt = height, BITS * SIDE, "yuv420p"
            stream.codec_context.gop_size = gop
            stream.codec_context.max_b_frames = max_b_frames
            stream.codec_context.time_base = Fraction(1, 30)
            stream.codec_context.sample_aspect_ratio = pixel_aspect
            stream.codec_context.thread_count = 1
            for number, stamp in enumerate(stamps):
                picture = numbered_frame(number, height)
                if noise:
                    picture = picture + rng.integers(0, noise, picture.shape, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p", threads=1)
                frame.pts, frame.time_base = stamp, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def write_sound(path: Path, codec: str = "aac") -> Path:
    """Writes a moment of silence without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100)
        for _ in range(20):
            silence = np.zeros((1, stream.codec_context.frame_size or 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_animation(path: Path, num_frames: int, durations: Sequence[int]) -> Path:
    """Writes a numbered GIF or WebP whose frames last ``durations`` in milliseconds, over and over."""
    frames = [Image.fromarray(numbered_frame(number)) for number in range(num_frames)]
    lasts = [durations[number % len(durations)] for number in range(num_frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=lasts)
    return path


def copy_packets(path: Path, to: Path, *, skip: int = 0, hide: int = 0, stored_order: bool = False) -> Path:
    """Copies a clip without decoding it: ``skip`` leaves packets out, ``hide`` shifts frames to before zero.

    An MP4 file keeps frames before zero for decoding and marks them as not shown, with an edit list.
    ``stored_order`` numbers packets as they are stored, as careless remuxing does.
    """
    with av.open(str(path)) as source, av.open(str(to), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size > 0]
        for number, packet in enumerate(packets[skip:]):
            packet.pts -= hide * packet.duration
            packet.dts -= hide * packet.duration
            if stored_order:
                packet.pts = packet.dts = number * packet.duration
            packet.stream = stream
            container.mux(packet)
    return to


def turn_clip(path: Path, degrees: int) -> None:
    """Turns an MP4 file clockwise by its display matrix, as a phone held sideways does."""
    orient_clip(path, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees])


def orient_clip(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Sets a, b, c, d of an MP4 file's display matrix, which shows (x, y) at (ax + cy, bx + dy)."""
    content = path.read_bytes()
    start = content.index(_packed((1, 0, 0, 1)), content.index(b"tkhd"))
    path.write_bytes(content[:start] + _packed(matrix) + content[start + 36 :])


def _packed(matrix: tuple[int, int, int, int]) -> bytes:
    a, b, c, d = (number << 16 for number in matrix)
    return b"".join(n.to_bytes(4, "big", signed=True) for n in (a, b, 0, c, d, 0, 0, 0, 1 << 30))


def damage_middle(path: Path, share: float = 0.15) -> Path:
    """Overwrites the middle of a file with noise."""
    content = bytearray(path.read_bytes())
    length = int(len(content) * share)
    start = (len(content) - length) // 2
    content[start : start + length] = np.random.default_rng(1).bytes(length)
    path.write_bytes(content)
    return path


def cut_off(path: Path, share: float) -> Path:
    """Keeps the first ``share`` of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
