"""Which samples of two sources are the same video, by the files that they were made of."""

import filecmp
import gzip
import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

from vidssl.engine import facts, process
from vidssl.errors import UsageError
from vidssl.interfaces import DataSource, KnowsOrigins, Origin

MISSING = "missing"
FORMAT = "vidssl videos 1"
_KEPT = ("file", "bytes", "sha256", "store", "segment")  # of an origin in a file
ALLOW = ", or score all the same with overlap=allow, which is then stated beside the scores"
_NAMED = 3  # videos that a message names


@dataclass(frozen=True)
class Video:
    """A sample's key, and the file behind it."""

    key: str
    origin: Origin


@dataclass(frozen=True)
class Overlap:
    """The samples of one list that another holds too.

    Attributes:
        keys: of those that are in both.
        total: samples that were compared.
        unknown: samples that could not be compared with all of the other list.
        cut_apart: samples that are other segments of files that are in both.
    """

    keys: tuple[str, ...] = ()
    total: int = 0
    unknown: int = 0
    cut_apart: int = 0

    def count(self) -> str:
        """``12 of 15 test videos (walk/v1.mp4, walk/v2.mp4, walk/v3.mp4 and 9 more)``."""
        if not self.keys:
            return f"none of {self.total} test videos"
        return f"{len(self.keys)} of {self.total} test videos ({named(self.keys)})"

    def refusal(self, where: str = "in train too", way_out: str = ALLOW) -> str:
        """The message of an error."""
        return (
            f"{self.count()} are {where}: the same files, or files of the same content. Take them out of one "
            f"of the two{way_out}"
        )


def videos_of(source: DataSource) -> tuple[Video, ...]:
    """All samples of a source; those of a source that knows no files compare with its own alone."""
    return tuple(video_of(source, index) for index in range(len(source)))


def video_of(source: DataSource, index: int) -> Video:
    """A sample of a source."""
    if isinstance(source, KnowsOrigins):
        return Video(source.key(index), source.origin(index))
    # a source that opens its files for their keys must not do so for this
    store = f"{type(source).__name__} {id(source)}"
    return Video(str(index), Origin(f"{store}: {index}", store=store))


def shared_videos(learned: Sequence[Video], test: Sequence[Video]) -> Overlap:
    """The test videos that were learned from: of the same resolved file, or of the same content.

    Segments of one file are the same video where they have time in common. Content is compared by checksum
    where one is recorded, otherwise of files of equal size.
    """
    files, checksums, sizes = (defaultdict[object, list[Origin]](list) for _ in range(3))
    for video in learned:
        files[video.origin.file].append(video.origin)
        checksums[video.origin.sha256].append(video.origin)
        sizes[video.origin.bytes].append(video.origin)
    checksums.pop("", None)
    sizes.pop(-1, None)
    kinds = {_kind(video.origin) for video in learned if video.origin.version != MISSING}
    keys, cut_apart = [], 0
    for video in test:
        own = video.origin
        same = [*files.get(own.file, ()), *checksums.get(own.sha256, ())]
        same = same or [other for other in sizes.get(own.bytes, ()) if _same_content(own, other)]
        if any(_share_time(own.segment, other.segment) for other in same):
            keys.append(video.key)
        elif same:
            cut_apart += 1
    found = set(keys)
    unknown = sum(
        not all(_comparable(_kind(video.origin), kind) for kind in kinds)
        for video in test
        if video.key not in found and video.origin.version != MISSING
    )
    return Overlap(tuple(keys), len(test), unknown, cut_apart)


