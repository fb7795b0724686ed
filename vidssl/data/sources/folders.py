"""Videos and images of a user's own: in folders, or named in a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vidssl.data.decode.images import read_image
from vidssl.data.sources.listing import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ListedFiles,
    Listing,
    PartKeys,
    list_folder,
    select,
)
from vidssl.data.sources.lists import listed_part
from vidssl.data.sources.origins import image_origin
from vidssl.data.sources.video_files import ListedVideos
from vidssl.errors import UsageError, counted
from vidssl.interfaces import KnowsOrigins, Origin, SampleInfo


@dataclass(kw_only=True, eq=False)
class VideoFolder(PartKeys, ListedVideos):
    """Videos in a folder for each class; a folder without folders holds unlabelled videos.

    The label is called "class". A video's key is its path below the root.

    Args:
        root: the folder, relative to the working folder.
        part, test_share, limit: see ``PartKeys``.
        manifest, decoder, short, min_frames, square_pixels: see ``VideoKeys``.
    """

    def listed(self) -> tuple[Listing, int]:
        listing = list_folder(Path(self.root), VIDEO_EXTENSIONS, "video")
        listing = select(listing, self.part, self.test_share, self.limit, where=self.root)
        return listing, len(listing.files)


@dataclass(kw_only=True, eq=False)
class VideoList(PartKeys, ListedVideos):
    """Videos named in a text or CSV list: on each line a path below the root, then its labels.

    A CSV list may have a header, whose columns after the first name the labels; a single label without a
    name is called "class". Labels are whole numbers or names of classes. The columns ``start`` and ``end``
    (or ``time_start`` and ``time_end``) hold seconds: the sample is that segment of its file. The column
    ``group`` names the source that a video was cut from with others: no split parts a group, and intervals
    and tests are by groups. Listed videos that do not exist count as unreadable samples.

    Args:
        root: folder that paths are relative to, itself relative to the working folder.
        list: the list, relative to the working folder.
        test_list: held-out videos; numbers classes together with ``list``.
        part: "test" is ``test_list``, or without one a fraction of each class by the hash of the path.
        test_share: of each class, on average, where there is no ``test_list``.
        limit, manifest, decoder, short, min_frames, square_pixels: see ``VideoKeys``.
    """

    list: str
    test_list: str | None = None

    def listed(self) -> tuple[Listing, int]:
        root = Path(self.root)
        listing, part = listed_part(
            self.list, self.test_list, self.part, exists=lambda path: (root / path).is_file()
        )
        listing = select(listing, part, self.test_share, self.limit, where=self.list)
        if not any((root / file.path).exists() for file in listing.files):
            raise UsageError(
                f"{self.list}: none of its {counted(len(listing.files), 'video')} is there; looked for "
                f"{(root / listing.files[0].path).absolute()} and so on"
            )
        return listing, len(listing.files)


class ListedImages(ListedFiles, KnowsOrigins):
    """Listed images, each a video of one frame."""

    root: str

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.files[index].key, 1, 0.0, self.files[index].labels)

    def origin(self, index: int) -> Origin:
        return image_origin(self.folder / self.files[index].path)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if set(frames) != {0}:
            raise ValueError(f"an image has frame 0 only, asked for {list(frames)}")
        file = self.files[index]
        return read_image(self.folder / file.path, file.key).expand(len(frames), -1, -1, -1)


@dataclass(kw_only=True, eq=False)
class ImageFolder(PartKeys, ListedImages):
    """Images in a folder for each class, as ImageNet lies; a folder without folders has no labels.

    An image is a video of one frame. The label is called "class"; a key is a path below the root.

    Args:
        root: the folder, relative to the working folder.
        part, test_share, limit: see ``PartKeys``.
    """

    root: str

    def __post_init__(self) -> None:
        listing = list_folder(Path(self.root), IMAGE_EXTENSIONS, "image")
        self.take(self.root, select(listing, self.part, self.test_share, self.limit, where=self.root))
