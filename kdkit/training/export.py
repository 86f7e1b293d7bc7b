"""Exporting a student: a folder that timm.create_model loads, and ONNX."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import save_for_hf
from torch import nn

from kdkit.errors import MissingDependencyError
from kdkit.runtime.install import install_command
from kdkit.runtime.output import prepare_output
from kdkit.student import CACHES, load_student
from kdkit.training.config import ExportConfig
from kdkit.types import Normalization

WEIGHTS, CONFIG, ONNX = "model.safetensors", "config.json", "model.onnx"


@dataclass(frozen=True)
class ExportReport:
    """The files of an export."""

    folder: Path
    """The folder, for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    files: tuple[Path, ...]
    """The files that were written."""
    weights: str | None = None
    """The weights file and its epoch; None for weights of timm."""
    caches: tuple[str, ...] = ()
    """A line for each cache that taught the student: its teacher and its identity."""


def export_student(config: ExportConfig) -> ExportReport:
    """Writes a student's weights as safetensors, config.json in the layout of timm's hub, and ONNX if `config` has it.

    The configuration holds the size, crop, interpolation, mean and standard deviation of its images, and the names of
    its classes, so that timm.data.resolve_model_data_config and the like find them.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        OutputExistsError: the output folder is not empty.
        MissingDependencyError: `config` has ONNX and the package onnx is not installed.
    """
    if config.onnx and importlib.util.find_spec("onnx") is None:
        raise MissingDependencyError(f"an ONNX export needs onnx: {install_command('onnx')}")
    model, student = load_student(config)
    folder = prepare_output(config.output, (WEIGHTS, CONFIG, ONNX), overwrite=config.overwrite)
    normalization = Normalization.of(model)
    save_for_hf(
        model,
        folder,
        model_config={
            **({} if student.class_names is None else {"label_names": list(student.class_names)}),
            **({CACHES: list(student.caches)} if student.caches else {}),
        },
        safe_serialization=True,
        data_config={
            "input_size": (3, student.input_size, student.input_size),
            "crop_pct": student.crop_pct,
            "interpolation": student.interpolation,
            "mean": normalization.mean,
            "std": normalization.std,
        },
    )
    if config.onnx:
        _write_onnx(model, student.input_size, folder / ONNX)
    names = (WEIGHTS, CONFIG, ONNX) if config.onnx else (WEIGHTS, CONFIG)
    caches = tuple(student.describe_caches())
    return ExportReport(folder, tuple(folder / name for name in names), student.weights, caches)


def _write_onnx(model: nn.Module, size: int, path: Path) -> None:
    """images [B, 3, size, size], normalised, to logits [B, C]; B is dynamic."""
    with warnings.catch_warnings():
        # Shapes become constants on purpose: the size is fixed, and B is declared dynamic.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            dynamo=False,  # the other exporter needs a further package, onnxscript
        )
