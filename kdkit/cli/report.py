"""kdkit report."""

from __future__ import annotations

import sys

from kdkit.cli._parse import parse_config
from kdkit.report.config import ReportConfig


def run(arguments: list[str]) -> None:
    """Writes a page about runs and a cache, and prints where."""
    config = parse_config(ReportConfig, "report", arguments, {"RUNS...": "runs"})
    from kdkit.report import write_report
    from kdkit.runtime.layout import print_wrapped

    report = write_report(config)
    count = len(report.table.rows)
    print(f"{report.output}: {count} run{'s' * (count != 1)}, {report.num_bytes / 1e6:.1f} MB", flush=True)
    for problem in report.problems:
        print_wrapped(f"kdkit: warning: {problem}", file=sys.stderr)
