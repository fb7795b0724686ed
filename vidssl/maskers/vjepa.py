"""V-JEPA's masks: a few large blocks through all frames, drawn as several groups for every clip."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidssl.interfaces import Masker, Split
from vidssl.interfaces.grids import GridSize

Cut = Literal["first", "random"]
CLIPS_PER_CUT = 24  # of a process in the published configurations
_MAX_ROUNDS = 100  # of drawing planes again that hide too much or too little


@dataclass(frozen=True, kw_only=True)
class MultiBlock(Masker):
    """Groups of blocks; each hides the union of its blocks and is a task of its own (V-JEPA, Sec. 3.2).

    Blocks reach through all frames. Their height and width are drawn once a step for each group, their places
    for each clip (published code). Clips differ in how much is hidden; so that they fit into one batch, cells
    seen and cells predicted are each cut to the smallest number that any of 24 clips has, the published batch
    of a process: on 8x16x16, 24 % are seen and 47 % predicted of the published first group, 6.4 % and 70 % of
    the second (measured over 1,500 steps). A step of more clips keeps to the mean of these numbers over every
    24, and clips that fall short of it are drawn again, so that neither the batch size nor the number of
    processes changes what is learned from.

    As a plain mask it is one of the groups, drawn anew for each batch and not cut.

    Args:
        num_blocks: blocks of each group.
        areas: of a block over that of the frame, in each group.
        aspect: smallest and largest height / width of a block.
        cut: which cells are kept. "random" ones are (ours, and the default: none is favoured); "first" keeps
            those that come first in time, then row, then column, as published, so that the ends of most clips
            are never predicted.
    """

    toy: ClassVar = {"num_blocks": (3, 2), "areas": (0.15, 0.3)}
    cuts_splits = True
    num_blocks: tuple[int, ...] = (8, 2)
    areas: tuple[float, ...] = (0.15, 0.7)
    aspect: tuple[float, float] = (0.75, 1.5)
    cut: Cut = "random"

    def __post_init__(self) -> None:
        if not self.num_blocks or len(self.num_blocks) != len(self.areas) or min(self.num_blocks) < 1:
            raise ValueError(
                "num_blocks and areas list as many groups, each of a block or more, got "
                f"{[*self.num_blocks]} and {[*self.areas]}"
            )
        if not 0 < min(self.areas) <= max(self.areas) < 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(
                f"areas lie between 0 and 1, aspect rises from above 0, got {[*self.areas]} and {self.aspect}"
            )
        if self.cut not in ("first", "random"):
            raise ValueError(f"cut must be 'first' or 'random', got {self.cut!r}")

    @property
    def num_splits(self) -> int:  # type: ignore[override]
        return len(self.num_blocks)

    def __call__(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> Tensor:
        group = int(torch.randint(self.num_splits, (), generator=generator, device=generator.device))
        planes = self._planes(group, batch_size, grid, generator)[0]
        return planes[:, None].repeat(1, grid[0], 1, 1)

    def splits(self, batch_size: int, grid: GridSize, generator: torch.Generator) -> tuple[Split, ...]:
        made = []
        for group in range(self.num_splits):
            planes, seen, hidden = self._planes(group, batch_size, grid, generator)
            mask = planes[:, None].expand(-1, grid[0], -1, -1).flatten(1)
            made.append(Split(self._some(~mask, seen, generator), self._some(mask, hidden, generator)))
        return tuple(made)

    def _planes(
        self, group: int, count: int, grid: GridSize, generator: torch.Generator
    ) -> tuple[Tensor, int, int]:
        """Masks of frames, bool [count, h, w], and how many cells of a clip each shows and hides at least."""
        t, h, w = grid
        sides = _sides(self.areas[group], self.aspect, (h, w), generator)
        place = (self.num_blocks[group], sides, (h, w), generator)
        planes = _union(count, *place)
        fewest: tuple[float, float] | None = None
        for _ in range(_MAX_ROUNDS):
            hidden = planes.sum(dim=(1, 2))
            short = hidden == h * w
            if fewest is None and not bool(short.any()):
                fewest = _usual(h * w - hidden), _usual(hidden)
            if fewest is not None:
                short = (h * w - hidden < fewest[0]) | (hidden < fewest[1])
                if not bool(short.any()):
                    return planes, int(fewest[0] * t), int(fewest[1] * t)
            planes[short] = _union(int(short.sum()), *place)
        raise ValueError(
            f"{self.num_blocks[group]} blocks of {sides[0]}x{sides[1]} cells hide the whole of a plane of "
            f"{h}x{w}: lower num_blocks or areas, or give larger clips"
        )

    def _some(self, cells: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of ``count`` of the marked cells of each row of bool [B, N], int64 [B, count], rising."""
        order = torch.arange(cells.shape[1], device=cells.device, dtype=torch.float32).expand_as(cells)
        if self.cut == "random":
            order = torch.rand(cells.shape, generator=generator, device=cells.device)
        chosen = order.masked_fill(~cells, torch.inf).topk(count, dim=1, largest=False).indices
        return chosen.sort(dim=1).values


def _sides(
    area: float, aspect: tuple[float, float], plane: tuple[int, int], generator: torch.Generator
) -> tuple[int, int]:
    """Height and width of blocks in cells; the aspect is uniform over its range, as published."""
    draw = float(torch.rand((), generator=generator, device=generator.device))
    ratio, cells = aspect[0] + draw * (aspect[1] - aspect[0]), int(area * plane[0] * plane[1])
    tall, wide = round((cells * ratio) ** 0.5), round((cells / ratio) ** 0.5)
    return min(max(tall, 1), plane[0]), min(max(wide, 1), plane[1])


def _union(
    count: int, num_blocks: int, sides: tuple[int, int], plane: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """bool [count, h, w]: the cells of ``num_blocks`` blocks at uniform places of each plane."""
    inside = []
    for size, side in zip(plane, sides, strict=True):
        first = torch.randint(
            size - side + 1, (count, num_blocks, 1), generator=generator, device=generator.device
        )
        cell = torch.arange(size, device=first.device)
        inside.append((cell >= first) & (cell < first + side))
    rows, columns = inside
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1)


def _usual(counts: Tensor) -> float:
    """The smallest of the numbers of clips; of more than 24 the mean of the smallest of every 24."""
    whole = len(counts) // CLIPS_PER_CUT * CLIPS_PER_CUT
    if whole == 0:
        return float(counts.min())
    return float(counts[:whole].view(-1, CLIPS_PER_CUT).amin(dim=1).float().mean())
