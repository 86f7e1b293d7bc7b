"""Progress for people: a bar on a terminal, a plain line now and then in a pipe, nothing on other ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress(description: str, total: int, unit: str, *, enabled: bool = True) -> Iterator[Advance]:
    """Yields a function to call with the number of units done since its last call.

    Args:
        description: what is going on.
        total: how many units there are.
        unit: what is counted, e.g. "images"; the display shows them per second.
        enabled: False shows nothing.
    """
    if not enabled:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _lines(description, total, unit)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
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
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(description, total=total)
        yield lambda count: display.advance(task, count)


def _lines(description: str, total: int, unit: str) -> Advance:
    begun = shown = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if done >= total or now - shown > _SECONDS_BETWEEN_LINES:
            shown = now
            rate = done / max(now - begun, 1e-9)
            print(f"{description}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s", file=sys.stderr, flush=True)

    return advance
