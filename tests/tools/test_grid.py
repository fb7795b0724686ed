"""A grid from its file to its tables, each run in this process."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from score_files import PROTOCOL, write_run
from toy_probe import recipe_text

from vidssl.cli import main as cli
from vidssl.compare.grid_tables import StepPrice, grid_tables, read_results
from vidssl.config.grid import load_grid
from vidssl.errors import UsageError
from vidssl.tools import grid as grids
from vidssl.tools.grid import Execution, run_grid

ROOT = Path(__file__).parents[2]
GRID = """name: toy
question: Does it matter?
recipe: base
axes:
  optim.lr: [1e-3, 4e-2]
seeds: [0, 1]
equal: {steps: 2}
labels: [digit]
protocols: [knn, masks]
"""
MASKS = """name: masks
propagate: {window: 2}
data: {test: {type: moving_digits, split: test, size: 16, digit_size: 12, num_frames: 4, num_videos: 4}}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grids, "TIMED", 1)
    Path("recipes/grids").mkdir(parents=True)
    text = recipe_text(num_videos=8).replace("tokenizer: moving_digits\n", "")  # asking it takes longest
    text = text.replace("{type: tube, min_block: 1}", "{type: random_tube, ratio: 0.5}")
    text = text.replace(
        "{type: bevt_video}", "{type: videomae, decoder_dim: 8, decoder_depth: 1, decoder_heads: 2}"
    )
    Path("recipes/base.yaml").write_text(text)
    Path("recipes/grids/toy.yaml").write_text(GRID)
    Path("evaluation").mkdir()
    Path("evaluation/masks.yaml").write_text(MASKS)
    finetune = (ROOT / "evaluation/finetune.yaml").read_text()
    Path("evaluation/windows.yaml").write_text(f"{finetune}\nbackbone: {{window: [8, 7, 7]}}\n")


def here(given: list[Sequence[str]], fails: str = "") -> grids.Runner:
    """Runs commands of vidssl in this process, and notes them."""

    def run(commands: grids.Commands, log: Path, name: str) -> int:
        given.extend(command[3:] for command in commands)
        log.write_text("it broke\n" if name == fails else "")
        return 2 if name == fails else max(cli.main(list(command[3:])) for command in commands)

    return run


def test_a_grid_is_trained_once_and_ends_in_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Sequence[str]] = []
    monkeypatch.setattr(grids, "on_this_machine", lambda *_: here(given, fails="lr_0.04-seed-1"))
    assert run_grid("toy") == 1
    said = capsys.readouterr().out
    assert "FAILED: lr_0.04-seed-1: it broke" in said
    assert "lr_0.04-seed-1: training, vidssl watch runs/toy/lr_0.04-seed-1 draws it; log: " in said
    assert [words[0] for words in given] == ["train", "eval"] * 4

    given.clear()
    monkeypatch.setattr(grids, "on_this_machine", lambda *_: here(given))
    assert run_grid("toy") == 0  # what is done is left alone
    assert [words[1] for words in given] == [
        "runs/toy/recipes/lr_0.04-seed-1.yaml",
        "runs/toy/lr_0.04-seed-1",
    ]
    written = Path("runs/toy/results.md").read_text()
    for words in (
        "# Does it matter?",
        "pairs",
        "| J&F masks | J masks | F masks |",
        "masks, pairs: second less first",
        "cost, all trained for 2 steps",
    ):
        assert words in written
    assert len(Path("runs/toy/scores.csv").read_text().splitlines()) > 8

    results = read_results(Path("runs/toy"))
    assert [cell.price.steps for cell in results.cells] == [2] * 2
    assert results.cells[0].price.flops > 1e5
    assert results.cells[0].price.samples == 4
    with pytest.raises(UsageError, match=r"was begun with another grid \(schedule.steps\)"):
        run_grid("toy", ["equal={steps: 3}"])


def test_effects_are_differences_of_means_over_all_else() -> None:
    """Four cells, two seeds, twelve videos of four classes; the answers are made up."""
    truth, price = [0, 1, 2, 3] * 3, StepPrice("", 10, 0.5, 7, 4, 100)
    wrong = {("a", "x"): (6, 5), ("a", "y"): (5, 4), ("b", "x"): (4, 4), ("b", "y"): (0, 1)}
    for (one, other), counts in wrong.items():
        for seed, count in enumerate(counts):
            guess = [(number + 1) % 4 for number in truth[:count]] + truth[count:]
            run = Path(f"runs/g/{one}-{other}-seed-{seed}")
            write_run(run, truth, guess, seed=seed, objective=f"{{type: {one}{other}}}")
            (run / "metrics.jsonl").write_text('{"step": 5, "seconds": 12.0}\n')
    names = {f"{one}-{other}": {"one": one, "other": other} for one, other in wrong}
    described = {
        "format": "vidssl grid 1", "name": "g", "question": "", "equal": {"steps": 100}, "labels": [],
        "axes": ["one", "other"], "seeds": [0, 1, 2], "cells": names,
        "prices": {name: asdict(price) for name in names},
    }  # fmt: skip
    Path("runs/g/grid.json").write_text(json.dumps(described))
    cells, main, interactions, pairs, costs = grid_tables(read_results(Path("runs/g")))
    assert [row[:2] for row in cells.rows] == [*wrong, ("chance", "")]
    assert cells.rows[0][2].startswith("54.2 ± ")  # 11 of 24 wrong
    assert "2 seeds" in cells.title
    assert [row[1:5] for row in main.rows] == [
        ("one", "a to b", "2", "+22.9"),  # (20 - 9) of 48
        ("other", "x to y", "2", "+18.8"),  # (19 - 10) of 48
    ]
    assert [row[1:4] for row in interactions.rows] == [("a to b", "x to y", "+20.8")]  # (8 - 1) less (11 - 9)
    assert [row[1:3] for row in pairs.rows] == [
        ("a-x", "a-y"), ("a-x", "b-x"), ("a-y", "b-y"), ("b-x", "b-y")
    ]  # fmt: skip
    assert [row[3] for row in pairs.rows] == ["+8.3", "+12.5", "+33.3", "+29.2"]
    assert costs.rows[0] == ("a-x", "7", "100", "400", "10", "1e+03", "12 s")


