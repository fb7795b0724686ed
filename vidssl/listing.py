"""Components as tables for the terminal."""

from rich.markup import escape
from rich.table import Table

from vidssl.components import KINDS, summary
from vidssl.schema import Key, describe, keys_of
from vidssl.spec import dump_flow


def component_table(kind: str) -> Table:
    """Name, sentence and keys of every component of a kind (``backbones``, ``maskers``, ...)."""
    table = Table(title=kind, title_justify="left", show_lines=True)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("what it is", ratio=1)
    table.add_column("keys", ratio=1)
    for name, constructor in KINDS[kind].table.items():
        keys = "\n".join(_key_line(key, value) for key, value in keys_of(constructor).items())
        table.add_row(escape(name), escape(summary(constructor)), escape(keys))
    return table


def _key_line(name: str, key: Key) -> str:
    return f"{name}: {describe(key.wanted)}" if key.required else f"{name}: {dump_flow(key.default)}"
