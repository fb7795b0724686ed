"""Some of a source's videos, or some of them more often: draws of few labels, classes balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vidssl.config.few_labels import Subset, drawn
from vidssl.data.classes import repeated
from vidssl.data.sources.official.groups import groups_of
from vidssl.data.sources.origins import video_of
from vidssl.data.sources.token_store import TokenStore
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, KnowsOrigins, Origin, SampleInfo


def labelled_subset(source: DataSource, subset: Subset) -> Chosen:
    """The videos of a source that a draw names, in the source's order.

    Raises:
        UsageError: if the source is a token store, has no such label, or too few videos of a class.
    """
    numbers = _numbers(source, subset.label, "subset.label")
    every = range(len(source))
    places = drawn(
        [source.key(number) for number in every],
        numbers,
        subset.amount,
        draw=subset.draw,
        seed=subset.seed,
        classes=source.label_classes[subset.label],
        groups=groups_of(source, every),
    )
    return Chosen(source, places)


def balanced(source: DataSource, label: str) -> Chosen:
    """A source whose videos come again until every class has as many as the commonest; others are left out.

    Raises:
        UsageError: if the source is a token store or has no such label.
    """
    return Chosen(source, repeated(_numbers(source, label, "balance")))


def _numbers(source: DataSource, label: str, key: str) -> list[int]:
    if isinstance(source, TokenStore):
        raise UsageError(f"{key}: a token store is read whole; this needs a source of videos")
    if label not in source.label_classes:
        known = ", ".join(source.label_classes) or "none"
        raise UsageError(f"{key}: the videos have no label '{label}', but {known}")
    return [source.labels(number).get(label, -1) for number in range(len(source))]


class Chosen(DataSource, KnowsOrigins):
    """Videos of a source by their numbers there, in that order, some perhaps several times."""

    def __init__(self, source: DataSource, numbers: Sequence[int]) -> None:
        self._source = source
        self._numbers = numbers
        self.label_classes = source.label_classes

    def __len__(self) -> int:
        return len(self._numbers)

    def info(self, index: int) -> SampleInfo:
        return self._source.info(self._numbers[index])

    def key(self, index: int) -> str:
        return self._source.key(self._numbers[index])

    def labels(self, index: int) -> Mapping[str, int]:
        return self._source.labels(self._numbers[index])

    def origin(self, index: int) -> Origin:
        return video_of(self._source, self._numbers[index]).origin

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._source.read(self._numbers[index], frames)
