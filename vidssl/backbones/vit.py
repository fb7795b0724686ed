"""ViT: one transformer over all space-time patches."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vidssl.backbones.blocks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalise,
    PatchEmbed,
    first_token_attention,
    hide,
    sincos_positions,
)
from vidssl.errors import UsageError
from vidssl.interfaces import Backbone, ClassAttention, Features, HasBlocks, Translated
from vidssl.interfaces.backbone import EncodesVisible, VisibleFeatures, check_clip, check_keep
from vidssl.interfaces.grids import GridSize
from vidssl.layers.transformer import (
    Block,
    Rotation,
    block_causal,
    drop_path_rates,
    init_linear,
    line_positions,
    rotary_positions,
    rows_at,
    shrink_deep_layers,
)
from vidssl.weights.vit_keys import V_JEPA_2, V_JEPA_2_1, VIDEO_MAE, to_vit

Positions = Literal["axes", "line", "rotary", "rotary_tiled"]
Attends = Literal["full", "block_causal"]
Norms = Literal["patches", "mean"]


class ViT(Backbone, HasBlocks, ClassAttention, EncodesVisible):
    """Plain transformer with joint attention over all space-time patches (ViT; ViViT Sec. 3.3, Model 1).

    Positions are fixed sine and cosine codes. They need no table, so a model takes clips of any length and
    size without interpolation, and nothing of them has to be learned, which short runs have no time for. An
    image (T = 1) has a patch embedding of its own and stands at time 0.

    Sizes (embed_dim, depth, num_heads): small 384, 12, 6; base 768, 12, 12; large 1024, 24, 16; huge 1280,
    32, 16; giant 1408, 40, 16 (22 in V-JEPA) with mlp_ratio 4.3637 (48/11); gigantic 1664, 48, 26 (V-JEPA
    2.1, whose mlp_ratio is 4). VideoMAE's ViT: ``positions: line, key_bias: false, init_std: null``, giant
    with patch_size [2, 14, 14]. V-JEPA 2's: ``positions: rotary_tiled, shrink_deep: true``; 2.1's:
    ``positions: rotary, position_span: 16, modality: true, shrink_deep: true`` and ``levels``. LeVJEPA's:
    ``positions: rotary, patch_size: [1, 16, 16], class_token: true``, and it may be block-causal.

    Args:
        embed_dim: width; even, as the position codes come in pairs.
        depth: number of blocks.
        num_heads: heads of each block.
        patch_size: frames, rows and columns of pixels of a patch.
        mlp_ratio: hidden width of a block's MLP over its own.
        drop_path: rate of the last block; it rises linearly from 0.
        class_token: whether a learned token joins the patches; ``Features.pooled`` is then its output.
            An objective that trains only patches, as BEVT does, leaves it untrained: off by default.
        positions: "axes" codes time, row and column apart, a third of the channels each; "line" numbers the
            cells of the flattened grid, as VideoMAE does: a cell's code then depends on the grid's size;
            "rotary" turns queries and keys in each block by time, row and column; "rotary_tiled" is the order
            of angles that V-JEPA 2's weights were trained with (``rotary_positions``).
        position_span: with rotary positions, rows and columns are scaled to those of so large a grid; null
            counts cells. 16 in V-JEPA 2.1.
        attention: "full", or "block_causal": cells look at their own and earlier times (LeVJEPA).
        modality: whether a learned vector is added to the cells of clips, another to those of images (V-JEPA
            2.1).
        levels: numbers of the blocks, from 0, behind which features are taken, each by a LayerNorm of its
            own; the last block is one of them. Empty for the last alone. Joined, they are what V-JEPA 2.1
            predicts from and predicts: [2, 5, 8, 11] for depth 12, [5, 11, 17, 23] for 24, [9, 19, 29, 39]
            for 40, [11, 23, 37, 47] for 48.
        key_bias: whether keys have a bias, which softmax takes away again; false is VideoMAE's layout.
        norm: the last LayerNorm is of the "patches", or of their "mean", which is then what is pooled and the
            patches stay as the last block leaves them: ``fc_norm`` of MAE's and VideoMAE's fine-tuning.
        init_std: standard deviation of the linear layers' initial weights; null draws them uniformly, as
            Glorot and VideoMAE do. 0.02 is published, for widths of 96 and more; a network of width 32
            learns nothing for long with it, and at once with 0.1 (measured).
        shrink_deep: whether the layers that end block l's two branches start divided by the root of 2 l.
        mean: of the training pixels, taken off each channel.
        std: of the training pixels, by which each channel is divided.
    """

    toy: ClassVar = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": (2, 8, 8)}

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: tuple[int, int, int] = (2, 16, 16),
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        class_token: bool = False,
        positions: Positions = "axes",
        position_span: int | None = None,
        attention: Attends = "full",
        modality: bool = False,
        levels: tuple[int, ...] = (),
        key_bias: bool = True,
        norm: Norms = "patches",
        init_std: float | None = 0.02,
        shrink_deep: bool = False,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if min(patch_size) < 1 or depth < 1:
            raise ValueError(f"patch_size and depth must be positive, got {patch_size} and {depth}")
        for given, choices in ((positions, Positions), (norm, Norms), (attention, Attends)):
            if given not in get_args(choices):
                raise ValueError(f"expected one of {', '.join(get_args(choices))}, got {given}")
        if norm == "mean" and (class_token or levels):
            raise ValueError(
                "norm 'mean' pools patches without a norm of their own, and class_token a token: leave "
                "class_token and levels out"
            )
        rotary = positions in ("rotary", "rotary_tiled")
        if position_span is not None and (not rotary or position_span < 2):
            raise ValueError("position_span is of rotary positions, and at least 2: leave it out with others")
        if levels and (sorted(set(levels)) != list(levels) or levels[0] < 0 or levels[-1] != depth - 1):
            raise ValueError(
                f"levels are numbers of blocks that rise to the last one, {depth - 1}, got {[*levels]}"
            )
        self.embed_dim = embed_dim
        self.levels = levels
        self.num_levels = max(1, len(levels))
        self.head_dim = embed_dim // num_heads
        self.position_span = position_span
        self.attention = attention
        self.gives_cls = class_token
        self.strides = patch_size
        self.positions = positions
        self.normalise = Normalise(mean, std)
        self.embed_clip = PatchEmbed(patch_size, embed_dim, norm=False)
        self.embed_image = PatchEmbed((1, *patch_size[1:]), embed_dim, norm=False)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        self.class_token = nn.Parameter(torch.empty(embed_dim)) if class_token else None
        self.clip_vector, self.image_vector = (
            nn.Parameter(1e-6 * torch.randn(embed_dim)) if modality else None for _ in range(2)
        )
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio=mlp_ratio, drop_path=rate, key_bias=key_bias)
            for rate in drop_path_rates(drop_path, depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6) if norm == "patches" else nn.Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if norm == "mean" else None
        self.level_norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=1e-6) for _ in levels[:-1])
        init_linear(self, init_std)
        if shrink_deep:
            shrink_deep_layers(self.blocks)
        for token in (self.mask_token, self.class_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        # refuses a width it cannot code
        self._codes((1, 1, 1), torch.device("cpu"))
        self._turns((1, 1, 1), torch.device("cpu"))

    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks)

    def block_norm(self) -> nn.Module:
        return self.norm

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        inner: list[tuple[str, ...]] = [(f"blocks.{i}",) for i in range(len(self.blocks))]
        inner[-1] += ("norm", "fc_norm")
        for number, level in enumerate(self.levels[:-1]):
            inner[level] += (f"level_norms.{number}",)
        first = ("embed_clip", "embed_image", "mask_token", "class_token", "clip_vector", "image_vector")
        return (first, *inner)

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights of an image ViT, of VideoMAE or V-JEPA, with any prefix; their positions are dropped.

        Raises:
            UsageError: if they are of another architecture: more blocks, layer scale, registers, fc_norm; or
                of V-JEPA, whose layout shows its rotary positions, and these are others.
        """
        found = to_vit(state, self.state_dict())
        if found is None:
            return None
        self._check_rotary(found.layout)
        if self.positions == "line" or not found.layout.startswith(VIDEO_MAE):
            return found
        return replace(found, layout=f"{found.layout}, without its positions (positions: line)")

    def _check_rotary(self, layout: str) -> None:
        needed: dict[str, object] = {}
        if layout.startswith(V_JEPA_2_1):
            needed = {"positions": "rotary", "position_span": 16, "modality": True}
        elif layout.startswith(V_JEPA_2):
            needed = {"positions": "rotary_tiled", "position_span": None, "modality": False}
        own = {
            "positions": self.positions,
            "position_span": self.position_span,
            "modality": self.clip_vector is not None,
        }
        wrong = [key for key in needed if needed[key] != own[key]]
        if wrong:
            shown = " ".join(
                f"backbone.{key}={'null' if needed[key] is None else str(needed[key]).lower()}"
                for key in wrong
            )
            raise UsageError(
                f"these weights ({layout}) compute something else with other positions: set {shown}"
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        grid = self.grid(*x.shape[2:])
        cls, tokens, levels = self._run(self._embed(x, mask), grid)
        summary = None if self.fc_norm is None else self.fc_norm(tokens.mean(dim=1))
        return Features(
            patches=tokens.unflatten(1, grid),
            cls=cls,
            summary=summary,
            levels=tuple(level.unflatten(1, grid) for level in levels),
        )

    def forward_visible(self, x: Tensor, keep: Tensor) -> VisibleFeatures:
        check_clip(x, self)
        check_keep(x, keep, self)
        grid = self.grid(*x.shape[2:])
        embed = self.embed_image if x.shape[2] == 1 else self.embed_clip
        tokens = embed.embed(rows_at(embed.pixels(self.normalise(x)).flatten(1, 3), keep))
        codes = self._codes(grid, x.device)
        tokens = self._marked(tokens, None if codes is None else codes.flatten(0, 2)[keep], x.shape[2])
        cls, tokens, levels = self._run(self._with_class_token(tokens), grid, keep)
        return VisibleFeatures(tokens, keep, grid, cls, levels)

    def _run(
        self, tokens: Tensor, grid: GridSize, keep: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, tuple[Tensor, ...]]:
        """Class token [B, D], where there is one, patches [B, n, D] behind the last norm, and levels."""
        around = self._around(grid, keep, tokens.device)
        first = int(self.gives_cls)
        levels: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, *around)
            if number in self.levels[:-1]:
                levels.append(self.level_norms[len(levels)](tokens[:, first:]))
        tokens = self.norm(tokens)
        patches = tokens[:, first:]
        cls = tokens[:, 0] if self.gives_cls else None
        return cls, patches, (*levels, patches) if self.levels else ()

    def _around(
        self, grid: GridSize, keep: Tensor | None, device: torch.device
    ) -> tuple[Rotation | None, Tensor | None]:
        """How tokens of all cells, or of those kept, are turned in each block, and what each may look at."""
        turns = self._turns(grid, device)
        if turns is not None:
            turns = turns if keep is None else turns.at(keep)
            turns = turns.behind_token() if self.gives_cls else turns
        if self.attention == "full":
            return turns, None
        places = torch.arange(prod(grid), device=device)[None] if keep is None else keep
        return turns, block_causal(places // (grid[1] * grid[2]), class_token=self.gives_cls)

    def _turns(self, grid: GridSize, device: torch.device) -> Rotation | None:
        """Rotary positions, tables [t * h * w, channels of a head]; None where there are others."""
        if self.positions not in ("rotary", "rotary_tiled"):
            return None
        tiled = self.positions == "rotary_tiled"
        return rotary_positions(grid, self.head_dim, device, tiled=tiled, span=self.position_span)

    def _codes(self, grid: GridSize, device: torch.device) -> Tensor | None:
        """Position codes that are added, float32 [t, h, w, D]; None where positions are rotary."""
        if self.positions == "axes":
            return sincos_positions(grid, self.embed_dim, device)
        if self.positions == "line":
            return line_positions(prod(grid), self.embed_dim, device).unflatten(0, grid)
        return None

    def class_attention(self, x: Tensor) -> Tensor:
        if self.class_token is None:
            raise ValueError("this ViT was made without a class token (class_token: false)")
        grid = self.grid(*x.shape[2:])
        tokens, around = self._embed(x, None), self._around(grid, None, x.device)
        for block in self.blocks[:-1]:
            tokens = block(tokens, *around)
        last = cast(Block, self.blocks[-1])
        return first_token_attention(last.attn, last.norm1(tokens), around[0]).unflatten(2, grid)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens with their positions, [B, t*h*w, D], the class token before them where there is one."""
        grid = self.grid(*x.shape[2:])
        x = self.normalise(x)
        frames = x.shape[2]
        x = hide(self.embed_image(x) if frames == 1 else self.embed_clip(x), mask, self.mask_token)
        x = self._marked(x, self._codes(grid, x.device), frames)
        return self._with_class_token(x.flatten(1, 3))

    def _marked(self, tokens: Tensor, codes: Tensor | None, frames: int) -> Tensor:
        """Tokens with their position codes, and the vector of clips or images, where there are such."""
        if codes is not None:
            tokens = tokens + codes.to(tokens.dtype)
        vector = self.image_vector if frames == 1 else self.clip_vector
        return tokens if vector is None else tokens + vector.to(tokens.dtype)

    def _with_class_token(self, tokens: Tensor) -> Tensor:
        if self.class_token is None:
            return tokens
        return torch.cat((self.class_token.expand(tokens.shape[0], 1, -1).to(tokens.dtype), tokens), dim=1)
