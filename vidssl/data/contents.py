"""A file to decode: a path, or bytes that were read from somewhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and the name that it goes by in messages.

    The name's ending helps FFmpeg to tell formats apart, as that of a path does.
    """

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


File = Path | Content


class _Named(BytesIO):
    """Bytes under a name that no file has."""

    def __init__(self, content: Content) -> None:
        super().__init__(content.data)
        self.name = "content" + PurePosixPath(content.name).suffix


def opened(file: File) -> BinaryIO:
    """The file, to be read and moved about in; used as a context.

    Raises:
        OSError: if it cannot be opened.
    """
    return file.open("rb") if isinstance(file, Path) else _Named(file)
