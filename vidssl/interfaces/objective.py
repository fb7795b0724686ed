"""Batches, masks, losses, and the interface of objectives."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vidssl.errors import UsageError
from vidssl.interfaces.backbone import Backbone, Translated, check_clip
from vidssl.interfaces.grids import GridSize, places_of
from vidssl.interfaces.pretrained import Recorded
from vidssl.interfaces.tokenizer import TrainableTokenizer


class _Views(dict[str, tuple[Tensor, ...]]):
    """Views by name; one that is not there is named with those that are."""

    def __missing__(self, name: str) -> tuple[Tensor, ...]:
        raise ValueError(f"the batch has no view {name!r}, only {', '.join(map(repr, self)) or 'none'}")


def as_clip(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1], contiguous: uint8 is divided by 255, a float tensor is taken as it is."""
    return pixels.contiguous().float().div_(255) if pixels.dtype == torch.uint8 else pixels


@dataclass(frozen=True)
class Batch:
    """One training batch: the views of every stream.

    Attributes:
        views: name of a view -> its slots, each [B, 3, T, H, W]. uint8 as the loader hands them over,
            float32 in [0, 1] once ``to`` has put them on the training device.
        indices: name of a stream -> int64 [B], which sample of its source each row is.
        labels: name of a stream -> label name -> int64 [B], class numbers, -1 where a sample lacks the label.
    """

    views: Mapping[str, tuple[Tensor, ...]]
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", _Views(self.views))

    @property
    def device(self) -> torch.device:
        """Where its pixels lie."""
        return next(slot.device for slots in self.views.values() for slot in slots)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``, its pixels as float32 in [0, 1]."""
        views = {
            name: tuple(as_clip(slot.to(device, non_blocking=True)) for slot in slots)
            for name, slots in self.views.items()
        }
        labels = {
            stream: {name: numbers.to(device, non_blocking=True) for name, numbers in given.items()}
            for stream, given in self.labels.items()
        }
        return replace(self, views=views, labels=labels)


@dataclass(frozen=True)
class Progress:
    """Where a training run stands.

    Attributes:
        step: optimizer steps done before this one.
        total_steps: of the whole run.
        steps_per_epoch: of the stream that the schedule counts epochs of; need not be whole.
    """

    step: int
    total_steps: int
    steps_per_epoch: float = 1.0

    @property
    def epoch(self) -> int:
        """Whole passes over the counted stream that lie behind this step."""
        return int(self.step / self.steps_per_epoch * (1 + 1e-12))  # 35 steps of 7 / 3 are 15 epochs


@dataclass(frozen=True)
class LossOutput:
    """The loss to descend (a scalar) and what is logged beside it, named after the paper's terms.

    ``features`` are [B, D], a vector a video: the loop logs RankMe and standard deviation of the last ones.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    features: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """Cells of clips that are seen, and cells that are predicted from them; any others take no part.

    Attributes:
        seen: int64 [B, n], numbers on the flattened grid, rising.
        predicted: int64 [B, m], likewise; none of them is seen.
    """

    seen: Tensor
    predicted: Tensor


