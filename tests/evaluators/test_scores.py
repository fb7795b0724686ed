"""Tables of features to rows of scores: views, orders, settings and counts."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidssl.errors import UsageError
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.held_out import folds
from vidssl.evaluators.knn import KNN, Retrieval
from vidssl.evaluators.linear import Linear
from vidssl.evaluators.scores import probe, score
from vidssl.evaluators.statistics import average_views, in_top, predict
from vidssl.interfaces import Evaluator, LabelledFeatures


def table(vectors: Tensor, labels: dict[str, list[int]], classes: int = 4, **reordered: Tensor):
    names = {name: tuple(map(str, range(classes))) for name in labels}
    numbers = {name: torch.tensor(given) for name, given in labels.items()}
    keys = tuple(f"{n}.mp4" for n in range(len(vectors)))
    return FeatureTable(vectors, numbers, names, keys, len(vectors), (), reordered=reordered)


class Recorder(Evaluator):
    """Scores are the vectors, and what it was given is kept."""

    def __init__(self):
        self.given: list[tuple[LabelledFeatures, Tensor]] = []

    def class_scores(self, train, test_vectors, generator):
        self.given.append((train, test_vectors))
        return test_vectors


ONE_HOT = torch.eye(4)


def test_features_are_averaged_over_the_views_before_the_probe():
    views, recorder = torch.randn(5, 3, 4), Recorder()
    videos = table(views, {"class": [0, 1, 2, 3, 0]})
    probe(recorder, videos, videos)
    ((train, test),) = recorder.given
    assert torch.equal(train.vectors, views.mean(1))
    assert torch.equal(test, views.mean(1))
    assert train.groups is None


@pytest.mark.parametrize("average", ["scores", "probabilities"])
def test_views_are_samples_where_scores_are_averaged(average):
    views, recorder = torch.randn(5, 3, 4), Recorder()
    train = table(torch.randn(2, 2, 4), {"class": [3, 1]})
    (row,) = probe(recorder, train, table(views, {"class": [0, 1, 2, 3, 0]}), average=average)
    ((learned, test),) = recorder.given
    assert learned.labels.tolist() == [3, 3, 1, 1]
    assert learned.groups is not None
    assert learned.groups.tolist() == [0, 0, 1, 1]
    assert torch.equal(learned.vectors, train.vectors.reshape(4, 4))
    scores = views.mean(1) if average == "scores" else views.softmax(2).mean(1)
    assert row.predicted == tuple(scores.argmax(1).tolist())
    assert (row.num_train, row.num_test) == (2, 5)
    assert test.shape == (15, 4)


def test_sums_of_scores_and_of_probabilities_can_differ():
    views = torch.tensor([[[9.0, 0.0], [0.0, 5.0], [0.0, 3.0]]])
    assert average_views(views, "scores", "logits").argmax() == 0
    assert average_views(views, "probabilities", "logits").argmax() == 1


def test_votes_are_averaged_as_shares():
    votes = torch.tensor([[[90.0, 10.0], [1.0, 3.0]]])
    shares = average_views(votes, "probabilities", "votes")
    assert torch.allclose(shares, torch.tensor([[(0.9 + 0.25) / 2, (0.1 + 0.75) / 2]]))
    assert torch.allclose(average_views(votes, "scores", "votes"), torch.tensor([[45.5, 6.5]]))


def test_a_view_without_votes_counts_for_no_class():
    votes = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    assert average_views(votes, "probabilities", "votes").tolist() == [[0.125, 0.375]]


def test_features_that_are_not_finite_are_refused_by_name():
    vectors = torch.randn(80, 1, 4)
    vectors[7] = math.nan
    with pytest.raises(UsageError, match=r"of 1 of 80 videos are not finite .*: 7\.mp4; look at these"):
        table(vectors, {"class": [0] * 80})
    with pytest.raises(UsageError, match=r"of 80 of 80 .*: 0\.mp4, 1\.mp4, 2\.mp4, \.\.\.; the network is"):
        table(torch.full((80, 1, 4), torch.inf), {"class": [0] * 80})
    with pytest.raises(UsageError, match="1 of 80 videos"):
        table(torch.zeros(80, 1, 4), {"class": [0] * 80}, reversed=vectors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: x[:, :3], r"evaluator Fixed: scores are torch.float32 \[5, 3\], expected .* \[5, 4\]"),
        (lambda x: x[1:], r"\[4, 4\], expected floating-point \[5, 4\]"),
        (lambda x: x.long(), r"torch.int64 \[5, 4\]"),
        (lambda x: [1.0], "scores are list, expected a tensor"),
        (lambda x: x.clone().fill_(math.nan), "the scores of 5 of 5 samples are not finite"),
    ],
)
def test_scores_of_an_evaluator_are_held_to_its_contract(given, message):
    class Fixed(Recorder):
        def class_scores(self, train, test_vectors, generator):
            return given(test_vectors)

    videos = table(torch.randn(5, 1, 4), {"class": [0, 1, 2, 3, 0]})
    with pytest.raises(UsageError, match=message):
        probe(Fixed(), videos, videos)


def test_what_was_found_has_no_average():
    with pytest.raises(ValueError, match="found"):
        average_views(torch.zeros(1, 2, 3), "scores", "found")


def test_every_order_of_frames_has_a_row_and_the_probe_is_fitted_once():
    normal, reverse = ONE_HOT[:, None], ONE_HOT.flip(0)[:, None]
    recorder = Recorder()
    videos = table(normal, {"class": [0, 1, 2, 3]}, reversed=reverse)
    rows = probe(recorder, videos, videos)
    assert [(row.frames, row.top1) for row in rows] == [("normal", 1.0), ("reversed", 0.0)]
    assert len(recorder.given) == 1
    assert torch.equal(recorder.given[0][0].vectors, ONE_HOT)  # learned on normal clips


def test_orders_and_views_keep_apart():
    views = torch.randn(4, 3, 4)
    other = torch.randn(4, 3, 4)
    videos = table(views, {"class": [0, 1, 2, 3]}, shuffled=other)
    rows = probe(Recorder(), videos, videos, average="scores")
    assert rows[0].predicted == tuple(views.mean(1).argmax(1).tolist())
    assert rows[1].predicted == tuple(other.mean(1).argmax(1).tolist())


def test_groups_of_test_videos_reach_the_row_and_those_of_train_the_probe():
    recorder, labels = Recorder(), {"class": [0, 1, 2, 3, 0, 1]}
    videos = replace(table(torch.randn(6, 1, 4), labels), groups=("a", "a", "b", "", "", "b"))
    (row,) = probe(recorder, videos, videos)
    assert row.num_groups == 4  # a, b, and two videos by themselves
    groups = recorder.given[0][0].groups
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 2, 3, 1]


def test_every_setting_has_a_row():
    videos = table(torch.randn(30, 1, 4), {"class": [n % 4 for n in range(30)], "other": [0] * 30})
    rows = probe(KNN(k=(1, 5)), videos, videos)
    assert [(row.label, row.setting) for row in rows] == [
        ("class", "k=1"), ("class", "k=5"), ("other", "k=1"), ("other", "k=5"),
    ]  # fmt: skip
    assert rows[0].top1 == 1.0  # each is its own nearest neighbour


def test_videos_without_a_label_are_left_out_of_its_rows():
    videos = table(ONE_HOT[:, None], {"class": [0, 1, 2, 3], "some": [0, -1, 3, -1]})
    whole, some = probe(Recorder(), videos, videos)
    assert (whole.num_train, whole.num_test) == (4, 4)
    assert (some.num_train, some.num_test, some.top1, some.predicted) == (2, 2, 0.5, (0, 2))
    nothing = table(ONE_HOT[:, None], {"class": [-1] * 4})
    with pytest.raises(UsageError, match="label 'class': none of the videos to test on has it"):
        probe(Recorder(), videos, nothing)


def test_chance_is_guessing_evenly_or_naming_the_commonest_class_of_train():
    truth = torch.tensor([0, 0, 1, 2])
    row = score(torch.zeros(4, 3), truth, torch.tensor([1, 1, 0, 2]), kind="logits", label="class")
    assert row.chance == pytest.approx(1 / 3)  # the commonest of train is right in a quarter
    row = score(torch.zeros(4, 3), truth, torch.tensor([0, 0, 1, 2]), kind="logits", label="class")
    assert row.chance == 0.5
    assert row.class_chance == pytest.approx(1 / 3)
    assert row.top5 is None  # of three classes


def test_top_five_is_counted_where_there_are_more_than_five_classes():
    scores = torch.arange(7.0).repeat(3, 1)
    row = score(scores, torch.tensor([6, 2, 1]), torch.tensor([0]), kind="logits", label="class")
    assert row.top1 == pytest.approx(1 / 3)
    assert row.top5 == pytest.approx(2 / 3)


def test_mean_recall_at_five_weighs_classes_alike_and_leaves_out_those_without_test_videos():
    """By hand: of classes 6, 2, 0 and 1 are 2 of 2, 1 of 3, 0 of 1 and 0 of 2 among the best five."""
    rising, falling = torch.arange(7.0), -torch.arange(7.0)  # best five: 2 to 6, and 0 to 4
    worst_is_2 = torch.tensor([9.0, 8, 0, 7, 6, 5, 4])
    scores = torch.stack([rising, rising, rising, worst_is_2, worst_is_2, rising, rising, rising])
    truth = torch.tensor([6, 6, 2, 2, 2, 0, 1, 1])  # classes 3, 4 and 5 have no test video
    learned = torch.tensor(
        [6, 2, 0, 3, 4, 5]
    )  # and nothing was learned of class 1, which counts all the same
    row = score(scores, truth, learned, kind="logits", label="action")
    assert row.class_top5 == pytest.approx((1 + 1 / 3 + 0 + 0) / 4)
    assert row.top5 == pytest.approx(3 / 8)
    assert row.class_top5_interval is not None
    assert row.class_top5_interval[0] < row.class_top5 < row.class_top5_interval[1]
    assert (
        score(falling.repeat(2, 1), torch.tensor([0, 0]), learned, kind="logits", label="a").class_top5 == 1
    )
    few = score(torch.zeros(2, 5), torch.tensor([0, 1]), torch.tensor([0]), kind="logits", label="action")
    assert few.class_top5 is None  # of five classes


def test_a_class_without_a_vote_is_never_among_the_best_five():
    votes = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0, 0.0]])
    for truth, right in ((1, True), (0, False), (5, False)):
        assert bool(in_top(votes, torch.tensor([truth]), 5, "votes")) is right
    logits = torch.tensor([[0.0, 3.0, 0.0, -1.0, -1.0, -1.0]])
    assert bool(in_top(logits, torch.tensor([0]), 5, "logits"))


def test_retrieval_looks_for_the_class_among_the_nearest():
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [0.0, 1.0]])
    train = table(gallery[:, None], {"class": [0, 0, 1, 2]})
    test = table(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]]), {"class": [0, 1, 2]})
    said: list[str] = []
    rows = probe(Retrieval(k=(1, 3, 4, 10)), train, test, say=said.append)
    every = "of a gallery of 4, in which every class is found by any network"
    assert said == [f"class: R@4, R@10: {every}"]
    rows.pop(2)
    assert [(row.setting, round(3 * row.top1)) for row in rows] == [("R@1", 1), ("R@3", 2), ("R@10", 3)]
    assert rows[1].chance is None
    assert rows[1].predicted[:2] == (0, 1)
    assert rows[1].predicted[2] != 2  # what was not found counts as another class


def test_retrieval_centred_as_coclrs_release_finds_other_neighbours():
    """A formula of the test's own: the mean of each side subtracted, then cosines."""
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(n, 6, generator=generator) + 2 for n in (40, 30))
    labels = torch.arange(40) % 4
    truth = torch.arange(30) % 4
    train = table(gallery[:, None], {"class": labels.tolist()})
    test = table(queries[:, None], {"class": truth.tolist()})
    found = {}
    for centre in (False, True):
        a, b = (part - part.mean(0) * centre for part in (queries, gallery))
        cosines = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
        nearest = cosines.argsort(1, descending=True)[:, :3]
        expected = (labels[nearest] == truth[:, None]).any(1).float().mean().item()
        (row,) = probe(Retrieval(k=(3,), centre=centre), train, test)
        assert row.top1 == pytest.approx(expected)
        found[centre] = row.predicted
    assert found[True] != found[False]
    with pytest.raises(UsageError, match="test has one video"):
        probe(Retrieval(centre=True), train, table(queries[:1, None], {"class": [0]}))


