"""What a file of scores holds beside the scores: classes, intervals, hashes; and what is said of classes."""

import hashlib
import json
from pathlib import Path

import pytest
from score_files import NAMES, scored, write_run

from vidssl.scoring.by_class import best_and_worst, confusion, counted
from vidssl.scoring.report import class_lines, score_tables
from vidssl.scoring.score_file import find_scores

TRUTH = [0, 0, 0, 1, 1, 2, 2, 2]
GUESS = [0, 0, 2, 1, 0, 2, 0, 0]


@pytest.fixture
def record(tmp_path: Path) -> dict:
    write_run(tmp_path / "a", TRUTH, GUESS)
    return json.loads((tmp_path / "a/scores/toy-step-000005.json").read_text())


def test_confusion_counts_true_classes_in_rows_and_named_ones_in_columns():
    matrix = confusion(TRUTH, GUESS, 4)
    assert matrix.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    assert counted(matrix) == ["0:2 2:1", "0:1 1:1", "0:2 2:1", ""]


def test_score_file_counts_videos_by_class(record):
    (row,) = record["by_class"]["trained"]
    assert row["videos"] == "3 2 3 0"
    assert row["right"] == "2 1 1 0"
    assert row["confusion"] == ["0:2 2:1", "0:1 1:1", "0:2 2:1", ""]
    assert record["classes"] == {"class": list(NAMES)}


def test_score_file_holds_hashes_of_its_own_texts(record):
    assert record["protocol_sha256"] == hashlib.sha256(record["protocol"].encode()).hexdigest()
    assert record["videos"]["test"]["sha256"] == record["card"]["videos.test.sha256"]


def test_score_file_is_read_as_it_was_written(tmp_path, record):
    (file,) = find_scores(tmp_path / "a")
    (score,) = file.scores["trained"]
    assert score == scored(TRUTH, GUESS)
    assert score.bootstrap.top1[0] < score.top1 < score.bootstrap.top1[1]
    assert score.class_mean == pytest.approx((2 / 3 + 1 / 2 + 1 / 3) / 3)
    assert file.videos == {"train": (8, 9), "test": (8, 9)}
    assert file.classes == {"class": NAMES}
    assert file.classes_of("class") == tuple(TRUTH)


def test_retrieval_has_no_confusion(tmp_path):
    write_run(tmp_path / "a", TRUTH, GUESS, kind="found")
    record = json.loads((tmp_path / "a/scores/toy-step-000005.json").read_text())
    assert set(record["by_class"]["trained"][0]) == {"videos", "right"}


def test_line_of_best_and_worst_classes_says_what_the_worst_are_taken_for():
    said = best_and_worst(scored(TRUTH, GUESS), TRUTH, NAMES)
    assert said == "class: best run 67 %; worst swim 33 % (as run)"
    many = best_and_worst(scored([0, 1, 2, 3], [0, 1, 2, 0]), [0, 1, 2, 3], NAMES)
    assert many == "class: best run 100 %, jump 100 %; worst fly 0 % (as run)"
    assert best_and_worst(scored([0, 1, 2], [0, 1, 2]), [0, 1, 2], NAMES) == "class: all of 3 classes 100 %"


def test_lines_of_classes_are_of_the_first_setting_and_of_frames_in_order(tmp_path):
    _, videos = write_run(tmp_path / "a", TRUTH, GUESS)
    rows = [scored(TRUTH, GUESS, setting="k=1"), scored(TRUTH, TRUTH, setting="k=5")]
    assert class_lines({"trained": rows, "untrained": rows}, videos["test"]) == [
        "class: best run 67 %; worst swim 33 % (as run)"
    ]


def test_two_classes_need_no_line(tmp_path):
    _, videos = write_run(tmp_path / "a", [0, 1], [0, 0])
    assert class_lines({"trained": [scored([0, 1], [0, 0])]}, videos["test"]) == []


def test_mean_over_classes_has_a_row_where_classes_are_of_unequal_size():
    def shown(truth: list[int], guess: list[int]) -> list[str]:
        (table,) = score_tables({"trained": [scored(truth, guess)]}, "toy")
        return list(table.columns[0].cells)

    assert shown(TRUTH, GUESS) == ["class"]  # 3, 2 and 3 videos, and the mean is the same
    assert shown([0, 0, 0, 1], [0, 0, 0, 0]) == ["class", "  mean over classes"]
    assert scored([0, 0, 0, 1], [0, 0, 0, 0]).class_mean == 0.5
