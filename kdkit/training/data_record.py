"""The images of a run as a checkpoint keeps them: keys, class names, labels and files, for training and validation.

A run resumes with the same images, wherever they are now; `RunRecord` refuses others, because two halves of a run on
other images, or the best metric of two validations, mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.cache.format.keys import keys_sha256, list_keys, pack_keys, unpack_keys
from kdkit.data import ReplayedDataset
from kdkit.errors import CacheCorruptError, CheckpointError, DatasetError
from kdkit.runtime.compare import first_item
from kdkit.training.image_record import ImageRecord
from kdkit.training.labels import LabelRecord

_NAMED = 100_000
"""Most images whose keys are kept, compressed about 5 bytes each, so that a message can name one."""
_ADVICE = "or start another run in another folder"


@dataclass(frozen=True)
class DataRecord:
    """The images of training, or of validation."""

    dataset: ReplayedDataset
    """The images."""
    name: str = "image"
    """What a message calls one of them."""

    @classmethod
    def of_validation(cls, dataset: ReplayedDataset) -> DataRecord:
        """Validation images in the order of their keys, because no metric depends on their order."""
        keys = dataset.keys
        return cls(dataset.selecting(sorted(range(len(keys)), key=keys.__getitem__)), "validation image")

    @cached_property
    def labels(self) -> LabelRecord:
        """The labels."""
        return LabelRecord.of(self.dataset)

    @cached_property
    def images(self) -> ImageRecord:
        """The files."""
        return ImageRecord.of(self.dataset)

    @cached_property
    def _packed_keys(self) -> bytes | None:
        try:
            return pack_keys(self.dataset.keys).tobytes() if len(self.dataset) <= _NAMED else None
        except DatasetError:  # they hold NUL, or are very long
            return None

    @cached_property
    def _class_names(self) -> list[str] | None:
        return None if self.dataset.class_names is None else list(self.dataset.class_names)

    @cached_property
    def _sha256(self) -> str:
        return keys_sha256(self.dataset.keys)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "count": len(self.dataset),
            "sha256": self._sha256,
            "keys": self._packed_keys,
            "class_names": self._class_names,
            "labels": self.labels.packed,
            "images": self.images.to_dict(),
        }

    def check_same_keys(self, saved: Mapping[str, Any], path: Path) -> None:
        """Compares the keys with those in the checkpoint at `path`.

        Raises:
            DatasetError: names what was added, is missing or was moved, or else both numbers.
            CheckpointError: the checkpoint's keys cannot be read.
        """
        count, now = saved.get("count"), self.dataset.keys
        if "sha256" not in saved or saved["sha256"] == self._sha256:
            return
        then = _unpack(saved, path)
        found = "their keys differ" if then is None else _describe(then, now)
        raise DatasetError(
            f"{str(path)!r} was made with {count} {self.name}s, this run has {len(now)}: {found}; resume with the "
            f"same images, {_ADVICE}"
        )

    def check_same(self, saved: Mapping[str, Any], path: Path) -> None:
        """Compares class names, labels and files with those in the checkpoint at `path`, which has the same keys.

        Raises:
            DatasetError: names the first difference.
            CheckpointError: the checkpoint's record is not one of these images.
        """
        if (then := saved.get("class_names", self._class_names)) != self._class_names:
            place, old, new = first_item(then, self._class_names)
            raise DatasetError(
                f"{str(path)!r} was made with class_names{place} = {old!r} of its {self.name}s, this run has {new!r}: "
                f"resume with the same classes, {_ADVICE}"
            )
        self.labels.check_same(saved.get("labels"), path, "" if self.name == "image" else f"the {self.name} ")
        self.images.check_same(saved.get("images"), path, self.name)


@dataclass(frozen=True)
class RunRecord:
    """The images of training and of validation."""

    training: DataRecord
    """The training images."""
    validation: DataRecord | None
    """The validation images; None without any."""

    @classmethod
    def of(cls, training: ReplayedDataset, validation: ReplayedDataset | None) -> RunRecord:
        """The record of a run, whose files are read now."""
        held_out = None if validation is None else DataRecord.of_validation(validation)
        record = cls(DataRecord(training), held_out)
        record.to_dict()
        return record

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which a checkpoint keeps among its own."""
        held_out = None if self.validation is None else self.validation.to_dict()
        return {"training": self.training.to_dict(), "validation": held_out}

    def check_same_keys(self, saved: Mapping[str, Any], path: Path) -> None:
        """Compares the keys of all images with those in the checkpoint at `path`.

        Args:
            saved: kdkit's own part of the checkpoint.
            path: the checkpoint.

        Raises:
            DatasetError: names what differs.
            CheckpointError: the checkpoint's record cannot be read.
        """
        self.training.check_same_keys(_part(saved, "training", path), path)
        held_out = _part(saved, "validation", path)
        if self.validation is not None:
            self.validation.check_same_keys(held_out, path)
        elif held_out:
            raise DatasetError(
                f"{str(path)!r} was made with {held_out.get('count')} validation images, this run has none: give them "
                f"with --val, {_ADVICE}"
            )

    def check_same(self, saved: Mapping[str, Any], path: Path) -> None:
        """Compares classes, labels and files with those in the checkpoint at `path`, after its keys.

        Raises:
            DatasetError: names the first difference.
            CheckpointError: the checkpoint's record is not one of these images.
        """
        older = {"labels": saved.get("labels")}  # all that older checkpoints hold
        self.training.check_same(_part(saved, "training", path) or older, path)
        if self.validation is not None:
            self.validation.check_same(_part(saved, "validation", path), path)


def _part(saved: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    """A record in a checkpoint; an empty one in an older checkpoint, or without validation."""
    part = saved.get(name)
    if part is None or isinstance(part, Mapping):
        return part or {}
    raise CheckpointError(f"{str(path)!r} cannot be used: its kdkit.{name} is {part!r:.40}, expected a dict, or none")


def _unpack(saved: Mapping[str, Any], path: Path) -> list[str] | None:
    """The keys in a checkpoint; None if it does not hold them."""
    if saved.get("keys") is None:
        return None
    try:
        count = int(saved["count"])
        return unpack_keys(np.frombuffer(saved["keys"], np.uint8), count, str(path), max_bytes=1 << 30)
    except (CacheCorruptError, TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{str(path)!r} holds no keys of its images ({error})") from error


def _describe(then: list[str], now: Any) -> str:
    """What is new, what is missing, or else the first key in another place."""
    before, after = set(then), set(now)
    new, gone = [key for key in now if key not in before], [key for key in then if key not in after]
    parts = [f"{list_keys(keys)} {verb}" for keys, verb in ((new, "added"), (gone, "missing")) if keys]
    if parts:
        return ", and ".join(parts)
    place, key, _ = first_item(then, list(now))
    return f"the same in another order, first {key!r} at {place[1:-1]}"
