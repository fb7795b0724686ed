"""Videos that lie as folders of images, one a frame; DAVIS, with folders of masks beside them."""

import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vidssl.data.classes import ordered_classes
from vidssl.data.decode.images import read_image
from vidssl.data.sources import listing as listings, origins
from vidssl.data.sources.official.listed import DataSet, check_missing_share, tell_found
from vidssl.errors import UsageError, counted
from vidssl.interfaces import (
    NOT_JUDGED,
    DataSource,
    KnowsMasks,
    KnowsOrigins,
    Origin,
    SampleInfo,
    UnreadableSample,
)

FRAMES = DataSet(
    "A folder of frames",
    "root holds VIDEO/img_00001.jpg, VIDEO/img_00002.jpg and so on, or CLASS/VIDEO/img_00001.jpg; a list has "
    "'VIDEO', 'VIDEO CLASS' or 'VIDEO FRAMES CLASS' on each line",
    "frame_folders",
)
_FRAME = re.compile(rf"(.*?)(\d+)\.(?:{'|'.join(listings.IMAGE_EXTENSIONS)})", re.IGNORECASE | re.DOTALL)
_LINE = re.compile(r"(\S.*?)(?:\s+(\d+))??(?:\s+(\d+))?")
_KEPT = 8192  # videos whose frames' names are kept


@dataclass(frozen=True)
class _Video:
    """Names of its frames in order, or why they cannot be used."""

    names: tuple[str, ...]
    problem: str = ""


@dataclass(kw_only=True, eq=False)
class FrameFolders(listings.PartKeys, listings.ListedFiles, KnowsOrigins):
    """Videos that are folders of numbered images, such as img_00001.jpg.

    A video's key is its folder below the root. Without a ``list`` the folders above the videos are their
    classes, where there are any; the label is called "class". A number that is missing in the row makes a
    video unreadable.

    Args:
        root: folder that the videos are in, relative to the working folder.
        fps: frame rate that the images were taken at; images do not tell.
        list: "VIDEO", "VIDEO CLASS" or "VIDEO FRAMES CLASS" on each line, with numbers for classes.
        prefix: what the names of frames begin with, where folders hold others too (optical flow).
        max_missing_share: of the folders in ``list``, that may be missing.
        part, test_share, limit: see ``PartKeys``.
    """

    root: str
    fps: float
    list: str | None = None
    prefix: str | None = None
    max_missing_share: float = 0.01

    def __post_init__(self) -> None:
        check_missing_share(self.max_missing_share)
        if self.fps <= 0:
            raise ValueError(f"fps must be above 0, got {self.fps}")
        root = Path(self.root).absolute()
        if not root.is_dir():
            raise FRAMES.error(
                f"{self.root}: no such folder (paths are relative to the working folder, {Path.cwd()})"
            )
        self._promised: dict[str, int] = {}
        if self.list is None:
            listing, num_missing = _from_folders(root), 0
        else:
            listing, num_missing = self._from_list(root, Path(self.list))
        listing = listings.select(listing, self.part, self.test_share, self.limit, where=self.root)
        # of a fraction of the videos none can say how many of the missing would be in it
        whole = self.part == "all" and self.limit is None
        self.take(self.root, listing, len(listing.files) + num_missing if whole else None)
        self._videos: OrderedDict[int, _Video] = OrderedDict()
        if self._look(0).problem.startswith("images of several kinds"):
            raise FRAMES.error(f"{root / self.key(0)}: {self._look(0).problem}")

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.key(index), len(self.frame_names(index)), self.fps, self.labels(index))

    def origin(self, index: int) -> Origin:
        return origins.image_origin(self.folder / self.files[index].path)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        key, names = self.key(index), self.frame_names(index)
        folder = self.folder / self.files[index].path
        if min(frames) < 0 or max(frames) >= len(names):
            raise ValueError(f"{key} has {counted(len(names), 'frame')}, asked for {max(frames)}")
        pixels = {
            number: read_image(folder / names[number], f"{key}/{names[number]}")
            for number in sorted(set(frames))
        }
        if len({image.shape for image in pixels.values()}) > 1:
            raise UnreadableSample(key, "its frames are of different sizes")
        return torch.cat([pixels[number] for number in frames])

    def frame_names(self, index: int) -> tuple[str, ...]:
        """File names of a video's frames, in order."""
        video = self._look(index)
        if video.problem:
            raise UnreadableSample(self.key(index), video.problem)
        return video.names

    def _look(self, index: int) -> _Video:
        """Names of the frames of a video, looked up once."""
        if index not in self._videos:
            path = self.files[index].path
            video = _frames_in(self.folder / path, self.prefix, self._promised.get(path))
            if video.problem:
                return video  # looked up again: a folder may be mended while it is in use
            self._videos[index] = video
        self._videos.move_to_end(index)
        if len(self._videos) > _KEPT:
            self._videos.popitem(last=False)
        return self._videos[index]

    def _from_list(self, root: Path, path: Path) -> tuple[listings.Listing, int]:
        rows = _read_list(path)
        there = {key: (root / key).is_dir() for key in rows}
        missing = [key for key, exists in there.items() if not exists]
        if len(missing) == len(rows):
            raise FRAMES.error(
                f"{root}: none of the {counted(len(rows), 'folder')} of {path} is in it, not even "
                f"{missing[0]}"
            )
        classes = ordered_classes(
            (str(number) for _, number in rows.values() if number is not None), "class", path
        )
        numbers = {name: place for place, name in enumerate(classes)}
        more = f", {counted(len(classes), 'class', 'classes')}" if classes else ""
        tell_found(str(path), len(rows) - len(missing), missing, self.max_missing_share, more)
        self._promised = {key: count for key, (count, _) in rows.items() if count is not None}
        files = tuple(
            listings.Listed(key, {} if number is None else {"class": numbers[str(number)]})
            for key, (_, number) in rows.items()
            if there[key]
        )
        return listings.Listing(files, {"class": classes} if classes else {}), len(missing)


