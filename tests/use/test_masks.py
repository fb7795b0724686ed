"""Masks of patch tokens: DAVIS's measures beside their definitions, propagation, and the commands."""

import csv
import io
import json
import math
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from tests.use.conftest import DIGITS
from vidssl import api
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.protocol import LinearSegmentation, Propagation, load_mask_protocol
from vidssl.data.sources.digits_world import DigitsWorld, digit_masks, render
from vidssl.data.sources.frame_folders import Davis
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import read_scores
from vidssl.evaluators import masks
from vidssl.evaluators.statistics import fraction, mean_of, pooled
from vidssl.interfaces import UnreadableSample
from vidssl.use.masks import evaluate_masks

SCHEMA = Path(__file__).parents[2] / "docs" / "score_schema.json"
CLIPS = ["num_frames=4", "size=16", f"data.test={{{DIGITS}, split: test, num_videos: 6}}"]


@pytest.fixture(scope="module")
def own_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder with a copy of the run: scores on masks are of no other test's concern."""
    own = tmp_path_factory.mktemp("masks")
    shutil.copytree(world / "runs" / "tiny", own / "runs" / "tiny")
    (own / "videos").symlink_to(world / "videos")
    return own


@pytest.fixture
def tiny(own_world: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(own_world)
    return Path("runs/tiny")


def official_contour(seg):
    """DAVIS's seg2bmap, pixel by pixel."""
    height, width = seg.shape
    found = np.zeros_like(seg)
    for y in range(height):
        for x in range(width):
            east = seg[y, x + 1] if x + 1 < width else None
            south = seg[y + 1, x] if y + 1 < height else None
            both = seg[y + 1, x + 1] if x + 1 < width and y + 1 < height else None
            if y == height - 1 and x == width - 1:
                continue
            found[y, x] = any(other is not None and other != seg[y, x] for other in (east, south, both))
    return found


def official_f(predicted, truth):
    """DAVIS's f_measure: contours widened by a disk, pixel by pixel."""
    radius = math.ceil(0.008 * math.hypot(*predicted.shape))
    own, theirs = np.argwhere(official_contour(predicted)), np.argwhere(official_contour(truth))

    def near(points, others):
        return sum(any(((p - o) ** 2).sum() <= radius**2 for o in others) for p in points)

    if len(own) == 0 and len(theirs) > 0:
        precision, recall = 1.0, 0.0
    elif len(own) > 0 and len(theirs) == 0:
        precision, recall = 0.0, 1.0
    elif len(own) == 0 and len(theirs) == 0:
        precision, recall = 1.0, 1.0
    else:
        precision, recall = near(own, theirs) / len(own), near(theirs, own) / len(theirs)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def official_j(predicted, truth):
    pairs = list(zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True))
    union = sum(a or b for a, b in pairs)
    return 1.0 if union == 0 else sum(a and b for a, b in pairs) / union


def blob(height, width, seed):
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre, size = draw.uniform(0, (height, width)), draw.uniform(3, 14)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 + draw.normal(0, 20, (height, width)) < size**2


def pairs():
    empty, full = np.zeros((30, 40), bool), np.ones((30, 40), bool)
    corner, edge = empty.copy(), empty.copy()
    corner[-1, -1], edge[:, -3:] = True, True
    # 24 x 256 has a radius of 3 pixels: the disk is no square
    fixed = [
        (empty, empty),
        (empty, edge),
        (edge, empty),
        (full, full),
        (full, edge),
        (corner, edge),
        (corner, corner),
    ]
    large = [(blob(24, 256, 61), blob(24, 256, 61) ^ blob(24, 256, 62))]
    return [*fixed, *large, *((blob(30, 40, seed), blob(30, 40, seed + 1)) for seed in range(0, 10, 2))]


def test_region_and_boundary_are_those_of_davis() -> None:
    for predicted, truth in pairs():
        judged = np.ones_like(truth)
        assert np.array_equal(masks.contour(predicted), official_contour(predicted))
        assert masks.region(predicted, truth, judged) == pytest.approx(
            official_j(predicted, truth), abs=1e-12
        )
        assert masks.boundary(predicted, truth, judged) == pytest.approx(
            official_f(predicted, truth), abs=1e-12
        )


