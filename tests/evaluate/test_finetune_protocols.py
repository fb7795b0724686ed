"""The papers' finetuning protocols on the papers' networks, built without weights, data or a GPU."""

import functools
import operator
from pathlib import Path

import pytest
import torch
import yaml

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.protocol import FinetuneProtocol, load_protocol
from vidssl.config.recipe import Recipe, load_recipe, recipe_from_text
from vidssl.config.strict_yaml import plain
from vidssl.data.views.times import kept_frames, vimpac_last_start
from vidssl.data.views.uniform import UniformClips
from vidssl.data.views.vimpac import CornerClip
from vidssl.errors import UsageError
from vidssl.evaluate.finetune import _other_clips, _scores, finetuning_recipe
from vidssl.evaluate.subject import spec_of
from vidssl.evaluators.features import FeatureTable
from vidssl.interfaces import SampleInfo
from vidssl.objectives.classification import Classification

VIDEOS = ("data.train={type: video_folder, root: a}", "data.test={type: video_folder, root: b}")
RECIPE = """
name: pretraining
seed: 3
objective: {{type: bevt_video}}
backbone: {backbone}
tokenizer:
  {{type: vqvae, vocab_size: 8192, stride: 8, width: 8, code_dim: 4, weights: here, sha256: "0",
   source: here, licence: here}}
masker: {{type: tube}}
data:
  video:
    source: {{type: video_folder, root: a}}
    views: {{type: single_clip}}
    batch_size: 4
  max_unreadable_share: 0.05
optim: {{type: adamw, lr: 1e-3}}
schedule: {{type: cosine, epochs: 1}}
run: {{precision: bf16, workers: 6, checkpoint_every_steps: 7, out: elsewhere}}
"""
NETWORKS = {  # narrow, but as many layers where rates are counted by layer
    "bevt": "{type: video_swin, embed_dim: 8, depths: [2, 2, 18, 2], num_heads: [1, 1, 1, 1]}",
    "svt": "{type: timesformer, embed_dim: 24, depth: 1, num_heads: 2}",
    "vimpac": "{type: factorized, embed_dim: 16, depth: 1, num_heads: 4, vocab_size: 8192, num_frames: 5, "
    "height: 16, width: 16}",
    "videomae": "{type: vit, embed_dim: 24, depth: 12, num_heads: 2}",
}
ROOT = Path(__file__).parents[2]
LAPTOP = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
NAMES = sorted(
    path.stem for paper in NETWORKS for path in (ROOT / "evaluation").glob(f"{paper}_finetune*.yaml")
)


def pretraining(protocol: str) -> Recipe:
    text = RECIPE.format(backbone=NETWORKS[protocol.partition("_")[0]])
    return recipe_from_text(text, "pretraining.yaml")


def finetuning(name: str, *overrides: str) -> Recipe:
    recipe = pretraining(name)
    protocol = load_protocol(name, [*VIDEOS, *overrides], recipe)
    assert isinstance(protocol, FinetuneProtocol)
    return finetuning_recipe(
        spec_of(recipe), protocol, init="runs/x", label="action", num_classes=174, out=Path("runs/x/finetune")
    )


def test_there_is_a_protocol_for_each_data_set_of_the_papers() -> None:
    sets = {"bevt": 3, "svt": 1, "vimpac": 5, "videomae": 2}
    found = [name.partition("_")[0] for name in NAMES]
    assert {paper: found.count(paper) for paper in sets} == sets


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_finetunes_its_paper_s_network(name: str) -> None:
    recipe = finetuning(name)
    build.check(recipe)
    assert recipe.start.init == "runs/x"
    assert (recipe.tokenizer is not None) == name.startswith("vimpac")
    assert recipe.masker is None


