"""Optimizers: groups against the papers' released code, clipping, decay that moves, and one step of each."""

import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vidssl.backbones import BACKBONES
from vidssl.backbones.factorized import Factorized
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.config.recipe import load_recipe
from vidssl.engine.optim import SGD, AdamW, decayed_names, layer_numbers, parameter_groups
from vidssl.engine.schedules import Cosine, LinearDecay
from vidssl.interfaces import LossOutput, Objective
from vidssl.weights.swin import published_key

GOLDEN = Path(__file__).parents[1] / "golden"
SWIN_B = json.loads((GOLDEN / "bevt" / "param_groups_swin_b.json").read_text())
VIMPAC = json.loads((GOLDEN / "vimpac" / "param_groups.json").read_text())


class Finetuned(Objective):
    """A backbone with a linear head, never run."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self, backbone: nn.Module, dim: int = 4) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(dim, 3)

    def forward(self, batch, progress, generator):
        loss = self.head.weight.sum()
        return LossOutput(loss, {})

    def encoder(self):
        return self.backbone


@pytest.mark.parametrize("lr", [0.0, -1.0, 1e38, math.nan, math.inf])
def test_rates_that_no_step_can_be_taken_at_are_refused(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be above 0 and"):
        AdamW(lr=lr)


def scales(objective, **keys) -> dict[str, float]:
    groups = parameter_groups(objective, **keys)
    return {name: group["lr_scale"] for group in groups for name in group["names"]}


@pytest.fixture(scope="module")
def swin_b() -> Objective:
    with torch.device("meta"):
        return Finetuned(VideoSwin(variant="base"), 1024)


def released(column: str) -> dict[str, tuple[float, float]]:
    """Our names of Swin-B's backbone -> (share of the rate, weight decay) in the released config."""
    return {name: (row[0], row[1]) for name, row in SWIN_B[column].items()}


def test_layer_decay_gives_swin_b_the_29_levels_of_bevt(swin_b):
    golden = released("finetune_k400")
    found = scales(swin_b, layer_decay=0.9)
    compared = 0
    for name, scale in found.items():
        if not name.startswith("backbone."):
            assert scale == 1.0
            continue
        key = published_key(name.removeprefix("backbone."))
        if key.endswith("relative_position_bias_table"):  # theirs: the full rate, since the longest key wins
            block = name.replace("attn.bias_table", "attn.qkv.weight")
            assert scale == found[block] < 1.0
        elif f"backbone.{key}" in golden:
            assert scale == pytest.approx(golden[f"backbone.{key}"][0], rel=1e-8), name
            compared += 1
    assert compared == 303
    assert len(set(found.values())) == 29
    assert found["backbone.embed_clip.proj.weight"] == pytest.approx(0.9**28)


def test_encoder_lr_scale_is_that_of_bevt_on_something_something(swin_b):
    golden = released("finetune_ssv2")
    for name, scale in scales(swin_b, encoder_lr_scale=0.1).items():
        if name.startswith("backbone.") and "bias_table" not in name:
            key = f"backbone.{published_key(name.removeprefix('backbone.'))}"
            assert scale == golden.get(key, (0.1, 0))[0]
    assert scales(swin_b, encoder_lr_scale=0.1, layer_decay=0.5)["backbone.norm.weight"] == 0.05


def test_decay_of_biases_is_that_of_bevts_pretraining(swin_b):
    golden = {name.removeprefix("backbone."): decay > 0 for name, (_, decay) in released("pretrain").items()}
    rule = build.optim(load_recipe("recipes/paper/bevt.yaml")).update.decay
    decayed = decayed_names(swin_b.backbone, rule)
    names = {name: published_key(name) for name, _ in swin_b.backbone.named_parameters()}
    assert {name: key in golden for name, key in names.items() if key not in golden} == {}
    assert {name for name, key in names.items() if golden[key]} == decayed
    assert "mask_token" in decayed


def test_by_default_swin_b_decays_what_the_paper_says(swin_b):
    decayed = decayed_names(swin_b)
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert len(decayed) == 2 + 24 * 4 + 3 + 1  # two embeddings, four layers a block, three merges, the head


