"""Makes the numbers of docs/results.md again, and what README and the gate of learning have of them.

    python docs/measure_results.py                         # all commands of docs/results.md: takes hours
    python docs/measure_results.py --below "SVT in five"   # those below headings with these words
    python docs/measure_results.py --list                  # shows them
    python docs/measure_results.py --summary runs/NAME-{0,1,2} ...              # README's table
    python docs/measure_results.py --chart runs/NAME-{0,1,2} ... > docs/methods.svg
    python docs/measure_results.py --gate runs/{bevt,svt,vimpac}-{0,1,2} > tests/golden/learning.json
    python docs/measure_results.py --compared runs/objectives runs/objectives_flops   # tables of grids
    python docs/measure_results.py --chart runs/objectives runs/objectives_flops > docs/objectives.svg

The commands are the page's own: what stands in its blocks of bash. So the page cannot name others than those
that are run. Runs of one recipe are called NAME-SEED (in the folder of a grid NAME-seed-SEED) and scored with
``--protocol linear --protocol knn``.
"""

import argparse
import json
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidssl.evaluate.score_file import ScoreFile, read_scores
from vidssl.evaluators.statistics import mean_over_seeds, wilson_interval

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
PROTOCOLS = ("linear", "knn")
METHODS = {
    "bevt": ("BEVT", "which words of a tokenizer fill what is hidden"),
    "svt": ("SVT", "that views of a video say the same"),
    "videomae": ("VideoMAE", "hidden words too; encodes what is visible alone"),
    "vimpac": ("VIMPAC", "hidden words, and which clips are of one video"),
    "vjepa": ("V-JEPA", "features of what is hidden, by a running average of itself"),
    "lejepa": ("LeJEPA", "that crops of a clip say the same, spread like a Gaussian"),
}
SLACK = 0.02  # of the gate: another machine or number of threads adds in another order
GATE = "python docs/measure_results.py --gate"


def blocks(page: str) -> list[tuple[str, str]]:
    """The heading above each block of bash in a page of Markdown, and the block."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


def run_blocks(words: str, *, only_list: bool) -> None:
    """Runs the page's blocks below headings with these words, each in its own shell; stops at an error."""
    for heading, commands in blocks(PAGE.read_text(encoding="utf-8")):
        if words.lower() in heading.lower():
            print(f"\n## {heading}\n\n{commands}", flush=True)
            if not only_list:
                subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=ROOT, check=True)


