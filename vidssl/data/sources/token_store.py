"""Token stores: ids of whole videos on disk, so that each video is decoded and tokenized once.

tokens/ucf101/
  store.json          what it holds: tokenizer, frame rate, transforms, list of videos
  shards/00000.json   the videos of a shard, and where the ids of each begin
  shards/00000.ids    their ids, uint16, lowest byte first: of each video [transform, frame, h, w]

A shard holds a fixed stretch of the list. It is there once its json file is, which is written last.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidssl.data.sources import manifest, origins
from vidssl.engine.facts import Row, parsed
from vidssl.engine.process import begun_beside, write_text
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, KnowsGroups, KnowsOrigins, Origin, SampleInfo, UnreadableSample

Crop = Literal["top", "middle", "bottom", "far"]  # top left, middle, bottom right, and see ``crop_offset``
PLACES: tuple[Crop, ...] = get_args(Crop)
CROPS: tuple[Crop, ...] = ("top", "middle", "bottom")  # VIMPAC's, App. C
Ids = NDArray[np.uint16]

FORMAT = 1
DTYPE = np.dtype("<u2")
HIGHEST_ID = 2**16 - 1
_LONGEST = 1_000_000  # side of a picture, in pixels or ids
_MAPS_KEPT = 64  # open files of a process


@dataclass(frozen=True)
class Transform:
    """Resizing and cropping of frames before they became ids; VIMPAC's release keeps a database for each.

    Attributes:
        short_side: in pixels, that the frames were resized to.
        crop: place of the square that was cut then.
        flip: whether that was mirrored.
    """

    short_side: int
    crop: Crop
    flip: bool

    def __str__(self) -> str:
        return f"{self.short_side} px {self.crop}{' flipped' if self.flip else ''}"


def crop_offset(crop: Crop, room: int) -> int:
    """Where a square begins on a side that exceeds it by ``room`` pixels.

    "far" is twice the rounded middle, where BEVT's code, and ``uniform_clips``, puts the last of three crops:
    of an odd number one pixel before the edge.
    """
    return {"top": 0, "middle": room // 2, "bottom": room, "far": room // 2 * 2}[crop]


def transforms_of(
    size: int, resize: Sequence[float], crops: Sequence[Crop], flips: Sequence[bool]
) -> tuple[Transform, ...]:
    """All combinations; the short side is each of ``resize`` times ``size``."""
    return tuple(
        Transform(round(ratio * size), crop, flip) for flip in flips for ratio in resize for crop in crops
    )


@dataclass(frozen=True)
class StoreInfo:
    """Description of a store.

    Attributes:
        tokenizer: sha256 of ``tokenizer_keys``.
        tokenizer_keys: its type, all of its keys, and the sha256 of its weights.
        vocab_size: V; ids are below it.
        size: side of the squares in pixels.
        grid: rows and columns of ids of a frame.
        fps: that the videos were thinned out to; None where they kept their own.
        transforms: in the order in which a video's ids lie.
        source: the data source that was read, for the reader.
        videos: sha256 of the keys of its videos, in order.
        num_videos: listed, readable or not.
        videos_per_shard: as long a stretch of the list is a shard.
        label_classes: label name -> names of its classes.
    """

    tokenizer: str
    tokenizer_keys: Mapping[str, object]
    vocab_size: int
    size: int
    grid: tuple[int, int]
    fps: float | None
    transforms: tuple[Transform, ...]
    source: Mapping[str, object]
    videos: str
    num_videos: int
    videos_per_shard: int
    label_classes: Mapping[str, tuple[str, ...]]

    @property
    def num_shards(self) -> int:
        return -(-self.num_videos // self.videos_per_shard)

    def videos_of(self, shard: int) -> range:
        """Places in the list of the videos of a shard."""
        first = shard * self.videos_per_shard
        return range(first, min(first + self.videos_per_shard, self.num_videos))

    def ids_of(self, num_frames: int) -> int:
        """How many ids a video of so many frames has, all transforms together."""
        return len(self.transforms) * num_frames * self.grid[0] * self.grid[1]

    def changed(self, other: "StoreInfo") -> list[str]:
        """Names of what differs."""
        return [field.name for field in fields(self) if _plain(self)[field.name] != _plain(other)[field.name]]


@dataclass(frozen=True)
class StoredVideo:
    """A video of a shard.

    Attributes:
        num_frames: stored; 0 if it could not be read.
        fps: of the stored frames; 0 for an image.
        start: where its ids begin in the shard, in ids.
        reason: why it could not be read, else empty.
        origin: the video file, as ``origins.recorded`` has it; empty where that is not known.
        group: name of the source that it was cut from with others; empty for one of none.
    """

    key: str
    labels: Mapping[str, int]
    num_frames: int
    fps: float
    start: int
    reason: str = ""
    origin: Mapping[str, object] = field(default_factory=dict)
    group: str = ""


def _plain(info: StoreInfo) -> dict[str, object]:
    """As JSON gives it back."""
    tree: dict[str, object] = json.loads(json.dumps(asdict(info)))
    return tree


def write_info(folder: Path, info: StoreInfo) -> None:
    """Begin a store.

    Raises:
        UsageError: if the folder cannot be written.
    """
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror or error}") from error
    write_text(folder / "store.json", json.dumps({"format": FORMAT, **asdict(info)}, indent=1) + "\n")


def read_info(folder: Path) -> StoreInfo:
    """Read the description of a store.

    Raises:
        UsageError: if there is none, or it is damaged or of another format.
    """
    path = folder / "store.json"
    try:
        row = Row(parsed(path.read_bytes()))
        form = row.value("format", None)
        if form != FORMAT:
            raise UsageError(f"{path}: a token store of format {form}, and this version reads {FORMAT}")
        return _info(row)
    except OSError as error:
        raise UsageError(
            f"{folder}: no token store: {path.name}: {error.strerror} (vidssl tokenize RECIPE --out FOLDER "
            "makes one)"
        ) from None
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: damaged: {error}") from None


def _info(row: Row) -> StoreInfo:
    """Raises ValueError, naming the field, if it describes no store."""
    grid = row.parts("grid", "rows", "columns")
    transforms = [Row(each, "transforms") for each in row.items("transforms")]
    return StoreInfo(
        tokenizer=row.text("tokenizer"),
        tokenizer_keys=dict(row.row("tokenizer_keys").entries()),
        vocab_size=row.whole("vocab_size", lowest=1, highest=HIGHEST_ID + 1),
        size=row.whole("size", lowest=1, highest=_LONGEST),
        grid=(
            grid.whole("rows", lowest=1, highest=_LONGEST),
            grid.whole("columns", lowest=1, highest=_LONGEST),
        ),
        fps=None if row.value("fps") is None else row.real("fps"),
        transforms=tuple(
            Transform(
                each.whole("short_side", lowest=1, highest=_LONGEST),
                each.one_of("crop", PLACES),
                each.flag("flip"),
            )
            for each in transforms
        ),
        source=dict(row.row("source").entries()),
        videos=row.text("videos"),
        num_videos=row.whole("num_videos"),
        videos_per_shard=row.whole("videos_per_shard", lowest=1),
        label_classes=row.row("label_classes").names(),
    )


def index_path(folder: Path, shard: int) -> Path:
    """The file that says which videos a shard holds."""
    return folder / "shards" / f"{shard:05d}.json"


def data_path(folder: Path, shard: int) -> Path:
    """The file of a shard's ids."""
    return folder / "shards" / f"{shard:05d}.ids"


