"""The command line: what may be typed, and how it is read.

Each command's parser stands beside what it runs. torch is imported by the command that needs it, so that help
is quick.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import vidssl
from vidssl import __version__
from vidssl.cli import data, evaluate, show, train, use
from vidssl.cli.operands import BAD_INPUT, Commands, Parser
from vidssl.engine.process import end_with_launcher
from vidssl.errors import UsageError, printable

INTERRUPTED = 130
UNREAD = 141  # as a shell has it after SIGPIPE
# errors of the system that come from the machine and not from this package, and the way out
_OUTSIDE = {
    errno.ENOSPC: "make room, or name a folder on another disk",
    errno.EDQUOT: "make room, or name a folder on another disk",
    errno.EFBIG: "files may not grow so large (ulimit -f), or not on this disk",
    errno.EROFS: "name a folder that can be written",
    errno.ENOENT: "it was there and is gone: was it removed or renamed meanwhile?",
    errno.EIO: "its disk fails or is gone: look at it, or name a folder on another",
    errno.ESTALE: "the network file system lost it: mount it anew, or name a folder on another disk",
    errno.EACCES: "change its rights, or name another",
    errno.EPERM: "change its rights, or name another",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "there is too little memory",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or ask for fewer",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.
    """
    end_with_launcher()
    try:
        _check_working_folder()
        options = vars(_parse(sys.argv[1:] if argv is None else argv))
        run, operands = options.pop("run"), options.pop("operands")
        code = int(run(operands, **options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # 'vidssl compare ... | head': what is left to print has no reader
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        named, way = f"{error.filename}: " if error.filename else "", _OUTSIDE[error.errno or 0]
        package = os.path.dirname(vidssl.__file__)
        if error.errno == errno.EACCES and str(error.filename).startswith(package):
            way = f"the package was installed for its owner alone, who can mend it: chmod -R a+rX {package}"
        print(f"vidssl: {named}{error.strerror}: {way}", file=sys.stderr)
        return BAD_INPUT
    except UsageError as error:
        if str(error):  # one of several processes prints it
            print(f"vidssl: {printable(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        lack = _too_little_memory(error)
        if str(error) == "can't start new thread":
            lack = f"{error}: {_OUTSIDE[errno.EAGAIN]}"
        if not lack:
            raise
        print(f"vidssl: {lack}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def _too_little_memory(error: MemoryError | RuntimeError) -> str:
    """The way out of an error which says that memory does not suffice; empty for every other."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", text):
        return ""
    of = "the GPU" if "CUDA" in text else "this machine"
    wanted = re.search(r"llocate ([\d.]+ [A-Za-z]+)", text)
    asked = f" ({wanted[1]} more were asked for)" if wanted else ""
    return (
        f"the memory of {of} does not suffice{asked}: lower batch_size, or size and num_frames of views. A "
        "training takes less with run.accumulate, run.activation_checkpointing or fewer run.workers too"
    )


def _check_working_folder() -> None:
    """Nothing can be found from a folder that was removed, not even Python's modules."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed: change to one that is there (cd)") from None


@cache
def parsers() -> "tuple[Parser, Commands[Parser]]":
    """The parser of the whole command line, and those of its commands."""
    parser = Parser(prog="vidssl", description="Self-supervised video learning from interchangeable parts.")
    parser.add_argument("--version", action="version", version=f"vidssl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        train.add_commands,
        evaluate.add_commands,
        train.add_grid,
        use.add_commands,
        show.add_commands,
        data.add_tokenize,
        data.add_commands,
        train.add_check,
    ):
        add(commands)
    return parser, commands


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = parsers()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
        import argcomplete

        argcomplete.autocomplete(parser)
    if argv and not argv[0].startswith("-") and argv[0] not in commands.choices:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no command '{argv[0]}'. {nearest(argv[0], commands.choices, 'There are')}")
    # options and operands may come in any order, which argparse cannot do below a command by itself
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    arguments.operands = [*arguments.operands, *rest]
    return arguments
