"""What the commands do, from Python: objects that show themselves; datasets and tensors as what is given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from tests.use.conftest import RECIPE
from vidssl import api as v
from vidssl.config.strict_yaml import parse, plain


def test_a_recipe_is_trained_from_a_mapping_and_shows_its_metrics(tiny: Path) -> None:
    recipe = plain(parse(RECIPE, lambda line: f"line {line}"))
    run = v.train_recipe(recipe, ["name=mapped"], quiet=True)
    assert run.folder == Path("runs/mapped")
    assert [row["step"] for row in run.table()] == [1, 2]
    assert repr(run).startswith("Run runs/mapped: step 2, loss ")
    same, other = v.load(run.folder).state_dict(), v.load(tiny).state_dict()
    assert all(torch.equal(same[key], other[key]) for key in other)
    with pytest.raises(v.UsageError, match="Did you mean 'objective'"):
        v.train_recipe({**recipe, "objectiv": 1})


def test_scores_and_comparisons_are_tables_and_frames(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    v.evaluate(tiny, "retrieval")  # whose file is not among those of the next
    scores = v.evaluate(tiny, "knn", ["evaluator.k=3"])
    assert capsys.readouterr().out == ""
    (file,) = scores.files
    top1 = {row.label: row.top1 for row in file.scores["trained"]}
    rows = [row for row in scores.table() if row["network"] == "trained" and row["label"] == "digit"]
    assert float(str(rows[0]["top1"])) == pytest.approx(top1["digit"], abs=1e-3)
    assert "| digit" in repr(scores)
    assert repr(v.compare(tiny)).count("| digit") >= 1
    pandas = pytest.importorskip("pandas")
    frame = scores.frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["top1"].dtype.kind == "f"
    with pytest.raises(v.UsageError, match="compare takes runs"):
        v.compare()


def test_pictures_are_drawn_and_shown(tiny: Path, tmp_path: Path) -> None:
    pictures = v.show(tiny, "reconstruction", videos=1, out=str(tmp_path))
    assert [path.suffix for path in pictures.files] == [".png", ".webp"]
    assert all(path.is_file() for path in pictures.files)
    assert pictures._repr_html_().startswith('<img src="data:image/png;base64,')


def test_any_dataset_of_clips_is_a_source_and_ours_are_datasets() -> None:
    clips = torch.rand(4, 3, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    source = v.DatasetSource(
        TensorDataset(clips, torch.tensor([0, 1, 0, 1])), classes=("run", "walk"), fps=25
    )
    views = v.SingleClip(num_frames=4, frame_stride=1, size=16)
    with v.Loader({"video": v.Stream(source, views, batch_size=2)}) as loader:
        assert len(loader) == 2
        batch = next(loader)
    assert batch.views["clip"][0].shape == (2, 3, 4, 16, 16)
    assert batch.labels["video"]["class"].tolist() == [int(i) % 2 for i in batch.indices["video"]]
    clip, labels = source[1]
    assert torch.equal(clip, (clips[1] * 255).round().to(torch.uint8))
    assert labels == {"class": 1}
    assert len(list(source)) == 4
    dicts = v.DatasetSource([{"video": clips[0], "label": 1}], classes=("run", "walk"))
    assert dicts.labels(0) == {"class": 1}
    assert v.DatasetSource([clips[0]]).labels(0) == {}
    with pytest.raises(v.UsageError, match="a clip is"):
        v.DatasetSource([clips[0, 0]]).info(0)
    with pytest.raises(v.UsageError, match="its class is 5"):
        v.DatasetSource([(clips[0], 5)], classes=("run",)).labels(0)


def test_a_probe_takes_plain_tensors_and_arrays() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    vectors = torch.nn.functional.one_hot(labels, 3).float() + 0.01 * torch.rand(60, 3, generator=generator)
    train, test = (vectors[:40], labels[:40]), (vectors[40:].numpy(), np.asarray(labels[40:]))
    (row,) = v.probe(v.KNN(k=3), train, test)
    assert row.top1 == 1.0
    assert row.label == "class"
    with pytest.raises(v.UsageError, match="class numbers"):
        v.probe(v.KNN(k=3), (vectors[:40], labels), test)
