"""The command ``vidssl data split``: a list in parts that have no source in common and the same classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vidssl.config.strict_yaml import dump_flow
from vidssl.data.classes import TARGET, label_of_one_class
from vidssl.data.sources.listing import Listing
from vidssl.data.sources.lists import list_root, read_lists
from vidssl.data.sources.manifest import Manifest
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, agreed, counted
from vidssl.evaluators.statistics import FEWEST_GROUPS
from vidssl.tools.collection.annotations import Row, rows_of, shown, write_lists
from vidssl.tools.collection.glimpses import FRAMES, SIDE, alike, glimpses
from vidssl.tools.data.check import print_list, say
from vidssl.tools.data.runner import CLEAN

FRACTIONS = (0.7, 0.15, 0.15)
_NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}
_EMPTY = 1e6  # cost of a class that a part lacks, beyond every deviation


@dataclass(frozen=True)
class Rule:
    """How a list is parted: one of fractions, a number of folds, or each group left out in turn.

    Attributes:
        fractions: of train, validation and test, or of train and test.
        folds: each sample is a test sample in one of them; 0 for none.
        leave_one_group_out: a fold for each group.
        seed: of the order in which groups are given out.
        stratify: the label whose classes the parts have in equal shares; by default the first of one class a
            video.
        duplicates: whether near-duplicates are looked for and kept together.
    """

    fractions: tuple[float, ...] = FRACTIONS
    folds: int = 0
    leave_one_group_out: bool = False
    seed: int = 0
    stratify: str | None = None
    duplicates: bool = True

    def __post_init__(self) -> None:
        if (
            len(self.fractions) not in _NAMES
            or min(self.fractions) <= 0
            or abs(sum(self.fractions) - 1) > 1e-6
        ):
            raise UsageError(
                "--fractions takes those of train and test, or of train, validation and test, which sum to "
                f"1, got {','.join(f'{part:g}' for part in self.fractions)}"
            )
        if self.folds == 1 or (self.folds and self.leave_one_group_out):
            raise UsageError("--folds takes 2 or more, and not together with --leave-one-group-out")

    @property
    def words(self) -> str:
        """For the lists."""
        kind = f"fractions {','.join(f'{part:g}' for part in self.fractions)}"
        if self.folds:
            kind = f"{self.folds} folds"
        elif self.leave_one_group_out:
            kind = "leave one group out"
        alike = "near-duplicates kept together" if self.duplicates else "near-duplicates not looked for"
        by = f"stratified by {self.stratify or 'nothing'}"
        return f"{kind}, seed {self.seed}, {by}, groups not parted, {alike}"


def split_list(
    path: Path,
    rule: Rule,
    *,
    root: Path | None = None,
    out: Path | None = None,
    show_all: bool = False,
    console: Console | None = None,
) -> int:
    """Write the parts of a list as lists of their own.

    Args:
        path: the list; bad files of a manifest beside it are left out.
        rule: how it is parted.
        root: folder that its paths are relative to; by default as the list says.
        out: folder of the parts; by default the list's own.

    Returns:
        Exit code 0.

    Raises:
        UsageError: if there are too few groups, or a part would be written over.
    """
    console = console or terminal()
    root = root or list_root(path)
    (listing,) = read_lists(path, exists=lambda key: (root / key).is_file())
    rule = _stratified(rule, listing, path)
    manifest = path.with_name(f"{path.stem}.manifest.jsonl")
    rows, bad = _usable(rows_of(listing), manifest)
    pairs: list[tuple[int, int]] = []
    if rule.duplicates:
        seen = glimpses(
            rows, root, console, "look for near-duplicates", count=FRAMES, height=SIDE, width=SIDE
        )
        bad += [f"{row.path}: {one.reason}" for row, one in zip(rows, seen, strict=True) if one.reason]
        kept = [number for number, one in enumerate(seen) if not one.reason]
        rows, pairs = [rows[n] for n in kept], alike([seen[n] for n in kept])
    if not rows:
        raise UsageError(f"{path}: none of its files below {root} can be read, such as {bad[0]}")
    names = {
        key: [sample.cut_from or sample.path for sample in files] for key, files in listing.by_file().items()
    }
    units = united([row.group or names[row.path][0] for row in rows], pairs)
    classes = _classes(rows, rule)
    parts = parted(units, classes, rule)
    folder = out or path.parent
    notes = [("rule", rule.words)]
    if manifest.exists():
        notes.append(("manifest", manifest.absolute().as_posix()))
    files = {folder / f"{path.stem}.{name}.csv": chosen for name, chosen in parts.items()}
    lists = {file: [rows[number] for number in chosen] for file, chosen in files.items()}
    write_lists(lists, root, f"vidssl data split {path}", notes)
    print_list(console, "Unreadable, in no part", [*dict.fromkeys(bad)], show_all=show_all)
    same = Counter((rows[a].path, rows[b].path) for a, b in pairs if rows[a].path != rows[b].path)
    words = [f"{one} = {other}" + f", {count} segments" * (count > 1) for (one, other), count in same.items()]
    print_list(console, "Near-duplicates, kept together", words, show_all=show_all)
    _report(console, files, rows, units, classes, half_is_more=rule.fractions[-1] < 0.5)
    return CLEAN


def _stratified(rule: Rule, listing: Listing, path: Path) -> Rule:
    """The rule with the label that it stratifies by."""
    labels = list(listing.label_classes)
    if rule.stratify is not None and rule.stratify not in labels:
        raise UsageError(f"--stratify {rule.stratify}: {path} has the labels {', '.join(labels) or 'none'}")
    if rule.stratify is not None and rule.stratify.startswith(TARGET):
        raise UsageError(f"--stratify {rule.stratify}: a target is a number and has no classes to share out")
    name = rule.stratify or label_of_one_class(listing.label_classes)
    return Rule(rule.fractions, rule.folds, rule.leave_one_group_out, rule.seed, name, rule.duplicates)


def _usable(rows: list[Row], manifest: Path) -> tuple[list[Row], list[str]]:
    """Rows whose files a manifest, where there is one, calls usable; and the others with the reason."""
    if not manifest.exists():
        return rows, []
    known = Manifest(manifest)
    bad = {
        row.path: known.entry(row.path).reason
        for row in rows
        if row.path in known and not known.entry(row.path).usable
    }
    return [row for row in rows if row.path not in bad], [f"{key}: {reason}" for key, reason in bad.items()]


def _classes(rows: Sequence[Row], rule: Rule) -> list[str]:
    return [row.labels[rule.stratify] if rule.stratify else "" for row in rows]


def united(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Number of the unit of each sample: samples of one group, and those that pairs unite, are one unit."""
    parent: dict[object, object] = {}

    def top(one: object) -> object:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for number, group in enumerate(groups):
        parent[top(number)] = top(group)
    for one, other in pairs:
        parent[top(one)] = top(other)
    known: dict[object, int] = {}
    return [known.setdefault(top(number), len(known)) for number in range(len(groups))]


