"""Abilities of backbones, network by network: measured on networks without memory, not stated by hand."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, get_args, get_origin

from rich.table import Table
from rich.text import Text

from vidssl.build.registry import BACKBONE, KINDS, summary
from vidssl.config.schema import Key, describe, keys_of
from vidssl.config.strict_yaml import dump_flow
from vidssl.engine.precision import on_meta
from vidssl.errors import counted
from vidssl.interfaces import Backbone, EncodesVisible
from vidssl.interfaces.grids import GridSize

# keys without a default, as the paper has them (VIMPAC's clips of ids)
_REQUIRED: Mapping[str, Mapping[str, object]] = {
    "factorized": {"vocab_size": 8192, "num_frames": 5, "height": 16, "width": 16}
}
_TIMM = ("resnet50", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")

_CLIPS: tuple[GridSize, ...] = ((16, 224, 224), (32, 224, 224), (16, 256, 256), (5, 16, 16))
_MOST_FRAMES, _LARGEST_SIDE = 64, 256  # that are tried


def network_table() -> Table:
    """Parameters and abilities of every network that a backbone's ``name`` or ``variant`` can ask for.

    A backbone with neither stands there with its defaults.
    """
    table = Table(title="networks, by name or variant", title_justify="left", caption_justify="left")
    table.add_column("type, network", overflow="fold")
    for head in ("million", "width"):
        table.add_column(head, justify="right", no_wrap=True)
    for head in ("has", "frames", "side"):
        table.add_column(head, min_width=len("multiples"))  # with it all fits into 80 columns
    import timm  # here: importing takes a second

    last = ""
    for kind, keys in _networks():
        with on_meta():
            made = BACKBONE.table[kind](**_REQUIRED.get(kind, {}), **keys)
        if kind != last:
            table.add_section()
            table.add_row(Text(kind, style="bold"))
        shown = ", ".join(map(str, keys.values())) or "(defaults)"
        table.add_row(Text(shown), *_abilities(made))
        last = kind
    table.caption = (
        "Millions of parameters, width of the features, what a network takes and gives, frames of a clip (1 "
        "is an image), height or width in pixels; where it reads ids, those are counted. "
        f"timm has {counted(len(timm.list_models()), 'network')}, of which some stand here: "
        "timm.list_models()."
    )
    return table


def _networks() -> Iterator[tuple[str, dict[str, object]]]:
    """Type and keys of each network; none of those that need keys nobody can guess."""
    for kind, constructor in BACKBONE.table.items():
        keys = keys_of(constructor)
        choice = next((key for key in ("name", "variant") if key in keys), None)
        needed = {key for key, value in keys.items() if value.required} - {choice, *_REQUIRED.get(kind, {})}
        if needed:
            continue
        if choice is None:
            yield kind, {}
            continue
        for value in _choices(keys[choice].wanted) or (_TIMM if kind == "timm" else ()):
            yield kind, {choice: value}


def _choices(wanted: object) -> tuple[str, ...]:
    """Texts that a key's type allows, ``Literal["a", "b"] | None``; none where any text is."""
    return tuple(
        choice
        for member in (wanted, *get_args(wanted))
        for choice in get_args(member)
        if isinstance(choice, str)
    )


def _abilities(made: Backbone) -> tuple[str, ...]:
    count = sum(parameter.numel() for parameter in made.parameters())
    stages = len(made.stage_dims)
    abilities = (
        "reads ids" if made.input_kind == "tokens" else "",
        "mask" if made.takes_mask else "",
        "visible cells alone" if isinstance(made, EncodesVisible) and made.encodes_visible else "",
        "class token" if made.gives_cls else "",
        f"{stages} stages" if stages else "",
    )
    shown = ", ".join(ability for ability in abilities if ability) or "-"
    return f"{count / 1e6:.1f}", str(made.embed_dim), shown, *taken_sizes(made)


def taken_sizes(made: Backbone) -> tuple[str, str]:
    """Which numbers of frames and which sides of a square a backbone takes, in words."""

    def takes(*size: int) -> bool:
        try:
            made.grid(*size)
        except ValueError:
            return False
        return True

    start = next((clip for clip in _CLIPS if takes(*clip)), None)
    if start is None:
        return "?", "?"
    frames, side, _ = start
    return (
        _in_words(lambda count: takes(count, side, side), _MOST_FRAMES),
        _in_words(lambda length: takes(frames, length, length), _LARGEST_SIDE),
    )


def _in_words(takes: Callable[[int], bool], largest: int) -> str:
    """Which numbers up to ``largest`` are taken."""
    found = [number for number in range(1, largest + 1) if takes(number)]
    if len(found) == 1:
        return f"{found[0]} only"
    image, several = found[0] == 1, [number for number in found if number > 1]
    low, step = several[0], math.gcd(*several)
    if several != list(range(low, largest + 1, step)):
        return _listed(found)
    if step > 1:
        words = f"multiples of {step}" + (f" from {low}" if low > step else "")
    elif image and low == 2:
        return "any"
    else:
        words = f"{low} or more"
    return f"1 or {words}" if image else words


def _listed(found: Sequence[int]) -> str:
    shown = ", ".join(map(str, found[:8]))
    return f"{shown}, ..." if len(found) > 8 else shown


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
