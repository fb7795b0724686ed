"""Where recipes, grids of them, evaluation protocols and tokenizers lie, and how a name finds its file"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import vidssl
from vidssl.config.strict_yaml import Node, load
from vidssl.errors import UsageError

SpecKind = Literal["recipes", "grids", "evaluation", "tokenizers"]
PUBLISHED = Path("evaluation/published.yaml")  # what papers report; no protocol, though it lies among them
NAMES: Mapping[SpecKind, str] = {
    "recipes": "recipe",
    "grids": "grid of recipes",
    "evaluation": "protocol",
    "tokenizers": "tokenizer",
}
FOLDERS: Mapping[SpecKind, str] = {**{kind: kind for kind in NAMES}, "grids": "recipes/grids"}
_USES: Mapping[SpecKind, str] = {
    "recipes": "Train it: vidssl train {0}",
    "grids": "Train them all: vidssl grid {0}",
    "evaluation": "Score a run under it: vidssl eval RUN --protocol {0}",
    "tokenizers": "A recipe names it: tokenizer={0}",
}


def spec_roots() -> tuple[Path, Path]:
    """Where specs are looked for: the working folder, then the checkout or what the wheel brought along."""
    package = Path(vidssl.__file__).parent
    installed = package / "specs"
    return Path.cwd(), installed if installed.is_dir() else package.parent


def spec_files(kind: SpecKind) -> dict[str, Path]:
    """Name (path below the folder, without ``.yaml``) -> file of every spec that ``find`` reaches by name."""
    files: dict[str, Path] = {}
    for root in reversed(spec_roots()):
        folder = root / FOLDERS[kind]
        found = (path for path in sorted(folder.rglob("*.yaml")) if _is_of(kind, root, path))
        files |= {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    return files


def _is_of(kind: SpecKind, root: Path, path: Path) -> bool:
    return path != root / PUBLISHED and (kind == "grids" or root / FOLDERS["grids"] not in path.parents)


def find(kind: SpecKind, name: str) -> Path:
    """The file of a spec: a path that exists, or a name in the working folder, or else in the package."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    short = _short(kind, name)
    if not given.is_absolute() and ".." not in given.parts:
        for root in spec_roots():  # without a look through all the folders
            path = root / FOLDERS[kind] / f"{short}.yaml"
            if path.is_file() and _is_of(kind, root, path):
                return path
    raise UsageError(f"{name or repr(name)}: {_missing(kind, name, spec_files(kind))}")


def read(kind: SpecKind, name: str) -> tuple[Node, Path]:
    """Tree and file of a spec."""
    path = find(kind, name)
    tree = load(path)
    other = kind_of(tree)
    if other not in (None, kind):
        raise UsageError(f"{name}: a {NAMES[other]}, not a {NAMES[kind]}. {_USES[other].format(name)}")
    return tree, path


def kind_of(tree: Node) -> SpecKind | None:
    """Which kind of spec a tree is, by its sections; None where they do not show it."""
    keys = tree.value if isinstance(tree.value, Mapping) else {}
    if "objective" in keys:
        return "evaluation" if "train_views" in keys else "recipes"
    if "evaluator" in keys or "measure" in keys:
        return "evaluation"
    if "cells" in keys or "axes" in keys:
        return "grids"
    return "tokenizers" if "type" in keys else None


def locate(word: str) -> tuple[SpecKind, Path]:
    """Kind and file of a spec that a user names, by its content, or else by its folder; a bare name is a
    recipe's.
    """
    kinds: dict[str, SpecKind] = {kind: kind for kind in NAMES}
    folders = [part for part in Path(word).absolute().parts[:-1] if part in kinds]
    kind = kinds[folders[-1]] if folders else "recipes"
    path = find(kind, word)
    return (kind if folders else kind_of(load(path)) or kind), path


def _short(kind: SpecKind, name: str) -> str:
    """A name as ``spec_files`` has it: below the kind's folder, without ``.yaml``."""
    given = Path(name)
    short = given.with_suffix("") if given.suffix == ".yaml" else given
    folder = FOLDERS[kind]
    return (short.relative_to(folder) if short.is_relative_to(folder) else short).as_posix()


def _missing(kind: SpecKind, name: str, files: Mapping[str, Path]) -> str:
    """Why a word names no spec of a kind, and what may have been meant."""
    given, wanted, short = Path(name), NAMES[kind], _short(kind, name)
    if name and given.is_dir():
        own = given / "recipe.yaml"
        is_run = kind == "recipes" and own.is_file()
        return f"a run's folder; its recipe is {own}" if is_run else f"a folder, not a {wanted}: name a file"
    if given.is_file():
        return f"not a {wanted}: the name of its file would end in .yaml"
    for other in NAMES:
        if other != kind and _short(other, name) in spec_files(other):
            return f"no such {wanted}, but a {NAMES[other]}. {_USES[other].format(name)}"
    here = [str(path) for path in sorted(Path.cwd().glob("*.y*ml"))]
    known = {**files, **{Path(path).name: Path(path) for path in here}}
    close = [key for key in known if short in (Path(key).name, Path(key).stem)]
    close = close or difflib.get_close_matches(short, known, n=1)
    if close:
        return f"no such {wanted}. Did you mean '{close[0]}'?"
    return f"no such {wanted}. There are: {_listed(sorted(files))}"


def _listed(names: Sequence[str]) -> str:
    """Names at the top, and for the folders below how many they hold."""
    folders = Counter(name.partition("/")[0] for name in names if "/" in name)
    shown = [name for name in names if "/" not in name]
    return ", ".join([*shown, *(f"{count} in {folder}/" for folder, count in folders.items())]) or "none"
