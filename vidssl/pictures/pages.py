"""Sheets and animations of labelled frames, and colours for heat. Nothing here knows of networks."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidssl.engine.process import write_atomically

SHEET_SIDE, ANIMATED_SIDE = 96, 160  # pixels; smaller frames are enlarged by a whole factor
MAX_COLUMNS = 8  # of a sheet; of longer clips it shows evenly spaced frames
GAP, MARGIN, LINE = 4, 12, 20  # pixels
FRAME_MILLISECONDS = 200
WEBP_QUALITY = 85
HEAT_WEIGHT = 0.75  # of the heat's colour over the frame, which is made grey
_TEXT_SIZE = 13
INK = (20, 20, 20)
PAPER = (222, 226, 232)  # not white: what is white at the edge of a frame ends there


@dataclass(frozen=True)
class FrameRow:
    """Frames of one kind: uint8 [T, H, W, 3], RGB, and what they are called."""

    label: str
    frames: Tensor


@dataclass(frozen=True)
class Strip:
    """Rows that show the same frames, with a heading for each of the T frames."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[FrameRow, ...]


def sheet(title: str, strips: Sequence[Strip], legend: Image.Image | None = None) -> Image.Image:
    """All strips below each other, a row a line, a frame a column."""
    gutter = max(width_of(row.label) for strip in strips for row in strip.rows) + 2 * GAP
    parts = [_strip(strip, gutter) for strip in strips]
    return framed(below([line(title), *parts, *([] if legend is None else [legend])], gap=MARGIN))


def animation(title: str, strips: Sequence[Strip]) -> list[Image.Image]:
    """A picture for each point in time: a strip a line, its rows side by side.

    Strips must have as many frames as each other, and the same rows.
    """
    pictures = []
    for time in range(len(strips[0].headings)):
        parts = []
        for strip in strips:
            tiles = [_tile(row.frames[time], ANIMATED_SIDE) for row in strip.rows]
            names = [line(row.label, tile.width) for row, tile in zip(strip.rows, tiles, strict=True)]
            parts.append(below([line(strip.caption), beside(names), beside(tiles)]))
        pictures.append(framed(below([line(title), *parts], gap=MARGIN)))
    return pictures


def _strip(strip: Strip, gutter: int) -> Image.Image:
    shown = evenly_spaced(len(strip.headings), MAX_COLUMNS)
    side = _tile(strip.rows[0].frames[0]).width
    headings = [line("", gutter), *(line(strip.headings[i], side) for i in shown)]
    rows = [
        beside([line(row.label, gutter), *(_tile(row.frames[i]) for i in shown)], middle=True)
        for row in strip.rows
    ]
    return below([line(strip.caption), beside(headings), *rows])


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / max(1, most - 1)) for i in range(most)]