@pytest.mark.parametrize("laptop", ["finetune", "few_labels_finetune"])
@pytest.mark.parametrize("name", LAPTOP)
def test_the_laptop_s_protocols_fit_every_recipe_that_runs_there(name: str, laptop: str) -> None:
    recipe = load_recipe(name)
    if recipe.backbone is None:
        pytest.skip("trains a tokenizer")
    protocol = load_protocol(laptop, (), recipe)
    assert isinstance(protocol, FinetuneProtocol)
    keys = {"init": None, "label": "digit", "num_classes": 10, "out": Path("x")}
    build.check(finetuning_recipe(spec_of(recipe), protocol, **keys))


def test_what_a_finetuning_run_takes_over_from_the_pretraining() -> None:
    recipe = finetuning("svt_finetune", "run.workers=2", "seed=9")
    assert (recipe.seed, recipe.run.precision, recipe.run.workers) == (9, "bf16", 2)
    assert (recipe.run.out, recipe.run.checkpoint_every_steps) == ("runs/x/finetune", 2000)
    assert recipe.data.max_unreadable_share == 0.05
    assert finetuning("svt_finetune").seed == 3


def test_unequal_classes_are_balanced_by_the_loss_or_by_what_an_epoch_shows() -> None:
    recipe = pretraining("svt_finetune")
    keys = {"init": "runs/x", "label": "action", "num_classes": 2, "out": Path("x")}
    numbers = torch.tensor([0, 0, 0, 1, -1])
    found = {}
    for balance in ("none", "loss", "sampling"):
        protocol = load_protocol("svt_finetune", [*VIDEOS, f"balance={balance}"], recipe)
        assert isinstance(protocol, FinetuneProtocol)
        made = finetuning_recipe(spec_of(recipe), protocol, **keys, numbers=numbers)
        weights = made.objective.node.mapping().get("class_weights")
        found[balance] = None if weights is None else plain(weights), made.data.streams["video"].balance
    weights = (round(4 / (2 * 3), 6), 2.0)
    assert found == {"none": (None, None), "loss": (weights, None), "sampling": (None, "action")}


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("bevt_finetune_k400", {"embed_clip.proj.weight": 0.9**28, "norm.weight": 0.9}),
        ("bevt_finetune_ssv2", {"embed_clip.proj.weight": 0.1, "norm.weight": 0.1}),
        ("videomae_finetune_k400", {"embed_clip.proj.weight": 0.75**13, "norm.weight": 0.75}),
    ],
)
def test_the_rates_of_layers_are_the_published_ones(name: str, scales: dict[str, float]) -> None:
    recipe = finetuning(name)
    with torch.device("meta"):
        objective = build.objective(recipe, with_init=False)
    groups = build.optim(recipe).build(objective).param_groups
    found = {name: group["lr_scale"] for group in groups for name in group["names"]}
    for key, scale in scales.items():
        assert found[f"classifier.backbone.{key}"] == pytest.approx(scale)
    assert found["classifier.head.weight"] == 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("vimpac")])
def test_vimpac_draws_starts_from_16_frames_a_second(name: str) -> None:
    """A video of 7.2 s, UCF101's mean, has 43 starts there at 2 frames a second; a grid of 2 has 5."""
    recipe = finetuning(name)
    protocol = load_protocol(name, VIDEOS, pretraining(name))
    assert protocol.data is not None
    train, test = build.views(recipe.data.streams["video"].views), build.views(protocol.data.views)
    assert isinstance(train, CornerClip)
    assert isinstance(test, UniformClips)
    for views in (train, test):
        kept = kept_frames(SampleInfo("", 180, 25.0, {}), views.fps)
        gap = kept[views.frame_stride] - kept[0]
        starts = 1 + vimpac_last_start(len(kept), views.num_frames, views.frame_stride)
        assert (starts, gap) == {8: (43, 13), 4: (79, 6)}[views.frame_stride]
    assert (train.frame_stride == 8) == (name.rpartition("_")[2] in ("ucf101", "k400"))
    assert (1 + vimpac_last_start(len(kept_frames(SampleInfo("", 180, 25.0, {}), 2.0)), 10, 1)) == 5


