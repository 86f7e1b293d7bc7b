"""The commands of a page of documentation, as a reader would copy them."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from kdkit.cli import main

ROOT = Path(__file__).parents[1]


def blocks(page: str, *, language: str = "sh", below: str = "") -> list[str]:
    """The fenced blocks of `language` on a page of this repository, below the heading `below`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if below:
        _, heading, text = text.partition(f"\n{below}\n")
        assert heading, f"{page} has no heading {below!r}"
        text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    """The commands of a block, those of several lines as one."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def run_line(line: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Runs `kdkit ...` or `python ...` in this process, its output perhaps to a file; returns the output."""
    command, _, file = line.partition(" > ")
    program, *words = shlex.split(command, comments=True)
    found = [sorted(map(str, Path().glob(word))) if word.endswith("*") else [] for word in words]  # as a shell does
    arguments = [path for word, paths in zip(words, found, strict=True) for path in paths or [word]]
    assert program in ("kdkit", "python"), f"a command that this test cannot run: {line}"
    capsys.readouterr()
    if program == "kdkit":
        assert main([*arguments, *more]) == 0, line
    elif arguments[0] == "-c":
        exec(arguments[1], {})
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    out = capsys.readouterr().out
    assert out.strip(), f"it prints nothing: {line}"
    if file:
        Path(file.strip()).write_text(out)
    return out
