"""VIMPAC's objectives: the release's training step and trajectory, each task alone, other backbones."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from vimpac_reference import (
    VOCAB,
    Ids,
    difference,
    gradients,
    load,
    own_state,
    part,
    toy_backbone,
    toy_vimpac,
    two_clips,
)

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.config.grid import load_grid
from vidssl.config.recipe import load_recipe
from vidssl.engine.accumulate import split_batch
from vidssl.engine.optim import AdamW
from vidssl.engine.schedules import LinearDecay
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, Batch, Features, Objective, Progress, Tokenizer
from vidssl.maskers.bevt import Random3D
from vidssl.maskers.block_3d import Block3D
from vidssl.objectives.vimpac import VIMPAC, VIMPACContrast, VIMPACPredict

START = Progress(0, 1)
HEAD = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8}


class Brightness(Tokenizer):
    """Ids of 8x8 patches by their brightness."""

    vocab_size = 8
    strides = (1, 8, 8)

    def encode(self, clip: Tensor) -> Tensor:
        cells = torch.nn.functional.avg_pool3d(clip.mean(dim=1, keepdim=True), self.strides)[:, 0]
        return (cells * 7.99).long()

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


def reads_ids(**keys: object) -> Factorized:
    sizes = {"num_frames": 4, "height": 4, "width": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return Factorized(**{"vocab_size": 8, "dropout": 0.0, "init_std": 0.1, **sizes, **keys})


def clips(videos: int = 4, slots: int = 2) -> Batch:
    """Two noisy clips of each video, which differ in brightness and in the way it changes over the frame."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(videos, 3, 1, 4, 4, generator=generator).repeat_interleave(8, 3).repeat_interleave(8, 4)
    noisy = [
        (base + 0.05 * torch.randn(videos, 3, 4, 32, 32, generator=generator)).clamp(0, 1)
        for _ in range(slots)
    ]
    return Batch(views={"clip": tuple(noisy)})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def golden_step() -> tuple[VIMPAC, Batch, dict[str, Tensor]]:
    golden = load("pretrain_step")
    ids = golden["in/codes_two_clips"].transpose(0, 1).flatten(0, 1)
    objective = toy_vimpac(toy_backbone("model_T_HW"), part(golden, "state/"), golden["in/labels"] != -100)
    return objective.double(), two_clips(ids), golden


def test_a_training_step_matches_in_double_precision() -> None:
    objective, batch, golden = golden_step()
    output = objective(batch, START, generator())
    output.loss.backward()
    for ours, theirs in (
        (output.loss.detach(), "loss"),
        (output.metrics["loss_mask"], "mlm_loss"),
        (output.metrics["loss_contrast"], "nce_loss"),
    ):
        assert difference(ours[None], golden[f"out/{theirs}"]) < 1e-9
    found = gradients(objective)
    wanted = own_state(objective, part(golden, "grad/"))
    assert set(found) == set(wanted)
    for key, gradient in found.items():
        assert difference(gradient, wanted[key]) < 1e-9, key
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert difference(norm[None], golden["out/grad_norm"]) < 1e-9


def test_a_training_step_matches_in_single_precision() -> None:
    objective, batch, golden = golden_step()
    output = objective.float()(batch, START, generator())
    assert difference(output.loss.detach()[None], golden["out/loss"].float()) < 1e-4


# our "tables" spares the gains of the heads' norms
@pytest.mark.parametrize(
    ("decay", "tolerance"), [pytest.param("released", 5e-5, marks=pytest.mark.slow), ("tables", 2e-4)]
)
def test_eight_updates_match_with_pytorch_s_adamw(decay: str, tolerance: float) -> None:
    objective, batch, golden = golden_step()
    optim = AdamW(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0, decay="tables")
    optimizer, plan = optim.build(objective), LinearDecay(steps=10, warmup_steps=2).plan({"video": 1.0})
    if decay == "released":
        named = dict(objective.named_parameters())
        for group, decays in zip(optimizer.param_groups, (True, False), strict=True):
            group["params"] = [p for name, p in named.items() if decays_as_released(name) == decays]
    for step, row in enumerate(golden["trajectory_torch_adamw_lr_mlm_nce_gradnorm"]):
        optim.update.set_rates(optimizer, plan, step)
        output = objective(batch, START, generator())
        optimizer.zero_grad()
        output.loss.backward()
        norm = optim.update.clip_gradients(objective.parameters())
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(float(row[0]), abs=1e-12)
        assert float(output.metrics["loss_mask"]) == pytest.approx(float(row[1]), abs=tolerance)
        assert float(output.metrics["loss_contrast"]) == pytest.approx(float(row[2]), abs=tolerance)
        assert float(norm) == pytest.approx(float(row[3]), abs=10 * tolerance)