def parted(units: Sequence[int], classes: Sequence[str], rule: Rule) -> dict[str, list[int]]:
    """Name of each part -> numbers of its samples; of folds, "fold1.train", "fold1.test" and so on.

    Raises:
        UsageError: if there are fewer units than parts.
    """
    count = max(units) + 1
    if rule.leave_one_group_out:
        where = list(range(count))
    else:
        shares = [1 / rule.folds] * rule.folds if rule.folds else list(rule.fractions)
        if count < len(shares):
            raise UsageError(
                f"{counted(len(shares), 'part')} of {counted(count, 'group')}: groups and near-duplicates "
                "are not parted, so there can be no more parts than groups"
            )
        where = given_out(_table(units, classes), np.array(shares), rule.seed)
    if not rule.folds and not rule.leave_one_group_out:
        names = _NAMES[len(rule.fractions)]
        return {
            name: [n for n, unit in enumerate(units) if where[unit] == place]
            for place, name in enumerate(names)
        }
    found = {}
    for fold in range(max(where) + 1):
        for name, inside in (("train", False), ("test", True)):
            chosen = [n for n, unit in enumerate(units) if (where[unit] == fold) == inside]
            if not chosen:
                raise UsageError(f"fold {fold + 1} has no {name} videos: there are too few groups")
            found[f"fold{fold + 1}.{name}"] = chosen
    return found


