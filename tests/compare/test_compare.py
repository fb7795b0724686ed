"""``vidssl compare``: runs side by side, seeds as one, differences, and what papers report."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import score_files
from rich.console import Console
from rich.table import Table
from scipy import stats
from score_files import PROTOCOL, write_run

from vidssl.cli.main import main
from vidssl.compare import runs
from vidssl.compare.runs import by_protocol, compare, quoted_grid, run_grids
from vidssl.compare.tables import (
    Grid,
    difference_grids,
    drawn,
    latex,
    latex_text,
    markdown,
    recipe_grids,
    run_groups,
    score_grid,
    together,
)
from vidssl.config.published import Published, load_published
from vidssl.config.recipe import load_recipe
from vidssl.errors import UsageError
from vidssl.evaluate.score_file import find_scores, read_scores
from vidssl.evaluators.statistics import accuracy, holm, method_difference, paired_difference

TRUTH = [0, 1, 2] * 10


def guess(right: int) -> list[int]:
    """Classes of which the first so many are right."""
    return [*TRUTH[:right], *((number + 1) % 3 for number in TRUTH[right:])]


@pytest.fixture(scope="module")
def published() -> Published:
    return load_published()


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Published) -> None:
    """In an empty folder; the package's file of quoted numbers is read once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_published", lambda: published)


def write_seeds(name: str, rights: list[int], *, objective: str = "{type: svt}", first: int = 0) -> list[str]:
    """A run for each number of right answers."""
    names = [f"runs/{name}-{seed}" for seed in range(first, first + len(rights))]
    for seed, (run, right) in enumerate(zip(names, rights, strict=True), start=first):
        write_run(Path(run), TRUTH, guess(right), seed=seed, objective=objective)
    return names


def files_of(*runs: str):
    return [file for run in runs for file in find_scores(Path(run))]


def output_of(capsys: pytest.CaptureFixture[str], *runs: str, **keys) -> str:
    assert compare(runs, **keys, console=Console(width=200)) == 0
    return capsys.readouterr().out


def cell(grid: Grid, row: str, column: str) -> str:
    (found,) = (line for line in grid.rows if line[0] == row)
    return found[grid.heads.index(column)]


def test_runs_that_differ_in_their_seed_are_one_with_mean_and_t_interval():
    runs = write_seeds("svt", [15, 18, 24])
    (group,) = run_groups(files_of(*runs), each=False)
    assert group.name == "runs/svt-{0,1,2}"
    assert group.seeds == ("0", "1", "2")
    values = [50.0, 60.0, 80.0]
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    grid = score_grid([group])
    assert cell(grid, "class", "runs/svt-{0,1,2}, trained") == f"63.3 ± {half:.1f}"
    assert cell(grid, "seeds", "runs/svt-{0,1,2}, trained") == "3"
    assert "for several seeds ± half the 95 % t-interval of the mean" in grid.title
    assert "in brackets" not in grid.title


def test_each_shows_seeds_by_themselves():
    runs = write_seeds("svt", [15, 18])
    assert [group.name for group in run_groups(files_of(*runs), each=True)] == runs
    titles = [grid.title for grid in run_grids(files_of(*runs), each=True)]
    assert "seeds" not in titles[0]
    assert len(titles) == 3
    (difference,) = (grid for grid in run_grids(files_of(*runs), each=True) if "recipes" in grid.title)
    assert difference.rows == (("seed", "0", "1"),)


def test_a_seed_counts_once_and_what_differs_otherwise_stands_apart():
    one = write_seeds("svt", [15, 18])
    again = write_seeds("again", [20])  # seed 0 of the same recipe
    other = write_seeds("bevt", [21], objective="{type: bevt}", first=2)
    write_run(Path("runs/later"), TRUTH, guess(22), seed=7, step=9)
    groups = run_groups(files_of(*one, *again, *other, "runs/later"), each=False)
    assert [group.name for group in groups] == ["runs/svt-{0,1}", *again, *other, "runs/later"]


