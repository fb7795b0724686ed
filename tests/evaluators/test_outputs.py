"""Several classes a video (mAP) and numbers (R2): against scikit-learn, and what takes one class alone."""

import csv
import io
import json
import logging
import os
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from recordings import write_takes
from rich.console import Console
from safetensors.torch import save_file
from score_files import write_scores
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from sklearn.multiclass import OneVsRestClassifier
from toy_runs import recipe_text

from vidssl.cli.main import main
from vidssl.compare.runs import compare, run_row
from vidssl.config.few_labels import FewLabels
from vidssl.engine.checkpoint import read_tensors
from vidssl.engine.runfolder import RunFolder
from vidssl.errors import UsageError
from vidssl.evaluate.report import class_lines, classes_of, score_tables, verdict
from vidssl.evaluate.score_file import kept_probes, read_scores
from vidssl.evaluators.attentive import Attentive
from vidssl.evaluators.differences import (
    LabelledVideos,
    detectable,
    findings,
    network_differences,
    tested_videos as videos_of,
)
from vidssl.evaluators.features import FeatureTable
from vidssl.evaluators.fitted import fit_probes
from vidssl.evaluators.held_out import folds
from vidssl.evaluators.knn import KNN, Retrieval
from vidssl.evaluators.linear import Linear, LinearSGD, fit_ridge
from vidssl.evaluators.scores import Score, labelled_rows, probe, samples_of
from vidssl.evaluators.statistics import explained, mean_average_precision, mean_of
from vidssl.interfaces import Evaluator
from vidssl.tools.report import write_report

RNG = np.random.default_rng(0)
PARTS, KINDS = ("train", "test"), ("both", "one")


def test_average_precision_is_sklearns_and_what_a_video_adds_is_its_derivative():
    scores = RNG.normal(size=(60, 4)).round(1)  # ties
    truth = (RNG.random((60, 4)) < 0.3).astype(float)
    truth[:, 3] = 0  # a class without positives
    added, of_class = mean_average_precision(scores, truth)

    def mean(weights=None):
        return np.mean(
            [average_precision_score(truth[:, k], scores[:, k], sample_weight=weights) for k in range(3)]
        )

    assert added.mean() == pytest.approx(mean())
    assert of_class[0] == pytest.approx(average_precision_score(truth[:, 0], scores[:, 0]))
    assert np.isnan(of_class[3])
    for place in range(10):
        weights = np.ones(60)
        weights[place] += 1e-5
        assert added[place] == pytest.approx(mean() + 60 * (mean(weights) - mean()) / 1e-5, abs=1e-4)


def test_r2_is_sklearns_and_what_a_video_adds_is_its_derivative():
    truth = RNG.normal(3, 2, size=40)
    guess = truth + RNG.normal(size=40)
    added, of = explained(guess, truth), partial(r2_score, truth, guess)
    assert added.mean() == pytest.approx(of())
    for place in range(10):
        weights = np.ones(40)
        weights[place] += 1e-5
        assert added[place] == pytest.approx(of() + 40 * (of(sample_weight=weights) - of()) / 1e-5, abs=1e-3)
    with pytest.raises(UsageError, match="40 test videos have the number 1: R2"):
        explained(guess, np.ones(40))


def test_intervals_are_those_of_a_bootstrap_over_groups():
    groups = np.repeat(np.arange(60), 5)
    truth = RNG.normal(size=300) + np.repeat(RNG.normal(size=60), 5)
    guess = truth + np.repeat(RNG.normal(size=60), 5)  # errors shared in a group
    added = explained(guess, truth)
    drawn = [
        np.concatenate([np.flatnonzero(groups == g) for g in RNG.integers(0, 60, 60)]) for _ in range(400)
    ]
    spread = np.std([r2_score(truth[rows], guess[rows]) for rows in drawn])
    found, alone = mean_of(added, groups), mean_of(added)
    assert (found.high - found.low) / 4 == pytest.approx(spread, rel=0.15)
    assert alone.high - alone.low < 0.7 * (found.high - found.low)


