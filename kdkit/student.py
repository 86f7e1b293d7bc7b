"""A trained student on disk: its description and weights, and how they are loaded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from kdkit.config import StudentConfig
from kdkit.errors import CheckpointError, ConfigError
from kdkit.recipe import Interpolation, ViewRecipe
from kdkit.runtime import files
from kdkit.runtime.reading import read_json
from kdkit.teachers.factory import build_model, load_weights, read_weights
from kdkit.teachers.model_config import model_config

STUDENT = "student.json"
"""The file of a run's folder that describes how its student is built."""
EXPORTED = "config.json"
"""The file of an export's folder that describes its model, in the layout of timm's hub."""
BEST, LAST = "model_best.pth.tar", "last.pth.tar"
"""A run's checkpoint with the best metric and its newest, by the names that timm gives them."""
CACHES = "kdkit_caches"
"""Where the configuration of an export holds `Student.caches`."""
CHECKPOINTS = (BEST, LAST)
"""The checkpoints of a run's folder that weights are loaded from; the first that exists is used."""


@dataclass(frozen=True)
class Student:
    """How a student is built, and the images that it was evaluated on."""

    model: str
    """timm name."""
    model_args: dict[str, Any]
    """Further arguments of timm.create_model."""
    input_size: int
    """Side of its square input, pixels."""
    crop_pct: float
    """Share of the resized image's side that the evaluation crop keeps."""
    interpolation: Interpolation
    """How images are resized for evaluation."""
    class_names: tuple[str, ...] | None
    """Its classes, in order."""
    num_parameters: int | None = None
    """How many parameters it has; None in files from before that was recorded."""
    num_views: int | None = None
    """Views of each image that it was trained on; None in files from before that was recorded, and for other models."""
    caches: tuple[dict[str, str], ...] = ()
    """The caches that taught it: {"teacher": its name, "identity": SHA-256 of the cache's metadata}; empty for a
    student of a live teacher or of labels alone, and in files from before that was recorded."""

    def write(self, folder: Path) -> None:
        """Writes `folder`/student.json."""
        files.write_text(folder / STUDENT, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Student:
        """The student that `write` described.

        Raises:
            CheckpointError: the file is not as `write` writes it.
        """
        path = folder / STUDENT
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            names = values["class_names"]
            caches = tuple({**cache} for cache in values.get("caches", ()))
            return cls(**{**values, "class_names": None if names is None else tuple(names), "caches": caches})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{str(path)!r} does not describe a student ({error}): was it edited?") from error

    def describe_caches(self) -> list[str]:
        """A line for each cache that taught it: its teacher and its identity."""
        return [f"{cache.get('teacher')}, cache {cache.get('identity')}" for cache in self.caches]

    @property
    def recipe(self) -> ViewRecipe:
        """Its evaluation view."""
        return ViewRecipe.evaluation(self.input_size, crop_pct=self.crop_pct, interpolation=self.interpolation)


def is_student_folder(name: str | Path) -> bool:
    """Whether `name` is a folder that kdkit distill or kdkit export wrote."""
    return (Path(name) / STUDENT).is_file() or (Path(name) / EXPORTED).is_file()


def load_student(config: StudentConfig) -> tuple[nn.Module, Student]:
    """The student that `config` names, in evaluation mode on the CPU, and its description.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        UnknownNameError: it is neither a folder nor a timm name.
    """
    folder = Path(config.student)
    if (folder / STUDENT).is_file():
        student = Student.read(folder)
        checkpoint = _checkpoint(folder) if config.checkpoint is None else Path(config.checkpoint)
        model: nn.Module = timm.create_model(student.model, **student.model_args)
        load_weights(model, read_weights(checkpoint, ema=config.ema), checkpoint)
        return model.eval(), student
    if folder.is_dir() and not (folder / EXPORTED).is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no student: expected {STUDENT}, which kdkit distill writes, or {EXPORTED}, which "
            "kdkit export writes"
        )
    if config.checkpoint is None and config.ema:
        raise ConfigError(f"{config.student!r} has no EMA weights to choose from: leave out ema")
    if config.checkpoint is not None and folder.is_dir():
        raise ConfigError(f"{config.student!r} holds its own weights: leave out checkpoint, or name the model instead")
    name = f"local-dir:{folder}" if folder.is_dir() else config.student
    model = build_model(name, config.checkpoint, ema=config.ema)
    student = _described(name, model)
    return model.eval(), dataclasses.replace(student, caches=_exported_caches(folder)) if folder.is_dir() else student


def _checkpoint(folder: Path) -> Path:
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{str(folder)!r} holds no checkpoint yet: expected one of {', '.join(CHECKPOINTS)}")


def _exported_caches(folder: Path) -> tuple[dict[str, str], ...]:
    """The caches that an export names; none if its configuration does not name them as kdkit does."""
    found = read_json(folder / EXPORTED, error=CheckpointError).get(CACHES)
    caches = found if isinstance(found, list) else []
    return tuple(cache for cache in caches if isinstance(cache, dict) and {*map(type, cache.values())} == {str})


def _described(name: str, model: nn.Module) -> Student:
    """The description that a timm model's own configuration gives."""
    config = model_config(model)
    size = config.get("test_input_size") or config.get("input_size") or (3, 224, 224)
    names = config.get("label_names")
    bilinear = config.get("interpolation") == "bilinear"
    return Student(
        model=name,
        model_args={},
        input_size=int(size[-1]),
        crop_pct=float(config.get("test_crop_pct") or config.get("crop_pct") or ViewRecipe.crop_pct),
        interpolation="bilinear" if bilinear else "bicubic",
        class_names=None if names is None else tuple(names),
    )
