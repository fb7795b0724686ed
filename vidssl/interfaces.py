"""The seven interfaces that components meet at, and what travels between them.

Shapes are the contract. Letters: ``B C T H W`` in pixel space, ``t h w`` on a grid of cells,
``D`` channels, ``V`` vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vidssl.abilities import ClassAttention as ClassAttention
from vidssl.abilities import FilledIn as FilledIn
from vidssl.abilities import MaskedPrediction as MaskedPrediction
from vidssl.errors import UsageError
from vidssl.grids import GridSize, divide_exactly
from vidssl.probing import Evaluator as Evaluator
from vidssl.probing import LabelledFeatures as LabelledFeatures
from vidssl.probing import LabelledPatches as LabelledPatches
from vidssl.probing import PatchEvaluator as PatchEvaluator
from vidssl.probing import PatchTokens as PatchTokens

InputKind = Literal["pixels", "tokens"]


@dataclass(frozen=True)
class Features:
    """What a backbone says of a batch.

    Attributes:
        patches: [B, t, h, w, D], the last stage.
        cls: [B, D], or None for a backbone without a class token.
        stages: one [B, t, h, w, D_i] a stage, finest first; empty for a backbone of one scale.
    """

    patches: Tensor
    cls: Tensor | None = None
    stages: tuple[Tensor, ...] = ()

    def pooled(self) -> Tensor:
        """One vector a clip, [B, D]: the class token, or the mean over patches where there is none."""
        return self.patches.mean(dim=(1, 2, 3)) if self.cls is None else self.cls

    def pooled_stages(self) -> Tensor:
        """The means of all stages side by side, [B, sum of D_i]; ``pooled()`` where there are no stages."""
        if not self.stages:
            return self.pooled()
        return torch.cat([stage.mean(dim=(1, 2, 3)) for stage in self.stages], dim=1)


class _Views(dict[str, tuple[Tensor, ...]]):
    """Views by name; one that is not there is named with those that are."""

    def __missing__(self, name: str) -> tuple[Tensor, ...]:
        raise ValueError(f"the batch has no view {name!r}, only {', '.join(map(repr, self)) or 'none'}")


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


def as_clip(pixels: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1], contiguous: uint8 is divided by 255, a float tensor is taken as it is."""
    return pixels.contiguous().float().div_(255) if pixels.dtype == torch.uint8 else pixels


_BRIGHTEST = 16.0  # far above what augmentations make of 1; any but a black clip in [0, 255] exceeds it
_SEEN_ON_GPU: WeakSet[nn.Module] = WeakSet()


def check_clip(x: Tensor, reader: nn.Module) -> None:
    """Refuse what is no clip in [0, 1].

    Values are looked at on a CPU; on a GPU, where that would wait for it, at a reader's first clips alone.

    Raises:
        UsageError: if it is not floating point [B, 3, T, H, W], or lies in [0, 255].
    """
    owner = type(reader).__name__
    if not isinstance(x, Tensor) or x.ndim != 5 or x.shape[1] != 3 or not x.is_floating_point():
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(
            f"{owner} takes clips, float32 [B, 3, T, H, W] in [0, 1], got {given}. Images are clips of one "
            "frame, x.unsqueeze(2); bytes of a loader are divided by 255, batch.to(device)"
        )
    if x.device.type == "meta" or not x.numel():
        return
    if x.device.type != "cpu":
        if reader in _SEEN_ON_GPU:
            return
        _SEEN_ON_GPU.add(reader)
    high = float(x.detach().max())
    if high > _BRIGHTEST:
        raise UsageError(f"{owner} takes clips in [0, 1], got values up to {high:.4g}: divide pixels by 255")


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
    def fraction(self) -> float:
        """0 before the first step, approaching 1 at the last."""
        return self.step / max(1, self.total_steps)

    @property
    def epoch(self) -> int:
        """Whole passes over the counted stream that lie behind this step."""
        return int(self.step / self.steps_per_epoch * (1 + 1e-12))  # 35 steps of 7 / 3 are 15 epochs


@dataclass(frozen=True)
class LossOutput:
    """The loss to descend (a scalar) and what is logged beside it, named after the paper's terms.

    ``features`` are [B, D], a vector a video: of the last ones the loop logs RankMe and the deviation.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    features: Tensor | None = None


@dataclass(frozen=True)
class SampleInfo:
    """What a data source knows of one sample without decoding its pixels.

    Attributes:
        key: unique in the source and stable between runs, e.g. the path below the root.
        num_frames: frames that can be asked for.
        fps: mean frame rate; 0 for an image.
        labels: label name -> class number; empty for unlabelled data.
        times: seconds from the first frame to each of ``num_frames``, rising; empty where frames are evenly
            spaced at ``fps``, or where no more than that is known.
    """

    key: str
    num_frames: int
    fps: float
    labels: Mapping[str, int]
    times: Sequence[float] = ()


class UnreadableSample(Exception):
    """A sample cannot be read. The message says what is wrong with the file, in words for its owner."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass(frozen=True)
