"""The one kind of error that a user of the command line is meant to see, and text that is safe to print."""

import re


class UsageError(ValueError):
    """Something the user can mend. The message is one line: what is wrong, where, and the way out.

    The command line prints it and exits with code 2; every other exception is a defect of the package.
    """


class LabelError(UsageError):
    """What keeps one label from being learned or scored; other labels may be."""


# control characters but line feed and tab, half surrogates (bytes of a name that is not UTF-8), and
# characters that break lines or turn the direction of writing
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Text from outside (names of files and classes, checkpoints) as a terminal may be given it.

    A control character becomes its escape: ESC is shown as ``\x1b``, the byte E9 of a file name that is not
    UTF-8 as ``\xe9``. So nothing in a name moves the cursor, sets colours or fails to be encoded.

    Args:
        one_line: whether line feeds and tabs are escaped too.
    """
    if text.isprintable():
        return text
    shown = _UNSEEN.sub(_escape, text)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    byte = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # Python's stand-in for a byte of a file name
    return f"\\x{byte:02x}" if byte < 0x100 else f"\\u{byte:04x}"


def counted(number: int, noun: str, plural: str = "", *, verb: str = "", of: int | None = None) -> str:
    """``1 step``, ``2 steps``; ``plural`` where it is not the noun and an s.

    Args:
        verb: that follows, as of several things: ``1 step is`` for "are".
        of: out of how many: ``1 of 3 steps``.
    """
    total = number if of is None else of
    words = f"{'' if of is None else f'{number} of '}{total} {noun if total == 1 else plural or noun + 's'}"
    return f"{words} {agreed(number, verb)}" if verb else words


def agreed(number: int, verb: str) -> str:
    """The verb of so many things: ``is`` of 1 for "are", ``starts`` for "start"; else as it is."""
    singular = {"are": "is", "were": "was", "have": "has", "do": "does"}
    return verb if number != 1 else singular.get(verb, f"{verb}s")
