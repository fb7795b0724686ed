"""The command ``vidssl data prepare``: videos made small, verified and described."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from rich.console import Console

from vidssl.config.strict_yaml import dump_flow
from vidssl.data.decode import decode, examine
from vidssl.data.sources.jpeg_shards import INDEX, KIND, VERSION, shard_name
from vidssl.data.sources.listing import Listed, Listing
from vidssl.data.sources.manifest import FileRecord, Segment, header
from vidssl.data.sources.origins import origin_of, recorded
from vidssl.data.workers import Lost
from vidssl.engine import facts, process
from vidssl.engine.logging import format_duration, terminal
from vidssl.errors import UsageError, agreed, counted
from vidssl.tools.collection.annotations import CUTS, refuse_existing, rows_of, write_lists
from vidssl.tools.data import encode, runner
from vidssl.tools.data.check import format_size, print_list, say

NAME = "prepared.jsonl"
_JOURNAL_KIND, _JOURNAL_VERSION = "vidssl prepared videos", 1
_SAMPLE = 8  # videos that the prediction is made from
_TIMED = 100  # videos that a clip is read from against the clock
_SHARD_BYTES = 1 << 30
_BUSY = "is preparing videos in this folder. Let it end or stop it, or take another folder"


def prepare_data(
    path: Path,
    out: Path,
    form: encode.Form,
    *,
    root: Path | None = None,
    cut: bool = False,
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
        cut: whether each listed segment becomes a file of its own; a list of them is written beside ``out``.
        processes: that encode; by default one for each core.
        show_all: name every file that was skipped, not only the first few.

    Returns:
        Exit code: 0 if all videos were prepared, 1 if some were skipped.

    Raises:
        UsageError: if there is nothing to prepare, the folder is of no use, or the disk is full; then what
            is finished stays, and the same command resumes from there.
    """
    console = console or terminal()
    operand = runner.read_operand(path, root)
    if cut and not operand.listing.segments():
        raise UsageError(f"{path}: --cut makes files of segments, and none are listed")
    listing, cuts = cut_listing(operand.listing) if cut else (operand.listing.whole(), {})
    _check_places(operand.root, listing, out)
    beside = out.absolute().with_name(f"{out.absolute().name}.csv")
    if cut:
        refuse_existing(beside, CUTS)
    process.make_folder(out)
    with process.sole_process(out, lambda line: say(console, line), _BUSY):
        made = PreparedVideos(out, encode.settings(form))
        output = Files(out) if isinstance(form, encode.H264) else Shards(out, made)
        job = _Job(operand, listing, cuts, out, form, made, output, console, processes or process.num_cpus())
        prediction = job.do_all()
        where = output.describe(listing if cut else operand.listing, made.latest, operand.root)
        rows = [made.latest[file.path] for file in listing.files]
    prepare_report(rows, where, prediction, out, console, show_all=show_all)
    usable = [row for row in rows_of(listing) if not made.latest[row.path].reason]
    if cut and usable:
        write_lists({beside: usable}, out, f"{CUTS} {path} --cut")
        say(console, f"List: {beside}, the recording of each segment being its group")
    return runner.FLAWED if any(row.reason for row in rows) else runner.CLEAN


def cut_listing(listing: Listing) -> tuple[Listing, dict[str, tuple[str, Segment]]]:
    """Segments as files of their own, ``talk.t5-15.mp4``; and path of each -> its file and segment.

    The group of each is that of the list, or else the file that it is cut from.
    """
    files, cuts = [], {}
    for sample in listing.files:
        path = sample.path
        if (part := sample.segment) is not None:
            path = f"{PurePosixPath(path).with_suffix('')}.t{part.start:.10g}-{part.end:.10g}.mp4"
            cuts[path] = sample.path, part
        files.append(Listed(path, sample.labels, group=sample.group or sample.path))
    return Listing(tuple(files), listing.label_classes), cuts


def _check_places(root: Path, listing: Listing, out: Path) -> None:
    """Raises UsageError if a result could take the place of an original."""
    runner.refuse_overlap(
        root,
        out,
        f"--out {out} and the folder of the videos, {root}, lie one in the other: originals could be "
        "overwritten. Take a folder beside it, or say with --root which folder the paths of a list are below",
    )
    for file in listing.files:
        key = PurePosixPath(file.path)
        if key.is_absolute() or ".." in key.parts:
            raise UsageError(
                f"{file.path} leads out of {root}, and so its result out of {out}: list paths below --root"
            )


