"""Masks out of patch tokens of a frozen network, and how good they are: region, boundary, mean IoU.

Two protocols: labels of a first frame that are carried through a video by the likeness of patches (video
object segmentation, as DINO does it on DAVIS), and a linear layer on patch tokens (semantic segmentation).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vidssl.config.protocol import LinearSegmentation, Propagation
from vidssl.evaluators.features import features_of
from vidssl.interfaces import NOT_JUDGED, Backbone, Tokenizer

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Input = Literal["still", "clips"]

BOUND = 0.008  # of the diagonal, how far a boundary may be off: DAVIS's
_MOST_PAIRS = 2**26  # of cells that are compared at once


def region(predicted: Bools, truth: Bools, judged: Bools) -> float:
    """Region similarity J of DAVIS (Perazzi et al. 2016): intersection over union; 1 where both are empty.

    Args:
        predicted, truth: [H, W], an object's pixels.
        judged: [H, W], False where no pixel counts.
    """
    union = int(((predicted | truth) & judged).sum())
    return int((predicted & truth & judged).sum()) / union if union else 1.0


def boundary(predicted: Bools, truth: Bools, judged: Bools) -> float:
    """Boundary measure F of DAVIS: precision and recall of contours that may be off by 0.008 of the diagonal.

    Contours match where they lie within that distance, rounded up to whole pixels. Of two empty contours F is
    1; of one that is empty 0.

    Args:
        predicted, truth, judged: as for ``region``.
    """
    radius = math.ceil(BOUND * math.hypot(*predicted.shape))
    own, theirs = contour(predicted & judged), contour(truth & judged)
    if not own.any() or not theirs.any():
        return float(own.any() == theirs.any())
    precision = (own & _near(theirs, radius)).sum() / own.sum()
    recall = (theirs & _near(own, radius)).sum() / theirs.sum()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def contour(mask: Bools) -> Bools:
    """Pixels that differ from their neighbour to the right, below, or below to the right."""
    ahead = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    found = mask ^ ahead[:-1, 1:] | mask ^ ahead[1:, :-1] | mask ^ ahead[1:, 1:]
    found[-1, -1] = False
    return found


def _near(contour: Bools, radius: int) -> Bools:
    """Pixels within a disk of the radius about any pixel of a contour."""
    found: Bools = ndimage.distance_transform_edt(~contour) <= radius
    return found


def object_scores(predicted: Array, truth: Array) -> Array:
    """Sums over the objects of a video, [J, F, objects]: of each the means over frames but first and last.

    Args:
        predicted: [T, H, W], numbers of objects.
        truth: [T, H, W], the same, 255 where pixels are not judged; objects are those of the first frame.
    """
    numbers = [number for number in np.unique(truth[0]) if number not in (0, NOT_JUDGED)]
    scored = range(1, len(truth) - 1)
    sums = np.zeros(3)
    for number in numbers:
        for measure, place in ((region, 0), (boundary, 1)):
            found = [
                measure(predicted[t] == number, truth[t] == number, truth[t] != NOT_JUDGED) for t in scored
            ]
            sums[place] += float(np.mean(found))
        sums[2] += 1
    return sums


def mean_iou(counts: Array) -> float:
    """Mean IoU over the classes that there are, of counts [K, K], a row a true class."""
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    there = union > 0
    return float((counts.diagonal()[there] / union[there]).mean()) if there.any() else 0.0


def class_counts(predicted: Array, truth: Array, num_classes: int) -> Array:
    """Pixels of each class that were given each class, [K, K]; those not judged do not count."""
    judged = truth != NOT_JUDGED
    places = truth[judged].astype(np.int64) * num_classes + predicted[judged]
    return np.bincount(places, minlength=num_classes**2).reshape(num_classes, num_classes)


@torch.no_grad()
def frame_features(
    backbone: Backbone,
    tokenizer: Tokenizer | None,
    frames: Tensor,
    *,
    feed: Input,
    num_frames: int,
    batch_size: int,
    autocast: bool,
) -> Tensor:
    """Patch tokens of every frame of a video, float32 [T, h, w, D].

    Args:
        backbone: in eval mode, on the device of the frames.
        frames: float32 [T, 3, H, W] in [0, 1], of a size that the backbone takes.
        feed: each frame "still" for a whole clip, whose cells in time are averaged; or "clips" of consecutive
            frames, the last one held, of which a frame gets the cell it lies in.
        num_frames: of a clip.
        batch_size: clips that go through the network together.
        autocast: bfloat16 autocast.
    """
    total = len(frames)
    length = 1 if feed == "still" else num_frames
    held = torch.arange(-(-total // length) * length).clamp(max=total - 1)
    clips = frames[held].unflatten(0, (-1, length)).transpose(1, 2)  # [N, 3, length, H, W]
    found = []
    for part in clips.split(batch_size):
        given = part.expand(-1, -1, num_frames, -1, -1) if feed == "still" else part
        with torch.autocast(frames.device.type, dtype=torch.bfloat16, enabled=autocast):
            found.append(features_of(backbone, tokenizer, given.contiguous()).patches.float())
    cells = torch.cat(found)  # [N, t, h, w, D]
    if feed == "still":
        return cells.mean(1)
    return cells.repeat_interleave(num_frames // cells.shape[1], dim=1).flatten(0, 1)[:total]


def propagated(features: Tensor, first: Tensor, size: tuple[int, int], how: Propagation) -> Tensor:
    """Numbers of objects in every frame, uint8 [T, *size]; of the first frame as they were given.

    Args:
        features: [T, h, w, D].
        first: uint8 [H, W], the first frame's objects; what is not judged counts as none.
        size: height and width of the frames that the features are of.
    """
    first = first.to(features.device)
    first = first * (first != NOT_JUDGED)
    numbers = first.unique()
    masks = (first == numbers[:, None, None]).float()[None]
    grid = (features.shape[1], features.shape[2])
    cells = (
        F.adaptive_avg_pool2d(masks, grid)
        if how.labels == "shares"
        else F.interpolate(masks, grid, mode="nearest-exact")
    )
    found = [F.interpolate(first[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.uint8)]
    for soft in _carried(F.normalize(features, dim=-1), cells[0], how)[1:]:  # at full size they are large
        fine = F.interpolate(soft[None], size, mode="bilinear")[0]
        low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
        # as in DINO's code: a small object's labels, spread thin by averaging, count as much as others
        named = torch.where(high > 0, (fine - low) / (high - low).clamp(min=1e-12), fine).argmax(0)
        found.append(numbers[named].to(torch.uint8))
    return torch.stack(found)


def _carried(features: Tensor, first: Tensor, how: Propagation) -> list[Tensor]:
    """Shares of each label in every frame's cells, [K, h, w] each.

    Args:
        features: [T, h, w, D], of length 1.
        first: [K, h, w], of the first frame.
    """
    height, width = features.shape[1:3]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns), -1).flatten(0, 1).to(features.device)
    labels = [first]
    for frame in range(1, len(features)):
        sources = sorted({0, *range(max(0, frame - how.context), frame)})
        keys, there = features[sources].flatten(0, 2), places.repeat(len(sources), 1)
        values = torch.stack([labels[number] for number in sources], 1).flatten(1)  # [K, S h w]
        found, step = [], max(1, _MOST_PAIRS // len(keys))
        for queries, own in zip(features[frame].flatten(0, 1).split(step), places.split(step), strict=True):
            far = (own[:, None] - there).abs().amax(-1) > how.window
            like = (queries @ keys.T).masked_fill(far, -torch.inf)
            best, chosen = like.topk(min(how.neighbours, like.shape[1]), dim=1)
            found.append((values[:, chosen] * (best / how.temperature).softmax(1)).sum(-1))
        labels.append(torch.cat(found, 1).unflatten(1, (height, width)))
    return labels


@dataclass(frozen=True)
class FittedLayer:
    """A linear layer and what its inputs are standardised with, each [D]."""

    layer: torch.nn.Linear
    mean: Tensor
    scale: Tensor

    def scores(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Of classes, [n, K, *size], of features [n, h, w, D]."""
        cells = self.layer((features.float() - self.mean) / self.scale).movedim(-1, 1)
        return F.interpolate(cells, tuple(size), mode="bilinear")

    @torch.no_grad()
    def classes(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Of each pixel, uint8 [n, *size]; frame by frame, as scores of all at once are large."""
        return torch.cat([self.scores(frame[None], size).argmax(1) for frame in features]).to(torch.uint8)


def fit_segmentation(
    features: Sequence[Tensor],
    masks: Sequence[Tensor],
    how: LinearSegmentation,
    *,
    num_classes: int,
    seed: int,
) -> FittedLayer:
    """A linear layer from patch tokens to classes of pixels.

    Args:
        features: [h, w, D] of each frame, on one device.
        masks: uint8 [H, W] of each frame, below ``num_classes`` or 255; they may be of several sizes.
        seed: of initial weights and orders.
    """
    device, dim = features[0].device, features[0].shape[-1]
    cells = torch.cat([part.flatten(0, 1) for part in features]).float()
    mean, scale = cells.mean(0), cells.std(0)
    scale = torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fitted = FittedLayer(torch.nn.Linear(dim, num_classes).to(device), mean, scale)
    optimizer = torch.optim.AdamW(fitted.layer.parameters(), lr=how.lr, weight_decay=how.weight_decay)
    steps = how.epochs * -(-len(features) // how.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(how.epochs):
        for batch in torch.randperm(len(features), generator=generator).split(how.batch_size):
            losses, judged = [], 0
            for number in batch.tolist():
                truth = masks[number].to(device)
                scores = fitted.scores(features[number][None], truth.shape)
                losses.append(
                    F.cross_entropy(scores, truth[None].long(), ignore_index=NOT_JUDGED, reduction="sum")
                )
                judged += int((truth != NOT_JUDGED).sum())
            optimizer.zero_grad()
            (torch.stack(losses).sum() / max(1, judged)).backward()
            optimizer.step()
            schedule.step()
    return fitted
