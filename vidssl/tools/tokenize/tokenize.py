"""Videos into ids, once (``vidssl tokenize``): which of a recipe's, and with which settings."""

import hashlib
import math
import os
import random
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from vidssl.build import build, checks, registry
from vidssl.config import schema, strict_yaml
from vidssl.config.recipe import Recipe
from vidssl.data.sources import token_store
from vidssl.data.views.stored import StoredUniformClips
from vidssl.data.views.uniform import UniformClips
from vidssl.engine.logging import Say, format_duration, print_line, shown_messages, terminal
from vidssl.engine.speed import pick_device
from vidssl.errors import UsageError, counted
from vidssl.interfaces import DataSource, Tokenizer, UnreadableSample
from vidssl.tools.data.check import format_size
from vidssl.tools.tokenize.video_tokenizer import VideoTokenizer

Purpose = Literal["pretraining", "finetuning", "testing"]
VideoSection = Literal["data.video.source", "data.video.test_source", "data.probe.train", "data.probe.test"]


@dataclass(frozen=True)
class StoreSettings:
    """Frames and transforms that are stored of each video.

    Attributes:
        fps: that videos are thinned out to; None keeps their own.
        crops: places of the square.
        resize: short sides, as multiples of the size of the views of these videos.
        flips: not mirrored, mirrored, or both.
    """

    fps: float | None
    crops: tuple[token_store.Crop, ...] = ("middle",)
    resize: tuple[float, ...] = (1.0,)
    flips: tuple[bool, ...] = (False,)


def purpose_settings(recipe: Recipe, purpose: Purpose) -> StoreSettings:
    """Settings of a purpose.

    For pretraining these are VIMPAC's 2 fps and the middle (App. C.1). For finetuning they are the twelve
    transforms of App. C and Table 4, at the 16 fps that the published code thins out further. For testing
    they are what the recipe's test views want.

    Raises:
        UsageError: if the recipe has no test views, or ids cannot be stored for them.
    """
    if purpose == "pretraining":
        return StoreSettings(2.0)
    if purpose == "finetuning":
        return StoreSettings(16.0, token_store.CROPS, (1.0, 1.25), (False, True))
    if recipe.data.probe is None:
        raise recipe.data.node.error("has no 'probe', for whose test views ids would be stored")
    part = recipe.data.probe.views
    views = build.views(part)
    if not isinstance(views, UniformClips | StoredUniformClips):
        raise part.node.error(
            f"test views of stored ids are those of uniform_clips, and these are '{part.type}' (with --for "
            "pretraining, --fps and --crops other ids can be stored)"
        )
    return StoreSettings(views.fps, ("top", "middle", "far") if views.num_crops == 3 else ("middle",))


def videos_and_views(recipe: Recipe, videos: VideoSection) -> tuple[schema.PartSpec, schema.PartSpec]:
    """The sections of a recipe that name its videos, and how they are seen.

    Raises:
        UsageError: if it has none.
    """
    if videos.startswith("data.probe"):
        probe = recipe.data.probe
        if probe is None:
            raise recipe.data.node.error(f"has no 'probe': there is no {videos} to tokenize")
        return (probe.train if videos == "data.probe.train" else probe.test), probe.views
    stream = recipe.data.streams.get("video")
    if stream is None:
        raise recipe.data.node.error("has no 'video' stream to tokenize")
    source = stream.source if videos == "data.video.source" else stream.test_source
    if source is None:
        raise stream.node.error(f"there is no {videos} to tokenize")
    return source, stream.views


_LOOKED_AT, _TRIED = 16, 3  # videos that an estimate opens at least, and tokenizes
_LOOK_SECONDS = 5.0  # for opening more
# a GPU may round otherwise for other batches; on a CPU ids are the same whatever stands beside them
_MAY_DIFFER = {"cpu": 0.0, "cuda": 0.001}


