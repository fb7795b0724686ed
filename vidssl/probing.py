"""The interface of evaluators, one of the seven of ``vidssl.interfaces``, and what they learn from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

ScoreKind = Literal["logits", "votes", "found"]


@dataclass(frozen=True)
class LabelledFeatures:
    """Feature vectors with one label each.

    Attributes:
        vectors: float32 [N, D].
        labels: int64 [N].
        num_classes: K; labels lie in [0, K).
        videos: int64 [N], which video each is a view of; None where each is a video of its own.
    """

    vectors: Tensor
    labels: Tensor
    num_classes: int
    videos: Tensor | None = None


class Evaluator(ABC):
    """A probe: learns from labelled features, then scores classes for others.

    ``score_kind`` says what its scores are: "logits", whose softmax is a probability; "votes", at least 0,
    where a class without any cannot be right; or "found", 1 for each class that was found and 0 for the
    others, where every class found is right.
    """

    score_kind: ClassVar[ScoreKind] = "logits"

    @abstractmethod
    def class_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Scores [M, K], higher is likelier, for ``test_vectors`` [M, D]. Test labels are never seen."""

    def named_scores(
        self, train: LabelledFeatures, test_vectors: Tensor, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """``class_scores`` of each of several settings by name (k = 5, k = 20); of a single one, unnamed."""
        return {"": self.class_scores(train, test_vectors, generator)}
