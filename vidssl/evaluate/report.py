"""Scores as a table on the console and as a file beside the run."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidssl.build.registry import resolved_text
from vidssl.config.protocol import FinetuneProtocol, MaskProtocol, Protocol
from vidssl.data.classes import class_counts
from vidssl.engine import facts, process
from vidssl.engine.logging import print_line
from vidssl.errors import UsageError, counted
from vidssl.evaluate.networks import PIXELS
from vidssl.evaluate.score_file import Scores, read_scores, score_card, score_record
from vidssl.evaluate.subject import Subject
from vidssl.evaluators import corruptions, differences, features, statistics
from vidssl.evaluators.scores import Score

NOTABLE = 0.02
_SPREAD = "; ±: standard deviation over draws of the labelled videos"


class NotKept(UsageError):
    """Scores that were shown and could not be written."""


def report(
    subject: Subject,
    protocol: Protocol | FinetuneProtocol | MaskProtocol,
    scores: Scores,
    videos: Mapping[str, features.FeatureTable],
    console: Console,
    *,
    notes: Sequence[str] = (),
    details: Sequence[str] = (),
) -> None:
    """Print what was found in a sentence, a table of scores and what was left out, and keep them in a file.

    Args:
        videos: those to learn from ("train") and to test on ("test"), as they were found.
        notes: on test videos that were learned from before, and on labels that are left out.
        details: lines that are printed below the tables, and not kept.

    Raises:
        NotKept: if the file cannot be written, when all is shown.
    """
    tested = differences.tested_videos(videos["test"])
    compared = differences.network_differences(scores, tested)
    console.print(Text.assemble((f"{protocol.name}: ", "bold"), verdict(scores, compared)))
    for table in fitting(scores, f"{protocol.name} of {subject.title}", compared, console):
        console.print(table)
    if compared:
        console.print(difference_table(compared, list(scores), tested))
    for line in [*probe_lines(scores), *class_lines(scores, videos["test"])]:
        print_line(console, line)
    pixels = pixel_lines(subject, resolved_text(protocol), scores, videos)
    said = differences.findings(scores, compared, tested, videos["test"].classes, pixels_known=bool(pixels))
    for line in (*said, *pixels, *details, *notes):
        print_line(console, line)
    for name, part in videos.items():
        # finetuning encodes no train videos; it reports each unreadable one when it reaches it
        found = f"{counted(len(part.keys), 'video')} found of " if part.vectors.numel() else ""
        print_line(console, f"{name}: {found}{part.num_listed} listed")
        for problem in part.unreadable:
            print_line(console, f"  left out: {problem}")
    record = score_record(subject, resolved_text(protocol), scores, videos, notes)
    path = subject.scores / f"{protocol.name}-{subject.stem}.json"
    try:
        process.make_folder(subject.scores)
        earlier = _set_aside(path, record["card_sha256"])
        process.write_text(path, json.dumps(record, indent=2) + "\n")
    except (UsageError, OSError) as error:
        raise NotKept(
            f"{error}. The scores of '{protocol.name}' are shown above and not kept: make room, or copy "
            f"{subject.source} to a folder that can be written and score it there"
        ) from error
    if earlier is not None:
        print_line(console, f"Scores of another '{protocol.name}' are kept: {earlier}")
    print_line(console, f"Scores: {path}")


def pixel_lines(
    subject: Subject, protocol: str, scores: Scores, videos: Mapping[str, features.FeatureTable]
) -> list[str]:
    """How the first network stands beside what the pixels alone tell, where those scores lie near its own.

    They are those of ``vidssl eval pixels data=RUN`` with the same card: protocol and videos.

    Args:
        protocol: its text.
    """
    if subject.title.partition(" ")[0] == PIXELS:
        return []
    card, tested = score_card(protocol, videos), differences.tested_videos(videos["test"])
    near = (parent / PIXELS / "scores" for parent in (*subject.folder.parents,)[:2])
    for path in (path for folder in near for path in sorted(folder.rglob("*.json"))):
        try:
            file = read_scores(path)
        except UsageError:
            continue  # of an earlier version
        if file.card == card and file.keys == videos["test"].keys:
            break
    else:
        return []
    name, rows = next(iter(scores.items()))
    alone = {differences.what(row): row for row in next(iter(file.scores.values()))}
    lines = []
    for row in rows:
        other = alone.get(differences.what(row))
        if row.frames == "normal" and other is not None and not row.draws:
            units = tested[row.label]
            found = units.difference(row, units.right(other), units.right(row))
            told = f"{100 * (other.class_mean if row.unbalanced else other.top1):.1f} %"
            verb = "has" if row.added else "names"
            words = f"{name} {verb} {100 * found.mean:+.1f} points beside them (p {p_cell(found.p)})"
            if found.p >= statistics.LEVEL:
                words += ": no clear difference, so that pixels may be all that is used"
            elif found.mean < 0:
                words += ": less than the pixels tell"
            lines.append(f"{_name(row)}, pixels alone: {told}; {words}")
    return lines


def classes_of(train: features.FeatureTable, test: features.FeatureTable) -> list[str]:
    """The classes that are learned and tested, numbered together, and how many videos each has."""
    learned, tested = (
        {name: found.tolist() for name, found in part.labels.items()} for part in (train, test)
    )
    return list(class_counts(learned, tested, train.classes))


_STYLES = {"+": "bold green", "-": "bold red"}


def verdict(scores: Scores, compared: Sequence[differences.NetworkDifference]) -> Text:
    """What the scores of a table say, in a sentence: of the first network, against the second or chance."""
    first, *others = scores
    if others and not compared:
        return Text(f"{first} and {' and '.join(others)} beside each other; several draws are not tested")
    marked: dict[str, list[str]] = {"+": [], "-": [], "": []}
    for each in compared:
        if each.row.frames == "normal":
            by = f" ({100 * each.found.mean:+.1f} points)" if each.mark else ""
            marked[each.mark].append(f"{_name(each.row)}{by}")
    worded = {"+": "better on ", "-": "worse on ", "": "not clearly different on "}
    if not others:
        for row in scores[first]:
            if row.frames == "normal" and row.chance is not None:
                above = row.top1 - 2 * row.spread if row.spread is not None else row.low
                marked["+" if above > row.chance else ""].append(_name(row))
        worded = {"+": "above chance on ", "-": "", "": "not clearly above chance on "}
    clauses = [
        (f"{worded[mark]}{_in_words(names)}", _STYLES.get(mark, ""))
        for mark, names in marked.items()
        if names
    ]
    sentence = Text(f"{first} is " if not others else f"{first}, against {others[0]}, is ")
    for place, clause in enumerate(clauses):
        sentence.append(", and " if 0 < place == len(clauses) - 1 else ", " if place else "").append(*clause)
    return sentence if clauses else Text(f"what {first} finds is below")


def _in_words(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def fitting(
    scores: Scores, title: str, compared: Sequence[differences.NetworkDifference], console: Console
) -> list[Table]:
    """Tables whose numbers the console need not break."""
    tables = score_tables(scores, title, compared)
    wide = console.options.update(width=10_000)
    if all(console.measure(table, options=wide).maximum <= console.width for table in tables):
        return tables
    return score_tables(scores, title, compared, apart="\n")


def score_tables(
    scores: Scores, title: str, compared: Sequence[differences.NetworkDifference] = (), *, apart: str = " "
) -> list[Table]:
    """One table of all networks side by side, or, where clips in other orders were scored, one of each.

    Args:
        compared: of the networks, for marks beside the first one's numbers.
        apart: what stands between a number and its interval; a line feed makes narrow columns.
    """
    marks = {differences.what(each.row): each.mark for each in compared}
    tables = _by_corruption(scores, title)
    scores = {
        name: [row for row in rows if not corruptions.is_corrupted(row.frames)]
        for name, rows in scores.items()
    }
    if all(score.frames == "normal" for rows in scores.values() for score in rows):
        return [_by_network(scores, title, marks, apart), *tables]
    by_order = [
        _by_order(rows, f"{title}: {name} network", {} if place else marks, apart)
        for place, (name, rows) in enumerate(scores.items())
    ]
    return [*by_order, *tables]


def _by_corruption(scores: Scores, title: str) -> list[Table]:
    """A table for each label and setting: a row a corruption, a column a strength, and the means.

    None where no clips were corrupted.
    """
    tops = {name: {differences.what(row): row.top1 for row in rows} for name, rows in scores.items()}
    first, *others = scores
    tables = []
    for clean in scores[first]:
        own = (clean.label, clean.setting)
        kinds = {
            kind: [f"{kind}-{n + 1}" for n in range(len(amounts)) if (*own, f"{kind}-{n + 1}") in tops[first]]
            for kind, amounts in corruptions.STRENGTHS.items()
        }
        kinds = {kind: names for kind, names in kinds.items() if names}
        if clean.frames != "normal" or not kinds:
            continue
        table = Table(title=f"{title}: {_name(clean)}, corrupted clips", title_justify="left")
        table.caption, table.caption_justify = f"top-1 in %, {first} unless named; strengths 1 to 5", "left"
        for place, head in enumerate(("", *map(str, range(1, 6)), "mean", *(f"{n} mean" for n in others))):
            table.add_column(head, justify="right" if place else "left")
        clean_cells = [percent(tops[name][(*own, "normal")]) for name in tops]
        table.add_row("clean", *[""] * 5, *clean_cells)
        for kind, names in kinds.items():
            cells = [percent(tops[first].get((*own, f"{kind}-{n}"))) for n in range(1, 6)]
            table.add_row(kind, *cells, *(percent(fmean(tops[n][(*own, k)] for k in names)) for n in tops))
        every = [name for names in kinds.values() for name in names]
        table.add_section()
        table.add_row(
            differences.MEAN, *[""] * 5, *(percent(fmean(tops[n][(*own, k)] for k in every)) for n in tops)
        )
        tables.append(table)
    return tables


def difference_table(
    compared: Sequence[differences.NetworkDifference],
    names: Sequence[str],
    tested: Mapping[str, differences.LabelledVideos],
) -> Table:
    """Differences of the first network from the second, a row for each label, setting and order of frames."""
    count = counted(len(compared), "test")
    test = " or ".join(sorted({"t-test" if each.row.added else "permutation test" for each in compared}))
    table = Table(
        title=f"{names[0]} minus {names[1]}, in percentage points, on the same videos",
        title_justify="left",
        title_style="bold",
        caption=f"p and interval: {test} over the test videos; p adjusted for {count} (Holm)",
        caption_justify="left",
    )
    table.add_column("label")
    for head in ("difference", "95 % interval", "p", "p adjusted"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("test videos", justify="right")
    for each in compared:
        row, found = each.row, each.found
        name = f"{_name(row)}, {row.frames}" if row.frames != "normal" else _name(row)
        name += ", mean over classes" if row.unbalanced else ""
        cells = (*difference_cells(found), p_cell(found.p), p_cell(each.p_holm), tested[row.label].shown())
        table.add_row(name, Text(cells[0], _STYLES.get(each.mark, "")), *cells[1:])
    return table


def difference_cells(found: statistics.Difference) -> tuple[str, str]:
    """A difference and its interval, in points."""
    return f"{100 * found.mean:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def p_cell(p: float) -> str:
    """Three digits of a p-value; below 0.0001 that alone."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.001 else f"{p:.3f}"


