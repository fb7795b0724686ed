"""The command line: what may be typed, and how it is read."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from vidssl import __version__
from vidssl.cli import operands as commands
from vidssl.cli.data import add_data
from vidssl.engine.process import end_with_launcher
from vidssl.errors import UsageError, printable

INTERRUPTED = 130
UNREAD = 141  # as a shell has it after SIGPIPE
# errors of the system that say something of the machine and nothing of this package, and the way out
_OUTSIDE = {
    errno.ENOSPC: "make room, or name a folder on another disk",
    errno.EDQUOT: "make room, or name a folder on another disk",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "change its rights, or name another",
    errno.EPERM: "change its rights, or name another",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "there is too little memory",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or ask for fewer",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    end_with_launcher()
    try:
        _check_working_folder()
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        code = int(arguments.command(arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # 'vidssl compare ... | head': what is left to print has no reader
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        print(f"vidssl: {_outside(error)}", file=sys.stderr)
        return commands.BAD_INPUT
    except UsageError as error:
        if str(error):  # one of several processes tells it
            print(f"vidssl: {printable(str(error))}", file=sys.stderr)
        return commands.BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _check_working_folder() -> None:
    """Nothing can be found from a folder that was removed, not even Python's modules."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed: change to one that is there (cd)") from None


def _outside(error: OSError) -> str:
    what = f"{error.filename}: " if error.filename else ""
    return f"{what}{error.strerror}: {_OUTSIDE[error.errno or 0]}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="vidssl", description="Self-supervised video learning from interchangeable parts.")
    parser.add_argument("--version", action="version", version=f"vidssl {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = subparsers.add_parser("train", help="train what a recipe describes")
    train.set_defaults(command=commands.train)
    train.add_argument(
        "operands", nargs="*", metavar="RECIPE [KEY=VALUE ...]", help="file or name, overrides"
    )
    train.add_argument(
        "--resume", metavar="RUN", help="go on with a run at the very step of its newest checkpoint"
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="take two steps and show parameters, tokens, FLOPs, memory, time and disk; nothing is kept",
    )
    train.add_argument(
        "--deterministic", action="store_true", help="the same numbers in every run; run.deterministic=true"
    )

    bench = subparsers.add_parser("bench", help="tell whether a recipe's runs wait for data on this machine")
    bench.set_defaults(command=commands.bench)
    bench.add_argument(
        "operands", nargs="*", metavar="RECIPE [KEY=VALUE ...]", help="file or name, overrides"
    )
    bench.add_argument(
        "--seconds", type=float, default=20.0, metavar="N", help="that it takes, about; default: 20"
    )

    evaluate = subparsers.add_parser("eval", help="score a trained network under evaluation protocols")
    evaluate.set_defaults(command=commands.evaluate)
    evaluate.add_argument(
        "operands",
        nargs="*",
        metavar="[RUN_OR_CHECKPOINT_OR_NETWORK] [KEY=VALUE ...]",
        help="run folder or checkpoint, the newest run if none is named; or torchvision:NAME, timm:NAME, "
        "pytorchvideo:NAME, untrained:RECIPE and pixels, with weights=FILE and data=RECIPE; overrides of "
        "the protocols. With --protocol tokenizer: tokenizers, as many as you like, all that have weights if "
        "none is named",
    )
    evaluate.add_argument(
        "--protocol",
        action="append",
        required=True,
        metavar="NAME",
        help="file or name in evaluation/; may be repeated",
    )

    _add_trust(evaluate)

    _add_compare(subparsers.add_parser("compare", help="show scores of several runs side by side"))

    check = subparsers.add_parser("check", help="validate recipes; needs no data, weights or GPU")
    check.set_defaults(command=commands.check)
    check.add_argument(
        "operands", nargs="*", metavar="RECIPE", help="recipes, protocols, tokenizers; default: all"
    )

    convert = subparsers.add_parser(
        "convert", help="make safetensors of the published dVAE without executing its pickles"
    )
    convert.set_defaults(command=commands.convert)
    convert.add_argument(
        "operands",
        nargs="*",
        metavar="ENCODER [DECODER] OUT.safetensors",
        help="files to read, file to write",
    )

    replay = subparsers.add_parser("replay", help="repeat a step whose loss was no number, on a CPU")
    replay.set_defaults(command=commands.replay)
    replay.add_argument("operands", nargs="*", metavar="CAPTURE", help="a file in captures/ of a run")
    replay.add_argument(
        "--precision", choices=("fp32", "run"), default="fp32", help="fp32 (default), or as in the run"
    )

    _add_trust(replay)

    selftest = subparsers.add_parser(
        "selftest", help="try a promise of the package on your recipe and machine"
    )
    selftest.set_defaults(command=commands.selftest)
    selftest.add_argument("operands", nargs="*", metavar="resume RECIPE [KEY=VALUE ...]", help="on which")
    selftest.add_argument("--steps", type=int, default=5, help="of each half of the run; default: 5")

    watch = subparsers.add_parser("watch", help="draw a run's curves in the terminal")
    watch.set_defaults(command=commands.watch)
    watch.add_argument("operands", nargs="*", metavar="[RUN]", help="its folder; default: the newest run")
    watch.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="or a pattern (loss*); may be repeated"
    )
    watch.add_argument("--once", action="store_true", help="draw once, though the run trains on")

    _add_tokenize(subparsers.add_parser("tokenize", help="turn a recipe's videos into ids, once"))
    _add_show(subparsers.add_parser("show", help="draw what a run learned, or what a tokenizer keeps"))

    add_data(subparsers.add_parser("data", help="scan, prepare and pack the videos of a data set"))

    listing = subparsers.add_parser("list", help="show components and their keys")
    listing.set_defaults(command=commands.list_components)
    listing.add_argument(
        "operands", nargs="*", metavar="KIND", help=f"one of {', '.join(commands.LISTED)}; default: all"
    )

    if argv and not argv[0].startswith("-") and argv[0] not in subparsers.choices:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no command '{argv[0]}'. {nearest(argv[0], subparsers.choices, 'There are')}")
    # options and operands may come in any order, which argparse cannot do below a command by itself
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    arguments.operands = [*arguments.operands, *rest]
    return arguments


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--trust",
        action="store_true",
        help="run code and open addresses that the recipe inside a run or checkpoint names, though it is not "
        "one that you trained here",
    )


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.set_defaults(command=commands.compare, output="table")
    compare.add_argument("operands", nargs="*", metavar="RUN_OR_SCORES", help="run folders, files of scores")
    output = compare.add_mutually_exclusive_group()
    for name, what in (
        ("markdown", "tables for a page"),
        ("latex", "tables for a paper (booktabs)"),
        ("csv", "a line for every number"),
    ):
        output.add_argument(f"--{name}", dest="output", action="store_const", const=name, help=what)
    compare.add_argument(
        "--each", action="store_true", help="show runs by themselves that differ only in their seed"
    )
    compare.add_argument("--published", action="store_true", help="add what papers report, in tables apart")
    for option, what in (("--paper", "paper's"), ("--data-set", "data set's")):
        compare.add_argument(
            option, action="append", default=[], metavar="NAME", help=f"of that, one {what}; may be repeated"
        )


