"""Means of what was measured since the last log line."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.interfaces import Batch


class Window:
    """Collects metrics of steps without waiting for the device; ``means`` empties it."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._metrics: dict[str, list[Tensor]] = {}
        self._samples: dict[str, int] = {}
        self._waited = 0.0
        self._started = time.monotonic()

    def add(
        self,
        metrics: Mapping[str, Tensor],
        grad_norm: Tensor | None = None,
        batch: Batch | None = None,
        waited_seconds: float = 0.0,
    ) -> None:
        """One step: its metrics, gradient norm, batch and the seconds it waited for data."""
        named = dict(metrics) if grad_norm is None else {**metrics, "grad_norm": grad_norm}
        for name, value in named.items():
            self._metrics.setdefault(name, []).append(value.detach())
        for name, slots in batch.views.items() if batch is not None else ():
            self._samples[name] = self._samples.get(name, 0) + len(slots[0])
        self._waited += waited_seconds

    def tensors(self) -> dict[str, Tensor]:
        """What was collected, one tensor a metric; ``load`` takes it back. Times are left out."""
        return {name: torch.stack(values) for name, values in self._metrics.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Goes on with what ``tensors`` gave; speeds are measured anew."""
        self._clear()
        self._metrics = {name: list(values.to(device).unbind()) for name, values in tensors.items()}

    def means(self) -> dict[str, float]:
        """Mean of each metric, samples a second of each view, share of the time spent waiting for data."""
        means = {name: float(torch.stack(values).float().mean()) for name, values in self._metrics.items()}
        seconds = max(time.monotonic() - self._started, 1e-9)
        means.update({f"{name}s_per_second": count / seconds for name, count in self._samples.items()})
        if self._samples:
            means["data_wait_share"] = self._waited / seconds
        self._clear()
        return means


def over_processes(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What processes measured, as one: means over those that have a metric, speeds added up."""
    if len(found) == 1:
        return dict(found[0])
    names = dict.fromkeys(name for values in found for name in values)
    totals = {name: [values[name] for values in found if name in values] for name in names}
    return {
        name: sum(values) / (1 if name.endswith("s_per_second") else len(values))
        for name, values in totals.items()
    }
