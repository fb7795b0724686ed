"""Learned tables of where a token stands, for backbones that read ids."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vidssl.interfaces.grids import GridSize
from vidssl.weights.vimpac_keys import resize_table

STD = 0.02  # of a cell's whole position code at the start; published code


def _table(rows: int, dim: int, shared_by: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, dim).normal_(std=STD * shared_by**-0.5))


class TokenPositions(nn.Module, ABC):
    """Position codes of the cells of a grid and of the class token.

    Args:
        tables: (t, h, w), the size that the tables are made for.
        dim: width of a code.
    """

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__()
        self.tables = tables

    def check(self, grid: GridSize) -> None:
        """Raises ValueError if there are no codes for a grid of this size; by default there always are."""

    @abstractmethod
    def forward(self, grid: GridSize) -> Tensor:
        """Codes [t, h, w, D] (or what broadcasts to it) of a grid's cells."""

    @abstractmethod
    def of_class_token(self) -> Tensor:
        """The class token's code, [D]."""


class FactorizedPositions(TokenPositions):
    """A table of each axis; a cell's code is their sum (VIMPAC, App. A)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        self.cls = _table(1, dim, 1)
        self.time, self.height, self.width = (_table(rows, dim, 3) for rows in tables)

    def forward(self, grid: GridSize) -> Tensor:
        t, h, w = grid
        time = resize_table(self.time, t)[:, None, None]
        return time + resize_table(self.height, h)[:, None] + resize_table(self.width, w)

    def of_class_token(self) -> Tensor:
        return self.cls[0]


class TemporalPositions(TokenPositions):
    """A table of time and one of all cells of the plane ("temporal separation" in the published code)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        self.cls = _table(1, dim, 1)
        self.time = _table(tables[0], dim, 2)
        self.plane = _table(tables[1] * tables[2], dim, 2)

    def check(self, grid: GridSize) -> None:
        if grid[1:] != self.tables[1:]:
            raise ValueError(
                f"the joint table of the plane is made for {self.tables[1:]} ids, got {grid[1:]}: set height "
                "and width, or use positions 'factorized', which fit any size"
            )

    def forward(self, grid: GridSize) -> Tensor:
        return resize_table(self.time, grid[0])[:, None, None] + self.plane.unflatten(0, grid[1:])

    def of_class_token(self) -> Tensor:
        return self.cls[0]


class JointPositions(TokenPositions):
    """One table of the class token and all cells, row by row ("default" in the published code)."""

    def __init__(self, tables: GridSize, dim: int) -> None:
        super().__init__(tables, dim)
        t, h, w = tables
        self.joint = _table(1 + t * h * w, dim, 1)

    def check(self, grid: GridSize) -> None:
        if grid != self.tables:
            raise ValueError(
                f"the joint table of positions is made for {self.tables} ids, got {grid}: set num_frames, "
                "height and width, or use positions 'factorized', which fit any size"
            )

    def forward(self, grid: GridSize) -> Tensor:
        return self.joint[1:].unflatten(0, grid)

    def of_class_token(self) -> Tensor:
        return self.joint[0]


POSITIONS: dict[str, type[TokenPositions]] = {
    "factorized": FactorizedPositions,
    "temporal": TemporalPositions,
    "joint": JointPositions,
}
