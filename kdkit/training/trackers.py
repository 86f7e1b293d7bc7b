"""Who may listen to a run's metrics beside its files: TensorBoard, and any tracker of wandb's shape."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.errors import MissingDependencyError

Record = Mapping[str, Any]
TENSORBOARD = "tensorboard"
"""Folder of TensorBoard's files in a run's output folder."""


class TensorBoard:
    """Scalars for TensorBoard.

    Args:
        folder: where its files go.

    Raises:
        MissingDependencyError: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError('TensorBoard is not installed: pip install "kdkit[tensorboard]"') from error
        self._open: Any = functools.partial(SummaryWriter, str(folder))
        self._writer = self._open()

    def log(self, record: Record, step: int) -> None:
        """Writes every number of the record."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Drops what an earlier run wrote from this step on."""
        self._writer.close()
        self._writer = self._open(purge_step=step)

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class Tracker:
    """A module with wandb's init, log and finish: wandb itself, trackio, or another of that shape.

    Args:
        module: its name.
        project: what it calls the project.
        folder: output folder of the run; its name is the run's, and a run that goes on there is the same run.
        config: shown beside the metrics.

    Raises:
        MissingDependencyError: there is no such module, or it has another shape.
    """

    def __init__(self, module: str, *, project: str, folder: Path, config: Record) -> None:
        try:
            self._module: Any = importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(f"the tracker {module!r} is not installed: pip install {module}") from error
        missing = [name for name in ("init", "log", "finish") if not callable(getattr(self._module, name, None))]
        if missing:
            raise MissingDependencyError(
                f"the module {module!r} has no function {missing[0]}: expected wandb's or trackio's shape"
            )
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        options = {"project": project, "name": folder.name, "config": dict(config), "resume": "allow", "id": identity}
        known = inspect.signature(self._module.init).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            options = {name: value for name, value in options.items() if name in known}  # trackio has no id
        self._module.init(**options)

    def log(self, record: Record, step: int) -> None:
        """Passes on every number of the record."""
        self._module.log(_numbers(record), step=step)

    def rewind(self, step: int) -> None:
        """Nothing: a tracker keeps what it was told first."""

    def close(self) -> None:
        """Ends the run there."""
        self._module.finish()


def _numbers(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, (int, float))}
