"""From features, or from scores of classes, to accuracies."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vidssl.config.few_labels import Amount, FewLabels, drawn
from vidssl.config.protocol import Average, FrameOrder, OverlapRule
from vidssl.data.classes import LabelKind, label_kind, outputs_of
from vidssl.data.sources import listing, origins
from vidssl.errors import LabelError, UsageError
from vidssl.evaluators import statistics
from vidssl.evaluators.features import FeatureTable, Plain, as_table, of_labels, shared_labels
from vidssl.interfaces import (
    Evaluator,
    JointPatches,
    LabelledFeatures,
    LabelledPatches,
    LearnsTogether,
    PatchEvaluator,
    PatchTokens,
)
from vidssl.interfaces.evaluator import ScoreKind

_log = logging.getLogger(__name__)
Measure = Literal["top-1", "mAP", "R2", "masks"]


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
    def kind(self) -> LabelKind:
        """What a video has of the label."""
        return label_kind(self.label, self.table.classes[self.label])

    @property
    def outputs(self) -> Tensor:
        """float64 [N, P]: which classes each has, or its number."""
        return outputs_of(self.label, self.table.classes[self.label])[1].to(self.numbers.device)[self.labels]

    @property
    def groups(self) -> Tensor | None:
        """int64 [N], the group of each, videos without one by themselves; None where there are none."""
        names = [self.table.groups[number] for number in self.numbers.tolist()] if self.table.groups else []
        numbers = listing.group_numbers(names)
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
    if learn.kind != "class":
        classes = test.outputs.shape[1]
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
        statistics.check_scores(scores, rows, classes, f"{who} ({setting})" if setting else who)
        by_view = scores.unflatten(0, (orders, len(test.numbers), -1))
        if learn.kind != "class":
            sigmoid = learn.kind == "set" and evaluator.score_kind == "logits" and average == "probabilities"
            found[setting] = (by_view.sigmoid() if sigmoid else by_view).mean(2)
            continue
        found[setting] = (
            by_view[:, :, 0]
            if average == "features"
            else torch.stack(
                [statistics.average_views(part, average, evaluator.score_kind) for part in by_view]
            )
        )
    return found, chosen


def samples_of(evaluator: Evaluator, rows: Rows, average: Average) -> LabelledFeatures | LabelledPatches:
    """What an evaluator learns from: patch tokens if it reads these, else vectors."""
    return (_labelled_patches if isinstance(evaluator, PatchEvaluator) else _features)(rows, average)


def _features(rows: Rows, average: Average) -> LabelledFeatures:
    """A mean vector a video, or its views, each with the video's label."""
    vectors, classes = rows.table.vectors[rows.numbers], len(rows.table.classes[rows.label])
    num_videos, num_views, _ = vectors.shape
    whole = average == "features" or num_views == 1
    videos = torch.arange(num_videos, device=vectors.device).repeat_interleave(1 if whole else num_views)
    groups = None if whole else videos
    if rows.groups is not None:
        groups = rows.groups[videos]
    samples = vectors.mean(1) if whole else vectors.flatten(0, 1)
    if rows.kind == "class":
        return LabelledFeatures(samples, rows.labels[videos], classes, groups)
    outputs = rows.outputs[videos]
    return LabelledFeatures(
        samples, torch.zeros_like(videos), outputs.shape[1], groups, kind=rows.kind, outputs=outputs
    )


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


Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One label's accuracy; of sets of classes their mean average precision, of numbers R2.

    Attributes:
        label: its name.
        measure: what ``top1`` is: fraction of videos that are right, or mAP or R2, which name no class.
        setting: of an evaluator that has several, "k=20" for one, and how many labels were learned from where
            not all were; empty for one that has a single one.
        frames: order of the test clips' frames; the probe learned on normal ones.
        top1: fraction of test videos whose best class is the right one; for retrieval, that were found.
        low, high: 95 % interval of ``top1``; by groups, where videos have them.
        top5: fraction of test videos whose class is among the best five; None for five classes or fewer.
        class_mean: mean over classes of the fraction of a class's test videos that are right; ``top1`` where
            all classes have as many videos.
        class_top5: mean over classes of the fraction of a class's test videos whose class is among the best
            five: EPIC-Kitchens' mean top-5 recall. As in ``class_mean``, classes without test videos do not
            count, and test videos of classes that were not learned from do.
        top5_interval, class_interval, class_top5_interval: 95 % intervals of these; None where unknown.
        chance: fraction of test videos right when guessing evenly or when always naming train's commonest
            class, whichever is larger; None for retrieval.
        class_chance: the same of the mean over classes.
        unbalanced: whether the commonest class of the test videos has over 1.5 times as many as the mean one,
            and more than drawing at random makes, so that the mean over classes leads.
        num_groups: of the test videos, where clips were cut from one source; None where none are known.
        added: what each test video adds to mAP, R2 or a measure of masks, their mean; else empty.
        precisions: name and average precision of each class of sets that a test video has; else empty.
        mae, mae_interval: mean absolute error of numbers, in their unit, and its 95 % interval; else None.
        chosen: the setting that the training videos chose, in words; empty where there was nothing to choose.
        num_train, num_test: videos with this label.
        predicted: class named for each test video with this label, in the table's order.
        draws: ``top1`` of each draw of labelled videos; all other numbers are means over them, and
            ``predicted`` is the first's. Empty where all labels were learned from.
        spread: standard deviation of ``draws``; None for fewer than two.
    """

    label: str
    setting: str = ""
    frames: FrameOrder = "normal"
    top1: float
    low: float
    high: float
    top5: float | None = None
    class_mean: float
    chance: float | None
    num_train: int
    num_test: int
    predicted: tuple[int, ...] = field(default=(), repr=False)
    draws: tuple[float, ...] = ()
    spread: float | None = None
    top5_interval: Interval | None = None
    class_interval: Interval | None = None
    class_top5: float | None = None
    class_top5_interval: Interval | None = None
    class_chance: float | None = None
    unbalanced: bool = False
    num_groups: int | None = None
    chosen: str = ""
    measure: Measure = "top-1"
    added: tuple[float, ...] = field(default=(), repr=False)
    precisions: tuple[tuple[str, float], ...] = field(default=(), repr=False)
    mae: float | None = None
    mae_interval: Interval | None = None

    @property
    def names_one_class(self) -> bool:
        """Whether every test video was given the same class, of several that there are."""
        return self.names_classes and len(set(self.predicted)) == 1 and self.class_mean < 1

    @property
    def names_classes(self) -> bool:
        """Whether each video was given one class; retrieval finds only whether the right one was found."""
        return self.chance is not None and self.measure == "top-1"

    @property
    def measure_named(self) -> str:
        """``mAP`` or ``R2``; empty for accuracies, and for masks, whose labels are their measures."""
        return self.measure if self.measure in ("mAP", "R2") else ""


def score(
    scores: Tensor,
    truth: Tensor,
    train_labels: Tensor,
    *,
    kind: ScoreKind,
    label: str,
    setting: str = "",
    frames: FrameOrder = "normal",
    groups: Tensor | None = None,
    chosen: str = "",
) -> Score:
    """Accuracies of scores of classes.

    Args:
        scores: [M, K] of the test videos, views averaged.
        truth: int64 [M], their classes.
        train_labels: int64 [N], classes of the videos that were learned from, a number a video.
        groups: int64 [M], the groups of the test videos; None where there are none.
        chosen: what the probe chose, in words.
    """
    num_classes = scores.shape[1]
    predicted = statistics.predict(scores, truth, kind)
    right = predicted == truth
    counts_five = num_classes > 5 and kind != "found"
    in_five = statistics.in_top(scores, truth, 5, kind) if counts_five else None
    five, recall = (None if in_five is None else _estimate(in_five, by, groups) for by in (None, truth))
    top1, by_class = (_estimate(right, classes, groups) for classes in (None, truth))
    videos = train_labels.bincount(minlength=num_classes)
    by_name = (truth == videos.argmax()).double().mean().item()
    return Score(
        label=label,
        setting=setting,
        frames=frames,
        top1=top1.mean,
        low=top1.low,
        high=top1.high,
        top5=None if five is None else five.mean,
        top5_interval=None if five is None else (five.low, five.high),
        class_top5=None if recall is None else recall.mean,
        class_top5_interval=None if recall is None else (recall.low, recall.high),
        class_mean=by_class.mean,
        class_interval=(by_class.low, by_class.high),
        chance=None if kind == "found" else max(by_name, 1 / int((videos > 0).sum())),
        class_chance=None if kind == "found" else 1 / len(truth.unique()),
        unbalanced=kind != "found" and unbalanced(truth),
        num_train=len(train_labels),
        num_test=len(truth),
        num_groups=None if groups is None else len(groups.unique()),
        predicted=tuple(predicted.tolist()),
        chosen=chosen,
    )


def score_outputs(
    scores: Tensor,
    test: Rows,
    num_train: int,
    *,
    setting: str = "",
    frames: FrameOrder = "normal",
    chosen: str = "",
) -> Score:
    """mAP of sets beside the share of videos that a class has; R2 of numbers, beside 0, and their error.

    Args:
        scores: [M, P] of the test videos, views averaged.

    Raises:
        LabelError: if no test video has a class, or all have the same number.
    """
    estimate, truth = scores.double().cpu().numpy(), test.outputs.cpu().numpy()
    groups = None if test.groups is None else test.groups.cpu().numpy()
    num_groups = len(truth) if groups is None else len(np.unique(groups))
    error, precisions = None, tuple[tuple[str, float], ...]()
    found: statistics.Estimate | statistics.Difference
    if test.kind == "set":
        there = truth.any(0)
        if not there.any():
            raise LabelError("no test video has any class of it")
        added, of_class = statistics.mean_average_precision(estimate, truth)
        names, _ = outputs_of(test.label, test.table.classes[test.label])
        pairs = zip(names, of_class.round(6).tolist(), strict=True)
        precisions = tuple((name, value) for name, value in pairs if value == value)  # no NaN
        chance = float(truth[:, there].mean())
        found = statistics.fraction(added, groups)
    else:
        added, chance = statistics.explained(estimate[:, 0], truth[:, 0]), 0.0
        found = statistics.mean_of(added, groups)
        error = statistics.mean_of(abs(estimate - truth)[:, 0], groups)
    return Score(
        label=test.label,
        setting=setting,
        frames=frames,
        measure="mAP" if test.kind == "set" else "R2",
        top1=found.mean,
        low=found.low,
        high=min(1.0, found.high),
        class_mean=found.mean,
        chance=chance,
        num_train=num_train,
        num_test=len(truth),
        num_groups=None if groups is None else len(set(groups.tolist())),
        added=tuple(float(f"{value:.6g}") for value in added),
        precisions=precisions,
        mae=None if error is None else error.mean,
        mae_interval=(max(0.0, error.low), error.high) if error and num_groups > 1 else None,
        chosen=chosen,
    )


def _estimate(right: Tensor, classes: Tensor | None, groups: Tensor | None) -> statistics.Estimate:
    given = [None if part is None else part.cpu().numpy() for part in (classes, groups)]
    return statistics.accuracy(right.cpu().numpy(), given[0], given[1])


def unbalanced(truth: Tensor) -> bool:
    """Whether the commonest class has over 1.5 times as many videos as the mean one, and not by chance."""
    counts = truth.bincount().double()
    mean = float(counts[counts > 0].mean())
    return bool(counts.max() > 1.5 * mean and counts.max() - mean > 3 * mean**0.5)


def probe(
    evaluator: Evaluator,
    train: FeatureTable | Plain,
    test: FeatureTable | Plain,
    *,
    average: Average = "features",
    seed: int = 0,
    few_labels: FewLabels | None = None,
    overlap: OverlapRule = "error",
    say: Callable[[str], None] = _log.warning,
) -> list[Score]:
    """Scores of each label that train and test share, a row for each setting and order of frames.

    A label that cannot be scored is left out, and videos without a label out of its rows. Those of train
    are learned from in the order of their keys, so that the order of a list changes nothing. Classes are
    numbered together, by name.

    Args:
        train, test: tables that ``extract`` made; or vectors [N, D] (or [N, V, D]) with class numbers [N],
            as tensors or arrays.
        average: what is averaged over the views of a video. Where it is not the features, each view of
            train is a sample of its own. To a probe that reads patches, "features" means that it attends
            to those of all views of a video together.
        seed: of what the evaluator draws: held-out parts, initial weights, orders.
        few_labels: amounts of labelled videos to learn from, a row each; None for all.
        overlap: whether test videos that are in train too are an error.
        say: gets a line for each label that is left out, with why, and for ``Evaluator.remark``.

    Raises:
        UsageError: if there are such videos, or train and test share no label; a ``LabelError`` if none of
            those that they share can be scored.
    """
    train, test = as_table(train), as_table(test)
    both = origins.shared_videos(_videos(train), _videos(test))
    if both.keys and overlap == "error":
        raise UsageError(both.refusal())
    shared = shared_labels(train.classes, test.classes)
    train, test = train.renumbered(shared), test.renumbered(shared)
    if isinstance(evaluator, LearnsTogether) and evaluator.together:
        return _together(evaluator, train, test, average, seed, few_labels)

    def of(label: str) -> list[Score]:
        return _of_label(evaluator, train, test, label, average=average, seed=seed, few_labels=few_labels)

    found = of_labels(evaluator, shared, of, say, single="few_labels" if few_labels else "")
    scores = list(chain.from_iterable(found.values()))
    views = 1 if average == "features" else train.vectors.shape[1]
    remarks: dict[str, list[str]] = {}
    for label, count in dict.fromkeys((score.label, score.num_train * views) for score in scores):
        remarks.setdefault(evaluator.remark(count), []).append(label)
    for remark in filter(None, remarks):
        say(f"{', '.join(remarks[remark])}: {remark}")
    return scores


def _together(
    evaluator: LearnsTogether,
    train: FeatureTable,
    test: FeatureTable,
    average: Average,
    seed: int,
    few_labels: FewLabels | None,
) -> list[Score]:
    """A row for each label and order of frames, of one probe that learns the labels together."""
    labels, last = evaluator.together, evaluator.together[-1]
    lacking = [f"label '{label}'" for label in labels if label not in train.classes]
    if not lacking:
        kinds = ((label, label_kind(label, train.classes[label])) for label in labels)
        lacking = [f"single class of '{label}'" for label, kind in kinds if kind != "class"]
    if lacking or few_labels is not None or average != "features":
        why = (
            f"the videos have no {lacking[0]}"
            if lacking
            else "few_labels and scores of views do not go with it"
        )
        raise UsageError(f"evaluator.together [{', '.join(labels)}]: {why}")

    def whole(rows: Rows) -> Rows:
        has_all = torch.stack([rows.table.labels[label] >= 0 for label in labels]).all(0)
        return replace(rows, numbers=rows.numbers[has_all[rows.numbers]])

    learn, tested = whole(labelled_rows(train, last)), whole(tested_rows(test, last))
    if not len(learn.numbers) or not len(tested.numbers):
        raise UsageError(f"no video to learn from, or none to test on, has all of {', '.join(labels)}")
    learned = {label: replace(learn, label=label).labels for label in labels}
    classes = {label: len(train.classes[label]) for label in labels}
    tokens = _patches(tested, average)
    named, chosen = evaluator.joint_scores(
        JointPatches(_patches(learn, average), learned, classes, learn.groups),
        tokens,
        torch.Generator().manual_seed(seed),
    )
    orders: tuple[FrameOrder, ...] = ("normal", *test.reordered)
    rows = []
    for label in labels:
        statistics.check_scores(
            named[label], len(tokens), classes[label], f"{type(evaluator).__name__} ({label})"
        )
        truth = replace(tested, label=label).labels
        parts = named[label].unflatten(0, (len(orders), -1))
        for frames, part in zip(orders, parts, strict=True):
            of = score(part, truth, learned[label], kind="logits", label=label, groups=tested.groups)
            rows.append(replace(of, frames=frames, chosen=chosen))
    return rows


def _videos(table: FeatureTable) -> list[origins.Video]:
    return [origins.Video(key, origin) for key, origin in zip(table.keys, table.origins, strict=False)]


def _of_label(
    evaluator: Evaluator,
    train: FeatureTable,
    test: FeatureTable,
    label: str,
    *,
    average: Average,
    seed: int,
    few_labels: FewLabels | None,
) -> list[Score]:
    learn, tested = labelled_rows(train, label), tested_rows(test, label)
    for name, rows in (("to learn from", learn), ("to test on", tested)):
        if not len(rows.numbers):
            raise LabelError(f"none of the videos {name} has it")

    def scored(some: Rows) -> list[Score]:
        generator = torch.Generator().manual_seed(seed)
        return _scored(evaluator, some, tested, average, generator)

    if few_labels is None:
        return scored(learn)
    return [
        row
        for amount in few_labels.amounts
        for row in mean_over_draws(
            [scored(_drawn(learn, amount, draw, few_labels.seed)) for draw in few_labels.draws_of(amount)],
            amount,
        )
    ]


def _drawn(rows: Rows, amount: Amount, draw: int, seed: int) -> Rows:
    """The videos of one draw."""
    keys = [rows.table.keys[number] for number in rows.numbers.tolist()]
    classes = rows.table.classes[rows.label]
    groups = [rows.table.groups[number] for number in rows.numbers.tolist()] if rows.table.groups else ()
    places = drawn(keys, rows.labels.tolist(), amount, draw=draw, seed=seed, classes=classes, groups=groups)
    return replace(rows, numbers=rows.numbers[torch.tensor(places, device=rows.numbers.device)])


def _scored(
    evaluator: Evaluator, learn: Rows, test: Rows, average: Average, generator: torch.Generator
) -> list[Score]:
    """A row for each setting and order of frames."""
    found, chosen = scores_of_videos(evaluator, learn, test, average, generator)
    orders: tuple[FrameOrder, ...] = ("normal", *test.table.reordered)
    if test.kind != "class":
        count = len(learn.numbers)
        return [
            score_outputs(part, test, count, setting=setting, frames=frames, chosen=chosen)
            for setting, scores in found.items()
            for frames, part in zip(orders, scores, strict=True)
        ]
    return [
        score(
            part, test.labels, learn.labels, kind=evaluator.score_kind, label=test.label, setting=setting,
            frames=frames, groups=test.groups, chosen=chosen,
        )
        for setting, scores in found.items()
        for frames, part in zip(orders, scores, strict=True)
    ]  # fmt: skip


def mean_over_draws(draws: Sequence[Sequence[Score]], amount: Amount) -> list[Score]:
    """One row for the same row of every draw: means of all numbers, the first draw's predictions.

    Args:
        draws: the rows of each, in the same order.
    """
    return [_mean_of(same, amount) for same in zip(*draws, strict=True)]


_MEANS = ("top1", "low", "high", "top5", "class_mean", "class_top5", "chance")
_SPANS = ("top5_interval", "class_interval", "class_top5_interval")


def _mean_of(same: Sequence[Score], amount: Amount) -> Score:
    first, draws = same[0], tuple(row.top1 for row in same)
    choices = Counter(row.chosen for row in same if row.chosen)
    known = [name for name in _MEANS if getattr(first, name) is not None]
    means: dict[str, Any] = {name: fmean(getattr(row, name) for row in same) for name in known}
    means |= {name: _mean_interval([getattr(row, name) for row in same]) for name in _SPANS}
    return replace(
        first,
        setting=f"{first.setting}, {amount}" if first.setting else str(amount),
        **means,
        draws=draws,
        spread=stdev(draws) if len(draws) > 1 else None,
        chosen="; ".join(f"{words} in {n} of {len(same)}" for words, n in choices.items())
        if len(choices) > 1
        else first.chosen,
    )


def _mean_interval(intervals: Sequence[Interval | None]) -> Interval | None:
    known = [each for each in intervals if each is not None]
    return (fmean(low for low, _ in known), fmean(high for _, high in known)) if known else None
