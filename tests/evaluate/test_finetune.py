"""From a run and a finetuning protocol to scores, on a tiny world."""

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidssl.build import build
from vidssl.build.checks import check_finetune_protocol
from vidssl.cli.main import main
from vidssl.config.few_labels import Subset
from vidssl.config.protocol import FinetuneProtocol, load_protocol
from vidssl.config.recipe import load_recipe
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.process import StopRequest
from vidssl.errors import UsageError

WORLD = "type: moving_digits, size: 32, digit_size: 24, num_frames: 4, num_videos: 12"
RECIPE = f"""
name: NAME
objective: {{type: classification, label: digit, num_classes: 10}}
BACKBONE
data:
  video:
    source: {{{WORLD}, split: train}}
    test_source: {{{WORLD}, split: test}}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 32}}
    batch_size: 4
  probe:
    train: {{{WORLD}, split: train}}
    test: {{{WORLD}, split: test}}
    views: {{type: uniform_clips, num_clips: 2, num_frames: 4, frame_stride: 1, size: 32}}
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, steps: 2}}
run: {{workers: 0, device: cpu}}
"""
BACKBONES = {
    "vit": "backbone: {type: vit, embed_dim: 12, depth: 1, num_heads: 2, patch_size: [2, 8, 8]}",
    "swin": "backbone: {type: video_swin, embed_dim: 6, depths: [1], num_heads: [1], window: [1, 4, 4]}",
}
PROTOCOL = """
name: tune
objective: {type: classification}
labels: [digit]
train_views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 32}
batch_size: 4
test_batch_size: 5
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, epochs: 1}
run: {log_every_steps: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run of each network and a protocol."""
    path = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("evaluation").mkdir()
        Path("evaluation/tune.yaml").write_text(PROTOCOL)
        for name, backbone in BACKBONES.items():
            Path(f"{name}.yaml").write_text(RECIPE.replace("NAME", name).replace("BACKBONE", backbone))
            assert main(["train", f"{name}.yaml"]) == 0
    return path


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def tune(*words: str, run: str = "runs/vit") -> int:
    return main(["eval", run, "--protocol", "tune", *words])


def fails(capsys: pytest.CaptureFixture[str], *words: str, run: str = "runs/vit") -> str:
    assert tune(*words, run=run) == 2
    return capsys.readouterr().err.strip()


def scores(run: str = "runs/vit", name: str = "tune") -> dict[str, list[dict[str, object]]]:
    return json.loads(Path(f"{run}/scores/{name}-step-000002.json").read_text())["scores"]


