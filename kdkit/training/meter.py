"""The terms of each step, collected on their device and copied to the host at intervals, so that no step waits.

Dimensions: K terms, S steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from kdkit.runtime import distributed

Record = dict[str, float]
Loaded = TypeVar("Loaded")
_IMAGES, _SECONDS, _WAITING = "images", "seconds", "waiting"
_WITHOUT = "images without "
"""Of a term: images of the steps in which it had nothing to measure."""


class Meter:
    """The terms of the steps since the last flush, and their sums over the epoch.

    Args:
        sums: the `sums` of an earlier meter, as a checkpoint holds them, to continue from.
    """

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums = dict(sums or {})
        self._names: tuple[str, ...] = ()
        self._pending: list[tuple[Tensor, Record, int]] = []
        self._start = time.perf_counter()

    def __len__(self) -> int:
        return len(self._pending)

    def restart_clock(self) -> None:
        """Excludes the time since the last flush from images/s."""
        self._start = time.perf_counter()

    def timed(self, batches: Iterator[Loaded]) -> Iterator[Loaded]:
        """Yields `batches`, and counts the time that each takes to arrive."""
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._add_to_sum(_WAITING, time.perf_counter() - begun)
            yield batch

    def add(self, result: Mapping[str, Tensor], num_images: int, at: Record) -> None:
        """Takes one step's result, without waiting for the device.

        Args:
            result: the task's result; its scalars [] are kept, the same ones in each step.
            num_images: images of the step on this rank.
            at: values that the host knows: epoch, step and learning rate.
        """
        dtype = result["loss"].dtype
        terms = {name: value.detach().to(dtype).reshape(()) for name, value in result.items() if value.numel() == 1}
        self._names = tuple(terms)
        self._pending.append((torch.stack(list(terms.values())), at, num_images))

    def flush(self) -> list[Record]:
        """Returns the records of the steps since the last flush, means over all ranks; waits for the device once.

        A term that is NaN beside a finite loss had nothing to measure, such as the teacher's top-1 without labels: it
        is left out. A collective call: every rank makes it after the same step.
        """
        if not self._pending:
            return []
        table = distributed.all_reduce_mean(torch.stack([row for row, _, _ in self._pending])).tolist()  # [S, K]
        seconds = time.perf_counter() - self._start
        records, images_before = [], self.sums.get(_IMAGES, 0.0)
        for values, (_, at, count) in zip(table, self._pending, strict=True):
            terms = dict(zip(self._names, values, strict=True))
            absent = {name for name, value in terms.items() if math.isnan(value) and math.isfinite(terms["loss"])}
            num_images = count * distributed.world_size()
            for name, value in terms.items():
                self._add_to_sum(*((_WITHOUT + name, num_images) if name in absent else (name, value * num_images)))
            self._add_to_sum(_IMAGES, num_images)
            records.append(dict(at) | {name: value for name, value in terms.items() if name not in absent})
        self._add_to_sum(_SECONDS, seconds)
        self._pending.clear()
        self._start = time.perf_counter()
        speed = (self.sums[_IMAGES] - images_before) / seconds
        return [{**record, "images_per_second": speed} for record in records]

    def _add_to_sum(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value

    def mean(self) -> Record:
        """Means over the epoch's images, their number, the seconds of their steps, and images/s.

        The mean of a term is over the steps in which it was measured. "waiting" is the share of the seconds in which
        the loop waited for images; a GPU that still computes makes no wait.
        """
        images, seconds = self.sums[_IMAGES], self.sums[_SECONDS]
        counts = {name: images - self.sums.get(_WITHOUT + name, 0.0) for name in self.sums}
        skipped = (_IMAGES, _SECONDS, _WAITING, *(name for name in self.sums if name.startswith(_WITHOUT)))
        means = {name: total / counts[name] for name, total in self.sums.items() if name not in skipped}
        waiting = min(1.0, self.sums.get(_WAITING, 0.0) / seconds)
        return means | {
            _IMAGES: images,
            _SECONDS: seconds,
            "images_per_second": images / seconds,
            _WAITING: waiting,
        }
