"""Schedules, parameter groups, run folders and checkpoints."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidssl.engine import guard
from vidssl.engine.checkpoint import FORMAT, read_checkpoint, save_checkpoint
from vidssl.engine.logging import Meter
from vidssl.engine.optim import AdamW, decayed_names
from vidssl.engine.process import StopAsked, stop_requests, write_text
from vidssl.engine.runfolder import RunFolder, create_run, newest_run
from vidssl.engine.schedules import Cosine, cosine_factor
from vidssl.engine.speed import pick_device, use_bfloat16
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, LossOutput, Objective, Progress

GOLDEN = Path(__file__).parents[1] / "golden" / "bevt"


class Toy(Objective):
    """An objective with an encoder and a head."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.head = nn.Linear(2, 1)
        self.norm = nn.LayerNorm(2)

    def forward(self, batch, progress, generator):
        loss = self.head(self.backbone(batch.views["clip"][0])).square().mean()
        return LossOutput(loss, {"loss": loss})

    def encoder(self):
        return self.backbone


def test_cosine_with_warmup_gives_the_published_learning_rates():
    golden = json.loads((GOLDEN / "schedule.json").read_text())["pretrain_two_stream"]
    plan = Cosine(epochs=golden["epochs"], warmup_epochs=10, warmup_start=golden["warmup_ratio"]).plan(
        {"video": golden["iters_per_epoch"]}
    )
    assert plan.total_steps == golden["epochs"] * golden["iters_per_epoch"]
    for step, lr in golden["points"]:
        assert golden["base_lr"] * plan.factor(step) == pytest.approx(lr, rel=1e-9)


def test_cosine_ends_at_its_final_share():
    assert cosine_factor(100, 100, 0, 0.0, 0.25) == pytest.approx(0.25)
    assert cosine_factor(0, 100, 10, 0.1, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "either 'steps' or 'epochs'"),
        ({"steps": 5, "epochs": 1.0}, "either 'steps' or 'epochs'"),
        ({"steps": 5, "warmup_steps": 1, "warmup_epochs": 1.0}, "either 'warmup_steps'"),
        ({"steps": 0}, "longer than nothing"),
        ({"steps": 5, "warmup_steps": -1}, "negative"),
    ],
)
def test_schedule_refuses_what_cannot_be_meant(keys, message):
    with pytest.raises(ValueError, match=message):
        Cosine(**keys)


def test_schedule_refuses_a_warmup_as_long_as_the_run_and_epochs_of_a_missing_stream():
    with pytest.raises(ValueError, match="does not fit"):
        Cosine(steps=5, warmup_steps=5).plan({"video": 1})
    with pytest.raises(ValueError, match="epoch_of"):
        Cosine(epochs=5).plan({"image": 1})


def test_only_weights_of_linear_and_convolution_layers_decay():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.LayerNorm(2), nn.Linear(2, 2), nn.Embedding(3, 2))
    assert decayed_names(net) == {"0.weight", "2.weight"}
    groups = AdamW(lr=0.1, weight_decay=0.3).build(net).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 2), (0.0, 5)]


def test_checkpoint_comes_back_as_it_was(tmp_path):
    toy = Toy()
    save_checkpoint(tmp_path / "step-000007.safetensors", toy, step=7, recipe="name: toy\n")
    found = read_checkpoint(tmp_path / "step-000007.safetensors")
    assert (found.step, found.recipe) == (7, "name: toy\n")
    assert set(found.encoder) == {"weight", "bias"}
    assert torch.equal(found.encoder["weight"], toy.backbone.weight)
    assert set(found.objective) == {"head.weight", "head.bias", "norm.weight", "norm.bias"}


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "step-000001.safetensors"
    save_checkpoint(path, Toy(), step=1, recipe="")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"step-000001.safetensors: damaged or cut short"):
        read_checkpoint(path)


def test_a_missing_checkpoint_and_a_foreign_one_are_named(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UsageError, match="no checkpoint that 'vidssl train' wrote"):
        read_checkpoint(tmp_path / "foreign.safetensors")


def test_a_failed_write_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_a_checkpoint_is_an_error_with_a_name(tmp_path, monkeypatch):
    path = tmp_path / "step-000001.safetensors"
    monkeypatch.setattr(Path, "with_name", lambda self, name: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: None)
    with pytest.raises(UsageError, match=r"cannot write .*step-000001"):
        save_checkpoint(path, Toy(), step=1, recipe="")


