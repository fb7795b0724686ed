"""A file to decode: a path, or bytes that were read from somewhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and the name that it goes by in messages."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


File = Path | Content


def opened(file: File) -> BinaryIO:
    """The file, to be read and moved about in; used as a context.

    Raises:
        OSError: if it cannot be opened.
    """
    return file.open("rb") if isinstance(file, Path) else BytesIO(file.data)
