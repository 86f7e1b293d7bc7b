"""The commands of a page of documentation, as a reader would copy them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, *, language: str = "sh", below: str = "") -> list[str]:
    """The fenced blocks of `language` on a page of this repository, below the heading `below`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if below:
        _, heading, text = text.partition(f"\n{below}\n")
        assert heading, f"{page} has no heading {below!r}"
        text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_script(script: str, folder: Path, *, seconds: int = 300) -> str:
    """Runs a shell script in `folder`, with this interpreter's kdkit; returns what it printed. It must succeed."""
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-3000:]}"
    return run.stdout
