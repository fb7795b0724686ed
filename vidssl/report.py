"""Scores as a table on the console and as a file beside the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vidssl.engine.checkpoint import Checkpoint
from vidssl.engine.files import write_text
from vidssl.engine.runfolder import RunFolder, describe_environment
from vidssl.evaluators.features import FeatureTable
from vidssl.finetune_protocol import FinetuneProtocol
from vidssl.protocol import Protocol
from vidssl.resolved import protocol_text
from vidssl.scores import Score

Scores = Mapping[str, Sequence[Score]]  # network -> its rows, the same rows for each


def report(
    checkpoint: Checkpoint,
    protocol: Protocol | FinetuneProtocol,
    scores: Scores,
    videos: Mapping[str, FeatureTable],
    console: Console,
) -> None:
    """Print a table of scores and what was left out, and keep them in a file.

    Args:
        videos: those to learn from ("train") and to test on ("test"), as they were found.
    """
    console.print(score_table(scores, f"{protocol.name} of {checkpoint.path}, step {checkpoint.step}"))
    for name, part in videos.items():
        _say(console, f"{name}: {len(part.keys)} videos found of {part.num_listed} listed")
        for problem in part.unreadable:
            _say(console, f"  left out: {problem}")
    record = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "protocol": protocol_text(protocol),
        "videos": {
            name: {"found": len(part.keys), "listed": part.num_listed, "unreadable": part.unreadable}
            for name, part in videos.items()
        },
        "scores": {name: [_row(score) for score in rows] for name, rows in scores.items()},
        "environment": describe_environment(),
    }
    path = scores_path(checkpoint, protocol)
    write_text(path, json.dumps(record, indent=2) + "\n")
    _say(console, f"Scores: {path}")


def score_table(scores: Scores, title: str) -> Table:
    """A row for each label and setting; the scores of each network on normal clips, then on others."""
    rows = [row for row in zip(*scores.values(), strict=True) if row[0].frames == "normal"]
    others = {(name, s.label, s.setting, s.frames): s for name, part in scores.items() for s in part}
    orders = list(dict.fromkeys(s.frames for part in scores.values() for s in part if s.frames != "normal"))
    with_settings = any(row[0].setting for row in rows)
    with_top5 = any(row[0].top5 is not None for row in rows)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="in brackets: 95 % interval",
        caption_justify="left",
    )
    table.add_column("label")
    if with_settings:
        table.add_column("probe")
    for name in scores:
        table.add_column(f"{name} %", justify="right")
        if with_top5:
            table.add_column("top-5 %", justify="right")
        for order in orders:
            table.add_column(f"{order} %", justify="right")
    table.add_column("chance %", justify="right")
    table.add_column("videos", justify="right")
    for row in rows:
        label, setting = row[0].label, row[0].setting
        cells = [label, setting] if with_settings else [label]
        for name, found in zip(scores, row, strict=True):
            cells.append(f"{percent(found.top1)} ({percent(found.low)} to {percent(found.high)})")
            if with_top5:
                cells.append(percent(found.top5))
            cells += [percent(others[name, label, setting, order].top1) for order in orders]
        table.add_row(*cells, percent(row[0].chance), str(row[0].num_test))
    return table


def percent(share: float | None) -> str:
    """``12.3``, or a dash for what there is not."""
    return "-" if share is None else f"{100 * share:.1f}"


def _row(score: Score) -> dict[str, object]:
    row = asdict(score)
    del row["predicted"]
    return row


def scores_path(checkpoint: Checkpoint, protocol: Protocol | FinetuneProtocol) -> Path:
    """In the run's folder, or beside a checkpoint that lies elsewhere."""
    run = RunFolder(checkpoint.path.parent.parent)
    folder = run.scores if run.scores.is_dir() else checkpoint.path.parent
    return folder / f"{protocol.name}-{checkpoint.path.stem}.json"


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
