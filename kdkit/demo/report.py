"""The measurements of the demonstration, as a report, a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.building.build import BuildReport
from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.training.report import TrainReport

Row = tuple[str, ...]
_COLORS = {"labels alone": "#8a94a3", "live teacher": "#d1741b", "cached teacher": "#1f63c4"}
_BUILD: dict[str, Any] = {"color": "white", "edgecolor": "#1f63c4", "hatch": "////", "height": 0.7}
COLUMNS = ("", "labels", "held-out top-1 %", "seconds", "images/s", "bytes")


@dataclass(frozen=True)
class DemoReport:
    """The measurements of the demonstration."""

    teacher_top1: float
    """Top-1 of the teacher on the held-out quarter, percent."""
    build: BuildReport
    """Report on the build of the cache."""
    num_labels: int
    """Number of labels that each student gets."""
    students: dict[str, list[TrainReport]]
    """Way of training -> one report per seed."""
    seconds: float
    """Total wall time, seconds."""
    output: Path
    """Folder of the files."""

    def top1(self, way: str) -> tuple[float, float]:
        """Mean and spread (sample standard deviation) of the held-out top-1 over the seeds, percent."""
        values = [report.top1 for report in self.students[way] if report.top1 is not None]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def images_per_second(self, way: str) -> float:
        """Training images per second over all seeds."""
        return float(np.mean([report.images_per_second for report in self.students[way]]))

    @property
    def speedup(self) -> float:
        """Training images per second from the cache, relative to the live teacher."""
        return self.images_per_second("cached teacher") / self.images_per_second("live teacher")

    def seconds_each(self, way: str) -> float:
        """Mean wall time of one student's training steps."""
        return float(np.mean([report.train_seconds for report in self.students[way]]))


def table_rows(report: DemoReport) -> list[Row]:
    """The rows of the table, as text, one cell per name in COLUMNS."""
    build = report.build
    num_images = build.num_rows * build.num_views
    rows: list[Row] = [
        ("teacher", f"{build.num_rows:,}", f"{report.teacher_top1:.1f}", "", "", ""),
        (
            f"cache, {build.num_views} views",
            "",
            "",
            f"{build.seconds:.1f}",
            f"{num_images / build.seconds:,.0f}",
            f"{build.num_bytes:,}",
        ),
    ]
    for way in report.students:
        rows.append(
            (
                f"student: {way}",
                f"{report.num_labels}",
                _percent(report, way),
                f"{report.seconds_each(way):.1f}",
                f"{report.images_per_second(way):,.0f}",
                "",
            )
        )
    return rows


def print_table(report: DemoReport) -> None:
    """Prints the table on standard output."""
    from rich.console import Console
    from rich.table import Table

    seeds = len(next(iter(report.students.values())))
    table = Table(title=f"scikit-learn digits, mean ± standard deviation of {seeds} seeds", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if not column else "right")
    for row in table_rows(report):
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    speed = f"from the cache {report.speedup:.2f} times as fast as with the live teacher"
    console.print(f"{speed}; {report.seconds:.0f} s in all")
    console.print(f"cache, metrics.jsonl, summary.csv and students.png are in {report.output}/", soft_wrap=True)


def draw_students(report: DemoReport, path: Path) -> None:
    """Bars of the held-out top-1, with its spread over the seeds, and of the seconds of one student, as a PNG."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(f"the picture needs matplotlib: {install_command('demo')}") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (accuracy, time) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
    gain = report.top1("cached teacher")[0] - report.top1("labels alone")[0]
    figure.suptitle(f"A student of {report.num_labels} labels, scikit-learn digits", fontsize=10, color="dimgray")
    _draw_accuracy(accuracy, report)
    _draw_seconds(time, report)
    accuracy.set_title(f"{gain:+.1f} points from a teacher, live or cached", loc="left", weight="bold", fontsize=11)
    time.set_title(f"{report.speedup:.1f} times as fast from the cache", loc="left", weight="bold", fontsize=11)
    accuracy.invert_yaxis()  # the first way on top
    for axes in (accuracy, time):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_accuracy(axes: Any, report: DemoReport) -> None:
    """The mean over the seeds and its spread, from 0, with the teacher's as a line."""
    ways = list(report.students)
    means, spreads = zip(*map(report.top1, ways), strict=True)
    axes.barh(ways, means, xerr=spreads, color=[_COLORS[way] for way in ways], capsize=4, height=0.7)
    for place, way in enumerate(ways):
        axes.text(2, place, _percent(report, way), color="white", va="center", weight="bold")
    axes.axvline(report.teacher_top1, color="dimgray", linestyle=":")
    axes.set(xlim=(0, 104), xlabel=f"held-out top-1, % (dotted: the teacher, {report.teacher_top1:.1f})")


def _draw_seconds(axes: Any, report: DemoReport) -> None:
    """The seconds of one student, and those of the build, which all students from the cache share."""
    ways = list(report.students)
    seconds = [report.seconds_each(way) for way in ways]
    axes.barh(ways, seconds, color=[_COLORS[way] for way in ways], height=0.7)
    build = report.build.seconds
    axes.barh(["cached teacher"], [build], left=[seconds[ways.index("cached teacher")]], **_BUILD)
    for place, (way, value) in enumerate(zip(ways, seconds, strict=True)):
        end, note = (value + build, f" + {build:.0f} s once, for the cache") if way == "cached teacher" else (value, "")
        axes.annotate(f"{value:.0f} s{note}", (end, place), (4, 0), textcoords="offset points", va="center")
    axes.set(xlim=(0, 1.6 * max(*seconds, seconds[-1] + build)), xlabel="training one student, seconds")


def _percent(report: DemoReport, way: str) -> str:
    mean, spread = report.top1(way)
    return f"{mean:.1f} ± {spread:.1f}" if len(report.students[way]) > 1 else f"{mean:.1f}"
