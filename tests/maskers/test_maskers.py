import pytest
import torch
from torch import Tensor

from vidssl.maskers.bevt import Blockwise, FrameDiff, Random3D, RandomFrame, Tube
from vidssl.maskers.shapes import blockwise_planes
from vidssl.maskers.videomae import RandomTube, RunningCell


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(frames: Tensor) -> Tensor:
    """Number of runs of masked frames of each clip, [B]."""
    before = torch.nn.functional.pad(frames[:, :-1].int(), (1, 0))
    return (frames & (before == 0)).sum(dim=1)


def test_straight_tube_is_one_run_of_every_length_and_start() -> None:
    masks = Tube(placement="straight")(3000, (8, 14, 14), generator())
    frames = masks.any(dim=(2, 3))
    assert torch.equal(runs(frames), torch.ones(3000, dtype=torch.int64))
    lengths = frames.sum(dim=1)
    assert set(lengths.tolist()) == {4, 5, 6, 7, 8}
    starts = frames.int().argmax(dim=1)
    assert set(starts[lengths == 4].tolist()) == {0, 1, 2, 3, 4}
    assert set(starts[lengths == 8].tolist()) == {0}


def test_circular_tube_is_one_run_round_the_clip() -> None:
    frames = Tube()(3000, (8, 14, 14), generator()).any(dim=(2, 3))
    wraps = (frames[:, 0] & frames[:, -1] & ~frames.all(dim=1)).long()
    assert wraps.any()
    assert torch.equal(runs(frames), 1 + wraps)


@pytest.mark.parametrize("masker", [Tube(), RandomFrame(), Blockwise()], ids=lambda m: type(m).__name__)
def test_masked_frames_of_a_clip_share_one_plane(masker: Tube | RandomFrame | Blockwise) -> None:
    masks = masker(50, (8, 14, 14), generator())
    plane, frames = masks.any(dim=1, keepdim=True), masks.any(dim=(2, 3))
    assert torch.equal(masks, plane & frames[:, :, None, None])
    assert not torch.equal(plane[0], plane[1])


def test_frame_diff_draws_a_plane_for_each_frame() -> None:
    masks = FrameDiff(length=(1.0, 1.0))(4, (8, 14, 14), generator())
    assert len(masks.flatten(0, 1).flatten(1).unique(dim=0)) == 32
    frames = FrameDiff()(1000, (8, 14, 14), generator()).any(dim=(2, 3))
    assert set(frames.sum(dim=1).tolist()) == {4, 5, 6, 7, 8}


def test_random_frames_need_not_be_neighbours() -> None:
    frames = RandomFrame()(2000, (8, 14, 14), generator()).any(dim=(2, 3))
    assert set(frames.sum(dim=1).tolist()) == {4, 5, 6, 7, 8}
    assert set(runs(frames).tolist()) == {1, 2, 3, 4}
    share = frames.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 0.04


def test_blockwise_masks_every_frame() -> None:
    assert bool(Blockwise()(20, (8, 14, 14), generator()).any(dim=(2, 3)).all())


def test_random_3d_hides_a_fixed_number_of_cells_evenly() -> None:
    masks = Random3D(ratio=0.3)(2000, (4, 5, 5), generator())
    assert masks.sum(dim=(1, 2, 3)).unique().tolist() == [30]
    assert (masks.float().mean(dim=0) - 0.3).abs().max() < 0.05


def test_image_gets_beit_s_plane_from_a_tube() -> None:
    masks = Tube()(200, (1, 14, 14), generator())
    assert masks.shape == (200, 1, 14, 14)
    hidden = masks.sum(dim=(1, 2, 3))
    assert hidden.max() == 98
    assert hidden.min() > 80


@pytest.mark.parametrize(
    ("grid", "min_block"), [((4, 4, 4), 4), ((4, 8, 8), 8), ((1, 2, 2), 1), ((2, 2, 14), 1)]
)
def test_small_planes_are_filled_near_to_their_ratio(grid: tuple[int, int, int], min_block: int) -> None:
    planes = Tube(min_block=min_block)(500, grid, generator()).any(dim=1)
    hidden = planes.sum(dim=(1, 2))
    budget = grid[1] * grid[2] // 2
    assert hidden.max() <= budget
    assert hidden.min() >= 1
    assert hidden.float().mean() > 0.75 * budget


