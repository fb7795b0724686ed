"""What official lists name, matched with the files that are there; counts are of found among listed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vidssl.data.sources.listing import Listed, Listing, find_files
from vidssl.data.sources.segments import Segment
from vidssl.errors import UsageError, counted

_log = logging.getLogger(__name__)
_NAMED = 5  # missing files that a line names


@dataclass(frozen=True)
class DataSet:
    """What messages say of a data set: its name, how its files lie, and its page in ``docs/data``."""

    name: str
    lies: str
    page: str

    def error(self, what: str) -> UsageError:
        """An error that ends in how the data must lie."""
        return UsageError(f"{what}. {self.name} must lie like this: {self.lies} (docs/data/{self.page}.md)")


@dataclass(frozen=True)
class Wanted:
    """A video or image that an official list names.

    Attributes:
        names: that its file may bear, without extension, the most exact first.
        folder: that it lies in where files are sorted by class; empty if that is not known.
        label: name of its class; None where there are none.
        segment: of the video that the last of ``names`` may hold whole; None if files are clips as they are.
    """

    names: tuple[str, ...]
    folder: str = ""
    label: str | None = None
    segment: Segment | None = None


@dataclass(frozen=True)
class OfficialList:
    """One part of a data set.

    Attributes:
        what: the part's name for messages, "UCF101 split 1 train".
        wanted: all that it lists.
        classes: names of classes in number order; empty where there are no labels.
    """

    what: str
    wanted: tuple[Wanted, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The files that are there, and how many the list names."""

    listing: Listing
    num_listed: int


def find_listed(
    data_set: DataSet,
    official: OfficialList,
    root: Path,
    extensions: Sequence[str],
    *,
    max_missing_share: float,
) -> Found:
    """The listed files that are somewhere below ``root``; a line in the log counts them.

    A file is looked for by name, first in the folder of its class, and in folders called "replacement..."
    before all others: a mirror of Kinetics puts there what its archives hold spoilt. Of an entry that is
    listed twice only the first counts.

    Args:
        max_missing_share: of the listed files, that may be missing.

    Raises:
        UsageError: if the folder or all files are missing, or more than that share.
    """
    check_missing_share(max_missing_share)
    files = _FilesByName(_keys(data_set, root, extensions))
    taken: dict[str, list[Wanted]] = {}
    missing, twice = [], 0
    number = {name: place for place, name in enumerate(official.classes)}
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
        Listed(
            key,
            {} if wanted.label is None else {"class": number[wanted.label]},
            replace(wanted.segment, trimmed="yes" if len(samples) == 1 else "unclear")
            if wanted.segment and _by_segment(key, wanted)
            else None,
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
    whole = sum(file.segment is not None for file in found)
    more = _more(official.classes, twice) + (
        f", {whole} named without times: of those longer than the list says its segment is read" * (whole > 0)
    )
    tell_found(official.what, len(found), missing, max_missing_share, more)
    listing = Listing(tuple(found), {"class": official.classes} if official.classes else {})
    return Found(listing, len(found) + len(missing))


def _by_segment(key: str, wanted: Wanted) -> bool:
    """Whether a file bears the name of the whole video that an entry is a segment of."""
    return wanted.segment is not None and _stem(key) == wanted.names[-1]


def _stem(key: str) -> str:
    return os.path.splitext(os.path.basename(key))[0]


def check_missing_share(share: float) -> None:
    """Raises ValueError unless it lies in [0, 1)."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"max_missing_share must be at least 0 and below 1, got {share}")


def tell_found(what: str, found: int, missing: Sequence[str], max_missing_share: float, more: str) -> None:
    """Logs how many listed files were found.

    Args:
        more: what else the line says.

    Raises:
        UsageError: if more than the share of them are missing.
    """
    total = found + len(missing)
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    line = f"{what}: {found} of {total} found{more}"
    if len(missing) > int(max_missing_share * total):
        raise UsageError(
            f"{line}; {len(missing)} ({len(missing) / total:.1%}) are missing, such as {named}, and "
            f"max_missing_share ({max_missing_share:g}) allows {int(max_missing_share * total)}: "
            "fetch them, or state a larger share"
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
    return find_files(root, extensions)


class _FilesByName:
    """Files below a root, found by their names."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = {}
        for key in keys:
            self._by_name.setdefault(_stem(key), []).append(key)

    def find(self, wanted: Wanted) -> str | None:
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
