"""What is seen of a training run: on a terminal a bar and a small table, elsewhere short lines.

All that is measured goes to the run's ``metrics.jsonl``; here stand the few numbers that tell how it goes.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vidssl.engine.logging import format_duration, format_metric, print_line
from vidssl.engine.process import slow_machine
from vidssl.interfaces import Yardstick

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
        numbers = "  ".join(f"{name.removeprefix('knn_')} {value:.1%}" for name, value in found.items())
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
        return rates + [f"{name} {share:.0%}" for name, share in waits.items() if share is not None]

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
