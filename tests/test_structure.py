"""The shape of the repository: who imports whom, how large files grow, what lies where."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidssl.build.build import check_file
from vidssl.config.files import NAMES, Kind

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vidssl"
MODULES = sorted(PACKAGE.rglob("*.py"))
BESIDE = sorted(path for folder in ("tests", "docs") for path in (ROOT / folder).rglob("*.py"))
SPECS = {kind: sorted((ROOT / kind).rglob("*.yaml")) for kind in NAMES}

# Floors of a house, the ground floor first; a module imports its own floor or one below.
FLOORS = (
    {"__init__", "errors", "interfaces"},
    {"config"},
    {"engine"},
    {"weights", "layers"},
    {"objectives", "backbones", "tokenizers", "maskers", "data"},
    {"evaluators"},
    {"build"},
    {"train", "compatibility_page"},
    {"evaluate", "compatibility"},
    {"compare", "pictures"},
    {"tools"},
    {"api", "cli", "__main__"},
)
KINDS_OF_COMPONENTS = next(names for names in FLOORS if "objectives" in names)


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at its top or inside functions, without the ``vidssl.``."""
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_there_is_a_package_to_look_at() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    own = own_name(path)
    for module in imported(path):
        other = top(module)
        assert floor(other) <= floor(own), f"{path.name} imports vidssl.{module}, which stands above it"
        if own in KINDS_OF_COMPONENTS and other in KINDS_OF_COMPONENTS:
            assert own == other, f"a component of {own} imports one of {other}"


def test_the_import_walk_sees_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import vidssl.data.decode.decode\n"
        "from vidssl import build, __version__\n"
        "def f():\n    from vidssl.engine.optim import AdamW\n"
    )
    assert list(imported(file)) == ["data.decode.decode", "build", "engine.optim"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_signatures_name_every_parameter(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            assert node.args.kwarg is None, f"{path.name}:{node.lineno}: {node.name} takes **kwargs"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_under_600_lines(path: Path) -> None:
    assert num_lines(path) < 600


def test_tests_and_scripts_stay_under_600_lines() -> None:
    assert len(BESIDE) > 100
    assert {path.name: num_lines(path) for path in BESIDE if num_lines(path) >= 600} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_broad_is_caught_and_nothing_is_probed(path: Path) -> None:
    broad = 1 if path.name == "storage.py" else 0  # errors of storage services have no common base
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            broad -= caught == "Exception"
            assert broad >= 0 or caught not in ("everything", "Exception", "BaseException"), (
                f"{path.name}:{node.lineno}"
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "hasattr", f"{path.name}:{node.lineno}: hasattr"


# a second of import each; a command imports them when a part asks for them
HEAVY = {"faiss", "pytorchvideo", "sklearn", "timm", "torchvision", "torch.distributed.fsdp", "torch._dynamo"}


def at_the_top(path: Path) -> Iterator[str]:
    """Modules that a file imports when it is imported; not those for a type checker."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    found = [name for name in at_the_top(path) for heavy in HEAVY if f"{name}.".startswith(f"{heavy}.")]
    assert found == [], "import it inside the function that uses it"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["check", "recipes/bevt.yaml"], ["list"]], ids=lambda words: words[0])
def test_a_command_imports_no_heavy_library(command: list[str]) -> None:
    code = "import sys; from vidssl.cli.main import main; main(sys.argv[1:]); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines())
    assert "torch.nn" in loaded
    assert loaded & {*HEAVY, "sympy", "torch.distributed.tensor"} == set()


def test_there_is_no_any_in_the_interfaces() -> None:
    files = sorted((PACKAGE / "interfaces").glob("*.py"))
    assert len(files) > 5
    assert [path.name for path in files if re.search(r"\bAny\b", path.read_text())] == []


def test_spec_folders_hold_no_python() -> None:
    assert [path for kind in NAMES for path in (ROOT / kind).rglob("*.py")] == []


def test_specs_are_counted() -> None:
    """A glob that finds nothing passes for ever: change the numbers when a file comes or goes."""
    assert {kind: len(paths) for kind, paths in SPECS.items()} == {
        "recipes": 74,
        "evaluation": 27,
        "tokenizers": 4,
    }


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind, paths in SPECS.items() for path in paths],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_every_spec_builds_on_the_meta_device(kind: Kind, path: Path) -> None:
    check_file(kind, path)


def test_every_spec_of_the_repository_lies_in_a_spec_folder() -> None:
    ours = {path for paths in SPECS.values() for path in paths}
    hidden = re.compile(r"(^|/)(\.|build/|dist/|runs/)")
    found = {path for path in ROOT.rglob("*.y*ml") if not hidden.search(path.relative_to(ROOT).as_posix())}
    assert found == ours
