"""Progress in a real terminal of any width: the bar of each long command fits on a line, and so does its text."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support import tiny_model, write_digits

from kdkit.cli import main

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ADDRESSES = ("weights: ", "next: ")  # lines to copy, which stay whole


@contextmanager
def terminal(columns: int) -> Iterator[bytearray]:
    """This process's standard output and error are a pseudo-terminal; yields what it shows, complete at the end."""
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = bytearray()

    def read() -> None:
        with pytest.raises(OSError):  # noqa: PT012 - the end of a pseudo-terminal
            while True:
                shown.extend(os.read(main_end, 1 << 16))

    reader = threading.Thread(target=read)
    reader.start()
    before, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    sys.stdout = sys.stderr = os.fdopen(os.dup(other_end), "w", encoding="utf-8")
    for standard in (1, 2):
        os.dup2(other_end, standard)
    os.close(other_end)
    try:
        yield shown
    finally:
        sys.stdout.close()
        sys.stdout, sys.stderr = streams
        for standard, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, standard)
            os.close(saved)
        reader.join()
        os.close(main_end)


def test_build_distill_and_evaluate_fit_a_terminal_of_any_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)  # the width is the terminal's own
    write_digits(tmp_path / "data", 10)
    torch.save(tiny_model().state_dict(), "teacher.pth")
    quick = "--workers 0 --batch-size 5"
    commands = {
        "running": "cache build data --teacher teacher.pth --arch test_resnet --size 32 -o {0}.h5",
        "training": "distill data --cache {0}.h5 --student test_resnet --epochs 1 --no-preflight -o runs/{0}",
        "evaluating": "evaluate runs/{0} data",
    }
    for columns in (60, 80, 100, 140):
        for work, command in commands.items():
            with terminal(columns) as shown:
                code = main(f"{command.format(columns)} {quick}".split())
            text = _CONTROL.sub("", shown.decode())
            assert code == 0, text
            lines = [line for line in re.split(r"[\r\n]+", text) if not line.startswith(_ADDRESSES)]
            assert [line for line in lines if len(line) > columns] == []
            bars = [line for line in lines if line.startswith(work) and "10/10 " in line]
            assert bars, text
            assert bars[-1].count("━") >= 15
            assert ("images/s" in bars[-1]) == (columns > 60)
            assert ("kd loss" in bars[-1]) == (columns >= 100 and work == "training")
