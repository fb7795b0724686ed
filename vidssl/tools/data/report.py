"""Lines and lists that every command of ``vidssl data`` prints, and the report on shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from vidssl.config.strict_yaml import dump_flow
from vidssl.data.classes import counted_classes
from vidssl.data.sources.tar.index import ShardIndex
from vidssl.engine.logging import print_line
from vidssl.errors import counted, printable

_NAMED = 20  # files that are listed one by one, of each kind


def say(console: Console, line: str) -> None:
    """Print one line, whatever is in it."""
    print_line(console, printable(line, one_line=True))


def print_list(console: Console, title: str, lines: Sequence[str], *, show_all: bool, of: int = 0) -> None:
    """Print a title with a count and the first lines; nothing where there are none.

    Args:
        of: how many there are, where ``lines`` holds only the first.
    """
    count = of or len(lines)
    if not count:
        return
    shown = lines if show_all else lines[:_NAMED]
    say(console, f"{title}: {count}")
    for line in shown:
        say(console, f"  {line}")
    if len(shown) < count:
        say(console, f"  and {count - len(shown)} more ('--all' shows them)")


def format_size(count: float) -> str:
    """Bytes with three digits: ``1.23 GB``."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if unit != "bytes" else counted(round(count), "byte")


def shard_report(
    index: ShardIndex, out: str, at: str, console: Console, *, flaws: Sequence[str] = (), show_all: bool
) -> bool:
    """Print the contents of shards, the bad files, and the line for recipes.

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
        f"{counted(good, 'file', of=len(index), verb='lie')} "
        f"in {counted(len(index.shards), 'shard')}, {size}, at {out}",
    )
    for name, numbers in index.labels.items():
        there = int((numbers[index.usable] >= 0).sum())
        say(
            console,
            f"Label '{name}': {counted(there, 'file', of=good, verb='have')} it, "
            + counted_classes(numbers[index.usable].tolist(), index.label_classes[name]),
        )
    print_list(console, "Flaws", flaws, show_all=show_all)
    named = [index.member(number).entry for number in bad[: None if show_all else _NAMED]]
    reasons = [f"{entry.key}: {entry.reason}" for entry in named]
    print_list(console, "Bad, in no shard", reasons, show_all=show_all, of=len(bad))
    say(console, f"Index: {index.where}")
    if good:
        keys = {"type": "tar_shards", "root": out, **({"index": at} if at else {})}
        say(console, f"In recipes: source: {dump_flow(keys)}")
    else:
        say(console, "None of the files can be used, so there is nothing to train on")
    return not bad and not flaws
