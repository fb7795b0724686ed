"""V-JEPA's groups of blocks: statistics of the published code, what is cut off, and what depends on what."""

import pytest
import torch
from torch import Tensor

from vidssl.engine.gather import OwnRows, drawing_as
from vidssl.interfaces import Split
from vidssl.maskers.bevt import Random3D, Tube
from vidssl.maskers.vjepa import MultiBlock

GRID = (8, 16, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(numbers: Tensor, cells: int = 2048) -> Tensor:
    return torch.zeros(len(numbers), cells, dtype=torch.bool).scatter_(1, numbers, True)


def test_shares_of_a_batch_are_those_of_the_published_code() -> None:
    """25.6 % seen and 45.7 % predicted of the first group, 6.5 % and 70.0 % of the second, within noise."""
    found = torch.zeros(2, 2)
    masker, draw = MultiBlock(), generator()
    for _ in range(200):
        for group in range(2):
            _, seen, hidden = masker._planes(group, 24, GRID, draw)
            found[group] += torch.tensor([seen, hidden]) / 2048 / 200
    first = masker.splits(24, GRID, generator(1))[0]
    assert (first.seen.shape[1], first.predicted.shape[1]) == masker._planes(0, 24, GRID, generator(1))[1:]
    assert torch.allclose(found, torch.tensor([[0.256, 0.457], [0.065, 0.700]]), atol=0.025)


def test_blocks_have_one_size_a_step_and_reach_through_all_frames() -> None:
    masker, draw = MultiBlock(num_blocks=(1,), areas=(0.15,)), generator()
    sizes = set()
    for _ in range(40):
        masks = masker(6, GRID, draw)
        assert torch.equal(masks, masks[:, :1].expand_as(masks))
        plane = masks[:, 0]
        tall, wide = plane.any(2).sum(1), plane.any(1).sum(1)
        assert torch.equal(tall * wide, plane.sum((1, 2)))  # a rectangle
        assert len(set(zip(tall.tolist(), wide.tolist(), strict=True))) == 1
        assert len(plane.flatten(1).unique(dim=0)) > 1  # at places of their own
        sizes.add((int(tall[0]), int(wide[0])))
    # 38 cells, height / width from 0.75 to 1.5, rounded
    assert sizes == {(5, 7), (6, 7), (6, 6), (7, 6), (7, 5), (8, 5)} & sizes
    assert len(sizes) >= 3


@pytest.mark.parametrize("cut", ["first", "random"])
def test_kept_cells_are_the_first_or_any_of_what_a_clip_shows_and_hides(cut: str) -> None:
    masker = MultiBlock(cut=cut)
    late = torch.zeros(())
    for group, split in enumerate(masker.splits(24, GRID, generator(3))):
        seen, predicted = marked(split.seen), marked(split.predicted)
        assert not bool((seen & predicted).any())
        for numbers in (split.seen, split.predicted):
            assert bool((numbers.diff(dim=1) > 0).all())
        if group == 0:
            planes = masker._planes(0, 24, GRID, generator(3))[0]  # the same draws, before the cut
            mask = planes[:, None].expand(-1, 8, -1, -1).flatten(1)
            assert not bool((predicted & ~mask).any())
            assert not bool((seen & mask).any())
            if cut == "first":
                expected = [row.nonzero().flatten()[: split.predicted.shape[1]] for row in mask]
                assert torch.equal(split.predicted, torch.stack(expected))
            late = (split.predicted >= 1024).float().mean()
    assert (float(late) < 0.45) == (cut == "first")  # of the second half of the clip
    if cut == "random":
        assert float(late) == pytest.approx(0.5, abs=0.03)


def test_larger_steps_keep_the_share_of_24_clips() -> None:
    masker = MultiBlock()
    shares = {}
    for count in (24, 240):
        draw = generator(1)
        made = [masker._planes(0, count, GRID, draw)[1] / 2048 for _ in range(80)]
        shares[count] = sum(made) / len(made)
    assert shares[240] == pytest.approx(shares[24], abs=0.03)


def test_two_processes_draw_what_one_does() -> None:
    def drawn(number: int, processes: int) -> tuple[Split, ...]:
        with drawing_as(number, processes):
            rows = OwnRows(24 // processes)
            made = MultiBlock().splits(rows.all, GRID, generator(5))
            return tuple(Split(rows.of(one.seen), rows.of(one.predicted)) for one in made)

    whole, halves = drawn(0, 1), [drawn(0, 2), drawn(1, 2)]
    for group in range(2):
        assert torch.equal(whole[group].seen, torch.cat([half[group].seen for half in halves]))
        assert torch.equal(whole[group].predicted, torch.cat([half[group].predicted for half in halves]))


def test_a_masker_of_equal_counts_gives_its_mask_as_the_only_split() -> None:
    mask = Random3D(ratio=0.75)(3, (2, 4, 4), generator())
    (only,) = Random3D(ratio=0.75).splits(3, (2, 4, 4), generator())
    assert torch.equal(marked(only.predicted, 32), mask.flatten(1))
    assert torch.equal(marked(only.seen, 32), ~mask.flatten(1))
    with pytest.raises(ValueError, match="as many hidden cells"):
        Tube().splits(20, (8, 14, 14), generator())


def test_what_makes_no_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="list as many groups"):
        MultiBlock(num_blocks=(8,))
    with pytest.raises(ValueError, match="areas lie between 0 and 1"):
        MultiBlock(areas=(0.15, 1.0))
    with pytest.raises(ValueError, match="cut must be"):
        MultiBlock(cut="last")
    with pytest.raises(ValueError, match="hide the whole of a plane of 1x1"):
        MultiBlock().splits(4, (8, 1, 1), generator())
