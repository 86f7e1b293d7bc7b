"""kdkit export."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.training.config import ExportConfig


def run(arguments: list[str]) -> None:
    """Writes a student in the layout of timm's hub."""
    config = parse_config(ExportConfig, "export", arguments, {"RUN": "student"})
    from kdkit.runtime.layout import print_wrapped
    from kdkit.student import STUDENT
    from kdkit.training.export import export_student

    report = export_student(config)
    if report.weights is not None:
        print_wrapped(f"weights: {report.weights}")
    for file in report.files:
        print(f"{file}: {file.stat().st_size:,} bytes")
    for line in report.taught_by:
        print_wrapped(f"taught by {line}")
    if any(file.name == STUDENT for file in report.files):
        print(f"kdkit evaluate {report.folder} DATA, and --teacher {report.folder} load it")
        return
    print(f'timm.create_model("local-dir:{report.folder}", pretrained=True) loads it')
