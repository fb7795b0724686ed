"""Training a tokenizer: the loss, its metrics, and that it learns."""

import math

import pytest
import torch

from vidssl.interfaces import Batch, Progress, Reconstruction, TrainableTokenizer
from vidssl.objectives.tokenizer import TokenizerTraining
from vidssl.tokenizers.vqvae import VQVAE


class Echo(TrainableTokenizer):
    """A tokenizer that dims its input by a learned share and gives the ids it was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 4
        self.strides = (1, 1, 1)
        self.share = torch.nn.Parameter(torch.tensor(0.5))
        self.ids = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
        self.updates = 0

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        return self.ids

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def reconstruct(self, clip: torch.Tensor) -> Reconstruction:
        return Reconstruction(clip * self.share, self.ids, self.share.square())

    def update_codebook(self, generator: torch.Generator) -> None:
        self.updates += 1


def run(objective: TokenizerTraining, clip: torch.Tensor, step: int = 0) -> dict[str, float]:
    progress, generator = Progress(step, 100), torch.Generator()
    output = objective(Batch({"image": (clip,)}), progress, generator)
    objective.after_step(progress, generator)
    return {"loss": output.loss.item(), **{name: float(value) for name, value in output.metrics.items()}}


WHITE = torch.ones(1, 3, 1, 2, 2)


@pytest.mark.parametrize(("loss", "expected"), [("l2", 0.25), ("l1", 0.5)])
def test_loss_is_the_error_plus_the_weighted_regulariser(loss: str, expected: float) -> None:
    objective = TokenizerTraining(Echo(), loss=loss, commitment_weight=0.5)
    seen = run(objective, WHITE)
    assert seen["reconstruction"] == pytest.approx(expected)
    assert seen["regulariser"] == pytest.approx(0.25)
    assert seen["loss"] == pytest.approx(expected + 0.5 * 0.25)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_psnr_is_of_the_squared_error_under_both_losses(loss: str) -> None:
    seen = run(TokenizerTraining(Echo(), loss=loss), WHITE)
    assert seen["psnr"] == pytest.approx(10 * math.log10(4))


def test_perplexity_and_used_codes_look_back_over_the_window() -> None:
    echo = Echo()
    objective = TokenizerTraining(echo, usage_window=2)
    seen = []
    for step, code in enumerate([0, 1, 1, 1]):
        echo.ids = torch.full((1, 1, 2, 2), code)
        seen.append(run(objective, WHITE, step))
    assert [s["used_codes"] for s in seen] == [0.25, 0.5, 0.25, 0.25]
    assert [s["perplexity"] for s in seen] == pytest.approx([1, 2, 1, 1])


def test_batches_of_one_step_are_counted_together() -> None:
    echo = Echo()
    objective = TokenizerTraining(echo, usage_window=1)
    for code in (0, 3):
        echo.ids = torch.full((1, 1, 2, 2), code)
        output = objective(Batch({"image": (WHITE,)}), Progress(0, 10), torch.Generator())
    assert float(output.metrics["perplexity"]) == pytest.approx(2)


def test_an_evaluation_pass_leaves_the_window_alone() -> None:
    objective = TokenizerTraining(Echo()).eval()
    seen = run(objective, WHITE)
    assert seen["perplexity"] == pytest.approx(1)
    assert int(objective.recent_counts.sum()) == 0


def test_the_codebook_is_updated_once_a_step() -> None:
    echo = Echo()
    objective = TokenizerTraining(echo)
    run(objective, WHITE)
    assert echo.updates == 1


def test_the_run_saves_the_tokenizer() -> None:
    echo = Echo()
    assert TokenizerTraining(echo).encoder() is echo


def test_metrics_carry_no_gradient() -> None:
    output = TokenizerTraining(Echo())(Batch({"image": (WHITE,)}), Progress(0, 1), torch.Generator())
    assert output.loss.requires_grad
    assert not any(value.requires_grad for value in output.metrics.values())


def test_a_few_steps_on_one_batch_lower_the_loss_and_use_the_codebook() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tokenizer = VQVAE(vocab_size=16, code_dim=4, width=32, stride=8, num_res_blocks=1, ema_decay=0.9)
    objective = TokenizerTraining(tokenizer)
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
    assert float(metrics["used_codes"]) == 1
    assert float(metrics["perplexity"]) > 8


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"commitment_weight": -1.0}, "commitment_weight must not be negative"),
        ({"usage_window": 0}, "at least 1 step"),
        ({"loss": "huber"}, "loss must be 'l1' or 'l2', got 'huber'"),
    ],
)
def test_arguments_out_of_range_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerTraining(Echo(), **keys)
