"""Contrast between two clips of a video: InfoNCE over all processes, and the head it is taken on."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine.gather import gather_rows, rank
from vidssl.engine.precision import full_precision
from vidssl.objectives.parts.batch_norm import BatchNorm


@dataclass(frozen=True)
class Contrast:
    """InfoNCE of a batch.

    Attributes:
        loss: mean over both directions, in nats.
        accuracy: share of clips whose nearest other clip is that of the same video.
        num_videos: n, over all processes. A clip is told apart from 2n - 2 others.
        gap: mean cosine of clips of one video, less that of clips of different ones. No gradient.
    """

    loss: Tensor
    accuracy: Tensor
    num_videos: int
    gap: Tensor


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Contrast:
    """Each clip finds the other one of its video among all clips but itself (VIMPAC, Eq. 5 and 6).

    The loss is that of this process's rows among the rows of all processes; the mean over processes is the
    loss of the whole batch, and their averaged gradients are its gradient.

    Args:
        first: [B, D], vectors of one clip of each video; B is the same in all processes.
        second: [B, D], of another clip of the same videos.
        temperature: gamma; the cosines are divided by it.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(full_precision(x), dim=1) for x in (first, second))
        others = torch.cat((gather_rows(first), gather_rows(second)))
        n = len(others) // 2
        own = torch.arange(len(first), device=first.device) + rank() * len(first)
        itself, partner = torch.cat((own, own + n)), torch.cat((own + n, own))
        cosines = torch.cat((first, second)) @ others.t()
        similarity = cosines / temperature
        similarity = similarity.scatter(1, itself.unsqueeze(1), -math.inf)
        return Contrast(
            loss=F.cross_entropy(similarity, partner),
            accuracy=(similarity.detach().argmax(dim=1) == partner).float().mean(),
            num_videos=n,
            gap=_gap(cosines.detach(), itself, partner),
        )


def _gap(cosines: Tensor, itself: Tensor, partner: Tensor) -> Tensor:
    """How much more alike than others partners are; each row has its own and its partner's column."""
    own, positive = (cosines.gather(1, column.unsqueeze(1)).squeeze(1) for column in (itself, partner))
    negative = (cosines.sum(dim=1) - own - positive) / max(1, cosines.shape[1] - 2)
    return (positive - negative).mean()


class ProjectionHead(nn.Module):
    """From a clip's vector to the one that is contrasted: linear layers with BatchNorm and ReLU between.

    The last layer has no bias, and usually no norm (VIMPAC, Eq. 18; published code).

    Args:
        dim: width of the input.
        num_layers: linear layers.
        hidden_dim: width of all layers but the last.
        out_dim: width of the last.
        norm_last: whether a BatchNorm follows the last layer as well.
    """

    def __init__(self, dim: int, *, num_layers: int, hidden_dim: int, out_dim: int, norm_last: bool) -> None:
        super().__init__()
        if min(num_layers, hidden_dim, out_dim) < 1:
            raise ValueError(
                "head_layers, head_hidden_dim and head_dim must be positive, got "
                f"{num_layers}, {hidden_dim} and {out_dim}"
            )
        dims = [dim] + [hidden_dim] * (num_layers - 1)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        self.linears.append(nn.Linear(dims[-1], out_dim, bias=False))
        self.norms = nn.ModuleList(BatchNorm(hidden_dim) for _ in dims[1:])
        if norm_last:
            self.norms.append(BatchNorm(out_dim))
        for linear in self.linears:
            nn.init.normal_(linear.weight, std=0.02)  # type: ignore[arg-type]
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim] to [B, out_dim]."""
        last = len(self.linears) - 1
        for i, linear in enumerate(self.linears):
            x = linear(x)
            x = self.norms[i](x) if i < len(self.norms) else x
            x = x.relu() if i < last else x
        return x
