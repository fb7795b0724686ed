"""The moving digits are a measuring instrument: each label shows where it should, and nowhere else."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images

from vidssl.data.sources import digits_world
from vidssl.data.sources.digits_world import LABEL_NAMES, PROFILES, DigitsWorld, labels, render

OBJECT = DigitsWorld()
PAN = DigitsWorld(mode="pan", ground=1.0, digit_size=8)
WAVES = DigitsWorld(mode="pan", pattern="waves", ground=0.7, digit_size=8, speeds=(0.5, 2.0))
WORLDS = pytest.mark.parametrize("world", [OBJECT, PAN], ids=["object", "pan"])
ALL_WORLDS = pytest.mark.parametrize("world", [OBJECT, PAN, WAVES], ids=["object", "pan", "waves"])
SPLITS = ("train", "test")
CONSTANT, ACCELERATING, DECELERATING = range(3)

Clip = NDArray[np.uint8]


def clips_where(world: DigitsWorld, number: int, **wanted: int) -> list[tuple[dict[str, int], Clip]]:
    """The first clips that have the labels wanted, each with all its labels."""
    found = []
    for index in range(5000):
        known = labels(world, seed=0, split="test", index=index)
        if all(known[name] == value for name, value in wanted.items()):
            found.append((known, render(world, seed=0, split="test", index=index)))
            if len(found) == number:
                return found
    raise AssertionError(f"fewer than {number} of 5000 clips have the labels {wanted}")


def looks_uniform(counts: NDArray[np.integer]) -> bool:
    """Whether a chi-square statistic stays below what uniform draws exceed once in a hundred thousand."""
    freedom = counts.size - 1
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    return statistic < freedom + 4.3 * np.sqrt(2.0 * freedom) + 10.0


def best_motion(clip: Clip) -> tuple[float, float]:
    """The translation that carries each frame best into the next: degrees, pixels a frame."""
    spectra = np.fft.fft2(clip.mean(-1))
    frequency = np.fft.fftfreq(clip.shape[1])
    spectra *= np.exp(-30.0 * (frequency[:, None] ** 2 + frequency**2))  # coarse structure, without its grain
    after = np.fft.ifft2(spectra[1:]).real
    misfits = {}
    for angle in np.arange(0.0, 360.0, 22.5):
        for speed in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
            down, right = speed * np.sin(np.radians(angle)), speed * np.cos(np.radians(angle))
            shift = np.exp(-2j * np.pi * (frequency[:, None] * down + frequency * right))
            moved = np.fft.ifft2(spectra[:-1] * shift).real
            misfits[angle, speed] = np.abs(moved - after)[:, 6:-6, 6:-6].mean()
    return min(misfits, key=misfits.__getitem__)


def map_of_places(texture: int, split: str, shrink: int) -> NDArray[np.float32]:
    """A photograph of that size whose red says the column of each pixel, and whose green says its row."""
    height, width = 427 // shrink, 640 // shrink
    cut = int(width * digits_world._PHOTO_FRACTION)
    rows, columns = np.indices((height, cut if split == "train" else width - cut), dtype=np.float32)
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1)


def windows(clip: Clip) -> NDArray[np.float64]:
    """Where on the map of places each frame's corner lies: (row, column) [T, 2], in whole pixels."""
    size = clip.shape[1]
    steps = np.arange(size)
    columns = np.median(clip[..., 0].astype(float) - steps, axis=(1, 2))
    rows = np.median(clip[..., 1].astype(float) - steps[:, None], axis=(1, 2))
    return np.stack([rows, columns], axis=1)


@ALL_WORLDS
def test_a_clip_depends_on_its_arguments_alone(world: DigitsWorld) -> None:
    first = render(world, seed=3, split="train", index=7)
    known = labels(world, seed=3, split="train", index=7)
    np.random.seed(0)
    render(world, seed=3, split="test", index=8)
    assert np.array_equal(render(world, seed=3, split="train", index=7), first)
    assert labels(world, seed=3, split="train", index=7) == known


def test_other_seeds_splits_and_indices_draw_other_labels() -> None:
    def those_of(seed: int, split: str, start: int) -> list[dict[str, int]]:
        return [labels(OBJECT, seed=seed, split=split, index=index) for index in range(start, start + 5)]

    drawn = [
        those_of(0, "train", 0),
        those_of(1, "train", 0),
        those_of(0, "test", 0),
        those_of(0, "train", 5),
    ]
    assert all(one != other for one, other in combinations(drawn, 2))


