"""kdkit distill."""

from __future__ import annotations

from kdkit.cli._parse import parse_config
from kdkit.training.config import DistillConfig


def run(arguments: list[str]) -> None:
    """Trains a student and prints what came out."""
    config = parse_config(DistillConfig, "distill", arguments)
    from kdkit.runtime import distributed
    from kdkit.training.distill import distill

    with distributed.process_group(config.device):
        report = distill(config, show_progress=True)
        if distributed.rank() != 0:
            return
    training = report.training
    top1 = "not validated" if training.top1 is None else f"top-1 {training.top1:.2f} %"
    print(
        f"{config.student}: {top1}, loss {training.epochs[-1]['loss']:.4f}, "
        f"{training.images_per_second:,.0f} images/s; weights in {report.checkpoint}"
    )
