"""What objectives state of their metrics, and when a run says that one has left its band."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from toy_runs import make_world

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.data.loader import Loader
from vidssl.engine.collapse import (
    RECENT_CLIPS,
    CollapseWatch,
    RecentFeatures,
    feature_std,
    predicted_perplexity,
    rank_me,
)
from vidssl.errors import UsageError
from vidssl.interfaces import Band, Batch, LossOutput, Progress, Reconstruction, TrainableTokenizer, Watched
from vidssl.objectives import OBJECTIVES
from vidssl.objectives.bevt import BEVTVideo
from vidssl.objectives.tokenizer import TokenizerTraining
from vidssl.objectives.vimpac import info_nce
from vidssl.train.run import train_recipe


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def said_by(watch: CollapseWatch, values: list[float], total: int = 1000, first: int = 0) -> list[str]:
    """What is said when the metric ``x`` is looked at every 20 steps."""
    said = []
    for look, value in enumerate(values, first):
        said += watch.look(20 * look, total, {"x": value, "other": 0.0})
    return said


# bands


def test_a_band_has_one_edge() -> None:
    with pytest.raises(ValueError, match="one of lowest, apart_from and share_of_best"):
        Band(metric="x", says="y")
    with pytest.raises(ValueError, match="a band of 'x'"):
        Band(metric="x", says="y", lowest=1.0, share_of_best=0.5)


def test_each_kind_of_edge() -> None:
    lowest = Band(metric="x", says="y", lowest=0.5)
    assert [lowest.left(value, 9.0) for value in (0.4, 0.5, math.nan)] == [True, False, False]
    apart = Band(metric="x", says="y", apart_from=4.0)
    assert [apart.left(value, 9.0) for value in (3.95, 3.97, 4.03, 4.05)] == [False, True, True, False]
    share = Band(metric="x", says="y", share_of_best=0.25, zero=1.0)
    assert [share.left(value, 21.0) for value in (5.9, 6.1, 21.0)] == [True, False, False]


# the watch


def test_a_sign_is_said_once_when_it_has_lasted() -> None:
    band = Band(metric="x", says="it has been low", lowest=0.5, cure="Raise it")
    assert said_by(CollapseWatch([band]), [1.0] * 3 + [0.1] * 5) == []
    assert said_by(CollapseWatch([band]), [1.0] * 3 + [0.1] * 40) == [
        "step 160: for 100 steps it has been low (x is 0.1, sound from 0.5). Raise it"
    ]


def test_long_runs_are_given_a_twentieth_of_themselves() -> None:
    band = Band(metric="x", says="it has been low", lowest=0.5)
    assert said_by(CollapseWatch([band]), [0.1] * 100, 40_000) == []
    assert len(said_by(CollapseWatch([band]), [0.1] * 101, 40_000)) == 1


def test_a_sign_that_goes_begins_anew_and_one_that_comes_again_is_said_again() -> None:
    band = Band(metric="x", says="it has been low", lowest=0.5)
    assert said_by(CollapseWatch([band]), [0.1] * 5 + [1.0] + [0.1] * 5) == []
    assert len(said_by(CollapseWatch([band]), [0.1] * 9 + [1.0] + [0.1] * 9)) == 2


def test_the_highest_value_is_what_a_share_is_of() -> None:
    band = Band(metric="x", says="it has fallen", share_of_best=0.25, zero=1.0)
    said = said_by(CollapseWatch([band]), [21.0, 2.0, 5.0] + [5.5] * 6)
    assert said == ["step 120: for 100 steps it has fallen (x is 5.5, its highest was 21)."]
    assert said_by(CollapseWatch([band]), [2.0] * 10 + [6.0] * 10) == []


def test_the_beginning_is_left_out_of_account_where_a_band_says_so() -> None:
    band = Band(metric="x", says="it has fallen", share_of_best=0.25, after=0.1)
    assert said_by(CollapseWatch([band]), [100.0] * 5 + [1.0] * 40) == []
    assert len(said_by(CollapseWatch([band]), [100.0] * 6 + [1.0] * 40)) == 1


def test_what_is_not_logged_or_no_number_is_no_sign() -> None:
    band = Band(metric="y", says="it has been low", lowest=0.5)
    assert said_by(CollapseWatch([band]), [0.1] * 40) == []
    band = Band(metric="x", says="it has been low", lowest=0.5)
    assert said_by(CollapseWatch([band]), [0.1, math.nan] * 40) != []
    assert said_by(CollapseWatch([band]), [math.nan] * 40) == []


def test_a_resumed_run_remembers_what_it_has_seen() -> None:
    band = Band(metric="x", says="it has fallen", share_of_best=0.25)
    first, second = CollapseWatch([band]), CollapseWatch([band])
    assert said_by(first, [10.0] + [1.0] * 3) == []
    second.load(first.tensors(), torch.device("cpu"))
    (said,) = said_by(second, [1.0] * 20, first=4)
    assert said.startswith("step 120: for 100 steps")
    third = CollapseWatch([band])
    third.load(second.tensors(), torch.device("cpu"))
    assert said_by(third, [1.0] * 20, first=24) == []  # it was said
    other = CollapseWatch([band, band])
    other.load(second.tensors(), torch.device("cpu"))  # bands of another version: anew
    assert len(said_by(other, [10.0] + [1.0] * 20)) == 2


# measures


def test_recent_features_are_those_of_the_last_clips() -> None:
    recent = RecentFeatures()
    assert recent.measures() == {}
    batches = [noise(100, 4, seed=seed) for seed in range(8)]
    for batch in batches:
        recent.add(batch)
    last = torch.cat(batches)[-RECENT_CLIPS:]
    expected = {"rankme": float(rank_me(last)), "feature_std": float(feature_std(last[:, None]))}
    assert recent.measures() == expected
    other = RecentFeatures()
    other.load(recent.tensors(), torch.device("cpu"))
    assert other.measures() == expected
    for kept in (recent, other):
        kept.add(batches[0])
    assert other.measures() == recent.measures() != expected
    other.load({}, torch.device("cpu"))
    assert other.measures() == {}


def test_features_without_two_clips_tell_nothing() -> None:
    watch = CollapseWatch()
    watch.add(LossOutput(torch.tensor(0.0), {}))
    assert watch.measures() == {}
    watch.add(LossOutput(torch.tensor(0.0), {}, noise(1, 3)))
    assert watch.measures() == {}
    watch.add(LossOutput(torch.tensor(0.0), {}, noise(1, 3)))
    assert watch.measures()["rankme"] == pytest.approx(1, abs=1e-3)


def test_the_perplexity_of_predictions_counts_ids_that_are_chosen_alike() -> None:
    assert float(predicted_perplexity(torch.eye(4).repeat(3, 1))) == pytest.approx(4)
    assert float(predicted_perplexity(torch.eye(4)[[1, 1, 1]])) == pytest.approx(1)
    halves = torch.eye(3)[[0, 0, 1, 2]]
    assert float(predicted_perplexity(halves)) == pytest.approx(math.exp(1.5 * math.log(2)))
    assert float(predicted_perplexity(torch.empty(0, 4))) == pytest.approx(1)


def test_the_gap_is_that_of_mean_cosines() -> None:
    first, second = noise(5, 8), noise(5, 8, seed=1)
    a, b = F.normalize(first), F.normalize(second)
    every = torch.cat((a, b))
    positive = (a * b).sum(dim=1).mean()
    others = [every[i] @ every[j] for i in range(10) for j in range(10) if i % 5 != j % 5]
    expected = float(positive - torch.stack(others).mean())
    assert float(info_nce(first, second, 0.2).gap) == pytest.approx(expected, abs=1e-6)
    assert float(info_nce(first, first, 0.2).gap) > 0.5
    same = torch.ones(5, 8)
    assert float(info_nce(same, same, 0.2).gap) == pytest.approx(0, abs=1e-6)


class Counted(TrainableTokenizer):
    """Gives the ids that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 4
        self.strides = (1, 1, 1)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.ids = torch.zeros(1, 1, 1, 1, dtype=torch.int64)

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        return self.ids

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.expand(1, 3, 1, 1, 1).float()

    def reconstruct(self, clip: torch.Tensor) -> Reconstruction:
        return Reconstruction(clip * self.scale, self.ids, torch.zeros(()))

    def update_codebook(self, generator: torch.Generator) -> None:
        pass


