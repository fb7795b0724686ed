"""From tables of features to what a probe learns from and is tested on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vidssl.data.groups import group_numbers
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.scoring import average_views, check_scores
from vidssl.interfaces import Evaluator, LabelledFeatures, LabelledPatches, PatchEvaluator, PatchTokens
from vidssl.protocol import Average


@dataclass(frozen=True)
class Rows:
    """Some videos of a table, with one of their labels.

    Attributes:
        numbers: int64 [N], their rows, on the device of the features.
    """

    table: FeatureTable
    label: str
    numbers: Tensor

    @property
    def labels(self) -> Tensor:
        """int64 [N], their classes."""
        return self.table.labels[self.label][self.numbers]

    @property
    def groups(self) -> Tensor | None:
        """int64 [N], the group of each, videos without one by themselves; None where there are none."""
        names = [self.table.groups[number] for number in self.numbers.tolist()] if self.table.groups else []
        numbers = group_numbers(names)
        return None if numbers is None else torch.tensor(numbers, device=self.numbers.device)


def labelled_rows(table: FeatureTable, label: str) -> Rows:
    """The videos that have a label, by key, so that the order of a list changes nothing that is learned."""
    known = table.labels[label].tolist()
    numbers = [number for number in range(len(known)) if known[number] >= 0]
    numbers.sort(key=table.keys.__getitem__)
    return Rows(table, label, torch.tensor(numbers, dtype=torch.long, device=table.vectors.device))


def tested_rows(table: FeatureTable, label: str) -> Rows:
    """The videos that have a label, in the table's order."""
    return Rows(table, label, (table.labels[label] >= 0).nonzero()[:, 0])


def scores_of_videos(
    evaluator: Evaluator, learn: Rows, test: Rows, average: Average, generator: torch.Generator
) -> tuple[dict[str, Tensor], str]:
    """Setting of the evaluator -> scores [orders, M, K] of test videos, their views averaged; what it chose.

    The probe is fitted once and scores all orders of frames, "normal" first, together.

    Raises:
        UsageError: if its scores are of another shape than promised, or not finite.
    """
    who, classes = f"evaluator {type(evaluator).__name__}", len(learn.table.classes[learn.label])
    orders = 1 + len(test.table.reordered)
    named: Mapping[str, Tensor]
    if isinstance(evaluator, PatchEvaluator):
        patches, tokens = _labelled_patches(learn, average), _patches(test, average)
        settled, chosen = evaluator.settled(patches, generator)
        assert isinstance(settled, PatchEvaluator), "settling changes no kind"
        rows, named = len(tokens), {"": settled.patch_scores(patches, tokens, generator)}
    else:
        features, vectors = _features(learn, average), _vectors(test, average)
        settled, chosen = evaluator.settled(features, generator)
        rows, named = len(vectors), settled.named_scores(features, vectors, generator)
    found = {}
    for setting, scores in named.items():
        check_scores(scores, rows, classes, f"{who} ({setting})" if setting else who)
        by_view = scores.unflatten(0, (orders, len(test.numbers), -1))
        found[setting] = (
            by_view[:, :, 0]
            if average == "features"
            else torch.stack([average_views(part, average, evaluator.score_kind) for part in by_view])
        )
    return found, chosen


def _features(rows: Rows, average: Average) -> LabelledFeatures:
    """A mean vector a video, or its views, each with the video's label."""
    vectors, classes = rows.table.vectors[rows.numbers], len(rows.table.classes[rows.label])
    num_videos, num_views, _ = vectors.shape
    if average == "features" or num_views == 1:
        return LabelledFeatures(vectors.mean(1), rows.labels, classes, rows.groups)
    videos = torch.arange(num_videos, device=vectors.device).repeat_interleave(num_views)
    groups = videos if rows.groups is None else rows.groups[videos]
    return LabelledFeatures(vectors.flatten(0, 1), rows.labels[videos], classes, groups)


def _vectors(rows: Rows, average: Average) -> Tensor:
    """[orders * M, D], or [orders * M * V, D] where each view is scored."""
    given = (rows.table.vectors, *rows.table.reordered.values())
    views = torch.stack([vectors[rows.numbers] for vectors in given])  # [orders, M, V, D]
    return views.mean(2).flatten(0, 1) if average == "features" else views.flatten(0, 2)


def _labelled_patches(rows: Rows, average: Average) -> LabelledPatches:
    """A sample a video, or a view, as ``_features``."""
    tokens, classes = _patches(rows, average), len(rows.table.classes[rows.label])
    num_views = len(tokens) // len(rows.numbers)
    if num_views == 1:
        return LabelledPatches(tokens, rows.labels, classes, rows.groups)
    videos = torch.arange(len(rows.numbers), device=rows.numbers.device).repeat_interleave(num_views)
    groups = videos if rows.groups is None else rows.groups[videos]
    return LabelledPatches(tokens, rows.labels[videos], classes, groups)


def _patches(rows: Rows, average: Average) -> PatchTokens:
    """Tokens of all views of a video together, to be attended to as one, or of each view; in every order."""
    if not rows.table.patches:
        raise ValueError("these features hold no patch tokens: extract them with patches='float16'")
    tables = [rows.table.patches[order] for order in ("normal", *rows.table.reordered)]
    num_videos, num_views = tables[0].shape[:2]
    starts = torch.arange(len(tables))[:, None] * num_videos + rows.numbers.cpu()  # [orders, M]
    places = starts[..., None] * num_views + torch.arange(num_views)
    places = places.flatten(0, 1) if average == "features" else places.flatten()[:, None]
    return PatchTokens(tuple(table.flatten(0, 1) for table in tables), places)
