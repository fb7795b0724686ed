"""VIMPAC's transformer and both heads against the release's numbers, for every variation it offers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from vimpac_reference import MODELS, difference, load, part, toy_backbone, toy_vimpac

from vidssl.objectives.vimpac import VIMPAC

every_model = pytest.mark.parametrize("name", MODELS)
TOLERANCE = 1e-5


def model(name: str, golden: dict[str, Tensor]) -> VIMPAC:
    state = part(golden, "state/")
    return toy_vimpac(toy_backbone(name), state, golden["in/labels"] != -100).eval()


@pytest.fixture
def golden(name: str) -> dict[str, Tensor]:
    return load(name)


@every_model
@torch.no_grad()
def test_states_match(name: str, golden: dict[str, Tensor]) -> None:
    features = model(name, golden).encoder()(golden["in/tokens"])
    assert features.cls is not None
    assert difference(features.cls, golden["out/cls"]) < TOLERANCE
    assert difference(features.patches, golden["out/hidden"]) < TOLERANCE


@every_model
@torch.no_grad()
def test_hiding_puts_the_mask_id_where_the_release_has_it(name: str, golden: dict[str, Tensor]) -> None:
    net = model(name, golden).encoder()
    hidden = golden["in/labels"] != -100
    codes = torch.where(hidden, golden["in/labels"], golden["in/tokens"])
    assert torch.equal(net(codes, hidden).patches, net(golden["in/tokens"]).patches)
    assert hidden.any()


@every_model
@torch.no_grad()
def test_token_head_matches_at_the_hidden_ids(name: str, golden: dict[str, Tensor]) -> None:
    objective, labels = model(name, golden), golden["in/labels"]
    hidden = labels != -100
    codes = torch.where(hidden, labels, golden["in/tokens"])
    masked = objective.prediction.encode_masked(codes, torch.Generator())
    predictions = objective.prediction._predict(masked)
    assert torch.equal(predictions.positions, hidden.flatten().nonzero()[:, 0])
    if "out/masked_logits" in golden:
        assert difference(predictions.logits, golden["out/masked_logits"]) < TOLERANCE
    else:
        first = torch.zeros_like(hidden)
        first[:, :, 0, 0] = True
        assert difference(predictions.logits[first[hidden]], golden["out/first_masked_logits"]) < TOLERANCE
    output = objective.prediction(masked)
    assert difference(output.loss[None], golden["out/mlm_loss"]) < TOLERANCE


@every_model
@torch.no_grad()
def test_contrastive_head_matches_in_both_modes(name: str, golden: dict[str, Tensor]) -> None:
    head = model(name, golden).contrast.head
    assert difference(head(golden["out/cls"]), golden["out/cls_head_eval"]) < TOLERANCE
    head.train()
    assert difference(head(golden["in/head_features"]), golden["out/cls_head_train"]) < TOLERANCE
    for i, norm in enumerate(head.norms):
        after = part(golden, f"after_train/cls_head.mlp.bn_{i}.")
        assert set(after) == {"running_mean", "running_var", "num_batches_tracked"}
        for key, value in after.items():
            assert difference(getattr(norm, key), value) < TOLERANCE


@torch.no_grad()
def test_every_block_of_the_default_model_matches() -> None:
    golden = load("model_T_HW")
    net, seen = model("model_T_HW", golden).encoder(), {}

    def note(key: str) -> Callable[..., None]:
        return lambda _, __, output: seen.__setitem__(key, output)

    net.dropout.register_forward_hook(note("embed"))
    for j, norm in enumerate(net.layers[0].attention_norms):
        norm.register_forward_hook(note(f"layer0_att{j}"))
    for i, layer in enumerate(net.layers):
        layer.register_forward_hook(note(f"layer{i}"))
    net(golden["in/tokens"][:1])
    assert {key.rsplit("_", 1)[0] for key in part(golden, "inter/")} == set(seen)
    for key, tokens in seen.items():
        assert difference(tokens[:, 0], golden[f"inter/{key}_cls"]) < TOLERANCE
        assert difference(tokens[:, 1:].unflatten(1, (4, 8, 8)), golden[f"inter/{key}_hidden"]) < TOLERANCE
