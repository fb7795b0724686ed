"""The command ``vidssl data index``: shards that are there already, looked through once and described."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.data.addresses import Address
from vidssl.data.crew import Lost, work
from vidssl.data.limits import LIMITS
from vidssl.data.shard_index import INDEX, ShardIndex, write_index
from vidssl.data_prepare.report import say
from vidssl.data_shard.look import CannotRead, SeenShard, ShardToLookAt, look_at
from vidssl.data_shard.report import report
from vidssl.data_shard.seen import Seen
from vidssl.data_shard.shard import CLEAN, FLAWED, cores
from vidssl.engine.display import terminal
from vidssl.engine.files import write_atomically
from vidssl.errors import UsageError, counted

_SLOWEST = 10**5  # bytes of video a second that a process looks through, or it is taken for hung
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tar.Z")


@dataclass(frozen=True)
class IndexRequest:
    """Which shards.

    Attributes:
        address: of the shards.
        out: where the index goes; by default into the folder of the shards.
        processes: that look through shards; by default one for each core.
        show_all: name every bad file, not only the first few.
    """

    address: str
    out: Path | None = None
    processes: int | None = None
    show_all: bool = False


def index_data(request: IndexRequest, console: Console | None = None) -> int:
    """Look through all shards and write their index; shards that an earlier call noted are passed over.

    Returns:
        Exit code: 0 if all is well, 1 if the index names bad files, or shards are damaged.

    Raises:
        UsageError: if there are no shards, they cannot be read, or the index cannot be written.
    """
    console = console or terminal()
    address = Address(request.address)
    out = _out(request, address)
    seen = Seen(out.with_name(out.name + ".part"), address)
    names = _shards(address)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _look(request, address, names, seen, console)
        classes, flaws, left_out = seen.classes(names), seen.flaws(names), seen.left_out(names)
        write_atomically(out, lambda path: _write(path, seen, names, classes))
        text = out.read_bytes()
        seen.remove()
    except OSError as error:
        raise UsageError(
            f"{error.filename or address}: {error.strerror or error}. Once that is mended the same command "
            "goes on from there; '--out' puts the index elsewhere"
        ) from error
    if left_out:
        say(console, f"Samples without video or image, left out: {left_out}")
    at = str(out) if request.out is not None else ""
    index = ShardIndex(text, str(out))
    clean = report(index, request.address, at, console, flaws=flaws, show_all=request.show_all)
    return CLEAN if clean else FLAWED


def _out(request: IndexRequest, address: Address) -> Path:
    """Where the index goes.

    Raises:
        UsageError: if that is not said, or an index is there that knows more than this one would.
    """
    if request.out is None and address.local is None:
        raise UsageError(
            f"{address}: say with --out where its index goes, such as --out k400.index.jsonl (sources read "
            "it with the key 'index')"
        )
    # a path as it was given, for messages
    out = request.out or Path(request.address.removeprefix("file://")) / INDEX
    try:
        with out.open("rb") as file:
            head = json.loads(file.readline())
    except (OSError, ValueError):
        return out
    if isinstance(head, dict) and head.get("plan"):
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


def _look(
    request: IndexRequest, address: Address, names: Sequence[str], seen: Seen, console: Console
) -> None:
    processes = request.processes or cores()
    left = [name for name in names if not seen.has(name)]
    done = f"; {len(names) - len(left)} are looked through already" if len(left) < len(names) else ""
    say(console, f"{counted(len(left), 'shard')} at {address} to look through, {processes} at a time{done}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    bar = Progress(
        TextColumn("index"), *columns, console=console, transient=True, disable=not console.is_terminal
    )
    unread: list[CannotRead] = []
    with bar, tempfile.TemporaryDirectory(prefix="vidssl-") as notes:
        shown = bar.add_task("", total=len(left))
        tasks = [ShardToLookAt(address, name, Path(notes) / str(n)) for n, name in enumerate(left)]
        for found in _see(tasks, processes):
            if isinstance(found, CannotRead):
                unread.append(found)
            else:
                seen.add(found)
            bar.advance(shown)
    if unread:
        raise UsageError(
            f"{unread[0].reason}. {len(unread)} of {counted(len(names), 'shard')} could not be read; the "
            "others are "
            f"noted in {seen.path}, and the same command tries these again"
        )


def _see(tasks: Sequence[ShardToLookAt], processes: int) -> Iterator[SeenShard | CannotRead]:
    """What is in shards. One with a file that takes its process down is gone through again without that."""
    while tasks:
        again = []
        largest = max(_size(task) for task in tasks)
        patience = LIMITS.max_seconds + largest / _SLOWEST
        for task, result in work(tasks, look_at, processes=processes, patience_seconds=patience):
            if not isinstance(result, Lost):
                yield result
            elif task.note.exists() and (name := json.loads(task.note.read_text())) not in task.fatal:
                reason = f"it could not be looked at: {result.reason}"
                again.append(replace(task, fatal={**task.fatal, name: reason}))
            else:
                yield CannotRead(f"{task.address.file(task.name)}: {result.reason}")
        tasks = again


def _size(task: ShardToLookAt) -> int:
    try:
        return task.address.size(task.name)
    except OSError:  # why, its turn will show
        return 0


def _write(path: Path, seen: Seen, names: Sequence[str], classes: dict[str, tuple[str, ...]]) -> None:
    with path.open("wb") as file:
        write_index(file, seen.shards(names), classes)
