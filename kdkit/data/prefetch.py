"""Copies the next batch to a CUDA device while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from kdkit.types import Batch

Pixels = TypeVar("Pixels")


def prefetch_to_device(
    batches: Iterator[Pixels], to_batch: Callable[[Pixels], Batch], stream: torch.cuda.Stream
) -> Iterator[Batch]:
    """Yields each batch on the stream's device; `to_batch` runs on `stream`, one batch ahead of the consumer.

    Args:
        batches: batches from the workers, in page-locked memory.
        to_batch: copies and normalises a batch; called on the stream.
        stream: the same one in every pass, because freed memory serves only the stream that it was allocated on.
    """
    stream.wait_stream(torch.cuda.current_stream(stream.device))  # the constants of `to_batch` were made on it
    coming: tuple[Batch, torch.cuda.Event] | None = None
    for pixels in batches:
        with torch.cuda.stream(stream):
            following = to_batch(pixels), stream.record_event()
        if coming is not None:
            yield _handed_over(*coming)
        coming = following
    if coming is not None:
        yield _handed_over(*coming)


def _handed_over(batch: Batch, ready: torch.cuda.Event) -> Batch:
    """The batch on the current stream. The stream waits for the copy; `record_stream` keeps the memory alive."""
    current = torch.cuda.current_stream(batch.input.device)
    current.wait_event(ready)
    for tensor in (batch.input, batch.target, batch.teacher_input):
        if tensor is not None:
            tensor.record_stream(current)
    return batch
