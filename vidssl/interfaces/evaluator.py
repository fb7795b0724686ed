"""The interface of evaluators, one of the seven of ``vidssl.interfaces``, and what they learn from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vidssl.interfaces.pretrained import Shown

ScoreKind = Literal["logits", "votes", "found"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Feature vectors with one label each.

    Attributes:
        vectors: float32 [N, D].
        labels: int64 [N].
        num_classes: K; labels lie in [0, K).
        groups: int64 [N], which samples no split may part: views of one video, clips cut from one source.
            None where each is on its own.
        kind: "class"; or "set" of classes or "number", for evaluators that take these; labels are then 0.
        outputs: float64 [N, K], 1 for each class of the set, or [N, 1], the number; None of one class.
    """

    vectors: Tensor
    labels: Tensor
    num_classes: int
    groups: Tensor | None = None
    kind: Literal["class", "set", "number"] = "class"
    outputs: Tensor | None = None


class Evaluator(Shown, ABC):
    """A probe: learns from labelled features, then scores classes for others.

    ``score_kind`` is what its scores are: "logits", whose softmax is a probability; "votes", at least 0,
    where a class without any cannot be right; or "found", 1 for each class that was found and 0 for the
    others, where every class found is right. ``learns``: what it can be taught of a video; of a
    set its scores [M, K] rank videos for each class, of a number they are [M, 1] and estimate it.
    """

    score_kind: ClassVar[ScoreKind] = "logits"
    learns: ClassVar[tuple[str, ...]] = ("class",)

    def settled(
        self, train: "LabelledFeatures | LabelledPatches", generator: torch.Generator
    ) -> "tuple[Evaluator, str]":
        """This evaluator with the settings that the training samples choose, and these in words.

        By default itself and an empty text: there is nothing to choose.
        """
        return self, ""

    def remark(self, num_train: int) -> str:
        """What to know of scores that so many samples were learned from for; by default an empty text."""
        return ""

    @abstractmethod
    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Finite scores [M, K], higher is likelier, for ``test_vectors`` [M, D]; test labels are not seen."""

    def named_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """``class_scores`` of each of several settings by name (k = 5, k = 20); of a single one, unnamed."""
        return {"": self.class_scores(train, test_vectors, generator)}


class Fits(ABC):
    """A probe whose scores come from what it has learned alone, so that this can be kept and used again."""

    @abstractmethod
    def fit(self, train: "LabelledFeatures | LabelledPatches", generator: torch.Generator) -> nn.Module:
        """What scores classes, from vectors [M, D] (or tokens [M, n, D]) to [M, K] as ``class_scores``.

        All that was learned is in its state.
        """


@dataclass(frozen=True)
class PatchTokens:
    """Patch tokens of samples, read where they are kept: tables mapped from a disk may be larger than memory.

    Attributes:
        tables: each [R, n, D], float16, bfloat16 or float32, of one shape; rows are numbered through all
            of them, R to each.
        rows: int64 [N, S] on the CPU, the rows whose tokens make up each sample, side by side.
    """

    tables: tuple[Tensor, ...]
    rows: Tensor

    def __len__(self) -> int:
        """Samples, N."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """D."""
        return self.tables[0].shape[2]

    def of(self, numbers: Tensor) -> "PatchTokens":
        """Some of the samples, without reading any."""
        return replace(self, rows=self.rows[numbers.cpu()])

    def read(self, numbers: Tensor, device: torch.device) -> Tensor:
        """Tokens of some samples, float32 [len(numbers), S * n, D] on ``device``."""
        rows = self.rows[numbers.cpu()]
        size = len(self.tables[0])
        found = torch.empty(*rows.shape, *self.tables[0].shape[1:], dtype=self.tables[0].dtype)
        for place, table in enumerate(self.tables):
            inside = rows // size == place
            found[inside] = table[rows[inside] - place * size]
        return found.flatten(1, 2).to(device).float()


@dataclass(frozen=True)
class LabelledPatches:
    """Patch tokens of samples with one label each; ``labels`` lie on the device that a probe works on.

    The other attributes are those of ``LabelledFeatures``.
    """

    tokens: PatchTokens
    labels: Tensor
    num_classes: int
    groups: Tensor | None = None


@dataclass(frozen=True)
class JointPatches:
    """Patch tokens of samples with several labels each, to be learned together.

    Attributes:
        tokens: of N samples.
        labels: label name -> int64 [N] on the device that a probe works on.
        num_classes: label name -> K.
        groups: as of ``LabelledFeatures``.
    """

    tokens: PatchTokens
    labels: Mapping[str, Tensor]
    num_classes: Mapping[str, int]
    groups: Tensor | None = None


class LearnsTogether(ABC):
    """A probe that can learn several labels of its samples at once; ``together`` names them, or is empty."""

    together: tuple[str, ...]

    @abstractmethod
    def joint_scores(
        self, train: JointPatches, test: PatchTokens, generator: torch.Generator
    ) -> tuple[Mapping[str, Tensor], str]:
        """Label name -> finite scores [M, K], higher is likelier; and what was chosen on train, in words."""


class PatchEvaluator(Evaluator):
    """A probe that reads patch tokens; a vector is taken for the only token of its clip."""

    @abstractmethod
    def patch_scores(self, train: LabelledPatches, test: PatchTokens, generator: torch.Generator) -> Tensor:
        """Finite scores [M, K], higher is likelier, for ``test``; test labels are not seen."""

    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """``patch_scores`` of clips of one token."""
        learn = LabelledPatches(_single(train.vectors), train.labels, train.num_classes, train.groups)
        return self.patch_scores(learn, _single(test_vectors), generator)


def _single(vectors: Tensor) -> PatchTokens:
    return PatchTokens((vectors[:, None].cpu(),), torch.arange(len(vectors))[:, None])