class Translated:
    """Weights of another project under a backbone's own keys.

    Attributes:
        state: own key -> tensor of the own shape.
        layout: whose layout it was, e.g. "SVT, published".
        reshaped: own keys whose tensors were resized, inflated, copied or zeroed.
        dropped: keys of the source that the backbone has no use for (heads, decoders, tokenizers).
    """

    state: Mapping[str, Tensor]
    layout: str
    reshaped: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class Backbone(nn.Module, ABC):
    """A network from clips (or token ids) to features. It never learns which paper it serves.

    A constructor sets ``embed_dim`` (D of ``Features.pooled()``), ``strides`` (frames, rows and columns
    of pixels that one cell of ``grid`` spans; of ids where it reads those) and, if it has stages,
    ``stage_dims`` and ``stage_strides``, finest first. ``gives_cls`` says whether ``Features.cls`` is there.
    One that reads ids also sets ``vocab_size``, how many different ones a tokenizer may give it.
    """

    input_kind: ClassVar[InputKind] = "pixels"
    takes_mask: ClassVar[bool] = True
    embed_dim: int
    strides: GridSize
    vocab_size: int | None = None
    gives_cls: bool = False
    stage_dims: tuple[int, ...] = ()
    stage_strides: tuple[GridSize, ...] = ()

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Cells of the input of this size; masks are drawn on them.

        An image (one frame) is one cell deep whatever the temporal stride.

        Raises:
            ValueError: if the backbone does not take this size.
        """
        temporal = 1 if num_frames == 1 else self.strides[0]
        return divide_exactly((num_frames, height, width), (temporal, *self.strides[1:]), type(self).__name__)

    def final_norm(self) -> nn.Module | None:
        """The norm that makes ``Features.patches`` of the last stage, None where there is none of its own.

        BEVT's decoder ends in the encoder's own norm, which is thereby trained.
        """
        return None

    def token_embedding(self) -> Tensor | None:
        """Vectors [V or more, D] of the ids that are read, a row an id; None where there are none.

        VIMPAC's token head predicts with the same matrix.
        """
        return None

    def layer_names(self) -> tuple[tuple[str, ...], ...]:
        """Modules and parameters by layer, the input's embeddings first, for rates that fall with depth.

        Every parameter lies in one of them, the last norm in the last layer. Empty for a network that does
        not know its layers.
        """
        return ()

    def translate(self, state: Mapping[str, Tensor]) -> Translated | None:
        """Weights in a published layout, as this network's own; None if it is no layout that it knows.

        What the source lacks stays out of ``Translated.state`` and keeps its fresh values. Nothing of the
        network is changed.
        """
        return None

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """``forward``, and the contract of its input and output.

        Raises:
            UsageError: for clips that are not float in [0, 1], or if no ``Features`` come back.
        """
        if self.input_kind == "pixels":
            check_clip(x, self)
        made = super().__call__(x) if mask is None else super().__call__(x, mask)
        if not isinstance(made, Features):
            raise UsageError(
                f"{type(self).__name__}: forward returned {type(made).__name__}, expected Features"
            )
        return made

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Features of a batch.

        Args:
            x: [B, 3, T, H, W] in [0, 1], or int64 ids [B, t, h, w] where ``input_kind`` is "tokens".
                T = 1 is an image.
            mask: bool [B, *grid], True where the input is hidden.
        """


class ResizesWindows(ABC):
    """A backbone whose attention is in windows, and that takes weights of other windows.

    Attributes:
        window: its own, in cells.
    """

    window: GridSize

    @abstractmethod
    def translate_windows(self, state: Mapping[str, Tensor], window: GridSize | None) -> Translated | None:
        """``Backbone.translate`` for weights of which the window is known.

        Args:
            window: cells that they were trained with; None where only the weights can tell.

        Raises:
            UsageError: if their tables are not of that window, or of several possible ones.
        """


