"""The README's commands, typed as they stand there, in a folder whose recipes and videos are tiny."""

import re
from pathlib import Path

import pytest
from pages import ROOT, commands, copy_small, words_of

from vidssl.cli.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_VIDEOS = re.findall(r"```bash\n.*?```", (ROOT / "docs" / "own_videos.md").read_text(), re.DOTALL)[0]


def test_lines_that_install_are_those_that_ci_and_newcomers_run() -> None:
    install, *others, test = commands(README)
    assert install == (
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/vidssl train recipes/bevt.yaml && "
        ".venv/bin/vidssl eval --protocol linear"
    )
    assert "pip install -e '.[test]' && .venv-test/bin/python -m pytest -n 2" in test
    assert [line for line in README.splitlines() if re.search("pip install .*pytest", line)] == [test]
    assert all(line.startswith(("vidssl ", "torchrun ")) for line in others)


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert OWN_VIDEOS in README, "tests/tools/test_init.py runs those of docs/own_videos.md"
    copy_small(tmp_path, README)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for line in commands(README.replace(OWN_VIDEOS, "")):
        for command in line.split(" && "):
            words = words_of(command)
            if words[0].endswith("vidssl"):  # the launcher and pip are run by other tests and by CI
                assert main(words[1:]) == 0, command
                ran += 1
    assert ran >= 8
    assert "trained, against untrained, is" in capsys.readouterr().out
