"""Whether the laptop recipes learn what they learned: ``pytest -m learning``, half an hour on two cores."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs.measure_results import PROTOCOLS, apart, blocks, chart, compared, gate, rows_of, scores_of, summary
from vidssl.cli.main import main

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests" / "golden" / "learning.json").read_text())
RECIPES = [name for name in RECORDED if name != "command"]


@pytest.mark.learning
@pytest.mark.parametrize("name", RECIPES)
def test_scores_of_a_laptop_recipe_lie_where_they_were(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"{ROOT}/recipes/{name}.yaml", "run.out=runs"]) == 0
    words = [word for protocol in PROTOCOLS for word in ("--protocol", protocol)]
    assert main(["eval", f"runs/{name}", *words]) == 0
    outside = [
        f"{protocol}, {network}, {row.label}: {row.top1:.3f} is not in [{low}, {high}]"
        for protocol in PROTOCOLS
        for network, rows in scores_of(Path("runs") / name, protocol).scores.items()
        for row in rows
        for low, high in (RECORDED[name][protocol][network][row.label],)
        if not low <= row.top1 <= high
    ]
    assert outside == [], f"if that is as it should be, record it anew: {RECORDED['command']}"


def test_what_is_recorded_shows_that_pretraining_pays() -> None:
    """On a label at least the lowest score of a trained network is above the highest of an untrained one."""
    assert RECIPES
    for name in RECIPES:
        linear = RECORDED[name]["linear"]
        gained = [
            label for label, (low, _) in linear["trained"].items() if low > linear["untrained"][label][1]
        ]
        assert gained, name


def test_commands_of_the_results_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = blocks(page)
    assert found
    assert all(heading for heading, _ in found)
    for _, block in found:
        for word in block.split():
            if word.startswith(("docs/", "recipes/")) and not set(word) & set("${}"):
                assert (ROOT / word).exists() or word.endswith(".svg"), word


def scored(folder: Path, name: str, trained: float, untrained: float) -> Path:
    """A run of 1,000 test videos with a label."""
    run = folder / name
    (run / "scores").mkdir(parents=True)
    lines = '{"step": 1, "seconds": 300.0, "off_cpu_share": 0.6}\n{"step": 2, "seconds": 360.0}\n'
    (run / "metrics.jsonl").write_text(lines)
    return run


def test_the_gate_spans_the_seeds_and_the_table_marks_what_is_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = {"bevt-0": (0.90, 0.70), "bevt-1": (0.92, 0.72)}
    runs = [scored(tmp_path, name, *values) for name, values in tops.items()]

    def scores(run: Path, protocol: str) -> SimpleNamespace:
        rows = zip(("trained", "untrained"), tops[run.name], strict=True)
        return SimpleNamespace(
            scores={
                network: [SimpleNamespace(label="texture", top1=top1, chance=0.17, num_test=1000)]
                for network, top1 in rows
            }
        )

    monkeypatch.setattr("docs.measure_results.scores_of", scores)
    low, high = gate(runs)["bevt"]["linear"]["trained"]["texture"]
    assert (low, high) == pytest.approx((0.88 - 0.02, 0.935 + 0.02), abs=0.003)  # of 1,000 videos
    assert summary(runs) == [
        "| method | it learns | texture | minutes |",
        "| --- | --- | ---: | ---: |",
        "| chance | | 17 | |",
        "| BEVT | which words of a tokenizer fill what is hidden | 91 (71) | 3 |",
    ]


def test_two_grids_come_to_one_table_and_one_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tops = {
        "bevt-seed-0": (0.90, 0.70),
        "bevt-seed-1": (0.92, 0.72),
        "svt-seed-0": (0.60, 0.70),
        "svt-seed-1": (0.8, 0.72),
    }
    for grid, equal in (("steps", {"steps": 300}), ("flops", {"flops": 2e12})):
        prices = {"bevt": {"steps": 300, "flops": 1e10}, "svt": {"steps": 200, "flops": 2e10}}
        for name, values in tops.items():
            scored(tmp_path / grid, name, *values)
        record = {"equal": equal, "cells": {"bevt": {}, "svt": {}}, "seeds": [0, 1], "prices": prices}
        (tmp_path / grid / "grid.json").write_text(json.dumps(record))

    def scores(run: Path, protocol: str) -> SimpleNamespace:
        rows = zip(("trained", "untrained"), tops[run.name], strict=True)
        return SimpleNamespace(
            step=300,
            scores={
                network: [
                    SimpleNamespace(label="texture", top1=top1, chance=0.17, num_test=1000, measure_named="")
                ]
                for network, top1 in rows
            },
        )

    monkeypatch.setattr("docs.measure_results.scores_of", scores)
    grids = [tmp_path / "steps", tmp_path / "flops"]
    assert compared(rows_of(grids), "linear") == [
        "| linear | steps | TFLOPs | minutes | texture |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| chance | | | | 17 |",
        *["| BEVT | 300 | 3.0 | 3.0 | 91.0 ± 12.7 (71) |"] * 2,
        *["| SVT | 300 | 4.0 | 3.0 | 70.0 ± 127.1 (71) |"] * 2,
    ]
    drawn = chart(grids)
    assert [
        drawn.index(name) for name in ("BEVT, 300 steps", "BEVT, equal compute", "SVT, 200 steps")
    ] == sorted(drawn.index(name) for name in ("BEVT, 300 steps", "BEVT, equal compute", "SVT, 200 steps"))


def test_a_chart_names_its_measure_and_has_room_for_numbers_below_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(run: Path, protocol: str) -> SimpleNamespace:
        of = {"num_test": 1000, "chance": 0.0}
        rows = {"trained": 0.5, "untrained": -0.75}
        return SimpleNamespace(
            scores={
                network: [
                    SimpleNamespace(label="speed", measure_named="R2", top1=top1, **of),
                    SimpleNamespace(label="digit", measure_named="", top1=0.0, **of),
                ]
                for network, top1 in rows.items()
            }
        )

    monkeypatch.setattr("docs.measure_results.scores_of", scores)
    drawn = chart([scored(tmp_path, "bevt-0", 0.5, -0.75)])
    assert re.findall(r">([^<>]* %)<", drawn) == ["speed R2, %", "digit, %"]
    assert re.findall(r">(-?\d+)<", drawn) == ["-80", "100", "0", "100"]
    dashed, ring, disc = (
        float(x)
        for x in (
            re.search(p, drawn)[1]
            for p in ('d="M([0-9.]+)', 'cx="([0-9.]+)" cy="56.0" r="4"', 'r="4".*?cx="([0-9.]+)"')
        )
    )
    assert (disc - dashed) / (dashed - ring) == pytest.approx(0.5 / 0.75, rel=0.02)


def test_seeds_that_tie_do_not_make_means_apart() -> None:
    assert not apart((0.5, 0.5), (0.75, 0.75))
    assert apart((0.50, 0.51), (0.90, 0.91))
