"""The clips that pictures are drawn of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from vidssl.build import build
from vidssl.config.recipe import Recipe, StreamSpec, overridden
from vidssl.config.schema import PartSpec, SourceSpec, ViewsSpec, convert
from vidssl.config.strict_yaml import Node
from vidssl.data.samples import InOrder
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.sources.video_files import VideoFiles
from vidssl.data.views.stored import StoredViews
from vidssl.data.views.uniform import UniformClips
from vidssl.engine.logging import Say
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, ViewSampler, as_clip

Picture = Literal["attention", "reconstruction"]
NUM_CLIPS, NUM_IMAGES = 4, 8  # that are shown where no number is asked for
_EXAMPLE = "data='{type: video_folder, root: FOLDER}' or --video FILE"


@dataclass(frozen=True)
class Clips:
    """Clips float32 [B, 3, T, H, W] in [0, 1], and the keys of their B videos."""

    pixels: Tensor
    keys: tuple[str, ...]

    @property
    def move(self) -> bool:
        """Whether they are clips and not single images."""
        return self.pixels.shape[2] > 1


def clips_to_show(
    recipe: Recipe | None,
    what: Picture,
    say: Say,
    *,
    videos: int | None = None,
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Clips:
    """Clips to draw: of held-out videos of the run unless others are named.

    Attention is shown on the views that features are measured on, reconstruction on those that the
    objective learned from. A tokenizer file, which has no recipe, is shown on moving digits and on clips of
    8 frames in their size, 48 pixels.

    Args:
        say: gets a line for each video that cannot be read.
        videos: how many; None for 4 clips or 8 images.
        files: video files to show instead of the recipe's held-out videos.
        overrides: ``data={...}``, a source to show instead, and ``views={...}``, how clips are cut from it.

    Raises:
        UsageError: if there are no such videos, or none can be read.
    """
    root = overridden(Node({}, "overrides", ""), overrides)
    entries = root.entries((), ("data", "views"))
    tables = {"data": SourceSpec, "views": ViewsSpec}
    given = {key: cast(PartSpec, convert(entry, tables[key])) for key, entry in entries.items()}
    if files and "data" in given:
        raise given["data"].node.error("--video names the videos already: leave out one of the two")
    views = build.views(given["views"]) if "views" in given else _views(recipe, what)
    if isinstance(views, StoredViews):
        raise UsageError(
            "this run learned from stored ids, and pictures are drawn of pixels: name videos, "
            f"{_EXAMPLE}, and how to cut them, e.g. views='{{type: uniform_clips, num_frames: 5}}'"
        )
    if files:
        source: DataSource = VideoFiles(files)
    else:
        source = build.source(given["data"]) if "data" in given else _held_out(recipe)
    return draw_clips(source, views, videos, say)


def _held_out(recipe: Recipe | None) -> DataSource:
    if recipe is None:
        return MovingDigits(split="test")
    held_out = _stream(recipe).test_source
    if held_out is None and recipe.data.probe is not None:
        held_out = recipe.data.probe.test
    if held_out is None:
        raise UsageError(f"the recipe of this run names no held-out videos: name some, {_EXAMPLE}")
    return build.source(held_out)


def _views(recipe: Recipe | None, what: Picture) -> ViewSampler:
    if recipe is None:
        return UniformClips(num_frames=8, frame_stride=1, size=48)
    if what == "attention" and recipe.data.probe is not None:
        return build.views(recipe.data.probe.views)
    return build.views(_stream(recipe).views)


def _stream(recipe: Recipe) -> StreamSpec:
    """The video stream, or where there is none that of images."""
    return recipe.data.streams.get("video") or recipe.data.streams["image"]


def draw_clips(source: DataSource, views: ViewSampler, count: int | None, say: Say) -> Clips:
    """The first view of videos that lie evenly over a source, the same ones at every call.

    Args:
        count: of videos, fewer where the source has not so many; None for 4 clips or 8 images.
        say: gets a line for each video that cannot be read; the next one takes its place.

    Raises:
        UsageError: if none can be read.
    """
    name, slots = next(iter(views.shapes.items()))
    count = min(len(source), count or (NUM_IMAGES if slots[0][0] == 1 else NUM_CLIPS))
    samples, found, problems = InOrder(source, views), {}, {}
    for start in (place * len(source) // count for place in range(count)):
        for index in ((start + step) % len(source) for step in range(len(source))):
            if index in found or index in problems:
                continue
            sample = samples[index]
            if sample.views is not None:
                found[index] = as_clip(sample.views[name][0])
                break
            problems[index] = str(sample.failures[0])
            say(f"left out: {problems[index]}")
    if not found:
        raise UsageError(
            f"none of the {counted(len(source), 'video')} can be read, e.g. {next(iter(problems.values()))}"
        )
    return Clips(torch.stack([*found.values()]), tuple(map(source.key, found)))