def test_numbers_worked_out_by_hand() -> None:
    truth = np.zeros((20, 20), bool)
    truth[5:10, 5:10] = True
    moved = np.roll(truth, 2, axis=1)  # 3 of 5 columns in common: 15 of 35 pixels
    judged = np.ones_like(truth)
    assert masks.region(moved, truth, judged) == pytest.approx(15 / 35)
    # the diagonal of 28.3 pixels allows 0.23, rounded up 1
    assert masks.boundary(truth, truth, judged) == 1
    assert masks.boundary(np.roll(truth, 1, axis=1), truth, judged) == 1
    judged[:, 10:] = False  # what was added does not count
    assert masks.region(moved, truth, judged) == pytest.approx(15 / 25)


def test_first_and_last_frames_do_not_count_and_objects_are_those_of_the_first() -> None:
    truth = np.zeros((4, 12, 12), np.uint8)
    truth[:, 2:5, 2:5], truth[:, 7:10, 7:10], truth[1:, 0, 0] = 1, 2, 3
    predicted = truth.copy()
    predicted[0] = predicted[-1] = 0
    assert masks.object_scores(predicted, truth).tolist() == [2, 2, 2]
    predicted[1][truth[1] == 2] = 0
    j, f, number = masks.object_scores(predicted, truth)
    assert (j, f, number) == (1.5, 1.5, 2)
    truth[:, 0, 0] = 255
    assert masks.object_scores(truth, truth).tolist() == [2, 2, 2]


def test_mean_iou_counts_classes_that_there_are() -> None:
    truth = np.array([[0, 0, 1, 1, 255]])
    counts = masks.class_counts(np.array([[0, 1, 1, 1, 0]]), truth, 4)
    assert counts.sum() == 4
    assert masks.mean_iou(counts) == pytest.approx((1 / 2 + 2 / 3) / 2)


def naive_propagation(features, first, how):
    """Cell by cell: the most alike of those in the window, in the first frame and some before."""
    total, height, width, _ = features.shape
    features = features / features.norm(dim=-1, keepdim=True)
    labels = [first]
    for t in range(1, total):
        out = torch.zeros_like(first)
        for y in range(height):
            for x in range(width):
                votes = []
                for s in {0} | set(range(max(0, t - how.context), t)):
                    for j in range(height):
                        for i in range(width):
                            if abs(j - y) <= how.window and abs(i - x) <= how.window:
                                like = math.exp(
                                    float(features[t, y, x] @ features[s, j, i]) / how.temperature
                                )
                                votes.append((like, labels[s][:, j, i]))
                votes = sorted(votes, key=lambda vote: -vote[0])[: how.neighbours]
                out[:, y, x] = sum(w * v for w, v in votes) / sum(w for w, _ in votes)
        labels.append(out)
    return labels


