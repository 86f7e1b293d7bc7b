"""kdkit teachers check."""

from __future__ import annotations

import sys

from kdkit.cli._parse import parse_config
from kdkit.evaluation.config import TeachersCheckConfig


def run(arguments: list[str]) -> None:
    """Prints a teacher's top-1 on labelled images beside the figure on its card."""
    config = parse_config(TeachersCheckConfig, "teachers check", arguments, {"NAME": "teacher.model", "DATA": "data"})
    from kdkit.evaluation.teacher import check_named_teacher
    from kdkit.runtime.layout import print_labelled

    report = check_named_teacher(config)
    size = f"{report.num_images:,} of {report.num_available:,}, {report.input_size} pixels"
    lines = {"teacher": report.description, "images": size, "top-1": f"{report.top1:.2f} %"}
    if report.published is not None:
        lines["published"] = f"{report.published.percent:.2f} % at {report.published.input_size} pixels"
    print_labelled(lines)
    if report.warning is not None:
        print(f"kdkit: warning: {report.warning}", file=sys.stderr)
