"""A run that was ended goes on at the very step, and ends as the whole run does, bit for bit."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from toy_runs import BY_DEFAULT, assert_same_end, make_world, records

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, load_recipe
from vidssl.config.strict_yaml import load
from vidssl.data.loader import Loader
from vidssl.data.sources.origins import Video, read_videos, write_videos
from vidssl.engine.checkpoint import load_objective, read_checkpoint, save_checkpoint
from vidssl.engine.logging import Meter
from vidssl.engine.resume import (
    Moving,
    Restored,
    changed_keys,
    find_run,
    load_optimizer,
    optimizer_tensors,
    restore,
)
from vidssl.engine.runfolder import RunFolder, create_run
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, Objective, Origin
from vidssl.train.run import train_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy tokenizer in it, which becomes the working folder of every test."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def train(recipe: Recipe, resume: Path | None = None, stop_after: int | None = None) -> RunFolder:
    _, result = train_recipe(recipe, Console(quiet=True), resume, stop_after)
    if result.steps < (stop_after or result.total_steps) and not Signals.expected:
        pytest.exit("the tests were asked to stop, and the run in them took the signal", returncode=143)
    return RunFolder(result.folder)


class Signals:
    """Whether a test sends signals to its own process; others end the tests."""

    expected = False


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_a_run_that_goes_on_ends_as_the_whole_run_does(name: str) -> None:
    """Stopped after 3 of 6 steps: between two log lines, before the first checkpoint was due."""
    whole = train(load_recipe(f"{name}.yaml"))
    halves = train(load_recipe(f"{name}.yaml"), stop_after=3)
    assert [record["step"] for record in records(halves)] == [2]
    assert [path.name for path in halves.states()] == ["step-000003.safetensors"]
    again = train(load_recipe(f"{name}.yaml"), resume=halves.path)
    assert again.path == halves.path
    steps = [record["step"] for record in records(again)]
    assert steps == [2, 4, 4, 6, 6]  # log and held-out metrics
    assert_same_end(whole, again)


@pytest.mark.slow
def test_a_run_may_be_stopped_again_and_again() -> None:
    whole = train(load_recipe("svt.yaml"))
    parts = train(load_recipe("svt.yaml"), stop_after=1)
    for steps in range(2, 7):
        train(load_recipe("svt.yaml"), resume=parts.path, stop_after=steps)
    assert_same_end(whole, parts)
    resumed = [json.loads(line) for line in (parts.path / "resumed.jsonl").read_text().splitlines()]
    assert [record["step"] for record in resumed] == [1, 2, 3, 4, 5]
    assert resumed[0]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_signal_ends_a_wait_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is taken back gives no time to wait for slow videos: steps 1 and 2 are saved at once."""
    stopped = train(load_recipe("svt.yaml"), stop_after=2)
    take, taken = Loader.__next__, count(1)

    def slow(loader: Loader) -> Batch:
        if next(taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)
        return take(loader)

    monkeypatch.setattr(Loader, "__next__", slow)
    monkeypatch.setattr(Signals, "expected", True)
    waited = train(load_recipe("svt.yaml"))
    assert [path.name for path in waited.states()] == ["step-000002.safetensors"]
    assert_same_end(stopped, waited)


@pytest.fixture(scope="module")
def halfway(world: Path) -> Path:
    """A run of vimpac_contrast with states after 2 and 3 steps, stopped there; to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        recipe = load_recipe("vimpac_contrast.yaml", ["run.checkpoint_every_steps=2", "run.out=halfway"])
        folder = train(recipe, stop_after=3)
        return folder.path.resolve()


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(halfway, tmp_path / "run")))


def resumed(run: RunFolder, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and all that was said."""
    code = main(["train", "--resume", str(run.path), *overrides])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_command_goes_on_and_keeps_the_newest_states(run, capsys):
    assert [path.name[5:11] for path in run.states()] == ["000002", "000003"]
    code, said = resumed(run, capsys)
    assert code == 0
    assert f"Run folder: {run.path}" in said
    assert "Resumes after step 3 of 6." in said
    assert "Trained steps 4 to 6 in " in said
    assert [path.name[5:11] for path in run.states()] == ["000004", "000006"]
    weights = sorted(path.name[5:11] for path in run.checkpoints.iterdir())
    assert weights == ["000002", "000003", "000004", "000006"]
    oldest = run.states()[0]
    shutil.copy(oldest, oldest.with_name("step-000001.safetensors"))  # as a kill at the last step leaves one
    code, said = resumed(run, capsys)
    assert (code, "Resumes after step 6 of 6." in said) == (0, True)
    assert [path.name[5:11] for path in run.states()] == ["000004", "000006"]
    assert "All of the run's 6 steps were done before." in said