class Masker(Recorded, ABC):
    """Draws which cells are hidden.

    ``toy``: constructor arguments that suit a grid of 2x4x4 cells, for the tests that every masker passes.
    ``equal_counts``: whether it hides the same number of cells in every clip, on any one grid.
    ``cuts_splits``: whether ``splits`` has equal numbers all the same. ``num_splits``: how many it gives.
    """

    toy: ClassVar[Mapping[str, object]] = {}
    equal_counts: ClassVar[bool] = False
    cuts_splits: ClassVar[bool] = False
    num_splits: int = 1

    @abstractmethod
    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        """bool [batch_size, *grid] on the generator's device, True = hidden; in each row some, never all.

        Raises:
            ValueError: if this masker cannot draw on a grid of this size.
        """

    def groups(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        """Which hidden cells belong together, int64 [batch_size, *grid]: -1 where visible.

        Cells of a row with one number share what is done to them (BERT's 80/10/10). By default every
        hidden cell is on its own; a masker that hides blocks numbers its blocks.
        """
        mask = self(batch_size, grid, generator)
        numbers = torch.arange(mask[0].numel(), device=mask.device).view(grid)
        return torch.where(mask, numbers, -1)

    def splits(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> tuple[Split, ...]:
        """What is seen and what predicted of the clips in a step, ``num_splits`` times; by default a mask.

        Raises:
            ValueError: if clips differ in their number of hidden cells.
        """
        mask = self(batch_size, grid, generator)
        return (Split(places_of(~mask), places_of(mask)),)


def _check_output(made: object, name: str) -> None:
    """Types and shapes alone, which cost nothing and wait for no device."""
    problem = ""
    if not isinstance(made, LossOutput):
        problem = f"returned {type(made).__name__}, expected LossOutput(loss, metrics)"
    elif not isinstance(made.loss, Tensor) or made.loss.dim():
        given = (
            f"is {[*made.loss.shape]}" if isinstance(made.loss, Tensor) else f"is {type(made.loss).__name__}"
        )
        problem = f"returned a loss that {given}, expected a scalar tensor: take the mean"
    elif not isinstance(made.metrics, Mapping):
        problem = f"returned metrics that are {type(made.metrics).__name__}, expected a mapping of tensors"
    else:
        wrong = [key for key, value in made.metrics.items() if not isinstance(value, Tensor) or value.dim()]
        if wrong:
            kind = type(made.metrics[wrong[0]]).__name__
            shape = made.metrics[wrong[0]].shape if kind == "Tensor" else ()
            given = f"{kind} {[*shape]}" if shape else kind
            problem = f"returned the metric '{wrong[0]}' as {given}, expected a scalar tensor (x.detach())"
    if problem:
        raise UsageError(f"{name}: forward {problem}")


_UNTOLD = 10  # training steps without ``after_step`` after which that is told
_SAME = 0.01  # a point of percent, and of other values a hundredth: nothing is made of less


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A metric that tells what the pretext task has taught, beside what it has to beat.

    Attributes:
        metric: its name in the log.
        label: what it measures, in the few words of a table: "hidden ids of clips".
        says: the same as a clause, with ``{}`` in the place of the value.
        baselines: what the value is compared with, in words -> the metric that gives its value, or the value.
        unit: of all of them; "%" of what the log has as fractions.
        lower_is_better: as of a loss.
    """

    metric: str
    label: str
    says: str
    baselines: Mapping[str, str | float] = field(default_factory=dict)
    unit: Literal["%", "dB", ""] = ""
    lower_is_better: bool = False

    def beside(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The baselines whose values are known; some are measured on held-out streams alone."""
        values = {
            name: metrics.get(given) if isinstance(given, str) else given
            for name, given in self.baselines.items()
        }
        return {name: value for name, value in values.items() if value is not None}

    def shown(self, value: float) -> str:
        """``46.8 %``, ``21.3 dB``, ``1.23``."""
        return {"%": f"{100 * value:.1f} %", "dB": f"{value:.1f} dB", "": f"{value:.3g}"}[self.unit]

    def ahead(self, value: float, baseline: float) -> int:
        """1 if a value is better than a baseline, -1 if it is worse, 0 where there is little between them."""
        lead = baseline - value if self.lower_is_better else value - baseline
        if abs(lead) < _SAME * (1.0 if self.unit == "%" else max(1.0, abs(baseline))):
            return 0
        return 1 if lead > 0 else -1

    def beaten(self, metrics: Mapping[str, float]) -> list[bool]:
        """Of each baseline, whether the metric is better."""
        value = metrics[self.metric]
        return [self.ahead(value, baseline) > 0 for baseline in self.beside(metrics).values()]

    def sentence(self, metrics: Mapping[str, float]) -> str:
        """The value and what it is worth: ``... 46.8 % ...: better than chance (0.1 %)``."""
        value, groups = metrics[self.metric], dict[str, list[str]]()
        for name, baseline in self.beside(metrics).items():
            place = {1: "better than", 0: "no better than", -1: "worse than"}[self.ahead(value, baseline)]
            groups.setdefault(place, []).append(f"{name} ({self.shown(baseline)})")
        worth = ", ".join(f"{place} {' and '.join(names)}" for place, names in groups.items())
        return self.says.format(self.shown(value)) + (f": {worth}" if worth else "")


class Objective(Recorded, nn.Module, ABC):
    """The loss that is minimised. Positional constructor parameters are parts (backbone, tokenizer, masker);
    keyword-only ones are the keys of its recipe section. Heads and decoders live here.

    ``needs_views``: view name -> slots read; set in the constructor where keys decide it.
    ``splits_batch``: whether the mean of the losses of a batch's parts is as good as the batch's loss, so
    that a step may be several forward passes; not where clips of a batch are compared with each other.
    ``follows_length``: whether a step depends on ``Progress.total_steps``, so that a run that is made longer
    would have taken other steps from the first on.
    ``toy``: keys of a small one, for the tests that every objective passes.
    ``visible_only``: whether the encoder sees visible cells alone, so that the backbone must be one that
    ``EncodesVisible`` and the masker one of ``equal_counts``; or of ``cuts_splits`` where ``reads_splits``.
    """

    toy: ClassVar[Mapping[str, object]] = {}
    needs_views: Mapping[str, int]
    splits_batch: bool = False
    follows_length: bool = False
    visible_only: ClassVar[bool] = False
    reads_splits: ClassVar[bool] = False
    _steps: frozenset[int] | None = frozenset()  # of training, until ``after_step`` is called or missed

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "after_step" in vars(cls):
            cls.after_step = _noted(cls.after_step)  # type: ignore[method-assign]

    def __call__(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        """``forward``, and the contract of its input and output.

        Raises:
            UsageError: for clips that are not float in [0, 1], or an output that is none of a scalar loss and
                metrics in tensors.
        """
        for slots in batch.views.values():
            for slot in slots:
                if slot.dim() == 5:  # others are stored ids
                    check_clip(slot, self)
        made = super().__call__(batch, progress, generator)
        _check_output(made, type(self).__name__)
        if self._steps is not None and self.training and torch.is_grad_enabled():
            self._await_after_step(progress.step)
        return made

    def _await_after_step(self, step: int) -> None:
        """Tells a loop of one's own that has forgotten ``after_step``, once."""
        known = self._steps or frozenset()
        self._steps = known | {step}
        if len(self._steps) > _UNTOLD:
            self._steps = None
            if type(self).after_step is not Objective.after_step:
                name = type(self).__name__
                warnings.warn(
                    f"{_UNTOLD} steps, and {name}.after_step was never called: averages and codebooks stand "
                    "still. Call objective.after_step(progress, generator) behind each optimizer.step()",
                    stacklevel=3,
                )

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        """The loss of a batch whose views are float32 in [0, 1] on the objective's device."""

    @abstractmethod
    def encoder(self) -> "Backbone | TrainableTokenizer":
        """The network that the run saves, exports and evaluates; a tokenizer where that is trained."""

    def trained_encoder(self) -> "Backbone | TrainableTokenizer":
        """The network that the optimizer moves: ``encoder()`` itself, unless that is a running average."""
        return self.encoder()

    def yardsticks(self) -> "Sequence[Yardstick]":
        """The metrics that tell what is learned, each beside its baselines: shown while a run trains."""
        return ()

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Published weights of what stands beside the encoder (a predictor), under this objective's names.

        None if it is no layout that it knows. Nothing of the objective is changed.
        """
        return None

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Held-out metrics (``forward``'s in eval mode) in plain words, for the end of a run."""
        said = [each.sentence(metrics) for each in self.yardsticks() if each.metric in metrics]
        return "; ".join(said) or ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """Called after each optimizer step (EMA, codebooks). The only hook; by default nothing."""


def _noted(after_step: Callable[..., None]) -> Callable[..., None]:
    """The hook, which ends the wait for it."""

    @wraps(after_step)
    def call(self: Objective, progress: Progress, generator: torch.Generator) -> None:
        self._steps = None
        after_step(self, progress, generator)

    return call


@dataclass(frozen=True)
class FilledIn:
    """Clips of which part was hidden and predicted from the rest.

    Attributes:
        ids: int64 [B, t, h, w], the tokenizer's, of the whole clips.
        hidden: bool [B, t, h, w], the ids that were predicted.
        predicted: int64 [B, t, h, w], the likeliest id where hidden, ``ids`` elsewhere.
    """

    ids: Tensor
    hidden: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class FilledPixels:
    """Clips of which part was hidden and its pixels predicted from the rest.

    Attributes:
        pixels: [B, 3, T, H, W] in [0, 1], predicted where hidden, the clips' own elsewhere.
        baseline: the same, with each hidden cell in its own mean colour.
        hidden: bool [B, t, h, w].
    """

    pixels: Tensor
    baseline: Tensor
    hidden: Tensor


class MaskedPrediction(ABC):
    """An objective that predicts hidden parts of a clip, their ids or their pixels."""

    @abstractmethod
    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn | FilledPixels:
        """Hides parts of clips as in training and predicts them. No gradient; best in eval mode.

        Args:
            clips: [B, 3, T, H, W] in [0, 1]; T = 1 is an image.

        Raises:
            ValueError: if it learns from clips alone or from images alone, and these are not.
        """


_WITHIN = 0.01  # of `apart_from`


@dataclass(frozen=True, kw_only=True)
class Band:
    """A band that a logged metric keeps to in a sound run, and what it means when it does not.

    Of ``lowest``, ``apart_from`` and ``share_of_best`` one is given.

    Attributes:
        metric: its name in the log.
        says: what has been the case while the metric was outside, a main clause in the perfect tense.
        cure: what helps, a sentence without its full stop; empty where nothing is known to.
        lowest: at least this is sound.
        apart_from: values within 1 % of this are not.
        share_of_best: at least this fraction of the highest value there has been is sound.
        zero: where that share is counted from; 1 for RankMe, which has 1 for features that are all alike.
        after: fraction of the run that is left out of account, also for the highest value.

    Raises:
        ValueError: if not exactly one of the three is given.
    """

    metric: str
    says: str
    cure: str = ""
    lowest: float | None = None
    apart_from: float | None = None
    share_of_best: float | None = None
    zero: float = 0.0
    after: float = 0.0

    def __post_init__(self) -> None:
        given = [self.lowest, self.apart_from, self.share_of_best]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                f"a band of '{self.metric}' has one of lowest, apart_from and share_of_best, got {given}"
            )

    def left(self, value: float, best: float) -> bool:
        """Whether a value lies outside, which nan never does; ``best`` is the highest there has been."""
        if self.lowest is not None:
            return value < self.lowest
        if self.apart_from is not None:
            return abs(value - self.apart_from) < _WITHIN * abs(self.apart_from)
        return value - self.zero < (self.share_of_best or 0.0) * (best - self.zero)

    def edge(self, best: float) -> str:
        """A sound value, in words."""
        if self.lowest is not None:
            return f"sound from {self.lowest:.3g}"
        if self.apart_from is not None:
            return f"within {_WITHIN:.0%} of {self.apart_from:.4g}"
        return f"its highest was {best:.3g}"


class Watched(ABC):
    """An objective whose metrics tell whether the network is collapsing."""

    @abstractmethod
    def bands(self) -> Sequence[Band]:
        """Where its metrics lie in a sound run; the loop says it when one has left its band.

        ``rankme`` and ``feature_std`` are there if ``LossOutput.features`` is given.
        """


class Foresees(ABC):
    """An objective that predicts features of cells that lie behind a clip's end."""

    @abstractmethod
    def foresight(self, *, seconds: float, fps: float, num_slots: int) -> Backbone:
        """Its encoder, whose patches are followed by predicted ones, [B, t + num_slots, h, w, D].

        Args:
            seconds: from the clip's end to the first predicted cells, rounded down to whole steps in time.
            fps: of the clips.
            num_slots: steps in time that are predicted.
        """


class ComparesVideos(ABC):
    """An objective that compares the videos of a batch with each other."""

    @abstractmethod
    def check_batch(self, num_videos: int) -> None:
        """Refuse a number of videos that are compared with each other in training.

        Raises:
            UsageError: if it is not what the objective was made for.
        """