@WORLDS
def test_clips_are_rgb_frames_of_the_size_asked_for(world: DigitsWorld) -> None:
    clip = render(world, seed=0, split="test", index=0)
    assert clip.dtype == np.uint8
    assert clip.shape == (world.num_frames, world.size, world.size, 3)
    image = DigitsWorld(mode=world.mode, num_frames=1, size=32, digit_size=24)
    assert render(image, seed=0, split="test", index=0).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_uniform_and_independent_in_pairs(split: str) -> None:
    rows = [labels(OBJECT, seed=0, split=split, index=index) for index in range(3000)]
    for one, other in combinations(LABEL_NAMES, 2):
        counts = np.zeros([OBJECT.num_classes()[name] for name in (one, other)], dtype=int)
        for row in rows:
            counts[row[one], row[other]] += 1
        assert looks_uniform(counts), f"{one} and {other} in {split}"


def test_train_and_test_share_no_digit_sample() -> None:
    pools = {split: digits_world._digits(split) for split in SPLITS}
    train, test = ({sample.tobytes() for pool in pools[split] for sample in pool} for split in SPLITS)
    assert not train & test
    assert min(len(pool) for pools_of in pools.values() for pool in pools_of) > 50
    data = load_digits()
    for digit in range(10):
        samples = {(image / 16.0).astype(np.float32).tobytes() for image in data.images[data.target == digit]}
        assert {sample.tobytes() for split in SPLITS for sample in pools[split][digit]} == samples


def test_train_and_test_share_no_pixel_of_a_photograph() -> None:
    for texture, image in enumerate(load_sample_images().images):
        sides = [digits_world._photo(texture, split, 1) for split in SPLITS]
        assert np.array_equal(np.concatenate(sides, axis=1), image)
        for shrink in (2, 3):
            assert (
                sum(digits_world._photo(texture, split, shrink).shape[1] for split in SPLITS) == 640 // shrink
            )


