"""Sections of recipes, protocols and tokenizer files, and how a name finds its file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vidssl.config.few_labels import FewLabels, Subset
from vidssl.config.files import find, locate, spec_files
from vidssl.config.protocol import MeasureSpec, load_protocol
from vidssl.config.recipe import Recipe, RunSpec, load_recipe, load_tokenizer_spec, recipe_from_text
from vidssl.config.strict_yaml import plain
from vidssl.engine.optim import AdamW
from vidssl.errors import UsageError

RECIPE = """\
name: toy
objective: {type: toy_objective}
backbone: {type: toy_backbone, init: runs/earlier}
data:
  video:
    source: {type: toy_source}
    views: {type: toy_views}
    batch_size: 4
optim: {type: adamw, lr: 1e-3}
schedule: {type: cosine, steps: 5}
"""
TOKENIZER = """\
type: toy_tokenizer
weights: weights/toy.safetensors
sha256: ABC
source: made here
licence: Apache-2.0
"""
PROTOCOL = "name: toy\nevaluator: {type: knn}\n"
PROBE = "{train: {type: a, root: x}, test: {type: b}, views: {type: c}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


def changed(*overrides: str) -> Recipe:
    write(Path("toy.yaml"), RECIPE)
    return load_recipe("toy.yaml", overrides)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunSpec(precision="fp61"), "RunSpec: precision: expected 'auto' or .*Did you mean 'fp16'?"),
        (lambda: RunSpec(workers="2"), "RunSpec: workers: expected a whole number, got '2'"),
        (lambda: RunSpec(out=Path("runs")), "RunSpec: out: expected text, got .*Path"),
        (lambda: RunSpec(compile=1), "RunSpec: compile: expected true or false, got 1"),
        (lambda: AdamW(lr=1e-3, clip="some"), "AdamW: clip: expected 'all' or 'each', got 'some'"),
        (lambda: Subset(label="a", share="all"), "Subset: share: expected a number"),
        (lambda: FewLabels(shares=("1 %",)), "FewLabels: shares: expected"),
        (lambda: MeasureSpec(videos=1.5), "MeasureSpec: videos: expected a whole number, got 1.5"),
    ],
)
def test_sections_made_in_python_are_held_to_their_types(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_sections_made_in_python_take_numbers_of_numpy() -> None:
    assert RunSpec(accumulate=np.int64(2), timeout_minutes=30).accumulate == 2
    assert AdamW(lr=np.float64(1e-3), betas=(0.9, 0.98)).update.lr == 1e-3


def test_recipe_has_its_sections_and_defaults(folder: Path) -> None:
    recipe = changed()
    assert (recipe.name, recipe.seed, recipe.objective.type) == ("toy", 0, "toy_objective")
    assert (recipe.tokenizer, recipe.masker, recipe.augment, recipe.data.probe) == (None, None, None, None)
    assert recipe.run == RunSpec()
    assert recipe.run.out == "runs"
    assert list(recipe.data.streams) == ["video"]
    assert recipe.data.streams["video"].batch_size == 4
    assert recipe.data.max_unreadable_share == 0.01


def test_init_is_no_key_of_the_backbone(folder: Path) -> None:
    recipe = changed()
    assert recipe.start.init == "runs/earlier"
    assert recipe.backbone is not None
    assert recipe.backbone.apart == ("type", "init", "init_min_matched", "init_window")
    assert changed("backbone={type: toy_backbone}").start.init is None
    assert changed("backbone.init=null").start.init is None


def test_null_takes_a_streams_test_source_away(folder: Path) -> None:
    assert changed("data.video.test_source=null").data.streams["video"].test_source is None


def test_null_takes_an_optional_section_away(folder: Path) -> None:
    recipe = changed("backbone=null", "run=null")
    assert recipe.backbone is None
    assert recipe.run == RunSpec()
    assert "backbone" not in recipe.node.mapping()
    assert message(lambda: changed("objective=null")) == (
        "override 'objective=null': objective: expected keys with values, got nothing"
    )


def test_overrides_reach_every_section(folder: Path) -> None:
    recipe = changed(
        "seed=3",
        "data.image={source: {type: s}, views: {type: v}, batch_size: 2}",
        "data.max_unreadable_share=0.5",
        f"data.probe={PROBE}",
        "run.precision=bf16",
        "masker.type=tube",
    )
    assert recipe.seed == 3
    assert list(recipe.data.streams) == ["video", "image"]
    assert recipe.data.max_unreadable_share == 0.5
    assert recipe.data.probe is not None
    assert recipe.data.probe.test.type == "b"
    assert recipe.run.precision == "bf16"
    assert recipe.masker is not None


SHARED = RECIPE.replace(
    "  video:\n    source: {type: toy_source}\n",
    "  source: {type: s, root: x, limit: 3}\n  train: {part: train}\n"
    "  test: {part: test, limit: null}\n  video:\n",
)


def shared(*overrides: str) -> dict[str, object]:
    """Sources of a recipe that names one once, as plain keys."""
    write(Path("toy.yaml"), SHARED)
    data = load_recipe("toy.yaml", overrides).data
    video = data.streams["video"]
    found = {"source": video.source, "test_source": video.test_source}
    if data.probe is not None:
        found |= {"train": data.probe.train, "test": data.probe.test}
    return {name: None if part is None else plain(part.node) for name, part in found.items()}


def test_a_source_named_once_is_that_of_streams_and_probe(folder: Path) -> None:
    train = {"type": "s", "root": "x", "limit": 3, "part": "train"}
    test = {"type": "s", "root": "x", "limit": None, "part": "test"}
    assert shared() == {"source": train, "test_source": test}
    found = shared("data.probe={views: {type: c}, train: {limit: 9}, test: {type: b}}", "data.source.root=y")
    assert found["train"] == {**train, "root": "y", "limit": 9}
    assert found["test"] == {"type": "b"}, "one with a type stands for itself"
    assert found["source"] == {**train, "root": "y"}
    assert shared("data.video.test_source=null")["test_source"] is None
    assert shared("data.test=null")["test_source"] is None, "nothing was held out"


def test_mistakes_in_a_shared_source_are_named(folder: Path) -> None:
    write(Path("toy.yaml"), SHARED)
    apart = ["data.video.source={type: t}", "data.video.test_source={type: t}"]
    assert message(lambda: load_recipe("toy.yaml", apart)) == (
        "toy.yaml:5: data.source: nothing takes it: every stream and the probe have sources of their own"
    )
    assert "holds keys that differ from 'data.source'" in message(lambda: changed("data.train={part: train}"))
    lacking = "data.source={root: x}"
    assert message(lambda: shared(lacking)) == f"override '{lacking}': data.source: missing 'type'"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objectiv=3", "objectiv: unknown key. Did you mean 'objective'?"),
        ("objective={}", "objective: missing 'type'"),
        ("objective=bevt", "objective: expected keys with values, got 'bevt'"),
        ("objective.type=3", "objective.type: expected text, got 3. Put it in quotes"),
        ("name=2024", "name: expected text, got 2024. Put it in quotes"),
        ("seed=-1", "seed: must be at least 0, got -1"),
        ("seed=1.5", "seed: expected a whole number, got 1.5"),
        ("data={}", "data: no stream: give one or more of video, image"),
        ("data.vidoe={}", "data.vidoe: unknown key. Did you mean 'video'?"),
        ("data.video.batch_size=0", "data.video.batch_size: must be at least 1, got 0"),
        ("data.image.batch_size=2", "data.image: missing 'source', 'views'"),
        ("data.max_unreadable_share=2", "data.max_unreadable_share: must lie between 0 and 1, got 2.0"),
        ("data.probe={train: {type: a}}", "data.probe: missing 'test', 'views'"),
        ("run.workers=-1", "run.workers: must be at least 0, got -1"),
        (
            "run.precision=fp61",
            "run.precision: expected 'auto' or 'fp32' or 'bf16' or 'fp16', got 'fp61'. Did you mean 'fp16'?",
        ),
        ("run.log_every=1", "run.log_every: unknown key. Did you mean 'log_every_steps'?"),
        ("backbone.init=3", "backbone.init: expected text, got 3. Put it in quotes"),
        (
            "tokenizer={type: vqvae, sha256: x}",
            "tokenizer.sha256: describes weights, but there is no 'weights'",
        ),
        (
            "tokenizer={type: vqvae, weights: x}",
            "tokenizer: missing 'sha256' (text), 'source' (text), 'licence' (text)",
        ),
        (
            "tokenizer={type: vqvae, weights: x, sha256: unknown, source: y, licence: MIT}",
            "tokenizer.sha256: may only be 'unknown' where 'command' gives how the file is made",
        ),
    ],
)
def test_mistake_in_a_section_is_named(folder: Path, override: str, expected: str) -> None:
    assert message(lambda: changed(override)) == f"override '{override}': {expected}"


@pytest.mark.parametrize(
    "key",
    ["log_every_steps", "checkpoint_every_steps", "test_batches", "accumulate", "keep_checkpoints"],
)
def test_counts_of_a_run_are_at_least_one(folder: Path, key: str) -> None:
    said = message(lambda: changed(f"run.{key}=0"))
    assert f"run.{key}: must be at least 1, got 0" in said


def test_missing_section_is_named_with_the_file(folder: Path) -> None:
    write(folder / "x.yaml", "# header\nname: x\noptim: {type: a}\nschedule: {type: b}\n")
    assert message(lambda: load_recipe("x.yaml")) == "x.yaml:2: missing 'objective', 'data'"


def test_unknown_tokenizer_is_an_error_at_the_recipes_line(folder: Path) -> None:
    write(folder / "tokenizers" / "dalle_stride16.yaml", TOKENIZER)
    write(folder / "x.yaml", RECIPE + "tokenizer: dale_stride16\n")
    assert message(lambda: load_recipe("x.yaml")) == (
        "x.yaml:11: tokenizer: dale_stride16: no such tokenizer. Did you mean 'dalle_stride16'?"
    )


def test_tokenizer_file_is_read_through_its_name(folder: Path) -> None:
    write(folder / "tokenizers" / "mine.yaml", TOKENIZER + "command: make it\n")
    write(folder / "x.yaml", RECIPE + "tokenizer: mine\n")
    spec = load_recipe("x.yaml").tokenizer
    assert spec is not None
    assert spec.weights is not None
    assert (spec.name, spec.part.type, spec.node.where) == ("mine", "toy_tokenizer", "x.yaml:11")
    assert spec.weights.path == folder / "tokenizers" / "weights" / "toy.safetensors"
    assert spec.weights.sha256 == "abc"
    assert (spec.weights.source, spec.weights.licence) == ("made here", "Apache-2.0")
    assert spec.weights.command == "make it"


def test_tokenizer_file_without_weights_is_refused(folder: Path) -> None:
    write(folder / "tokenizers" / "mine.yaml", "type: vqvae\n")
    assert message(lambda: load_tokenizer_spec("mine")) == (
        "tokenizers/mine.yaml:1: missing 'weights': "
        "only a recipe that trains its tokenizer may hold one without"
    )


def test_tokenizer_written_into_a_recipe_may_be_untrained(folder: Path) -> None:
    spec = changed("tokenizer={type: vqvae, stride: 8}").tokenizer
    assert spec is not None
    assert (spec.weights, spec.name) == (None, None)


def test_recipe_in_a_text_is_read_like_a_file(folder: Path) -> None:
    assert recipe_from_text(RECIPE, "run.yaml") == changed()
    bad = RECIPE.replace("name: toy", "nmae: toy")
    assert message(lambda: recipe_from_text(bad, "run.yaml")) == (
        "run.yaml:1: nmae: unknown key. Did you mean 'name'?"
    )


def test_protocol_falls_back_to_the_recipes_probe_and_overrides_reach_into_it(folder: Path) -> None:
    write(folder / "evaluation" / "toy.yaml", PROTOCOL)
    assert load_protocol("toy").data is None
    assert load_protocol("toy", recipe=changed()).data is None
    recipe = changed(f"data.probe={PROBE}")
    protocol = load_protocol("toy", ("batch_size=7", "data.train.root=y"), recipe)
    assert protocol.batch_size == 7
    assert protocol.data is not None
    assert protocol.data.train.node.mapping()["root"].value == "y"
    assert protocol.data.test.type == "b"


def test_protocols_own_data_stands_before_the_recipes(folder: Path) -> None:
    write(folder / "evaluation" / "toy.yaml", PROTOCOL + f"data: {PROBE.replace('type: a', 'type: own')}\n")
    protocol = load_protocol("toy", recipe=changed(f"data.probe={PROBE}"))
    assert protocol.data is not None
    assert protocol.data.train.type == "own"


def test_name_is_found_in_the_working_folder_first(folder: Path) -> None:
    installed = find("evaluation", "linear")
    assert not installed.is_relative_to(folder)
    own = write(folder / "evaluation" / "linear.yaml", PROTOCOL)
    for name in ("linear", "linear.yaml", "evaluation/linear", "evaluation/linear.yaml"):
        assert find("evaluation", name).resolve() == Path(own)
    assert spec_files("evaluation")["linear"] == Path(own)


def test_files_in_subfolders_are_found_by_their_path(folder: Path) -> None:
    own = write(folder / "recipes" / "paper" / "toy.yaml", RECIPE)
    assert find("recipes", "paper/toy") == Path(own)
    assert locate("recipes/paper/toy.yaml")[0] == "recipes"
    assert locate("evaluation/linear.yaml") == ("evaluation", find("evaluation", "linear"))


def test_what_lies_beside_the_folder_of_its_kind_has_no_name(folder: Path) -> None:
    write(folder / "recipes" / "grids" / "toy.yaml", RECIPE)
    write(folder / "mine.yaml", RECIPE)
    for name in ("grids/toy", "../mine", str(folder / "mine")):
        assert message(lambda name=name: find("recipes", name)).startswith(f"{name}: ")


def test_any_existing_file_is_a_recipe_whatever_its_folder(folder: Path) -> None:
    own = write(folder / "mine.yaml", RECIPE)
    assert locate("mine.yaml") == ("recipes", Path("mine.yaml"))
    assert load_recipe(own).name == "toy"


@pytest.mark.parametrize("name", ["recipes/beft.yaml", "beft", "beft.yaml"])
def test_recipe_that_does_not_exist(folder: Path, name: str) -> None:
    write(folder / "recipes" / "bevt.yaml", RECIPE)
    assert message(lambda: load_recipe(name)) == f"{name}: no such recipe. Did you mean 'bevt'?"


def test_unknown_protocol_lists_those_there_are(folder: Path) -> None:
    said = message(lambda: load_protocol("zzz"))
    assert said.startswith("zzz: no such protocol. There are: ")
    assert "linear" in said
