"""Consoles, lines and bars of all commands, metrics as they are written, and where else they go."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from rich.console import (
    Console,
    ConsoleOptions,
    HighlighterType,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from torch import Tensor

from vidssl.engine.atomic import write_text
from vidssl.errors import UsageError, printable
from vidssl.interfaces import Batch


class _Terminal(Console):
    """A console on which text is text, whoever wrote it: no markup, no emoji codes, no control characters."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet, markup=False, emoji=False)

    def render_str(  # before a table measures its cells
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        return super().render_str(
            printable(text),
            style=style,
            justify=justify,
            overflow=overflow,
            emoji=emoji,
            markup=markup,
            highlight=highlight,
            highlighter=highlighter,
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def terminal(*, quiet: bool = False) -> Console:
    """The console that commands print on. Names of files and classes cannot steer the terminal."""
    return _Terminal(quiet=quiet)


Say = Callable[[str], None]  # prints or logs a line
LINE_SECONDS = 30.0  # between two lines on progress where there is no terminal


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print a text as it stands: not wrapped, nothing in it highlighted or taken for markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False, style=style)


class _Lines:
    """Progress in a log: ``scan: 120 of 649, 3 min left``, at most every half minute."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._say, self._title, self._total = partial(print_line, console), title, total
        self._began = self._told = time.monotonic()
        self._done = 0

    def advance(self) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told >= LINE_SECONDS and self._done < self._total:
            self._told = now
            left = (now - self._began) / self._done * (self._total - self._done)
            self._say(f"{self._title}: {self._done} of {self._total}, {format_duration(left)} left")


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, elsewhere a line now and then; gives the function that moves it by one."""
    if not console.is_terminal:
        yield _Lines(console, title, total).advance
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task("", total=total))


def format_metric(name: str, value: float) -> str:
    """A metric's value as it is shown: shares in percent, rates in powers of ten."""
    if "accuracy" in name or name.endswith("_share") or name.startswith(("most_frequent", "copy_nearest")):
        return f"{100 * value:.1f}%"
    if name == "lr":
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def format_duration(seconds: float) -> str:
    """``48 s``, ``3 min 20 s``, ``5 h 02 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Messages(logging.Handler):
    """Prints the package's messages as plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.console, record.getMessage())


@contextmanager
def shown_messages(console: Console) -> Iterator[None]:
    """Let what the package reports by ``logging`` (where a data set is made, say) appear on the console."""
    log, handler = logging.getLogger("vidssl"), _Messages(console)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class Meter:
    """Collects metrics of steps without waiting for the device; ``means`` empties it."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._metrics: dict[str, list[Tensor]] = {}
        self._samples: dict[str, int] = {}
        self._waited = 0.0
        self._started, self._on_cpu = time.monotonic(), time.thread_time()

    def add(
        self,
        metrics: Mapping[str, Tensor],
        grad_norm: Tensor | None = None,
        batch: Batch | None = None,
        waited_seconds: float = 0.0,
    ) -> None:
        """One step: its metrics, gradient norm, batch and the seconds it waited for data."""
        named = dict(metrics) if grad_norm is None else {**metrics, "grad_norm": grad_norm}
        for name, value in named.items():
            self._metrics.setdefault(name, []).append(value.detach())
        for name, slots in batch.views.items() if batch is not None else ():
            self._samples[name] = self._samples.get(name, 0) + len(slots[0])
        self._waited += waited_seconds

    def tensors(self) -> dict[str, Tensor]:
        """The values collected, one tensor a metric; ``load`` takes them back. Times are left out."""
        return {name: torch.stack(values) for name, values in self._metrics.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restores the state of ``tensors``; speeds are measured anew."""
        self._clear()
        self._metrics = {name: list(values.to(device).unbind()) for name, values in tensors.items()}

    def means(self) -> dict[str, float]:
        """Mean of each metric, samples a second of each view, and shares of the time.

        ``data_wait_share`` is that spent waiting for data, ``off_cpu_share`` that in which this thread waited
        for none and had no CPU.
        """
        means = {name: float(torch.stack(values).float().mean()) for name, values in self._metrics.items()}
        seconds = max(time.monotonic() - self._started, 1e-9)
        means.update({f"{name}s_per_second": count / seconds for name, count in self._samples.items()})
        if self._samples:
            means["data_wait_share"] = waited = self._waited / seconds
            means["off_cpu_share"] = max(0.0, 1 - waited - (time.thread_time() - self._on_cpu) / seconds)
        self._clear()
        return means


