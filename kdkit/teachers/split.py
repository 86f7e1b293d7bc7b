"""A batch that is too large for the teacher's memory is asked about in parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.errors import TeacherMemoryError

Answer = tuple[Any, dict[str, Tensor]]
"""Logits [B, C] and features by tap."""

_log = logging.getLogger(__name__)


class Splitter:
    """Asks about a batch, in halves where the device has not enough memory; the size that fits is kept for the next.

    Args:
        who: how messages call the teacher.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.max_batch_size: int | None = None
        """Images that are asked about at once; None while any number went well."""

    def __call__(self, ask: Callable[[Tensor], Answer], images: Tensor) -> Answer:
        """What `ask` answers about images [B, 3, H, W].

        Raises:
            TeacherMemoryError: a single image is too much.
        """
        if torch.compiler.is_compiling():  # errors are no part of a graph
            return ask(images)
        parts: list[Answer] = []
        done = 0
        while done < len(images) or not parts:
            part = images[done:] if self.max_batch_size is None else images[done : done + self.max_batch_size]
            answer = self._ask(ask, part)
            if answer is None:
                self._halve(part)
                continue
            parts.append(answer)
            done += len(part)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _ask(self, ask: Callable[[Tensor], Answer], images: Tensor) -> Answer | None:
        """What `ask` answers, or None where memory was not enough: what then held it is gone with the error."""
        try:
            return ask(images)
        except torch.OutOfMemoryError as error:
            if len(images) > 1:
                return None
            raise TeacherMemoryError(
                f"{self.who} has not enough memory on {images.device} for one image of "
                f"{images.shape[-2]} x {images.shape[-1]} pixels: take a smaller teacher, input size or dtype"
            ) from error

    def _halve(self, images: Tensor) -> None:
        self.max_batch_size = -(-len(images) // 2)
        _log.warning(
            "%s: not enough memory for %d images at once, asking about %d", self.who, len(images), self.max_batch_size
        )
        if images.device.type == "cuda":
            torch.cuda.empty_cache()


def _joined(parts: Sequence[Answer]) -> Answer:
    logits, features = zip(*parts, strict=True)
    return torch.cat(logits), {tap: torch.cat([found[tap] for found in features]) for tap in features[0]}
