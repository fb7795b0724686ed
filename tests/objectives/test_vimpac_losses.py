"""VIMPAC's two losses and its batch norm against the release's numbers and PyTorch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vimpac_reference import VOCAB, Given, Ids, difference, load, part, toy_backbone

from vidssl.errors import UsageError
from vidssl.interfaces import Features
from vidssl.layers.transformer import BatchNorm
from vidssl.objectives.parts.masked_prediction import MaskedClips, Predictions, TokenPrediction, corrupt
from vidssl.objectives.vimpac import ClipContrast, ProjectionHead, info_nce, predicted_ids

TOLERANCE = 1e-6


def published_nce(features: Tensor, temperature: float) -> Tensor:
    first, second = features.chunk(2)
    return 2 * temperature * info_nce(first, second, temperature).loss


@pytest.mark.parametrize("case", ["t0.2", "t1.0", "t0.07"])
def test_info_nce_and_its_gradient_match(case: str) -> None:
    golden = load("nce")
    features = golden["features"].requires_grad_()
    loss = published_nce(features, float(golden[f"{case}/temperature"]))
    loss.backward()
    assert difference(loss.detach()[None], golden[f"{case}/loss"]) < TOLERANCE
    assert difference(features.grad, golden[f"{case}/grad"]) < TOLERANCE


def test_one_video_alone_costs_nothing() -> None:
    golden = part(load("nce"), "one_pair/")
    features = golden["features"].requires_grad_()
    loss = published_nce(features, 0.2)
    loss.backward()
    assert float(loss.detach()) == float(golden["loss"]) == 0
    assert difference(features.grad, golden["grad"]) < TOLERANCE


def test_info_nce_of_guessing_is_the_logarithm_of_the_candidates() -> None:
    contrast = info_nce(torch.ones(4, 8), torch.ones(4, 8), 0.2)
    assert float(contrast.loss) == pytest.approx(math.log(7))
    assert contrast.num_videos == 4


def test_info_nce_counts_who_is_nearest() -> None:
    first = torch.eye(3)
    assert info_nce(first, first, 0.2).accuracy == 1
    assert info_nce(first, first[[1, 2, 0]], 0.2).accuracy == 0
    assert info_nce(first, first[[0, 2, 1]], 0.2).accuracy == pytest.approx(1 / 3)


def test_info_nce_is_taken_in_full_precision() -> None:
    first, second = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = info_nce(first, second, 0.05).loss
    assert low.dtype == torch.float32
    assert torch.equal(low, info_nce(first, second, 0.05).loss)


def test_token_loss_accuracy_and_gradient_match(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load("mlm_loss")
    hidden, logits = golden["labels"] != -100, golden["logits"].requires_grad_()
    prediction = TokenPrediction(toy_backbone("model_T_HW"), Ids(), Given(hidden), tied=True)
    positions = hidden.flatten().nonzero()[:, 0]
    monkeypatch.setattr(
        prediction, "_predict", lambda masked, _: Predictions(logits[masked.hidden], positions)
    )
    output = predicted_ids(
        prediction, MaskedClips(Features(torch.zeros(1, 1, 1, 1, 1)), golden["codes"], hidden)
    )
    output.loss.backward()
    assert difference(output.loss.detach()[None], golden["loss"]) < TOLERANCE
    assert difference(output.metrics["accuracy_mask"][None], golden["accuracy"]) < TOLERANCE
    assert float(output.metrics["loss_mask_of_chance"]) == pytest.approx(float(golden["loss"]) / math.log(64))
    assert difference(logits.grad, golden["grad_logits"]) < TOLERANCE


def test_batch_norm_is_pytorch_s() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for norm in (ours, theirs):
        norm.weight.data, norm.bias.data = torch.linspace(0.5, 2, 5), torch.linspace(-1, 1, 5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(3):
        x = 3 * torch.randn(8, 5) + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(a).pow(3).sum().backward()
        theirs(b).pow(3).sum().backward()
        assert torch.allclose(a.grad, b.grad, atol=1e-3, rtol=1e-4)
    for key, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, atol=1e-6)
    ours.eval(), theirs.eval()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 rows"):
        BatchNorm(5)(x[:1])


def test_projection_head_has_norms_between_layers_and_behind_the_last_on_demand() -> None:
    head = ProjectionHead(8, num_layers=3, hidden_dim=16, out_dim=4, norm_last=False)
    assert [tuple(linear.weight.shape) for linear in head.linears] == [(16, 8), (16, 16), (4, 16)]
    assert [linear.bias is not None for linear in head.linears] == [True, True, False]
    assert len(head.norms) == 2
    assert len(ProjectionHead(8, num_layers=1, hidden_dim=16, out_dim=4, norm_last=True).norms) == 1
    with pytest.raises(ValueError, match="must be positive"):
        ProjectionHead(8, num_layers=0, hidden_dim=16, out_dim=4, norm_last=False)


def contrast(**keys: object) -> ClipContrast:
    head = ProjectionHead(8, num_layers=2, hidden_dim=16, out_dim=4, norm_last=False)
    return ClipContrast(head, **{"temperature": 0.2, "negatives": None, "negatives_from": "batch", **keys})


def test_contrast_states_and_checks_its_negatives() -> None:
    vectors = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    output = contrast(negatives=3)(vectors)
    assert output.metrics["negatives"] == 3
    nats = float(output.metrics["loss_contrast"]) / 0.4
    assert float(output.metrics["loss_contrast_of_chance"]) == pytest.approx(nats / math.log(7))
    with pytest.raises(UsageError, match=r"is 127, and 4 videos that meet .* give 3: make them 128"):
        contrast(negatives=127)(vectors)
    contrast(negatives=127).eval()(vectors)
    with pytest.raises(UsageError, match="needs other videos in a batch"):
        contrast()(vectors[:1])
    for wrong in ({"temperature": 0.0}, {"negatives": 0}, {"negatives_from": "device"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            contrast(**wrong)


def test_bert_s_fates_are_80_10_10_and_shared_by_a_group() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCAB, (3000, 2, 4, 4), generator=generator)
    groups = torch.full_like(ids, -1)
    groups[:, 0], groups[:, 1, :2] = 0, 1
    seen, mask = corrupt(ids, groups, VOCAB, generator)
    assert not mask[groups < 0].any()
    assert torch.equal(seen[groups < 0], ids[groups < 0])
    assert not (mask & (seen != ids)).any()
    for group in (mask[:, 0], mask[:, 1, :2]):
        whole = group.flatten(1)
        assert torch.equal(whole.any(dim=1), whole.all(dim=1))
        assert abs(whole.any(dim=1).float().mean() - 0.8) < 0.03
    changed = (seen != ids)[:, 0].flatten(1).any(dim=1)
    assert abs(changed.float().mean() - 0.1) < 0.02
    noise = seen[:, 0][changed].flatten().bincount(minlength=VOCAB) / (16 * changed.sum())
    assert len(noise) == VOCAB
    assert (noise - 1 / VOCAB).abs().max() < 0.01
    assert F.one_hot(mask[:, 0, 0, 0].long() + mask[:, 1, 0, 0].long()).sum(0).min() > 50  # drawn apart


def test_bert_s_noise_spares_padding() -> None:
    ids = torch.full((500, 1, 2, 2), VOCAB + 1)
    seen, _ = corrupt(ids, torch.zeros_like(ids), VOCAB, torch.Generator().manual_seed(0))
    assert torch.equal(seen, ids)
