"""``vidssl replay``: the step that ended a run is repeated elsewhere, and what was not finite is named."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from stumbling import write_recipe
from torch import nn

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.guard import Attempt, Conditions, random_states, read_capture, save_capture
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.interfaces import Batch, LossOutput, Progress
from vidssl.tools.replay import first_bad_output, tensors_in
from vidssl.train.run import train_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of videos, which becomes the working folder of every test."""
    return write_recipe(tmp_path_factory.mktemp("replay"))


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def captured(world: Path) -> dict[str, tuple[Path, str]]:
    """The captures of runs that ended, one of each kind, and what the runs said."""
    found = {}
    for where in ("module", "gradient", "loss"):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(world)
            words = [f"name={where}", f"objective.where={where}", "run.max_skipped_steps=2"]
            with pytest.raises(UsageError) as error:
                train_recipe(load_recipe("stumbling.yaml", words), Console(quiet=True))
            found[where] = (world / "runs" / where / "captures" / "step-000004.safetensors", str(error.value))
    return found


def replayed(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["replay", str(path), *words]) == 0
    return capsys.readouterr().out


def test_a_run_that_stops_names_its_capture(captured: dict[str, tuple[Path, str]]) -> None:
    path, message = captured["module"]
    assert path.is_file()
    assert f"'vidssl replay {path.relative_to(Path.cwd())}'" in message
    assert "step 4: the loss is nan" in message
    assert "run.max_skipped_steps" in message
    assert len(message.splitlines()) == 1


def test_a_capture_holds_the_batch_and_where_it_came_from(captured: dict[str, tuple[Path, str]]) -> None:
    capture = read_capture(captured["module"][0])
    assert capture.attempt.batch.views["clip"][0].dtype == torch.uint8
    assert capture.attempt.progress == Progress(3, 6, 2.5)
    assert math.isnan(capture.attempt.loss)
    source = build.source(load_recipe("stumbling.yaml").data.streams["video"].source)
    indices = capture.attempt.batch.indices["video"].tolist()
    assert [place.key for place in capture.samples["video"]] == [source.key(index) for index in indices]
    assert [(place.epoch, place.place) for place in capture.samples["video"]] == [
        divmod(position, 10) for position in range(12, 16)
    ]
    assert capture.conditions == Conditions(capture.conditions.recipe, "fp32", "cpu")
    assert int(capture.attempt.state["hooked"]) == 2


def test_a_replay_names_the_first_module_that_is_no_number(captured, capsys) -> None:
    said = replayed(captured["module"][0], capsys)
    assert "Step 4 of 6, fp32 on cpu: the loss was nan, the gradient norm nan." in said
    assert "The batch was rebuilt from its sources and is the same, value by value." in said
    assert "Repeated in fp32 on a CPU: the loss is nan." in said
    assert (
        "The first module whose output is not finite: burst (Burst), 32 of 32 values of (4, 8); "
        "its input is finite." in said
    )
    assert "Gradients that are not finite: head.bias, head.weight, " in said
    assert re.search(r" and \d+ more\.\n", said)


def test_a_replay_gives_the_very_loss_and_names_parameters(captured, capsys) -> None:
    """Augmentation, the objective's draws and dropout are those of the run."""
    path, _ = captured["gradient"]
    capture = read_capture(path)
    assert math.isfinite(capture.attempt.loss)
    said = replayed(path, capsys)
    assert f"the loss was {capture.attempt.loss:.6g}, the gradient norm nan" in said
    assert f"the loss is {capture.attempt.loss:.6g}." in said
    assert "The first module" not in said
    assert "Gradients that are not finite: head.weight." in said


def test_a_replay_says_that_the_loss_alone_is_no_number(captured, capsys) -> None:
    said = replayed(captured["loss"][0], capsys)
    assert "the loss is inf." in said
    assert "The first module whose output is not finite: the objective itself (Stumbling)" in said


