"""ImageNet (ILSVRC 2012 to 2017, classification) by its folders and the files beside them."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidssl.data.sources.folders import ListedImages
from vidssl.data.sources.listing import IMAGE_EXTENSIONS, Listed, Listing, check_choice, find_files, select
from vidssl.data.sources.official.listed import (
    DataSet,
    OfficialEntry,
    OfficialList,
    check_missing_share,
    find_listed,
)

IMAGENET = DataSet(
    "ImageNet",
    "root holds train/n01440764/n01440764_10026.JPEG and so on, and val/n01440764/..., or all of val in one "
    "folder with solution: LOC_val_solution.csv",
    "imagenet",
)
_SYNSET = re.compile(r"n\d{8}")
_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class ImageNet(ListedImages):
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

    root: str
    part: Literal["train", "val"]
    solution: str | None = None
    synsets: str | None = None
    max_missing_share: float = 0.01
    limit: int | None = None

    def __post_init__(self) -> None:
        check_missing_share(self.max_missing_share)
        root = Path(self.root)
        check_choice("part", self.part, ("train", "val"))
        if self.solution is not None and self.part == "train":
            raise ValueError("solution is for the part val: training images lie in a folder each class")
        if self.solution is None:
            listing = _by_folders(root, self.part)
            num_listed = len(listing.files)
        else:
            listing, num_listed = _by_solution(root, self.part, Path(self.solution), self.max_missing_share)
        listing = listing if self.synsets is None else _renumbered(listing, Path(self.synsets))
        listing = select(listing, limit=self.limit, where=f"{self.root}/{self.part}")
        self.take(self.root, listing, num_listed if self.limit is None else None)


def _by_folders(root: Path, part: str) -> Listing:
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
    return Listing(files, {"class": classes})


def _by_solution(root: Path, part: str, solution: Path, max_missing_share: float) -> tuple[Listing, int]:
    """Images by a list of their synsets."""
    listing, num_listed = find_listed(
        IMAGENET, _read_solution(solution), root / part, IMAGE_EXTENSIONS, max_missing_share=max_missing_share
    )
    files = tuple(Listed(f"{part}/{file.path}", file.labels) for file in listing.files)
    return Listing(files, listing.label_classes), num_listed


def _read_solution(path: Path) -> OfficialList:
    """The synset of each image: the first word of a string that boxes follow."""
    wanted = []
    for line, row in IMAGENET.rows(path, ("ImageId", "PredictionString")):
        synset = row["PredictionString"].split(" ")[0]
        if not _SYNSET.fullmatch(synset):
            raise IMAGENET.error(f"{path}:{line}: expected a synset such as n01440764, got {synset!r}")
        wanted.append(OfficialEntry((row["ImageId"],), "", synset))
    if not wanted:
        raise IMAGENET.error(f"{path}: the list is empty")
    classes = tuple(sorted({entry.label or "" for entry in wanted}))
    return OfficialList("ImageNet val", tuple(wanted), classes)


def _renumbered(listing: Listing, path: Path) -> Listing:
    """The same files with all classes of LOC_synset_mapping.txt, "n01440764 tench, Tinca tinca"."""
    lines = [line.strip() for line in IMAGENET.text(path).splitlines() if line.strip()]
    number = {line.split(" ")[0]: place for place, line in enumerate(lines)}
    unknown = [name for name in listing.label_classes["class"] if name not in number]
    if unknown:
        raise IMAGENET.error(f"{path}: it lacks the synset {unknown[0]} and {len(unknown) - 1} more")
    old = listing.label_classes["class"]
    files = tuple(Listed(file.path, {"class": number[old[file.labels["class"]]]}) for file in listing.files)
    return Listing(files, {"class": tuple(lines)})
