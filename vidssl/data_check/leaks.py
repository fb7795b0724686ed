"""Videos that a data set holds twice, and what its test part has in common with its training part."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from vidssl.data.manifest import Entry

# v_ApplyEyeMakeup_g07_c03: the clips of a group are cut from one video
_UCF101 = re.compile(r"v_(\w+)_g(\d+)_c\d+")
# April_09_brush_hair_u_nm_np1_ba_goo_0: film, action, visible part, camera, people, side, quality, number
_HMDB51 = re.compile(r"(\w.*)_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+")


@dataclass(frozen=True)
class Leak:
    """A test video and the first training video that it has something in common with."""

    test: str
    train: str


def duplicates(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Keys of files with the same content, each set of them sorted."""
    by_content: dict[str, list[str]] = {}
    for entry in entries:
        if entry.sha256:
            by_content.setdefault(entry.sha256, []).append(entry.key)
    return sorted(tuple(sorted(keys)) for keys in by_content.values() if len(keys) > 1)


def same_content(train: Iterable[Entry], test: Iterable[Entry]) -> list[Leak]:
    """Test videos whose very bytes are those of a training video."""
    return _in_common(train, test, lambda entry: entry.sha256)


def same_group(train: Iterable[Entry], test: Iterable[Entry]) -> list[Leak]:
    """Test videos cut from the same video as a training video, as names of UCF101 and HMDB51 tell."""
    return _in_common(train, test, lambda entry: group_of(entry.key))


def group_of(key: str) -> str:
    """The group that the name of a file puts it into; empty if its name is not UCF101's or HMDB51's.

    Groups count within a class, as the official splits keep them apart.
    """
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


def _in_common(train: Iterable[Entry], test: Iterable[Entry], trait: Callable[[Entry], str]) -> list[Leak]:
    first: dict[str, str] = {}
    for entry in train:
        first.setdefault(trait(entry), entry.key)
    first.pop("", None)
    return [Leak(entry.key, first[trait(entry)]) for entry in test if trait(entry) in first]
