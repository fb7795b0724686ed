"""Colour changes: each operation against torchvision's, then who is changed, how often and by which draw."""

from collections.abc import Mapping

import pytest
import torch
from ramp import seeded
from torch import Tensor
from torchvision.transforms.v2 import functional as images

from vidssl.data.augment import colour
from vidssl.data.augment.batch import ColourAugment, numbers_of_rows
from vidssl.interfaces import Batch

OFF = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}


@pytest.fixture
def clip() -> Tensor:
    """Some grey, black, white and two-coloured pixels among random ones."""
    pixels = torch.rand(4, 3, 5, 12, 17, generator=seeded(0))
    pixels[:, :, :, 0] = pixels[:, :1, :, 0]
    pixels[:, :, :, 1, :5] = 0.0
    pixels[:, :, :, 1, 5:] = 1.0
    pixels[:, 1, :, 2] = pixels[:, 0, :, 2]
    pixels[:, 2, :, 3] = pixels[:, 1, :, 3]
    return pixels


FACTORS = (0.0, 0.63, 1.0, 1.4)
SIGMAS = (0.1, 0.5, 1.3, 2.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colour.brightness, images.adjust_brightness, FACTORS),
        (lambda c, f: colour.contrast(c, f, "frame"), images.adjust_contrast, FACTORS),
        (colour.saturation, images.adjust_saturation, FACTORS),
        (colour.hue, images.adjust_hue, (-0.5, -0.13, 0.0, 0.31)),
        (lambda c, f: colour.grey(c), lambda c, f: images.rgb_to_grayscale(c, 3), FACTORS),
        (lambda c, f: colour.solarise(c, 0.4), lambda c, f: images.solarize(c, 0.4), FACTORS),
        (lambda c, f: colour.blur(c, f, 6), lambda c, f: images.gaussian_blur(c, [13, 13], [f, f]), SIGMAS),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "grey", "solarise", "blur"],
)
def test_each_operation_gives_what_torchvisions_does(clip, ours, theirs, factors) -> None:
    given = ours(clip, torch.tensor(factors))
    for row, factor in enumerate(factors):
        for frame in range(clip.shape[2]):
            expected = theirs(clip[row, :, frame], factor)
            torch.testing.assert_close(given[row, :, frame], expected, atol=1e-5, rtol=0)


def test_contrast_of_a_clip_is_about_one_grey_for_all_frames(clip: Tensor) -> None:
    given = colour.contrast(clip, torch.zeros(4), "clip")
    assert torch.equal(given, given[:, :1, :1, :1, :1].expand_as(given))
    expected = images.rgb_to_grayscale(clip[1].transpose(0, 1), 1).mean()
    torch.testing.assert_close(given[1, 0, 0, 0, 0], expected)
    by_frame = colour.contrast(clip, torch.zeros(4), "frame")
    assert (by_frame[:, 0, 0] - by_frame[:, 0, 1]).abs().min() > 1e-4


def test_a_blur_wider_than_the_frame_keeps_flat_pictures_flat() -> None:
    flat = torch.full((2, 3, 2, 3, 5), 0.7)
    torch.testing.assert_close(colour.blur(flat, torch.tensor([0.1, 9.0]), 27), flat)
    single = torch.full((1, 3, 1, 1, 1), 0.2)
    torch.testing.assert_close(colour.blur(single, torch.tensor([2.0]), 6), single)


def augmented(pixels: Tensor, seed: int = 0, **keys) -> Tensor:
    given = ColourAugment(**(OFF | keys))(Batch(views={"clip": (pixels,)}), seeded(seed))
    return given.views["clip"][0]


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).flatten(1).any(1)


@pytest.mark.parametrize(
    "keys",
    [
        {"flip": 1.0},
        {"jitter": 1.0, "hue": 0.3},
        {"grey": 1.0},
        {"blur": 1.0},
        {"solarise": 1.0},
        {"jitter": 0.8, "grey": 0.2, "flip": 0.5, "blur": 0.5, "solarise": 0.5},
    ],
    ids=lambda keys: "+".join(keys),
)
def test_equal_frames_stay_equal_unless_each_is_drawn_for(keys: Mapping[str, float]) -> None:
    still = torch.rand(8, 3, 1, 10, 10, generator=seeded(1)).expand(-1, -1, 6, -1, -1)
    kept = still.clone()
    one = augmented(still, **keys)
    assert torch.equal(one, one[:, :, :1].expand_as(one))
    assert torch.equal(still, kept)
    each = augmented(still, per_frame=True, **keys)
    if len({"jitter", "blur"} & keys.keys()):  # the others are certain, and so alike in all frames
        assert not torch.equal(each, each[:, :, :1].expand_as(each))
    else:
        torch.testing.assert_close(each, one)


