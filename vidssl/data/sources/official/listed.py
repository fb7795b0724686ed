"""Official lists of data sets, matched with the files that are there; ImageNet's folders."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vidssl.data.sources import listing as listings, lists, manifest, video_files
from vidssl.engine.facts import parsed
from vidssl.errors import UsageError, counted

_log = logging.getLogger(__name__)
_NAMED = 5  # missing files that a line names


@dataclass(frozen=True)
class DataSet:
    """A published data set: its name, how its files lie, its page in ``docs/data``; reads its lists."""

    name: str
    lies: str
    page: str

    def error(self, what: str) -> UsageError:
        """An error that ends in how the data must lie."""
        return UsageError(f"{what}. {self.name} must lie like this: {self.lies} (docs/data/{self.page}.md)")

    def text(self, path: Path) -> str:
        """The text of an official file, whatever its line ends and byte order mark.

        Raises:
            UsageError: if it cannot be read, or is no text in UTF-8 or UTF-16.
        """
        try:
            return lists.read_text(path)
        except FileNotFoundError:
            raise self.error(
                f"{path}: no such file (paths are relative to the working folder, {Path.cwd()})"
            ) from None
        except OSError as error:
            raise self.error(f"{path}: it cannot be read ({error})") from error

    def lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Number and words of each line that holds any."""
        for number, line in enumerate(self.text(path).splitlines(), start=1):
            if line.strip():
                yield number, line.split()

    def rows(self, path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
        """Line and cells by column of each row of a CSV file, stripped of spaces.

        Raises:
            UsageError: if a needed column is missing, or a row is shorter than the header.
        """
        rows = lists.rows_of_csv(self.text(path).splitlines(), path)
        header = [name.strip() for name in next(rows, (0, []))[1]]
        lacking = [name for name in needed if name not in header]
        if lacking:
            raise self.error(
                f"{path}: its first line must name the columns {', '.join(needed)}; it lacks "
                f"{', '.join(lacking)} and reads {','.join(header)[:80]!r}"
            )
        for number, cells in rows:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) < len(header):
                raise self.error(f"{path}:{number}: {counted(len(cells), 'column')} of {len(header)}")
            yield number, {name: cell.strip() for name, cell in zip(header, cells, strict=False)}

    def json(self, path: Path) -> object:
        """Content of a JSON file."""
        try:
            return parsed(self.text(path))
        except ValueError as error:
            raise self.error(f"{path}: {error}") from error

    def entries(self, path: Path, needed: tuple[str, ...]) -> list[Mapping[str, object]]:
        """A JSON file that is a list of objects, each with the needed keys."""
        rows = self.json(path)
        if not isinstance(rows, list) or not rows:
            raise self.error(f"{path}: it must be a list of entries, one a video")
        for place, row in enumerate(rows):
            lacking = [name for name in needed if not isinstance(row, dict) or name not in row]
            if lacking:
                raise self.error(f"{path}: entry {place} lacks {', '.join(lacking)}: {str(row)[:80]}")
        return rows


@dataclass(frozen=True)
class OfficialEntry:
    """A video or image that an official list names.

    Attributes:
        names: that its file may bear, without extension, the most exact first.
        folder: that it lies in where files are sorted by class; empty if that is not known.
        label: name of its class; None where there are none.
        segment: of the video that the last of ``names`` may hold whole; None if files are clips as they are.
        labels: label name -> name of its class, where there are others than "class".
    """

    names: tuple[str, ...]
    folder: str = ""
    label: str | None = None
    segment: manifest.Segment | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> Mapping[str, str]:
        """Label name -> name of its class, "class" among them."""
        return self.labels if self.label is None else {"class": self.label, **self.labels}


@dataclass(frozen=True)
class OfficialList:
    """One part of a data set.

    Attributes:
        what: the part's name for messages, "UCF101 split 1 train".
        wanted: all that it lists.
        classes: names of classes in number order; empty where there are no labels.
        label_classes: the same of other labels, by label name.
        untrimmed: whether files are whole videos, and entries segments of them.
    """

    what: str
    wanted: tuple[OfficialEntry, ...]
    classes: tuple[str, ...] = ()
    label_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untrimmed: bool = False

    @property
    def named(self) -> Mapping[str, tuple[str, ...]]:
        """Label name -> names of its classes, "class" among them."""
        return {"class": self.classes, **self.label_classes} if self.classes else self.label_classes


