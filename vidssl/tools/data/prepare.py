"""The command ``vidssl data prepare``: which videos, where to, what is done already, what it gains."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidssl.data.decode.decode import limits_of
from vidssl.data.pool import Lost, work
from vidssl.data.sources.listing import Listed, Listing
from vidssl.engine.atomic import make_folder
from vidssl.engine.logging import terminal
from vidssl.engine.process import num_cpus, sole_process
from vidssl.errors import UsageError, counted
from vidssl.tools.data.encode import (
    H264,
    PATIENCE_SECONDS,
    CannotWrite,
    FileToPrepare,
    Form,
    Prepared,
    prepare_file,
    settings,
)
from vidssl.tools.data.inputs import Operand, read_operand
from vidssl.tools.data.journal import Journal
from vidssl.tools.data.outputs import Files, Output, Shards
from vidssl.tools.data.report import Prediction, predict, prepare_report, say, tell_prediction

CLEAN, FLAWED = 0, 1
_SAMPLE = 8  # videos that the prediction is made from
_TIMED = 100  # videos that a clip is read from against the clock


def prepare_data(
    path: Path,
    out: Path,
    form: Form,
    *,
    root: Path | None = None,
    processes: int | None = None,
    show_all: bool = False,
    console: Console | None = None,
) -> int:
    """Make, verify and describe the results; what an earlier call finished stays as it is.

    Args:
        path: a folder of videos, a list of them, or a manifest.
        out: folder of the results, apart from that of the videos.
        form: what they become.
        root: folder that paths are relative to; by default the list's own, or the manifest's.
        processes: that encode; by default one for each core.
        show_all: name every file that was skipped, not only the first few.

    Returns:
        Exit code: 0 if all videos were prepared, 1 if some were skipped.

    Raises:
        UsageError: if there is nothing to prepare, the folder is of no use, or the disk is full; then what
            is finished stays, and the same command goes on from there.
    """
    console = console or terminal()
    operand = read_operand(path, root)
    root, listing = operand.root, operand.listing.whole()
    bad = {e.key: f"{e.status}: {e.reason}" for e in operand.manifest or () if not e.usable}
    _check_places(root, listing, out)
    make_folder(out)
    busy = "is preparing videos in this folder. Let it end or stop it, or take another folder"
    with (
        sole_process(out, lambda line: say(console, line), busy),
        Journal(out, settings(form)) as journal,
    ):
        h264 = isinstance(form, H264)
        output: Output = Files(out) if h264 else Shards(out, journal)
        prediction = _Job(operand, out, form, journal, output, processes or num_cpus(), console).do_all(bad)
        where = output.describe(operand.listing, journal, root)
        rows = [journal.latest[file.path] for file in listing.files]
    prepare_report(rows, where, prediction, out, console, show_all=show_all)
    return FLAWED if any(row.reason for row in rows) else CLEAN


@dataclass(frozen=True)
class _Job:
    """Videos on their way into one folder."""

    operand: Operand
    out: Path
    form: Form
    journal: Journal
    output: Output
    processes: int
    console: Console

    @property
    def root(self) -> Path:
        return self.operand.root

    @cached_property
    def listing(self) -> Listing:
        return self.operand.listing.whole()

    def do_all(self, bad: Mapping[str, str]) -> Prediction | None:
        """Makes what is not there yet, a sample first; None if all was there.

        Args:
            bad: key -> why it is not even tried.
        """
        sizes = self._sizes()
        finished = [file for file in self.listing.files if self._is_done(file.path, sizes)]
        known = {file.path for file in finished}
        left = [file for file in self.listing.files if file.path not in known | bad.keys()]
        for key, reason in bad.items():
            self._finish(Prepared(key, reason=reason))
        say(
            self.console,
            f"{counted(len(left), 'video')} below {self.root} to prepare, {self.processes} at a time"
            + (f"; {len(finished)} are done already" if finished else "")
            + (f"; {len(bad)} are bad by the manifest" if bad else ""),
        )
        if not left:
            return None
        places = {place * (len(left) - 1) // max(_SAMPLE - 1, 1) for place in range(_SAMPLE)}
        sample = [] if len(finished) >= _SAMPLE else [left[place] for place in sorted(places)]
        self._make(sample, timed_every=1)
        done = [self.journal.latest[file.path] for file in (*finished, *sample)]
        prediction = predict(
            done, [sizes[file.path][0] for file in self.listing.files if file.path not in bad]
        )
        rest = [file for file in left if file not in sample]
        if rest:
            tell_prediction(prediction, self.out, self.processes, self.console)
            self._make(rest, timed_every=max(len(rest) // _TIMED, 1))
        return prediction

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """Key -> size in bytes and modification time of each source; -1 and 0 where there is none."""
        sizes = {}
        for file in self.listing.files:
            try:
                status = os.stat(self.root / file.path)
                sizes[file.path] = (status.st_size, status.st_mtime_ns)
            except OSError:
                sizes[file.path] = (-1, 0)
        return sizes

    def _is_done(self, key: str, sizes: dict[str, tuple[int, int]]) -> bool:
        done = self.journal.latest.get(key)
        # what was skipped is tried again: somebody may have mended it, or its root is mounted now
        return done is not None and not done.reason and done.source == sizes[key] and self.output.has(done)

    def _make(self, files: Sequence[Listed], timed_every: int) -> None:
        left = (TimeRemainingColumn(), TextColumn("left"))
        columns = (TextColumn("prepare"), BarColumn(), MofNCompleteColumn(), *left)
        bar = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with bar:
            shown = bar.add_task("", total=len(files))
            tasks = self._tasks(files, timed_every)
            found = work(tasks, prepare_file, processes=self.processes, patience_seconds=2 * PATIENCE_SECONDS)
            for task, result in found:
                if isinstance(result, CannotWrite):
                    raise self._full(result.reason)
                if isinstance(result, Lost):
                    task.target.with_name(f".{task.target.name}.part").unlink(missing_ok=True)
                    result = Prepared(task.key, reason=result.reason)
                self._finish(result)
                bar.advance(shown)

    def _tasks(self, files: Sequence[Listed], timed_every: int) -> Iterator[FileToPrepare]:
        for place, file in enumerate(files):
            known = self.operand.manifest
            facts = known.entry(file.path).facts if known is not None and file.path in known else None
            yield FileToPrepare(
                self.root,
                file.path,
                self.listing.class_names(file),
                self.output.target(file.path),
                self.form,
                timed=place % timed_every == 0,
                limits=limits_of(facts),
            )

    def _finish(self, result: Prepared) -> None:
        try:
            self.journal.add(result if result.reason else self.output.keep(result))
        except OSError as error:
            raise self._full(f"cannot write to {self.out}: {error.strerror or error}") from error

    def _full(self, reason: str) -> UsageError:
        done = sum(not row.reason for row in self.journal.latest.values())
        return UsageError(
            f"{reason}. {done} of {len(self.listing.files)} videos are prepared and stay; once there is room "
            "the same command goes on from there"
        )


def _check_places(root: Path, listing: Listing, out: Path) -> None:
    """Raises UsageError if a result could take the place of an original."""
    videos, results = root.resolve(), out.resolve()
    if videos == results or videos in results.parents or results in videos.parents:
        raise UsageError(
            f"--out {out} and the folder of the videos, {root}, lie one in the other: originals could be "
            "overwritten. Take a folder beside it, or say with --root which folder the paths of a list are "
            "below"
        )
    for file in listing.files:
        key = PurePosixPath(file.path)
        if key.is_absolute() or ".." in key.parts:
            raise UsageError(
                f"{file.path} leads out of {root}, and so its result out of {out}: list paths below --root"
            )
