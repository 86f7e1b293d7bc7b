"""kdkit distill."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.training.config import DistillConfig


def run(arguments: list[str]) -> None:
    """Trains a student, and prints its accuracy, its weights and the next command."""
    config = parse_config(DistillConfig, "distill", arguments, {"DATA": "data"})
    from kdkit.runtime import distributed
    from kdkit.runtime.layout import format_rate, print_wrapped
    from kdkit.training.distill import distill

    with distributed.process_group(config.device):
        report = distill(config, show_progress=True)
        if distributed.rank() != 0:
            return
    metric = "mAP" if any("val_mAP" in record for record in report.training.epochs) else "top-1"
    training, best = report.training, report.training.best
    top1 = "not validated" if best is None else f"best {metric} {best[1]:.2f} % in epoch {best[0]}"
    speed = f"{format_rate(training.images_per_second)} images/s"
    print_wrapped(f"{config.student}: {top1}, last loss {training.epochs[-1]['loss']:.4f}, {speed}")
    print(f"weights: {report.weights}")
    command = f"export {report.output} -o DIR"
    if config.validation:
        command = f"evaluate {report.output} {config.validation}{config.data_flags}"
    print(f"next: kdkit {command}")