def test_blocks_that_do_not_fit_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"min_block between 1 and 8"):
        Tube(min_block=16)(1, (4, 4, 4), generator())
    with pytest.raises(ValueError, match=r"no block of 8 .* plane of 2x14: lower min_block"):
        Tube(min_block=8)(1, (4, 2, 14), generator())
    with pytest.raises(ValueError, match="2x2 or more"):
        Tube(min_block=1)(1, (4, 1, 14), generator())


def test_ratios_and_lengths_that_hide_all_or_nothing_are_refused() -> None:
    for ratio in (0.0, 1.0, 0.001):
        with pytest.raises(ValueError, match="must hide some and leave some"):
            Random3D(ratio=ratio)(1, (2, 2, 2), generator())
        with pytest.raises(ValueError, match="must hide some and leave some"):
            Tube(ratio=ratio, min_block=1)(1, (2, 4, 4), generator())
    for length in ((0.0, 0.5), (0.8, 0.4), (0.5, 1.5)):
        with pytest.raises(ValueError, match="range of fractions"):
            Tube(length=length)


def test_a_plane_that_found_no_block_tries_again() -> None:
    # on 3x3 with blocks of 3 or 4 cells most attempts have a side of 3, which is not allowed
    planes = blockwise_planes(3000, 3, 3, ratio=0.45, min_block=3, generator=generator())
    assert planes.flatten(1).sum(dim=1).min() >= 1


def test_random_tube_hides_the_same_cells_of_every_slot_and_as_many_in_every_clip() -> None:
    masks = RandomTube()(2000, (8, 14, 14), generator())
    assert torch.equal(masks, masks[:, :1].expand_as(masks))
    assert masks[:, 0].flatten(1).sum(1).unique().tolist() == [176]  # int(0.9 * 196), published
    assert (masks[:, 0].float().mean(dim=0) - 176 / 196).abs().max() < 0.04
    assert RandomTube(ratio=0.75)(3, (2, 14, 14), generator()).sum().item() == 3 * 2 * 147  # UCF101
    # no blocks: whether a cell is hidden says next to nothing of its neighbour
    plane = RandomTube(ratio=0.5)(4000, (1, 8, 8), generator())[:, 0].float()
    together = (plane[:, :, :-1] * plane[:, :, 1:]).mean()
    assert abs(float(together) - 0.5 * 31 / 63) < 0.01
    with pytest.raises(ValueError, match="hides 0: it must hide some"):
        RandomTube(ratio=0.1)(1, (1, 2, 2), generator())


def test_running_cell_moves_its_pattern_on_by_a_cell_a_slot() -> None:
    masks = RunningCell()(400, (8, 6, 4), generator())
    squares = masks.unflatten(3, (2, 2)).unflatten(2, (3, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4)
    assert torch.equal(squares, squares[:, :, :1, :1].expand_as(squares))  # one pattern in all squares
    pattern = squares[:, :, 0, 0]  # [B, t, 4]
    assert torch.equal(pattern[:, 1:], pattern[:, :-1].roll(-1, dims=2))
    assert sorted(map(tuple, pattern[:, 0].int().unique(dim=0).tolist())) == [
        (0, 0, 1, 1), (0, 1, 1, 0), (1, 0, 0, 1), (1, 1, 0, 0),
    ]  # fmt: skip
    assert (masks[:, 0, 0, 0].float().mean() - 0.5).abs() < 0.1  # the start is drawn
    for ratio in (0.25, 0.5, 0.75):
        assert RunningCell(ratio=ratio)(9, (4, 4, 4), generator()).flatten(1).sum(1).unique() == 64 * ratio
    with pytest.raises(ValueError, match="do not tile a plane of 3x4"):
        RunningCell()(1, (1, 3, 4), generator())
    with pytest.raises(ValueError, match=r"0.25, 0.5 or 0.75, got 0.9"):
        RunningCell(ratio=0.9)
