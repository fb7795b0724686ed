"""Classes of a label: their names in number order, one numbering for several data sets, their counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vidssl.errors import UsageError, counted

LARGEST = 1_000_000  # no data set has a class of a higher number; IDs are higher
_DIGITS = 4000  # of what is taken for a number; Python reads no more
_NAMED = 10

LabelClasses = Mapping[str, tuple[str, ...]]  # label name -> names of its classes, in number order


def ordered_classes(values: Iterable[str], label: str, where: object) -> tuple[str, ...]:
    """Names of classes in number order: by number where all are whole numbers, else by name.

    Numbers need not be dense: 0, 5 and 7 are three classes of these names.

    Args:
        where: the list or folder, for messages.

    Raises:
        UsageError: for a number below 0, or one that is an ID rather than a class.
    """
    names = set(values)
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
            yield f"{part}, label '{label}': {counted_classes(videos[label], names)}"
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
