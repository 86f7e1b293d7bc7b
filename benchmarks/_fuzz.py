"""Mutations of files and documents, and their execution in processes that may hang, die or run out of memory.

A trial is a number: it seeds the choice of the base, the mutation and what is then done with the file, so that a trial
that fails can be run again by its number. Nothing is shared between trials but the bases.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_SECONDS, MAX_WAIT_SECONDS = 5, 60
MAX_BYTES = 512 << 20
HARMLESS = ("same", "refused", "decoded")
"""What may become of a trial; "decoded": mutated rows that are numbers all the same."""

Trial = Callable[[int], str]
"""Runs the trial of this number; returns one of HARMLESS, or raises whatever should not have happened."""


class WrongValueError(AssertionError):
    """A value that was read differs from the one that was written."""


@dataclass
class Outcome:
    """What became of the trials."""

    counts: dict[str, int] = field(default_factory=dict)
    """One of HARMLESS, or a kind of failure -> number of trials."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number of the trial and what happened, for each failure."""
    peak_bytes: int = 0
    """Greatest growth of a process's resident memory over its size before the first trial."""

    @property
    def num_trials(self) -> int:
        """All trials that were run."""
        return sum(self.counts.values())

    def add(self, kind: str, number: int, reason: str = "") -> None:
        """Counts one trial."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind not in HARMLESS:
            self.failures.append((number, f"{kind}: {reason}"))


def run_trials(trial: Trial, numbers: range) -> Outcome:
    """Runs the trials in forked processes; one that waits or dies costs its own trial alone."""
    outcome, following = Outcome(), numbers.start
    while following < numbers.stop:
        following = _run_in_child(trial, range(following, numbers.stop), outcome)
    return outcome


def _run_in_child(trial: Trial, numbers: range, outcome: Outcome) -> int:
    """Runs trials until one ends the process; returns the number to go on with."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _child(trial, numbers, writer)
    os.close(writer)
    done = numbers.start
    with open(reader, encoding="utf-8") as lines:
        for line in lines:
            number, kind, reason, peak = json.loads(line)
            outcome.peak_bytes = max(outcome.peak_bytes, peak)
            outcome.add(kind, number, reason)
            done = number + 1
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        died = os.WTERMSIG(status)
        kind = "hang" if died in (signal.SIGALRM, signal.SIGPROF) else "death"
        outcome.add(kind, done, signal.Signals(died).name)
        return done + 1
    assert os.WEXITSTATUS(status) == 0
    return done


def _child(trial: Trial, numbers: range, writer: int) -> None:
    """Reports one line for each trial; the alarm's default action ends the process also within a call of C."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_AS, (size + 2 * MAX_BYTES,) * 2
    )  # beyond what may be used: to be seen, not hidden
    with open(writer, "w", encoding="utf-8", buffering=1) as report:
        for number in numbers:
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # of the processor: other processes may keep it busy
            signal.alarm(MAX_WAIT_SECONDS)
            kind, reason = _one(trial, number)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if peak > MAX_BYTES:
                kind, reason = "memory", f"{peak:,} bytes"
            report.write(json.dumps([number, kind, reason, peak]) + "\n")
            if peak > MAX_BYTES:  # the peak of a process does not sink
                break
    os._exit(0)


def _one(trial: Trial, number: int) -> tuple[str, str]:
    try:
        return trial(number), ""
    except WrongValueError as error:
        return "wrong value", str(error)
    except BaseException as error:
        place = traceback.extract_tb(sys.exc_info()[2])[-1]
        return "untyped", f"{type(error).__name__}: {str(error)[:200]!r} at {Path(place.filename).name}:{place.lineno}"


EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def mutate_bytes(content: bytes, draw: random.Random, others: list[bytes]) -> bytes:
    """The content with one to three mutations that a damaged disk, a bad copy or an attacker makes."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 3])):
        draw.choice(_MUTATIONS)(data, draw, others)
    return bytes(data)


def _place(data: bytearray, draw: random.Random) -> int:
    """A place in the file; half of the time near its ends, where HDF5 keeps its structures."""
    if not data:
        return 0
    span = len(data) if draw.random() < 0.5 else min(len(data), 4096)
    return draw.randrange(span) if draw.random() < 0.5 else len(data) - 1 - draw.randrange(span)


