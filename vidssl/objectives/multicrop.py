"""Several views of each clip through one network, and which of them are matched (SVT, Sec. 3.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vidssl.interfaces import Backbone, Batch
from vidssl.objectives.dino_head import DinoHead

Correspondence = Literal["lg", "gg", "ll", "gl"]  # the student's view, then the teacher's
Slot = tuple[str, int]  # name of a view, number of its slot

_NAMES = {"l": "local", "g": "global"}


def needed_views(correspondences: Sequence[Correspondence]) -> dict[str, int]:
    """View name -> the fewest slots with which every correspondence has a pair.

    Raises:
        ValueError: if there is no correspondence, or one comes twice.
    """
    if not correspondences or len(set(correspondences)) < len(correspondences):
        raise ValueError(
            f"correspondences must name some of lg, gg, ll, gl, each once, got {list(correspondences)}"
        )
    needed: dict[str, int] = {}
    for student, teacher in correspondences:
        for letter in (student, teacher):
            name = _NAMES[letter]
            needed[name] = max(needed.get(name, 1), 2 if student == teacher else 1)
    return dict(sorted(needed.items()))


@dataclass(frozen=True)
class Matching:
    """Which slots are read, and which pairs of them are matched.

    Attributes:
        student, teacher: the slots that each reads, globals first.
        pairs: correspondence -> its pairs, each as places in ``teacher`` and in ``student``.
    """

    student: tuple[Slot, ...]
    teacher: tuple[Slot, ...]
    pairs: Mapping[Correspondence, tuple[tuple[int, int], ...]]

    def mean(self, terms: Tensor, correspondences: Sequence[Correspondence]) -> Tensor:
        """The mean of [V', V], teacher's by student's views, over all pairs of some correspondences."""
        places = [pair for name in correspondences for pair in self.pairs[name]]
        return torch.stack([terms[pair] for pair in places]).mean()


def match_views(num_slots: Mapping[str, int], correspondences: Sequence[Correspondence]) -> Matching:
    """All pairs that correspondences match, but none of a view with itself.

    Args:
        num_slots: view name -> slots that there are.
    """

    def slots(letters: set[str]) -> tuple[Slot, ...]:
        names = [_NAMES[letter] for letter in "gl" if letter in letters]
        return tuple((name, slot) for name in names for slot in range(num_slots[name]))

    student = slots({name[0] for name in correspondences})
    teacher = slots({name[1] for name in correspondences})
    pairs = {
        name: tuple(
            (j, i)
            for j, target in enumerate(teacher)
            for i, source in enumerate(student)
            if target != source and (source[0], target[0]) == (_NAMES[name[0]], _NAMES[name[1]])
        )
        for name in correspondences
    }
    return Matching(student, teacher, pairs)


def read_slots(batch: Batch, slots: Sequence[Slot]) -> list[Tensor]:
    """The clips of slots."""
    return [batch.views[name][slot] for name, slot in slots]


class Projector(nn.Module):
    """A backbone and a head on its feature: the class token, or the mean over patches where there is none."""

    def __init__(self, backbone: Backbone, head: DinoHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Tensor], *, freeze_last: bool = False) -> tuple[Tensor, Tensor]:
        """Features [V, B, D] and logits [V, B, K] of V views [B, 3, T, H, W] of the same B clips.

        Views of one shape go through the backbone together, and all of them through the head.

        Args:
            freeze_last: see ``DinoHead``.
        """
        groups: dict[torch.Size, list[int]] = {}
        for place, view in enumerate(views):
            groups.setdefault(view.shape, []).append(place)
        features: dict[int, Tensor] = {}
        for places in groups.values():
            pooled = self.backbone(torch.cat([views[place] for place in places])).pooled()
            features.update(zip(places, pooled.chunk(len(places)), strict=True))
        stacked = torch.stack([features[place] for place in range(len(views))])
        logits = self.head(stacked.flatten(0, 1), freeze_last=freeze_last)
        return stacked, logits.unflatten(0, stacked.shape[:2])
