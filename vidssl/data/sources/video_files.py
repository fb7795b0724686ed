"""Video files and images in folders or named in a list: what is known of each, and how they are read."""

import logging
import os
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vidssl.data.decode import content, decoders, images
from vidssl.data.decode.decode import VideoFacts, part_of, probe, read_frames
from vidssl.data.sources import listing as listings, lists, origins
from vidssl.data.sources.manifest import FileRecord, Manifest, why_changed
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, KnowsOrigins, Origin, SampleInfo, UnreadableSample

Short = Literal["loop", "pad", "skip"]


@dataclass(frozen=True)
class ShortVideos:
    """One rule for all views, instead of each view's own.

    Attributes:
        rule: "loop" repeats a short video from its first frame on and "pad" holds its last frame, both up to
            ``min_frames``; "skip" leaves it out. None leaves short videos to the views.
        min_frames: how many frames make a video not short.

    Raises:
        ValueError: if one is given without the other.
    """

    rule: Short | None
    min_frames: int

    def __post_init__(self) -> None:
        if self.min_frames < 1:
            raise ValueError(f"min_frames must be at least 1, got {self.min_frames}")
        if (self.rule is None) != (self.min_frames == 1):
            raise ValueError(
                "'short' (loop, pad or skip) and 'min_frames' (what is short) go together: "
                f"got short {self.rule or 'null'}, min_frames {self.min_frames}"
            )

    def leaves_out(self, num_frames: int) -> bool:
        """Whether a video of so many frames is left out."""
        return self.rule == "skip" and num_frames < self.min_frames

    def length(self, num_frames: int) -> int:
        """Frames that a video has as far as views can see."""
        return max(num_frames, self.min_frames) if self.rule in ("loop", "pad") else num_frames

    def times(self, times: Sequence[float]) -> Sequence[float]:
        """Times of the frames that views see, for those of the frames that are there, or none."""
        more = self.length(len(times)) - len(times)
        if not times or more <= 0:
            return times
        gap = times[-1] / max(len(times) - 1, 1)
        if self.rule == "pad":
            return [*times, *(times[-1] + gap * (step + 1) for step in range(more))]
        period = times[-1] + gap
        rounds = (len(times) + step for step in range(more))
        return [*times, *(times[n % len(times)] + n // len(times) * period for n in rounds)]

    def within(self, frames: Sequence[int], num_frames: int) -> list[int]:
        """Frames that are there for frames asked for of a video that was made longer."""
        if num_frames >= self.length(num_frames):
            return list(frames)
        if self.rule == "loop":
            return [number % num_frames for number in frames]
        return [min(number, num_frames - 1) for number in frames]


_log = logging.getLogger(__name__)
_FACTS_KEPT = 8192  # videos; the facts of one take about 2 kB for each 300 frames


@dataclass(kw_only=True, eq=False)
class VideoKeys:
    """Keys of every source of videos.

    Args:
        root: folder that paths are relative to, itself relative to the working folder.
        limit: keep at most this many videos, always the same random sample.
        decoder: "pyav"; "torchcodec" or "torchcodec_cuda" (the GPU's), which leave to PyAV what they cannot
            read exactly; "auto" is torchcodec on the CPU where that works, else PyAV.
        short: what becomes of videos of fewer than ``min_frames`` frames: "loop" repeats them from their
            first frame on and "pad" holds their last frame, both up to ``min_frames``; "skip" leaves them
            out; by default the views have rules of their own.
        min_frames: how many frames make a video not short.
        square_pixels: whether frames whose pixels are not square are widened or narrowed to what they show.
    """

    root: str
    limit: int | None = None
    decoder: decoders.DecoderName = "pyav"
    short: Short | None = None
    min_frames: int = 1
    square_pixels: bool = False


@dataclass(kw_only=True, eq=False)
class ListedVideos(VideoKeys, listings.ListedFiles, KnowsOrigins):
    """Listed video files, and what was found out about those that were opened last.

    Args:
        manifest: what ``vidssl data check`` wrote, relative to the working folder: bad files are left out and
            good ones need not be looked through. A file that has changed since is unreadable. Without it each
            file is looked through when it is first asked for.

    Attributes:
        left_out: why -> how many.

    Raises:
        ValueError: for keys that do not go together.
        UsageError: if a file is not in the manifest, none is left, or the decoder is of no use here.
    """

    manifest: str | None = None

    @abstractmethod
    def listed(self) -> tuple[listings.Listing, int]:
        """The samples to read, and how many the data set has, those that are missing included."""

    def __post_init__(self) -> None:
        listing, num_listed = self.listed()
        self._short = ShortVideos(self.short, self.min_frames)
        if self.short == "skip" and self.manifest is None:
            raise ValueError(
                "short: skip needs 'manifest', which knows how long videos are; 'vidssl data check' makes one"
            )
        self._manifest = None if self.manifest is None else Manifest(Path(self.manifest))
        self._decoder = decoders.choose_decoder(self.decoder)
        self._facts: OrderedDict[str, tuple[tuple[int, int], VideoFacts]] = OrderedDict()
        self.left_out: Counter[str] = Counter()
        if self._manifest is not None:
            listing = listings.Listing(self._usable(listing.files, self._manifest), listing.label_classes)
        self.take(self.root, listing, num_listed)

    def info(self, index: int) -> SampleInfo:
        file = self.files[index]
        facts = self._look(index)
        own = _frames(file, facts)
        length, times = self._short.length(len(own)), self._short.times(part_of(facts.uneven_times, own))
        return SampleInfo(file.key, length, facts.fps, file.labels, times)

    def origin(self, index: int) -> Origin:
        file = self.files[index]
        segment = None if file.segment is None else file.segment.seconds
        if self._manifest is None:
            return origins.origin_of(self.folder / file.path, segment=segment)
        entry = self._manifest.entry(file.path)
        return origins.origin_of(self.folder / file.path, entry.sha256, entry.bytes, segment=segment)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        file = self.files[index]
        key, facts = file.key, self._look(index)
        own = _frames(file, facts)
        if max(frames) >= self._short.length(len(own)):
            reason = f"it shrank while in use: frame {max(frames)} was asked for, of {len(own)}"
            raise UnreadableSample(key, reason)
        wanted = [own[number] for number in self._short.within(frames, len(own))]
        try:
            return self._decoder.read(self.folder / file.path, wanted, facts)
        except UnreadableSample as error:
            raise UnreadableSample(key, error.reason) from error

    def _usable(self, files: Sequence[listings.Listed], manifest: Manifest) -> tuple[listings.Listed, ...]:
        unknown = [file.path for file in files if file.path not in manifest]
        if unknown:
            raise UsageError(
                f"{manifest.path}: {counted(len(unknown), 'listed video', of=len(files), verb='are')} "
                f"not in the manifest, "
                f"such as {unknown[0]}. Have them scanned with 'vidssl data check'"
            )
        kept, by_pyav = [], Counter[str]()
        for file in files:
            entry = manifest.entry(file.path)
            why = self._why_out(file, entry)
            if why:
                self.left_out[why] += 1
            else:
                kept.append(file)
                by_pyav[entry.facts.no_seeking if entry.facts else ""] += 1
        if not kept:
            raise UsageError(
                f"{manifest.path}: none of the {len(files)} listed videos can be used "
                f"({_counted(self.left_out)})"
            )
        _tell(manifest, len(files), "left out", self.left_out)
        del by_pyav[""]
        if not isinstance(self._decoder, decoders.PyAV):
            _tell(manifest, len(kept), f"read by PyAV, not {self._decoder.name}", by_pyav)
        return tuple(kept)

    def _why_out(self, file: listings.Listed, entry: FileRecord) -> str:
        if not entry.usable or entry.facts is None:
            return entry.status
        try:
            own = _frames(file, entry.facts)
        except UnreadableSample as error:
            return f"of no use: {error.reason}"
        if self._short.leaves_out(len(own)):
            return f"shorter than {counted(self._short.min_frames, 'frame')}"
        return ""

    def _look(self, index: int) -> VideoFacts:
        """Facts of a file, kept until it changes."""
        file = self.files[index]
        path = self.folder / file.path
        try:
            status = os.stat(path)
        except OSError:
            raise UnreadableSample(file.key, content.why_not_a_file(path)) from None
        version = (status.st_size, status.st_mtime_ns)
        if file.path not in self._facts or self._facts[file.path][0] != version:
            facts = self._find_out(file, status)
            self._facts[file.path] = (version, facts.with_square_pixels() if self.square_pixels else facts)
        self._facts.move_to_end(file.path)
        if len(self._facts) > _FACTS_KEPT:
            self._facts.popitem(last=False)
        return self._facts[file.path][1]

    def _find_out(self, file: listings.Listed, status: os.stat_result) -> VideoFacts:
        path, key = self.folder / file.path, file.key
        if self._manifest is None:
            try:
                return probe(path)
            except UnreadableSample as error:
                raise UnreadableSample(key, error.reason) from error
        entry = self._manifest.entry(file.path)
        changed = why_changed(path, entry, status)
        if changed or entry.facts is None:
            raise UnreadableSample(
                key, f"{changed}; have it scanned again: 'vidssl data check' ({self._manifest.path})"
            )
        return entry.facts


def _frames(file: listings.Listed, facts: VideoFacts) -> range:
    """Numbers of the frames of a file that belong to a sample; raises UnreadableSample if none does."""
    if file.segment is None:
        return range(facts.num_frames)
    return file.segment.frames_of(file.key, facts)


def _tell(manifest: Manifest, total: int, what: str, reasons: Counter[str]) -> None:
    count = sum(reasons.values())
    if count:
        _log.warning("%s: %d of %d videos are %s: %s", manifest.path, count, total, what, _counted(reasons))


def _counted(reasons: Counter[str]) -> str:
    """The commonest with their counts."""
    shown = [f"{count} {why}" for why, count in reasons.most_common(5)]
    return ", ".join(shown) + (", ..." if len(reasons) > 5 else "")


class VideoFiles(DataSource):
    """Video files without labels, for a look at a few of them; a video's key is its path.

    Each is looked through once, when it is first asked for.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [Path(path) for path in paths]
        self._facts: dict[int, VideoFacts] = {}
        self.label_classes: Mapping[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> str:
        return str(self._paths[index])

    def labels(self, index: int) -> Mapping[str, int]:
        return {}

    def info(self, index: int) -> SampleInfo:
        facts = self._look(index)
        return SampleInfo(self.key(index), facts.num_frames, facts.fps, {}, facts.uneven_times)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        return read_frames(self._paths[index], frames, self._look(index))

    def _look(self, index: int) -> VideoFacts:
        if index not in self._facts:
            self._facts[index] = probe(self._paths[index])
        return self._facts[index]


@dataclass(kw_only=True, eq=False)
class VideoFolder(listings.PartKeys, ListedVideos):
    """Videos in a folder for each class; a folder without folders holds unlabelled videos.

    The label is called "class". A video's key is its path below the root.

    Args:
        root: the folder, relative to the working folder.
        part, test_share, limit: see ``PartKeys``.
        manifest, decoder, short, min_frames, square_pixels: see ``VideoKeys``.
    """

    def listed(self) -> tuple[listings.Listing, int]:
        listing = listings.list_folder(Path(self.root), listings.VIDEO_EXTENSIONS, "video")
        listing = listings.select(listing, self.part, self.test_share, self.limit, where=self.root)
        return listing, len(listing.files)


@dataclass(kw_only=True, eq=False)
class VideoList(listings.PartKeys, ListedVideos):
    """Videos named in a text or CSV list: on each line a path below the root, then its labels.

    A CSV list may have a header, whose columns after the first name the labels; a single label without a
    name is called "class". Labels are whole numbers or names of classes. The columns ``start`` and ``end``
    (or ``time_start`` and ``time_end``) hold seconds: the sample is that segment of its file. The column
    ``group`` names the source that a video was cut from with others: no split parts a group, and intervals
    and tests are by groups. Listed videos that do not exist count as unreadable samples.

    Args:
        root: folder that paths are relative to, itself relative to the working folder.
        list: the list, relative to the working folder.
        test_list: held-out videos; numbers classes together with ``list``.
        part: "test" is ``test_list``, or without one a fraction of each class by the hash of the path.
        test_share: of each class, on average, where there is no ``test_list``.
        limit, manifest, decoder, short, min_frames, square_pixels: see ``VideoKeys``.
    """

    list: str
    test_list: str | None = None

    def listed(self) -> tuple[listings.Listing, int]:
        root = Path(self.root)
        listing, part = lists.listed_part(
            self.list, self.test_list, self.part, exists=lambda path: (root / path).is_file()
        )
        listing = listings.select(listing, part, self.test_share, self.limit, where=self.list)
        if not any((root / file.path).exists() for file in listing.files):
            raise UsageError(
                f"{self.list}: none of its {counted(len(listing.files), 'video')} is there; looked for "
                f"{(root / listing.files[0].path).absolute()} and so on"
            )
        return listing, len(listing.files)


class ListedImages(listings.ListedFiles, KnowsOrigins):
    """Listed images, each a video of one frame."""

    root: str

    def info(self, index: int) -> SampleInfo:
        return SampleInfo(self.files[index].key, 1, 0.0, self.files[index].labels)

    def origin(self, index: int) -> Origin:
        return origins.image_origin(self.folder / self.files[index].path)

    def read(self, index: int, frames: Sequence[int]) -> Tensor:
        if set(frames) != {0}:
            raise ValueError(f"an image has frame 0 only, asked for {list(frames)}")
        file = self.files[index]
        return images.read_image(self.folder / file.path, file.key).expand(len(frames), -1, -1, -1)


@dataclass(kw_only=True, eq=False)
class ImageFolder(listings.PartKeys, ListedImages):
    """Images in a folder for each class, as ImageNet lies; a folder without folders has no labels.

    An image is a video of one frame. The label is called "class"; a key is a path below the root.

    Args:
        root: the folder, relative to the working folder.
        part, test_share, limit: see ``PartKeys``.
    """

    root: str

    def __post_init__(self) -> None:
        listing = listings.list_folder(Path(self.root), listings.IMAGE_EXTENSIONS, "image")
        self.take(
            self.root, listings.select(listing, self.part, self.test_share, self.limit, where=self.root)
        )
