"""What the papers report: all of it is there, as printed, and a mistake in the file is named."""

import re
from pathlib import Path

import pytest

from vidssl.build.build import check_file
from vidssl.cli.main import main
from vidssl.config.files import find, spec_files
from vidssl.config.published import Published, load_published, published_path
from vidssl.errors import UsageError

# rows of each results table, counted in the papers
ROWS = {
    "bevt": {1: 6, 2: 3, 3: 12, 4: 6, 5: 15, 6: 5, 7: 3, 8: 3, 9: 10},
    "svt": {1: 16, 2: 4, 3: 3, 4: 6, 5: 3, 6: 2, 7: 2, 8: 2},
    "vimpac": {1: 10, 6: 5, 7: 4, 8: 4, 9: 3, 10: 4, 11: 4, 12: 4, 13: 4, 14: 4, 15: 6, 16: 5},
}  # fmt: skip

# paper and table, row, data set or metric, words that are said of the number, its value: read off the papers
SPOTS = """
bevt 1 | 1 | SSv2 | Image Sup IN-1K | 66.3
bevt 1 | 3 | Diving48 | BEVT-I | 81.2
bevt 1 | 5 | K400 | HowTo100M | 75.1
bevt 1 | 6 | K400 | BEVT IN-1K+K400 | 80.6
bevt 2 | 1 | K400 | shuffled | 77.8
bevt 2 | 2 | SSv2 | single frame | 6.3
bevt 2 | 3 | Diving48 | shuffled | 50.4
bevt 3 | 3 | SSv2 | TSM-RGB 62 6 | 63.3
bevt 3 | 8 | SSv2 | Mformer-L IN-21K+K400 1185 | 68.1
bevt 3 | 12 | SSv2 | BEVT PeCo 321 | 71.4
bevt 4 | 1 | Diving48 | SlowFast R101 53.3 | 77.6
bevt 4 | 3 | Diving48 | TQN | 81.8
bevt 4 | 5 | Diving48 | BEVT DALL-E 88.1 | 86.7
bevt 5 | 2 | K400 | I3D 108 | 72.1
bevt 5 | 9 | K400 | Mformer 369.5 30 | 79.7
bevt 5 | 10 | K400 | 4218 1 | 78.6
bevt 5 | 15 | K400 | PeCo 282 12 | 81.1
bevt 6 | 2 | SSv2 | BEVT-V no | 67.1
bevt 6 | 3 | Diving48 | BEVT-V yes | 85.2
bevt 6 | 4 | K400 | BEVT no | 78.5
bevt 7 | 1 | Diving48 | BEVT-V | 85.2
bevt 7 | 2 | SSv2 | BEVT K400 | 70.3
bevt 7 | 3 | K400 | IN-1K | 80.6
bevt 8 | 1 | SSv2 | Image Sup | 57.6
bevt 8 | 2 | Diving48 | BEVT-I | 77.2
bevt 8 | 3 | K400 | TimeSformer PeCo | 77.1
bevt 9 | 1 | SSv2 | tube 0.5T-T 40 | 61.5
bevt 9 | 5 | K400 | 0.25T-0.75T | 69.5
bevt 9 | 8 | SSv2 | Random-3D | 59.1
bevt 9 | 10 | K400 | Random-Frame 50 | 70.9
svt 1 | 1 | UCF101 | MemDPC linear 64 | 54.1
svt 1 | 6 | HMDB51 | VideoMoCo linear | 49.2
svt 1 | 9 | UCF101 | CVRL fine-tuning 800 | 92.2
svt 1 | 15 | HMDB51 | CORP fine-tuning | 68.0
svt 1 | 16 | UCF101 | 0.59 20 linear | 90.8
svt 2 | 1 | K400 | CVRL R3D-101 fine-tuning | 70.4
svt 2 | 3 | K400 | CORP linear | 66.6
svt 2 | 4 | K400 | ViT-B fine-tuning | 78.1
svt 3 | 1 | SSv2 | MoDist linear | 16.6
svt 3 | 2 | SSv2 | CORP fine-tuning | 48.8
svt 3 | 3 | SSv2 | linear | 18.3
svt 4 | 2 | UCF101 | no yes | 81.95
svt 4 | 4 | HMDB51 | yes no | 51.23
svt 4 | 5 | UCF101 | yes no | 84.71
svt 5 | 1 | UCF101 | yes no | 73.81
svt 5 | 2 | HMDB51 | no yes | 42.59
svt 5 | 3 | HMDB51 | yes | 52.17
svt 6 | 1 | UCF101 | interval | 82.24
svt 6 | 1 | HMDB51 | interval | 50.1
svt 6 | 2 | UCF101 | motion | 84.64
svt 7 | 1 | UCF101 | no | 84.2
svt 7 | 1 | HMDB51 | no | 52.1
svt 7 | 2 | HMDB51 | yes | 52.17
svt 8 | 1 | HMDB51 | no | 52.17
svt 8 | 2 | UCF101 | yes | 84.8
svt 8 | 2 | HMDB51 | yes | 53.22
vimpac 1 | 1 | HMDB51 | K400 Sup. | 82.5
vimpac 1 | 3 | K400 | space-only | 77.6
vimpac 1 | 6 | UCF101 | MIL-NCE V+T | 91.3
vimpac 1 | 10 | Diving48 | VIMPAC HT | 85.5
vimpac 1 | 10 | K400 | VIMPAC | 75.3
vimpac 6 | 2 | UCF101 | 63.0 21.0 | 75.0
vimpac 6 | 4 | contrastive loss | 119.7 | 1.0
vimpac 6 | 5 | mask accuracy | 24 1024 210.1 5.0 | 18.7
vimpac 7 | 1 | SSv2 | no | 1.2
vimpac 7 | 2 | Diving48 | no yes | 26.3
vimpac 7 | 3 | K400 | yes no | 53.7
vimpac 7 | 4 | HMDB51 | yes | 37.8
vimpac 8 | 1 | mask accuracy | block 128 | 17.6
vimpac 8 | 2 | UCF101 | i.i.d. 128 | 63.5
vimpac 8 | 4 | mask accuracy | i.i.d. 256 | 19.5
vimpac 9 | 1 | mask accuracy | block 4 11.9 | 17.9
vimpac 9 | 2 | UCF101 | 5 14.5 | 68.3
vimpac 9 | 3 | UCF101 | 6 17.0 | 67.3
vimpac 10 | 1 | UCF101 | any | 69.4
vimpac 10 | 2 | contrastive loss | 30 | 0.77
vimpac 10 | 4 | UCF101 | 0 | 66.7
vimpac 11 | 2 | contrastive loss | 255 | 1.3
vimpac 11 | 3 | UCF101 | 511 | 70.4
vimpac 11 | 4 | mask accuracy | 1023 | 17.0
vimpac 12 | 1 | UCF101 | no | 57.1
vimpac 12 | 2 | contrastive loss | no yes | 1.08
vimpac 12 | 3 | UCF101 | yes no | 67.4
vimpac 13 | 1 | UCF101 | TxHxW post 12.6 | 65.9
vimpac 13 | 3 | UCF101 | T,H,W pre 35.8 | 69.0
vimpac 13 | 4 | UCF101 | T,H|W pre | 67.6
vimpac 14 | 2 | contrastive loss | 10 128 16.5 | 0.96
vimpac 14 | 3 | mask accuracy | 5 256 8.4 | 10.8
vimpac 14 | 4 | UCF101 | 4.4 | 78.1
vimpac 15 | 1 | UCF101 | block 11.9 | 66.8
vimpac 15 | 4 | mask accuracy | i.i.d. 11.9 | 25.6
vimpac 15 | 6 | UCF101 | i.i.d. 17.0 | 64.0
vimpac 16 | 1 | mask accuracy | 0.0 | 17.6
vimpac 16 | 2 | UCF101 | 0.5 | 70.2
vimpac 16 | 5 | contrastive loss | only | 1.07
""".strip().splitlines()
TABLES = sorted({line.split(" | ")[0] for line in SPOTS})


