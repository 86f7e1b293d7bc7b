"""Loaders: workers return uint8 pixels, targets and rows; normalisation happens on the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdkit.data.batch import NoPixels, PixelBatch, collate_readable
from kdkit.data.dataset import ReplayedDataset
from kdkit.data.pages import empty_batch
from kdkit.data.prefetch import prefetch_to_device
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.data.worker import leave_signals_to_parent
from kdkit.errors import DatasetError
from kdkit.runtime import distributed
from kdkit.types import Batch, Normalization

_logger = logging.getLogger(__name__)
_CACHED = 1 << 17  # pixels that are normalised at a time: half a MiB of floats, which stays in a core's cache
_WORKER_DIED = "DataLoader worker"  # how torch's RuntimeError begins, wherever in the main thread it is raised
_RAISED_IN_WORKER = "in DataLoader worker process"  # in torch's text of what a worker's dataset raised


@contextmanager
def translate_worker_errors() -> Iterator[None]:
    """Within the context, a worker's death raises DatasetError; torch reports it from any statement that runs then."""
    try:
        yield
    except RuntimeError as error:
        if _WORKER_DIED not in str(error):
            raise
        raise _death(error) from error


@contextmanager
def _naming_lost_workers(num_workers: int) -> Iterator[None]:
    """The same for a worker that dies while a batch is fetched: torch may report only the broken connection."""
    try:
        yield
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if num_workers == 0 or _RAISED_IN_WORKER in str(error):
            raise
        raise _death(error) from error


def _death(error: Exception) -> DatasetError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DatasetError(
        f"a process that loads images died ({reason}): the machine may be out of memory, or short of it in "
        "/dev/shm; try fewer num_workers"
    )


