"""Parsers whose options are keywords of what they run, operands, numbers and examples, for all commands."""

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from vidssl.errors import UsageError

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "train": ("train bevt", "train recipes/svt.yaml optim.lr=1e-3 name=svt-slow"),
    "bench": ("bench bevt", "bench recipes/svt.yaml run.workers=8 --seconds 60"),
    "selftest": ("selftest resume bevt", "selftest gpu --out a100.json"),
    "replay": ("replay runs/bevt/captures/STEP", "replay runs/bevt/captures/STEP --precision run"),
    "eval": (
        "eval runs/bevt --protocol linear --protocol knn",
        "eval timm:resnet50 weights=pretrained data=bevt --protocol linear",
    ),
    "compare": ("compare runs/bevt runs/svt", "compare runs/bevt runs/svt --markdown"),
    "grid": ("grid recipes/grids/targets.yaml", "grid digits/bevt_masks --tables"),
    "report": ("report runs/bevt runs/svt", "report runs/bevt -o bevt.html --no-pictures"),
    "runs": ("runs", "runs runs/grids --csv"),
    "features": (
        "features runs/bevt videos -o features.npz",
        "features runs/bevt videos --per window --every 1 -o windows.parquet",
    ),
    "predict": ("predict runs/bevt/finetune/NAME videos", "predict runs/bevt clip.mp4 --json --top 3"),
    "export": ("export runs/bevt --to onnx", "export runs/videomae --to timm --clip 16,224,224"),
    "push": ("push runs/bevt published --licence apache-2.0", "push runs/bevt hf:me/bevt --private"),
    "mteb": (
        "mteb runs/bevt --tasks 'MVEB(video, v1)'",
        "mteb hf:me/bevt --tasks HMDB51Classification UCF101VideoClassification",
    ),
    "show": ("show runs/svt --what attention", "show runs/bevt --what reconstruction --video clip.mp4"),
    "watch": ("watch runs/bevt", "watch runs/bevt runs/svt --metric 'rankme*' --once"),
    "tokenize": ("tokenize vimpac --out tokens/mine", "tokenize vimpac --out tokens/mine --for finetuning"),
    "convert": ("convert encoder.pkl dalle.safetensors", "convert encoder.pkl decoder.pkl dalle.safetensors"),
    "init": (
        "init my.yaml --videos mine.train.csv",
        "init my.yaml --videos mine.train.csv --objective svt,bevt,videomae",
    ),
    "data list": (
        "data list videos",
        "data list videos --annotations segments.csv --unit frames --out mine.csv",
    ),
    "data split": ("data split mine.csv", "data split mine.csv --folds 5 --seed 1"),
    "data check": ("data check videos", "data check list.csv --root videos --test-list test.csv"),
    "data prepare": (
        "data prepare videos --out small",
        "data prepare videos --out small --jpeg-shards --quality 95",
    ),
    "data shard": ("data shard videos --out shards", "data shard images --out s3://bucket/shards --images"),
    "data index": ("data index shards", "data index s3://bucket/shards --out index.jsonl"),
    "check": ("check", "check recipes/bevt.yaml evaluation/linear.yaml"),
    "list": ("list backbones", "list protocols recipes runs"),
}


def epilog(prog: str) -> str:
    """The examples of a command as help shows them; ``prog`` is its name behind ``vidssl``."""
    name = prog.removeprefix("vidssl ")
    return "\n".join(["examples:", *(f"  vidssl {line}" for line in EXAMPLES.get(name, ()))])


BAD_INPUT = 2
Commands = argparse._SubParsersAction  # of argparse's, which has no public name for it
RECIPE = "RECIPE [KEY=VALUE ...]"
_OVERRIDE = re.compile(r"[^/=]*=")  # what has a slash before its equals sign is a path


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')} (see '{self.prog} --help')")


class _Help(argparse.HelpFormatter):
    """Folds everything but the examples, whose lines stand as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def add(
    commands: "Commands[Parser]", name: str, run: Callable[..., int], describe: str, operands: tuple[str, str]
) -> Parser:
    """A command's parser. Options that are left out are not passed on: the defaults of what is run hold.

    Args:
        run: gets the operands, and each option as a keyword.
        operands: as help shows them, and what they are.
    """
    parser = commands.add_parser(
        name,
        help=describe,
        description=f"{describe[0].upper()}{describe[1:]}.",
        argument_default=argparse.SUPPRESS,
        formatter_class=_Help,
    )
    parser.epilog = epilog(parser.prog)
    parser.set_defaults(run=run)
    parser.add_argument("operands", nargs="*", default=[], metavar=operands[0], help=operands[1])
    return parser


def add_trust(parser: Parser) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run code and open addresses that the recipe inside a run or checkpoint names, though it is not "
        "one that you trained here",
    )


def split(operands: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and overrides (``key=value``)."""
    overrides = [word for word in operands if _OVERRIDE.match(word)]
    return [word for word in operands if word not in overrides], overrides


def only(names: Sequence[str], takes: str, hint: str) -> str:
    """The one name that a command takes.

    Raises:
        UsageError: if there are none or several.
    """
    if len(names) != 1:
        raise UsageError(f"{takes}, got {' '.join(names) or 'none'} ({hint})")
    return names[0]


def number(text: str, kind: type[int] | type[float], valid: Callable[[float], bool], words: str) -> Any:
    """Reads the number of an option."""
    with suppress(ValueError):
        if valid(kind(text)):
            return kind(text)
    raise argparse.ArgumentTypeError(f"expected {words}, got {text}")


def at_least(lowest: int) -> Callable[[str], int]:
    """Reads whole numbers."""
    return lambda text: number(text, int, lambda n: n >= lowest, f"a whole number of at least {lowest}")


def positive(text: str) -> float:
    """Reads a number above 0."""
    return number(text, float, lambda x: 0 < x < math.inf, "a finite number above 0")


def taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Options of these names, which ``options`` then lacks."""
    return {name: options.pop(name) for name in names if name in options}
