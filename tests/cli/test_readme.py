"""The README's commands, typed as they stand there, in a folder whose recipes and videos are tiny."""

import re
import shlex
from pathlib import Path

import pytest
from working_folder import work_in

from vidssl.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    r"type: moving_digits,": "type: moving_digits, num_videos: 24,",
    r"limit: \d+": "limit: 20",
    r"embed_dim: \d+": "embed_dim: 16",
    r"depth: \d+": "depth: 1",
    r"batch_size: \d+": "batch_size: 4",
    r"negatives: \d+": "negatives: 3",
    r"(?<!warmup_)(?<!every_)steps: \d+": "steps: 2",
    r"warmup_steps: \d+": "warmup_steps: 0",
    r"test_batches: \d+": "test_batches: 1",
    r"workers: \d+": "workers: 0",
    r"penalties: \[.*\]": "penalties: [10.0]",
}


OWN_VIDEOS = re.findall(r"```bash\n.*?```", (ROOT / "docs" / "own_videos.md").read_text(), re.DOTALL)[0]


def commands(page: str) -> list[str]:
    """The commands of a page's blocks of bash, each on one line."""
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    return blocks.replace("\\\n", " ").splitlines()


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
    for path in [*(ROOT / "recipes").glob("**/*.yaml"), ROOT / "evaluation" / "linear.yaml"]:
        if str(path.relative_to(ROOT)) in README or path.name == "linear.yaml":
            text = path.read_text(encoding="utf-8")
            for pattern, small in SMALL.items():
                text = re.sub(pattern, small, text)
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")
    work_in(tmp_path, monkeypatch)
    ran = 0
    for line in commands(README.replace(OWN_VIDEOS, "")):
        for command in line.split(" && "):
            words = shlex.split(re.sub(r"^torchrun .* -m vidssl", "vidssl", command))
            if words[0].endswith("vidssl"):  # the launcher and pip are run by other tests and by CI
                assert main(words[1:]) == 0, command
                ran += 1
    assert ran >= 8
    assert "trained, against untrained, is" in capsys.readouterr().out
