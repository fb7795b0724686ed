"""Labelled clips as a recipe's views see them, for a look before the first step."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.data.samples import InOrder
from vidssl.data.views.stored import StoredViews
from vidssl.engine.atomic import make_folder
from vidssl.engine.logging import Say, print_line, shown_messages, terminal
from vidssl.errors import UsageError, counted, printable
from vidssl.evaluate.networks import recipe_named
from vidssl.interfaces import DataSource, ViewSampler, as_clip
from vidssl.pictures.pages import FrameRow, Strip, as_frames, save_png, sheet

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
        out: folder of the pictures; None for ``pictures``.
        trust: use code and addresses that a run's recipe names, whoever trained it.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there is no such recipe, or no sample can be read.
    """
    console = console or terminal()
    say = partial(print_line, console)
    folder = Path(out or "pictures")
    with shown_messages(console):
        recipe = recipe_named(target, overrides, trust=trust)
        make_folder(folder, "name another with --out")
        for name, source, views in _parts(recipe):
            if isinstance(views, StoredViews):
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