def test_a_difference_of_map_is_at_most_100_points_and_of_r2_any():
    first = Score(
        label="objects", measure="mAP", top1=1.0, low=0.0, high=1.0, class_mean=1.0, chance=0.1, num_train=4,
        num_test=4, added=(1.0, 1.0, 1.0, 1.0),
    )  # fmt: skip
    second = replace(first, top1=0.5, added=(-1.5, 1.0, 1.5, 1.0))
    videos = LabelledVideos([0] * 4)
    found = videos.difference(first, second.added, first.added)
    of_r2 = videos.difference(replace(first, measure="R2"), second.added, first.added)
    assert (found.mean, found.high) == (0.5, 1.0)
    assert of_r2.high > 2
    assert (of_r2.low, of_r2.p) == (pytest.approx(0.5 - (of_r2.high - 0.5)), found.p)
    scores, tested = {"a": [first], "b": [second]}, {"objects": videos}
    (each,) = network_differences(scores, tested)
    # of four videos 2.8 standard errors, though the interval ends at 100 points
    assert detectable(scores, tested, each) == pytest.approx((of_r2.high - of_r2.low) / 3.92 * 2.8, rel=0.01)


def test_kept_probes_are_told_apart_by_their_whole_label(tmp_path):
    for time, name in enumerate(("linear-left-hand", "linear-right-hand", "knn-right-hand")):
        path = tmp_path / f"{name}-step-000002.probe.safetensors"
        save_file({"x": torch.zeros(1)}, path, metadata={"label": name.partition("-")[2]})
        os.utime(path, (time, time))
    found = kept_probes(tmp_path, "step-000002")
    metadata, tensors = read_tensors(found[0], only=())  # they may be as large as the training set
    assert (metadata, tensors) == ({"label": "right-hand"}, {})
    assert [path.name.partition("-step")[0] for path in found] == ["knn-right-hand", "linear-left-hand"]


def table(vectors, cells, prefix="v", **others):
    """Features of videos whose labels are the cells of a list."""
    labels = {name: list(given) for name, given in cells.items()}
    classes = {name: tuple(sorted(set(given))) for name, given in labels.items()}
    numbers = {name: torch.tensor([classes[name].index(c) for c in given]) for name, given in labels.items()}
    keys = tuple(f"{prefix}{n:04d}" for n in range(len(vectors)))
    vectors = torch.as_tensor(vectors, dtype=torch.float32)
    return FeatureTable(vectors[:, None], numbers, classes, keys, len(keys), (), **others)


