"""One page on runs, for a browser: all of it lies in one file, which works offline and without scripts."""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from vidssl.compare.grid_tables import GridResults, ProtocolTable, grid_tables, is_grid, read_results
from vidssl.compare.runs import by_protocol, run_grids
from vidssl.compare.tables import Grid, RunGroup, head, measured, run_groups, run_name
from vidssl.engine import process, runfolder
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.errors import UsageError, counted
from vidssl.evaluate import evaluate, score_file
from vidssl.evaluators.differences import RowKey
from vidssl.evaluators.statistics import LEVEL, Difference, holm, mean_over_seeds, method_difference
from vidssl.pictures import charts, clips, show
from vidssl.pictures.features import RunFeatures, embedding, neighbour_pages, neighbour_strips, run_features
from vidssl.pictures.pages import animation, webp
from vidssl.tools.watch import read_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html.jinja")
MOST_CONFUSED = 32  # classes that a picture of confusions on the page has
CLIPS_A_RUN = 2
MOST_DRAWN = 6  # runs whose clips, neighbours and maps are drawn
_CURVES = ("loss", "accuracy", "knn", "rankme", "feature_std", "grad_norm")  # beginnings of names
_ORDERS = ("normal", "single", "shuffled", "reversed")


@dataclass(frozen=True)
class Figured:
    """A chart or picture on the page.

    Attributes:
        html: an ``<svg>`` element, or the address of a picture.
        text: what it shows, for who does not see it.
        is_picture: whether ``html`` is an address.
        wide: in pixels, of a picture.
    """

    title: str
    html: str
    text: str
    is_picture: bool = False
    wide: int = 0


