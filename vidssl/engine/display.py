"""What a training run shows: a live line with its numbers on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

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
from rich.text import Text

from vidssl.errors import printable

HIDDEN = {"step", "seconds", "memory_gib"}


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


def format_metrics(metrics: Mapping[str, float]) -> str:
    """``loss_video 3.21  accuracy_video 18.4%  ...``; accuracies and shares in percent."""
    return "  ".join(
        f"{name} {format_metric(name, value)}" for name, value in metrics.items() if name not in HIDDEN
    )


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


class TrainDisplay:
    """Shows steps, time left and metrics; a context manager around the loop."""

    def __init__(self, total_steps: int, console: Console, first_step: int = 0) -> None:
        self.console = console
        self.total_steps = total_steps
        self.first_step = first_step
        self.started = time.monotonic()
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, done: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=done)

    def metrics(self, done: int, metrics: Mapping[str, float]) -> None:
        """Shows the means of the last steps."""
        text = format_metrics(metrics)
        if self._live is not None:
            self._live.update(Group(self._bar, Text(text)))
            return
        left = (time.monotonic() - self.started) / (done - self.first_step) * (self.total_steps - done)
        self.say(f"step {done}/{self.total_steps}  {format_duration(left)} left  {text}")

    def say(self, text: str) -> None:
        """Prints a line that stays, above the bar."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)


class _Messages(logging.Handler):
    """Prints the package's messages as plain lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), soft_wrap=True, highlight=False, markup=False)


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
