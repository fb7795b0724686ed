"""``vidssl eval`` on two processes finds what one finds: features to the last bit, and scores."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from safetensors import safe_open
from torch import Tensor
from toy_probe import make_run, recipe_text
from toy_runs import skip_without_shards

from vidssl import api as v
from vidssl.engine.distributed import end_group, here
from vidssl.errors import UsageError
from vidssl.evaluate.evaluate import evaluate_run
from vidssl.evaluators.extract import Encoded, encoded_of
from vidssl.evaluators.features import FeatureTable
from vidssl.interfaces import UnreadableSample

RECIPE = recipe_text(num_videos=22, num_crops=3, steps=1)


class Hurdles(v.MovingDigits):
    """Videos of which some cannot be read: a whole batch of 4, the first of the next, and the last of all."""

    def read(self, index: int, frames: object) -> Tensor:
        if index in (8, 9, 10, 11, 12, 21):
            raise UnreadableSample(self.key(index), "is a hurdle")
        return super().read(index, frames)


class Walls(v.MovingDigits):
    """Videos none of which can be read."""

    def read(self, index: int, frames: object) -> Tensor:
        raise UnreadableSample(self.key(index), "is a wall")


def hurdles(*, patches: bool) -> FeatureTable:
    torch.manual_seed(0)
    net = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 16, 16))
    source = Hurdles(split="test", size=32, digit_size=24, num_frames=4, num_videos=22)
    views = v.UniformClips(num_frames=4, frame_stride=1, size=32, num_crops=3)
    return v.extract(
        net,
        source,
        views,
        frames=("normal", "reversed"),
        patches="float16" if patches else None,
        batch_size=4,
        device=torch.device("cpu"),
        world=here(),
    )


def walls() -> None:
    net = v.ViT(embed_dim=16, depth=1, num_heads=2, patch_size=(2, 16, 16))
    source = Walls(split="test", size=32, digit_size=24, num_frames=4, num_videos=22)
    views = v.UniformClips(num_frames=4, frame_stride=1, size=32)
    v.extract(net, source, views, batch_size=4, device=torch.device("cpu"), world=here())


def extract_hurdles(folder: Path) -> None:
    """What is done in a folder, by one process or by each of two."""
    os.chdir(folder)
    for patches in (False, True):
        torch.save(hurdles(patches=patches), f"hurdles-{patches}-{here().rank}.pt")
    with pytest.raises(UsageError, match="none of the 22 samples can be read"):
        walls()


def score(folder: Path) -> None:
    """The same, by the command."""
    os.chdir(folder)
    # 22 videos are five batches of 4 and one of 2: three rounds
    frames = ("frames=[normal, shuffled]", "batch_size=4")
    other = ("data=../toy.yaml", "evaluator.k=[3]", "batch_size=4")
    with open(f"said-{here().rank}.txt", "w") as file:
        console = Console(file=file, width=200)
        assert evaluate_run("runs/toy", ("knn", "retrieval"), frames, console) == 0
        assert evaluate_run("untrained:timm:test_resnet", ("knn",), other, console) == 0
        assert evaluate_run("untrained:timm:test_resnet", ("knn",), other, console) == 0  # from kept features


def one_of_two(number: int, folder: Path, work: Callable[[Path], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    work(folder)
    end_group()


def on_one_and_on_two(path: Path, work: Callable[[Path], None]) -> Path:
    """A folder with what one process found, and what two did."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(path)
        Path("toy.yaml").write_text(RECIPE)
        for name in ("one", "two"):
            make_run(Path(name, "runs", "toy"), RECIPE, seed=5, step=1)
        work(path / "one")
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        mp.start_processes(one_of_two, (path / "two", work), nprocs=2, start_method="fork")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_one_and_on_two(tmp_path_factory.mktemp("scored"), score)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_one_and_on_two(tmp_path_factory.mktemp("extracted"), extract_hurdles)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "toy/scores/knn-step-000001.json",
        "toy/scores/retrieval-step-000001.json",
        "untrained-timm-test_resnet/scores/knn-step-000000.json",
    ],
)
def test_two_processes_score_as_one(name: str, folder: Path) -> None:
    one, two = (json.loads((folder / side / "runs" / name).read_text()) for side in ("one", "two"))
    for key in ("scores", "predicted", "keys", "truth", "videos", "card", "card_sha256"):
        assert one[key] == two[key]
    assert (one["videos"]["test"]["found"], one["videos"]["test"]["listed"]) == (22, 22)


