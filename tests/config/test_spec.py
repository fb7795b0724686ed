"""Strict YAML: what is read, what is refused, and in which words."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from torch import Generator, Tensor

from vidssl.config.schema import Key, bind, construct, convert, keys_of, parts_of
from vidssl.config.strict_yaml import Node, dump, load, nearest, override, parse
from vidssl.errors import UsageError
from vidssl.interfaces import Evaluator, LabelledFeatures


def tree(text: str) -> Node:
    return parse(text, lambda line: f"x.yaml:{line}")


def plain(node: Node) -> object:
    if isinstance(node.value, Mapping):
        return {key: plain(entry) for key, entry in node.value.items()}
    return [plain(item) for item in node.value] if isinstance(node.value, tuple) else node.value


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("True", "True"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("'012'", "012"),
    ],
)
def test_scalar_is_read_as_it_looks(text: str, value: object) -> None:
    read = tree(f"key: {text}").mapping()["key"].value
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 012", "x.yaml:1: a: 012 is octal to YAML: write 12, or '012' in quotes if text is meant"),
        ("a: 1e999", "x.yaml:1: a: 1e999 is too large a number"),
        ("a: 1\nb: 2\na: 3", "x.yaml:3: a: repeated key, already set at x.yaml:1"),
        ("s:\n  a: 1\n  a: 1", "x.yaml:3: s.a: repeated key, already set at x.yaml:2"),
        ("a: &x 1\nb: *x", "x.yaml:1: anchors (&) and aliases (*) are refused: write the value out"),
        ("s:\n  <<: {a: 1}", "x.yaml:2: s: merge keys (<<) are refused: write the keys out"),
        ("a: !!python/name:os.system x", None),
        ("? [a, b]\n: 1", "x.yaml:1: a key must be a word"),
        ("a: [1, 2", "x.yaml:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "x.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "x.yaml:2: not valid YAML: but found another document"),
        ("a: 1\nb: \x00", "x.yaml:2: not valid YAML: special characters are not allowed"),
        ("a: " + "[" * 40 + "]" * 40, "x.yaml:1: nested more than 32 deep"),
    ],
)
def test_trap_is_refused_with_its_line(text: str, expected: str | None) -> None:
    said = message(lambda: tree(text))
    expected = expected or (
        "x.yaml:1: the tag 'tag:yaml.org,2002:python/name:os.system' is refused: write the plain value"
    )
    assert said == expected


def test_every_value_knows_the_line_of_its_key_and_its_dotted_path() -> None:
    root = tree("# a comment\na: 1\nb:\n  c: {d: 2}\n  e:\n    - 5\n    - 6\n")
    c = root.mapping()["b"].mapping()["c"]
    assert (root.mapping()["b"].where, root.mapping()["b"].path) == ("x.yaml:3", "b")
    assert (c.mapping()["d"].where, c.mapping()["d"].path) == ("x.yaml:4", "b.c.d")
    second = root.mapping()["b"].mapping()["e"].value[1]
    assert (second.where, second.path) == ("x.yaml:7", "b.e[1]")


def test_file_is_named_below_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "x.yaml").write_text("a: 012")
    monkeypatch.chdir(tmp_path)
    assert message(lambda: load(Path("recipes/x.yaml"))).startswith("recipes/x.yaml:1: a: 012 is octal")
    assert message(lambda: load(tmp_path / "none.yaml")) == "none.yaml: no such file"
    assert message(lambda: load(Path("recipes"))) == "recipes: cannot be read: Is a directory"
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    said = message(lambda: load(Path("latin.yaml")))
    assert said == "latin.yaml: not a text file in UTF-8 (invalid continuation byte at byte 3)"


def test_empty_text_has_no_keys() -> None:
    assert (
        message(lambda: tree("# nothing\n").mapping()) == "x.yaml:1: expected keys with values, got nothing"
    )


def test_override_replaces_adds_and_creates() -> None:
    root = tree("a: {b: 1, c: 2}\nd: 3")
    for text in ("a.b=1e-3", "a.e=[1, 2]", "f.g.h=true", "d={x: y}"):
        root = override(root, text)
    assert plain(root) == {
        "a": {"b": 1e-3, "c": 2, "e": [1, 2]},
        "d": {"x": "y"},
        "f": {"g": {"h": True}},
    }


def test_override_leaves_the_original_tree_alone() -> None:
    root = tree("a: {b: 1}")
    override(root, "a.b=2")
    assert plain(root) == {"a": {"b": 1}}


def test_errors_of_an_override_name_the_override() -> None:
    root = override(tree("optim: {lr: 1}"), "optim.lr=fast")
    lr = root.mapping()["optim"].mapping()["lr"]
    assert message(lambda: convert(lr, float)) == (
        "override 'optim.lr=fast': optim.lr: expected a number, got 'fast'"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr", "override 'optim.lr': write key=value with dots between keys, like optim.lr=1e-3"),
        ("=3", "override '=3': write key=value with dots between keys, like optim.lr=1e-3"),
        ("a.=3", "override 'a.=3': write key=value with dots between keys, like optim.lr=1e-3"),
        ("a.b.c=3", "override 'a.b.c=3': a.b.c: a.b is 1, which has no keys. Replace it whole: a.b={...}"),
        ("a=[1", "override 'a=[1': not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a=012", "override 'a=012': a: 012 is octal to YAML: write 12, or '012' in quotes if text is meant"),
    ],
)
def test_bad_override_is_refused(text: str, expected: str) -> None:
    assert message(lambda: override(tree("a: {b: 1}"), text)) == expected


def given(text: str) -> Node:
    return tree(f"key: {text}").mapping()["key"]


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("3", float, 3.0),
        ("3", int, 3),
        ("x", str, "x"),
        ("true", bool, True),
        ("b", Literal["a", "b"], "b"),
        ("4", Literal[4, 8], 4),
        ("[1, 2, 3]", tuple[int, int, int], (1, 2, 3)),
        ("[0, 1]", tuple[float, float], (0.0, 1.0)),
        ("[]", tuple[float, ...], ()),
        ("[1, 2.5]", tuple[float, ...], (1.0, 2.5)),
        ("[[1, 2], [3, 4]]", tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
        ("null", int | None, None),
        ("7", int | None, 7),
        ("2", int | float, 2),
        ("[1, 2]", int | tuple[int, int], (1, 2)),
        ("{a: 1, b: 2}", Mapping[str, float], {"a": 1.0, "b": 2.0}),
        ("{a: {x: 1}}", dict[str, dict[str, int]], {"a": {"x": 1}}),
    ],
)
def test_value_of_the_wanted_type(text: str, wanted: object, value: object) -> None:
    converted = convert(given(text), wanted)
    assert converted == value
    assert type(converted) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in converted] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("fast", float, "expected a number, got 'fast'"),
        ("1.0", int, "expected a whole number, got 1.0"),
        ("1e3", int, "expected a whole number, got 1000.0"),
        ("true", int, "expected a whole number, got true"),
        ("true", float, "expected a number, got true"),
        ("1", bool, "expected true or false, got 1"),
        (
            "on",
            bool,
            "expected true or false, got 'on'. Only true and false, in small letters, are truth values",
        ),
        ("3", str, "expected text, got 3. Put it in quotes"),
        ("", str, "expected text, got nothing"),
        ("{a: 1}", str, "expected text, got a mapping"),
        ("[1, 2]", int, "expected a whole number, got a list of 2"),
        (
            "cosin",
            Literal["cosine", "linear"],
            "expected 'cosine' or 'linear', got 'cosin'. Did you mean 'cosine'?",
        ),
        ("7", Literal[4, 8], "expected 4 or 8, got 7"),
        ("true", Literal[1, 2], "expected 1 or 2, got true"),
        ("[1, 2]", tuple[int, int, int], "expected a list of 3 (a whole number), got a list of 2"),
        ("3", tuple[int, int], "expected a list of 2 (a whole number), got 3"),
        ("x", int | None, "expected a whole number, got 'x'"),
        ("x", int | tuple[int, int], "expected a whole number or a list of 2 (a whole number), got 'x'"),
        ("null", int, "expected a whole number, got nothing"),
        ("3", Mapping[str, float], "expected keys, each with a number, got 3"),
    ],
)
def test_value_of_another_type_is_refused(text: str, wanted: object, expected: str) -> None:
    assert message(lambda: convert(given(text), wanted)) == f"x.yaml:1: key: {expected}"


def test_error_inside_a_list_names_the_item() -> None:
    assert message(lambda: convert(given("[1, two]"), tuple[int, int])) == (
        "x.yaml:1: key[1]: expected a whole number, got 'two'"
    )


class Toy:
    """A toy."""

    def __init__(
        self, part: object = None, *, size: int, ratio: float = 0.5, window: tuple[int, int] = (1, 2)
    ):
        if size < 0:
            raise ValueError(f"size must be at least 0, got {size}")
        self.all = (part, size, ratio, window)


def test_constructor_is_called_with_parts_keys_and_defaults() -> None:
    toy = construct(given("{type: toy, size: 3, ratio: 1}"), Toy, "part", apart=("type",))
    assert toy.all == ("part", 3, 1.0, (1, 2))
    assert bind(given("{size: 3}"), Toy) == {"size": 3, "ratio": 0.5, "window": (1, 2)}
    assert parts_of(Toy) == {"part": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{sise: 3}", "x.yaml:1: key.sise: unknown key. Did you mean 'size'?"),
        ("{size: 3, zzz: 1}", "x.yaml:1: key.zzz: unknown key. Known keys: ratio, size, window"),
        ("{ratio: 1}", "x.yaml:1: key: missing 'size' (a whole number)"),
        ("{size: -1}", "x.yaml:1: key: size must be at least 0, got -1"),
        ("{size: 3, part: x}", "x.yaml:1: key.part: unknown key. Known keys: ratio, size, window"),
    ],
)
def test_keys_that_the_constructor_does_not_take(text: str, expected: str) -> None:
    assert message(lambda: construct(given(text), Toy)) == expected


def test_constructor_that_swallows_misspelt_keys_is_refused() -> None:
    def swallows(**kwargs: int) -> None: ...

    def untyped(*, size) -> None: ...

    def unwritable(*, size: complex) -> None: ...

    with pytest.raises(ValueError, match=r"swallows takes \*\*kwargs; name its keys one by one"):
        keys_of(swallows)
    with pytest.raises(ValueError, match="parameter 'size' of untyped has no type annotation"):
        keys_of(untyped)
    with pytest.raises(ValueError, match="parameter 'size' of unwritable: no YAML value has the type"):
        keys_of(unwritable)


def test_a_class_without_a_constructor_has_no_keys() -> None:
    class Guess(Evaluator):
        def class_scores(self, train: LabelledFeatures, test_vectors: Tensor, generator: Generator) -> Tensor:
            return test_vectors.new_zeros(len(test_vectors), train.num_classes)

    assert keys_of(Guess) == parts_of(Guess) == {}


def test_nearest_name_or_all_of_them() -> None:
    assert (
        nearest("vidoe_weight", ["image_weight", "video_weight"], "Known keys")
        == "Did you mean 'video_weight'?"
    )
    assert nearest("qqq", ["b", "a"], "Known keys") == "Known keys: a, b"
    assert nearest("qqq", [], "Known keys") == "Known keys: none"


WRITABLE = (1e-5, 1e22, 0.1, 5.0, math.inf, -math.inf, 10**17, True, None, "", "on", "1e-4", "012", "null")
AWKWARD = (
    "a: b",
    "#x",
    "x, y",
    "[z",
    "é 語",
    "line\nline",
    "tab\there",
    '"quoted"',
    " space ",
    "-",
    "~",
    "a/b.c",
    "\x7f",
)


@pytest.mark.parametrize("value", [*WRITABLE, *AWKWARD])
def test_written_value_reads_back_the_same(value: object) -> None:
    read = plain(tree(dump({"key": value, "nested": {"list": [value, value]}})))
    assert read == {"key": value, "nested": {"list": [value, value]}}
    assert type(read["key"]) is type(value)


def test_small_numbers_are_written_so_that_other_readers_take_them_for_numbers() -> None:
    assert dump({"lr": 1e-5, "large": 1e22, "wide": 1.5e-7}) == "lr: 1.0e-05\nlarge: 1.0e+22\nwide: 1.5e-07\n"
    assert yaml.safe_load(dump({"lr": 1e-5})) == {"lr": 1e-5}


def test_long_mappings_are_written_one_key_a_line() -> None:
    text = dump({"a": {"b": 1, "c": {"d": 2.5}}, "e": {"f" * 40: "g" * 40, "h": {"i": 3}}})
    assert text == f"a: {{b: 1, c: {{d: 2.5}}}}\ne: {{{'f' * 40}: {'g' * 40}, h: {{i: 3}}}}\n"
    assert dump({"e": {"f" * 40: "g" * 40, "h": "i" * 20}}, width=80) == (
        f"e:\n  {'f' * 40}:\n".replace(f"{'f' * 40}:\n", f"{'f' * 40}: {'g' * 40}\n") + f"  h: {'i' * 20}\n"
    )


def test_what_yaml_has_no_words_for_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="cannot be written as YAML"):
        dump({"key": object()})


@dataclass(kw_only=True)
class Source:
    limit: int = 3


class OwnConstructor(Source):
    def __init__(self, *, seconds: float = 0.5) -> None:
        super().__init__(limit=1)


class Inherits(Source):
    pass


def test_a_class_that_derives_from_a_dataclass_has_the_keys_of_its_own_constructor() -> None:
    assert keys_of(OwnConstructor) == {"seconds": Key(float, 0.5)}
    assert keys_of(Inherits) == {"limit": Key(int, 3)}