def test_the_use_of_codes_is_that_of_the_steps_that_were_taken() -> None:
    tokenizer = Counted()
    objective = TokenizerTraining(tokenizer, usage_window=2).train()

    def used(step: int, number: int, taken: bool = True) -> float:
        tokenizer.ids = torch.full((1, 1, 1, 1), number)
        batch = Batch({"image": (torch.rand(1, 3, 1, 1, 1),)})
        output = objective(batch, Progress(step, 10), torch.Generator())
        if taken:
            objective.after_step(Progress(step, 10), torch.Generator())
        return float(output.metrics["used_codes"])

    assert used(0, 0) == 0.25
    assert used(1, 1) == 0.5
    assert used(2, 2) == 0.5  # 0 is out of the window
    assert used(3, 3, taken=False) == 0.5
    assert used(4, 2) == 0.5  # 1 and 2: what was not taken does not count
    assert objective.recent_counts.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


# objectives


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


WATCHED = sorted(name for name, kind in OBJECTIVES.items() if issubclass(kind, Watched))


def test_the_objectives_of_the_papers_are_watched() -> None:
    papers = {name for name in OBJECTIVES if name.startswith(("bevt", "svt", "vimpac"))}
    assert len(papers) == 7
    assert papers < set(WATCHED)


@pytest.mark.parametrize("name", WATCHED)
def test_every_band_is_of_a_metric_that_is_logged(name: str) -> None:
    recipe = load_recipe(f"{name}.yaml")
    objective = build.objective(recipe, say=lambda text: None).train()
    assert isinstance(objective, Watched)
    watch = CollapseWatch(objective.bands())
    with Loader(build.streams(recipe)) as loader:
        batch = next(loader).to(torch.device("cpu"))
    output = objective(batch, Progress(0, 6, 2.5), torch.Generator())
    watch.add(output)
    logged = dict(output.metrics) | watch.measures()
    assert {band.metric for band in objective.bands()} <= set(logged)
    assert objective.bands()
    if output.features is not None:
        assert output.features.shape[0] == 4
        assert not output.features.requires_grad
        assert "rankme" not in output.metrics
    assert ("rankme" in logged) == (name != "tokenizer")


