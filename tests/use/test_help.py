"""Every help page has a description and two examples that can be typed; what there is can be listed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidssl.cli.main import main, parsers
from vidssl.cli.operands import EXAMPLES, Commands, Parser


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


COMPLETE = """
eval "$(register-python-argcomplete vidssl)"
ask() {
    COMP_WORDS=("$@"); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=$(($# - 1)); COMP_TYPE=9
    COMPREPLY=(); _python_argcomplete vidssl; echo "${COMPREPLY[@]}"
}
ask vidssl ev
ask vidssl eval runs/x --pro
ask vidssl features --per w
"""


@pytest.mark.slow
def test_a_shell_completes_commands_options_and_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("argcomplete")
    if shutil.which("bash") is None or shutil.which("register-python-argcomplete") is None:
        pytest.skip("needs bash, and register-python-argcomplete on the path")
    command = tmp_path / "vidssl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vidssl "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = subprocess.run(["bash", "-c", COMPLETE], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout.split() == ["eval", "--protocol", "window"]


def test_examples_can_be_typed() -> None:
    parser, _ = parsers()
    for lines in EXAMPLES.values():
        for line in lines:
            parser.parse_known_args(shlex.split(line))


def test_protocols_recipes_and_runs_are_listed(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "protocols", "recipes", "runs"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^│ tiny +│ .*│ +0 │ +2 │", said, re.M)  # the table of runs: seed and step
    assert "\n  linear" in said
    assert "\n  bevt" in said
