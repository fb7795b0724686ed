"""Scores as a table on the console and as a file beside the run."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vidssl.class_numbers import class_counts
from vidssl.engine.files import write_text
from vidssl.evaluators.features import FeatureTable
from vidssl.finetune_protocol import FinetuneProtocol
from vidssl.protocol import Protocol
from vidssl.resolved import protocol_text
from vidssl.scoring.by_class import best_and_worst
from vidssl.scoring.score_file import Scores, score_record
from vidssl.scoring.scores import Score
from vidssl.scoring.subject import Subject

NOTABLE = 0.02
_SPREAD = "; ±: standard deviation over draws of the labelled videos"


def report(
    subject: Subject,
    protocol: Protocol | FinetuneProtocol,
    scores: Scores,
    videos: Mapping[str, FeatureTable],
    console: Console,
) -> None:
    """Print a table of scores and what was left out, and keep them in a file.

    Args:
        videos: those to learn from ("train") and to test on ("test"), as they were found.
    """
    for table in score_tables(scores, f"{protocol.name} of {subject.title}"):
        console.print(table)
    for line in class_lines(scores, videos["test"]):
        _say(console, line)
    for name, part in videos.items():
        # finetuning encodes no train videos; it says of each that it cannot read when it comes to it
        found = f"{len(part.keys)} videos found of " if part.vectors.numel() else ""
        _say(console, f"{name}: {found}{part.num_listed} listed")
        for problem in part.unreadable:
            _say(console, f"  left out: {problem}")
    record = score_record(subject, protocol_text(protocol), scores, videos)
    path = subject.scores / f"{protocol.name}-{subject.stem}.json"
    earlier = _set_aside(path, record["card_sha256"])
    if earlier is not None:
        _say(console, f"Scores of another '{protocol.name}' are kept: {earlier}")
    write_text(path, json.dumps(record, indent=2) + "\n")
    _say(console, f"Scores: {path}")


def tell_classes(train: FeatureTable, test: FeatureTable, console: Console) -> None:
    """Print the classes that are learned and tested, numbered together, and how many videos each has."""
    learned, tested = (
        {name: found.tolist() for name, found in part.labels.items()} for part in (train, test)
    )
    for line in class_counts(learned, tested, train.classes):
        _say(console, line)


def score_tables(scores: Scores, title: str) -> list[Table]:
    """One table of all networks side by side, or, where clips in other orders were scored, one of each."""
    if all(score.frames == "normal" for rows in scores.values() for score in rows):
        return [_by_network(scores, title)]
    return [_by_order(rows, f"{title}: {name} network") for name, rows in scores.items()]


def _by_network(scores: Scores, title: str) -> Table:
    """A row for each label and setting; where there are more than five classes, one for the best five too."""
    table = _table(title, chain.from_iterable(scores.values()))
    for name in scores:
        table.add_column(f"{name} %", justify="right")
    table.add_column("chance %", justify="right")
    table.add_column("videos", justify="right")
    for row in zip(*scores.values(), strict=True):
        table.add_row(_name(row[0]), *map(with_interval, row), percent(row[0].chance), str(row[0].num_test))
        for name, cells in more_rows(row):
            table.add_row(f"  {name}", *cells, "", "")
    return table


def more_rows(row: Sequence[Score]) -> Iterator[tuple[str, list[str]]]:
    """What stands below the top-1 of networks: their top-5, and means over classes where they are others.

    Yields:
        Its name and a cell for each network.
    """
    if row[0].top5 is not None:
        yield "top-5", [percent(score.top5) for score in row]
    if class_mean_matters(row):
        yield "mean over classes", [percent(score.class_mean) for score in row]


def class_mean_matters(row: Sequence[Score]) -> bool:
    """Whether the mean over classes is two points or more away from the top-1 of any of these.

    With classes of about as many videos the two are nearly the same, and one of them is enough.
    """
    return any(score.names_classes and abs(score.class_mean - score.top1) >= NOTABLE for score in row)


def class_lines(scores: Scores, test: FeatureTable) -> list[str]:
    """Best and worst classes of the first network, a line for each label of three classes or more.

    Of several settings the first, and clips whose frames are in order.
    """
    first: dict[str, Score] = {}
    for score in next(iter(scores.values())):
        if len(set(test.labels[score.label].tolist()) - {-1}) > 2:
            first.setdefault(score.label, score)
    return [
        best_and_worst(score, [n for n in test.labels[label].tolist() if n >= 0], tuple(test.classes[label]))
        for label, score in first.items()
    ]


def _by_order(rows: Sequence[Score], title: str) -> Table:
    """A row for each label and setting, a column for each order of frames."""
    orders = list(dict.fromkeys(score.frames for score in rows))
    found = {(_name(score), score.frames): score for score in rows}
    table = _table(title, rows)
    for order in orders:
        table.add_column(f"{order} %" if order == "normal" else order, justify="right")
    table.add_column("chance", justify="right")
    for score in rows:
        if score.frames == "normal":
            others = (percent(found[_name(score), order].top1) for order in orders if order != "normal")
            table.add_row(_name(score), with_interval(score), *others, percent(score.chance))
    return table


def _table(title: str, rows: Iterable[Score]) -> Table:
    drawn = any(score.spread is not None for score in rows)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption="in brackets: 95 % interval" + (_SPREAD if drawn else ""),
        caption_justify="left",
    )
    table.add_column("label")
    return table


def _name(score: Score) -> str:
    return f"{score.label}, {score.setting}" if score.setting else score.label


def with_interval(score: Score) -> str:
    """Top-1 in percent with its interval, or with its spread over draws of labelled videos."""
    if score.spread is not None:
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    return f"{percent(score.top1)} ({percent(score.low)} to {percent(score.high)})"


def percent(share: float | None) -> str:
    """``12.3``, or a dash for what there is not."""
    return "-" if share is None else f"{100 * share:.1f}"


def _set_aside(path: Path, card: object) -> Path | None:
    """Moves scores made otherwise under the same name into the folder ``earlier``; None if there are none.

    So the newest stand where ``vidssl compare`` looks, and no others are written over.
    """
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there are none, or nothing that could be lost
        return None
    if not isinstance(old, dict) or old.get("card_sha256") == card:
        return None
    aside = path.parent / "earlier" / f"{path.stem}-{str(old.get('card_sha256'))[:8]}.json"
    aside.parent.mkdir(exist_ok=True)
    return path.replace(aside)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
