"""Few labels: how many of the labelled videos are learned from, and which.

Which videos are drawn depends on their keys, the seed and the number of the draw, never on their order nor on
the run that is measured, so every run learns from the same ones. Of one draw, a smaller amount is part of a
larger one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vidssl.config.schema import Count, Index, Quiet, check_fields
from vidssl.errors import LabelError


def _fraction(share: float) -> float:
    if not 0 < share <= 1:
        raise ValueError(f"must be above 0 and at most 1, got {share}")
    return share


def _some(amounts: tuple[float, ...]) -> tuple[float, ...]:
    if not amounts or len(set(amounts)) < len(amounts):
        raise ValueError(f"must name one or more amounts, none of them twice, got {amounts}")
    return amounts


Share = Annotated[float, _fraction]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A number of labelled videos of each class.

    Attributes:
        share: fraction of each class's videos, above 0 and at most 1, rounded to whole videos.
        per_class: videos of each class.
    """

    share: Share | None = None
    per_class: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.share is None) == (self.per_class is None):
            raise ValueError("give 'share' or 'per_class', one of the two")

    def __str__(self) -> str:
        return f"{self.per_class} a class" if self.share is None else f"{100 * self.share:g} % of labels"

    @property
    def whole(self) -> bool:
        """Whether it is every video, so that there is nothing to draw."""
        return self.share == 1

    def of(self, videos: int) -> int:
        """Videos to learn from, of a class with so many; it may come to 0, or to more than there are."""
        return self.per_class or int((self.share or 0.0) * videos + 0.5)


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """The amounts that a protocol learns from, each several times.

    Attributes:
        shares: fractions of the labelled videos, 0.01 for 1 %; 1.0 is all of them, learned from once.
        per_class: videos of each class; ``shares`` or this.
        draws: times that each amount is drawn.
        seed: of the draws; that of the run plays no part.
    """

    shares: Quiet[Annotated[tuple[Share, ...], _some] | None] = None
    per_class: Quiet[Annotated[tuple[Count, ...], _some] | None] = None
    draws: Count = 3
    seed: Index = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.shares is None) == (self.per_class is None):
            raise ValueError("give 'shares' or 'per_class', one of the two")

    @property
    def amounts(self) -> tuple[Amount, ...]:
        """In the order given."""
        if self.shares is not None:
            return tuple(Amount(share=share) for share in self.shares)
        return tuple(Amount(per_class=number) for number in self.per_class or ())

    def draws_of(self, amount: Amount) -> range:
        """Numbers of the draws: a single one where there is nothing to draw."""
        return range(1 if amount.whole else self.draws)


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One draw of the labelled videos of a training stream.

    Attributes:
        label: whose classes are drawn from.
        share, per_class: the amount, as in ``Amount``.
        draw: number of the draw.
        seed: of the draws; that of the run plays no part.
    """

    label: str
    share: Quiet[Share | None] = None
    per_class: Quiet[Count | None] = None
    draw: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        Amount(share=self.share, per_class=self.per_class)

    @property
    def amount(self) -> Amount:
        """Videos of each class."""
        return Amount(share=self.share, per_class=self.per_class)


def drawn(
    keys: Sequence[str],
    labels: Sequence[int],
    amount: Amount,
    *,
    draw: int,
    seed: int,
    classes: Sequence[str],
    groups: Sequence[str] = (),
) -> list[int]:
    """Places of the videos to learn from, rising; as many of each class as ``amount`` asks for.

    A fraction takes whole groups, to the whole number of them that comes nearest; so many of each class take
    one video from each of as many groups, and second ones only where there are fewer groups.

    Args:
        keys: of the videos, no two alike.
        labels: class number of each, below 0 for none.
        classes: names of the classes, for messages. One without videos is passed over.
        groups: of the videos, empty for those of none; none at all where there are no groups.

    Raises:
        LabelError: if a class would have no video, or has fewer than are asked for.
    """
    by_class: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        if label >= 0:
            by_class.setdefault(label, []).append(place)
    chosen: list[int] = []
    for label, places in sorted(by_class.items()):
        number = amount.of(len(places))
        if number == 0:
            raise LabelError(
                f"{amount}: class '{classes[label]}' has {len(places)} labelled videos, so none would be "
                "learned from: take a larger fraction, or per_class: "
                f"'few_labels={{per_class: [{_few(len(places))}], draws: 3}}'"
            )
        if number > len(places):
            raise LabelError(
                f"{amount}: class '{classes[label]}' has only {len(places)} labelled videos: take fewer, or "
                "shares"
            )
        units: dict[str, list[int]] = {}
        for place in sorted(places, key=lambda place: _ticket(seed, draw, keys[place])):
            units.setdefault(groups[place] if groups and groups[place] else keys[place], []).append(place)
        ranked = [units[name] for name in sorted(units, key=lambda name: _ticket(seed, draw, name))]
        if amount.per_class is None:
            chosen += _whole_units(ranked, number)
        else:
            turns = [unit[turn] for turn in range(number) for unit in ranked if turn < len(unit)]
            chosen += turns[:number]
    return sorted(chosen)


def _few(videos: int) -> str:
    """Amounts a class of so many videos has, for a message: one, and half of them."""
    return ", ".join(str(number) for number in dict.fromkeys((1, max(1, videos // 2))))


def _whole_units(ranked: Sequence[Sequence[int]], number: int) -> list[int]:
    """Units in their order while they bring the count nearer to a number; one at least."""
    taken = list(ranked[0])
    for unit in ranked[1:]:
        if len(taken) + len(unit) / 2 > number:
            break
        taken += unit
    return taken


def _ticket(seed: int, draw: int, key: str) -> bytes:
    """A video's place in the order that classes are drawn in."""
    return hashlib.sha256(f"{seed}/{draw}/{key}".encode()).digest()