@pytest.fixture(scope="module")
def published() -> Published:
    return load_published()


def test_every_row_of_every_results_table_is_there(published):
    found = {paper: {} for paper in ROWS}
    for table in published.tables:
        found[table.paper][int(table.number)] = len(table.rows)
    assert found == ROWS
    assert sum(len(list(table.numbers())) for table in published.tables) == 358


def test_every_table_is_spot_checked_three_times_or_more():
    assert sorted(f"{paper} {table}" for paper, tables in ROWS.items() for table in tables) == TABLES
    assert all(sum(line.startswith(f"{table} |") for line in SPOTS) >= 3 for table in TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_numbers_are_those_of_the_paper(published, table):
    (found,) = (t for t in published.tables if f"{t.paper} {t.number}" == table)
    numbers = list(found.numbers())
    for line in (line for line in SPOTS if line.startswith(f"{table} |")):
        _, row, name, words, value = line.split(" | ")
        same = [
            number.value
            for number in numbers
            if number.row == int(row)
            and name in (number.data_set, number.metric)
            and set(words.split()) <= set(" ".join((number.method, *number.settings.values())).split())
        ]
        assert float(value) in same, line


ABLATIONS = {"bevt": (1, 6, 7, 8, 9), "svt": range(4, 9), "vimpac": range(6, 17)}


@pytest.mark.parametrize("paper", ABLATIONS)
def test_grids_of_the_papers_state_every_row_of_every_ablation(published, paper):
    """The numbers of a row stand together: behind a cell, or at the top where it trains nothing."""
    comments = []
    for path in (published_path().parents[1] / "recipes/grids/paper").glob(f"{paper}_*.yaml"):
        top, _, cells = path.read_text().partition("\nname: ")
        behind = (line.partition(" # ")[2] for line in cells.splitlines())
        comments += [set(map(float, re.findall(r"\d+\.\d+", text))) for text in (top, *behind)]
    rows = [
        (f"Table {table.number}", row.cells, set(row.values) - {None})
        for table in published.tables
        if table.paper == paper and int(table.number) in ABLATIONS[paper]
        for row in table.rows
    ]
    assert len(rows) == sum(ROWS[paper][number] for number in ABLATIONS[paper])
    for table, cells, values in rows:
        # a row of VIMPAC's Table 13 is two trainings
        parts = [{value} for value in values] if (paper, table) == ("vimpac", "Table 13") else [values]
        assert all(any(part <= found for found in comments) for part in parts), (table, cells, values)


def test_numbers_are_in_their_range(published):
    for table in published.tables:
        for number in table.numbers():
            assert 0 < number.value < (5 if number.metric == "contrastive loss" else 100)


def test_every_setting_that_the_file_explains_is_used(published):
    used = {name for table in published.tables for number in table.numbers() for name in number.settings}
    text = published_path().read_text()
    settings = text[text.index("\nsettings:\n") : text.index("\npapers:\n")].splitlines()[2:]
    assert {line.split(":")[0].strip() for line in settings if line} == used | {"method"}


def test_papers_and_data_sets_are_chosen_by_name(published):
    chosen = published.chosen(["SVT"], ["hmdb-51"])
    assert {table.paper for table in chosen} == {"svt"}
    assert [table.number for table in chosen] == ["1", "4", "5", "6", "7", "8"]
    assert {number.data_set for table in chosen for number in table.numbers()} == {"HMDB51"}
    assert len(chosen[0].rows) == 16
    assert [head["evaluation"] for head in chosen[0].heads] == ["linear", "fine-tuning"]
    assert published.chosen() == published.tables


def test_rows_that_name_their_data_set_are_chosen_too(published):
    tables = {(table.paper, table.number): table for table in published.chosen(["bevt"], ["SSv2"])}
    assert [row.cells for row in tables["bevt", "2"].rows] == [("SSv2",)]
    assert ("bevt", "4") not in tables


def test_a_row_keeps_its_number_where_others_fall_away(published):
    (table,) = (t for t in published.chosen(["vimpac"], ["Diving48"]) if t.number == "1")
    assert [row.number for row in table.rows] == [2, 10]


@pytest.mark.parametrize(
    ("papers", "data_sets", "says"),
    [
        (["svd"], [], "no paper 'svd' is quoted. Did you mean 'svt'?"),
        ([], ["UCF"], "no data set 'UCF' is quoted. Did you mean 'UCF101'?"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(published, papers, data_sets, says):
    with pytest.raises(UsageError) as error:
        published.chosen(papers, data_sets)
    assert says in str(error.value)


SMALL = """data_sets: {K400: Kinetics-400}
metrics: {top-1: accuracy}
settings: {method: name, backbone: network}
papers:
  mine:
    title: Mine
    tables:
      1:
        title: first
        all: {data_set: K400}
        columns: [method, backbone]
        values:
        - {metric: top-1}
        rows:
        - [A, ViT, 70.1]
        - [B, null, 60]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "published.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "columns: [method, backbone]",
            "columns: [method, backbon]",
            "'backbon' is not among the file's 'settings'. Did you mean 'backbone'?",
        ),
        ("all: {data_set: K400}", "all: {data_set: K40}", "'K40' is not among the file's 'data_sets'. Did"),
        (
            "metric: top-1}",
            "metric: top1}",
            "'top1' is not among the file's 'metrics'. Did you mean 'top-1'?",
        ),
        ("[A, ViT, 70.1]", "[A, ViT]", "has 2 entries, expected 2 (method, backbone) and 1 number"),
        ("[A, ViT, 70.1]", "[A, ViT, seventy]", "got 'seventy'"),
        ("[A, ViT, 70.1]", "[A, ViT, true]", "expected a number"),
        ("[A, ViT, 70.1]", "[A, ViT, null]", "a row without a number"),
        ("[A, ViT, 70.1]", "[null, ViT, 70.1]", "expected a word or a number, got nothing"),
        ("all: {data_set: K400}", "all: {data_set: K400, backbone: ViT}", "'backbone' is given twice"),
        ("        all: {data_set: K400}\n", "", "neither 'all' nor 'columns' nor this gives the data_set"),
        ("tables:", "tabels:", "unknown key. Did you mean 'tables'?"),
        ("rows:", "row:", "unknown key. Did you mean 'rows'?"),
        ("metrics: {top-1: accuracy}\n", "", "missing 'metrics'"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, old, new, says):
    assert SMALL.count(old) == 1
    path = written(tmp_path, SMALL.replace(old, new))
    with pytest.raises(UsageError) as error:
        load_published(path)
    said = str(error.value)
    assert says in said
    assert f"{path}:" in said
    assert "\n" not in said


def test_a_small_file_is_read(tmp_path):
    published = load_published(written(tmp_path, SMALL))
    numbers = [number for table in published.tables for number in table.numbers()]
    assert [(n.method, n.settings, n.value) for n in numbers] == [
        ("A", {"backbone": "ViT"}, 70.1),
        ("B", {}, 60.0),
    ]


def test_published_numbers_are_no_protocol(tmp_path, monkeypatch):
    assert "published" not in spec_files("evaluation")
    with pytest.raises(UsageError, match="no such protocol"):
        find("evaluation", "published")


def test_own_file_in_the_working_folder_comes_first_and_check_reads_it(tmp_path, monkeypatch, capsys):
    shipped = published_path()
    monkeypatch.chdir(tmp_path)
    assert published_path() == shipped
    (tmp_path / "evaluation").mkdir()
    path = written(tmp_path / "evaluation", SMALL)
    assert published_path() == path
    assert main(["check", "evaluation/published.yaml"]) == 0
    path.write_text(SMALL.replace("rows:", "row:"))
    assert main(["check", "evaluation/published.yaml"]) == 2
    assert "evaluation/published.yaml:14: papers.mine.tables.1.row: unknown key" in capsys.readouterr().err
    check_file("evaluation", shipped)