def test_per_frame_changes_frames_of_one_clip_by_different_chances() -> None:
    pixels = torch.rand(6, 3, 20, 4, 4, generator=seeded(2))
    after = augmented(pixels, flip=0.5, per_frame=True)
    flipped = (after == pixels.flip(-1)).flatten(3).all(3).all(1)
    same = (after == pixels).flatten(3).all(3).all(1)
    assert bool((flipped ^ same).all())
    assert bool((flipped.sum(1) > 3).all())
    assert bool((same.sum(1) > 3).all())


@pytest.mark.parametrize("key", ["flip", "jitter", "grey", "blur", "solarise"])
@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_as_many_clips_are_changed_as_asked_for(key: str, chance: float) -> None:
    pixels = torch.rand(500, 3, 1, 4, 4, generator=seeded(3))
    keys: dict[str, object] = {key: chance}
    if key == "blur":
        keys["blur_sigma"] = (0.5, 2.0)
    share = float(changed(pixels, augmented(pixels, **keys)).float().mean())
    assert share == pytest.approx(chance, abs=0.07 if chance == 0.3 else 0.0)


def test_which_clips_are_changed_differs_from_operation_to_operation() -> None:
    pixels = torch.rand(400, 3, 1, 4, 4, generator=seeded(3))
    chosen = torch.stack(
        [changed(pixels, augmented(pixels, **{key: 0.5, "blur_sigma": (0.5, 1.0)})) for key in OFF]
    )
    correlation = torch.corrcoef(chosen.float())
    assert (correlation - torch.eye(len(OFF))).abs().max() < 0.2


@pytest.mark.parametrize("about", ["clip", "frame"])
def test_contrast_is_about_what_the_key_says(about: colour.ContrastAbout) -> None:
    pixels = torch.rand(1, 3, 4, 5, 5, generator=seeded(0)) * 0.4 + 0.3
    keys = {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "contrast": 0.5, "contrast_about": about}
    factor = 0.5 + numbers_of_rows(seeded(0), 1, 14)[:, 3]
    torch.testing.assert_close(augmented(pixels, **keys), colour.contrast(pixels, factor, about))


def test_strengths_bound_the_change() -> None:
    flat = torch.full((400, 3, 1, 2, 2), 0.5)
    drawn = augmented(flat, jitter=1.0, brightness=0.4, contrast=0.0, saturation=0.0)[:, 0, 0, 0, 0] / 0.5
    assert 0.6 <= float(drawn.min()) < 0.62
    assert 1.38 < float(drawn.max()) <= 1.4
    assert float(drawn.mean()) == pytest.approx(1.0, abs=0.04)
    red = torch.tensor([0.6, 0.2, 0.2]).view(1, 3, 1, 1, 1).expand(400, -1, -1, 2, 2)
    turned = augmented(red, jitter=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.1)
    value = turned.amax(1)
    torch.testing.assert_close(value, torch.full_like(value, 0.6))
    assert float(turned[:, 1].max()) == pytest.approx(0.2 + 0.4 * 0.6, abs=0.01)  # a tenth of six sixths
    assert float(turned[:, 2].max()) == pytest.approx(0.2 + 0.4 * 0.6, abs=0.01)


def test_a_strength_above_one_does_not_turn_brightness_negative() -> None:
    assert float(augmented(torch.full((300, 3, 1, 1, 1), 0.5), jitter=1.0, brightness=2.0).min()) >= 0


def test_the_parts_of_the_jitter_come_in_random_order() -> None:
    """Doubling then halving a bright pixel is not halving then doubling it: the cut at 1 comes between."""
    pixel = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1, 1).expand(600, -1, -1, -1, -1)
    keys = {"brightness": 0.9, "contrast": 0.0, "saturation": 0.9}
    after = augmented(pixel, jitter=1.0, **keys)
    numbers = numbers_of_rows(seeded(0), 600, 14)
    brighter, richer = (0.1 + 1.8 * numbers[:, column] for column in (2, 4))
    bright_first = colour.saturation(colour.brightness(pixel, brighter), richer)
    rich_first = colour.brightness(colour.saturation(pixel, richer), brighter)
    as_one = (after - bright_first).abs().flatten(1).amax(1) < 1e-6
    as_other = (after - rich_first).abs().flatten(1).amax(1) < 1e-6
    assert bool((as_one | as_other).all())
    differ = as_one ^ as_other
    assert int(differ.sum()) > 100
    assert float(as_one[differ].float().mean()) == pytest.approx(0.5, abs=0.12)


