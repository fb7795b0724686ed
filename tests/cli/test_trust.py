"""What a checkpoint's recipe names is imported or fetched for one's own runs, and else with --trust only."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toy_runs import CLIP, SOURCE

from vidssl.cli.main import main
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.guard import FORMAT as CAPTURE

RECIPE = f"""
name: own
objective: {{type: vimpac_contrast, head_layers: 2, head_hidden_dim: 8, head_dim: 4}}
backbone: {{type: my_part.py:Mine}}
data:
  video:
    source: {SOURCE}
    views: {{type: clip_pair, num_frames: 4, fps: null, size: 16}}
    batch_size: 4
  probe: {{train: {SOURCE}, test: {SOURCE.replace("train", "test")}, views: {CLIP}}}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 1}}
run: {{workers: 0, device: cpu}}
"""
PART = """
from my_layers import LEFT_BEHIND
from vidssl.backbones import ViT
from vidssl.interfaces import Backbone

class Mine(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
        self.embed_dim, self.strides = 12, (2, 8, 8)
    def forward(self, x, mask=None):
        return self.net(x, mask)

import pathlib
pathlib.Path(LEFT_BEHIND).write_text("imported")
"""
LAYERS = "LEFT_BEHIND = 'imported.txt'\n"
KNN = ("--protocol", "knn")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run of a backbone of its own, whose module imports another."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        Path("my_part.py").write_text(PART)
        Path("my_layers.py").write_text(LAYERS)
        Path("own.yaml").write_text(RECIPE)
        assert main(["train", "own.yaml"]) == 0
        forget()
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "work"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    record = folder / "state/vidssl/trained"
    record.write_text(record.read_text().replace(str(trained), str(folder)))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    forget()
    Path("imported.txt").unlink()
    yield folder
    forget()


def forget() -> None:
    """As a new process knows nothing of the modules."""
    for name in ("my_part", "my_layers", "evil"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if "own" not in entry and "work" not in Path(entry).name]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    assert not Path("imported.txt").exists()
    return message


def test_own_run_is_scored_with_its_code_in_place_or_from_the_run_once_it_has_changed(here: Path) -> None:
    assert Path("runs/own/code/my_part.py").read_text() == PART
    assert Path("runs/own/code/my_layers.py").read_text() == LAYERS
    assert main(["eval", "runs/own", *KNN]) == 0
    assert sys.modules["my_part"].__file__ == str(here / "my_part.py")
    forget()
    shutil.copy("runs/own/checkpoints/step-000001.safetensors", "copied.safetensors")
    Path("my_layers.py").write_text("LEFT_BEHIND = 'changed.txt'\n")
    assert main(["eval", "untrained:copied.safetensors", *KNN]) == 0
    assert "runs/own/code" in str(sys.modules["my_layers"].__file__)
    assert not Path("changed.txt").exists()


def test_code_of_a_run_that_was_not_trained_here_or_was_altered_needs_trust(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(here / "nobody"))
        message = refusal(capsys, "eval", "runs/own", *KNN)
        assert "backbone.type: my_part.py:Mine" in message
        assert "--trust" in message
    Path("runs/own/code/my_layers.py").write_text("import sys\n" + LAYERS)
    assert "not one that you trained here" in refusal(capsys, "eval", "runs/own", *KNN)
    assert main(["eval", "runs/own", *KNN, "--trust"]) == 0


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("absolute", ("eval", "x.safetensors", *KNN)),
        ("address", ("eval", "x.safetensors", *KNN)),
        ("network", ("eval", "x.safetensors", *KNN)),
        ("absolute", ("eval", "untrained:x.safetensors", *KNN)),
        ("absolute", ("eval", "pixels", "data=x.safetensors", *KNN)),
        ("absolute", ("eval", "pixels", "data=stranger", *KNN)),
        ("absolute", ("eval", "x.safetensors", "--protocol", "tokenizer")),
        ("absolute", ("show", "x.safetensors", "--what", "attention")),
        ("absolute", ("replay", "capture.safetensors")),
        ("absolute", ("init", "new.yaml", "--videos", ".", "--from", "x.safetensors")),
    ],
)
def test_what_a_strangers_checkpoint_names_is_neither_imported_nor_fetched(
    words: tuple[str, ...], named: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = (here / "elsewhere").joinpath("evil.py")
    evil.parent.mkdir()
    evil.write_text("import pathlib; pathlib.Path('imported.txt').write_text('x')\n")
    metadata, tensors = read_tensors(Path("runs/own/checkpoints/step-000001.safetensors"))
    old, new = {
        "absolute": ("my_part.py:Mine", f"{evil}:Evil"),
        "address": ("split: train", "split: 'http://127.0.0.1:9/x'"),
        "network": ('type: "my_part.py:Mine"', "type: timm, name: 'hf-hub:some/body'"),
    }[named]
    text = metadata["recipe"].replace(old, new)
    assert text != metadata["recipe"]
    save_file(tensors, "x.safetensors", metadata={**metadata, "recipe": text})
    facts = {
        "progress": {"step": 0, "total_steps": 1, "steps_per_epoch": 1.0},
        "loss": "nan",
        "grad_norm": "nan",
        "scale": None,
        "conditions": {"recipe": text, "precision": "fp32", "device": "cpu"},
        "samples": {},
    }
    captured = {"format": CAPTURE, "facts": json.dumps(facts)}
    states = {f"random.{name}": torch.get_rng_state() for name in ("cpu", "objective")}
    save_file(states, "capture.safetensors", metadata=captured)
    Path("stranger").mkdir()
    Path("stranger/recipe.yaml").write_text(text)
    message = refusal(capsys, *words)
    assert "nothing was imported or fetched" in message
    shown = {
        "absolute": f"backbone.type: {evil}:Evil",
        "address": "127.0.0.1:9",
        "network": "hf-hub:some/body",
    }
    assert shown[named] in message


@pytest.mark.parametrize("width", ["12000000", "100000000000000002"])
def test_a_recipe_whose_network_is_far_larger_than_its_weights_takes_no_memory(
    width: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata, tensors = read_tensors(Path("runs/own/checkpoints/step-000001.safetensors"))
    text = metadata["recipe"].replace('"my_part.py:Mine"', f"vit, embed_dim: {width}, depth: 1, num_heads: 2")
    save_file(tensors, "huge.safetensors", metadata={**metadata, "recipe": text})
    message = refusal(capsys, "eval", "huge.safetensors", *KNN)
    assert "another architecture" in message or "cannot be built" in message