class Tree(nn.Module):
    """Modules that carry given names, each of the kind that its name says."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            *path, leaf = name.split(".")
            module: nn.Module = self
            for count, part in enumerate(path):
                inside = sum(other.startswith(".".join([*path[: count + 1], leaf])) for other in names)
                if part not in module._modules:
                    module.add_module(part, self._made(part, leaf, count == len(path) - 1 and inside > 0))
                module = module.get_submodule(part)
            if leaf not in module._parameters:
                module.register_parameter(leaf, nn.Parameter(torch.zeros(1)))

    @staticmethod
    def _made(part: str, leaf: str, last: bool) -> nn.Module:
        if not last or leaf not in ("weight", "bias"):
            return nn.Module()
        if "norm" in part.lower() or part.startswith("ln"):
            return nn.LayerNorm(1)
        if part.startswith("bn"):
            return nn.BatchNorm1d(1)
        return nn.Embedding(1, 1) if part == "embedding" else nn.Linear(1, 1)


@pytest.mark.parametrize("stage", ["pretrain_2_layer_head", "finetune"])
def test_decay_of_tables_is_that_of_vimpac_but_for_norms_that_its_names_miss(stage):
    golden = VIMPAC[stage]
    names = [*golden["weight_decay"], *golden["no_weight_decay"]]
    tree = Tree([name for name in names if not name.startswith("mlm_head.transform.2")])
    found = decayed_names(tree, "tables") & set(names)
    missed = {"mlm_head.transform.2.weight", "cls_head.mlp.bn_0.weight"}
    assert found == set(golden["weight_decay"]) - missed
    assert "backbone.cls_param" in found
    assert "backbone.positional_embedding.height_pos_embedding" in found


def test_decay_of_tables_is_that_of_svt():
    golden = json.loads((GOLDEN / "svt" / "train_steps.json").read_text())["parameter_groups"]
    net = TimeSformer(embed_dim=24, depth=1, num_heads=3, patch_size=4, size=16, num_frames=4)
    theirs = {key.removeprefix("backbone.") for key in golden["regularised"] if key.startswith("backbone.")}
    spared = [key for key in golden["not_regularised"] if key.startswith("backbone.")]
    assert decayed_names(net, "tables") - {"mask_token"} == theirs  # SVT has no mask token
    assert len(list(net.parameters())) == len(theirs) + 1 + len(spared)
    assert decayed_names(net, "layers") == {name for name in theirs if name.endswith(".weight")}


def test_each_rule_decays_what_it_says():
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 1, 1),
            "norm": nn.LayerNorm(2),
            "codes": nn.Embedding(3, 2),
            "attention": nn.MultiheadAttention(2, 1),
            "last": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        }
    )
    layers = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    layers |= {"last.parametrizations.weight.original1"}
    assert decayed_names(net, "layers") == layers
    tables = layers | {"codes.weight", "last.parametrizations.weight.original0"}
    assert decayed_names(net, "tables") == tables
    biases = {"conv.bias", "attention.in_proj_bias", "attention.out_proj.bias", "last.bias"}
    assert decayed_names(net, "biases") == tables | biases
    assert decayed_names(net, "all") == dict(net.named_parameters()).keys()
    assert decayed_names(nn.Linear(2, 2)) == {"weight"}


SMALL = {
    "video_swin": lambda: VideoSwin(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window=(2, 2, 2)),
    "vit": lambda: ViT(embed_dim=12, depth=3, num_heads=2, class_token=True),
    "timesformer": lambda: TimeSformer(
        embed_dim=12, depth=3, num_heads=2, patch_size=8, size=16, num_frames=2
    ),
    "factorized": lambda: Factorized(
        vocab_size=8, embed_dim=8, depth=3, num_heads=2, num_frames=2, height=4, width=4
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_lies_in_a_layer_and_every_layer_has_some(name):
    net = SMALL[name]()
    assert isinstance(net, BACKBONES[name])
    names = [name for name, _ in net.named_parameters()]
    numbers = layer_numbers(names, net.layer_names())
    assert set(numbers) == set(range(len(net.layer_names())))
    by_name = dict(zip(names, numbers, strict=True))
    assert {by_name[name] for name in names if "token" in name or "embed" in name} == {0}
    last = {number for name, number in by_name.items() if name.startswith(("norm", "last_norm"))}
    assert last <= {max(numbers)}


def test_layer_decay_is_refused_where_layers_are_not_known():
    with pytest.raises(ValueError, match=r"Linear does not name them \(Backbone.layer_names\)"):
        parameter_groups(Finetuned(nn.Linear(2, 4)), layer_decay=0.9)
    with pytest.raises(ValueError, match="ask for an objective"):
        parameter_groups(nn.Linear(2, 4), encoder_lr_scale=0.1)
    frozen = Finetuned(nn.Linear(2, 4).requires_grad_(False))
    with pytest.raises(ValueError, match="nothing of it is trained"):
        parameter_groups(frozen, encoder_lr_scale=0.1)
    with pytest.raises(ValueError, match=r"no layer for its parameter 'b\.weight'"):
        layer_numbers(["a.weight", "b.weight"], (("a",),))


def test_rates_and_decay_of_a_step_reach_every_group():
    net = Finetuned(SMALL["vit"](), 12)
    optim = AdamW(lr=0.1, weight_decay=0.2, final_weight_decay=0.4, layer_decay=0.5)
    optimizer = optim.build(net)
    plan = LinearDecay(steps=10).plan({"video": 1.0})
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.2}
    optim.update.set_rates(optimizer, plan, 5)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.1 * 0.5 * group["lr_scale"])
        assert group["weight_decay"] == pytest.approx(0.3 if group["decays"] else 0.0)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 5  # embeddings, 3 blocks, head
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


def gradients(*values: list[float]) -> list[nn.Parameter]:
    made = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(len(value)))
        parameter.grad = torch.tensor(value)
        made.append(parameter)
    return made


def grads(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def test_clipping_of_all_scales_the_whole_gradient():
    parameters = [*gradients([3.0, 0.0], [0.0, 4.0]), nn.Parameter(torch.zeros(2))]
    norm = AdamW(lr=1, clip_norm=1.0).update.clip_gradients(parameters)
    assert float(norm) == pytest.approx(5.0)
    assert torch.cat(grads(parameters)).tolist() == pytest.approx([0.6, 0, 0, 0.8], rel=1e-5)
    assert parameters[-1].grad is None


def test_clipping_of_each_scales_every_parameter_by_itself():
    parameters = gradients([3.0, 4.0], [0.3, 0.4], [0.0, 0.0])
    norm = AdamW(lr=1, clip_norm=1.0, clip="each").update.clip_gradients(parameters)
    assert float(norm) == pytest.approx(math.hypot(5.0, 0.5))
    clipped = grads(parameters)
    assert clipped[0].tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert clipped[1].tolist() == pytest.approx([0.3, 0.4])
    assert clipped[2].tolist() == [0, 0]


def test_without_a_limit_the_gradient_is_measured_and_left():
    parameters = gradients([3.0, 4.0])
    for clip in ("all", "each"):
        assert float(AdamW(lr=1, clip=clip).update.clip_gradients(parameters)) == pytest.approx(5.0)
    assert grads(parameters)[0].tolist() == [3.0, 4.0]
    assert float(AdamW(lr=1, clip_norm=1.0, clip="each").update.clip_gradients([])) == 0.0


def test_adamw_takes_the_steps_of_the_golden_file():
    golden = load_file(GOLDEN / "vimpac" / "adamw_steps.safetensors")
    net = nn.Linear(7, 5, bias=False)
    net.weight.data = golden["start"].clone()
    optim = AdamW(lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05)
    optimizer = optim.build(net)
    plan = LinearDecay(steps=6, final=1.0).plan({"video": 1.0})
    assert optimizer.param_groups[0]["fused"], "one kernel, on a CPU too"
    for step, gradient in enumerate(golden["grads"]):
        net.weight.grad = gradient.clone()
        optim.update.set_rates(optimizer, plan, step)
        optimizer.step()
        expected = golden["torch_adamw/params_after_each_step"][step]
        torch.testing.assert_close(net.weight.data, expected, rtol=0, atol=1e-8)
    # VIMPAC's AdamW adds eps before the bias correction and decays after the step
    official = golden["official/params_after_each_step"][-1]
    assert 0 < float((net.weight.data - official).abs().max()) < 1e-6


@pytest.mark.parametrize("optim", [AdamW(lr=0.1, weight_decay=0.0), SGD(lr=0.1)])
def test_a_parameter_with_gaps_in_memory_is_stepped_and_what_lies_between_is_left(optim):
    whole, net = torch.zeros(3, 4), nn.Linear(2, 3, bias=False)
    net.weight = nn.Parameter(whole[:, :2])
    optimizer = optim.build(net)
    for _ in range(2):
        optimizer.zero_grad()
        net.weight.sum().backward()
        optimizer.step()
    assert (whole[:, :2] < -0.1).all()
    assert not whole[:, 2:].any()


def test_sgd_takes_the_steps_of_its_definition():
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[1.0, -2.0]])
    optim = SGD(lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    optimizer = optim.build(net)
    plan = Cosine(steps=3).plan({"video": 1.0})
    weight, speed = net.weight.data.clone(), torch.zeros(1, 2)
    for step in range(3):
        net.weight.grad = torch.tensor([[1.0, 0.5]])
        optim.update.set_rates(optimizer, plan, step)
        optimizer.step()
        gradient = torch.tensor([[1.0, 0.5]]) + 0.1 * weight
        speed = gradient if step == 0 else 0.9 * speed + gradient
        weight = weight - 0.5 * plan.factor(step) * (gradient + 0.9 * speed)
        torch.testing.assert_close(net.weight.data, weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=0), "lr must be above 0"),
        (lambda: AdamW(lr=1, clip_norm=0.0), "clip_norm must be above 0 or null"),
        (lambda: AdamW(lr=1, weight_decay=-1.0), "cannot be negative"),
        (lambda: AdamW(lr=1, final_weight_decay=-1.0), "cannot be negative"),
        (lambda: AdamW(lr=1, layer_decay=1.5), "up to 1"),
        (lambda: SGD(lr=1, encoder_lr_scale=0.0), "encoder_lr_scale"),
        (lambda: SGD(lr=1, momentum=1.0), "momentum"),
        (lambda: SGD(lr=1, momentum=0.0, nesterov=True), "nesterov"),
    ],
)
def test_optimizers_refuse_numbers_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