def test_chances_are_per_view_and_slot() -> None:
    slots = tuple(torch.rand(60, 3, 2, 6, 6, generator=seeded(n)) for n in range(4))
    batch = Batch(views={"global": slots[:2], "local": slots[2:], "image": slots[:1]})
    keys = OFF | {"blur": {"global": (1.0, 0.0), "local": (0.5,)}, "blur_sigma": (0.5, 1.0)}
    given = ColourAugment(**keys)(batch, seeded(0)).views
    shares = {
        (name, place): float(changed(batch.views[name][place], slot).float().mean())
        for name, views in given.items()
        for place, slot in enumerate(views)
    }
    assert shares[("global", 0)] == 1.0
    assert shares[("global", 1)] == shares[("image", 0)] == 0.0
    assert all(0.3 < shares[("local", place)] < 0.7 for place in (0, 1))
    one, other = (changed(slots[2 + place], given["local"][place]) for place in (0, 1))
    assert not torch.equal(one, other)


def test_jitter_of_the_image_stream_leaves_videos_alone() -> None:
    """BEVT's augmentation: both streams are flipped, only images change their colours."""
    video, image = torch.rand(40, 3, 2, 4, 4, generator=seeded(0)), torch.rand(40, 3, 1, 4, 4)
    augment = ColourAugment(**(OFF | {"flip": 0.5, "jitter": {"image": (1.0,)}, "saturation": 0.4}))
    given = augment(Batch(views={"clip": (video,), "image": (image,)}), seeded(0)).views
    (clips,), (pictures,) = given["clip"], given["image"]
    flipped = (clips == video.flip(-1)).flatten(1).all(1)
    assert bool((flipped | (clips == video).flatten(1).all(1)).all())
    assert 8 < int(flipped.sum()) < 32
    assert bool((changed(image, pictures) & changed(image.flip(-1), pictures)).all())


@pytest.mark.parametrize("per_frame", [False, True])
def test_what_a_clip_becomes_does_not_depend_on_the_others(per_frame: bool) -> None:
    augment = ColourAugment(flip=0.5, hue=0.1, blur=0.5, solarise=0.5, per_frame=per_frame)
    slots = tuple(torch.rand(24, 3, frames, 8, 8, generator=seeded(frames)) for frames in (4, 2))
    whole = augment(Batch(views={"global": slots}), seeded(3)).views["global"]
    first = augment(Batch(views={"global": tuple(slot[:5] for slot in slots)}), seeded(3)).views["global"]
    for all_rows, five in zip(whole, first, strict=True):
        torch.testing.assert_close(all_rows[:5], five)
    assert bool(changed(slots[0], whole[0]).float().mean() > 0.8)


def test_draws_follow_the_generator_and_move_it_on() -> None:
    pixels = torch.rand(6, 3, 2, 4, 4, generator=seeded(0))
    assert torch.equal(augmented(pixels, 1, jitter=1.0), augmented(pixels, 1, jitter=1.0))
    assert not torch.equal(augmented(pixels, 1, jitter=1.0), augmented(pixels, 2, jitter=1.0))
    generator, augment = seeded(0), ColourAugment(**(OFF | {"jitter": 1.0}))
    one, other = (augment(Batch(views={"clip": (pixels,)}), generator).views["clip"][0] for _ in range(2))
    assert not torch.equal(one, other)


def test_results_stay_in_range_and_keep_labels() -> None:
    pixels = torch.rand(64, 3, 2, 8, 8, generator=seeded(0))
    augment = ColourAugment(brightness=2.0, contrast=2.0, saturation=3.0, hue=0.5, blur=0.5, solarise=0.2)
    labels = {"video": {"class": torch.arange(64)}}
    given = augment(Batch(views={"clip": (pixels,)}, labels=labels), seeded(0))
    clip = given.views["clip"][0]
    assert 0.0 <= float(clip.min()) < float(clip.max()) <= 1.0
    assert given.labels is labels


def test_the_defaults_suit_two_globals_and_locals() -> None:
    slots = tuple(torch.rand(2, 3, 2, 8, 8) for _ in range(10))
    ColourAugment()(Batch(views={"global": slots[:2], "local": slots[2:]}), seeded(0))
    with pytest.raises(ValueError, match=r"augment\.blur names the view 'local', and the batch has global"):
        ColourAugment()(Batch(views={"global": slots[:2]}), seeded(0))
    with pytest.raises(ValueError, match=r"augment\.blur\.global must list 1 chance or 3"):
        ColourAugment()(Batch(views={"global": slots[:3], "local": slots[3:]}), seeded(0))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"flip": -0.1}, "flip must lie between 0 and 1"),
        ({"jitter": 1.5}, "jitter must lie between 0 and 1"),
        ({"blur": {"clip": (0.5, 2.0)}}, "blur.clip must lie between 0 and 1"),
        ({"grey": {"clip": ()}}, "grey.clip must list at least one chance"),
        ({"contrast": -1.0}, "contrast must be at least 0"),
        ({"hue": 0.6}, "hue must lie between 0 and 0.5"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma must be two numbers above 0"),
        ({"blur_sigma": (2.0, 1.0)}, "blur_sigma must be two numbers above 0"),
    ],
)
def test_impossible_settings_are_refused(keys, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColourAugment(**keys)