def find_listed(
    data_set: DataSet,
    official: OfficialList,
    root: Path,
    extensions: Sequence[str],
    *,
    max_missing_share: float,
) -> tuple[listings.Listing, int]:
    """The listed files that are somewhere below ``root``, and how many are listed; the log counts them.

    A file is looked for by name, first in the folder of its class, and in folders called "replacement..."
    before all others: a mirror of Kinetics puts there what its archives hold spoilt. Of an entry that is
    listed twice only the first counts.

    Args:
        max_missing_share: of the listed files, that may be missing.

    Raises:
        UsageError: if the folder or all files are missing, or more than that fraction.
    """
    check_missing_share(max_missing_share)
    files = _FilesByName(_keys(data_set, root, extensions))
    taken: dict[str, list[OfficialEntry]] = {}
    missing, twice = [], 0
    numbers = {
        label: {name: place for place, name in enumerate(classes)}
        for label, classes in official.named.items()
    }
    for wanted in official.wanted:
        key = files.find(wanted)
        others = taken.get(key, []) if key is not None else []
        if any(other.names == wanted.names for other in others):
            twice += 1
        elif key is None or (others and not _by_segment(key, wanted)):
            missing.append(wanted.names[0])
        else:
            taken.setdefault(key, []).append(wanted)
    found = [
        listings.Listed(
            key,
            {label: numbers[label][name] for label, name in wanted.named.items()},
            wanted.segment
            if official.untrimmed
            else replace(wanted.segment, trimmed="yes" if len(samples) == 1 else "unclear")
            if wanted.segment and _by_segment(key, wanted)
            else None,
            name=wanted.names[0] if official.untrimmed else "",
        )
        for key, samples in taken.items()
        for wanted in samples
    ]
    if not found:
        first = official.wanted[0].names[0]
        raise data_set.error(
            f"{root.absolute()}: none of the {counted(len(official.wanted), 'file')} of {official.what} "
            "is below it, "
            f"not even {first}"
        )
    whole = 0 if official.untrimmed else sum(file.segment is not None for file in found)
    more = _more(official.classes, twice) + (
        f", {whole} named without times: of those longer than the list says its segment is read" * (whole > 0)
    )
    tell_found(official.what, len(found), missing, max_missing_share, more)
    listing = listings.Listing(tuple(found), official.named)
    return listing, len(found) + len(missing)


def _by_segment(key: str, wanted: OfficialEntry) -> bool:
    """Whether a file bears the name of the whole video that an entry is a segment of."""
    return wanted.segment is not None and _stem(key) == wanted.names[-1]


def _stem(key: str) -> str:
    return os.path.splitext(os.path.basename(key))[0]


def check_missing_share(fraction: float) -> None:
    """Raises ValueError unless it lies in [0, 1)."""
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"max_missing_share must be at least 0 and below 1, got {fraction}")


def tell_found(what: str, found: int, missing: Sequence[str], max_missing_share: float, more: str) -> None:
    """Logs how many listed files were found.

    Args:
        more: what else the line says.

    Raises:
        UsageError: if more than that fraction of them are missing.
    """
    total = found + len(missing)
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    line = f"{what}: {found} of {total} found{more}"
    if len(missing) > int(max_missing_share * total):
        raise UsageError(
            f"{line}; {len(missing)} ({len(missing) / total:.1%}) are missing, such as {named}, and "
            f"max_missing_share ({max_missing_share:g}) allows {int(max_missing_share * total)}: "
            "fetch them, or state a larger fraction"
        )
    if missing:
        _log.warning("%s; missing: %s", line, named)
    else:
        _log.info("%s", line)


def _more(classes: Sequence[str], twice: int) -> str:
    return (f", {counted(len(classes), 'class', 'classes')}" if classes else "") + (
        f", {twice} listed twice" if twice else ""
    )


def _keys(data_set: DataSet, root: Path, extensions: Sequence[str]) -> list[str]:
    if not root.is_dir():
        what = "is no folder" if root.exists() else "no such folder"
        raise data_set.error(f"{root}: {what} (paths are relative to the working folder, {Path.cwd()})")
    return listings.find_files(root, extensions)