def test_predictions_are_right_where_the_class_was_found():
    found = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    truth = torch.tensor([1, 2])
    assert (predict(found, truth, "found") == truth).tolist() == [True, False]


def test_views_of_a_video_are_held_out_together():
    videos = torch.arange(20).repeat_interleave(3)
    train = LabelledFeatures(torch.zeros(60, 2), torch.zeros(60, dtype=torch.long), 2, videos)
    for kept, held in folds(train, 0.25, torch.Generator().manual_seed(0)):
        assert len(held) == 15
        assert sorted([*kept.tolist(), *held.tolist()]) == list(range(60))
        assert not set(videos[kept].tolist()) & set(videos[held].tolist())


@pytest.mark.parametrize("grouped", [False, True])
def test_folds_have_the_classes_in_equal_parts_and_part_no_group(grouped):
    labels = torch.tensor([0, 0, 0, 1]).repeat_interleave(10).repeat(3)  # 120 videos, a quarter of class 1
    groups = torch.arange(120) // 4 if grouped else None
    train = LabelledFeatures(torch.zeros(120, 2), labels, 2, groups)
    found = folds(train, 0.2, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([held for _, held in found]).tolist()) == list(
        range(120)
    )  # each is held out once
    for kept, held in found:
        assert abs(float(labels[held].float().mean()) - 0.25) < 0.12
        assert groups is None or not set(groups[kept].tolist()) & set(groups[held].tolist())
    large = LabelledFeatures(torch.zeros(600, 2), labels.repeat(5), 2)
    ((_, held),) = folds(large, 0.2, torch.Generator().manual_seed(0))  # enough to choose by once
    assert len(held) == 120
    assert folds(LabelledFeatures(torch.zeros(2, 2), torch.tensor([0, 1]), 2), 0.2, torch.Generator()) == []


def test_a_probe_scores_separable_views_right():
    generator = torch.Generator().manual_seed(0)
    labels = [n % 4 for n in range(80)]
    vectors = 10 * ONE_HOT[torch.tensor(labels)][:, None] + torch.randn(80, 3, 4, generator=generator)
    videos = table(vectors, {"class": labels})
    for average in ("features", "scores", "probabilities"):
        (row,) = probe(Linear(), videos, videos, average=average)
        assert row.top1 == 1.0
