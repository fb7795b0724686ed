"""What is prepared already: a line for each video, written once its result is safe on the disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from vidssl.data_prepare.makers import Prepared
from vidssl.errors import UsageError

NAME = "prepared.jsonl"
_KIND, _VERSION = "vidssl prepared videos", 1


class Journal:
    """The journal of an output folder, open for more lines.

    A line that a kill left unfinished is passed over. Of several lines about a video the last one counts.

    Args:
        folder: of the output.
        settings: what the results are; a folder holds results of one kind only.

    Attributes:
        latest: key -> what became of it.
        lines: of all results that were ever made, the ones that others took the place of too.

    Raises:
        UsageError: if the folder holds results of another kind, or files of somebody else, or cannot be
            written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.path = folder / NAME
        self.latest: dict[str, Prepared] = {}
        self.lines: list[Prepared] = []
        head = {"kind": _KIND, "version": _VERSION, **settings}
        begun = self.path.exists() and self._read(head)
        if not self.path.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise UsageError(
                f"{folder} holds files and no {NAME}, so they are not of 'data prepare'. Take another folder"
            )
        try:
            # unbuffered: what a full disk refused is not written once more when the file is closed
            self._file = self.path.open("ab", buffering=0)
            # the first byte ends a line that a kill or a full disk left unfinished
            self._file.write(b"\n" if begun else b"\n" + json.dumps(head).encode() + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _read(self, head: Mapping[str, object]) -> bool:
        """Takes in what is written there; whether the first line is."""
        rows = list(_whole_lines(self.path))
        if rows and rows[0] != head:
            given = ", ".join(f"{name} {value}" for name, value in head.items() if rows[0].get(name) != value)
            raise UsageError(
                f"{self.path.parent} was prepared with other settings (now {given or 'fewer'}). Take another "
                f"folder, or the settings in the first line of {NAME}"
            )
        for row in rows[1:]:
            done = Prepared(**{**row, "source": tuple(row["source"])})  # type: ignore[arg-type]
            self.latest[done.key] = done
            self.lines.append(done)
        return bool(rows)

    def add(self, done: Prepared) -> None:
        """Writes a line and waits until the disk has it."""
        line = json.dumps(asdict(done), separators=(",", ":")).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._file.fileno())
        self.latest[done.key] = done
        self.lines.append(done)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(path: Path) -> Iterator[dict[str, object]]:
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # the last line before a kill, or an empty one
            continue
        if isinstance(row, dict):
            yield row
