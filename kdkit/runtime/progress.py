"""Progress display: rich's bar on a terminal or in a notebook, a plain line every ten seconds in a pipe, nothing on
other ranks."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from math import ceil

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from kdkit.errors import printable
from kdkit.runtime.layout import format_rate

_SECONDS_BETWEEN_LINES = 10.0
_TERMS = ("loss", "task_loss", "kd_loss", "agreement_top1", "teacher_top1")
_METRICS = ("loss", "kd_loss")  # metrics that fit next to a bar
_WIDTH_FOR_SPEED, _WIDTH_FOR_LOSS, _WIDTH_FOR_METRICS = 70, 80, 100  # columns of the terminal

Advance = Callable[[int], None]


class Display:
    """The progress of a task; called with the number of units done since the last call. This one shows nothing."""

    def __call__(self, count: int) -> None:
        """Counts `count` more units as done."""

    def set_completed(self, count: int) -> None:
        """Counts the units that an earlier run has done; the speed leaves them out."""

    def set_postfix(self, values: Mapping[str, float]) -> None:
        """Shows the latest metrics next to the progress."""

    def write(self, text: str) -> None:
        """Prints one line that stays."""


@contextmanager
def progress(
    description: str, total: int, unit: str, *, enabled: bool = True, brief: bool = False
) -> Iterator[Display]:
    """Yields a display to call with the number of units done since its last call.

    Args:
        description: the work and the run that it belongs to; every line in a pipe starts with it.
        total: number of units.
        unit: name of the units, e.g. "images"; the display shows them per second.
        enabled: False shows nothing.
        brief: the work prepares for other work: its bar vanishes with its end, and a pipe gets no line of it if it
            takes less than ten seconds.
    """
    if not enabled:
        yield Display()
        return
    console = Console(stderr=True)
    columns = _columns(console, unit)
    bar = Progress(*columns, console=console, expand=True, get_time=time.monotonic, transient=brief)
    if sys.stderr.isatty() or _shows_widgets(console):
        with bar:
            yield _Bar(bar, description, total, unit)
            if console.is_jupyter:
                bar.refresh()  # rich leaves the last state out there
    else:
        yield _Lines(bar, description, total, unit, tells_end=not brief)


def _shows_widgets(console: Console) -> bool:
    """Whether standard error is a notebook, and rich has the package by which it draws a bar there."""
    return console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


def format_terms(values: Mapping[str, float], names: tuple[str, ...] = _TERMS) -> str:
    """The terms of `names`, short: "loss 1.234, kd loss 0.567, agreement 81 %"."""
    return ", ".join(_format_term(name, values[name]) for name in names if name in values)


def _format_term(name: str, value: float) -> str:
    if name.endswith("_top1"):
        return f"{name.removesuffix('_top1')} {value:.0f} %"
    return f"{name.replace('_', ' ')} {value:.4g}"


def _speed(task: Task) -> float:
    """Units per second, without an earlier run's: since the start, until rich has two calls to measure between."""
    since_start = (task.completed - task.fields["resumed"]) / task.elapsed if task.elapsed else 0.0
    return task.finished_speed or task.speed or since_start


def _columns(console: Console, unit: str) -> tuple[ProgressColumn, ...]:
    """Description, bar, count, speed, time left and metrics; speed and metrics only if the terminal is wide."""

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{format_rate(_speed(task))} {unit}/s" if console.width >= _WIDTH_FOR_SPEED else "")

    class Metrics(ProgressColumn):
        def render(self, task: Task) -> Text:
            shown = sum(console.width >= width for width in (_WIDTH_FOR_LOSS, _WIDTH_FOR_METRICS))
            return Text(format_terms(task.fields["values"], _METRICS[:shown]))

    return (
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        Speed(Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        Metrics(Column(no_wrap=True)),
    )


class _Bar(Display):
    """One task of rich's Progress."""

    def __init__(self, bar: Progress, description: str, total: int, unit: str) -> None:
        self._bar, self._unit = bar, unit
        self._id = bar.add_task(description, total=total, values={}, resumed=0)
        self._task = bar.tasks[0]

    def __call__(self, count: int) -> None:
        self._bar.advance(self._id, count)

    def set_completed(self, count: int) -> None:
        self._bar.reset(self._id, completed=count, resumed=count, values={})

    def set_postfix(self, values: Mapping[str, float]) -> None:
        self._bar.update(self._id, values=values)

    def write(self, text: str) -> None:
        console = self._bar.console
        console.print(printable(text), highlight=False, markup=False, soft_wrap=not console.is_terminal)


class _Lines(_Bar):
    """The same without the bar: a line every ten seconds; every line starts with the description."""

    def __init__(self, bar: Progress, description: str, total: int, unit: str, *, tells_end: bool) -> None:
        super().__init__(bar, description, total, unit)
        self._written, self._tells_end = time.monotonic(), tells_end

    def __call__(self, count: int) -> None:
        super().__call__(count)
        now, task = time.monotonic(), self._task
        if now - self._written < _SECONDS_BETWEEN_LINES and not (task.finished and self._tells_end):
            return
        self._written, self._tells_end = now, True  # work that was begun to be shown is shown to its end
        spent, left = (timedelta(seconds=ceil(seconds or 0)) for seconds in (task.elapsed, task.time_remaining))
        self.write(
            f"{task.completed:,} of {task.total:,} {self._unit}, {format_rate(_speed(task))} {self._unit}/s, "
            + (f"in {spent}" if task.finished else f"{left} left")
            + (f", {terms}" if (terms := format_terms(task.fields["values"])) else "")
        )

    def write(self, text: str) -> None:
        super().write(f"{self._task.description}: {text}")
