"""Videos as JPEGs in a few large files: what ``vidssl data prepare --jpeg-shards`` writes, as a source.

A block is a video: offsets of its frames and of its end, unsigned 64-bit little-endian integers counted
from the block's start, then the JPEGs. A shard is blocks one behind another; ``index.jsonl`` says where each
begins. Reading a frame takes two reads and no decoding of another. Shards are read with ``pread``, from
the page cache as through a memory map, but a file that shrinks under a map ends the process.
"""

import logging
import re
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
from vidssl.data.sources import lists, manifest, origins
from vidssl.data.sources.listing import Listed, ListedFiles, Listing, ListKeys, named_listing, select
from vidssl.data.sources.tar.storage import Address
from vidssl.engine.facts import HIGHEST, Row, parsed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import KnowsOrigins, Origin, SampleInfo, UnreadableSample

INDEX = "index.jsonl"
KIND, VERSION = "vidssl JPEG shards", 1

_log = logging.getLogger(__name__)
_OFFSET = np.dtype("<u8")
_LARGEST_IMAGE = 1 << 28  # bytes
_SHARD_NAME = re.compile(r"\d{5,}\.jpegs")


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
    if not begins < ends <= begins + _LARGEST_IMAGE < HIGHEST:
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


@dataclass(frozen=True)
class Block:
    """Where a video lies, and what is known of its frames.

    Attributes:
        shard: name of the file.
        start: in bytes.
        short: its timestamps, made short; none where frames are evenly spaced.
        tick_seconds: unit of the timestamps.
    """

    shard: str
    start: int
    frames: int
    fps: float
    short: tuple[int, ...]
    tick_seconds: float

    def times(self) -> "array[int]":
        """Timestamp of each frame; none where frames are evenly spaced."""
        return manifest.unpacked(self.short, self.frames)

    @classmethod
    def from_row(cls, row: Row, sizes: Mapping[str, int]) -> "Block":
        """The block that a line of an index describes.

        Args:
            sizes: bytes of the shards that are there.

        Raises:
            ValueError: if it describes none, naming the field, or the shard is too short for it.
        """
        shard, start = row.text("shard"), row.whole("start")
        frames = row.whole("frames", lowest=1, highest=manifest.MOST_FRAMES)
        if not _SHARD_NAME.fullmatch(shard):
            raise ValueError(f"'shard' must be the name of a shard, got {shard!r:.60}")
        if start + _OFFSET.itemsize * (frames + 1) > sizes.get(shard, HIGHEST):
            raise ValueError(f"{counted(frames, 'frame')} from byte {start} on do not fit into {shard}")
        short: tuple[int, ...] = tuple(row.whole_numbers("pts", ()))
        manifest.unpacked(short, frames)
        return cls(shard, start, frames, row.real("fps"), short, row.real("tick_seconds", 0.0))


