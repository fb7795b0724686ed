"""BEVT's loss, gradients and masks against the release's numbers."""

import json

import pytest
import torch
from bevt_reference import (
    FOLDER,
    backbone_state,
    difference,
    dvae_ids,
    head_key,
    load,
    load_head,
    load_swin,
    toy_swin,
)
from torch import Tensor, nn

from vidssl.interfaces import Batch, Features, Masker, Progress, Tokenizer
from vidssl.interfaces.grids import GridSize
from vidssl.maskers import shapes as planes
from vidssl.maskers.bevt import Blockwise, Tube
from vidssl.objectives.bevt import BEVT
from vidssl.objectives.parts.masked_prediction import Predictions
from vidssl.weights.swin import published_key

STEP = Progress(0, 1)
STATS = json.loads((FOLDER / "masking_stats.json").read_text())


class HalfSizeDVAE(Tokenizer):
    """The toy dVAE on the half-size second views that the reference step was given beside its inputs."""

    vocab_size = 24
    strides = (1, 16, 16)

    def __init__(self, golden: dict[str, Tensor]) -> None:
        super().__init__()
        self.second = {"image": golden["image_second_u8"], "video": golden["video_second_u8"]}
        self.state = load("weights")

    def encode(self, clip: Tensor) -> Tensor:
        if clip.shape[2] == 1:
            return dvae_ids(self.second["image"], self.state)[:, None]
        return dvae_ids(self.second["video"], self.state)[None]

    def decode(self, ids: Tensor) -> Tensor:
        raise NotImplementedError


class GivenMask(Masker):
    def __init__(self, golden: dict[str, Tensor]) -> None:
        self.masks = {1: golden["mask_2d"].bool()[:, None], 4: golden["mask_in_3d"].bool()}

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        return self.masks[grid[0]]


def step_parts() -> tuple[BEVT, Batch, dict[str, Tensor]]:
    golden = load("two_stream_step")
    objective = BEVT(toy_swin(), HalfSizeDVAE(golden), GivenMask(golden))
    load_swin(objective.prediction.backbone, backbone_state())
    load_head(objective.prediction.head)
    clip, image = golden["video"].float(), golden["image"].float()[:, :, None]
    return objective, Batch({"clip": (clip,), "image": (image,)}), golden


def test_two_stream_step_matches_in_losses_and_accuracies() -> None:
    objective, batch, golden = step_parts()
    prediction = objective.prediction
    assert torch.equal(prediction.tokenizer(batch.views["image"][0])[:, 0], golden["token_ids_2d"])
    assert torch.equal(prediction.tokenizer(batch.views["clip"][0])[0], golden["token_ids_3d"])
    output = objective(batch, STEP, torch.Generator())
    for ours, theirs in (("image", "2d"), ("video", "3d")):
        assert difference(output.metrics[f"loss_{ours}"], golden[f"clean/loss_cls_{theirs}"]) < 1e-5
        assert torch.equal(output.metrics[f"accuracy_{ours}"], golden[f"clean/mask_acc_{theirs}"])
    assert difference(output.loss.detach(), golden["clean/total"]) < 1e-5