@pytest.mark.parametrize("pairs_at_once", [2**26, 100])
def test_propagation_is_that_of_its_definition(pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_MOST_PAIRS", pairs_at_once)
    how = Propagation(neighbours=3, window=1, context=2, temperature=0.2)
    features = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    first = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(features, dim=-1)
    for own, slow in zip(
        masks._carried(unit, first, how), naive_propagation(features, first, how), strict=True
    ):
        assert torch.allclose(own, slow, atol=1e-5)


def test_a_patch_that_moves_takes_its_label_along() -> None:
    features, truth = torch.zeros(4, 4, 4, 3), torch.zeros(4, 4, 4, dtype=torch.uint8)
    features[..., 0] = 1
    for t in range(4):
        features[t, 1, t], truth[t, 1, t] = torch.tensor([0.0, 1, 0]), 7
    fine = truth.repeat_interleave(8, 1).repeat_interleave(8, 2)
    found = masks.propagated(features, fine[0], (32, 32), Propagation(neighbours=1))
    assert torch.equal(found[0], fine[0])
    assert [found[t, 11, 8 * t + 4].item() for t in range(4)] == [7] * 4
    assert found[3, 11, 4] == 0


def test_a_linear_layer_finds_classes_that_features_name() -> None:
    draw = torch.Generator().manual_seed(0)
    cells = [torch.randint(3, (4, 4), generator=draw) for _ in range(24)]
    features = [torch.nn.functional.one_hot(each, 3).float() * 5 + 100 for each in cells]
    truth = [each.to(torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1) for each in cells]
    how = LinearSegmentation(lr=0.1, epochs=20, batch_size=8)
    layer = masks.fit_segmentation(features[:16], truth[:16], how, num_classes=3, seed=0)
    found = layer.classes(torch.stack(features[16:]), (8, 8))
    assert (found == torch.stack(truth[16:])).float().mean() > 0.9


class Frames(torch.nn.Module):
    """Says of each cell in time the mean of its two frames."""

    input_kind = "pixels"

    def forward(self, clip):
        from vidssl.interfaces import Features

        return Features(clip.mean((1, 3, 4)).unflatten(1, (-1, 2)).mean(2)[:, :, None, None, None])


def test_frames_stand_still_or_share_a_cell() -> None:
    frames = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2) / 5

    def features(feed):
        found = masks.frame_features(
            Frames(), None, frames, feed=feed, num_frames=4, batch_size=2, autocast=False
        )
        return [round(5 * value, 3) for value in found.flatten().tolist()]

    assert features("still") == [0, 1, 2, 3, 4]
    assert features("clips") == [0.5, 0.5, 2.5, 2.5, 4]  # the last frame is held


def test_masks_of_moving_digits_are_where_the_digit_is() -> None:
    world = DigitsWorld(ground=0.0, size=24, digit_size=20)
    drawn = render(world, seed=0, split="test", index=3)
    assert np.array_equal(digit_masks(world, seed=0, split="test", index=3), drawn[..., 0] > 127)


def test_moving_digits_name_the_class_of_each_pixel(tiny: Path) -> None:
    source = MovingDigits(split="test", size=16, digit_size=12, num_frames=4, num_videos=12)
    for number in range(3):
        digit = source.labels(number)["digit"]
        assert set(source.class_masks(number, range(4)).unique().tolist()) == {0, digit + 1}
        assert source.mask_classes[digit + 1] == str(digit)
    assert torch.equal(source.object_masks(1, [2, 0]), source.object_masks(1, range(4))[[2, 0]])


