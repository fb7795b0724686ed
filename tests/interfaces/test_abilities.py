"""What only some components can do: say where the class token looks, fill in what was hidden."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor

from vidssl.backbones.factorized import Factorized
from vidssl.backbones.timesformer import TimeSformer
from vidssl.backbones.vit import ViT
from vidssl.interfaces import (
    Backbone,
    Batch,
    ClassAttention,
    EncodesVisible,
    MaskedPrediction,
    Objective,
    Progress,
    Tokenizer,
)
from vidssl.maskers.bevt import Tube
from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo, stream_loss
from vidssl.objectives.vimpac import VIMPAC, VIMPACPredict
from vidssl.tokenizers.vqvae import VQVAE


def masked_objectives() -> dict[str, Callable[[Backbone, Tokenizer], Objective]]:
    tube = Tube(min_block=2)
    return {
        "bevt": lambda net, tokenizer: BEVT(net, tokenizer, tube),
        "bevt_image": lambda net, tokenizer: BEVTImage(net, tokenizer, tube),
        "bevt_video": lambda net, tokenizer: BEVTVideo(net, tokenizer, tube),
        "vimpac": lambda net, tokenizer: VIMPAC(net, tokenizer, tube, head_hidden_dim=8, head_dim=4),
        "vimpac_predict": lambda net, tokenizer: VIMPACPredict(net, tokenizer, tube),
    }


@pytest.mark.parametrize("name", masked_objectives())
def test_what_is_filled_in_is_what_the_metrics_measure(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8))
    objective = masked_objectives()[name](net, tokenizer).eval()
    frames, kind = (1, "image") if name == "bevt_image" else (4, "video")
    shown = torch.rand(6, 3, frames, 32, 32)
    views = {"clip": (shown, shown) if name == "vimpac" else (shown,), "image": (shown[:, :, :1],)}
    if name == "bevt":  # its images come first and would draw masks of their own
        metrics = stream_loss(objective.prediction, "video", shown, torch.Generator().manual_seed(3)).metrics
    else:
        metrics = objective(Batch(views), Progress(0, 1), torch.Generator().manual_seed(3)).metrics
    assert isinstance(objective, MaskedPrediction)
    given = torch.cat((shown, shown)) if name == "vimpac" else shown
    filled = objective.fill_in(given, torch.Generator().manual_seed(3))
    assert torch.equal(filled.ids, tokenizer.encode(given))
    assert torch.equal(filled.predicted[~filled.hidden], filled.ids[~filled.hidden])
    right = (filled.predicted == filled.ids)[filled.hidden].float().mean()
    key = f"accuracy_{kind}" if name.startswith("bevt") else "accuracy_mask"
    assert float(right) == pytest.approx(float(metrics[key]))
    assert 0 < float(right) < 1


def test_images_and_clips_are_each_refused_by_the_objective_that_never_saw_them() -> None:
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net, generator = ViT(embed_dim=12, depth=1, num_heads=2, patch_size=(2, 8, 8)), torch.Generator()
    with pytest.raises(ValueError, match="learns from single images, got clips of 4 frames"):
        BEVTImage(net, tokenizer, Tube(min_block=2)).fill_in(torch.rand(1, 3, 4, 32, 32), generator)
    with pytest.raises(ValueError, match="learns from clips, got single images"):
        BEVTVideo(net, tokenizer, Tube(min_block=2)).fill_in(torch.rand(1, 3, 1, 32, 32), generator)


def test_ids_that_only_the_backbone_knows_are_never_predicted() -> None:
    torch.manual_seed(0)
    tokenizer = VQVAE(vocab_size=4, code_dim=4, width=8, stride=8, num_res_blocks=0)
    net = Factorized(vocab_size=4, num_frames=2, height=4, width=4, embed_dim=8, depth=1, num_heads=2)
    objective = VIMPACPredict(net, tokenizer, Tube(min_block=2)).eval()
    with torch.no_grad():
        objective.prediction.head.bias[4:] = 100.0  # the special ids behind the vocabulary
    filled = objective.fill_in(torch.rand(2, 3, 2, 32, 32), torch.Generator().manual_seed(0))
    assert int(filled.predicted.max()) < 4


@pytest.mark.parametrize("positions", ["axes", "rotary"])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_vits_class_attention_is_what_its_last_block_does(frames: int, positions: str) -> None:
    torch.manual_seed(0)
    net = ViT(
        embed_dim=12, depth=2, num_heads=2, patch_size=(2, 8, 8), class_token=True, init_std=0.5,
        positions=positions,
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, frames, 16, 24)
    read: list[Tensor] = []
    last = net.blocks[-1].attn
    hook = last.register_forward_hook(lambda module, given, made: read.extend((given[0], made)))
    with torch.no_grad():
        net(x)
        hook.remove()
        weights = net.class_attention(x)
        normed = net.blocks[-1].norm1(read[0])
        values = rearrange(last.qkv(normed), "b n (three m d) -> three b m n d", three=3, m=2)[2]
        flat = weights.flatten(2)
        attended = (1 - flat.sum(-1, keepdim=True)) * values[:, :, 0]
        attended = attended + torch.einsum("bmn,bmnd->bmd", flat, values[:, :, 1:])
        expected = last.proj(attended.flatten(1))
    assert weights.shape == (2, 2, max(1, frames // 2), 2, 3)
    assert torch.allclose(read[1][:, 0], expected, atol=1e-5)
    assert isinstance(net, ClassAttention)


def visible_nets() -> dict[str, Backbone]:
    toy = {"embed_dim": 12, "depth": 2, "num_heads": 2}
    return {
        "vit": ViT(**toy, patch_size=(2, 8, 8)),
        "vit, as VideoMAE": ViT(
            **toy, patch_size=(2, 8, 8), positions="line", key_bias=False, class_token=True
        ),
        "vit, as V-JEPA 2.1": ViT(
            **toy, patch_size=(2, 8, 8), positions="rotary", position_span=4, modality=True, levels=(0, 1)
        ),
        "vit, as LeVJEPA": ViT(
            **toy, patch_size=(1, 8, 8), positions="rotary", class_token=True, attention="block_causal"
        ),
        "timesformer": TimeSformer(**toy, patch_size=8, num_frames=4, size=16, attention="joint"),
    }


@pytest.mark.parametrize("name", visible_nets())
@pytest.mark.parametrize("size", [(4, 16, 24), (1, 16, 16)])
def test_visible_cells_alone_are_encoded(name: str, size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net = visible_nets()[name].eval()
    assert isinstance(net, EncodesVisible)
    x, row = torch.rand(2, 3, *size), torch.arange(2)[:, None]
    grid = net.grid(*size)
    cells = grid[0] * grid[1] * grid[2]
    order = torch.stack([torch.randperm(cells) for _ in range(2)])
    whole, seen = net(x), net.forward_visible(x, order)
    assert torch.allclose(seen.patches, whole.patches.flatten(1, 3)[row, order], atol=1e-5)
    assert torch.allclose(seen.pooled(), whole.pooled(), atol=1e-5)
    keep = order[:, : cells // 2]
    part = net.forward_visible(x, keep)
    assert (part.grid, part.patches.shape) == (grid, (2, cells // 2, 12))
    assert not torch.allclose(part.patches, seen.patches[:, : cells // 2], atol=1e-4)
    t, h, w = (wide // fine for wide, fine in zip(size, grid, strict=True))
    hidden = torch.ones(2, cells, dtype=torch.bool)
    hidden[row, keep] = False
    shown = hidden.view(2, 1, *grid).repeat_interleave(t, 2).repeat_interleave(h, 3).repeat_interleave(w, 4)
    other = torch.where(shown, torch.rand_like(x), x)
    assert torch.equal(net.forward_visible(other, keep).patches, part.patches)


def test_what_cannot_be_encoded_so_is_refused() -> None:
    toy = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    x, keep = torch.rand(2, 3, 4, 16, 16), torch.arange(2).expand(2, -1)
    with pytest.raises(ValueError, match="TimeSformer can leave hidden cells out with attention: joint only"):
        TimeSformer(**toy, patch_size=8, num_frames=4, size=16).forward_visible(x, keep)
    net = ViT(**toy, patch_size=(2, 8, 8))
    for wrong in (keep[:1], keep[0], keep.float(), keep[:, :0]):
        with pytest.raises(ValueError, match=r"ViT: keep must be int64 \[2, n\]"):
            net.forward_visible(x, wrong)


def test_class_attention_lies_on_the_patches_that_drew_it() -> None:
    """A patch that is pulled towards the class token's query is the one that gets the weight."""
    torch.manual_seed(0)
    net = ViT(embed_dim=12, depth=1, num_heads=1, patch_size=(2, 8, 8), class_token=True, init_std=0.5).eval()
    x = torch.rand(1, 3, 4, 16, 24)
    with torch.no_grad():
        before = net.class_attention(x)
        x[:, :, 2:4, 8:16, 0:8] = 0.9
        change = (net.class_attention(x) / before).log()[0, 0]
    share = change - change.median()
    assert share.abs().flatten().argmax() == 1 * 6 + 1 * 3 + 0
