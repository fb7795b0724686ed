"""Which files a folder holds, and the class, part and group that each belongs to."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from vidssl.data.classes import LabelClasses
from vidssl.data.decode.images import is_still_webp
from vidssl.data.sources.manifest import NamedSegment, Segment
from vidssl.errors import UsageError, counted, printable
from vidssl.interfaces import DataSource, KnowsGroups, KnowsMissing

# v_ApplyEyeMakeup_g07_c03: the clips of a group are cut from one video
_UCF101 = re.compile(r"v_(\w+)_g(\d+)_c\d+")
# April_09_brush_hair_u_nm_np1_ba_goo_0: film, action, visible part, camera, people, side, quality, number
_HMDB51 = re.compile(r"(\w.*)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")


def group_of(key: str) -> str:
    """The group that a key puts a video into; empty if its name is not UCF101's or HMDB51's.

    Groups count within a class, as the official splits keep them apart. Segments of one file are a group too.
    """
    whole, segment, _ = key.rpartition("#t=")
    if segment:
        return group_of(whole) or whole
    path = PurePosixPath(key)
    ucf101 = _UCF101.fullmatch(path.stem)
    if ucf101:
        return f"{ucf101[1]} g{ucf101[2]}"
    hmdb51 = _HMDB51.fullmatch(path.stem)
    if not hmdb51:
        return ""
    action = path.parent.name
    film = hmdb51[1].removesuffix(f"_{action}") if hmdb51[1].endswith(f"_{action}") else hmdb51[1]
    return f"{action} {film}"


def shared_groups(train: Iterable[str], test: Iterable[str]) -> list[tuple[str, str]]:
    """Each key of ``test`` that is of the group of one of ``train``, with the first such key."""
    first: dict[str, str] = {}
    for key in train:
        first.setdefault(group_of(key), key)
    first.pop("", None)
    return [(key, first[group_of(key)]) for key in test if group_of(key) in first]


def groups_of(source: DataSource, numbers: Iterable[int]) -> tuple[str, ...]:
    """Group of each of some samples, empty for one of none; no names where none has a group."""
    names = tuple(
        (source.group(number) if isinstance(source, KnowsGroups) else "") or group_of(source.key(number))
        for number in numbers
    )
    return names if any(names) else ()


def group_numbers(names: Sequence[str]) -> list[int] | None:
    """Groups as numbers, a number of its own for each video of none; None where there are no groups."""
    if not any(names):
        return None
    known: dict[object, int] = {}
    return [known.setdefault(name or place, len(known)) for place, name in enumerate(names)]


ListPart = Literal["all", "train", "test"]

VIDEO_EXTENSIONS = (
    *("avi", "mp4", "mkv", "webm", "mov", "mpg", "mpeg", "m4v"),
    *("wmv", "flv", "ogv", "3gp", "ts", "mts", "m2ts", "vob", "gif", "webp"),
)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_READERS = {
    VIDEO_EXTENSIONS: "videos are read by 'video_folder'",
    IMAGE_EXTENSIONS: "images are read by 'image_folder' or 'frame_folders', packed by 'data shard --images'",
    ("tar",): "tar shards are read by 'tar_shards'",
    ("jpegs",): "JPEG shards are read by 'jpeg_shards'",
}


_PARTS = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
_PARTS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Listed:
    """A sample of a data set: its file's path below the root, label name -> class number, and its segment.

    ``segment``: what belongs to the sample; None for the whole file.
    ``group``: name of the source that it was cut from with others; empty where a list names none.
    ``name``: of a segment, where several have the same times.
    """

    path: str
    labels: Mapping[str, int]
    segment: Segment | None = None
    group: str = ""
    name: str = ""

    @property
    def cut_from(self) -> str:
        """Its group, as the list or its name tells; empty for one of none."""
        return self.group or group_of(self.key)

    @property
    def key(self) -> str:
        """The path as it can be printed; a segment's ends in a media fragment: ``#t=5,15``, ``&id=NAME``."""
        key = printable(self.path, one_line=True)
        if self.segment is None:
            return key
        times = f"{key}#t={self.segment.start:.10g},{self.segment.end:.10g}"
        return f"{times}&id={self.name}" if self.name else times