def test_a_run_whose_videos_have_changed_stops_unless_that_is_allowed(run, capsys):
    now = read_videos(run.videos)
    before = {name: (*videos[1:], Video("gone.mp4", Origin("gone"))) for name, videos in now.items()}
    write_videos(run.videos, before)
    code, said = resumed(run, capsys)
    assert code == 2
    assert "data.video.source has 10 videos, 10 before: 1 new (train/000000.mp4), 1 gone (gone.mp4)" in said
    code, said = resumed(run, capsys, "run.on_changed_data=resume")
    assert code == 0
    said = " ".join(said.split())
    assert "It resumes with other batches than an uninterrupted run" in said
    assert "on 10 held-out videos, of which 10 were trained on: " in said
    assert read_videos(run.videos) == now
    assert [read_videos(path) for path in run.video_lists()] == [before, now]
    for path in run.video_lists():
        path.unlink()  # as an earlier version leaves it
    assert resumed(run, capsys)[0] == 0


def test_old_weights_are_thinned_where_the_recipe_says_so(run, capsys):
    words = ("run.checkpoint_every_steps=1", "run.keep_every_steps=3", "run.keep_checkpoints=1")
    assert resumed(run, capsys, *words)[0] == 0
    assert sorted(path.name[5:11] for path in run.checkpoints.iterdir()) == ["000003", "000006"]
    assert [path.name[5:11] for path in run.states()] == ["000006"]


def test_the_selftest_compares_a_recipe_s_run_with_its_halves(capsys):
    assert main(["selftest", "resume", "bevt_video.yaml", "--steps", "2"]) == 0
    assert re.search(r"The same, bit for bit: all \d\d+ tensors", capsys.readouterr().out)
    with pytest.MonkeyPatch.context() as patch:  # what the global generator was is lost
        patch.setattr("torch.set_rng_state", lambda state: None)
        assert main(["selftest", "resume", "bevt_video.yaml", "--steps", "2"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"Not the same: \d+ of \d+ tensors differ\.", said)
    assert "random.cpu: differs by up to" in said
    assert main(["selftest", "resume", "bevt_video.yaml", "--steps", "4"]) == 2
    assert "the run ended after 6 steps" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["resume", "checkpoints"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_state_before_a_damaged_one_is_used(run, capsys, kind, damage):
    path = run.path / kind / "step-000003.safetensors"
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-50] if damage == "cut" else content)
    start, said = restored(run)
    assert start.step == 2
    if (kind, damage) != ("resume", "gone"):  # what is not there is not spoken of
        assert len(said) == 1
        assert str(path) in said[0]
        assert "The state before it is used." in said[0]
    assert not path.exists()
    assert [record["step"] for record in records(run)] == [2, 2]


def restored(run: RunFolder) -> tuple[Restored, list[str]]:
    """Where a fresh objective goes on, and what is said of it."""
    said: list[str] = []
    return restore(run, moving(), say=said.append), said


def moving() -> Moving:
    recipe = load_recipe("vimpac_contrast.yaml")
    objective = build.objective(recipe)
    return Moving(objective, build.optim(recipe).build(objective), torch.Generator(), Meter())


def test_where_nothing_is_whole_the_way_out_is_named(run):
    for path in run.states():
        path.write_bytes(b"noise")
    with pytest.raises(UsageError, match=r"no state to resume from .*backbone\.init"):
        restored(run)


def test_a_checkpoint_is_no_resume_state(run):
    shutil.copy(run.checkpoint_path(3), run.state_path(3))
    start, said = restored(run)
    assert start.step == 2
    assert "no resume state" in said[0]


