"""Where videos come from, and which views are taken of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidssl.interfaces.objective import Batch
from vidssl.interfaces.pretrained import Recorded

Augment = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True)
class SampleInfo:
    """Facts of one sample that are known without decoding its pixels.

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
    """A sample cannot be read. The message is what is wrong with the file, in words for its owner."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


class DataSource(Recorded, ABC):
    """Indexed videos or images."""

    label_classes: Mapping[str, tuple[str, ...]]  # label name -> names of its classes, in number order

    @abstractmethod
    def __len__(self) -> int:
        """Samples listed, readable or not."""

    @abstractmethod
    def info(self, index: int) -> SampleInfo:
        """Facts of a sample that are known before its pixels.

        Raises:
            UnreadableSample: if the file cannot be opened.
        """

    def __getitem__(self, index: int) -> tuple[Tensor, Mapping[str, int]]:
        """A whole sample as a ``torch.utils.data.Dataset`` gives it: uint8 [3, T, H, W], and its labels.

        Raises:
            IndexError: past the end, which ends an iteration.
            UnreadableSample: as ``read``.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        frames = self.read(index, range(self.info(index).num_frames))
        return frames.transpose(0, 1), self.labels(index)

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


class ViewSampler(Recorded, ABC):
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

        Times are drawn before frames are read and crops after it, so that samples of one decode can share the
        times (``samples_per_decode``).

        Raises:
            UnreadableSample: as the source does.
        """


class KnowsMissing(ABC):
    """A data source that knows how many samples its data set has, those that are missing here included."""

    @abstractmethod
    def num_listed(self) -> int:
        """Samples that the data set lists, there or not."""


NOT_JUDGED = 255  # in masks: pixels that no measure counts, as DAVIS and others write them


class KnowsMasks(ABC):
    """A data source that knows what each pixel shows.

    Attributes:
        mask_classes: names of the classes of pixels, in number order; empty where it knows objects alone.
    """

    mask_classes: tuple[str, ...] = ()

    @abstractmethod
    def object_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        """Number of the object at each pixel, uint8 [len(frames), H, W]: 0 for none, 255 for not judged.

        Raises:
            UnreadableSample: if there is no such mask.
        """

    def class_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        """Class of each pixel, uint8 [len(frames), H, W], below ``len(mask_classes)``, or 255.

        Raises:
            UnreadableSample: if there is no such mask.
        """
        return self.object_masks(index, frames)


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

    def soon(self, index: int) -> None:
        """Is told of a sample that is read some batches later; a source that can fetch it by then does."""
        return