def _share_time(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return one is None or other is None or (one[0] < other[1] and other[0] < one[1])


def _kind(origin: Origin) -> tuple[str, bool]:
    """Where its name holds, and whether it can be compared by content."""
    return origin.store, origin.bytes >= 0


def _comparable(one: tuple[str, bool], other: tuple[str, bool]) -> bool:
    return one[0] == other[0] or (one[1] and other[1])


def _same_content(one: Origin, other: Origin) -> bool:
    """Of files of the same size; False for a file that cannot be read, which nothing can learn from."""
    if one.sha256 and other.sha256:
        return False  # compared before
    try:
        if one.sha256 or other.sha256:
            return (one.sha256 or _checksum(one)) == (other.sha256 or _checksum(other))
        return filecmp.cmp(one.file, other.file, shallow=False)
    except OSError:
        return False


@cache
def _checksum(origin: Origin) -> str:
    return process.file_sha256(Path(origin.file))


def origin_of(
    path: Path, sha256: str = "", bytes_then: int = -1, *, segment: tuple[float, float] | None = None
) -> Origin:
    """A file of this machine, its links resolved.

    Args:
        sha256: of its content when it had ``bytes_then`` bytes.
    """
    file, version = _resolved(path), version_of(path)
    if version == MISSING:
        return Origin(file, MISSING, segment=segment)
    num_bytes = int(version.split()[0])
    return Origin(file, version, num_bytes, sha256 if num_bytes == bytes_then else "", segment=segment)


def image_origin(path: Path) -> Origin:
    """An image, or a folder of them, known by its path alone: the content of so many is not compared."""
    return Origin(_resolved(path), version_of(path))


def derived_origin(recorded: Mapping[str, object], *, store: Path, key: str, made: Path) -> Origin:
    """The file that something was made of, as ``recorded`` gave it when that was made.

    Args:
        recorded: empty where an earlier version made it.
        store: folder that holds it now, under ``key``.
        made: the file that is read now.
    """
    here, version = os.path.realpath(store), version_of(made)
    if not recorded:
        return Origin(f"{here}: {key}", version, store=here)
    origin = replace(recorded_origin(facts.Row(recorded, "origin")), version=version)
    if origin.sha256 or version_of(Path(origin.file)).split()[0] == str(origin.bytes):
        return origin
    return replace(origin, bytes=-1, store=origin.store or here)


def recorded(origin: Origin) -> dict[str, object]:
    """The parts of an origin that are kept in files."""
    return {key: getattr(origin, key) for key in _KEPT}


def recorded_origin(row: facts.Row) -> Origin:
    """Inverse of ``recorded``.

    Raises:
        ValueError: if it is damaged, naming the field.
    """
    segment = None
    if row.value("segment") is not None:
        times = row.parts("segment", "start", "end")
        segment = (times.real("start"), times.real("end"))
    return Origin(
        row.path("file"),
        bytes=row.whole("bytes", lowest=-1),
        sha256=row.text("sha256"),
        store=row.path("store"),
        segment=segment,
    )


def versions_hash(source: DataSource) -> str:
    """SHA-256 over all keys, and over size and time, or checksum, of what each sample is read from."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        version = source.origin(index).version if isinstance(source, KnowsOrigins) else ""
        digest.update(f"{source.key(index)}\t{version}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def version_of(path: Path) -> str:
    """Size and modification time of a file, or that it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return MISSING
    return f"{status.st_size} {status.st_mtime_ns}"


def _resolved(path: Path) -> str:
    folder, name = os.path.split(os.path.abspath(path))
    file = os.path.join(_resolved_folder(folder), name)
    return os.path.realpath(file) if os.path.islink(file) else file


@lru_cache(maxsize=4096)
def _resolved_folder(folder: str) -> str:
    return os.path.realpath(folder)


def write_videos(path: Path, videos: Mapping[str, Sequence[Video]]) -> None:
    """Keep lists of videos, by name, in a compressed JSON file.

    Raises:
        UsageError: if it cannot be written.
    """
    lists = {
        name: [[video.key, *recorded(video.origin).values()] for video in listed]
        for name, listed in videos.items()
    }
    content = gzip.compress(json.dumps({"format": FORMAT, "videos": lists}).encode(), 5, mtime=0)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    process.write_atomically(path, write)


def read_videos(path: Path) -> dict[str, tuple[Video, ...]]:
    """The lists that ``write_videos`` kept.

    Raises:
        UsageError: if the file is damaged or of another format.
    """
    try:
        record = facts.Row(facts.parsed(_decompressed(path)))
        if record.text("format") != FORMAT:
            raise ValueError(f"its format is {record.text('format')!r}")
        lists = record.row("videos")
        return {name: tuple(map(_video, lists.items(name))) for name, _ in lists.entries()}
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UsageError(f"{path}: damaged, or no list of videos ({error})") from error


_LARGEST_LIST = 2 << 30  # bytes; ten million videos take less


def _decompressed(path: Path) -> bytes:
    """Raises ValueError for a bomb."""
    content = bytearray()
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            content += block
            if len(content) > _LARGEST_LIST:
                raise ValueError(f"more than {_LARGEST_LIST >> 30} GiB in it")
    return bytes(content)


def _video(values: object) -> Video:
    row = facts.parts(values, "a video", ("key", *_KEPT))
    return Video(row.path("key"), recorded_origin(row))


def changes(before: Mapping[str, Sequence[Video]], now: Mapping[str, Sequence[Video]]) -> str:
    """Differences between lists of videos, in words; empty where they are the same."""
    return "; ".join(
        f"{name} has {said}" for name in now if name in before and (said := _changed(before[name], now[name]))
    )


def _changed(before: Sequence[Video], now: Sequence[Video]) -> str:
    old, new = (
        [(video.key, video.origin.bytes, video.origin.sha256) for video in each] for each in (before, now)
    )
    if old == new:
        return ""
    was, are = {key: rest for key, *rest in old}, {key: rest for key, *rest in new}
    groups = {
        "new": [key for key in are if key not in was],
        "gone": [key for key in was if key not in are],
        "of another size or content": [key for key in are if key in was and was[key] != are[key]],
    }
    told = [f"{len(keys)} {what} ({named(keys)})" for what, keys in groups.items() if keys]
    return f"{len(now)} videos, {len(before)} before: {', '.join(told) or 'the same ones in another order'}"


def named(keys: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")