@dataclass(kw_only=True, eq=False)
class JpegShards(ListKeys, ListedFiles, KnowsOrigins):
    """Videos as ``vidssl data prepare --jpeg-shards`` wrote them, with the keys and labels that they had.

    Args:
        root: folder of the shards, relative to the working folder.
        list, test_list, part, test_share, limit: see ``ListKeys``.
    """

    root: str

    def __post_init__(self) -> None:
        self._videos, own = _read_index(Path(self.root).absolute() / INDEX)
        part = self.part
        if self.list is not None:
            listing, part = lists.listed_part(
                self.list, self.test_list, part, exists=self._videos.__contains__
            )
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
        own, block = self._frames(file), self._block(file)
        times = seconds_of(block.times(), block.tick_seconds)
        return SampleInfo(file.key, len(own), block.fps, file.labels, part_of(times, own))

    def origin(self, index: int) -> Origin:
        file = self.files[index]
        made, recorded = self.folder / self._block(file).shard, self._videos[file.path].origin
        origin = origins.derived_origin(recorded, store=self.folder, key=file.path, made=made)
        return replace(origin, segment=None if file.segment is None else file.segment.seconds)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        key = self.files[index].key
        block, own = self._block(self.files[index]), self._frames(self.files[index])
        if not frames or min(frames) < 0 or max(frames) >= len(own):
            raise ValueError(f"{key} has {counted(len(own), 'frame')}, asked for {[*frames]}")

        def part(length: int, start: int) -> bytes:
            return self._address.read_range(block.shard, block.start + start, length)

        try:
            return read_block(part, [own[frame] for frame in frames])
        except OSError as error:
            raise UnreadableSample(key, f"{block.shard} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UnreadableSample(key, f"{block.shard}: {error}") from error

    def _frames(self, file: Listed) -> range:
        """Numbers of the frames that belong to a sample."""
        block = self._block(file)
        if file.segment is None:
            return range(block.frames)
        return file.segment.frames(file.key, block.frames, block.fps, block.times(), block.tick_seconds)

    def _block(self, file: Listed) -> Block:
        block = self._videos[file.path].block
        assert block is not None, "videos without one are left out"
        return block

    def _usable(self, files: Sequence[Listed], where: str) -> tuple[Listed, ...]:
        unknown = [file.path for file in files if file.path not in self._videos]
        if unknown:
            raise UsageError(
                f"{self.folder}: {len(unknown)} of the {counted(len(files), 'video')} of {where} are not "
                "in it, such as "
                f"{unknown[0]}. Have them added with 'vidssl data prepare'"
            )
        reasons = Counter(self._videos[file.path].reason for file in files)
        del reasons[""]
        if reasons:
            _log.warning(
                "%s: %d of %d videos are left out: they could not be prepared (most of all: %s)",
                self.folder,
                reasons.total(),
                len(files),
                reasons.most_common(1)[0][0],
            )
        kept = tuple(file for file in files if not self._videos[file.path].reason)
        if not kept:
            raise UsageError(
                f"{self.folder}: none of the {counted(len(files), 'video')} of {where} could be prepared"
            )
        return kept


@dataclass(frozen=True)
class _Prepared:
    """A video of the index: why it could not be prepared, or its block, and what it was made of."""

    reason: str
    block: Block | None
    origin: Mapping[str, object]


def _read_index(path: Path) -> tuple[dict[str, _Prepared], Listing]:
    """The videos by their keys, and these with the labels that they were prepared with."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: the index of JPEG shards cannot be read ({error.strerror}); "
            "'vidssl data prepare --jpeg-shards' writes it into the folder 'root' when all is done"
        ) from error
    sizes = {shard.name: shard.stat().st_size for shard in path.parent.glob("*.jpegs")}
    videos: dict[str, _Prepared] = {}
    named: list[tuple[str, dict[str, str], tuple[manifest.NamedSegment, ...]]] = []
    classes: dict[str, tuple[str, ...]] = {}
    number = 1
    try:
        if not lines:
            raise ValueError("the file is empty")
        for number, line in enumerate(lines, 1):
            row = Row(parsed(line))
            if number == 1:
                classes = _read_head(row, path)
                continue
            key, reason, labels = row.path("key"), row.text("reason"), row.row("labels")
            block = None if reason else Block.from_row(row, sizes)
            origin = row.row("origin", {})
            if any(origin.entries()):
                origins.recorded_origin(origin)
            videos[key] = _Prepared(reason, block, dict(origin.entries()))
            own = {
                name: classes[name][labels.whole(name, highest=len(classes[name]) - 1)]
                for name in classes
                if name in labels
            }
            named.append((key, own, manifest.parse_segments(row.items("segments", ()))))
        return videos, named_listing(named, classes)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(
            f"{path}:{number}: the index is damaged ({error}); 'vidssl data prepare', called as it was, "
            "writes it anew"
        ) from error


def _read_head(row: Row, path: Path) -> dict[str, tuple[str, ...]]:
    """The classes of all labels, out of the first line."""
    kind = row.value("kind", "")
    if kind != KIND:
        raise UsageError(f"{path}: it is no index of JPEG shards but of {kind}")
    if row.value("version", 0) != VERSION:
        raise ValueError(f"it is no index of version {VERSION}")
    return row.row("label_classes").names()
