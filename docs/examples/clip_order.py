"""Clip order prediction after Xu et al. (CVPR 2019): an objective of one's own, in one file.

The paper encodes the clips one by one. Here they are segments of one clip, which is encoded after they were
shuffled, so that it keeps its size and every backbone takes it.
"""

from collections.abc import Mapping
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidssl.interfaces import Backbone, Batch, LossOutput, Objective, Progress


class ClipOrder(Objective):
    """Predicts the order in which the segments of a clip were put, from its pooled features.

    Metrics: ``loss_order``, a cross entropy in nats, and ``accuracy_order``; chance is 1 in num_segments!.

    Args:
        num_segments: of a clip, whose frames must be a multiple; 3 clips in the paper.
        hidden: width of the head's hidden layer (ours).
    """

    needs_views: Mapping[str, int] = {"clip": 1}
    splits_batch = True
    toy: Mapping[str, object] = {"num_segments": 2, "hidden": 16}

    def __init__(self, backbone: Backbone, *, num_segments: int = 3, hidden: int = 512) -> None:
        super().__init__()
        if not 2 <= num_segments <= 5:
            raise ValueError(f"num_segments must lie between 2 and 5, got {num_segments}")
        self.backbone = backbone
        orders = torch.tensor(list(permutations(range(num_segments))))
        self.orders: Tensor  # [num_segments!, num_segments]
        self.register_buffer("orders", orders, persistent=False)
        self.head = nn.Sequential(
            nn.Linear(backbone.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, len(orders))
        )

    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        (clip,) = batch.views["clip"]
        num_segments = self.orders.shape[1]
        if clip.shape[2] % num_segments:
            raise ValueError(f"{clip.shape[2]} frames cannot be cut into {num_segments} equal segments")
        drawn = torch.randint(len(self.orders), (len(clip),), generator=generator, device=generator.device)
        drawn = drawn.to(clip.device)
        segments = clip.unflatten(2, (num_segments, -1))  # [B, 3, num_segments, T / num_segments, H, W]
        pairs = zip(segments, self.orders[drawn], strict=True)
        shuffled = torch.stack([cut[:, order] for cut, order in pairs]).flatten(2, 3)
        logits = self.head(self.backbone(shuffled).pooled())
        loss = F.cross_entropy(logits, drawn)
        accuracy = (logits.argmax(1) == drawn).float().mean()
        return LossOutput(loss, {"loss_order": loss.detach(), "accuracy_order": accuracy})

    def encoder(self) -> Backbone:
        return self.backbone
