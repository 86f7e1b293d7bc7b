"""kdkit distill."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdkit.cli._parse import parse_config
from kdkit.cli._sweep import run_each, runs_of, split_sweep
from kdkit.errors import printable
from kdkit.training.config import DistillConfig


def run(arguments: list[str]) -> None:
    """Trains a student, or with --sweep several, and prints accuracy, weights and the next command."""
    sweep, others = split_sweep(arguments)
    if sweep is None:
        _train(arguments)
        return
    output = Path(_config_of(others).output)
    runs = list(runs_of(sweep, others, output))
    for _, of_run in runs:
        _config_of(of_run)  # a wrong value is an error before the first run
    try:
        run_each(runs, _train)
    finally:
        _compare(output)


def _config_of(arguments: list[str]) -> DistillConfig:
    return parse_config(DistillConfig, "distill", arguments, {"DATA": "data"})


def _train(arguments: list[str]) -> None:
    config = _config_of(arguments)
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


def _compare(output: Path) -> None:
    """Prints the runs of a sweep side by side, the best first."""
    from kdkit.report import compare
    from kdkit.runtime import distributed

    if distributed.rank() == 0 and output.is_dir():
        print(printable(compare([output]).text(shutil.get_terminal_size().columns)))
