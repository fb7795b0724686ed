import math
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vidssl.backbones.video_swin import VideoSwin
from vidssl.backbones.vit import ViT
from vidssl.interfaces import Backbone, Batch, Features, InputKind, Progress, Tokenizer
from vidssl.interfaces.grids import GridSize, expand_mask
from vidssl.maskers.bevt import Random3D, Tube
from vidssl.objectives.bevt import BEVT, BEVTImage, BEVTVideo
from vidssl.objectives.parts.masked_prediction import (
    Fit,
    LinearHead,
    Spread,
    accuracy,
    copy_nearest,
    find_hidden,
    fit_strides,
    most_frequent_accuracy,
)

STEP = Progress(0, 1)
VOCAB = 12


class BrightnessTokenizer(Tokenizer):
    """An id is the mean brightness of its pixels, through a frozen gain."""

    vocab_size = VOCAB

    def __init__(self, strides: GridSize = (1, 8, 8)) -> None:
        super().__init__()
        self.strides = strides
        self.gain = nn.Parameter(torch.tensor(float(VOCAB)))
        self.drop = nn.Dropout(0.9)

    def encode(self, clip: Tensor) -> Tensor:
        t, h, w = self.grid(*clip.shape[2:])
        mean = rearrange(clip, "b c (t p) (h q) (w r) -> b t h w (c p q r)", t=t, h=h, w=w).mean(dim=-1)
        return (self.drop(mean) * self.gain).long().clamp(0, VOCAB - 1)

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


