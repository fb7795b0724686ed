"""What is seen and kept of a run: consoles, lines and bars, a table of the few numbers that tell, metrics
files.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from types import TracebackType
from typing import Literal

import torch
from rich import box
from rich.console import (
    Console,
    ConsoleOptions,
    Group,
    HighlighterType,
    JustifyMethod,
    OverflowMethod,
    RenderableType,
)
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vidssl.engine.process import slow_machine, write_text
from vidssl.errors import UsageError, printable
from vidssl.interfaces import Batch, Yardstick


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
            printable(text), style=style, justify=justify, overflow=overflow, emoji=emoji, markup=markup,
            highlight=highlight, highlighter=highlighter,
        )  # fmt: skip

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
    counts = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(TextColumn(title), BarColumn(), *counts, console=console, transient=True) as bar:
        yield partial(bar.advance, bar.add_task("", total=total))


def format_metric(name: str, value: float) -> str:
    """A metric's value as it is shown: shares in percent, rates in powers of ten."""
    shares = ("most_frequent", "copy_nearest", "knn_")
    if "accuracy" in name or name.endswith("_share") or name.startswith(shares):
        return f"{100 * value:.1f} %"
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


WIDTH = 118  # of lines where there is no terminal
_RATE = "s_per_second"
_NOTABLE = 0.1


def say_wrapped(console: Console, text: str, style: str = "") -> None:
    """Print a text in lines that fit, broken between words alone."""
    width = console.width if console.is_terminal else WIDTH
    lines = fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print_line(console, lines, style)


class TrainDisplay:
    """Shows steps, time left and metrics; a context manager around the loop.

    Args:
        yardsticks: of the objective; where it has none, its losses and accuracies are shown.
        on_cpu: whether the network runs on CPUs, so that other processes can hold it up.
    """

    def __init__(
        self,
        total_steps: int,
        console: Console,
        first_step: int = 0,
        yardsticks: Sequence[Yardstick] = (),
        *,
        on_cpu: bool = False,
    ) -> None:
        self.console = console
        self.total_steps = total_steps
        self.first_step = first_step
        self.yardsticks = yardsticks
        self.started = time.monotonic()
        self._may_be_slow = on_cpu
        self._means: Mapping[str, float] = {}
        self._tested: tuple[int, Mapping[str, float]] = (0, {})
        self._probed = ""
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("left"),
            console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total_steps, completed=first_step)
        self._live = Live(self._bar, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> "TrainDisplay":
        self.started = time.monotonic()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, done: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done)

    def metrics(self, done: int, means: Mapping[str, float]) -> None:
        """Shows the means of the last steps, and says once that the machine is slow where it is."""
        self._means = means
        slow = slow_machine(means.get("off_cpu_share", 0.0)) if self._may_be_slow else ""
        if slow:
            self._may_be_slow = False
            self.say(slow)
        left = (time.monotonic() - self.started) / (done - self.first_step) * (self.total_steps - done)
        learned = [f"{each.metric} {each.shown(means[each.metric])}" for each in self._rows(means)]
        head = f"step {done}/{self.total_steps}"
        self._show(
            fitting([head, f"{format_duration(left)} left", *learned, *self._rates(), *self._losses()])
        )

    def tested(self, done: int, found: Mapping[str, float]) -> None:
        """Shows the objective's metrics on held-out streams, each beside its baselines."""
        self._tested = done, found
        lines = []
        for each in self._rows(found):
            beside = [f"{name} {each.shown(value)}" for name, value in each.beside(found).items()]
            lines.append(f"{each.label} {each.shown(found[each.metric])}" + _in_brackets(beside))
        self._show(*(f"step {done}, held-out videos: {line}" for line in lines))

    def probed(self, done: int, found: Mapping[str, float]) -> None:
        """Shows what probes in the course of the run find."""
        numbers = "  ".join(
            f"{name.removeprefix('knn_')} {format_metric(name, value)}" for name, value in found.items()
        )
        self._probed = f"step {done}, kNN: {numbers}"
        self._show(self._probed)

    def say(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        say_wrapped(self.console, text)

    def _show(self, *lines: str) -> None:
        if self._live is not None:
            self._live.update(Group(self._bar, *self._page()))
        else:
            for line in lines:
                self.say(line)

    def _page(self) -> list[RenderableType]:
        step, found = self._tested
        rows = self._rows(self._means, found)
        page: list[RenderableType] = []
        if rows:
            names = list(dict.fromkeys(name for each in rows for name in each.baselines))
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            table.add_column("", no_wrap=True)
            heads = ("training", f"held out, step {step}" if found else "held out", *names)
            for head in heads:
                table.add_column(head, justify="right")
            for each in rows:
                beside = each.beside(self._means) | each.beside(found)
                values = [known.get(each.metric) for known in (self._means, found)]
                values += [beside.get(name) for name in names]
                table.add_row(each.label, *("" if one is None else each.shown(one) for one in values))
            page.append(table)
        lines = ("  ".join(self._rates()), fitting(self._losses(), self.console.width), self._probed)
        return page + [Text(line) for line in lines if line]

    def _rows(self, *known: Mapping[str, float]) -> list[Yardstick]:
        return [each for each in self.yardsticks if any(each.metric in metrics for metrics in known)]

    def _rates(self) -> list[str]:
        """Views a second, what is waited for."""
        means = self._means
        views = [name for name in means if name.endswith(_RATE)]
        rates = [f"{means[name]:.3g} {name.removesuffix(_RATE)}s/s" for name in views]
        waits = {"data wait": means.get("data_wait_share")}
        if means.get("off_cpu_share", 0.0) >= _NOTABLE:
            waits["without a CPU"] = means["off_cpu_share"]
        return rates + [f"{name} {100 * share:.0f} %" for name, share in waits.items() if share is not None]

    def _losses(self) -> list[str]:
        """And accuracies, but for those of the yardsticks."""
        shown = {each.metric for each in self.yardsticks}
        return [
            f"{name} {format_metric(name, value)}"
            for name, value in self._means.items()
            if name.startswith(("loss", "accuracy")) and name not in shown and not name.endswith("_of_chance")
        ]


def fitting(parts: Iterable[str], width: int = WIDTH) -> str:
    """As many of the parts side by side as a line holds, at least the first."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if line and len(longer) > width:
            break
        line = longer
    return line


def _in_brackets(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""