def decays_as_released(name: str) -> bool:
    """The release's choice by its own names, which spare neither its heads' gains nor tables."""
    if name.startswith("contrast.head.norms") or name == "prediction.head.norm.weight":
        return name.endswith("weight")
    return "norm" not in name and not name.endswith("bias")


class PublishedAdamW:
    """The release's rule: eps beside the uncorrected root, decay after the step."""

    def __init__(self, objective: VIMPAC) -> None:
        self.parameters = list(objective.named_parameters())
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for _, p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.steps += 1
        for (name, p), (mean, square) in zip(self.parameters, self.moments, strict=True):
            mean.lerp_(p.grad, 0.1)
            square.mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
            size = lr * (1 - 0.98**self.steps) ** 0.5 / (1 - 0.9**self.steps)
            p.addcdiv_(mean, square.sqrt() + 1e-8, value=-size)
            if decays_as_released(name):
                p.mul_(1 - lr * 0.05)


def test_eight_updates_match_to_the_ninth_decimal_with_the_release_s_adamw() -> None:
    objective, batch, golden = golden_step()
    optimizer = PublishedAdamW(objective)
    for lr, mask, contrast, norm in golden["trajectory_lr_mlm_nce_gradnorm"].tolist():
        objective.zero_grad()
        output = objective(batch, START, generator())
        output.loss.backward()
        assert float(output.metrics["loss_mask"]) == pytest.approx(mask, abs=1e-9)
        assert float(output.metrics["loss_contrast"]) == pytest.approx(contrast, abs=1e-9)
        found = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        assert float(found) == pytest.approx(norm, abs=1e-8)
        optimizer.step(lr)


