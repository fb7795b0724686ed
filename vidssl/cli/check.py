"""Commands on the parts of the package: check and list."""

import sys
from pathlib import Path

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


SPECS = {"protocols": "evaluation", "recipes": "recipes"}  # and runs, which are listed by their folders


def add_check(commands: "Commands[Parser]") -> None:
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
        "show components and their keys, protocols, recipes or runs",
        ("KIND", f"one of {', '.join((*LISTED, *SPECS))}, runs; default: all components"),
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


def _names(kind: str) -> str:
    """Names of protocols or recipes with what their files say first, or the runs below ``runs``."""
    from vidssl.config.files import spec_files
    from vidssl.engine.runfolder import runs_below

    if kind == "runs":
        found = [(run.path, run.newest_checkpoint()) for run in runs_below(Path("runs"))]
        lines = [
            f"  {path}  {'no checkpoint yet' if newest is None else newest.stem}" for path, newest in found
        ]
        return "\n".join(["runs", *lines])
    files = spec_files("evaluation" if kind == "protocols" else "recipes")
    lines = []
    for name, path in sorted(files.items()):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"  {name}  {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
    return "\n".join([kind, *lines])


def _list(words: list[str]) -> int:
    kinds = (*LISTED, *SPECS, "runs")
    unknown = [word for word in words if word not in kinds]
    if unknown:
        from vidssl.config.strict_yaml import nearest

        raise UsageError(f"no kind of component '{unknown[0]}'. {nearest(unknown[0], kinds, 'There are')}")
    from vidssl.build.listing import component_table, network_table
    from vidssl.engine.logging import terminal

    console = terminal()
    for kind in words or LISTED:
        if kind in LISTED:
            console.print(component_table(kind))
        else:
            print(printable(_names(kind)), flush=True)
    if "backbones" in words:  # not for a list of everything: it builds them all
        console.print(network_table())
    return 0
