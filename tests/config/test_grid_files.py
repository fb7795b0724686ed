"""Grids of recipes: which cells a file makes, and what is refused."""

from pathlib import Path

import pytest
from toy_probe import recipe_text

from vidssl.config.grid import load_grid
from vidssl.config.strict_yaml import plain
from vidssl.errors import UsageError

HEAD = "name: g\nquestion: Why?\nrecipe: base\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes/grids").mkdir(parents=True)
    Path("recipes/base.yaml").write_text(recipe_text())
    Path("recipes/other.yaml").write_text(recipe_text("other").replace("lr: 1e-3", "lr: 5e-3"))


def write(text: str) -> None:
    Path("recipes/grids/g.yaml").write_text(HEAD + text)


def values(*keys: str) -> dict[str, tuple[object, ...]]:
    def at(recipe: object, key: str) -> object:
        for word in key.split("."):
            recipe = recipe[word]
        return recipe

    return {
        cell.name: tuple(at(plain(cell.recipe().node), key) for key in keys) for cell in load_grid("g").cells
    }


def test_axes_make_all_combinations_but_those_that_are_skipped() -> None:
    write(
        "set: {seed: 7}\naxes:\n  masker.ratio: [0.3, 0.5]\n"
        "  size:\n    small: {}\n    large: {backbone.embed_dim: 32, optim.lr: 2e-3}\n"
        "skip: [{masker.ratio: 0.3, size: [large]}]\n"
    )
    assert values("masker.ratio", "backbone.embed_dim", "optim.lr", "seed") == {
        "ratio_0.3-small": (0.3, 16, 1e-3, 7),
        "ratio_0.5-small": (0.5, 16, 1e-3, 7),
        "ratio_0.5-large": (0.5, 32, 2e-3, 7),
    }
    assert load_grid("g").axes == ("masker.ratio", "size")


def test_a_level_may_name_another_base_and_the_command_line_has_the_last_word() -> None:
    write("cells:\n  a: {}\n  b: {recipe: other, backbone.embed_dim: 32}\n")
    assert values("optim.lr", "backbone.embed_dim") == {"a": (1e-3, 16), "b": (5e-3, 32)}
    grid = load_grid("g", ["run.workers=2", "seeds=[4]", "equal={steps: 9}"])
    assert [cell.recipe().run.workers for cell in grid.cells] == [2, 2]
    assert grid.spec.seeds == (4,)
    assert grid.spec.equal is not None
    assert grid.spec.equal.given == {"steps": 9}


def test_the_length_is_set_however_the_recipe_counts_it() -> None:
    write("cells:\n  a: {}\n  b: {schedule: {type: cosine, epochs: 3}}\n")
    for cell in load_grid("g").cells:
        schedule = plain(cell.recipe(cell.of_length("steps", 8)).schedule.node)
        assert isinstance(schedule, dict)
        assert (schedule["steps"], schedule.get("epochs")) == (8, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give either 'axes'"),
        ("cells: {a: {}}\naxes: {x: {b: {}, c: {}}}\n", "give either 'axes'"),
        ("cells: {a: {}, b: {}}\n", "cells 'a' and 'b' are one recipe"),
        ("cells: {a: {optim.lr.x: 1}}\n", "recipes/grids/g.yaml:4: optim.lr.x: optim.lr is 0.001"),
        ("cells: {a: {optim.rate: 1}}\n", ""),
        ("axes: {optim.lr: [1e-3]}\n", "two levels or more"),
        ("axes: {size: [1, 2]}\n", ""),
        ("axes: {optim.lr: [1e-3, 2e-3]}\nskip: [{lr: 1}]\n", "no such axis. There are: optim.lr"),
        ("axes: {optim.lr: [1e-3, 2e-3]}\nskip: [{optim.lr: 1.0}]\n", "no such level"),
        ("axes: {optim.lr: [1e-3, 2e-3]}\nequal: {steps: 3, epochs: 1}\n", "name one of"),
        ("cells: {a: {recipe: none}}\n", "no such recipe"),
        ("cells: {a b: {}, a_b: {seed: 1}}\n", "two cells would lie in the folder 'a_b'"),
        ("cells: {a: {}}\nseeds: [1, 1]\n", "twice"),
    ],
)
def test_what_is_refused_names_the_place(text: str, said: str) -> None:
    write(text)
    if not said:
        load_grid("g")  # what the components know, 'vidssl check' says
        return
    with pytest.raises(UsageError) as caught:
        load_grid("g")
    assert said in str(caught.value)


def test_a_grid_is_no_recipe_and_the_other_way_round() -> None:
    write("cells: {a: {}, b: {seed: 1}}\n")
    from vidssl.config.recipe import load_recipe

    with pytest.raises(UsageError, match="a grid of recipes, not a recipe"):
        load_recipe("recipes/grids/g.yaml")
    with pytest.raises(UsageError, match="a recipe, not a grid of recipes"):
        load_grid("recipes/base.yaml")
