"""Some of a source's videos: those that a draw of few labels names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from vidssl.config.few_labels import Subset, drawn
from vidssl.data.sources.official.groups import groups_of
from vidssl.data.sources.origins import video_of
from vidssl.data.sources.token_store import TokenStore
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, KnowsOrigins, Origin, SampleInfo


class LabelledSubset(DataSource, KnowsOrigins):
    """The videos of a source that a draw names, in the source's order.

    Raises:
        UsageError: if the source is a token store, has no such label, or too few videos of a class.
    """

    def __init__(self, source: DataSource, subset: Subset) -> None:
        if isinstance(source, TokenStore):
            raise UsageError("subset: a token store is read whole; few labels need a source of videos")
        if subset.label not in source.label_classes:
            known = ", ".join(source.label_classes) or "none"
            raise UsageError(f"subset.label: the videos have no label '{subset.label}', but {known}")
        every = range(len(source))
        self._source = source
        self._numbers = drawn(
            [source.key(number) for number in every],
            [source.labels(number).get(subset.label, -1) for number in every],
            subset.amount,
            draw=subset.draw,
            seed=subset.seed,
            classes=source.label_classes[subset.label],
            groups=groups_of(source, every),
        )
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
