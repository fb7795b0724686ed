"""Parsers whose options are keywords of what they run, operands, and numbers, for all commands."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from vidssl.cli.examples import epilog
from vidssl.errors import UsageError

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
    commands: "Commands[Parser]",
    name: str,
    run: Callable[..., int],
    describe: str,
    operands: tuple[str, str],
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