@pytest.mark.slow
@pytest.mark.parametrize(("vocab_size", "lowest", "highest"), [(64, 0.0, 2e-4), (8192, 1e-3, 1e-2)])
def test_twenty_updates_differ_by_the_vocabulary(vocab_size: int, lowest: float, highest: float) -> None:
    """PyTorch's AdamW, norms spared, against the release's; docs/papers/vimpac.md quotes the differences."""
    torch.manual_seed(0)
    keys = {"embed_dim": 128, "depth": 2, "num_heads": 4, "num_frames": 4, "height": 8, "width": 8}
    net = Factorized(vocab_size=vocab_size, dropout=0.0, **keys)
    head = {"head_layers": 2, "head_hidden_dim": 64, "head_dim": 32}
    ours = VIMPAC(net, Ids(vocab_size), Block3D(num_blocks=3), **head)
    theirs = copy.deepcopy(ours)
    optim = AdamW(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, clip_norm=1.0, decay="tables")
    optimizer, plan = optim.build(ours), LinearDecay(steps=22, warmup_steps=2).plan({"video": 1.0})
    published, draws, differences = PublishedAdamW(theirs), generator(1), []
    for step in range(20):
        batch = two_clips(torch.randint(vocab_size, (8, 4, 8, 8), generator=draws))
        optim.update.set_rates(optimizer, plan, step)
        losses = []
        for objective in (ours, theirs):
            objective.zero_grad()
            loss = objective(batch, START, generator(step)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            losses.append(loss.item())
        optimizer.step()
        published.step(optimizer.param_groups[0]["lr"])
        differences.append(abs(losses[0] - losses[1]))
    assert lowest < max(differences) < highest


def objectives() -> dict[str, Callable[[], Objective]]:
    small = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": (2, 16, 16), "init_std": 0.1}
    swin = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": (2, 4, 4), "init_std": 0.1}
    mask, tokens = Block3D(num_blocks=3), Brightness()
    return {
        "ids": lambda: VIMPAC(reads_ids(), tokens, mask, **HEAD),
        "whole": lambda: VIMPAC(reads_ids(), tokens, mask, contrast_on="whole", **HEAD),
        "bert": lambda: VIMPAC(reads_ids(), tokens, mask, replace="bert", **HEAD),
        "pixels": lambda: VIMPAC(ViT(**small, class_token=True), tokens, mask, **HEAD),
        "pooled": lambda: VIMPAC(ViT(**small), tokens, mask, **HEAD),
        "stages": lambda: VIMPAC(VideoSwin(**swin), tokens, Random3D(ratio=0.3), **HEAD),
        "predict": lambda: VIMPACPredict(reads_ids(), tokens, mask),
        "predict_pixels": lambda: VIMPACPredict(ViT(**small, class_token=True), tokens, mask),
        "contrast": lambda: VIMPACContrast(reads_ids(), tokens, mask, **HEAD),
        "contrast_whole": lambda: VIMPACContrast(reads_ids(), tokens, **HEAD),
        "contrast_pixels": lambda: VIMPACContrast(ViT(**small), **HEAD),
    }  # fmt: skip


NAMES = list(objectives())


def made(name: str) -> Objective:
    torch.manual_seed(0)
    return objectives()[name]()


LIKE_OTHERS = ("bert", "contrast_pixels", "contrast_whole", "pooled", "predict_pixels", "whole")


# gradients of all are followed in the next test; steps of one of each kind of network, and of each task
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_OTHERS)) for name in NAMES]
)
def test_a_dozen_steps_on_one_batch_lower_every_loss(name: str) -> None:
    objective = made(name)
    optimizer, batch, draws = torch.optim.AdamW(objective.parameters(), lr=1e-2), clips(), generator()
    history = []
    for _ in range(12):
        output = objective(batch, START, draws)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({key: float(x) for key, x in output.metrics.items() if key.endswith("_of_chance")})
    for key in history[0]:
        assert sum(each[key] for each in history[-4:]) / 4 < 0.9 * history[0][key], key
    assert all(math.isfinite(x) for each in history for x in each.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_that_should_learn(name: str) -> None:
    objective = made(name)
    objective(clips(), START, generator()).loss.backward()
    still = {key for key, p in objective.named_parameters() if p.grad is None or not p.grad.any()}
    # clips never pass through what serves images, and in whole clips nothing is masked
    unused = {key for key in still if "embed_image" in key}
    if name == "contrast_pixels":
        unused.add("backbone.mask_token")
    assert still <= unused
    assert not [key for key, _ in objective.named_parameters() if "tokenizer" in key]


def test_the_loss_is_the_sum_of_both_tasks_with_alpha() -> None:
    torch.manual_seed(0)
    objective = VIMPAC(reads_ids(), Brightness(), Block3D(), contrastive_weight=0.5, temperature=0.3, **HEAD)
    output = objective(clips(), START, generator())
    metrics = output.metrics
    wanted = metrics["loss_mask"] + 0.5 * metrics["loss_contrast"]
    assert float(output.loss.detach()) == pytest.approx(float(wanted))
    nats = metrics["loss_contrast_of_chance"] * math.log(7)
    assert float(metrics["loss_contrast"]) == pytest.approx(2 * 0.3 * float(nats))


class Watched(Backbone):
    """Notes what it is given."""

    input_kind = "tokens"
    vocab_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.strides = 6, (1, 1, 1)
        self.table = torch.nn.Embedding(9, 6)
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        self.seen.append((x, mask))
        return Features(self.table(x if mask is None else torch.where(mask, 8, x)))


def test_both_tasks_share_one_masked_pass_and_each_clip_has_its_own_mask() -> None:
    net = Watched()
    VIMPAC(net, Brightness(), Block3D(), **HEAD)(clips(3), START, generator())
    ((ids, mask),) = net.seen
    first, second = clips(3).views["clip"]
    assert torch.equal(ids, torch.cat((Brightness().encode(first), Brightness().encode(second))))
    assert mask is not None
    assert len(mask.flatten(1).unique(dim=0)) == 6


def test_contrast_on_whole_clips_takes_a_second_pass_without_a_mask() -> None:
    net = Watched()
    VIMPAC(net, Brightness(), Block3D(), contrast_on="whole", **HEAD)(clips(3), START, generator())
    (masked, mask), (whole, nothing) = net.seen
    assert torch.equal(masked, whole)
    assert mask is not None
    assert nothing is None


def test_bert_s_replacements_reach_the_backbone_and_all_hidden_ids_are_predicted() -> None:
    net, masker = Watched(), Block3D(num_blocks=2)
    objective = VIMPACPredict(net, Brightness(), masker, replace="bert")
    masked = objective.prediction.encode_masked(torch.cat(clips(40).views["clip"]), generator())
    groups = masker.groups(80, (4, 4, 4), generator())
    ((ids, mask),) = net.seen
    assert torch.equal(masked.hidden, groups >= 0)
    assert mask is not None
    assert 0.6 < mask.sum() / masked.hidden.sum() < 0.95
    assert (ids != masked.ids).any()
    assert torch.equal(ids[~masked.hidden], masked.ids[~masked.hidden])
    assert not (mask & ~masked.hidden).any()


def test_padding_is_neither_hidden_nor_predicted() -> None:
    ids = torch.randint(0, VOCAB, (8, 4, 8, 8), generator=generator())
    ids[:, 2:] = VOCAB + 1
    objective = VIMPACPredict(toy_backbone("model_T_HW"), Ids(), Random3D(ratio=0.9))
    masked = objective.prediction.encode_masked(ids, generator())
    assert masked.hidden[:, :2].any()
    assert not masked.hidden[:, 2:].any()
    with pytest.raises(ValueError, match="no id is hidden in the whole batch"):
        objective(two_clips(torch.full_like(ids, VOCAB + 1)), START, generator())


def test_prediction_alone_reads_as_many_clips_as_there_are() -> None:
    net = Watched()
    VIMPACPredict(net, Brightness(), Block3D())(clips(3, slots=1), START, generator())
    assert len(net.seen[0][0]) == 3


@pytest.mark.parametrize("name", ["ids", "predict", "contrast"])
@torch.no_grad()
def test_held_out_metrics_are_put_into_words(name: str) -> None:
    objective = made(name).eval()
    metrics = {key: float(x) for key, x in objective(clips(), START, generator()).metrics.items()}
    said = objective.describe(metrics)
    if name != "contrast":
        assert 0 < metrics["most_frequent_mask"] < 1
        assert 0 < metrics["copy_nearest_mask"] < 1
        assert f"{100 * metrics['accuracy_mask']:.1f} % of the hidden ids are predicted right" in said
    if name != "predict":
        assert "the nearest is the other clip of its video" in said
        assert "chance (14.3 %)" in said  # one of 7


def test_what_cannot_work_is_refused() -> None:
    tokens, masker, vit = Brightness(), Block3D(), ViT(embed_dim=12, depth=1, num_heads=2)
    for keys, said in (
        ({"contrastive_weight": 0.0}, "there is the objective vimpac_predict"),
        ({"contrast_on": "half"}, "contrast_on must be"),
        ({"replace": "noise"}, "replace must be"),
    ):
        with pytest.raises(ValueError, match=said):
            VIMPAC(reads_ids(), tokens, masker, **keys)
    with pytest.raises(ValueError, match="and ViT reads pixels: set replace to 'mask'"):
        VIMPACPredict(vit, tokens, masker, replace="bert")
    with pytest.raises(ValueError, match="ViT reads pixels, no tokenizer's ids"):
        VIMPACContrast(vit, tokens)
    with pytest.raises(ValueError, match="nothing makes them: give a tokenizer"):
        VIMPACContrast(reads_ids())
    with pytest.raises(ValueError, match="ViT reads pixels, and the clips are given as ids"):
        VIMPACPredict(vit, tokens, masker)(two_clips(torch.zeros(4, 4, 4, 4).long()), START, generator())
    with pytest.raises(ValueError, match="between 2 clips of a video, and the views give 3"):
        VIMPAC(reads_ids(), tokens, masker, **HEAD)(clips(slots=3), START, generator())
    short, long = torch.rand(2, 3, 2, 32, 32), torch.rand(2, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="clips of one shape are needed"):
        VIMPACPredict(reads_ids(), tokens, masker)(Batch(views={"clip": (short, long)}), START, generator())


@pytest.mark.parametrize("name", ["both", "contrast"])
def test_parts_of_a_batch_are_batches_of_their_own_where_that_is_asked_for(name: str) -> None:
    def made(**keys: object) -> Objective:
        if name == "contrast":
            return VIMPACContrast(reads_ids(), Brightness(), **HEAD, **keys)
        return VIMPAC(reads_ids(), Brightness(), Block3D(num_blocks=2), **HEAD, **keys)

    assert not made().splits_batch
    assert not made(negatives=3).splits_batch  # all videos of a batch are negatives: test_grad_cache.py
    objective = made(negatives=3, negatives_from="part")
    assert objective.splits_batch
    for part_of in split_batch(clips(videos=8), 2):
        assert objective(part_of, START, generator()).metrics["negatives"] == 3
    with pytest.raises(UsageError, match=r"over run\.accumulate\) give 7: make them 4"):
        objective(clips(videos=8), START, generator())
    with pytest.raises(UsageError, match=r"\(a step's batch\) give 7: make them 4"):
        made(negatives=3)(clips(videos=8), START, generator())


def test_recipes_state_the_negatives_that_their_batches_give() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    grids = folder / "grids"
    recipes = {
        path.stem: load_recipe(str(path))
        for path in sorted(folder.rglob("*.yaml"))
        if grids not in path.parents and "negatives" in path.read_text()
    }
    for path in sorted(grids.rglob("*.yaml")):
        if "vimpac" not in path.read_text():
            continue
        name = path.relative_to(grids).with_suffix("").as_posix()
        recipes |= {f"{name}/{cell.name}": cell.recipe() for cell in load_grid(str(path)).cells}
    stated = {}
    for path, recipe in recipes.items():
        keys = {key: node.value for key, node in recipe.objective.node.mapping().items()}
        if "negatives" in keys:
            parts = recipe.run.accumulate if keys.get("negatives_from") == "part" else 1
            assert keys["negatives"] == recipe.data.streams["video"].batch_size // parts - 1, path
            stated[path] = keys["negatives"]
    assert len(stated) == 63
    for count in (255, 511, 1023):  # Table 11
        assert stated[f"paper/vimpac_clips/negatives_{count}"] == count
