"""From features, or from scores of classes, to accuracies."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.scoring import average_views, in_top, predict
from vidssl.evaluators.statistics import Bootstrap, bootstrap, class_mean, wilson_interval
from vidssl.interfaces import Evaluator, LabelledFeatures
from vidssl.probing import ScoreKind
from vidssl.protocol import Average, FrameOrder


@dataclass(frozen=True, kw_only=True)
class Score:
    """One label's accuracy.

    Attributes:
        label: its name.
        setting: of an evaluator that has several, "k=20" for one; empty for one that has a single one.
        frames: order of the test clips' frames; the probe learned on normal ones.
        top1: share of test videos whose best class is the right one; for retrieval, that were found.
        low, high: 95 % interval of ``top1`` (Wilson).
        top5: share of test videos whose right class is among the best five; None for five classes or fewer.
        class_mean: mean over classes of the share of a class's test videos that are right; equal to ``top1``
            where all classes have as many videos.
        bootstrap: 95 % intervals of these three by bootstrap over the test videos, always with the same seed.
        chance: share of test videos right when always naming the commonest class of train; None for
            retrieval.
        num_train, num_test: videos with this label.
        predicted: class named for each test video with this label, in the table's order.
    """

    label: str
    setting: str = ""
    frames: FrameOrder = "normal"
    top1: float
    low: float
    high: float
    top5: float | None = None
    class_mean: float
    bootstrap: Bootstrap
    chance: float | None
    num_train: int
    num_test: int
    predicted: tuple[int, ...] = field(default=(), repr=False)

    @property
    def names_classes(self) -> bool:
        """Whether each video was given one class; retrieval tells only whether the right one was found."""
        return self.chance is not None


def score(
    scores: Tensor,
    truth: Tensor,
    train_labels: Tensor,
    *,
    kind: ScoreKind,
    label: str,
    setting: str = "",
    frames: FrameOrder = "normal",
) -> Score:
    """What scores of classes are worth.

    Args:
        scores: [M, K] of the test videos, views averaged.
        truth: int64 [M], their classes.
        train_labels: int64 [N], classes of the videos that were learned from, a number a video.
    """
    num_classes = scores.shape[1]
    predicted = predict(scores, truth, kind)
    right = predicted == truth
    low, high = wilson_interval(int(right.sum()), len(truth))
    counts_five = num_classes > 5 and kind != "found"
    among_five = in_top(scores, truth, 5, kind) if counts_five else None
    commonest = train_labels.bincount(minlength=num_classes).argmax()
    return Score(
        label=label,
        setting=setting,
        frames=frames,
        top1=right.double().mean().item(),
        low=low,
        high=high,
        top5=None if among_five is None else among_five.double().mean().item(),
        class_mean=class_mean(right, truth),
        bootstrap=bootstrap(right, truth, among_five),
        chance=None if kind == "found" else (truth == commonest).double().mean().item(),
        num_train=len(train_labels),
        num_test=len(truth),
        predicted=tuple(predicted.tolist()),
    )


def probe(
    evaluator: Evaluator,
    train: FeatureTable,
    test: FeatureTable,
    *,
    average: Average = "features",
    seed: int = 0,
) -> list[Score]:
    """Scores of each label that train and test share, a row for each setting and order of frames.

    Videos without the label are left out of its rows.

    Args:
        average: what is averaged over the views of a video. Where it is not the features, each view of
            train is a sample of its own.

    Raises:
        UsageError: if train and test share no label, mean different classes by it, or have no video with it.
    """
    shared = shared_labels(train.classes, test.classes)
    return [score for label in shared for score in _of_label(evaluator, train, test, label, average, seed)]


def shared_labels(
    train: Mapping[str, tuple[str, ...]], test: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Labels (name -> names of its classes) that the videos to learn from and those to test on have both.

    Raises:
        UsageError: if there is none, or they mean different classes by it.
    """
    shared = tuple(label for label in train if label in test)
    if not shared:
        raise UsageError(
            f"the videos to learn from and those to test on share no label (learn: "
            f"{', '.join(train) or 'none'}; test: {', '.join(test) or 'none'})"
        )
    for label in shared:
        if train[label] != test[label]:
            raise UsageError(
                f"label '{label}' has other classes in train ({', '.join(train[label])}) "
                f"than in test ({', '.join(test[label])})"
            )
    return shared


def _of_label(
    evaluator: Evaluator, train: FeatureTable, test: FeatureTable, label: str, average: Average, seed: int
) -> list[Score]:
    in_train, in_test = train.labels[label] >= 0, test.labels[label] >= 0
    for name, some in (("to learn from", in_train), ("to test on", in_test)):
        if not some.any():
            raise UsageError(f"none of the videos {name} has the label '{label}'")
    labels, truth = train.labels[label][in_train], test.labels[label][in_test]
    learn = _samples(train.vectors[in_train], labels, len(train.classes[label]), average)
    orders = {"normal": test.vectors, **test.reordered}
    # one call for all orders: the probe is fitted once
    views = torch.stack([vectors[in_test] for vectors in orders.values()])  # [orders, M, V, D]
    vectors = views.mean(2).flatten(0, 1) if average == "features" else views.flatten(0, 2)
    named = evaluator.named_scores(learn, vectors, torch.Generator().manual_seed(seed))
    rows = []
    for setting, scores in named.items():
        if average != "features":
            by_video = scores.unflatten(0, (-1, views.shape[2]))
            scores = average_views(by_video, average, evaluator.score_kind)
        for frames, part in zip(orders, scores.chunk(len(orders)), strict=True):
            rows.append(
                score(
                    part,
                    truth,
                    labels,
                    kind=evaluator.score_kind,
                    label=label,
                    setting=setting,
                    frames=frames,
                )
            )
    return rows


def _samples(vectors: Tensor, labels: Tensor, num_classes: int, average: Average) -> LabelledFeatures:
    """What a probe learns from: a mean vector a video, or its views, each with the video's label."""
    num_videos, num_views, _ = vectors.shape
    if average == "features" or num_views == 1:
        return LabelledFeatures(vectors.mean(1), labels, num_classes)
    videos = torch.arange(num_videos, device=labels.device).repeat_interleave(num_views)
    return LabelledFeatures(vectors.flatten(0, 1), labels[videos], num_classes, videos)
