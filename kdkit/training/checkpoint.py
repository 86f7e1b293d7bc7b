"""Checkpoints: all of a run's state in one file, in timm's layout, so that a stopped run goes on bit for bit.

`state_dict`, `state_dict_ema`, `optimizer`, `amp_scaler`, `epoch`, `version` and `task_state` lie where timm's
CheckpointSaver puts them, so timm loads the file as its own; what timm has no place for is under `kdkit`. The file
holds tensors and plain values alone and is read with weights_only=True.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from kdkit.errors import CheckpointError, ConfigError
from kdkit.runtime import distributed, files
from kdkit.runtime.compare import differences
from kdkit.student import BEST, LAST
from kdkit.training.state import RunState

PREVIOUS = "previous.pth.tar"
"""Name of the checkpoint before the newest, which is there until the newest has shown a finite loss."""


class Checkpoints:
    """The checkpoints of one run in one folder, each there whole or not at all.

    Args:
        folder: where they lie.
        config: what the run is; a checkpoint of another one is refused.
        resume: whether the newest one is gone on from.
        describe: called on rank 0 before the first checkpoint, to leave beside it what tells what it is.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        describe: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = Path(folder)
        self._describe: Callable[[], None] | None = describe
        self.config = dict(config or {}) | {"world_size": distributed.world_size()}
        self.resume = resume

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the best metric."""
        return self.folder / BEST

    @property
    def previous(self) -> Path:
        """The one before the newest."""
        return self.folder / PREVIOUS

    def exists(self) -> bool:
        """Whether there is one to go on from; the one before the newest is made the newest where that is lost."""
        if not self.last.exists():
            self.withdraw()
        return self.last.exists()

    def confirm(self) -> None:
        """Says that the newest checkpoint's weights have a finite loss: the one before is not needed any more."""
        if distributed.rank() == 0:
            self.previous.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Says that they have not: the one before is the newest again."""
        if distributed.rank() == 0 and self.previous.exists():
            self.previous.replace(self.last)

    def save(self, state: RunState, *, is_best: bool = False, metric: float | None = None) -> None:
        """Writes the newest checkpoint, and the best one if it is that. A collective call.

        Raises:
            CheckpointError: a weight is NaN or infinite; the checkpoints stay as they are.
        """
        content = {**state.to_dict(), "metric": metric}
        content["kdkit"]["config"] = self.config
        distributed.on_rank_zero(lambda: self._write(content, is_best))

    def _write(self, content: Mapping[str, Any], is_best: bool) -> None:
        bad = [name for name, weight in content["state_dict"].items() if not torch.isfinite(weight).all()]
        if bad:
            raise CheckpointError(
                f"the weight {bad[0]!r} is not finite: nothing was saved, {str(self.last)!r} stays as it was; "
                "lower the learning rate, or clip the gradients"
            )
        if self._describe is not None:
            self._describe()
            self._describe = None
        # Where there is one before already, the newest has not shown a finite loss yet: the older one stays.
        if self.last.exists() and not self.previous.exists():
            with files.atomic_write(self.previous) as previous:
                _link_or_copy(self.last, previous)
        with files.atomic_write(self.last) as temporary:
            _save(content, temporary)
            if is_best:  # before the newest: a run stopped in between goes on from the old one, and does both again
                with files.atomic_write(self.best) as best:
                    _link_or_copy(temporary, best)

    def restore(self, state: RunState) -> bool:
        """Puts `state` where the newest checkpoint left it; False if the run starts. A collective call.

        Raises:
            ConfigError: that checkpoint is of another configuration; names the field and both values.
            CheckpointError: it cannot be read, or is none of kdkit's.
        """
        if not self.resume or not distributed.on_rank_zero(self.exists):
            return False
        distributed.run_on_all_ranks(lambda: self._load(state))
        return True

    def _load(self, state: RunState) -> None:
        content = load_checkpoint(self.last)
        if "kdkit" not in content:
            raise CheckpointError(f"{str(self.last)!r} is no checkpoint of a kdkit run: it holds {sorted(content)[:5]}")
        check_same_config(content["kdkit"]["config"], self.config, self.last)
        try:
            state.load_dict(content)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{str(self.last)!r} does not fit this run ({reason}): start another one") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU.

    Raises:
        CheckpointError: it cannot be read, or holds more than tensors and plain values.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the unpickler and the zip reader do
        raise CheckpointError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    return content


def check_same_config(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compares the configuration of a checkpoint with that of the run which is to go on from it.

    Raises:
        ConfigError: names the first field that differs, and both values.
    """
    for name, old, new in differences("", then, now):
        raise ConfigError(
            f"{str(path)!r} was made with {name.lstrip('.')} = {old!r}, this run has {new!r}: "
            "resume with the same setting, or start another run in another folder"
        )


def _save(content: Mapping[str, Any], path: Path) -> None:
    try:
        with open(path, "xb") as file:  # so that a full disk is the file's OSError
            torch.save(content, file)
    except RuntimeError as error:
        raise CheckpointError(f"no checkpoint could be written: {str(error).splitlines()[0]}") from error


def _link_or_copy(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
