"""Components as tables for the terminal."""

from typing import Literal, get_origin

from rich.table import Table
from rich.text import Text

from vidssl.components import KINDS, summary
from vidssl.schema import Key, describe, keys_of
from vidssl.spec import dump_flow


def component_table(kind: str) -> Table:
    """Name, sentence and keys of every component of a kind (``backbones``, ``maskers``, ...).

    A key stands with its default, or with the type that must be given.
    """
    table = Table(title=kind, title_justify="left", show_lines=True)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("what it is", ratio=1)
    table.add_column("keys", ratio=1)
    for name, constructor in KINDS[kind].table.items():
        keys = "\n".join(_key_line(key, value) for key, value in keys_of(constructor).items())
        table.add_row(*map(Text, (name, summary(constructor), keys)))
    return table


def _key_line(name: str, key: Key) -> str:
    if key.required:
        return f"{name} ({describe(key.wanted)})"
    default = f"{name}: {dump_flow(key.default)}"
    # a default that shows its own type needs no words for it
    tells_little = key.default is None or get_origin(key.wanted) is Literal
    return f"{default} ({describe(key.wanted)})" if tells_little else default
