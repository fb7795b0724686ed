"""What only some components can do: interfaces that one may have besides that of its kind."""

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from vidssl.bands import Band


class ClassAttention(ABC):
    """A backbone that can say what its class token attends to."""

    @abstractmethod
    def class_attention(self, x: Tensor) -> Tensor:
        """How much of each patch the class token takes in the last block, [B, heads, t, h, w].

        Softmax weights; the one of the class token over its own value is left out.

        Args:
            x: as for ``forward``.

        Raises:
            ValueError: if this one was made without a class token.
        """


class Blockwise(ABC):
    """A backbone of blocks that follow one another, for what is done block by block."""

    @abstractmethod
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """The blocks, each run once in a forward pass; empty for a network whose blocks are not known.

        A block's output depends on its arguments, its parameters and torch's global random generators
        alone, and it changes nothing but statistics of batch norms.
        """


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


class MaskedPrediction(ABC):
    """An objective that predicts the ids of hidden parts of a clip."""

    @abstractmethod
    def fill_in(self, clips: Tensor, generator: torch.Generator) -> FilledIn:
        """Hides parts of clips as in training and predicts them. No gradient; best in eval mode.

        Args:
            clips: [B, 3, T, H, W] in [0, 1]; T = 1 is an image.

        Raises:
            ValueError: if it learns from clips alone or from images alone, and these are not.
        """


class Watched(ABC):
    """An objective whose metrics tell whether the network is collapsing."""

    @abstractmethod
    def bands(self) -> Sequence[Band]:
        """Where its metrics lie in a sound run; the loop says it when one has left its band.

        ``rankme`` and ``feature_std`` are there if ``LossOutput.features`` is given.
        """


class ComparesVideos(ABC):
    """An objective that compares the videos of a batch with each other."""

    @abstractmethod
    def check_batch(self, num_videos: int) -> None:
        """Refuse a number of videos that are compared with each other in training.

        Raises:
            UsageError: if it is not what the objective was made for.
        """


class KnowsMissing(ABC):
    """A data source that knows how many samples its data set has, those that are missing here included."""

    @abstractmethod
    def num_listed(self) -> int:
        """Samples that the data set lists, there or not."""


class KnowsGroups(ABC):
    """A data source that knows which of its videos were cut from one source, by more than their names."""

    @abstractmethod
    def group(self, index: int) -> str:
        """Name of a sample's group; empty for one of none."""


def num_listed(source: Sized) -> int:
    """Samples that a source's data set lists, its own number where it knows of none missing."""
    return source.num_listed() if isinstance(source, KnowsMissing) else len(source)


@dataclass(frozen=True)
class Origin:
    """The video file behind a sample, by which samples of two sources are recognised as one video.

    Attributes:
        file: its resolved path or its address; a name within ``store`` where no file can be looked at.
        version: changes when what the sample is read from changes: size and modification time, or a checksum.
        bytes: size of the file, -1 where that is not known. Files of one size are compared by content.
        sha256: of its content, in hexadecimal; empty where nothing has recorded it.
        store: what holds a sample whose file cannot be looked at; empty for others. It can be compared with
            samples of the same store alone.
        segment: start and end in seconds of what belongs to the sample; None for the whole file.
    """

    file: str
    version: str = ""
    bytes: int = -1
    sha256: str = ""
    store: str = ""
    segment: tuple[float, float] | None = None


class KnowsOrigins(ABC):
    """A data source that knows which video file each sample was made of."""

    @abstractmethod
    def origin(self, index: int) -> Origin:
        """The file behind a sample. Nothing is decoded, and a missing file is no error."""


class EpochOrder(Protocol):
    """The number of the sample that is read at each place of an epoch."""

    def __getitem__(self, place: int, /) -> int: ...


class OrdersEpochs(ABC):
    """A data source that some orders of reading suit better than others."""

    @abstractmethod
    def epoch_order(self, seed: int, batch_size: int) -> EpochOrder:
        """An order of an epoch: every sample once, and the same for the same arguments on every machine.

        Args:
            seed: another for each epoch.
            batch_size: of all processes together; a process fills the same places of each batch.
        """