class _FilesByName:
    """Files below a root, found by their names."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for key in keys:
            self._by_name.setdefault(_stem(key), []).append(key)

    def find(self, wanted: OfficialEntry) -> str | None:
        """The key of the best file for an entry; None if there is none."""
        candidates = [
            (place, key) for place, name in enumerate(wanted.names) for key in self._by_name.get(name, ())
        ]
        if len(candidates) < 2:
            return candidates[0][1] if candidates else None
        folder = _plain(wanted.folder)
        ranked = (
            (not _replaces(key), bool(folder) and _plain(_folder(key)) != folder, place, key)
            for place, key in candidates
        )
        return min(ranked)[-1]


def _folder(key: str) -> str:
    return os.path.basename(os.path.dirname(key))


def _replaces(key: str) -> bool:
    return any(part.lower().startswith("replacement") for part in key.split("/")[:-1])


def _plain(name: str) -> str:
    """A folder's name as all its spellings have it: "high kick", "high_kick" and "HighKick" are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def without_extension(name: str) -> str:
    """A name less the extension of a video, if it has one; dots elsewhere are part of it."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in listings.VIDEO_EXTENSIONS else name


IMAGENET = DataSet(
    "ImageNet",
    "root holds train/n01440764/n01440764_10026.JPEG and so on, and val/n01440764/..., or all of val in one "
    "folder with solution: LOC_val_solution.csv",
    "imagenet",
)
_SYNSET = re.compile(r"n\d{8}")


@dataclass(kw_only=True, eq=False)
class ImageNet(video_files.ListedImages):
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
        listings.check_choice("part", self.part, ("train", "val"))
        if self.solution is not None and self.part == "train":
            raise ValueError("solution is for the part val: training images lie in a folder each class")
        if self.solution is None:
            listing = _by_folders(root, self.part)
            num_listed = len(listing.files)
        else:
            listing, num_listed = _by_solution(root, self.part, Path(self.solution), self.max_missing_share)
        listing = listing if self.synsets is None else _renumbered(listing, Path(self.synsets))
        listing = listings.select(listing, limit=self.limit, where=f"{self.root}/{self.part}")
        self.take(self.root, listing, num_listed if self.limit is None else None)


def _by_folders(root: Path, part: str) -> listings.Listing:
    """Images by the folders of their synsets."""
    folder = root / part
    if not folder.is_dir():
        raise IMAGENET.error(
            f"{folder}: no such folder (paths are relative to the working folder, {Path.cwd()})"
        )
    keys = listings.find_files(folder, listings.IMAGE_EXTENSIONS)
    stray = [key for key in keys if not _SYNSET.fullmatch(key.split("/")[0])]
    if not keys or stray:
        what = (
            f"{stray[0]} and {len(stray) - 1} more lie in no synset's folder" if stray else "no image in it"
        )
        raise IMAGENET.error(f"{folder}: {what}")
    classes = tuple(sorted({key.split("/")[0] for key in keys}))
    number = {name: place for place, name in enumerate(classes)}
    _log.info("ImageNet %s: %d images of %d classes found", part, len(keys), len(classes))
    files = tuple(listings.Listed(f"{part}/{key}", {"class": number[key.split("/")[0]]}) for key in keys)
    return listings.Listing(files, {"class": classes})


def _by_solution(
    root: Path, part: str, solution: Path, max_missing_share: float
) -> tuple[listings.Listing, int]:
    """Images by a list of their synsets."""
    listing, num_listed = find_listed(
        IMAGENET,
        _read_solution(solution),
        root / part,
        listings.IMAGE_EXTENSIONS,
        max_missing_share=max_missing_share,
    )
    files = tuple(listings.Listed(f"{part}/{file.path}", file.labels) for file in listing.files)
    return listings.Listing(files, listing.label_classes), num_listed


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


def _renumbered(listing: listings.Listing, path: Path) -> listings.Listing:
    """The same files with all classes of LOC_synset_mapping.txt, "n01440764 tench, Tinca tinca"."""
    lines = [line.strip() for line in IMAGENET.text(path).splitlines() if line.strip()]
    number = {line.split(" ")[0]: place for place, line in enumerate(lines)}
    unknown = [name for name in listing.label_classes["class"] if name not in number]
    if unknown:
        raise IMAGENET.error(f"{path}: it lacks the synset {unknown[0]} and {len(unknown) - 1} more")
    old = listing.label_classes["class"]
    files = tuple(
        listings.Listed(file.path, {"class": number[old[file.labels["class"]]]}) for file in listing.files
    )
    return listings.Listing(files, {"class": tuple(lines)})