@pytest.mark.slow
def test_features_of_two_processes_are_those_of_one_to_the_last_bit(folder: Path) -> None:
    """Batches are dealt out whole, so what stands beside a video in its batch is the same."""
    kept = sorted((folder / "one" / "runs" / "toy" / "features").iterdir())
    assert len(kept) == 4
    for path in kept:
        with (
            safe_open(path, "pt") as one,
            safe_open(folder / "two" / path.relative_to(folder / "one"), "pt") as two,
        ):
            names = one.keys()
            assert names == two.keys()
            assert one.metadata() == two.metadata()
            for key in names:
                assert torch.equal(one.get_tensor(key), two.get_tensor(key))


@pytest.mark.slow
def test_of_two_processes_the_first_speaks(folder: Path) -> None:
    said = (folder / "two" / "said-0.txt").read_text()
    assert "knn of runs/toy" in said
    assert "features read from" in said
    assert (folder / "two" / "said-1.txt").read_text() == ""


@pytest.mark.parametrize("patches", [False, True])
def test_unreadable_videos_are_left_out_and_each_of_the_others_counts_once(
    extracted: Path, patches: bool
) -> None:
    one = torch.load(extracted / "one" / f"hurdles-{patches}-0.pt", weights_only=False)
    assert len(one.keys) == 22 - 6 == len(set(one.keys))
    for rank in (0, 1):
        two = torch.load(extracted / "two" / f"hurdles-{patches}-{rank}.pt", weights_only=False)
        assert two.keys == one.keys
        assert two.unreadable == one.unreadable
        assert two.num_listed == 22
        assert torch.equal(two.vectors, one.vectors)
        assert torch.equal(two.reordered["reversed"], one.reordered["reversed"])
        assert bool(two.patches) == (patches and rank == 0)
        for order in two.patches:
            assert torch.equal(two.patches[order], one.patches[order])


def test_a_batch_is_itself_again_after_its_way_as_tensors() -> None:
    batch = Encoded(
        {"normal": torch.ones(2, 1, 3)}, torch.tensor([4, 5]), ("a: é",), {"normal": torch.zeros(2, 1, 4, 3)}
    )
    found = encoded_of(batch.tensors())
    assert found.unreadable == batch.unreadable
    assert torch.equal(found.numbers, batch.numbers)
    assert torch.equal(found.vectors["normal"], batch.vectors["normal"])
    assert torch.equal(found.patches["normal"], batch.patches["normal"])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_finetunes_and_scores_as_one_process(parallel: str, folder: Path, tmp_path: Path) -> None:
    if parallel == "fsdp":
        skip_without_shards()
    toy = ("train_views.size=32", "train_views.num_frames=4", "schedule.epochs=2", "labels=[direction]")
    words = ["--protocol", "finetune", *toy, "batch_size=4", "optim.lr=0.01", f"run.parallel={parallel}"]
    shared = {**os.environ, "VIDSSL_CACHE": str(folder / "cache")}
    found = {}
    for side, start in (
        ("one", ["-m", "vidssl"]),
        ("two", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vidssl"]),
    ):
        (tmp_path / side).mkdir()
        make_run(tmp_path / side / "runs" / "toy", RECIPE, seed=5, step=1)
        command = [sys.executable, *start, "eval", "runs/toy", *words]
        done = subprocess.run(
            command, cwd=tmp_path / side, env=shared, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Scores: ") == 1
        path = tmp_path / side / "runs" / "toy" / "scores" / "finetune-step-000001.json"
        found[side] = json.loads(path.read_text())
    for key in ("scores", "predicted", "keys", "card"):
        assert found["one"][key] == found["two"][key]
