"""Runs in folders that others load: what goes there, what the card says, and that it is a run again."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vidssl import api as v
from vidssl.cli.main import main
from vidssl.config.strict_yaml import parse, plain

CLIPS = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pushed(world: Path) -> Iterator[Path]:
    """The run with scores of a protocol and its probe, pushed into a folder."""
    assert main(["eval", "runs/tiny", "--protocol", "knn", "--save-probe"]) == 0
    assert main(["push", "runs/tiny", "pushed", "--licence", "cc-by-4.0"]) == 0
    yield world / "pushed"
    shutil.rmtree(world / "pushed")


def test_a_pushed_run_is_the_same_network_and_objective(pushed: Path, tiny: Path) -> None:
    network, again = v.load(tiny), v.load(pushed)
    assert torch.equal(network(CLIPS).pooled(), again(CLIPS).pooled())
    assert torch.equal(v.ViT.from_pretrained(str(pushed))(CLIPS).pooled(), network(CLIPS).pooled())
    assert torch.equal(
        v.load("hf:pushed")(CLIPS).pooled(), network(CLIPS).pooled()
    )  # of a folder that is there
    decoder = v.load_objective(pushed).state_dict()
    assert all(torch.equal(decoder[key], value) for key, value in v.load_objective(tiny).state_dict().items())


def test_what_tells_of_the_machine_stays(pushed: Path) -> None:
    names = {path.name for path in pushed.rglob("*") if path.is_file()}
    probes = {name for name in names if name.endswith(".probe.safetensors")}
    assert "knn-digit-step-000002.probe.safetensors" in probes
    scores = {"knn-step-000002.json"}
    assert names - probes == {"README.md", "config.json", "model.safetensors", "recipe.yaml"} | scores


def test_the_card_says_how_to_load_it_and_what_it_scores(pushed: Path, tiny: Path) -> None:
    card = (pushed / "README.md").read_text()
    front, body = card.split("---\n", 2)[1:]
    said = plain(parse(front, lambda line: f"card:{line}"))
    assert said["license"] == "cc-by-4.0"
    assert set(said["tags"]) >= {"videomae", "vit"}
    record = json.loads((tiny / "scores" / "knn-step-000002.json").read_text())
    values = [result["metrics"][0]["value"] for result in said["model-index"][0]["results"]]
    assert values == [row["top1"] for row in record["scores"]["trained"]]
    assert 'v.load("pushed")' in body
    assert f"{record['scores']['trained'][0]['top1']:.1%}"[:3] in body
    assert record["card_sha256"][:12] in body
    assert (tiny / "recipe.yaml").read_text().strip() in body


def test_every_command_takes_a_pushed_run(pushed: Path, tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", "pushed", "videos/short.mp4"]) == 0
    assert "videos/short.mp4  digit: " in capsys.readouterr().out
    assert main(["compare", "pushed", str(tiny), "--markdown"]) == 0
    assert main(["eval", "pushed", "--protocol", "knn"]) == 0
    assert (pushed / "scores" / "knn-step-000002.json").is_file()
    assert main(["features", "hf:pushed", "videos/short.mp4", "-o", "f.npy"]) == 0


def test_a_folder_of_something_else_is_not_written_to(
    pushed: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["push", str(tiny), "videos"]) == 2
    assert "videos: holds other files" in capsys.readouterr().err
    assert main(["push", str(tiny), "pushed"]) == 0  # once more
    assert main(["push", str(tiny)]) == 2
    assert "push takes a run and a target" in capsys.readouterr().err
    assert main(["push", str(tiny), "hf:no name"]) == 2


def test_the_hub_is_asked_and_its_refusal_told(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["eval", "hf:nobody/nothing", "--protocol", "knn"]) == 2
    assert "hf:nobody/nothing: cannot be fetched" in capsys.readouterr().err
    assert main(["push", str(tiny), "hf:nobody/nothing"]) == 2
    assert "hf:nobody/nothing: cannot be pushed" in capsys.readouterr().err


def test_a_model_of_transformers_is_named_by_its_own_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("videomae").mkdir()
    Path("videomae/config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(v.UsageError, match="name it transformers:videomae"):
        v.load("hf:videomae")
    assert main(["eval", "hf:videomae", "--protocol", "knn"]) == 2
    assert "name it transformers:videomae" in capsys.readouterr().err


def test_a_report_reads_the_features_of_a_run_once(
    pushed: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    assert main(["report", str(tiny), "-o", "page.html"]) == 0
    assert capsys.readouterr().out.count("features read from") == 2  # of train and of test
