"""docs/using_a_run.md: every command and every line of Python, on a tiny run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from pages import copy_small

from vidssl.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "using_a_run.md"
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch says that TorchScript is old
def test_the_page_does_what_it_says(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "runs" / "tiny", "runs/mine")
    shutil.rmtree("runs/mine/scores")  # of other tests
    Path("runs/mine/scores").mkdir()
    shutil.copytree(world / "videos", "videos")
    shutil.copy(world / "tiny.yaml", "tiny.yaml")
    copy_small(tmp_path, "")  # the linear protocol
    names: dict[str, object] = {}
    commands = 0
    torch.manual_seed(0)
    for kind, text in BLOCKS:
        if kind == "python":
            small = text.replace("v.Linear()", "v.Linear(penalties=[1.0])")
            exec(compile(small, str(PAGE), "exec"), names)
            continue
        for line in text.strip().splitlines():
            _, *words = shlex.split(line)
            assert main(words) == 0, line
            commands += 1
    assert commands == 12
    made = ("features.npz", "windows.npy", "windows.csv", "patches.safetensors", "published/README.md")
    assert [name for name in made if not Path(name).is_file()] == []
    assert len(names["answers"].answers) > 0
    assert torch.equal(names["same"](names["clips"]).pooled(), names["vectors"])
