"""The shape of the repository: who imports whom, how large files grow, what lies where."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vidssl.build.build import check, check_file
from vidssl.config.files import FOLDERS, NAMES, SpecKind
from vidssl.config.grid import check_grid

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vidssl"
MODULES = sorted(PACKAGE.rglob("*.py"))
BESIDE = sorted(path for folder in ("tests", "docs") for path in (ROOT / folder).rglob("*.py"))
SPECS = {
    kind: sorted(
        path
        for path in (ROOT / FOLDERS[kind]).rglob("*.yaml")
        if ("grids" in path.relative_to(ROOT).parts) == (kind == "grids")
    )
    for kind in NAMES
}

PAPER_GRIDS = [path for path in SPECS["grids"] if path.parent.name == "paper"]  # large networks, many cells

# Floors of a house, the ground floor first; a module imports its own floor or one below.
FLOORS = (
    {"__init__", "errors", "interfaces"},
    {"config"},
    {"engine"},
    {"weights", "layers"},
    {"objectives", "backbones", "tokenizers", "maskers", "data"},
    {"evaluators"},
    {"build"},
    {"train"},
    {"evaluate"},
    {"compare", "pictures"},
    {"use"},
    {"tools"},
    {"api", "cli", "__main__"},
)

# Bounds of size: what was reached. They go down, and up only for a reason that is worth its lines.
MOST_AT_TOP = 25
MOST_LINES_A_FILE = 600
FEWEST_LINES_A_FILE = 40
MOST_LINES = 57_270  # the last that came: grids of cells that see clips of their own, with 28
MOST_FILES = 225
MOST_IMPORTS = 0.09  # of the lines of code, without docstrings, comments and empty lines
SMALL = {"__main__.py": "python -m vidssl"}  # file -> why it stands alone
KINDS_OF_COMPONENTS = next(names for names in FLOORS if "objectives" in names)


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or inside functions, without the ``vidssl.``."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name[7:] for alias in node.names if alias.name.startswith("vidssl."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "vidssl":
                names = (alias.name for alias in node.names)
                yield from (n for n in names if (PACKAGE / n).is_dir() or (PACKAGE / f"{n}.py").is_file())
            elif (node.module or "").startswith("vidssl."):
                yield str(node.module)[7:]


def top(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if module in names]
    assert found, f"vidssl/{module} has no floor: add it to FLOORS"
    return found[0]


def own_name(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(path)))


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """Trees of all files take half a gigabyte, which processes that later tests fork would pay for."""
    yield
    tree_of.cache_clear()
    nodes_of.cache_clear()


def code_lines(path: Path) -> tuple[int, int]:
    """How many lines hold code (no docstring, no comment, not empty), and how many of those import."""
    lines = enumerate(path.read_text().splitlines(), 1)
    code = {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")}
    imports: set[int] = set()
    for node in nodes_of(path):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # docstrings
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code), len(imports)


def test_imports_run_downwards() -> None:
    assert len(MODULES) > 100
    for path in MODULES:
        own = own_name(path)
        for module in imported(path):
            other = top(module)
            assert floor(other) <= floor(own), f"{path} imports vidssl.{module}, which stands above it"
            if own in KINDS_OF_COMPONENTS and other in KINDS_OF_COMPONENTS:
                assert own == other, f"{path}: a component of {own} imports one of {other}"


def test_the_package_keeps_to_its_size() -> None:
    """Prints what it is where it is too much."""
    at_top = {path.relative_to(PACKAGE).parts[0] for path in MODULES}
    lines = sum(num_lines(path) for path in MODULES)
    code, imports = (sum(column) for column in zip(*map(code_lines, MODULES), strict=True))
    size = (
        f"{len(at_top)} entries at the top, {len(MODULES)} files, {lines} lines, {code} of them code and "
        f"{imports} imports ({imports / code:.1%} of the code)"
    )
    assert len(at_top) <= MOST_AT_TOP, size
    assert len(MODULES) <= MOST_FILES, size
    assert lines <= MOST_LINES, size
    assert imports <= MOST_IMPORTS * code, size


def test_the_import_walk_sees_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import vidssl.data.decode.decode\n"
        "from vidssl import build, __version__\n"
        "def f():\n    from vidssl.engine.optim import AdamW\n"
    )
    assert list(imported(file)) == ["data.decode.decode", "build", "engine.optim"]


def test_public_signatures_name_every_parameter() -> None:
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                not node.name.startswith("_") or node.name in ("__init__", "__call__")
            ):
                assert node.args.kwarg is None, f"{path}:{node.lineno}: {node.name} takes **kwargs"


def test_files_are_neither_long_nor_slivers() -> None:
    assert len(BESIDE) > 100
    long = {str(path): num_lines(path) for path in [*MODULES, *BESIDE] if num_lines(path) > MOST_LINES_A_FILE}
    assert long == {}
    small = {
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if path.name != "__init__.py" and num_lines(path) < FEWEST_LINES_A_FILE
    }
    assert small <= set(SMALL), "merge it into the file that uses it, or give a reason in SMALL"


def test_nothing_broad_is_caught_and_nothing_is_probed() -> None:
    for path in MODULES:
        broad = 1 if path.name == "storage.py" else 0  # errors of storage services have no common base
        for node in nodes_of(path):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                broad -= caught == "Exception"
                assert broad >= 0 or caught not in ("everything", "Exception", "BaseException"), (
                    f"{path}:{node.lineno}"
                )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "hasattr", f"{path}:{node.lineno}: hasattr"


def needed(start: str) -> set[str]:
    """Modules of the package that importing one needs, itself left out.

    Imports are read as they stand. A package's ``__init__`` that only hands on what its modules define
    counts as the modules that the names come from, and is no file of its own.
    """
    found: set[str] = set()
    todo = [start]
    while todo:
        path = PACKAGE / f"{todo.pop()}.py"
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vidssl."):
                module = str(node.module)[7:].replace(".", "/")
                for name in (alias.name for alias in node.names):
                    inner = module
                    if (PACKAGE / module).is_dir():
                        beside = f"{module}/{name}"  # a module of it, or what its __init__ hands on
                        is_module = (PACKAGE / f"{beside}.py").is_file()
                        inner = beside if is_module else definers(module).get(name, module)
                    if inner not in found:
                        found.add(inner)
                        todo.append(inner)
    return found - {start}


def definers(package: str) -> dict[str, str]:
    """Name that a package hands on -> module that defines it, as paths below the package."""
    tree = tree_of(PACKAGE / package / "__init__.py")
    return {
        alias.name: str(node.module)[7:].replace(".", "/")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_training_loop_fits_on_a_screen() -> None:
    """From fetching a batch to saving, in one function and in this order."""
    path = PACKAGE / "train" / "loop.py"
    (loop,) = (node for node in tree_of(path).body if getattr(node, "name", "") == "train_steps")
    assert loop.end_lineno - loop.lineno < 80
    text = "\n".join(path.read_text().splitlines()[loop.lineno : loop.end_lineno])
    words = ("next(fixed.loader)", "forward_backward(", "clip_gradients(", "guard.passes(", "scaler.step(")
    places = [text.rindex(word) for word in (*words, "_log(", "_save(")]
    assert places == sorted(places)


def test_an_objective_can_be_read_alone() -> None:
    assert len(needed("objectives/bevt")) <= 9


def test_there_is_no_any_in_the_interfaces() -> None:
    files = sorted((PACKAGE / "interfaces").glob("*.py"))
    assert len(files) > 5
    assert [path.name for path in files if re.search(r"\bAny\b", path.read_text())] == []


def test_spec_folders_hold_no_python() -> None:
    assert [path for kind in NAMES for path in (ROOT / FOLDERS[kind]).rglob("*.py")] == []


def test_specs_are_found() -> None:
    """A glob that finds nothing passes for ever."""
    least = {"recipes": 32, "grids": 20, "evaluation": 27, "tokenizers": 4}
    assert {kind: len(paths) for kind, paths in SPECS.items() if len(paths) < least[kind]} == {}
    assert len(PAPER_GRIDS) >= 9


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param(kind, path, marks=[pytest.mark.slow] * (path in PAPER_GRIDS))
        for kind, paths in SPECS.items()
        for path in paths
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_every_spec_builds_on_the_meta_device(kind: SpecKind, path: Path) -> None:
    check_file(kind, path)


@pytest.mark.parametrize("path", PAPER_GRIDS, ids=lambda path: path.stem)
def test_the_ends_of_a_grid_of_large_networks_build(path: Path) -> None:
    first, *_, last = check_grid(str(path))
    for _, recipe in (first, last):
        check(recipe)


def test_every_spec_of_the_repository_lies_in_a_spec_folder() -> None:
    ours = {path for paths in SPECS.values() for path in paths}
    hidden = re.compile(r"(^|/)(\.|build/|dist/|runs/)|^docs/(examples|site)/")
    found = {path for path in ROOT.rglob("*.y*ml") if not hidden.search(path.relative_to(ROOT).as_posix())}
    assert found == ours


def test_modules_that_the_docs_name_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    for page in set(pages) - {ROOT / "CHANGELOG.md"}:  # which names what there was
        for name in re.findall(r"\bvidssl/[\w/]+(?:\.py\b|/)", page.read_text()):
            # CONTRIBUTING.md says where the example would go
            assert (ROOT / name).exists() or name.endswith("clip_order.py"), f"{page.name}: {name}"
        for name in re.findall(r"\bvidssl\.[a-z_.]*[a-z_]", page.read_text()):
            path = ROOT / name.replace(".", "/")
            assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in (path, path.parent)), (
                f"{page.name}: {name}"
            )