def read_shard(folder: Path, info: StoreInfo, shard: int) -> list[StoredVideo] | None:
    """The videos of a finished shard; None if it is not there, not whole, or damaged."""
    try:
        listed = parsed(index_path(folder, shard).read_bytes())
        if not isinstance(listed, list) or len(listed) != len(info.videos_of(shard)):
            return None
        videos = [_video(Row(video), info) for video in listed]
        size = data_path(folder, shard).stat().st_size
    except (OSError, ValueError):
        return None
    ends = [0, *accumulate(info.ids_of(video.num_frames) for video in videos)]
    placed = [video.start for video in videos] == ends[:-1]
    return videos if placed and size == ends[-1] * DTYPE.itemsize else None


def _video(row: Row, info: StoreInfo) -> StoredVideo:
    """Raises ValueError, naming the field, if it describes none."""
    labels, origin = row.row("labels"), row.row("origin", {})
    if any(origin.entries()):
        origins.recorded_origin(origin)
    return StoredVideo(
        key=row.path("key"),
        labels={
            name: labels.whole(name, highest=len(info.label_classes.get(name, ())) - 1)
            for name, _ in labels.entries()
        },
        num_frames=row.whole("num_frames", highest=manifest.MOST_FRAMES),
        fps=row.real("fps"),
        start=row.whole("start"),
        reason=row.text("reason", ""),
        origin=dict(origin.entries()),
        group=row.text("group", ""),
    )


