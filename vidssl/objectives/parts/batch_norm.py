"""Batch norm over the batches of all processes, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.gather import num_processes, sum_over_processes
from vidssl.engine.precision import full_precision


class BatchNorm(nn.Module):
    """Batch norm of rows [B, D] over all processes, each with as many. Its state is ``nn.BatchNorm1d``'s.

    ``nn.SyncBatchNorm`` would do on GPUs; it refuses the CPU. In training it computes in float32 or better,
    under autocast too.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] to the same shape.

        Raises:
            ValueError: in training, for one row in all, which has no variance.
        """
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        count = len(x) * num_processes()
        if count < 2:
            raise ValueError("batch norm in the head needs at least 2 rows: raise the batch size")
        with torch.autocast(x.device.type, enabled=False):
            x = full_precision(x)
            mean = sum_over_processes(x.sum(dim=0)) / count
            variance = sum_over_processes((x - mean).square().sum(dim=0)) / count
            self._remember(mean.detach(), variance.detach() * count / (count - 1))
            return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1