def _by_network(scores: Scores, title: str, marks: Mapping[differences.RowKey, str], apart: str) -> Table:
    """A row for each label and setting, below it what else there is of it: top-5, mean over classes."""
    table = _table(title, list(chain.from_iterable(scores.values())), marks.values())
    for name in scores:
        table.add_column(Text(f"{name} %"), justify="right", no_wrap=True)
    table.add_column("chance %", justify="right")
    table.add_column("test videos", justify="right")
    for row in zip(*scores.values(), strict=True):
        lead, *more = lines_of(row, marks.get(differences.what(row[0]), ""), apart)
        name = ", ".join(word for word in (_name(row[0]), lead.name) if word)
        own = Text(lead.cells[0], _STYLES.get(marks.get(differences.what(row[0]), ""), ""))
        table.add_row(name, own, *lead.cells[1:], lead.chance, _videos(row[0]))
        for line in more:
            table.add_row(f"  {line.name}", *line.cells, line.chance, "")
    return table


def _videos(score: Score) -> str:
    groups = "" if score.num_groups is None else f" in {counted(score.num_groups, 'group')}"
    return f"{score.num_test:,}{groups}"


CLASS_TOP5 = "top-5, mean over classes"


@dataclass(frozen=True)
class Line:
    """A line of a table: what is measured, a cell for each network, and chance."""

    name: str
    cells: tuple[str, ...]
    chance: str