@pytest.mark.parametrize("split", SPLITS)
@WORLDS
def test_a_clip_shows_the_digit_and_the_texture_of_its_labels_and_split(
    world: DigitsWorld, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greys(split: str, has_val: bool) -> tuple[NDArray[np.float32], ...]:
        """Plain samples whose grey names digit and split: (1 + digit + 10 split) / 25 of opaque."""
        shares = (np.arange(1, 11) + 10 * SPLITS.index(split)) / 25
        return tuple(np.full((1, 8, 8), 0.3 + 0.4 * share, np.float32) for share in shares)

    def plain(texture: int, split: str, shrink: int) -> NDArray[np.float32]:
        return np.full((200, 200, 3), 40.0 * (1 + texture + 2 * SPLITS.index(split)), np.float32)

    monkeypatch.setattr(digits_world, "_digits", greys)
    monkeypatch.setattr(digits_world, "_photo", plain)
    world = DigitsWorld(mode=world.mode, ground=1.0, digit_size=24)
    for index in range(40):
        known = labels(world, seed=0, split=split, index=index)
        clip = render(world, seed=0, split=split, index=index).astype(float)
        ground = 40.0 * (1 + known["texture"] + 2 * SPLITS.index(split))
        assert np.median(clip) == ground
        opacity = ((clip - ground) / (255.0 - ground)).max(axis=(1, 2, 3))
        assert np.allclose(25 * opacity, 1 + known["digit"] + 10 * SPLITS.index(split), atol=0.25)


def test_digits_of_constant_clips_move_as_labelled() -> None:
    for known, clip in clips_where(OBJECT, 12, profile=CONSTANT):
        assert best_motion(clip) == (45.0 * known["direction"], OBJECT.speeds[known["speed"]])


def test_digits_of_changing_clips_move_faster_when_the_profile_says_so() -> None:
    for profile, trend in ((ACCELERATING, 1), (DECELERATING, -1)):
        for _, clip in clips_where(OBJECT, 4, profile=profile, speed=1):
            assert trend * (best_motion(clip[-3:])[1] - best_motion(clip[:3])[1]) >= 1.5


@pytest.mark.parametrize("split", SPLITS)
def test_a_photograph_pans_as_labelled_and_its_edge_is_never_struck(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits_world, "_photo", map_of_places)
    world = DigitsWorld(mode="pan", ground=1.0, digit_size=8, photo_shrink=4)  # 68 columns to test
    for index in range(60):
        known = labels(world, seed=0, split=split, index=index)
        corners = windows(render(world, seed=0, split=split, index=index))
        angle = np.radians(45.0 * known["direction"])
        travel = 7 * world.speeds[known["speed"]] * np.array([np.sin(angle), np.cos(angle)])
        # the window moves against its content
        assert np.abs(corners[0] - corners[-1] - travel).max() < 1.5
        half = np.linalg.norm(corners[0] - corners[3]) / np.linalg.norm(travel)  # a constant clip: 3/7
        assert np.abs(half - (0.43, 0.25, 0.6)[known["profile"]]) < 0.16, PROFILES[known["profile"]]


@pytest.mark.parametrize("num_directions", [4, 8])
def test_a_path_backwards_is_the_path_of_the_opposite_direction_and_the_mirrored_profile(
    num_directions: int,
) -> None:
    world = DigitsWorld(num_directions=num_directions)
    mirrored = {CONSTANT: CONSTANT, ACCELERATING: DECELERATING, DECELERATING: ACCELERATING}
    for direction in range(num_directions):
        for profile, mirror in mirrored.items():
            drawn = {"direction": direction, "speed": 1, "profile": profile}
            opposite = (direction + num_directions // 2) % num_directions
            path = digits_world._path(world, drawn)
            back = digits_world._path(world, {"direction": opposite, "speed": 1, "profile": mirror})
            assert np.allclose(path[::-1], back, atol=1e-5)


def test_profiles_share_their_length_and_differ_in_when_they_are_fast() -> None:
    for speed, pixels in enumerate(OBJECT.speeds):
        for number, profile in enumerate(PROFILES):
            path = digits_world._path(OBJECT, {"direction": 3, "speed": speed, "profile": number})
            steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
            assert np.isclose(steps.mean(), pixels, atol=1e-5)
            trend = {"constant": 0, "accelerating": 1, "decelerating": -1}[profile]
            assert (np.sign(np.round(np.diff(steps), 4)) == trend).all()


@ALL_WORLDS
def test_the_frames_of_a_clip_in_reverse_are_a_clip_of_the_opposite_labels(
    world: DigitsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits_world, "_JITTER", 0.0)
    draw = digits_world._draw_labels

    def opposite(world: DigitsWorld, rng: np.random.Generator) -> dict[str, int]:
        known = draw(world, rng)
        return {
            **known,
            "direction": (known["direction"] + 4) % 8,
            "profile": (CONSTANT, DECELERATING, ACCELERATING)[known["profile"]],
        }

    clips = [render(world, seed=0, split="train", index=index).astype(int) for index in range(12)]
    monkeypatch.setattr(digits_world, "_draw_labels", opposite)
    for index, clip in enumerate(clips):
        other = render(world, seed=0, split="train", index=index).astype(int)
        assert np.abs(other[::-1] - clip).max() <= 1, "but for rounding"
        assert np.abs(other - clip).max() > 20


def test_a_travelling_digit_starts_anywhere_whatever_its_direction() -> None:
    world = DigitsWorld(ground=0.0)
    seen: list[tuple[int, NDArray[np.complex128]]] = []
    for index in range(320):
        first = render(world, seed=0, split="train", index=index)[0].mean(-1)
        spectrum = np.fft.fft2(first)
        wave = np.array([spectrum[1, 0], spectrum[0, 1]])  # its angle: the digit's centre, on a torus
        seen.append((labels(world, seed=0, split="train", index=index)["direction"], wave / np.abs(wave)))
    groups = [[wave for _, wave in seen]]
    groups += [[wave for direction, wave in seen if direction == wanted] for wanted in range(8)]
    for waves in groups:
        # a mean of uniform angles is longer once in 22,000
        assert (np.abs(np.mean(waves, axis=0)) < np.sqrt(10.0 / len(waves))).all()


def test_a_panning_window_starts_anywhere_whatever_its_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits_world, "_photo", map_of_places)
    counts = np.zeros((2, 4, 4), dtype=int)  # axis, direction, quarter of the range
    corners: list[tuple[int, NDArray[np.float64]]] = []
    world = DigitsWorld(mode="pan", ground=1.0, digit_size=8, num_directions=4, num_frames=2)
    for index in range(320):
        known = labels(world, seed=0, split="train", index=index)
        middle = windows(render(world, seed=0, split="train", index=index)).mean(axis=0)
        corners.append((known["direction"], middle))
    places = np.stack([middle for _, middle in corners])
    assert (places.min(axis=0) < 5).all()
    assert (places.max(axis=0) > np.array([213, 185]) - world.size - 6).all()
    quarters = (4 * (places - places.min(axis=0)) / (np.ptp(places, axis=0) + 1e-3)).astype(int)
    for (direction, _), quarter in zip(corners, quarters, strict=True):
        counts[[0, 1], direction, quarter] += 1
    assert looks_uniform(counts[0])
    assert looks_uniform(counts[1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "zoom"}, "mode must be 'object' or 'pan', got 'zoom'"),
        ({"num_directions": 6}, "num_directions must be 4 or 8, got 6"),
        ({"num_frames": 0}, "num_frames and photo_shrink must be at least 1"),
        ({"photo_shrink": 0}, "num_frames and photo_shrink must be at least 1"),
        ({"digit_size": 7}, r"digit_size must lie between 8 and size \(48\), got 7"),
        ({"digit_size": 49}, r"digit_size must lie between 8 and size \(48\), got 49"),
        ({"ground": -0.1}, "ground must lie between 0 and 1, got -0.1"),
        ({"ground": 1.1}, "ground must lie between 0 and 1, got 1.1"),
        ({"speeds": ()}, r"speeds must hold positive numbers, got \(\)"),
        ({"speeds": (1.0, 0.0)}, r"speeds must hold positive numbers, got \(1.0, 0.0\)"),
        ({"photo_shrink": 8}, r"a clip needs 50 pixels of a photograph, which has 53x34: lower size"),
        (
            {"mode": "pan", "speeds": (1.0, 20.0)},
            r"a clip needs 190 pixels of a photograph, which has 213x135",
        ),
        ({"pattern": "plaid"}, "pattern must be 'photographs' or 'waves', got 'plaid'"),
        ({"noise": 1.0}, r"noise must lie in \[0, 1\), got 1.0"),
        (
            {"pattern": "waves", "mode": "pan", "speeds": (1.0, 2.1)},
            r"2.1 pixels a frame on average are up to 3.6, and waves that move by half a wavelength \(3.5\)",
        ),
    ],
)
def test_an_impossible_world_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsWorld(**keys)


