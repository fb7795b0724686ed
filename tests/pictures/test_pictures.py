"""Sheets, animations and heat: where each pixel lands, and what colour it has."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.pictures.pages import (
    HEAT_WEIGHT,
    MAX_COLUMNS,
    FrameRow,
    Strip,
    animation,
    as_frames,
    colour_bar,
    evenly_spaced,
    heat_colours,
    heat_over,
    line,
    save_png,
    save_webp,
    sheet,
    spread,
)


def coloured(row: int, count: int, height: int = 48, width: int = 48) -> Tensor:
    """Frames of one colour each: the row in green, the number in blue, red full so that no text has it."""
    frames = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    frames[..., 0], frames[..., 1] = 255, 10 * row
    frames[..., 2] = torch.arange(count)[:, None, None]
    return frames


def strip(count: int, rows: int = 2, height: int = 48, width: int = 48) -> Strip:
    return Strip(
        "a caption",
        tuple(f"frame {i + 1}" for i in range(count)),
        tuple(FrameRow(f"row {i}", coloured(i, count, height, width)) for i in range(rows)),
    )


def box(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of a colour, which must fill that rectangle."""
    found = (np.asarray(picture) == colour).all(axis=-1)
    rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    assert found.sum() == len(rows) * len(columns) > 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_frames_stand_in_rows_and_columns_enlarged_by_a_whole_factor() -> None:
    picture = sheet("a title", [strip(3)])
    boxes = [[box(picture, (255, 10 * row, i)) for i in range(3)] for row in range(2)]
    for left, top, right, bottom in boxes[0] + boxes[1]:
        assert (right - left, bottom - top) == (96, 96)
    for row in boxes:
        assert len({(top, bottom) for _, top, _, bottom in row}) == 1
        assert all(before[2] < after[0] for before, after in pairwise(row))
    assert [b[0] for b in boxes[0]] == [b[0] for b in boxes[1]]
    assert boxes[0][0][3] < boxes[1][0][1]


def test_large_frames_keep_their_size_and_may_be_oblong() -> None:
    left, top, right, bottom = box(sheet("t", [strip(1, height=100, width=150)]), (255, 0, 0))
    assert (right - left, bottom - top) == (150, 100)


def test_every_pixel_of_a_small_frame_becomes_a_square() -> None:
    frame = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    frame[0, 5, 7] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    picture = sheet("t", [Strip("c", ("f",), (FrameRow("r", frame),))])
    left, top, right, bottom = box(picture, (255, 0, 0))
    assert (right - left, bottom - top) == (3, 3)


def test_of_long_clips_a_sheet_shows_evenly_spaced_frames_and_an_animation_all() -> None:
    picture = sheet("t", [strip(16, rows=1)])
    colours = [colour for _, colour in picture.getcolors(1 << 24) or []]
    shown = [i for i in range(16) if (255, 0, i) in colours]
    assert shown == evenly_spaced(16, MAX_COLUMNS) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert len(animation("t", [strip(16, rows=1)])) == 16


def test_strips_of_a_sheet_stand_below_each_other_with_the_legend_last() -> None:
    first = Strip("c", ("f",), (FrameRow("r", coloured(0, 1)),))
    second = Strip("c", ("f",), (FrameRow("r", coloured(5, 1)),))
    legend = Image.new("RGB", (50, 10), (255, 200, 0))
    picture = sheet("t", [first, second], legend)
    tops = [box(picture, colour)[1] for colour in ((255, 0, 0), (255, 50, 0), (255, 200, 0))]
    assert tops == sorted(tops)
    assert len(set(tops)) == 3


def test_an_animation_has_rows_side_by_side_and_one_moment_in_each_picture() -> None:
    pictures = animation("t", [strip(3)])
    for number, picture in enumerate(pictures):
        left, right = (box(picture, (255, 10 * row, number)) for row in range(2))
        assert left[2] < right[0]
        assert left[1] == right[1]
    assert len({picture.size for picture in pictures}) == 1


def test_text_is_drawn_and_cut_to_its_width() -> None:
    whole, cut = line("a rather long heading"), line("a rather long heading", 60)
    assert whole.width > 100
    assert cut.width == 60
    for picture in (whole, cut):
        assert np.asarray(picture).min() < 100  # dark ink on light paper
    assert np.asarray(line("", 10)).min() > 200
    assert line("long", 2).width == 2