def test_what_a_killed_process_left_is_taken_away(run):
    (run.checkpoints / ".step-000004.safetensors.17.tmp").write_bytes(b"half")
    shutil.copy(run.checkpoint_path(3), run.checkpoint_path(5))
    with open(run.metrics, "a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 4, "lo')
    start, _ = restored(run)
    assert start.step == 3
    assert sorted(path.name[5:11] for path in run.checkpoints.iterdir()) == ["000002", "000003"]
    assert [record["step"] for record in records(run)] == [2, 2]
    assert run.metrics.read_text().endswith("}\n")


def test_another_recipe_is_refused_but_for_the_run_section(run, capsys):
    code, said = resumed(run, capsys, "optim.lr=1e-3", "run.log_every_steps=3")
    assert code == 2
    assert "was begun with another recipe: optim.lr differs." in said
    assert f"backbone.init={run.path}" in said
    code, said = resumed(run, capsys, "run.out=elsewhere")
    assert (code, "stays in its folder" in said) == (2, True)
    code, said = resumed(run, capsys, "recipe.yaml")
    assert (code, "resumes with its own recipe: leave out recipe.yaml" in said) == (2, True)
    code, said = resumed(run, capsys, "run.log_every_steps=1", "run.keep_checkpoints=1")
    assert code == 0
    assert [record["step"] for record in records(run)] == [2, 2, 4, 4, 5, 6, 6]
    assert [path.name[5:11] for path in run.states()] == ["000006"]


LINEAR = "schedule={type: linear, steps: 4, warmup_steps: 1, %s}"


@pytest.mark.parametrize("rest", ["final: 1.0", "cooldown_steps: 2"])
def test_a_run_gets_longer_and_ends_as_one_of_that_length(capsys, rest):
    """Trained to its end under a constant rate, or stopped before its cool-down, and on from there."""
    words = [LINEAR % rest]
    whole = train(load_recipe("vimpac_contrast.yaml", [*words, "schedule.steps=6"]))
    short = train(load_recipe("vimpac_contrast.yaml", words), stop_after=2 if "cooldown" in rest else None)
    begun = load(short.path / "recipe.yaml").mapping()
    code, said = resumed(short, capsys, "schedule.steps=6", "run.keep_checkpoints=3")
    assert code == 0, said
    assert_same_end(whole, short)
    now = load(short.path / "recipe.yaml").mapping()
    assert now["schedule"].mapping()["steps"].value == 6
    assert now["run"] == begun["run"]
    assert read_checkpoint(short.checkpoint_path(6)).recipe.count("steps: 6")
    assert resumed(short, capsys)[0] == 0


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("vimpac_contrast", [], "schedule 'cosine' would have given the 3 steps other learning rates"),
        ("svt", [LINEAR % "final: 1.0"], "objective 'svt' moves its teacher's momentum along the whole run"),
        (
            "vimpac_contrast",
            [LINEAR % "final: 1.0", "optim.final_weight_decay=0.1"],
            "optim.final_weight_decay moves the weight decay along the whole run",
        ),
        (
            "vimpac_contrast",
            [LINEAR % "cooldown_steps: 3"],
            "schedule 'linear' would have given the 3 steps other learning rates",
        ),
    ],
)
def test_a_run_whose_steps_depend_on_its_length_cannot_get_longer(capsys, name, words, reason):
    run = train(load_recipe(f"{name}.yaml", words), stop_after=3)
    before = (run.path / "recipe.yaml").read_text()
    code, said = resumed(run, capsys, "schedule.steps=8")
    assert (code, said.count("\n")) == (2, 1)
    assert f"{run.path}: cannot get another length: {reason}. Start a new run from its weights" in said
    assert (run.path / "recipe.yaml").read_text() == before


def test_the_wrong_number_of_negatives_is_seen_before_any_data():
    recipe = load_recipe("vimpac_contrast.yaml", ["objective.negatives=9"])
    with pytest.raises(UsageError, match=r"objective\.negatives is 9, and 4 videos that meet"):
        build.check(recipe)
    part = ["objective.negatives=1", "objective.negatives_from=part", "run.accumulate=2"]
    build.check(load_recipe("vimpac_contrast.yaml", part))


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert f"{tmp_path}: a folder, but not that of a run: there is no recipe.yaml" in capsys.readouterr().err


def test_recipes_differ_in_keys_of_any_depth():
    before = "name: a\noptim: {type: adamw, lr: 0.1}\ndata: {video: {batch_size: 4}}\nrun: {workers: 1}\n"
    after = "name: a\noptim: {type: adamw, lr: 0.2}\ndata: {video: {batch_size: 8}, image: {x: 1}}\n"
    assert changed_keys(before, after) == ["data.image.x", "data.video.batch_size", "optim.lr"]
    assert changed_keys(before, before.replace("workers: 1", "workers: 2")) == []


