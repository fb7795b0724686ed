"""Classes of videos: by probes that were kept, and by finetuned networks; the same that are scored."""

import json
from pathlib import Path

import pytest
import torch

from vidssl import api as v
from vidssl.cli.main import main
from vidssl.evaluate.score_file import read_scores
from vidssl.evaluators.fitted import read_probe
from vidssl.use.predict import predict

PROTOCOL = "runs/tiny/scores/{}-digit-step-000002.probe.safetensors"
QUICK = {
    "linear": ", penalties: [1.0], max_iterations: 30",
    "knn": ", k: 20",
    "attentive": ", lr: 1e-3, num_heads: 2, epochs: 1",
}
FINETUNE = """
name: ft
objective: {type: classification}
batch_size: 4
labels: [digit]
train_views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 16}
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 1}
run: {log_every_steps: 1, checkpoint_every_steps: 1}
"""


@pytest.fixture(scope="module")
def probed(world: Path) -> Path:
    """The run with probes of three protocols, fitted on few videos."""
    for name, keys in QUICK.items():
        (world / f"{name}.yaml").write_text(f"name: {name}\nevaluator: {{type: {name}{keys}}}\n")
    words = [f"--protocol={name}.yaml" for name in QUICK]
    assert main(["eval", "runs/tiny", *words, "--save-probe"]) == 0
    return world / "runs/tiny"


def digits() -> v.MovingDigits:
    return v.MovingDigits(split="test", size=16, digit_size=12, num_frames=4, num_videos=12)


@pytest.mark.parametrize("name", QUICK)
def test_a_kept_probe_names_the_classes_that_were_scored(probed: Path, tiny: Path, name: str) -> None:
    probe = read_probe(Path(PROTOCOL.format(name)))
    table = v.extract(
        v.load(tiny),
        digits(),
        v.UniformClips(num_frames=4, frame_stride=1, size=16),
        patches="float16",
        device=torch.device("cpu"),
    )
    given = table.patches["normal"] if probe.reads_patches else table.vectors
    said = probe.probabilities(given)
    torch.testing.assert_close(said.sum(1), torch.ones(12, dtype=said.dtype))
    scored = read_scores(tiny / "scores" / f"{name}-step-000002.json")
    (row,) = [row for row in scored.scores["trained"] if row.label == "digit"]
    assert tuple(said.argmax(1).tolist()) == row.predicted
    assert probe.classes == scored.classes["digit"]


def test_videos_get_their_best_classes_as_text_and_json(
    probed: Path, tiny: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [
        "predict",
        str(tiny),
        "videos/long.mp4",
        "videos/short.mp4",
        "--probe",
        PROTOCOL.format("linear"),
    ]
    assert main([*words, "--json", "--top", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["video"] for each in found["answers"]] == ["videos/long.mp4", "videos/short.mp4"]
    shares = [each["probability"] for each in found["answers"][0]["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) == 3
    assert main(words) == 0
    best = found["answers"][0]["classes"][0]
    text = capsys.readouterr().out
    assert text.startswith(f"videos/long.mp4  digit: {best['name']} {best['probability']:.1%}, ")
    assert text.splitlines()[0].count("%") == 5


def test_a_finetuned_network_answers_as_it_was_tested(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    Path("ft.yaml").write_text(FINETUNE)
    assert main(["eval", str(tiny), "--protocol", "ft.yaml"]) == 0
    run = tiny / "finetune" / "ft-digit"
    answers = predict(str(run), ["videos"], top=2).answers
    assert [each.video for each in answers] == ["long.mp4", "middle.mp4", "short.mp4"]
    objective = v.load_objective(run)
    source = v.VideoFolder(root="videos")
    cut = v.UniformClips(num_frames=4, frame_stride=1, size=16)
    clip = cut.sample(source, 0, torch.Generator())["clip"][0][None].float() / 255
    with torch.no_grad():
        logits = objective.answering()([clip])[0]
    best = logits.softmax(0).topk(2)
    torch.testing.assert_close(torch.tensor(answers[0].probabilities), best.values)
    assert answers[0].classes == tuple(str(number) for number in best.indices.tolist())
    (run / "classes.json").unlink()  # as of a checkpoint that lies elsewhere
    assert main(["predict", str(run), "videos"]) == 2
    assert "how are clips cut for it?" in capsys.readouterr().err


def test_probes_of_other_weights_and_networks_without_any_are_refused(
    probed: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    probe = PROTOCOL.format("linear")
    assert main(["predict", "pixels", "videos", "--probe", probe]) == 2
    assert "other weights" in capsys.readouterr().err
    (tmp_path / "step-000002.safetensors").write_bytes(
        (tiny / "checkpoints/step-000002.safetensors").read_bytes()
    )
    assert main(["predict", str(tmp_path / "step-000002.safetensors"), "videos"]) == 2
    assert "vidssl eval" in capsys.readouterr().err
    assert main(["eval", str(tiny), "--protocol", "retrieval", "--save-probe"]) == 2
    assert "Retrieval learns nothing that could be kept" in capsys.readouterr().err
    assert main(["predict", str(tiny), "videos", "--probe", "tiny.yaml"]) == 2
    assert "tiny.yaml" in capsys.readouterr().err
