"""The command ``vidssl data shard``: which files, where to, what is packed already."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.data.decode.examine import FileToExamine, examine
from vidssl.data.decode.limits import LIMITS
from vidssl.data.pool import Lost, work
from vidssl.data.sources.manifest import Entry, Manifest
from vidssl.data.sources.tar.index import ShardIndex
from vidssl.data.sources.tar.storage import Address
from vidssl.engine.atomic import make_folder
from vidssl.engine.logging import terminal
from vidssl.engine.process import num_cpus, sole_process
from vidssl.errors import UsageError, counted
from vidssl.tools.data.inputs import Operand, read_operand
from vidssl.tools.data.journal import Parts
from vidssl.tools.data.look import examine_image
from vidssl.tools.data.pack import CannotWrite, ShardToPack, pack_shard
from vidssl.tools.data.plan import Plan, PlannedFile, PlannedShard, make_plan
from vidssl.tools.data.report import format_size, say, shard_report

CLEAN, FLAWED = 0, 1
_TRIES = 4  # as a scan has it
_SLOWEST = 10**5  # bytes a second that a place takes, or it is taken for hung
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
            finished stays, and the same command goes on from there.
    """
    console = console or terminal()
    operand = read_operand(path, root, images=images)
    place = Address(out)
    _check_place(operand.root, place)
    plan = _plan(operand, seed=seed, shard_bytes=shard_bytes, images=images)
    with _sole(place, console):
        try:
            index = _Job(operand, plan, place, processes or num_cpus(), images, console).do_all()
        except OSError as error:
            raise UsageError(
                f"{error.filename or place}: {error.strerror or error}. What is finished stays; once that is "
                "mended the same command goes on from there"
            ) from error
    clean = shard_report(index, out, "", console, show_all=show_all)
    return CLEAN if clean else FLAWED


@dataclass(frozen=True)
class _Job:
    """Files on their way into the shards of a plan."""

    operand: Operand
    plan: Plan
    out: Address
    processes: int
    images: bool
    console: Console

    def do_all(self) -> ShardIndex:
        parts = Parts(self.out, self.plan)
        if parts.index is not None:
            say(self.console, f"{counted(len(self.plan.shards), 'shard')} packed already")
            return parts.index
        finished = parts.finished()
        left = [shard for shard in self.plan.shards if shard.name not in finished]
        self._announce(left)
        with self._bar() as bar:
            shown = bar.add_task("", total=sum(len(shard.files) for shard in left))
            for place in range(0, len(left), self.processes):
                batch = left[place : place + self.processes]
                entries: dict[str, Entry] = {}
                files = {file.key: file for shard in batch for file in shard.files}
                for entry in self._examine([*files.values()]):
                    entries[entry.key] = replace(entry, segments=files[entry.key].segments)
                    bar.advance(shown)
                self._pack(batch, entries, parts)
        return parts.finish()

    def _announce(self, left: Sequence[PlannedShard]) -> None:
        shards, files = self.plan.shards, self.plan.num_files
        done = (
            f"; {counted(len(shards) - len(left), 'shard')} packed already" if len(left) < len(shards) else ""
        )
        say(
            self.console,
            f"{counted(files, 'file')} below {self.operand.root}, {format_size(self.plan.bytes)}, into "
            f"{counted(len(shards), 'shard')} at {self.out}, {self.processes} at a time{done}",
        )
        if self.out.local is not None:
            free = shutil.disk_usage(self.out.local).free
            if sum(max(file.bytes, 0) for shard in left for file in shard.files) > free:
                say(
                    self.console,
                    f"The disk may fill up: free are {format_size(free)}. What is finished stays",
                )

    def _bar(self) -> Progress:
        left = (TimeRemainingColumn(), TextColumn("left"))
        columns = (TextColumn("shard"), BarColumn(), MofNCompleteColumn(), *left)
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def _examine(self, files: Sequence[PlannedFile]) -> Iterator[Entry]:
        """Entries of files, one at a time in each process, so that none takes others down with it."""
        tasks = (
            FileToExamine(self.operand.root, file.key, file.labels, _known(self.operand.manifest, file.key))
            for file in files
        )
        job = examine_image if self.images else examine
        patience = LIMITS.max_seconds * _TRIES
        for task, result in work(tasks, job, processes=self.processes, patience_seconds=patience):
            if isinstance(result, Lost):
                reason = f"it could not be looked at: {result.reason}"
                yield Entry(task.key, "unreadable", reason, labels=task.labels)
            else:
                yield result

    def _pack(self, batch: Sequence[PlannedShard], entries: dict[str, Entry], parts: Parts) -> None:
        classes = self.plan.label_classes.get("class", ())
        own = all(name.isdecimal() for name in classes)  # other readers find the numbers of the list
        numbers = {name: int(name) if own else number for number, name in enumerate(classes)}
        tasks = [
            ShardToPack(
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
        patience = LIMITS.max_seconds + largest / _SLOWEST
        for task, result in work(tasks, pack_shard, processes=self.processes, patience_seconds=patience):
            if isinstance(result, (Lost, CannotWrite)):
                lost = f"{task.name} could not be packed: " if isinstance(result, Lost) else ""
                raise UsageError(
                    f"{lost}{result.reason}. {len(parts.finished())} of {len(self.plan.shards)} shards are "
                    "finished and stay; once that is mended the same command goes on from there"
                )
            parts.add(result)


def _known(manifest: Manifest | None, key: str) -> Entry | None:
    return None if manifest is None else manifest.entry(key)


def _plan(operand: Operand, *, seed: int, shard_bytes: int, images: bool) -> Plan:
    classes, segments = operand.listing.label_classes, operand.listing.segments()
    files = []
    for file in operand.listing.whole().files:
        size, mtime_ns = -1, 0
        with suppress(OSError):  # why, its entry will say
            status = os.stat(operand.root / file.path)
            size, mtime_ns = status.st_size, status.st_mtime_ns
        labels = operand.listing.class_names(file)
        files.append(PlannedFile(file.path, labels, size, mtime_ns, segments.get(file.path, ())))
    return make_plan(files, classes, seed=seed, shard_bytes=shard_bytes, images=images)


def _check_place(root: Path, out: Address) -> None:
    """Raises UsageError if shards would lie among originals."""
    if out.local is None:
        return
    originals, shards = root.resolve(), out.local.resolve()
    if originals == shards or originals in shards.parents or shards in originals.parents:
        raise UsageError(
            f"--out {out} and the folder of the originals, {root}, lie one in the other. Take a folder "
            "beside it, or say with --root which folder the paths of a list are below"
        )


@contextmanager
def _sole(out: Address, console: Console) -> Iterator[None]:
    """No second process packs into the same place, as far as that can be helped."""
    if out.local is None:
        say(console, f"{out} keeps no locks: take care that no second process packs into it")
        yield
        return
    make_folder(out.local)
    with sole_process(out.local, lambda line: say(console, line), _BUSY):
        yield