def test_cells_that_see_clips_of_their_own_are_compared_and_named() -> None:
    """The answers are made up: of eight videos the second cell gets two more right."""
    truth, price = [0, 1] * 4, StepPrice("", 10, 0.5, 7, 4, 100)
    protocol = PROTOCOL + "  views: {type: uniform_clips, num_frames: NUMBER}\n"
    for name, number, wrong in (("short", 4, 3), ("long", 8, 1)):
        run, guess = Path(f"runs/g/{name}-seed-0"), [1 - each for each in truth[:wrong]] + truth[wrong:]
        write_run(run, truth, guess, protocol=protocol.replace("NUMBER", str(number)))
        (run / "metrics.jsonl").write_text('{"step": 5, "seconds": 12.0}\n')
    described = {
        "format": "vidssl grid 1", "name": "g", "question": "", "equal": {"steps": 100}, "labels": [],
        "axes": ["cell"], "seeds": [0], "cells": {name: {"cell": name} for name in ("short", "long")},
        "prices": {name: asdict(price) for name in ("short", "long")},
    }  # fmt: skip
    Path("runs/g/grid.json").write_text(json.dumps(described))
    cells, pairs, _ = grid_tables(read_results(Path("runs/g")))
    assert cells.title.endswith("1 seed; scored on clips of their own: long (data.views.num_frames 8)")
    assert pairs.rows[0][3] == "+25.0"
    assert cli.main(["report", "runs/g", "-o", "g.html", "--no-pictures"]) == 0
    write_run(Path("runs/g/long-seed-0"), truth, truth, protocol=protocol.replace("k: 20", "k: 5"))
    with pytest.raises(UsageError, match=r"evaluator.k is 20 and 5"):
        read_results(Path("runs/g"))


def test_cells_that_would_be_scored_in_two_ways_are_refused_before_anything_is_trained() -> None:
    text = (
        GRID.split("axes")[0] + "cells: {all: {}, few: {data.probe.train.num_videos: 4}}\nprotocols: [knn]\n"
    )
    Path("recipes/grids/toy.yaml").write_text(text)
    with pytest.raises(
        UsageError, match=r"knn: cells all and few .*\n  data.train.num_videos is 8 and 4\n.*--eval"
    ):
        run_grid("toy")
    assert not Path("runs").exists()


def test_equal_compute_gives_a_dearer_cell_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "_run_all", lambda *_: 130)  # nothing is trained
    Path("recipes/grids/toy.yaml").write_text(
        GRID.split("axes")[0] + "cells: {small: {}, deep: {backbone.depth: 8}}\nequal: {flops: 2e8}\n"
    )
    assert run_grid("toy") == 130
    prices = json.loads(Path("runs/toy/grid.json").read_text())["prices"]
    for price in prices.values():
        assert price["steps"] == int(2e8 / price["flops"])
    assert prices["deep"]["flops"] > 1.5 * prices["small"]["flops"]
    recipe = Path("runs/toy/recipes/deep-seed-0.yaml").read_text()
    assert f"steps: {prices['deep']['steps']}" in recipe
    with pytest.raises(UsageError, match="is less than a step takes"):
        run_grid("toy", ["name=less", "equal={flops: 10}"])


@pytest.mark.parametrize("measure", ["seconds", "epochs"])
def test_equal_time_and_equal_epochs_set_the_steps(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids, "_run_all", lambda *_: 130)  # nothing is trained
    cells = "cells: {one: {}, half: {data.video.batch_size: 2}}\n"
    Path("recipes/grids/toy.yaml").write_text(GRID.split("axes")[0] + cells + f"equal: {{{measure}: 3}}\n")
    assert run_grid("toy") == 130
    prices = json.loads(Path("runs/toy/grid.json").read_text())["prices"]
    for price in prices.values():
        # 8 videos an epoch, and as many clips a step as the cell has
        wanted = 3 / price["seconds"] if measure == "seconds" else 3 * 8 / price["samples"]
        assert price["steps"] == int(wanted)
    assert [price["samples"] for price in prices.values()] == [4, 2]
    recipe = Path("runs/toy/recipes/half-seed-0.yaml").read_text()
    assert f"{measure}: 3" in recipe or f"steps: {prices['half']['steps']}" in recipe


