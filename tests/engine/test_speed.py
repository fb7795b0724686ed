"""Switches of speed: the same losses and gradients, the same names, refusals where there is nothing to do."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from toy_runs import make_world

from vidssl import api as v
from vidssl.backbones.factorized import Factorized
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.timm_nets import TimmNet
from vidssl.backbones.torchvision_nets import TorchvisionNet
from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.build import build
from vidssl.config.recipe import RunSpec, load_recipe
from vidssl.engine.checkpoint import Checkpoint, read_checkpoint
from vidssl.engine.resume import load_optimizer, optimizer_tensors
from vidssl.engine.speed import prepare, refusal
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone
from vidssl.train.run import train_recipe

CLIP, IMAGE = (2, 3, 4, 32, 32), (2, 3, 1, 32, 32)


def swin() -> Backbone:
    return VideoSwin(embed_dim=12, depths=(2, 2), num_heads=(2, 3), window=(2, 4, 4), drop_path=0.5)


def timesformer(attention: str = "divided") -> Backbone:
    return TimeSformer(
        embed_dim=16, depth=2, num_heads=2, patch_size=8, num_frames=4, size=32, drop_path=0.5,
        attention=attention,
    )  # fmt: skip


def vit() -> Backbone:
    return ViT(embed_dim=12, depth=2, num_heads=2, patch_size=(2, 8, 8), drop_path=0.5)


def factorized() -> Backbone:
    return Factorized(
        vocab_size=8, num_frames=4, height=4, width=4, embed_dim=16, depth=2, num_heads=2, dropout=0.3
    )


OWN = {
    "video_swin": swin,
    "timesformer": timesformer,
    "timesformer_joint": lambda: timesformer("joint"),
    "timesformer_space": lambda: timesformer("space"),
    "factorized": factorized,
    "vit": vit,
}


def inputs(network: Backbone) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    if network.input_kind == "tokens":
        return [torch.randint(0, 8, (2, 4, 4, 4), generator=generator)]
    return [torch.rand(CLIP, generator=generator), torch.rand(IMAGE, generator=generator)]


# blocks compiled by torch 2.6 drop other paths than uncompiled ones do, from the same seed
DROP_ALIKE = not torch.__version__.startswith("2.6.")


def still_vit() -> Backbone:
    return ViT(embed_dim=12, depth=2, num_heads=2, patch_size=(2, 8, 8))


def made(make: Callable[[], Backbone]) -> Backbone:
    torch.manual_seed(0)
    return make().train()


def descended(network: Backbone, given: list[Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss of clips and images with a mask, all gradients, and the random state after it."""
    network.zero_grad()
    torch.manual_seed(1)
    loss = torch.zeros(())
    for x in given:
        grid = network.grid(*x.shape[-3:])
        mask = torch.arange(2 * grid[0] * grid[1] * grid[2]).view(2, *grid) % 3 == 0
        found = network(x, mask if network.takes_mask else None)
        loss = loss + found.patches.square().mean() + found.pooled().sum()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, torch.get_rng_state()


def switched(network: Backbone, **switches: bool | Literal["elementwise"]) -> Backbone:
    prepare(nn.ModuleList([network]), RunSpec(**switches))
    return network


def assert_same(one: tuple, other: tuple) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    assert [name for name in one[1] if not torch.equal(one[1][name], other[1][name])] == []
    assert torch.equal(one[2], other[2]), "the random numbers that follow are others"


# activations computed again


@pytest.mark.parametrize("how", [True, "elementwise"])
@pytest.mark.parametrize("name", OWN)
def test_computing_activations_again_changes_no_bit(name: str, how: bool | Literal["elementwise"]) -> None:
    network = made(OWN[name])
    plain = descended(network, inputs(network))
    keys = list(network.state_dict())
    again = switched(network, activation_checkpointing=how)
    assert_same(descended(again, inputs(network)), plain)
    assert list(again.state_dict()) == keys


