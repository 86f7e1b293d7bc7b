"""--sweep of kdkit distill: a run for each combination of values, one after the other, each in a folder of its own."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdkit.errors import ConfigError, KdkitError, UsageError, first_line
from kdkit.runtime.hardware import is_first_process

FLAG = "--sweep"
_COMMA = re.compile(r",(?![^{\[]*[}\]])")  # outside braces and brackets


def split_sweep(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The text of --sweep, None without one, and the other arguments.

    Raises:
        UsageError: it is given without a value, or twice.
    """
    found, others, waiting = [], [], list(arguments)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        if flag != FLAG:
            others.append(f"{flag}{equals}{value}")
        elif equals or waiting:
            found.append(value if equals else waiting.pop(0))
        else:
            raise UsageError(f'{FLAG} needs a value, e.g. {FLAG} "loss=kl,dkd lr=1e-3,3e-4"')
    if len(found) > 1:
        raise UsageError(f"{FLAG} is given twice: list all names and values in one")
    return (found[0] if found else None), others


def combinations(text: str) -> list[dict[str, str]]:
    """Flag -> value of each run, the last name varying fastest.

    Args:
        text: names with their values, e.g. "loss=kl,dkd lr=1e-3,3e-4".

    Raises:
        UsageError: a name has no value, or occurs twice.
    """
    values: dict[str, list[str]] = {}
    for word in shlex.split(text):
        name, _, listed = word.removeprefix("--").partition("=")
        items = [item for item in _COMMA.split(listed) if item]
        if not name or not items:
            raise UsageError(f'{FLAG} takes names with values, "loss=kl,dkd lr=1e-3,3e-4", got {word!r}')
        if name in values:
            raise UsageError(f"{FLAG} names {name!r} twice: list its values once")
        values[name] = list(dict.fromkeys(items))
    if not values:
        raise UsageError(f"{FLAG} is empty: give names with values")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def runs_of(
    text: str, arguments: Sequence[str], output: Path, *, overwrite: bool = False
) -> Iterator[tuple[Path, list[str]]]:
    """Folder and arguments of each run; one that was stopped resumes and a finished one stays, unless overwritten.

    Args:
        text: the text of --sweep.
        arguments: the other arguments.
        output: the folder that holds the folders of the runs.
        overwrite: whether the arguments say that runs are replaced.
    """
    again = [] if overwrite else ["--resume"]
    for values in combinations(text):
        name = ",".join(f"{flag}={value}" for flag, value in values.items())
        folder = output / re.sub(r"[^\w.,=+-]+", "_", name)
        yield (
            folder,
            [*arguments, *(f"--{flag}={value}" for flag, value in values.items()), f"--output={folder}", *again],
        )


def run_each(runs: Sequence[tuple[Path, list[str]]], run: Callable[[list[str]], None]) -> None:
    """Calls `run` with the arguments of each run; one that fails does not stop the others.

    On several ranks it does: those that have not failed may be waiting in that run for this one. The same command then
    leaves finished runs as they are.

    Raises:
        ConfigError: runs failed; names the first.
    """
    from kdkit.runtime import distributed

    failed: list[str] = []
    for number, (folder, arguments) in enumerate(runs, 1):
        if is_first_process():
            print(f"run {number} of {len(runs)}: {folder.name}", file=sys.stderr)
        try:
            run(arguments)
        except KdkitError as error:
            if distributed.world_size() > 1:
                raise
            failed.append(f"{folder.name} ({first_line(error)})")
            print(f"failed: {failed[-1]}", file=sys.stderr)
    if failed:
        raise ConfigError(f"{len(failed)} of {len(runs)} runs failed, the first: {failed[0]}")