class ReplayLoader:
    """Iterates over Batches on `device`, loaded from the (row, view) pairs of `sampler`.

    Worker processes persist across epochs. On a CUDA device the next batch is copied and normalised on a separate
    stream while the current one is used. If the recipe mixes views, the sampler keeps pairs together, and targets are
    soft labels [B, C] float32, in which a sample without a label (-1) has no share. Each pass without `set_epoch` is
    the next epoch.

    Args:
        dataset: what to load.
        sampler: yields the (row, view) pairs of each batch.
        normalization: mean and standard deviation of the student's input: `Normalization.of(student)`.
        device: device of the batches.
        num_workers: worker processes; 0 loads in the calling process.
        loader_kwargs: further arguments of torch's DataLoader, e.g. multiprocessing_context.

    Attributes:
        on_skip: called with the key and the reason for each skipped sample; logs a warning by default.
    """

    def __init__(
        self,
        dataset: ReplayedDataset,
        sampler: EpochSampler | RangeSampler,
        normalization: Normalization,
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        **loader_kwargs: Any,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.normalization = normalization
        self.device = torch.device(device)
        self.on_skip: Callable[[str, str], None] = _log_skip
        self._copy_stream: torch.cuda.Stream | None = None
        if dataset.recipe.mixes and isinstance(sampler, EpochSampler):
            sampler.partners = dataset.partners
        self._offset = (
            torch.tensor(normalization.mean, dtype=torch.float32, device=self.device).mul(255).view(1, 3, 1, 1)
        )
        self._scale = torch.tensor(normalization.std, dtype=torch.float32, device=self.device).mul(255).view(1, 3, 1, 1)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate_readable,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise each epoch would draw from the global one
            **loader_kwargs,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __repr__(self) -> str:
        return (
            f"ReplayLoader({len(self)} batches of {self.sampler.batch_size}, {self._loader.num_workers} workers, "
            f"on {self.device}: {self.dataset!r})"
        )

    @property
    def num_images(self) -> int:
        """Number of images in one pass."""
        return self.sampler.num_images

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Makes the next pass that of `epoch`, counted from 0, with its order and view e mod V, from `start_batch`."""
        self.sampler.set_epoch(epoch, start_batch)

    def __iter__(self) -> Iterator[Batch]:
        if self.device.type == "cuda":
            self._copy_stream = self._copy_stream or torch.cuda.Stream(self.device)
            yield from prefetch_to_device(self.pixel_batches(), self.to_batch, self._copy_stream)
        else:
            yield from map(self.to_batch, self.pixel_batches())

    def pixel_batches(self) -> Iterator[PixelBatch]:
        """Iterates over the batches as the workers return them: uint8, on the CPU.

        Raises:
            DatasetError: a sample cannot be read and such samples are not skipped; or no sample of a batch can. Where
                an epoch is not shuffled, as in an evaluation, such a batch is left out; then no sample of any batch
                can, and there are no other ranks, which may have some.
        """
        needs_each = not isinstance(self.sampler, EpochSampler) or self.sampler.shuffle
        found_any, empty = False, None
        try:
            with translate_worker_errors(), _naming_lost_workers(self._loader.num_workers):
                for batch in self._loader:
                    for row, reason in batch.skipped:
                        self.on_skip(self.dataset.keys[row], reason)
                    if not isinstance(batch, NoPixels):
                        found_any = True
                        yield batch
                    elif needs_each:
                        raise _none_readable(batch)
                    else:
                        empty = batch
            if empty is not None and not found_any and distributed.world_size() == 1:
                raise _none_readable(empty)
        except DatasetError as error:  # a worker's error arrives with its traceback as text
            self._end_workers()
            kind = type(error)
            raise kind(str(error).rsplit(f"{kind.__name__}: ", 1)[-1].strip()) from error

    def _end_workers(self) -> None:
        """Ends the workers; the next pass starts others.

        An error's traceback keeps the iterator in a reference cycle. The garbage collector closes the queues of such an
        iterator before torch tells the workers to end, and then waits five seconds for each.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def to_batch(self, pixels: PixelBatch) -> Batch:
        """A normalised Batch on the loader's device."""
        return Batch(
            self._normalized(pixels.images),
            self._target(pixels),
            pixels.row,
            pixels.view,
            teacher_input=None if pixels.teacher_images is None else self._normalized(pixels.teacher_images),
            pixel_crc32=pixels.pixel_crc32,
        )

    def _normalized(self, images: Tensor) -> Tensor:
        if self.device.type != "cpu":
            return images.to(self.device, non_blocking=True).float().sub_(self._offset).div_(self._scale)
        normalized = empty_batch(images.shape, torch.float32)
        together = max(1, _CACHED // images.shape[1:].numel())
        for some, out in zip(images.split(together), normalized.split(together), strict=True):
            out.copy_(some).sub_(self._offset).div_(self._scale)
        return normalized

    def _target(self, pixels: PixelBatch) -> Tensor:
        """Class indices [B], or soft labels [B, C] if views are mixed."""
        target = pixels.target.to(self.device, non_blocking=True)
        if pixels.share is None or pixels.partner_target is None or self.dataset.num_classes is None:
            return target
        partner = pixels.partner_target.to(self.device, non_blocking=True)
        share = pixels.share.to(self.device, non_blocking=True)
        if target.ndim == 2:  # multi-label; where one of the two is not labelled, their mixture is not either
            mixed = share[:, None] * target + (1 - share[:, None]) * partner
            return torch.where((target < 0) | ((partner < 0) & (share[:, None] < 1)), -torch.ones_like(mixed), mixed)
        soft = torch.zeros(len(target), self.dataset.num_classes, dtype=torch.float32, device=self.device)
        for label, weight in ((target, share), (partner, 1 - share)):
            soft.scatter_add_(1, label.clamp(min=0)[:, None], (weight * (label >= 0))[:, None])
        return soft


def _none_readable(batch: NoPixels) -> DatasetError:
    count, reason = len(batch.skipped), batch.skipped[0][1]
    return DatasetError(f"none of the {count} samples of a batch could be read, the first: {reason}")


def _log_skip(key: str, reason: str) -> None:
    _logger.warning("skipped %r: %s", key, reason)
