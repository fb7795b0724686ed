"""Probes every checkpoint of runs of one recipe with several seeds, and prints the curves as Markdown.

    python docs/measure_runs.py runs/bevt_long runs/bevt_long-2 runs/bevt_long-3 --chart docs/bevt_long.svg

Every run is one seed. Numbers are means over the seeds; what follows ± is half the 95 % interval of that mean
(Student's t). Features are the means of all stages side by
side. "Untrained" is each seed's own network as it was drawn before training.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from vidssl.build import build
from vidssl.config.recipe import Recipe, recipe_from_text
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.evaluators.extract import extract
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.linear import Linear
from vidssl.evaluators.scores import Score, probe
from vidssl.interfaces import Backbone
from vidssl.weights.load import load_whole

STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # number of seeds -> quantile
PROBES = {"linear": Linear(penalties=(1.0, 10.0, 100.0, 1000.0)), "kNN": KNN(k=20)}  # as in evaluation/
CHARTED = "linear"
Scores = dict[tuple[str, str], Score]  # (probe, label) -> score


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("runs", nargs="+", type=Path)
    arguments.add_argument("--chart", type=Path, help="SVG file to draw the linear probe into")
    given = arguments.parse_args()
    curves = [probe_run(run) for run in given.runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    print_probes(curves, steps)
    print_pretext([read_metrics(run) for run in given.runs], steps)
    if given.chart:
        given.chart.write_text(chart(curves, steps))


def probe_run(run: Path) -> dict[int, Scores]:
    """Step -> scores; step 0 is the untrained network."""
    paths = sorted((run / "checkpoints").glob("step-*.safetensors"))
    recipe = recipe_from_text(read_checkpoint(paths[0]).recipe, str(run))
    torch.manual_seed(recipe.seed)
    curve = {0: probe_network(build.backbone(recipe, with_init=False), recipe)}
    for path in paths:
        checkpoint = read_checkpoint(path)
        backbone = build.backbone(recipe, with_init=False)
        load_whole(backbone, checkpoint.encoder, path)
        curve[checkpoint.step] = probe_network(backbone, recipe)
    return curve


def probe_network(backbone: Backbone, recipe: Recipe) -> Scores:
    """Every probe on every label, under the recipe's own labelled data."""
    data = recipe.data.probe
    assert data is not None, "the recipe names labelled videos"
    views = build.views(data.views)
    train, test = (
        extract(backbone, build.source(part), views, layers="all") for part in (data.train, data.test)
    )
    return {(name, score.label): score for name, how in PROBES.items() for score in probe(how, train, test)}


def mean_and_half_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval; the interval of one seed is unknown."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, STUDENT_95[len(values)] * deviation / math.sqrt(len(values))


def print_probes(curves: Sequence[Mapping[int, Scores]], steps: Sequence[int]) -> None:
    first = curves[0][0]
    labels = list(dict.fromkeys(label for _, label in first))
    for name in PROBES:
        some = first[name, labels[0]]
        print(
            f"\n{name}, {some.num_train} labelled videos, {some.num_test} test videos, {len(curves)} seeds:\n"
        )
        print(f"| step | {' | '.join(labels)} |\n| --- |{' ---: |' * len(labels)}")
        print(f"| chance | {' | '.join(f'{100 * first[name, label].chance:.1f}' for label in labels)} |")
        for step in steps:
            cells = (shown(100 * curve[step][name, label].top1 for curve in curves) for label in labels)
            print(f"| {step or 'untrained'} | {' | '.join(cells)} |")


def shown(values: Iterable[float]) -> str:
    mean, half = mean_and_half_interval(list(values))
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def read_metrics(run: Path) -> dict[int, dict[str, float]]:
    """Step -> what was measured on held-out videos during training."""
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record for record in records if "test_accuracy_video" in record}


def print_pretext(runs: Sequence[Mapping[int, Mapping[str, float]]], steps: Sequence[int]) -> None:
    names = [
        f"{what}_{stream}"
        for stream in ("video", "image")
        for what in ("accuracy", "most_frequent", "copy_nearest")
    ]
    print(f"\nHidden ids predicted right on test videos, %:\n\n| step | {' | '.join(names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    for step in steps:
        if all(step in run for run in runs):
            cells = (shown(100 * run[step][f"test_{name}"] for run in runs) for name in names)
            print(f"| {step} | {' | '.join(cells)} |")


# ------------------------------------------------------------------------------------------------ chart

WIDTH, HEIGHT, LEFT, TOP = 250, 170, 45, 30
GAP = 40


def chart(curves: Sequence[Mapping[int, Scores]], steps: Sequence[int]) -> str:
    """An SVG with a panel a label: the linear probe over steps with its interval, untrained and chance."""
    labels = [label for name, label in curves[0][0] if name == CHARTED]
    panels = [panel(label, column, curves, steps) for column, label in enumerate(labels)]
    width = LEFT + len(labels) * (WIDTH + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + 50}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "".join(panels)
        + "</svg>\n"
    )


def panel(label: str, column: int, curves: Sequence[Mapping[int, Scores]], steps: Sequence[int]) -> str:
    left, last = LEFT + column * (WIDTH + GAP), max(steps)

    def at(step: float, percent: float) -> str:
        return f"{left + WIDTH * step / last:.1f},{TOP + HEIGHT * (1 - percent / 100):.1f}"

    points = [
        (step, *mean_and_half_interval([100 * c[step][CHARTED, label].top1 for c in curves]))
        for step in steps
    ]
    chance = 100 * curves[0][0][CHARTED, label].chance
    band = [at(s, m + h) for s, m, h in points] + [at(s, m - h) for s, m, h in reversed(points)]
    ticks = "".join(
        f'<text x="{left - 6}" y="{TOP + HEIGHT * (1 - y / 100) + 4}" text-anchor="end">{y}</text>'
        for y in (0, 50, 100)
    )
    return (
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>{ticks}'
        f'<text x="{left}" y="{TOP - 10}" font-weight="bold">{label}, {CHARTED} probe, %</text>'
        f'<text x="{left}" y="{TOP + HEIGHT + 16}">0</text>'
        f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 16}" text-anchor="end">{last} steps</text>'
        f'<polygon points="{" ".join(band)}" fill="#1f77b4" opacity="0.25"/>'
        + line([at(s, m) for s, m, _ in points], 'stroke="#1f77b4" stroke-width="2"')
        + line([at(0, points[0][1]), at(last, points[0][1])], 'stroke="#d62728" stroke-dasharray="5,3"')
        + line([at(0, chance), at(last, chance)], 'stroke="#777" stroke-dasharray="2,3"')
        + f'<text x="{left + 4}" y="{TOP + HEIGHT + 34}"><tspan fill="#1f77b4">trained</tspan> '
        '<tspan fill="#d62728">untrained</tspan> <tspan fill="#777">chance</tspan></text>'
    )


def line(points: Sequence[str], style: str) -> str:
    return f'<polyline points="{" ".join(points)}" fill="none" {style}/>'


if __name__ == "__main__":
    main()
