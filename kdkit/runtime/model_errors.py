"""What a model raises or returns in a forward or backward pass, as one line that names the model and its images."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import ConfigError, DeviceMemoryError, KdkitError, ShapeError, first_line
from kdkit.runtime import distributed
from kdkit.runtime.memory import is_out_of_memory, release_memory

_LOGITS = "logits"
_BATCH_OF_ONE = "Expected more than 1 value per channel when training"
_OF_A_WORKER = "DataLoader worker"  # torch raises a worker's death from any statement


@contextmanager
def model_errors(subject: str, images: Tensor, amp: torch.dtype | None = None) -> Iterator[None]:
    """Within the context, whatever a model raises on images [B, C, H, W] becomes one of kdkit's errors.

    On several ranks, an error that is not known to be the model's stays as it is: it may be of the connection.

    Args:
        subject: the model, e.g. "the student 'resnet18'".
        images: its input.
        amp: its autocast dtype.

    Raises:
        DeviceMemoryError: memory was too little; names batch size and precision.
        ConfigError: batch normalisation got one value per channel, or the model ends the process.
        ShapeError: the model does not take such images.
    """
    try:
        yield
    except KdkitError:
        raise
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:  # a signal that came during the pass
            raise
        raise ConfigError(f"{subject} ended the process in its forward pass (SystemExit: {stop.code})") from stop
    except Exception as error:
        found = explain_model_error(error, subject, images, amp)
        if type(found) is ShapeError and distributed.world_size() > 1:
            raise
        raise found from error


def explain_model_error(error: Exception, subject: str, images: Tensor, amp: torch.dtype | None = None) -> Exception:
    """The error of kdkit's that says in one line what a model raised on images [B, C, H, W]; a worker's death as it is.

    Args:
        error: what the model raised.
        subject, images, amp: as for `model_errors`.
    """
    reason = first_line(error)
    if reason.startswith(_OF_A_WORKER):
        return error
    if is_out_of_memory(error):
        return _out_of_memory(reason, subject, images, amp)
    if _BATCH_OF_ONE in reason:
        return ConfigError(
            f"{subject} normalises over the batch, and a batch of {len(images)} image has one value per channel to "
            "normalise: give a batch size of 2 or more per rank, and no rest of one image"
        )
    return ShapeError(
        f"{subject} does not take images {list(images.shape)} [batch, channels, height, width] "
        f"({type(error).__name__}: {reason}): check the image size, and the options of the model"
    )


def _out_of_memory(reason: str, subject: str, images: Tensor, amp: torch.dtype | None) -> DeviceMemoryError:
    release_memory(images.device)
    precision = "float32" if amp is None else f"autocast to {str(amp).removeprefix('torch.')}"
    faster = ", or give --train.amp bfloat16" if amp is None else ""
    return DeviceMemoryError(
        f"{subject} has not enough memory on {images.device} for a batch of {len(images)} images of "
        f"{images.shape[-2]} x {images.shape[-1]} pixels in {precision} ({reason}): lower --batch-size "
        f"(--train.accumulate N keeps the effective batch){faster}"
    )


def logits_of(output: Any, subject: str) -> Tensor:
    """The logits [B, C] in a model's output: a tensor, or the field or entry `logits` of a record of tensors.

    Raises:
        ConfigError: there are none; says what the model returned.
    """
    if isinstance(output, Tensor):
        found: Any = output
    else:
        found = output.get(_LOGITS) if isinstance(output, Mapping) else getattr(output, _LOGITS, None)
    if isinstance(found, Tensor) and found.ndim == 2 and found.is_floating_point():
        return found
    raise ConfigError(
        f"{subject} returns {_described(output)}, expected logits [B, C], or a record with such a field 'logits': "
        "wrap the model in a module that returns them"
    )


def _described(output: Any) -> str:
    """What a model returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}{'' if output.is_floating_point() else f' of {output.dtype}'}"
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} of {', '.join(map(repr, output)) or 'nothing'}"
    if is_dataclass(output):
        return f"a {kind} of {', '.join(field.name for field in fields(output))}"
    if isinstance(output, (tuple, list)):
        parts = [f"{list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in output]
        return f"a {kind} of {len(parts)} ({', '.join(parts[:4])}{', ...' if len(parts) > 4 else ''})"
    return f"a {kind}"
