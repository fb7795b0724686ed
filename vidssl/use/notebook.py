"""What the commands do, from Python: each returns an object that shows itself, as text and as a table."""

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from vidssl.compare.runs import csv_text, run_grids
from vidssl.compare.tables import markdown
from vidssl.config import protocol, strict_yaml
from vidssl.config.recipe import Recipe, load_recipe, overridden, read_recipe
from vidssl.engine import distributed, runfolder
from vidssl.engine.logging import shown_messages, terminal
from vidssl.errors import UsageError
from vidssl.evaluate import networks, score_file, subject
from vidssl.evaluate.evaluate import eval_words, evaluate_run, find_checkpoint
from vidssl.pictures.show import show as draw
from vidssl.train.run import train_recipe as run_training
from vidssl.use.masks import evaluate_masks

if TYPE_CHECKING:
    import pandas

Rows = list[dict[str, object]]


def _frame(rows: Rows) -> "pandas.DataFrame":
    try:
        import pandas
    except ImportError:
        raise UsageError("a frame needs pandas (pip install pandas); .table() gives the same rows") from None
    return pandas.DataFrame(rows)


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        folder: its folder, which every command and ``load`` take.
    """

    folder: Path

    def table(self) -> Rows:
        """A row for each line of its metrics."""
        path = runfolder.RunFolder(self.folder).metrics
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def frame(self) -> "pandas.DataFrame":
        """``table`` for pandas."""
        return _frame(self.table())

    def __repr__(self) -> str:
        rows = self.table()
        last = rows[-1] if rows else {}
        shown = ", ".join(f"{name} {last[name]:.4g}" for name in ("loss", "lr") if name in last)
        newest = runfolder.RunFolder(self.folder).newest_checkpoint()
        return f"Run {self.folder}: step {last.get('step', 0)}, {shown}; checkpoint {newest}"


def train_recipe(
    recipe: str | Path | Mapping[str, object], overrides: Sequence[str] = (), *, quiet: bool = False
) -> Run:
    """Train what a recipe describes, as ``vidssl train`` does.

    Args:
        recipe: its file or name, or the recipe itself as a mapping.
        overrides: ``key=value``.
        quiet: print nothing.

    Raises:
        UsageError: if the recipe is wrong, or training cannot go on.
    """
    read = _recipe(recipe, overrides)
    console = terminal(quiet=quiet)
    with (
        distributed.processes(read.run.device, timeout_minutes=read.run.timeout_minutes),
        shown_messages(console),
    ):
        _, result = run_training(read, console)
    return Run(result.folder)


def _recipe(recipe: str | Path | Mapping[str, object], overrides: Sequence[str]) -> Recipe:
    if not isinstance(recipe, Mapping):
        return load_recipe(str(recipe), overrides)
    node = strict_yaml.parse(strict_yaml.dump(recipe), lambda line: f"recipe, line {line}")
    return read_recipe(overridden(node, overrides), Path.cwd())


@dataclass(frozen=True)
class Scores:
    """Scores of one or several runs, as ``vidssl compare`` shows them.

    Attributes:
        files: what was measured.
    """

    files: tuple[score_file.ScoreFile, ...]

    def table(self) -> Rows:
        """A row for each number: run, protocol, network, label and the rest that ``compare --csv`` has."""
        return [dict(row) for row in csv.DictReader(csv_text(self.files).splitlines())]

    def frame(self) -> "pandas.DataFrame":
        """``table`` for pandas, numbers as numbers."""
        import pandas

        frame = _frame(self.table())
        for name in frame.columns:
            numbers = pandas.to_numeric(frame[name], errors="coerce")
            frame[name] = numbers if numbers.notna().any() else frame[name]
        return frame

    def __repr__(self) -> str:
        return "\n".join(markdown(grid) for grid in run_grids(self.files, each=True))

    def _repr_markdown_(self) -> str:
        return repr(self)


def evaluate(
    network: str | Path | Run,
    protocols: str | Sequence[str],
    overrides: Sequence[str] = (),
    *,
    trust: bool = False,
    quiet: bool = True,
) -> Scores:
    """Score a network, as ``vidssl eval`` does; the files of scores are written too.

    Args:
        network: a run, a checkpoint, or a network that is no run's.
        protocols: names or files of one or several.
        overrides: as for ``vidssl eval``.
        trust: likewise.
        quiet: print nothing.

    Raises:
        UsageError: as the command.
    """
    word = _word(network)
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    if networks.is_external(word):
        words = eval_words(overrides)
        folder = networks.ExternalNetwork(word, words.weights, words.network).folder.scores
    else:
        folder = subject.scores_of(find_checkpoint(word))[1]
    before = _written_at(folder)
    of_masks, console = [name for name in names if protocol.measures_masks(name)], terminal(quiet=quiet)
    for name in of_masks:
        evaluate_masks(word, name, overrides, console, trust=trust)
    if rest := [name for name in names if name not in of_masks]:
        evaluate_run(word, rest, overrides, console, trust=trust)
    made = [path for path, at in _written_at(folder).items() if before.get(path) != at]
    return Scores(tuple(score_file.read_scores(path) for path in sorted(made)))


def _written_at(folder: Path) -> dict[Path, int]:
    """When each file of scores was written, in nanoseconds; none where there is no folder yet."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def _word(network: str | Path | Run) -> str:
    return str(network.folder if isinstance(network, Run) else network)


def compare(*runs: str | Path | Run) -> Scores:
    """The newest scores of runs side by side, as ``vidssl compare`` shows them; differences included.

    Raises:
        UsageError: if there are no scores, or two were made under different protocols of one name.
    """
    if not runs:
        raise UsageError("compare takes runs or files of scores")
    files = [file for run in runs for file in score_file.find_scores(runfolder.named_path(_word(run)))]
    found = Scores(tuple(files))
    run_grids(files, each=True)  # refuses what cannot be compared
    return found


@dataclass(frozen=True)
class Pictures:
    """Pictures that were drawn; a notebook shows the first.

    Attributes:
        files: PNG, and animated WebP for clips.
    """

    files: tuple[Path, ...]

    def __repr__(self) -> str:
        return "Pictures: " + ", ".join(map(str, self.files))

    def _repr_html_(self) -> str:
        png = base64.b64encode(self.files[0].read_bytes()).decode()
        return f'<img src="data:image/png;base64,{png}">'


def show(
    run: str | Path | Run,
    what: Literal["attention", "reconstruction"],
    *,
    videos: int | None = None,
    out: str | None = None,
    overrides: Sequence[str] = (),
    trust: bool = False,
) -> Pictures:
    """Draw what a run learned, as ``vidssl show`` does.

    Args:
        run: a run, a checkpoint or a tokenizer.
        what: "attention" or "reconstruction".
        videos: how many; None for 4 clips or 8 images.
        out: folder of the pictures; None for ``pictures`` in the run's own.
        overrides: ``data={...}`` and ``views={...}``.
        trust: as for ``vidssl show``.

    Raises:
        UsageError: as the command.
    """
    console = Console(quiet=True, record=True)
    files: list[Path] = []
    draw(
        _word(run), what, videos=videos, out=out, overrides=overrides, trust=trust, console=console,
        keep=files.append,
    )  # fmt: skip
    return Pictures(tuple(files))
