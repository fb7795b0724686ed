"""Transformer blocks, rotary positions, and batch norm over the batches of all processes."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidssl.engine.gather import num_processes, sum_over_processes
from vidssl.engine.speed import Lean, full_precision
from vidssl.interfaces.grids import GridSize, kept


class Rotation(NamedTuple):
    """Angles by which neighbouring channels of queries and keys are turned.

    Attributes:
        cos, sin: float32 [..., N, head width], against [B, heads, N, head width].
    """

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys [B, heads, N, d], turned; at least in float32, and then of their own type."""
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack((-second, first), dim=-1).flatten(-2)
        return (x * self.cos + across * self.sin).to(x.dtype)

    def at(self, places: Tensor) -> "Rotation":
        """Those of some cells, int64 [B, n], out of those of all."""
        return Rotation(self.cos[places].unsqueeze(1), self.sin[places].unsqueeze(1))

    def behind_token(self) -> "Rotation":
        """The same behind one token that has no place, and is not turned."""
        one, none = torch.ones_like(self.cos[..., :1, :]), torch.zeros_like(self.sin[..., :1, :])
        return Rotation(torch.cat((one, self.cos), dim=-2), torch.cat((none, self.sin), dim=-2))


@kept(64)
def rotary_positions(
    grid: GridSize, head_dim: int, device: torch.device, *, tiled: bool, span: int | None = None
) -> Rotation:
    """The rotation of each cell of a grid, tables [t * h * w, head_dim] (V-JEPA 2, published code).

    A third of a head's channels each, rounded down to pairs, stands for time, row and column; what is left
    over is not turned. Pair i of P turns by the cell's index times 10000 ** (-i / P).

    Args:
        tiled: sines and cosines in the order that V-JEPA 2's weights were trained with, f0 ... fn f0 ... fn,
            while neighbouring channels are paired, so that the two of a pair turn by different angles. Else,
            as V-JEPA 2.1's, f0 f0 ... fn fn: a rotation.
        span: rows and columns are scaled to run from 0 to ``span - 1`` on any grid (V-JEPA 2.1); times never.

    Raises:
        ValueError: if a head is too narrow or odd.
    """
    if head_dim % 2 or head_dim < 6:
        raise ValueError(
            f"rotary positions turn pairs of channels on three axes: a head needs an even number of them, at "
            f"least 6, got {head_dim}"
        )
    pairs = head_dim // 3 // 2
    with torch.inference_mode(False):
        frequency = 10_000 ** -(torch.arange(pairs, device="cpu", dtype=torch.float64) / pairs)
        frequency = frequency.repeat(2) if tiled else frequency.repeat_interleave(2)
        angles = torch.zeros(*grid, head_dim, dtype=torch.float64, device="cpu")
        for axis, size in enumerate(grid):
            step = 1.0 if span is None or axis == 0 else (span - 1) / max(1, size - 1)
            places = torch.arange(size, device="cpu", dtype=torch.float64) * step
            shape = [size if other == axis else 1 for other in range(3)]
            own = slice(2 * pairs * axis, 2 * pairs * (axis + 1))
            angles[..., own] = (places[:, None] * frequency).view(*shape, -1)
        flat = angles.flatten(0, 2)
        return Rotation(flat.cos().float().to(device), flat.sin().float().to(device))


def block_causal(times: Tensor, *, class_token: bool) -> Tensor:
    """Who may look at whom, bool [B, 1, N, N], if cells see their own and earlier times (LeVJEPA).

    A class token comes first; it looks at all, and nobody at it.

    Args:
        times: int64 [B, n], of each cell.
    """
    seen = times[:, None, :] <= times[:, :, None]
    if class_token:
        seen = torch.nn.functional.pad(seen, (1, 0, 1, 0))
        seen[:, 0] = True
    return seen.unsqueeze(1)


def unchanged(x: Tensor) -> Tensor:
    return x


class Mlp(Lean):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, before: Callable[[Tensor], Tensor] = unchanged) -> Tensor:
        """[..., D] to the same shape, ``before`` applied first."""
        hidden = self.kept_inputs(lambda x: self.fc1(before(x)), x)
        return self.kept_inputs(lambda hidden: self.fc2(F.gelu(hidden)), hidden)


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