def test_what_has_no_seed_stands_apart():
    path, _ = write_run(Path("runs/a"), TRUTH, guess(3))
    text = path.read_text().replace("seed: 0\\n", "")
    path.write_text(text)
    files = [*files_of("runs/a"), *files_of("runs/a")]
    assert [len(group.files) for group in run_groups(files, each=False)] == [1, 1]
    assert run_groups(files, each=False)[0].seeds == ("-",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["runs/a"], "runs/a"),
        (["runs/a", "runs/a-2"], "runs/a{,-2}"),
        (["runs/s0/b", "runs/s1/b"], "runs/s{0,1}/b"),
        (["aa", "aaa"], "aa{,a}"),
    ],
)
def test_names_together_are_those_a_shell_would_make(names, expected):
    assert together(names) == expected


def differences(*runs: str) -> list[Grid]:
    return difference_grids([run_groups(files_of(*runs), each=False)])[0]


def test_groups_of_seeds_are_compared_by_seeds_and_videos_with_welch_beside():
    rights = ([15, 18, 24], [24, 27])
    one, other = write_seeds("svt", rights[0]), write_seeds("bevt", rights[1], objective="{type: bevt}")
    (grid,) = differences(*one, *other)
    answers = [[[a == b for a, b in zip(guess(n), TRUTH, strict=True)] for n in some] for some in rights]
    found = method_difference(*answers)
    assert found is not None
    assert cell(grid, "class", "difference") == "+21.7"
    assert cell(grid, "class", "95 % interval") == f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    assert cell(grid, "class", "p") == cell(grid, "class", "p adjusted") == f"{found.p:.3f}"
    expected = stats.ttest_ind([0.8, 0.9], [0.5, 0.6, 0.8], equal_var=False)
    assert cell(grid, "class", "Welch's p, seeds alone") == f"{expected.pvalue:.3f}"
    assert "30 videos; two seeds hardly show" in grid.title
    assert "p adjusted for 1 test (Holm)" in grid.title


def test_tables_of_differences_fit_into_80_columns_without_a_broken_number_or_word(capsys):
    one, other = write_seeds("svt", [15, 18, 24]), write_seeds("bevt", [24, 27, 29], objective="{type: bevt}")
    assert compare((*one, *other), console=Console(width=80)) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    for word in ("difference", "interval", "adjusted", "Welch's", "+25.6"):
        assert word in said


def test_seeds_that_tie_are_said_to():
    one, other = write_seeds("svt", [15, 15, 15]), write_seeds("bevt", [15] * 3, objective="{type: bevt}")
    (grid,) = differences(*one, *other)
    assert grid.rows[0][1:] == (
        *("50.0 (seeds tie)",) * 2, "no test: all runs are alike", "-", "-", "-", "-"
    )  # fmt: skip
    assert "Welch: no p where the seeds of both tie" in grid.title


def test_every_test_that_is_made_counts_in_the_adjusted_p():
    for name, right in (("a", 18), ("b", 24), ("c", 27)):
        write_run(Path(f"runs/{name}"), TRUTH, guess(right), objective=f"{{type: {name}}}")
    grids = differences("runs/a", "runs/b", "runs/c")
    found = [paired_difference([n < 18 for n in range(30)], [n < k for n in range(30)]) for k in (24, 27)]
    assert [cell(grid, "class", "p") for grid in grids] == [f"{each.p:.3f}" for each in found]
    adjusted = [f"{each:.3f}" for each in holm([each.p for each in found])]
    assert [cell(grid, "class", "p adjusted") for grid in grids] == adjusted
    assert all("adjusted for 2 tests" in grid.title for grid in grids)


def test_videos_of_a_group_count_together_also_in_files_of_an_earlier_version(tmp_path):
    keys = [f"run/v_Run_g{number // 5:02d}_c{number % 5:02d}.avi" for number in range(30)]
    for name, right in (("a", 15), ("b", 25)):
        run = Path(f"runs/{name}")
        path, _ = write_run(run, TRUTH, guess(right), objective=f"{{type: {name}}}", keys=keys)
        record = json.loads(path.read_text())
        spans = {"top1": [0.1, 0.2], "top5": None, "class_mean": [0.1, 0.2]}
        for row in record["scores"]["trained"]:  # as they were written before
            for key in ("top5_interval", "class_interval", "class_chance", "unbalanced", "chosen"):
                del row[key]
            row["bootstrap"] = spans
            del row["num_groups"]
        del record["groups"], record["differences"]
        path.write_text(json.dumps(record))
    files = files_of("runs/a", "runs/b")
    groups = [number // 5 for number in range(30)]
    right = [[n < k for n in range(30)] for k in (15, 25)]
    (score,) = files[0].scores["trained"]
    assert score.num_groups == 6
    expected = accuracy(right[0], None, groups)
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high))
    (grid,) = differences("runs/a", "runs/b")
    assert "30 videos in 6 groups" in grid.title
    assert cell(grid, "class", "p") == f"{paired_difference(*right, None, groups).p:.3f}"
    assert float(cell(grid, "class", "p")) > 0.05 > paired_difference(*right).p
    table = score_grid(run_groups(files, each=False))
    assert cell(table, "runs/a, trained", "groups") == "6"


