"""What ``vidssl tokenize`` is asked for, and the paper's settings for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vidssl.engine.token_store import CROPS, Crop
from vidssl.errors import UsageError

Purpose = Literal["pretraining", "finetuning"]


@dataclass(frozen=True)
class TokenizeRequest:
    """What a store is to hold, and how it is made.

    Attributes:
        out: the store's folder.
        fps: that videos are thinned out to; None keeps their own.
        resize: short sides, as multiples of the size of the recipe's views.
        crops: places of the square.
        flips: not mirrored, mirrored, or both.
        spot_checks: videos that are tokenized again afterwards and compared.
        videos_per_shard: a process that is killed loses at most as many.
        retry_unreadable: make shards anew in which a video could not be read.
    """

    out: Path
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
    *,
    out: str,
    purpose: Purpose,
    fps: str | None,
    resize: str | None,
    crops: str | None,
    flip: Literal["no", "both"] | None,
    spot_checks: int,
    videos_per_shard: int,
    retry_unreadable: bool,
) -> TokenizeRequest:
    """The request of a command line, VIMPAC's settings where it says nothing.

    For pretraining these are 2 fps and the middle (App. C.1). For finetuning they are the twelve transforms
    of App. C and Table 4, at the 16 fps that the published code thins out further.

    Raises:
        UsageError: for a value that is no number, or a place that there is not.
    """
    tuning = purpose == "finetuning"
    places = crops.split(",") if crops else list(CROPS) if tuning else ["middle"]
    chosen = tuple(crop for crop in CROPS if crop in places)
    if set(places) - set(chosen):
        raise UsageError(f"--crops must be among {','.join(CROPS)}, got {crops}")
    default = "1,1.25" if tuning else "1"
    sides = tuple(_number("--resize", text) for text in (resize or default).split(","))
    both = tuning if flip is None else flip == "both"
    return TokenizeRequest(
        out=Path(out),
        fps=None if fps == "own" else _number("--fps", fps) if fps else 16.0 if tuning else 2.0,
        resize=sides,
        crops=chosen,
        flips=(False, True) if both else (False,),
        spot_checks=spot_checks,
        videos_per_shard=videos_per_shard,
        retry_unreadable=retry_unreadable,
    )


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option}: '{text}' is no number") from None
