"""Pictures of what goes into a step, and of which features lie near one another."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy_probe import recipe_text

from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable
from vidssl.pictures import features as module
from vidssl.pictures.clips import Clips
from vidssl.pictures.drawings import HIDDEN, masks_drawing, tokens_drawing
from vidssl.pictures.features import RunFeatures, embedding, neighbour_pages, neighbour_strips
from vidssl.pictures.pages import heat_colours
from vidssl.pictures.show import show_part

CLIPS = Clips(torch.zeros(1, 3, 2, 4, 4), ("a.mp4",))


def test_a_mask_covers_its_cells_and_no_others() -> None:
    masks = torch.zeros(2, 1, 1, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, 0, 1] = True
    (strip,) = masks_drawing(CLIPS, masks, "").strips
    first, second = (row.frames for row in strip.rows[1:])
    assert (first == torch.tensor(HIDDEN, dtype=torch.uint8)).all(-1).nonzero().tolist() == [
        [time, row, column] for time in (0, 1) for row in (0, 1) for column in (2, 3)
    ]
    assert int(second.sum()) == 0
    assert "25%, 0% hidden" in strip.caption


def test_ids_are_coloured_from_the_commonest_to_the_rarest() -> None:
    ids = torch.tensor([[[[5, 5], [5, 2]]]])
    (strip,) = tokens_drawing(CLIPS, ids, CLIPS.pixels, 8, "").strips
    drawn = strip.rows[2].frames
    assert drawn[0, 0, 0].tolist() == heat_colours(torch.tensor(0.0)).tolist()
    assert drawn[1, 3, 3].tolist() == heat_colours(torch.tensor(1.0)).tolist()
    assert "2 of 8 ids, perplexity 1.8" in strip.caption  # exp of -3/4 ln 3/4 - 1/4 ln 1/4


def test_parts_of_a_recipe_are_drawn_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        recipe_text(num_videos=4).replace("data:\n", "augment: {type: per_clip}\ndata:\n", 1)
    )
    for what in ("views", "masks", "tokens"):
        assert show_part("r.yaml", what, videos=2) == 0
        with Image.open(f"pictures/{what}-toy.png") as picture:
            assert min(picture.size) > 200
    with Image.open("pictures/masks-toy.webp") as moving:
        assert moving.n_frames == 4
    with pytest.raises(UsageError, match="leave out --video, data and views"):
        show_part("r.yaml", "views", files=["a.mp4"])
    alone = Path("r.yaml").read_text().replace("name: toy", "name: alone")
    alone = re.sub(r"(?m)^ +test_source:.*\n|^  probe:\n(    .*\n)+", "", alone)
    assert "test_source" not in alone
    assert "probe" not in alone
    Path("alone.yaml").write_text(alone)
    capsys.readouterr()
    for what in ("masks", "tokens"):
        assert show_part("alone.yaml", what, videos=1) == 0
        assert "names no held-out videos: these are training videos" in " ".join(
            capsys.readouterr().out.split()
        )


def table(vectors: torch.Tensor, numbers: list[int], prefix: str) -> FeatureTable:
    keys = tuple(f"{prefix}{number}" for number in range(len(vectors)))
    labels = {"move": torch.tensor(numbers)}
    return FeatureTable(vectors[:, None], labels, {"move": ("up", "down")}, keys, len(vectors), ())


def test_neighbours_are_those_of_the_smallest_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    train = table(torch.tensor([[1.0, 0.0], [0.0, 9.0], [-1.0, 0.1]]), [0, 1, 1], "train")
    test = table(torch.tensor([[0.1, 0.5]]), [1], "test")
    asked: list[str] = []

    def clip(features: RunFeatures, part: int, key: str) -> torch.Tensor:
        asked.append(key)
        return torch.zeros(2, 8, 8, 3, dtype=torch.uint8)

    monkeypatch.setattr(module, "_clip", clip)
    features = RunFeatures(train, test, (None, None), None)
    (strip,) = neighbour_strips(features, "move")
    assert asked == ["test0", "train1", "train0", "train2"]
    assert strip.headings == ("down", "0.98 same", "0.20 as up", "-0.10 same")
    assert len(neighbour_pages("", [strip])) == 2
    with pytest.raises(UsageError, match="no label 'mvoe'"):
        features.label("mvoe")
    with pytest.raises(UsageError, match="five test videos or more"):
        embedding(features)


def test_the_label_of_a_picture_is_the_one_that_neighbours_share() -> None:
    vectors = torch.eye(4)
    labels = {"unread": torch.tensor([0, 1, 0, 1]), "read": torch.tensor([0, 0, 1, 1])}
    classes = {"unread": ("a", "b"), "read": ("c", "d")}
    train = FeatureTable(vectors[:, None], labels, classes, tuple("abcd"), 4, ())
    others = {"unread": torch.tensor([1, 0, 1, -1]), "read": labels["read"]}
    test = FeatureTable(vectors[:, None], others, classes, tuple("efgh"), 4, ())
    features = RunFeatures(train, test, (None, None), None)
    assert features.label(None) == "read"
    assert features.label("unread") == "unread"
