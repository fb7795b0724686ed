"""The commands of ``vidssl``. torch is imported by the command that needs it, so that help is quick."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from vidssl import __version__
from vidssl.errors import UsageError

BAD_INPUT, INTERRUPTED = 2, 130
_OVERRIDE = re.compile(r"[^/=]*=")  # what has a slash before its equals sign is a path
LISTED = (
    "objectives",
    "backbones",
    "tokenizers",
    "maskers",
    "evaluators",
    "sources",
    "views",
    "augments",
    "optimizers",
    "schedules",
)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        return int(arguments.command(arguments))
    except UsageError as error:
        print(f"vidssl: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="vidssl", description="Self-supervised video learning from interchangeable parts.")
    parser.add_argument("--version", action="version", version=f"vidssl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train what a recipe describes")
    train.set_defaults(command=_train)
    train.add_argument(
        "operands", nargs="*", metavar="RECIPE [KEY=VALUE ...]", help="file or name, overrides"
    )
    train.add_argument(
        "--resume", metavar="RUN", help="go on with a run at the very step of its newest checkpoint"
    )

    evaluate = commands.add_parser("eval", help="score a trained network under evaluation protocols")
    evaluate.set_defaults(command=_eval)
    evaluate.add_argument(
        "operands",
        nargs="*",
        metavar="[RUN_OR_CHECKPOINT] [KEY=VALUE ...]",
        help="run folder or checkpoint, the newest run if none is named; overrides of the protocols. With "
        "--protocol tokenizer: tokenizers, as many as you like, all that have weights if none is named",
    )
    evaluate.add_argument(
        "--protocol",
        action="append",
        required=True,
        metavar="NAME",
        help="file or name in evaluation/; may be repeated",
    )

    compare = commands.add_parser("compare", help="show scores of several runs side by side")
    compare.set_defaults(command=_compare)
    compare.add_argument("operands", nargs="*", metavar="RUN_OR_SCORES", help="run folders, files of scores")
    output = compare.add_mutually_exclusive_group()
    output.add_argument("--markdown", action="store_true", help="tables for a page")
    output.add_argument("--csv", action="store_true", help="a line for every number")

    check = commands.add_parser("check", help="validate recipes; needs no data, weights or GPU")
    check.set_defaults(command=_check)
    check.add_argument(
        "operands", nargs="*", metavar="RECIPE", help="recipes, protocols, tokenizers; default: all"
    )

    convert = commands.add_parser(
        "convert", help="make safetensors of the published dVAE without executing its pickles"
    )
    convert.set_defaults(command=_convert)
    convert.add_argument(
        "operands",
        nargs="*",
        metavar="ENCODER [DECODER] OUT.safetensors",
        help="files to read, file to write",
    )

    selftest = commands.add_parser("selftest", help="try a promise of the package on your recipe and machine")
    selftest.set_defaults(command=_selftest)
    selftest.add_argument("operands", nargs="*", metavar="resume RECIPE [KEY=VALUE ...]", help="on which")
    selftest.add_argument("--steps", type=int, default=5, help="of each half of the run; default: 5")

    _add_tokenize(commands.add_parser("tokenize", help="turn a recipe's videos into ids, once"))
    _add_show(commands.add_parser("show", help="draw what a run learned, or what a tokenizer keeps"))

    listing = commands.add_parser("list", help="show components and their keys")
    listing.set_defaults(command=_list)
    listing.add_argument(
        "operands", nargs="*", metavar="KIND", help=f"one of {', '.join(LISTED)}; default: all"
    )

    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        from vidssl.spec import nearest

        raise UsageError(f"no command '{argv[0]}'. {nearest(argv[0], commands.choices, 'There are')}")
    # options and operands may come in any order, which argparse cannot do below a command by itself
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    arguments.operands = [*arguments.operands, *rest]
    return arguments


def _add_show(show: argparse.ArgumentParser) -> None:
    show.set_defaults(command=_show)
    show.add_argument(
        "operands",
        nargs="*",
        metavar="[RUN_OR_CHECKPOINT_OR_TOKENIZER] [data={...}] [views={...}]",
        help="what to draw, the newest run if nothing is named; videos and views other than its recipe's",
    )
    show.add_argument(
        "--what",
        choices=("attention", "reconstruction"),
        required=True,
        help="where the class token looks; or hidden parts as they were predicted",
    )
    show.add_argument("--videos", type=int, metavar="N", help="how many videos; default 4, or 8 images")
    show.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="show this video; may be repeated"
    )
    show.add_argument("--out", metavar="FOLDER", help="where pictures go; default: pictures/ in the run")


def _add_tokenize(tokenize: argparse.ArgumentParser) -> None:
    tokenize.set_defaults(command=_tokenize)
    tokenize.add_argument(
        "operands", nargs="*", metavar="RECIPE [KEY=VALUE ...]", help="whose videos and tokenizer, overrides"
    )
    tokenize.add_argument("--out", metavar="FOLDER", required=True, help="the store; what is there goes on")
    tokenize.add_argument(
        "--for",
        dest="purpose",
        choices=("pretraining", "finetuning"),
        default="pretraining",
        help="VIMPAC's settings: 2 fps, middle, not mirrored; or 16 fps under twelve transforms",
    )
    tokenize.add_argument("--fps", metavar="FPS", help="of the stored frames; 'own' keeps the videos' own")
    tokenize.add_argument("--resize", metavar="LIST", help="short sides over the views' size, such as 1,1.25")
    tokenize.add_argument("--crops", metavar="LIST", help="places of the square, of top,middle,bottom")
    tokenize.add_argument("--flip", choices=("no", "both"), help="whether mirrored squares are stored too")
    tokenize.add_argument(
        "--spot-checks", type=int, default=3, metavar="N", help="videos to compare afterwards; default: 3"
    )
    tokenize.add_argument(
        "--videos-per-shard", type=int, default=128, metavar="N", help="lost by a kill at most; default: 128"
    )
    tokenize.add_argument(
        "--retry-unreadable", action="store_true", help="make shards anew that lack a video"
    )


def _split(operands: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, and overrides (``key=value``)."""
    overrides = [word for word in operands if _OVERRIDE.match(word)]
    return [word for word in operands if word not in overrides], overrides


