"""Few labels: which videos are drawn, and what a row says of several draws."""

from collections import Counter
from statistics import fmean, stdev

import pytest
import torch

from vidssl.config.few_labels import Amount, FewLabels, drawn
from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.linear import Linear, LinearSGD
from vidssl.evaluators.scores import probe

KEYS = tuple(f"video {number}.mp4" for number in range(60))
LABELS = tuple([0] * 30 + [1] * 20 + [2] * 10)
NAMES = ("run", "jump", "fall")
QUICK = Linear(penalties=(1.0, 100.0), max_iterations=30)


def keys_of(amount: Amount, *, draw: int = 0, seed: int = 0, order: tuple[int, ...] = tuple(range(60))):
    keys, labels = [KEYS[n] for n in order], [LABELS[n] for n in order]
    places = drawn(keys, labels, amount, draw=draw, seed=seed, classes=NAMES)
    return {keys[place] for place in places}


def test_each_class_has_its_share():
    chosen = keys_of(Amount(share=0.1))
    counts = [sum(LABELS[KEYS.index(key)] == label for key in chosen) for label in range(3)]
    assert counts == [3, 2, 1]
    assert [Amount(share=0.05).of(videos) for videos in (30, 20, 10, 9)] == [2, 1, 1, 0]  # halves up
    assert len(keys_of(Amount(per_class=4))) == 12
    assert keys_of(Amount(share=1.0)) == set(KEYS)


def test_the_draw_depends_on_keys_and_seed_and_not_on_order():
    amount = Amount(per_class=3)
    shuffled = tuple(torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist())
    assert keys_of(amount) == keys_of(amount, order=shuffled)
    assert len({frozenset(keys_of(amount, draw=draw, seed=seed)) for draw in (0, 1) for seed in (0, 1)}) == 4


def test_a_smaller_amount_is_part_of_a_larger_one():
    assert keys_of(Amount(share=0.1)) < keys_of(Amount(share=0.5)) < set(KEYS)
    assert keys_of(Amount(per_class=1), draw=2) < keys_of(Amount(per_class=5), draw=2)


def test_the_same_videos_are_drawn_on_every_machine():
    assert sorted(keys_of(Amount(per_class=1))) == ["video 32.mp4", "video 58.mp4", "video 7.mp4"]


def test_videos_without_the_label_are_never_drawn():
    labels = [-1, 0, 0, -1]
    assert drawn("abcd", labels, Amount(share=1.0), draw=0, seed=0, classes=("x",)) == [1, 2]


def test_a_class_that_would_have_none_or_too_few_is_named():
    with pytest.raises(UsageError, match=r"1 % of labels: class 'run' has 30 .* take a larger fraction"):
        keys_of(Amount(share=0.01))
    with pytest.raises(UsageError, match=r"11 a class: class 'fall' has only 10"):
        keys_of(Amount(per_class=11))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "one of the two"),
        ({"shares": (0.1,), "per_class": (1,)}, "one of the two"),
        ({"shares": ()}, "one or more amounts"),
        ({"per_class": (1, 1)}, "none of them twice"),
        ({"shares": (1.5,)}, "at most 1"),
        ({"per_class": (0,)}, "at least 1"),
        ({"shares": (0.1,), "draws": 0}, "draws: must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        FewLabels(**keys)


def blobs(num: int, seed: int, *, order: torch.Tensor | None = None) -> FeatureTable:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 3
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
    vectors = (centres[labels] + torch.randn(num, 8, generator=generator))[:, None]
    order = torch.arange(num) if order is None else order
    keys = tuple(f"{number:03d}" for number in order.tolist())
    return FeatureTable(vectors[order], {"move": labels[order]}, {"move": NAMES}, keys, num, ())


def test_a_row_is_the_mean_over_draws_with_its_spread():
    few = FewLabels(per_class=(2, 20), draws=4)
    rows = probe(KNN(k=(1, 3)), blobs(90, 1), blobs(120, 2), few_labels=few)
    assert [row.setting for row in rows] == [f"k={k}, {number} a class" for number in (2, 20) for k in (1, 3)]
    for row in rows:
        assert len(row.draws) == 4
        assert row.top1 == pytest.approx(fmean(row.draws))
        assert row.spread == pytest.approx(stdev(row.draws))
        assert row.low < row.top1 < row.high
    assert rows[0].num_train == 6
    assert rows[2].num_train == 60
    assert len(set(rows[0].draws)) > 1
    assert rows[2].top1 > rows[0].top1


def test_all_labels_are_learned_from_once_and_as_without_the_key():
    train, test = blobs(90, 1), blobs(60, 2)
    (whole,) = probe(QUICK, train, test, few_labels=FewLabels(shares=(1.0,), draws=5))
    (plain,) = probe(QUICK, train, test)
    assert (whole.setting, whole.draws, whole.spread) == ("100 % of labels", (plain.top1,), None)
    assert (whole.top1, whole.low, whole.predicted) == (plain.top1, plain.low, plain.predicted)


@pytest.mark.parametrize("probed", [QUICK, LinearSGD(batch_size=8, epochs=2)], ids=["linear", "linear_sgd"])
def test_the_order_of_a_list_changes_no_row(probed):
    order = torch.randperm(45, generator=torch.Generator().manual_seed(3))
    few = FewLabels(shares=(0.4, 1.0), draws=2)
    test = blobs(30, 2)
    ours, theirs = (probe(probed, blobs(45, 1, order=given), test, few_labels=few) for given in (None, order))
    assert ours == theirs


@pytest.mark.parametrize("draw", range(3))
def test_shares_take_whole_groups_and_so_many_of_a_class_are_of_as_many_groups(draw):
    keys = [f"{number:02d}" for number in range(60)]
    labels = [number // 30 for number in range(60)]
    groups = [f"g{number // 5}" for number in range(60)]

    def some(amount: Amount) -> list[str]:
        places = drawn(keys, labels, amount, draw=draw, seed=0, classes=("a", "b"), groups=groups)
        return [groups[place] for place in places]

    third = some(Amount(share=1 / 3))
    assert len(third) == 20
    assert set(Counter(third).values()) == {5}
    assert set(third) <= set(some(Amount(share=0.5)))
    assert set(Counter(some(Amount(per_class=4))).values()) == {1}
    assert len(some(Amount(per_class=8))) == 16  # of six groups each
    assert set(some(Amount(per_class=2))) <= set(some(Amount(per_class=4)))