def _flip(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    for _ in range(draw.choice([1, 1, 8, 64])):
        if data:
            data[_place(data, draw)] ^= 1 << draw.randrange(8)


def _number(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    place, width = _place(data, draw), draw.choice([1, 2, 4, 8])
    place -= place % width
    data[place : place + width] = (draw.choice(EXTREMES) & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _fill(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    place, length = _place(data, draw), draw.choice([1, 16, 512, 4096])
    length = min(length, len(data) - place)
    fill = draw.choice([b"\0", b"\xff", None])
    data[place : place + length] = draw.randbytes(length) if fill is None else fill * length


def _cut(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    del data[_place(data, draw) :]


def _grow(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    data += draw.randbytes(draw.choice([1, 4096, 100_000]))


def _remove(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    place = _place(data, draw)
    del data[place : place + draw.choice([1, 8, 512, 4096])]


def _move(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    length = draw.choice([8, 64, 512, 4096])
    source, target = _place(data, draw), _place(data, draw)
    piece = bytes(data[source : source + length])
    data[target : target + len(piece)] = piece


def _splice(data: bytearray, draw: random.Random, others: list[bytes]) -> None:
    """A piece of another file at the same place, as after a mix-up of blocks."""
    other, place, length = draw.choice(others), _place(data, draw), draw.choice([64, 512, 4096, 1 << 20])
    data[place : place + length] = other[place : place + length]


_MUTATIONS = (_flip, _flip, _number, _number, _fill, _cut, _grow, _remove, _move, _splice)

DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]
ODD: list[Any] = [
    *(None, True, 0, -1, 3, 1.5, float("nan"), float("inf"), 2**31, 2**63, 2**70, 10**4000, 1e308),
    *("", "x", "../x", "/etc/passwd", "a\0b", "\x1b[31m", "9" * 5000, "x" * 100_000, "\ud800"),
    *([], [1], {}, {"a": 1}, [[]], [None], ["a"], [0] * 10_000, {"": {}}, DEEP),
]
TOKENS = [
    *("[" * 50, "]", "{", "}", ",", ":", '"', "\\", "\\ud800", "\0", "\t", "\n", "- ", "? ", "| ", "#", "---\n", "%"),
    *("&a ", "*a", "!!python/object/apply:os.getcwd []", "!!binary ", "<<: ", "9" * 5000, "0x" + "f" * 5000, "1e999"),
    *(
        "NaN",
        "Infinity",
        "-",
        "1:" * 3000,
        "2026-13-01",
        "\x1b[2J",
        "\ufeff",
        "é",
        "[" * 20_000,
        "- " * 5000,
        "[[],[]," * 3000,
    ),
]


def mutate_text(text: str, draw: random.Random) -> str:
    """The text with one to three pieces removed, repeated, replaced or put in."""
    for _ in range(draw.choice([1, 1, 2, 3])):
        place = draw.randrange(len(text) + 1)
        piece = text[place : place + draw.choice([1, 2, 10, 100])]
        way = draw.randrange(5)
        if way == 0:
            text = text[:place] + draw.choice(TOKENS) + text[place:]
        elif way == 1:
            text = text[:place] + text[place + len(piece) :]
        elif way == 2:
            text = text[:place] + piece * draw.choice([2, 10, 1000]) + text[place:]
        elif way == 3:
            text = text[:place] + draw.choice(TOKENS) + text[place + len(piece) :]
        else:
            text = text[:place]
    return text


def mutate_document(document: Any, draw: random.Random) -> Any:
    """The document with one to three of its values replaced or removed; it is changed in place."""
    for _ in range(draw.choice([1, 1, 2, 3])):
        places = list(_places(document))
        if not places:
            return draw.choice(ODD)
        owner, name = draw.choice(places)
        if draw.random() < 0.2:
            del owner[name]
        elif draw.random() < 0.2 and isinstance(owner, dict):
            owner[draw.choice(["", "x", "kind", "a" * 5000, "\x1b[31m"])] = draw.choice(ODD)
        else:
            owner[name] = draw.choice(ODD)
    return document


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    members = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for name, member in list(members):
        yield value, name
        if depth < 8:
            yield from _places(member, depth + 1)
