"""TensorBoard's event files."""

from __future__ import annotations

import functools
from typing import Any

from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.training.trackers.tracker import Record, Run, numbers

_PLACES = ("epoch", "step", "epoch/epoch", "epoch/step")
_EPOCH = "epoch/"
_GROUPS = {
    "val_ema_": "validation (EMA)",
    "val_": "validation",
    "teacher_": "teacher",
    "agreement_": "teacher",
    "images": "speed",
    "seconds": "speed",
    "waiting": "speed",
    "lr": "optimizer",
}
"""Start of a name -> its group; everything else is a term of the loss."""


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
        self._writer: Any = None  # opened with the first record, since opening leaves a file

    def log(self, record: Record, step: int) -> None:
        """Writes every number of the record, in the group that `tag_of` gives it."""
        self._writer = self._writer or self._open()
        for name, value in numbers(record).items():
            if name not in _PLACES:
                self._writer.add_scalar(tag_of(name), value, step)

    def rewind(self, step: int) -> None:
        """Drops the records that an earlier run wrote from this step on."""
        self.close()
        self._writer = self._open(purge_step=step)

    def close(self) -> None:
        """Writes the buffered scalars."""
        if self._writer is not None:
            self._writer.close()


def tag_of(name: str) -> str:
    """TensorBoard's tag of a number, by its name in metrics.jsonl: what stands before the slash is a group of plots."""
    plain = name.removeprefix(_EPOCH)
    start = next((start for start in _GROUPS if plain.startswith(start)), "")
    group = _GROUPS.get(start, "loss")
    if group.startswith("validation"):
        return f"{group}/{plain.removeprefix(start)}"
    return f"{group}{' (mean of the epoch)' if name != plain else ''}/{plain}"