def test_runs_of_one_name_get_folders_of_their_own_and_the_newest_is_found(tmp_path):
    first = create_run(tmp_path, "bevt", "name: bevt\n")
    second = create_run(tmp_path, "bevt", "name: bevt\n")
    assert [first.path.name, second.path.name] == ["bevt", "bevt-2"]
    save_checkpoint(first.checkpoint_path(5), Toy(), step=5, recipe="")
    assert newest_run(tmp_path).path == first.path  # the second has no checkpoint yet
    save_checkpoint(second.checkpoint_path(9), Toy(), step=9, recipe="")
    save_checkpoint(second.checkpoint_path(10), Toy(), step=10, recipe="")
    newest = newest_run(tmp_path)
    assert newest.path == second.path
    assert newest.newest_checkpoint() == second.checkpoint_path(10)
    assert (first.path / "recipe.yaml").read_text() == "name: bevt\n"
    environment = json.loads((first.path / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_run_in_a_folder_of_its_own_is_the_newest_but_what_lies_in_a_run_is_not(tmp_path):
    for name in ("a", "exp1/second", "exp1/second/finetune/digit"):
        run = create_run(tmp_path, name, "name: x\n")
        save_checkpoint(run.checkpoint_path(5), Toy(), step=5, recipe="")
    assert newest_run(tmp_path).path == tmp_path / "exp1" / "second"


def test_no_run_says_how_to_make_one(tmp_path):
    with pytest.raises(UsageError, match="vidssl train"):
        newest_run(tmp_path)


def test_a_run_folder_that_cannot_be_made_names_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"run\.out=FOLDER"):
        create_run(tmp_path / "file", "bevt", "")


def test_metrics_are_one_json_line_a_record(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"step": 1, "loss": 2.5})
    run.log({"step": 2, "loss": 2.0})
    assert [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()] == [2.5, 2.0]


def test_first_signal_is_a_request_and_a_second_interrupt_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a job of the background
    with stop_requests() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(StopAsked), stop.ends_wait():
            pytest.fail("the signal came before the wait")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with stop_requests() as stop, pytest.raises(StopAsked), stop.ends_wait():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_closed_terminal_is_a_request_and_what_is_printed_then_no_error():
    kept, (terminal, end) = os.dup(1), os.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    try:
        os.dup2(end, 1)
        with stop_requests() as stop:
            os.close(terminal)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(1, b"lost")
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == signal.SIGHUP
            os.write(1, b"saved\n")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(end)
        signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_asks_for_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    signal.signal(signal.SIGHUP, before)


def test_window_averages_and_starts_anew():
    window = Meter()
    batch = Batch({"clip": (torch.zeros(4, 3, 2, 8, 8),)})
    window.add({"loss": torch.tensor(1.0)}, torch.tensor(2.0), batch, 0.0)
    window.add({"loss": torch.tensor(3.0)}, torch.tensor(4.0), batch, 0.0)
    means = window.means()
    assert (means["loss"], means["grad_norm"]) == (2.0, 3.0)
    assert means["clips_per_second"] > 0
    assert window.means() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without CUDA")
def test_asking_for_cuda_where_there_is_none_is_an_error():
    assert pick_device("auto").type == "cpu"
    assert not use_bfloat16("auto", torch.device("cpu"))
    with pytest.raises(UsageError, match="no CUDA device"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"step": None}, "its metadata lacks 'step'"),
        ({"recipe": None}, "its metadata lacks 'recipe'"),
        ({"step": "three"}, "its metadata: step: not valid JSON"),
        ({"step": '"3"'}, "its metadata: step: expected a whole number, got '3'"),
        ({"step": "-1"}, "its metadata: step: must be a whole number from 0"),
        ({"step": "9" * 5000}, "its metadata: step: "),
        ({"step": "[" * 5000}, "its metadata: step: not valid JSON"),
    ],
)
def test_damaged_metadata_of_a_checkpoint_name_file_and_field(
    metadata: dict[str, str | None], message: str, tmp_path: Path
) -> None:
    every = {"format": FORMAT, "step": "3", "recipe": "", **metadata}
    path = tmp_path / "damaged.safetensors"
    save_file({"encoder.a": torch.zeros(1)}, path, {k: v for k, v in every.items() if v is not None})
    with pytest.raises(UsageError, match=re.escape(f"{path}: {message}")):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("progress",), None, "facts.progress: expected keys with values"),
        (("progress", "step"), "1", "facts.progress.step: expected a whole number, got '1'"),
        (("conditions", "rank"), -1, "facts.conditions.rank: must be a whole number from 0"),
        (("conditions", "colour"), 1, "facts.conditions.colour: unknown key"),
        (("loss",), "much", "facts.loss: expected a number in quotes"),
        (("samples", "video"), {}, "facts.samples.video: expected a list"),
        (("samples", "video"), [{"key": "a", "epoch": 0}], "facts.samples.video[0]: missing 'place'"),
    ],
)
def test_damaged_facts_of_a_capture_name_file_and_field(
    path: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    facts: dict[str, Any] = {
        "progress": {"step": 0, "total_steps": 1},
        "loss": "nan",
        "grad_norm": "nan",
        "scale": None,
        "conditions": {"recipe": "", "precision": "fp32", "device": "cpu"},
        "samples": {},
    }
    states = {f"random.{name}": torch.get_rng_state() for name in ("cpu", "objective")}
    file = tmp_path / "capture.safetensors"
    save_file(states, file, {"format": guard.FORMAT, "facts": json.dumps(facts)})
    assert guard.read_capture(file).attempt.progress == Progress(0, 1)
    *around, last = path
    inner = facts[around[0]] if around else facts
    inner[last] = value
    save_file(states, file, {"format": guard.FORMAT, "facts": json.dumps(facts)})
    with pytest.raises(UsageError, match=re.escape(f"{file}: its metadata: {message}")):
        guard.read_capture(file)
    save_file({}, file, {"format": guard.FORMAT, "facts": json.dumps(facts)})
    with pytest.raises(UsageError):
        guard.read_capture(file)
