import pytest
import torch
from torchvision.models.video.swin_transformer import SwinTransformer3d

from vidssl.backbones import video_swin
from vidssl.backbones.video_swin import VideoSwin, WindowAttention, plan_windows
from vidssl.layers.transformer import DropPath, drop_path_rates
from vidssl.weights.swin import from_torchvision, inflate_image_stage


def small(depths: tuple[int, ...] = (2, 2), drop_path: float = 0.0) -> VideoSwin:
    heads = tuple(2**i for i in range(len(depths)))
    return VideoSwin(embed_dim=8, depths=depths, num_heads=heads, window=(2, 4, 4), drop_path=drop_path)


@pytest.mark.parametrize("size", [(8, 64, 64), (5, 50, 37)])
@pytest.mark.parametrize("learning", [False, True], ids=["frozen", "learning"])
def test_same_weights_give_torchvision_s_output(size: tuple[int, int, int], learning: bool) -> None:
    theirs = SwinTransformer3d(
        patch_size=[2, 4, 4], embed_dim=12, depths=[2, 2, 4], num_heads=[1, 2, 4], window_size=[4, 3, 3]
    ).eval()
    ours = VideoSwin(embed_dim=12, depths=(2, 2, 4), num_heads=(1, 2, 4), window=(4, 3, 3)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    report = ours.load_state_dict(from_torchvision(theirs.state_dict(), ours.state_dict()), strict=False)
    assert {key.split(".")[0] for key in report.missing_keys} == {"embed_image", "mask_token"}
    clip = torch.rand(2, 3, *size)
    with torch.set_grad_enabled(learning):
        normalised = (clip - ours.normalise.mean) / ours.normalise.std
        expected = theirs.norm(theirs.features(theirs.patch_embed(normalised)))
        got = ours(clip).patches
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", ["tiny", "small", "base", "large"])
def test_variants_have_the_published_sizes(variant: str) -> None:
    millions = {"tiny": 27.9, "small": 49.5, "base": 87.6, "large": 197.0}  # without a classifier
    with torch.device("meta"):
        swin = VideoSwin(variant=variant)
    assert sum(p.numel() for p in swin.parameters()) / 1e6 == pytest.approx(millions[variant], rel=5e-3)


@pytest.mark.parametrize("depths", [(1,), (2, 1), (1, 2, 1), (1, 1, 1, 1)])
def test_stages_have_the_dims_and_strides_that_are_announced(depths: tuple[int, ...]) -> None:
    swin = small(depths)
    stages = swin(torch.rand(1, 3, 4, 64, 32)).stages
    assert len(stages) == len(swin.stage_dims) == len(swin.stage_strides) == len(depths)
    for stage, dim, (p, q, r) in zip(stages, swin.stage_dims, swin.stage_strides, strict=True):
        assert stage.shape == (1, 4 // p, 64 // q, 32 // r, dim)
    assert swin.embed_dim == swin.stage_dims[-1]


def test_architecture_is_given_once_and_whole() -> None:
    with pytest.raises(ValueError, match="not both"):
        VideoSwin(variant="tiny", embed_dim=96)
    with pytest.raises(ValueError, match="give a variant"):
        VideoSwin(embed_dim=96, depths=(2, 2))
    with pytest.raises(ValueError, match="one positive number a stage"):
        VideoSwin(embed_dim=96, depths=(2, 2), num_heads=(3,))
    with pytest.raises(ValueError, match="cannot be divided among 5 heads"):
        VideoSwin(embed_dim=96, depths=(2,), num_heads=(5,))
    with pytest.raises(ValueError, match="drop_path"):
        small(drop_path=1.0)


def test_plans_are_made_once_for_each_grid_and_window() -> None:
    args = ((4, 16, 16), (2, 4, 4), True, torch.device("cpu"))
    assert plan_windows(*args) is plan_windows(*args)


def test_training_works_after_a_first_call_in_inference_mode() -> None:
    swin = small()
    with torch.inference_mode():
        swin(torch.rand(1, 3, 4, 36, 52))
    swin(torch.rand(1, 3, 4, 36, 52)).patches.sum().backward()


def test_image_and_clip_share_all_but_the_patch_embedding() -> None:
    swin = small()
    swin(torch.rand(1, 3, 1, 32, 32)).patches.square().sum().backward()
    without = {name for name, p in swin.named_parameters() if p.grad is None}
    assert without == {name for name, _ in swin.named_parameters() if name.startswith("embed_clip.")} | {
        "mask_token"
    }


def test_an_inflated_image_model_sees_a_still_clip_as_its_frame() -> None:
    swin = small().eval()
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.rand(2, 3, 1, 32, 32)
    with torch.no_grad():
        before = swin(image).patches
        swin.load_state_dict(inflate_image_stage(swin.state_dict(), (2, 4, 4)))
        assert torch.allclose(swin(image).patches, before)
        still = swin(image.expand(-1, -1, 4, -1, -1)).patches
    assert torch.allclose(still, before.expand_as(still), atol=1e-4)


def test_drop_path_drops_whole_samples_while_training_only() -> None:
    layer, branch = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = layer(branch)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(branch) is branch
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("shifted", [False, True])
def test_large_windows_one_by_one_give_what_all_at_once_do(
    shifted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_swin, "_CACHED", 2 * 256**2)  # of three heads: two, then one
    torch.manual_seed(0)
    attention, x = WindowAttention(12, 3, (4, 8, 8)), torch.randn(2, 4, 16, 8, 12)
    plan = plan_windows((4, 16, 8), (4, 8, 8), shifted, x.device)
    found = []
    for kind in (torch.float32, torch.float64):  # in double precision they go all at once
        sizes: set[int] = set()
        given, layer = x.clone().to(kind).requires_grad_(), attention.to(kind)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.add(t.numel()) or t, lambda t: t):
            layer(given, plan).square().sum().backward()
        assert (max(sizes) >= 4 * 3 * 256**2) == (kind == torch.float64), "weights are kept"
        found.append([given.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    parameters = {name: p.detach() for name, p in attention.float().named_parameters()}
    loss = torch.func.grad(
        lambda given: torch.func.functional_call(attention, given, (x, plan)).square().sum()
    )
    for one, other in zip(loss(parameters).values(), found[0][1:], strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