def grouped(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs by the name of their recipe: ``bevt`` for ``bevt-0``, ``bevt-1`` and ``bevt-seed-2``."""
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(run.name.rsplit("-", 1)[0].removesuffix("-seed"), []).append(run)
    return groups


@dataclass(frozen=True)
class Row:
    """The runs of one objective under one condition, of a table or a chart."""

    method: str
    condition: str  # what was equal; empty where each run has a length of its own
    runs: list[Path]
    flops: float  # of a training; 0 where it was not counted


def rows_of(folders: Sequence[Path]) -> list[Row]:
    """Rows of runs, or of all runs of grids; of one objective beside each other."""
    rows = []
    grids = [folder for folder in folders if (folder / "grid.json").is_file()]
    for grid in grids:
        record = json.loads((grid / "grid.json").read_text(encoding="utf-8"))
        for cell, runs in grouped(
            [grid / f"{c}-seed-{n}" for c in record["cells"] for n in record["seeds"]]
        ).items():
            price = record["prices"][cell]
            by_steps = "steps" in (record["equal"] or ("steps",))
            condition = f"{price['steps']} steps" if by_steps else "equal compute"
            rows.append(Row(cell, condition, runs, price["steps"] * price["flops"]))
    rows += [
        Row(name, "", runs, 0.0)
        for name, runs in grouped([run for run in folders if run not in grids]).items()
    ]
    order = list(dict.fromkeys(row.method for row in rows))
    return sorted(rows, key=lambda row: order.index(row.method))


def compared(rows: Sequence[Row], protocol: str) -> list[str]:
    """A row for each objective and condition: trained ± half its interval (untrained), bold where apart."""
    lines: list[str] = []
    for row in rows:
        found = by_label(row.runs, protocol)
        if not lines:
            chances = [score.chance or 0.0 for score in scores_of(row.runs[0], protocol).scores["trained"]]
            lines = [
                f"| {protocol} | steps | TFLOPs | minutes | {' | '.join(found['trained'])} |",
                f"| --- |{' ---: |' * (len(chances) + 3)}",
                f"| chance | | | | {' | '.join(f'{100 * chance:.0f}' for chance in chances)} |",
            ]
        cells = []
        for label, values in found["trained"].items():
            (mean, half), (start, _) = over_seeds(values), over_seeds(found["untrained"][label])
            strong = "**" if apart(values, found["untrained"][label]) and mean > start else ""
            cells.append(f"{strong}{100 * mean:.1f} ± {100 * half:.1f}{strong} ({100 * start:.0f})")
        steps = scores_of(row.runs[0], protocol).step
        spent = f"{steps} | {row.flops / 1e12:.1f} | {minutes(row.runs):.1f}"
        lines.append(f"| {METHODS.get(row.method, (row.method,))[0]} | {spent} | {' | '.join(cells)} |")
    return lines


def scores_of(run: Path, protocol: str) -> ScoreFile:
    """The scores of a run's last checkpoint."""
    files = sorted((run / "scores").glob(f"{protocol}-step-*.json"))
    if not files:
        raise SystemExit(f"{run}: no scores; first: vidssl eval {run} --protocol {protocol}")
    return read_scores(files[-1])


def by_label(runs: Sequence[Path], protocol: str) -> dict[str, dict[str, list[float]]]:
    """Network -> label -> top-1 of each run."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for network, rows in scores_of(run, protocol).scores.items():
            for row in rows:
                found.setdefault(network, {}).setdefault(row.label, []).append(row.top1)
    return found


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval; 0 of a single run, of which it is not known."""
    mean, half = mean_over_seeds(values) if len(values) > 1 else (values[0], None)
    return mean, half or 0.0


def apart(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the 95 % intervals of two means over seeds do not meet; not where all seeds tie."""
    (a, half_a), (b, half_b) = over_seeds(one), over_seeds(other)
    return min(len(one), len(other)) > 1 and abs(a - b) > half_a + half_b > 0


def summary(runs: Sequence[Path]) -> list[str]:
    """A row for each method, of the linear probe: trained (untrained), bold where intervals are apart."""
    lines: list[str] = []
    for name, group in grouped(runs).items():
        found = by_label(group, "linear")
        trained, untrained = found["trained"], found["untrained"]
        if not lines:
            chances = {row.label: row.chance for row in scores_of(group[0], "linear").scores["trained"]}
            lines = [
                f"| method | it learns | {' | '.join(trained)} | minutes |",
                f"| --- | --- |{' ---: |' * (len(trained) + 1)}",
            ]
            cells = [f"{100 * (chance or 0.0):.0f}" for chance in chances.values()]
            lines += [f"| chance | | {' | '.join(cells)} | |"]
        cells = []
        for label, values in trained.items():
            mean, other = (100 * over_seeds(each)[0] for each in (values, untrained[label]))
            strong = "**" if apart(values, untrained[label]) else ""
            cells.append(f"{strong}{mean:.0f}{strong} ({other:.0f})")
        method = " | ".join(METHODS.get(name, (name, "")))
        lines.append(f"| {method} | {' | '.join(cells)} | {minutes(group):.0f} |")
    return lines


def minutes(runs: Sequence[Path]) -> float:
    """Of training, mean over the runs, less the time in which other processes had the CPU."""
    taken = 0.0
    for run in runs:
        last = 0.0
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            taken += (record["seconds"] - last) * (1 - record.get("off_cpu_share", 0.0))
            last = record["seconds"]
    return taken / len(runs) / 60


PANEL, ROW, TOP = 180, 24, 44  # of the chart, in pixels


def chart(folders: Sequence[Path]) -> str:
    """An SVG with a panel a label, a line a method, of grids a line a method and condition.

    It goes from the untrained network (ring) to the trained (disc). Linear probe, or kNN where there is
    none, mean over seeds; the bar is the 95 % interval of the trained mean, the dashed line chance.
    """
    rows = rows_of(folders)
    protocol = "linear" if any((rows[0].runs[0] / "scores").glob("linear-step-*.json")) else "knn"
    found = [by_label(row.runs, protocol) for row in rows]
    first = scores_of(rows[0].runs[0], protocol)
    chances = {score.label: score.chance or 0.0 for score in first.scores["trained"]}
    measures = {score.label: score.measure_named for score in first.scores["trained"]}
    alike = len({row.condition for row in rows}) == 1
    names = [
        ", ".join(filter(None, (METHODS.get(row.method, (row.method,))[0], "" if alike else row.condition)))
        for row in rows
    ]
    left_of_all, bottom = 34 + 7 * max(map(len, names)), TOP + ROW * len(found)
    parts = [
        f'<text x="{left_of_all - 10}" y="{TOP + ROW * (place + 0.5) + 4}" text-anchor="end">{name}</text>'
        for place, name in enumerate(names)
    ]
    for column, (label, chance) in enumerate(chances.items()):
        left, measure = left_of_all + column * (PANEL + 20), measures[label]
        shown = [[over_seeds(scores[name][label]) for name in ("trained", "untrained")] for scores in found]
        # the end of the scale, in whole tenths: R2 has values below 0
        ends = [min(mean - half, start) for (mean, half), (start, _) in shown] if measure == "R2" else []
        least = math.floor(10 * min([0.0, *ends])) / 10

        def at(value: float, left: int = left, least: float = least) -> float:
            return left + PANEL * (min(1.0, max(least, value)) - least) / (1 - least)

        parts.append(
            f'<text x="{left}" y="{TOP - 12}" font-weight="bold">{f"{label} {measure}".strip()}, %</text>'
            f'<rect x="{left}" y="{TOP}" width="{PANEL}" height="{bottom - TOP}" fill="none" stroke="#bbb"/>'
            f'<path d="M{at(chance):.1f} {TOP}V{bottom}" stroke="#777" stroke-dasharray="3,3"/>'
            f'<text x="{left}" y="{bottom + 16}">{100 * least:.0f}</text>'
            f'<text x="{left + PANEL}" y="{bottom + 16}" text-anchor="end">100</text>'
        )
        for place, (scores, ((mean, half), (start, _))) in enumerate(zip(found, shown, strict=True)):
            y = TOP + ROW * (place + 0.5)
            won = "#1a7f37" if mean >= start else "#cf222e"
            colour = won if apart(scores["trained"][label], scores["untrained"][label]) else "#888"
            a, b, low, high = map(at, (start, mean, mean - half, mean + half))
            parts.append(
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="6" '
                'opacity="0.3"/>'
                f'<circle cx="{a:.1f}" cy="{y}" r="4" fill="white" stroke="#555"/>'
                f'<circle cx="{b:.1f}" cy="{y}" r="5" fill="{colour}"/>'
            )
    width = left_of_all + len(chances) * (PANEL + 20)
    head = f"{protocol}; ring: untrained; disc: trained, coloured where 95 % bars are apart; dashed: chance"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 50}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + f'<text x="{left_of_all}" y="{bottom + 38}" fill="#555">{head}</text></svg>\n'
    )


def gate(runs: Sequence[Path]) -> dict[str, object]:
    """Recipe -> protocol -> network -> label -> the interval that the score of a seed has to lie in.

    From the lowest to the highest score of the seeds, each as uncertain as its test videos make it.
    """
    record: dict[str, object] = {"command": f"{GATE} {' '.join(str(run) for run in runs)}"}
    for name, group in grouped(runs).items():
        record[name] = {
            protocol: {
                network: {label: interval(values, group[0], protocol) for label, values in rows.items()}
                for network, rows in by_label(group, protocol).items()
            }
            for protocol in PROTOCOLS
        }
    return record


def interval(values: Sequence[float], run: Path, protocol: str) -> list[float]:
    number = next(iter(scores_of(run, protocol).scores.values()))[0].num_test
    ends = [wilson_interval(value * number, number) for value in values]
    return [round(min(low for low, _ in ends) - SLACK, 3), round(max(high for _, high in ends) + SLACK, 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--below", default="", metavar="WORDS", help="run the blocks below such headings")
    what.add_argument("--list", action="store_true", help="show all blocks, run none")
    what.add_argument("--summary", nargs="+", type=Path, metavar="RUN", help="print README's table")
    what.add_argument(
        "--chart", nargs="+", type=Path, metavar="RUN", help="print README's chart, or one of grids, an SVG"
    )
    what.add_argument("--compared", nargs="+", type=Path, metavar="GRID", help="print the tables of grids")
    what.add_argument(
        "--gate", nargs="+", type=Path, metavar="RUN", help="print intervals for pytest -m learning"
    )
    given = parser.parse_args()
    if given.summary:
        print("\n".join(summary(given.summary)))
    elif given.compared:
        rows = rows_of(given.compared)
        scored = [p for p in PROTOCOLS if any((rows[0].runs[0] / "scores").glob(f"{p}-step-*.json"))]
        print("\n\n".join("\n".join(compared(rows, protocol)) for protocol in scored))
    elif given.chart:
        print(chart(given.chart), end="")
    elif given.gate:
        record = json.dumps(gate(given.gate), indent=1)
        print(re.sub(r"\[\s+([\d.-]+),\s+([\d.-]+)\s+\]", r"[\1, \2]", record))
    else:
        run_blocks(given.below, only_list=given.list)


if __name__ == "__main__":
    main()
