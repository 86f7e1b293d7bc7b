"""Progress for people: a bar on a terminal, a plain line now and then in a pipe, nothing on other ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0
_SHOWN = ("loss", "task_loss", "kd_loss", "agreement_top1", "teacher_top1")

Advance = Callable[[int], None]


class Display:
    """How far a piece of work is; called with the number of units done since the last call. This one shows nothing."""

    def __call__(self, count: int) -> None:
        """Counts `count` more units as done."""

    def set_completed(self, count: int) -> None:
        """Counts units that an earlier run has done, and that say nothing about speed."""

    def set_postfix(self, values: Mapping[str, float]) -> None:
        """Shows the latest terms beside the progress."""

    def write(self, text: str) -> None:
        """Prints one line that stays."""


@contextmanager
def progress(description: str, total: int, unit: str, *, enabled: bool = True) -> Iterator[Display]:
    """Yields a display to call with the number of units done since its last call.

    Args:
        description: what is going on.
        total: how many units there are.
        unit: what is counted, e.g. "images"; the display shows them per second.
        enabled: False shows nothing.
    """
    if not enabled:
        yield Display()
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as display:
            yield display
    else:
        yield _Lines(description, total, unit)


def format_terms(values: Mapping[str, float]) -> str:
    """The terms worth a look, short: "loss 1.234, kd loss 0.567, agreement 81 %"."""
    return ", ".join(_format_term(name, values[name]) for name in _SHOWN if name in values)


def _format_term(name: str, value: float) -> str:
    if name.endswith("_top1"):
        return f"{name.removesuffix('_top1')} {value:.0f} %"
    return f"{name.replace('_', ' ')} {value:.4g}"


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Display]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} {unit}/s", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[terms]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, terms=""))


class _Bar(Display):
    """rich's bar."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def __call__(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def set_completed(self, count: int) -> None:
        self._bar.reset(self._task, completed=count)

    def set_postfix(self, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, terms=format_terms(values))

    def write(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)


class _Lines(Display):
    """Lines for a file, one every ten seconds."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = self._skipped = 0
        self._begun = self._shown = time.monotonic()
        self._terms = ""

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._done >= self._total or now - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = now
            rate = (self._done - self._skipped) / max(now - self._begun, 1e-9)
            left = timedelta(seconds=round(max(0, self._total - self._done) / max(rate, 1e-9)))
            self.write(
                f"{self._description}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} {self._unit}/s, "
                f"{left} left{self._terms}"
            )

    def set_completed(self, count: int) -> None:
        self._done += count
        self._skipped += count

    def set_postfix(self, values: Mapping[str, float]) -> None:
        self._terms = f", {format_terms(values)}"

    def write(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
