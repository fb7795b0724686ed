"""What a file of scores holds beside the scores: classes, intervals, hashes; and what is said of classes."""

import hashlib
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from score_files import NAMES, scored, write_run

from vidssl.evaluate.report import class_lines, difference_table, fitting, probe_lines, score_tables
from vidssl.evaluate.score_file import find_scores
from vidssl.evaluate.subject import scores_of
from vidssl.evaluators.differences import (
    LabelledVideos,
    best_and_worst,
    confusion,
    counted_rows,
    network_differences,
)
from vidssl.evaluators.statistics import paired_difference

TRUTH = [0, 0, 0, 1, 1, 2, 2, 2]
GUESS = [0, 0, 2, 1, 0, 2, 0, 0]


@pytest.fixture
def record(tmp_path: Path) -> dict:
    write_run(tmp_path / "a", TRUTH, GUESS)
    return json.loads((tmp_path / "a/scores/toy-step-000005.json").read_text())


def test_confusion_counts_true_classes_in_rows_and_named_ones_in_columns():
    matrix = confusion(TRUTH, GUESS, 4)
    assert matrix.tolist() == [[2, 0, 1, 0], [1, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    assert counted_rows(matrix) == ["0:2 2:1", "0:1 1:1", "0:2 2:1", ""]


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
    assert score.low < score.top1 < score.high
    assert score.class_interval is not None
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


def shown(*tables, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for each in tables:
        console.print(each)
    return console.export_text()


def test_networks_are_marked_where_they_differ_beyond_chance_and_the_difference_has_its_interval():
    truth = [0, 1, 2] * 40
    wrong = [(number + 1) % 3 for number in truth]
    rows = {
        "trained": [scored(truth, [*truth[:100], *wrong[100:]]), scored(truth, wrong, label="other"),
                    scored(truth, [*truth[:60], *wrong[60:]], label="even")],
        "untrained": [scored(truth, [*truth[:50], *wrong[50:]]), scored(truth, truth, label="other"),
                      scored(truth, [*wrong[:60], *truth[60:]], label="even")],
    }  # fmt: skip
    tested = {label: LabelledVideos(truth) for label in ("class", "other", "even")}
    found = network_differences(rows, tested)
    assert [each.mark for each in found] == ["+", "-", ""]
    first = paired_difference([n < 50 for n in range(120)], [n < 100 for n in range(120)])
    assert found[0].found == first
    said = shown(*score_tables(rows, "toy", found), difference_table(found, list(rows), tested))
    assert "83.3 + (75.7 to 88.9)" in said
    assert "0.0 - (0.0 to 3.1)" in said
    assert f"+41.7 | {100 * first.low:+.1f} to {100 * first.high:+.1f}" in re.sub(r" *\u2502 *", " | ", said)
    assert "p adjusted for 3 tests (Holm)" in re.sub(r"\s+", " ", said)
    assert "120 videos" in said
    assert network_differences({"no weights": rows["trained"]}, tested) == []


@pytest.mark.parametrize("width", [80, 70])
def test_no_number_of_a_table_is_broken(width):
    truth, guess = [0, 1, 2] * 40, [0, 1, 1] * 40
    groups = [number // 6 for number in range(120)]
    setting = "k=200, 5 % of labels"
    rows = {name: [scored(truth, guess, label="direction", setting=setting, groups=groups)]
            for name in ("finetuned", "from scratch")}  # fmt: skip
    tested = {"direction": LabelledVideos(truth, groups)}
    console = Console(width=width, file=io.StringIO())
    found = network_differences(rows, tested)
    tables = fitting(rows, "toy", found, console)
    said = shown(*tables, difference_table(found, list(rows), tested), width=width)
    assert said.count("66.7") == 2
    low = f"({100 * rows['finetuned'][0].low:.1f} to {100 * rows['finetuned'][0].high:.1f})"
    assert said.count(low) == 2
    assert f"{100 * found[0].found.low:+.1f} to {100 * found[0].found.high:+.1f}" in said
    assert "120 in 20" in said
    assert all(len(line) <= width for line in said.splitlines())


def test_the_mean_over_classes_leads_where_classes_are_unbalanced():
    truth = [0] * 60 + [1] * 10 + [2] * 10
    row = scored(truth, [0] * 80, chosen="penalty 1000 (the largest tried)")
    (table,) = score_tables({"trained": [row]}, "toy")
    assert list(table.columns[0].cells) == ["class, mean over classes", "  top-1"]
    assert [str(cell).partition(" ")[0] for cell in table.columns[1].cells] == ["33.3", "75.0"]
    assert list(table.columns[2].cells) == ["33.3", "75.0"]  # chance
    assert probe_lines({"trained": [row]}) == [
        "class, chosen on training videos: penalty 1000 (the largest tried): trained",
        "class: the trained network's probe names one class for all 80 test videos",
    ]
    assert not scored([0, 1, 2, 0, 0], [0] * 5).unbalanced  # so few are uneven by chance


def test_scores_of_a_run_whose_folder_of_them_was_removed_go_into_the_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001.safetensors"
    assert scores_of(checkpoint) == (checkpoint.parent, checkpoint.parent), "it lies in no run"
    checkpoint.parent.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").touch()
    assert scores_of(checkpoint) == (tmp_path / "run", tmp_path / "run" / "scores")