def test_an_unknown_split_is_refused() -> None:
    for function in (labels, render):
        with pytest.raises(ValueError, match="split must be one of train, test, val, got 'dev'"):
            function(WAVES, seed=0, split="dev", index=0)
        with pytest.raises(ValueError, match="take pattern 'waves', which has one"):
            function(OBJECT, seed=0, split="val", index=0)


def test_splits_of_waves_share_no_digit_sample_and_test_has_that_of_photographs() -> None:
    pools = {split: digits_world._digits(split, True) for split in ("train", "val", "test")}
    seen = {split: {one.tobytes() for pool in pools[split] for one in pool} for split in pools}
    assert not seen["val"] & (seen["train"] | seen["test"])
    assert not seen["train"] & seen["test"]
    assert min(len(pool) for pool in pools["val"]) > 15
    photographs = {split: digits_world._digits(split) for split in ("train", "test")}
    assert seen["test"] == {one.tobytes() for pool in photographs["test"] for one in pool}
    before = {one.tobytes() for pool in photographs["train"] for one in pool}
    assert seen["train"] | seen["val"] == before


def test_waves_lie_and_are_as_long_as_their_class_says() -> None:
    down, right = np.meshgrid(*[np.fft.fftfreq(192)] * 2, indexing="ij")
    for texture in range(6):
        for seed in range(5):
            still = np.zeros((1, 2), np.float32)
            grey = digits_world._waves(texture, still, WAVES, np.random.default_rng(seed))[0].mean(-1)
            grey = (grey - grey.mean()) * np.outer(np.hanning(48), np.hanning(48))
            power = np.abs(np.fft.fft2(grey, (192, 192))) ** 2
            double = np.degrees(np.angle((power * np.exp(2j * np.arctan2(down, right))).sum()))
            assert abs((double / 2 - 60.0 * (texture % 3) + 90.0) % 180.0 - 90.0) < 25.0
            wavelength = power.sum() / (power * np.hypot(down, right)).sum()
            assert (wavelength > 10.8) == (texture >= 3)


def test_waves_move_along_the_path_of_their_labels() -> None:
    for known, clip in clips_where(WAVES, 8, profile=CONSTANT, speed=1):
        if known["direction"] % 2 == 0:  # whole pixels: 2 a frame along an axis
            right, down = ((2, 0), (0, 2), (-2, 0), (0, -2))[known["direction"] // 2]
            moved = np.roll(clip[:-1].astype(int), (down, right), axis=(1, 2))[:, 2:-2, 2:-2]
            assert np.median(np.abs(moved - clip[1:, 2:-2, 2:-2])) <= 1
            assert np.abs(clip[:-1].astype(int) - clip[1:]).mean() > 3


def test_every_clip_has_waves_and_noise_of_its_own() -> None:
    noisy = DigitsWorld(pattern="waves", ground=0.7, noise=0.05)
    clean = DigitsWorld(pattern="waves", ground=0.7)
    pairs = [(render(world, seed=0, split="train", index=3).astype(float)) for world in (noisy, clean)]
    inside = (pairs[1] > 60) & (pairs[1] < 200)  # where nothing is cut off
    assert abs((pairs[0] - pairs[1])[inside].std() - 0.05 * 255) < 0.5
    drawn = [labels(clean, seed=0, split="train", index=i)["texture"] for i in range(40)]
    same = [i for i, texture in enumerate(drawn) if texture == drawn[3]]
    grounds = [render(clean, seed=0, split="train", index=i)[0].mean(-1).ravel() for i in same[:4]]
    correlations = np.corrcoef(grounds) - np.eye(len(grounds))
    assert np.abs(correlations).max() < 0.9
