"""kdkit compare."""

from __future__ import annotations

import shutil
import sys

from kdkit.cli._parse import parse_config
from kdkit.errors import printable
from kdkit.report.config import CompareConfig


def run(arguments: list[str]) -> None:
    """Prints runs side by side, the best first."""
    config = parse_config(CompareConfig, "compare", arguments, {"RUNS...": "runs"})
    from kdkit.report import compare

    table = compare(config.runs)
    if config.json:
        print(table.to_json())
    elif config.csv:
        print(table.to_csv())
        print(*map(printable, table.problems), sep="\n", end="\n" * bool(table.problems), file=sys.stderr)
    else:
        print(printable(table.text(shutil.get_terminal_size().columns)))