class PreparedVideos:
    """The journal of a folder of results. Of several rows about a video the last one counts.

    Args:
        wanted: settings of the results; a folder holds results of one kind only.

    Attributes:
        latest: key -> what became of it.
        rows: of all results that were ever made, the ones that others took the place of too.

    Raises:
        UsageError: if the folder holds results of another kind, or other files, or cannot be written.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, object]) -> None:
        self._journal = runner.Journal(folder / NAME, sync=True)
        self.latest: dict[str, encode.Prepared] = {}
        self.rows: list[encode.Prepared] = []
        path, head = self._journal.path, {"kind": _JOURNAL_KIND, "version": _JOURNAL_VERSION, **wanted}
        if not path.exists() and any(not other.name.startswith(".") for other in folder.iterdir()):
            raise UsageError(
                f"{folder} holds files and no {NAME}, so they are not of 'data prepare'. Take another folder"
            )
        rows = [row for _, row in self._journal.rows()]
        begun = dict(rows[0].entries()) if rows else head
        if begun != head:
            given = ", ".join(f"{name} {value}" for name, value in head.items() if begun.get(name) != value)
            raise UsageError(
                f"{folder} was prepared with other settings (now {given or 'fewer'}). Take another "
                f"folder, or the settings in the first line of {NAME}"
            )
        for row in rows[1:]:
            with suppress(ValueError):  # of a damaged line: its video is made anew
                self._take(encode.Prepared.from_row(row, blocks=wanted["form"] != "h264"))
        if not rows:
            try:
                self._journal.add(head)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror or error}") from error

    def _take(self, done: encode.Prepared) -> None:
        self.latest[done.key] = done
        self.rows.append(done)

    def add(self, done: encode.Prepared) -> None:
        """Writes a row and waits until the disk has it.

        Raises:
            OSError: if the disk is full.
        """
        self._journal.add(asdict(done))
        self._take(done)


@dataclass(frozen=True)
class _Job:
    """Videos on their way into one folder."""

    operand: runner.Operand
    listing: Listing
    cuts: Mapping[str, tuple[str, Segment]]
    out: Path
    form: encode.Form
    made: PreparedVideos
    output: "Files | Shards"
    console: Console
    processes: int

    def _source(self, path: str) -> str:
        """The file that a result is made from."""
        return self.cuts[path][0] if path in self.cuts else path

    def do_all(self) -> "Prediction | None":
        """Makes what is not there yet, a sample first; None if all was there."""
        spoilt = {e.key: f"{e.status}: {e.reason}" for e in self.operand.manifest or () if not e.usable}
        places = {file.path: self._source(file.path) for file in self.listing.files}
        bad = {path: spoilt[source] for path, source in places.items() if source in spoilt}
        sources = {path: self.operand.stat(source) for path, source in places.items()}
        finished = [file for file in self.listing.files if self._is_done(file.path, sources)]
        known = {file.path for file in finished}
        left = [file for file in self.listing.files if file.path not in known | bad.keys()]
        for key, reason in bad.items():
            if self.made.latest.get(key) != encode.Prepared(key, reason=reason):
                self._finish(encode.Prepared(key, reason=reason))
        say(
            self.console,
            f"{counted(len(left), 'video')} below {self.operand.root} to prepare, {self.processes} at a time"
            + (f"; {len(finished)} {agreed(len(finished), 'are')} done already" if finished else "")
            + (f"; {len(bad)} {agreed(len(bad), 'are')} bad by the manifest" if bad else ""),
        )
        if not self.cuts and (segments := self.operand.whole_files()):
            say(self.console, segments)
        if not left:
            return None
        some = {place * (len(left) - 1) // max(_SAMPLE - 1, 1) for place in range(_SAMPLE)}
        sample = [] if len(finished) >= _SAMPLE else [left[place] for place in sorted(some)]
        self._make(sample, timed_every=1)
        done = [self.made.latest[file.path] for file in (*finished, *sample)]
        prediction = predict(
            done, [sources[file.path][0] for file in self.listing.files if file.path not in bad]
        )
        rest = [file for file in left if file not in sample]
        if rest:
            print_prediction(prediction, self.out, self.processes, self.console)
            self._make(rest, timed_every=max(len(rest) // _TIMED, 1))
        return prediction

    def _is_done(self, key: str, sources: Mapping[str, tuple[int, int]]) -> bool:
        done = self.made.latest.get(key)
        # what was skipped is tried again: somebody may have mended it, or its root is mounted now
        return done is not None and not done.reason and done.source == sources[key] and self.output.has(done)

    def _make(self, files: Sequence[Listed], timed_every: int) -> None:
        with runner.runner(self.console, "prepare", len(files), self.processes) as crew:
            tasks = self._tasks(files, timed_every)
            for task, result in crew.run(
                tasks, encode.prepare_file, patience_seconds=2 * encode.PATIENCE_SECONDS
            ):
                if isinstance(result, runner.CannotWrite):
                    raise self._full(result.reason)
                if isinstance(result, Lost):
                    task.target.with_name(f".{task.target.name}.part").unlink(missing_ok=True)
                    result = encode.Prepared(task.key, reason=result.reason)
                self._finish(result)
                crew.advance()

    def _tasks(self, files: Sequence[Listed], timed_every: int) -> Iterator[encode.FileToPrepare]:
        for place, file in enumerate(files):
            known = self.operand.entry(self._source(file.path))
            yield encode.FileToPrepare(
                self.operand.root,
                file.path,
                self.listing.class_names(file),
                self.output.target(file.path),
                self.form,
                timed=place % timed_every == 0,
                limits=decode.limits_of(None if known is None else known.facts),
                cut=self.cuts.get(file.path),
            )

    def _finish(self, result: encode.Prepared) -> None:
        try:
            self.made.add(result if result.reason else self.output.keep(result))
        except OSError as error:
            raise self._full(f"cannot write to {self.out}: {error.strerror or error}") from error

    def _full(self, reason: str) -> UsageError:
        done = sum(not row.reason for row in self.made.latest.values())
        return UsageError(
            f"{reason}. {counted(done, 'video', of=len(self.listing.files), verb='are')} prepared and kept; "
            "once there is room "
            f"{runner.RESUMES}"
        )


# Where results lie. In both classes ``target`` is the file that a video is made into; ``keep`` takes in what
# was made and returns it with all that is needed to find it, or raises OSError if the disk is full; ``has``
# tests that a result is still there whole; ``describe`` writes the manifest or index of all results.


class Files:
    """A file for each video, under the key that it has; the manifest lies beside the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def target(self, key: str) -> Path:
        return self.folder / key

    def keep(self, done: encode.Prepared) -> encode.Prepared:
        return done

    def has(self, done: encode.Prepared) -> bool:
        try:
            return os.stat(self.folder / done.key).st_size == done.bytes
        except OSError:
            return False

    def describe(self, listing: Listing, made: Mapping[str, encode.Prepared], root: Path) -> Path:
        whole = self.folder.absolute()
        manifest = whole.with_name(f"{whole.name}.manifest.jsonl")
        lines = [header(self.folder)]
        segments = listing.segments()
        for file in listing.whole().files:
            done = made[file.path]
            entry = FileRecord(file.path, "unreadable", f"it could not be prepared: {done.reason}")
            if not done.reason:
                entry = FileRecord.from_row(facts.Row(done.about))
            labels, own = listing.class_names(file), segments.get(file.path, ())
            lines.append(replace(entry, labels=labels, segments=own).to_line())
        process.write_text(manifest, "".join(lines))
        return manifest


