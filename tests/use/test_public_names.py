"""Every public name: its keywords have sentences, it shows what it was made with, an example of it runs."""

import ast
import inspect
import re
import runpy
from pathlib import Path

import pytest
from pages import ROOT, blocks

from vidssl import api, interfaces

PUBLIC = {name: made for name, made in vars(api).items() if not name.startswith("_") and callable(made)}


def documented(made: object) -> str:
    """Docstrings of a class, its constructor and the classes it derives from, or of a function."""
    classes = [each for each in getattr(made, "__mro__", ()) if each.__module__.startswith("vidssl")]
    texts = [made.__doc__, *(text for each in classes for text in (each.__doc__, each.__init__.__doc__))]
    return "\n".join(text for text in texts if text)


def keywords_without_sentence(made: object) -> list[str]:
    text = documented(made)
    heads = re.findall(r"^\s+((?:\w+, )*\w+):", text, re.MULTILINE)
    told = {name for head in heads for name in head.split(", ")} | set(re.findall(r"``(\w+)``", text))
    parameters = inspect.signature(made).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in told]


def test_every_keyword_has_a_sentence() -> None:
    assert len(PUBLIC) > 80
    missing = {
        name: keywords_without_sentence(made) for name, made in PUBLIC.items() if made is not api.UsageError
    }
    assert {name: words for name, words in missing.items() if words} == {}


def test_the_walk_finds_a_keyword_without_a_sentence() -> None:
    def learn(x: int, *, rate: float, told: int) -> None:
        """Learns.

        Args:
            told: what was said.
        """

    assert keywords_without_sentence(learn) == ["rate"]


def test_what_examples_of_the_docs_take_from_elsewhere_is_public() -> None:
    """A part of one's own derives from an interface and raises errors: all of them are in ``vidssl.api``."""
    wanted = {"SampleInfo", "LabelledFeatures", "UnreadableSample", "UsageError", "TorchvisionNet", "TimmNet"}
    assert wanted <= PUBLIC.keys()
    abstract = {name for name in interfaces.__all__ if inspect.isabstract(getattr(interfaces, name))}
    seven = {"Backbone", "Tokenizer", "Masker", "Objective", "Evaluator", "DataSource", "ViewSampler"}
    assert seven <= abstract & PUBLIC.keys()


def test_parts_show_what_they_were_made_with(tmp_path: Path) -> None:
    assert repr(api.KNN(k=(5, 20))) == "KNN(k=(5, 20))"
    assert repr(api.Linear()) == "Linear()"
    assert repr(api.Block3D(num_blocks=2)) == "Block3D(num_blocks=2)"
    assert repr(api.PerClipAugment()) == "PerClipAugment()"
    shown = [made for made in PUBLIC.values() if inspect.isclass(made) and made.__repr__ is object.__repr__]
    assert [made.__name__ for made in shown if not inspect.isabstract(made)] == []


EXAMPLES = ROOT / "docs" / "examples"
RUN_PAGES = ("README.md", "docs/using_a_run.md")  # by tests/train/test_train_and_eval.py and test_page.py
WITHOUT = {"TransformersNet": "loads weights of the hub, with a library that CI has not"}


def names_used(code: str) -> set[str]:
    """What code takes from the API, ``v.NAME``."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.value, ast.Name) and node.value.id == "v"}


def test_every_public_name_stands_in_an_example_that_is_run() -> None:
    pages = [
        text for name in RUN_PAGES for kind, text in blocks((ROOT / name).read_text()) if kind == "python"
    ]
    used = [
        names_used(code) for code in (*(path.read_text() for path in EXAMPLES.glob("every_*.py")), *pages)
    ]
    assert len(used) == 6
    assert PUBLIC.keys() - set().union(*used) == set(WITHOUT)


def test_an_example_in_words_is_none() -> None:
    assert names_used("v.KNN(k=3)  # as v.Linear\nprint('v.SGD')\nmade: v.Score = api.probe()") == {
        "KNN",
        "Score",
    }


def test_every_part_gives_what_its_example_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "every_part.py"), run_name="__main__")
    said = re.sub(" +", " ", capsys.readouterr().out)
    for row in (
        r"VideoSwin \[2, 32\]",
        r"FSQ \[2, 4, 4, 4\]",
        r"StructureTensor \[2, 2, 4, 4\]",
        r"SVT \d\.\d\d of",
        "TrainResult 3 steps",
    ):
        assert re.search(f" {row}", said), row


def test_every_source_reads_what_its_example_lays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "every_source.py"), run_name="__main__")
    said = re.sub(" +", " ", capsys.readouterr().out)
    for row in ("JpegShards 2 of [3, 16, 32, 48] run", "EpicKitchens100 1 of [3, 10, 32, 48] take, plate"):
        assert f" {row}" in said, row
    assert "vidoes: no such folder" in said