def test_a_clip_becomes_bytes_frame_by_frame() -> None:
    clip = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    frames = as_frames(clip)
    assert frames.shape == (2, 4, 5, 3)
    assert frames.dtype == torch.uint8
    assert frames[1, 2, 3, 0] == round(float(clip[0, 1, 2, 3]) * 255)
    assert as_frames(torch.tensor([-1.0, 2.0, 0.5]).view(3, 1, 1, 1)).flatten().tolist() == [0, 255, 128]


def test_one_hot_cell_lights_exactly_its_own_pixels() -> None:
    frames = torch.zeros(4, 16, 24, 3, dtype=torch.uint8)
    heat = torch.zeros(2, 2, 3)
    heat[1, 0, 2] = 1.0
    over = heat_over(frames, heat)
    lit = (over != over[0, 0, 0]).any(dim=-1)
    expected = torch.zeros(4, 16, 24, dtype=torch.bool)
    expected[2:4, 0:8, 16:24] = True
    assert torch.equal(lit, expected)
    hot = heat_colours(torch.tensor(1.0)).float() * HEAT_WEIGHT
    assert torch.equal(over[2, 0, 16].float(), hot.round())


def test_under_the_heat_the_frame_is_still_seen_without_its_colour() -> None:
    frames = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]], dtype=torch.uint8)
    over = heat_over(frames.view(1, 1, 4, 3), torch.zeros(1, 1, 1))[0, 0].int()
    added = over - over[0]
    grey = 255 * (1 - HEAT_WEIGHT) * torch.tensor([0, 0.299, 0.587, 1])  # BT.601's weights
    assert (added - grey[:, None]).abs().max() <= 1  # both are rounded


def test_cells_that_do_not_cover_the_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        spread(torch.zeros(2, 3, 3), (4, 8, 9))


def test_the_ramp_grows_lighter_all_along() -> None:
    colours = heat_colours(torch.linspace(0, 1, 256)).double() / 255
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722]).double()
    assert (luminance.diff() > 0).double().mean() > 0.99
    assert luminance[0] < 0.01
    assert luminance[-1] > 0.75
    # equal steps of lightness: CIE L*, where it is a cubic root, rises nearly on a line
    lightness = 116 * luminance[luminance > 0.00886] ** (1 / 3) - 16
    tenths = lightness[::25].diff()
    assert tenths.max() < 1.6 * tenths.min()


def test_the_colour_bar_runs_from_its_low_to_its_high_end() -> None:
    bar = np.asarray(colour_bar("low", "high"))[10].astype(int)
    ends = heat_over(torch.full((1, 1, 2, 3), 128, dtype=torch.uint8), torch.tensor([[[0.0, 1.0]]]))[0, 0]
    places = [int(np.flatnonzero((bar == end.numpy()).all(axis=1)).mean()) for end in ends]
    assert places[0] < places[1]
    assert places[1] - places[0] > 200


def test_files_are_written_whole_and_twice_the_same(tmp_path: Path) -> None:
    shades = torch.arange(0, 250, 50, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 48, 48, 3)
    pictures = animation("t", [Strip("c", tuple("abcde"), (FrameRow("r", shades),))])
    for name in ("a", "b"):
        save_png(pictures[0], tmp_path / f"{name}.png")
        save_webp(pictures, tmp_path / f"{name}.webp")
    for kind in ("png", "webp"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    with Image.open(tmp_path / "a.png") as png:
        assert np.array_equal(np.asarray(png), np.asarray(pictures[0]))
    with Image.open(tmp_path / "a.webp") as moving:
        assert moving.n_frames == 5
        assert moving.info["loop"] == 0
        for number in range(5):
            moving.seek(number)
            shown = np.asarray(moving.convert("RGB")).astype(int)
            assert moving.info["duration"] == 200
            assert np.abs(shown - np.asarray(pictures[number]).astype(int)).mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.webp", "b.png", "b.webp"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        save_png(line("x"), tmp_path / "nowhere" / "a.png")
