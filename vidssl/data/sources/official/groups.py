"""Groups of clips cut from one video: as a list names them, or the names of files in UCF101 and HMDB51."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from vidssl.interfaces import DataSource, KnowsGroups

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
