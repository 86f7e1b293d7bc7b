"""A trained student on disk: its description and weights, and how they are loaded."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.bounds import check_fields, check_model_arguments, shown
from kdkit.config import StudentConfig, TeacherConfig
from kdkit.errors import CheckpointError, ConfigError, UnknownNameError, first_line
from kdkit.recipe import Interpolation, ViewRecipe
from kdkit.runtime import files
from kdkit.runtime.reading import read_json
from kdkit.teachers.class_indices import OF_A_RUN
from kdkit.teachers.class_names import label_names
from kdkit.teachers.hub import without_network
from kdkit.teachers.imported_model import is_import_path
from kdkit.teachers.model_config import model_config, state_config
from kdkit.teachers.model_folder import MODEL_CONFIG
from kdkit.teachers.stored_names import RUN_DESCRIPTION
from kdkit.teachers.timm_model import FIRST_WEIGHTS, build_model, build_trained
from kdkit.teachers.weights import Checkpoint, read_checkpoint

STUDENT = RUN_DESCRIPTION
"""The file of a run's folder that describes how its student is built."""
EXPORTED = MODEL_CONFIG
"""The file of an export's folder that describes its model, in the layout of timm's hub."""
_logger = logging.getLogger(__name__)
_SHOWN = 16  # digits of an identity
_MAX_BYTES = 1 << 24  # the names of a million classes
BEST, LAST = "model_best.pth.tar", "last.pth.tar"
"""A run's checkpoint with the best metric and its newest, by the names that timm gives them."""
WEIGHTS = "model.safetensors"
"""The weights of an export."""
CACHES = "kdkit_caches"
"""Where the configuration of an export holds `Student.caches`."""
LIVE_TEACHER = "kdkit_live_teacher"
"""Where it holds `Student.live_teacher`."""
CHECKPOINTS = (BEST, LAST, WEIGHTS)
"""The files of a run's or an export's folder that weights are loaded from; the first that exists is used."""


