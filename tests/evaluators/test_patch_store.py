"""Patch tokens beside kept features: written as they come, mapped, in files of their own; and few labels."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from toy_probe import encoder_passes, make_run, recipe_text

from vidssl import api as v
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import recipe_from_text
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import read_scores
from vidssl.evaluators.features import HEADER, PatchWriter, half, patch_path, read_patches

RECIPE = recipe_text()
LOOK = "name: look\nevaluator: {type: attentive, lr: 1e-3, num_heads: 2, epochs: 1}\n"
TOKENS = (12, 1, 8, 16)  # videos, views, cells, channels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        make_run(Path("runs/a"), RECIPE, seed=1)
        Path("evaluation").mkdir()
        Path("evaluation/look.yaml").write_text(LOOK)
    return path


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    shutil.rmtree("runs/a/features", ignore_errors=True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the passes that the encoder makes over videos."""
    return encoder_passes(monkeypatch)


def evaluate(*words: str) -> int:
    given = [word for name in ("knn", "look") if name in words for word in ("--protocol", name)]
    return main(["eval", "runs/a", *given, *(word for word in words if word not in ("knn", "look"))])


def kept() -> tuple[list[Path], list[Path]]:
    """Files of vectors, and of patch tokens."""
    files = sorted(Path("runs/a/features").iterdir())
    return [p for p in files if "patches" not in p.name], [p for p in files if "patches" in p.name]


def test_one_pass_feeds_every_probe_and_its_size_is_told_before(capsys, passes):
    assert evaluate("knn", "look") == 0
    assert len(passes) == 4  # trained and untrained, train and test
    said = capsys.readouterr().out
    size = torch.Size(TOKENS).numel() * 2
    assert said.index(f"patch tokens: {size / 1e9:.3g} GB in float16 go into runs/a/features") < said.index(
        "knn of"
    )
    vectors, patches = kept()
    assert (len(vectors), len(patches)) == (4, 4)
    assert all(path.stat().st_size == HEADER + size for path in patches)
    assert evaluate("look") == 0
    assert len(passes) == 4


def test_a_probe_that_reads_vectors_costs_no_disk_for_patches(passes):
    assert evaluate("knn") == 0
    assert [len(files) for files in kept()] == [4, 0]
    assert evaluate("look") == 0
    assert [len(files) for files in kept()] == [4, 4]
    assert len(passes) == 8


def test_tokens_on_disk_are_those_of_the_network():
    assert evaluate("look") == 0
    vectors, _ = kept()
    recipe = recipe_from_text(RECIPE, "toy.yaml")
    assert recipe.data.probe is not None
    found = [read_patches(path, ("normal",), "float16", 12)["normal"] for path in vectors]
    assert all(part.shape == TOKENS for part in found)
    torch.manual_seed(recipe.seed)
    table = v.extract(
        build.backbone(recipe),
        build.source(recipe.data.probe.test),
        build.views(recipe.data.probe.views),
        patches="float16",
    )
    assert sum(torch.equal(part, table.patches["normal"]) for part in found) == 1
    means = table.patches["normal"].float().mean(2)
    torch.testing.assert_close(means, table.vectors, atol=2e-3, rtol=0)


def test_the_number_of_workers_changes_no_feature():
    recipe = recipe_from_text(RECIPE, "toy.yaml")
    assert recipe.data.probe is not None
    torch.manual_seed(recipe.seed)
    network = build.backbone(recipe)
    source, views = build.source(recipe.data.probe.test), build.views(recipe.data.probe.views)
    alone, helped = (
        v.extract(network, source, views, patches="bfloat16", batch_size=5, workers=workers)
        for workers in (0, 2)
    )
    assert alone.keys == helped.keys
    assert torch.equal(alone.vectors, helped.vectors)
    assert torch.equal(alone.patches["normal"], helped.patches["normal"])


def test_bfloat16_and_orders_of_frames_have_files_of_their_own(passes):
    assert evaluate("look", "frames=[normal, reversed]", "patches=bfloat16") == 0
    _, patches = kept()
    kinds = sorted(re.sub(".*-patches-", "", path.stem) for path in patches)
    assert kinds == ["normal-bfloat16"] * 4 + ["reversed-bfloat16"] * 2
    assert [
        score.frames for score in read_scores(Path("runs/a/scores/look-step-000005.json")).scores["trained"]
    ][:2] == ["normal", "reversed"]
    assert evaluate("look", "frames=[normal, reversed]") == 0
    assert len(passes) == 8


