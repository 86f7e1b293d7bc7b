"""The demonstration's table and picture; CI runs the whole of it, as the README does, and compares its claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.text import Text

from kdkit.building.build import BuildReport
from kdkit.cli import main
from kdkit.demo.report import DemoReport, draw_students, print_table
from kdkit.demo.run import WAYS
from kdkit.training.report import TrainReport


def report(folder: Path) -> DemoReport:
    """Two seeds of each way, of two epochs of 100 images in 4 s."""
    records = [{"val_top1": 50.0 + epoch, "seconds": 4.0, "images": 100.0} for epoch in range(2)]
    build = BuildReport(
        folder / "teacher.h5", num_rows=1347, num_views=8, num_bytes=400_000, images_built=10_776, seconds=9.0
    )
    students = {way: [TrainReport.of(records)] * 2 for way in WAYS}
    return DemoReport(98.0, build, 30, students, seconds=99.0, output=folder)


@pytest.mark.parametrize("columns", [80, 140])
def test_the_table_fits_a_terminal_and_names_each_way(
    tmp_path: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    print_table(report(tmp_path))
    shown = Text.from_ansi(capsys.readouterr().out).plain
    table = shown.partition("from the cache")[0]
    assert max(map(len, table.splitlines())) <= columns
    assert all(way.split()[-1] in shown for way in WAYS)
    assert "51.0" in shown


def test_the_picture_has_bars_of_accuracy_and_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    draw_students(report(tmp_path), tmp_path / "students.png")
    bars = [[bar.get_width() for bar in axes.patches] for axes in plt.gcf().axes]
    monkeypatch.undo()
    plt.close(plt.gcf())
    assert bars == [[51.0] * 3, [8.0, 8.0, 8.0, 9.0]]  # percent; seconds of each student, and those of the build
    assert (tmp_path / "students.png").read_bytes().startswith(b"\x89PNG")


def test_a_demonstration_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "teacher.h5").touch()
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert "--overwrite" in capsys.readouterr().err
