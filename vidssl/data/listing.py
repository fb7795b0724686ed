"""Which files a folder holds, which class each belongs to, and which part of the data it falls into."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidssl.errors import UsageError

Part = Literal["all", "train", "test"]

VIDEO_EXTENSIONS = (
    *("avi", "mp4", "mkv", "webm", "mov", "mpg", "mpeg", "m4v"),
    *("wmv", "flv", "ogv", "3gp", "ts", "mts", "m2ts", "vob"),
)
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_READERS = {
    VIDEO_EXTENSIONS: "videos are read by 'video_folder'",
    IMAGE_EXTENSIONS: "images are read by 'image_folder' or 'frame_folders', packed by 'data shard --images'",
    ("tar",): "tar shards are read by 'tar_shards'",
    ("jpegs",): "JPEG shards are read by 'jpeg_shards'",
}


@dataclass(frozen=True)
class Listed:
    """A file of a data set: its path below the root, and label name -> class number."""

    key: str
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Listing:
    """The files of a data set, and label name -> names of its classes in number order."""

    files: tuple[Listed, ...]
    label_classes: Mapping[str, tuple[str, ...]]


def list_folder(root: Path, extensions: Sequence[str], kind: str) -> Listing:
    """Files below ``root``, whose folders are their classes; without folders they have no label.

    Raises:
        UsageError: if the folder is missing, unreadable or holds no such file, or if files lie beside
            class folders.
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
    if flat:
        raise UsageError(
            f"{root.absolute()}: {flat[0]!r} and {len(flat) - 1} more lie beside folders that are taken for "
            "classes. Move them into a class folder, or away"
        )
    classes = tuple(sorted({key.split("/")[0] for key in keys}))
    number = {name: place for place, name in enumerate(classes)}
    files = tuple(Listed(key, {"class": number[key.split("/")[0]]}) for key in keys)
    return Listing(files, {"class": classes})


def _others(root: Path, extensions: Sequence[str]) -> str:
    """What else the folder holds, and who reads that, to end a message with."""
    for others, who in _READERS.items():
        if others != tuple(extensions) and (found := find_files(root, others)):
            return f". It holds {found[0]}: {who}"
    return ""


def find_files(root: Path, extensions: Sequence[str]) -> list[str]:
    """Keys of all files with these extensions, sorted; links to folders are followed, once each.

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
    return sorted(keys)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def select(listing: Listing, *, part: Part, test_share: float, limit: int | None, where: str) -> Listing:
    """The files of one part of a data set.

    Each file falls into a part by the hash of its key, class by class, so that adding files moves no other
    from train to test. A class of two or more files has at least one in either part.

    Args:
        listing: of the whole.
        part: "all" is train and test together.
        test_share: of the files of a class, on average.
        limit: keep at most this many, a random sample that is always the same.
        where: the data set's name for messages.

    Raises:
        UsageError: if nothing is left.
    """
    if not 0.0 < test_share < 1.0:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    chosen = list(listing.files)
    if part != "all":
        test = _test_keys(listing.files, test_share)
        chosen = [file for file in chosen if (file.key in test) == (part == "test")]
    if limit is not None:
        chosen = sorted(chosen, key=lambda file: _place(file.key, "limit"))[:limit]
    if not chosen:
        raise UsageError(f"{where}: its {part} part is empty; it lists {len(listing.files)} files in all")
    return Listing(tuple(sorted(chosen, key=lambda file: file.key)), listing.label_classes)


def _test_keys(files: Sequence[Listed], test_share: float) -> set[str]:
    by_class: dict[tuple[int, ...], list[str]] = {}
    for file in files:
        by_class.setdefault(tuple(file.labels.values())[:1], []).append(file.key)
    test: set[str] = set()
    for keys in by_class.values():
        ranked = sorted(keys, key=_place)
        count = sum(_place(key) < test_share for key in keys)
        # one of a class of two goes to test even if no hash is low enough; a single file is for training
        test.update(ranked[: min(max(count, 1), len(ranked) - 1)])
    return test


def _place(key: str, salt: str = "part") -> float:
    """A number in [0, 1) that only the key decides."""
    digest = hashlib.sha256(f"{salt}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