def _from_folders(root: Path) -> listings.Listing:
    keys = _find_folders(root)
    if not keys or keys == ["."]:
        what = "images lie in it and not in a folder for each video" if keys else "no image below it"
        raise FRAMES.error(f"{root}: {what}")
    flat = [key for key in keys if "/" not in key]
    if flat and len(flat) < len(keys):
        raise FRAMES.error(
            f"{root}: {flat[0]} holds frames and lies beside folders that are taken for classes"
        )
    if flat:
        return listings.Listing(tuple(listings.Listed(key, {}) for key in keys), {})
    listings.refuse_parts(root, {key.split("/")[0] for key in keys})
    return listings.Listing(*listings.labelled_by_folder(keys))


def _read_list(path: Path) -> dict[str, tuple[int | None, int | None]]:
    """Folder -> number of frames and class, each None where the list does not say."""
    rows: dict[str, tuple[int | None, int | None]] = {}
    widths = set()
    for line, text in enumerate(FRAMES.text(path).splitlines(), start=1):
        match = _LINE.fullmatch(text.strip())
        if match is None:
            if text.strip():
                raise FRAMES.error(f"{path}:{line}: not a line of a list: {text.strip()[:80]!r}")
            continue
        key = match[1].rstrip("/")
        if key in rows:
            raise FRAMES.error(f"{path}:{line}: {key} is listed twice")
        rows[key] = tuple(None if word is None else int(word) for word in match.groups()[1:])  # type: ignore[assignment]
        widths.add(sum(word is not None for word in match.groups()))
    if len(widths) != 1:
        what = "the list is empty" if not widths else "its lines have different numbers of columns"
        raise FRAMES.error(f"{path}: {what}")
    return rows


def _find_folders(root: Path) -> list[str]:
    """Folders that hold images, sorted; nothing below them is looked at. The root's own key is "."."""
    keys, seen, left = [], set(), [root]
    while left:
        folder = left.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        below = _folders_in(folder)
        if below is None:
            keys.append(folder.relative_to(root).as_posix())
        left += below or []
    return sorted(keys)


def _folders_in(folder: Path) -> list[Path] | None:
    """The folders in a folder; None once a frame is met, for then it is a video."""
    below = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    below.append(Path(entry.path))
                elif _FRAME.fullmatch(entry.name):
                    return None
    except OSError as error:
        raise FRAMES.error(f"{folder}: the folder cannot be read ({error.strerror})") from error
    return below


