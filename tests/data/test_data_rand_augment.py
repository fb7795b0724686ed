"""Augmentation for finetuning: RandAugment's operations, who gets which, and boxes that are erased."""

import math

import pytest
import torch
from ramp import seeded
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as images

from vidssl.data.augment.batch import numbers_of_rows
from vidssl.data.augment.rand_augment import OPERATIONS, FinetuneAugment, erased
from vidssl.interfaces import Batch

OFF = {"flip": 0.0, "num_ops": 0, "erase": 0.0}


def augmented(pixels: Tensor, seed: int = 0, **keys) -> Tensor:
    given = FinetuneAugment(**(OFF | keys))(Batch(views={"clip": (pixels,)}), seeded(seed))
    return given.views["clip"][0]


def affine(frames: Tensor, **keys) -> Tensor:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": [0.5] * 3}
    return images.affine(frames, interpolation=InterpolationMode.BILINEAR, **(settings | keys))


# what each does at magnitude 20 of 30 to a frame 24 wide and 18 high, by torchvision's own functions
AT_TWENTY = {
    "identity": lambda f, sign: f,
    "shear_x": lambda f, sign: affine(f, shear=[sign * math.degrees(math.atan(0.2)), 0.0], center=[0, 0]),
    "shear_y": lambda f, sign: affine(f, shear=[0.0, sign * math.degrees(math.atan(0.2))], center=[0, 0]),
    "translate_x": lambda f, sign: affine(f, translate=[sign * 7, 0]),
    "translate_y": lambda f, sign: affine(f, translate=[0, sign * 5]),
    "rotate": lambda f, sign: images.rotate(f, sign * 20.0, InterpolationMode.BILINEAR, fill=[0.5] * 3),
    "brightness": lambda f, sign: images.adjust_brightness(f, 1 + sign * 0.6),
    "colour": lambda f, sign: images.adjust_saturation(f, 1 + sign * 0.6),
    "contrast": lambda f, sign: images.adjust_contrast(f, 1 + sign * 0.6),
    "sharpness": lambda f, sign: images.adjust_sharpness(f, 1 + sign * 0.6),
    "posterise": lambda f, sign: images.posterize(f, 5),
    "solarise": lambda f, sign: images.solarize(f, 1 / 3),
    "auto_contrast": lambda f, sign: images.autocontrast(f),
    "equalise": lambda f, sign: images.equalize(f),
}


def test_each_clip_gets_one_of_the_fourteen_operations_in_all_frames_and_all_are_drawn_alike() -> None:
    pixels = (torch.rand(120, 3, 2, 18, 24, generator=seeded(0)) * 0.8 + 0.1).round(decimals=3)
    after = augmented(pixels, num_ops=1, magnitude=20.0)
    assert list(AT_TWENTY) == list(OPERATIONS)
    frames, found = pixels.transpose(1, 2).flatten(0, 1), set()
    expected = {
        (name, sign): operation(frames, sign).unflatten(0, (120, 2))
        for name, operation in AT_TWENTY.items()
        for sign in ((1, -1) if OPERATIONS[name].signed else (1,))
    }
    for row, given in enumerate(after.transpose(1, 2)):
        matches = {one for one, clips in expected.items() if (clips[row] - given).abs().max() < 1e-4}
        assert len(matches) == 1
        found |= matches
    assert {name for name, _ in found} == set(OPERATIONS)
    assert all({(name, 1), (name, -1)} <= found for name in OPERATIONS if OPERATIONS[name].signed)


def test_operations_are_drawn_alike_often() -> None:
    picks = (numbers_of_rows(seeded(0), 2800, 1) * len(OPERATIONS)).long().flatten()
    assert picks.bincount(minlength=14).min() > 140


def test_several_operations_follow_each_other() -> None:
    pixels = torch.rand(60, 3, 1, 10, 10, generator=seeded(0))
    share = [
        float((augmented(pixels, num_ops=count) != pixels).flatten(1).any(1).float().mean())
        for count in (0, 1, 4)
    ]
    assert share[0] == 0.0
    assert 0.75 < share[1] < 1.0
    assert share[2] > share[1]


def test_magnitude_nought_changes_next_to_nothing_and_more_changes_more() -> None:
    pixels = torch.rand(100, 3, 1, 12, 12, generator=seeded(0)) * 0.8 + 0.1
    change = [
        float((augmented(pixels, num_ops=1, magnitude=m) - pixels).abs().flatten(1).mean(1).median())
        for m in (0.0, 10.0, 30.0)
    ]
    assert change[0] < 1e-3
    assert change[0] < change[1] < change[2]


def test_equal_frames_stay_equal() -> None:
    still = torch.rand(20, 3, 1, 16, 16, generator=seeded(1)).expand(-1, -1, 4, -1, -1)
    kept = still.clone()
    after = augmented(still, flip=0.5, num_ops=3, erase=0.5)
    assert torch.equal(still, kept)
    torch.testing.assert_close(after, after[:, :, :1].expand_as(after))


