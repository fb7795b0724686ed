"""How tests pack files into shards, and look into these without any of the code that made them."""

import hashlib
import json
import tarfile
from io import BytesIO, StringIO
from pathlib import Path

import fsspec
import pytest
from data_clips import write_clip
from fsspec.implementations.local import LocalFileSystem
from rich.console import Console

from vidssl.data.sources.tar.index import ShardIndex
from vidssl.tools.data import runner
from vidssl.tools.data.index import index_data
from vidssl.tools.data.shard import shard_data

KEYS = ["run/a.mp4", "run/b.c.MP4", "run/ü 1.mp4", "walk/d.avi", "walk/e.mp4"]
TWO = 4500 + 2 * 2048  # bytes of a shard that holds two or three of them


class Shelf(LocalFileSystem):
    """Folders of this machine under an address of another kind, as a service elsewhere has it."""

    protocol = "shelf"

    def __init__(self, **how: object) -> None:
        super().__init__(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("shelf://"))


fsspec.register_implementation("shelf", Shelf, clobber=True)


def console(text: StringIO) -> Console:
    return Console(file=text, width=300, force_terminal=False)


def pack(path: Path, out: object, **how: object) -> tuple[int, str]:
    text = StringIO()
    code = shard_data(path, str(out), console=console(text), **{"processes": 2, **how})
    return code, text.getvalue()


def look(address: object, **how: object) -> tuple[int, str]:
    text = StringIO()
    code = index_data(str(address), console=console(text), **{"processes": 2, **how})
    return code, text.getvalue()


def read_index(path: Path) -> ShardIndex:
    return ShardIndex(path.read_bytes(), str(path))


def rows(path: Path) -> list[dict]:
    """Lines of an index that describe samples, each with its shard."""
    found, shard = [], ""
    for line in path.read_text().splitlines()[1:]:
        row = json.loads(line)
        shard = row.get("shard", shard)
        if "key" in row:
            found.append({**row, "shard": shard})
    return found


def content(folder: Path, row: dict) -> bytes:
    """The bytes of a sample, where the index says that they lie."""
    return (folder / row["shard"]).read_bytes()[row["start"] : row["start"] + row["bytes"]]


def members(path: Path) -> dict[str, bytes]:
    """What an ordinary reader finds in a tar, in order."""
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def write_tar(path: Path, files: dict[str, bytes | None]) -> Path:
    """A tar as others make it; None stands for a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type = tarfile.DIRTYPE
            tar.addfile(info, BytesIO(data or b""))
    return path


def contents(out: Path) -> dict[str, str]:
    """Path -> digest of all files below a folder."""
    there = (path for path in out.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def write_five(root: Path) -> Path:
    """Videos of 5 to 9 frames at ``KEYS``."""
    for number, key in enumerate(KEYS):
        write_clip(root / key, 5 + number, codec="mpeg4" if key.endswith("avi") else "libx264")
    return root


def pack_five(root: Path, out: Path) -> tuple[Path, str]:
    """All of them, and what was said."""
    code, text = pack(root, out, shard_bytes=TWO)
    assert code == 0, text
    return out, text


def do_here(patch: pytest.MonkeyPatch) -> None:
    """What commands give to processes is done in this one."""
    patch.setattr(runner, "work", lambda tasks, job, **_: ((task, job(task)) for task in tasks))