@dataclass(frozen=True)
class Section:
    """A part of the page: figures, tables, texts; ``notes`` say what is missing and why."""

    title: str
    figures: tuple[Figured, ...] = ()
    tables: tuple[Grid, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    closed: bool = False

    @property
    def anchor(self) -> str:
        """Its address on the page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def write_report(
    targets: Sequence[str],
    out: str = "report.html",
    *,
    pictures: bool = True,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Write a page on runs, or on a grid of runs.

    Args:
        targets: run folders, files of scores, or one folder of a grid.
        out: the file.
        pictures: draw clips, neighbours and maps, which takes the runs' videos and networks.
        trust: use code and addresses that the runs' recipes name, whoever trained them.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are no scores, or a package is missing.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise UsageError(f"a report needs the package {package}: pip install 'vidssl[report]'")
    if not targets:
        raise UsageError(
            "report takes runs, files of scores or a grid, got none (vidssl report runs/a runs/b)"
        )
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out}: a report is an HTML file: -o {Path(out).stem or 'report'}.html")
    console = console or terminal()
    process.check_writable(Path(out), "name another with -o", partial(print_line, console))
    grid = read_results(Path(targets[0])) if is_grid(Path(targets[0])) else None
    if grid is not None and len(targets) > 1:
        raise UsageError(f"{targets[0]}: a grid is reported by itself: leave out {targets[1]}")
    files = grid.files if grid is not None else [f for t in targets for f in score_file.find_scores(Path(t))]
    with shown_messages(console):
        page = _page(files, grid, list(targets), out, pictures, trust, console)
    process.make_folder(Path(out).parent)
    process.write_text(Path(out), page)
    print_line(console, f"Report: {out} ({len(page.encode()) / 2**20:.1f} MiB)")
    return 0


def _page(
    files: Sequence[score_file.ScoreFile],
    grid: GridResults | None,
    targets: Sequence[str],
    out: str,
    pictures: bool,
    trust: bool,
    console: Console,
) -> str:
    from jinja2 import Environment, StrictUndefined

    protocols = [run_groups(same, each=False) for same in by_protocol(files, own_views=grid is not None)]
    names = short_names([run_folder(file) for file in files])
    sections = []
    if grid is not None:
        sections.append(grid_section(grid))
    sections += [scores_section(groups, names) for groups in protocols]
    sections += [orders for groups in protocols if (orders := orders_section(groups, names)) is not None]
    if grid is None:
        tables = tuple(run_grids(files, each=False))
        sections.append(Section("Differences, and what differs between the recipes", tables=tables))
    runs = list(dict.fromkeys(Path(run_folder(file)) for file in files))
    sections += [curves_section(runs, names), confusion_section(protocols, names)]
    if pictures:
        sections += picture_sections(runs, names, trust, console)
    sections += [cards_section(files), environment_section(runs, targets, out)]
    verdict = grid_verdict(grid) if grid is not None else verdict_of(protocols, names)
    title = grid.question if grid is not None else ", ".join(dict.fromkeys(names.values()))
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = made.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, verdict=verdict, sections=[s for s in sections if s is not None])


def run_folder(file: score_file.ScoreFile) -> str:
    """The run that scores lie in, though it was moved since; or what was scored, where they lie elsewhere."""
    return str(file.path.parent.parent) if file.path.parent.name == "scores" else run_name(file)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Folder -> last part of it, or the whole where two would be alike."""
    last = {name: Path(name).name for name in names}
    return {name: short if list(last.values()).count(short) == 1 else name for name, short in last.items()}


def _group_name(group: RunGroup, names: Mapping[str, str]) -> str:
    found = [names[run_folder(file)] for file in group.files]
    if len(found) == 1:
        return found[0]
    start = _common([found[0], *found[1:]])
    return f"{start.rstrip('-_ ') or found[0]} ({counted(len(found), 'seed')})"


def _common(words: Sequence[str]) -> str:
    shortest = min(words, key=len)
    for place, letter in enumerate(shortest):
        if any(word[place] != letter for word in words):
            return shortest[:place].removesuffix("seed-").removesuffix("-s")
    return shortest


# what it says


def _values(group: RunGroup, network: str, key: RowKey) -> list[float]:
    return [score.class_mean if score.unbalanced else score.top1 for score in group.rows(network)[key]]


def _dot(name: str, group: RunGroup, network: str, key: RowKey) -> charts.Dot:
    values, score = _values(group, network, key), group.rows(network)[key][0]
    if len(values) > 1:
        return _mean_dot(name, values, score.measure)
    span = score.class_interval if score.unbalanced else None
    return charts.Dot(name, values[0], *(span or (score.low, score.high)))


def _mean_dot(name: str, values: Sequence[float], measure: str) -> charts.Dot:
    mean, half = mean_over_seeds(values) if len(values) > 1 else (values[0], None)
    least = -math.inf if measure == "R2" else 0.0
    return charts.Dot(name, mean, max(least, mean - (half or 0.0)), min(1.0, mean + (half or 0.0)))


def _normal_rows(group: RunGroup) -> list[RowKey]:
    return [key for key in group.rows(next(iter(group.files[0].scores))) if key[2] == "normal"]


def verdict_of(protocols: Sequence[Sequence[RunGroup]], names: Mapping[str, str]) -> list[str]:
    """What the scores say, the most important sentence first: of runs against each other, and untrained."""
    first, rest = [], []
    for groups in protocols:
        protocol = groups[0].files[0].name
        if len(groups) > 1:
            first.append(f"{protocol}: {_against_each_other(groups, names)}")
        rest += [f"{protocol}: {_against_untrained(group, _group_name(group, names))}" for group in groups]
    return first + rest


def _against_untrained(group: RunGroup, name: str) -> str:
    networks = list(group.files[0].scores)
    if len(networks) < 2:
        return f"{name} has no untrained network beside it."
    keys = [key for key in _normal_rows(group) if not group.rows(networks[0])[key][0].draws]
    found = [_difference(group, networks[1], group, networks[0], key) for key in keys]
    beyond = _beyond(keys, found)
    parts = [
        f"{word} for {', '.join(f'{label} ({points:+.1f} points)' for label, points in those)}"
        for word, those in (
            ("better", [each for each in beyond if each[1] > 0]),
            ("worse", [each for each in beyond if each[1] < 0]),
        )
        if those
    ]
    told = " and ".join(parts) or "no different beyond chance"
    return f"{name} is {told} than the same network untrained, of {counted(len(keys), 'label')}."


def _against_each_other(groups: Sequence[RunGroup], names: Mapping[str, str]) -> str:
    """For each label whether the best leads the second beyond chance."""
    keys = _normal_rows(groups[0])
    leads: list[tuple[RowKey, RunGroup, RunGroup, Difference | None]] = []
    for key in keys:

        def mean(group: RunGroup, key: RowKey = key) -> float:
            values = _values(group, next(iter(group.files[0].scores)), key)
            return sum(values) / len(values)

        first, second = sorted(groups, key=mean, reverse=True)[:2]
        networks = [next(iter(group.files[0].scores)) for group in (second, first)]
        leads.append((key, first, second, _difference(second, networks[0], first, networks[1], key)))
    adjusted = iter(holm([each[3].p for each in leads if each[3] is not None]))
    told = []
    for key, first, second, found in leads:
        if found is not None and next(adjusted) < LEVEL and found.mean > 0:
            lead = f"{_group_name(first, names)} leads {_group_name(second, names)}"
            told.append(f"{lead} by {100 * found.mean:.1f} points for {head(key)}")
    if not told:
        return "No best run is ahead of the next beyond chance, for any label."
    return f"{'; '.join(told)}; the other leads may be chance."


def _difference(
    one: RunGroup, network: str, other: RunGroup, other_network: str, key: RowKey
) -> Difference | None:
    """How much better the second is; None where one run stands against several, or nothing differs."""
    answers = []
    for group, name in ((one, network), (other, other_network)):
        videos = group.files[0].tested(key[0])
        answers.append([videos.right(score) for score in group.rows(name)[key]])
    videos, like = one.files[0].tested(key[0]), one.rows(network)[key][0]
    if len(answers[0]) > 1 and len(answers[1]) > 1:
        return method_difference(answers[0], answers[1], videos.classes(like), videos.groups)
    if len(answers[0]) > 1 or len(answers[1]) > 1:
        return None
    return videos.difference(like, answers[0][0], answers[1][0])


def _beyond(keys: Sequence[RowKey], found: Sequence[Difference | None]) -> list[tuple[str, float]]:
    """Label and points of the differences that are beyond chance, by Holm's p."""
    adjusted = iter(holm([each.p for each in found if each is not None]))
    return [
        (head(key), 100 * each.mean)
        for key, each in zip(keys, found, strict=True)
        if each is not None and next(adjusted) < LEVEL
    ]


def grid_verdict(results: GridResults) -> list[str]:
    """How many pairs of cells differ beyond chance, and the best cell for each label."""
    words = []
    for protocol in results.protocols:
        table = ProtocolTable.of(results, protocol)
        rows = [row for grid in table.pairs() for row in grid.rows if row[-1] != "-"]
        beyond = sum(row[-1].startswith("<") or float(row[-1]) < LEVEL for row in rows)
        words.append(
            f"{protocol}: of {counted(len(rows), 'tested pair')} of cells, {beyond} "
            f"{'differs' if beyond == 1 else 'differ'} beyond chance."
        )
        best = []
        for key in table.rows:
            means = {cell.name: fmean(table.value(cell, key)) for cell in table.present}
            first = max(means, key=means.__getitem__)
            best.append(f"{head(key)}: {first} ({100 * means[first]:.1f} %)")
        words.append(f"{protocol}, highest mean: {'; '.join(best)}.")
    return words


# sections


def grid_section(results: GridResults) -> Section:
    """The tables of a grid, and for two axes how the one's effect changes with the other."""
    figures = []
    if len(results.axes) == 2:
        for protocol in results.protocols:
            table, (along, across) = ProtocolTable.of(results, protocol), results.axes
            panels: dict[str, dict[str, list[charts.Dot]]] = {}
            for key in table.rows:
                for cell in table.present:
                    dot = _mean_dot(cell.levels[along], table.value(cell, key), table.score(key).measure)
                    panels.setdefault(measured(key, table.score(key)), {}).setdefault(
                        cell.levels[across], []
                    ).append(dot)
            text = f"{protocol}: mean over seeds with its 95 % interval, a line for each {across}"
            figures.append(_chart(f"{along} x {across}", charts.effects_chart(panels, along), text))
    return Section("The grid", tuple(figures), tuple(grid_tables(results)))


def score_panels(
    groups: Sequence[RunGroup], names: Mapping[str, str]
) -> tuple[dict[str, list[charts.Dot]], dict[str, float | None], list[str]]:
    """Label -> a score for each network, label -> chance, and the names of networks that were not trained."""
    panels: dict[str, list[charts.Dot]] = {}
    chance: dict[str, float | None] = {}
    hollow = []
    for key in _normal_rows(groups[0]):
        row = groups[0].rows(next(iter(groups[0].files[0].scores)))[key][0]
        label = measured(key, row)
        chance[label] = row.class_chance if row.unbalanced else row.chance
        for group in groups:
            for place, network in enumerate(group.files[0].scores):
                name = _group_name(group, names) + ("" if place == 0 else f", {network}")
                if place:
                    hollow.append(name)
                panels.setdefault(label, []).append(_dot(name, group, network, key))
    return panels, chance, hollow


def scores_section(groups: Sequence[RunGroup], names: Mapping[str, str]) -> Section:
    """Scores of trained and untrained networks, with intervals and chance."""
    protocol = groups[0].files[0].name
    text = "scores in % with its 95 % interval; hollow: not trained; dashed: chance"
    figure = _chart(f"Scores under {protocol}", charts.scores_chart(*score_panels(groups, names)), text)
    return Section(f"Scores: {protocol}", (figure,))


def orders_section(groups: Sequence[RunGroup], names: Mapping[str, str]) -> Section | None:
    """What is left of a score where frames are single, shuffled or reversed; None if that was not asked."""
    orders = {key[2] for group in groups for key in group.rows(next(iter(group.files[0].scores)))}
    if orders == {"normal"}:
        return None
    panels: dict[str, list[charts.Dot]] = {}
    for group in groups:
        network = next(iter(group.files[0].scores))
        for order in _ORDERS:
            for key in group.rows(network):
                if key[2] == order:
                    label = head((key[0], key[1], "normal"))
                    dot = _dot(f"{_group_name(group, names)}, {order}", group, network, key)
                    panels.setdefault(label, []).append(dot)
    text = "the same probe, tested on clips with their frames in another order"
    return Section(
        "What it uses: order of frames", (_chart("Order of frames", charts.scores_chart(panels, {}), text),)
    )


def curve_panels(runs: Sequence[Path], names: Mapping[str, str]) -> dict[str, list[charts.Curve]]:
    """Metric -> the curves of the runs that logged it, those of held-out videos dashed."""
    panels: dict[str, list[charts.Curve]] = {}
    for run in runs:
        metrics = runfolder.RunFolder(run).metrics
        for found in read_curves(metrics) if metrics.is_file() else ():
            metric = found.name.removeprefix("test_")
            if metric.startswith(_CURVES):
                tested = metric != found.name
                curve = charts.Curve(names[str(run)], found.steps, found.values, dashed=tested)
                panels.setdefault(metric, []).append(curve)
    return panels


def curves_section(runs: Sequence[Path], names: Mapping[str, str]) -> Section:
    """Metrics over steps, test over train, runs over one another."""
    panels = curve_panels(runs, names)
    notes = [
        f"{names[str(run)]}: no metrics in its folder"
        for run in runs
        if not runfolder.RunFolder(run).metrics.is_file()
    ]
    figures = (_chart("Training", charts.curves_chart(panels), "metrics over steps"),) if panels else ()
    return Section("Curves", figures, notes=tuple(notes))


def confusion_section(protocols: Sequence[Sequence[RunGroup]], names: Mapping[str, str]) -> Section:
    """What the videos of each class are taken for, or its average precision: each group's first seed."""
    figures, notes = [], []
    for groups in protocols:
        for group in groups[:MOST_DRAWN]:
            file = group.files[0]
            network = next(iter(file.scores))
            seen = set()
            for row in file.scores[network]:
                if row.frames != "normal" or row.label in seen or not (row.names_classes or row.precisions):
                    continue
                seen.add(row.label)
                title = f"{names[run_folder(file)]}, {file.name}, {row.label}"
                if row.precisions:
                    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in row.precisions)
                    notes.append(f"{title}, average precision: {told}")
                elif len(file.classes[row.label]) > MOST_CONFUSED:
                    notes.append(
                        f"{row.label}: {len(file.classes[row.label])} classes; "
                        f"vidssl show {run_folder(file)} --what confusion draws them"
                    )
                else:
                    drawn = charts.confusion_page(file, network, row)
                    figures.append(_picture(title, [drawn], f"confusion: {title}"))
    if not figures and not notes:
        notes.append("no row names one class a video: retrieval, R2 and masks name none")
    return Section("Confusion", tuple(figures), notes=tuple(dict.fromkeys(notes)), closed=True)


