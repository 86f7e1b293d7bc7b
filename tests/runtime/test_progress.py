"""Progress: lines in a pipe, a bar on a terminal of any width."""

from __future__ import annotations

import io
import re
import sys

import pytest

from kdkit.runtime import progress as module
from kdkit.runtime.progress import progress

TERMS = {"loss": 1.5, "kd_loss": 0.5, "agreement_top1": 81.4, "teacher_top1": 92.0, "lr": 0.1}


class Terminal(io.StringIO):
    """Keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Terminal:
    """Puts a terminal in the place of standard error; called in the test, as pytest's capture sets its own before."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    return terminal


def test_a_pipe_gets_plain_lines_with_the_run_speed_time_left_and_terms(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("distilling resnet18 to runs/a", 1000, "images") as display:
        display.set_completed(200)  # a resumed run: no part of the speed
        display.set_postfix(TERMS)
        for _ in range(4):
            now[0] += 6.0
            display(100)
        display.write("epoch 1 of 2, as long a line as it may be: it is not wrapped, whatever the width of a pipe is")
    terms = "loss 1.5, kd loss 0.5, agreement 81 %, teacher 92 %"
    run = "distilling resnet18 to runs/a"
    assert capsys.readouterr().err.splitlines() == [
        f"{run}: 400 of 1,000 images, 17 images/s, 0:00:36 left, {terms}",
        f"{run}: 600 of 1,000 images, 17 images/s, 0:00:24 left, {terms}",
        f"{run}: epoch 1 of 2, as long a line as it may be: it is not wrapped, whatever the width of a pipe is",
    ]


@pytest.mark.parametrize(("seconds", "lines"), [(4.0, 0), (6.0, 2)])
def test_work_that_prepares_is_told_in_a_pipe_only_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seconds: float, lines: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("fitting codecs", 30, "images", brief=True) as display:
        for _ in range(3 if lines else 2):
            now[0] += seconds
            display(10)
        if not lines:
            display(10)
    assert [line[:17] for line in capsys.readouterr().err.splitlines()] == ["fitting codecs: 2", "fitting codecs: 3"][
        :lines
    ]


@pytest.mark.parametrize("calls", [[20], [10, 10], [1] * 20])
@pytest.mark.parametrize("done_before", [0, 20])
def test_the_last_line_in_a_pipe_tells_the_time_taken_and_the_speed_however_few_calls_there_were(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, calls: list[int], done_before: int
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("building t.h5", 20 + done_before, "images") as display:
        display.set_completed(done_before)
        for count in calls:
            now[0] += count * 0.25
            display(count)
    (line,) = capsys.readouterr().err.splitlines()
    total = 20 + done_before
    assert line == f"building t.h5: {total} of {total} images, 4 images/s, in 0:00:05"


def test_a_terminal_gets_a_bar_with_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch, 200)
    with progress("distilling", 1000, "images") as display:
        display.set_completed(200)
        display(300)
        display.set_postfix(TERMS)
        display.write("epoch 1 of 2 [100 %]")
        display(500)
    shown = terminal.getvalue()
    for text in ("distilling", "1000/1000", "images/s", "loss 1.5, kd loss 0.5", "epoch 1 of 2 [100 %]"):
        assert text in shown, text


@pytest.mark.parametrize("total", [2000, 128_116_700])
@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, []),
        (80, ["images/s", "loss"]),
        (100, ["images/s", "loss", "kd loss"]),
        (140, ["images/s", "loss", "kd loss"]),
    ],
)
def test_a_bar_fits_on_one_line_of_a_terminal_of_any_width(
    monkeypatch: pytest.MonkeyPatch, width: int, total: int, shown: list[str]
) -> None:
    terminal = open_terminal(monkeypatch, width)
    with progress("distilling vit_base_patch16_224 to runs/vit", total, "images") as display:
        display.set_postfix({"loss": 1.2345, "kd_loss": 0.56789})
        display(total // 2)
        display(1)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    frame = re.split(r"[\r\n]+", text.strip())[-1]
    assert len(frame) <= width
    assert frame.startswith("distill")
    assert frame.count("━") + frame.count("╸") + frame.count("╺") >= 8
    assert f"{total // 2 + 1}/{total}" in frame
    assert re.search(r"\d:\d\d:\d\d", frame)
    found = [word for word in ("images/s", "kd loss", "loss") if word in frame]
    assert sorted(found) == sorted(shown), frame
    assert "…" in frame or "runs/vit" in frame  # a description that does not fit is seen to be cut


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("distilling", 10, "images", enabled=False) as display:
        display(10)
        display.write("nothing")
    assert capsys.readouterr().err == ""