@dataclass(frozen=True)
class Listing:
    """The samples of a data set, and label name -> names of its classes in number order."""

    files: tuple[Listed, ...]
    label_classes: Mapping[str, tuple[str, ...]]

    def by_file(self) -> dict[str, list[Listed]]:
        """Path -> its samples: one, or several segments."""
        found: dict[str, list[Listed]] = {}
        for sample in self.files:
            found.setdefault(sample.path, []).append(sample)
        return found

    def whole(self) -> "Listing":
        """Each file once, as a whole; one that is listed by segments has no label of its own."""
        files = (
            Listed(path, {} if samples[0].segment else samples[0].labels)
            for path, samples in self.by_file().items()
        )
        return Listing(tuple(files), self.label_classes)

    def class_names(self, sample: Listed) -> dict[str, str]:
        """Label name -> name of the class."""
        return {name: self.label_classes[name][number] for name, number in sample.labels.items()}

    def segments(self) -> dict[str, tuple[NamedSegment, ...]]:
        """Path -> the segments that are listed of it; only files of which there are any."""
        found: dict[str, tuple[NamedSegment, ...]] = {}
        for sample in self.files:
            if (part := sample.segment) is not None:
                named = (part.start, part.end, self.class_names(sample))
                found[sample.path] = (*found.get(sample.path, ()), named)
        return found


@dataclass(kw_only=True, eq=False)
class PartKeys:
    """Keys of sources that a part of can be read.

    Args:
        part: "train" and "test" divide each class by the hash of the key, the same way on every machine.
        test_share: fraction of each class that is for testing, on average.
        limit: keep at most this many samples, always the same random ones.
    """

    part: ListPart = "all"
    test_share: float = 0.25
    limit: int | None = None


@dataclass(kw_only=True, eq=False)
class ListKeys(PartKeys):
    """Keys of sources that know their samples and that a list can choose from.

    Args:
        list: as ``video_list`` has it: which samples, and their labels; by default all, with labels of their
            own.
        test_list: held-out videos; numbers classes together with ``list``.
        part: "test" is ``test_list``, or without one a fraction of each class by the hash of the key.
    """

    list: str | None = None
    test_list: str | None = None