def picture_sections(
    runs: Sequence[Path], names: Mapping[str, str], trust: bool, console: Console
) -> list[Section]:
    """Clips with what was hidden and filled in, neighbours and maps: what each run can be drawn by."""
    made: dict[str, tuple[list[Figured], list[str]]] = {}
    for run in runs[:MOST_DRAWN]:
        name, features = names[str(run)], cache(partial(_features, run, trust, console))
        for title, draw in (
            (
                "Clips: what was hidden, and what was filled in",
                partial(_clips, run, "reconstruction", trust, console),
            ),
            ("Clips: where the class token looks", partial(_clips, run, "attention", trust, console)),
            ("Nearest neighbours of test videos", partial(_neighbours, features)),
            ("Map of test videos", partial(_map, features)),
        ):
            figures, notes = made.setdefault(title, ([], []))
            try:
                figures += [replace(each, title=f"{name}: {each.title}") for each in draw()]
            except UsageError as error:  # a run without pixels or without its videos still has its scores
                notes.append(f"{name}: {error}")
    left = [names[str(run)] for run in runs[MOST_DRAWN:]]
    more = (f"not drawn: {', '.join(left)} (vidssl show RUN)",) if left else ()
    return [Section(title, tuple(f), notes=(*n, *more)) for title, (f, n) in made.items()]


