"""From a network and videos to a file of features (NumPy, Parquet, safetensors); can be resumed."""

import csv
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from vidssl.build import build
from vidssl.config.recipe import Recipe, overridden
from vidssl.config.schema import PartSpec, SourceSpec, ViewsSpec, convert
from vidssl.config.strict_yaml import Node
from vidssl.data.samples import InOrder, Parcel, bytes_of_batch, parcels
from vidssl.data.sources.video_files import VideoFiles, VideoFolder, VideoList
from vidssl.engine import checkpoint, distributed, speed
from vidssl.engine.logging import Say, format_duration, print_line, shown_messages, terminal
from vidssl.engine.process import check_writable, make_folder, write_atomically, write_text
from vidssl.errors import UsageError, counted
from vidssl.evaluate.evaluate import EvalWords, asked_network, eval_words
from vidssl.evaluate.subject import Subject
from vidssl.interfaces import Backbone, DataSource, Features, HasBlocks, Tokenizer, ViewSampler, as_clip
from vidssl.use.windows import Per, Window, Windows, even_views, mean_over, one_clip, windows_of

FORMATS = (".npy", ".npz", ".parquet", ".safetensors")


@dataclass(frozen=True)
class Row:
    """What a row of features is of.

    Attributes:
        video: its key in the source.
        start, end: seconds from its start; nan for the whole video, or where it states no rate.
        labels: label name -> class name.
    """

    video: str
    start: float
    end: float
    labels: Mapping[str, str]


