"""From recipes to scores, by the commands a user types, on a tiny world."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vidssl import api as v
from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.engine.checkpoint import FORMAT, read_checkpoint
from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable
from vidssl.train import monitors

WORLD = "type: moving_digits, size: 32, digit_size: 24, num_frames: 4, num_videos: 12"
TOKENIZER = f"""
name: tokenizer
objective: {{type: tokenizer}}
tokenizer: {{type: vqvae, vocab_size: 16, code_dim: 4, width: 8, stride: 8, num_res_blocks: 0}}
data:
  image:
    source: {{{WORLD}, split: train}}
    views: {{type: single_image, size: 32}}
    batch_size: 8
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 4}}
run: {{workers: 0, device: cpu}}
"""
BEVT = f"""
name: bevt
objective: {{type: bevt}}
backbone: {{type: video_swin, embed_dim: 8, depths: [1, 1, 1], num_heads: [1, 1, 1], window: [2, 4, 4]}}
tokenizer:
  {{type: vqvae, vocab_size: 16, code_dim: 4, width: 8, stride: 8, num_res_blocks: 0,
   weights: tokenizer.safetensors, sha256: SHA256, source: tokenizer.yaml, licence: Apache-2.0}}
masker: {{type: tube, min_block: 2}}
data:
  video:
    source: {{{WORLD}, split: train}}
    test_source: {{{WORLD}, split: test}}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 32}}
    batch_size: 4
  image:
    source: {{{WORLD}, split: train}}
    test_source: {{{WORLD}, split: test}}
    views: {{type: single_image, size: 32}}
    batch_size: 4
  probe:
    train: {{{WORLD}, split: train}}
    test: {{{WORLD}, split: test}}
    views: {{type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32}}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 6}}
run: {{workers: 0, log_every_steps: 2, checkpoint_every_steps: 4, test_batches: 1, device: cpu}}
"""


FAST_PROBE = ("--protocol", "linear", "evaluator.penalties=[10.0]", "evaluator.max_iterations=10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder in which a tokenizer and BEVT were trained by the command line."""
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("tokenizer.yaml").write_text(TOKENIZER)
        assert main(["train", "tokenizer.yaml"]) == 0
        shutil.copy("runs/tokenizer/checkpoints/step-000004.safetensors", "tokenizer.safetensors")
        digest = hashlib.sha256(Path("tokenizer.safetensors").read_bytes()).hexdigest()
        Path("bevt.yaml").write_text(BEVT.replace("SHA256", digest))
        with redirect_stdout(StringIO()) as said:
            assert main(["train", "bevt.yaml"]) == 0
        Path("said.txt").write_text(said.getvalue())
    return path


@pytest.fixture
def said(folder):
    """What the training of BEVT printed."""
    return (folder / "said.txt").read_text()


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def fails(capsys, *words: str) -> str:
    """The one line that a command prints when it ends with exit code 2."""
    assert main(words) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