def test_damaged_tokens_are_made_anew(capsys):
    assert evaluate("look") == 0
    path = kept()[1][0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert evaluate("look") == 0
    assert f"{path}: damaged or cut short" in " ".join(capsys.readouterr().out.split())
    assert path.read_bytes() == whole


def test_tokens_of_other_videos_than_the_vectors_are_refused(tmp_path):
    vectors = tmp_path / "x.safetensors"
    write(vectors, torch.zeros(3, 1, 2, 4))
    with pytest.raises(UsageError, match=r"holds 3 videos and .* 4"):
        read_patches(vectors, ("normal",), "float16", 4)


def write(vectors: Path, *parts: torch.Tensor, num_videos: int = 9, kind="float16") -> None:
    with PatchWriter(vectors, ("normal",), kind, num_videos=num_videos, say=lambda _: None) as writer:
        for part in parts:
            writer("normal", part)


def test_batches_make_one_tensor(tmp_path):
    tokens = torch.randn(7, 2, 3, 4)
    for kind in ("float16", "bfloat16"):
        write(tmp_path / "x.safetensors", *tokens.split(3), kind=kind)
        found = read_patches(tmp_path / "x.safetensors", ("normal",), kind, 7)["normal"]
        assert torch.equal(found, tokens.to(getattr(torch, kind)))


def test_nothing_is_left_of_a_pass_that_ended_early(tmp_path):
    def interrupted() -> None:
        vectors = tmp_path / "x.safetensors"
        with PatchWriter(vectors, ("normal",), "float16", num_videos=9, say=print) as writer:
            writer("normal", torch.zeros(2, 1, 2, 4))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    with pytest.raises(UsageError, match="take fewer videos, views"):
        write(tmp_path / "x.safetensors", torch.zeros(2, 1, 2, 4))
    assert not patch_path(tmp_path / "x.safetensors", "normal", "float16").exists()
    assert list(tmp_path.iterdir()) == []


def test_tokens_too_large_for_their_type_are_refused():
    assert half(torch.tensor([60000.0]), "float16").dtype == torch.float16
    with pytest.raises(UsageError, match=r"reach 7e\+04, which float16 cannot hold: set patches=bfloat16"):
        half(torch.tensor([70000.0]), "float16")
    with pytest.raises(UsageError, match="the network is broken"):
        half(torch.tensor([float("nan")]), "bfloat16")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("knn", "patches=float16"), "unused: evaluator 'knn' reads no patch tokens"),
        (("look", "layers=all"), "reads patch tokens of the last layer"),
        (("look", "patches=int8"), "expected 'float16' or 'bfloat16'"),
        (("knn", "few_labels={shares: [0.1], per_class: [1]}"), "one of the two"),
        (("knn", "few_labels={share: [0.1]}"), "unknown key"),
        (("knn", "few_labels={per_class: [20]}"), "20 a class: class"),
    ],
)
def test_mistakes_in_a_protocol_are_one_line(words, says, capsys):
    assert evaluate(*words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said


def test_rows_of_few_labels_are_kept_shown_and_compared(capsys):
    few = "few_labels={shares: [0.5, 1.0], draws: 3}"
    assert evaluate("knn", few, "name=few", "evaluator.k=[1, 3]") == 0
    path = Path("runs/a/scores/few-step-000005.json")
    rows = json.loads(path.read_text())["scores"]["trained"]
    wanted = [f"k={k}, {share} % of labels" for share in (50, 100) for k in (1, 3)]
    assert [row["setting"] for row in rows][:4] == wanted
    assert len(rows[0]["draws"]) == 3
    assert len(rows[2]["draws"]) == 1
    assert read_scores(path).scores["trained"][0].draws == tuple(rows[0]["draws"])
    shown = f"{100 * rows[0]['top1']:.1f} ± {100 * rows[0]['spread']:.1f}"
    assert shown in re.sub(r"\s+", " ", capsys.readouterr().out)
    again = Path(shutil.copy(path, "again.json"))
    assert main(["compare", str(path), str(again)]) == 0
    assert shown in re.sub(r"\s+", " ", capsys.readouterr().out)
