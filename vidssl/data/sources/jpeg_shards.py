"""Videos as JPEGs in a few large files: what ``vidssl data prepare --jpeg-shards`` writes, as a source.

A block is a video: offsets of its frames and of its end, unsigned 64-bit little-endian integers counted
from the block's start, then the JPEGs. A shard is blocks one behind another; ``index.jsonl`` says where each
begins. Reading a frame takes two reads and no decoding of another. Shards are read with ``pread``, from
the page cache as through a memory map, but a file that shrinks under a map ends the process.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vidssl.data.decode.decode import part_of, seconds_of
from vidssl.data.sources.listing import Listed, ListedFiles, Listing, ListKeys, named_listing, select
from vidssl.data.sources.lists import listed_part
from vidssl.data.sources.manifest import unpacked
from vidssl.data.sources.origins import derived_origin
from vidssl.data.sources.segments import parse_segments
from vidssl.data.sources.tar.storage import Address
from vidssl.errors import UsageError, counted
from vidssl.interfaces import KnowsOrigins, Origin, SampleInfo, UnreadableSample

INDEX = "index.jsonl"
KIND, VERSION = "vidssl JPEG shards", 1

_log = logging.getLogger(__name__)
_OFFSET = np.dtype("<u8")


def shard_name(number: int) -> str:
    return f"{number:05d}.jpegs"


def write_block(file: BinaryIO, images: Iterable[bytes], num_frames: int) -> int:
    """Writes ``num_frames`` JPEGs as a block at the start of an empty file, and returns its length."""
    ends = [_OFFSET.itemsize * (num_frames + 1)]
    file.seek(ends[0])
    for image in images:
        file.write(image)
        ends.append(ends[-1] + len(image))
    if len(ends) != num_frames + 1:
        raise ValueError(f"{counted(num_frames, 'frame', verb='were')} promised, {len(ends) - 1} came")
    file.seek(0)
    file.write(np.array(ends, dtype=_OFFSET).tobytes())
    return ends[-1]


def read_block(read: Callable[[int, int], bytes], frames: Sequence[int]) -> Tensor:
    """Frames of a block, uint8 [len(frames), 3, H, W]; each is decoded once.

    Args:
        read: gives bytes of the block, by their number and start, as ``os.pread``; fewer where the file ends.

    Raises:
        ValueError: if the file ends early, an image is damaged, or they differ in size.
        OSError: if it cannot be read.
    """
    found = {number: _read_image(read, number) for number in sorted(set(frames))}
    if len({image.shape for image in found.values()}) > 1:
        raise ValueError("its frames are of different sizes")
    # colours stay innermost in memory, as decoded: resizing is twice as fast there
    return torch.from_numpy(np.stack([found[number] for number in frames])).permute(0, 3, 1, 2)


def _read_image(read: Callable[[int, int], bytes], number: int) -> np.ndarray:
    row = _all_of(read, number * _OFFSET.itemsize, 2 * _OFFSET.itemsize)
    begins, ends = (int(offset) for offset in np.frombuffer(row, dtype=_OFFSET))
    if ends <= begins:
        raise ValueError(f"the offsets of frame {number} are damaged")
    try:
        with Image.open(BytesIO(_all_of(read, begins, ends - begins)), formats=["JPEG"]) as image:
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"the image of frame {number} is damaged ({error})") from error


def _all_of(read: Callable[[int, int], bytes], start: int, length: int) -> bytes:
    found = read(length, start)
    if len(found) < length:
        raise ValueError("its shard ends early")
    return found


@dataclass(kw_only=True, eq=False)
class JpegShards(ListKeys, ListedFiles, KnowsOrigins):
    """Videos as ``vidssl data prepare --jpeg-shards`` wrote them, with the keys and labels that they had.

    Args:
        root: folder of the shards, relative to the working folder.
        list, test_list, part, test_share, limit: see ``ListKeys``.
    """

    root: str

    def __post_init__(self) -> None:
        self._rows, own = _read_index(Path(self.root).absolute() / INDEX)
        part = self.part
        if self.list is not None:
            listing, part = listed_part(self.list, self.test_list, part, exists=self._rows.__contains__)
        elif self.test_list is not None:
            raise ValueError("'test_list' goes with 'list'")
        else:
            listing = own
        where = self.list or self.root
        self.take(self.root, select(listing, part, self.test_share, self.limit, where=where))
        self.files = self._usable(self.files, where)
        self._address = Address(str(self.folder))

    def info(self, index: int) -> SampleInfo:
        file = self.files[index]
        own, row = self._frames(file), self._rows[file.path]
        times = seconds_of(*_times(row))
        return SampleInfo(file.key, len(own), row["fps"], file.labels, part_of(times, own))

    def origin(self, index: int) -> Origin:
        file = self.files[index]
        row = self._rows[file.path]
        made = self.folder / row["shard"]
        origin = derived_origin(row.get("origin", {}), store=self.folder, key=file.path, made=made)
        return replace(origin, segment=None if file.segment is None else file.segment.seconds)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        key = self.files[index].key
        row, own = self._rows[self.files[index].path], self._frames(self.files[index])
        if not frames or min(frames) < 0 or max(frames) >= len(own):
            raise ValueError(f"{key} has {counted(len(own), 'frame')}, asked for {[*frames]}")

        def part(length: int, start: int) -> bytes:
            return self._address.read_range(row["shard"], row["start"] + start, length)

        try:
            return read_block(part, [own[frame] for frame in frames])
        except OSError as error:
            raise UnreadableSample(key, f"{row['shard']} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UnreadableSample(key, f"{row['shard']}: {error}") from error

    def _frames(self, file: Listed) -> range:
        """Numbers of the frames that belong to a sample."""
        row = self._rows[file.path]
        if file.segment is None:
            return range(row["frames"])
        return file.segment.frames(file.key, row["frames"], row["fps"], *_times(row))

    def _usable(self, files: Sequence[Listed], where: str) -> tuple[Listed, ...]:
        unknown = [file.path for file in files if file.path not in self._rows]
        if unknown:
            raise UsageError(
                f"{self.folder}: {len(unknown)} of the {counted(len(files), 'video')} of {where} are not "
                "in it, such as "
                f"{unknown[0]}. Have them added with 'vidssl data prepare'"
            )
        reasons = Counter(self._rows[file.path]["reason"] for file in files)
        del reasons[""]
        if reasons:
            _log.warning(
                "%s: %d of %d videos are left out: they could not be prepared (most of all: %s)",
                self.folder,
                reasons.total(),
                len(files),
                reasons.most_common(1)[0][0],
            )
        kept = tuple(file for file in files if not self._rows[file.path]["reason"])
        if not kept:
            raise UsageError(
                f"{self.folder}: none of the {counted(len(files), 'video')} of {where} could be prepared"
            )
        return kept


def _times(row: Mapping) -> tuple[array[int], float]:
    """Timestamps and their unit in seconds; none of a video whose frames are evenly spaced."""
    return unpacked(row.get("pts", ()), row["frames"]), row.get("tick_seconds", 0.0)


def _read_index(path: Path) -> tuple[dict[str, dict], Listing]:
    """Key -> its line, and the videos with the labels that they were prepared with."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: the index of JPEG shards cannot be read ({error.strerror}); "
            "'vidssl data prepare --jpeg-shards' writes it into the folder 'root' when all is done"
        ) from error
    try:
        head, *rows = map(json.loads, lines)
        if head["kind"] != KIND:
            raise UsageError(f"{path}: it is no index of JPEG shards but of {head['kind']}")
        if head["version"] != VERSION:
            raise ValueError(f"it is no index of version {VERSION}")
        classes = {name: tuple(names) for name, names in head["label_classes"].items()}
        by_key = {row["key"]: row for row in rows}
        named = (
            (row["key"], {name: classes[name][number] for name, number in row["labels"].items()},
             parse_segments(row.get("segments", ())))
            for row in rows
        )  # fmt: skip
        listing = named_listing(named, classes)
    except UsageError:
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the index is damaged ({error})") from error
    return by_key, listing
