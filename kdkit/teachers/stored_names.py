"""The class names that a weights file of kdkit holds, or that the description beside it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.errors import CheckpointError
from kdkit.runtime.reading import read_json
from kdkit.teachers.class_names import listed_names
from kdkit.teachers.model_folder import HUB_WEIGHTS, MODEL_CONFIG

RUN_DESCRIPTION = "student.json"
"""The file of a run's folder that describes its student."""
_MAX_BYTES = 1 << 24  # the names of a million classes


def stored_names(path: Path, content: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes [K] of the weights in a file; None if nothing names them.

    Args:
        path: a checkpoint of `kdkit distill`, which holds them, or the weights of an export, whose config.json
            or student.json holds them.
        content: what was read from it.

    Raises:
        CheckpointError: a description beside it cannot be read.
        ClassMismatchError: the label_names in it are no names.
    """
    own = content.get("kdkit") if isinstance(content, Mapping) else None
    if isinstance(own, Mapping):
        config = own.get("config")
        names = config.get("class_names") if isinstance(config, Mapping) else None
        return listed_names(names) or _beside(path, RUN_DESCRIPTION, "class_names")  # the data had none
    if path.name not in HUB_WEIGHTS:
        return None
    return _beside(path, MODEL_CONFIG, "label_names") or _beside(path, RUN_DESCRIPTION, "class_names")


def _beside(path: Path, description: str, entry: str) -> tuple[str, ...] | None:
    place = path.with_name(description)
    values = read_json(place, limit=_MAX_BYTES, error=CheckpointError) if place.is_file() else None
    return listed_names(values.get(entry)) if isinstance(values, Mapping) else None
