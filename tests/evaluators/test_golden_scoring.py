"""Neighbours' votes and multi-view scoring are those of the published implementations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.knn import KNN, cosine_neighbours
from vidssl.evaluators.scores import probe, score
from vidssl.evaluators.statistics import average_views, in_top
from vidssl.interfaces import Evaluator, LabelledFeatures

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def svt():
    return load_file(GOLDEN / "svt" / "knn.safetensors")


def votes(evaluator: Evaluator, *tables: torch.Tensor) -> dict[str, torch.Tensor]:
    features, labels, test = tables
    train = LabelledFeatures(features, labels, int(labels.max()) + 1)
    return dict(evaluator.named_scores(train, test, torch.Generator()))


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_svts_neighbours_name_the_same_classes(svt, temperature, backend):
    knn = KNN(k=(1, 5, 10, 20), temperature=temperature, backend=backend)
    found = votes(knn, svt["train_features"], svt["train_labels"], svt["test_features"])
    for name, scores in found.items():
        stored = f"{name.replace('=', '')}_T{temperature}"
        assert torch.equal(scores.argmax(1), svt[f"{stored}/pred"])
        row = score(scores, svt["test_labels"], svt["train_labels"], kind="votes", label="class")
        assert row.top1 * 100 == pytest.approx(float(svt[f"{stored}/top1"]))
        assert row.top5 is not None
        assert row.top5 * 100 == pytest.approx(float(svt[f"{stored}/top5"]))


@pytest.mark.parametrize("backend", ["auto", "faiss", "torch"])
def test_svts_neighbours_come_nearest_first(svt, backend):
    _, neighbours = cosine_neighbours(svt["train_features"], svt["test_features"], 20, backend)
    assert torch.equal(neighbours, svt["neighbours_k20"])


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_vimpacs_neighbours_name_the_same_classes(backend):
    golden = load_file(GOLDEN / "vimpac" / "knn.safetensors")
    found = votes(
        KNN(k=(5, 20, 200), backend=backend), golden["bank"], golden["bank_labels"], golden["query"]
    )
    for name, scores in found.items():
        stored = name.replace("=", "")
        assert torch.equal(scores.argmax(1), golden[f"{stored}/ranking"][:, 0])
        row = score(scores, golden["query_labels"], golden["bank_labels"], kind="votes", label="class")
        assert row.top1 * 100 == pytest.approx(golden[f"{stored}/top1_percent"].item(), abs=1e-3)


def test_raw_scores_of_svts_three_crops_are_summed():
    golden = load_file(GOLDEN / "svt" / "evalset.safetensors")
    order = golden["clip_ids"].argsort()
    views = golden["scores"][order].unflatten(0, (25, 3))  # the video of a clip is its number // 3
    scores = average_views(views, "scores", "logits")
    torch.testing.assert_close(3 * scores, golden["sum/video_scores"], atol=1e-5, rtol=0)
    right = [in_top(scores, golden["video_labels"], count, "logits").double().mean() for count in (1, 5)]
    for found, stored in zip(right, ("top1", "top5"), strict=True):
        assert round(float(found) * 100, 2) == pytest.approx(golden[f"sum/{stored}"].item(), abs=1e-2)


def test_probabilities_of_vimpacs_clips_are_averaged():
    golden = load_file(GOLDEN / "vimpac" / "finetune_eval.safetensors")
    mean = average_views(golden["logits_B_clips_classes"], "probabilities", "logits")
    torch.testing.assert_close(mean, golden["avg_probs"], atol=1e-6, rtol=0)
    assert torch.equal(mean.argmax(1), golden["predictions"])


class AsGiven(Evaluator):
    """The features are the scores."""

    def class_scores(self, train, test_vectors, generator):
        return test_vectors


def test_a_probe_adds_up_the_views_of_each_video_as_svt_does():
    golden = load_file(GOLDEN / "svt" / "evalset.safetensors")
    views = golden["scores"][golden["clip_ids"].argsort()].unflatten(0, (25, 3))
    labels, classes = {"class": golden["video_labels"]}, {"class": tuple("abcdefghi")}
    table = FeatureTable(views, labels, classes, tuple(map(str, range(25))), 25, ())
    (row,) = probe(AsGiven(), table, table, average="scores")
    assert row.num_train == row.num_test == 25  # videos, not views
    assert round(row.top1 * 100, 2) == pytest.approx(golden["sum/top1"].item(), abs=1e-2)