def test_two_stream_step_matches_in_gradients() -> None:
    objective, batch, golden = step_parts()
    objective(batch, STEP, torch.Generator()).loss.backward()
    prediction = objective.prediction
    gradients = {
        f"backbone.{published_key(key)}": p.grad for key, p in prediction.backbone.named_parameters()
    }
    gradients |= {head_key(key): p.grad for key, p in prediction.head.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    expected = {key.removeprefix("clean/grad/"): x for key, x in golden.items() if "/grad/" in key}
    assert len(expected) == 16
    for key, gradient in expected.items():
        assert difference(gradients[key].reshape(gradient.shape), gradient) < 1e-4, key
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert difference(norm, golden["clean/grad_norm_all"]) < 1e-4
    assert len(gradients) == len(list(objective.parameters()))


class GivenIds(HalfSizeDVAE):
    """Ids as they are in the file of losses."""

    def __init__(self, golden: dict[str, Tensor]) -> None:
        Tokenizer.__init__(self)
        self.ids = {1: golden["token_ids_2d"][:, None], 8: golden["token_ids_3d"]}

    def encode(self, clip: Tensor) -> Tensor:
        return self.ids[clip.shape[2]]


class GivenLogits(nn.Module):
    """In place of the head: logits from the file of losses, at the hidden positions."""

    def __init__(self, image: Tensor, video: Tensor) -> None:
        super().__init__()
        self.logits = {"image": image, "video": video}

    def forward(self, stream: str, features: Features, hidden: Tensor, norm: nn.Module) -> Predictions:
        positions = hidden.flatten().nonzero()[:, 0]
        return Predictions(self.logits[stream].flatten(0, 1)[positions], positions)


@pytest.mark.parametrize(("case", "weights"), [("default", (1.0, 1.0)), ("weighted", (0.5, 2.0))])
def test_loss_is_the_weighted_sum_of_means_over_masked_positions(
    case: str, weights: tuple[float, float]
) -> None:
    golden = load("loss")
    masks = {"mask_2d": golden["mask_out_2d"], "mask_in_3d": golden["mask_out_3d"][:, ::2]}
    parts = toy_swin(), GivenIds(golden), GivenMask(masks)
    objective = BEVT(*parts, image_weight=weights[0], video_weight=weights[1])
    leaves = {name: golden[f"logits_{name}"].clone().requires_grad_() for name in ("2d", "3d")}
    objective.prediction.head = GivenLogits(leaves["2d"], leaves["3d"])
    batch = Batch({"clip": (torch.zeros(2, 3, 8, 96, 96),), "image": (torch.zeros(3, 3, 1, 96, 96),)})
    output = objective(batch, STEP, torch.Generator())
    for ours, theirs, weight in (("image", "2d", weights[0]), ("video", "3d", weights[1])):
        assert difference(weight * output.metrics[f"loss_{ours}"], golden[f"{case}/loss_cls_{theirs}"]) < 1e-5
        assert torch.equal(output.metrics[f"accuracy_{ours}"], golden[f"{case}/mask_acc_{theirs}"])
    assert difference(output.loss.detach(), golden[f"{case}/total"]) < 1e-5
    if case == "default":
        output.loss.backward()
        for name, leaf in leaves.items():
            assert difference(leaf.grad, golden[f"default/grad_logits_{name}"]) < 1e-4


@pytest.fixture
def count_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many blocks each round of drawing planes has laid."""
    counts: list[int] = []
    place = planes._place_blocks

    def counting(*args: object, **kwargs: object) -> Tensor:
        blocks = place(*args, **kwargs)
        counts.append(int(blocks.flatten(1).any(dim=1).sum()))
        return blocks

    monkeypatch.setattr(planes, "_place_blocks", counting)
    return counts


@pytest.mark.parametrize("case", ["blockwise_14x14_bevt", "blockwise_14x14_beit_reference"])
def test_blockwise_planes_are_distributed_as_published(case: str, count_blocks: list[int]) -> None:
    stats, draws = STATS[case], 4000
    masker = Blockwise(ratio=stats["target"] / 196, min_block=stats["min_num_patches"])
    masks = masker(draws, (1, 14, 14), torch.Generator().manual_seed(0))[:, 0]
    hidden = masks.sum(dim=(1, 2)).float()
    assert hidden.max() == stats["target"]
    assert hidden.mean().item() == pytest.approx(stats["mean_masked_count"], abs=0.15)
    assert (hidden == stats["target"]).float().mean().item() == pytest.approx(
        stats["fraction_exactly_target"], abs=0.03
    )
    assert sum(count_blocks) / draws == pytest.approx(stats["mean_blocks_per_mask"], abs=0.1)
    frequency = masks.float().mean(dim=0)
    assert (frequency - torch.tensor(stats["cell_mask_frequency"])).abs().max() < 0.045  # 4 deviations


@pytest.mark.parametrize(
    ("case", "ratio"),
    [("tube_bevt", 0.5), ("tube_quarter", 0.5), ("tube_ratio_40", 0.4), ("tube_ratio_60", 0.6)],
)
def test_tubes_are_distributed_as_published(case: str, ratio: float) -> None:
    stats, draws = STATS[case], 4000
    t, h, w = stats["grid"]
    masker = Tube(ratio=ratio, length=tuple(stats["tube_range"]))
    masks = masker(draws, (t, h, w), torch.Generator().manual_seed(1))
    frames = masks.any(dim=(2, 3))
    assert masks.sum(dim=(2, 3)).max() == stats["num_masking_patches"]
    assert masks.float().mean().item() == pytest.approx(stats["mean_overall_masked_ratio"], abs=0.005)
    plane = masks.any(dim=1, keepdim=True)
    assert torch.equal(masks, plane & frames[:, :, None, None])
    lengths = {str(int(n)) for n in frames.sum(dim=1).unique()}
    assert lengths == set(stats["tube_length_temporal_patches"])
    share = torch.tensor(list(stats["slice_mask_frequency"]))
    assert (frames.float().mean(dim=0) - share).abs().max() < 0.045
    # a tube that wraps hides the first and the last frame, and leaves some in between
    wraps = frames[:, 0] & frames[:, -1] & ~frames.all(dim=1)
    assert wraps.float().mean().item() == pytest.approx(stats["fraction_wrapping"], abs=0.035)
