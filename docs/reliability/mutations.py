"""What may be wrong with a file: bytes that are cut, turned and replaced, and values that nobody expects."""

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

HUGE = 2_000_000_000
VALUES: tuple[object, ...] = (
    None, True, -1, 1.5, HUGE, 2**63, 10**400, float("nan"), float("inf"), "", "\x1b]0;x\x07", "../../../x",
    "\ud800", [], {}, [[]], [0, 1, HUGE], {"a": None},
)  # fmt: skip
Mutation = tuple[str, bytes]  # what is wrong, and the whole file


def of_bytes(content: bytes, number: int, seed: int = 0) -> Iterator[Mutation]:
    """A file that is empty, cut short, grown, of zeros, or has noise in it."""
    luck = random.Random(seed)
    yield "empty", b""
    yield "zeros", bytes(len(content))
    yield "noise", luck.randbytes(len(content))
    yield "twice", content + content
    for _ in range(number):
        yield "cut", content[: luck.randrange(len(content))]
        place, length = luck.randrange(len(content)), luck.choice((1, 1, 2, 8, 64))
        noise = luck.randbytes(length)
        yield f"noise at {place}", content[:place] + noise + content[place + length :]


def of_tree(tree: Any, number: int, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """The same tree of JSON with one entry taken out, or replaced by a value of another kind."""
    places = list(_places(tree))
    tries = [(place, value) for place in places for value in (_MISSING, *VALUES)]
    random.Random(seed).shuffle(tries)
    for place, value in tries[:number]:
        changed = copy.deepcopy(tree)
        at = changed
        for step in place[:-1]:
            at = at[step]
        if not place:
            changed = None if value is _MISSING else value
        elif value is _MISSING:
            del at[place[-1]]
        else:
            at[place[-1]] = value
        yield f"{'.'.join(map(str, place))} {_shown(value)}", changed


_MISSING = object()


def _shown(value: object) -> str:
    return "missing" if value is _MISSING else f"is {str(value)[:20]!r}"


def _places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    entries = (
        tree.items() if isinstance(tree, dict) else enumerate(tree[:4]) if isinstance(tree, list) else ()
    )
    for key, entry in entries:
        yield from _places(entry, (*above, key))


def of_json(content: bytes, number: int) -> Iterator[Mutation]:
    """A file of JSON; bombs among them."""
    yield "nested 100,000 deep", b"[" * 100_000
    yield "nested objects", b'{"a":' * 100_000
    yield "a number of 10,000 digits", b"9" * 10_000
    for what, tree in of_tree(json.loads(content), number):
        yield what, json.dumps(tree).encode()


def of_lines(content: bytes, number: int) -> Iterator[Mutation]:
    """A file of JSON lines: one of them is wrong, missing or there twice."""
    lines = [line for line in content.splitlines() if line]
    places = sorted({0, 1, 2, len(lines) - 1} & set(range(len(lines))))
    for place in places:
        for what, line in of_json(lines[place], number // len(places)):
            yield f"line {place + 1}: {what}", b"\n".join([*lines[:place], line, *lines[place + 1 :], b""])
        yield f"line {place + 1} missing", b"\n".join([*lines[:place], *lines[place + 1 :], b""])
        yield f"line {place + 1} twice", b"\n".join([*lines[: place + 1], *lines[place:], b""])


def of_gzipped(content: bytes, number: int) -> Iterator[Mutation]:
    """A compressed file of JSON."""
    for what, text in of_json(gzip.decompress(content), number):
        yield what, gzip.compress(text, 1)
    yield "a bomb of 256 MB", gzip.compress(b"[" + bytes(1 << 28), 1)


def of_safetensors(
    content: bytes, number: int, sign: Callable[[bytes], bytes] = lambda content: content
) -> Iterator[Mutation]:
    """A file of tensors: its header, and JSON within its metadata.

    Args:
        sign: brings a checksum up to date, as whoever tampers with a file would.
    """
    length = int.from_bytes(content[:8], "little")
    head, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]

    def file(changed: object) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + tensors

    yield "a header of 2**60 bytes", (1 << 60).to_bytes(8, "little") + content[8:]
    for what, tree in of_tree(head, number):
        yield what, sign(file(tree))
    for key, text in head.get("__metadata__", {}).items():
        for what, value in [("bomb", "[" * 100_000), ("huge", "9" * 5000), *_within(text, number // 4)]:
            yield f"{key}: {what}", sign(file(head | {"__metadata__": head["__metadata__"] | {key: value}}))


def _within(text: str, number: int) -> Iterator[tuple[str, str]]:
    try:
        tree = json.loads(text)
    except ValueError:
        for what, changed in of_bytes(text.encode(), number):
            yield what, changed.decode(errors="replace")
        return
    for what, value in of_tree(tree, number):
        yield what, json.dumps(value)