# in a run

LONG = ["schedule.steps=12", "run.log_every_steps=1", "run.checkpoint_every_steps=100"]


@pytest.fixture
def sinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps are long, and no loss is as high as it should be."""
    band = Band(metric="loss_video", says="the loss has been low", lowest=100.0)
    monkeypatch.setattr(BEVTVideo, "bands", lambda objective: (band,))
    monkeypatch.setattr("vidssl.engine.collapse._SHORTEST", 3)


def events_of(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_run_says_what_it_sees_and_goes_on(sinking: None, capsys) -> None:
    assert main(["train", "bevt_video.yaml", *LONG, "run.out=warned"]) == 0
    run = Path("warned/bevt_video")
    (event,) = events_of(run)
    assert (event["step"], event["kind"]) == (4, "collapse")
    assert str(event["text"]).startswith("step 4: for 3 steps the loss has been low (loss_video is ")
    assert str(event["text"]) in capsys.readouterr().out
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["rankme"] >= 1 for record in records if "lr" in record] == [True] * 12


def test_a_run_that_is_to_stop_is_saved_and_can_go_on(sinking: None, capsys) -> None:
    assert main(["train", "bevt_video.yaml", *LONG, "run.out=stopped", "run.on_collapse=stop"]) == 2
    error = capsys.readouterr().err
    assert "The run stops, as run.on_collapse says; it is saved as it is" in error
    assert len(error.splitlines()) == 1
    run = Path("stopped/bevt_video")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000004.safetensors"]
    assert main(["train", "--resume", str(run)]) == 0  # it was said; whoever goes on knows
    assert (run / "checkpoints" / "step-000012.safetensors").is_file()
    assert len(events_of(run)) == 1


def test_what_stops_a_run_is_chosen_by_name() -> None:
    with pytest.raises(UsageError, match="on_collapse"):
        load_recipe("bevt_video.yaml", ["run.on_collapse=cry"])
    with pytest.raises(UsageError, match="max_skipped_steps: must be at least 1, got 0"):
        load_recipe("bevt_video.yaml", ["run.max_skipped_steps=0"])


def test_watching_changes_nothing_of_a_run() -> None:
    """Weights are the same whether features are looked at in every step or never."""
    ends = []
    for every in (1, 100):
        words = [f"run.out=every{every}", f"run.log_every_steps={every}", "schedule.steps=3"]
        objective, _ = train_recipe(load_recipe("vimpac.yaml", words), Console(quiet=True))
        ends.append(objective.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
