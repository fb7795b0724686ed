"""Small networks under SVT's objective, views for them, and a step as the loop takes it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidssl.backbones.vit import ViT
from vidssl.interfaces import Backbone, Batch, Features, Progress
from vidssl.interfaces.grids import GridSize
from vidssl.objectives.svt import SVT

LOCALS = ((2, 16), (2, 16), (4, 16))
START = Progress(0, 10)


class ConvNet(Backbone):
    """Takes no mask, has no class token, but batch norm and dropout; any length and size."""

    takes_mask = False

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 8
        self.strides = (1, 4, 4)
        self.conv = nn.Conv3d(3, 8, (1, 4, 4), stride=(1, 4, 4))
        self.norm = nn.BatchNorm3d(8)
        self.drop = nn.Dropout(0.2)

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        return num_frames, height // 4, width // 4

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        assert mask is None
        return Features(self.drop(self.norm(self.conv(x)).relu()).permute(0, 2, 3, 4, 1))


def vit(drop_path: float = 0.0, class_token: bool = True) -> ViT:
    return ViT(
        embed_dim=12,
        depth=2,
        num_heads=2,
        patch_size=(2, 8, 8),
        class_token=class_token,
        drop_path=drop_path,
        init_std=0.2,
    )


def svt(backbone: Backbone | None = None, seed: int = 0, **keys: object) -> SVT:
    torch.manual_seed(seed)
    small: dict[str, object] = {
        "out_dim": 16,
        "head_hidden": 12,
        "bottleneck": 6,
        "freeze_last_layer_epochs": 0,
    }
    return SVT(backbone or vit(), **{**small, **keys})


def batch(count: int = 3, seed: int = 0, locals_: Sequence[tuple[int, int]] = LOCALS) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def views(shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        return tuple(torch.rand(count, 3, t, size, size, generator=generator) for t, size in shapes)

    return Batch({"global": views([(4, 32), (2, 32)]), "local": views(locals_)})


def loss_of(objective: SVT, views: Batch, progress: Progress = START) -> Tensor:
    return objective(views, progress, torch.Generator()).loss


def step(objective: SVT, views: Batch, progress: Progress, optimizer: torch.optim.Optimizer) -> float:
    loss = loss_of(objective, views, progress)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    objective.after_step(progress, torch.Generator())
    return float(loss.detach())
