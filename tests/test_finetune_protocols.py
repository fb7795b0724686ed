"""The papers' finetuning protocols on the papers' networks, built without weights, data or a GPU."""

from pathlib import Path

import pytest
import torch

from vidssl import build
from vidssl.finetune import finetuning_recipe
from vidssl.finetune_protocol import FinetuneProtocol, load_any_protocol
from vidssl.recipe import Recipe, load_recipe, recipe_from_text
from vidssl.scoring.subject import spec_of

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
ROOT = Path(__file__).parent.parent
LAPTOP = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
NAMES = sorted(
    path.stem for paper in NETWORKS for path in (ROOT / "evaluation").glob(f"{paper}_finetune*.yaml")
)


def pretraining(protocol: str) -> Recipe:
    text = RECIPE.format(backbone=NETWORKS[protocol.partition("_")[0]])
    return recipe_from_text(text, "pretraining.yaml")


def finetuning(name: str, *overrides: str) -> Recipe:
    recipe = pretraining(name)
    protocol = load_any_protocol(name, [*VIDEOS, *overrides], recipe)
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
    assert recipe.init == "runs/x"
    assert (recipe.tokenizer is not None) == name.startswith("vimpac")
    assert recipe.masker is None


@pytest.mark.parametrize("laptop", ["finetune", "few_labels_finetune"])
@pytest.mark.parametrize("name", LAPTOP)
def test_the_laptop_s_protocols_fit_every_recipe_that_runs_there(name: str, laptop: str) -> None:
    recipe = load_recipe(name)
    if recipe.backbone is None:
        pytest.skip("trains a tokenizer")
    protocol = load_any_protocol(laptop, (), recipe)
    assert isinstance(protocol, FinetuneProtocol)
    keys = {"init": None, "label": "digit", "num_classes": 10, "out": Path("x")}
    build.check(finetuning_recipe(spec_of(recipe), protocol, **keys))


def test_what_a_finetuning_run_takes_over_from_the_pretraining() -> None:
    recipe = finetuning("svt_finetune", "run.workers=2", "seed=9")
    assert (recipe.seed, recipe.run.precision, recipe.run.workers) == (9, "bf16", 2)
    assert (recipe.run.out, recipe.run.checkpoint_every_steps) == ("runs/x/finetune", 2000)
    assert recipe.data.max_unreadable_share == 0.05
    assert finetuning("svt_finetune").seed == 3


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
