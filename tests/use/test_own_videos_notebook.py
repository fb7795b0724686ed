"""docs/notebooks/own_videos.ipynb: ten cells without outputs that run, as lines of Python and in a kernel."""

import json
from pathlib import Path

import pytest

from tests.data_clips import write_clip
from vidssl import api as v

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "own_videos.ipynb"


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with videos of two classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(16):
        kind = ("jump", "run")[number % 2]
        write_clip(tmp_path / "videos" / kind / f"{number}.mp4", 8 + number, noise=number % 2)
    return tmp_path


def cells() -> list[str]:
    found = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in found)
    return ["".join(cell["source"]) for cell in found]


def test_ten_cells_go_from_videos_to_a_picture(videos: Path) -> None:
    names: dict[str, object] = {}
    code = cells()
    assert len(code) == 10
    small = {"v.Linear()": "v.Linear(penalties=[1.0])", '"steps": 20': '"steps": 6'}
    assert all("".join(code).count(word) == 1 for word in small)
    for text in code:
        for word, other in small.items():
            text = text.replace(word, other)
        exec(compile(text, str(NOTEBOOK), "exec"), names)
    assert isinstance(names["score"], v.Score)
    assert names["score"].num_test == len(names["test"])
    assert isinstance(names["scores"], v.Scores)
    assert len(list(videos.glob("runs/own_videos/pictures/*.png"))) >= 1


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(videos: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(videos)}}).execute()
    last = notebook.cells[-1].outputs[-1]
    assert "image/png;base64" in last["data"]["text/html"]
