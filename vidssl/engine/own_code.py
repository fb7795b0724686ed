"""Code and addresses that a run's recipe names: kept with the run, and used again for one's own runs only.

A checkpoint may come from anywhere, and so may a whole run folder. ``train`` copies the files of a recipe's
own parts into ``code/`` of the run, and notes the digest of recipe and files in
``~/.local/state/vidssl/trained``. What is read later is the user's own if its digest stands there.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from vidssl.config.strict_yaml import Node, parse
from vidssl.engine.process import make_folder, write_atomically

_PROSE = ("source", "licence", "command")  # of a tokenizer's weights: texts, nothing is fetched from them
_FETCHED = re.compile(
    r"(?!file://).*(://|::)|(timm|torchvision|pytorchvideo|transformers|hf[-_]hub|local-dir):"
)


def code_in(node: Node) -> list[Node]:
    """The values ``FILE.py:CLASS`` of all keys ``type`` below a node."""
    return [leaf for key, leaf in _texts(node) if key == "type" and ".py:" in str(leaf.value)]


def addresses_in(node: Node) -> list[Node]:
    """Values below a node that make their components fetch from elsewhere.

    ``backbone.init`` is none of them: what has been trained is not started from it again.
    """
    return [
        leaf
        for key, leaf in _texts(node)
        if _FETCHED.match(str(leaf.value)) and key not in _PROSE and leaf.path != "backbone.init"
    ]


def _texts(node: Node, key: str = "") -> Iterator[tuple[str, Node]]:
    if isinstance(node.value, Mapping):
        for name, entry in node.value.items():
            yield from _texts(entry, name)
    elif isinstance(node.value, tuple):
        for item in node.value:
            yield from _texts(item, key)
    elif isinstance(node.value, str):
        yield key, node


def files_of(addresses: Iterable[str]) -> dict[str, bytes]:
    """The files of imported parts ``FILE.py:CLASS``, and of modules beside them that they imported.

    Returns:
        path below the part's folder -> content.
    """
    files = list(map(_file, addresses))
    found = {file.name: file.read_bytes() for file in files}
    for folder in {file.parent for file in files}:
        tops = {name.split(".")[0] for name in list(sys.modules)} - {"vidssl"}
        beside = {top for top in tops if (folder / top).is_dir() or (folder / f"{top}.py").is_file()}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] not in beside or not (known := getattr(module, "__file__", None)):
                continue
            inner = Path(*name.split("."))
            for path in (inner.with_name(f"{inner.name}.py"), inner / "__init__.py"):
                if (folder / path).is_file() and (folder / path).samefile(known):
                    found[path.as_posix()] = (folder / path).read_bytes()
    return found


def keep_own(run: Path, recipe: str, code: Mapping[str, bytes], say: Callable[[str], None]) -> None:
    """Copies a recipe's own parts into its run, and notes that the run is one's own.

    Args:
        recipe: text of the resolved recipe.
        code: of ``files_of``.
        say: gets a line if the note cannot be written.

    Raises:
        UsageError: if the copies cannot be written.
    """
    if not code and not (recipe and addresses_in(parse(recipe, lambda line: f"line {line}"))):
        return
    for name, content in code.items():
        path = run / "code" / name
        make_folder(path.parent)
        write_atomically(path, partial(_write, content))
    kept = kept_code(run)
    texts = {
        recipe,
        (run / "recipe.yaml").read_text(encoding="utf-8"),
    }  # a run that resumes may differ in `run`
    lines = "".join(f"{_digest(text, kept)}  {run.resolve()}\n" for text in texts)
    try:
        record = _record()
        record.parent.mkdir(parents=True, exist_ok=True)
        with open(record, "a", encoding="utf-8") as file:
            file.write(lines)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        say(f"This run cannot be noted as yours ({error}): 'vidssl eval' will ask for --trust.")


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def kept_code(run: Path) -> dict[str, bytes]:
    """The files in ``code/`` of a run; path below it -> content."""
    folder = run / "code"
    if not (run / "recipe.yaml").is_file():
        return {}  # no run folder: what is called code there is something else
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def own_run(recipe: str, run: Path) -> Path | None:
    """The folder of a run that this user trained with a recipe of this text, its parts' copies unaltered.

    Args:
        run: is looked at first; others for what was copied out of its run.
    """
    try:
        lines = _record().read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return None
    noted = dict(line.split("  ", 1) for line in lines if "  " in line)
    for folder in dict.fromkeys([run, *map(Path, reversed(noted.values()))]):
        if _digest(recipe, kept_code(folder)) in noted:
            return folder
    return None


def with_kept_code(node: Node, run: Path) -> Node:
    """The same recipe with parts taken from a run's copies where the original files are gone or changed."""
    return _with_copies(node, run, kept_code(run))


def _with_copies(node: Node, run: Path, kept: Mapping[str, bytes]) -> Node:
    if isinstance(node.value, tuple):
        return replace(node, value=tuple(_with_copies(item, run, kept) for item in node.value))
    if not isinstance(node.value, Mapping):
        return node
    entries = {key: _with_copies(entry, run, kept) for key, entry in node.value.items()}
    for leaf in [entry for key, entry in entries.items() if key == "type" and ".py:" in str(entry.value)]:
        file, name = _file(str(leaf.value)), str(leaf.value).rpartition(":")[2]
        if file.name in kept and not _unchanged(file.parent, kept):
            entries["type"] = replace(leaf, value=f"{run / 'code' / file.name}:{name}")
    return replace(node, value=entries)


def _unchanged(folder: Path, kept: Mapping[str, bytes]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).read_bytes() == content
        for name, content in kept.items()
    )


def _file(address: str) -> Path:
    return Path(address.rpartition(":")[0]).resolve()


def _record() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "vidssl" / "trained"


def _digest(recipe: str, kept: Mapping[str, bytes]) -> str:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in kept.items()}
    return hashlib.sha256(json.dumps([recipe, files], sort_keys=True).encode()).hexdigest()
