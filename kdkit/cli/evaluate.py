"""kdkit evaluate."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.evaluation.config import EvaluateConfig


def run(arguments: list[str]) -> None:
    """Prints how good and how fast a student is."""
    config = parse_config(EvaluateConfig, "evaluate", arguments)
    from kdkit.evaluation.student import evaluate_student

    report = evaluate_student(config, show_progress=True)
    print(
        f"{report.student}: top-1 {report.top1:.2f} %, top-5 {report.top5:.2f} %, loss {report.loss:.4f} over "
        f"{report.num_images:,} images; {report.images_per_second:,.0f} images/s"
    )