class Shards:
    """Blocks of JPEGs in shards of about a gibibyte, one process adding to them.

    What lies behind the last block of the journal was left by a process that was ended, and is cut off.
    """

    def __init__(self, folder: Path, made: PreparedVideos) -> None:
        self.folder = folder
        self._work = folder / ".work"
        self._work.mkdir(exist_ok=True)
        self._ends: dict[str, int] = {}
        for done in made.rows:
            if not done.reason:
                name, start = _place(done)
                self._ends[name] = max(self._ends.get(name, 0), start + done.bytes)
        for path in sorted(folder.glob("*.jpegs")):
            if path.stat().st_size > self._ends.get(path.name, 0):
                os.truncate(path, self._ends.get(path.name, 0))
        self._number = max(len(self._ends) - 1, 0)

    def target(self, key: str) -> Path:
        return self._work / hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]

    def keep(self, done: encode.Prepared) -> encode.Prepared:
        name = shard_name(self._number)
        if self._ends.get(name, 0) >= _SHARD_BYTES:
            self._number += 1
            name = shard_name(self._number)
        start = self._ends.get(name, 0)
        block = self.target(done.key)
        # at a stated place, not at the end: what a full disk left half written is written over
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b") as shard, block.open("rb") as made:
            shard.seek(start)
            shutil.copyfileobj(made, shard, 1 << 20)
            shard.flush()
            os.fsync(shard.fileno())
        block.unlink()
        self._ends[name] = start + done.bytes
        return replace(done, about={**done.about, "shard": name, "start": start})

    def has(self, done: encode.Prepared) -> bool:
        name, start = _place(done)
        try:
            return os.stat(self.folder / name).st_size >= start + done.bytes
        except OSError:
            return False

    def describe(self, listing: Listing, made: Mapping[str, encode.Prepared], root: Path) -> Path:
        head = {"kind": KIND, "version": VERSION, "label_classes": listing.label_classes}
        rows: list[Mapping[str, object]] = [head]
        segments = listing.segments()
        for file in listing.whole().files:
            done = made[file.path]
            row = {"key": file.path, "labels": file.labels, "reason": done.reason, "frames": done.frames}
            own = {"segments": segments[file.path]} if file.path in segments else {}
            rows.append({**row, **own, **done.about, "origin": recorded(origin_of(root / file.path))})
        process.write_text(self.folder / INDEX, "".join(json.dumps(row) + "\n" for row in rows))
        shutil.rmtree(self._work, ignore_errors=True)
        return self.folder / INDEX