def _clips(run: Path, what: clips.Picture, trust: bool, console: Console) -> list[Figured]:
    checkpoint = read_checkpoint(evaluate.find_checkpoint(str(run)))
    drawing = show.drawing_of_run(
        checkpoint, what, trust=trust, say=partial(print_line, console), videos=CLIPS_A_RUN
    )
    return [_picture(drawing.title, animation(drawing.title, drawing.strips), drawing.title)]


def _features(run: Path, trust: bool, console: Console) -> RunFeatures:
    return run_features(read_checkpoint(evaluate.find_checkpoint(str(run))), console, trust=trust)


def _neighbours(features: Callable[[], RunFeatures]) -> list[Figured]:
    title = "test videos, and the training videos whose features are nearest (cosine similarity)"
    strips = neighbour_strips(features(), features().label(None))
    return [_picture(title, neighbour_pages(title, strips), title)]


def _map(features: Callable[[], RunFeatures]) -> list[Figured]:
    test, (points, chosen) = features().test, embedding(features())
    figures = []
    for label, numbers in test.labels.items():
        own = numbers[chosen].tolist()
        chart = charts.embedding_chart(points, own, test.classes[label], f"t-SNE of features, by {label}")
        figures.append(
            _chart(f"by {label}", chart, f"t-SNE of the test videos' features, coloured by {label}")
        )
    return figures


