"""Networks of torchvision, PyTorchVideo and timm as backbones: their own features, grids that hold."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from vidssl.backbones.pytorchvideo_nets import PyTorchVideoNet
from vidssl.backbones.timm_nets import TimmNet
from vidssl.backbones.torchvision_nets import TorchvisionNet
from vidssl.interfaces import Backbone
from vidssl.weights.load import load_init

SLOW = pytest.mark.slow
SIZES = ((8, 64, 64), (8, 48, 80))  # the second is no multiple of what a cell spans


@pytest.mark.parametrize(
    "name",
    [
        "s3d",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mc3_18", "r3d_18", "r2plus1d_18", "swin3d_t")),
    ],
)
@torch.no_grad()
def test_torchvision_features_are_those_behind_its_classifier(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.video, name)(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = TorchvisionNet(name=name).eval()
    report = load_init(ours, str(tmp_path / "net.pth"))
    assert report.new == ()
    assert all(key.startswith(("fc.", "classifier.", "head.")) for key in report.unused)
    for size in SIZES:
        clip = torch.rand(1, 3, *size)
        features = ours(clip)
        assert features.patches.shape[1:4] == ours.grid(*size)
        assert features.patches.shape[4] == ours.embed_dim
    normalised, pooled = ours.normalise(clip), features.pooled()
    if name == "s3d":  # its own pooling has a fixed window
        torch.testing.assert_close(pooled, theirs.features(normalised).mean(dim=(2, 3, 4)))
    else:
        head = theirs.head if name == "swin3d_t" else theirs.fc
        torch.testing.assert_close(head(pooled), theirs(normalised), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_mvit_gives_its_class_token() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.video.mvit_v2_s(weights=None).eval()
    ours = TorchvisionNet(name="mvit_v2_s").eval()
    ours.load_state_dict({f"net.{k}": v for k, v in theirs.state_dict().items() if not k.startswith("head.")})
    clip = torch.rand(1, 3, 16, 224, 224)
    features = ours(clip)
    assert ours.gives_cls
    torch.testing.assert_close(theirs.head(features.pooled()), theirs(ours.normalise(clip)))
    assert features.patches.shape[1:4] == ours.grid(16, 224, 224)


def test_sizes_that_a_network_does_not_take_are_refused_with_those_it_does() -> None:
    with torch.device("meta"):
        mvit, s3d = TorchvisionNet(name="mvit_v2_s"), TorchvisionNet(name="s3d")
        slowfast = PyTorchVideoNet(name="slowfast_r50")
    with pytest.raises(ValueError, match="takes 16 frames of 224x224 only"):
        mvit.grid(8, 112, 112)
    with pytest.raises(ValueError, match="s3d has nothing left of a clip of"):
        s3d.grid(4, 64, 64)
    with pytest.raises(ValueError, match="slowfast_r50 takes a multiple of 4 frames"):
        slowfast.grid(6, 64, 64)


_LARGE = (
    "slow_r50",
    "c2d_r50",
    "i3d_r50",
    "csn_r101",
    "r2plus1d_r50",
    "x3d_s",
    "x3d_m",
    "x3d_l",
    "slowfast_r101",
)


@pytest.mark.parametrize("name", ["x3d_xs", *(pytest.param(n, marks=SLOW) for n in _LARGE)])
@torch.no_grad()
def test_pytorchvideo_maps_have_the_stated_grid(name: str) -> None:
    net = PyTorchVideoNet(name=name).eval()
    for size in SIZES:
        patches = net(torch.rand(1, 3, *size)).patches
        assert patches.shape[1:] == (*net.grid(*size), net.embed_dim)


@torch.no_grad()
def test_slowfast_leaves_its_input_alone_and_joins_both_pathways() -> None:
    torch.manual_seed(0)
    net = PyTorchVideoNet(name="slowfast_r50").eval()
    clip = torch.rand(1, 3, 8, 64, 64)
    before = clip.clone()
    features = net(clip)
    torch.testing.assert_close(clip, before, atol=0, rtol=0)
    torch.testing.assert_close(net(clip).patches, features.patches)
    assert features.patches.shape[1:] == (2, 2, 2, 2304)
    assert net.grid(8, 64, 64) == (2, 2, 2)
    moved = clip.clone()
    moved[:, :, 1] = torch.rand(1, 3, 64, 64)  # a frame that only the fast pathway sees
    change = (net(moved).patches - features.patches).abs().amax(dim=(0, 1, 2, 3))
    assert change[2048:].max() > 0


@pytest.mark.slow
@torch.no_grad()
def test_pytorchvideos_mvit_gives_what_its_head_would_read() -> None:
    net = PyTorchVideoNet(name="mvit_base_16x4").eval()
    clip = torch.rand(1, 3, 16, 224, 224)
    features = net(clip)
    torch.testing.assert_close(features.pooled(), net.net(net.normalise(clip))[:, 0])
    assert features.patches.shape[1:4] == net.grid(16, 224, 224)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", pytest.param("convnext_atto", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_timm_networks_see_each_frame_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    ours = TimmNet(name=name).eval()
    assert load_init(ours, str(tmp_path / "net.pth")).new == ()
    clip = torch.rand(2, 3, 3, 64, 96)
    features = ours(clip)
    assert features.patches.shape == (2, *ours.grid(3, 64, 96), ours.embed_dim)
    frames = [ours(clip[:, :, t : t + 1]) for t in range(3)]
    torch.testing.assert_close(features.patches, torch.cat([f.patches for f in frames], dim=1))
    torch.testing.assert_close(features.pooled(), torch.stack([f.pooled() for f in frames]).mean(0))
    if name == "vit_tiny_patch16_224":
        image = torch.rand(2, 3, 1, 224, 224)
        theirs.head = nn.Identity()
        torch.testing.assert_close(ours(image).pooled(), theirs(ours.normalise(image)[:, :, 0]))


@torch.no_grad()
def test_a_timm_network_of_one_size_says_so_and_takes_another_when_told() -> None:
    net = TimmNet(name="swin_tiny_patch4_window7_224", size=64).eval()
    assert net(torch.rand(1, 3, 2, 64, 64)).patches.shape == (1, 2, 2, 2, 768)
    with pytest.raises(ValueError, match=r"takes frames of 64x64 only, got 32x32: set 'size'"):
        net.grid(2, 32, 32)
    with pytest.raises(ValueError, match="timm cannot make 'resnet_of_nobody'"):
        TimmNet(name="resnet_of_nobody")


@pytest.mark.parametrize("net", [TorchvisionNet(name="r3d_18"), TimmNet(name="resnet18")], ids=str)
def test_they_take_no_mask(net: Backbone) -> None:
    with pytest.raises(ValueError, match="takes no mask"):
        net(torch.rand(1, 3, 8, 64, 64), torch.zeros(1, *net.grid(8, 64, 64), dtype=torch.bool))


def test_an_mvit_is_checked_without_memory_as_every_recipe_is() -> None:
    with torch.device("meta"):
        net = PyTorchVideoNet(name="mvit_base_16x4")
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}
