"""What one step of the loop does: the schedule's rate, the augmented batch, the objective's hook."""

import io
import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from vidssl import api as v
from vidssl.engine.accumulate import mean_metrics, split_batch
from vidssl.errors import UsageError
from vidssl.interfaces import ComparesVideos
from vidssl.train.monitors import _mean


class Recorder(v.Objective):
    """Notes the mean pixel of each batch and each call of its hook."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen: list[float] = []
        self.hooked: list[int] = []
        self.epochs: list[int] = []

    def forward(self, batch, progress, generator):
        self.seen.append(float(batch.views["clip"][0].mean()))
        self.epochs.append(progress.epoch)
        loss = self.net(torch.ones(1)).square().sum()
        return v.LossOutput(loss, {"loss": loss})

    def encoder(self):
        return self.net

    def after_step(self, progress, generator):
        self.hooked.append(progress.step)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    videos = v.MovingDigits(split="train", size=32, digit_size=24, num_frames=4, num_videos=8)
    stream = v.Stream(videos, v.SingleClip(num_frames=4, frame_stride=1, size=32), batch_size=4)
    objective = Recorder()
    result = v.train(
        objective,
        {"video": stream},
        optim=v.AdamW(lr=0.1),
        schedule=v.Cosine(steps=6, warmup_steps=2),
        name="loop",
        run=v.RunSpec(out=str(tmp_path / "runs"), log_every_steps=1, device="cpu"),
        augment=lambda batch, generator: replace(batch, views={"clip": (batch.views["clip"][0] * 0 + 7,)}),
    )
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    return objective, [json.loads(line) for line in lines]


def test_each_step_runs_at_the_rate_of_the_schedule(trained):
    _, records = trained
    plan = v.Cosine(steps=6, warmup_steps=2).plan({"video": 2.0})
    assert [r["lr"] for r in records] == pytest.approx([0.1 * plan.factor(step) for step in range(6)])
    assert len({r["lr"] for r in records}) == 6


def test_the_objective_sees_augmented_batches(trained):
    objective, _ = trained
    assert objective.seen == [7.0] * 6


def test_the_objective_is_told_the_epoch(trained):
    objective, _ = trained
    assert objective.epochs == [0, 0, 1, 1, 2, 2]  # 8 videos, 4 a step


def test_the_hook_is_called_after_every_step(trained):
    objective, _ = trained
    assert objective.hooked == list(range(6))


class OpenedSource(v.DataSource):
    """Eight videos that nobody reads."""

    label_classes: ClassVar = {}

    def __len__(self):
        return 8

    def info(self, index):
        raise NotImplementedError

    def read(self, index, frames):
        raise NotImplementedError


STREAM = v.Stream(OpenedSource(), v.SingleClip(num_frames=4, frame_stride=1, size=32), batch_size=4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"optim": torch.optim.AdamW([nn.Parameter(torch.zeros(1))])},
            r"optim must be such as AdamW\(lr=1e-3\)",
        ),
        (
            {"schedule": v.Cosine},
            r"schedule must be such as Cosine\(epochs=100\) of vidssl\.api, got .*Cosine",
        ),
        (
            {"run": {"device": "cpu"}},
            r"run must be such as RunSpec\(device='cpu'\) of vidssl\.api, got builtins",
        ),
        ({"streams": STREAM}, r"streams must be names with a Stream each"),
        ({"streams": {"video": OpenedSource()}}, r"streams must be names with a Stream each"),
        (
            {"streams": {"image": replace(STREAM, views=v.SingleImage(size=32))}},
            r"Recorder reads 1 of the view 'clip', and the streams give 1 of 'image'",
        ),
        ({"resume": "runs/nope"}, r"runs/nope: no such run or file"),
        ({"name": "../up"}, r"'\.\./up' leads out of its folder"),
    ],
)
def test_an_argument_of_another_kind_is_a_sentence_before_anything_is_made(
    tmp_path, monkeypatch, given, said
):
    monkeypatch.chdir(tmp_path)
    arguments = {"streams": {"video": STREAM}, "optim": v.AdamW(lr=0.1), "schedule": v.Cosine(steps=2)}
    arguments |= {"name": "loop", "run": v.RunSpec(device="cpu"), **given}
    with pytest.raises((TypeError, UsageError), match=said):
        v.train(Recorder(), arguments.pop("streams"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_view_that_a_batch_lacks_is_named():
    with pytest.raises(ValueError, match="the batch has no view 'clip', only 'image'"):
        Recorder()(v.Batch({"image": (torch.zeros(1, 3, 1, 8, 8),)}), v.Progress(0, 1), torch.Generator())


def test_a_loader_of_one_stream_is_told_how_streams_are_given():
    with pytest.raises(TypeError, match="streams must be names with a Stream each"):
        v.Loader(STREAM)


def test_a_checkpoint_is_read_by_a_text_too(tmp_path):
    with pytest.raises(UsageError, match="x: no such file"):
        v.read_checkpoint(str(tmp_path / "x"))
    with pytest.raises(UsageError, match="a folder, not a file"):
        v.read_checkpoint(str(tmp_path))


class Mean(v.Objective):
    """A small network on mean colours; the loss is a mean over clips."""

    needs_views: ClassVar = {"clip": 1}
    splits_batch = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.sizes: list[int] = []

    def forward(self, batch, progress, generator):
        clip = batch.views["clip"][0]
        self.sizes.append(len(clip))
        loss = self.net(clip.mean(dim=(2, 3, 4))).square().mean()
        return v.LossOutput(loss, {"loss": loss})

    def encoder(self):
        return self.net


class Apart(Mean, ComparesVideos):
    """Tells the videos of a batch apart."""

    def check_batch(self, num_videos):
        """Takes any number."""


def run_of(tmp_path, monkeypatch, objective, batch_size=4, num_test=0, console=None, **run):
    videos = v.MovingDigits(split="train", size=16, digit_size=12, num_frames=2, num_videos=8)
    stream = v.Stream(videos, v.SingleClip(num_frames=2, frame_stride=1, size=16), batch_size=batch_size)
    size = {"size": 16, "digit_size": 12, "num_frames": 2, "num_videos": 8}
    held_out = replace(stream, source=v.MovingDigits(split="train", limit=num_test or None, **size))
    return v.train(
        objective,
        {"video": stream},
        test_streams={"video": held_out} if num_test else {},
        console=console,
        optim=v.AdamW(lr=0.01),
        schedule=v.LinearDecay(steps=3),
        name="parts",
        run=v.RunSpec(out=str(tmp_path / "runs"), log_every_steps=1, device="cpu", **run),
    )


def test_a_batch_larger_than_the_data_set_is_refused_where_its_samples_are_told_apart(tmp_path, monkeypatch):
    with pytest.raises(
        UsageError, match=r"data\.video: a batch of 16 is larger than the data set of 8 .*Apart"
    ):
        run_of(tmp_path, monkeypatch, Apart(), batch_size=16)
    assert not (tmp_path / "runs").exists()
    said = io.StringIO()
    objective = Mean()
    run_of(tmp_path, monkeypatch, objective, batch_size=16, console=Console(file=said, width=1000))
    assert (
        "a batch of 16 is larger than the data set of 8 samples, so that it holds samples" in said.getvalue()
    )
    assert objective.sizes == [16] * 3


def test_a_mistake_that_the_first_step_finds_leaves_no_folder(tmp_path, monkeypatch):
    class Mistaken(Mean):
        good = 0

        def forward(self, batch, progress, generator):
            if progress.step == self.good:
                raise UsageError("no such label")
            return super().forward(batch, progress, generator)

    for good, left in ((0, 0), (1, 1)):
        Mistaken.good = good
        with pytest.raises(UsageError, match="no such label"):
            run_of(tmp_path, monkeypatch, Mistaken())
        assert len(list(tmp_path.glob("runs/*"))) == left, "with a step in it it stays"


@pytest.mark.parametrize(("num_test", "sizes"), [(8, [4, 4]), (7, [4, 3]), (5, [4, 1]), (3, [3])])
def test_held_out_videos_are_measured_once_each(tmp_path, monkeypatch, num_test, sizes):
    objective = Mean()
    run_of(tmp_path, monkeypatch, objective, num_test=num_test)
    assert objective.sizes == [4] * 3 + sizes
    if num_test == 5:
        run_of(tmp_path, monkeypatch, objective := Apart(), num_test=num_test)
        assert objective.sizes == [4] * 3 + [4]  # one video cannot be told apart from others


def test_means_over_batches_of_held_out_videos_count_videos():
    assert _mean([(4, torch.tensor(1.0)), (1, torch.tensor(0.0))]) == pytest.approx(0.8)
    numbers = torch.rand(3)
    assert _mean([(4, number) for number in numbers]) == float(numbers.mean())


def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, monkeypatch):
    whole, parts = Mean(), Mean()
    results = [
        run_of(tmp_path, monkeypatch, whole),
        run_of(tmp_path, monkeypatch, parts, accumulate=4),
    ]
    assert whole.sizes == [4] * 3
    assert parts.sizes == [1] * 12
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    losses = [
        [json.loads(line)["loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        for result in results
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_parts_are_refused_where_clips_are_compared_or_do_not_divide(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="Recorder looks at each batch as a whole"):
        run_of(tmp_path, monkeypatch, Recorder(), accumulate=2)
    with pytest.raises(UsageError, match=r"video\.batch_size is 4, .* does not divide among 3 parts"):
        run_of(tmp_path, monkeypatch, Mean(), accumulate=3)


def test_a_batch_is_split_row_by_row_in_every_stream():
    batch = v.Batch(
        views={"clip": (torch.arange(4), torch.arange(4) + 10), "image": (torch.arange(8),)},
        indices={"video": torch.arange(4), "image": torch.arange(8)},
        labels={"video": {"digit": torch.arange(4) * 2}},
    )
    first, second = split_batch(batch, 2)
    assert [slot.tolist() for slot in second.views["clip"]] == [[2, 3], [12, 13]]
    assert first.views["image"][0].tolist() == [0, 1, 2, 3]
    assert second.indices["image"].tolist() == [4, 5, 6, 7]
    assert first.labels["video"]["digit"].tolist() == [0, 2]
    assert split_batch(batch, 1) == [batch]
    with pytest.raises(ValueError, match="a batch of 4 does not divide into 3"):
        split_batch(batch, 3)


def test_metrics_of_parts_are_averaged_over_those_that_have_them():
    parts = [{"a": torch.tensor(1.0), "b": torch.tensor(2)}, {"a": torch.tensor(3.0)}]
    assert {name: float(value) for name, value in mean_metrics(parts).items()} == {"a": 2.0, "b": 2.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_writes_for_the_trackers_that_its_recipe_names(tmp_path, monkeypatch):
    run_of(tmp_path, monkeypatch, Recorder(), trackers=("tensorboard",))
    assert [path.name for path in tmp_path.glob("runs/*/tensorboard/*")] != []
