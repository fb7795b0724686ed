"""Runs that differ in nothing but their seed, taken together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from vidssl.evaluate.score_file import ScoreFile
from vidssl.evaluators.differences import RowKey, what
from vidssl.evaluators.scores import Score, folded
from vidssl.evaluators.statistics import mean_over_seeds

IGNORED = ("name", "run.out")  # differ between any two runs


@dataclass(frozen=True)
class RunGroup:
    """A run, or several that differ only in their seed, under one protocol.

    Attributes:
        files: the scores of each run; of one checkpoint step, for the same networks.
    """

    files: tuple[ScoreFile, ...]

    @property
    def name(self) -> str:
        """Of the runs; what differs between several names stands in braces, as a shell takes it."""
        return together([run_name(file) for file in self.files])

    @property
    def seeds(self) -> tuple[str, ...]:
        """Of the runs, "-" for what has none."""
        return tuple(file.settings.get("seed", "-") for file in self.files)

    @cached_property
    def settings(self) -> Mapping[str, str]:
        """Dotted key -> value of the recipe, which all runs share but for their seeds."""
        shared = {key: value for key, value in self.files[0].settings.items() if key not in IGNORED}
        return {**shared, "seed": ", ".join(self.seeds)}

    def rows(self, network: str) -> Mapping[RowKey, tuple[Score, ...]]:
        """Label, setting and order of frames -> the rows of all runs; corruptions as one, their mean."""
        found = [{what(score): score for score in folded(file.scores[network])} for file in self.files]
        return {key: tuple(rows[key] for rows in found) for key in found[0]}


def run_groups(files: Sequence[ScoreFile], *, each: bool) -> list[RunGroup]:
    """The runs in their order, those that differ only in their seed as one where the first of them stands.

    A seed counts once: of two runs of one recipe and seed, which are no independent trials, the second
    stands apart. So does what has no seed.

    Args:
        files: scores under one protocol.
        each: leaves every run by itself.
    """
    groups: dict[object, list[ScoreFile]] = {}
    for place, file in enumerate(files):
        recipe = {key: value for key, value in file.settings.items() if key not in (*IGNORED, "seed")}
        key: object = (tuple(sorted(recipe.items())), file.step, tuple(file.scores))
        seed = file.settings.get("seed")
        if each or seed is None or seed in (other.settings["seed"] for other in groups.get(key, ())):
            key = place
        groups.setdefault(key, []).append(file)
    return [RunGroup(tuple(group)) for group in groups.values()]


def together(names: Sequence[str]) -> str:
    """``runs/svt-{0,1,2}`` for names that share their beginning and their end."""
    if len(names) == 1:
        return names[0]
    start = _shared(names)
    rest = [name[start:] for name in names]
    end = _shared([name[::-1] for name in rest])
    middles = [name[: len(name) - end] for name in rest]
    return f"{names[0][:start]}{{{','.join(middles)}}}{rest[0][len(rest[0]) - end :]}"


def _shared(names: Sequence[str]) -> int:
    """The number of characters that names share at their beginning."""
    return len(list(takewhile(lambda same: len(set(same)) == 1, zip(*names, strict=False))))


def run_name(file: ScoreFile) -> str:
    """The run's folder; the checkpoint where it lies elsewhere; the name of a network that is no run's."""
    folder = Path(file.checkpoint).parent
    return str(folder.parent) if folder.name == "checkpoints" else file.checkpoint


def seeds_cell(values: Sequence[float]) -> str:
    """Mean of several runs and half of its 95 % interval, in percent; runs that tie have no interval."""
    mean, half = mean_over_seeds([100 * value for value in values])
    return f"{mean:.1f} (seeds tie)" if half is None else f"{mean:.1f} ± {half:.1f}"