def test_one_run_is_not_tested_against_a_group_of_seeds():
    one, other = write_seeds("svt", [15, 18]), write_seeds("bevt", [24], objective="{type: bevt}")
    (grid,) = differences(*one, *other)
    assert "no test of one run against several" in grid.title
    assert grid.rows == ()


def test_two_runs_are_compared_on_the_same_videos():
    write_run(Path("runs/a"), TRUTH, guess(18))
    other = guess(24)
    other[0] = 1
    write_run(Path("runs/b"), TRUTH, other, objective="{type: bevt}")
    (grid,) = differences("runs/a", "runs/b")
    ((_, only_one, only_two, difference, interval, p, adjusted),) = grid.rows
    assert (only_one, only_two, difference) == ("1", "6", "+16.7")
    right = [[a == b for a, b in zip(answers, TRUTH, strict=True)] for answers in (guess(18), other)]
    found = paired_difference(*right)
    assert p == adjusted == f"{found.p:.3f}"
    assert interval == f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"


def test_scores_of_one_run_have_intervals_and_facts_beside_them():
    write_run(Path("runs/a"), TRUTH, {"trained": guess(15), "untrained": guess(3)})
    write_run(Path("runs/b"), TRUTH, {"trained": guess(21), "untrained": guess(3)}, objective="{type: bevt}")
    grid = score_grid(run_groups(files_of("runs/a", "runs/b"), each=False))
    assert grid.heads == ("run", "step", "test videos", "class")  # more runs than scores: they go down
    assert [row[0] for row in grid.rows] == [
        "runs/a, trained", "runs/b, trained", "runs/a, untrained", "runs/b, untrained", "chance %"
    ]  # fmt: skip
    assert grid.rows[0] == ("runs/a, trained", "5", "30 of 31", "50.0 + (33 to 67)")
    assert grid.rows[-1] == ("chance %", "", "", "33.3")
    assert re.search(r"^toy \(card [0-9a-f]{8}\): scores in %, in brackets the 95 % interval", grid.title)


def test_means_over_classes_have_a_line_where_they_are_others():
    truth = [0] * 9 + [1]
    write_run(Path("runs/a"), truth, [0] * 10)
    grid = score_grid(run_groups(files_of("runs/a"), each=False))
    assert cell(grid, "class mean over classes", "runs/a, trained").startswith("50.0 (")
    assert cell(grid, "class", "runs/a, trained").startswith("90.0 (")


def test_recipes_of_groups_differ_in_what_is_no_seed():
    one, other = write_seeds("svt", [15, 18]), write_seeds("bevt", [24, 20], objective="{type: bevt}")
    (grid,) = recipe_grids(run_groups(files_of(*one, *other), each=False))
    assert grid.rows == (("objective.type", "svt", "bevt"),)
    three = write_seeds("more", [24, 20, 21], objective="{type: more}")
    (grid,) = recipe_grids(run_groups(files_of(*one, *three), each=False))
    assert grid.rows == (("seed", "0, 1", "0, 1, 2"), ("objective.type", "svt", "more"))


def test_unlike_protocols_are_refused_with_the_difference():
    write_run(Path("runs/a"), TRUTH, guess(15))
    write_run(Path("runs/b"), TRUTH, guess(15), protocol=PROTOCOL.replace("k: 20", "k: 5"))
    for output in ("table", "csv"):
        with pytest.raises(UsageError, match=r"evaluator\.k is 20 and 5"):
            compare(("runs/a", "runs/b"), output=output)


