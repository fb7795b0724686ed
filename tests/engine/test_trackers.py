"""Metrics in the logs of others."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vidssl.config.recipe import RunSpec
from vidssl.engine.logging import check_trackers, open_trackers
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import eval_words


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, round(event.value, 6)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_metric_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_trackers(("tensorboard",), tmp_path, config="name: x\n", first_step=0) as track:
        track({"step": 5, "seconds": 1.0, "loss": 2.5, "lr": 0.25})
        track({"step": 10, "seconds": 2.0, "loss": 1.5, "lr": 0.5})
    assert scalars(tmp_path) == {"loss": [(5, 2.5), (10, 1.5)], "lr": [(5, 0.25), (10, 0.5)]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_goes_on_replaces_what_tensorboard_was_given_of_later_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with open_trackers(("tensorboard",), tmp_path, config="", first_step=0) as track:
        for step in (5, 10, 15):
            track({"step": step, "loss": 1.0})
    with open_trackers(("tensorboard",), tmp_path, config="", first_step=5) as track:
        track({"step": 10, "loss": 7.0})
    assert scalars(tmp_path)["loss"] == [(5, 1.0), (10, 7.0)]


def test_no_tracker_is_no_file(tmp_path: Path) -> None:
    with open_trackers((), tmp_path, config="", first_step=0) as track:
        track({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("vidssl.engine.logging.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"run.trackers names 'wandb'.*pip install 'vidssl\[wandb\]'"):
        check_trackers(("wandb",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_one_run_over_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_trackers(("wandb",), tmp_path, config="name: x\n", first_step=0) as track:
        track({"step": 5, "seconds": 1.0, "loss": 2.5})
    first = (tmp_path / "wandb_id").read_text()
    with open_trackers(("wandb",), tmp_path, config="name: x\n", first_step=5) as track:
        track({"step": 10, "seconds": 1.0, "loss": 2.0})
    assert (tmp_path / "wandb_id").read_text() == first
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_run_with_trackers_can_be_evaluated() -> None:
    run = RunSpec(trackers=("tensorboard",), workers=2)
    assert eval_words(["run.workers=0"]).changed(run) == replace(run, workers=0)
