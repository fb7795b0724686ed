"""The VQ-VAE: its codebook, its gradients, and what goes wrong in neither."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vidssl.engine.distributed import end_group
from vidssl.tokenizers.frame_networks import of_length
from vidssl.tokenizers.vqvae import VQVAE, nearest_code


def toy(**keys: float) -> VQVAE:
    torch.manual_seed(0)
    settings = {"vocab_size": 16, "code_dim": 4, "width": 8, "stride": 8, "num_res_blocks": 1, **keys}
    return VQVAE(**settings)


def clips(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 2, 32, 32, generator=torch.Generator().manual_seed(seed))


def warmed(steps: int = 3, **keys: float) -> VQVAE:
    model, generator = toy(**keys), torch.Generator().manual_seed(0)
    for step in range(steps):
        model.reconstruct(clips(seed=step))
        model.update_codebook(generator)
    return model


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_each_stride_gives_its_grid_and_the_whole_picture_back(stride: int) -> None:
    model = toy(stride=stride)
    clip = torch.rand(2, 3, 3, 32, 48)
    assert model.grid(3, 32, 48) == (3, 32 // stride, 48 // stride)
    ids = model.encode(clip)
    assert tuple(ids.shape) == (2, 3, 32 // stride, 48 // stride)
    assert model.decode(ids).shape == clip.shape
    assert model.reconstruct(clip).pixels.shape == clip.shape


@pytest.mark.parametrize("stride", [8, 16])
def test_an_id_of_temporal_stride_two_stands_for_its_own_two_frames(stride: int) -> None:
    model = warmed(temporal_stride=2, stride=stride)
    clip = torch.rand(2, 3, 6, 32, 48)
    ids = model.encode(clip)
    assert tuple(ids.shape) == (2, 3, 32 // stride, 48 // stride) == (2, *model.grid(6, 32, 48))
    assert model.decode(ids).shape == clip.shape
    assert model.reconstruct(clip).pixels.shape == clip.shape
    pairs = [model.encode(clip[:, :, start : start + 2]) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(pairs, dim=1), ids)
    with pytest.raises(ValueError, match="whole multiples"):
        model.encode(clip[:, :, :3])


def test_both_frames_of_a_tubelet_come_back_in_their_place() -> None:
    """Frames that differ can only be rebuilt apart if none is averaged away or swapped with another."""
    torch.manual_seed(0)
    model = toy(temporal_stride=2, vocab_size=4, num_res_blocks=0, width=16, ema_decay=0.5)
    levels = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.3, 0.7], [0.8, 0.8]])
    clip = levels.view(4, 1, 2, 1, 1).expand(4, 3, 2, 16, 16).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        result = model.reconstruct(clip)
        loss = (result.pixels - clip).square().mean() + 0.25 * result.regulariser
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebook(torch.Generator().manual_seed(0))
    means = model.decode(model.encode(clip)).mean(dim=(1, 3, 4))
    torch.testing.assert_close(means, levels, atol=0.12, rtol=0)


def test_an_image_is_a_still_tubelet() -> None:
    model = warmed(temporal_stride=2)
    image = clips()[:, :, :1]
    still = image.expand(-1, -1, 2, -1, -1)
    ids = model.encode(image)
    assert tuple(ids.shape[1:]) == model.grid(1, 32, 32) == (1, 4, 4)
    assert torch.equal(ids, model.encode(still))
    made = model.reconstruct(image)
    assert torch.equal(made.ids, ids)
    torch.testing.assert_close(made.pixels, model.reconstruct(still).pixels.mean(dim=2, keepdim=True))
    assert model.decode(ids).shape == still.shape
    assert of_length(model.decode(ids), 1).shape == image.shape


def test_the_nearest_of_many_codes_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = torch.randn(5, 7, 4), torch.randn(8192, 4)
    whole = nearest_code(vectors, codebook)
    flat = nearest_code(vectors.flatten(0, 1)[None], codebook)
    sizes: list[int] = []
    multiply = torch.baddbmm

    def noting(*given: torch.Tensor, alpha: int) -> torch.Tensor:
        sizes.append(multiply(*given, alpha=alpha).numel())
        return multiply(*given, alpha=alpha)

    monkeypatch.setattr("vidssl.tokenizers.vqvae._MOST_DISTANCES", 8192 * 10)
    monkeypatch.setattr(torch, "baddbmm", noting)
    assert torch.equal(nearest_code(vectors, codebook), whole)
    assert torch.equal(nearest_code(vectors.flatten(0, 1)[None], codebook), flat)
    assert torch.equal(flat.view(5, 7), whole)
    assert [size // 8192 for size in sizes] == [7] * 5 + [10, 10, 10, 5]


def test_eight_thousand_codes_are_taken_from_the_data_and_used() -> None:
    model = toy(vocab_size=8192, stride=16, width=32)
    clip = torch.rand(16, 3, 2, 64, 64, generator=torch.Generator().manual_seed(0))  # 512 outputs
    for step in range(2):
        ids = model.reconstruct(clip).ids
        model.update_codebook(torch.Generator().manual_seed(step))
    assert len(ids.unique()) > 400


def test_frames_are_encoded_one_by_one() -> None:
    model, clip = warmed(), clips()
    frames = [model.encode(clip[:, :, [i]]) for i in range(2)]
    assert torch.equal(torch.cat(frames, dim=1), model.encode(clip))


def test_encoder_outputs_do_not_depend_on_the_batch_by_a_single_bit() -> None:
    """Ids that agree prove little: few outputs lie so near to two codes that the last bit decides."""
    model, clip = toy(width=64), torch.rand(37, 3, 1, 48, 48)
    outputs: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda module, taken, given: outputs.append(given))
    model.encode(clip)
    together = torch.cat(outputs)[:37]
    outputs.clear()
    for each in clip:
        model.encode(each[None])
    alone = torch.stack([output[0] for output in outputs])
    assert torch.equal(together, alone)


def test_reconstruct_and_encode_agree_on_the_ids() -> None:
    model, clip = warmed(), clips()
    assert torch.equal(model.reconstruct(clip).ids, model.encode(clip))


def test_decoding_the_ids_gives_the_reconstructed_pixels() -> None:
    model, clip = warmed().eval(), clips()
    result = model.reconstruct(clip)
    torch.testing.assert_close(model.decode(result.ids), result.pixels.detach().clamp(0, 1))


def test_the_nearest_code_is_that_of_the_smallest_distance() -> None:
    vectors, codebook = torch.randn(3, 50, 4), torch.randn(16, 4)
    expected = [[int((codebook - v).norm(dim=1).argmin()) for v in rows] for rows in vectors]
    assert nearest_code(vectors, codebook).tolist() == expected


def test_gradients_reach_encoder_and_decoder_through_the_codes() -> None:
    model = warmed()
    with torch.no_grad():
        for parameter in model.parameters():  # residual blocks start at zero, which hides what lies before
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.reconstruct(clips()).pixels.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_gradient_at_the_code_is_the_gradient_at_the_encoder_output() -> None:
    model, clip = warmed().eval(), clips(1)
    seen: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, taken: tuple[torch.Tensor, ...], given: torch.Tensor) -> None:
        given.register_hook(seen.append)

    hook = model.encoder.register_forward_hook(watch)
    result = model.reconstruct(clip)
    hook.remove()
    result.pixels.square().sum().backward()
    codes = model.codebook[result.ids].requires_grad_()  # [B, t, h, w, D]
    model._decode_vectors(codes).square().sum().backward()
    assert codes.grad is not None
    torch.testing.assert_close(seen[0], codes.grad.flatten(0, 1).permute(0, 3, 1, 2))


def test_the_regulariser_pulls_the_encoder_and_nothing_else() -> None:
    model = warmed()
    before = model.codebook.clone()
    model.reconstruct(clips()).regulariser.backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())
    assert torch.equal(model.codebook, before)


def test_the_codebook_follows_the_moving_averages_of_the_paper() -> None:
    """Eq. 6 to 8, code by code and output by output, beside the vectorised update."""
    model = warmed(ema_decay=0.9)
    model.revive_below = 0.0
    counts, sums = model.ema_counts.tolist(), [row.clone() for row in model.ema_sums]
    batches = [clips(seed=7), clips(seed=8)]  # two reconstructions before one update, as in accumulation
    chosen: list[list[torch.Tensor]] = [[] for _ in range(model.vocab_size)]
    for batch in batches:
        outputs = model.encoder(batch.transpose(1, 2).flatten(0, 1) * 2 - 1).detach()
        for frame, ids in zip(outputs, model.encode(batch).flatten(0, 1), strict=True):
            for vector, code in zip(frame.flatten(1).t(), ids.flatten().tolist(), strict=True):
                chosen[code].append(vector)
        model.reconstruct(batch)
    model.update_codebook(torch.Generator())
    for code, vectors in enumerate(chosen):
        total = sum(vectors, torch.zeros(4))
        count = 0.9 * counts[code] + 0.1 * len(vectors)
        expected = (0.9 * sums[code] + 0.1 * total) / count
        torch.testing.assert_close(model.codebook[code], expected, rtol=1e-4, atol=1e-6)


def test_the_first_update_takes_the_codebook_from_the_data() -> None:
    model, clip = toy(), clips()
    outputs = model.encoder(clip.transpose(1, 2).flatten(0, 1) * 2 - 1).detach()
    outputs = outputs.permute(0, 2, 3, 1).flatten(0, 2)
    ids = model.reconstruct(clip).ids.flatten()
    means = torch.stack([outputs[ids == code].mean(dim=0) for code in ids.unique()])
    model.update_codebook(torch.Generator().manual_seed(0))
    apart = (model.codebook[:, None] - torch.cat([outputs, means])).norm(dim=2).min(dim=1).values
    assert apart.max() < 1e-6
    assert len(model.encode(clip).unique()) >= 15  # and not from one corner of it


def test_a_code_that_nothing_chooses_comes_back() -> None:
    model = warmed(ema_decay=0.5)
    model.codebook[3] = 1e3
    model.ema_sums[3] = 1e3 * model.ema_counts[3]
    model.eval()
    assert 3 not in model.encode(clips()).unique()
    model.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):  # enough for the average to fall from an even share to below 3 % of it
        model.reconstruct(clips())
        model.update_codebook(generator)
    assert model.codebook[3].abs().max() < 100
    assert 3 in model.encode(clips()).unique()


def test_without_revival_a_dead_code_stays_where_it_is() -> None:
    model = warmed(ema_decay=0.5)
    model.revive_below = 0.0
    model.codebook[3] = 1e3
    model.ema_sums[3] = 1e3 * model.ema_counts[3]
    for _ in range(12):
        model.reconstruct(clips())
        model.update_codebook(torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.codebook[3], torch.full((4,), 1e3))


def test_more_codes_than_outputs_can_be_revived() -> None:
    model = toy(vocab_size=64)
    model.reconstruct(torch.rand(1, 3, 1, 16, 16))  # four outputs
    model.update_codebook(torch.Generator().manual_seed(0))
    assert torch.isfinite(model.codebook).all()


def test_revival_is_a_function_of_the_generator() -> None:
    def codebook(seed: int) -> torch.Tensor:
        model = toy()
        model.reconstruct(clips())
        model.update_codebook(torch.Generator().manual_seed(seed))
        return model.codebook

    assert torch.equal(codebook(1), codebook(1))
    assert not torch.equal(codebook(1), codebook(2))


def test_evaluation_mode_collects_nothing() -> None:
    model = warmed().eval()
    before = model.codebook.clone()
    model.reconstruct(clips(seed=9))
    model.update_codebook(torch.Generator())
    assert torch.equal(model.codebook, before)


def test_a_batch_that_is_not_finite_leaves_the_codebook_alone() -> None:
    model, other = warmed(), warmed()
    model.reconstruct(clips() * float("nan"))  # the loop skips such a step, and with it the update
    for each in (model, other):
        each.reconstruct(clips(seed=9))
        each.update_codebook(torch.Generator().manual_seed(0))
    assert torch.equal(model.codebook, other.codebook)


def test_statistics_of_a_step_are_used_once() -> None:
    model = warmed()
    before = model.codebook.clone()
    model.update_codebook(torch.Generator())
    assert torch.equal(model.codebook, before)


def _train_part(rank: int, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The codebook of one of two processes, before and after codes were moved."""
    model = warmed(ema_decay=0.9)
    model.revive_below = 0.0
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        generator = torch.Generator().manual_seed(rank)
        for step in range(2):
            model.reconstruct(clips(8, seed=step)[rank::2])
            model.update_codebook(generator)
        averaged = model.codebook.clone()
        model.revive_below = 0.9  # many codes move, and in each process other outputs could be drawn
        model.reconstruct(clips(8, seed=5)[rank::2])
        model.update_codebook(generator)
    finally:
        end_group()
    return averaged, model.codebook


