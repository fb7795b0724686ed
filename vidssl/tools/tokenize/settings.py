"""Which videos of a recipe ``vidssl tokenize`` stores, and the paper's settings for it."""

from dataclasses import dataclass
from typing import Literal

from vidssl.build import build
from vidssl.config.recipe import Recipe
from vidssl.config.schema import PartSpec
from vidssl.data.sources.token_store import CROPS, Crop
from vidssl.data.views.stored import StoredUniformClips
from vidssl.data.views.uniform import UniformClips

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
    crops: tuple[Crop, ...] = ("middle",)
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
        return StoreSettings(16.0, CROPS, (1.0, 1.25), (False, True))
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


def videos_and_views(recipe: Recipe, videos: VideoSection) -> tuple[PartSpec, PartSpec]:
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