def davis(root: Path, video: str, truth: np.ndarray, year: str = "2017") -> None:
    """A video of noise with these masks, as DAVIS has it."""
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / video).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for t, mask in enumerate(truth):
        Image.fromarray(draw.integers(0, 255, (*mask.shape, 3), dtype=np.uint8)).save(
            root / "JPEGImages/480p" / video / f"{t:05d}.jpg"
        )
        image = Image.fromarray(mask, mode="P")
        image.putpalette([number // 3 for number in range(768)])
        image.save(root / "Annotations/480p" / video / f"{t:05d}.png")
    lists = root / "ImageSets" / year
    lists.mkdir(parents=True, exist_ok=True)
    with (lists / "val.txt").open("a") as file:
        file.write(f"{video}\n")


def test_davis_is_read_from_its_own_folders(tmp_path: Path) -> None:
    truth = np.zeros((4, 20, 36), np.uint8)
    truth[:, 3:9, 3:9], truth[:, 10:18, 20:30], truth[2, 0, 0] = 1, 2, 255
    davis(tmp_path, "dogs", truth)
    source = Davis(root=str(tmp_path))
    assert (len(source), source.key(0), source.info(0).num_frames) == (1, "dogs", 4)
    assert source.read(0, [0, 2]).shape == (2, 3, 20, 36)
    assert np.array_equal(source.object_masks(0, [2, 0]).numpy(), truth[[2, 0]])
    with pytest.raises(UsageError, match=r"ImageSets/2016/val\.txt: not there"):
        Davis(root=str(tmp_path), year="2016")
    davis(tmp_path, "one", truth[:3] * 120, year="2016")
    one = Davis(root=str(tmp_path), year="2016")
    assert one.object_masks(0, [0]).unique().tolist() == [0, 1]
    named = Davis(root=str(tmp_path), classes=("ground", "dog", "cat"))
    assert np.array_equal(named.class_masks(0, range(4)).numpy(), truth)
    with pytest.raises(UnreadableSample, match="a mask holds 2, and there are 2 names"):
        Davis(root=str(tmp_path), classes=("ground", "dog")).class_masks(0, [0])
    (tmp_path / "Annotations/480p/dogs/00001.png").unlink()
    with pytest.raises(UnreadableSample, match=r"00001\.png: no mask that can be read"):
        source.object_masks(0, [1])


def test_intervals_over_videos_cover(tmp_path: Path) -> None:
    """A ratio of sums, whose truth is known, in 300 made sets of 20 videos; differences as the t-test's."""
    draw = np.random.default_rng(0)
    ratio = lambda sums: float(sums[0] / sums[1])  # noqa: E731
    inside = 0
    for _ in range(300):
        objects = draw.integers(1, 4, 20)
        quality = draw.beta(3, 2, 20)  # mean 0.6
        found = fraction(pooled(np.stack((quality * objects, objects), 1), ratio))
        inside += found.low <= 0.6 <= found.high
    assert 0.92 <= inside / 300 <= 0.98
    values = draw.beta(3, 2, 12)
    # of a plain mean the values are the videos' own; of a ratio their mean is it
    assert pooled(np.stack((values, np.ones(12)), 1), ratio) == pytest.approx(values)
    parts = np.stack((quality * objects, objects), 1)
    assert pooled(parts, ratio).mean() == pytest.approx(ratio(parts.sum(0)), abs=1e-12)
    assert mean_of(values**2 - values).p == pytest.approx(stats.ttest_rel(values**2, values).pvalue)
    assert fraction(pooled(np.ones((5, 2)), ratio)).low < 1


@pytest.mark.parametrize(
    ("protocol", "words", "columns"),
    [
        ("video_segmentation", [], ["trained", "untrained", "first mask held"]),
        (
            "segmentation",
            [f"data.train={{{DIGITS}, split: train, num_videos: 8}}", "segment.epochs=2"],
            ["trained", "untrained", "commonest class"],
        ),
        ("video_segmentation", ["feed=clips"], ["trained", "untrained", "first mask held"]),
    ],
)
def test_the_command_scores_and_draws(
    protocol: str, words: list[str], columns: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny), "--protocol", protocol, *CLIPS, *words]) == 0
    said = capsys.readouterr().out
    name = f"{protocol}-step-000002"
    scores = read_scores(tiny / "scores" / f"{name}.json")
    jsonschema.validate(json.loads(scores.path.read_text()), json.loads(SCHEMA.read_text()))
    assert list(scores.scores) == columns[:2]
    assert len(scores.keys) == 6
    assert f"chance: {columns[2]}" in said
    assert "p and interval: t-test over" in said
    for row in (row for rows in scores.scores.values() for row in rows):
        assert 0 <= row.low <= row.top1 <= row.high <= 1
        assert np.mean(row.added) == pytest.approx(row.top1, abs=1e-5)
    assert f"{protocol} of" in said
    with Image.open(tiny / "pictures" / f"{name}.png") as picture:
        assert picture.height > 300


def test_python_gets_what_the_command_prints(tiny: Path) -> None:
    found = evaluate_masks(str(tiny), "video_segmentation", CLIPS)
    assert {row["measure"] for row in found.table()} == {"J&F", "J", "F"}
    assert "first mask held" in repr(found)
    rows = api.evaluate(str(tiny), "video_segmentation", CLIPS).table()
    assert {row["label"]: float(str(row["top1"])) for row in rows if row["network"] == "trained"} == {
        name: each.mean for name, each in found.scores["trained"].items()
    }
    # without num_frames and size those of the recipe's views, which are the same
    assert evaluate_masks(str(tiny), "video_segmentation", [*CLIPS[2:], "shown=1"]).scores == found.scores


