"""A batch that is too large for the teacher's memory runs in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import KdkitError, TeacherMemoryError
from kdkit.runtime.memory import is_out_of_memory, release_memory
from kdkit.runtime.model_errors import explain_model_error

Outputs = tuple[Any, dict[str, Tensor]]
"""Logits [B, C] and features by tap."""

_log = logging.getLogger(__name__)


class Splitter:
    """Runs a model on a batch, in parts if the device has too little memory; keeps the batch size that fits.

    Args:
        subject: the teacher's name in messages.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.max_batch_size: int | None = None
        """Largest number of images in one forward pass; None while every batch fits."""

    def __call__(self, forward: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """Returns the outputs of `forward` for images [B, 3, H, W].

        Raises:
            TeacherMemoryError: there is too little memory for a single image.
        """
        if torch.compiler.is_compiling():  # errors cannot be part of a graph
            return forward(images)
        parts: list[Outputs] = []
        done = 0
        while done < len(images) or not parts:
            part = images[done:] if self.max_batch_size is None else images[done : done + self.max_batch_size]
            outputs = self._try(forward, part)
            if outputs is None:
                self._halve(part)
                continue
            parts.append(outputs)
            done += len(part)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _try(self, forward: Callable[[Tensor], Outputs], images: Tensor) -> Outputs | None:
        """The outputs, or None if memory was too little; the error's references to tensors are gone by then."""
        try:
            return forward(images)
        except KdkitError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise explain_model_error(error, self.subject, images) from error
            if len(images) > 1:
                return None
            raise TeacherMemoryError(
                f"{self.subject} has not enough memory on {images.device} for one image of "
                f"{images.shape[-2]} x {images.shape[-1]} pixels: take a smaller teacher, input size or dtype"
            ) from error

    def _halve(self, images: Tensor) -> None:
        self.max_batch_size = -(-len(images) // 2)
        _log.warning(
            "%s: not enough memory for %d images at once, trying %d", self.subject, len(images), self.max_batch_size
        )
        release_memory(images.device)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), {tap: torch.cat([found[tap] for found in features]) for tap in features[0]}