@dataclass(frozen=True)
class Student:
    """How a student is built, and the images that it was evaluated on."""

    model: str
    """Name of timm or `torchvision:NAME`, or the import path of a function."""
    model_args: dict[str, Any]
    """Further arguments of the function that makes it, timm.create_model for a timm name."""
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
    weights: str | None = None
    """The weights file that `load_student` took, in words; None for weights of timm. It is not written."""
    num_epochs: int | None = None
    """Number of epochs after which these weights were written, if their file tells. It is not written either."""
    caches: tuple[dict[str, str], ...] = ()
    """The caches that taught it: {"teacher": its name, "identity": SHA-256 of the cache's metadata}; empty for a
    student of a live teacher or of labels alone, and in files from before that was recorded."""
    live_teacher: str | None = None
    """Name of the teacher that ran in every step, alone or beside caches; None without one, for the student's own
    moving average, and in files from before that was recorded."""

    def write(self, folder: Path) -> None:
        """Writes `folder`/student.json."""
        values = dataclasses.asdict(self)
        del values["weights"], values["num_epochs"]
        files.write_text(folder / STUDENT, json.dumps(values, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Student:
        """The student that `write` described.

        Raises:
            CheckpointError: the file is not as `write` writes it.
        """
        path = folder / STUDENT
        values = read_json(path, limit=_MAX_BYTES, error=CheckpointError)
        try:
            names = values["class_names"]
            caches = tuple({**cache} for cache in values.get("caches", ()))
            student = cls(**{**values, "class_names": None if names is None else tuple(names), "caches": caches})
            check_fields(student)
            check_model_arguments(student.model_args)
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{str(path)!r} does not describe a student ({first_line(error)}): was it edited?"
            ) from error
        if foreign := [name for name in FIRST_WEIGHTS if name in student.model_args]:
            raise CheckpointError(f"{str(path)!r} does not describe a student: its model_args name {foreign[0]}")
        return student

    @property
    def recipe(self) -> ViewRecipe:
        """Its evaluation view."""
        return ViewRecipe.evaluation(self.input_size, crop_pct=self.crop_pct, interpolation=self.interpolation)


def describe_teachers(caches: Sequence[Mapping[str, str]], live_teacher: str | None) -> list[str]:
    """A line for each teacher of a student: of a cache with the beginning of the cache's identity, and the live one."""
    lines = [f"{cache.get('teacher')}, cache {str(cache.get('identity'))[:_SHOWN]}" for cache in caches]
    return lines if live_teacher is None else [*lines, f"{live_teacher}, live"]


def is_student_folder(name: str | Path) -> bool:
    """Whether `name` is a folder that kdkit distill or kdkit export wrote."""
    return (Path(name) / STUDENT).is_file() or (Path(name) / EXPORTED).is_file()


def input_size_of(teacher: TeacherConfig | None) -> int | None:
    """Side in pixels of the images that a run or an export takes; None for other teachers and where a size is given.

    Raises:
        CheckpointError: the folder's description is damaged.
    """
    if teacher is None or teacher.input_size is not None:
        return None
    folder = Path(teacher.model)
    if (folder / STUDENT).is_file():
        return Student.read(folder).input_size
    if not (folder / EXPORTED).is_file():
        return None
    config = _read_export(folder).get("pretrained_cfg")
    size = config.get("input_size") if isinstance(config, dict) else None
    return size[-1] if isinstance(size, list) and size and isinstance(size[-1], int) and size[-1] > 0 else None


def load_student(config: StudentConfig) -> tuple[nn.Module, Student]:
    """The student that `config` names, in evaluation mode on the CPU, and its description.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        UnknownNameError: it is neither a folder nor a timm name.
    """
    folder = Path(config.student)
    if (folder / STUDENT).is_file():
        return _load_run(folder, config)
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
    found = None if config.checkpoint is None else read_checkpoint(config.checkpoint, ema=config.ema)
    model = build_model(name, found, subject="student")
    student = _described(name, model, found)
    return model.eval(), dataclasses.replace(student, **_exported_teachers(folder)) if folder.is_dir() else student


def _load_run(folder: Path, config: StudentConfig) -> tuple[nn.Module, Student]:
    """The student in a run's folder, in evaluation mode on the CPU, and its description."""
    student = Student.read(folder)
    if is_import_path(student.model) and config.arch != student.model:
        raise ConfigError(
            f"the student in {str(folder)!r} is made by the code {student.model!r}, which runs only if you name it: "
            f"give --arch {student.model}"
        )
    path = _checkpoint(folder) if config.checkpoint is None else Path(config.checkpoint)
    found = read_checkpoint(path, ema=config.ema)
    try:
        with without_network():  # a file does not decide what is downloaded
            model = build_trained(student.model, student.model_args, found)
    except (ConfigError, UnknownNameError) as error:
        raise CheckpointError(f"{str(folder / STUDENT)!r} describes no student of timm: {error}") from error
    own: dict[str, Any] = {"crop_pct": student.crop_pct, "interpolation": student.interpolation}
    own |= {
        OF_A_RUN: True,
        "input_size": (3, student.input_size, student.input_size),
        "test_input_size": None,
        "test_crop_pct": None,
    }
    state_config(model, **own)  # as an export has them
    names = _names_of_weights(student.class_names, found, folder)
    return model.eval(), dataclasses.replace(
        student, weights=str(found), num_epochs=found.num_epochs, class_names=names
    )


def _names_of_weights(names: tuple[str, ...] | None, found: Checkpoint, folder: Path) -> tuple[str, ...] | None:
    """The class names that the weights file holds, because their order is that of its weights; else the run's."""
    if found.class_names is None:
        return names
    if names is not None and names != found.class_names:
        _logger.warning("the class names of %r are taken, which differ from those of %r", str(found.path), str(folder))
    return found.class_names


def _checkpoint(folder: Path) -> Path:
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{str(folder)!r} holds no checkpoint yet: expected one of {', '.join(CHECKPOINTS)}")


def _read_export(folder: Path) -> dict[str, Any]:
    """The configuration of an export; raises CheckpointError if it is damaged."""
    config = read_json(folder / EXPORTED, error=CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(folder / EXPORTED)!r} holds {shown(config)}, expected an object: was it edited?")
    return config


def _exported_teachers(folder: Path) -> dict[str, Any]:
    """The caches and the live teacher that an export names; none if it names them otherwise than kdkit does."""
    config = _read_export(folder)
    found, live = config.get(CACHES), config.get(LIVE_TEACHER)
    caches = found if isinstance(found, list) else []
    return {
        "caches": tuple(cache for cache in caches if isinstance(cache, dict) and {*map(type, cache.values())} == {str}),
        "live_teacher": live if isinstance(live, str) else None,
    }


def _described(name: str, model: nn.Module, checkpoint: Checkpoint | None) -> Student:
    """The description that a timm model's own configuration gives."""
    config = model_config(model)
    size = config.get("test_input_size") or config.get("input_size") or (3, 224, 224)
    bilinear = config.get("interpolation") == "bilinear"
    return Student(
        model=name,
        model_args={},
        input_size=int(size[-1]),
        crop_pct=float(config.get("test_crop_pct") or config.get("crop_pct") or ViewRecipe.crop_pct),
        interpolation="bilinear" if bilinear else "bicubic",
        class_names=label_names(model),
        weights=None if checkpoint is None else str(checkpoint),
    )
