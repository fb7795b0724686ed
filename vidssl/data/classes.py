"""Classes of a label: their names in number order, one numbering for several data sets, their counts.

A label whose classes are sets (``jump|run``) has several classes a video, one called ``target:NAME`` is a
number. Both travel as class numbers, one for each set or number; ``outputs_of`` says what these stand for.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted

LARGEST = 1_000_000  # no data set has a class of a higher number; IDs are higher
_DIGITS = 4000  # of what is taken for a number; Python reads no more
_NAMED = 10

LabelClasses = Mapping[str, tuple[str, ...]]  # label name -> names of its classes, in number order
LabelKind = Literal["class", "set", "number"]
SEPARATOR, TARGET = "|", "target:"


def label_kind(label: str, classes: Iterable[str]) -> LabelKind:
    """What a video has of a label: one class, a set of them, or a number."""
    if label.startswith(TARGET):
        return "number"
    return "set" if any(SEPARATOR in name for name in classes) else "class"


def label_of_one_class(classes: Mapping[str, Iterable[str]]) -> str | None:
    """The first label of which a video has one class: what videos are sorted by."""
    return next((label for label, names in classes.items() if label_kind(label, names) == "class"), None)


def outputs_of(label: str, classes: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """What stands for sets or numbers: P names, and float64 [K, P] of K classes, 1 for those in a set."""
    if label_kind(label, classes) == "number":
        return (label.removeprefix(TARGET),), torch.tensor([[float(n)] for n in classes], dtype=torch.float64)
    sets = [set(name.split(SEPARATOR)) - {""} for name in classes]
    names = tuple(sorted(set().union(*sets)))
    return names, torch.tensor([[float(name in own) for name in names] for own in sets], dtype=torch.float64)


def check_cell(label: str, cell: str, where: object) -> str:
    """A cell of a list as a class is spelled: a set by its sorted names, ``|`` alone for none of them.

    Raises:
        UsageError: for a set with an empty name, or a target that is no finite number.
    """
    if label.startswith(TARGET):
        try:
            if math.isfinite(float(cell)):
                return cell
        except ValueError:
            pass
        raise UsageError(f"{where}: '{label}' is a target, so each cell is a number, got {cell!r}")
    if SEPARATOR not in cell or cell == SEPARATOR:
        return cell
    names = [name.strip() for name in cell.split(SEPARATOR)]
    if not all(names):
        raise UsageError(f"{where}: the set {cell!r} of '{label}' has an empty name; '|' alone is none")
    return SEPARATOR.join(sorted(set(names)))


def ordered_classes(values: Iterable[str], label: str, where: object) -> tuple[str, ...]:
    """Names of classes in number order: by number where all are whole numbers, else by name.

    Numbers need not be dense: 0, 5 and 7 are three classes of these names.

    Args:
        where: the list or folder, for messages.

    Raises:
        UsageError: for a number below 0, or one that is an ID rather than a class.
    """
    names = set(values)
    if label.startswith(TARGET):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    if not all(map(_is_whole, names)):
        return tuple(sorted(names))
    numbers = sorted(map(int, names))
    if numbers and numbers[0] < 0:
        raise UsageError(f"{where}: label '{label}' has the class {numbers[0]}; classes count from 0")
    if numbers and numbers[-1] > LARGEST:
        raise UsageError(
            f"{where}: label '{label}' has the class {numbers[-1]}. Numbers above {LARGEST:,} are IDs, not "
            "classes: is it the wrong column?"
        )
    return tuple(map(str, numbers))


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii() and len(name) <= _DIGITS


def may_be_class(name: str) -> bool:
    """Whether a class may be called so: by a name, or a number that ``ordered_classes`` takes."""
    return not _is_whole(name) or 0 <= int(name) <= LARGEST


def numbered_together(train: LabelClasses, test: LabelClasses) -> dict[str, tuple[str, ...]]:
    """One numbering by name for the labels that both have: the classes of ``train``, then the others.

    So a test set may lack classes, and one of its own has a number that no training video has.
    """
    return {
        label: (*names, *(name for name in test[label] if name not in set(names)))
        for label, names in train.items()
        if label in test
    }


def renumbered(numbers: Tensor, own: Sequence[str], shared: Sequence[str]) -> Tensor:
    """Class numbers int64 [N], -1 for none, that count in ``own``, as they count in ``shared``."""
    if own == shared:
        return numbers
    places = {name: number for number, name in enumerate(shared)}
    # the last is what -1 becomes
    return torch.tensor([*(places[name] for name in own), -1], device=numbers.device)[numbers]


def counted_classes(numbers: Iterable[int], names: Sequence[str]) -> str:
    """``3 classes: run (12), walk (9), jump (0)``, in number order; of more than ten the first are named.

    Args:
        numbers: class of each video, below 0 for none.
    """
    counts = Counter(numbers)
    found = [(name, counts[number]) for number, name in enumerate(names)]
    shown = ", ".join(f"{name} ({count})" for name, count in found[:_NAMED])
    if len(found) > _NAMED:
        sizes = [count for _, count in found]
        shown += f", ...; {min(sizes)} to {counted(max(sizes), 'video')} each"
        if max(sizes) == 1:
            shown += ". Is it an ID, not a class?"
    return f"{len(found)} {'class' if len(found) == 1 else 'classes'}: {shown}"


def class_counts(
    train: Mapping[str, Sequence[int]], test: Mapping[str, Sequence[int]], classes: LabelClasses
) -> Iterator[str]:
    """Lines with the classes of each label that both have, as they are numbered together, and their counts.

    Args:
        train, test: label name -> class number of each video, -1 for none.
    """
    for label, names in classes.items():
        if label not in train or label not in test:
            continue
        for part, videos in (("train", train), ("test", test)):
            yield f"{part}, label '{label}': {told_label(label, videos[label], names)}"
        if label_kind(label, names) != "class":
            yield from _lacking(label, names, train[label], test[label])
            continue
        untested = [name for number, name in enumerate(names) if number not in set(test[label])]
        if untested:
            shown = ", ".join(sorted(untested)[:_NAMED]) + (", ..." if len(untested) > _NAMED else "")
            yield (
                f"label '{label}': no test video is of {shown}, so nothing is said of "
                f"{'it' if len(untested) == 1 else 'them'}; 'vidssl data split' shares classes out"
            )
        learned = {*train[label], -1}
        unknown = Counter(names[number] for number in test[label] if number not in learned)
        if unknown:
            shown = ", ".join(sorted(unknown)[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
            yield (
                f"label '{label}': {counted(unknown.total(), 'test video', verb='are')} "
                f"of classes that no training video has "
                f"({shown}), and count as wrong; 'vidssl data split' shares classes out"
            )


def told_label(label: str, numbers: Sequence[int], classes: Sequence[str]) -> str:
    """The classes of a label and how many videos are of each, or the range of a target, in words."""
    kind = label_kind(label, classes)
    if kind == "class":
        return counted_classes(numbers, classes)
    names, table = outputs_of(label, classes)
    rows = table[[number for number in numbers if number >= 0]]
    if kind == "set":
        found = [number for row in rows for number in row.nonzero()[:, 0].tolist()]
        return f"several a video, {counted_classes(found, names)}"
    return f"a number, from {float(rows.min()):g} to {float(rows.max()):g}" if len(rows) else "a number"


def _lacking(label: str, classes: Sequence[str], train: Sequence[int], test: Sequence[int]) -> Iterator[str]:
    """Lines on classes of sets that no training or no test video has."""
    if label_kind(label, classes) == "set":
        names, table = outputs_of(label, classes)
        parts = (("test", test, ": left out of the mean"), ("training", train, ", which count as guessed"))
        for part, numbers, what in parts:
            there = table[[number for number in numbers if number >= 0]].any(0).tolist()
            if lacking := [name for name, one in zip(names, there, strict=True) if not one]:
                yield f"label '{label}': no {part} video has {', '.join(lacking[:_NAMED])}{what}"


def class_weights(numbers: Tensor, num_classes: int) -> Tensor:
    """Weights float32 [K] that give all classes the same total and the mean sample 1; 0 of an empty class.

    N / (classes there are x samples of the class), as scikit-learn's "balanced".

    Args:
        numbers: int64 [N], the class of each sample.
    """
    counts = numbers.bincount(minlength=num_classes).float()
    return torch.where(counts > 0, len(numbers) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


def repeated(numbers: Sequence[int]) -> list[int]:
    """Places of samples, each class's again and again until it has as many as the commonest; none of -1."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(numbers):
        if number >= 0:
            places.setdefault(number, []).append(place)
    most = max(map(len, places.values()), default=0)
    return sorted(place for own in places.values() for place in (own * (-(-most // len(own))))[:most])