def kept_bytes(network: Backbone, x: Tensor) -> int:
    """What a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("make", [swin, vit, timesformer])
def test_far_less_is_kept_for_the_backward_pass(make: Callable[[], Backbone]) -> None:
    network, clip = made(make), torch.rand(CLIP)
    plain = kept_bytes(network, clip)
    assert kept_bytes(switched(network, activation_checkpointing=True), clip) < 0.6 * plain


SHARES = {"video_swin": 0.9, "timesformer": 0.8, "factorized": 0.9, "vit": 0.85}


@pytest.mark.parametrize("name", SHARES)
def test_what_goes_element_by_element_is_computed_again_and_no_matrix_product(name: str) -> None:
    network = made(OWN[name])
    x = inputs(network)[0]

    def flops() -> int:
        with FlopCounterMode(display=False) as counted:
            network(x).patches.square().mean().backward()
        return counted.get_total_flops()

    kept, products = kept_bytes(network, x), flops()
    switched(network, activation_checkpointing="elementwise")
    assert kept_bytes(network, x) < SHARES[name] * kept
    assert flops() == products


def test_a_copy_computes_with_its_own_weights() -> None:
    """As averaged teachers and kept classifiers are made; a closure would go on with the first one's."""
    network = switched(made(vit), activation_checkpointing=True)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    plain = made(vit)
    plain.load_state_dict(other.state_dict())
    assert_same(descended(other, inputs(other)), descended(plain, inputs(plain)))


def test_without_gradients_nothing_is_computed_twice() -> None:
    network, calls = made(vit), []
    network.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    again = switched(network, activation_checkpointing=True)
    with torch.no_grad():
        again(torch.rand(CLIP))
    assert len(calls) == 1
    again(torch.rand(CLIP)).patches.sum().backward()
    assert len(calls) == 3


def test_networks_of_others_may_know_their_blocks() -> None:
    network = made(lambda: TimmNet(name="convnext_atto"))
    clip = [torch.rand(1, 3, 2, 32, 32)]
    plain = descended(network, clip)
    assert_same(descended(switched(network, activation_checkpointing=True), clip), plain)
    assert len(network.blocks_in_order()) == 12


def test_what_averages_over_batches_is_not_computed_twice() -> None:
    with torch.device("meta"):
        network = TorchvisionNet(name="r3d_18")
        other = TorchvisionNet(name="swin3d_t")
    assert any(isinstance(part, _BatchNorm) for part in network.modules())
    run = RunSpec(activation_checkpointing=True)
    key, why = refusal(nn.ModuleList([network]), run) or ("", "")
    assert key == "activation_checkpointing"
    assert "hold batch norms, whose running statistics would count every batch twice" in why
    assert refusal(nn.ModuleList([other]), run) is None
    assert refusal(nn.ModuleList([other]), RunSpec(activation_checkpointing="elementwise")) == (
        "activation_checkpointing",
        "no layer of this TorchvisionNet knows 'elementwise': take true",
    )


