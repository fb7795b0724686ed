"""``vidssl eval`` on networks that are no run's: libraries' ones, untrained ones, the pixels themselves."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import nn
from toy_probe import encoder_passes, recipe_text

from vidssl.backbones.pixels import Pixels
from vidssl.cli.main import main
from vidssl.evaluate.evaluate import eval_words
from vidssl.evaluate.networks import ExternalNetwork, is_external
from vidssl.evaluate.score_file import read_scores

RECIPE = recipe_text(steps=2, seed=3)
KNN = ("--protocol", "knn", "evaluator.k=[3]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("toy.yaml").write_text(RECIPE)
        assert main(["train", "toy.yaml"]) == 0
        assert main(["eval", "runs/toy", *KNN]) == 0
    return path


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def flat(said: str) -> str:
    return re.sub(r"\s+", " ", said)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["eval", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def scores_of(run: str, protocol: str = "knn"):
    return read_scores(Path(f"runs/{run}/scores/{protocol}-step-000000.json"))


def test_pixels_are_means_over_parts_of_the_clip_in_time_and_space() -> None:
    clip = torch.rand(2, 3, 4, 6, 6)
    features = Pixels(num_frames=2, size=3)(clip)
    expected = clip.unflatten(2, (2, 2)).unflatten(4, (3, 2)).unflatten(6, (3, 2)).mean((3, 5, 7))
    torch.testing.assert_close(features.pooled(), expected.flatten(1))
    assert features.pooled().shape[1] == Pixels(num_frames=2, size=3).embed_dim == 3 * 2 * 9
    assert Pixels(num_frames=8)(clip[:, :, :1]).pooled().shape == (2, 3 * 8 * 64)  # an image repeats
    with pytest.raises(ValueError, match="at least 1"):
        Pixels(size=0)


def test_a_recipes_network_with_weights_of_a_file_scores_as_the_run_that_they_come_from(folder, capsys):
    assert main(["eval", "recipe:toy.yaml", "weights=runs/toy", *KNN]) == 0
    assert "runs/toy" in capsys.readouterr().out
    run = read_scores(next(Path("runs/toy/scores").glob("knn-*.json"))).scores
    assert scores_of("recipe-toy.yaml-toy").scores == run
    assert "which weights? weights=FILE" in fails(capsys, "recipe:toy.yaml", *KNN)
    wider = ("recipe:toy.yaml", "weights=runs/toy", "network.embed_dim=32")
    assert "weights of another architecture" in fails(capsys, *wider, *KNN)


def test_pixels_go_through_several_protocols_with_all_orders_of_frames(folder, capsys):
    words = ("--protocol", "retrieval", "data=toy.yaml", "frames=[normal, reversed]")
    assert main(["eval", "pixels", *KNN, *words]) == 0
    said = flat(capsys.readouterr().out)
    assert "knn of pixels" in said
    assert "retrieval of pixels" in said
    assert "no weights" in said
    rows = scores_of("pixels").scores["no weights"]
    assert [row.frames for row in rows[:2]] == ["normal", "reversed"]
    assert {row.label for row in rows} == {"digit", "texture", "direction", "speed", "profile"}
    assert list(scores_of("pixels", "retrieval").scores) == ["no weights"]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("timm:test_resnet", lambda: timm.create_model("test_resnet")),
        pytest.param(
            "torchvision:mc3_18",
            lambda: torchvision.models.video.mc3_18(weights=None),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_network_of_a_library_is_scored_with_weights_of_a_file_beside_random_ones(
    name: str, make: Callable[[], nn.Module], folder, capsys
):
    torch.manual_seed(5)
    torch.save(make().state_dict(), "mine.pth")
    assert main(["eval", name, *KNN, "data=toy.yaml", "weights=mine.pth"]) == 0
    said = flat(capsys.readouterr().out)
    assert f"mine.pth ({name.partition(':')[0]})" in said
    assert "not used: 2 (fc.weight, fc.bias)" in said
    slug = name.replace(":", "-")
    file = scores_of(f"{slug}-mine.pth")
    assert list(file.scores) == ["trained", "untrained"]
    assert file.scores["trained"] != file.scores["untrained"]
    assert file.checkpoint == f"{name} mine.pth"
    assert "init: mine.pth" in file.recipe
    assert f"name: {name.partition(':')[2]}" in file.recipe
    # random ones alone make one column, the same as stood beside
    assert main(["eval", f"untrained:{name}", *KNN, "data=toy.yaml"]) == 0
    alone = scores_of(f"untrained-{slug}").scores
    assert list(alone) == ["untrained"]
    assert alone["untrained"] == file.scores["untrained"]
    # and stand in one table with a run and with pixels
    runs = ("runs/toy", f"runs/{slug}-mine.pth", f"runs/untrained-{slug}")
    assert main(["compare", *runs, "--markdown"]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| label"))
    for column in ("runs/toy, trained", f"{name} mine.pth, trained", f"untrained:{name}, untrained"):
        assert column in head


def test_random_weights_are_those_of_the_seed(folder):
    for words in ((), ("network.seed=1",)):
        assert main(["eval", "untrained:timm:test_vit", *KNN, "data=toy.yaml", *words]) == 0
    one, other = (scores_of(f"untrained-timm-test_vit{seed}").scores["untrained"] for seed in ("", "-seed-1"))
    assert one != other


def test_weights_that_leave_a_part_random_are_refused(folder, capsys):
    state = timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("blocks.1.")}, "part.pth")
    words = ("timm:test_vit", *KNN, "data=toy.yaml", "weights=part.pth")
    said = fails(capsys, *words)
    assert "part.pth: lacks 12 tensors of timm:test_vit (net.blocks.1." in said


def test_untrained_names_the_network_that_a_run_or_recipe_starts_from(folder):
    """Its scores are those that stand beside the trained network's."""
    beside = read_scores(Path("runs/toy/scores/knn-step-000002.json")).scores["untrained"]
    for name in ("runs/toy", "toy.yaml", "runs/toy/checkpoints/step-000002.safetensors"):
        assert main(["eval", f"untrained:{name}", *KNN]) == 0
        found = scores_of("untrained-" + name.replace("/", "-"))
        assert list(found.scores) == ["untrained"]
        assert found.scores["untrained"] == beside
    assert main(["eval", "untrained:toy.yaml", *KNN, "network.depth=2", "network.seed=4"]) == 0
    found = scores_of("untrained-toy.yaml-depth-2-seed-4")
    assert "depth: 2" in found.recipe
    assert "seed: 4" in found.recipe
    assert found.scores["untrained"] != beside