def _place(done: encode.Prepared) -> tuple[str, int]:
    shard, start = done.about["shard"], done.about["start"]
    assert isinstance(start, int)
    return str(shard), start


# prediction and report

_SLOWER = 0.9  # a gain below this is more than chance


@dataclass(frozen=True)
class Prediction:
    """Sizes and times of all videos, predicted from a few.

    Attributes:
        videos: that it is made from.
        bytes: of all results.
        size: bytes of a result for one of its source.
        gain: how many times as fast a clip is read; 0 if none was timed.
        bytes_left: of those that are still to be made.
        core_seconds: for these.
    """

    videos: int
    bytes: int
    size: float
    gain: float
    bytes_left: int
    core_seconds: float


def predict(done: Sequence[encode.Prepared], sizes: Sequence[int]) -> Prediction | None:
    """A prediction for all videos from the results so far; None if there is none.

    Args:
        done: what was tried.
        sizes: in bytes of all sources.
    """
    made = [row for row in done if not row.reason]
    read = sum(row.source[0] for row in made)
    if not read:
        return None
    size = sum(row.bytes for row in made) / read
    everything = sum(max(one, 0) for one in sizes)
    left = max(everything - sum(max(row.source[0], 0) for row in done), 0)
    seconds = left * sum(row.seconds for row in made) / read
    return Prediction(len(made), round(size * everything), size, gain(made), round(size * left), seconds)


def gain(rows: Sequence[encode.Prepared]) -> float:
    """How many times as fast clips are read from results as from their sources; 0 if none was timed."""
    timed = [row for row in rows if row.before > 0 and row.after > 0]
    return sum(row.before for row in timed) / sum(row.after for row in timed) if timed else 0.0


def print_prediction(prediction: Prediction | None, out: Path, processes: int, console: Console) -> None:
    """Print it, and whether the disk has room."""
    if prediction is None:
        say(console, "Nothing can be predicted: none of the first videos could be prepared")
        return
    free = shutil.disk_usage(out).free
    say(
        console,
        f"Predicted from {counted(prediction.videos, 'video')}: {format_size(prediction.bytes)} in all, "
        f"{prediction.size:.2f} times the originals; {_read_time(prediction.gain)}; "
        f"{format_duration(prediction.core_seconds / processes)} to go",
    )
    if 0 < prediction.gain < _SLOWER:
        say(
            console,
            "These videos are read more slowly for it: leave them as they are, or try another form or size "
            "in another folder. To end it here, Ctrl-C",
        )
    if prediction.bytes_left > free:
        say(console, f"The disk may fill up: {format_size(free)} left. What is finished stays in any case")


def prepare_report(
    rows: Sequence[encode.Prepared],
    where: Path,
    prediction: Prediction | None,
    out: Path,
    console: Console,
    *,
    show_all: bool,
) -> None:
    """Print what was made and what was skipped; ``where``: the manifest or index."""
    made, skipped = [row for row in rows if not row.reason], [row for row in rows if row.reason]
    say(console, f"{counted(len(made), 'video', of=len(rows), verb='are')} prepared in {out}")
    if made:
        before, after = sum(row.source[0] for row in made), sum(row.bytes for row in made)
        timed = sum(row.after > 0 for row in made)
        predicted = (
            f" (predicted: {format_size(prediction.bytes)}; {_read_time(prediction.gain)})"
            if prediction
            else ""
        )
        say(
            console,
            f"Measured: {format_size(after)} in all, {after / before:.2f} times the originals; "
            f"{_read_time(gain(made))}, {counted(timed, 'clip')} timed{predicted}",
        )
    print_list(console, "Skipped", [f"{row.key}: {row.reason}" for row in skipped], show_all=show_all)
    if where.name == INDEX:
        say(console, f"In recipes: source: {dump_flow({'type': 'jpeg_shards', 'root': str(out)})}")
    else:
        root, manifest = dump_flow(str(out)), dump_flow(str(where))
        say(console, f"Manifest: {where} (in recipes: 'root: {root}' and 'manifest: {manifest}')")


def _read_time(gain: float) -> str:
    if not gain:
        return "no clip was timed"
    clip = f"a clip of {examine.CLIP_FRAMES} frames at stride {examine.CLIP_STRIDE}"
    return f"{clip} is read in {1 / gain:.2f} of the time"
