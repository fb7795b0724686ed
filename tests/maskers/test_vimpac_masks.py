"""VIMPAC's 3-D blocks: the paper's ratios, the release's masks, and grids that are too small."""

import json
import random

import pytest
import torch
from torch import Tensor
from vimpac_reference import FOLDER, load, part

from vidssl.interfaces.grids import GridSize
from vidssl.maskers.bevt import Random3D
from vidssl.maskers.block_3d import Block3D, Boxes, cells_of, draw_boxes, largest_extents

STATS = json.loads((FOLDER / "masking_stats.json").read_text())
RESOLUTIONS: dict[str, GridSize] = {
    name: tuple(int(side) for side in name.split("x")) for name in STATS["resolutions"]
}
resolutions = pytest.mark.parametrize("name", RESOLUTIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def share_of_one_block() -> dict[str, Tensor]:
    """How often one block hides each cell."""
    return {
        name: torch.stack(
            [cells_of(draw_boxes(1000, 1, grid, generator(i)), grid).float().mean((0, 1)) for i in range(6)]
        ).mean(0)
        for name, grid in RESOLUTIONS.items()
    }


@resolutions
def test_ratios_of_table_2_follow_from_how_one_block_is_drawn(
    name: str, share_of_one_block: dict[str, Tensor]
) -> None:
    for blocks, percent in zip(STATS["blocks"], STATS["paper_table2_percent"][name], strict=True):
        expected = 100 * (1 - (1 - share_of_one_block[name]) ** blocks).mean()
        assert abs(expected - percent) < 0.3


@resolutions
def test_ratios_are_those_of_the_release(name: str) -> None:
    for blocks, known in STATS["resolutions"][name]["ratio"].items():
        masks = Block3D(num_blocks=int(blocks))(250, RESOLUTIONS[name], generator(3))
        ratio = masks.flatten(1).float().mean(dim=1)
        standard_error = known["std"] / len(ratio) ** 0.5
        assert abs(ratio.mean() - known["exact_expectation"]) < 4 * standard_error
        assert 0.8 < ratio.std() / known["std"] < 1.2


@resolutions
def test_extents_and_starts_are_distributed_as_in_the_release(name: str) -> None:
    boxes = draw_boxes(20_000, 5, RESOLUTIONS[name], generator(1))
    known = STATS["resolutions"][name]
    assert largest_extents(RESOLUTIONS[name]) == tuple(known["max_extent"].values())
    for axis, letter in enumerate("thw"):
        for what, drawn in (("extent", boxes.extent), ("start", boxes.start)):
            counts = {int(key): count for key, count in known["histogram"][f"{letter}_{what}"].items()}
            theirs = torch.zeros(max(counts) + 1)
            theirs[list(counts)] = torch.tensor(list(counts.values())) / known["blocks_counted"]
            ours = drawn[..., axis].flatten().bincount(minlength=len(theirs)) / drawn[..., axis].numel()
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() < 0.01


@pytest.mark.parametrize("case", range(5))
def test_boxes_cover_what_the_release_masks(case: int) -> None:
    golden = part(load("mask_seeded"), f"case{case}/")
    count, t, h, w, blocks, seed = golden["config_B_T_H_W_blocks_seed"].tolist()
    draws, grid = random.Random(seed), (t, h, w)
    boxes = Boxes(torch.empty(count, blocks, 3).long(), torch.empty(count, blocks, 3).long())
    for clip in range(count):
        for block in range(blocks):
            extent = [draws.randint(1, largest) for largest in largest_extents(grid)]
            start = [draws.randint(0, side - reach) for side, reach in zip(grid, extent, strict=True)]
            boxes.extent[clip, block], boxes.start[clip, block] = torch.tensor(extent), torch.tensor(start)
    predictable = golden["codes"] < 64
    assert torch.equal(cells_of(boxes, grid).any(dim=1) & predictable, golden["labels"] != -100)


def test_groups_number_blocks_and_the_last_one_wins() -> None:
    masker = Block3D(num_blocks=3)
    groups = masker.groups(200, (5, 16, 16), generator())
    assert groups.dtype == torch.int64
    assert torch.equal(groups >= 0, masker(200, (5, 16, 16), generator()))
    blocks = cells_of(draw_boxes(200, 3, (5, 16, 16), generator()), (5, 16, 16))
    assert torch.equal(groups == 2, blocks[:, 2])
    assert torch.equal(groups == 1, blocks[:, 1] & ~blocks[:, 2])
    assert torch.equal(groups == 0, blocks[:, 0] & ~blocks[:, 1] & ~blocks[:, 2])


def test_cells_hidden_one_by_one_are_their_own_groups() -> None:
    groups = Random3D(ratio=0.25).groups(3, (2, 4, 4), generator())
    assert torch.equal(groups >= 0, Random3D(ratio=0.25)(3, (2, 4, 4), generator()))
    for row in groups.flatten(1):
        assert row[row >= 0].tolist() == (row >= 0).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("grid", [(1, 16, 16), (2, 2, 2), (1, 1, 8), (3, 1, 1), (1, 1, 2)])
def test_tiny_grids_are_hidden_in_part(grid: GridSize) -> None:
    hidden = Block3D(num_blocks=4)(500, grid, generator()).flatten(1).sum(dim=1)
    assert hidden.min() > 0
    assert hidden.max() < grid[0] * grid[1] * grid[2]


def test_what_cannot_hide_some_and_leave_some_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0: something must be hidden"):
        Block3D(num_blocks=0)
    with pytest.raises(ValueError, match=r"hide the whole of a grid of \(1, 1, 1\): lower num_blocks"):
        Block3D(num_blocks=1)(2, (1, 1, 1), generator())


@pytest.mark.parametrize("grid", [(5, 16, 16), (10, 32, 32), (1, 3, 7), (4, 8, 8)])
def test_cells_picked_one_by_one_take_vimpac_s_ratio_on_any_grid(grid: GridSize) -> None:
    masks = Random3D(ratio=0.145)(20, grid, generator())
    cells = grid[0] * grid[1] * grid[2]
    assert masks.flatten(1).sum(dim=1).unique().tolist() == [round(0.145 * cells)]
