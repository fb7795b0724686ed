"""Two shards of videos that show their frames, and an address that counts what is fetched from it."""

import io
import re
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_clips import write_clip
from PIL import Image

from vidssl.data.decode.decode import VideoFacts
from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.sources.manifest import FileRecord
from vidssl.data.sources.tar import storage as places
from vidssl.data.sources.tar.index import IMAGE, INDEX, Member, Shard, write_index
from vidssl.data.sources.tar.source import TarShards
from vidssl.data.sources.tar.storage import Address
from vidssl.engine.process import file_sha256
from vidssl.interfaces import UnreadableSample

CLASSES = {"class": ("run", "walk")}
LENGTHS = {"run/0.mp4": 10, "walk/1.avi": 12, "run/2.mkv": 14, "walk/3.mp4": 16, "run/4.mp4": 18}


def write_videos(root: Path) -> Path:
    """Five clips that show their frames' numbers, an image, and a file that is no video."""
    for key, length in LENGTHS.items():
        write_clip(root / key, length, codec="mpeg4" if key.endswith("avi") else "libx264")
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "walk" / "5.png")
    (root / "run" / "6.mp4").write_text("not found, sorry")
    return root


def entry_of(root: Path, key: str) -> FileRecord:
    labels = {"class": key.split("/")[0]}
    path = root / key
    if path.suffix != ".png":
        return examine(FileToExamine(root, key, labels))
    facts = VideoFacts(1, 1, 0.0, 20, 30, 0, "png", "", (), (), 0.0)
    size = path.stat().st_size
    return FileRecord(key, "ok", "", size, 0, file_sha256(path), labels, facts, IMAGE, "unknown", 1)


def pack(root: Path, name: str, keys: list[str]) -> tuple[bytes, Shard]:
    """A tar of files, and what its index says."""
    entries = [entry_of(root, key) for key in keys]
    file, starts = io.BytesIO(), {}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, entry in enumerate(entries):
            if entry.usable:
                member = tarfile.TarInfo(f"{number:08d}{Path(entry.key).suffix}")
                member.size = entry.bytes
                tar.addfile(member, io.BytesIO((root / entry.key).read_bytes()))
                starts[entry.key] = file.tell() - (entry.bytes + 511) // 512 * 512
    members = tuple(Member(entry, starts.get(entry.key, -1)) for entry in entries)
    return file.getvalue(), Shard(name, len(file.getvalue()), members)


def pack_two(videos: Path) -> dict[str, bytes]:
    """Name -> content of two shards and their index."""
    first, one = pack(videos, "00000.tar", ["run/0.mp4", "walk/1.avi", "run/6.mp4", "walk/5.png"])
    second, two = pack(videos, "more/00001.tar", ["run/2.mkv", "walk/3.mp4", "run/4.mp4"])
    index = io.BytesIO()
    write_index(index, [one, two], CLASSES)
    return {"00000.tar": first, "more/00001.tar": second, INDEX: index.getvalue()}


class Counting(fsspec.get_filesystem_class("memory")):
    """Counts what is fetched, over all processes."""

    protocol = "counting"
    log: Path

    def get_file(self, path, lpath, **more) -> None:
        with Counting.log.open("a") as log:
            log.write(f"{path}\n")
        super().get_file(path, lpath, **more)

    def cat_file(self, path, start=None, end=None, **more):
        if start is not None:
            with Counting.log.open("a") as log:
                log.write("range\n")
        return super().cat_file(path, start, end, **more)


fsspec.register_implementation("counting", Counting, clobber=True)


def count_fetches(log: Path, patch: pytest.MonkeyPatch) -> None:
    """From now on; and nothing waits before it tries again."""
    patch.setattr(places, "PAUSES_SECONDS", ())
    log.touch()
    Counting.log = log


def put(packed: dict[str, bytes], root: str) -> str:
    place = Address(root)
    for name, content in packed.items():
        with place.write(name) as file:
            file.write(content)
    return root


def fetched() -> list[str]:
    return [re.sub(r"^.*[0-9a-f]{32}/", "", line) for line in Counting.log.read_text().splitlines()]


def reasons(source: TarShards) -> dict[str, str]:
    """Key -> what is said of it, of samples that cannot be read."""
    found = {}
    for index in range(len(source)):
        try:
            source.read(index, [0, 0])
        except UnreadableSample as error:
            found[error.key] = error.reason
    assert set(found) <= {source.key(index) for index in range(len(source))}
    return found
