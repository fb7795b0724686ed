"""The scale of the loss under float16, which keeps small gradients from rounding to zero."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.amp import GradScaler


def loss_scaler(dtype: torch.dtype | None, device: torch.device) -> GradScaler:
    """PyTorch's scaler, at work under float16 alone; under any other type its methods do what they are named.

    Args:
        dtype: of the forward pass, None for full precision.
    """
    return GradScaler(device.type, enabled=dtype == torch.float16)


def scale_of(scaler: GradScaler) -> float | None:
    """What the loss is multiplied by; None where it is not scaled."""
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
    """What going on needs: the scale, and the steps since it last changed; ``load_scaler`` takes it back."""
    if not scaler.is_enabled():
        return {}
    state = scaler.state_dict()
    return {
        "scale": torch.tensor(state["scale"], dtype=torch.float64),
        "steps": torch.tensor(state["_growth_tracker"]),
    }


def load_scaler(scaler: GradScaler, tensors: Mapping[str, Tensor]) -> None:
    """Goes on with what ``scaler_tensors`` gave; a run that was none of float16 has nothing to give."""
    if scaler.is_enabled() and tensors:
        state = {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["steps"])}
        scaler.load_state_dict({**scaler.state_dict(), **state})
