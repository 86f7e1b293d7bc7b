"""Exporting a student: a folder that timm.create_model loads, and ONNX."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from kdkit.errors import KdkitError, MissingDependencyError
from kdkit.runtime import files
from kdkit.runtime.install import install_command
from kdkit.runtime.output import check_not_input, prepare_output
from kdkit.student import CACHES, LIVE_TEACHER, STUDENT, WEIGHTS, Student, describe_teachers, load_student
from kdkit.student import EXPORTED as CONFIG
from kdkit.teachers.class_indices import OF_A_RUN, TAG
from kdkit.teachers.model_config import model_config
from kdkit.teachers.timm_model import is_timm_name
from kdkit.training.config import ExportConfig
from kdkit.training.model_card import CARD, describe_model
from kdkit.types import Normalization

ONNX = "model.onnx"
_FILES = (WEIGHTS, CONFIG, STUDENT, CARD, ONNX)
_OS_ERROR = re.compile(r"os error (\d+)")
_OF_TIMMS_WEIGHTS = (
    *("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "license", "origin_url", "description"),
    *("paper_name", "paper_ids", "notes", OF_A_RUN),
)
"""Entries of a pretrained_cfg that tell where its weights come from."""


@dataclass(frozen=True)
class ExportReport:
    """The files of an export."""

    folder: Path
    """The folder, for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    files: tuple[Path, ...]
    """The files that were written."""
    weights: str | None = None
    """The weights file and its epoch; None for weights of timm."""
    taught_by: tuple[str, ...] = ()
    """A line for each teacher of the student: of a cache with the cache's identity, and the live one."""


def export_student(config: ExportConfig) -> ExportReport:
    """Writes a student's weights as safetensors, config.json in the layout of timm's hub, and ONNX if `config` has it.

    A student that timm does not build gets kdkit's student.json in place of config.json. README.md is a model card with
    what taught the student, on which images, and how it was measured.

    The configuration holds the size, crop, interpolation, mean and standard deviation of its images, and the names of
    its classes, so that timm.data.resolve_model_data_config and the like find them.

    Raises:
        CheckpointError: there are no such weights, or they do not fit.
        OutputExistsError: the output folder is not empty.
        WriteError: the file system refused; nothing is left there.
        MissingDependencyError: `config` has ONNX and the package onnx is not installed.
    """
    if config.onnx and importlib.util.find_spec("onnx") is None:
        raise MissingDependencyError(f"an ONNX export needs onnx: {install_command('onnx')}")
    if config.overwrite:
        check_not_input(config.output, filter(None, (config.student, config.checkpoint)))
    model, student = load_student(config)
    folder = prepare_output(config.output, _FILES, overwrite=config.overwrite)
    with _whole(folder):
        if is_timm := is_timm_name(student.model):
            _write_for_timm(model, student, folder)
        else:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS)
            student.write(folder)
        files.share(folder / WEIGHTS)
        card = describe_model(
            student, Path(config.student), is_timm=is_timm, ema=config.ema, checkpoint=config.checkpoint
        )
        files.write_text(folder / CARD, card)
        if config.onnx:
            _write_onnx(model, student.input_size, folder / ONNX)
    written = tuple(path for name in _FILES if (path := folder / name).exists())
    return ExportReport(
        folder, written, student.weights, tuple(describe_teachers(student.caches, student.live_teacher))
    )


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Within the context an export is written, or what was written of it is removed.

    Raises:
        WriteError: the file system refused.
    """
    try:
        yield
    except BaseException as error:
        for name in _FILES:
            with suppress(OSError):
                files.remove_file(folder / name)
        with suppress(OSError):
            folder.rmdir()
        found = _OS_ERROR.search(str(error)) if isinstance(error, SafetensorError) else None
        cause = OSError(int(found[1]), os.strerror(int(found[1]))) if found else error
        if isinstance(cause, OSError) and not isinstance(cause, KdkitError):
            raise files.write_error(folder / WEIGHTS, cause) from error
        raise


def _write_for_timm(model: nn.Module, student: Student, folder: Path) -> None:
    """Writes weights and config.json as timm's hub has them; what timm knows of its own weights is left out."""
    normalization = Normalization.of(model)
    own = {name: value for name, value in model_config(model).items() if name not in _OF_TIMMS_WEIGHTS}
    setattr(model, "pretrained_cfg", own | {"tag": TAG, "custom_load": False})  # noqa: B010 -- not a tensor
    save_for_hf(
        model,
        folder,
        model_config={
            **({} if student.class_names is None else {"label_names": list(student.class_names)}),
            **({CACHES: list(student.caches)} if student.caches else {}),
            **({LIVE_TEACHER: student.live_teacher} if student.live_teacher else {}),
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