class IdsBackbone(Backbone):
    """Reads ids."""

    input_kind: ClassVar[InputKind] = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 8
        self.strides = (1, 1, 1)
        self.table = nn.Embedding(VOCAB + 1, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        assert x.dtype == torch.int64
        return Features(self.table(x if mask is None else x.masked_fill(mask, VOCAB)))


class MasklessBackbone(IdsBackbone):
    """Takes no mask."""

    takes_mask: ClassVar[bool] = False


class NormlessSwin(VideoSwin):
    """Offers no final norm."""

    def final_norm(self) -> None:
        return None


def swin(cls: type[VideoSwin] = VideoSwin, depths: tuple[int, ...] = (1, 2)) -> VideoSwin:
    heads = tuple(2**i for i in range(len(depths)))
    return cls(embed_dim=16, depths=depths, num_heads=heads, window=(2, 4, 4), drop_path=0.0)


def vit() -> ViT:
    return ViT(embed_dim=24, depth=2, num_heads=2, patch_size=(2, 8, 8))


def batch(count: int = 4, num_frames: int = 4, size: int = 32) -> Batch:
    """Clips of blocks of even brightness, so that ids vary."""
    generator = torch.Generator().manual_seed(0)

    def blocks(t: int) -> Tensor:
        cells = torch.rand(count, 1, t, size // 8, size // 8, generator=generator)
        return repeat(cells, "b 1 t h w -> b 3 t (h 8) (w 8)").contiguous()

    return Batch({"clip": (blocks(num_frames),), "image": (blocks(1),)})


def bevt(backbone: Backbone, tokenizer: Tokenizer | None = None) -> BEVT:
    return BEVT(backbone, tokenizer or BrightnessTokenizer(), Tube(min_block=2))


def masks() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("make", [swin, vit, IdsBackbone])
def test_gradients_reach_all_that_learns_and_no_tokenizer(make: Callable[[], Backbone]) -> None:
    torch.manual_seed(0)
    tokenizer = BrightnessTokenizer()
    objective = bevt(make(), tokenizer).train()
    objective(batch(), STEP, masks()).loss.backward()
    still = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert tokenizer.gain.grad is None
    assert not tokenizer.gain.requires_grad


def test_tokenizer_is_in_no_state_and_moves_along() -> None:
    tokenizer = BrightnessTokenizer()
    objective = bevt(swin(), tokenizer)
    assert not any("gain" in key for key in objective.state_dict())
    assert all(p is not tokenizer.gain for p in objective.parameters())
    assert objective.to(torch.device("meta")) is objective
    assert tokenizer.gain.device.type == "meta"


def test_tokenizer_stays_in_evaluation_mode() -> None:
    tokenizer = BrightnessTokenizer()
    objective = bevt(swin(), tokenizer).train()
    assert not tokenizer.training
    assert not tokenizer.drop.training
    ids = objective.prediction.tokenizer(batch().views["clip"][0])
    assert len(ids.unique()) > 4


@pytest.mark.parametrize("make", [swin, vit])
def test_twenty_steps_on_one_batch_lower_both_losses(make: Callable[[], Backbone]) -> None:
    torch.manual_seed(0)
    grey = (
        torch.linspace(0.1, 0.9, 4).view(4, 1, 1, 1, 1).expand(4, 3, 4, 32, 32)
    )  # what is hidden can be told
    objective, one = bevt(make()).train(), Batch({"clip": (grey,), "image": (grey[:, :, :1],)})
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for step in range(20):
        output = objective(one, Progress(step, 20), masks())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append({name: float(value) for name, value in output.metrics.items()})
    for stream in ("image", "video"):
        assert losses[0][f"loss_{stream}"] == pytest.approx(math.log(VOCAB), abs=0.35)
        assert losses[-1][f"loss_{stream}"] < losses[0][f"loss_{stream}"] - 0.8


def test_loss_follows_from_the_generator() -> None:
    torch.manual_seed(0)
    objective = bevt(swin()).eval()
    with torch.no_grad():
        first, second = (objective(batch(), STEP, masks()).loss for _ in range(2))
        other = objective(batch(), STEP, torch.Generator().manual_seed(4)).loss
    assert first == second
    assert first != other


def test_one_stream_alone_equals_its_part_of_the_joint_objective() -> None:
    torch.manual_seed(0)
    parts = swin(), BrightnessTokenizer(), Random3D()
    joint = BEVT(*parts, video_weight=2.0)
    for cls, stream in ((BEVTImage, "image"), (BEVTVideo, "video")):
        alone = cls(*parts)
        assert set(alone.needs_views) < set(joint.needs_views)
        state = {k: v for k, v in joint.state_dict().items() if k in alone.state_dict()}
        alone.load_state_dict(state)
        generator = masks()
        if stream == "video":  # the joint objective has drawn the image's mask by then
            Random3D()(4, (1, 4, 4), generator)
        output = alone(batch(), STEP, generator)
        both = joint(batch(), STEP, masks())
        assert torch.equal(output.metrics[f"loss_{stream}"], both.metrics[f"loss_{stream}"])
        assert f"loss_{'video' if stream == 'image' else 'image'}" not in output.metrics
    total = both.metrics["loss_image"] + 2 * both.metrics["loss_video"]
    assert both.loss.item() == pytest.approx(float(total))


def test_logits_are_computed_at_hidden_ids_only() -> None:
    objective, rows, hidden = bevt(swin()), [], []
    objective.prediction.head.to_vocab.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    objective.prediction.head.register_forward_pre_hook(lambda _m, args: hidden.append(int(args[2].sum())))
    objective(batch(), STEP, masks())
    assert rows == hidden
    assert rows[1] < 4 * 4 * 4 * 4


def test_decoder_ends_in_the_encoder_s_own_norm() -> None:
    objective = bevt(swin()).train()
    assert objective.prediction.head.norm is None
    objective(batch(), STEP, masks()).loss.backward()
    assert objective.encoder().norm.weight.grad is not None


def test_backbone_without_a_final_norm_gets_one_in_the_head() -> None:
    objective = bevt(swin(NormlessSwin)).train()
    assert isinstance(objective.prediction.head.norm, nn.LayerNorm)
    objective(batch(), STEP, masks()).loss.backward()
    assert objective.prediction.head.norm.weight.grad is not None


@pytest.mark.parametrize("strides", [(1, 4, 4), (1, 8, 8), (2, 8, 8), (2, 16, 16), (4, 8, 8)], ids=str)
@pytest.mark.parametrize("make", [swin, vit])
def test_ids_finer_and_coarser_than_cells_are_predicted(
    make: Callable[[], Backbone], strides: GridSize
) -> None:
    objective = bevt(make(), BrightnessTokenizer(strides)).train()
    output = objective(batch(size=64), STEP, masks())
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_three_stages_are_decoded_from_the_last_two() -> None:
    objective = bevt(swin(depths=(1, 1, 1)), BrightnessTokenizer((1, 8, 8)))
    assert torch.isfinite(objective(batch(size=64), STEP, masks()).loss)


def test_strides_that_do_not_fit_are_refused_when_built() -> None:
    for make in (swin, vit):
        with pytest.raises(ValueError, match="whole multiple of the other"):
            bevt(make(), BrightnessTokenizer((3, 8, 8)))


def test_sizes_that_stages_do_not_halve_are_refused() -> None:
    with pytest.raises(ValueError, match="every stage halves exactly"):
        bevt(swin(depths=(1, 1, 1)), BrightnessTokenizer((1, 8, 8)))(batch(size=40), STEP, masks())


def test_backbone_that_takes_no_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no mask"):
        bevt(MasklessBackbone())


def test_weights_must_be_positive() -> None:
    with pytest.raises(ValueError, match="bevt_image and bevt_video"):
        BEVT(swin(), BrightnessTokenizer(), Tube(), image_weight=0.0)


def test_baselines_are_reported_in_evaluation_only() -> None:
    objective = bevt(swin())
    names = {f"{kind}_{stream}" for kind in ("loss", "accuracy") for stream in ("image", "video")}
    baselines = {f"{kind}_{s}" for kind in ("most_frequent", "copy_nearest") for s in ("image", "video")}
    variety = {f"predicted_perplexity_{stream}" for stream in ("image", "video")}
    assert set(objective.train()(batch(), STEP, masks()).metrics) == names | variety
    with torch.no_grad():
        metrics = objective.eval()(batch(), STEP, masks()).metrics
    assert set(metrics) == names | baselines
    assert all(0 <= metrics[name] <= 1 for name in baselines)


def test_baselines_are_measured_at_the_hidden_positions() -> None:
    objective, clip = bevt(swin()).eval(), batch().views["clip"][0].sort(dim=3).values  # smooth downwards
    with torch.no_grad():
        metrics = objective(Batch({"clip": (clip,), "image": (clip[:, :, :1],)}), STEP, masks()).metrics
        ids = objective.prediction.tokenizer(clip)
    generator = masks()
    Tube(min_block=2)(4, (1, 4, 4), generator)  # the image's
    hidden = expand_mask(Tube(min_block=2)(4, (2, 4, 4), generator), (4, 4, 4))
    copied = (copy_nearest(ids, hidden) == ids)[hidden].float().mean()
    assert metrics["copy_nearest_video"] == copied
    assert metrics["most_frequent_video"] == most_frequent_accuracy(ids[hidden])
    assert copied != (copy_nearest(ids, hidden) == ids).float().mean()


def test_accuracy_counts_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0])).item() == pytest.approx(2 / 3)


