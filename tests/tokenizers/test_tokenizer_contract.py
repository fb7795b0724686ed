"""What every tokenizer in the table must do, at toy size."""

import pytest
import torch

from vidssl.build.part_checks import try_tokenizer
from vidssl.interfaces import Tokenizer, TrainableTokenizer
from vidssl.tokenizers import TOKENIZERS
from vidssl.tokenizers.dalle import DALLE
from vidssl.tokenizers.measure import measure


def toy(name: str) -> Tokenizer:
    """Random weights of DALL-E choose one code for everything, so its logits are centred on some clips."""
    made = TOKENIZERS[name](**TOKENIZERS[name].toy)
    if isinstance(made, DALLE):
        with torch.no_grad():
            features = made.encoder.features(smooth_clips(8, 1, 32)[:, :, 0])
            mean_logits = made.encoder.output.weight.flatten(1) @ features.mean(dim=(0, 2, 3))
            made.encoder.output.bias.copy_(-mean_logits)
    return made


def smooth_clips(count: int, num_frames: int, size: int, seed: int = 0) -> torch.Tensor:
    """Blurred noise float32 [count, 3, num_frames, size, size] in [0, 1]: neighbouring pixels are alike."""
    coarse = torch.rand(count * num_frames, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    frames = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return frames.view(count, num_frames, 3, size, size).transpose(1, 2).contiguous()


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    torch.manual_seed(0)
    made = toy(request.param)
    if isinstance(made, TrainableTokenizer):
        generator = torch.Generator().manual_seed(0)
        for step in range(3):  # a few updates, so that the codebook lies among the outputs
            made.reconstruct(smooth_clips(8, 2, 32, seed=step))
            made.update_codebook(generator)
    return made


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 32), (1, 3, 1, 16, 48), (3, 3, 3, 16, 16)])
def test_ids_are_int64_on_the_announced_grid(tokenizer: Tokenizer, shape: tuple[int, ...]) -> None:
    try_tokenizer(tokenizer, shape[2:])
    ids = tokenizer.encode(torch.rand(shape))
    assert tuple(ids.shape) == (shape[0], *tokenizer.grid(*shape[2:]))


def test_ids_lie_in_the_vocabulary_and_vary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(smooth_clips(8, 2, 32))
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert len(ids.unique()) > tokenizer.vocab_size // 4


def test_a_size_that_leaves_a_rest_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="whole multiples"):
        tokenizer.encode(torch.rand(1, 3, 2, 32, 33))


def test_what_is_no_clip_is_refused(tokenizer: Tokenizer) -> None:
    clip = torch.rand(2, 3, 4, 32, 32)
    for given in (clip[:, :, 0], clip[:, :1], (255 * clip).byte()):
        with pytest.raises(ValueError, match=r"takes clips, float32 \[B, 3, T, H, W\] in \[0, 1\], got"):
            tokenizer.encode(given)


def test_encoding_and_decoding_keep_nothing_for_a_backward_pass(tokenizer: Tokenizer) -> None:
    clip = torch.rand(2, 3, 2, 32, 32, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pixels = tokenizer.decode(tokenizer.encode(clip))
    assert not kept
    assert not pixels.requires_grad


def test_ids_can_be_the_target_of_a_loss(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(torch.rand(1, 3, 1, 16, 16)).flatten()
    logits = torch.zeros(len(ids), tokenizer.vocab_size, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, ids).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("num_frames", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_ids_do_not_depend_on_the_batch_around_a_clip(tokenizer: Tokenizer, num_frames: int) -> None:
    clips = smooth_clips(21, num_frames, 48)
    together = tokenizer.encode(clips)
    alone = torch.cat([tokenizer.encode(clip[None]) for clip in clips])
    assert torch.equal(together, alone)


def test_encoding_changes_nothing_in_the_tokenizer(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(4, 2, 32)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    for training in (True, False):
        tokenizer.train(training)
        assert torch.equal(tokenizer.encode(clips), tokenizer.encode(clips))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_ids_are_the_same_in_training_and_evaluation_mode(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(4, 2, 32)
    assert torch.equal(tokenizer.train().encode(clips), tokenizer.eval().encode(clips))


def test_ids_are_the_same_under_autocast(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(8, 2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = tokenizer.encode(clips)
    assert torch.equal(under_autocast, tokenizer.encode(clips))


def test_decoding_gives_pixels_of_the_clips_shape_and_range(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(3, 2, 32)
    pixels = tokenizer.decode(tokenizer.encode(clips))
    assert pixels.shape == clips.shape
    assert pixels.dtype == torch.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_a_state_dict_round_trip_reproduces_the_ids(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(4, 2, 32)
    torch.manual_seed(1)  # the copy starts from other weights
    name = next(name for name, kind in TOKENIZERS.items() if kind is type(tokenizer))
    copy = toy(name)
    assert not torch.equal(copy.encode(clips), tokenizer.encode(clips))
    copy.load_state_dict(tokenizer.state_dict())
    assert torch.equal(copy.encode(clips), tokenizer.encode(clips))


def test_measuring_agrees_with_the_definitions(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(5, 2, 32)
    measured = measure(tokenizer, clips, torch.Generator().manual_seed(0), batch_size=2)
    ids = tokenizer.encode(clips)
    counts = torch.bincount(ids.flatten())
    shares = counts[counts > 0] / counts.sum()
    error = (tokenizer.decode(ids) - clips).square().mean()
    assert measured.psnr == pytest.approx(float(10 * torch.log10(1 / error)), rel=1e-4)
    assert measured.perplexity == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-4)
    assert (measured.used_codes, measured.vocab_size) == (len(shares), tokenizer.vocab_size)


def test_flicker_is_nothing_without_noise_and_grows_with_it(tokenizer: Tokenizer) -> None:
    clips = smooth_clips(6, 2, 32)

    def flicker(noise: float) -> float:
        return measure(tokenizer, clips, torch.Generator().manual_seed(0), noise=noise).flicker

    assert flicker(0.0) == 0
    assert 0 < flicker(0.05) < flicker(0.5) <= 1


def test_measuring_no_clip_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        measure(tokenizer, torch.zeros(0, 3, 2, 32, 32), torch.Generator())
