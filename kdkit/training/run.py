"""A run in its output folder: its configuration file, its identity, its logger, and the samples it skipped."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kdkit.cache import CacheMixture, CacheReader, ClassSelection
from kdkit.cache.format.keys import keys_sha256
from kdkit.config import EMA
from kdkit.data import ReplayedDataset
from kdkit.data.sources.left_out import skipped_of
from kdkit.errors import OutputError
from kdkit.runtime import distributed, files
from kdkit.runtime.reading import read_bytes
from kdkit.teachers import Teacher
from kdkit.training.config import DistillConfig
from kdkit.training.logger import RunLogger
from kdkit.training.trackers import Run, create_tracker

CONFIG = "config.yaml"
"""The run's resolved configuration, which --config accepts."""
_MAX_SKIPPED_BYTES = 1 << 30
SKIPPED = "skipped.jsonl"
"""Samples that could not be read: key and reason; and entries of the data that --skip-missing left out."""

_FREE = {
    *(
        "output",
        "data",
        "cache",
        "teacher",
        "validation",
        "device",
        "student_checkpoint",
    ),  # paths; what they hold is compared: here, by `RunRecord` or by their weights
    *("resume", "overwrite", "preflight", "tracker", "project", "allow_mismatch"),
}
_FREE_TRAIN = {"num_workers", "log_every", "checkpoint_every"}
"""Fields in which a resumed run may differ from the one that stopped: they change no weight."""


def write_config(config: DistillConfig, folder: Path) -> None:
    """Writes `folder`/config.yaml."""
    values = _plain(dataclasses.asdict(dataclasses.replace(config, resume=False, overwrite=False)))
    files.write_text(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def inputs_of(config: DistillConfig) -> list[str]:
    """What a run reads besides its images and may have been written by a run: caches and weights."""
    teachers = () if config.teacher is None else (config.teacher, *config.teacher.ensemble)
    weights = [config.student_checkpoint, *(teacher.checkpoint for teacher in teachers)]
    return [*config.caches, *(teacher.model for teacher in teachers), *filter(None, weights)]


def run_identity(
    config: DistillConfig, dataset: ReplayedDataset, cache: CacheReader | None, teacher: Teacher | None
) -> dict[str, Any]:
    """The settings that a resumed run must share with the stopped run, as plain values."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in _FREE}
    values["train"] = {name: value for name, value in values["train"].items() if name not in _FREE_TRAIN}
    values["train"]["channels_last"] = bool(values["train"]["channels_last"])  # by default as the device prefers
    identity: dict[str, Any] = _plain(values)
    return identity | {
        "teacher": EMA if config.is_ema_teacher else None if teacher is None else teacher.fingerprint(),
        "recipe": _plain(dataset.recipe.to_dict()),
        "dataset_sha256": keys_sha256(dataset.keys),
        "class_names": None if dataset.class_names is None else list(dataset.class_names),
        "cache_sha256": None if cache is None else cache.identity,
    }


def origins_of(cache: CacheReader | None) -> tuple[dict[str, str], ...]:
    """Teacher and identity of each cache that a run learns from, as `Student.caches` holds them."""
    whole = cache.cache if isinstance(cache, ClassSelection) else cache
    caches = whole.caches if isinstance(whole, CacheMixture) else () if whole is None else (whole,)
    return tuple({"teacher": str(each.teacher.get("name")), "identity": each.identity} for each in caches)


def create_logger(config: DistillConfig, folder: Path) -> RunLogger:
    """The logger of a run, with the trackers that its configuration names.

    Raises:
        UnknownNameError: there is no such tracker.
        MissingDependencyError: a tracker is not installed.
    """
    run = Run(folder, config.project, _plain(dataclasses.asdict(config)))
    return RunLogger(folder, trackers=[create_tracker(name, run) for name in config.trackers])


class SkipRecord:
    """Writes what was skipped, each once, to `folder`/skipped.jsonl: samples, and entries that are not listed.

    The ranks of a run write to the same file, and each reads what the others have written before it adds a sample.
    """

    def __init__(self, folder: Path, dataset: ReplayedDataset | None = None) -> None:
        self._path = folder / SKIPPED
        self._keys: set[str] = set()
        self._num_read = 0
        if distributed.rank() == 0:
            with files.typed_errors(self._path):
                self._read_on()
        entries = () if dataset is None else skipped_of(dataset.source)
        if entries and distributed.rank() == 0:
            self._write({entry: {"entry": entry, "reason": "left out by --skip-missing"} for entry in entries})

    def __call__(self, key: str, reason: str) -> None:
        """Records one sample."""
        self._write({key: {"key": key, "reason": reason}})

    def _write(self, records: Mapping[str, Mapping[str, str]]) -> None:
        if self._keys.issuperset(records):
            return
        with files.typed_errors(self._path):
            self._read_on()
            new = [json.dumps(record) for name, record in records.items() if name not in self._keys]
            self._keys.update(records)
            if new:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write("\n".join(new) + "\n")

    def _read_on(self) -> None:
        """Takes the keys that were added to the file; a last line that a kill has cut is removed by rank 0, first."""
        if not self._path.exists():
            return
        if self._num_read == 0:
            content = read_bytes(self._path, limit=_MAX_SKIPPED_BYTES, error=OutputError)
        else:
            with open(self._path, "rb") as file:
                file.seek(self._num_read)
                content = file.read(_MAX_SKIPPED_BYTES)
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content and self._num_read == 0 and distributed.rank() == 0:
            os.truncate(self._path, len(whole))
        for line in whole.splitlines():
            with suppress(ValueError, LookupError, TypeError):  # a damaged line: at worst its sample is recorded twice
                record = json.loads(line)
                self._keys.add(str(record["entry" if "entry" in record else "key"]))
        self._num_read += len(whole)


def _plain(value: Any) -> Any:
    """The same value with lists for tuples, as YAML and a checkpoint hold it."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