def lines_of(row: Sequence[Score], mark: str = "", apart: str = " ") -> list[Line]:
    """The lines of a row of networks: top-1, top-5, and the mean over classes where it is another.

    Where the classes of the test videos are unbalanced the mean over classes leads, and that of the top-5
    stands last; else the mean over classes does, where it is two points or more away from any top-1. The mark
    is the first network's, in the first line.
    """
    by_class = row[0].unbalanced
    marks = [f" {mark}" if mark else "", *[""] * (len(row) - 1)]
    ends = [f"{'' if by_class else one}{apart}" for one in marks]
    cells = tuple(with_interval(each, end) for each, end in zip(row, ends, strict=True))
    found = [Line("top-1" if by_class else "", cells, percent(row[0].chance))]
    if row[0].top5 is not None:
        found.append(Line("top-5", tuple(_spanned(each.top5, each.top5_interval, apart) for each in row), ""))
    if by_class and row[0].class_top5 is not None:
        spans = ((each.class_top5, each.class_top5_interval) for each in row)
        found.append(Line(CLASS_TOP5, tuple(_spanned(*each, apart) for each in spans), ""))
    if row[0].mae is not None:
        found.append(Line("mean absolute error", tuple(mae_cell(each, apart) for each in row), ""))
    if by_class or class_mean_matters(row):
        ends = [f"{one if by_class else ''}{apart}" for one in marks]
        cells = tuple(
            _spanned(each.class_mean, each.class_interval, end) for each, end in zip(row, ends, strict=True)
        )
        found.insert(0 if by_class else 2, Line("mean over classes", cells, percent(row[0].class_chance)))
    return found


