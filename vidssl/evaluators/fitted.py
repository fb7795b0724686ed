"""Probes that were fitted once, kept in files, and used again on other videos."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn

from vidssl.config.protocol import Average
from vidssl.engine.checkpoint import read_tensors, save_tensors
from vidssl.engine.facts import Facts
from vidssl.engine.logging import Say
from vidssl.errors import LabelError, UsageError
from vidssl.evaluators import attentive, knn, linear, statistics
from vidssl.evaluators.features import FeatureTable, of_labels, shared_labels
from vidssl.evaluators.scores import labelled_rows, samples_of
from vidssl.interfaces import Evaluator, Fits, LearnsTogether
from vidssl.interfaces.evaluator import ScoreKind

FORMAT, ENDING = "vidssl probe 1", ".probe.safetensors"
_CLASSES: Mapping[str, type[nn.Module]] = {
    made.__name__: made for made in (linear.Logistic, knn.Neighbours, attentive.AttentiveNetwork)
}


@dataclass(frozen=True)
class FittedProbe:
    """A probe with what it has learned.

    Attributes:
        module: from vectors [M, D], or tokens [M, n, D], to scores [M, K].
        kind: of these scores.
        label: which it names the classes of.
        classes: K names.
        average: over the views of a video, as in ``Protocol``.
        protocol: text of the protocol, every default written out.
        weights: sha256 of the network's, as score files have it.
    """

    module: nn.Module
    kind: ScoreKind
    label: str
    classes: tuple[str, ...]
    average: Average
    protocol: str
    weights: str

    @property
    def reads_patches(self) -> bool:
        """Whether it reads tokens, not vectors."""
        return isinstance(self.module, attentive.AttentiveNetwork)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """[N, K] that sum to 1, of vectors [N, V, D] or tokens [N, V, n, D] of V views of each video.

        Of votes, shares; of logits their softmax, which nothing has calibrated.
        """
        features = features.float()
        if self.average == "features":
            one = features.flatten(1, 2) if self.reads_patches else features.mean(1)
            scores = self.module(one)[:, None]
        else:
            scores = self.module(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return shares(scores, "scores" if self.average == "features" else self.average, self.kind)


def shares(scores: Tensor, average: Average, kind: ScoreKind) -> Tensor:
    """Probabilities [N, K] of the scores [N, V, K] of the views of videos."""
    found = statistics.average_views(scores, average, kind)
    if average == "scores":
        found = (
            found.softmax(-1) if kind == "logits" else found / found.sum(-1, keepdim=True).clamp(min=1e-30)
        )
    return found


def check_fits(evaluator: Evaluator) -> None:
    """Refuse a probe that cannot be kept.

    Raises:
        UsageError: with those that can.
    """
    if not isinstance(evaluator, Fits):
        raise UsageError(
            f"{type(evaluator).__name__} learns nothing that could be kept; linear, linear_sgd, knn and "
            "attentive do"
        )
    if isinstance(evaluator, LearnsTogether) and evaluator.together:
        raise UsageError("a probe that learns labels together is not kept: leave evaluator.together out")


def fit_probes(
    evaluator: Evaluator, train: FeatureTable, test: FeatureTable, average: Average, seed: int, say: Say
) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """Label -> what a probe learns of it, just as in ``probe``, and the names of its classes.

    Args:
        test: whose classes are numbered together with those of ``train``, as in ``probe``.
        say: gets a line for each label that is left out; if none is left, that is an error.
    """
    check_fits(evaluator)
    shared = shared_labels(train.classes, test.classes)
    table = train.renumbered(shared)

    def fitted(label: str) -> tuple[nn.Module, tuple[str, ...]]:
        generator, rows = torch.Generator().manual_seed(seed), labelled_rows(table, label)
        if not len(rows.numbers):
            raise LabelError("none of the videos to learn from has it")
        samples = samples_of(evaluator, rows, average)
        settled, _ = evaluator.settled(samples, generator)
        assert isinstance(settled, Fits), "settling changes no kind"
        return settled.fit(samples, generator), shared[label]

    return of_labels(evaluator, shared, fitted, say, single="--save-probe")


def save_probe(path: Path, probe: FittedProbe) -> None:
    """Writes a probe. Nothing in the file can execute code.

    Raises:
        UsageError: if it is none of this package's.
    """
    name = type(probe.module).__name__
    if not isinstance(probe.module, tuple(_CLASSES.values())):
        raise UsageError(f"{name}: only probes of this package can be kept: {', '.join(_CLASSES)}")
    module = cast(linear.Logistic | knn.Neighbours | attentive.AttentiveNetwork, probe.module)
    keys = {key: value for key, value in module.made_with().items() if key != "generator"}
    facts = {
        "format": FORMAT,
        "class": name,
        "keys": json.dumps(keys),
        "kind": probe.kind,
        "label": probe.label,
        "classes": json.dumps(probe.classes),
        "average": probe.average,
        "protocol": probe.protocol,
        "weights": probe.weights,
    }
    save_tensors(path, probe.module.state_dict(), facts)


def read_probe(path: Path) -> FittedProbe:
    """A probe from its file, on the CPU and in eval mode.

    Raises:
        UsageError: if the file is missing, damaged or no probe.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{path}: no probe that 'vidssl eval --save-probe' wrote")
    facts = Facts(path, metadata)
    made_by, kind, average = facts.text("class"), facts.text("kind"), facts.text("average")
    try:
        keys = json.loads(facts.text("keys"))
        classes = tuple(map(str, json.loads(facts.text("classes"))))
        drawn = {"generator": torch.Generator()} if made_by == attentive.AttentiveNetwork.__name__ else {}
        module = _CLASSES[made_by](**keys, **drawn)
        module.load_state_dict(tensors)
        for name, _ in list(module.named_buffers()):
            setattr(module, name, tensors[name])  # in the precision that it has
        known = kind in get_args(ScoreKind) and average in get_args(Average)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}") from error
    if not known:
        raise UsageError(f"{path}: damaged: scores are {kind}, averages are of {average}")
    return FittedProbe(
        module.eval(),
        cast(ScoreKind, kind),
        facts.text("label"),
        classes,
        cast(Average, average),
        facts.text("protocol"),
        facts.text("weights"),
    )