class ListedFiles(DataSource, KnowsMissing, KnowsGroups):
    """Samples that a listing names; a subclass ``take``s it.

    Attributes:
        folder: that paths are relative to, absolute: a source keeps its files when the process moves on.
        files: the samples.
    """

    folder: Path
    files: tuple[Listed, ...]
    _num_missing = 0

    def take(self, root: str, listing: Listing, num_listed: int | None = None) -> None:
        """Has the files of a listing for samples; ``num_listed`` counts those that are missing too."""
        self.folder, self.files = Path(root).absolute(), listing.files
        self.label_classes: Mapping[str, tuple[str, ...]] = listing.label_classes
        self._num_missing = 0 if num_listed is None else num_listed - len(listing.files)

    def __len__(self) -> int:
        return len(self.files)

    def num_listed(self) -> int:
        return len(self.files) + self._num_missing

    def key(self, index: int) -> str:
        return self.files[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self.files[index].labels

    def group(self, index: int) -> str:
        return self.files[index].cut_from


def named_listing(
    files: Iterable[tuple[str, Mapping[str, str], Sequence[NamedSegment]]], classes: LabelClasses
) -> Listing:
    """A listing of path, labels by name of the class, and segments with theirs, as our files keep them."""
    number = {name: {value: place for place, value in enumerate(values)} for name, values in classes.items()}

    def numbers(labels: Mapping[str, str]) -> dict[str, int]:
        return {name: number[name][value] for name, value in labels.items()}

    found: list[Listed] = []
    for path, labels, segments in files:
        found += [Listed(path, numbers(own), Segment(start, end)) for start, end, own in segments] or [
            Listed(path, numbers(labels))
        ]
    return Listing(tuple(found), classes)


def list_folder(root: Path, extensions: Sequence[str], kind: str) -> Listing:
    """Files below ``root``, whose folders are their classes; without folders they have no label.

    Raises:
        UsageError: if the folder is missing, unreadable or holds no such file, or if files lie beside
            class folders, or these are called train, val and test.
    """
    keys = find_files(root, extensions)
    if not keys:
        raise UsageError(
            f"{root.absolute()}: no {kind} in it. Looked in it and in every folder below for files that end "
            f"in {', '.join('.' + extension for extension in extensions)}{_others(root, extensions)}"
        )
    flat = [key for key in keys if "/" not in key]
    if len(flat) == len(keys):
        return Listing(tuple(Listed(key, {}) for key in keys), {})
    refuse_parts(root, {key.split("/")[0] for key in keys})
    if flat:
        raise UsageError(
            f"{root.absolute()}: {flat[0]!r} and {len(flat) - 1} more lie beside folders that are taken for "
            "classes. Move them into a class folder, or away"
        )
    return Listing(*labelled_by_folder(keys))


def labelled_by_folder(keys: Sequence[str]) -> tuple[tuple[Listed, ...], dict[str, tuple[str, ...]]]:
    """Files whose first folders are their classes, and these."""
    folders = {key: printable(key.split("/")[0], one_line=True) for key in keys}
    classes = tuple(sorted(set(folders.values())))
    number = {name: place for place, name in enumerate(classes)}
    return tuple(Listed(key, {"class": number[name]}) for key, name in folders.items()), {"class": classes}


def refuse_parts(root: Path, folders: set[str]) -> None:
    """Raises UsageError if what would be classes are the parts of a data set: train, val, test."""
    parts = {_PARTS.get(folder.lower(), ""): folder for folder in sorted(folders)}
    if "" in parts:
        return
    held_out = parts.get("val") or parts.get("test") or "val"
    raise UsageError(
        f"{root}: its folders {', '.join(sorted(folders))} are parts of a data set, not classes. Read each "
        f"by itself and without 'part': 'root: {root / parts.get('train', 'train')}' to learn from and "
        f"'root: {root / held_out}' to test on; 'vidssl data' takes each by itself too"
    )


def _others(root: Path, extensions: Sequence[str]) -> str:
    """Other files of the folder and the source that reads them, to end a message with."""
    for others, who in _READERS.items():
        if others != tuple(extensions) and (found := find_files(root, others)):
            return f". It holds {found[0]}: {who}"
    return ""


def find_files(root: Path, extensions: Sequence[str]) -> list[str]:
    """Keys of all files with these extensions, sorted; links to folders are followed, once each.

    Of videos a WebP file counts only if it is no single picture: such lie beside videos as thumbnails.

    Raises:
        UsageError: if the folder is missing or unreadable.
    """
    if not root.is_dir():
        what = "is no folder" if root.exists() else "no such folder"
        raise UsageError(f"{root}: {what} (paths are relative to the working folder, {Path.cwd()})")
    endings = tuple("." + extension for extension in extensions)
    keys, seen = [], set()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # a leading dot: hidden files, among them the "._clip.mp4" that macOS leaves on other file systems
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        keys += [
            (below / name).as_posix()
            for name in names
            if name.lower().endswith(endings) and not name.startswith(".")
        ]
    if tuple(extensions) == VIDEO_EXTENSIONS:
        keys = [key for key in keys if not (key.lower().endswith(".webp") and is_still_webp(root / key))]
    return sorted(keys)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def check_choice(key: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that a recipe could not hold and Python can.

    Raises:
        ValueError: with the choices.
    """
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def select(
    listing: Listing,
    part: ListPart = "all",
    test_share: float = 0.25,
    limit: int | None = None,
    *,
    where: str,
) -> Listing:
    """The files of one part of a data set.

    Each file falls into a part by the hash of its key, class by class, so that adding files moves no other
    from train to test. Files of one group, cut from one source, fall into one part, by the group's name. A
    class of two or more files, or groups, has at least one in either part.

    Args:
        listing: of the whole.
        part: "all" is train and test together.
        test_share: of the files of a class, on average.
        limit: keep at most this many, a random sample that is always the same.
        where: the data set's name for messages.

    Raises:
        UsageError: if nothing is left.
    """
    check_choice("part", part, get_args(ListPart))
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    chosen = list(listing.files)
    if part != "all":
        test = _test_keys(listing.files, test_share)
        chosen = [file for file in chosen if (file.path in test) == (part == "test")]
    if limit is not None:
        chosen = sorted(chosen, key=lambda file: _place(file.key, "limit"))[:limit]
    if not chosen:
        raise UsageError(
            f"{where}: its {part} part is empty; it lists {counted(len(listing.files), 'file')} in all"
        )
    return Listing(tuple(sorted(chosen, key=lambda file: file.key)), listing.label_classes)


def _test_keys(files: Sequence[Listed], test_share: float) -> set[str]:
    by_class: dict[tuple[int, ...], dict[str, list[str]]] = {}
    placed: dict[str, dict[str, list[str]]] = {}  # a group of several classes stays together in its first
    for path, samples in Listing(tuple(files), {}).by_file().items():  # segments of a file stay together
        unit = samples[0].cut_from or path
        units = placed.setdefault(unit, by_class.setdefault(tuple(samples[0].labels.values())[:1], {}))
        units.setdefault(unit, []).append(path)
    test: set[str] = set()
    for units in by_class.values():
        ranked = sorted(units, key=_place)
        count = sum(_place(unit) < test_share for unit in units)
        # one of a class of two goes to test even if no hash is low enough; a single one is for training
        for unit in ranked[: min(max(count, 1), len(ranked) - 1)]:
            test.update(units[unit])
    return test


def _place(key: str, salt: str = "part") -> float:
    """A number in [0, 1) that only the key decides."""
    digest = hashlib.sha256(f"{salt}:{key}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
