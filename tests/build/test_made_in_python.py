"""Runs made in Python: the recipe that is written of their parts, and the commands that read them."""

import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pages import ROOT, made_small

from vidssl import api as v
from vidssl.build import build
from vidssl.build.registry import (
    AUGMENT,
    BACKBONE,
    MASKER,
    SOURCE,
    named_part,
    recipe_of_parts,
    resolved_text,
)
from vidssl.cli.main import main
from vidssl.config.recipe import recipe_from_text
from vidssl.evaluate.score_file import read_scores

DIGITS = {"size": 16, "digit_size": 12, "num_frames": 4, "num_videos": 12}
OWN = """
import torch
from torch import nn
from vidssl import api as v

class MeanColour(v.Backbone):
    toy = {}
    def __init__(self, *, embed_dim: int = 8) -> None:
        super().__init__()
        self.embed_dim, self.strides = embed_dim, (1, 8, 8)
        self.layer = nn.Linear(3, embed_dim)

    def forward(self, x, mask=None):
        cells = nn.functional.avg_pool3d(x, self.strides).movedim(1, -1)
        return v.Features(torch.tanh(self.layer(cells)))
"""
HEAD = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8, "num_directions": 16}
RUN = v.RunSpec(workers=0, device="cpu")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def videos() -> tuple[v.MovingDigits, v.MovingDigits]:
    return v.MovingDigits(split="train", **DIGITS), v.MovingDigits(split="test", **DIGITS)


def train(backbone: v.Backbone, name: str, source: v.DataSource, **more: object) -> v.TrainResult:
    views = v.GlobalLocal(num_frames=(4,), size=16, local_frames=(4,), local_size=16)
    return v.train(
        v.LeJEPA(backbone, **HEAD), {"video": v.Stream(source, views, batch_size=4)}, name=name,
        optim=v.AdamW(lr=1e-3), schedule=v.Cosine(steps=1), run=RUN, **more,
    )  # fmt: skip


def own_class(monkeypatch: pytest.MonkeyPatch, name: str) -> type:
    """A class of a module in the working folder, imported as a script does."""
    Path(f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name).MeanColour


def test_commands_score_a_run_with_a_part_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, test = videos()
    probe = (source, test, v.UniformClips(num_frames=4, frame_stride=1, size=16))
    network = own_class(monkeypatch, "my_colours")(embed_dim=6)
    train(network, "own", source, probe=probe)
    train(v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8)), "vit", source, probe=probe)
    clip = torch.rand(2, 3, 4, 16, 16)
    assert torch.equal(v.load("runs/own")(clip).pooled(), network.eval()(clip).pooled())
    assert Path("runs/own/code/my_colours.py").read_text() == OWN
    assert main(["eval", "runs/own", "--protocol", "knn"]) == 0
    first = read_scores(Path("runs/own/scores/knn-step-000001.json"))
    assert list(first.scores) == ["trained", "untrained"]
    Path("my_colours.py").unlink()  # the copy in the run's folder is used, as by another process
    monkeypatch.delitem(sys.modules, "my_colours")
    assert main(["eval", "runs/own", "--protocol", "knn"]) == 0
    assert read_scores(first.path).scores == first.scores
    assert main(["eval", "runs/vit", "--protocol", "knn"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs/own", "runs/vit"]) == 0
    assert "backbone.type" in capsys.readouterr().out
    assert main(["show", "runs/vit", "--what", "neighbours"]) == 0


@pytest.mark.parametrize("name", ["bevt", "lejepa", "svt", "videomae", "vimpac"])
def test_parts_of_a_recipe_give_that_recipe(name: str) -> None:
    text = made_small((ROOT / "recipes" / f"{name}.yaml").read_text()).replace("random_cells", "random_3d")
    text = text.replace("num_videos: 24", "num_videos: 2")
    recipe = recipe_from_text(text, name)
    probe = recipe.data.probe
    assert probe is not None
    rest = {
        "name": recipe.name, "seed": recipe.seed, "optim": build.optim(recipe),
        "schedule": build.schedule(recipe), "augment": build.augment(recipe),
        "probe": {"train": build.source(probe.train), "test": build.source(probe.test),
                  "views": build.views(probe.views)},
    }  # fmt: skip
    objective = build.objective(recipe, say=lambda line: None)
    streams, test_streams = build.streams(recipe), build.test_streams(recipe)
    assert recipe_of_parts(objective, streams, test_streams, recipe.run, rest) == resolved_text(recipe)


def test_what_no_recipe_can_name_is_refused_where_it_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = videos()
    rows = v.DatasetSource([(source[n][0], 0) for n in range(4)], classes=("a", "b"))
    vit = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
    train(vit, "tensors", rows)
    assert "type: 'python:DatasetSource'" in Path("runs/tensors/recipe.yaml").read_text().replace('"', "'")
    given = [f"data.{part}={{type: moving_digits, split: {part}, size: 16, digit_size: 12, num_frames: 4, "
             "num_videos: 12}" for part in ("train", "test")]  # fmt: skip
    views = "data.views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 16}"
    assert main(["eval", "runs/tensors", "--protocol", "knn", *given, views]) == 0
    assert "is not known" in capsys.readouterr().out  # whether the test videos were trained on
    assert main(["train", "runs/tensors/recipe.yaml"]) == 2
    assert "data.video.source.type: was made in Python" in capsys.readouterr().err

    class Local(v.Pixels):
        pass

    assert named_part(Local(num_frames=4, size=4), BACKBONE) == {"type": f"python:{Local.__qualname__}"}


def test_a_script_is_named_only_if_importing_it_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("__main__")
    module.__file__ = str(Path("go.py").resolve())
    monkeypatch.setitem(sys.modules, "__main__", module)
    own = type("Mine", (v.RunningCell,), {"__module__": "__main__"})
    for text, name in (
        ("if __name__ == '__main__':\n    train()\n", "go.py:Mine"),
        ("train()\n", "python:Mine"),
    ):
        Path("go.py").write_text(text)
        assert named_part(own(), MASKER)["type"] == name


def test_the_weights_that_a_network_started_from_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Else a test video that its first run has seen would be taken for new."""
    source, test = videos()
    vit = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
    probe = (source, test, v.UniformClips(num_frames=4, frame_stride=1, size=16))
    train(vit, "first", test)
    again = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 8, 8))
    other = v.ViT(embed_dim=24, depth=1, num_heads=2, patch_size=(2, 8, 8))
    with pytest.raises(v.UsageError):
        v.load_init(other, "runs/first")
    assert other.started_from is None
    v.load_init(again, "runs/first")
    train(again, "second", source, probe=probe)
    capsys.readouterr()
    assert main(["eval", "runs/second", "--protocol", "knn"]) == 0
    assert "12 of 12 test videos were seen in pretraining" in capsys.readouterr().out


class Secretive:
    """Keeps its key under another name, so that nobody can tell what it was made with."""

    def __init__(self, *, strength: float = 0.5) -> None:
        self.kept = strength


class Placed(v.MovingDigits):
    def __init__(self, number: int, *, seed: int = 0) -> None:
        super().__init__(split="train", seed=number + seed, **DIGITS)


def test_what_a_part_was_made_with_is_known_or_it_is_not_named() -> None:
    assert named_part(Secretive(strength=0.9), AUGMENT) == {"type": "python:Secretive"}
    assert named_part(partial(print, end=""), AUGMENT) == {"type": "python:partial"}
    assert named_part(Placed(3), SOURCE) == {"type": "python:Placed"}
