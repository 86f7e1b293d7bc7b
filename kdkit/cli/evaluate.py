"""kdkit evaluate."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.evaluation.config import EvaluateConfig


def run(arguments: list[str]) -> None:
    """Prints the accuracy and the speed of a student."""
    config = parse_config(EvaluateConfig, "evaluate", arguments, {"RUN": "student", "DATA": "data"})
    from kdkit.evaluation.student import evaluate_student
    from kdkit.runtime.layout import format_rate, print_wrapped
    from kdkit.student import describe_teachers

    report = evaluate_student(config, show_progress=True)
    figures = f"loss {report.loss:.4f}"
    for name, value in {"top-5": report.top5, "top-1": report.top1, "mAP": report.mean_ap}.items():
        figures = figures if value is None else f"{name} {value:.2f} %, {figures}"
    size = f"{report.num_images:,} images, {format_rate(report.images_per_second)} images/s"
    if report.weights is not None:
        print_wrapped(f"weights: {report.weights}")
    print_wrapped(f"{report.student}: {figures}, {size}")
    for line in describe_teachers(report.caches, report.live_teacher):
        print_wrapped(f"taught by {line}")
