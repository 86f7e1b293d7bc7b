"""The measurements of the demonstration, as a report, a table and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdkit.building.build import BuildReport
from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.training.report import TrainReport

Row = tuple[str, ...]
COLUMNS = ("", "labels", "held-out top-1 %", "seconds", "images/s", "bytes")


@dataclass(frozen=True)
class DemoReport:
    """The measurements of the demonstration."""

    teacher_top1: float
    """Top-1 of the teacher on the held-out quarter, percent."""
    build: BuildReport
    """Report on the build of the cache."""
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

    def seconds_each(self, way: str) -> float:
        """Mean wall time of one student's training steps."""
        return float(np.mean([report.train_seconds for report in self.students[way]]))


def table_rows(report: DemoReport) -> list[Row]:
    """The rows of the table, as text, one cell per name in COLUMNS."""
    build = report.build
    num_images = build.num_rows * build.num_views
    rows: list[Row] = [
        ("teacher", "1,347", f"{report.teacher_top1:.1f}", "", "", ""),
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
        mean, spread = report.top1(way)
        rows.append(
            (
                f"student: {way}",
                "100",
                f"{mean:.1f} ± {spread:.1f}" if len(report.students[way]) > 1 else f"{mean:.1f}",
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
    speedup = report.images_per_second("cached teacher") / report.images_per_second("live teacher")
    console.print(f"from the cache {speedup:.2f} times the speed of the live teacher; {report.seconds:.0f} s in all")
    console.print(f"cache, metrics.jsonl, summary.csv and curves.png are in {report.output}/", soft_wrap=True)


def draw_curves(students: Mapping[str, Sequence[TrainReport]], path: Path) -> None:
    """Held-out top-1 by epoch, mean and range over the seeds, as a PNG."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(f"the learning curves need matplotlib: {install_command('demo')}") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for way, reports in students.items():
        curves = np.array([[record["val_top1"] for record in report.epochs] for report in reports])
        epochs = np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(epochs, curves.mean(axis=0), label=way, linestyle="--" if way == "cached teacher" else "-")
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2)
    axes.set(xlabel="epoch", ylabel="held-out top-1, %", title="Students of 100 labels, scikit-learn digits")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