def test_a_run_is_scored_on_the_data_of_another_recipe(folder):
    Path("other.yaml").write_text(
        RECIPE.replace("test: {type: moving_digits", "test: {limit: 9, type: moving_digits")
    )
    assert main(["eval", "runs/toy", *KNN, "name=elsewhere", "data=other.yaml"]) == 0
    file = read_scores(Path("runs/toy/scores/elsewhere-step-000002.json"))
    assert len(file.keys) == 9
    assert main(["eval", "runs/toy", *KNN, "name=elsewhere", "data=other.yaml", "data.test.limit=7"]) == 0
    assert len(read_scores(file.path).keys) == 7


def test_features_are_kept_for_each_network_and_its_keys(folder, monkeypatch):
    passes = encoder_passes(monkeypatch)
    words = ("untrained:timm:test_vit", "data=toy.yaml", "network.seed=6", "run.precision=fp32")
    assert main(["eval", *words, *KNN]) == 0
    assert passes == ["untrained network, train videos", "untrained network, test videos"]
    passes.clear()
    assert main(["eval", *words, "--protocol", "retrieval"]) == 0
    assert passes == []
    assert main(["eval", *words, *KNN, "run.precision=bf16"]) == 0
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("torchvision:mc3_18",), "weights=FILE for a file of them, weights=pretrained"),
        (("torchvision:mc3_18",), "or untrained:torchvision:mc3_18 for random ones"),
        (("timm:resnet18", "weights=random"), "are asked for as untrained:timm:resnet18"),
        (("torchvision:mc3_19", "weights=x.pth"), "network.name: expected"),
        (("timm:nothing", "weights=x.pth"), "timm cannot make 'nothing'"),
        (("torchvision:mc3_18", "weights=x.pth"), "x.pth: no such file"),
        (("torchvision:mc3_18", "weights=x.pth", "network.name=s3d"), "names it already"),
        (("untrained:torchvision:mc3_18", "weights=x.pth"), "has no use for weights=x.pth"),
        (("untrained:timm:test_vit", "data.views.size=20"), "does not take a clip of 4 frames at 20x20"),
        (("untrained:nothing",), "nothing: no such recipe"),
        (("untrained:runs",), "no recipe.yaml in it"),
        (("untrained:toy.yaml", "network.depht=2"), "Did you mean 'depth'?"),
        (("untrained:timm:resnet18", "network.seed=-1"), "must be at least 0"),
        (("pixels", "network.sze=3"), "network.sze: unknown key. Did you mean 'size'?"),
        (("pixels", "--protocol", "finetune"), "has no weights that finetuning could train"),
        (("pixels", "data=nothing"), "nothing: no such recipe"),
        (("runs/toy", "weights=x.pth"), "is for a network that is no run's"),
        (("runs/toy", "network.depth=2"), "is for a network that is no run's"),
        (("runs/toy", "run.precision=half"), "run.precision"),
    ],
)
def test_mistakes_are_one_line(words, says, folder, capsys):
    data = () if any(word.startswith("data=") for word in words) else ("data=toy.yaml",)
    protocol = () if "--protocol" in words else KNN
    assert says in fails(capsys, *words, *protocol, *data)


