"""What is prepared already: a line for each video, written once its result is safe on the disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from vidssl.data.sources.tar.index import INDEX, Shard, ShardIndex, parse_shards, write_index
from vidssl.data.sources.tar.storage import Address
from vidssl.errors import UsageError, counted
from vidssl.tools.data.encode import Prepared
from vidssl.tools.data.plan import Plan

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


_FOLDER = ".sharding"
_PLAN = f"{_FOLDER}/plan.json"
_OPTIONS = {"seed": "--seed", "shard_bytes": "--shard-mb", "images": "--images"}


class Parts:
    """The shards of a plan that are finished at an address.

    Args:
        out: of the shards.
        plan: what they hold; a place has shards of one plan only.

    Attributes:
        index: of all shards, once all are finished.

    Raises:
        UsageError: if there are shards of another plan, or files of somebody else.
        OSError: if the place cannot be read or written.
    """

    def __init__(self, out: Address, plan: Plan) -> None:
        self._out = out
        self._plan = plan
        self.index: ShardIndex | None = None
        self._remove_halves()
        begun = _read(out, _PLAN)
        finished = _read(out, INDEX)
        if begun is not None:
            self._compare(begun)
        if finished is not None:
            self.index = ShardIndex(finished, out.file(INDEX))
            if self.index.plan != plan.digest:
                raise UsageError(_other(out, "its files, or the settings of the call, are others now"))
            if self._part(plan.shards[-1].name) is not None:  # a call was ended before it had tidied up
                self._tidy()
        elif begun is None:
            self._refuse_others()
            with out.write(_PLAN) as file:
                file.write(json.dumps(dict(plan.settings)).encode())

    def _compare(self, begun: bytes) -> None:
        try:
            settings = json.loads(begun)
            changed = [name for name, value in self._plan.settings.items() if settings[name] != value]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(_other(self._out, f"{_PLAN} is damaged")) from error
        options = [
            f"{_OPTIONS[name]} was {_shown(name, settings[name])}" for name in changed if name in _OPTIONS
        ]
        if options:
            raise UsageError(_other(self._out, ", ".join(options)))
        if changed:
            raise UsageError(_other(self._out, "files or labels were added, removed or changed since"))

    def _refuse_others(self) -> None:
        """Raises UsageError if something lies in the place that is not from here."""
        local = self._out.local
        if local is not None:
            there = sorted(path.name for path in local.iterdir() if not path.name.startswith("."))
        else:
            there = []
            with suppress(FileNotFoundError):  # what holds no file does not exist, in many services
                there = self._out.names(".tar")
        if there:
            raise UsageError(
                f"{self._out} holds files that are not of 'data shard', such as {there[0]}. Take another "
                "place (shards made elsewhere are described by 'vidssl data index')"
            )

    def _remove_halves(self) -> None:
        """Removes what processes that were killed left half written."""
        if self._out.local is not None:
            for folder in (self._out.local, self._out.local / _FOLDER):
                for path in folder.glob(".*.tmp"):
                    path.unlink(missing_ok=True)

    def finished(self) -> set[str]:
        """Names of the shards that need not be packed again."""
        names = set(self._out.names(".tar"))
        return {
            shard.name
            for shard in filter(None, (self._part(planned.name) for planned in self._plan.shards))
            if shard.name in names and (self._out.local is None or self._out.size(shard.name) == shard.bytes)
        }

    def add(self, shard: Shard) -> None:
        """Notes that a shard is finished."""
        with self._out.write(_part_name(shard.name)) as file:
            file.write(shard.to_lines().encode())

    def finish(self) -> ShardIndex:
        """Writes the index of all shards and removes what was noted before.

        Raises:
            UsageError: if shards that other processes wrote are not to be seen.
            OSError: if it cannot be written.
        """
        gone = {planned.name for planned in self._plan.shards}.difference(self._out.names(".tar"))
        if gone:
            raise UsageError(
                f"{self._out}: written, but gone: {counted(len(gone), 'shard')}, such as {min(gone)}. Is "
                "it a place that all processes share, and that lasts?"
            )
        with self._out.write(INDEX) as file:
            write_index(file, self._all(), self._plan.label_classes, self._plan.digest)
        self.index = ShardIndex(self._out.read(INDEX), self._out.file(INDEX))
        self._tidy()
        return self.index

    def _all(self) -> Iterator[Shard]:
        for planned in self._plan.shards:
            shard = self._part(planned.name)
            if shard is None:
                part = self._out.file(_part_name(planned.name))
                raise UsageError(f"{part} is gone or damaged: the same command makes it anew")
            yield shard

    def _part(self, name: str) -> Shard | None:
        text = _read(self._out, _part_name(name))
        if text is None:
            return None
        try:
            (shard,) = parse_shards(text)
        except (KeyError, TypeError, ValueError):
            return None
        return shard

    def _tidy(self) -> None:
        for planned in self._plan.shards:
            self._out.remove(_part_name(planned.name))


def _part_name(shard: str) -> str:
    return f"{_FOLDER}/{shard.removesuffix('.tar')}.jsonl"


def _read(out: Address, name: str) -> bytes | None:
    try:
        return out.read(name)
    except FileNotFoundError:
        return None


def _shown(name: str, value: object) -> str:
    if name == "images":
        return "given" if value else "not given"
    return f"{value / 10**6:g}" if name == "shard_bytes" and isinstance(value, int) else str(value)


def _other(out: Address, what: str) -> str:
    return (
        f"{out} has shards of another division of files ({what}). Take another place, or remove what is in "
        f"{out} to have all packed anew"
    )
