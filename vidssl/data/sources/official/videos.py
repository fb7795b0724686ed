"""Videos that an official list names, as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, select
from vidssl.data.sources.official.listed import DataSet, OfficialList, find_listed
from vidssl.data.sources.video_files import Short, Videos
from vidssl.interfaces import DataSource, KnowsMissing, KnowsOrigins, Origin, SampleInfo


class OfficialVideos(DataSource, KnowsMissing, KnowsOrigins):
    """The listed videos that are there. A video's key is its path below the root; its label is "class"."""

    def __init__(self, videos: Videos, label_classes: Mapping[str, tuple[str, ...]], num_listed: int) -> None:
        self._videos = videos
        self.label_classes = label_classes
        self._num_listed = num_listed

    def __len__(self) -> int:
        return len(self._videos.files)

    def num_listed(self) -> int:
        return self._num_listed

    def key(self, index: int) -> str:
        return self._videos.files[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self._videos.files[index].labels

    def info(self, index: int) -> SampleInfo:
        return self._videos.info(index)

    def origin(self, index: int) -> Origin:
        return self._videos.origin(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._videos.read(index, frames)


def open_videos(
    data_set: DataSet,
    official: OfficialList,
    root: str,
    *,
    max_missing_share: float,
    limit: int | None,
    manifest: str | None,
    decoder: DecoderName,
    short: Short | None,
    min_frames: int,
    square_pixels: bool,
) -> OfficialVideos:
    """The videos of a list, in the order of their keys.

    Args:
        root: folder that they are below, relative to the working folder.
        max_missing_share: of the listed videos, that may be missing.
        limit, manifest, decoder, short, min_frames, square_pixels: as ``VideoList`` has them.

    Raises:
        UsageError: if videos or their folder are missing, or the manifest is of no use.
        ValueError: for keys that do not go together.
    """
    found = find_listed(data_set, official, Path(root), VIDEO_EXTENSIONS, max_missing_share=max_missing_share)
    listing = select(found.listing, part="all", test_share=0.5, limit=limit, where=official.what)
    videos = Videos(
        Path(root),
        listing,
        manifest=manifest,
        decoder=decoder,
        short=short,
        min_frames=min_frames,
        square_pixels=square_pixels,
    )
    num_listed = found.num_listed if limit is None else len(listing.files)
    return OfficialVideos(videos, listing.label_classes, num_listed)
