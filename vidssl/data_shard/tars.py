"""The files of a tar that others made, in one pass, and whether it is whole."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

_KEY_AND_ENDING = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # WebDataset's rule
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_KEPT = 2 * tarfile.BLOCKSIZE


class DamagedTar(Exception):
    """A tar cannot be read further; ``reason`` in words. What came before is sound."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def split_name(name: str) -> tuple[str, str]:
    """Key of a sample and the ending of one of its files, which begins at the first dot of the base name.

    >>> split_name("train/0001.left.mp4")
    ('train/0001', 'left.mp4')

    The ending is empty for what belongs to no sample: hidden files and those without a dot.
    """
    match = _KEY_AND_ENDING.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else (name, "")


def walk_tar(file: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Everything in a tar, in order; contents can be read until the next is asked for.

    Raises:
        DamagedTar: if it ends early, is damaged or compressed, or is no tar.
        OSError: if it cannot be read.
    """
    source = file if file.seekable() else Onward(file)
    start = source.read(6)
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise DamagedTar(
                f"compressed with {name}: unpack it to a plain .tar, for samples are read in place"
            )
    source.seek(0)
    try:
        with tarfile.open(fileobj=source, mode="r:") as tar:
            for info in tar:
                yield tar, info
            source.seek(tar.offset)
            if source.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DamagedTar(f"damaged behind byte {tar.offset}: no header of a file where one should be")
    except tarfile.TarError as error:
        raise DamagedTar(f"damaged or cut off ({error})") from error


class Onward(io.RawIOBase):
    """A stream that goes forwards, or back by two blocks of a tar: all that ``tarfile`` asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last = b""  # bytes just passed
        self._passed = 0
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._passed - len(self._last):
            raise io.UnsupportedOperation("only forwards")
        while offset > self._passed and self._pass(min(offset - self._passed, 1 << 20)):
            pass
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if self._place > self._passed:  # a seek past the end
            return b""
        held = (
            self._last[len(self._last) - (self._passed - self._place) :]
            if self._place < self._passed
            else b""
        )
        if size >= 0:
            held = held[:size]
        more = b""
        if size < 0 or len(held) < size:
            more = self._pass(size - len(held) if size >= 0 else -1)
        self._place += len(held) + len(more)
        return held + more

    def _pass(self, size: int) -> bytes:
        found = self._file.read(size)
        self._last = (self._last + found)[-_KEPT:] if len(found) < _KEPT else found[-_KEPT:]
        self._passed += len(found)
        return found
