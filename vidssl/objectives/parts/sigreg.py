"""SIGReg: how far projections are from a standard normal cloud, looked at along random directions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vidssl.engine.gather import num_processes, sum_over_processes
from vidssl.engine.precision import full_precision

KNOTS = 17
_LAST_KNOT = 3.0
SIGREG_OF_NORMAL = 1.05  # of standard normal samples, whatever their number


def directions_of_step(step: int, dim: int, count: int, device: torch.device) -> Tensor:
    """Random unit vectors, float32 [dim, count], a function of the step alone: every process has the same."""
    drawn = torch.randn(dim, count, generator=torch.Generator().manual_seed(step))
    return F.normalize(drawn, dim=0).to(device)


def sigreg(projections: Tensor, directions: Tensor) -> Tensor:
    """The statistic of Epps and Pulley along each direction, times N, mean over directions (LeJEPA, Sec. 4).

    Along a direction the empirical characteristic function of N projections is held against that of a
    standard normal, exp(-t^2 / 2), at 17 points t from 0 to 3; squared differences are weighed by
    exp(-t^2 / 2) and integrated by trapezoids over both signs of t. Times N, standard normal samples have
    about 1.05 whatever N is. N counts the rows of all processes, whose means are taken together; each process
    gets the whole value.

    Args:
        projections: [..., B, K]; the mean is taken over what stands before B.
        directions: [K, M], unit vectors.
    """
    with torch.autocast(projections.device.type, enabled=False):
        rows = full_precision(projections)
        along = rows @ directions.to(rows.dtype)
        t = torch.linspace(0, _LAST_KNOT, KNOTS, dtype=along.dtype, device=along.device)
        normal = (-t.square() / 2).exp()
        weights = torch.full_like(t, 2 * _LAST_KNOT / (KNOTS - 1))
        weights[[0, -1]] /= 2
        angles = along.unsqueeze(-1) * t  # [..., B, M, knots]
        sums = torch.stack((angles.cos().sum(dim=-3), angles.sin().sum(dim=-3)))
        count = along.shape[-2] * num_processes()
        cos, sin = sum_over_processes(sums) / count
        squared = (cos - normal).square() + sin.square()
        return count * (squared * (weights * normal)).sum(dim=-1).mean()
