"""TensorBoard's event files."""

from __future__ import annotations

import functools
from typing import Any

from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.training.trackers.tracker import Record, Run, numbers


class TensorBoard:
    """Scalars for TensorBoard, in the folder `tensorboard` of the run's output folder.

    Args:
        run: the run that is tracked.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, run: Run) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(f"TensorBoard is not installed: {install_command('tensorboard')}") from error
        self._open: Any = functools.partial(SummaryWriter, str(run.folder / "tensorboard"))
        self._writer = self._open()

    def log(self, record: Record, step: int) -> None:
        """Writes every number of the record."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Drops the records that an earlier run wrote from this step on."""
        self._writer.close()
        self._writer = self._open(purge_step=step)

    def close(self) -> None:
        """Writes the buffered scalars."""
        self._writer.close()