def mae_cell(score: Score, apart: str = " ") -> str:
    """The mean absolute error, in the target's unit, with its interval where one is known."""
    span = " to ".join(f"{end:.3g}" for end in score.mae_interval or ())
    return f"{score.mae:.3g}{apart}({span})" if span else f"{score.mae:.3g}"


def class_mean_matters(row: Sequence[Score]) -> bool:
    """Whether the mean over classes is two points or more away from the top-1 of any of these.

    With classes of about as many videos the two are nearly the same, and one of them is enough.
    """
    return any(score.names_classes and abs(score.class_mean - score.top1) >= NOTABLE for score in row)


def probe_lines(scores: Scores) -> list[str]:
    """Lines on what probes chose on training videos, and on those that name one class for all test videos."""
    lines = []
    for label in dict.fromkeys(score.label for rows in scores.values() for score in rows):
        chosen: dict[str, list[str]] = {}
        for network, rows in scores.items():
            for score in rows:
                if score.label == label and score.frames == "normal" and score.chosen:
                    where = f"{network}, {score.setting}" if score.setting else network
                    chosen.setdefault(score.chosen, []).append(where)
        if chosen:
            words = "; ".join(f"{choice}: {' and '.join(where)}" for choice, where in chosen.items())
            lines.append(f"{label}, chosen on training videos: {words}")
    for network, rows in scores.items():
        for score in rows:
            if score.names_one_class:
                lines.append(
                    f"{_name(score)}: the {network} network's probe names one class for all "
                    f"{counted(score.num_test, 'test video')}"
                )
    return list(dict.fromkeys(lines))


