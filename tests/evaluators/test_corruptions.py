"""Corrupted clips: how strong they are, what they draw, and what becomes of their scores."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import ndimage
from torch import Tensor

from vidssl.build import build
from vidssl.config.protocol import FrameOrder, load_protocol
from vidssl.errors import UsageError
from vidssl.evaluate.report import score_tables
from vidssl.evaluators.corruptions import STRENGTHS, corrupted, is_corrupted
from vidssl.evaluators.differences import MEAN, LabelledVideos, folded, network_differences
from vidssl.evaluators.features import in_order
from vidssl.evaluators.scores import Score

VIDEOS = torch.arange(6)
KINDS = pytest.mark.parametrize("kind", STRENGTHS)


def clips(frames: int = 8, side: int = 96) -> Tensor:
    """Smooth clips that brighten from frame to frame."""
    y, x = torch.meshgrid(torch.linspace(0, 6, side), torch.linspace(0, 9, side), indexing="ij")
    picture = 0.3 + 0.2 * torch.sin(y) * torch.cos(x)
    return (picture + torch.arange(frames)[:, None, None] * 0.03).expand(6, 3, -1, -1, -1).contiguous()


def test_names_are_kinds_and_strengths() -> None:
    names = [name for name in get_args(FrameOrder) if is_corrupted(name)]
    assert names == [f"{kind}-{n}" for kind in STRENGTHS for n in range(1, 6)]
    assert load_protocol("corruption").frames == ("normal", *names)
    build.check_any_protocol(load_protocol("corruption"))


@KINDS
def test_a_stronger_corruption_takes_a_clip_further_away(kind: str) -> None:
    clip = clips()
    errors = [
        float((corrupted(clip, f"{kind}-{n}", VIDEOS, draw=0) - clip).square().mean()) for n in range(1, 6)
    ]
    assert errors == sorted(errors)
    assert 0 < errors[0] < errors[-1]


@KINDS
def test_what_is_random_depends_on_the_video_and_not_on_its_batch(kind: str) -> None:
    clip = clips()
    whole = in_order(clip, f"{kind}-3", VIDEOS, draw=1)
    assert whole.shape == clip.shape
    assert 0 <= whole.min() <= whole.max() <= 1
    assert torch.equal(whole[4:5], corrupted(clip[4:5], f"{kind}-3", VIDEOS[4:5], draw=1))
    drawn = kind not in ("blur", "jpeg")
    assert drawn == (not torch.equal(whole[0], whole[1]))
    assert drawn == (not torch.equal(whole, corrupted(clip, f"{kind}-3", VIDEOS, draw=2)))


def test_strengths_are_those_of_imagenet_c() -> None:
    grey = torch.full((6, 3, 4, 64, 64), 0.5)
    assert float(corrupted(grey, "noise-1", VIDEOS, draw=0).std()) == pytest.approx(0.08, rel=0.02)
    clip = torch.rand(1, 3, 2, 224, 224, generator=torch.Generator().manual_seed(0))
    blurred = ndimage.gaussian_filter(clip.numpy(), (0, 0, 0, 3, 3), mode="mirror")
    assert np.allclose(corrupted(clip, "blur-3", VIDEOS[:1], draw=0).numpy(), blurred, atol=2e-3)
    small = clip[..., :112, :112].contiguous()  # half the side, half the width
    blurred = ndimage.gaussian_filter(small.numpy(), (0, 0, 0, 1.5, 1.5), mode="mirror")
    assert np.allclose(corrupted(small, "blur-3", VIDEOS[:1], draw=0).numpy(), blurred, atol=2e-3)


def test_frames_are_lost_and_frozen_and_more_of_them_at_each_strength() -> None:
    clip, before = clips(), torch.zeros(6, 8, dtype=torch.bool)
    for n, share in enumerate(STRENGTHS["dropped"], 1):
        black = (corrupted(clip, f"dropped-{n}", VIDEOS, draw=0) == 0).all(4).all(3).all(1)
        frozen = corrupted(clip, f"frozen-{n}", VIDEOS, draw=0)
        still = (frozen[:, :, 1:] == frozen[:, :, :-1]).all(4).all(3).all(1)
        assert black.sum(1).tolist() == [math.floor(8 * share + 0.5)] * 6
        assert not black[:, 0].any()
        assert torch.equal(black[:, 1:], still)  # the same frames
        assert (black >= before).all()
        before = black
    assert torch.equal(corrupted(clip[:, :, :1], "dropped-5", VIDEOS, draw=0), clip[:, :, :1])


def test_stored_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="no pixels to corrupt"):
        in_order(torch.zeros(2, 4, 3, 3, dtype=torch.long), "noise-1", VIDEOS[:2], draw=0)


def score(frames: str, top1: float, predicted: tuple[int, ...] = (0, 1)) -> Score:
    return Score(
        label="digit",
        frames=frames,
        top1=top1,
        low=top1 - 0.1,
        high=top1 + 0.1,
        class_mean=top1,
        chance=0.1,
        num_train=9,
        num_test=2,
        predicted=predicted,
    )


ROWS = [score("normal", 0.9), score("noise-1", 0.8), score("noise-5", 0.4), score("blur-1", 0.7)]
OTHERS = [score("normal", 0.5), score("noise-1", 0.3), score("noise-5", 0.1), score("blur-1", 0.2)]


def test_a_comparison_shows_the_mean_of_all_corruptions_and_tests_none() -> None:
    clean, mean = folded(ROWS)
    assert clean == ROWS[0]
    assert (mean.setting, mean.top1, len(mean.draws)) == (MEAN, pytest.approx(1.9 / 3), 3)
    assert folded(ROWS[:1]) == ROWS[:1]
    tested = {"digit": LabelledVideos((0, 1))}
    found = network_differences({"trained": ROWS, "untrained": OTHERS}, tested)
    assert [each.row.frames for each in found] == ["normal"]


def test_the_table_has_a_row_for_each_corruption_and_the_mean() -> None:
    tables = score_tables({"trained": ROWS, "untrained": OTHERS}, "corruption of a run")
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    lines = [line.replace("│", " ").split() for line in captured.get().splitlines()]
    assert ["clean", "90.0", "50.0"] in lines
    assert ["noise", "80.0", "-", "-", "-", "40.0", "60.0", "20.0"] in lines
    assert ["blur", "70.0", "-", "-", "-", "-", "70.0", "20.0"] in lines
    assert [*MEAN.split(), "63.3", "20.0"] in lines
    assert len(tables) == 2