def read_ids(folder: Path, info: StoreInfo, shard: int, video: StoredVideo) -> Ids:
    """The ids of one video, [transform, frame, h, w], read from disk."""
    count, offset = info.ids_of(video.num_frames), video.start * DTYPE.itemsize
    ids = np.fromfile(data_path(folder, shard), DTYPE, count, offset=offset)
    return ids.reshape(len(info.transforms), video.num_frames, *info.grid)


class ShardWriter:
    """Writes one shard; nothing of it is to be seen before ``finish``.

    Raises:
        UsageError: from every method, if the disk is full or cannot be written; finished shards stay.
    """

    def __init__(self, folder: Path, info: StoreInfo, shard: int) -> None:
        self.folder, self.info, self.shard = folder, info, shard
        self._videos: list[StoredVideo] = []
        self._next = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ShardWriter":
        try:
            self._file = begun_beside(data_path(self.folder, self.shard))
        except OSError as error:
            raise self._full(error) from error
        return self

    def add(self, video: StoredVideo, ids: Ids) -> None:
        """The next video of the list, its ids [transform, frame, h, w]; none for one that is unreadable."""
        assert self._file is not None, "used as a context"
        assert ids.size == self.info.ids_of(video.num_frames)
        try:
            self._file.write(np.ascontiguousarray(ids, dtype=DTYPE).data)
        except OSError as error:
            raise self._full(error) from error
        self._videos.append(StoredVideo(**(asdict(video) | {"start": self._next})))
        self._next += ids.size

    def finish(self) -> list[StoredVideo]:
        """Puts the shard into its place; its videos."""
        assert self._file is not None, "used as a context"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._file.name, data_path(self.folder, self.shard))
        except OSError as error:
            raise self._full(error) from error
        listed = json.dumps([asdict(video) for video in self._videos])
        write_text(index_path(self.folder, self.shard), listed)
        return self._videos

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what it still had to write is thrown away with it
                self._file.close()
            with suppress(OSError):
                Path(self._file.name).unlink(missing_ok=True)

    def _full(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot write {data_path(self.folder, self.shard)}: {error.strerror or error}. Finished shards "
            "are kept: make room, and the same command resumes there"
        )