def test_a_network_is_finetuned_for_each_label_and_scored(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("name=each", "labels=[digit, direction]") == 0
    said = capsys.readouterr().out
    rows = scores(name="each")["finetuned"]
    assert [row["label"] for row in rows] == ["digit", "direction"]
    assert all(row["num_train"] == row["num_test"] == 12 for row in rows)
    assert "finetuned %" in said
    assert "train: 12 listed" in said
    assert "test: 12 videos found of 12 listed" in said
    assert "None of 12 test videos was seen in pretraining" in said
    for label, classes in (("digit", 10), ("direction", 8)):
        checkpoint = read_checkpoint(
            Path(f"runs/vit/finetune/each-{label}/checkpoints/step-000003.safetensors")
        )
        assert checkpoint.objective["classifier.head.weight"].shape == (classes, 12)
        assert f"label: {label}" in checkpoint.recipe
    assert [line for line in said.splitlines() if "tensors loaded" in line]


def test_test_videos_that_were_learned_from_are_refused_before_anything_is_trained(capsys) -> None:
    said = fails(capsys, "name=both", "data.test.split=train")
    assert said.startswith("vidssl: 12 of 12 test videos (train/000000.mp4, ")
    assert "are in train too" in said
    said = fails(capsys, "name=both", "data.test.split=train", "data.train.split=test")
    assert "are trained on with their labels" in said  # by the classification that is finetuned here
    assert not list(Path("runs/vit/finetune").glob("both*"))


def test_scores_are_compared_only_where_the_same_was_learned_in_the_same_way() -> None:
    def card(name: str, *words: str) -> dict[str, str]:
        assert tune(f"name={name}", *words) == 0
        return json.loads(Path(f"runs/vit/scores/{name}-step-000002.json").read_text())["card"]

    plain = card("plain")
    assert plain["objective.type"] == "classification"
    assert card("alike", "run.log_every_steps=2", "compare_untrained=true", "test_batch_size=3") == plain
    assert card("explicit", "objective.dropout=0.0") == plain
    for name, word in {"smaller": "batch_size=3", "fewer": "data.train.limit=10"}.items():
        assert card(name, word) != plain


def test_finetuning_starts_from_the_encoder_of_the_run() -> None:
    assert tune("name=start", "optim.lr=1e-9", "objective.head_std=0.0") == 0
    (state,) = Path("runs/vit/finetune/start-digit/checkpoints").glob("*.safetensors")
    tuned, source = read_checkpoint(state), Path("runs/vit/checkpoints/step-000002.safetensors")
    for key, value in read_checkpoint(source).encoder.items():
        torch.testing.assert_close(tuned.encoder[key], value, atol=1e-6, rtol=0.0)
    assert tuned.objective["classifier.head.weight"].abs().max() < 1e-6


def test_the_recipe_of_a_finetuning_run_makes_the_same_run_again() -> None:
    assert tune("name=first") == 0
    run = Path("runs/vit/finetune/first-digit")
    assert load_recipe(str(run / "recipe.yaml")).name == "first-digit"
    assert main(["train", str(run / "recipe.yaml"), "run.out=again"]) == 0
    first, second = (
        load_file(path / "checkpoints/step-000003.safetensors") for path in (run, Path("again/first-digit"))
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_untrained_weights_and_orders_of_frames_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("name=both", "labels=[direction]", "compare_untrained=true", "frames=[normal, reversed]")
    assert tune(*words) == 0
    said = capsys.readouterr().out
    found = scores(name="both")
    assert list(found) == ["finetuned", "from scratch"]
    assert [row["frames"] for row in found["finetuned"]] == ["normal", "reversed"]
    assert "scratch" in said
    recipe = Path("runs/vit/finetune/both-direction-scratch/recipe.yaml").read_text()
    assert "init" not in recipe.replace("init_std", "")


def test_a_longer_window_has_its_biases_resized_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("name=longer", "backbone.window=[2, 4, 4]", "backbone.drop_path=0.4")
    assert tune(*words, run="runs/swin") == 0
    said = capsys.readouterr().out
    assert re.search(r"of them resized.*bias_table", said)
    recipe = Path("runs/swin/finetune/longer-digit/recipe.yaml").read_text()
    assert "window: [2, 4, 4]" in recipe
    assert "drop_path: 0.4" in recipe


def test_the_average_of_the_weights_is_what_is_saved_as_encoder() -> None:
    words = ("name=mean", "objective.ema_momentum=1e-9", "optim.lr=1e-2")
    assert tune(*words) == 0
    kept = read_checkpoint(Path("runs/vit/finetune/mean-digit/checkpoints/step-000003.safetensors"))
    source = read_checkpoint(Path("runs/vit/checkpoints/step-000002.safetensors")).encoder
    key = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(kept.encoder[key], source[key], atol=1e-6, rtol=0.0)
    assert (kept.objective[f"classifier.backbone.{key}"] - source[key]).abs().max() > 1e-3


def test_the_average_of_the_weights_is_what_is_scored() -> None:
    words = ("objective.head_std=1.0", "frames=[normal, single, shuffled, reversed]")
    assert tune("name=averaged", *words, "objective.ema_momentum=1e-9", "optim.lr=3e-2") == 0
    assert tune("name=unmoved", *words, "optim.lr=1e-9") == 0
    averaged, unmoved = (scores(name=name)["finetuned"] for name in ("averaged", "unmoved"))
    assert [(row["top1"], row["top5"]) for row in averaged] == [(row["top1"], row["top5"]) for row in unmoved]


def test_a_network_that_reads_ids_is_finetuned_with_its_tokenizer() -> None:
    backbone = (
        "tokenizer: moving_digits\n"
        "backbone: {type: factorized, vocab_size: 32, num_frames: 4, height: 4, width: 4, embed_dim: 16, "
        "depth: 1, num_heads: 4}"
    )
    Path("ids.yaml").write_text(RECIPE.replace("NAME", "ids").replace("BACKBONE", backbone))
    assert main(["train", "ids.yaml"]) == 0
    assert tune("name=ids", run="runs/ids") == 0
    assert "tokenizer: moving_digits" in Path("runs/ids/finetune/ids-digit/recipe.yaml").read_text()


def test_finished_labels_are_not_finetuned_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("name=once", "run.resume=auto") == 0
    first = scores(name="once")
    capsys.readouterr()
    assert tune("name=once", "run.resume=auto") == 0
    assert "Resumes after step 3 of 3" in capsys.readouterr().out
    assert scores(name="once") == first
    assert not Path("runs/vit/finetune/once-digit-2").exists()


def test_finetuning_that_was_stopped_keeps_its_checkpoint_and_can_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class BetweenSteps(StopRequest):
        """A signal that came while a step was taken, so that no wait for data ends by it."""

        @contextmanager
        def ends_wait(self) -> Iterator[None]:
            yield

    @contextmanager
    def stop_at_once() -> Iterator[StopRequest]:
        request = BetweenSteps()
        request.signal = signal.SIGTERM
        yield request

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidssl.engine.process.stop_requests", stop_at_once)
        assert tune("name=stopped") == 130
    said = capsys.readouterr().out
    assert "Finetuning stopped after 1 of 3 steps, so nothing was scored" in said
    assert "run.resume=auto" in said
    assert not Path("runs/vit/scores/stopped-step-000002.json").exists()
    assert tune("name=stopped", "run.resume=auto") == 0
    assert "Resumes after step 1 of 3" in capsys.readouterr().out
    assert scores(name="stopped")["finetuned"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("labels=[colour]", "labels: the videos have no label 'colour' of one class a video, but digit"),
        ("labels=[]", "one or more labels"),
        ("objective.num_classes=10", "objective.num_classes: the videos decide it"),
        ("objective.type=bevt", "finetunes with the objective 'classification'"),
        ("objective.droput=0.5", "objective.droput: unknown key. Did you mean 'dropout'?"),
        ("objective.dropout=2.0", "dropout must be at least 0 and below 1"),
        ("objective.views=[slow, fast]", "train_views: gives 1 of 'clip'; the objective reads slow, fast"),
        ("backbone.depht=3", "backbone.depht: unknown key. Did you mean 'depth'?"),
        ("backbone.init=runs/vit", "backbone.init: is not for a protocol to set"),
        ("run.out=elsewhere", "run.out: is not for a protocol to set"),
        ("run.worker=2", "run.worker: unknown key. Did you mean 'workers'?"),
        ("train_views.size=30", "30"),
        ("batch_size=0", "batch_size: must be at least 1"),
        ("evaluator={type: knn}", "evaluator: unknown key"),
        ("schedule.epoch_of=image", "set 'epoch_of'"),
        ("frames=[reversed]", "must hold 'normal'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    word: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(capsys, "name=refused", word)
    assert not Path("runs/vit/finetune").exists() or not list(Path("runs/vit/finetune").glob("refused*"))


def test_a_protocol_is_checked_without_a_run() -> None:
    protocol = load_protocol("tune", ["optim.momentum=0.9"])
    assert isinstance(protocol, FinetuneProtocol)
    with pytest.raises(UsageError, match=r"optim.momentum: unknown key"):
        check_finetune_protocol(protocol)


def test_few_labels_are_drawn_again_and_again_and_each_draw_is_a_run() -> None:
    few = "few_labels={per_class: [1, 2], draws: 2}"
    assert tune("name=few", "labels=[speed]", few) == 0
    names = build.source(load_recipe("vit.yaml").data.streams["video"].source).label_classes["speed"]
    one, two = scores(name="few")["finetuned"]
    assert (one["setting"], two["setting"]) == ("1 a class", "2 a class")
    assert (one["num_train"], two["num_train"]) == (len(names), 2 * len(names))
    assert len(one["draws"]) == 2
    runs = Path("runs/vit/finetune")
    recipe = load_recipe(str(runs / "few-speed-2each-draw1/recipe.yaml"))
    assert recipe.data.streams["video"].subset == Subset(label="speed", per_class=2, draw=1)
    first, second = (
        build.streams(load_recipe(str(runs / name / "recipe.yaml")))["video"].source
        for name in ("few-speed-1each-draw0", "few-speed-1each-draw1")
    )
    labels = [first.labels(number)["speed"] for number in range(len(first))]
    assert sorted(labels) == list(range(len(names)))
    assert {first.key(n) for n in range(len(names))} != {second.key(n) for n in range(len(names))}
    source = build.source(recipe.data.streams["video"].source)
    every = {source.key(n): n for n in range(len(source))}
    for number in range(len(names)):
        assert torch.equal(first.read(number, [0]), source.read(every[first.key(number)], [0]))
        assert first.info(number).key == first.key(number)


def test_a_subset_of_an_unknown_label_is_refused(tmp_path: Path) -> None:
    recipe = Path("runs/vit/recipe.yaml").read_text()
    path = tmp_path / "x.yaml"
    path.write_text(
        recipe.replace("    batch_size:", "    subset: {label: colour, share: 0.5}\n    batch_size:", 1)
    )
    with pytest.raises(UsageError, match="no label 'colour', but"):
        build.streams(load_recipe(str(path)))


def test_a_stream_shows_the_classes_of_a_label_as_often_as_each_other(tmp_path: Path) -> None:
    recipe = Path("runs/vit/recipe.yaml").read_text()
    path = tmp_path / "x.yaml"
    path.write_text(recipe.replace("    batch_size:", "    balance: digit\n    batch_size:", 1))
    spec = load_recipe(str(path)).data.streams["video"]
    shown, all_once = build.streams(load_recipe(str(path)))["video"].source, build.source(spec.source)
    before = Counter(all_once.labels(number)["digit"] for number in range(len(all_once)))
    after = Counter(shown.labels(number)["digit"] for number in range(len(shown)))
    assert set(after.values()) == {max(before.values())}
    assert after.keys() == before.keys()
    assert {shown.key(n) for n in range(len(shown))} == {all_once.key(n) for n in range(len(all_once))}
