"""From recipes to objects: parts, weights, components of a user's own, and the way back to text."""

import hashlib
from pathlib import Path

import pytest
from toy_parts import ToyMasker, ToyObjective, changed, edited, message, set_up

from vidssl.build import build
from vidssl.build.registry import resolved_text
from vidssl.config.protocol import load_protocol
from vidssl.config.recipe import Recipe, load_recipe, recipe_from_text
from vidssl.evaluate.score_file import flattened


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_up(monkeypatch, tmp_path)


def test_objective_gets_its_parts_and_keys() -> None:
    made = build.objective(changed("objective.video_weight=2", "backbone.dim=6"))
    assert isinstance(made, ToyObjective)
    assert (made.video_weight, made.backbone.embed_dim) == (2.0, 6)
    assert isinstance(made.masker, ToyMasker)
    assert made.tokenizer.table.tolist() == list(range(8))


def test_trained_tokenizer_is_frozen() -> None:
    tokenizer = build.tokenizer("trained")
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_missing_weights_are_an_error_that_says_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "tokenizers" / "trained.safetensors"
    path.unlink()
    assert message(lambda: build.tokenizer("trained")) == (
        f"tokenizers/trained.yaml:2: weights: {path}: No such file or directory. "
        "The weights come from: a friend (licence: MIT)"
    )


def test_altered_weights_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizers" / "trained.safetensors"
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    bad = hashlib.sha256(path.read_bytes()).hexdigest()
    assert message(lambda: build.objective(changed())) == (
        f"tokenizers/trained.yaml:2: weights: {path}: the file was altered, "
        f"its sha256 is {bad} and not {good}. "
        "The weights come from: a friend (licence: MIT)"
    )


def test_weights_of_an_unknown_digest_load_with_a_warning_that_gives_theirs(tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "tokenizers" / "trained.safetensors").read_bytes()).hexdigest()
    file = tmp_path / "tokenizers" / "trained.yaml"
    file.write_text(file.read_text().replace(digest, "unknown") + "command: make it\n")
    said: list[str] = []
    build.tokenizer("trained", say=said.append)
    build.objective(changed(), say=said.append)
    said = [line for line in said if "RANDOM" not in line]  # of the backbone
    assert len(said) == 2
    assert all("trained.safetensors: NOT VERIFIED" in line and f"sha256: {digest}" in line for line in said)
    (tmp_path / "tokenizers" / "trained.safetensors").unlink()
    assert "They are made by: make it" in message(lambda: build.tokenizer("trained"))


def test_weights_of_another_architecture_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tokenizers" / "trained.yaml"
    file.write_text(file.read_text() + "vocab_size: 9\n")
    assert "another architecture" in message(lambda: build.tokenizer("trained"))


def opened(*overrides: str) -> Recipe:
    sources = [f"data.{name}.source={{type: open, count: 8}}" for name in ("video", "image")]
    return changed(*sources, *overrides)


def test_streams_have_what_the_recipe_says() -> None:
    recipe = opened("run.workers=3", "data.max_unreadable_share=0.25", "data.image.batch_size=2")
    streams = build.streams(recipe)
    assert list(streams) == ["video", "image"]
    assert [stream.batch_size for stream in streams.values()] == [4, 2]
    assert {(stream.workers, stream.max_unreadable_share) for stream in streams.values()} == {(3, 0.25)}
    assert [len(stream) for stream in streams.values()] == [8, 8]
    assert build.test_streams(recipe) == {}


def test_streams_over_one_source_and_other_seeds_go_their_own_ways() -> None:
    seeds = [stream.seed for seed in (0, 1, 2) for stream in build.streams(opened(f"seed={seed}")).values()]
    assert len(set(seeds)) == len(seeds)


def test_held_out_streams_are_the_same_for_every_seed() -> None:
    sources = [f"data.{name}.test_source={{type: open, count: 2}}" for name in ("video", "image")]
    first, second = (build.test_streams(opened(f"seed={seed}", *sources)) for seed in (0, 1))
    assert [len(stream) for stream in first.values()] == [2, 2]
    assert [stream.seed for stream in first.values()] == [stream.seed for stream in second.values()]


