"""ImageNet (ILSVRC 2012 to 2017, classification) by its folders and the files beside them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from vidssl.data.decode.images import read_image
from vidssl.data.sources.listing import IMAGE_EXTENSIONS, Listed, Listing, check_choice, find_files, select
from vidssl.data.sources.official.listed import (
    DataSet,
    Found,
    OfficialList,
    Wanted,
    check_missing_share,
    find_listed,
)
from vidssl.data.sources.official.tables import read_csv, read_text
from vidssl.data.sources.origins import image_origin
from vidssl.interfaces import DataSource, KnowsMissing, KnowsOrigins, Origin, SampleInfo

IMAGENET = DataSet(
    "ImageNet",
    "root holds train/n01440764/n01440764_10026.JPEG and so on, and val/n01440764/..., or all of val in one "
    "folder with solution: LOC_val_solution.csv",
    "imagenet",
)
_SYNSET = re.compile(r"n\d{8}")
_log = logging.getLogger(__name__)


class ImageNet(DataSource, KnowsMissing, KnowsOrigins):
    """ImageNet as it is published, classes in the order of their synsets.

    An image is a video of one frame. The label is called "class"; a key is a path below the root.

    Args:
        root: folder of ``train`` and ``val``, relative to the working folder.
        part: which of them.
        solution: ``LOC_val_solution.csv``, for validation images that lie in one folder.
        synsets: ``LOC_synset_mapping.txt``, which gives classes names in words.
        max_missing_share: of the images in ``solution``, that may be missing.
        limit: keep at most this many images, always the same random sample.
    """

    def __init__(
        self,
        *,
        root: str,
        part: Literal["train", "val"],
        solution: str | None = None,
        synsets: str | None = None,
        max_missing_share: float = 0.01,
        limit: int | None = None,
    ) -> None:
        check_missing_share(max_missing_share)
        self._root = Path(root).absolute()
        check_choice("part", part, ("train", "val"))
        if solution is not None and part == "train":
            raise ValueError("solution is for the part val: training images lie in a folder each class")
        if solution is None:
            found = _by_folders(Path(root), part)
        else:
            found = _by_solution(Path(root), part, Path(solution), max_missing_share)
        listing = found.listing if synsets is None else _renumbered(found.listing, Path(synsets))
        listing = select(listing, part="all", test_share=0.5, limit=limit, where=f"{root}/{part}")
        self._files = listing.files
        self._num_listed = found.num_listed if limit is None else len(listing.files)
        self.label_classes: Mapping[str, tuple[str, ...]] = listing.label_classes

    def __len__(self) -> int:
        return len(self._files)

    def num_listed(self) -> int:
        return self._num_listed

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


def _by_folders(root: Path, part: str) -> Found:
    """Images by the folders of their synsets."""
    folder = root / part
    if not folder.is_dir():
        raise IMAGENET.error(
            f"{folder}: no such folder (paths are relative to the working folder, {Path.cwd()})"
        )
    keys = find_files(folder, IMAGE_EXTENSIONS)
    stray = [key for key in keys if not _SYNSET.fullmatch(key.split("/")[0])]
    if not keys or stray:
        what = (
            f"{stray[0]} and {len(stray) - 1} more lie in no synset's folder" if stray else "no image in it"
        )
        raise IMAGENET.error(f"{folder}: {what}")
    classes = tuple(sorted({key.split("/")[0] for key in keys}))
    number = {name: place for place, name in enumerate(classes)}
    _log.info("ImageNet %s: %d images of %d classes found", part, len(keys), len(classes))
    files = tuple(Listed(f"{part}/{key}", {"class": number[key.split("/")[0]]}) for key in keys)
    return Found(Listing(files, {"class": classes}), len(files))


def _by_solution(root: Path, part: str, solution: Path, max_missing_share: float) -> Found:
    """Images by a list of their synsets."""
    found = find_listed(
        IMAGENET,
        _read_solution(solution),
        root / part,
        IMAGE_EXTENSIONS,
        max_missing_share=max_missing_share,
    )
    files = tuple(Listed(f"{part}/{file.path}", file.labels) for file in found.listing.files)
    return Found(Listing(files, found.listing.label_classes), found.num_listed)


def _read_solution(path: Path) -> OfficialList:
    """The synset of each image: the first word of a string that boxes follow."""
    wanted = []
    for line, row in read_csv(IMAGENET, path, ("ImageId", "PredictionString")):
        synset = row["PredictionString"].split(" ")[0]
        if not _SYNSET.fullmatch(synset):
            raise IMAGENET.error(f"{path}:{line}: expected a synset such as n01440764, got {synset!r}")
        wanted.append(Wanted((row["ImageId"],), "", synset))
    if not wanted:
        raise IMAGENET.error(f"{path}: the list is empty")
    classes = tuple(sorted({entry.label or "" for entry in wanted}))
    return OfficialList("ImageNet val", tuple(wanted), classes)


def _renumbered(listing: Listing, path: Path) -> Listing:
    """The same files with all classes of LOC_synset_mapping.txt, "n01440764 tench, Tinca tinca"."""
    lines = [line.strip() for line in read_text(IMAGENET, path).splitlines() if line.strip()]
    number = {line.split(" ")[0]: place for place, line in enumerate(lines)}
    unknown = [name for name in listing.label_classes["class"] if name not in number]
    if unknown:
        raise IMAGENET.error(f"{path}: it lacks the synset {unknown[0]} and {len(unknown) - 1} more")
    old = listing.label_classes["class"]
    files = tuple(Listed(file.path, {"class": number[old[file.labels["class"]]]}) for file in listing.files)
    return Listing(files, {"class": tuple(lines)})
