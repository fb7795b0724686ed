"""A folder of runs as a table, and files of scores held to their published schema."""

import csv
import io
import json
from pathlib import Path

import pytest
from score_files import write_run

from vidssl.cli.main import main
from vidssl.compare.runs import compare, runs_table
from vidssl.errors import UsageError

SCHEMA = Path(__file__).parents[2] / "docs" / "score_schema.json"


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "deeper/b")):
        run = Path("runs") / name
        write_run(run, [0, 1, 2, 3], {"trained": [0, 1, 2, number], "untrained": [0, 0, 0, 0]})
        (run / "environment.json").write_text(f'{{"started_unix": {number}}}')
        (run / "recipe.yaml").write_text(
            f"name: {name}\nseed: {number}\nobjective: {{type: svt, out_dim: 8}}\n"
        )
        (run / "metrics.jsonl").write_text(
            '{"step": 3, "loss": 2.0}\n{"step": 6, "loss": 1.5}\n{"step": 9, "lo'
        )


def test_the_table_has_a_row_for_each_run_in_the_order_they_began(capsys: pytest.CaptureFixture[str]) -> None:
    assert runs_table(as_csv=True, settings=True) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["run"], second["run"]) == ("runs/a", "runs/deeper/b")
    assert (first["objective"], first["seed"], first["loss"]) == ("svt", "0", "1.5")
    assert (first["toy.trained.class"], second["toy.trained.class"]) == ("0.75", "0.75")
    assert first["toy.untrained.class"] == "0.25"
    assert first["recipe.objective.out_dim"] == "8"
    assert runs_table() == 0
    assert "toy.class 75.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.yaml", b"a: ["),
        ("metrics.jsonl", b'{"step": 1, "loss": 2}\n\xff\xfe\n'),
        ("metrics.jsonl", b'{"step": 1,, }\n'),
        ("scores", b'{"scores": 3}'),
    ],
)
def test_a_damaged_file_of_one_run_spoils_no_table(file: str, content: bytes, capsys) -> None:
    path = Path("runs/a", file)
    (next(path.glob("*.json")) if path.is_dir() else path).write_bytes(content)
    runs_table(as_csv=True)
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["damaged"] == file
    assert (second["damaged"], second["toy.trained.class"]) == ("", "0.75")
    runs_table()
    assert "damaged:" in capsys.readouterr().out


def test_parquet_has_one_type_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (Path("runs/a") / "metrics.jsonl").write_text('{"step": 3, "loss": 2}\n')
    runs_table(parquet="runs.parquet")
    assert "is replaced" not in capsys.readouterr().out
    runs_table(parquet="runs.parquet")
    replaced = "runs.parquet: is there already, and is replaced; name another with --parquet to keep it"
    assert replaced in " ".join(capsys.readouterr().out.split())
    table = parquet.read_table("runs.parquet").to_pydict()
    assert table["loss"] == [2.0, 1.5]
    assert table["seed"] == [0, 1]


def test_what_makes_no_table_is_named() -> None:
    with pytest.raises(UsageError, match=r"no run below .*none: 'vidssl runs FOLDER' looks elsewhere"):
        runs_table("none")
    with pytest.raises(UsageError, match="--settings adds"):
        runs_table(settings=True)


def test_scores_are_not_compared_with_themselves() -> None:
    with pytest.raises(UsageError, match=r"runs/a/scores/toy-step-000005.json: named twice"):
        compare(["runs/a", "runs/deeper/b", "runs/../runs/a"])


def test_files_of_scores_keep_to_the_published_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    (path,) = Path("runs/a/scores").glob("*.json")
    record = json.loads(path.read_text())
    jsonschema.validate(record, schema)
    assert set(record) == set(schema["properties"])
    assert set(record["scores"]["trained"][0]) == set(
        schema["properties"]["scores"]["additionalProperties"]["items"]["properties"]
    )
    for broken in ({**record, "more": 1}, {**record, "step": -1}, {**record, "keys": None}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_a_table_is_printed_or_written_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--csv", "--parquet", "runs.parquet"]) == 2
    assert "--parquet: not allowed with argument --csv" in capsys.readouterr().err
    assert not Path("runs.parquet").exists()