def test_other_commands_read_the_scores(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [evaluate_masks(word, "video_segmentation", CLIPS) for word in (str(tiny), "pixels")]
    runs = [str(path.parent.parent) for path in (each.files[0] for each in found)]
    capsys.readouterr()
    assert main(["compare", *runs, "--csv"]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    own = [row for row in rows if (row["protocol"], row["run"]) == ("video_segmentation", "runs/tiny")]
    assert {(row["network"], row["label"]): float(row["top1"]) for row in own} == {
        (name, measure): each.mean
        for name, own in found[0].scores.items() if name != "first mask held"
        for measure, each in own.items()
    }  # fmt: skip
    assert main(["compare", *runs, "--markdown"]) == 0
    said = capsys.readouterr().out
    assert (
        "video_segmentation: masks by what each video adds, and the second less the first in points" in said
    )
    assert "| label | difference | " in said
    assert main(["runs", str(tiny.parent), "--csv"]) == 0
    assert "video_segmentation.trained.J&F" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["report", *runs, "-o", str(page), "--no-pictures"]) == 0
    assert "Scores: video_segmentation" in page.read_text()


def test_what_cannot_be_measured_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of the sections 'propagate' and 'segment'"):
        load_mask_protocol("segmentation", ["propagate.window=3"])
    with pytest.raises(UsageError, match="num_frames=16 size=224"):
        evaluate_masks("untrained:timm:test_vit", "video_segmentation", CLIPS[2:])
    with pytest.raises(UsageError, match="does not take clips of"):
        evaluate_masks(str(tiny), "video_segmentation", [*CLIPS, "size=[15, 16]"])
    davis(tmp_path, "dogs", np.ones((3, 16, 16), np.uint8))
    words = [*CLIPS, f"data.train={{{DIGITS}, split: train, num_videos: 6}}"]
    with pytest.raises(UsageError, match=r"no names of the classes of pixels"):
        evaluate_masks(str(tiny), "segmentation", [*words, f"data.test={{type: davis, root: {tmp_path}}}"])
    with pytest.raises(UsageError, match="has no masks"):
        evaluate_masks(str(tiny), "segmentation", [*words, "data.test={type: video_folder, root: videos}"])
    build.check_file("evaluation", Path(__file__).parents[2] / "evaluation" / "segmentation.yaml")


def test_videos_without_what_is_measured_are_left_out_and_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = np.zeros((4, 40, 60), np.uint8)
    late = truth.copy()
    late[1:, 8:24, 8:40], late[0, 0] = 1, 255
    davis(tmp_path, "late", late)
    words = [f"data.test={{type: davis, root: {tmp_path}}}", "size=32", "num_frames=4"]
    with pytest.raises(UsageError, match="none can be measured: late: its first mask shows no object"):
        evaluate_masks(str(tiny), "video_segmentation", words)
    truth[:, 8:24, 8:40] = 1
    davis(tmp_path, "seen", truth)
    davis(tmp_path, "unjudged", np.full((4, 40, 60), 255, np.uint8))
    capsys.readouterr()
    found = evaluate_masks(str(tiny), "video_segmentation", words)
    said = " ".join(capsys.readouterr().out.split())
    assert "test: 1 video found of 3 listed left out: late: its first mask shows no object" in said
    assert read_scores(found.files[0]).keys == ("seen",)
    assert found.scores["first mask held"]["J&F"].mean == 1
    davis(tmp_path / "other", "blank", np.full((4, 40, 60), 255, np.uint8))
    data = [
        f"data.{part}={{type: davis, root: {root}, classes: [a, b]}}"
        for part, root in (("train", tmp_path), ("test", tmp_path / "other"))
    ]
    with pytest.raises(
        UsageError, match="test videos: none can be measured: blank: no pixel of it is judged"
    ):
        evaluate_masks(str(tiny), "segmentation", [*words[1:], *data])


def test_davis_is_scored_at_its_own_size(tiny: Path, tmp_path: Path) -> None:
    truth = np.zeros((4, 40, 60), np.uint8)
    truth[:, 8:24, 8:40] = 1
    davis(tmp_path, "still", truth)
    words = [f"data.test={{type: davis, root: {tmp_path}}}", "size=32", "num_frames=4"]
    found = evaluate_masks(str(tiny), "video_segmentation", words)
    assert found.scores["first mask held"]["J&F"].mean == 1
    assert len(read_scores(found.files[0]).keys) == 1
    assert found.scores["trained"]["J"].low < found.scores["trained"]["J"].mean
