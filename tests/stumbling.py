"""An objective of a user's own that is no number at chosen steps, and a recipe of it in a working folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vidssl.interfaces import Backbone, Batch, LossOutput, Objective, Progress

FILE = Path(__file__).resolve()
SOURCE = "{type: moving_digits, split: train, size: 16, digit_size: 12, num_frames: 4, num_videos: 10}"
RECIPE = f"""\
name: stumbling
objective: {{type: "{FILE}:Stumbling", bad_steps: [2, 3]}}
backbone: {{type: vit, embed_dim: 8, depth: 1, num_heads: 2, patch_size: [2, 8, 8]}}
data:
  video:
    source: {SOURCE}
    views: {{type: single_clip, num_frames: 4, frame_stride: 1, size: 16}}
    batch_size: 4
augment: {{type: per_clip}}
optim: {{type: adamw, lr: 1e-2}}
schedule: {{type: cosine, steps: 6}}
run: {{workers: 0, device: cpu, log_every_steps: 2, checkpoint_every_steps: 100}}
"""


class Burst(nn.Module):
    """Passes features on, or divides zero by zero; its running mean sees either."""

    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.bad = False

    def forward(self, x: Tensor) -> Tensor:
        x = x * 0 / 0 if self.bad else x
        self.mean.lerp_(x.detach().float().mean(dim=0), 0.1)
        return x


class Stumbling(Objective):
    """The squared length of features of clips that random numbers are added to.

    Args:
        bad_steps: steps, from 0, at which it is no number.
        where: "module" for a module's output, "gradient" for the gradient alone, "loss" for what comes last.
    """

    needs_views: Mapping[str, int] = {"clip": 1}

    def __init__(
        self,
        backbone: Backbone,
        *,
        bad_steps: tuple[int, ...] = (),
        where: Literal["module", "gradient", "loss"] = "module",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.bad_steps = bad_steps
        self.where = where
        self.burst = Burst(backbone.embed_dim)
        self.head = nn.Linear(backbone.embed_dim, 2)
        self.dropout = nn.Dropout(0.3)
        self.average = nn.Linear(backbone.embed_dim, 2).requires_grad_(False)
        self.register_buffer("hooked", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        bad = self.training and progress.step in self.bad_steps
        self.burst.bad = bad and self.where == "module"
        clip = batch.views["clip"][0]
        clip = clip + torch.rand(clip.shape, generator=generator)
        features = self.backbone(clip).pooled()
        loss = self.head(self.dropout(self.burst(features))).square().mean()
        if bad and self.where == "gradient":
            loss = loss + (self.head.weight.sum() * 0).sqrt()  # 0, and the root's slope there is infinite
        if bad and self.where == "loss":
            loss = loss / 0
        return LossOutput(loss, {"loss": loss}, features)

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        self.hooked += 1
        for kept, current in zip(self.average.parameters(), self.head.parameters(), strict=True):
            kept.data.lerp_(current.data, 0.5)

    def encoder(self) -> Backbone:
        return self.backbone


def write_recipe(folder: Path) -> Path:
    """The folder, with the recipe ``stumbling.yaml`` in it."""
    (folder / "stumbling.yaml").write_text(RECIPE)
    return folder
