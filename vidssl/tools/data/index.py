"""The command ``vidssl data index``: shards that are there already, looked through once and described."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from vidssl.data.classes import ordered_classes
from vidssl.data.sources.tar.index import INDEX, Member, Shard, ShardIndex, parse_shards, write_index
from vidssl.data.sources.tar.storage import Address
from vidssl.data.workers import Lost
from vidssl.engine import facts, process
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, counted
from vidssl.tools.data.check import say, shard_report
from vidssl.tools.data.look import CannotRead, SeenShard, ShardToLookAt, look_at
from vidssl.tools.data.runner import CLEAN, FLAWED, RESUMES, Journal, Runner, not_looked_at, runner


@dataclass(frozen=True)
class _Row:
    """A shard as the journal has it."""

    address: str
    shard: Shard
    mtime_ns: int
    flaw: str
    videos: bool
    left_out: int
    class_names: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, row: facts.Row) -> "_Row":
        """Raises ValueError if the row is damaged."""
        (shard,) = parse_shards(row.text("lines").encode())
        names = []
        for pair in row.items("class_names"):
            entry = facts.parts(pair, "class_names", ("number", "name"))
            names.append((entry.whole("number"), entry.text("name")))
        return cls(
            row.text("address"),
            shard,
            row.whole("mtime_ns", lowest=-facts.HIGHEST),
            row.text("flaw"),
            row.flag("videos"),
            row.whole("left_out"),
            tuple(names),
        )


class Seen:
    """The journal of shards that were looked through; rows of a shard that has changed are passed over.

    Args:
        path: of the file; made when the first shard is added.

    Raises:
        UsageError: if it cannot be read.
    """

    def __init__(self, path: Path, address: Address) -> None:
        self.path = path
        self._journal = Journal(path)
        self._address = address
        self._places: dict[str, tuple[int, int]] = {}  # by name of the shard
        try:
            for place, row in self._journal.rows():
                with suppress(ValueError):  # of a damaged row: its shard is looked through anew
                    seen = _Row.of(row)
                    if seen.address == str(address):
                        self._places[seen.shard.name] = place
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})") from error

    def has(self, name: str) -> bool:
        """Whether a shard was looked through and is the same still.

        Raises:
            OSError: if it cannot be reached.
        """
        if name not in self._places:
            return False
        row = self._row(name)
        return (row.shard.bytes, row.mtime_ns) == (self._address.size(name), self._mtime_ns(name))

    def _mtime_ns(self, name: str) -> int:
        local = self._address.local
        return 0 if local is None else os.stat(local / name).st_mtime_ns

    def add(self, seen: SeenShard) -> None:
        """Notes the contents of a shard.

        Raises:
            OSError: if the disk is full.
        """
        row = {
            "address": str(self._address),
            "shard": seen.shard.name,
            "bytes": seen.shard.bytes,
            "mtime_ns": self._mtime_ns(seen.shard.name),
            "flaw": seen.flaw,
            "videos": seen.videos,
            "left_out": seen.left_out,
            "class_names": list(seen.class_names.items()),
            "lines": seen.shard.to_lines(),
        }
        self._places[seen.shard.name] = self._journal.add(row)

    def _row(self, name: str) -> _Row:
        return _Row.of(self._journal.row(self._places[name]))

    def classes(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Label name -> names of its classes, in number order, over these shards."""
        found: dict[str, set[str]] = {}
        stated: dict[int, set[str]] = {}
        for name in names:
            row = self._row(name)
            for number, name_of_class in row.class_names:
                stated.setdefault(number, set()).add(name_of_class)
            for member in row.shard.members:
                for given in (member.entry.labels, *(own for _, _, own in member.entry.segments)):
                    for label, value in given.items():
                        found.setdefault(label, set()).add(value)
        classes = {
            label: ordered_classes(values, label, self._address) for label, values in sorted(found.items())
        }
        if "class" in classes:
            classes["class"] = _as_stated(stated, classes["class"])
        return classes

    def flaws(self, names: Sequence[str]) -> list[str]:
        """Faults of shards as such, in words."""
        flaws = []
        for name in names:
            row = self._row(name)
            if row.flaw:
                flaws.append(f"{name}: {row.flaw} ({counted(len(row.shard.members), 'sample')} in it)")
        return flaws

    def left_out(self, names: Sequence[str]) -> int:
        """How many samples hold no video, or no image where no shard has videos."""
        rows = [self._row(name) for name in names]
        videos = any(row.videos for row in rows)
        images = sum(len(row.shard.members) for row in rows if videos and not row.videos)
        return sum(row.left_out for row in rows) + images

    def shards(self, names: Sequence[str]) -> Iterator[Shard]:
        """The shards, such that no key comes twice and images of videos are no samples of their own."""
        videos = any(self._row(name).videos for name in names)
        keys: set[str] = set()
        twice = False
        for shard in self._used(names, videos):
            own = {member.entry.key for member in shard.members}
            twice = twice or not keys.isdisjoint(own)
            keys |= own
        for shard in self._used(names, videos):
            if twice:  # then all, so that a key does not depend on which shard came first
                stem = shard.name.removesuffix(".tar")
                shard = replace(shard, members=tuple(_prefixed(member, stem) for member in shard.members))
            yield shard

    def _used(self, names: Sequence[str], videos: bool) -> Iterator[Shard]:
        for name in names:
            row = self._row(name)
            yield row.shard if row.videos or not videos else replace(row.shard, members=())

    def remove(self) -> None:
        self._journal.remove()


def _prefixed(member: Member, shard: str) -> Member:
    return replace(member, entry=replace(member.entry, key=f"{shard}/{member.entry.key}"))