def _table(units: Sequence[int], classes: Sequence[str]) -> NDArray[np.int64]:
    """Samples of each unit in each class, int64 [U, K]."""
    names = {name: place for place, name in enumerate(sorted(set(classes)))}
    table = np.zeros((max(units) + 1, len(names)), np.int64)
    for unit, name in zip(units, classes, strict=True):
        table[unit, names[name]] += 1
    return table


def given_out(table: NDArray[np.int64], shares: NDArray[np.float64], seed: int) -> list[int]:
    """The part of each unit: units of many samples first, each to where it is missed most.

    A class goes to train, then to test, then to the other parts, before any has more of it than its share.

    Args:
        table: samples of each unit in each class, [U, K].
        shares: of the parts; the first is what is trained on.
    """
    totals = table.sum(0)
    order = np.random.default_rng(seed).permutation(len(table))
    order = order[np.argsort(-table[order].max(1), kind="stable")]
    filled = np.zeros((len(shares), table.shape[1]))
    where = [0] * len(table)
    rank = np.roll(np.arange(len(shares))[::-1], 1)  # of equal costs: the first part, then the last
    for unit in order:
        own = table[unit]
        # what a part lacks of each class, by the class's size: a rare one counts as much as a common one
        missing = (shares[:, None] * totals - filled) / np.maximum(totals, 1)
        gain = (own / np.maximum(totals, 1) * (2 * missing - own / np.maximum(totals, 1))).sum(1)
        gain += _EMPTY * ((filled == 0) & (own > 0)).sum(1) + (filled.sum(1) == 0) * _EMPTY
        place = max(range(len(shares)), key=lambda part: (round(float(gain[part]), 9), -int(rank[part])))
        where[int(unit)] = place
        filled[place] += own
    return where


def _report(
    console: Console,
    files: dict[Path, list[int]],
    rows: Sequence[Row],
    units: Sequence[int],
    classes: Sequence[str],
    half_is_more: bool,
) -> None:
    names = sorted(set(classes))
    for file, chosen in files.items():
        count = Counter(classes[number] for number in chosen)
        groups = len({units[number] for number in chosen})
        words = ", ".join(f"{name} {count[name]}" for name in names[:10]) + (
            ", ..." if len(names) > 10 else ""
        )
        part = [rows[number] for number in chosen]
        words = f": {words}" if names != [""] else ", not stratified: no label has one class a video"
        say(console, f"{file}: {shown(len(part), part)} in {counted(groups, 'group')}{words}")
        if groups < FEWEST_GROUPS and file.name.endswith("test.csv") and any(row.group for row in part):
            cure = (
                ": '--fractions 0.5,0.5' tests on more of them" if half_is_more else ": record more of them"
            )
            few = f"a test goes by groups, and fewer than {FEWEST_GROUPS} show no difference{cure}"
            say(console, f"  {counted(groups, 'group')} to test on: {few}")
    spread = {name: len({units[n] for n, own in enumerate(classes) if own == name}) for name in names}
    tests = {file: chosen for file, chosen in files.items() if not file.name.endswith(".train.csv")}
    lacking = {
        name: [file.name for file, chosen in files.items() if name not in {classes[n] for n in chosen}]
        for name in names
    }
    fewer = "fewer parts ('--fractions 0.8,0.2'), "
    for name, where in lacking.items():
        if where:
            say(
                console,
                f"Too small for this split: '{name}' has {counted(spread[name], 'group')}, and "
                f"{', '.join(where[:3])} {agreed(len(where), 'lack')} it. More recordings of it, "
                f"{fewer if spread[name] > 1 else ''}or leave the class out",
            )
    trains = [file for file in files if file.name.endswith("train.csv")]
    source = {
        "type": "video_list",
        "root": str(list_root(trains[0])),
        "list": str(trains[0]),
        "test_list": str(list(tests)[-1] if len(trains) == 1 else next(iter(tests))),
    }
    say(console, f"In recipes: source: {dump_flow(source)}")
    say(console, f"Next: vidssl init my.yaml --videos {trains[0]}")
