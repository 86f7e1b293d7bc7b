"""Checkpoints: where a run's state is written, kept and read again.

`Checkpoints.save` writes: `_rotate` names the files and `_torch_save` writes the bytes. `Checkpoints.restore` reads. A
folder keeps the last two: `last.pth.tar` and, before it, `previous.pth.tar`; and, for the best metric,
`model_best.pth.tar`. A run resumes bit for bit from the newest one that loads.

`state_dict`, `state_dict_ema`, `optimizer`, `amp_scaler`, `epoch`, `version` and `task_state` use the keys of timm's
CheckpointSaver, so timm loads the file as its own; kdkit-only state is under `kdkit`. The file contains only tensors
and plain values and is read with weights_only=True.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from kdkit.errors import CheckpointError, ConfigError, DiskFullError, first_line
from kdkit.runtime import distributed, files
from kdkit.runtime.compare import differences, first_item
from kdkit.student import BEST, LAST
from kdkit.training.checkpoint_file import check_usable, load_checkpoint, non_finite_weight
from kdkit.training.data_record import RunRecord
from kdkit.training.state import RunState
from kdkit.training.train_config import TrainConfig

PREVIOUS = "previous.pth.tar"
"""Name of the checkpoint before the newest."""


class Checkpoints:
    """The checkpoints of one run in one folder; each is written atomically.

    Two are kept. The newest may hold weights whose next loss is NaN; the one before it is known to be good, because a
    step's loss is checked before the next checkpoint is written.

    Args:
        folder: folder of the checkpoints.
        config: configuration that identifies the run, as plain values; `restore` refuses the checkpoint of another run.
        record: of the run's images; `restore` refuses the checkpoint of a run with other ones.
        resume: whether `restore` reads the newest checkpoint; otherwise it does nothing.
        describe: called on rank 0 before the first checkpoint is written, e.g. to write the configuration.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        record: RunRecord | None = None,
        resume: bool = False,
        describe: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = Path(folder)
        self.last, self.previous, self.best = (self.folder / name for name in (LAST, PREVIOUS, BEST))
        self.config = dict(config or {}) | {"world_size": distributed.world_size()}
        self.record = record
        self.resume = resume
        self._describe: Callable[[], None] | None = describe
        self._last_update: int | None = None  # of the checkpoint at `last`; None if it should not be kept

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    def before_update(self, update: int) -> Path:
        """Path of the newest checkpoint that was written after fewer than `update` updates of the weights."""
        return self.last if self._last_update is not None and self._last_update < update else self.previous

    def save(self, state: RunState, *, is_best: bool = False, metric: float | None = None) -> None:
        """Writes the newest checkpoint, and the best one if `is_best`. Call on all ranks.

        Raises:
            CheckpointError: a weight is NaN or infinite; the checkpoints stay as they are.
            DiskFullError, WriteError: it could not be written; the last good checkpoint stays.
        """
        content = {**state.to_dict(), "metric": metric}
        content["kdkit"]["config"] = self.config
        if self.record is not None:
            content["kdkit"] |= self.record.to_dict()
        distributed.on_rank_zero(lambda: self._write(content, state.position.update, is_best))
        self._last_update = state.position.update

    def _write(self, content: Mapping[str, Any], update: int, is_best: bool) -> None:
        if bad := non_finite_weight(content):
            raise CheckpointError(
                f"the weight {bad!r} is not finite: nothing was saved, {str(self.last)!r} stays as it was; "
                "lower the learning rate, or clip the gradients"
            )
        if self._describe is not None:
            self._describe()
            self._describe = None
        try:
            self._rotate(content, is_best=is_best, keep_last=self._last_update not in (None, update))
        except DiskFullError as error:
            kept = next((path.name for path in (self.last, self.previous) if path.exists()), None)
            state = "there is none yet" if kept is None else f"the last good checkpoint, {kept}, stays"
            raise DiskFullError(
                f"the disk is full: no room for a checkpoint in {str(self.folder)!r}; {state}: free space and resume"
            ) from error

    def _rotate(self, content: Mapping[str, Any], *, is_best: bool, keep_last: bool) -> None:
        """Writes `last`, keeping the old one as `previous`; `last` is valid after each step, so a crash is harmless."""
        for path in (self.last, self.previous, self.best):
            files.remove_leftovers(self.folder, path.name)
        with files.atomic_write(self.last) as temporary:
            _torch_save(content, temporary)
            if keep_last:  # skipped if the newest has the same weights, or could not be read
                with files.atomic_write(self.previous) as previous:
                    _link_or_copy(self.last, previous)
            if is_best:
                with files.atomic_write(self.best) as best:
                    _link_or_copy(temporary, best)

    def restore(self, state: RunState, *, with_log: bool = False) -> bool:
        """Sets `state` to the newest usable checkpoint; returns False if there is none. Call on all ranks.

        Args:
            state: the run's state.
            with_log: whether the run has a logger, whose position a usable checkpoint holds.

        Raises:
            ConfigError: the checkpoint is of another configuration; names the field and both values.
            DatasetError: it is of other images, labels or validation images; names the first difference.
            CheckpointError: no checkpoint can be read, or the checkpoint is not one of kdkit's.
        """
        path = distributed.on_rank_zero(lambda: self._newest_usable(with_log)) if self.resume else None
        if path is None:
            return False
        distributed.run_on_all_ranks(lambda: self._load(path, state))
        self._last_update = state.position.update if path == self.last else None
        return True

    def _newest_usable(self, with_log: bool) -> Path | None:
        """The newest usable checkpoint; warns if falling back to `previous`."""
        problem: CheckpointError | None = None
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                check_usable(path, with_log=with_log)
            except CheckpointError as error:
                problem = problem or error
                continue
            if path == self.previous:
                reason = problem or f"{str(self.last)!r} is missing"
                print(f"kdkit: {reason}; resuming from the one before, {PREVIOUS}", file=sys.stderr, flush=True)
            return path
        if problem is not None:
            raise problem
        return None

    def _load(self, path: Path, state: RunState) -> None:
        content = load_checkpoint(path)
        saved = content["kdkit"]
        if self.record is not None:
            self.record.check_same_keys(saved, path)  # before the configuration, which holds no more than their SHA-256
        check_same_config(saved["config"], self.config, path)
        if self.record is not None:
            self.record.check_same(saved, path)
        try:
            state.load_dict(content)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{str(path)!r} does not fit this run ({reason}): start another one") from error


def check_same_config(then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compares the configuration of a checkpoint with that of the run that resumes from it.

    Raises:
        ConfigError: names the first field that differs, and both values.
    """
    then = {"class_names": now.get("class_names"), **then}  # absent from older checkpoints
    if isinstance(settings := then.get("train"), Mapping):  # which lack the fields that are newer than they
        known = {field.name: field.default for field in fields(TrainConfig) if field.name in now.get("train", ())}
        then["train"] = {**known, **settings}
    for name, *values in differences("", then, now):
        place, old, new = first_item(*values)
        raise ConfigError(
            f"{str(path)!r} was made with {name.lstrip('.')}{place} = {old!r}, this run has {new!r}: "
            "resume with the same setting, or start another run in another folder"
        )


def _torch_save(content: Mapping[str, Any], path: Path) -> None:
    """torch.save that re-raises the underlying OSError, e.g. that the disk is full, which torch's zip writer hides."""
    try:
        with open(path, "xb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is not None:
            raise cause from error
        raise CheckpointError(f"no checkpoint could be written: {first_line(error)}") from error


def _link_or_copy(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
