"""The fingerprint of a teacher: enough to refuse a cache that another teacher made."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from kdkit.teachers.model_config import model_config
from kdkit.teachers.structure import structure_sha256, tensor_bytes

if TYPE_CHECKING:
    from kdkit.teachers.teacher import Teacher

_CONFIG_FIELDS = ("architecture", "tag", "hf_hub_id", "interpolation", "crop_pct", "num_classes")


def fingerprint(teacher: Teacher) -> dict[str, Any]:
    """A teacher as plain JSON values: name, weights, structure, normalisation, size, class map, dtype, versions."""
    config = model_config(teacher.model)
    parameter = next(teacher.model.parameters(), None)
    return {
        "name": teacher.name,
        "weights_sha256": weights_sha256(teacher.model),
        "structure_sha256": structure_sha256(teacher.model),
        "pretrained_cfg": {name: config[name] for name in _CONFIG_FIELDS if config.get(name) is not None},
        "mean": list(teacher.normalization.mean),
        "std": list(teacher.normalization.std),
        "input_size": None if teacher.input_size is None else list(teacher.input_size),
        "num_classes": teacher.num_classes,
        "class_map_sha256": None if teacher.class_map is None else _sha256_of_ints(teacher.class_map),
        "dtype": "none" if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "autocast": None if teacher.autocast is None else str(teacher.autocast).removeprefix("torch."),
        **({} if teacher.resize == "bicubic" else {"resize": teacher.resize}),
        "versions": {"timm": timm.__version__, "torch": str(torch.__version__)},
    }


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer in name order: name, dtype, shape and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap_model(model).state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def _sha256_of_ints(values: tuple[int, ...]) -> str:
    return hashlib.sha256(np.asarray(values, dtype="<i8").tobytes()).hexdigest()