def tokenize(
    recipe: Recipe,
    out: Path,
    *,
    videos: VideoSection = "data.video.source",
    purpose: Purpose | None = None,
    fps: float | Literal["own"] | None = None,
    resize: tuple[float, ...] | None = None,
    crops: tuple[token_store.Crop, ...] | None = None,
    flip: Literal["no", "both"] | None = None,
    spot_checks: int = 3,
    videos_per_shard: int = 128,
    retry_unreadable: bool = False,
    console: Console | None = None,
) -> int:
    """Fill a store with the ids of the videos of a recipe; resumes where an earlier call was ended.

    Several processes share the shards by the variables RANK and WORLD_SIZE, which torchrun sets; they
    need not communicate.

    Args:
        out: the store's folder.
        videos: which of the recipe's.
        purpose: whose settings hold where none are given (``purpose_settings``); default: testing for the
            videos of ``data.probe``, else pretraining.
        fps: that videos are thinned out to, above 0; "own" keeps their own.
        resize: short sides, as multiples of the size of the views of these videos, at least 1.
        crops: places of the square.
        flip: whether mirrored squares are stored too.
        spot_checks: videos that are tokenized again afterwards and compared.
        videos_per_shard: a process that is killed loses at most as many.
        retry_unreadable: make shards anew in which a video could not be read.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for what a user can mend; finished shards stay.
    """
    console = console or terminal()
    say: Say = partial(print_line, console)
    build.check(recipe)
    usual = purpose_settings(recipe, purpose or ("testing" if "probe" in videos else "pretraining"))
    settings = StoreSettings(
        fps=usual.fps if fps is None else None if fps == "own" else fps,
        resize=resize or usual.resize,
        crops=tuple(crop for crop in token_store.PLACES if crop in crops) if crops else usual.crops,
        flips=usual.flips if flip is None else (False, True) if flip == "both" else (False,),
    )
    with shown_messages(console):
        device = pick_device(recipe.run.device)
        if device.type == "cuda" and "LOCAL_RANK" in os.environ:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        part, views = videos_and_views(recipe, videos)
        source = build.source(part)
        tokenizer, info = _described(recipe, part, views, source, settings, videos_per_shard, say)
        _begin(out, info)
        maker = VideoTokenizer(tokenizer.to(device), source, info, device=device, workers=recipe.run.workers)
        if retry_unreadable:
            _forget_unreadable(out, info)
        _fill(maker, out, recipe.data.max_unreadable_share, say)
        checked = _spot_check(maker, out, spot_checks)
    say(f"Tokenized again: {counted(checked, 'video')}, with the same ids as stored.")
    _conclude(out, info, videos, recipe.data.max_unreadable_share, say)
    return 0


def _described(
    recipe: Recipe,
    part: schema.PartSpec,
    views: schema.PartSpec,
    source: DataSource,
    settings: StoreSettings,
    videos_per_shard: int,
    say: Say,
) -> tuple[Tokenizer, token_store.StoreInfo]:
    """The tokenizer, and what the store will hold."""
    if recipe.tokenizer is None or recipe.tokenizer.weights is None:
        raise recipe.node.error("tokenize needs a 'tokenizer' section with trained weights")
    if isinstance(source, token_store.TokenStore):
        raise part.node.error("holds ids already: name the videos that they are to be made of")
    size = _size(views)
    tokenizer = build.tokenizer(recipe.tokenizer, say=say)
    _, *grid = tokenizer.grid(1, size, size)
    if tokenizer.strides[0] != 1:
        raise recipe.tokenizer.node.error(
            f"an id stands for {counted(tokenizer.strides[0], 'frame')}, and a store keeps ids of single "
            "frames"
        )
    if tokenizer.vocab_size > token_store.HIGHEST_ID:
        raise recipe.tokenizer.node.error(f"ids of {tokenizer.vocab_size} codes do not fit into 16 bits")
    keys = checks.tokenizer_keys(recipe.tokenizer)
    names = "\n".join(_key(source, index) for index in range(len(source)))
    return tokenizer, token_store.StoreInfo(
        tokenizer=checks.keys_hash(keys),
        tokenizer_keys=keys,
        vocab_size=tokenizer.vocab_size,
        size=size,
        grid=(grid[0], grid[1]),
        fps=settings.fps,
        transforms=token_store.transforms_of(size, settings.resize, settings.crops, settings.flips),
        source=registry.resolved_part(part, registry.SOURCE),
        videos=hashlib.sha256(names.encode()).hexdigest(),
        num_videos=len(source),
        videos_per_shard=videos_per_shard,
        label_classes=source.label_classes,
    )