def test_most_frequent_is_the_best_constant_answer() -> None:
    ids = torch.tensor([4, 4, 1, 4, 2])
    best = max(float((ids == constant).float().mean()) for constant in range(6))
    assert most_frequent_accuracy(ids).item() == pytest.approx(best)


def test_copy_nearest_takes_an_id_at_the_smallest_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(3, 3, 4, 5, generator=generator) < 0.8
    ids = torch.arange(hidden.numel()).view_as(hidden)
    filled = copy_nearest(ids.masked_fill(hidden, 0), hidden)
    assert torch.equal(filled[~hidden], ids[~hidden])
    place = torch.stack(torch.meshgrid(*map(torch.arange, (3, 4, 5)), indexing="ij"), dim=-1).flatten(0, 2)
    distance = (place[:, None] - place[None]).abs().sum(dim=-1)
    for clip in range(3):
        visible = ~hidden[clip].flatten()
        for here in hidden[clip].flatten().nonzero()[:, 0]:
            taken = int(filled[clip].flatten()[here]) - clip * 60
            assert visible[taken]
            assert distance[here, taken] == distance[here][visible].min()


def test_copy_nearest_prefers_time_over_space() -> None:
    ids = torch.arange(27).view(1, 3, 3, 3)
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, 1, 1, 1] = True
    assert copy_nearest(ids, hidden)[0, 1, 1, 1] == ids[0, 0, 1, 1]
    hidden[0, 0, 1, 1] = True
    assert copy_nearest(ids, hidden)[0, 1, 1, 1] == ids[0, 2, 1, 1]


def test_copy_nearest_refuses_a_clip_with_nothing_visible() -> None:
    hidden = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    hidden[0, 0, 0, 0] = False
    with pytest.raises(ValueError, match="without one visible position"):
        copy_nearest(torch.zeros(2, 1, 2, 2, dtype=torch.int64), hidden)


def test_hidden_ids_are_found_cell_by_cell() -> None:
    hidden = torch.rand(2, 4, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    found = find_hidden(hidden, (2, 1, 2), torch.device("cpu"))
    expected = []
    for b, t, h, w in torch.cartesian_prod(*map(torch.arange, (2, 2, 2, 2))).tolist():
        inside = [(t * 2 + p, w * 2 + r) for p in range(2) for r in range(2)]
        expected += [
            ((b * 4 + frame) * 2 + h) * 4 + column for frame, column in inside if hidden[b, frame, h, column]
        ]
    assert found.positions.tolist() == expected
    ids = torch.arange(hidden.numel()).view(2, 2, 2, 2, 2, 2).permute(0, 1, 3, 4, 2, 5).reshape(-1, 4)
    assert ids[found.cells].flatten()[found.within].tolist() == expected


def test_linear_head_gives_each_id_of_a_cell_its_own_logits() -> None:
    torch.manual_seed(0)
    head = LinearHead(6, 5, Fit(merge=(1, 2, 1), split=(2, 1, 1)))
    patches = torch.randn(2, 2, 4, 3, 6)
    hidden = torch.rand(2, 4, 2, 3) < 0.5
    got = head(patches, hidden)
    weight = head.linear.weight.view(2, 5, 2, 6)
    for logits, position in zip(got.logits, got.positions.tolist(), strict=True):
        b, t, h, w = (int(x) for x in torch.unravel_index(torch.tensor(position), (2, 4, 2, 3)))
        cells = patches[b, t // 2, 2 * h : 2 * h + 2, w]
        expected = torch.einsum("vgd,gd->v", weight[t % 2], cells)
        assert torch.allclose(logits, expected, atol=1e-5)


def test_spread_is_a_transposed_convolution() -> None:
    spread = Spread(6, (2, 1, 3))
    cells = torch.randn(2, 3, 4, 5, 6)
    ours = rearrange(spread(cells), "b t h w (p q r) d -> b d (t p) (h q) (w r)", p=2, q=1)
    theirs = spread.conv(rearrange(cells, "b t h w d -> b d t h w"))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_strides_are_fitted_axis_by_axis() -> None:
    assert fit_strides((2, 4, 16), (1, 16, 16)) == Fit(merge=(1, 4, 1), split=(2, 1, 1))
