"""Charts of runs as PNG files: curves, scores, maps of features, nearest neighbours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from vidssl.compare.runs import by_protocol
from vidssl.compare.tables import run_groups
from vidssl.engine import process, runfolder
from vidssl.engine.checkpoint import read_checkpoint
from vidssl.engine.logging import print_line, shown_messages, terminal
from vidssl.errors import UsageError
from vidssl.evaluate import evaluate, score_file
from vidssl.pictures.charts import curves_chart, embedding_chart, require_matplotlib, save_chart, scores_chart
from vidssl.pictures.features import QUERIES, embedding, neighbour_pages, neighbour_strips, run_features
from vidssl.pictures.pages import save_png, save_webp
from vidssl.tools.report import curve_panels, run_folder, score_panels, short_names

Chart = Literal["curves", "scores", "embedding", "neighbours"]


def show_chart(
    targets: Sequence[str],
    what: Chart,
    *,
    protocol: str | None = None,
    label: str | None = None,
    videos: int | None = None,
    out: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> int:
    """Draw runs: curves and scores over one another, a map of features or neighbours of each.

    Args:
        targets: runs; for scores also files of scores, for features also checkpoints.
        protocol: whose scores, or whose views features are taken from.
        label: that colours a map and names neighbours; the first where none is named.
        videos: test videos whose neighbours are shown.
        out: folder for the pictures; None for ``pictures`` in the first run.

    Returns:
        Exit code 0.

    Raises:
        UsageError: for anything a user can mend.
    """
    console = console or terminal()
    if not targets:
        raise UsageError(f"--what {what} takes runs, got none (vidssl show runs/a --what {what})")
    if what != "neighbours":
        require_matplotlib()
    own = Path(targets[0])
    folder = Path(out) if out is not None else (own if own.is_dir() else own.parent) / "pictures"
    with shown_messages(console):
        if what == "curves":
            runs = [runfolder.named_run(word).path for word in targets]
            panels = curve_panels(runs, short_names([str(run) for run in runs]))
            if not panels:
                raise UsageError(f"{targets[0]}: nothing is logged yet")
            paths = [folder / "curves.png"]
            process.make_folder(folder, "name another with --out")
            save_chart(curves_chart(panels), paths[0])
        elif what == "scores":
            paths = _scores(targets, protocol, folder)
        else:
            paths = []
            for word in targets:
                paths += _features(word, what, protocol, label, videos, folder, trust, console)
    for path in paths:
        print_line(console, f"Picture: {path}")
    return 0


def _scores(targets: Sequence[str], protocol: str | None, folder: Path) -> list[Path]:
    files = [file for word in targets for file in score_file.find_scores(Path(word))]
    kept = [file for file in files if protocol in (None, file.name)]
    if not kept:
        known = ", ".join(dict.fromkeys(file.name for file in files))
        raise UsageError(f"no scores of '{protocol}'. There are: {known}")
    names = short_names([run_folder(file) for file in kept])
    paths = []
    process.make_folder(folder, "name another with --out")
    for same in by_protocol(kept):
        path = folder / f"scores-{same[0].name}.png"
        save_chart(scores_chart(*score_panels(run_groups(same, each=False), names)), path)
        paths.append(path)
    return paths


def _features(
    word: str,
    what: Chart,
    protocol: str | None,
    label: str | None,
    videos: int | None,
    folder: Path,
    trust: bool,
    console: Console,
) -> list[Path]:
    checkpoint = read_checkpoint(evaluate.find_checkpoint(word))
    features = run_features(checkpoint, console, protocol=protocol, trust=trust)
    asked = features.label(label)
    process.make_folder(folder, "name another with --out")
    path = folder / f"{what}-{asked.replace('/', '_')}-{checkpoint.path.stem}.png"
    title = f"{word}, step {checkpoint.step}"
    if what == "embedding":
        points, chosen = embedding(features)
        numbers = features.test.labels[asked][chosen].tolist()
        text = f"{title}: t-SNE of the test videos' features, by {asked}"
        save_chart(embedding_chart(points, numbers, features.test.classes[asked], text), path)
        return [path]
    strips = neighbour_strips(features, asked, videos or QUERIES)
    pages = neighbour_pages(
        f"{title}: test videos, then the training videos whose features are nearest", strips
    )
    save_png(pages[len(pages) // 2], path)
    if len(pages) == 1:
        return [path]
    moving = path.with_suffix(".webp")
    save_webp(pages, moving)
    return [path, moving]