class Tokenizer(nn.Module, ABC):
    """A frozen map from pixels to discrete ids: what masked prediction predicts.

    ``strides``: frames, rows and columns of pixels that one id stands for.
    """

    vocab_size: int
    strides: GridSize

    def grid(self, num_frames: int, height: int, width: int) -> GridSize:
        """Shape of the ids for a clip of this size; an image is one cell deep.

        Raises:
            ValueError: if the size is not a whole multiple of the strides.
        """
        temporal = 1 if num_frames == 1 else self.strides[0]
        return divide_exactly((num_frames, height, width), (temporal, *self.strides[1:]), type(self).__name__)

    @abstractmethod
    def encode(self, clip: Tensor) -> Tensor:
        """Ids int64 [B, t, h, w] in [0, vocab_size) of a clip [B, 3, T, H, W] in [0, 1]. No gradient."""

    @abstractmethod
    def decode(self, ids: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [0, 1] that ids [B, t, h, w] stand for, for pictures."""


@dataclass(frozen=True)
class Reconstruction:
    """What a tokenizer under training makes of a clip.

    Attributes:
        pixels: [B, 3, T, H, W], with gradient to encoder and decoder.
        ids: int64 [B, t, h, w].
        regulariser: scalar, the family's own term (VQ-VAE: the commitment).
    """

    pixels: Tensor
    ids: Tensor
    regulariser: Tensor


class TrainableTokenizer(Tokenizer):
    """A tokenizer that a recipe can train."""

    @abstractmethod
    def reconstruct(self, clip: Tensor) -> Reconstruction:
        """Encode, quantise and decode with gradients; in training mode it may collect codebook statistics."""

    @abstractmethod
    def update_codebook(self, generator: torch.Generator) -> None:
        """Applies what ``reconstruct`` collected (EMA, revival of dead codes); called once a step."""


class Masker(ABC):
    """Draws which cells are hidden."""

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


class Objective(nn.Module, ABC):
    """What is minimised. Positional constructor parameters are parts (backbone, tokenizer, masker);
    keyword-only ones are the keys of its recipe section. Heads and decoders live here.

    ``needs_views``: view name -> slots read; set in the constructor where keys decide it.
    ``splits_batch``: whether the mean of the losses of a batch's parts is as good as the batch's loss, so
    that a step may be several forward passes; not where clips of a batch are compared with each other.
    ``follows_length``: whether a step depends on ``Progress.total_steps``, so that a run that is made longer
    would have taken other steps from the first on.
    """

    needs_views: Mapping[str, int]
    splits_batch: bool = False
    follows_length: bool = False

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
        return made

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress, generator: torch.Generator) -> LossOutput:
        """The loss of a batch whose views are float32 in [0, 1] on the objective's device."""

    @abstractmethod
    def encoder(self) -> "Backbone | TrainableTokenizer":
        """What the run saves, exports and evaluates; a recipe that trains a tokenizer returns that."""

    def trained_encoder(self) -> "Backbone | TrainableTokenizer":
        """What the optimizer moves of it: ``encoder()`` itself, unless that is a running average."""
        return self.encoder()

    def describe(self, metrics: Mapping[str, float]) -> str:
        """What held-out metrics (``forward``'s in eval mode) mean, in plain words for the end of a run."""
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())

    def after_step(self, progress: Progress, generator: torch.Generator) -> None:
        """Called after each optimizer step (EMA, codebooks). The only hook; by default nothing."""


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


class DataSource(ABC):
    """Indexed videos or images."""

    label_classes: Mapping[str, tuple[str, ...]]  # label name -> names of its classes, in number order

    @abstractmethod
    def __len__(self) -> int:
        """Samples listed, readable or not."""

    @abstractmethod
    def info(self, index: int) -> SampleInfo:
        """What is known of a sample before its pixels.

        Raises:
            UnreadableSample: if the file cannot be opened.
        """

    def key(self, index: int) -> str:
        """A sample's key; sources that know it from a list do not open the file for it."""
        return self.info(index).key

    def labels(self, index: int) -> Mapping[str, int]:
        """A sample's labels; sources that know them from a list do not open the file for them."""
        return self.info(index).labels

    @abstractmethod
    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        """Exactly the frames asked for, uint8 [len(frames), 3, H, W], RGB, rotation applied.

        A frame's number is its place in sequential decoding order. Order and repeats in ``frames`` are kept.

        Raises:
            UnreadableSample: if any of them cannot be decoded.
        """


class ViewSampler(ABC):
    """From one video to its named views; owns time and crops, works in uint8."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
        """View name -> (T, H, W) of each slot, known before any data is touched."""

    @abstractmethod
    def sample(
        self, source: DataSource, index: int, generator: torch.Generator
    ) -> dict[str, tuple[Tensor, ...]]:
        """The views of one sample, each slot uint8 [3, T, H, W]; one decode serves all of them.

        Raises:
            UnreadableSample: as the source does.
        """
