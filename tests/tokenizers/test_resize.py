"""Halving frames for a tokenizer: the published kernels to the last level, and what sets them apart."""

import math

import numpy as np
import pytest
import torch
from bevt_reference import load
from PIL import Image

from vidssl.tokenizers.frame_networks import KERNELS, ResizeKernel, halve

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def frames(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [H, W, 3] as [1, 3, H, W] in [0, 1]."""
    return pixels.permute(2, 0, 1)[None].float() / 255


def pixels(frames: torch.Tensor) -> torch.Tensor:
    return (frames[0] * 255).permute(1, 2, 0)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("opencv_lanczos4", "official_lanczos4_no_antialias"),
        ("pillow_lanczos", "pil_lanczos_antialias"),
    ],
)
def test_published_kernels_agree_on_every_pixel(kernel: ResizeKernel, name: str) -> None:
    golden = load("resize")
    assert torch.equal(pixels(halve(frames(golden["image_u8"]), kernel)).round().byte(), golden[name])


@pytest.mark.parametrize("size", [(2, 2), (6, 10), (74, 50)])
def test_pillow_s_kernel_is_pillow_s_at_any_size(size: tuple[int, int]) -> None:
    height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.array(Image.fromarray(noise).resize((width // 2, height // 2), Image.Resampling.LANCZOS))
    ours = pixels(halve(frames(torch.from_numpy(noise)), "pillow_lanczos")).round().byte()
    assert torch.equal(ours, torch.from_numpy(expected))


def test_opencv_s_kernel_is_an_eight_tap_lanczos_along_each_axis() -> None:
    """Beside the sums written out in floating point; OpenCV's 11-bit weights cost less than two levels."""
    image = torch.randint(0, 256, (8, 12, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    distances = [k - 3.5 for k in range(8)]
    weights = [math.sin(math.pi * d) * math.sin(math.pi * d / 4) / d**2 for d in distances]
    weights = [w / sum(weights) for w in weights]

    def line(values: list[float]) -> list[float]:
        clamped = [
            [min(max(2 * i - 3 + k, 0), len(values) - 1) for k in range(8)] for i in range(len(values) // 2)
        ]
        return [sum(w * values[j] for w, j in zip(weights, row, strict=True)) for row in clamped]

    channel = image[:, :, 0].tolist()
    columns = list(zip(*(line(row) for row in channel), strict=True))
    expected = torch.tensor([line(list(column)) for column in columns]).t().clamp(0, 255)
    ours = pixels(halve(frames(image), "opencv_lanczos4"))[:, :, 0]
    assert (ours - expected).abs().max() < 2


@every_kernel
def test_flat_frames_stay_as_they_are(kernel: ResizeKernel) -> None:
    for level in (0, 1, 77, 254, 255):
        flat = torch.full((2, 3, 8, 12), level / 255)
        halved = halve(flat, kernel)
        assert halved.shape == (2, 3, 4, 6)
        assert halved.dtype == torch.float32
        torch.testing.assert_close(halved, flat[:, :, :4, :6])


@every_kernel
def test_results_stay_within_0_and_1(kernel: ResizeKernel) -> None:
    edges = (torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    halved = halve(edges, kernel)
    assert halved.min() >= 0
    assert halved.max() <= 1


@pytest.mark.parametrize(
    ("kernel", "whole"), [("opencv_lanczos4", True), ("pillow_lanczos", True), ("area", False)]
)
def test_only_the_published_kernels_round_to_256_levels(kernel: ResizeKernel, whole: bool) -> None:
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    levels = halve(noise, kernel) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4) == whole
    on_levels = (noise * 255).round() / 255
    assert torch.equal(halve(noise, kernel), halve(on_levels, kernel)) == whole


def test_area_is_the_mean_of_four() -> None:
    noise = torch.rand(2, 3, 4, 6)
    torch.testing.assert_close(halve(noise, "area"), noise.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)))


def test_only_the_kernel_without_a_low_pass_keeps_what_is_too_fine_for_the_halved_size() -> None:
    stripes = (torch.arange(48) % 3 == 0).float().expand(1, 3, 8, 48)  # a third of a cycle a pixel
    contrast = {kernel: float(halve(stripes, kernel)[..., 4:-4].std()) for kernel in KERNELS}
    assert contrast["opencv_lanczos4"] > 0.25
    assert max(contrast["pillow_lanczos"], contrast["bicubic"]) < 0.1


@every_kernel
def test_a_frame_does_not_depend_on_the_batch(kernel: ResizeKernel) -> None:
    noise = torch.rand(5, 3, 16, 24)
    assert torch.equal(halve(noise, kernel)[3:4], halve(noise[3:4], kernel))


def test_odd_sides_and_unknown_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="even sides, got 7x8"):
        halve(torch.zeros(1, 3, 7, 8), "area")
    with pytest.raises(ValueError, match="no resize kernel 'lanczos'"):
        halve(torch.zeros(1, 3, 8, 8), "lanczos")
