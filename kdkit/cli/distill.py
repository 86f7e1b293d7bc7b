"""kdkit distill."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from kdkit.cli import _defaults
from kdkit.cli._parse import parse_config
from kdkit.cli._sweep import run_each, runs_of, split_sweep
from kdkit.errors import KdkitError, printable
from kdkit.training.config import DistillConfig

if TYPE_CHECKING:
    from kdkit.training.report import DistillReport


def run(arguments: list[str]) -> None:
    """Trains a student, or with --sweep several, and prints accuracy, weights and the next command."""
    sweep, others = split_sweep(arguments)
    if sweep is None:
        _train(arguments)
        return
    config = _config_of(others)
    output = Path(config.output)
    runs = list(runs_of(sweep, others, output, overwrite=config.overwrite))
    for _, of_run in runs:
        _config_of(of_run)  # a wrong value is an error before the first run
    try:
        run_each(runs, _train)
    finally:
        _compare(output)


def _config_of(arguments: list[str]) -> DistillConfig:
    return parse_config(DistillConfig, "distill", arguments, {"DATA": "data"}, _defaults.of_run)


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
    print(f"next: kdkit {_next_command(config, report)}")


def _next_command(config: DistillConfig, report: DistillReport) -> str:
    """Measures the best weights, by the metric that they were chosen by; without validation images exports them."""
    from kdkit.teachers.imported_model import is_import_path

    run, flags = quote(str(report.output)), ""
    if config.train.ema_decay is not None:
        flags += " --ema"
    if is_import_path(config.student):
        flags += f" --arch {quote(config.student)}"
    if config.validation:
        skips = "" if config.unreadable == "stop" else f" --unreadable {config.unreadable}"
        return f"evaluate {run} {quote(config.validation)}{config.data_flags}{skips}{flags}"
    return f"export {run} -o DIR{flags}"


def _compare(output: Path) -> None:
    """Prints the runs of a sweep side by side, the best first; nothing where none got as far as its first epoch."""
    from kdkit.report import compare
    from kdkit.runtime.hardware import is_first_process

    if not is_first_process() or not output.is_dir():
        return
    with suppress(KdkitError):  # no run to compare: why is the error of the sweep
        print(printable(compare([output]).text(shutil.get_terminal_size().columns)))
