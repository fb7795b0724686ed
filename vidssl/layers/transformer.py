"""Pre-norm transformer blocks: what plain backbones, and the decoders of objectives, are built of."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drops a residual branch for whole samples with probability ``rate`` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.empty(len(branch), *[1] * (branch.dim() - 1), dtype=branch.dtype, device=branch.device)
        return branch * kept.bernoulli_(1 - self.rate).div_(1 - self.rate)


class Attention(nn.Module):
    """Multi-head self-attention over all of N tokens, [B, N, D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three m d) -> three b m n d", three=3, m=self.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(attended, "b m n d -> b n (m d)"))


class Block(nn.Module):
    """A pre-norm transformer block with attention over all tokens."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError if ``dim`` channels cannot be divided among the heads."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{dim} channels cannot be divided among {num_heads} heads")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 in the first block to ``last`` in the last."""
    if not 0 <= last < 1:
        raise ValueError(f"drop_path must be at least 0 and below 1, got {last}")
    return [last * i / max(1, depth - 1) for i in range(depth)]


def init_linear(network: nn.Module, std: float) -> None:
    """Initialises linear layers: weights from a truncated normal of standard deviation ``std``, biases zero.

    Raises:
        ValueError: if ``std`` is not above 0.
    """
    if std <= 0:
        raise ValueError(f"init_std must be above 0, got {std}")
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