def _second_process(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save(_train_part(1, folder), folder / "second.pt")


@pytest.mark.slow
def test_two_processes_keep_the_codebook_of_one(tmp_path: Path) -> None:
    second = mp.get_context("spawn").Process(target=_second_process, args=(tmp_path,))
    second.start()
    averaged, revived = _train_part(0, tmp_path)
    second.join()
    averaged_too, revived_too = torch.load(tmp_path / "second.pt")
    alone = warmed(ema_decay=0.9)
    alone.revive_below = 0.0
    for step in range(2):
        alone.reconstruct(clips(8, seed=step))
        alone.update_codebook(torch.Generator())
    torch.testing.assert_close(averaged, alone.codebook, rtol=1e-4, atol=1e-6)
    assert torch.equal(averaged, averaged_too)
    assert not torch.equal(averaged, revived)
    assert torch.equal(revived, revived_too)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"stride": 6}, "stride must be 4, 8 or 16, got 6"),
        ({"temporal_stride": 4}, "temporal_stride must be 1 or 2, got 4"),
        ({"vocab_size": 0}, "at least 1"),
        ({"num_res_blocks": -1}, "at least 0"),
        ({"ema_decay": 1.0}, r"must lie in \[0, 1\)"),
        ({"revive_below": -0.1}, r"must lie in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy(**keys)