def _add_show(show: argparse.ArgumentParser) -> None:
    show.set_defaults(command=commands.show)
    show.add_argument(
        "operands",
        nargs="*",
        metavar="[RUN_OR_CHECKPOINT_OR_TOKENIZER_OR_SCORES] [data={...}] [views={...}]",
        help="what to draw, the newest run if nothing is named; videos and views other than its recipe's",
    )
    show.add_argument(
        "--what",
        choices=("attention", "reconstruction", "confusion"),
        required=True,
        help="where the class token looks; or hidden parts as they were predicted; or which classes a "
        "run's scores take for which",
    )
    for name, what in (
        ("protocol", "whose scores"),
        ("label", "of the scores; default: a picture for each"),
        ("setting", "of the scores, such as k=5; default: the first"),
        ("network", "of the scores; default: the first"),
    ):
        show.add_argument(f"--{name}", metavar="NAME", help=f"confusion: {what}")
    show.add_argument("--videos", type=int, metavar="N", help="how many videos; default 4, or 8 images")
    show.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="show this video; may be repeated"
    )
    show.add_argument("--out", metavar="FOLDER", help="where pictures go; default: pictures/ in the run")
    _add_trust(show)


def _add_tokenize(tokenize: argparse.ArgumentParser) -> None:
    tokenize.set_defaults(command=commands.tokenize)
    tokenize.add_argument(
        "operands", nargs="*", metavar="RECIPE [KEY=VALUE ...]", help="whose videos and tokenizer, overrides"
    )
    tokenize.add_argument("--out", metavar="FOLDER", required=True, help="the store; what is there goes on")
    tokenize.add_argument(
        "--videos",
        choices=("data.video.source", "data.video.test_source", "data.probe.train", "data.probe.test"),
        default="data.video.source",
        help="which of the recipe's; default: data.video.source",
    )
    tokenize.add_argument(
        "--for",
        dest="purpose",
        choices=("pretraining", "finetuning", "testing"),
        help="VIMPAC's settings: 2 fps, middle, not mirrored; or 16 fps under twelve transforms; or what the "
        "views of data.probe want, which is the default for its videos",
    )
    tokenize.add_argument("--fps", metavar="FPS", help="of the stored frames; 'own' keeps the videos' own")
    tokenize.add_argument("--resize", metavar="LIST", help="short sides over the views' size, such as 1,1.25")
    tokenize.add_argument("--crops", metavar="LIST", help="places of the square, of top,middle,bottom,far")
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