def test_a_network_without_a_recipe_needs_data(folder, capsys):
    assert "(data=bevt)" in fails(capsys, "pixels", *KNN)
    Path("bare.yaml").write_text(RECIPE)
    text = Path("bare.yaml").read_text()
    Path("bare.yaml").write_text(re.sub(r"  probe:\n(    .*\n)+", "", text))
    assert "names no labelled videos" in fails(capsys, "pixels", *KNN, "data=bare.yaml")


def test_a_file_or_folder_of_that_name_goes_first(folder):
    assert is_external("pixels")
    assert is_external("timm:x")
    assert is_external("untrained:runs/toy")
    assert not is_external("runs/toy")
    assert not is_external("torchvision")
    assert not is_external("pixels:3")
    Path("pixels").mkdir()
    assert not is_external("pixels")
    Path("pixels").rmdir()


def test_words_are_sorted_by_what_they_are_for():
    words = eval_words(
        (
            "weights=a/b=c.pth",
            "network.size=4",
            "data=bevt",
            "data.test.limit=3",
            "run.workers=2",
            "run.seed=1",
        )
    )
    assert (words.weights, words.network, words.data) == ("a/b=c.pth", ("size=4",), "bevt")
    assert words.rest == ("data.test.limit=3", "run.seed=1")
    assert words.for_protocol(finetunes=True) == (*words.rest, "run.workers=2")
    written = eval_words(("data={train: {type: x}}",))
    assert written.data is None
    assert written.rest == ("data={train: {type: x}}",)
    assert ExternalNetwork("timm:a", "x/y.pth", ("size=4",)).shown == "timm:a y.pth size=4"


def test_the_score_file_of_a_network_without_a_run_is_a_whole_card(folder):
    assert main(["eval", "pixels", *KNN, "name=card", "data=toy.yaml"]) == 0
    record = json.loads(Path("runs/pixels/scores/card-step-000000.json").read_text())
    run = json.loads(Path("runs/toy/scores/knn-step-000002.json").read_text())
    assert set(record) == set(run)
    assert record["card"] == run["card"]
    assert len(record["checkpoint_sha256"]) == 64
    assert record["step"] == 0


@pytest.mark.gpu
def test_on_a_gpu_features_are_made_under_bfloat16_unless_asked_otherwise(folder):
    found: dict[tuple[str, str], torch.Tensor] = {}
    ways = {"cpu": ("auto", "fp32"), "cuda": ("auto", "bf16"), "cuda whole": ("fp32", "fp32")}
    for way, (precision, expected) in ways.items():
        device = way.split()[0]
        words = (f"run.device={device}", f"run.precision={precision}", "network.seed=7", "data=toy.yaml")
        before = set(Path("runs").rglob("features/*.safetensors"))
        assert main(["eval", "untrained:timm:test_vit", *KNN, *words]) == 0
        for path in set(Path("runs").rglob("features/*.safetensors")) - before:
            with safe_open(path, "pt") as file:
                key, vectors = file.metadata()["key"], file.get_tensor("vectors.normal")
            assert f"precision: {expected}" in key
            assert f"device: {device}" in key
            assert vectors.dtype == torch.float32
            found[way, "test" if "split: test" in key else "train"] = vectors
    assert len(found) == 6
    for part in ("train", "test"):
        torch.testing.assert_close(found["cuda whole", part], found["cpu", part], atol=1e-2, rtol=1e-2)
        torch.testing.assert_close(found["cuda", part], found["cpu", part], atol=0.1, rtol=0.1)
        assert not torch.equal(found["cuda", part], found["cuda whole", part])


@pytest.mark.slow
@pytest.mark.skipif("VIDSSL_CLIPS" not in os.environ, reason="VIDSSL_CLIPS names no folder of real clips")
def test_real_clips_are_scored_one_half_against_the_other(folder):
    clips = Path(os.environ["VIDSSL_CLIPS"]) / "good"
    script = Path(__file__).parents[2] / "docs" / "measure_comparison.py"
    words = ("runs/toy", "pixels", "--clips", str(clips), "--leave-out", "mixed")
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "13 test videos" in next(line for line in lines if line.startswith("nearest neighbour"))
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][2:] == [
        "runs/toy, trained",
        "runs/toy, untrained",
        "pixels, no weights",
        "largest class",
    ]