def test_run_folder_holds_recipe_environment_metrics_and_checkpoints():
    run = Path("runs/bevt")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-000004.safetensors",
        "step-000006.safetensors",
    ]
    assert "warmup_start: 0.1" in (run / "recipe.yaml").read_text()  # a default, written out
    assert "versions" in json.loads((run / "environment.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [r for r in records if "loss_video" in r]
    assert [r["step"] for r in training] == [2, 4, 6]
    assert {"loss_image", "accuracy_image", "accuracy_video", "grad_norm", "lr", "data_wait_share"} <= set(
        training[0]
    )
    assert all(0.05 < r["memory_gib"] < 24 for r in training)
    tests = [r for r in records if "test_accuracy_video" in r]
    assert [r["step"] for r in tests] == [4, 6]
    assert {"test_most_frequent_video", "test_copy_nearest_video", "test_copy_nearest_image"} <= set(tests[0])


def test_the_same_seed_gives_the_same_run():
    assert main(["train", "bevt.yaml", "name=again"]) == 0
    first, second = (load_file(f"runs/{n}/checkpoints/step-000006.safetensors") for n in ("bevt", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert main(["train", "bevt.yaml", "name=other", "seed=1"]) == 0
    other = load_file("runs/other/checkpoints/step-000006.safetensors")
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_checkpoint_holds_no_tokenizer_and_the_whole_recipe():
    checkpoint = read_checkpoint(Path("runs/bevt/checkpoints/step-000006.safetensors"))
    assert not [key for key in (*checkpoint.encoder, *checkpoint.objective) if "codebook" in key]
    assert "type: video_swin" in checkpoint.recipe
    assert [key for key in checkpoint.objective if "to_vocab" in key]


def test_train_says_what_was_learned_draws_it_and_names_what_comes_next(said):
    one_line = " ".join(said.split())
    assert re.search(
        r"[\d.]+ % of the hidden ids of clips are predicted right: \S.* the most frequent id \([\d.]+ %\)",
        one_line,
    )
    assert re.search(r"earned.*, on held-out videos, never trained on: ", one_line)
    assert said.endswith("Next: vidssl eval runs/bevt --protocol linear\n")
    assert Path("runs/bevt/pictures/reconstruction-step-000006.png").stat().st_size > 1000
    assert "Picture: runs/bevt/pictures/reconstruction-step-000006.png" in said
    assert re.search(r"^step 6/6  0 s left  accuracy_video [\d.]+ %.* clips/s  .*data wait \d+ %", said, re.M)
    assert re.search(
        r"^step 4, held-out videos: hidden ids of clips [\d.]+ % \(the most frequent id", said, re.M
    )
    assert max(map(len, said[said.index("Run folder") :].splitlines())) < 120  # paths of made videos are long


def test_eval_without_a_name_takes_the_newest_run_and_reports_every_label(capsys):
    assert main(["train", "bevt.yaml", "name=newest", "schedule.steps=1"]) == 0
    capsys.readouterr()
    assert main(["eval", "--protocol", "knn", "--protocol", "retrieval"]) == 0
    said = capsys.readouterr().out
    assert "runs/newest" in said
    for word in ("digit", "texture", "direction", "speed", "profile", "untrained", "chance", "95 %"):
        assert word in said
    assert "12 videos found of 12 listed" in said
    record = json.loads(Path("runs/newest/scores/knn-step-000001.json").read_text())
    rows = record["scores"]["trained"]
    assert [row["label"] for row in rows] == ["digit", "texture", "direction", "speed", "profile"]
    assert all(row["low"] <= row["top1"] <= row["high"] and row["num_test"] == 12 for row in rows)
    assert "k: 20" in record["protocol"]
    assert Path("runs/newest/scores/retrieval-step-000001.json").is_file()


def test_a_checkpoint_can_be_scored_wherever_it_is_copied_to(tmp_path):
    shutil.copy("runs/bevt/checkpoints/step-000004.safetensors", tmp_path / "mine.safetensors")
    assert main(["eval", str(tmp_path / "mine.safetensors"), "--protocol", "knn"]) == 0
    assert json.loads((tmp_path / "knn-mine.json").read_text())["step"] == 4


def test_trained_scores_come_from_the_trained_weights():
    """Scores of a checkpoint with the untrained weights are those of the untrained network."""
    torch.manual_seed(0)
    fresh = build.backbone(load_recipe("bevt.yaml"))
    state = {f"encoder.{key}": value for key, value in fresh.state_dict().items()}
    metadata = {"format": FORMAT, "step": "0", "recipe": Path("runs/bevt/recipe.yaml").read_text()}
    save_file(state, "fresh.safetensors", metadata=metadata)
    assert main(["eval", "fresh.safetensors", *FAST_PROBE]) == 0
    scores = json.loads(Path("linear-fresh.json").read_text())["scores"]
    assert scores["trained"] == scores["untrained"]
    assert main(["eval", "runs/bevt", *FAST_PROBE]) == 0
    scores = json.loads(Path("runs/bevt/scores/linear-step-000006.json").read_text())["scores"]
    assert scores["trained"] != scores["untrained"]


def test_all_layers_are_the_means_of_every_stage_side_by_side():
    videos = v.MovingDigits(split="test", size=32, digit_size=24, num_frames=4, num_videos=12)
    views = v.UniformClips(num_frames=4, frame_stride=1, size=32)
    recipe = load_recipe("bevt.yaml")
    net = build.backbone(recipe)
    features = v.extract(net, videos, views, layers="all")
    assert features.vectors.shape == (12, 1, 8 + 16 + 32)
    clip = videos.read(3, range(4)).transpose(0, 1)[None].float() / 255
    with torch.no_grad():
        expected = torch.cat([stage.mean((1, 2, 3)) for stage in net.eval()(clip).stages], dim=1)
    torch.testing.assert_close(features.vectors[3], expected, atol=1e-5, rtol=1e-4)
    assert v.extract(net, videos, views).vectors.shape == (12, 1, 32)


def test_a_protocol_says_which_layers_are_read():
    scores = {}
    for layers in ("last", "all"):
        assert main(["eval", "runs/bevt", *FAST_PROBE, f"layers={layers}"]) == 0
    for path in Path("runs/bevt/scores").rglob(
        "linear-step-000006*.json"
    ):  # neither is written over the other
        record = json.loads(path.read_text())
        scores[re.search("layers: (.*)", record["protocol"])[1]] = record["scores"]["trained"]
    assert set(scores) == {"last", "all"}
    assert scores["last"] != scores["all"]
    kept = sorted(Path("runs/bevt/scores").rglob("*"))
    assert main(["eval", "runs/bevt", *FAST_PROBE, "layers=all"]) == 0
    assert sorted(Path("runs/bevt/scores").rglob("*")) == kept  # the same protocol again takes its own place


def test_backbone_starts_from_an_earlier_run_or_from_random_weights_and_says_which(said, capsys):
    random = "starts from RANDOM weights ('backbone.init' names others)"
    assert random in said
    assert main(["train", "bevt.yaml", "name=second", "backbone.init=runs/bevt", "schedule.steps=1"]) == 0
    words = capsys.readouterr().out
    assert random not in words
    assert re.search(r"runs/bevt/checkpoints/step-000006.safetensors: \d+ tensors loaded", words)
    first = read_checkpoint(Path("runs/bevt/checkpoints/step-000006.safetensors")).encoder
    second = read_checkpoint(Path("runs/second/checkpoints/step-000001.safetensors")).encoder
    # one step of AdamW moves no weight by more than about the learning rate, 1e-3
    assert (
        max((first[key] - second[key]).abs().max() for key in first if first[key].is_floating_point())
        < 1.5e-3
    )


def test_a_knn_probe_in_the_course_of_a_run_is_what_eval_finds_and_changes_nothing():
    assert main(["train", "bevt.yaml", "name=watched", "run.knn_every_steps=3"]) == 0
    records = [json.loads(line) for line in Path("runs/watched/metrics.jsonl").read_text().splitlines()]
    probes = [record for record in records if "knn_digit" in record]
    assert [record["step"] for record in probes] == [3, 6]
    watched, plain = (
        read_checkpoint(Path(f"runs/{name}/checkpoints/step-000006.safetensors")).encoder
        for name in ("watched", "bevt")
    )
    torch.testing.assert_close(watched, plain, atol=0, rtol=0)
    assert main(["eval", "runs/watched", "--protocol", "knn", "evaluator.k=200"]) == 0
    scores = json.loads(Path("runs/watched/scores/knn-step-000006.json").read_text())["scores"]["trained"]
    assert {f"knn_{row['label']}": row["top1"] for row in scores}.items() <= probes[1].items()


@pytest.mark.parametrize("fault", ["not finite", "none of the 24 samples can be read"])
def test_a_knn_probe_that_finds_nothing_ends_no_training(fault, monkeypatch, capsys):
    real = monitors.extract

    def broken(encoder: nn.Module, *others: object, **how: object) -> FeatureTable:
        table = real(encoder, *others, **how)
        if fault == "not finite":
            return replace(table, vectors=torch.full_like(table.vectors, torch.nan))
        raise UsageError(fault)

    monkeypatch.setattr(monitors, "extract", broken)
    name = f"unscored-{fault[:4].strip()}"
    assert main(["train", "bevt.yaml", f"name={name}", "run.knn_every_steps=3"]) == 0
    assert capsys.readouterr().out.count("The kNN probe finds nothing, and training goes on: ") == 2
    events = [json.loads(line) for line in Path(f"runs/{name}/events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"], fault in event["text"]) for event in events] == [
        (3, "unscored", True),
        (6, "unscored", True),
    ]
    watched, plain = (
        read_checkpoint(Path(f"runs/{run}/checkpoints/step-000006.safetensors")).encoder
        for run in (name, "bevt")
    )
    torch.testing.assert_close(watched, plain, atol=0, rtol=0)


def test_a_knn_probe_needs_videos_and_something_to_probe(capsys):
    words = ("run.knn_every_steps=3", "data.probe=null")
    assert "run.knn_every_steps: needs labelled videos: add 'data.probe'" in fails(
        capsys, "train", "bevt.yaml", *words
    )
    assert "has no features to probe" in fails(capsys, "train", "tokenizer.yaml", "run.knn_every_steps=3")


def test_a_run_on_images_alone_is_inflated_where_clips_start_from_it(capsys):
    words = ("name=images", "objective.type=bevt_image", "data.video=null", "schedule.steps=1")
    assert main(["train", "bevt.yaml", *words]) == 0
    images = read_checkpoint(Path("runs/images/checkpoints/step-000001.safetensors")).encoder
    recipe = load_recipe("bevt.yaml", ["backbone.init=runs/images"])
    started = build.backbone(recipe).state_dict()
    assert "trained on images, inflated to clips" in capsys.readouterr().out
    for frame in (0, 1):  # repeated over the two frames of a tubelet, and halved
        torch.testing.assert_close(
            started["embed_clip.proj.weight"][:, :, frame], images["embed_image.proj.weight"][:, :, 0] / 2
        )
    table = next(key for key in images if key.endswith("bias_table"))
    planes = started[table].unflatten(0, (3, -1))
    assert torch.equal(planes[0], planes[1])
    torch.testing.assert_close(planes[0], images[table].unflatten(0, (3, -1))[1])


def test_init_from_another_architecture_is_refused(capsys):
    message = fails(capsys, "train", "bevt.yaml", "backbone.init=runs/bevt", "backbone.embed_dim=16")
    assert "weights of another architecture" in message


def test_a_checkpoint_of_another_architecture_is_refused(capsys):
    source = read_checkpoint(Path("runs/bevt/checkpoints/step-000006.safetensors"))
    state = {f"encoder.{key}": value for key, value in source.encoder.items()}
    recipe = source.recipe.replace("depths: [1, 1, 1]", "depths: [1, 2, 1]")
    save_file(state, "deeper.safetensors", metadata={"format": FORMAT, "step": "6", "recipe": recipe})
    assert "weights of another architecture" in fails(
        capsys, "eval", "deeper.safetensors", "--protocol", "knn"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("eval", "runs/nothing.safetensors", "--protocol", "knn"),
            "nothing.safetensors: no such run or file",
        ),
        (("eval", "runs", "--protocol", "knn"), "a folder, but not that of a run"),
        (("eval", "runs/bevt", "--protocol", "knnn"), "Did you mean 'knn'?"),
        (("eval", "runs/tokenizer", "--protocol", "knn"), "trained a tokenizer"),
        (("eval", "runs/bevt", "--protocol", "knn", "evaluator.kk=3"), "unknown key. Did you mean 'k'?"),
        (("train", "nothing.yaml"), "nothing.yaml: no such recipe"),
        (("train", "bevt.yaml", "run.out=bevt.yaml/x"), "run.out=FOLDER"),
        (
            ("train", "bevt.yaml", "data.video.source={type: video_folder, root: nowhere}"),
            "nowhere",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, says, capsys):
    assert says in fails(capsys, *words)


def test_a_truncated_checkpoint_is_one_line(capsys):
    Path("cut.safetensors").write_bytes(
        Path("runs/bevt/checkpoints/step-000006.safetensors").read_bytes()[:-100]
    )
    assert "damaged or cut short" in fails(capsys, "eval", "cut.safetensors", "--protocol", "knn")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoints(capsys):
    words = ("train", "bevt.yaml", "name=nan", "optim.lr=1e30", "run.checkpoint_every_steps=1")
    message = fails(capsys, *words, "run.max_skipped_steps=2")
    assert "run.precision=fp32" in message
    assert list(Path("runs/nan/checkpoints").iterdir())


@pytest.mark.slow
def test_interrupt_leaves_a_checkpoint_that_loads():
    command = [sys.executable, "-m", "vidssl", "train", "bevt.yaml", "name=stopped", "schedule.steps=100000"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    said, _ = process.communicate()
    assert process.wait(timeout=60) == 130
    assert "Stopped after" in said, said
    (checkpoint,) = Path("runs/stopped/checkpoints").glob("*.safetensors")
    assert read_checkpoint(checkpoint).step > 0


def test_readme_code_runs(monkeypatch, tmp_path, capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    small = re.sub(r'split="(train|test)"', r'split="\1", num_videos=20', code)
    small = re.sub(r"(steps|batch_size)=\d+", r"\1=2", small).replace("Linear()", "Linear(penalties=[1.0])")
    assert (small.count("num_videos"), small.count("penalties")) == (2, 1)
    exec(compile(small, "README.md", "exec"), {})
    assert "digit" in capsys.readouterr().out


@pytest.mark.slow
def test_training_lowers_the_loss_of_both_streams():
    videos = v.MovingDigits(split="train", size=32, digit_size=24, num_frames=4, num_videos=8)
    tokenizer = v.VQVAE(vocab_size=16, code_dim=4, width=8, stride=8, num_res_blocks=0)
    tokenizer.load_state_dict(read_checkpoint(Path("tokenizer.safetensors")).encoder)
    torch.manual_seed(0)
    net = v.VideoSwin(embed_dim=16, depths=(1, 1, 1), num_heads=(1, 1, 1), window=(2, 4, 4))
    streams = {
        "video": v.Stream(videos, v.SingleClip(num_frames=4, frame_stride=1, size=32), batch_size=8),
        "image": v.Stream(videos, v.SingleImage(size=32), batch_size=8),
    }
    result = v.train(
        v.BEVT(net, tokenizer, v.Tube(min_block=2)),
        streams,
        optim=v.AdamW(lr=3e-3, weight_decay=0.0),
        schedule=v.Cosine(steps=80),
        name="loss",
        run=v.RunSpec(log_every_steps=10, device="cpu"),
    )
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    for loss in ("loss_image", "loss_video"):
        assert records[-1][loss] < 0.9 * records[0][loss]