@pytest.mark.parametrize("name", ["a", "exp/a"])
def test_a_command_that_is_repeated_goes_on_with_its_own_run(name, tmp_path):
    texts = {"base": "name: a\nlr: 1\n", "other": "name: a\nlr: 2\n"}
    said: list[str] = []
    assert find_run(tmp_path, name, texts["base"], said.append) is None
    first, second = create_run(tmp_path, name, texts["base"]), create_run(tmp_path, name, texts["other"])
    create_run(tmp_path, name, texts["base"])  # died before it had a state
    create_run(tmp_path, "a-b", texts["base"]).state_path(1).write_bytes(b"")
    first.state_path(1).write_bytes(b"")
    second.state_path(1).write_bytes(b"")
    found = find_run(tmp_path, name, texts["base"], said.append)
    assert found is not None
    assert found.path == first.path
    assert said == [f"{second.path} has another recipe (lr), so this is no part of it."]


def test_resume_auto_starts_a_run_and_then_goes_on_with_it(capsys):
    words = ["run.resume=auto", "run.out=auto", "run.checkpoint_every_steps=3"]
    recipe = load_recipe("vimpac_contrast.yaml", words)
    first = train(recipe, stop_after=3)
    second = train(recipe)
    assert second.path == first.path
    assert second.newest_checkpoint() == second.checkpoint_path(6)
    third = train(load_recipe("vimpac_contrast.yaml", [*words, "optim.lr=1e-3"]), stop_after=1)
    assert third.path.name == "vimpac_contrast-2"


class Tied(Objective):
    """Two names of one tensor, and a head that another objective lacks."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.net = nn.Linear(size, size)
        self.head = nn.Linear(size, size)
        self.head.weight = self.net.weight

    def forward(self, batch, progress, generator):
        raise NotImplementedError

    def encoder(self):
        return self.net


def test_a_tensor_of_two_names_is_saved_under_both_and_comes_back(tmp_path):
    one, other = Tied(), Tied()
    save_checkpoint(tmp_path / "a.safetensors", one, step=1, recipe="")
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(found.encoder["weight"], found.objective["head.weight"])
    load_objective(other, found)
    assert torch.equal(other.head.weight, one.net.weight)
    assert other.head.weight is other.net.weight
    with pytest.raises(UsageError, match=r"a\.safetensors: of another objective or network"):
        load_objective(Tied(3), found)


def test_an_optimizer_comes_back_by_names():
    one, other = moving(), moving()
    for parameter in one.objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    one.optimizer.step()
    state = optimizer_tensors(one.optimizer)
    load_optimizer(other.optimizer, state)
    again = optimizer_tensors(other.optimizer)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    with pytest.raises(UsageError, match=r"exp_avg of 'gone\.weight', which is no trained parameter here"):
        load_optimizer(other.optimizer, {"exp_avg.gone.weight": torch.ones(1)})


# with real processes and real signals

LONG = ["schedule.steps=90", "run.checkpoint_every_steps=4", "run.log_every_steps=3", "run.workers=1"]


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts ``vidssl train``; no process outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def starts(*words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "vidssl", "train", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, **pipes))
        return started[-1]

    yield starts
    for process in started:
        with process:  # waits and closes its pipe, also where its words were read to their end
            process.kill()


def wait_for_states(folder: RunFolder, more_than: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        newest = folder.newest_checkpoint()
        if newest is not None and int(newest.stem[5:]) > more_than:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint behind step {more_than}: {process.communicate()[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bevt", "svt", "vimpac"])
def test_a_run_killed_at_random_moments_ends_as_the_whole_run_does(name, start):
    words = [f"{name}.yaml", f"name=killed-{name}", *LONG]
    whole = train(load_recipe(words[0], words[1:]))
    folder, luck = RunFolder(Path(f"runs/killed-{name}-2")), random.Random(0)
    process = start(*words)
    for kill in range(3):
        wait_for_states(folder, 8 * kill, process)
        time.sleep(luck.random() * 0.3)
        process.kill()
        process.communicate()
        process = start("--resume", str(folder.path))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same_end(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_130_and_goes_on(number, start):
    name = f"asked-{number.name}"
    words = ["vimpac.yaml", f"name={name}", *LONG]
    whole = train(load_recipe(words[0], words[1:]))
    folder = RunFolder(Path(f"runs/{name}-2"))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which a child inherits; nohup has it ignored
    process = start(*words)
    signal.signal(signal.SIGHUP, before)
    wait_for_states(folder, 0, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert f"To resume: vidssl train --resume {folder.path}" in said
    process = start("--resume", str(folder.path))
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_same_end(whole, folder)