def test_the_refusal_lists_what_differs_and_the_command_that_mends_it():
    write_run(Path("runs/a"), TRUTH, guess(15))
    other = PROTOCOL.replace("k: 20", "k: 5, temperature: 0.1, backend: torch").replace("last", "all")
    other = other.replace("root: here", "root: here, part: train, decoder: x, extensions: [mp4], pattern: y")
    write_run(Path("runs/b"), TRUTH, guess(15), protocol=other)
    with pytest.raises(UsageError) as caught:
        compare(("runs/a", "runs/b"))
    first, *keys, more, last = str(caught.value).splitlines()
    assert first.endswith(":")
    assert keys[0] == "  evaluator.k is 20 and 5"
    assert len(keys) == 5
    assert more == "  and 2 more"
    command = "vidssl eval runs/b --protocol toy data=runs/a evaluator.k=20 layers=last"
    assert last.endswith(f"if its network takes those clips: {command}")


def test_csv_holds_every_run_with_all_intervals_and_its_card(capsys):
    runs = write_seeds("svt", [15, 18])
    rows = list(csv.DictReader(io.StringIO(output_of(capsys, *runs, output="csv"))))
    assert [(row["run"], row["seed"], float(row["top1"])) for row in rows] == [
        (runs[0], "0", 0.5), (runs[1], "1", 0.6)
    ]  # fmt: skip
    assert float(rows[0]["low"]) < 0.5 < float(rows[0]["class_mean_high"])
    assert rows[0]["top5"] == rows[0]["top5_low"] == rows[0]["num_groups"] == ""
    assert rows[0]["card_sha256"] == rows[1]["card_sha256"]


def test_brackets_in_a_cell_are_not_taken_for_markup(capsys):
    write_run(Path("runs/a"), TRUTH, guess(15), objective="{type: svt, flags: [true, bold]}")
    write_run(Path("runs/b"), TRUTH, guess(15), objective="{type: svt, flags: [false]}")
    said = output_of(capsys, "runs/a", "runs/b")
    assert "[true, bold]" in said


def test_columns_of_numbers_stand_to_the_right():
    grid = Grid("t", ("a", "b", "c"), (("x", "50.0 (33 to 67)", "-"), ("y", "1.5 ± 0.2", "IN-1K")))
    table = drawn(grid)
    assert isinstance(table, Table)
    assert [column.justify for column in table.columns] == ["left", "right", "left"]


AWKWARD = Grid(
    r"100 % of a_b & {c} \ ~^ #1 $5",
    ("run", "top-1 %", "a|b"),
    (("runs/svt_{0,1}", "50.0 ± 3.2", "<3 × 4>"), ('"x"', "1.0", "[2, 16]")),
)


def test_latex_is_a_booktabs_table_with_everything_escaped():
    text = latex(AWKWARD)
    order = [text.index(word) for word in (r"\begin{table}", r"\toprule", r"\midrule", r"\bottomrule")]
    assert order == sorted(order)
    assert r"\begin{tabular}{lrl}" in text
    assert r"runs/svt\_\{0,1\} & 50.0 $\pm$ 3.2 & \textless{}3 $\times$ 4\textgreater{} \\" in text
    assert text.count(r"\\") == 3
    body = re.sub(r"\\[a-z]+(\{[a-z]*\})*(\{[lr]*\})?|\\[&%$#_{}]|\$\\(pm|times)\$|\\\\| & ", "", text)
    assert not re.search(r"[\\&%$#_^~<>|\"]", body), body
    assert text.isascii()


def test_latex_cannot_be_broken_by_any_character():
    """Every special character of TeX comes out escaped, once."""
    for character in '\\&%$#_{}~^<>|"':
        escaped = latex_text(f"a{character}b")
        assert re.fullmatch(r"a(\\[&%$#_{}]|\\text[a-z]+\{\})b", escaped), escaped


def test_a_grid_without_rows_is_its_title():
    grid = Grid("recipes: the same but for their names", ("key",), ())
    assert latex(grid) == "% recipes: the same but for their names\n"
    assert markdown(grid) == "recipes: the same but for their names\n"
    assert str(drawn(grid)) == "recipes: the same but for their names"


