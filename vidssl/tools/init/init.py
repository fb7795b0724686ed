"""The command ``vidssl init``: a recipe for the videos of a list and this machine, with reasons."""

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

import torch
from rich.console import Console

from vidssl.build import build
from vidssl.config.recipe import Recipe, recipe_from_text
from vidssl.data.classes import label_of_one_class
from vidssl.data.sources.listing import VIDEO_EXTENSIONS, Listing, list_folder, select
from vidssl.data.sources.lists import list_notes, list_root, read_lists
from vidssl.data.sources.manifest import Manifest
from vidssl.engine.logging import format_duration, shown_messages, terminal
from vidssl.engine.process import check_writable, make_folder, num_cpus, write_text
from vidssl.engine.runfolder import check_name
from vidssl.errors import UsageError, counted
from vidssl.tools.collection import annotations, split, survey
from vidssl.tools.collection.glimpses import Glimpse, glimpses
from vidssl.tools.data.check import say
from vidssl.tools.dry_run import step_seconds, two_steps
from vidssl.tools.init import adapt, choices, text
from vidssl.train.run import train_recipe
from vidssl.train.trial import random_states_kept

MINUTES = 10.0
TOKENIZER_STEPS = 500


def write_recipe(
    out: Path,
    videos: Path,
    *,
    objective: str | None = None,
    minutes: float | None = None,
    gpu: bool = False,
    tokenizer: str | None = None,
    tokenizer_steps: int = TOKENIZER_STEPS,
    start: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Look at the videos, time a step on this machine and write a recipe for both.

    Several objectives get a recipe each, for the same clips and network, and ``out`` is the grid that
    compares them. One that predicts ids gets a tokenizer that is trained here on frames of the same videos,
    unless one is named.

    Args:
        out: the recipe or grid, a YAML file.
        videos: a list, as ``vidssl data split`` writes it, or a folder.
        objective: svt (the default), bevt, vimpac or videomae; several with commas between them.
        minutes: that training may take on this machine, for each run.
        gpu: sizes for a GPU, whether or not there is one here; steps are then counted in passes.
        tokenizer: name, file or run of one to use.
        tokenizer_steps: of the one that is trained here.
        start: weights to go on from, a run or a released file; they decide the objective, and of a release
            ``recipes/adapt`` the steps.
        trust: as for ``vidssl eval``, of the run that is gone on from.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if the videos or weights cannot be read or the file is there already.
    """
    console = console or terminal()
    asked = "svt" if objective is None else objective
    names = list(dict.fromkeys(choices.check_objective(name.strip()) for name in asked.split(",")))
    if start is not None and (objective is not None or tokenizer is not None):
        raise UsageError("--from: the weights decide the objective; --objective and --tokenizer start anew")
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{out}: a recipe is a YAML file: vidssl init {out}.yaml --videos {videos}")
    files = {name: out.with_stem(f"{out.stem}_{name}") if len(names) > 1 else out for name in names}
    if there := [path for path in (out, *files.values()) if path.exists()]:
        raise UsageError(f"{there[0]}: is there already. Remove it, or write another")
    if gpu and minutes is not None:
        raise UsageError("--gpu counts passes over the videos, and --minutes time on this machine: give one")
    if tokenizer is not None and not set(names) & set(choices.NEEDS_TOKENIZER):
        raise UsageError(f"--tokenizer: {' and '.join(names)} has no use for one")
    check_writable(out, "name another")
    check_name(out.stem)
    begun = None if start is None else adapt.start_from(start, trust=trust)
    gpu = gpu or (begun is not None and not begun.timed)
    machine = choices.Machine(gpu, num_cpus(), None if gpu else minutes or MINUTES)
    rows, root, sources = training_samples(videos)
    if len(names) > 1 and not sources.probed:
        raise UsageError(f"{videos}: its videos have no labels to compare objectives by: write one at a time")
    seen = glimpses(
        rows,
        root,
        console,
        "look at the videos",
        count=choices.FRAMES,
        height=choices.SIDE,
        width=choices.SIDE,
    )
    usable = [_seen(row, one) for row, one in zip(rows, seen, strict=True) if not one.reason]
    order = _order(rows, seen)
    if order is not None:
        say(console, f"Probe: {order.words}")
    chosen = choices.choose(usable, machine, order)
    look = _Look(videos, machine, len(usable), len(rows), order, sources.tested)
    if begun is not None:
        made = adapt.adapted_text(
            begun, out.stem, sources, usable, chosen.flip, _heading(out, begun.words, look)
        )
        _write(out, made, look, console, timed=begun.timed, loaded=True)
        _say_next(console, out, f"train {out}")
        return 0
    ids = None if tokenizer is None else choices.Choice(tokenizer, "as asked for")
    if ids is None and set(names) & set(choices.NEEDS_TOKENIZER):
        ids = _trained(out.stem, chosen, sources, tokenizer_steps, console)
    for name, path in files.items():
        made = partial(
            text.recipe_text,
            path.stem,
            name,
            chosen,
            sources,
            tokenizer=ids if name in choices.NEEDS_TOKENIZER else None,
            heading=_heading(path, _PAPERS[name], look),
        )
        _write(path, made, look, console, timed=True)
    if len(names) > 1:
        write_text(out, text.grid_text(out, videos, files, machine))
        say(console, f"Grid: {out}, {text.runs_in_words(machine, len(files))}")
    _say_next(console, next(iter(files.values())), f"grid {out}" if len(names) > 1 else f"train {out}")
    return 0


def _say_next(console: Console, path: Path, last: str) -> None:
    say(console, f"Next: vidssl show {path} --what clips, vidssl train {path} --dry-run, vidssl {last}")


@dataclass(frozen=True)
class _Look:
    """What was found: list and machine; training videos that can be used and are listed; test videos."""

    videos: Path
    machine: choices.Machine
    usable: int
    listed: int
    order: choices.OrderProbe | None
    tested: int


def _write(
    path: Path,
    made: Callable[[choices.Choice[int]], str],
    look: _Look,
    console: Console,
    *,
    timed: bool,
    loaded: bool = False,
) -> None:
    """Write a recipe that is a function of its steps, once a step is timed."""
    recipe = recipe_from_text(made(choices.Choice(1000, "")), str(path))
    build.check(recipe)
    if loaded:
        say(console, "Loading the weights once, to see that they fit")
        build.objective(recipe, lambda report: say(console, f"  {report.splitlines()[0]}"))
    batch = next(iter(recipe.data.streams.values())).batch_size
    seconds = _seconds_a_step(recipe, console) if timed and not look.machine.gpu else None
    steps = choices.steps_for(seconds, look.machine, look.usable, batch)
    words = made(steps)
    build.check(recipe_from_text(words, str(path)))
    make_folder(path.parent)
    write_text(path, words)
    length = f", {counted(steps.value, 'step')}: {steps.why}" if timed else ""
    say(console, f"Recipe: {path}{length}")


def training_samples(videos: Path) -> tuple[list[annotations.Row], Path, text.Sources]:
    """The samples to train on, their root, and the sources that a recipe names.

    A list that ``data split`` wrote has its test and validation parts beside it.
    """
    if videos.is_dir():
        listing = list_folder(videos, VIDEO_EXTENSIONS, "video")
        shared: dict[str, object] = {"type": "video_folder", "root": videos.as_posix()}
        part = select(listing, "train", where=str(videos))
        held_out = select(listing, "test", where=str(videos)) if listing.label_classes else Listing((), {})
        return annotations.rows_of(part), videos, _parts(shared, listing, held_out)
    (listing,) = read_lists(videos, labels_needed=False)
    root, stem = list_root(videos), videos.name.removesuffix(".train.csv")
    shared = {"type": "video_list", "root": root.as_posix(), "list": videos.as_posix()}
    test, watched = videos.with_name(f"{stem}.test.csv"), None
    if videos.name != stem and test.exists():
        shared["test_list"] = test.as_posix()
        val = videos.with_name(f"{stem}.val.csv")
        watched = {"test_list": val.as_posix()} if val.exists() else None
        part = listing
    else:
        part = select(listing, "train", where=str(videos))
    others = (videos.with_name(f"{stem}.{name}.csv") for name in ("test", "val") if "test_list" in shared)
    if (manifest := _manifest([videos, *(each for each in others if each.exists())])) is not None:
        shared["manifest"] = manifest
    held_out = read_lists(test)[0] if "test_list" in shared else select(listing, "test", where=str(videos))
    return annotations.rows_of(part), root, _parts(shared, listing, held_out, watched)


def _manifest(lists: Sequence[Path]) -> str | None:
    """What 'data check' wrote of all the videos of some lists; None where there is no such file."""
    paths = {key for path in lists for key in read_lists(path, labels_needed=False)[0].by_file()}
    own = lists[0].with_name(f"{lists[0].stem}.manifest.jsonl").as_posix()
    for name in (list_notes(lists[0]).get("manifest"), own):
        if name and Path(name).exists():
            known = Manifest(Path(name))
            if all(path in known for path in paths):
                return Path(name).as_posix()
    return None


def _parts(
    shared: Mapping[str, object],
    listing: Listing,
    held_out: Listing,
    watched: Mapping[str, object] | None = None,
) -> text.Sources:
    probed = bool(listing.label_classes)
    return text.Sources(
        shared, {"part": "train"}, {"part": "test"}, watched, probed, len(held_out.files) * probed
    )


def _seen(row: annotations.Row, glimpse: Glimpse) -> survey.Seen:
    return survey.Seen(row.labels, glimpse.num_frames, glimpse.fps, glimpse.height, glimpse.width)


def _order(rows: Sequence[annotations.Row], seen: Sequence[Glimpse]) -> choices.OrderProbe | None:
    """Of the first label of one class a video, on some of the training samples; None without labels."""
    if not rows or not rows[0].labels:
        return None
    label = label_of_one_class({name: [row.labels[name] for row in rows] for name in rows[0].labels})
    if label is None:
        return None
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(choices.MOST, len(rows))))
    names = [rows[n].group or (rows[n].path if rows[n].times else f"{n}") for n in chosen]
    units = split.united(names, [])
    groups = units if len(set(units)) < len(units) else None
    return choices.probe_order([seen[n] for n in chosen], [rows[n].labels[label] for n in chosen], groups)


def _trained(
    name: str, chosen: choices.Choices, sources: text.Sources, steps: int, console: Console
) -> choices.Choice[str]:
    """A tokenizer of frames of the same videos, trained now; its run records how."""
    run = f"{name}_tokenizer"
    recipe = recipe_from_text(text.tokenizer_text(run, chosen, sources, steps), f"{run}.yaml")
    say(console, f"Training a tokenizer on frames of these videos, {counted(steps, 'step')}")
    with shown_messages(console):
        _, result = train_recipe(recipe, console)
    psnr = next((value for key, value in result.test_metrics.items() if "psnr" in key), None)
    quality = "" if psnr is None else f", PSNR {psnr:.1f} dB on held-out ones"
    say(console, f"Tokenizer: {result.folder}{quality}")
    return choices.Choice(result.folder.as_posix(), f"trained on frames of these videos{quality}")


def _seconds_a_step(recipe: Recipe, console: Console) -> float:
    """Seconds of a step on this machine, its batch included."""
    say(console, "Timing a step on this machine")
    if (busy := os.getloadavg()[0]) > 1.5 * num_cpus():
        say(console, f"  it is busy (load {busy:.0f} of {num_cpus()}): steps may be faster when it is not")
    with shown_messages(console), random_states_kept():
        streams = build.streams(recipe)
        torch.manual_seed(recipe.seed)
        made = build.objective(recipe, say=logging.getLogger(__name__).debug)
        plan = build.schedule(recipe).plan({key: len(s) / s.batch_size for key, s in streams.items()})
        return step_seconds(two_steps(recipe, made, streams, plan), recipe.run.workers)


_PAPERS: Mapping[choices.ObjectiveName, str] = {
    "svt": "SVT, Ranasinghe et al. (2022)",
    "bevt": "BEVT, Wang et al. (2022)",
    "vimpac": "VIMPAC, Tan et al. (2021)",
    "videomae": "VideoMAE, Tong et al. (2022)",
}


def _heading(out: Path, what: str, look: _Look) -> list[str]:
    minutes = look.machine.minutes
    time = "" if minutes is None else f", {format_duration(60 * minutes)}"
    lines = [
        f"{what}, for {look.machine.words}{time} and the {counted(look.usable, 'training video')} of "
        f"{look.videos}. Written by 'vidssl init': values may be changed; behind each stands its reason.",
        "",
        f"  vidssl train {out}",
        f"  vidssl eval runs/{out.stem} --protocol linear",
        "",
    ]
    if look.usable < look.listed:
        lines.append(f"{counted(look.listed - look.usable, 'listed video')} could not be read.")
    if look.order is not None:
        lines.append(f"Quick probe: {look.order.words}.")
    if look.tested:
        lines.append(f"{text.what_can_show(look.tested)}.")
    return [part for line in lines for part in (wrap(line, 105) if len(line) > 105 else [line])]