class Bare(Backbone):
    """A network that says nothing of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, mask=None):
        raise NotImplementedError


@pytest.mark.parametrize("key", ["compile", "activation_checkpointing"])
def test_what_goes_by_blocks_is_refused_where_they_are_not_known(key: str) -> None:
    run = RunSpec(**{key: True})
    assert refusal(nn.ModuleList([Bare()]), run) == (
        key, "the blocks of this Bare are not known: leave it out",
    )  # fmt: skip
    assert refusal(nn.Linear(3, 4), run) == (
        key, "goes block by block, and this objective trains no backbone: leave it out",
    )  # fmt: skip
    with pytest.raises(UsageError, match=rf"^run\.{key}: the blocks of this Bare"):
        prepare(nn.ModuleList([Bare()]), run)


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_every_block_holds_most_of_its_network(make: Callable[[], Backbone]) -> None:
    """A list of blocks that forgets some would be no error anywhere, only slow."""
    network = made(make)
    blocks = network.blocks_in_order()
    assert len(blocks) == len(set(blocks)) == (4 if isinstance(network, VideoSwin) else 2)
    within = {id(p) for block in blocks for p in block.parameters()}
    names = {n.split(".")[0] for n, p in network.named_parameters() if id(p) not in within}
    assert not names & {"blocks", "layers", "stages"}


# channels last


def test_channels_last_moves_convolutions_alone_and_changes_rounding_alone() -> None:
    torch.manual_seed(0)
    network = TimmNet(name="resnet10t").train()
    clip = torch.rand(1, 3, 2, 32, 32)
    plain = descended(network, [clip])
    switched(network, channels_last=True)
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != m.stride]
    assert len(weights) > 8
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    found = descended(network, [clip])
    torch.testing.assert_close(found[0], plain[0], rtol=1e-4, atol=1e-4)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())
        )
    assert network.net.conv1[0](clip[:, :, 0]).is_contiguous(memory_format=torch.channels_last)


def test_channels_last_of_clips_lays_out_volumes() -> None:
    network = TorchvisionNet(name="r3d_18")
    switched(network, channels_last=True)
    assert network.net.layer1[0].conv1[0].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_an_optimizer_that_comes_back_has_the_layout_of_its_weights() -> None:
    """The fused one takes no other."""
    network = switched(TimmNet(name="resnet10t"), channels_last=True)
    weight = network.net.conv1[0].weight
    optimizer = v.AdamW(lr=0.1).build(nn.ModuleList([network]))
    weight.grad = torch.rand(weight.shape).contiguous(memory_format=torch.channels_last)
    optimizer.step()
    taken = {key: value.contiguous() for key, value in optimizer_tensors(optimizer).items()}
    kept = optimizer.state[weight]["exp_avg"].clone()
    load_optimizer(optimizer, taken)
    found = optimizer.state[weight]["exp_avg"]
    assert torch.equal(found, kept)
    assert found.stride() == weight.stride() != taken["exp_avg.0.net.conv1.0.weight"].stride()


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_channels_last_is_refused_where_convolutions_only_cut_into_patches(
    make: Callable[[], Backbone],
) -> None:
    key, why = refusal(nn.ModuleList([made(make)]), RunSpec(channels_last=True)) or ("", "")
    assert key == "channels_last"
    assert "nothing to gain" in why


# compiling


def test_where_there_is_no_compiler_the_switch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UsageError, match=r"^run\.compile: needs a C\+\+ compiler for the CPU, and there is no"
    ):
        switched(made(vit), compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization of:UserWarning")  # torch 2.6 of its own settings
def test_compiled_blocks_give_the_same_to_rounding_under_the_same_names(again: bool) -> None:
    network = made(vit if DROP_ALIKE else still_vit)
    given = inputs(network)[:1]
    plain, keys = descended(network, given), list(network.state_dict())
    compiled = switched(network, compile=True, activation_checkpointing=again)
    found = descended(compiled, given)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2], plain[2])
    assert list(compiled.state_dict()) == keys
    assert all(block._compiled_call_impl is not None for block in compiled.blocks_in_order())


# in a recipe


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A world of toy recipes, and where bevt's is after three steps."""
    world = tmp_path_factory.mktemp("world")
    make_world(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        _, result = train_recipe(load_recipe("bevt.yaml"), Console(quiet=True), stop_after=3)
        return world, read_checkpoint(result.checkpoint)


@pytest.mark.parametrize("switch", ["precision=fp16", "activation_checkpointing=true", "deterministic=true"])
def test_a_recipe_s_run_takes_the_switch(switch: str, plain: tuple[Path, Checkpoint], monkeypatch) -> None:
    """With image stream and stochastic depth; the last bit is the same but for float16."""
    world, one = plain
    monkeypatch.chdir(world)
    _, result = train_recipe(load_recipe("bevt.yaml", [f"run.{switch}"]), Console(quiet=True), stop_after=3)
    other = read_checkpoint(result.checkpoint)
    assert one.encoder.keys() == other.encoder.keys()
    same = all(torch.equal(other.encoder[key], value) for key, value in one.encoder.items())
    assert same == (switch != "precision=fp16")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_switch_is_refused_at_its_key() -> None:
    recipe = load_recipe("tokenizer_fsq", ["run.compile=true"])
    with pytest.raises(UsageError, match=r"run\.compile: goes block by block, and this objective trains no"):
        build.check(recipe)
