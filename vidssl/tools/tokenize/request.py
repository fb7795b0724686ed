"""What ``vidssl tokenize`` is asked for, and the paper's settings for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.config.schema import PartSpec
from vidssl.data.sources.tokens.store import CROPS, PLACES, Crop
from vidssl.data.views.stored import StoredUniformClips
from vidssl.data.views.uniform import UniformClips
from vidssl.errors import UsageError

Purpose = Literal["pretraining", "finetuning", "testing"]
Videos = Literal["data.video.source", "data.video.test_source", "data.probe.train", "data.probe.test"]
VIDEOS: tuple[Videos, ...] = get_args(Videos)


@dataclass(frozen=True)
class TokenizeRequest:
    """What a store is to hold, and how it is made.

    Attributes:
        out: the store's folder.
        videos: which of a recipe's.
        fps: that videos are thinned out to; None keeps their own.
        resize: short sides, as multiples of the size of the views of these videos.
        crops: places of the square.
        flips: not mirrored, mirrored, or both.
        spot_checks: videos that are tokenized again afterwards and compared.
        videos_per_shard: a process that is killed loses at most as many.
        retry_unreadable: make shards anew in which a video could not be read.
    """

    out: Path
    videos: Videos = "data.video.source"
    fps: float | None = 2.0
    resize: tuple[float, ...] = (1.0,)
    crops: tuple[Crop, ...] = ("middle",)
    flips: tuple[bool, ...] = (False,)
    spot_checks: int = 3
    videos_per_shard: int = 128
    retry_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.fps is not None and self.fps <= 0:
            raise UsageError(f"--fps must be above 0, got {self.fps:g}")
        if min(self.resize) < 1:
            raise UsageError(f"--resize must list numbers of at least 1, got {self.resize}")
        if self.spot_checks < 0 or self.videos_per_shard < 1:
            raise UsageError("--spot-checks must be at least 0, --videos-per-shard at least 1")


def read_request(
    recipe: Recipe,
    *,
    out: str,
    videos: Videos,
    purpose: Purpose | None,
    fps: str | None,
    resize: str | None,
    crops: str | None,
    flip: Literal["no", "both"] | None,
    spot_checks: int,
    videos_per_shard: int,
    retry_unreadable: bool,
) -> TokenizeRequest:
    """The request of a command line; where it says nothing, the settings of a purpose.

    For pretraining these are VIMPAC's 2 fps and the middle (App. C.1). For finetuning they are the twelve
    transforms of App. C and Table 4, at the 16 fps that the published code thins out further. For testing,
    the purpose of ``data.probe``, they are what the recipe's test views want.

    Raises:
        UsageError: for a value that is no number, a place that there is not, or videos that it has not.
    """
    purpose = purpose or ("testing" if videos.startswith("data.probe") else "pretraining")
    usual = _usual(recipe, purpose)
    places = crops.split(",") if crops else list(usual.crops)
    chosen = tuple(crop for crop in PLACES if crop in places)
    if set(places) - set(chosen):
        raise UsageError(f"--crops must be among {','.join(PLACES)}, got {crops}")
    return TokenizeRequest(
        out=Path(out),
        videos=videos,
        fps=None if fps == "own" else _number("--fps", fps) if fps else usual.fps,
        resize=tuple(_number("--resize", text) for text in resize.split(",")) if resize else usual.resize,
        crops=chosen,
        flips=usual.flips if flip is None else (False, True) if flip == "both" else (False,),
        spot_checks=spot_checks,
        videos_per_shard=videos_per_shard,
        retry_unreadable=retry_unreadable,
    )


@dataclass(frozen=True)
class _Usual:
    fps: float | None
    crops: tuple[Crop, ...] = ("middle",)
    resize: tuple[float, ...] = (1.0,)
    flips: tuple[bool, ...] = (False,)


def _usual(recipe: Recipe, purpose: Purpose) -> _Usual:
    if purpose == "pretraining":
        return _Usual(2.0)
    if purpose == "finetuning":
        return _Usual(16.0, CROPS, (1.0, 1.25), (False, True))
    if recipe.data.probe is None:
        raise recipe.data.node.error("has no 'probe', for whose test views ids would be stored")
    part = recipe.data.probe.views
    views = build.views(part)
    if not isinstance(views, UniformClips | StoredUniformClips):
        raise part.node.error(
            f"test views of stored ids are those of uniform_clips, and these are '{part.type}' (with --for "
            "pretraining, --fps and --crops other ids can be stored)"
        )
    return _Usual(views.fps, ("top", "middle", "far") if views.num_crops == 3 else ("middle",))


def videos_and_views(recipe: Recipe, videos: Videos) -> tuple[PartSpec, PartSpec]:
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


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: '{text}' is no number") from None