def over_processes(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of all processes as one: means over those that have a metric, speeds added up."""
    if len(found) == 1:
        return dict(found[0])
    names = dict.fromkeys(name for values in found for name in values)
    totals = {name: [values[name] for values in found if name in values] for name in names}
    return {
        name: sum(values) / (1 if name.endswith("s_per_second") else len(values))
        for name, values in totals.items()
    }


Tracker = Literal["tensorboard", "wandb"]
Track = Callable[[Mapping[str, float]], None]
UNTRACKED = ("step", "seconds")  # the place on an axis, not a curve


def check_trackers(trackers: Sequence[Tracker]) -> None:
    """Refuses a tracker whose package is not installed, before anything is made.

    Raises:
        UsageError: with the line that installs it.
    """
    for name in trackers:
        if find_spec(name) is None:
            raise UsageError(
                f"run.trackers names '{name}', whose package is not installed: pip install 'vidssl[{name}]', "
                "or leave it out (metrics.jsonl is written in any case)"
            )


@contextmanager
def open_trackers(
    trackers: Sequence[Tracker], folder: Path, *, config: str, first_step: int
) -> Iterator[Track]:
    """A function that takes a line of metrics to every tracker; they are flushed and closed in the end.

    Args:
        trackers: none of them twice.
        folder: the run's. TensorBoard's files go to ``tensorboard/`` in it, Weights & Biases' to ``wandb/``.
        config: text of the resolved recipe.
        first_step: steps already done; what TensorBoard was given of later ones is dropped.

    Raises:
        UsageError: if a tracker cannot be started.
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb}
    with ExitStack() as stack:
        tracks = [stack.enter_context(makers[tracker](folder, config, first_step)) for tracker in trackers]

        def track(record: Mapping[str, float]) -> None:
            for each in tracks:
                each(record)

        yield track


@contextmanager
def _tensorboard(folder: Path, config: str, first_step: int) -> Iterator[Track]:
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
    except OSError as error:
        raise UsageError(f"run.trackers: tensorboard: {error}") from error
    if not first_step:
        writer.add_text("recipe", "    " + config.replace("\n", "\n    "))

    def track(record: Mapping[str, float]) -> None:
        for key, value in record.items():
            if key not in UNTRACKED:
                writer.add_scalar(key, value, int(record["step"]))
        writer.flush()

    try:
        yield track
    finally:
        writer.close()


@contextmanager
def _wandb(folder: Path, config: str, first_step: int) -> Iterator[Track]:
    import wandb

    kept = folder / "wandb_id"  # so that a resumed run is one run there too
    known = kept.read_text(encoding="utf-8").strip() if first_step and kept.is_file() else None
    try:
        run = wandb.init(
            project="vidssl" if "WANDB_PROJECT" not in os.environ else None,
            name=folder.name,
            id=known,
            resume="allow",
            dir=str(folder),
            config={"recipe": config},
        )
    except wandb.errors.Error as error:
        raise UsageError(
            f"run.trackers: wandb: {str(error).splitlines()[0]}. Sign in with 'wandb login', or set "
            "WANDB_MODE=offline to keep its files for 'wandb sync'"
        ) from error
    write_text(kept, run.id + "\n")

    def track(record: Mapping[str, float]) -> None:
        values = {key: value for key, value in record.items() if key not in UNTRACKED}
        run.log(values, step=int(record["step"]))

    try:
        yield track
    finally:
        run.finish()
