"""Probes agree with the library's, reach 100 % on separable features and chance on noise."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from vidssl.errors import UsageError
from vidssl.evaluators import EVALUATORS, knn as neighbours
from vidssl.evaluators.attentive import Attentive
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.held_out import folds
from vidssl.evaluators.knn import KNN
from vidssl.evaluators.linear import Linear, fit_logistic, standardisation
from vidssl.evaluators.scores import probe
from vidssl.evaluators.statistics import wilson_interval
from vidssl.interfaces import Evaluator, LabelledFeatures


def blobs(num: int, classes: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (num,), generator=generator)
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(1)) * distance
    return centres[labels] + torch.randn(num, 12, generator=generator), labels


QUICK = {
    "attentive": {"lr": (1e-3, 3e-3), "batch_size": 32, "epochs": 4},
    "linear": {"penalties": (1.0, 100.0), "max_iterations": 30},
}


def made(name: str) -> Evaluator:
    """With its defaults, but for those that take long."""
    return EVALUATORS[name](**QUICK.get(name, {}))


@pytest.mark.parametrize("name", sorted(EVALUATORS))
def test_separable_features_score_everything_by_default(name):
    vectors, labels = blobs(200, 4, 10.0, 2)
    test_vectors, test_labels = blobs(100, 4, 10.0, 3)
    probe = (
        Attentive(lr=(1e-3, 3e-3), batch_size=32, epochs=10) if name == "attentive" else EVALUATORS[name]()
    )
    scores = probe.class_scores(
        LabelledFeatures(vectors, labels, 4), test_vectors, torch.Generator().manual_seed(0)
    )
    assert scores.shape == (100, 4)
    assert (scores.argmax(1) == test_labels).all()


@pytest.mark.parametrize("name", sorted(EVALUATORS))
def test_shuffled_labels_score_chance(name):
    vectors, _ = blobs(400, 4, 10.0, 2)
    shuffled = torch.randint(4, (400,), generator=torch.Generator().manual_seed(9))
    test_vectors, test_labels = blobs(2000, 4, 0.0, 3)
    scores = made(name).class_scores(
        LabelledFeatures(vectors, shuffled, 4), test_vectors, torch.Generator().manual_seed(0)
    )
    assert 0.2 < float((scores.argmax(1) == test_labels).float().mean()) < 0.3


def test_logistic_fit_is_scikit_learns_optimum():
    vectors, labels = blobs(300, 5, 1.0, 4)
    vectors = vectors.double()
    ours, bias = fit_logistic(vectors, labels, 5, 2.0, max_iterations=500)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(vectors.numpy(), labels.numpy())
    theirs_logits = torch.from_numpy(theirs.decision_function(vectors.numpy()))
    assert torch.allclose((vectors @ ours.T + bias).softmax(1), theirs_logits.softmax(1), atol=1e-4)


def test_linear_chooses_the_penalty_on_the_training_set_alone():
    vectors, labels = blobs(60, 3, 0.8, 5)
    probe = Linear(penalties=(1e-3, 1e4))
    train = LabelledFeatures(vectors, labels, 3)
    some = probe.class_scores(train, vectors[:7], torch.Generator().manual_seed(0))
    more = probe.class_scores(train, vectors, torch.Generator().manual_seed(0))
    assert torch.equal(some, more[:7])  # what else is scored changes nothing


def test_a_column_that_is_constant_in_train_does_not_outweigh_the_others():
    vectors, labels = blobs(200, 3, 3.0, 5)
    test, truth = blobs(200, 3, 3.0, 5)
    dead = torch.full((200, 1), 0.7)
    dead_test = dead.clone()
    dead_test[::2] += 0.5  # half of the test videos are off in it
    train = LabelledFeatures(torch.cat((vectors, dead), 1), labels, 3)
    scores = Linear().class_scores(train, torch.cat((test, dead_test), 1), torch.Generator().manual_seed(0))
    assert (scores.argmax(1) == truth).float().mean() > 0.9
    assert standardisation(train.vectors)[1][-1] == 1.0


def test_few_weak_features_choose_a_penalty_by_cross_validation_and_the_one_standard_error_rule():
    vectors, labels = blobs(120, 4, 0.6, 1)
    train = LabelledFeatures(vectors, labels, 4)
    probe, words = Linear().settled(train, torch.Generator().manual_seed(0))
    parts = folds(train, 0.2, torch.Generator().manual_seed(0))
    assert len(parts) == 5
    losses = {}
    for penalty in (1000.0, 100.0, 10.0, 1.0):
        found = torch.zeros(120, dtype=torch.float64)
        for kept, held in parts:
            mean, scale = vectors[kept].mean(0), vectors[kept].std(0)
            given = ((vectors - mean) / scale).double()
            weight, bias = fit_logistic(given[kept], labels[kept], 4, penalty, max_iterations=300)
            found[held] = torch.nn.functional.cross_entropy(
                given[held] @ weight.T + bias, labels[held], reduction="none"
            )
        losses[penalty] = found
    best = min(losses.values(), key=lambda each: float(each.mean()))
    worse = {penalty: each - best for penalty, each in losses.items()}  # from strong to weak
    within = [p for p, each in worse.items() if each.mean() <= each.std(correction=0) / 120**0.5]
    penalty = within[0]
    assert probe.penalties == (penalty,) != (min(losses, key=lambda each: float(losses[each].mean())),)
    assert words.startswith(f"penalty {penalty:g}")


@pytest.mark.parametrize(("penalties", "words"), [
    ((1e-3, 1.0), "penalty 1 (the largest tried)"),
    ((1e5, 1e6), "penalty 100000 (the smallest tried)"),
    ((1e-3, 10.0, 1e6), "penalty 10"),
])  # fmt: skip
def test_a_choice_at_the_edge_of_its_grid_is_said_to_be(penalties, words):
    vectors, labels = blobs(150, 3, 0.5, 5)
    train = LabelledFeatures(vectors, labels, 3)
    probe = Linear(penalties=penalties, max_iterations=40)
    assert probe.settled(train, torch.Generator().manual_seed(0))[1] == words
    assert Linear(penalties=(1.0,)).settled(train, torch.Generator())[1] == ""


def test_knn_votes_as_scikit_learn_does():
    vectors, labels = blobs(500, 6, 0.7, 6)
    test_vectors, _ = blobs(200, 6, 0.7, 7)
    scores = KNN(k=15, temperature=0.07).class_scores(
        LabelledFeatures(vectors, labels, 6), test_vectors, torch.Generator()
    )
    # on unit vectors |a - b|^2 = 2 - 2 cos
    reference = KNeighborsClassifier(
        15, algorithm="brute", weights=lambda d: torch.from_numpy((1 - d**2 / 2) / 0.07).exp().numpy()
    ).fit(F.normalize(vectors).numpy(), labels.numpy())
    expected = reference.predict_proba(F.normalize(test_vectors).numpy())
    shares = scores / scores.sum(1, keepdim=True)
    assert torch.allclose(shares, torch.from_numpy(expected).double(), atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "faiss", "torch"])
def test_every_backend_finds_the_same_neighbours(backend, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", 4 * 300 * 7)  # plain torch takes seven queries at a time
    train, _ = blobs(300, 4, 1.0, 8)
    test, _ = blobs(200, 4, 1.0, 9)
    exact = (test.double() @ train.double().T).topk(8, dim=1)
    untied = (exact.values[:, :-1] - exact.values[:, 1:]).min(1).values > 1e-4
    assert untied.sum() > 100
    similarity, rows = neighbours.nearest(train, test[untied], 7, backend)
    assert torch.equal(rows, exact.indices[untied, :7])
    assert torch.allclose(similarity.double(), exact.values[untied, :7], rtol=1e-5)


def test_without_faiss_torch_searches_and_who_asks_for_faiss_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # what is not installed, to Python
    spec = spec_from_file_location("neighbours_alone", neighbours.__file__)
    alone = module_from_spec(spec)
    spec.loader.exec_module(alone)
    train, _ = blobs(50, 4, 1.0, 8)
    expected = neighbours.nearest(train, train[:9], 3, "torch")
    assert all(map(torch.equal, alone.nearest(train, train[:9], 3), expected))
    with pytest.raises(UsageError, match=r"installed: install 'faiss-gpu' .*'faiss-cpu'.*take 'torch' or"):
        alone.nearest(train, train, 3, "faiss")


def test_labels_named_are_the_same_by_every_backend():
    vectors, labels = blobs(400, 5, 0.7, 10)
    test, _ = blobs(300, 5, 0.7, 11)
    train = LabelledFeatures(vectors, labels, 5)
    by_faiss, by_torch = (
        KNN(k=(1, 20, 1000), backend=backend).named_scores(train, test, torch.Generator())
        for backend in ("faiss", "torch")
    )
    assert by_faiss.keys() == by_torch.keys()
    for name, votes in by_faiss.items():
        assert torch.equal(votes.argmax(1), by_torch[name].argmax(1))


def test_knn_with_fewer_videos_than_neighbours():
    vectors, labels = blobs(5, 2, 10.0, 2)
    scores = KNN(k=20).class_scores(LabelledFeatures(vectors, labels, 2), vectors, torch.Generator())
    assert scores.shape == (5, 2)
    said: list[str] = []
    views = vectors[:, None].expand(-1, 2, -1)
    test = blobs(4, 2, 10.0, 3)
    for k, average in ((4, "features"), (9, "scores"), ((2, 5, 7), "features"), (10, "scores")):
        probe(KNN(k=k), (views, labels), test, average=average, say=said.append)
    assert said == [
        "class: k=5, k=7: all 5 training samples vote, the nearer the more; fewer do with a smaller "
        "evaluator.k",
        "class: k=10: all 10 training samples vote, the nearer the more; fewer do with a smaller evaluator.k",
    ]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(50, 100, 0.4038, 0.5962), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_interval_of_worked_examples(right, total, low, high):
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=1e-4)


ORDERED = [name for name in sorted(EVALUATORS) if name != "attentive"]  # of which test_attentive.py asks it


@pytest.mark.parametrize("name", ORDERED)
def test_the_order_of_a_list_of_videos_changes_nothing(name):
    vectors, labels = blobs(60, 4, 0.7, 12)
    test_vectors, test_labels = blobs(40, 4, 0.7, 13)

    def table(order: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> FeatureTable:
        return FeatureTable(
            vectors=vectors[order, None],
            labels={"class": labels[order]},
            classes={"class": tuple("abcd")},
            keys=tuple(f"{number:03d}.mp4" for number in order.tolist()),
            num_listed=len(order),
            unreadable=(),
        )

    test = table(torch.arange(40), test_vectors, test_labels)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        probe(made(name), table(order, vectors, labels), test) for order in (torch.arange(60), shuffled)
    )
    assert ours == theirs
