"""The clips that pictures are drawn of, and labelled clips as a recipe's views see them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build
from vidssl.config import schema, strict_yaml
from vidssl.config.recipe import Recipe, StreamSpec, overridden
from vidssl.data.samples import InOrder
from vidssl.data.sources.moving_digits import MovingDigits
from vidssl.data.sources.video_files import VideoFiles
from vidssl.data.views import stored, uniform
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.engine.process import make_folder
from vidssl.errors import UsageError, counted, printable
from vidssl.evaluate.networks import recipe_named
from vidssl.interfaces import DataSource, ViewSampler, as_clip
from vidssl.pictures.pages import FrameRow, Strip, as_frames, save_png, sheet

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
    what: str,
    say: Say,
    *,
    videos: int | None = None,
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Clips:
    """Clips to draw: of held-out videos of the run unless others are named.

    Attention is shown on the views that features are measured on, all else on those that the objective
    learned from. A tokenizer file, which has no recipe, is shown on moving digits and on clips of
    8 frames in their size, 48 pixels.

    Args:
        say: gets a line for each video that cannot be read.
        videos: how many; None for 4 clips or 8 images.
        files: video files to show instead of the recipe's held-out videos.
        overrides: ``data={...}``, a source to show instead, and ``views={...}``, how clips are cut from it.

    Raises:
        UsageError: if there are no such videos, or none can be read.
    """
    root = overridden(strict_yaml.Node({}, "overrides", ""), overrides)
    entries = root.entries((), ("data", "views"))
    tables = {"data": schema.SourceSpec, "views": schema.ViewsSpec}
    given = {key: cast(schema.PartSpec, schema.convert(entry, tables[key])) for key, entry in entries.items()}
    if files and "data" in given:
        raise given["data"].node.error("--video names the videos already: leave out one of the two")
    views = build.views(given["views"]) if "views" in given else _views(recipe, what)
    if isinstance(views, stored.StoredViews):
        raise UsageError(
            "this run learned from stored ids, and pictures are drawn of pixels: name videos, "
            f"{_EXAMPLE}, and how to cut them, e.g. views='{{type: uniform_clips, num_frames: 5}}'"
        )
    if files:
        source: DataSource = VideoFiles(files)
    else:
        source = build.source(given["data"]) if "data" in given else _held_out(recipe, what, say)
    return draw_clips(source, views, videos, say)


def _held_out(recipe: Recipe | None, what: str, say: Say) -> DataSource:
    if recipe is None:
        return MovingDigits(split="test")
    held_out = _stream(recipe).test_source
    if held_out is None and recipe.data.probe is not None:
        held_out = recipe.data.probe.test
    if held_out is None and what in ("masks", "tokens"):  # of which nothing is learned
        say("the recipe names no held-out videos: these are training videos")
        held_out = _stream(recipe).source
    if held_out is None:
        raise UsageError(f"the recipe of this run names no held-out videos: name some, {_EXAMPLE}")
    return build.source(held_out)


def _views(recipe: Recipe | None, what: str) -> ViewSampler:
    if recipe is None:
        return uniform.UniformClips(num_frames=8, frame_stride=1, size=48)
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


_SAMPLES = 8  # where no number is asked for


def show_clips(
    target: str,
    *,
    videos: int | None = None,
    overrides: Sequence[str] = (),
    out: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Draw samples of each stream and of the probe with their labels, a PNG sheet for each.

    Every view of a sample is a row: frames as they are decoded, cut and resized, before colours are changed.

    Args:
        target: a recipe's file or name, or a run.
        videos: how many samples; one of each class as far as they go round. None for 8.
        overrides: of the recipe.
        out: folder of the pictures; None for ``pictures`` in the run's own, or in the working folder.
        trust: use code and addresses that a run's recipe names, whoever trained it.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there is no such recipe, or no sample can be read.
    """
    console = console or terminal()
    say = partial(print_line, console)
    folder = Path(out or Path(target if Path(target).is_dir() else "") / "pictures")
    with shown_messages(console):
        recipe = recipe_named(target, overrides, trust=trust)
        make_folder(folder, "name another with --out")
        for name, source, views in _parts(recipe):
            if isinstance(views, stored.StoredViews):
                say(f"{name}: stored ids, of which there is no picture")
                continue
            strips = _strips(source, views, videos or _SAMPLES, say)
            path = folder / f"clips-{recipe.name}-{name.replace(' ', '-')}.png"
            save_png(sheet(f"{recipe.name}, {name}: {counted(len(source), 'sample')}", strips), path)
            say(f"Picture: {path}")
    return 0


def _parts(recipe: Recipe) -> Iterator[tuple[str, DataSource, ViewSampler]]:
    """What a recipe draws samples of: its streams, then what its probe learns from and is tested on."""
    for name, stream in recipe.data.streams.items():
        yield name, build.source(stream.source), build.views(stream.views)
    if recipe.data.probe is not None:
        views = build.views(recipe.data.probe.views)
        yield "probe train", build.source(recipe.data.probe.train), views
        yield "probe test", build.source(recipe.data.probe.test), views


def chosen_samples(source: DataSource, count: int) -> list[int]:
    """Numbers of samples of the classes in turn, evenly over each; of unlabelled ones evenly over all."""
    by_class: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(source)):
        by_class.setdefault(tuple(source.labels(number).values())[:1], []).append(number)
    each = -(-count // len(by_class))
    spread = [_evenly(own, each) for own in by_class.values()]
    turns = [own[place] for place in range(each) for own in spread if place < len(own)]
    return sorted(dict.fromkeys(turns[:count]))


def _evenly(numbers: Sequence[int], count: int) -> list[int]:
    count = min(count, len(numbers))
    return [numbers[place * len(numbers) // count] for place in range(count)]


def _strips(source: DataSource, views: ViewSampler, count: int, say: Say) -> list[Strip]:
    samples = InOrder(source, views)
    strips: list[Strip] = []
    for number in chosen_samples(source, count):
        sample = samples[number]
        if sample.views is None:
            say(f"left out: {sample.failures[0]}")
            continue
        names = {label: source.label_classes[label][place] for label, place in source.labels(number).items()}
        strips += _of_sample(caption(source.key(number), names), sample.views)
    if not strips:
        raise UsageError(f"none of the samples that were tried can be read: {counted(len(source), 'sample')}")
    return strips


def caption(key: str, labels: Mapping[str, str]) -> str:
    """``run/a.mp4: action jump``; of an unlabelled sample its key alone."""
    words = ", ".join(f"{name} {value}" for name, value in labels.items())
    return printable(f"{key}: {words}" if words else key, one_line=True)


def _of_sample(title: str, views: Mapping[str, Sequence[torch.Tensor]]) -> list[Strip]:
    """A strip for each number of frames: views of as many stand below each other."""
    rows: dict[int, list[FrameRow]] = {}
    for name, slots in views.items():
        for place, slot in enumerate(slots, start=1):
            clip = as_clip(slot)
            label = f"{name} {place}" if len(slots) > 1 else name
            rows.setdefault(clip.shape[1], []).append(FrameRow(label, as_frames(clip)))
    strips: list[Strip] = []
    for length, own in rows.items():
        heads = tuple(str(frame + 1) for frame in range(length))
        strips.append(Strip("" if strips else title, heads, tuple(own)))
    return strips