def test_source_that_cannot_be_opened_is_named_with_its_line() -> None:
    assert message(lambda: build.streams(changed())) == "x.yaml:8: data.video.source: a: no such folder"


def test_init_that_cannot_be_loaded_is_named_with_its_line() -> None:
    recipe = edited("backbone: {type: toy}", "backbone: {type: toy, init: runs/nothing}")
    build.check(recipe)
    said = message(lambda: build.objective(recipe))
    assert said.startswith("x.yaml:3: backbone.init: ")
    assert "runs/nothing" in said
    assert build.backbone(recipe, with_init=False).embed_dim == 4


USERS = """\
from vidssl.interfaces import Masker

class {name}(Masker):
    '''Mine.'''
    def __init__(self, *, ratio: float = 0.5):
        self.ratio = ratio
    def __call__(self, batch_size, grid, generator): ...
"""


def test_class_of_a_users_own_file_is_built(tmp_path: Path) -> None:
    (tmp_path / "my_good_masker.py").write_text(USERS.format(name="Mine"))
    made = build.objective(changed("masker={type: my_good_masker.py:Mine, ratio: 0.25}"))
    assert isinstance(made, ToyObjective)
    assert made.masker.ratio == 0.25


@pytest.mark.parametrize(
    ("stem", "code", "expected"),
    [
        (
            "my_absent",
            None,
            "my_absent.py: no such file (paths are relative to the working folder, {folder})",
        ),
        ("my_named", USERS.format(name="Mien"), "my_named.py has no class 'Mine'. Did you mean 'Mien'?"),
        (
            "my_kind",
            "class Mine: ...",
            "my_kind.py:Mine does not derive from vidssl.interfaces.Masker",
        ),
        (
            "my_bare",
            "from vidssl.interfaces import Masker\nclass Mine(Masker): ...",
            "my_bare.py:Mine lacks __call__, which every masker has",
        ),
        (
            "my_positional",
            USERS.format(name="Mine").replace("*, ", ""),
            "my_positional.py:Mine: its parameter 'ratio' is positional, and none may be: "
            "put '*' before the keys",
        ),
        (
            "my_untyped",
            USERS.format(name="Mine").replace(": float", ""),
            "parameter 'ratio' of Mine has no type annotation",
        ),
        (
            "my_syntax",
            "class Mine(",
            "my_syntax.py cannot be imported: '(' was never closed (my_syntax.py, line 1)",
        ),
        (
            "my_import",
            "import nothing_of_that_name",
            "my_import.py cannot be imported: No module named 'nothing_of_that_name'",
        ),
        (
            "colorsys",
            "class Mine: ...",
            "there is another Python module called 'colorsys' already: rename colorsys.py",
        ),
    ],
)
def test_what_a_users_class_lacks_is_named(
    tmp_path: Path, stem: str, code: str | None, expected: str
) -> None:
    if code is not None:
        (tmp_path / f"{stem}.py").write_text(code)
    override = f"masker={{type: {stem}.py:Mine}}"
    assert message(lambda: build.check(changed(override))) == (
        f"override '{override}': masker.type: {expected.format(folder=tmp_path)}"
    )


def test_resolved_recipe_has_every_default_and_reads_back_to_itself() -> None:
    recipe = changed(
        "backbone.init=runs/a",
        "augment={type: per_clip}",
        "data.max_unreadable_share=0.25",
        "data.probe={train: {type: none, root: c}, "
        "test: {type: none, root: d}, views: {type: toy, name: clip}}",
    )
    text = resolved_text(recipe)
    again = recipe_from_text(text, "again.yaml")
    assert resolved_text(again) == text
    assert "video_weight: 1.0" in text
    assert "patch: [2, 4, 4]" in text
    assert "init: runs/a" in text
    assert "checkpoint_every_steps: 200" in text
    assert "tokenizer: trained" in text
    assert "max_unreadable_share: 0.25" in text
    assert again.data.probe is not None
    assert again.data.probe.train.node == recipe.node.mapping()["data"].mapping()["probe"].mapping()["train"]
    assert again.run == recipe.run
    assert again.start.init == "runs/a"
    build.check(again)


