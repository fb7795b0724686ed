"""Every help page has a description and two examples that can be typed; what there is can be listed."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidssl.cli.examples import EXAMPLES
from vidssl.cli.main import main, parsers
from vidssl.cli.operands import Commands, Parser


def pages(commands: "Commands[Parser]") -> Iterator[Parser]:
    for parser in commands.choices.values():
        below = [action for action in parser._actions if isinstance(action, Commands)]
        yield from pages(below[0]) if below else [parser]


def test_every_command_has_a_description_and_two_examples() -> None:
    found = {parser.prog.removeprefix("vidssl "): parser for parser in pages(parsers()[1])}
    assert found.keys() == EXAMPLES.keys()
    for name, parser in found.items():
        text = parser.format_help()
        assert parser.description, name
        assert text.count(f"  vidssl {name}") == 2, name


def test_examples_can_be_typed() -> None:
    parser, _ = parsers()
    for lines in EXAMPLES.values():
        for line in lines:
            parser.parse_known_args(shlex.split(line))


def test_protocols_recipes_and_runs_are_listed(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "protocols", "recipes", "runs"]) == 0
    said = capsys.readouterr().out
    assert "runs/tiny  step-000002" in said
    assert "\n  linear" in said
    assert "\n  bevt" in said
