"""Videos named one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from vidssl.data.decode import VideoFacts, probe, read_frames
from vidssl.interfaces import DataSource, SampleInfo


class VideoFiles(DataSource):
    """Video files without labels, for a look at a few of them; a video's key is its path.

    Each is looked through once, when it is first asked for.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._videos = [_Video(Path(path)) for path in paths]
        self.label_classes: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._videos)

    def key(self, index: int) -> str:
        return str(self._videos[index].path)

    def labels(self, index: int) -> Mapping[str, int]:
        return {}

    def info(self, index: int) -> SampleInfo:
        facts = self._videos[index].facts
        return SampleInfo(self.key(index), facts.num_frames, facts.fps, {}, facts.uneven_times)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        video = self._videos[index]
        return read_frames(video.path, frames, video.facts)


class _Video:
    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def facts(self) -> VideoFacts:
        return probe(self.path)
