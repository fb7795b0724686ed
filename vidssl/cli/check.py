"""Commands on the parts of the package: check and list."""

import sys

from vidssl.cli.operands import BAD_INPUT, Commands, Parser, add, split
from vidssl.errors import UsageError, printable

LISTED = (
    "objectives",
    "backbones",
    "tokenizers",
    "maskers",
    "evaluators",
    "sources",
    "views",
    "augments",
    "optimizers",
    "schedules",
)


def add_commands(commands: "Commands[Parser]") -> None:
    add(
        commands,
        "check",
        _check,
        "validate recipes; needs no data, weights or GPU",
        ("RECIPE", "recipes, protocols, tokenizers; default: all"),
    )
    add(
        commands,
        "list",
        _list,
        "show components and their keys",
        ("KIND", f"one of {', '.join(LISTED)}; default: all"),
    )


def _check(words: list[str]) -> int:
    from vidssl.build.build import check_file
    from vidssl.config.files import NAMES, locate, spec_files
    from vidssl.config.published import published_path
    from vidssl.config.strict_yaml import displayed

    overrides = split(words)[1]
    if overrides:
        raise UsageError(f"check takes files as they are, without overrides; got {overrides[0]}")
    code = 0
    every = [(kind, path) for kind in NAMES for path in spec_files(kind).values()]
    every.append(("evaluation", published_path()))
    for target in words or every:
        try:
            kind, path = locate(target) if isinstance(target, str) else target
            check_file(kind, path)
            print(f"{printable(displayed(path))}: ok", flush=True)
        except UsageError as error:
            code = BAD_INPUT
            print(f"vidssl: {printable(str(error))}", file=sys.stderr, flush=True)
    return code


def _list(words: list[str]) -> int:
    unknown = [word for word in words if word not in LISTED]
    if unknown:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no kind of component '{unknown[0]}'. {nearest(unknown[0], LISTED, 'There are')}")
    from vidssl.build.listing import component_table, network_table
    from vidssl.engine.logging import terminal

    console = terminal()
    for kind in words or LISTED:
        console.print(component_table(kind))
    if "backbones" in words:  # not for a list of everything: it builds them all
        console.print(network_table())
    return 0
