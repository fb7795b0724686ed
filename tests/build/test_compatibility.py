"""docs/compatibility.md: what it says is so, and what works with what."""

import re
from dataclasses import fields
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from docs.compatibility.page import WORKS, Combination, Reasons, by_hand, reason
from docs.compatibility.table import (
    Trials,
    combinations,
    covering,
    main as write_page,
    named_combinations,
    whole_page,
)
from vidssl.objectives import OBJECTIVES

PAGE_PATH = Path(__file__).parents[2] / "docs" / "compatibility.md"
PAGE = PAGE_PATH.read_text()
ROW = re.compile(r"^\| (.*) \|$", re.MULTILINE)
# a new objective, or part, is not on the page before its command writes it anew
LISTED = [name for name in sorted(OBJECTIVES) if re.search(rf"^## .*\b{name}\b", PAGE, re.MULTILINE)]
objectives = pytest.mark.parametrize("objective", LISTED)


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return Trials(tmp_path)


def said_of(objective: str) -> dict[tuple[str, str], str]:
    """Row and column -> cell of an objective's table on the page."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (section,) = (part for part in sections if objective in part.split("\n")[0].split(", "))
    heads, _, *rows = (row.split(" | ") for row in ROW.findall(section))
    return {
        (name, head): cell
        for row in rows
        for joined, cell in zip(heads[1:], row[1:], strict=True)
        for name in row[0].split(", ")
        for head in joined.split(", ")
    }


def reasons() -> dict[str, str]:
    """Number -> reason on the page."""
    return dict(re.findall(r"^(\d+)\. (.*)$", PAGE, flags=re.MULTILINE))


def place(one: Combination) -> tuple[str, str]:
    column = one.tokenizer or "no tokenizer"
    masked = f"{column} + masker" if one.masker and mask_is_optional(one.objective) else column
    return one.backbone or "(none)", masked


@cache
def mask_is_optional(objective: str) -> bool:
    return len({one.masker is None for one in combinations(objective)}) > 1


@objectives
def test_the_covering_combinations_name_every_component_of_all(objective: str) -> None:
    every, some = combinations(objective), covering(objective)
    assert set(some) <= set(every)
    for part in fields(Combination):
        assert {getattr(one, part.name) for one in some} == {getattr(one, part.name) for one in every}


# of one kind with others, or with many networks
HEAVY = ("bevt_image", "bevt_video", "svt", "vimpac", "vimpac_contrast", "vimpac_predict")


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in LISTED],
)
def test_what_the_page_says_is_so(objective: str, trials: Trials) -> None:
    """An error that is no refusal by the checks of recipes is raised here."""
    said, numbered = said_of(objective), reasons()
    for one in covering(objective):
        refusal, cell = trials.refusal(one), said.get(place(one))
        if cell is None:
            continue  # of a part that is not on the page yet
        if refusal is None:
            assert WORKS in cell, one
        else:
            # of the parts, and not of the toy recipe around them
            assert refusal.startswith(
                ("toy: objective: ", "toy: backbone: ", "toy: tokenizer: ", "toy: masker: ")
            ), refusal
            assert reason(one, refusal) in {numbered[number] for number in re.findall(r"\((\d+)\)", cell)}, (
                f"{one}: {refusal}: write the page anew"
            )


@objectives
def test_an_objective_works_with_something(objective: str) -> None:
    assert any(WORKS in cell for cell in said_of(objective).values())


def test_the_page_lists_no_component_that_is_gone() -> None:
    assert len(LISTED) >= 9
    for objective in LISTED:
        assert set(said_of(objective)) <= {place(one) for one in combinations(objective)}
    networks = said_of("Networks by name")
    assert {row for row, _ in networks} <= {place(one)[0] for one in named_combinations()}


def test_a_refusal_that_all_backbones_share_has_one_number() -> None:
    marks = Reasons()
    for name, made in (("vit", "ViT"), ("timm", "TimmNet")):
        one = Combination("svt", name, None, None)
        assert marks.mark(one, f"toy: objective: {made} is too small. Take more") == "no (1)"
    assert marks.mark(Combination("svt", "vit", None, None), None) == "yes"
    assert list(marks.numbers) == ["the backbone is too small"]


def test_a_network_of_one_size_is_refused_alike_by_whatever_name() -> None:
    for kind, name in (("timm", "swin"), ("pytorchvideo", "mvit"), ("torchvision", "mvit")):
        shown = f"timm's {name}" if kind == "timm" else name
        refusal = f"toy: backbone: {shown} takes 8 frames only, got (4, 32, 32) (a clip of 4 frames at 32x32)"
        assert reason(Combination("svt", f"{kind} {name}", None, None), refusal) == (
            "the backbone takes 8 frames only"
        )


def test_parts_that_do_alike_share_a_row_or_a_column() -> None:
    parts = (("vit", "timm", "timesformer"), ("vqvae", "fsq", "dalle"))
    outcomes = {
        Combination("bevt", backbone, tokenizer, "tube"): None
        if backbone != "timm" or tokenizer == "dalle"
        else "toy: backbone: no mask"
        for backbone, tokenizer in product(*parts)
    }
    text = whole_page(outcomes, {})
    assert "| backbone | vqvae, fsq | dalle |\n" in text
    assert "| vit, timesformer | yes | yes |\n| timm | no (1) | yes |\n" in text


def test_maskers_that_differ_are_named_in_their_cell() -> None:
    one, other = (Combination("bevt", "vit", "vqvae", masker) for masker in ("tube", "random_3d"))
    text = whole_page({one: None, other: "toy: masker: too fine. Take another"}, {})
    assert "| vit | yes: tube; no (1): random_3d |" in text
    assert "1. too fine\n" in text


@pytest.mark.slow
def test_the_page_is_what_its_command_writes(trials: Trials) -> None:
    every = [one for objective in OBJECTIVES for one in combinations(objective)]
    written = whole_page(trials.outcomes(every), trials.outcomes(named_combinations()))
    assert written == PAGE.removesuffix(by_hand(PAGE))


def test_what_is_written_by_hand_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(Trials, "outcomes", lambda trials, some: {})
    page.write_text("old\n\n## Versions\nours\n")
    write_page(page)
    assert "old" not in page.read_text()
    assert page.read_text().endswith("\n## Versions\nours\n")
    page.unlink()
    write_page(page)
    assert "## Versions" not in page.read_text()


def test_the_command_beside_torch_2_6_names_every_dependency() -> None:
    table = (PAGE_PATH.parent.parent / "pyproject.toml").read_text()
    (section,) = re.findall(r"^dependencies = \[\n(.*?)^\]", table, flags=re.MULTILINE | re.DOTALL)
    needed = set(re.findall(r'^ +"([a-z-]+)', section, flags=re.MULTILINE)) - {"faiss-gpu"}
    (command,) = re.findall(r"pip install torch==.*?\n(?! )", by_hand(PAGE), flags=re.DOTALL)
    names = set(re.findall(r"[a-z-]+", command.replace("pip install", ""))) - {"-"}
    assert names == needed
