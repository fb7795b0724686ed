"""Finite scalar quantisation: its levels, its numbering, and the gradient that passes the rounding."""

import itertools

import pytest
import torch

from vidssl.interfaces import Batch, Progress
from vidssl.objectives.tokenizer import TokenizerTraining
from vidssl.tokenizers.fsq import FSQ


def toy(levels: tuple[int, ...] = (5, 4, 3), **keys: int) -> FSQ:
    torch.manual_seed(0)
    return FSQ(levels=levels, **{"width": 8, "stride": 8, "num_res_blocks": 1, **keys})


def clips(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 2, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [(2,), (3,), (8,), (5, 4, 3), (8, 5, 5, 5)])
def test_every_code_has_its_point_and_every_point_its_id(levels: tuple[int, ...]) -> None:
    model = toy(levels)
    ids = torch.arange(model.vocab_size)
    points = model.codes_of(ids)
    axes = [[(i - size // 2) / (size // 2) for i in range(size)] for size in levels]
    expected = {tuple(round(x, 4) for x in point) for point in itertools.product(*axes)}
    assert {tuple(round(x, 4) for x in point) for point in points.tolist()} == expected
    # outputs that land in the middle of each level: App. A.1's bound backwards
    sizes = torch.tensor(levels)
    half, offset = (sizes - 1) * (1 - 1e-3) / 2, 0.5 * (sizes % 2 == 0)
    outputs = ((points * (sizes // 2) + offset) / half).clamp(-0.9999, 0.9999).atanh() - (offset / half).tan()
    assert torch.equal(model.ids_of(outputs), ids)


def test_ids_count_the_first_number_fastest() -> None:
    model = toy((5, 4, 3))
    steps = model.codes_of(torch.tensor([0, 1, 5, 20])) * torch.tensor([2, 2, 1])
    assert steps.tolist() == [[-2, -2, -1], [-1, -2, -1], [-2, -1, -1], [-2, -2, 0]]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_outputs_of_any_size_reach_all_levels_and_no_others(size: int) -> None:
    model = toy((size,))
    ids = model.ids_of(torch.linspace(-30, 30, 6001)[:, None])
    assert ids.unique().tolist() == list(range(size))
    assert bool((ids.diff() >= 0).all())
    assert int(model.ids_of(torch.zeros(1, 1))) == size // 2  # zero rounds to zero


def test_the_vocabulary_is_the_product_of_the_levels() -> None:
    assert toy((8, 5, 5, 5)).vocab_size == 1000


def test_reconstruct_encode_and_decode_agree() -> None:
    model, clip = toy().eval(), clips()
    result = model.reconstruct(clip)
    assert torch.equal(result.ids, model.encode(clip))
    torch.testing.assert_close(model.decode(result.ids), result.pixels.detach().clamp(0, 1))
    assert float(result.regulariser) == 0


def test_the_gradient_passes_the_rounding_as_if_it_were_not_there() -> None:
    model, clip = toy(), clips(1)
    outputs: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, taken, given: outputs.append(given))
    model.reconstruct(clip).pixels.square().sum().backward()
    through = [p.grad.clone() for p in model.encoder.parameters() if p.grad is not None]
    assert len(through) == len(list(model.encoder.parameters()))
    model.zero_grad()
    rounded = model.codes_of(
        model.encode(clip)
    ).requires_grad_()  # the gradient there, times that of the bound
    model._decode_codes(rounded).square().sum().backward()
    assert rounded.grad is not None
    bounded = model._bounded(model.encoder(clip.transpose(1, 2).flatten(0, 1) * 2 - 1).permute(0, 2, 3, 1))
    model.zero_grad()
    bounded.backward(rounded.grad.flatten(0, 1) / (model.levels // 2))
    for ours, theirs in zip(through, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)


def test_encoder_outputs_do_not_depend_on_the_batch_by_a_single_bit() -> None:
    model, clip = toy(width=64), torch.rand(21, 3, 1, 48, 48)
    outputs: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, taken, given: outputs.append(given))
    model.encode(clip)
    together = torch.cat(outputs)[:21]
    outputs.clear()
    for each in clip:
        model.encode(each[None])
    assert torch.equal(together, torch.stack([output[0] for output in outputs]))


def test_training_needs_no_codebook_and_uses_many_codes() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = toy((4, 4), width=32)
    objective = TokenizerTraining(model, commitment_weight=0.0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    colours = torch.rand(12, 3, generator=generator)
    blocks = colours[torch.randint(12, (8, 1, 4, 4), generator=generator)].movedim(-1, 1)
    blocks = blocks.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    losses, metrics = [], {}
    for step in range(40):
        output = objective(Batch({"image": (blocks,)}), Progress(step, 40), generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        objective.after_step(Progress(step, 40), generator)
        losses.append(output.loss.item())
        metrics = output.metrics
    flat = float(blocks.var())  # the error of a grey picture
    assert losses[-1] < 0.5 * flat < losses[0]
    assert float(metrics["used_codes"]) > 0.7


def test_weights_are_the_networks_alone() -> None:
    assert {key.split(".")[0] for key in toy().state_dict()} == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"levels": ()}, "at least 2"),
        ({"levels": (8, 1)}, "at least 2"),
        ({"stride": 6}, "stride must be 4, 8 or 16, got 6"),
        ({"num_res_blocks": -1}, "at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FSQ(**keys)
