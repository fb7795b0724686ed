"""Where recipes, evaluation protocols and tokenizers lie, and how a name finds its file."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import vidssl
from vidssl.errors import UsageError

Kind = Literal["recipes", "evaluation", "tokenizers"]
PUBLISHED = Path("evaluation/published.yaml")  # what papers report; no protocol, though it lies among them
NAMES: Mapping[Kind, str] = {"recipes": "recipe", "evaluation": "protocol", "tokenizers": "tokenizer"}


def spec_roots() -> tuple[Path, Path]:
    """Where specs are looked for: the working folder, then the checkout or what the wheel brought along."""
    package = Path(vidssl.__file__).parent
    installed = package / "specs"
    return Path.cwd(), installed if installed.is_dir() else package.parent


def spec_files(kind: Kind) -> dict[str, Path]:
    """Name (path below the folder, without ``.yaml``) -> file of every spec that ``find`` reaches by name."""
    files: dict[str, Path] = {}
    for root in reversed(spec_roots()):
        folder = root / kind
        found = (path for path in sorted(folder.rglob("*.yaml")) if path != root / PUBLISHED)
        files |= {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    return files


def find(kind: Kind, name: str) -> Path:
    """The file of a spec: a path that exists, or a name looked up in the working folder, then in the package.

    Raises:
        UsageError: if there is none, with the nearest name there is.
    """
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    files = spec_files(kind)
    short = given.with_suffix("") if given.suffix == ".yaml" else given
    if short.parts and short.parts[0] == kind:
        short = short.relative_to(kind)
    if short.as_posix() in files:
        return files[short.as_posix()]
    close = difflib.get_close_matches(short.as_posix(), files, n=1)
    hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(sorted(files)) or 'none'}"
    raise UsageError(f"{name}: no such {NAMES[kind]}. {hint}")


def locate(word: str) -> tuple[Kind, Path]:
    """Kind and file of a spec that a user names; its folder tells the kind, else it is a recipe.

    Raises:
        UsageError: if there is none.
    """
    kinds: dict[str, Kind] = {kind: kind for kind in NAMES}
    folders = [part for part in Path(word).absolute().parts[:-1] if part in kinds]
    kind = kinds[folders[-1]] if folders else "recipes"
    return kind, find(kind, word)