def made(count, *, prefix="v", width=12, seed=0):
    """Vectors whose first three numbers decide three classes, and whose fourth is a number."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, width))
    sets = vectors[:, :3] + 0.7 * rng.normal(size=(count, 3)) > 0.4
    names = ["|".join(name for name, one in zip("abc", row, strict=True) if one) or "|" for row in sets]
    speed = vectors[:, 3] + 0.5 * rng.normal(size=count)
    cells = {"objects": names, "target:speed": [f"{value:.6g}" for value in speed]}
    return table(vectors, cells, prefix), vectors, sets.astype(int), speed


def test_linear_probe_of_sets_is_one_regression_against_the_rest_and_scored_by_map():
    train, x, y, _ = made(200)
    test, x2, y2, _ = made(80, prefix="t", seed=1)
    sets = [replace(one, labels={"objects": one.labels["objects"]}) for one in (train, test)]
    sets = [replace(one, classes={"objects": one.classes["objects"]}) for one in sets]
    (row,) = probe(Linear(penalties=(10.0,)), *sets)
    mean, std = x.astype(np.float32).mean(0), x.astype(np.float32).std(0, ddof=1)
    other = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=2000, tol=1e-8)).fit((x - mean) / std, y)
    expected = average_precision_score(y2, other.predict_proba((x2 - mean) / std))
    assert row.measure == "mAP"
    assert row.top1 == pytest.approx(expected, abs=2e-4)
    each = average_precision_score(y2, other.predict_proba((x2 - mean) / std), average=None)
    assert [name for name, _ in row.precisions] == ["a", "b", "c"]
    assert [value for _, value in row.precisions] == pytest.approx(each, abs=5e-4)
    assert row.chance == pytest.approx(y2.mean())
    assert row.low < row.top1 < row.high < 1
    assert row.low > row.chance
    assert not row.names_classes
    assert "penalty" in probe(Linear(), *sets)[0].chosen


@pytest.mark.parametrize("width", [12, 300])
def test_linear_probe_of_a_number_is_ridge_regression(width):
    train, x, _, y = made(200, width=width)
    test, x2, _, y2 = made(80, prefix="t", seed=1, width=width)
    row = probe(Linear(penalties=(50.0,)), train, test)[1]
    mean, std = x.mean(0), x.std(0, ddof=1)
    guess = Ridge(alpha=50.0).fit((x - mean) / std, y).predict((x2 - mean) / std)
    assert row.measure == "R2"
    assert row.top1 == pytest.approx(r2_score(y2, guess), abs=1e-4)
    assert row.mae == pytest.approx(mean_absolute_error(y2, guess), abs=1e-4)
    assert row.chance == 0
    assert row.mae_interval[0] < row.mae < row.mae_interval[1]


def test_the_penalty_of_a_number_is_chosen_by_held_out_errors():
    train, *_ = made(60, width=50)
    test, *_ = made(60, prefix="t", seed=1, width=50)
    row = probe(Linear(penalties=(1e-3, 30.0, 1e6)), train, test)[1]
    assert row.chosen == "penalty 30"


def test_the_penalty_of_sets_has_the_largest_held_out_map():
    train, *_ = made(60, width=40)
    samples = samples_of(Linear(), labelled_rows(train, "objects"), "features")
    penalties = (1e-2, 3.0, 1e4)
    found = {}
    for penalty in penalties:
        parts = folds(samples, 0.2, torch.Generator().manual_seed(0))
        means = []
        for kept, held in parts:
            part = replace(
                samples,
                vectors=samples.vectors[kept],
                labels=samples.labels[kept],
                outputs=samples.outputs[kept],
            )
            scores = Linear(penalties=(penalty,)).fit(part, torch.Generator())(samples.vectors[held])
            means.append(average_precision_score(samples.outputs[held].numpy(), scores.numpy()))
        found[penalty] = np.mean(means)
    assert max(found.values()) > min(found.values()) + 0.01
    chosen = Linear(penalties=penalties).settled(samples, torch.Generator().manual_seed(0))[0].penalties
    assert chosen == (max(found, key=found.__getitem__),)


def test_neighbours_vote_on_sets_and_numbers():
    train, x, y, speed = made(200)
    test, x2, y2, speed2 = made(80, prefix="t", seed=1)
    objects, number = probe(KNN(k=200, temperature=0.1), train, test)
    unit, unit2 = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, x2))
    weights = np.exp(unit2 @ unit.T / 0.1)
    weights /= weights.sum(1, keepdims=True)
    assert objects.top1 == pytest.approx(average_precision_score(y2, weights @ y), abs=1e-3)
    assert number.top1 == pytest.approx(r2_score(speed2, weights @ speed), abs=1e-3)


def test_views_are_averaged_as_probabilities_or_numbers():
    tables = [made(60)[0], made(60, prefix="t", seed=1)[0]]
    twice = [replace(one, vectors=one.vectors.repeat(1, 2, 1)) for one in tables]
    for one, two in zip(probe(KNN(k=5), *tables), probe(KNN(k=10), *twice, average="scores"), strict=True):
        assert two.top1 == pytest.approx(one.top1)
    (row, _) = probe(Linear(penalties=(1.0,)), *twice, average="probabilities")
    assert row.top1 == pytest.approx(probe(Linear(penalties=(0.5,)), *tables)[0].top1, abs=1e-3)


class Given(Evaluator):
    """Scores are the vectors."""

    learns = ("set",)

    def class_scores(self, train, test_vectors, generator):
        return test_vectors


def test_views_of_sets_are_averaged_as_they_are_or_as_probabilities():
    cells = ["a" if place % 2 else "|" for place in range(40)]
    logits = torch.from_numpy(RNG.normal(size=(40, 3, 1))).float() * 4
    train, test = (
        table(torch.zeros(2, 1), {"class": ["a|", "|"]}),
        table(torch.zeros(40, 1), {"class": cells}, "t"),
    )
    train = replace(train, classes={"class": ("a", "|")})
    test, truth = replace(test, vectors=logits), [place % 2 for place in range(40)]
    for average, of in (("scores", logits), ("probabilities", logits.sigmoid())):
        (row,) = probe(Given(), train, test, average=average)
        assert row.top1 == pytest.approx(average_precision_score(truth, of.mean(1)[:, 0]))


def test_ridge_has_a_level_of_its_own():
    vectors, outputs = RNG.normal(3, 1, size=(30, 5)), RNG.normal(-7, 1, size=(30, 2))
    other = Ridge(alpha=2.0).fit(vectors, outputs)
    weight, bias = fit_ridge(torch.from_numpy(vectors), torch.from_numpy(outputs), 2.0)
    np.testing.assert_allclose(weight, other.coef_, atol=1e-10)
    np.testing.assert_allclose(bias, other.intercept_, atol=1e-10)


@pytest.mark.parametrize("evaluator", [LinearSGD(), Attentive(), Retrieval()])
def test_what_takes_one_class_refuses_by_name(evaluator):
    train, test = made(40)[0], made(40, prefix="t", seed=1)[0]
    with pytest.raises(
        UsageError, match=r"'objects' is a set, 'target:speed' is a number: .* takes one class"
    ):
        probe(evaluator, train, test)


def test_few_labels_and_kept_probes_take_one_class(caplog):
    said = []
    train, test = made(40)[0], made(40, prefix="t", seed=1)[0]
    with pytest.raises(UsageError, match="few_labels takes one class"):
        probe(KNN(k=3), train, test, few_labels=FewLabels(per_class=(1,)))
    with pytest.raises(
        UsageError, match=r"'objects' is a set, .*: --save-probe takes .* video; leave --save-probe out"
    ):
        fit_probes(Linear(), train, test, "features", 0, said.append)
    both = [
        replace(
            one,
            labels={**one.labels, "side": torch.arange(40) % 2},
            classes={**one.classes, "side": ("l", "r")},
        )
        for one in (train, test)
    ]
    with caplog.at_level(logging.WARNING):
        (row,) = probe(LinearSGD(), *both)
        kept = fit_probes(Linear(), *both, "features", 0, said.append)
    assert row.label == "side"
    assert list(kept) == ["side"]
    assert "left out: 'objects' is a set" in caplog.text
    assert said[0].startswith("left out: 'objects' is a set")
    nowhere = replace(both[0], labels={**both[0].labels, "side": torch.full((40,), -1)})
    with pytest.raises(UsageError, match="label 'side': none of the videos to learn from has it"):
        fit_probes(Linear(), nowhere, both[1], "features", 0, said.append)


def with_cells(one, **cells):
    """The same videos with more labels."""
    more = table(one.vectors[:, 0], cells)
    return replace(one, labels={**one.labels, **more.labels}, classes={**one.classes, **more.classes})


def unscorable():
    """Videos with two labels that can be scored, and three that cannot."""
    train, test = made(40)[0], made(40, prefix="t", seed=1)[0]
    train = with_cells(train, **{"target:flat": ["1", "2"] * 20}, none=["a|", "|"] * 20, side=["l", "r"] * 20)
    test = with_cells(test, **{"target:flat": ["3.0"] * 40}, none=["|"] * 40, side=["l", "r"] * 20)
    return train, replace(test, labels={**test.labels, "side": torch.full((40,), -1)})


def test_a_label_that_cannot_be_scored_is_named_and_the_others_are_scored():
    said = []
    rows = probe(KNN(k=3), *unscorable(), say=said.append)
    assert [row.label for row in rows] == ["objects", "target:speed"]
    assert said == [
        "left out: label 'target:flat': all 40 test videos have the number 3: R2 is not defined",
        "left out: label 'none': no test video has any class of it",
        "left out: label 'side': none of the videos to test on has it",
    ]


def test_no_label_that_can_be_scored_is_an_error():
    def only(one, label="target:flat"):
        return replace(one, classes={label: one.classes[label]}, labels={label: one.labels[label]})

    train, test = map(only, unscorable())
    with pytest.raises(UsageError, match="label 'target:flat': all 40 test videos have the number 3"):
        probe(KNN(k=3), train, test)


def blurred(one: FeatureTable, much: float, seed: int = 5) -> FeatureTable:
    """The same videos as a worse network sees them."""
    noise = torch.randn(one.vectors.shape, generator=torch.Generator().manual_seed(seed))
    return replace(one, vectors=one.vectors + much * noise)


@cache
def networks(much: float = 3.0):
    """Rows of a good and a worse network, and the videos."""
    train, test = made(200)[0], made(120, prefix="t", seed=1)[0]
    worse = [blurred(one, much, place) for place, one in enumerate((train, test))]
    linear = Linear(penalties=(1.0, 100.0))
    scores = {"trained": probe(linear, train, test), "untrained": probe(linear, *worse)}
    return scores, {"train": train, "test": test}


def test_a_table_names_the_measure_and_says_which_network_is_better():
    scores, videos = networks()
    tested = videos_of(videos["test"])
    found = network_differences(scores, tested)
    for each, (one, other) in zip(found, zip(*scores.values(), strict=True), strict=True):
        assert each.found.mean == pytest.approx(one.top1 - other.top1, abs=1e-5)
        assert each.mark == "+"
    (said,) = class_lines(scores, videos["test"])
    lowest, _, highest = sorted(scores["trained"][0].precisions, key=lambda pair: pair[1])
    best, worst = (f"{name} {100 * value:.0f} %" for name, value in (highest, lowest))
    assert said == f"objects, average precision: best {best}; worst {worst}"
    words = verdict(scores, found).plain
    assert words.startswith("trained, against untrained, is better on objects mAP (+")
    console = Console(file=io.StringIO(), width=200)
    console.print(score_tables(scores, "toy", found)[0])
    lines = console.file.getvalue().splitlines()
    assert any("objects mAP" in line and " + (" in line for line in lines)
    number = next(line for line in lines if "speed R2" in line)
    error = lines[lines.index(number) + 1]
    assert "mean absolute error" in error
    assert f"{scores['trained'][1].mae:.3g}" in error
    alike = dict.fromkeys(scores, scores["trained"])
    said = findings(alike, network_differences(alike, tested), tested, videos["test"].classes)
    assert " 0 points" not in " ".join(said)  # nothing is known of how they would differ
    near, _ = networks(0.3)
    (unseen, *_) = findings(near, network_differences(near, tested), tested, videos["test"].classes)
    assert 1 < float(unseen.split("objects ")[1].split()[0]) < 30


def test_classes_that_no_video_has_are_said_and_left_out_of_the_mean():
    train = table(torch.randn(4, 3), {"objects": ["a", "a|b", "b", "|"]})
    test = table(torch.randn(3, 3), {"objects": ["a", "a|c", "|"]}, "t")
    (row,) = probe(KNN(k=2), train, test)
    assert row.chance == pytest.approx((2 + 1) / (2 * 3))  # of a and c
    assert [name for name, _ in row.precisions] == ["a", "c"]
    shared = {"objects": ("a", "a|b", "b", "|", "a|c")}
    assert classes_of(train.renumbered(shared), test.renumbered(shared)) == [
        "train, label 'objects': several a video, 3 classes: a (2), b (2), c (0)",
        "test, label 'objects': several a video, 3 classes: a (2), b (0), c (1)",
        "label 'objects': no test video has b: left out of the mean",
        "label 'objects': no training video has c, which count as guessed",
    ]


def test_files_of_scores_are_read_compared_and_drawn(tmp_path: Path, monkeypatch, capsys):
    scores, videos = networks()
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        path, _ = write_scores(Path(f"runs/good-{seed}"), scores, videos, seed=seed)
        write_scores(
            Path(f"runs/bad-{seed}"),
            {"trained": scores["untrained"]},
            videos,
            seed=seed,
            objective="{type: bevt}",
        )
    file = read_scores(path)
    assert file.scores["trained"] == tuple(scores["trained"])
    far = [replace(row, top1=-75.0, low=-97.6, high=-52.6, class_mean=-75.0) for row in scores["trained"][1:]]
    path, _ = write_scores(Path("far"), {"trained": [scores["trained"][0], *far]}, videos)
    assert read_scores(path).scores["trained"][1] == far[0]
    for seed in (0, 1):  # means over seeds far below 0, with intervals
        rows = [replace(row, top1=row.top1 - seed) for row in far]
        write_scores(Path(f"runs/far-{seed}"), {"trained": [scores["trained"][0], *rows]}, videos, seed=seed)
    assert (
        write_report(
            ["runs/far-0", "runs/far-1", "runs/bad-0"], out="far.html", console=Console(file=io.StringIO())
        )
        == 0
    )
    path = Path("runs/good-1/scores") / path.name
    record = json.loads(path.read_text())
    own = dict(scores["trained"][0].precisions)
    assert record["by_class"]["trained"] == [{"average_precision": own}, {}]
    differences = record["differences"]
    assert [row["measure"] for row in differences] == ["mAP", "R2"]
    console = Console(file=io.StringIO(), width=250)
    assert compare(["runs/good-0", "runs/bad-0"], console=console) == 0
    assert compare(["runs/good-0", "runs/good-1", "runs/bad-0", "runs/bad-1"], console=console) == 0
    said = console.file.getvalue()
    assert "objects mAP" in said
    assert "target:speed R2" in said
    points = 100 * (scores["untrained"][0].top1 - scores["trained"][0].top1)
    assert said.count(f"{points:+.1f}") == 2
    capsys.readouterr()
    assert compare(["runs/good-0", "runs/bad-0"], output="markdown") == 0
    said = capsys.readouterr().out
    assert "toy: mAP, R2 by what each video adds, and the second less the first in points, 120 videos" in said
    assert "gets right" not in said
    assert "mean absolute error in the target's unit" in said
    assert "target:speed mean absolute error" in said
    low, high = scores["trained"][1].mae_interval
    assert f"| {scores['trained'][1].mae:.3g} ({low:.3g} to {high:.3g}) |" in said
    assert compare(["runs/good-0"], output="csv") == 0
    row = [*csv.DictReader(io.StringIO(capsys.readouterr().out))][1]
    assert row["measure"] == "R2"
    assert float(row["mae"]) == scores["trained"][1].mae
    row = run_row(RunFolder(Path("runs/good-0")))
    assert row["toy.trained.objects.mAP"] == scores["trained"][0].top1
    assert row["toy.trained.target:speed.R2"] == scores["trained"][1].top1
    assert write_report(["runs/good-0", "runs/bad-0"], out="page.html", console=console) == 0
    page = Path("page.html").read_text()
    assert "objects mAP" in page
    assert "target:speed mean absolute error" in page
    told = ", ".join(f"{name} {100 * value:.0f} %" for name, value in own.items())
    assert f"toy, objects, average precision: {told}" in page
    assert "leads" in page


def test_a_list_of_sets_and_targets_is_scored_by_the_commands(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = sorted(write_takes(Path("videos"), {"left": 4, "rise": 4}, cameras=3))
    for part, some in (("train", files[::2]), ("test", files[1::2])):
        rows = []
        for path in some:
            camera, action, take = path.stem.split("_")
            sees = camera if action == "left" else f"{action}|{camera}"
            rows.append(f"{path.name},{sees},{int(camera[3:]) * 10 + 0.01 * int(take)}")
        Path(f"{part}.csv").write_text("# root: videos\npath,sees,target:place\n" + "\n".join(rows) + "\n")
    data = [f"data.{part}={{type: video_list, root: videos, list: {part}.csv}}" for part in ("train", "test")]
    views = "data.views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 32}"
    words = ["eval", "pixels", *data, views, "run.device=cpu", "run.workers=0"]
    assert main([*words, "--protocol", "linear", "evaluator.penalties=[1.0, 10.0]"]) == 0
    assert main([*words, "--protocol", "knn"]) == 0
    said = capsys.readouterr().out
    assert "sees mAP" in said
    assert "target:place R2" in said
    assert "train, label 'sees': several a video, 4 classes: cam0 (" in said
    sees, place = read_scores(Path("runs/pixels/scores/linear-step-000000.json")).scores["no weights"]
    assert (sees.measure, place.measure) == ("mAP", "R2")
    assert place.top1 > 0.9
    assert place.mae is not None
    assert place.mae < 3
    assert sees.top1 > sees.chance
    probe = ", ".join(word.removeprefix("data.").replace("=", ": ", 1) for word in (*data, views))
    recipe = recipe_text("classification").replace("augment:", f"  probe: {{{probe}}}\naugment:")
    Path("toy.yaml").write_text(recipe)
    assert main(["train", "toy.yaml", "schedule.steps=2", "run.knn_every_steps=2"]) == 0
    monitored = re.search("kNN: sees_mAP (.*) %  target:place_R2 (.*) %$", capsys.readouterr().out, re.M)
    metrics = [
        json.loads(line) for line in Path("runs/classification/metrics.jsonl").read_text().splitlines()
    ]
    found = {key: value for record in metrics for key, value in record.items() if key.startswith("knn_")}
    assert [f"{100 * value:.1f}" for value in found.values()] == [*monitored.groups()]
    assert [*found] == ["knn_sees_mAP", "knn_target:place_R2"]
    assert main([*words, "--protocol", "attentive"]) == 2
    assert "takes one class a video" in capsys.readouterr().err
    assert not list(Path("runs/pixels").rglob("*patches*"))  # refused before any were computed


def test_a_target_that_is_the_same_for_all_test_videos_ends_no_scores_and_no_training(
    tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    files = sorted(write_takes(Path("videos"), {"left": 3, "rise": 3}))
    for name, more in (("both", True), ("one", False)):
        for part, some in (("train", files[::2]), ("test", files[1::2])):
            rows = [
                f"{path.name},{n if part == 'train' else 7}" + (f",{path.stem[5:-2]}" if more else "")
                for n, path in enumerate(some)
            ]
            head = "path,target:age" + (",action" if more else "")
            Path(f"{name}-{part}.csv").write_text("\n".join([head, *rows]) + "\n")

    def data(name):
        return [f"{part}: {{type: video_list, root: videos, list: {name}-{part}.csv}}" for part in PARTS]

    views = "views: {type: uniform_clips, num_frames: 4, frame_stride: 1, size: 16}"
    words = [f"data.{line.replace(': ', '=', 1)}" for line in (*data("both"), views)]
    command = [
        "eval",
        "pixels",
        *words,
        "run.device=cpu",
        "run.workers=0",
        "--protocol",
        "knn",
        "--save-probe",
    ]
    assert main(command) == 0
    note = "left out: label 'target:age': all 6 test videos have the number 7"
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(note) == 1
    assert "left out: 'target:age' is a number: --save-probe takes one class a video Probe:" in said
    kept = json.loads(Path("runs/pixels/scores/knn-step-000000.json").read_text())
    assert [row["label"] for row in kept["scores"]["no weights"]] == ["action"]
    assert kept["notes"][0].startswith(note)
    assert [path.name for path in Path("runs/pixels/scores").glob("knn-*.safetensors")] == [
        "knn-action-step-000000.probe.safetensors"
    ]
    recipe, probes = recipe_text("classification"), {name: ", ".join([*data(name), views]) for name in KINDS}
    for name, probe_data in probes.items():
        Path("toy.yaml").write_text(recipe.replace("augment:", f"  probe: {{{probe_data}}}\naugment:"))
        assert main(["train", "toy.yaml", f"name={name}", "schedule.steps=2", "run.knn_every_steps=1"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("label 'target:age': all 6 test videos have the number 7") == 1
        assert ("knn_action" in Path(f"runs/{name}/metrics.jsonl").read_text()) == (name == "both")


FINETUNE = """
name: ft
objective: {type: classification}
batch_size: 4
train_views: {type: single_clip, num_frames: 4, frame_stride: 1, size: 16}
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 1}
run: {log_every_steps: 1, checkpoint_every_steps: 1}
"""


def test_training_on_classes_refuses_sets_and_numbers(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files, lists = write_takes(Path("videos"), {"left": 4, "rise": 4}, cameras=1), {}
    for part, some in (("train", files[::2]), ("test", files[1::2])):
        rows = [f"{path.name},{'a|b' if n % 2 else 'a'},{n},{n % 2}" for n, path in enumerate(some)]
        Path(f"{part}.csv").write_text("\n".join(["path,sees,target:age,side", *rows]) + "\n")
        lists[part] = f"{{type: video_list, root: videos, list: {part}.csv}}"
    recipe = recipe_text("classification").replace("num_classes: 10, label: digit", "num_classes: 2")
    Path("toy.yaml").write_text(recipe)
    Path("aged.yaml").write_text(recipe.replace("num_classes: 2", "num_classes: 2, label: 'target:age'"))

    def refused(*words):
        assert main([*words]) == 2
        return " ".join(capsys.readouterr().err.split())

    told = "objective 'classification' takes a label of one class a video, and"
    assert f"aged.yaml:2: objective.label: {told} 'target:age' is a number" in refused("check", "aged.yaml")
    source = f"data.video.source={lists['train']}"
    train = ["train", "toy.yaml", source, "data.video.test_source=null", "schedule.steps=1"]
    assert f"{told} 'sees' is a set" in refused(*train, "objective.label=sees")
    told = "balance: takes a label of one class a video, and 'sees' is a set"
    assert told in refused(*train, "objective.label=side", "data.video.balance=sees")
    assert main([*train, "objective.label=side"]) == 0
    Path("ft.yaml").write_text(FINETUNE)
    views = "data.views={type: uniform_clips, num_frames: 4, frame_stride: 1, size: 16}"
    data = [f"data.{part}={text}" for part, text in lists.items()]
    capsys.readouterr()
    assert main(["eval", "runs/classification", "--protocol", "ft.yaml", *data, views, "overlap=allow"]) == 0
    assert "left out: sees, target:age: ft takes labels of one class" in " ".join(
        capsys.readouterr().out.split()
    )