def _size(views: schema.PartSpec) -> int:
    shapes = {shape for slots in build.views(views).shapes.values() for shape in slots}
    sides = {side for _, *rows_and_columns in shapes for side in rows_and_columns}
    if len(sides) != 1:
        raise views.node.error(f"views of one size are stored, and these have {sorted(sides)} pixels")
    return sides.pop()


def _key(source: DataSource, index: int) -> str:
    try:
        return source.key(index)
    except UnreadableSample as error:
        return error.key


def _begin(folder: Path, info: token_store.StoreInfo) -> None:
    """Every process writes the same, or finds the same there."""
    if not (folder / "store.json").exists():
        token_store.write_info(folder, info)
        return
    changed = token_store.read_info(folder).changed(info)
    if changed:
        raise UsageError(
            f"{folder}: a store with another {', '.join(changed)} was begun there: give the settings that it "
            "was begun with, or another --out"
        )


def _fill(maker: VideoTokenizer, folder: Path, max_unreadable: float, say: Say) -> None:
    """This process's shards that are not there yet."""
    info, (rank, world) = maker.info, _rank_and_world()
    done = {shard: token_store.read_shard(folder, info, shard) for shard in _own_shards(info)}
    todo = [shard for shard, videos in done.items() if videos is None]
    failed = [video for videos in done.values() for video in videos or () if video.reason]
    who = f"process {rank} of {world}: " if world > 1 else ""
    if not todo:
        say(f"{who}nothing is left to do: {counted(len(done), 'shard')} done.")
        return
    if len(todo) < len(done):
        say(f"{who}resumes: {counted(len(done) - len(todo), 'shard', of=len(done), verb='are')} there.")
    _estimate(maker, todo, folder, who, say)

    def note(video: token_store.StoredVideo) -> None:
        failed.append(video)
        say(f"unreadable, left out: {video.key}: {video.reason}")
        _check_unreadable(failed, info, max_unreadable)

    started = time.monotonic()
    # closing ends the workers at once, whatever is raised
    with closing(maker.videos([index for shard in todo for index in info.videos_of(shard)])) as found:
        for number, shard in enumerate(todo, 1):
            with token_store.ShardWriter(folder, info, shard) as writer:
                for video, ids in islice(found, len(info.videos_of(shard))):
                    if video.reason:
                        note(video)
                    writer.add(video, ids)
                writer.finish()
            left = (time.monotonic() - started) / number * (len(todo) - number)
            say(f"{who}shard {number}/{len(todo)}  {format_duration(left)} left")


def _rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _own_shards(info: token_store.StoreInfo) -> range:
    """The shards of this process."""
    rank, world = _rank_and_world()
    return range(rank, info.num_shards, world)


def _forget_unreadable(folder: Path, info: token_store.StoreInfo) -> None:
    for shard in _own_shards(info):
        if any(video.reason for video in token_store.read_shard(folder, info, shard) or ()):
            token_store.index_path(folder, shard).unlink(missing_ok=True)


def _check_unreadable(
    failed: Sequence[token_store.StoredVideo], info: token_store.StoreInfo, max_unreadable: float
) -> None:
    allowed = int(max_unreadable * info.num_videos)
    if len(failed) > allowed:
        listed = "".join(f"\n  {video.key}: {video.reason}" for video in failed[:20])
        raise UsageError(
            f"{counted(len(failed), 'video', of=info.num_videos)} cannot be read, and "
            f"data.max_unreadable_share ({max_unreadable:g}) allows {allowed}. Raise that fraction, or mend "
            f"them and give --retry-unreadable. Finished shards are kept.{listed}"
        )