def _train(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if arguments.resume is not None:
        if names:
            raise UsageError(f"a run goes on with its own recipe: leave out {names[0]}")
        from vidssl.runs import resume_run

        return resume_run(arguments.resume, overrides)
    if len(names) != 1:
        given = f"got {' '.join(names)}" if names else "got none"
        hint = "put overrides that hold spaces in quotes" if overrides else "vidssl train recipes/bevt.yaml"
        raise UsageError(f"train takes one recipe, {given} ({hint})")
    from vidssl.recipe import load_recipe

    recipe = load_recipe(names[0], overrides)
    from vidssl.runs import run_recipe

    return run_recipe(recipe)


def _eval(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    from vidssl.tokenizer_protocol import measures_tokenizers

    if any(map(measures_tokenizers, arguments.protocol)):
        from vidssl.tokenizing.tokenizer_scores import score_tokenizers

        return score_tokenizers(names, arguments.protocol, overrides)
    if len(names) > 1:
        raise UsageError(f"eval takes one run or checkpoint, got {' '.join(names)}")
    from vidssl.evaluate import evaluate_run

    return evaluate_run(names[0] if names else None, arguments.protocol, overrides)


def _compare(arguments: argparse.Namespace) -> int:
    if not arguments.operands:
        raise UsageError("compare takes runs or files of scores, got none (vidssl compare runs/a runs/b)")
    from vidssl.compare import Output, compare_runs

    output: Output = "markdown" if arguments.markdown else "csv" if arguments.csv else "table"
    return compare_runs(arguments.operands, output)


def _show(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) > 1:
        raise UsageError(f"show takes one run, checkpoint or tokenizer, got {' '.join(names)}")
    if arguments.videos is not None and arguments.videos < 1:
        raise UsageError(f"--videos must be at least 1, got {arguments.videos}")
    from vidssl.pictures.clips import PictureRequest
    from vidssl.pictures.show import show

    request = PictureRequest(
        arguments.what,
        videos=arguments.videos,
        files=tuple(arguments.video),
        out=arguments.out,
        overrides=tuple(overrides),
    )
    return show(names[0] if names else None, request)


def _tokenize(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) != 1:
        given = " ".join(names) or "none"
        raise UsageError(
            f"tokenize takes one recipe, got {given} (vidssl tokenize my.yaml --out tokens/mine)"
        )
    from vidssl.recipe import load_recipe
    from vidssl.tokenizing.request import read_request
    from vidssl.tokenizing.tokenize import tokenize

    request = read_request(
        out=arguments.out,
        purpose=arguments.purpose,
        fps=arguments.fps,
        resize=arguments.resize,
        crops=arguments.crops,
        flip=arguments.flip,
        spot_checks=arguments.spot_checks,
        videos_per_shard=arguments.videos_per_shard,
        retry_unreadable=arguments.retry_unreadable,
    )
    return tokenize(load_recipe(names[0], overrides), request)


def _check(arguments: argparse.Namespace) -> int:
    from vidssl.build import check_file
    from vidssl.spec import displayed
    from vidssl.spec_files import NAMES, locate, spec_files

    overrides = _split(arguments.operands)[1]
    if overrides:
        raise UsageError(f"check takes files as they are, without overrides; got {overrides[0]}")
    bad = 0
    every = [(kind, path) for kind in NAMES for path in spec_files(kind).values()]
    for target in arguments.operands or every:
        try:
            kind, path = locate(target) if isinstance(target, str) else target
            check_file(kind, path)
            print(f"{displayed(path)}: ok", flush=True)
        except UsageError as error:
            bad += 1
            print(f"vidssl: {error}", file=sys.stderr, flush=True)
    return BAD_INPUT if bad else 0


def _convert(arguments: argparse.Namespace) -> int:
    from vidssl.convert import convert_files

    return convert_files(arguments.operands)


def _selftest(arguments: argparse.Namespace) -> int:
    names, overrides = _split(arguments.operands)
    if len(names) != 2 or names[0] != "resume":
        given = " ".join(names) or "nothing"
        raise UsageError(f"selftest takes 'resume' and a recipe, got {given} (vidssl selftest resume bevt)")
    if arguments.steps < 1:
        raise UsageError(f"--steps must be at least 1, got {arguments.steps}")
    from vidssl.selftest import selftest_resume

    return selftest_resume(names[1], overrides, steps=arguments.steps)


def _list(arguments: argparse.Namespace) -> int:
    unknown = [word for word in arguments.operands if word not in LISTED]
    if unknown:
        from vidssl.spec import nearest

        raise UsageError(f"no kind of component '{unknown[0]}'. {nearest(unknown[0], LISTED, 'There are')}")
    from rich.console import Console

    from vidssl.listing import component_table

    console = Console()
    for kind in arguments.operands or LISTED:
        console.print(component_table(kind))
    if "backbones" in arguments.operands:  # not for a list of everything: it builds them all
        from vidssl.network_listing import network_table

        console.print(network_table())
    return 0
