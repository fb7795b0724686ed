"""Which device, which precision, how much memory."""

import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.overrides import TorchFunctionMode

from vidssl.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_device(name: Device) -> torch.device:
    """The device of a recipe's ``run.device``: ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: if CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("run.device is cuda, and torch sees no CUDA device; use run.device=cpu or auto")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


_NORMAL = (
    Tensor.normal_, nn.init.normal_, nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.xavier_normal_,
)  # fmt: skip


class _NoDraws(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        tensor = args[0] if args else (kwargs or {}).get("tensor")
        if func in _NORMAL and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        if func is torch.randn and not kwargs:  # neither another device nor a generator
            func = torch.empty
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """``torch.device("meta")``, on which networks have shapes and no memory, without normal draws.

    There is nothing to draw, and PyTorch would import its compiler for it, which takes a second or two.
    """
    with torch.device("meta"), _NoDraws():
        yield


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Type of the forward pass of training, None for full precision; "auto" as ``use_bfloat16``."""
    if use_bfloat16(precision, device):
        return torch.bfloat16
    return torch.float16 if precision == "fp16" else None


def use_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast: when asked to, or under ``auto`` on a GPU that has units
    for it.

    What is only measured (features, test metrics) runs so too, but never under float16, where it is the scale
    of the loss that keeps small numbers.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use so far: of the GPU by tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def loss_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler:
    """PyTorch's scaler, at work under float16 alone; under any other type its methods do what they are named.

    Args:
        dtype: of the forward pass, None for full precision.
    """
    return GradScaler(device.type, enabled=dtype == torch.float16)


def scale_of(scaler: GradScaler) -> float | None:
    """Factor of the loss; None where it is not scaled."""
    return scaler.get_scale() if scaler.is_enabled() else None


def lower(scaler: GradScaler) -> None:
    """Halves the scale after a step that was not taken; all processes come to the same one."""
    if scaler.is_enabled():
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())


def scale_metrics(scaler: GradScaler) -> dict[str, float]:
    """For the log: ``loss_scale``, where there is one."""
    scale = scale_of(scaler)
    return {} if scale is None else {"loss_scale": scale}


def scaler_tensors(scaler: GradScaler) -> dict[str, Tensor]:
    """State for a resume: the scale, and the steps since it last changed; ``load_scaler`` takes it back."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {
        "scale": torch.tensor(state["scale"], dtype=torch.float64),
        "steps": torch.tensor(state["_growth_tracker"]),
    }


def load_scaler(scaler: GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """Restores the state of ``scaler_tensors``; there is none of a run that was not in float16."""
    if scaler.is_enabled() and tensors:
        state = {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["steps"])}
        scaler.load_state_dict({**scaler.state_dict(), **state})