def test_latex_of_all_tables_is_balanced(capsys):
    runs = write_seeds("svt_x", [15, 18])
    text = output_of(capsys, *runs, output="latex", published=True, papers=("svt",))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1 + 8
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{([lr]+)\}", table)[1])
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)


def test_markdown_escapes_its_own_bars():
    assert r"| a\|b |" in markdown(AWKWARD)


def test_published_tables_are_marked_and_apart_from_measured_ones(capsys):
    runs = write_seeds("svt", [15])
    said = output_of(capsys, *runs, output="markdown", published=True, papers=("svt",), data_sets=("SSv2",))
    measured, quoted = said.split("quoted, not measured here: ")
    assert "runs/svt-0" in measured
    assert "59.6" not in measured
    assert "runs/svt-0" not in quoted
    assert quoted.startswith("Self-supervised Video Transformer")
    assert "| SVT (ours) | - | ViT-B | 2x3 | 59.6 | 18.3 |" in quoted


def test_published_tables_need_no_run_and_show_everything(capsys):
    said = output_of(capsys, published=True, output="markdown")
    assert said.count("quoted, not measured here") == 29
    assert said.count("\n|") - 2 * 29 == 158  # rows of all tables, without heads and lines


def test_quoted_values_keep_their_digits_and_say_what_they_are(published):
    tables = {(table.paper, table.number): table for table in published.tables}
    grid = quoted_grid(tables["vimpac", "6"], "VIMPAC")
    assert grid.heads[-3:] == (
        "pre-training, mask accuracy %", "pre-training, contrastive loss", "UCF101, fine-tuning, top-1 %"
    )  # fmt: skip
    assert [row[-2] for row in grid.rows] == ["1.06", "1.03", "1.02", "1.00", "0.98"]
    assert "Table 6, size of the model (method: VIMPAC; pretrain data: HT; epochs: 10" in grid.title
    resolution = quoted_grid(tables["vimpac", "14"], "VIMPAC")
    assert resolution.heads[-1] == "UCF101, fine-tuning, finetune size 256, finetune frames 10, top-1 %"


def test_quoted_columns_without_a_word_are_left_out(published):
    (table,) = (t for t in published.chosen(["vimpac"], ["Diving48"]) if t.number == "1")
    small = quoted_grid(table, "VIMPAC")
    assert small.heads[-1] == "Diving48, top-1 %"
    assert [row[0] for row in small.rows] == ["TimeSformer space-time", "VIMPAC"]


