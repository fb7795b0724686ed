"""``run.precision``: the type of the numbers, and the scale of the loss that float16 needs."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_runs import records

from vidssl import api as v
from vidssl.backbones.video_swin import attend as swin_attend
from vidssl.config.recipe import RunSpec
from vidssl.engine import speed
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.runfolder import RunFolder
from vidssl.engine.speed import (
    Precision,
    autocast_dtype,
    load_scaler,
    loss_scaler,
    lower,
    scale_metrics,
    scale_of,
    scaler_tensors,
    use_bfloat16,
)
from vidssl.layers.transformer import attend, drop

CPU = torch.device("cpu")


def test_precision_names_a_type() -> None:
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    assert autocast_dtype("fp16", CPU) == torch.float16
    assert use_bfloat16("bf16", CPU)
    assert not use_bfloat16("fp16", CPU)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("has", [True, False])
def test_a_precision_that_this_cpu_emulates_is_named_once(
    precision: Precision, has: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: has)
    speed._note_emulation.cache_clear()
    for _ in range(2):
        autocast_dtype(precision, CPU)
    autocast_dtype("fp32", CPU)
    named = [line for line in caplog.messages if f"{precision}: this CPU has no instructions" in line]
    assert len(named) == (not has)


class _Kernels(TorchDispatchMode):
    """Notes whether PyTorch's fused attention was called."""

    fused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused |= "scaled_dot_product" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_in_half_precision_is_softmax_attention(dtype, masked) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, 20, 16, generator=generator, dtype=torch.float64) for _ in range(3)]
    seen = (torch.rand(2, 1, 20, 20, generator=generator) < 0.5) | torch.eye(20, dtype=torch.bool)
    inputs = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with _Kernels() as kernels:
        found = attend(*inputs, seen=seen if masked else None)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=seen if masked else None)
    assert (kernels.fused, found.dtype) == (dtype == torch.float16, dtype)
    assert torch.allclose(found.double(), expected, atol=0.02)
    for x, y in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), exact),
        strict=True,
    ):
        assert (x.double() - y).norm() < 0.02 * y.norm()


@pytest.mark.parametrize(
    ("dtype", "autocast", "keys", "fused"),
    [
        (torch.float32, False, 20, True),
        (torch.float32, True, 20, False),
        (torch.float16, False, 20, True),
        (torch.bfloat16, False, 256, False),
        (torch.bfloat16, False, 257, True),
    ],
)
def test_the_fused_kernel_is_called_where_it_is_faster(dtype, autocast, keys, fused) -> None:
    q, k = torch.randn(1, 1, 2, 8, dtype=dtype), torch.randn(1, 1, keys, 8, dtype=dtype)
    with _Kernels() as kernels, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        attend(q, k, k)
    assert kernels.fused == fused


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["vit", "dropout", "swin"])
def test_attention_in_fp16_has_weights_where_scores_pass_its_largest_number(kind, autocast) -> None:
    q = torch.tensor([[300.0, 0.0], [0.0, 300.0]]).repeat(1, 8)[None, None].half()
    bias = torch.zeros(1, 1, 2, 2, requires_grad=True)
    q, k = q.requires_grad_(), 2 * q.detach()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        if kind == "swin":
            found = swin_attend(q, k, q, bias)
        else:
            found = attend(q, k, q, dropout=1e-6 if kind == "dropout" else 0.0)
    assert torch.equal(found, q)
    assert torch.autograd.grad(found.sum(), q)[0].isfinite().all()


def test_attention_has_shapes_without_memory() -> None:
    q = torch.empty(2, 3, 20, 16, device="meta")
    assert attend(q, q, q).shape == q.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 401, dtype=dtype, requires_grad=True)
    dropped = drop(x, 0.25)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert dropped.dtype == dtype
    assert torch.equal(gradient, dropped)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3], rel=4e-3)
    for share in ((dropped == 0).float(), (dropped == 0).float()[:, ::4], (dropped == 0).float()[100:200]):
        assert share.mean() == pytest.approx(0.25, abs=0.01)
    assert not torch.equal(drop(x, 0.25), dropped)
    assert drop(x, 0.0) is x


