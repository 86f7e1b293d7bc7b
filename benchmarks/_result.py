"""Shared by the benchmarks: sides that take turns, and a dated result for people and for programs.

A benchmark makes a `Report`, adds prose, tables and figures to it, and writes DATE-NAME.md and DATE-NAME.json. The
page is for people. The JSON holds the same figures by name, for the README, its test and the pictures. Quick runs go to
results/quick, which git ignores, because their figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PATHS = ("--output", "--keep", "--logits")  # options whose value is a path
VERSIONS = ("torch", "timm", "numpy", "h5py")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the turns of a comparison."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4)
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def take_turns(sides: Mapping[str, Callable[[], object]], turns: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of each side in each turn. The first side changes with each turn, so load affects all sides equally."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for turn in range(turns + warm_up):
        order.append(order.pop(0))
        for name in order:
            begun = time.perf_counter()
            sides[name]()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - begun)
    return times


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Spread of the ratios of single turns, whose two sides were measured directly after one another."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


@dataclass
class Report:
    """One benchmark's result.

    Args:
        name: name of the benchmark's file, e.g. read.
        title: title of the page.
        quick: whether sizes were reduced for a test run.
    """

    name: str
    title: str
    quick: bool = False
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    def text(self, *lines: str) -> None:
        """Adds a paragraph of Markdown; a string may span several indented lines."""
        self.lines += [*map(inspect.cleandoc, lines), ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table; cells are shown by str()."""
        marks = ["---"] * len(header)
        self.text(*("| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, marks, *rows)))

    def figure(self, name: str, value: Any) -> Any:
        """Keeps a number, a Spread, or plain JSON under `name` for programs; returns it, to be shown as well."""
        self.figures[name] = dataclasses.asdict(value) if isinstance(value, Spread) else value
        return value

    def write(self, folder: Path | None = None) -> Path:
        """Writes the page and its JSON, prints the page and returns its path."""
        folder = folder or (RESULTS / "quick" if self.quick else RESULTS)
        folder.mkdir(parents=True, exist_ok=True)
        date = datetime.date.today().isoformat()
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_paths(sys.argv[1:])])
        minutes = (time.monotonic() - self.begun) / 60
        head = f"Command: `{command}`, {minutes:.1f} minutes. {describe_machine()}."
        page = folder / f"{date}-{self.name}.md"
        page.write_text("\n".join([f"# {self.title}, {date}", "", head, "", *self.lines]))
        result = {"name": self.name, "date": date, "command": command, "quick": self.quick, "figures": self.figures}
        page.with_suffix(".json").write_text(json.dumps(result | {"machine": describe_machine()}, indent=1) + "\n")
        print(page.read_text(), flush=True)
        return page


def _without_paths(arguments: Sequence[str]) -> list[str]:
    """The command's arguments without folders and files of this machine."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument not in PATHS:
            kept.append(argument)
        skip = argument in PATHS
    return kept


def describe_machine() -> str:
    """Cores, load, the GPU where torch sees one, and versions, on one line."""
    import torch  # here, because reading results needs no torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    return (
        f"{os.cpu_count()}-core {platform.machine()} CPU{gpu}, load average {os.getloadavg()[0]:.1f}, "
        f"{torch.get_num_threads()} thread(s); Python {platform.python_version()}, {versions}"
    )


def latest(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The newest result of the benchmark `name`, as its JSON holds it."""
    found = sorted(folder.glob(f"????-??-??-{name}.json"))
    if not found:
        raise FileNotFoundError(f"no result of {name!r} there; run python benchmarks/{name}.py")
    result: dict[str, Any] = json.loads(found[-1].read_text())
    return result


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes: --quick and --output."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; its figures mean nothing")
    made.add_argument("--output", type=Path, help="folder of the result; benchmarks/results by default")
    return made