def test_quoted_csv_has_a_line_for_every_number(capsys):
    rows = list(csv.DictReader(io.StringIO(output_of(capsys, published=True, output="csv"))))
    assert len(rows) == 358
    (row,) = (
        r
        for r in rows
        if (r["quoted_from"], r["table"], r["row"], r["data_set"]) == ("bevt", "1", "6", "SSv2")
    )
    assert (row["method"], row["value"]) == ("BEVT", "70.6")
    assert (
        row["settings"]
        == "backbone: Video Swin-B; evaluation: fine-tuning; size: 224; pretrain_data: IN-1K+K400"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "got none"),
        ("runs/svt-0 --paper svt", "--paper chooses among what papers report: add"),
        ("runs/svt-0 --data-set K400", "--data-set chooses"),
        ("--published --paper swt", "no paper 'swt' is quoted. Did you mean 'svt'?"),
        ("runs/svt-0 --csv --published", "do not go into one CSV"),
    ],
)
def test_mistakes_are_one_line(words, says, capsys):
    write_seeds("svt", [15])
    assert main(["compare", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert (says in printed, printed.count("\n")) == (True, 1)


def test_options_of_the_command_line_reach_the_comparison(capsys):
    runs = write_seeds("svt", [15, 18])
    assert main(["compare", *runs, "--latex"]) == 0
    said = capsys.readouterr().out
    assert r"runs/svt-\{0,1\}" in said
    assert main(["compare", "--each", "--markdown", *runs]) == 0
    assert "only one of the two gets right" in capsys.readouterr().out
    assert main(["compare", "--published", "--data-set", "ssv2", "--paper", "svt", "--csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 1 + 5
    assert main(["compare", "--latex", "--csv", *runs]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_chance_is_that_of_top_1():
    names = score_files.NAMES
    try:
        score_files.NAMES = tuple("abcdefgh")  # top-5 is counted of more than five classes
        write_run(Path("runs/a"), TRUTH, guess(15))
    finally:
        score_files.NAMES = names
    grid = score_grid(run_groups(files_of("runs/a"), each=False))
    rows = {row[0]: row for row in grid.rows}
    assert rows["class"][-1] == "33.3"
    assert rows["class top-5"][-1] == ""
    assert rows["class top-5"][1].endswith(")")


def test_the_laptop_recipes_of_one_world_share_their_probe_data() -> None:
    """So that the README's ``vidssl compare runs/bevt runs/svt`` compares."""
    probes = [load_recipe(f"recipes/{name}.yaml").data.probe for name in ("bevt", "svt", "videomae")]
    for probe in probes:
        assert probe is not None
        assert [part.node for part in (probe.train, probe.test, probe.views)] == [
            part.node for part in (probes[0].train, probes[0].test, probes[0].views)
        ]


def test_scores_with_test_videos_in_train_say_so(tmp_path: Path) -> None:
    """And are compared with none that were made without."""
    allowed = PROTOCOL + "overlap: allow\n"
    one, _ = write_run(tmp_path / "one", [0, 1, 2, 3], [0, 1, 2, 3], protocol=allowed)
    two, _ = write_run(tmp_path / "two", [0, 1, 2, 3], [0, 1, 2, 3])
    assert "test videos may be in train" in run_grids([read_scores(one)], each=False)[0].title
    with pytest.raises(UsageError, match="overlap is allow and missing"):
        by_protocol([read_scores(one), read_scores(two)])


def test_checksums_of_videos_are_compared_where_both_have_them(tmp_path: Path) -> None:
    files = [read_scores(write_run(tmp_path / name, [0, 1], [0, 1])[0]) for name in "ab"]
    first, second = (
        replace(file, card={**file.card, "videos.test.content": content})
        for file, content in zip(files, "12", strict=True)
    )
    assert len(by_protocol([first, files[1]])) == 1  # an earlier version knew none
    with pytest.raises(UsageError, match=r"videos\.test\.content is 1 and 2"):
        by_protocol([first, second])


def test_a_summary_of_runs_by_protocols_opens_the_tables() -> None:
    for run, protocol, right in (("a", "linear", 20), ("a", "knn", 12), ("b", "linear", 15)):
        named = PROTOCOL.replace("name: toy", f"name: {protocol}")
        path, _ = write_run(Path(f"runs/{run}"), TRUTH, guess(right), protocol=named)
        path.rename(path.with_name(f"{protocol}-step-000005.json"))
    first = run_grids(files_of("runs/a", "runs/b"), each=False)[0]
    assert first.heads[0] == "run"
    assert [head.split(":")[0] for head in first.heads[1:]] == ["knn", "linear"]
    assert [row[0] for row in first.rows] == ["runs/a", "runs/b", "chance %"]
    assert first.rows[1][1] == "-", "b has no scores of knn"
    assert first.rows[0][1].startswith("40.0")
    assert run_grids(files_of("runs/b"), each=False)[0].heads[0] != "run"


def test_manifests_that_lie_elsewhere_are_no_difference_of_protocols() -> None:
    one, other = "data.train.manifest", "data.train.part"
    assert not runs._differs(one, {one: "a"}, {})
    assert runs._differs(other, {other: "train"}, {})


def test_scores_of_one_network_on_two_data_sets_stand_beside_those_of_either() -> None:
    here = PROTOCOL.replace("root: here", "root: here, part: train")
    write_run(Path("runs/pixels"), TRUTH, guess(9))
    path, _ = write_run(Path("runs/pixels"), TRUTH, guess(9))
    (path.parent / "earlier").mkdir()
    path.rename(path.parent / "earlier" / f"{path.stem}-12345678.json")
    write_run(Path("runs/pixels"), TRUTH, guess(15), protocol=here)
    write_run(Path("runs/a"), TRUTH, guess(20))
    write_run(Path("runs/b"), TRUTH, guess(20), protocol=here)
    top1 = {
        run: runs.alike(files_of(f"runs/{run}", "runs/pixels"))[1].scores["trained"][0].top1 for run in "ab"
    }
    assert top1 == {"a": 0.3, "b": 0.5}
