"""Finetuned networks against the releases' numbers: logits, losses, averages over views, sizes."""

import json
from collections.abc import Sequence

import pytest
import torch
from bevt_reference import FOLDER, backbone_state, difference, load, toy_swin
from safetensors.torch import load_file
from torch import Tensor

from vidssl.backbones.video_swin import VideoSwin
from vidssl.evaluators.statistics import average_views
from vidssl.interfaces import Backbone, Batch, Features, Progress
from vidssl.objectives.classification import Classification
from vidssl.weights.swin import from_published

HERE = Progress(0, 1)


class Stored(Backbone):
    """Gives back what it is given: clips [B, 3, 1, 1, D] that hold pooled features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed_dim = dim
        self.strides = (1, 1, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(patches=x[:, :1].movedim(1, -1) * 0, cls=x[:, 0, 0, 0])


class Logits(Stored):
    """The same; the linear layer behind it is to change nothing."""


def identity_classification(classes: int, label_smoothing: float) -> Classification:
    objective = Classification(Logits(classes), num_classes=classes, label_smoothing=label_smoothing)
    with torch.no_grad():
        objective.classifier.head.weight.copy_(torch.eye(classes))
    return objective


def batch_of(rows: Tensor, labels: Tensor) -> Batch:
    clips = rows[:, None, None, None, :].expand(-1, 3, 1, 1, -1)
    return Batch(views={"clip": (clips,)}, labels={"video": {"action": labels}})


def with_head(objective: Classification) -> Classification:
    golden = load("finetune_head")
    head = {key.removeprefix("fc_cls."): x for key, x in golden.items() if key.startswith("fc_cls.")}
    objective.classifier.head.load_state_dict(head)
    return objective


def scores_of(objective: Classification, views: Sequence[Tensor]) -> Tensor:
    """[1, V, K]"""
    with torch.no_grad():
        return torch.stack([objective.class_logits([view]) for view in views], dim=1)


def test_bevt_s_finetuned_network_gives_the_released_scores_of_every_view() -> None:
    golden, clips = load("finetune_head"), load("finetune")["input"].float()
    swin = toy_swin()
    state = {key: x for key, x in backbone_state().items() if not key.startswith("patch_embed_2d")}
    swin.load_state_dict(from_published(state, swin.state_dict()), strict=False)
    objective = with_head(Classification(swin, num_classes=5, dropout=0.5)).eval()
    scores = scores_of(objective, clips.split(1))
    assert difference(scores[0], golden["view_scores"][:3]) < 1e-5
    assert difference(average_views(scores, "probabilities", "logits"), golden["video_prob"][:1]) < 1e-5


@pytest.mark.parametrize(("smoothing", "name"), [(0.0, "loss_hard"), (0.1, "loss_smooth")])
def test_bevt_s_losses_match(smoothing: float, name: str) -> None:
    golden = load("finetune_head")
    objective = with_head(Classification(Stored(32), num_classes=5, label_smoothing=smoothing))
    loss = objective(batch_of(golden["pooled"], golden["labels"]), HERE, torch.Generator()).loss.detach()
    assert difference(loss, golden[name]) < 1e-5


def test_vimpac_s_smoothed_losses_and_gradients_match() -> None:
    golden = load_file(FOLDER.parent / "vimpac" / "finetune_eval.safetensors")
    for smoothing in (0.1, 0.2):
        logits = golden["smoothing_logits"].clone().requires_grad_()
        objective = identity_classification(10, smoothing)
        loss = objective(batch_of(logits, golden["labels"]), HERE, torch.Generator()).loss
        loss.backward()
        assert abs(loss.detach() - golden[f"smoothing{smoothing}/loss"]) < 1e-6
        assert (logits.grad - golden[f"smoothing{smoothing}/grad"]).abs().max() < 1e-6


def test_vimpac_s_average_over_clips_matches() -> None:
    golden = load_file(FOLDER.parent / "vimpac" / "finetune_eval.safetensors")
    average = average_views(golden["logits_B_clips_classes"], "probabilities", "logits")
    assert (average - golden["avg_probs"]).abs().max() < 1e-6
    assert torch.equal(average.argmax(1), golden["predictions"])


@pytest.mark.parametrize(("name", "classes", "window"), [("k400", 400, (8, 7, 7)), ("ssv2", 174, (16, 7, 7))])
def test_finetuned_swin_b_has_the_released_number_of_parameters(
    name: str, classes: int, window: tuple[int, int, int]
) -> None:
    counts = json.loads((FOLDER / "keys_swin_b.json").read_text())["param_counts"]
    with torch.device("meta"):
        objective = Classification(VideoSwin(variant="base", window=window), num_classes=classes)
    backbone = objective.classifier.backbone
    # what serves images and masks alone the released network leaves behind
    unused = [*backbone.embed_image.parameters(), backbone.mask_token]
    ours = sum(p.numel() for p in objective.parameters()) - sum(p.numel() for p in unused)
    assert ours == counts[f"finetune_{name}"]