def line(text: str, width: int | None = None) -> Image.Image:
    """A line of text; cut, with three dots, where it is wider than ``width`` pixels."""
    text = text if width is None else cut(text, width)
    picture = Image.new("RGB", (width_of(text) if width is None else width, LINE), PAPER)
    ImageDraw.Draw(picture).text((0, LINE // 2), text, fill=INK, font=font(), anchor="lm")
    return picture


def cut(text: str, width: int, size: int = _TEXT_SIZE) -> str:
    """The text, or as much of its beginning as fits into ``width`` pixels with three dots after it."""
    if width_of(text, size) <= width:
        return text
    kept = next(n for n in range(len(text), -1, -1) if n == 0 or width_of(text[:n] + "...", size) <= width)
    return text[:kept] + "..." if kept else ""


@cache
def font(size: int = _TEXT_SIZE) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters that everything is written in.

    Args:
        size: in pixels.
    """
    return ImageFont.load_default(size)


def width_of(text: str, size: int = _TEXT_SIZE) -> int:
    """Of a line of text, in pixels."""
    return math.ceil(font(size).getlength(text)) + 1


def _tile(frame: Tensor, least: int = SHEET_SIDE) -> Image.Image:
    """A frame [H, W, 3]; every pixel becomes a square such that no side of the frame is below ``least``."""
    factor = max(1, -(-least // min(frame.shape[:2])))
    enlarged = frame.repeat_interleave(factor, dim=0).repeat_interleave(factor, dim=1)
    return Image.fromarray(enlarged.numpy())


def below(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Below each other, at the left edge."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (max(picture.width for picture in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + gap
    return whole


def beside(pictures: Sequence[Image.Image], *, middle: bool = False) -> Image.Image:
    """Side by side, at the top or at half height."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures)), PAPER)
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, (whole.height - picture.height) // 2 if middle else 0))
        left += picture.width + GAP
    return whole


def framed(picture: Image.Image) -> Image.Image:
    """With a margin around it."""
    whole = Image.new("RGB", (picture.width + 2 * MARGIN, picture.height + 2 * MARGIN), PAPER)
    whole.paste(picture, (MARGIN, MARGIN))
    return whole


def as_frames(clip: Tensor) -> Tensor:
    """A clip [3, T, H, W] in [0, 1] as uint8 [T, H, W, 3]."""
    return (clip.permute(1, 2, 3, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def spread(cells: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Cells [t, h, w] repeated until they cover (T, H, W), each a whole multiple of t, h, w.

    Raises:
        ValueError: if it is not.
    """
    if any(fine % coarse for fine, coarse in zip(size, cells.shape, strict=True)):
        raise ValueError(f"{tuple(cells.shape)} cells do not cover {size} frames, rows and columns evenly")
    for axis, (fine, coarse) in enumerate(zip(size, cells.shape, strict=True)):
        cells = cells.repeat_interleave(fine // coarse, dim=axis)
    return cells


def heat_over(frames: Tensor, heat: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] made grey, with the colours of heat over them.

    Args:
        heat: [t, h, w] in [0, 1], on cells that cover whole numbers of frames, rows and columns.
    """
    time, height, width = frames.shape[:3]
    luma = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    grey = (frames.float() @ luma).unsqueeze(-1)
    colours = heat_colours(spread(heat, (time, height, width))).float()
    return (HEAT_WEIGHT * colours + (1 - HEAT_WEIGHT) * grey).round().to(torch.uint8)


def heat_colours(values: Tensor) -> Tensor:
    """Colours uint8 [..., 3] of values [...] in [0, 1]: from nearly black over red to pale yellow."""
    ramp = _ramp()
    return ramp[(values.clamp(0, 1) * (len(ramp) - 1)).round().long()]


@cache
def _ramp() -> Tensor:
    """256 colours whose lightness rises evenly in Oklab (Ottosson 2020), uint8 [256, 3].

    Whoever sees no colours still sees the order, and equal steps of value look equally large.
    """
    place = torch.linspace(0, 1, 256, dtype=torch.float64)
    lightness = 0.12 + 0.86 * place
    hue = torch.deg2rad(290 + 180 * place)  # violet, red, orange, yellow
    chroma = 0.04 + 0.16 * (math.pi * place).sin()
    lab = torch.stack((lightness, chroma * hue.cos(), chroma * hue.sin()), dim=1)
    return _srgb(lab)


def _srgb(lab: Tensor) -> Tensor:
    """Oklab [N, 3] as sRGB uint8 [N, 3]; what no screen shows is cut."""
    to_cones = torch.tensor(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    ).double()
    to_linear = torch.tensor(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    ).double()
    linear = ((lab @ to_cones.T) ** 3 @ to_linear.T).clamp(0, 1)
    gamma = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (gamma * 255).round().to(torch.uint8)


def colour_bar(low: str, high: str) -> Image.Image:
    """The ramp of ``heat_colours`` as it looks over a grey frame's middle, with a word at each end."""
    steps = torch.linspace(0, 1, 256).expand(LINE, 256)
    grey = torch.full((1, LINE, 256, 3), 128, dtype=torch.uint8)
    bar = Image.fromarray(heat_over(grey, steps.unsqueeze(0))[0].numpy())
    return beside([line(low), bar, line(high)])


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG file in one piece; the same picture gives the same bytes.

    Raises:
        UsageError: if it cannot be written.
    """
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def webp(pictures: Sequence[Image.Image]) -> bytes:
    """Pictures of one size as a WebP file: an animation without end, a single one without loss."""
    data = io.BytesIO()
    first, *others = pictures
    if others:
        settings = {"save_all": True, "append_images": others, "loop": 0, "quality": WEBP_QUALITY}
        first.save(data, format="WEBP", duration=FRAME_MILLISECONDS, **settings)
    else:
        first.save(data, format="WEBP", lossless=True)
    return data.getvalue()


def save_webp(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write ``webp`` into a file in one piece.

    Raises:
        UsageError: if it cannot be written.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(webp(pictures))

    write_atomically(path, write)
