"""The network of the attentive probe: a learned query that looks at patch tokens, and a linear layer.

V-JEPA (Bardes et al. 2024) has one block of cross-attention; V-JEPA 2 (Assran et al. 2025) puts blocks of
self-attention before it.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02  # V-JEPA's; where weights are scaled, of queries and of matrices that read 1024 channels


class AttentiveNetwork(nn.Module):
    """Patch tokens to logits.

    Args:
        num_queries: learned queries; what they find goes side by side into the linear layer.
        depth: blocks, the last of which is the cross-attention.
        published: draw weights as both releases do, a normal of deviation 0.02 (which they cut at -2 and 2,
            a hundred deviations out), and divide those that end branch l by the root of 2 l: projections
            and MLPs of block l, counted from 1, and the MLP of the cross-attention, which counts as the
            block before it. Otherwise the deviation follows the width that a matrix reads, cut at two
            deviations, so that narrow networks start on V-JEPA's scale.
        generator: draws the weights, on the CPU.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        num_queries: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        generator: torch.Generator,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SelfAttention(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
            for _ in range(depth - 1)
        )
        self.queries = nn.Parameter(torch.empty(num_queries, embed_dim))
        self.pool = CrossAttention(embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.head = nn.Linear(num_queries * embed_dim, num_classes)
        _draw(self.queries, INIT_STD, generator, cut=not published)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                scale = 1.0 if published else math.sqrt(1024 / module.in_features)
                _draw(module.weight, INIT_STD * scale, generator, cut=not published)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if published:
            self._divide_ends_of_branches()

    @torch.no_grad()
    def _divide_ends_of_branches(self) -> None:
        for name, weight in self.named_parameters():
            if name.endswith(("project.weight", "mlp.3.weight")):
                number = int(name.split(".")[1]) + 1 if name.startswith("blocks") else len(self.blocks)
                weight.div_(math.sqrt(2 * max(number, 1)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, K] of tokens [B, n, D]."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.pool(self.queries, tokens).flatten(1))


class CrossAttention(nn.Module):
    """Queries attend to normed tokens; what they find is added to them, and an MLP's answer to that.

    The values' matrix makes what is found; there is no further projection: V-JEPA's code defines one and does
    not apply it, V-JEPA 2's has none.

    There are a few queries and a thousand tokens, so the matrices of keys and values are applied to the
    queries and to what was found, not to each token: (K s) . q = s . (K^T q), and the sum of V s is V times
    the sum of s. The result is the same; at V-JEPA's width it takes a sixtieth of the products. A bias of the
    keys would add the same to all tokens, which a softmax does not see, so they have none.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(embed_dim)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """[B, q, D] of queries [q, D], the same for all clips, and tokens [B, n, D]."""
        tokens = self.norm(tokens)
        query, key, value = (
            rearrange(part, pattern, h=self.num_heads)
            for part, pattern in (
                (self.query(queries), "q (h d) -> h q d"),
                (self.key.weight, "(h d) c -> h d c"),
                (self.value.weight, "(h d) c -> h d c"),
            )
        )
        sought = torch.einsum("hqd,hdc->hqc", query, key) / math.sqrt(query.shape[-1])
        weights = torch.einsum("bnc,hqc->bhqn", tokens, sought).softmax(-1)
        found = torch.einsum("bhqc,hdc->bqhd", torch.einsum("bhqn,bnc->bhqc", weights, tokens), value)
        attended = queries + found.flatten(2) + self.value.bias
        return attended + self.mlp(attended)


class SelfAttention(nn.Module):
    """A pre-norm block of a ViT."""

    def __init__(self, *, embed_dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(embed_dim)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim)
        self.project = nn.Linear(embed_dim, embed_dim)
        self.mlp = _mlp(embed_dim, mlp_ratio)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, n, D] of [B, n, D]."""
        query, key, value = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.project(attend(query, key, value, self.num_heads))
        return tokens + self.mlp(tokens)


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of query [B, q, D] over key and value [B, n, D], [B, q, D]."""
    heads = [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def _mlp(embed_dim: int, mlp_ratio: float) -> nn.Sequential:
    hidden = int(embed_dim * mlp_ratio)
    return nn.Sequential(
        nn.LayerNorm(embed_dim), nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim)
    )


def _draw(weight: Tensor, std: float, generator: torch.Generator, *, cut: bool) -> None:
    if cut:
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    else:
        nn.init.normal_(weight, std=std, generator=generator)
