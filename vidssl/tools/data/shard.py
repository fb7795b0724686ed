"""The command ``vidssl data shard``: files planned into shards, packed, verified and indexed."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console

from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.sources.manifest import FileRecord, NamedSegment
from vidssl.data.sources.tar.index import INDEX, Shard, ShardIndex, parse_shards, write_index
from vidssl.data.sources.tar.storage import Address
from vidssl.data.workers import Lost
from vidssl.engine import facts, process
from vidssl.engine.logging import terminal
from vidssl.errors import UsageError, counted
from vidssl.tools.data import look, pack, runner
from vidssl.tools.data.check import format_size, say, shard_report

_BUSY = "is packing shards in this folder. Let it end or stop it, or take another folder"


def shard_data(
    path: Path,
    out: str,
    *,
    root: Path | None = None,
    images: bool = False,
    shard_bytes: int = 256 * 10**6,
    seed: int = 0,
    processes: int | None = None,
    show_all: bool = False,
    console: Console | None = None,
) -> int:
    """Examine, pack, verify and index; what an earlier call finished stays as it is.

    Args:
        path: a folder of videos or images, a list of videos, or a manifest.
        out: address of the shards.
        root: folder that paths are relative to; by default the list's own, or the manifest's.
        images: pack the images of a folder, not its videos.
        shard_bytes: of a shard, about.
        seed: decides the order of the files.
        processes: that examine and pack; by default one for each core.
        show_all: name every bad file, not only the first few.

    Returns:
        Exit code: 0 if every file lies in a shard, 1 if some are bad.

    Raises:
        UsageError: if there is nothing to pack, the place is of no use, or it takes no more; then what is
            finished stays, and the same command resumes from there.
    """
    console = console or terminal()
    operand = runner.read_operand(path, root, images=images)
    place = Address(out)
    if place.local is not None:
        runner.refuse_overlap(
            operand.root,
            place.local,
            f"--out {place} and the folder of the originals, {operand.root}, lie one in the other. Take a "
            "folder beside it, or say with --root which folder the paths of a list are below",
        )
    plan = _plan(operand, seed=seed, shard_bytes=shard_bytes, images=images)
    with _sole(place, console):
        try:
            index = _Job(
                operand, plan, place, console, processes or process.num_cpus(), images=images
            ).do_all()
        except OSError as error:
            raise UsageError(
                f"{error.filename or place}: {error.strerror or error}. What is finished stays; once that is "
                f"mended {runner.RESUMES}"
            ) from error
    clean = shard_report(index, out, "", console, show_all=show_all)
    return runner.CLEAN if clean else runner.FLAWED


@dataclass(frozen=True)
class _Job:
    """Files on their way into the shards of a plan."""

    operand: runner.Operand
    plan: "Plan"
    out: Address
    console: Console
    processes: int
    images: bool

    def do_all(self) -> ShardIndex:
        parts = Parts(self.out, self.plan)
        if parts.index is not None:
            say(self.console, f"{counted(len(self.plan.shards), 'shard')} packed already")
            return parts.index
        finished = parts.finished()
        left = [shard for shard in self.plan.shards if shard.name not in finished]
        self._announce(left)
        with runner.runner(
            self.console, "shard", sum(len(shard.files) for shard in left), self.processes
        ) as crew:
            for place in range(0, len(left), self.processes):
                batch = left[place : place + self.processes]
                files = {file.key: file for shard in batch for file in shard.files}
                tasks = (
                    FileToExamine(self.operand.root, key, file.labels, self.operand.entry(key))
                    for key, file in files.items()
                )
                found = crew.examine(tasks, look.examine_image if self.images else examine)
                entries = {entry.key: replace(entry, segments=files[entry.key].segments) for entry in found}
                self._pack(batch, entries, parts, crew)
        return parts.finish()

    def _announce(self, left: "Sequence[PlannedShard]") -> None:
        shards, files = self.plan.shards, self.plan.num_files
        done = (
            f"; {counted(len(shards) - len(left), 'shard')} packed already" if len(left) < len(shards) else ""
        )
        say(
            self.console,
            f"{counted(files, 'file')} below {self.operand.root}, {format_size(self.plan.bytes)}, into "
            f"{counted(len(shards), 'shard')} at {self.out}, {self.processes} at a time{done}",
        )
        if segments := self.operand.whole_files():
            say(self.console, segments)
        if self.out.local is not None:
            free = shutil.disk_usage(self.out.local).free
            if sum(max(file.bytes, 0) for shard in left for file in shard.files) > free:
                say(
                    self.console,
                    f"The disk may fill up: free are {format_size(free)}. What is finished stays",
                )

    def _pack(
        self,
        batch: "Sequence[PlannedShard]",
        entries: Mapping[str, FileRecord],
        parts: "Parts",
        crew: runner.Runner,
    ) -> None:
        classes = self.plan.label_classes.get("class", ())
        own = all(name.isdecimal() for name in classes)  # other readers find the numbers of the list
        numbers = {name: int(name) if own else number for number, name in enumerate(classes)}
        tasks = [
            pack.ShardToPack(
                self.out,
                shard.name,
                shard.first,
                self.operand.root,
                tuple(entries[file.key] for file in shard.files),
                numbers,
            )
            for shard in batch
        ]
        largest = max(sum(max(entry.bytes, 0) for entry in task.entries) for task in tasks)
        for task, result in crew.run(tasks, pack.pack_shard, largest=largest):
            if isinstance(result, (Lost, runner.CannotWrite)):
                lost = f"{task.name} could not be packed: " if isinstance(result, Lost) else ""
                raise UsageError(
                    f"{lost}{result.reason}. {len(parts.finished())} of {len(self.plan.shards)} shards are "
                    f"finished and stay; once that is mended {runner.RESUMES}"
                )
            parts.add(result)


@contextmanager
def _sole(out: Address, console: Console) -> Iterator[None]:
    """No second process packs into the same place, as far as that can be helped."""
    if out.local is None:
        say(console, f"{out} keeps no locks: take care that no second process packs into it")
        yield
        return
    process.make_folder(out.local)
    with process.sole_process(out.local, lambda line: say(console, line), _BUSY):
        yield


# the plan: a pure function of the files and of the options

_BLOCK = 512  # of a tar
_BESIDE = 2048  # of a sample: headers, .json and .cls


@dataclass(frozen=True)
class PlannedFile:
    """A file to pack.

    Attributes:
        key: path below the root.
        labels: label name -> name of the class.
        bytes: its size; -1 where there is no such file.
        mtime_ns: when it was last changed; 0 where there is no such file.
        segments: that are its samples, where it is not one itself.
    """

    key: str
    labels: Mapping[str, str]
    bytes: int
    mtime_ns: int
    segments: tuple[NamedSegment, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be; its samples are numbered from ``first`` on, over all shards."""

    name: str
    first: int
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a data set.

    Attributes:
        label_classes: label name -> names of its classes, in number order.
        settings: what the plan follows from, the files as a digest.
    """

    shards: tuple[PlannedShard, ...]
    label_classes: Mapping[str, tuple[str, ...]]
    settings: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what the shards hold."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    @property
    def num_files(self) -> int:
        return sum(len(shard.files) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(max(file.bytes, 0) for shard in self.shards for file in shard.files)


def _plan(operand: runner.Operand, *, seed: int, shard_bytes: int, images: bool) -> Plan:
    listing, segments = operand.listing, operand.listing.segments()
    files = [
        PlannedFile(
            file.path, listing.class_names(file), *operand.stat(file.path), segments.get(file.path, ())
        )
        for file in listing.whole().files
    ]
    return make_plan(files, listing.label_classes, seed=seed, shard_bytes=shard_bytes, images=images)


def make_plan(
    files: Sequence[PlannedFile],
    label_classes: Mapping[str, tuple[str, ...]],
    *,
    seed: int,
    shard_bytes: int,
    images: bool = False,
) -> Plan:
    """Shuffles files and cuts their row into shards.

    The order follows from ``seed`` and the keys alone, so that neighbours in a shard are none in the data:
    a reader that goes through few shards at a time then still mixes classes.

    Args:
        shard_bytes: what a shard holds at most; a file larger than that has one for itself.

    Raises:
        ValueError: if ``shard_bytes`` is less than 1.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
    shuffled = sorted(files, key=lambda file: _place(file.key, seed))
    shards: list[PlannedShard] = []
    filled, first = 0, 0
    for number, file in enumerate(shuffled):
        size = _in_tar(file)
        if number and filled + size > shard_bytes:
            shards.append(PlannedShard(shard_name(len(shards)), first, tuple(shuffled[first:number])))
            filled, first = 0, number
        filled += size
    if shuffled:
        shards.append(PlannedShard(shard_name(len(shards)), first, tuple(shuffled[first:])))
    settings = {"seed": seed, "shard_bytes": shard_bytes, "images": images}
    return Plan(
        tuple(shards), label_classes, {**settings, "files": _digest_of_files(shuffled, label_classes)}
    )


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def _in_tar(file: PlannedFile) -> int:
    return _BESIDE + -(-max(file.bytes, 0) // _BLOCK) * _BLOCK


def _place(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest()


def _digest_of_files(files: Sequence[PlannedFile], label_classes: Mapping[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256(json.dumps(label_classes, sort_keys=True).encode())
    for file in files:
        row: tuple[object, ...] = (file.key, file.bytes, file.mtime_ns, dict(file.labels))
        row += (file.segments,) if file.segments else ()
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


# the journal of finished shards: a file for each, as stores of objects take no lines

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
        UsageError: if there are shards of another plan, or other files.
        OSError: if the place cannot be read or written.
    """

    def __init__(self, out: Address, plan: Plan) -> None:
        self._out = out
        self._plan = plan
        self.index: ShardIndex | None = None
        self._remove_halves()
        begun, finished = self._read(_PLAN), self._read(INDEX)
        if begun is not None:
            self._compare(begun)
        if finished is not None:
            self.index = ShardIndex(finished, out.file(INDEX))
            if self.index.plan != plan.digest:
                raise self._other("its files, or the settings of the call, are others now")
            if self._part(plan.shards[-1].name) is not None:  # a call was ended before it had tidied up
                self._tidy()
        elif begun is None:
            self._refuse_others()
            with out.write(_PLAN) as file:
                file.write(json.dumps(dict(plan.settings)).encode())

    def _compare(self, begun: bytes) -> None:
        try:
            row = facts.Row(facts.parsed(begun))
            settings = {name: row.value(name) for name in self._plan.settings}
        except ValueError as error:
            raise self._other(f"{_PLAN} is damaged: {error}") from error
        changed = [name for name, value in self._plan.settings.items() if settings[name] != value]
        options = [
            f"{_OPTIONS[name]} was {_shown(name, settings[name])}" for name in changed if name in _OPTIONS
        ]
        if options:
            raise self._other(", ".join(options))
        if changed:
            raise self._other("files or labels were added, removed or changed since")

    def _other(self, what: str) -> UsageError:
        return UsageError(
            f"{self._out} has shards of another division of files ({what}). Take another place, or remove "
            f"what is in {self._out} to have all packed anew"
        )

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
        try:
            (shard,) = parse_shards(self._read(_part_name(name)) or b"")
        except ValueError:
            return None
        return shard

    def _tidy(self) -> None:
        for planned in self._plan.shards:
            self._out.remove(_part_name(planned.name))

    def _read(self, name: str) -> bytes | None:
        try:
            return self._out.read(name)
        except FileNotFoundError:
            return None


def _part_name(shard: str) -> str:
    return f"{_FOLDER}/{shard.removesuffix('.tar')}.jsonl"


def _shown(name: str, value: object) -> str:
    if name == "images":
        return "given" if value else "not given"
    return f"{value / 10**6:g}" if name == "shard_bytes" and isinstance(value, int) else str(value)