class StoreReader:
    """The ids of a finished store, mapped into memory.

    Raises:
        UsageError: if it is not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self.videos: list[StoredVideo] = []
        there = len([*(folder / "shards").glob("*.json")])
        missing = max(self.info.num_shards - there, 0)
        for shard in range(min(self.info.num_shards, there)):  # a damaged number may be any
            found = read_shard(folder, self.info, shard)
            missing += found is None
            self.videos += found or []
        if missing:
            raise UsageError(
                f"{folder}: {counted(missing, 'shard', of=self.info.num_shards, verb='are')} "
                f"missing or damaged: the command "
                "'vidssl tokenize' that began this store makes them, and those alone"
            )
        self._maps: OrderedDict[int, Ids] = OrderedDict()

    def ids(self, index: int, transform: Transform) -> Ids:
        """All ids of a readable video, [frame, h, w], mapped: what is not read is not loaded."""
        return self.all_ids(index)[self.info.transforms.index(transform)]

    def all_ids(self, index: int) -> Ids:
        """The same under every transform, [transform, frame, h, w]."""
        video = self.videos[index]
        ids = self._map(index // self.info.videos_per_shard)
        part = ids[video.start : video.start + self.info.ids_of(video.num_frames)]
        return part.reshape(len(self.info.transforms), video.num_frames, *self.info.grid)

    def _map(self, shard: int) -> Ids:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(data_path(self.folder, shard), dtype=DTYPE, mode="r")
            if len(self._maps) > _MAPS_KEPT:
                self._maps.popitem(last=False)
        self._maps.move_to_end(shard)
        return self._maps[shard]


@dataclass(frozen=True)
class StoreNeeds:
    """Properties that views need of a store.

    Attributes:
        size: side of the square in pixels.
        fps: of the stored frames; None for the videos' own.
        transforms: that they choose among.
    """

    size: int
    fps: float | None
    transforms: tuple[Transform, ...]


class TokenStore(DataSource, KnowsGroups, KnowsOrigins):
    """Videos that ``vidssl tokenize`` turned into ids, read without decoding anything.

    Views of it are ``stored_clip_pair`` and ``stored_clip``, for tests ``stored_uniform_clips``. Keys,
    labels, groups and order are those of the videos; those that could not be read when the store was made are
    still listed, as unreadable samples.

    Args:
        root: folder of the store, relative to the working folder.
    """

    def __init__(self, *, root: str) -> None:
        self.root = root
        self._reader = StoreReader(Path(root).absolute())
        self.stored = self._reader.info
        self.label_classes = self.stored.label_classes

    @property
    def pad_id(self) -> int:
        """Stands where a video has no more frames: V + 1, as backbones that read ids have it."""
        return self.stored.vocab_size + 1

    def __len__(self) -> int:
        return len(self._reader.videos)

    def key(self, index: int) -> str:
        return self._reader.videos[index].key

    def labels(self, index: int) -> Mapping[str, int]:
        return self._reader.videos[index].labels

    def group(self, index: int) -> str:
        return self._reader.videos[index].group

    def info(self, index: int) -> SampleInfo:
        video = self._reader.videos[index]
        if video.reason:
            raise UnreadableSample(video.key, video.reason)
        return SampleInfo(video.key, video.num_frames, video.fps, video.labels)

    def origin(self, index: int) -> Origin:
        video, folder = self._reader.videos[index], self._reader.folder
        made = data_path(folder, index // self.stored.videos_per_shard)
        return origins.derived_origin(video.origin, store=folder, key=video.key, made=made)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        raise UsageError(
            f"{self.root} holds ids, no pixels, and these views cut pixels: "
            "set views.type to stored_clip_pair, stored_clip or stored_uniform_clips"
        )

    def read_ids(self, index: int, frames: Sequence[int], transform: Transform) -> Tensor:
        """Ids int64 [len(frames), h, w]; ``pad_id`` for frames past the end (VIMPAC's release).

        Raises:
            UnreadableSample: if the video could not be read when the store was made.
        """
        total = self.info(index).num_frames
        ids = torch.full((len(frames), *self.stored.grid), self.pad_id)
        inside = [row for row, frame in enumerate(frames) if frame < total]
        found = self._reader.ids(index, transform)[[frames[row] for row in inside]]
        if found.size and int(found.max()) >= self.stored.vocab_size:
            shard = data_path(self._reader.folder, index // self.stored.videos_per_shard)
            raise UnreadableSample(self.key(index), f"{shard} is damaged: an id is {int(found.max())}")
        ids[inside] = torch.from_numpy(found.astype("int64"))
        return ids

    def check(self, wanted: StoreNeeds) -> None:
        """Raises ValueError, saying what there is, if the store lacks what views need."""
        if wanted.size != self.stored.size:
            raise ValueError(
                f"{self.root} holds squares of {self.stored.size} pixels, and size is {wanted.size}"
            )
        if wanted.fps != self.stored.fps:
            has, needs = (_rate(fps) for fps in (self.stored.fps, wanted.fps))
            raise ValueError(
                f"{self.root} holds videos at {has}, and the views want {needs}: set fps to what it holds, "
                "and frame_stride to the frames from one to the next"
            )
        lacking = [transform for transform in wanted.transforms if transform not in self.stored.transforms]
        if lacking:
            raise ValueError(
                f"{self.root} lacks {_listed(lacking)}, which the views choose among; it has "
                f"{_listed(self.stored.transforms)}"
            )


def _rate(fps: float | None) -> str:
    return "their own frame rates (fps: null)" if fps is None else f"{fps:g} fps"


def _listed(transforms: Sequence[Transform]) -> str:
    return ", ".join(f"'{transform}'" for transform in transforms)
