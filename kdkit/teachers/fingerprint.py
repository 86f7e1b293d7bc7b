"""The fingerprint of a teacher: plain JSON values by which a cache of another teacher is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit.teachers.model_config import model_config
from kdkit.teachers.structure import structure_sha256, tensor_bytes
from kdkit.types import Normalization

UNKNOWN = "unknown"
"""The weights_sha256 of a teacher whose fingerprint nobody gave."""
_CONFIG_FIELDS = ("architecture", "tag", "hf_hub_id", "interpolation", "crop_pct", "num_classes")


def fingerprint(
    model: nn.Module,
    *,
    name: str,
    normalization: Normalization,
    input_size: tuple[int, int] | None,
    num_classes: int | None,
    class_map: tuple[int, ...] | None,
    autocast: torch.dtype | None,
    resize: str,
) -> dict[str, Any]:
    """Returns name, weights, structure, normalisation, size, class map, dtype and versions of a teacher.

    Args:
        model: the teacher's model.
        name, normalization, input_size, num_classes, class_map, autocast, resize: the attributes of the Teacher.
    """
    config = model_config(model)
    parameter = next(model.parameters(), None)
    return {
        "name": name,
        "weights_sha256": weights_sha256(model),
        "structure_sha256": structure_sha256(model),
        "pretrained_cfg": {name: config[name] for name in _CONFIG_FIELDS if config.get(name) is not None},
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "input_size": None if input_size is None else list(input_size),
        "num_classes": num_classes,
        "class_map_sha256": None if class_map is None else _sha256_of_ints(class_map),
        "dtype": "none" if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
        **({} if resize == "bicubic" else {"resize": resize}),
        "versions": {"timm": timm.__version__, "torch": str(torch.__version__)},
    }


def weights_sha256(model: nn.Module) -> str:
    """Returns the SHA-256 of every parameter and buffer in name order: name, dtype, shape and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap_model(model).state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _sha256_of_ints(values: tuple[int, ...]) -> str:
    return hashlib.sha256(np.asarray(values, dtype="<i8").tobytes()).hexdigest()
