"""Videos and images of a user's own: in folders, or named in a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vidssl.data.decode.decoders import DecoderName
from vidssl.data.decode.images import read_image
from vidssl.data.sources.listing import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, Part, list_folder, select
from vidssl.data.sources.lists import listed_part
from vidssl.data.sources.origins import image_origin
from vidssl.data.sources.video_files import Short, Videos
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, KnowsGroups, KnowsMissing, KnowsOrigins, Origin, SampleInfo


class VideoFolder(DataSource, KnowsMissing, KnowsOrigins):
    """Videos in a folder for each class; a folder without folders holds unlabelled videos.

    The label is called "class". A video's key is its path below the root.

    Args:
        root: the folder, relative to the working folder.
        part: "train" and "test" divide each class by the hash of the key, the same way on every machine.
        test_share: of each class, on average.
        limit: keep at most this many videos, always the same random sample.
        manifest: what ``vidssl data check`` wrote, relative to the working folder: bad files are left out and
            good ones need not be looked through. A file that has changed since is unreadable.
        decoder: "pyav"; "torchcodec" or "torchcodec_cuda" (the GPU's), which leave to PyAV what they cannot
            read exactly; "auto" is torchcodec on the CPU where that works, else PyAV.
        short: what becomes of videos of fewer than ``min_frames`` frames: "loop" repeats them, "pad" holds
            their last frame, "skip" leaves them out; by default the views have rules of their own.
        min_frames: how many frames make a video not short.
        square_pixels: whether frames whose pixels are not square are widened or narrowed to what they show.
    """

    def __init__(
        self,
        *,
        root: str,
        part: Part = "all",
        test_share: float = 0.25,
        limit: int | None = None,
        manifest: str | None = None,
        decoder: DecoderName = "pyav",
        short: Short | None = None,
        min_frames: int = 1,
        square_pixels: bool = False,
    ) -> None:
        listing = list_folder(Path(root), VIDEO_EXTENSIONS, "video")
        listing = select(listing, part=part, test_share=test_share, limit=limit, where=root)
        self._videos = Videos(
            Path(root),
            listing,
            manifest=manifest,
            decoder=decoder,
            short=short,
            min_frames=min_frames,
            square_pixels=square_pixels,
        )
        self.label_classes = listing.label_classes

    def __len__(self) -> int:
        return len(self._videos.files)

    def num_listed(self) -> int:
        return self._videos.num_listed

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


class VideoList(DataSource, KnowsMissing, KnowsGroups, KnowsOrigins):
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
        part: "test" is ``test_list``, or without one a share of each class by the hash of the path.
        test_share: of each class, on average, where there is no ``test_list``.
        limit: keep at most this many videos, always the same random sample.
        manifest: what ``vidssl data check`` wrote, relative to the working folder: bad files are left out and
            good ones need not be looked through. A file that has changed since is unreadable.
        decoder: "pyav"; "torchcodec" or "torchcodec_cuda" (the GPU's), which leave to PyAV what they cannot
            read exactly; "auto" is torchcodec on the CPU where that works, else PyAV.
        short: what becomes of videos of fewer than ``min_frames`` frames: "loop" repeats them, "pad" holds
            their last frame, "skip" leaves them out; by default the views have rules of their own.
        min_frames: how many frames make a video not short.
        square_pixels: whether frames whose pixels are not square are widened or narrowed to what they show.
    """

    def __init__(
        self,
        *,
        root: str,
        list: str,
        test_list: str | None = None,
        part: Part = "all",
        test_share: float = 0.25,
        limit: int | None = None,
        manifest: str | None = None,
        decoder: DecoderName = "pyav",
        short: Short | None = None,
        min_frames: int = 1,
        square_pixels: bool = False,
    ) -> None:
        listing, part = listed_part(list, test_list, part, exists=lambda path: (Path(root) / path).is_file())
        listing = select(listing, part=part, test_share=test_share, limit=limit, where=list)
        if not any((Path(root) / file.path).exists() for file in listing.files):
            raise UsageError(
                f"{list}: none of its {counted(len(listing.files), 'video')} is there; looked for "
                f"{(Path(root) / listing.files[0].path).absolute()} and so on"
            )
        self._videos = Videos(
            Path(root),
            listing,
            manifest=manifest,
            decoder=decoder,
            short=short,
            min_frames=min_frames,
            square_pixels=square_pixels,
        )
        self.label_classes = listing.label_classes

    def __len__(self) -> int:
        return len(self._videos.files)

    def num_listed(self) -> int:
        return self._videos.num_listed

    def key(self, index: int) -> str:
        return self._videos.files[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self._videos.files[index].labels

    def group(self, index: int) -> str:
        return self._videos.files[index].cut_from

    def info(self, index: int) -> SampleInfo:
        return self._videos.info(index)

    def origin(self, index: int) -> Origin:
        return self._videos.origin(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._videos.read(index, frames)


class ImageFolder(DataSource, KnowsOrigins):
    """Images in a folder for each class, as ImageNet lies; a folder without folders has no labels.

    An image is a video of one frame. The label is called "class"; a key is a path below the root.

    Args:
        root: the folder, relative to the working folder.
        part: "train" and "test" divide each class by the hash of the key, the same way on every machine.
        test_share: of each class, on average.
        limit: keep at most this many images, always the same random sample.
    """

    def __init__(
        self, *, root: str, part: Part = "all", test_share: float = 0.25, limit: int | None = None
    ) -> None:
        listing = list_folder(Path(root), IMAGE_EXTENSIONS, "image")
        listing = select(listing, part=part, test_share=test_share, limit=limit, where=root)
        self._root = Path(root).absolute()
        self._files = listing.files
        self.label_classes = listing.label_classes

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._files[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self._files[index].labels

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self._files[index].key, 1, 0.0, self._files[index].labels)

    def origin(self, index: int) -> Origin:
        return image_origin(self._root / self._files[index].path)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if set(frames) != {0}:
            raise ValueError(f"an image has frame 0 only, asked for {list(frames)}")
        file = self._files[index]
        return read_image(self._root / file.path, file.key).expand(len(frames), -1, -1, -1)
