"""What one step of the loop does: the schedule's rate, the augmented batch, the objective's hook."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from vidssl import api as v


class Recorder(v.Objective):
    """Notes the mean pixel of each batch and each call of its hook."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen: list[float] = []
        self.hooked: list[int] = []

    def forward(self, batch, progress, generator):
        self.seen.append(float(batch.views["clip"][0].mean()))
        loss = self.net(torch.ones(1)).square().sum()
        return v.LossOutput(loss, {"loss": loss})

    def encoder(self):
        return self.net

    def after_step(self, progress, generator):
        self.hooked.append(progress.step)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDSSL_CACHE", str(tmp_path / "cache"))
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


def test_the_hook_is_called_after_every_step(trained):
    objective, _ = trained
    assert objective.hooked == list(range(6))