def golden(name: str) -> str:
    """A text that a run or a score kept before recipes and protocols were written by their schema."""
    return (Path(__file__).parents[1] / "golden" / "resolved" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["svt", "tokenizer_fsq"])
def test_a_recipe_is_written_as_ever_and_read_back(name: str) -> None:
    old, new = golden(f"recipe_{name}"), resolved_text(load_recipe(name))
    assert flattened(new).items() >= flattened(old).items()  # parts have got keys since, with defaults
    assert resolved_text(recipe_from_text(old, "run.yaml")) == new


@pytest.mark.parametrize("name", ["few_labels", "finetune"])
def test_a_protocol_is_written_as_ever_and_read_back(name: str, tmp_path: Path) -> None:
    # scores are comparable where these keys and values are the same
    old, new = golden(f"{name}_of_bevt"), resolved_text(load_protocol(name, recipe=load_recipe("bevt")))
    assert flattened(new) == flattened(old)
    (tmp_path / "kept.yaml").write_text(old)
    assert resolved_text(load_protocol(str(tmp_path / "kept.yaml"))) == new


def test_resolved_recipe_keeps_held_out_sources() -> None:
    sources = [f"data.{name}.test_source={{type: none, root: held/{name}}}" for name in ("video", "image")]
    text = resolved_text(changed(*sources))
    assert "test_source: {type: none, root: held/video}" in text
    assert "test_source: {type: none, root: held/image}" in text


def test_resolved_tokenizer_of_a_path_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resolved_text(changed("tokenizer=./tokenizers/trained.yaml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    build.objective(recipe_from_text(text, "again.yaml"))


def test_resolved_tokenizer_written_into_the_recipe_keeps_its_weights(tmp_path: Path) -> None:
    facts = (tmp_path / "tokenizers" / "trained.yaml").read_text()
    inline = "".join(f"\n  {line}" for line in facts.replace("trained.", "tokenizers/trained.").splitlines())
    recipe = edited("tokenizer: trained", f"tokenizer:{inline}\n  command: make it")
    text = resolved_text(recipe)
    assert 'command: "make it"' in text
    assert resolved_text(recipe_from_text(text, "again.yaml")) == text
    assert isinstance(build.objective(recipe_from_text(text, "again.yaml")), ToyObjective)


def test_resolved_protocol_reads_back_to_itself() -> None:
    data = "{train: {type: none, root: a}, test: {type: none, root: b}, views: {type: toy, name: x}}"
    Path("p.yaml").write_text(f"name: p\nevaluator: {{type: knn}}\ndata: {data}\n")
    text = resolved_text(load_protocol("p.yaml"))
    Path("q.yaml").write_text(text)
    assert "k: 20" in text
    assert "  train: {type: none, root: a}\n  test: {type: none, root: b}\n" in text
    assert resolved_text(load_protocol("q.yaml")) == text
    build.check_protocol(load_protocol("q.yaml"))


def test_mistake_in_a_protocol_is_named() -> None:
    data = "{train: {type: none, rot: a}, test: {type: none, root: b}, views: {type: toy, name: x}}"
    Path("p.yaml").write_text(f"name: p\nevaluator: {{type: knn}}\ndata: {data}\n")
    assert message(lambda: build.check_protocol(load_protocol("p.yaml"))) == (
        "p.yaml:3: data.train.rot: unknown key. Did you mean 'root'?"
    )
    Path("p.yaml").write_text("name: p\nevaluator: {type: knn, kk: 3}\n")
    assert message(lambda: build.check_protocol(load_protocol("p.yaml"))) == (
        "p.yaml:2: evaluator.kk: unknown key. Did you mean 'k'?"
    )