def test_a_replay_where_the_data_are_gone_uses_the_views_that_were_kept(captured, capsys, tmp_path) -> None:
    path, _ = captured["gradient"]
    metadata, tensors = read_tensors(path)
    recipe = json.loads(metadata["facts"])["conditions"]["recipe"]
    source = "    source: {type: video_folder, root: gone}\n"
    moved, changed = re.subn(r"    source:\n(      .*\n)+", source, recipe)
    assert changed == 1
    facts = json.loads(metadata["facts"])
    facts["conditions"]["recipe"] = moved
    save_file(tensors, tmp_path / "moved.safetensors", metadata={**metadata, "facts": json.dumps(facts)})
    said = replayed(tmp_path / "moved.safetensors", capsys, "--trust")
    assert re.search(r"The batch cannot be rebuilt, the views that the capture keeps are used: .*gone", said)
    assert f"the loss is {read_capture(path).attempt.loss:.6g}." in said


def test_a_replay_says_that_the_data_have_changed(captured, capsys, tmp_path) -> None:
    metadata, tensors = read_tensors(captured["gradient"][0])
    tensors["views.clip.0"][0, 0, 0, 0, 0] ^= 1
    save_file(tensors, tmp_path / "changed.safetensors", metadata=metadata)
    said = replayed(tmp_path / "changed.safetensors", capsys)
    assert "is another: the data have changed; the views that the capture keeps are used." in said


def test_weights_that_were_no_numbers_before_the_step_are_named(captured, capsys, tmp_path) -> None:
    metadata, tensors = read_tensors(captured["module"][0])
    tensors["state.head.bias"][0] = math.inf
    save_file(tensors, tmp_path / "spoilt.safetensors", metadata=metadata)
    assert "Not finite before the step already: head.bias." in replayed(
        tmp_path / "spoilt.safetensors", capsys
    )


def test_a_step_that_is_a_number_in_fp32_is_asked_for_in_the_run_s_precision(
    captured, capsys, tmp_path
) -> None:
    metadata, tensors = read_tensors(captured["module"][0])
    facts = json.loads(metadata["facts"])
    facts["conditions"]["recipe"], changed = re.subn(
        r"bad_steps:\s*\[2, 3\]", "bad_steps: []", facts["conditions"]["recipe"]
    )
    assert changed == 1
    facts["conditions"]["precision"] = "bf16"
    save_file(tensors, tmp_path / "bf16.safetensors", metadata={**metadata, "facts": json.dumps(facts)})
    said = replayed(tmp_path / "bf16.safetensors", capsys, "--trust")
    assert "Loss and gradients are finite here." in said
    assert "try --precision run" in said
    said = replayed(tmp_path / "bf16.safetensors", capsys, "--trust", "--precision", "run")
    assert "Repeated in bf16 on a CPU" in said
    assert "try --precision" not in said


def test_what_is_no_capture_is_refused(captured, capsys, tmp_path) -> None:
    checkpoint = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(1)}, checkpoint)
    assert main(["replay", str(checkpoint)]) == 2
    assert "no capture of a training step" in capsys.readouterr().err
    assert main(["replay", "nowhere.safetensors"]) == 2
    assert "nowhere.safetensors: no such file" in capsys.readouterr().err
    assert main(["replay"]) == 2
    assert "replay takes one capture" in capsys.readouterr().err


def test_a_capture_of_a_run_without_a_recipe_says_so(tmp_path, capsys) -> None:
    attempt = Attempt(Progress(0, 1), Batch({}), random_states(torch.Generator()), 1.0, math.nan, {})
    (tmp_path / "run").mkdir()
    path = save_capture(RunFolder(tmp_path / "run"), {}, Conditions("", "fp32", "cpu"), attempt)
    assert path.name == "step-000001.safetensors"
    assert main(["replay", str(path)]) == 2
    assert "holds no recipe" in capsys.readouterr().err


# looking at modules


def test_the_innermost_module_that_is_no_number_comes_first() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network = nn.Sequential(nn.Linear(2, 2), inner)
    inner[0].weight.data.fill_(math.nan)
    with first_bad_output(network) as found:
        network(torch.ones(1, 2))
    (bad,) = found
    assert (bad.name, bad.kind, bad.count, bad.shape, bad.sound_input) == ("1.0", "Linear", 2, (1, 2), True)
    assert not any(module._forward_hooks for module in network.modules())
    with first_bad_output(network[0]) as found:
        network[0](torch.tensor([[math.nan, 0.0]]))
    assert not found[0].sound_input


def test_tensors_are_found_in_whatever_modules_return() -> None:
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    output = ([a, {"x": b}], LossOutput(c, {}), "word", 3, None)
    assert [id(tensor) for tensor in tensors_in(output)] == [id(a), id(b), id(c)]
