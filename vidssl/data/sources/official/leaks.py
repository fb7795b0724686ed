"""What the train and the test part of an official split have in common."""

from __future__ import annotations

import logging

from vidssl.data.sources.official.groups import shared_groups
from vidssl.data.sources.official.listed import DataSet, Wanted

_log = logging.getLogger(__name__)


def tell_leaks(data_set: DataSet, split: int, train: tuple[Wanted, ...], test: tuple[Wanted, ...]) -> None:
    """Warns of test videos that are cut from the same video as a training video.

    Raises:
        UsageError: if a video is in both.
    """
    keys = [[f"{wanted.folder}/{wanted.names[0]}.avi" for wanted in part] for part in (train, test)]
    both = sorted(set(keys[0]) & set(keys[1]))
    if both:
        raise data_set.error(
            f"{data_set.name} split {split}: {both[0]} and {len(both) - 1} more are listed for train "
            "and for test"
        )
    leaks = shared_groups(*keys)
    if leaks:
        _log.warning(
            "%s split %d leaks: %d of %d test videos are cut from the same video as a training video, "
            "such as %s and %s. The official lists keep these apart: docs/data/%s.md",
            *(data_set.name, split, len(leaks), len(test), *leaks[0], data_set.page),
        )
