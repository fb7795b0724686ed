"""A dry run takes the steps that a run would, tells what that would cost, and leaves no trace."""

import hashlib
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn
from toy_runs import make_world, records

from vidssl import api as v
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import Recipe, RunSpec, load_recipe
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.tools.dry_run import (
    StepCost,
    dry_run,
    files_kept,
    part_sizes,
    step_seconds,
    two_steps,
    view_sizes,
)
from vidssl.train.run import train_recipe

SUPERVISED = pytest.param("classification", marks=pytest.mark.slow)
LIKE_BEVT = pytest.param("vimpac", marks=pytest.mark.slow)  # masks and a tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "80")


def files(folder: Path) -> dict[str, str]:
    """Every file and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def cost_of(recipe: Recipe) -> StepCost:
    streams = build.streams(recipe)
    torch.manual_seed(recipe.seed)
    objective = build.objective(recipe, say=lambda text: None)
    plan = build.schedule(recipe).plan({name: len(s) / s.batch_size for name, s in streams.items()})
    return two_steps(recipe, objective, streams, plan)


@pytest.mark.parametrize("name", ["svt", "bevt", "tokenizer", LIKE_BEVT])
def test_it_shows_all_and_changes_nothing(name: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.streams(load_recipe(f"{name}.yaml"))  # made videos are the data set's own
    before, random = files(world), torch.get_rng_state()
    assert main(["train", f"{name}.yaml", "--dry-run"]) == 0
    assert files(world) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert not torch.are_deterministic_algorithms_enabled()
    said = capsys.readouterr().out
    for title in ("parameters", "tokens", "a step", "the whole run, estimated", "Nothing was kept."):
        assert title in said
    assert "FLOP" in said
    tables = [line for line in said.splitlines() if line[:1] in "┃│┏┡├└"]
    assert len(tables) > 25
    assert max(map(len, tables)) <= 80
    assert "…" not in said


@pytest.mark.parametrize("name", ["bevt", "svt", SUPERVISED, LIKE_BEVT])
def test_its_steps_are_those_of_the_run(name: str) -> None:
    recipe = load_recipe(f"{name}.yaml", ["run.log_every_steps=1"])
    _, result = train_recipe(recipe, Console(quiet=True), stop_after=2)
    second = next(record for record in records(RunFolder(result.folder)) if record["step"] == 2)
    found = cost_of(recipe).metrics
    assert found
    assert {key: value for key, value in second.items() if key in found} == pytest.approx(dict(found))


def test_parts_are_counted_once_and_what_becomes_of_them_is_said() -> None:
    svt = build.objective(load_recipe("svt.yaml"), say=lambda text: None)
    rows = {part.name: part for part in part_sizes(svt)}
    assert list(rows) == ["student.backbone", "student.head", "teacher.backbone", "teacher.head"]
    assert [part.fate for part in rows.values()] == ["trained"] * 2 + ["an average, follows"] * 2
    assert sum(part.parameters for part in rows.values()) == sum(p.numel() for p in svt.parameters())
    vimpac = build.objective(load_recipe("vimpac.yaml"), say=lambda text: None)
    rows = {part.name: part for part in part_sizes(vimpac)}
    assert list(rows) == ["prediction.backbone", "prediction.head", "contrast", "tokenizer"]
    assert rows["tokenizer"].fate == "frozen"
    assert sum(part.parameters for part in rows.values() if part.fate == "trained") == sum(
        p.numel() for p in vimpac.parameters()
    )


class Tied(v.Objective):
    """A head before the backbone whose bias is the backbone's own."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        backbone = v.ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
        self.head = nn.Linear(3, 12)
        self.head.bias = backbone.norm.bias
        self.backbone = backbone

    def forward(self, batch, progress, generator):
        raise NotImplementedError

    def encoder(self):
        return self.backbone


