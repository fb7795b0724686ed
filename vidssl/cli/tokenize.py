"""Commands on tokenizers: tokenize and convert."""

import argparse
import math
from pathlib import Path
from typing import Any, Literal

from vidssl.cli.operands import RECIPE, Commands, Parser, add, at_least, number, only, positive, split

_PLACES = ("top", "middle", "bottom", "far")


def add_tokenize(commands: "Commands[Parser]") -> None:
    tokenize = add(
        commands,
        "tokenize",
        _tokenize,
        "turn a recipe's videos into ids, once",
        (RECIPE, "whose videos and tokenizer, overrides"),
    )
    tokenize.add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="the store; one that was begun is resumed"
    )
    tokenize.add_argument(
        "--videos",
        choices=("data.video.source", "data.video.test_source", "data.probe.train", "data.probe.test"),
        help="which of the recipe's; default: data.video.source",
    )
    tokenize.add_argument(
        "--for",
        dest="purpose",
        choices=("pretraining", "finetuning", "testing"),
        help="VIMPAC's settings: 2 fps, middle, not mirrored; or 16 fps under twelve transforms; or what the "
        "views of data.probe want, which is the default for its videos",
    )
    tokenize.add_argument(
        "--fps", type=_fps, metavar="FPS", help="of the stored frames; 'own' keeps the videos' own"
    )
    tokenize.add_argument(
        "--resize", type=_resize, metavar="LIST", help="short sides over the views' size, such as 1,1.25"
    )
    tokenize.add_argument(
        "--crops", type=_crops, metavar="LIST", help=f"places of the square, of {','.join(_PLACES)}"
    )
    tokenize.add_argument("--flip", choices=("no", "both"), help="whether mirrored squares are stored too")
    tokenize.add_argument(
        "--spot-checks", type=at_least(0), metavar="N", help="videos to compare afterwards; default: 3"
    )
    tokenize.add_argument(
        "--videos-per-shard", type=at_least(1), metavar="N", help="lost by a kill at most; default: 128"
    )
    tokenize.add_argument(
        "--retry-unreadable", action="store_true", help="make shards anew that lack a video"
    )
    add(
        commands,
        "convert",
        _convert,
        "make safetensors of the published dVAE without executing its pickles",
        ("ENCODER [DECODER] OUT.safetensors", "files to read, file to write"),
    )


def _fps(text: str) -> float | Literal["own"]:
    return "own" if text == "own" else positive(text)


def _resize(text: str) -> tuple[float, ...]:
    words = "numbers of at least 1, such as 1,1.25"
    return tuple(number(side, float, lambda x: 1 <= x < math.inf, words) for side in text.split(","))


def _crops(text: str) -> tuple[str, ...]:
    if set(text.split(",")) - set(_PLACES):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(_PLACES)}, got {text}")
    return tuple(text.split(","))


def _tokenize(words: list[str], *, out: Path, **options: Any) -> int:
    names, overrides = split(words)
    name = only(names, "tokenize takes one recipe", "vidssl tokenize my.yaml --out tokens/mine")
    from vidssl.config.recipe import load_recipe
    from vidssl.tools.tokenize.tokenize import tokenize

    return tokenize(load_recipe(name, overrides), out, **options)


def _convert(words: list[str]) -> int:
    from vidssl.tools.convert import convert_files

    return convert_files(words)