def check_format(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        UsageError: with the formats there are, or the package that is missing.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: features are written as {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UsageError(f"{path}: install what writes Parquet: pip install 'vidssl[parquet]'") from None
    if path.parent != Path() and not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")


def written(path: Path, features: Tensor, rows: Sequence[Row]) -> list[Path]:
    """Writes features [N, ...] and what their rows are of; the files that hold them.

    - ``.npy``: the array; video, start, end and labels in a ``.csv`` of the same name.
    - ``.npz``: arrays ``features``, ``video``, ``start``, ``end`` and ``label_NAME``.
    - ``.parquet``: columns of these names; features as lists, flattened, their shape in the metadata.
    - ``.safetensors``: tensors ``features``, ``start`` and ``end``; the rest as JSON in the metadata.
    """
    columns = _columns(rows)
    if path.suffix == ".npy":
        beside = path.with_suffix(".csv")
        write_text(beside, _csv(columns))
        write_atomically(path, lambda file: _npy(file, features.numpy()))
        return [path, beside]
    if path.suffix == ".npz":
        write_atomically(path, lambda file: _npz(file, features, columns))
    elif path.suffix == ".parquet":
        write_atomically(path, lambda file: _parquet(file, features, columns))
    else:
        times = {name: torch.tensor(columns.pop(name), dtype=torch.float64) for name in ("start", "end")}
        metadata = {name: json.dumps(column) for name, column in columns.items()}
        checkpoint.save_tensors(path, {"features": features, **times}, metadata)
    return [path]


def _columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    names = sorted({name for row in rows for name in row.labels})
    found: dict[str, list[object]] = {
        key: [getattr(row, key) for row in rows] for key in ("video", "start", "end")
    }
    return found | {f"label_{name}": [row.labels.get(name, "") for row in rows] for name in names}


def _csv(columns: Mapping[str, Sequence[object]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _npy(path: Path, array: "np.typing.NDArray[np.generic]") -> None:
    with path.open("wb") as file:  # by name, NumPy would add an ending
        np.save(file, array)


def _npz(path: Path, features: Tensor, columns: Mapping[str, Sequence[object]]) -> None:
    with path.open("wb") as file:
        arrays = {name: np.array(column) for name, column in columns.items()}
        save: Any = np.savez  # its newer keywords hide that it takes any name
        save(file, features=features.numpy(), **arrays)


def _parquet(path: Path, features: Tensor, columns: Mapping[str, Sequence[object]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    flat = features.flatten(1).numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    arrays = {name: pa.array(column) for name, column in columns.items()} | {"features": vectors}
    table = pa.table(arrays).replace_schema_metadata({"shape": json.dumps(list(features.shape[1:]))})
    parquet.write_table(table, path)


Layer = int | Literal["last", "all"]
Tokens = Literal["pooled", "patches"]
_PART_BATCHES = 16  # in a file that a run that was stopped goes on from


@dataclass(frozen=True)
class Wanted:
    """What a row of features is.

    Attributes:
        per: a row for each video, all of its views averaged; for each clip of the views; for each window of a
            long video; or for each step in time of windows side by side (the frames that one patch spans).
        layer: the last one's vector, all stages' means side by side, or what a block gives, by its number.
        tokens: one vector, or every patch, [t, h, w, D].
        half: whether numbers are kept in half precision.
    """

    per: Per = "video"
    layer: Layer = "last"
    tokens: Tokens = "pooled"
    half: bool = False

    def check(self, network: Backbone, views: ViewSampler, every: float | None) -> None:
        """Refuse what does not go together.

        Raises:
            UsageError: with the way out.
        """
        if every is not None and self.per != "window":
            raise UsageError(f"--every is for --per window, not --per {self.per}")
        if self.layer == "all" and (self.tokens == "patches" or self.per == "frame"):
            raise UsageError(
                "--layer all puts stages side by side that have no grid in common: name one block"
            )
        slots = sum(len(sizes) for sizes in views.shapes.values())
        if self.tokens == "patches" and (self.per == "frame" or (self.per == "video" and slots > 1)):
            raise UsageError("--tokens patches has a grid for each clip: --per clip, or --per window")
        if isinstance(self.layer, int) and not (
            isinstance(network, HasBlocks)
            and -(depth := len(network.blocks_in_order())) <= self.layer < depth
        ):
            raise UsageError(f"--layer {self.layer}: {type(network).__name__} has no such block")

    def of(self, network: Backbone, x: Tensor) -> Tensor:
        """[B, D]; of frames [B, t, D]; of patches [B, t, h, w, D]."""
        if isinstance(self.layer, int):
            maps = cast(
                list[Tensor],
                network.forward_intermediates(x, [self.layer], output_fmt="NTHWC", intermediates_only=True),
            )
            features = Features(maps[0])
        else:
            features = network(x)
        if self.tokens == "patches":
            return features.patches
        if self.per == "frame":
            return features.patches.mean(dim=(2, 3))
        return features.pooled_stages() if self.layer == "all" else features.pooled()


def features(
    network: str,
    videos: Sequence[str],
    out: Path,
    *,
    overrides: Sequence[str] = (),
    per: Per = "video",
    every: float | None = None,
    layer: Layer = "last",
    tokens: Tokens = "pooled",
    half: bool = False,
    batch_size: int = 8,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Write the features of videos to a file; where that was begun before, it goes on.

    Args:
        network: a run, a checkpoint, or a network that is no run's, as ``vidssl eval`` takes them.
        videos: a folder, a text or CSV list, or video files; none where ``data={...}`` names a source.
        out: ``.npy`` (names and times in a ``.csv`` beside it), ``.npz``, ``.parquet``, ``.safetensors``.
        overrides: ``data={...}``, ``views={...}``, and those of ``vidssl eval`` for networks and how to run.
        per: see ``Wanted``.
        every: seconds from the start of a window to the next; None for windows side by side.
        layer, tokens, half: see ``Wanted``.
        batch_size: samples that go through the network together.
        trust: as for ``vidssl eval``.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    wanted = Wanted(per, layer, tokens, half)
    with distributed.told_once_a_machine():
        check_format(out)
        specs, words = words_of(overrides, ("data", "views"))
        asked = asked_network(network, words, trust)
        views = build.views(specs["views"] if "views" in specs else usual_views(asked.recipe))
        source = videos_named(videos, specs.get("data"))
    with distributed.processes(asked.run.device, timeout_minutes=asked.run.timeout_minutes) as world:
        console = (console or terminal()) if world.first else terminal(quiet=True)
        with shown_messages(console):
            say = partial(print_line, console)
            check_writable(out, "name another with -o", say)
            subject = world.one_first(lambda: asked.make(say))
            made = next(iter(subject.networks.values()))
            wanted.check(made, views, every)
            plan = make_plan(subject, source, views, wanted, every, batch_size)
            return _run(plan, subject, out, world, say)


def words_of(overrides: Sequence[str], own: Sequence[str]) -> tuple[dict[str, PartSpec], EvalWords]:
    """Sections such as ``views={...}`` that are a command's own, and the words for networks and how to run.

    Raises:
        UsageError: for any other word.
    """
    named = [word for word in overrides if word.partition("={")[0] in own and "={" in word]
    words = eval_words([word for word in overrides if word not in named])
    if words.rest or words.data:
        stray = words.rest[0] if words.rest else f"data={words.data}"
        known = "".join(f"{key}={{...}}, " for key in own)
        raise UsageError(f"{stray}: this command knows {known}weights=, network. and run.")
    entries = overridden(Node({}, "overrides", ""), named).entries((), own)
    tables = {"data": SourceSpec, "views": ViewsSpec}
    return {key: cast(PartSpec, convert(entry, tables[key])) for key, entry in entries.items()}, words


def usual_views(recipe: Recipe | None) -> PartSpec:
    """The test views of a recipe's labelled videos."""
    if recipe is None or recipe.data.probe is None:
        raise UsageError(
            "how are clips cut? Neither a recipe of the network nor an override says it: add e.g. "
            "views='{type: uniform_clips, num_frames: 16, frame_stride: 4, size: 224}'"
        )
    return recipe.data.probe.views


def videos_named(words: Sequence[str], given: PartSpec | None = None) -> DataSource:
    """The source of a folder, a list or video files.

    Args:
        given: a source that is named otherwise; then there are no words.

    Raises:
        UsageError: if there are no videos, or they are named twice.
    """
    if given is not None:
        if words:
            raise UsageError(f"{words[0]} and data={{...}} both name videos: leave one out")
        return build.source(given)
    missing = [word for word in words if not Path(word).exists()]
    if missing or not words:
        what = f"{missing[0]}: no such file or folder" if missing else "which videos?"
        raise UsageError(f"{what}. Name a folder, a list, video files, or data='{{type: ...}}'")
    path = Path(words[0])
    if len(words) == 1 and path.is_dir():
        return VideoFolder(root=str(path))
    if len(words) == 1 and path.suffix in (".txt", ".csv"):
        return VideoList(root=str(path.parent), list=str(path))
    folders = [word for word in words if Path(word).is_dir()]
    if folders:
        raise UsageError(f"{folders[0]}: one folder, or files, but not both")
    return VideoFiles(words)


@dataclass(frozen=True)
class Plan:
    """All that is to be computed.

    Attributes:
        samples: the videos or their windows, and how they are read.
        windows: of each sample; empty where a sample is a video.
        source: the videos.
        unreadable: what is wrong with videos that cannot be opened.
        size: (frames, height, width) of a clip.
        digest: tells this plan from every other.
        batch_size: samples that go through the network together.
    """

    samples: InOrder
    windows: tuple[Window, ...]
    source: DataSource
    wanted: Wanted
    unreadable: tuple[str, ...]
    size: tuple[int, int, int]
    digest: str
    batch_size: int

    def parts(self) -> list[list[int]]:
        """Numbers of the samples of each file of results; the first is small, to tell the time from."""
        first = self.batch_size
        total, step = len(self.samples.source), _PART_BATCHES * self.batch_size
        return [list(range(min(first, total))), *(
            list(range(start, min(start + step, total))) for start in range(first, total, step)
        )]  # fmt: skip


def make_plan(
    subject: Subject,
    source: DataSource,
    views: ViewSampler,
    wanted: Wanted,
    every: float | None,
    batch_size: int,
) -> Plan:
    """Looks at the videos and decides which rows there will be.

    Raises:
        UsageError: if the network does not take clips of that size, or no video can be opened.
    """
    network = next(iter(subject.networks.values()))
    sizes = {size for slots in views.shapes.values() for size in slots}
    try:
        if network.input_kind == "pixels":
            for size in sizes:
                network.grid(*size)
    except ValueError as error:
        raise UsageError(f"{subject.title} does not take clips of {sizes}: {error}") from error
    windows, problems = list[Window](), list[str]()
    if wanted.per == "video":
        samples = InOrder(source, views)
    else:
        even = even_views(views, wanted.per)
        windows, problems = windows_of(source, even, wanted.per, every)
        samples = InOrder(Windows(source, windows), one_clip(even))
    text = json.dumps(
        [
            subject.weights,
            subject.recipe,
            repr(views),
            repr(wanted),
            list(map(source.key, range(len(source)))),
        ]
        + [[window.video, *window.frames] for window in windows]
    )
    return Plan(
        samples,
        tuple(windows),
        source,
        wanted,
        tuple(problems),
        max(sizes),
        hashlib.sha256(text.encode()).hexdigest(),
        batch_size,
    )


def _run(plan: Plan, subject: Subject, out: Path, world: distributed.World, say: Say) -> int:
    network, spec = next(iter(subject.networks.values())), subject.spec
    device = distributed.take_device(spec.run.device, world.local_rank)
    tokenizer = None
    if network.input_kind == "tokens":
        if spec.tokenizer is None:
            raise UsageError(f"{subject.title} reads ids, and no tokenizer is named that makes them")
        tokenizer = build.tokenizer(spec.tokenizer, say=say).to(device)
    row = _a_row(plan, network, tokenizer)
    cells = row.shape[0] if plan.wanted.per == "frame" else 0
    _say_size(plan, subject, row, out, say)
    folder = out.with_name(f"{out.name}.parts")
    world.from_first(lambda: _begin(folder, plan.digest))
    parts = plan.parts()
    done = _done(folder, len(parts), world)
    if done:
        say(f"Resumed: {len(done)} of {counted(len(parts), 'part')} lie in {folder}")
    network.to(device).eval()
    autocast = speed.use_bfloat16(spec.run.precision, device)
    encode = partial(_encoded, plan, network, tokenizer, device=device, autocast=autocast)
    mine = [number for number in range(len(parts)) if number not in done][world.rank :: world.size]
    started = time.monotonic()
    for place, number in enumerate(mine):
        batches = [
            parts[number][start : start + plan.batch_size]
            for start in range(0, len(parts[number]), plan.batch_size)
        ]
        read = parcels(
            plan.samples,
            batches,
            workers=spec.run.workers,
            batch_bytes=bytes_of_batch(plan.samples.views, plan.batch_size),
            timeout_seconds=900.0,
        )
        _save_part(_part(folder, number), [encode(parcel) for parcel in read])
        if place == 0 and len(mine) > 1:
            left = sum(len(parts[later]) for later in mine[1:]) / len(parts[number])
            say(f"Time: about {format_duration(left * (time.monotonic() - started))}")
    world.barrier()
    world.from_first(lambda: _join(plan, folder, len(parts), cells, out, say))
    return 0


def _a_row(plan: Plan, network: Backbone, tokenizer: Tokenizer | None) -> Tensor:
    """Features of one black clip of the real size; of frames all that the clip gives, [t, D]."""
    clip = torch.zeros(1, 3, *plan.size)
    with torch.no_grad():
        x = clip if tokenizer is None else tokenizer.to("cpu").encode(clip)
        return plan.wanted.of(network.eval(), x)[0]


def _say_size(plan: Plan, subject: Subject, row: Tensor, out: Path, say: Say) -> None:
    rows, shape = len(plan.samples.source), row.shape
    if plan.wanted.per == "frame":
        rows, shape = sum(window.cells(len(row)) for window in plan.windows), row.shape[1:]
    size = rows * math.prod(shape) * (2 if plan.wanted.half else 4)
    kind = "float16" if plan.wanted.half else "float32"
    frames, height, width = plan.size
    say(f"Network: {subject.title}, {type(next(iter(subject.networks.values()))).__name__}")
    say(f"Videos: {len(plan.source)}, in clips of {counted(frames, 'frame')} at {height}x{width}")
    say(f"File: {out}, {rows} x {' x '.join(map(str, shape))} {kind}, {size / 1e6:.3g} MB")


def _begin(folder: Path, digest: str) -> str:
    """Makes the folder of parts; those of another plan are removed."""
    noted = folder / "plan"
    if folder.is_dir() and (not noted.is_file() or noted.read_text() != digest):
        shutil.rmtree(folder)
    make_folder(folder)
    write_text(noted, digest)
    return ""


def _done(folder: Path, num_parts: int, world: distributed.World) -> list[int]:
    """Parts that are there, as rank 0 found them: later another one may have written its first."""

    def look() -> str:
        return json.dumps([number for number in range(num_parts) if _part(folder, number).is_file()])

    found: list[int] = json.loads(world.from_first(look))
    return found


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.safetensors"


@dataclass(frozen=True)
class _Encoded:
    """A batch of rows: features, and the sample and the cell in time that each is of."""

    rows: Tensor
    samples: Tensor
    cells: Tensor
    unreadable: tuple[str, ...]


@torch.no_grad()
def _encoded(
    plan: Plan,
    network: Backbone,
    tokenizer: Tokenizer | None,
    parcel: Parcel,
    *,
    device: torch.device,
    autocast: bool,
) -> _Encoded:
    unreadable = tuple(map(str, parcel.failures))
    numbers = parcel.indices
    if not len(numbers):
        return _Encoded(torch.empty(0), numbers, numbers, unreadable)
    found = []
    for slots in parcel.views.values():
        for slot in slots:
            x = as_clip(slot.to(device))
            x = x if tokenizer is None or slot.dim() == 4 else tokenizer.encode(x)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                found.append(plan.wanted.of(network, x))
    rows = mean_over(found).cpu().to(torch.float16 if plan.wanted.half else torch.float32)
    if plan.wanted.per != "frame":
        return _Encoded(rows, numbers, torch.full_like(numbers, -1), unreadable)
    count = rows.shape[1]
    own = torch.tensor([plan.windows[number].cells(count) for number in numbers.tolist()])
    real = torch.arange(count) < own[:, None]
    places = torch.arange(count).expand(len(numbers), -1)
    return _Encoded(rows[real], numbers.repeat_interleave(own), places[real], unreadable)


def _save_part(path: Path, batches: Sequence[_Encoded]) -> None:
    full = [batch for batch in batches if len(batch.samples)]
    tensors = {
        name: torch.cat([getattr(batch, name) for batch in full]) if full else torch.empty(0)
        for name in ("rows", "samples", "cells")
    }
    unreadable = [line for batch in batches for line in batch.unreadable]
    checkpoint.save_tensors(path, tensors, {"unreadable": json.dumps(unreadable)})


def _join(plan: Plan, folder: Path, num_parts: int, cells: int, out: Path, say: Say) -> str:
    """Puts all parts into the file, and removes them."""
    unreadable, rows, tensors = list(plan.unreadable), list[Row](), list[Tensor]()
    for number in range(num_parts):
        metadata, part = checkpoint.read_tensors(_part(folder, number))
        unreadable += json.loads(metadata["unreadable"])
        if len(part["samples"]):
            rows += [
                _row(plan, sample, None if cell < 0 else cell, cells)
                for sample, cell in zip(part["samples"].tolist(), part["cells"].tolist(), strict=True)
            ]
            tensors.append(part["rows"])
    if not rows:
        raise UsageError(f"none of the videos can be read: {'; '.join(unreadable[:3])}")
    files = written(out, torch.cat(tensors), rows)
    shutil.rmtree(folder)
    for line in unreadable[:20]:
        say(f"left out: {line}")
    videos = len({row.video for row in rows})
    out_of = f"; {len(unreadable)} left out" if unreadable else ""
    of = f"{counted(len(rows), 'row')} of {counted(videos, 'video')}"
    say(f"Features: {', '.join(map(str, files))} ({of}{out_of})")
    return ""


def _row(plan: Plan, sample: int, cell: int | None, cells: int) -> Row:
    video = plan.windows[sample].video if plan.windows else sample
    start, end = plan.windows[sample].span(cell, cells) if plan.windows else (math.nan, math.nan)
    labels = plan.source.labels(video)
    names = {name: plan.source.label_classes[name][number] for name, number in labels.items()}
    return Row(plan.source.key(video), start, end, names)