def test_attention_weights_are_dropped_in_half_precision_too() -> None:
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 500, 8, dtype=torch.bfloat16)
    v = torch.ones(1, 1, 100, 8, dtype=torch.bfloat16)
    kept = attend(q, torch.zeros_like(v), v, dropout=0.25).float()
    assert kept.mean() == pytest.approx(1.0, abs=0.02)
    assert kept.std() == pytest.approx((0.25 / 0.75 / 100) ** 0.5, rel=0.1)


def test_the_scale_of_the_loss_comes_back_and_is_lowered() -> None:
    scaler = loss_scaler(torch.float16, CPU)
    assert scale_metrics(scaler) == {"loss_scale": 65536.0}
    scaler.scale(torch.ones(()))
    lower(scaler)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    other = loss_scaler(torch.float16, CPU)
    load_scaler(other, scaler_tensors(scaler))
    assert scale_of(other) == 32768.0
    assert other.state_dict() == scaler.state_dict()
    assert other.state_dict()["_growth_tracker"] == 1
    assert torch.equal(weight, torch.zeros(2))


def test_without_float16_nothing_is_scaled_or_kept() -> None:
    for dtype in (None, torch.bfloat16):
        scaler = loss_scaler(dtype, CPU)
        assert (scale_of(scaler), scale_metrics(scaler), scaler_tensors(scaler)) == (None, {}, {})
        lower(scaler)
        load_scaler(scaler, {"scale": torch.tensor(2.0), "steps": torch.tensor(1)})
        assert float(scaler.scale(torch.tensor(3.0))) == 3.0


class Steep(v.Objective):
    """A layer whose gradient in float16 is infinite under a scale above 512."""

    needs_views: ClassVar = {"clip": 1}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 1)
        self.register_buffer("hooked", torch.zeros(()))

    def forward(self, batch, progress, generator):
        out = self.net(batch.views["clip"][0].mean(dim=(2, 3, 4)).new_ones(1, 4))
        assert out.dtype == torch.float16
        loss = (out.float() * 100).sum()
        return v.LossOutput(loss, {"loss": loss.detach()})

    def encoder(self):
        return self.net

    def after_step(self, progress, generator):
        self.hooked += 1


def steep_run(folder: Path, resume: Path | None = None, stop_after: int | None = None) -> v.TrainResult:
    videos = v.MovingDigits(split="train", size=16, digit_size=12, num_frames=2, num_videos=4)
    stream = v.Stream(videos, v.SingleClip(num_frames=2, frame_stride=1, size=16), batch_size=2)
    return v.train(
        Steep(),
        {"video": stream},
        optim=v.AdamW(lr=0.1, clip_norm=1.0),
        schedule=v.Cosine(steps=12),
        name="steep",
        run=RunSpec(out=str(folder), log_every_steps=1, device="cpu", precision="fp16"),
        resume=resume,
        stop_after=stop_after,
        console=Console(quiet=True),
    )


@pytest.mark.slow
def test_float16_lowers_the_scale_of_the_loss_until_gradients_are_numbers(tmp_path, monkeypatch) -> None:
    result = steep_run(tmp_path)
    found = records(RunFolder(result.folder))
    scales = [record["loss_scale"] for record in found]
    assert scales == [2.0**power for power in (15, 14, 13, 12, 11, 10, 9, 9, 9, 9, 9, 9)]
    assert [record.get("scaled_down_steps", 0) for record in found] == [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7]
    assert ["grad_norm" in record for record in found] == [False] * 7 + [True] * 5
    # of the gradient as it is, not as it was scaled: 100 for each of four weights and a bias
    assert found[-1]["grad_norm"] == pytest.approx(100 * 5**0.5, rel=1e-3)
    assert "skipped_steps" not in found[-1]
    checkpoint = read_checkpoint(result.checkpoint)
    assert float(checkpoint.objective["hooked"]) == 5

    half = steep_run(tmp_path, stop_after=4)
    again = steep_run(tmp_path, resume=half.folder)
    assert records(RunFolder(again.folder)) == found
    other = read_checkpoint(again.checkpoint)
    assert all(torch.equal(other.encoder[key], value) for key, value in checkpoint.encoder.items())