def test_flips_take_as_many_clips_as_asked_for() -> None:
    pixels = torch.rand(300, 3, 1, 2, 4, generator=seeded(0))
    after = augmented(pixels, flip=0.3)
    flipped = (after == pixels.flip(-1)).flatten(1).all(1)
    assert bool((flipped | (after == pixels).flatten(1).all(1)).all())
    assert float(flipped.float().mean()) == pytest.approx(0.3, abs=0.08)


def test_a_box_of_the_mean_colour_is_erased_through_all_frames() -> None:
    pixels = torch.zeros(200, 3, 3, 20, 30)
    after = augmented(pixels, erase=0.25)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
    gone = (after == mean).all(1)
    assert torch.equal(after, torch.where(gone[:, None], mean, 0.0))
    assert torch.equal(gone, gone[:, :1].expand_as(gone))
    assert float(gone.flatten(1).any(1).float().mean()) == pytest.approx(0.25, abs=0.09)


def test_boxes_have_the_areas_and_shapes_asked_for_anywhere_in_the_frame() -> None:
    masks = erased(40, 60, numbers_of_rows(seeded(0), 400, 40).unflatten(1, (10, 4)), (0.1, 0.3), (0.5, 2.0))
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    assert torch.equal(masks.flatten(1).sum(1), rows * columns)  # rectangles
    assert bool((rows > 0).all())
    areas, shapes = rows * columns / 2400, rows / columns
    assert 0.09 < float(areas.min()) < 0.12
    assert 0.27 < float(areas.max()) < 0.32
    assert float(areas.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(shapes.min()) > 0.45
    assert float(shapes.max()) < 2.2
    seen = masks.any(0)
    assert bool(seen[0].any() & seen[-1].any() & seen[:, 0].any() & seen[:, -1].any())


def test_a_box_too_large_is_drawn_anew() -> None:
    numbers = numbers_of_rows(seeded(0), 300, 40).unflatten(1, (10, 4))
    masks = erased(20, 20, numbers, (0.6, 0.9), (0.3, 3.0))
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    assert float((rows > 0).float().mean()) > 0.9
    alone = erased(20, 20, numbers[:, :1], (0.6, 0.9), (0.3, 3.0)).flatten(1).any(1)
    assert float(alone.float().mean()) < 0.6
    found = rows > 0
    assert bool((rows[found] < 20).all() & (columns[found] < 20).all())
    assert bool((rows * columns >= 0.55 * 400)[found].all())


def test_flips_and_boxes_are_drawn_apart() -> None:
    pixels = torch.rand(400, 3, 1, 12, 12, generator=seeded(0))
    chosen = torch.stack(
        [(augmented(pixels, **{key: 0.5}) != pixels).flatten(1).any(1) for key in ("flip", "erase")]
    )
    assert abs(float(torch.corrcoef(chosen.float())[0, 1])) < 0.2


def test_a_box_that_never_fits_erases_nothing() -> None:
    numbers = numbers_of_rows(seeded(0), 10, 40).unflatten(1, (10, 4))
    assert not erased(4, 400, numbers, (0.9, 0.9), (1.0, 1.0)).any()


def test_what_a_clip_becomes_does_not_depend_on_the_others() -> None:
    slots = tuple(torch.rand(16, 3, frames, 12, 12, generator=seeded(frames)) for frames in (3, 2))
    augment = FinetuneAugment(erase=0.5, num_ops=2, magnitude=15.0)
    whole = augment(Batch(views={"slow": slots[:1], "fast": slots[1:]}), seeded(5)).views
    cut = {"slow": (slots[0][:4],), "fast": (slots[1][:4],)}
    few = augment(Batch(views=cut), seeded(5)).views
    for name in cut:
        torch.testing.assert_close(whole[name][0][:4], few[name][0])


def test_labels_and_numbers_are_kept() -> None:
    batch = Batch(
        views={"clip": (torch.rand(3, 3, 1, 4, 4),)},
        indices={"video": torch.arange(3)},
        labels={"video": {"class": torch.arange(3)}},
    )
    given = FinetuneAugment()(batch, seeded(0))
    assert given.labels is batch.labels
    assert given.indices is batch.indices


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"flip": 2.0}, "flip must lie between 0 and 1"),
        ({"num_ops": -1}, "num_ops must be at least 0"),
        ({"magnitude": 31.0}, "magnitude must lie between 0 and 30"),
        ({"erase": -0.5}, "erase must lie between 0 and 1"),
        ({"erase_area": (0.5, 1.5)}, "erase_area must be two numbers above 0 and at most 1"),
        ({"erase_aspect": (2.0, 1.0)}, "erase_aspect must be two numbers above 0"),
        ({"fill": 1.5}, "fill must lie between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(keys, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinetuneAugment(**keys)