def _frames_in(folder: Path, prefix: str | None, promised: int | None) -> _Video:
    """The frames in a folder by their numbers."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        return _Video((), f"the folder cannot be read ({error.strerror})")
    matches = [match for match in map(_FRAME.fullmatch, names) if match and not match[0].startswith(".")]
    kinds = sorted({match[1] for match in matches})
    if prefix is None and len(kinds) > 1:
        return _Video((), f"images of several kinds ({', '.join(kinds[:4])}): say which by the key 'prefix'")
    by_number = {int(match[2]): match[0] for match in matches if prefix is None or match[1] == prefix}
    if not by_number:
        return _Video((), f"no image {prefix or ''}00001.jpg or the like in it")
    first, last = min(by_number), max(by_number)
    gap = next((number for number in range(first, last + 1) if number not in by_number), None)
    if gap is not None:
        return _Video((), f"image {gap} is missing between {by_number[first]} and {by_number[last]}")
    ordered = tuple(by_number[number] for number in range(first, last + 1))
    if promised is not None and len(ordered) < promised:
        there = counted(len(ordered), "frame", verb="are")
        return _Video((), f"{there} there, the list promises {promised}")
    return _Video(ordered[:promised])


@dataclass(kw_only=True, eq=False)
class Davis(DataSource, KnowsOrigins, KnowsMasks):
    """DAVIS (Pont-Tuset et al. 2017), or videos of one's own with masks in its folders.

    ``root`` holds JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png and
    ImageSets/2017/val.txt, a video a line. A mask is a PNG whose values (of the palette) number objects
    from 1 on; 0 is the ground and 255 is not judged.

    Args:
        root: folder of the data set, relative to the working folder.
        split: name of the list.
        year: folder of the list. Of "2016" all objects of a video are one.
        resolution: folder of frames and masks; "" where there is none in between.
        classes: names of what the masks' values mean from 0 on, where they number classes and no objects.
        limit: keep at most so many videos, always the same random ones.
    """

    root: str
    split: str = "val"
    year: Literal["2016", "2017", "2019"] = "2017"
    resolution: str = "480p"
    classes: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        root = Path(self.root)
        listed = root / "ImageSets" / self.year / f"{self.split}.txt"
        for path in (root, listed, root / "Annotations" / self.resolution):
            if not path.exists():
                raise UsageError(
                    f"{path}: not there. DAVIS's folders are JPEGImages/{self.resolution or 'VIDEO'}, "
                    f"Annotations/{self.resolution or 'VIDEO'} and ImageSets/{self.year}/{self.split}.txt "
                    "below 'root'"
                )
        self._frames = FrameFolders(
            root=str(root / "JPEGImages" / self.resolution), fps=24.0, list=str(listed), limit=self.limit
        )
        self._masks = root / "Annotations" / self.resolution
        self.mask_classes = self.classes
        self.label_classes = {}

    def __len__(self) -> int:
        return len(self._frames)

    def key(self, index: int) -> str:
        return self._frames.key(index)

    def info(self, index: int) -> SampleInfo:
        return self._frames.info(index)

    def origin(self, index: int) -> Origin:
        return self._frames.origin(index)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return self._frames.read(index, frames)

    def object_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        masks = self._read_masks(index, frames)
        if self.year == "2016":
            return (masks > 0).to(torch.uint8)  # its own files mark the one object by 255
        return masks

    def class_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        masks = self._read_masks(index, frames)
        judged = masks[masks != NOT_JUDGED]
        highest = int(judged.max()) if len(judged) else 0
        if highest >= len(self.classes):
            raise UnreadableSample(
                self.key(index), f"a mask holds {highest}, and there are {len(self.classes)} names of classes"
            )
        return masks

    def _read_masks(self, index: int, frames: Sequence[int]) -> Tensor:
        key, names = self.key(index), self._frames.frame_names(index)
        found = []
        for frame in frames:
            path = self._masks / key / Path(names[frame]).with_suffix(".png")
            try:
                with Image.open(path) as image:
                    found.append(np.array(image))
            except (OSError, UnidentifiedImageError) as error:
                raise UnreadableSample(key, f"{path}: no mask that can be read ({error})") from error
            if found[-1].ndim != 2 or found[-1].dtype != np.uint8 or found[-1].shape != found[0].shape:
                raise UnreadableSample(key, f"{path}: a mask is one byte a pixel, of one size in a video")
        return torch.from_numpy(np.stack(found))
