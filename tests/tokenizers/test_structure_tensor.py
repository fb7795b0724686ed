"""The structure tensor's words: what they depend on, and what they do not."""

import math

import pytest
import torch
from torch import Tensor

from vidssl.tokenizers.structure_tensor import StructureTensor, describe

CELL = (2, 8, 8)


def grating(
    angle: float = 0.0,
    wavelength: float = 8.0,
    speed: float = 0.0,
    *,
    phase: float = 0.0,
    contrast: float = 0.3,
) -> Tensor:
    """Stripes that lie across ``angle`` and move along it, in pixels a frame: [1, 3, 8, 48, 48]."""
    time, down, right = (torch.arange(size).float() for size in (8, 48, 48))
    along = math.cos(angle) * right + math.sin(angle) * down[:, None] - speed * time[:, None, None]
    grey = 0.5 + contrast * torch.cos(2 * math.pi * along / wavelength + phase)
    return grey.expand(1, 3, -1, -1, -1)


def middle(clip: Tensor) -> Tensor:
    """The numbers of a cell in the middle, [6]."""
    return describe(clip, CELL)[0, 1, 3, 3]


@pytest.mark.parametrize("angle", [0.0, 0.5, 1.2, 2.5])
def test_orientation_is_told_by_the_double_angle(angle: float) -> None:
    even, odd = middle(grating(angle))[:2]
    assert float(even) == pytest.approx(math.cos(2 * angle), abs=0.05)
    assert float(odd) == pytest.approx(math.sin(2 * angle), abs=0.05)


def test_motion_is_told_with_its_sign_and_its_speed() -> None:
    for speed in (-1.0, -0.5, 0.5, 1.0):
        numbers = middle(grating(0.7, 12.0, speed))
        assert float(numbers[3]) == pytest.approx(-2 * speed * math.cos(0.7), rel=0.1)
        assert float(numbers[4]) == pytest.approx(-2 * speed * math.sin(0.7), rel=0.1)
        assert float(numbers[5]) == pytest.approx(abs(speed), rel=0.1)


def test_finer_stripes_have_a_higher_frequency() -> None:
    fine, coarse = (float(middle(grating(wavelength=length))[2]) for length in (8.0, 16.0))
    assert fine - coarse == pytest.approx(2 * math.log(2), abs=0.5)


def test_neither_phase_nor_contrast_nor_colour_is_told() -> None:
    plain = middle(grating(0.4, 8.0, 1.0))
    tinted = grating(0.4, 8.0, 1.0) * torch.tensor([0.9, 0.4, 0.6]).view(1, 3, 1, 1, 1)
    for other in (grating(0.4, 8.0, 1.0, phase=2.0), grating(0.4, 8.0, 1.0, contrast=0.15), tinted):
        assert torch.allclose(middle(other), plain, atol=0.06)


def test_an_image_is_a_clip_that_stands_still() -> None:
    clip = grating(0.4, 8.0)
    image = describe(clip[:, :, :1], CELL)
    assert image.shape == (1, 1, 6, 6, 6)
    assert torch.allclose(image, describe(clip, CELL)[:, :1], atol=1e-5)


def test_a_code_is_drawn_as_the_wave_it_stands_for() -> None:
    tokenizer = StructureTensor(vocab_size=2)
    wanted = middle(grating(0.9, 12.0, 1.0))
    tokenizer.codebook[0] = wanted / tokenizer.spreads
    drawn = tokenizer.decode(torch.zeros(1, 4, 6, 6, dtype=torch.int64))
    assert drawn.shape == (1, 3, 8, 48, 48)
    assert torch.allclose(middle(drawn), wanted, atol=0.15)


def test_codes_of_still_frames_are_learned_beside_those_of_moving_ones() -> None:
    torch.manual_seed(0)
    tokenizer = StructureTensor(vocab_size=8)
    moving = torch.cat([grating(angle, 9.0, 1.5) for angle in (0.0, 0.8, 1.6, 2.4)])
    for _ in range(40):
        tokenizer.reconstruct(moving)
        tokenizer.update_codebook(torch.Generator().manual_seed(0))
    speeds = (tokenizer.codebook * tokenizer.spreads)[:, 5]
    assert float(speeds.min()) < 0.1
    assert float(speeds.max()) > 1.0
    assert not set(tokenizer.encode(moving).unique().tolist()) & set(
        tokenizer.encode(moving[:, :, :1]).unique().tolist()
    )


@pytest.mark.parametrize("keys", [{"stride": 4}, {"temporal_stride": 3}, {"vocab_size": 0}])
def test_impossible_keys_are_refused(keys: dict) -> None:
    with pytest.raises(ValueError, match="stride must be 8 or 16, temporal_stride 1, 2 or 4 and vocab_size"):
        StructureTensor(**keys)