def test_svt_decays_every_parameter_as_timesformers_training_does() -> None:
    recipe = finetuning("svt_finetune")
    with torch.device("meta"):
        objective = build.objective(recipe, with_init=False)
    groups = build.optim(recipe).build(objective).param_groups
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert {name for group in groups for name in group["names"]} == dict(objective.named_parameters()).keys()


def test_test_views_are_averaged_as_the_protocol_says() -> None:
    """Two views of one video: the sum of raw scores names class 0, the sum of probabilities class 1."""
    network = build.objective(finetuning("svt_finetune", "objective.views=[slow]"), with_init=False)
    assert isinstance(network, Classification)
    torch.nn.init.zeros_(network.classifier.head.weight)
    network.classifier.head.weight.data[0, 0] = 1.0
    network.classifier.head.weight.data[1, 1] = 1.0
    vectors = torch.zeros(1, 3, 24)
    vectors[0, 0, 0], vectors[0, 1:, 1] = 100.0, 20.0
    test = FeatureTable(
        vectors=vectors,
        labels={"action": torch.tensor([0])},
        classes={"action": tuple(str(number) for number in range(174))},
        keys=("a",),
        num_listed=1,
        unreadable=(),
    )
    learned = torch.tensor([0, 1])
    right = {
        name: _scores(network, test, load_protocol(name, VIDEOS).average, learned, "action")[0].top1
        for name in ("svt_finetune", "bevt_finetune_ssv2")
    }
    assert right == {"svt_finetune": 1.0, "bevt_finetune_ssv2": 0.0}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # imgaug's RandAugment mirrors half of the clips; OpenCV's INTER_LINEAR
        ("bevt_finetune_ssv2", {"augment.flip": 0.5, "views.interpolation": "bilinear", "batch_size": 64}),
        ("bevt_finetune_diving48", {"augment.flip": 0.5, "views.interpolation": "bilinear"}),
        ("bevt_finetune_k400", {"augment.flip": 0.5, "views.interpolation": "bilinear"}),
        ("svt_finetune", {"views.interpolation": "bilinear", "optim.nesterov": True}),
        # 64 GPUs x 6 videos, 5e-4 for 256 of them; twice the clips for twice the epochs
        ("videomae_finetune_k400", {"optim.lr": 5e-4 * 384 / 256, "batch_size": 768, "schedule.epochs": 150}),
        ("videomae_finetune_ssv2", {"optim.lr": 5e-4 * 384 / 256, "batch_size": 768, "schedule.epochs": 60}),
    ],
)
def test_settings_are_those_of_the_published_code(name: str, published: dict[str, object]) -> None:
    recipe = yaml.safe_load(resolved_text(finetuning(name)))
    recipe |= recipe["data"]["video"]
    found = {key: functools.reduce(operator.getitem, key.split("."), recipe) for key in published}
    assert found == pytest.approx(published)


def test_clips_that_are_learned_from_are_as_those_tested_on_or_it_is_told() -> None:
    views = "data.views={type: uniform_clips, num_frames: 8, frame_stride: 4, size: 64}"
    protocol = load_protocol("finetune", [*VIDEOS, views])
    assert isinstance(protocol, FinetuneProtocol)
    (line,) = _other_clips(protocol)
    assert line.endswith("as those tested on: num_frames 8, frame_stride 4, size 64")
    assert "frame_stride: 4" in resolved_text(protocol).partition("train_views")[2].partition("}")[0]
    other = load_protocol("finetune", [*VIDEOS, views, "train_views.frame_stride=1", "train_views.size=48"])
    assert isinstance(other, FinetuneProtocol)
    (line,) = _other_clips(other)
    assert "frame_stride 1 and 4, size 48 and 64" in line
    assert "'train_views.frame_stride=4 train_views.size=64' makes them alike" in line
    with pytest.raises(UsageError, match="the test views name no 'num_frames' to take"):
        load_protocol("finetune", [*VIDEOS, "data.views={type: slow_fast_clips}"])
