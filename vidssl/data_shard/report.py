"""What was packed or found in shards, on the console."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from vidssl.class_numbers import counted_classes
from vidssl.data.shard_index import ShardIndex
from vidssl.data_prepare.report import format_size, say
from vidssl.errors import counted

_NAMED = 20  # of what is listed one by one
_PLAIN = re.compile(r"[\w./~][\w./~:@=+-]*")


def report(
    index: ShardIndex, out: str, at: str, console: Console, *, flaws: Sequence[str] = (), show_all: bool
) -> bool:
    """Print what the shards hold, what is bad, and the line for recipes.

    Args:
        out: address of the shards.
        at: of their index, as a recipe has to name it; empty where the source looks for it.
        flaws: of shards as such.

    Returns:
        Whether all is well.
    """
    bad = np.nonzero(~index.usable)[0].tolist()
    good = len(index) - len(bad)
    size = format_size(int(index.shard_bytes.sum()))
    say(
        console,
        f"{good} of {len(index)} files lie in {counted(len(index.shards), 'shard')}, {size}, at {out}",
    )
    for name, numbers in index.labels.items():
        there = int((numbers[index.usable] >= 0).sum())
        say(
            console,
            f"Label '{name}': {there} of {good} files have it, "
            + counted_classes(numbers[index.usable].tolist(), index.label_classes[name]),
        )
    limit = None if show_all else _NAMED
    _list(console, "Flaws", flaws, limit)
    named = [index.member(number).entry for number in bad[:limit]]
    _list(console, "Bad, in no shard", [f"{e.key}: {e.reason}" for e in named], limit, of=len(bad))
    say(console, f"Index: {index.where}")
    if good:
        keys = {"type": "tar_shards", "root": out, **({"index": at} if at else {})}
        say(console, f"In recipes: source: {flow(keys)}")
    else:
        say(console, "None of the files can be used, so there is nothing to train on")
    return not bad and not flaws


def flow(keys: Mapping[str, str]) -> str:
    """A mapping of names as YAML, on one line."""
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in keys.items()) + "}"


def _scalar(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not value.endswith(":") and not _looks_otherwise(value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _looks_otherwise(value: str) -> bool:
    """Whether YAML could take a word for a number, a truth or nothing."""
    return bool(
        re.fullmatch(r"[\d._+-]+|~|null|true|false|yes|no|on|off|[yn]|[\d.]+e\d+|0[xo]\w+", value.lower())
    )


def _list(
    console: Console, title: str, lines: Sequence[str], limit: int | None, of: int | None = None
) -> None:
    count = len(lines) if of is None else of
    if not count:
        return
    say(console, f"{title}: {count}")
    shown = lines[:limit]
    for line in shown:
        say(console, f"  {line}")
    if len(shown) < count:
        say(console, f"  and {count - len(shown)} more ('--all' shows them)")
