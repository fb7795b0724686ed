"""The self-test of a GPU on a CPU: the same parts, small; whatever becomes of one, it has a row."""

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vidssl.build import build
from vidssl.cli.main import main
from vidssl.config.recipe import load_recipe
from vidssl.engine.parallel import in_shards
from vidssl.tools import selftest_gpu
from vidssl.tools.selftest_gpu import PARTS, Bench, Row, _group_of_one, _row_of, apart, page, peak_flops
from vidssl.train.trial import Trial, random_batch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_curves_are_compared_where_they_begin_and_end() -> None:
    one, other = [2.0, *[1.0] * 19, 9.0], [2.2, *[1.0] * 17, 1.1, 1.3]
    assert apart(one, other) == pytest.approx((0.1, 0.2))
    assert apart([2.0], [1.0]) == pytest.approx((0.5, 0.5))
    assert not apart([1.0], [math.nan])[0] <= 1.0


@pytest.mark.parametrize(
    ("code", "found", "log", "status", "said"),
    [
        (0, ("ok", "fine"), "", "ok", "fine"),
        (1, None, "Traceback\n  x\nRuntimeError: no\n", "failed", "RuntimeError: no"),
        (1, ("ok", "fine"), "OutOfMemoryError: more\n", "failed", "OutOfMemoryError: more"),
        (-9, None, "", "failed", "exit code -9"),
        (None, None, "busy\n", "not run", "no end within 7 s"),
        (None, ("ok", "fine"), "busy\n", "ok", "fine; then no end within 7 s"),
    ],
)
def test_whatever_becomes_of_a_part_it_has_a_row(
    code: int | None, found: tuple[str, str] | None, log: str, status: str, said: str
) -> None:
    bench = Bench("a part", "cpu", 1.0, Path("row.json"))
    if found is not None:
        bench.found(*found, {"speed": 2.0})
    row = _row_of(bench, code, 7.0, log)
    assert (row.part, row.status, row.said) == ("a part", status, said)
    assert row.numbers == ({"speed": 2.0} if found else {})


def test_the_page_has_a_row_for_each_part_and_what_sizes_reach() -> None:
    numbers = {
        "batch": 32, "clips_per_second": 123.4, "flops_per_clip": 5.5e11, "mfu": 0.41,
        "compiled_clips_per_second": 150.0, "compiled_mfu": 0.5, "peak_bytes": 3 * 2**30,
    }  # fmt: skip
    said = page([Row("faiss", "absent", "a|b"), Row("size ViT-B", "ok", "fast", numbers)], "cpu")
    assert said.startswith("NOT A GPU")
    assert "| faiss | absent | a/b |\n" in said
    assert "| ViT-B | 32 | 123 | 0.55 | 41% | 150 | 50% | 3 |\n" in said


def test_without_a_gpu_it_says_in_one_line_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["selftest", "gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vidssl: selftest gpu needs a CUDA device, and torch ")
    assert "--device cpu" in line
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu", "bevt"], "selftest takes 'resume' and a recipe, or 'gpu', got gpu bevt"),
        (["gpu", "--steps", "3"], "--steps means nothing to selftest gpu"),
        (["resume", "bevt", "--device", "cpu"], "--device means nothing to selftest resume"),
        (
            ["gpu", "--device", "cpu", "--only", "nothing"],
            "--only: no part begins with nothing; there are device",
        ),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


class Here:
    """A part's process, which takes three seconds to import everything: the part is run in this one."""

    pid = 2**30  # nobody's

    def __init__(self, command: list[str], **_: object) -> None:
        name, device, seconds, file = command[-4:]
        PARTS[name].run(Bench(name, device, float(seconds), Path(file)))

    def wait(self, limit: float) -> int:
        return 0


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_part_runs_in_a_process_of_its_own(
    own: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not own:
        theirs = {"STDOUT": subprocess.STDOUT, "TimeoutExpired": subprocess.TimeoutExpired}
        monkeypatch.setattr(selftest_gpu, "subprocess", SimpleNamespace(Popen=Here, **theirs))
    words = ["--device", "cpu", "--only", "nvdec", "--seconds", "300", "--out", "found.json"]
    Path("found.json").touch()
    assert main(["selftest", "gpu", *words]) == 0
    said = capsys.readouterr().out
    assert "NOT A GPU" in said
    assert "found.json: is there already, and is replaced" in said
    found = json.loads(Path("found.json").read_text())
    assert [row["part"] for row in found["rows"]] == ["nvdec"]
    assert found["rows"][0]["status"] in ("ok", "absent")
    assert "torch" in json.dumps(found["environment"])
    assert Path("found.md").read_text().startswith("NOT A GPU")


def test_one_process_trains_in_shards_what_it_trains_whole() -> None:
    found = {}
    for parallel in ("ddp", "fsdp"):
        words = ["data.video.batch_size=2", "run.device=cpu", f"run.parallel={parallel}"]
        recipe = load_recipe("svt", ["backbone.depth=2", "backbone.embed_dim=16", *words])
        with _group_of_one(Bench("fsdp", "cpu", 1.0, Path("row.json"))):
            torch.manual_seed(0)
            trial = Trial(recipe, build.untrained(recipe), build.schedule(recipe).plan({"video": 100.0}))
            metrics = [trial.take(step, random_batch(recipe)) for step in range(2)]
            sharded = in_shards(list(trial.moving.objective.parameters()))
        assert sharded == (parallel == "fsdp")
        found[parallel] = [float(each["loss"]) for each in metrics]
    assert found["fsdp"] == pytest.approx(found["ddp"], rel=1e-5)


@pytest.mark.slow
def test_all_parts_run_on_a_cpu() -> None:
    assert main(["selftest", "gpu", "--device", "cpu", "--seconds", "3000"]) == 0
    rows = json.loads(Path("selftest-gpu.json").read_text())["rows"]
    assert [row["part"] for row in rows] == list(PARTS)
    allowed = {"tests": {"not run"}, "faiss": {"ok", "absent"}, "nvdec": {"ok", "absent"}}
    assert [row for row in rows if row["status"] not in allowed.get(row["part"], {"ok"})] == []
    compared = [row["numbers"] for row in rows if "first" in row["numbers"]]
    assert {numbers["steps"] for numbers in compared} == {3}
    assert any(numbers["first"] > 0 for numbers in compared)
