"""SVT's views: two globals and several locals of one video, which is decoded once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from vidssl.data.views import crops, times
from vidssl.data.views.checks import check_counts, check_fractions
from vidssl.data.views.uniform import SlowAndFast
from vidssl.interfaces import DataSource, ViewSampler

Vary = Literal["both", "space", "time"]
Cut = Literal["antialiased", "svt_published"]
LOCAL_FRAMES = (2, 2, 4, 4, 8, 8, 16, 16)


@dataclass(kw_only=True, eq=False)
class GlobalsAndLocals(ViewSampler):
    """Random boxes of global and local views; a subclass says which frames each view shows.

    Args:
        size: of a global view, side of the square in pixels.
        area: of a global view, smallest and largest fraction of the frame; this and ``local_area`` are SVT's
            published code's, the paper says "about 40 % of each dimension" for locals.
        local_frames: of each local view; an empty list gives no local views.
        local_size: of a local view, side of the square in pixels.
        local_area: of a local view, smallest and largest fraction of the frame.
        aspect: smallest and largest width / height of a box.
    """

    size: int = 224
    area: tuple[float, float] = (0.4, 1.0)
    local_frames: tuple[int, ...] = LOCAL_FRAMES
    local_size: int = 96
    local_area: tuple[float, float] = (0.05, 0.4)
    aspect: tuple[float, float] = crops.ASPECT

    def prepare(self, lengths: Sequence[int], how: Cut = "antialiased", per_frame: bool = False) -> None:
        """Sets how boxes are cut; ``lengths`` are the frames of each global view."""
        if not lengths:
            raise ValueError("num_frames must list at least one global view")
        check_counts(self, "num_frames", "local_frames")
        self._lengths = tuple(lengths)
        self.cut, self.local_cut = (
            crops.RandomResizedCrop(size, area, self.aspect, per_frame)
            if how == "antialiased"
            else crops.RandomResizedCrop(
                size, area, self.aspect, interpolation="bicubic", draw="svt_published"
            )
            for size, area in ((self.size, self.area), (self.local_size, self.local_area))
        )

    @property
    def shapes(self) -> crops.Shapes:
        shapes = {"global": tuple((length, self.cut.size, self.cut.size) for length in self._lengths)}
        if self.local_frames:
            size = self.local_cut.size
            shapes["local"] = tuple((length, size, size) for length in self.local_frames)
        return shapes

    def views(
        self,
        source: DataSource,
        index: int,
        globals_: list[list[int]],
        locals_: list[list[int]],
        generator: torch.Generator,
    ) -> crops.Views:
        """The views of these frames, all read at once."""
        frames = crops.FramesOfClips(source, index, [*globals_, *locals_])
        pixels = frames.pixels
        views = {"global": tuple(self.cut(pixels, generator, frames.rows(clip)) for clip in globals_)}
        if locals_:
            views["local"] = tuple(self.local_cut(pixels, generator, frames.rows(clip)) for clip in locals_)
        return views


@dataclass(kw_only=True, eq=False)
class GlobalLocal(GlobalsAndLocals):
    """Global and local views of one video: SVT, Sec. 3.2.

    Each view takes frames evenly from a random part of the video of its own, first and last frame of the
    part included, and one random box of the frame. Locals lie anywhere in the video. A part shorter than
    the view has frames repeats some. The paper draws a local's number of frames from {2, 4, 8, 16}; here
    every slot has its own, so that slots can be batched, as in the published code.

    Args:
        size, area, local_frames, local_size, local_area, aspect: see ``GlobalsAndLocals``.
        num_frames: of each global view.
        extent: fraction of the video that a global view covers. The text does not say whether the globals
            share one part; here each draws its own.
        local_extent: fraction of the video that a local view covers.
        vary: what the views' field of view differs in (Table 5). "space": all views take their frames from
            one part of ``extent``. "time": all views show whole frames, ``size`` pixels wide.
        box_per_frame: a box for each frame instead of one for all, for the ablation without temporally
            consistent augmentation (Table 7).
    """

    num_frames: tuple[int, ...] = (16, 8)
    extent: float = 0.9
    local_extent: float = 0.125
    vary: Vary = "both"
    box_per_frame: bool = False

    def __post_init__(self) -> None:
        self.prepare(self.num_frames, per_frame=self.box_per_frame)
        check_fractions(self, "extent", "local_extent")
        if self.vary == "time":
            self.cut = self.local_cut = crops.RandomResizedCrop(self.size, None)

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        total = source.info(index).num_frames
        one = _random_part(total, self.extent, generator)

        def clip(length: int, extent: float) -> list[int]:
            part = one if self.vary == "space" else _random_part(total, extent, generator)
            return times.spread(*part, length, total)

        globals_ = [clip(length, self.extent) for length in self.num_frames]
        locals_ = [clip(length, self.local_extent) for length in self.local_frames]
        return self.views(source, index, globals_, locals_, generator)


@dataclass(kw_only=True, eq=False)
class SVTPublished(GlobalsAndLocals):
    """The views of SVT's published code: both globals span one random window, five frames apart.

    The window lasts as long as ``window_frames`` at 30 fps, or the whole of a shorter video; locals cover
    an eighth of it. Boxes are drawn as that code does, whose few strays reach beyond the range, and
    resizing is not antialiased. The defaults are the shipped script's; the author says that the paper's
    numbers come from globals of 8 and 16 frames and locals of 2, 2, 4, 4, 8, 8, 16, 16.

    Args:
        size, area, local_frames, local_size, local_area, aspect: see ``GlobalsAndLocals``.
        num_frames: of the two global views.
        window_frames: of the window, at 30 fps; published: 8 x 32. A video that states no rate counts
            as 30 fps.
    """

    num_frames: tuple[int, int] = (8, 8)
    window_frames: int = 256
    local_frames: tuple[int, ...] = (8,) * 8

    def __post_init__(self) -> None:
        self.prepare(self.num_frames, "svt_published")
        check_counts(self, "window_frames")

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        info = source.info(index)
        window = times.svt_window_frames(times.svt_fps(info), self.window_frames)
        start = times.draw_real(generator, 0.0, max(info.num_frames - window, 0.0))
        first, last = times.svt_window(start, info.num_frames, window)
        globals_ = svt_global_frames(first, last, self.num_frames)
        span = last - first + 1
        locals_ = [
            svt_local_frames(first, last, times.draw(generator, 0, span - span // 8 - 1), length)
            for length in self.local_frames
        ]
        return self.views(source, index, globals_, locals_, generator)


@dataclass(kw_only=True, eq=False)
class IntervalClips(GlobalsAndLocals):
    """SVT's views with temporal interval sampling in place of motion correspondences: SVT, Table 6.

    The two globals are clips at one frame rate, their starts a random interval apart: an interval t out
    of at most t_max is drawn with a chance that falls as 1 - (t / (t_max + 1)) ** interval_power, then the
    place of the pair uniformly, then which clip is first (CVRL, Sec. 3.2). A video too short for a clip is
    read round and round. Locals stay those of ``global_local``; the paper does not mention them.

    Args:
        size, area, local_frames, local_size, local_area, aspect: see ``GlobalsAndLocals``.
        num_frames: of each global view; 16 frames two apart are CVRL's, SVT states nothing.
        frame_stride: video frames from one frame of a global view to the next.
        interval_power: 1 falls in a straight line, the best in CVRL; larger values fall later.
        local_extent: fraction of the video that a local view covers.
    """

    num_frames: int = 16
    frame_stride: int = 2
    interval_power: float = 1.0
    local_extent: float = 0.125

    def __post_init__(self) -> None:
        self.prepare((self.num_frames,) * 2)
        check_counts(self, "frame_stride")
        check_fractions(self, "local_extent")
        if self.interval_power <= 0:
            raise ValueError(f"interval_power must be above 0, got {self.interval_power}")

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        total = source.info(index).num_frames
        globals_ = [
            times.clip_frames(start, total, length=self.num_frames, stride=self.frame_stride)
            for start in self._starts(times.last_start(total, self.num_frames, self.frame_stride), generator)
        ]
        locals_ = [
            times.spread(*_random_part(total, self.local_extent, generator), length, total)
            for length in self.local_frames
        ]
        return self.views(source, index, globals_, locals_, generator)

    def _starts(self, last: int, generator: torch.Generator) -> tuple[int, int]:
        chances = 1 - (torch.arange(last + 1, dtype=torch.float64) / (last + 1)) ** self.interval_power
        interval = int(torch.multinomial(chances, 1, generator=generator))
        early = times.draw(generator, 0, last - interval)
        late = early + interval
        return (early, late) if times.draw(generator, 0, 1) else (late, early)


@dataclass(kw_only=True, eq=False)
class ClipCrops(GlobalsAndLocals):
    """Crops of one clip: views that differ in space and not in time (LeVJEPA).

    The clip lies at a random place; a video too short for it is read round and round. Every global shows all
    of its frames, a local of fewer frames takes them evenly, first and last included.

    Args:
        size, area, local_frames, local_size, local_area, aspect: see ``GlobalsAndLocals``.
        num_frames: of the clip.
        frame_stride: video frames from one of the clip's to the next.
        num_globals: global views.
    """

    num_frames: int = 16
    frame_stride: int = 2
    num_globals: int = 1
    area: tuple[float, float] = (0.8, 1.0)
    local_frames: tuple[int, ...] = (16,) * 10
    local_area: tuple[float, float] = (0.02, 0.4)

    def __post_init__(self) -> None:
        self.prepare((self.num_frames,) * self.num_globals)
        check_counts(self, "frame_stride", "num_globals")

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        total = source.info(index).num_frames
        start = times.draw(generator, 0, times.last_start(total, self.num_frames, self.frame_stride))
        clip = times.clip_frames(start, total, length=self.num_frames, stride=self.frame_stride)
        places = (
            times.spread(0, self.num_frames - 1, length, self.num_frames) for length in self.local_frames
        )
        locals_ = [[clip[place] for place in of_local] for of_local in places]
        return self.views(source, index, [clip] * self.num_globals, locals_, generator)


@dataclass(kw_only=True, eq=False)
class SlowFastTrain(SlowAndFast):
    """Slow and fast clips for training a classifier on both (SVT, Sec. 4.1), from one random place.

    Time is as in ``slow_fast``, but the start is random; of each clip the short side becomes a random
    length, then a square is cut from a random place.

    Args:
        num_frames, frame_strides, sizes, interpolation: see ``SlowAndFast``.
    """

    @property
    def shapes(self) -> crops.Shapes:
        (slow, fast), (large, small) = self.num_frames, self.sizes
        return {"slow": ((slow, large, large),), "fast": ((fast, small, small),)}

    def sample(self, source: DataSource, index: int, generator: torch.Generator) -> crops.Views:
        total = source.info(index).num_frames
        clips = self.clips(times.draw(generator, 0, self.last_start(total)), total)
        frames = crops.FramesOfClips(source, index, clips)
        slow, fast = (
            crops.random_view(crops.picked(frames.pixels, rows), size, None, generator, self.interpolation)
            for rows, size in zip(map(frames.rows, clips), self.sizes, strict=True)
        )
        return {"slow": (slow,), "fast": (fast,)}


def svt_global_frames(first: int, last: int, lengths: Sequence[int]) -> list[list[int]]:
    """Frames of the published code's two global views in a decoded window from ``first`` to ``last``."""
    span = last - first + 1
    ends = ((0, span - 5), (5, span))
    return [
        [first + frame for frame in times.spread(start, end, length, span)]
        for (start, end), length in zip(ends, lengths, strict=True)
    ]


def svt_local_frames(first: int, last: int, start: int, length: int) -> list[int]:
    """Frames of a published local view that starts ``start`` frames into a decoded window."""
    span = last - first + 1
    return [first + frame for frame in times.spread(start, start + span // 8, length, span)]


def _random_part(total: int, extent: float, generator: torch.Generator) -> tuple[int, int]:
    """First and last frame of a random part of a video; each place alike likely, at least one frame."""
    covered = max(round(extent * total), 1)
    start = times.draw(generator, 0, total - covered)
    return start, start + covered - 1