def test_what_two_parts_share_counts_in_the_network() -> None:
    objective = Tied()
    rows = {part.name: part.parameters for part in part_sizes(objective)}
    assert list(rows) == ["backbone", "head"]
    assert rows["head"] == 3 * 12
    assert sum(rows.values()) == sum(p.numel() for p in objective.parameters())


def test_tokens_are_those_of_the_grids_and_masks() -> None:
    recipe = load_recipe("bevt.yaml")
    clip, image = view_sizes(recipe, build.objective(recipe, say=lambda text: None))
    assert (clip.clip, clip.cells, clip.ids) == ((4, 16, 16), (2, 2, 2), (4, 2, 2))
    assert (image.clip, image.cells, image.ids) == ((1, 16, 16), (1, 2, 2), (1, 2, 2))
    assert clip.hidden is not None
    assert clip.hidden[1] == 8
    assert 0 < clip.hidden[0] < 8
    recipe = load_recipe("svt.yaml")
    sizes = view_sizes(recipe, build.objective(recipe, say=lambda text: None))
    assert [(size.name, size.slots, size.clip, size.hidden) for size in sizes] == [
        ("global", 1, (4, 16, 16), None),
        ("global", 1, (2, 16, 16), None),
        ("local", 2, (2, 8, 8), None),
    ]


def test_flops_grow_with_the_batch_and_with_computing_again() -> None:
    keys = ["tokenizer=null", "masker=null"]
    plain = cost_of(load_recipe("vimpac_contrast.yaml", keys)).flops
    twice = cost_of(load_recipe("vimpac_contrast.yaml", [*keys, "data.video.batch_size=8"])).flops
    again = cost_of(load_recipe("vimpac_contrast.yaml", [*keys, "run.activation_checkpointing=true"])).flops
    assert 1.95 < twice / plain < 2.15
    assert 1.1 < again / plain < 1.34  # of three passes' worth of blocks a fourth; heads are none


def test_memory_and_files_are_those_that_there_are(world: Path) -> None:
    recipe = load_recipe("bevt.yaml")
    cost = cost_of(recipe)
    _, result = train_recipe(recipe, Console(quiet=True))
    folder = RunFolder(result.folder)
    checkpoints, states = files_kept(recipe.run, 6)
    assert len(list(folder.checkpoints.iterdir())) == checkpoints == 2
    assert len(folder.states()) == states == 2
    assert abs(result.checkpoint.stat().st_size - cost.weights) < 12_000  # names, and the recipe
    assert abs(folder.states()[-1].stat().st_size - cost.state) < 30_000  # random states besides
    assert cost.memory > 2**26


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"checkpoint_every_steps": 100}, (10, 2)),
        ({"checkpoint_every_steps": 300}, (4, 2)),  # 300, 600, 900 and the last, 1000
        ({"checkpoint_every_steps": 5000}, (1, 1)),
        ({"checkpoint_every_steps": 100, "keep_every_steps": 500}, (3, 2)),  # 500 and 900, 1000
        ({"checkpoint_every_steps": 100, "keep_every_steps": 500, "keep_checkpoints": 4}, (5, 4)),
    ],
)
def test_what_is_kept_follows_the_rules(keys: dict[str, int], kept: tuple[int, int]) -> None:
    assert files_kept(RunSpec(**keys), 1000) == kept


def test_workers_decode_beside_the_step() -> None:
    cost = StepCost(1, seconds=1.0, data_seconds=3.0, memory=0, metrics={}, weights=0, state=0)
    assert [step_seconds(cost, workers) for workers in (0, 1, 2, 4)] == [4.0, 3.0, 1.5, 1.0]


def test_a_loss_that_is_no_number_is_an_error() -> None:
    recipe = load_recipe("vimpac_predict.yaml", ["optim.lr=1e30"])
    with pytest.raises(UsageError, match=r"step 2: the loss is nan.*lower optim\.lr"):
        dry_run(recipe, Console(quiet=True))


def test_what_it_does_not_go_with_is_refused(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "runs/svt", "--dry-run"]) == 2
    assert "give one of them" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "svt.yaml", "--dry-run"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
