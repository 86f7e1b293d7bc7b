"""Progress: lines in a pipe, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from kdkit.runtime import progress as module
from kdkit.runtime.progress import progress

TERMS = {"loss": 1.5, "kd_loss": 0.5, "agreement_top1": 81.4, "teacher_top1": 92.0, "lr": 0.1}


def test_a_pipe_gets_plain_lines_with_speed_time_left_and_terms(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with progress("distilling", 1000, "images") as display:
        display.set_completed(200)  # a run that goes on: no part of the speed
        display.set_postfix(TERMS)
        for _ in range(4):
            now[0] += 6.0
            display(100)
        display.write("epoch 1 of 2")
    terms = "loss 1.5, kd loss 0.5, agreement 81 %, teacher 92 %"
    assert capsys.readouterr().err.splitlines() == [
        f"distilling: 400 of 1,000 images, 17 images/s, 0:00:36 left, {terms}",
        f"distilling: 600 of 1,000 images, 17 images/s, 0:00:24 left, {terms}",
        "epoch 1 of 2",
    ]


def test_a_terminal_gets_a_bar_with_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress("distilling", 1000, "images") as display:
        display.set_completed(200)
        display(300)
        display.set_postfix(TERMS)
        display.write("epoch 1 of 2 [100 %]")
        display(500)
    shown = terminal.getvalue()
    for text in ("distilling", "1000/1000", "images/s", "kd loss 0.5", "agreement 81 %", "epoch 1 of 2 [100 %]"):
        assert text in shown, text


def test_other_ranks_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("distilling", 10, "images", enabled=False) as display:
        display(10)
        display.write("nothing")
    assert capsys.readouterr().err == ""