def cards_section(files: Sequence[score_file.ScoreFile]) -> Section:
    """The protocols, as they were, and what must be equal for scores to be compared."""
    texts = {}
    for file in files:
        videos = ", ".join(f"{part} {found} of {listed}" for part, (found, listed) in file.videos.items())
        texts[f"{file.name}: card {file.card_sha256[:8]}; videos: {videos}"] = file.protocol
    return Section("Protocols", texts=tuple(texts.items()), closed=True)


def environment_section(runs: Sequence[Path], targets: Sequence[str], out: str) -> Section:
    """Where each run was trained, and the commands that make it all again."""
    texts = []
    for run in runs:
        path = run / "environment.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            texts.append((str(run), "\n".join(f"{key}: {_flat(value)}" for key, value in found.items())))
    texts.append(("this page", f"vidssl report {' '.join(targets)} -o {out}"))
    return Section("Environment and commands", texts=tuple(texts), closed=True)


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(entry)}" for key, entry in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# figures


def _chart(title: str, figure: "Figure", text: str) -> Figured:
    return Figured(title, charts.svg(figure), text)


def _picture(title: str, pages: Sequence[Image.Image], text: str) -> Figured:
    """A picture, animated where there are several pages, inside the page itself."""
    address = f"data:image/webp;base64,{base64.b64encode(webp(pages)).decode()}"
    return Figured(title, address, text, is_picture=True, wide=pages[0].width)