def _estimate(maker: VideoTokenizer, todo: Sequence[int], folder: Path, who: str, say: Say) -> None:
    """Prints how large the shards will be and how long they will take, measured on some of their videos."""
    info = maker.info
    indices = [index for shard in todo for index in info.videos_of(shard)]
    counts: dict[int, int] = {}
    until = time.monotonic() + _LOOK_SECONDS
    # drawn at random, as lists are often sorted by class or source; each is opened once, for the store too
    for index in random.Random(0).sample(indices, len(indices)):
        if len(counts) >= _LOOKED_AT and time.monotonic() > until:
            break
        counts[index] = maker.plan(index).num_frames
    frames, spread = predicted_frames(list(counts.values()), len(indices))
    shown = f"{frames:.0f} frames"
    if len(counts) < len(indices):
        shown = f"about {shown} (give or take {spread:.0f}, by {len(counts)} of them)"
    size = info.ids_of(1) * frames * token_store.DTYPE.itemsize
    free = shutil.disk_usage(folder).free
    say(
        f"{who}{counted(len(indices), 'video')}, {shown}, "
        f"{counted(len(info.transforms), 'transform')} "
        f"({', '.join(map(str, info.transforms))}): {format_size(size)}; {format_size(free)} are free"
        + (". THAT IS TOO LITTLE." if free < size else ".")
    )
    tried = [index for index in counts if counts[index]][:_TRIED]
    if tried:
        list(maker.alone().videos(tried[:1]))  # the first costs more than others
        started = time.monotonic()
        list(maker.alone().videos(tried))
        seconds = (time.monotonic() - started) / sum(counts[index] for index in tried)
        say(
            f"{who}about {format_duration(seconds * frames)} at {1 / seconds:.0f} frames a second, measured "
            f"on {counted(len(tried), 'video')} decoded in this process; run.workers decode ahead of it."
        )


def predicted_frames(counts: Sequence[int], num_videos: int) -> tuple[float, float]:
    """Frames of all videos by those of some, and two standard errors of that.

    Args:
        counts: frames of videos drawn at random, at least one.
        num_videos: of all.
    """
    total = statistics.fmean(counts) * num_videos
    if len(counts) < 2:
        return total, total
    error = statistics.stdev(counts) / math.sqrt(len(counts)) * math.sqrt(1 - len(counts) / num_videos)
    return total, 2 * error * num_videos


def _spot_check(maker: VideoTokenizer, folder: Path, count: int) -> int:
    """Tokenizes some stored videos of this process again.

    Raises:
        UsageError: if their ids are not those that are stored.
    """
    info = maker.info
    shards = list(_own_shards(info))
    draw = random.Random(_rank_and_world()[0])
    chosen = [draw.choice(list(info.videos_of(shard))) for shard in draw.sample(shards, min(len(shards), 99))]
    return sum(_same(maker, folder, index) for index in chosen[:count])


def _same(maker: VideoTokenizer, folder: Path, index: int) -> bool:
    """Whether a video could be compared; one that is unreadable cannot."""
    info, shard = maker.info, index // maker.info.videos_per_shard
    videos = token_store.read_shard(folder, info, shard)
    assert videos is not None, "this process has just filled its shards"
    stored = videos[index - info.videos_of(shard).start]
    if stored.reason:
        return False
    ids = token_store.read_ids(folder, info, shard, stored)
    ((_, again),) = maker.alone().videos([index])
    differ = 1.0 if again.shape != ids.shape else float((again != ids).mean())
    if differ > _MAY_DIFFER[maker.device.type]:
        raise UsageError(
            f"{stored.key}: tokenized again, {differ:.2%} of its ids differ from the stored ones: the video, "
            "the software or the disk is no longer what it was. Remove "
            f"{token_store.index_path(folder, shard)} to make that shard anew"
        )
    return True


def _conclude(
    folder: Path, info: token_store.StoreInfo, which: VideoSection, max_unreadable: float, say: Say
) -> None:
    shards = [token_store.read_shard(folder, info, shard) for shard in range(info.num_shards)]
    unfinished = sum(videos is None for videos in shards)
    if unfinished:
        say(
            f"{folder}: {counted(unfinished, 'shard', of=info.num_shards, verb='are')} "
            f"left to other processes."
        )
        return
    failed = [video for videos in shards for video in videos or () if video.reason]
    _check_unreadable(failed, info, max_unreadable)
    size = sum(info.ids_of(video.num_frames) for videos in shards for video in videos or ())
    views = {
        "data.probe": "data.probe.views.type=stored_uniform_clips",
        "data.video": "data.video.views.type=stored_clip_pair or stored_clip",
    }
    say(
        f"{folder}: {info.num_videos - len(failed)} of {counted(info.num_videos, 'video')}, "
        f"{format_size(size * token_store.DTYPE.itemsize)}. To read it, set {which}="
        f"'{strict_yaml.dump_flow({'type': 'token_store', 'root': str(folder)})}' and {views[which[:10]]}."
    )