def _as_stated(stated: dict[int, set[str]], names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names under the numbers that samples state, where they do so for each and agree."""
    by_number = {number: min(given) for number, given in stated.items() if len(given) == 1}
    if len(by_number) < len(stated) or sorted(by_number.values()) != sorted(names):
        return names
    return tuple(by_number[number] for number in sorted(by_number))


_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tar.Z")


def index_data(
    address: str,
    *,
    out: Path | None = None,
    processes: int | None = None,
    show_all: bool = False,
    console: Console | None = None,
) -> int:
    """Look through all shards and write their index; shards that an earlier call noted are passed over.

    Args:
        address: of the shards.
        out: where the index goes; by default into the folder of the shards.
        processes: that look through shards; by default one for each core.
        show_all: name every bad file, not only the first few.

    Returns:
        Exit code: 0 if all is well, 1 if the index names bad files, or shards are damaged.

    Raises:
        UsageError: if there are no shards, they cannot be read, or the index cannot be written.
    """
    console = console or terminal()
    place = Address(address)
    index_path = _index_path(out, address, place)
    seen = Seen(index_path.with_name(index_path.name + ".part"), place)
    names = _shards(place)
    try:
        index_path.parent.mkdir(parents=True, exist_ok=True)
        _look(place, names, seen, processes or process.num_cpus(), console)
        classes, flaws, left_out = seen.classes(names), seen.flaws(names), seen.left_out(names)

        def write(path: Path) -> None:
            with path.open("wb") as file:
                write_index(file, seen.shards(names), classes)

        process.write_atomically(index_path, write)
        text = index_path.read_bytes()
        seen.remove()
    except OSError as error:
        raise UsageError(
            f"{error.filename or place}: {error.strerror or error}. Once that is mended "
            f"{RESUMES}; '--out' puts the index elsewhere"
        ) from error
    if left_out:
        say(console, f"Samples without video or image, left out: {left_out}")
    at = "" if out is None else str(out)
    index = ShardIndex(text, str(index_path))
    clean = shard_report(index, address, at, console, flaws=flaws, show_all=show_all)
    return CLEAN if clean else FLAWED


def _index_path(out: Path | None, given: str, address: Address) -> Path:
    """Where the index goes.

    Raises:
        UsageError: if it is not given, or an index is there that knows more than this one would.
    """
    if out is None and address.local is None:
        raise UsageError(
            f"{address}: say with --out where its index goes, such as --out k400.index.jsonl (sources read "
            "it with the key 'index')"
        )
    # a path as it was given, for messages
    out = out or Path(given.removeprefix("file://")) / INDEX
    try:
        with out.open("rb") as file:
            head = facts.Row(facts.parsed(file.readline()))
    except (OSError, ValueError):
        return out
    if head.value("plan", ""):
        raise UsageError(
            f"{out} was written by 'data shard' and knows of bad files too. Use it as it is, remove it "
            "first, or name another file with --out"
        )
    return out


def _shards(address: Address) -> list[str]:
    """Names of the tars.

    Raises:
        UsageError: if there is none, or some are compressed.
    """
    if address.local is not None and address.local.is_file():
        raise UsageError(f"{address} is a file; give the folder that it lies in")
    try:
        names = address.names("")
    except OSError as error:
        raise UsageError(f"{address}: {error.strerror or error}") from error
    packed = [name for name in names if name.endswith(_COMPRESSED)]
    if packed:
        raise UsageError(
            f"{address}: compressed, {counted(len(packed), 'shard')} such as {packed[0]}. Samples are read "
            "in place, which a compressed tar does not allow: unpack them to plain .tar files (gunzip, unxz, "
            "zstd -d); videos take up no more room there"
        )
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise UsageError(f"{address}: no .tar in it, nor in the folders below")
    return tars


def _look(address: Address, names: Sequence[str], seen: Seen, processes: int, console: Console) -> None:
    left = [name for name in names if not seen.has(name)]
    done = f"; {len(names) - len(left)} are looked through already" if len(left) < len(names) else ""
    say(console, f"{counted(len(left), 'shard')} at {address} to look through, {processes} at a time{done}")
    unread: list[CannotRead] = []
    with (
        runner(console, "index", len(left), processes) as crew,
        tempfile.TemporaryDirectory(prefix="vidssl-") as notes,
    ):
        tasks = [ShardToLookAt(address, name, Path(notes) / str(n)) for n, name in enumerate(left)]
        for found in _see(tasks, crew):
            if isinstance(found, CannotRead):
                unread.append(found)
            else:
                seen.add(found)
            crew.advance()
    if unread:
        raise UsageError(
            f"{unread[0].reason}. {len(unread)} of {counted(len(names), 'shard')} could not be read; the "
            f"others are noted in {seen.path}, and the same command tries these again"
        )


def _see(tasks: Sequence[ShardToLookAt], crew: Runner) -> Iterator[SeenShard | CannotRead]:
    """Contents of shards. One with a file that takes its process down is gone through again without that."""
    while tasks:
        again = []
        largest = max(_size(task) for task in tasks)
        for task, result in crew.run(tasks, look_at, largest=largest):
            if not isinstance(result, Lost):
                yield result
            elif task.note.exists() and (name := json.loads(task.note.read_text())) not in task.fatal:
                again.append(replace(task, fatal={**task.fatal, name: not_looked_at(result)}))
            else:
                yield CannotRead(f"{task.address.file(task.name)}: {result.reason}")
        tasks = again


def _size(task: ShardToLookAt) -> int:
    try:
        return task.address.size(task.name)
    except OSError:  # why, its turn will show
        return 0