class Attention(Lean):
    """Multi-head self-attention over all of N tokens, [B, N, D].

    ``forward`` may be told how queries and keys are turned, which tokens each one may look at, and what comes
    ``before``: a norm, that a lean layer computes again.

    Args:
        key_bias: off for BEiT's and VideoMAE's parameters, where keys have no bias and those of queries and
            values lie apart. Softmax takes a bias of keys away again, so that the functions are the same.
    """

    def __init__(self, dim: int, num_heads: int, *, key_bias: bool = True) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.zeros(dim))
        self.v_bias = None if key_bias else nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values, [3, B, heads, N, D / heads]."""
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        joined = F.linear(x, self.qkv.weight, bias)
        return rearrange(joined, "b n (three m d) -> three b m n d", three=3, m=self.num_heads)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        seen: Tensor | None = None,
        before: Callable[[Tensor], Tensor] = unchanged,
    ) -> Tensor:
        q, k, v = self.kept_inputs(lambda x: self.project(before(x)), x)
        if rotation is not None:
            q, k = rotation.turn(q), rotation.turn(k)
        return self.proj(rearrange(attend(q, k, v, seen), "b m n d -> b n (m d)"))


class Block(nn.Module):
    """A pre-norm transformer block with attention over all tokens, or, by ``seen``, over some."""

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float, drop_path: float, key_bias: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, key_bias=key_bias)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rotation: Rotation | None = None, seen: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(x, rotation, seen, before=self.norm1))
        return x + self.drop_path(self.mlp(x, before=self.norm2))


# keys up to which, in bf16 on a CPU, products and a softmax take less time than PyTorch's fused
# kernel: 0.1 to 0.6 of it, forward and backward, at 36 to 200; from 400 on as much or more
_FEW_KEYS = 256


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention of [..., heads, N, d].

    Args:
        seen: bool, broadcast to [..., heads, N, keys]: which keys each query may look at, one at least.
        dropout: share of the attention weights that are dropped.
    """
    on_cpu = q.device.type == "cpu"
    autocast = on_cpu and torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else q.dtype
    if on_cpu and dtype == torch.float16:  # scores may pass 65,504, and products take five times as long
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), seen, dropout).half()
    few = dtype == torch.bfloat16 and k.shape[-2] <= _FEW_KEYS
    # with dropout there is no fused kernel on a CPU
    if not (on_cpu and (dropout or few)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    return drop(weights, dropout) @ v


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout. On a CPU four numbers share a draw, at a rate in 1 / 65,536: half the time of PyTorch's."""
    if rate == 0:
        return x
    # compiled code draws once more in its backward pass, but for operations that are known to be random
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    dropped = int(rate * 2**16)
    kept = draws[: x.numel()].view(x.shape) >= dropped - 2**15
    return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Dropout(nn.Dropout):
    """PyTorch's by ``drop``."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p if self.training else 0.0)


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError if ``dim`` channels cannot be divided among the heads."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{dim} channels cannot be divided among {num_heads} heads")


_DEEPEST = 1000


def check_depth(depth: int, name: str = "depth") -> None:
    """Raises ValueError for a number of blocks that no network has: building them would not end."""
    if depth < 1:
        raise ValueError(f"{name} must be at least 1, got {depth}")
    if depth > _DEEPEST:
        raise ValueError(f"{name} must be at most {_DEEPEST:,}, got {depth}")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates that rise linearly from 0 in the first block to ``last`` in the last."""
    check_depth(depth)
    if not 0 <= last < 1:
        raise ValueError(f"drop_path must be at least 0 and below 1, got {last}")
    return [last * i / max(1, depth - 1) for i in range(depth)]


def init_linear(network: nn.Module, std: float | None) -> None:
    """Initialises linear layers: weights from a truncated normal of standard deviation ``std``, biases zero.

    Without one the weights are uniform as Glorot has them, the root of 6 / (inputs + outputs) at most.

    Raises:
        ValueError: if ``std`` is not above 0.
    """
    if std is not None and std <= 0:
        raise ValueError(f"init_std must be above 0 or null, got {std}")
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            if std is None:
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def shrink_deep_layers(blocks: Iterable[nn.Module]) -> None:
    """Divides the layers that end block l's two branches by the root of 2 l, l from 1 (V-JEPA, BEiT)."""
    with torch.no_grad():
        for number, block in enumerate(blocks, 1):
            assert isinstance(block, Block), "blocks of this file"
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.div_((2 * number) ** 0.5)


@kept(64)
def line_positions(count: int, dim: int, device: torch.device) -> Tensor:
    """Sine and cosine codes of the numbers 0 to count - 1, float32 [count, dim] (Vaswani et al. 2017, 3.5).

    One ladder of frequencies over all channels, sines at even and cosines at odd ones. VideoMAE counts the
    cells of a flattened grid with it, and keeps no such table in its weights.

    Raises:
        ValueError: if ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"position codes need an even number of channels, got {dim}")
    with torch.inference_mode(False):
        frequency = 10_000 ** -(torch.arange(0, dim, 2, device="cpu", dtype=torch.float64) / dim)
        angle = torch.arange(count, device="cpu", dtype=torch.float64)[:, None] * frequency
        return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1).float().to(device)


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """Rows [B, n, D] of each clip's rows [B, N, D] at ``places``, int64 [B, n]."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


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