def class_lines(scores: Scores, test: features.FeatureTable) -> list[str]:
    """Best and worst classes of the first network, a line for each label of three classes or more.

    Of several settings the first, and clips whose frames are in order.
    """
    first: dict[str, Score] = {}
    for score in next(iter(scores.values())):
        named = score.precisions or (set() if score.added else set(test.labels[score.label].tolist()) - {-1})
        if len(named) > 2:
            first.setdefault(score.label, score)
    return [
        differences.best_and_worst(
            score, [n for n in test.labels[label].tolist() if n >= 0], tuple(test.classes[label])
        )
        for label, score in first.items()
    ]


def _by_order(
    rows: Sequence[Score], title: str, marks: Mapping[differences.RowKey, str], apart: str
) -> Table:
    """A row for each label and setting, a column for each order of frames."""
    orders = list(dict.fromkeys(score.frames for score in rows))
    found = {(_name(score), score.frames): score for score in rows}
    table = _table(title, rows, marks.values())
    for order in orders:
        table.add_column(f"{order} %", justify="right", no_wrap=True)
    table.add_column("chance %", justify="right")
    table.add_column("test videos", justify="right")
    for score in rows:
        if score.frames == "normal":
            mark = marks.get(differences.what(score), "")
            others = (percent(found[_name(score), order].top1) for order in orders if order != "normal")
            cell = with_interval(score, f" {mark}{apart}" if mark else apart)
            table.add_row(_name(score), cell, *others, percent(score.chance), _videos(score))
    return table


def _table(title: str, rows: Sequence[Score], marks: Iterable[str]) -> Table:
    caption = "in brackets: 95 % interval"
    if any(score.num_groups is not None for score in rows):
        caption += ", by groups of clips cut from one source"
    if any(score.spread is not None for score in rows):
        caption += _SPREAD
    if any(marks):
        caption += "; +, -: better, worse than the other network beyond chance (adjusted p below 0.05)"
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left"
    )
    table.add_column("label")
    return table


def _name(score: Score) -> str:
    measure = "" if score.measure == "top-1" else f" {score.measure}"
    return ", ".join(filter(None, (score.label, score.setting))) + measure


def with_interval(score: Score, apart: str = " ") -> str:
    """Top-1 in percent with its interval, or with its spread over draws of labelled videos."""
    if score.spread is not None:
        return f"{percent(score.top1)} ± {percent(score.spread)}"
    return _spanned(score.top1, (score.low, score.high), apart)


def _spanned(value: float | None, interval: tuple[float, float] | None, apart: str) -> str:
    if interval is None:
        return percent(value)
    return f"{percent(value)}{apart}({percent(interval[0])} to {percent(interval[1])})"


def percent(fraction: float | None) -> str:
    """``12.3``, or a dash for what there is not."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _set_aside(path: Path, card: object) -> Path | None:
    """Moves scores made otherwise under the same name into the folder ``earlier``; None if there are none.

    So the newest stand where ``vidssl compare`` looks, and no others are written over.
    """
    try:
        old = facts.Row(facts.parsed(path.read_bytes())).text("card_sha256")
    except (OSError, ValueError):  # there are none, or nothing that could be lost
        return None
    if old == card:
        return None
    aside = path.parent / "earlier" / f"{path.stem}-{re.sub('[^0-9a-f]', '', old)[:8]}.json"
    aside.parent.mkdir(exist_ok=True)
    return path.replace(aside)
