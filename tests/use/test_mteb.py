"""A network as a model of mteb, on a task of moving digits in mteb's own format; its videos as a source."""

import json
from pathlib import Path

import pytest
import torch

from vidssl import api as v
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.errors import UsageError

datasets = pytest.importorskip("datasets")


def table(split: str, number: int = 24):
    """Moving digits as a Hugging Face dataset: a column of video files, and what is behind them."""
    world = {"size": 16, "digit_size": 12, "num_frames": 4}
    source = MovingDigits(split=split, num_videos={"train": 24, "test": 12}[split], limit=number, **world)
    rows = {
        "video": [str(source._folder / source._rows[n][0]) for n in range(len(source))],
        "label": [source.labels(n)["texture"] for n in range(len(source))],
    }
    names = datasets.ClassLabel(names=["flower", "china"])
    features = datasets.Features({"video": datasets.Video(decode=False), "label": names})
    return datasets.Dataset.from_dict(rows, features=features), source


@pytest.fixture
def task(tiny: Path):
    pytest.importorskip("mteb")
    from mteb.abstasks.classification import AbsTaskClassification
    from mteb.abstasks.task_metadata import TaskMetadata

    class MovingDigitsClassification(AbsTaskClassification):
        metadata = TaskMetadata(
            name="MovingDigitsClassification",
            description="Grounds of moving digits",
            reference="https://example.org",
            dataset={"path": "none/none", "revision": "1"},
            type="VideoClassification",
            category="v2c",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="accuracy",
            modalities=["video"],
        )
        input_column_name = "video"
        samples_per_label = 4
        n_experiments = 2

        def load_data(self, **options: object) -> None:
            self.dataset = datasets.DatasetDict(train=table("train")[0], test=table("test")[0])
            self.data_loaded = True

    return MovingDigitsClassification()


@pytest.mark.filterwarnings("ignore")  # of mteb and of what it imports
def test_a_run_is_scored_on_a_task_of_mteb(tiny: Path, task, tmp_path: Path) -> None:
    from vidssl.use.mveb import evaluate_mteb

    results = evaluate_mteb(str(tiny), [task], name="me/tiny", out=tmp_path)
    (found,) = results.task_results
    score = found.scores["test"][0]["main_score"]
    assert 0 < score <= 1
    (file,) = tmp_path.rglob("MovingDigitsClassification.json")
    assert json.loads(file.read_text())["scores"]["test"][0]["main_score"] == score
    meta = json.loads((file.parent / "model_meta.json").read_text())
    network = v.load(tiny)
    assert (meta["name"], meta["embed_dim"]) == ("me/tiny", network.num_features)
    assert meta["n_parameters"] == sum(part.numel() for part in network.parameters())


@pytest.mark.filterwarnings("ignore")
def test_mteb_gets_the_features_that_the_package_gives(tiny: Path, task) -> None:
    from torch.utils.data import DataLoader

    from vidssl.evaluate.evaluate import asked_network, eval_words
    from vidssl.use.mveb import MtebNetwork

    subject = asked_network(str(tiny), eval_words(())).make(print)
    probe = load_recipe("tiny.yaml").data.probe
    assert probe is not None
    model = MtebNetwork(subject, build.views(probe.views), name="me/tiny")
    rows, source = table("test", 5)
    loader = DataLoader(rows, batch_size=2)
    found = model.encode(loader, task_metadata=task.metadata, hf_split="test", hf_subset="default")
    own = v.extract(v.load(tiny), source, build.views(probe.views), device=torch.device("cpu"))
    assert torch.allclose(found, own.vectors.mean(1), atol=1e-6)
    assert torch.allclose(model.similarity(found, found).diagonal(), torch.ones(5))
    assert torch.allclose(model.similarity_pairwise(found, found), torch.ones(5))


@pytest.mark.filterwarnings("ignore")
def test_the_loader_of_a_leaderboards_metadata_gives_the_same(tiny: Path, task) -> None:
    from torch.utils.data import DataLoader

    from vidssl.use.mveb import load_mteb

    model = load_mteb(str(tiny), "abc", device="cpu")
    assert (model.mteb_model_meta.name, model.mteb_model_meta.revision) == (str(tiny), "abc")
    rows, _ = table("test", 3)
    found = model.encode(
        DataLoader(rows, batch_size=2), task_metadata=task.metadata, hf_split="test", hf_subset="default"
    )
    assert found.shape == (3, v.load(tiny).num_features)


@pytest.mark.slow  # mteb looks through all of its tasks
def test_what_mteb_cannot_do_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mteb")
    assert main(["mteb", str(tiny), "--tasks", "HMDB51Clasification"]) == 2
    assert "mteb knows no task or benchmark of this name" in capsys.readouterr().err
    assert main(["mteb", str(tiny), "--tasks", "Banking77Classification"]) == 2
    assert "Banking77Classification has text" in capsys.readouterr().err
    assert main(["mteb", str(tiny), "--tasks", "HMDB51Classification", "--name", "mine"]) == 2
    assert "--name takes OWNER/NAME, got mine" in capsys.readouterr().err
    assert main(["mteb", str(tiny), "--tasks", "HMDB51Classification", "average=scores"]) == 2
    assert "this command knows views={...}" in capsys.readouterr().err


def test_a_hugging_face_column_of_videos_is_a_source(tiny: Path) -> None:
    rows, digits = table("test", 4)
    source = v.DatasetSource(rows, classes=rows.features["label"].names)
    assert source.label_classes == {"class": ("flower", "china")}
    for number in range(4):
        assert source.labels(number)["class"] == digits.labels(number)["texture"]
        assert source.info(number).num_frames == 4
        assert torch.equal(source.read(number, [2, 0]), digits.read(number, [2, 0]))
    views = v.UniformClips(num_frames=4, frame_stride=1, size=16)
    assert len(v.extract(v.load(tiny), source, views, device=torch.device("cpu")).vectors) == 4


def test_files_and_bytes_are_videos_and_others_are_refused(tiny: Path) -> None:
    file = Path("videos/short.mp4")
    whole = {"path": None, "bytes": file.read_bytes()}
    for item in (file, str(file), {"path": str(file), "bytes": None}, whole):
        source = v.DatasetSource([{"video": item, "label": 0}, item], classes=("one",))
        assert source.info(0).num_frames == 6
        assert source.info(0).fps == pytest.approx(30)
        assert source.read(1, [5]).shape == source.read(0, [5]).shape
    broken = v.DatasetSource([{"video": {"path": None, "bytes": b"no video"}}])
    with pytest.raises(v.UnreadableSample, match="000000000"):
        broken.info(0)
    with pytest.raises(UsageError, match=r"Video\(decode=False\)"):
        v.DatasetSource([object()]).info(0)
