"""What every backbone and every masker of the tables promises."""

import pytest
import torch

from vidssl.backbones import BACKBONES
from vidssl.build.part_checks import try_backbone, try_masker
from vidssl.interfaces import Backbone, Features
from vidssl.interfaces.grids import GridSize
from vidssl.maskers import MASKERS

SIZES = [(4, 32, 32), (2, 16, 48), (1, 32, 32)]
backbones = pytest.mark.parametrize("name", BACKBONES)
maskers = pytest.mark.parametrize("name", MASKERS)
LARGE = ("pytorchvideo", "torchvision")
LIBRARIES = (*LARGE, "timm")  # whose networks are no toys
own_by_default = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIBRARIES)) for name in BACKBONES]
)
one_library_by_default = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in BACKBONES]
)


def backbone(name: str, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return BACKBONES[name](**BACKBONES[name].toy)


def example(net: Backbone, size: tuple[int, int, int], batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if net.input_kind == "tokens":
        return torch.randint(0, 8, (batch, size[0], size[1] // 8, size[2] // 8), generator=generator)
    return torch.rand(batch, 3, *size, generator=generator)


def grid_of(net: Backbone, x: torch.Tensor) -> GridSize:
    return net.grid(*x.shape[-3:])


def hidden(net: Backbone, x: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(x), *grid_of(net, x), generator=torch.Generator().manual_seed(1)) < 0.5


def everything(features: Features) -> torch.Tensor:
    parts = [features.patches, *features.stages] + ([] if features.cls is None else [features.cls])
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[pytest.mark.slow] * (name in LIBRARIES and size != SIZES[0]))
        for name in BACKBONES
        for size in SIZES
    ],
)
def test_features_have_the_announced_shapes(name: str, size: tuple[int, int, int]) -> None:
    net = backbone(name).eval()
    x = example(net, size)
    try_backbone(net, x.shape[-3:])
    features = net(x, hidden(net, x) if net.takes_mask else None)
    assert features.pooled().shape == (2, net.embed_dim)
    assert features.pooled().dtype == torch.float32
    finest = features.stages[0] if features.stages else features.patches
    assert tuple(finest.shape[1:4]) == grid_of(net, x)


@own_by_default
def test_same_input_gives_the_same_features_whatever_is_beside_it(name: str) -> None:
    net = backbone(name).eval()
    x = example(net, (4, 32, 32), batch=3)
    with torch.no_grad():
        whole, again, alone = everything(net(x)), everything(net(x)), net(x[:1]).pooled()
        assert torch.equal(whole, again)
        assert torch.allclose(net(x).pooled()[:1], alone, atol=1e-5)
        assert torch.equal(whole, everything(backbone(name).eval()(x)))
        assert not torch.equal(whole, everything(backbone(name, seed=1).eval()(x)))


@one_library_by_default
def test_gradients_reach_every_parameter_from_clips_and_images(name: str) -> None:
    net = backbone(name)
    with torch.no_grad():
        for parameter in net.parameters():
            # a layer that starts at zero lets nothing through to what stands before it
            parameter.add_(0.02 * torch.randn_like(parameter))
    for size in ((4, 32, 32), (1, 32, 32)):
        x = example(net, size)
        # squared after a shift: the mean of layer-normed values has no gradient
        (everything(net(x, hidden(net, x) if net.takes_mask else None)) - 0.5).pow(4).mean().backward()
    flat = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert flat == []


@backbones
def test_what_is_hidden_is_not_seen(name: str) -> None:
    net = backbone(name).eval()
    if not net.takes_mask:
        pytest.skip("takes no mask")
    x = example(net, (4, 32, 32))
    other = example(net, (4, 32, 32), batch=4)[2:]
    mask = torch.ones(2, *grid_of(net, x), dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(everything(net(x, mask)), everything(net(other, mask)))
        mask[:, 0, 0, 0] = False
        assert not torch.equal(everything(net(x, mask)), everything(net(other, mask)))


@backbones
def test_what_is_no_clip_is_refused(name: str) -> None:
    net = backbone(name)
    clip = example(net, SIZES[0])
    wrong = [clip[0]] if net.input_kind == "tokens" else [clip[:, :, 0], clip[:, :1], (255 * clip).byte()]
    for given in wrong:
        with pytest.raises(ValueError, match=rf"{type(net).__name__} (takes|reads) .*\[B, .*, got torch\."):
            net(given)


@backbones
def test_mask_of_another_grid_is_refused(name: str) -> None:
    net = backbone(name)
    x = example(net, (4, 32, 32))
    t, h, w = grid_of(net, x)
    with pytest.raises(ValueError, match="mask"):
        net(x, torch.zeros(2, t, h, w + 1, dtype=torch.bool))


@own_by_default
def test_half_precision_autocast_stays_finite_and_near(name: str) -> None:
    net = backbone(name).eval()
    x = example(net, (4, 32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net(x).pooled().float()
        low.square().sum().backward()
    assert torch.isfinite(low).all()
    assert (low - net(x).pooled()).abs().max() < 0.1


@one_library_by_default
def test_weights_survive_a_copy_by_state(name: str) -> None:
    net, other = backbone(name).eval(), backbone(name, seed=1).eval()
    other.load_state_dict(net.state_dict())
    x = example(net, (4, 32, 32))
    with torch.no_grad():
        assert torch.equal(everything(net(x)), everything(other(x)))


@maskers
@pytest.mark.parametrize("grid", [(8, 14, 14), (4, 8, 8), (4, 4, 4), (1, 8, 12)])
def test_masks_hide_some_and_never_all(name: str, grid: GridSize) -> None:
    try_masker(MASKERS[name](**MASKERS[name].toy), grid, rows=300)


@maskers
def test_masks_follow_from_the_generator_alone(name: str) -> None:
    masker = MASKERS[name](**MASKERS[name].toy)
    torch.manual_seed(1)
    first = masker(8, (4, 8, 8), torch.Generator().manual_seed(5))
    state = torch.random.get_rng_state()
    assert torch.equal(masker(8, (4, 8, 8), torch.Generator().manual_seed(5)), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(masker(8, (4, 8, 8), torch.Generator().manual_seed(6)), first)
    assert len(first.flatten(1).unique(dim=0)) == (4 if name == "running_cell" else 8)  # it has no more