def test_several_runs_go_at_once_each_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    both, given = threading.Barrier(2), []

    def run(commands: grids.Commands, log: Path, name: str) -> int:
        both.wait(60)  # nobody comes before another does
        given.extend(commands)
        log.write_text("")
        return 1

    monkeypatch.setattr(grids, "on_this_machine", lambda *_: run)
    with pytest.raises(UsageError, match="has scores yet"):  # to show tables of
        run_grid("toy", ["protocols=[knn]"], execution=Execution(jobs=2, processes=2))
    assert len(given) == 2 * 4
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "vidssl",
    ]
    assert all(command[: len(launcher)] == launcher for command in given)


def test_each_job_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grids.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(grids, "num_cpus", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen: list[Mapping[str, str]] = []
    monkeypatch.setattr(
        grids, "run_commands", lambda commands, log, environment: seen.append(environment) or 0
    )
    run = grids.on_this_machine(2, 2)
    assert run((), Path("log"), "a") == run((), Path("log"), "b") == 0
    assert seen == [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": devices} for devices in ("0,1", "2,3")]


@pytest.mark.parametrize(
    ("changed", "execution", "said"),
    [
        ([], Execution(parameters=["a=1"]), "add --submit slurm"),
        (["protocols=[tokenizer]"], Execution(), "measures tokenizers"),
        (["data.probe=null"], Execution(), "--eval 'data.train={...}'"),
        (["optim.rate=1"], Execution(), "unknown key"),
        (["protocols=[windows]"], Execution(), "backbone.window: unknown key"),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_trained(
    changed: list[str], execution: Execution, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run_grid("toy", changed, execution=execution)
    assert said in str(caught.value)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["optim.lr: [1e-3, 0.001]"], "a value stands there twice"),
        (
            [f"optim.lr: {list(range(1, 41))}", f"seed: {list(range(40))}"],
            "1,600 combinations",
        ),
        (["optim.lr: [1, 2]\nequal: {flops: .inf}"], "flops must be finite"),
    ],
)
def test_grids_that_cannot_be_meant_are_refused(changed: list[str], said: str) -> None:
    axes = "\n  ".join(changed)
    Path("odd.yaml").write_text(f"name: odd\nquestion: q\nrecipe: base\naxes:\n  {axes}\n")
    with pytest.raises(UsageError, match=said):
        load_grid("odd.yaml")


def test_commands_run_one_after_another_up_to_the_first_that_fails() -> None:
    def command(code: int) -> list[str]:
        return [sys.executable, "-c", f"print('ran {code}'); raise SystemExit({code})"]

    log = Path("log.txt")
    assert grids.on_this_machine(1, 1)([command(0), command(3), command(0)], log, "x") == 3
    assert [line for line in log.read_text().splitlines() if not line.startswith("$")] == ["ran 0", "ran 3"]


def test_tables_refuse_what_they_would_not_heed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run.device=cpu", "name=other", "seeds=[0]", "--jobs", "2", "--eval", "evaluator.k=3"]
    assert cli.main(["grid", "targets", "--tables", *words]) == 2
    named = "run.device=cpu, seeds=[0], --jobs, --eval: --tables shows what was trained and scored, as it was"
    assert named in capsys.readouterr().err
    assert cli.main(["grid", "targets", "--tables", "name=other"]) == 2
    assert "runs/other: no grid was begun in it" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_after_a_signal_the_run_under_way_has_the_time_to_save(number: signal.Signals) -> None:
    child = (
        "import signal, sys, time; from pathlib import Path; asked = [];"
        "signal.signal(signal.SIGTERM, lambda *_: asked.append('asked'));"
        "Path('begun').touch(); time.sleep(0.9); Path('saved').write_text(' '.join(asked)); sys.exit(130)"
    )

    def strike() -> None:
        while not Path("begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    stop, striker = threading.Event(), threading.Thread(target=strike)
    before = signal.signal(number, signal.default_int_handler)  # nohup has SIGHUP ignored
    striker.start()
    with grids._ends(stop):
        code = grids.run_commands([[sys.executable, "-c", child]], Path("log.txt"), {})
    striker.join()
    signal.signal(number, before)
    assert code == 130
    assert stop.is_set()
    assert Path("saved").read_text() == ("" if number == signal.SIGINT else "asked")


@pytest.mark.slow
def test_jobs_go_through_submitit() -> None:
    pytest.importorskip("submitit")
    run = grids.through_submitit("local", ["timeout_min=1"], Path("jobs"))
    log = Path("log.txt")
    assert run([[sys.executable, "-c", "print('ran')"]], log, "one") == 0
    assert "ran" in log.read_text()
    assert run([[sys.executable, "-c", "raise SystemExit(4)"]], log, "two") == 4
    with pytest.raises(UsageError, match="KEY=VALUE"):
        grids.through_submitit("local", ["timeout"], Path("jobs"))
