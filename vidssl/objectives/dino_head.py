"""The projection head of DINO: an MLP, a direction, and its cosine with each of many prototypes."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.objectives.batch_norm import BatchNorm


class DinoHead(nn.Module):
    """From features to logits over prototypes (DINO, App. C; SVT, Sec. 3.1).

    Parameters carry the published names: ``mlp.0``, ``mlp.2``, ... and ``last_layer.weight_g``, ``weight_v``.

    Args:
        widths: of the features, of each hidden layer and of the direction, at least the first and the last.
        num_prototypes: width of the logits.
        batch_norm: whether batch norm stands behind each hidden layer.
        norm_last_layer: whether prototypes keep length 1, or learn it.

    Raises:
        ValueError: if a width is below 1, or there are fewer than 2 prototypes.
    """

    def __init__(
        self, widths: tuple[int, ...], num_prototypes: int, *, batch_norm: bool, norm_last_layer: bool
    ) -> None:
        super().__init__()
        if min(widths) < 1 or num_prototypes < 2:
            raise ValueError(
                f"a head needs widths above 0 and 2 prototypes, got {widths} and {num_prototypes}"
            )
        layers: list[nn.Module] = []
        for width, hidden in pairwise(widths[:-1]):
            norm = [BatchNorm(hidden)] if batch_norm else []
            layers += [nn.Linear(width, hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = Prototypes(widths[-1], num_prototypes)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor, *, freeze_last: bool = False) -> Tensor:
        """Logits [N, K] of features [N, D].

        Args:
            freeze_last: let no gradient reach the prototypes.
        """
        return self.last_layer(F.normalize(self.mlp(features), dim=-1), frozen=freeze_last)


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are a direction times a length (weight normalisation).

    PyTorch's own keeps hooks that make it hard to copy, and renames its parameters.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1))
        # the first directions are those of PyTorch's linear layer, as published: the MLP's 0.02 is not for it
        self.weight_v = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())

    def forward(self, x: Tensor, *, frozen: bool) -> Tensor:
        weight = self.weight_g * F.normalize(self.weight_v, dim=-1)
        return F.linear(x, weight.detach() if frozen else weight)
