"""Loaders: workers return uint8 pixels, targets and rows; normalisation happens on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdkit.data.dataset import ReplayedDataset, Sample
from kdkit.data.sampler import EpochSampler, RangeSampler
from kdkit.errors import DatasetError
from kdkit.signals import Batch, Normalization


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """A batch as the workers leave it: images uint8 [B, 3, H, W], target [B] and row [B] int64, one view."""

    images: Tensor
    target: Tensor
    row: Tensor
    view: int

    def pin_memory(self) -> PixelBatch:
        """The same batch in page-locked memory, rows excepted; DataLoader calls this."""
        return PixelBatch(self.images.pin_memory(), self.target.pin_memory(), self.row, self.view)


class ReplayLoader:
    """Iterates over Batches on `device`, made of the (row, view) pairs that `sampler` names.

    Args:
        dataset: what to load.
        sampler: names the (row, view) pairs of each batch, all of one view.
        normalization: what the images are normalised by: `Normalization.of(student)`.
        device: where batches end up.
        num_workers: worker processes; 0 loads in this one.
        loader_kwargs: further arguments of torch's DataLoader, e.g. multiprocessing_context.
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
        self._offset = torch.tensor(normalization.mean, device=self.device).mul(255).view(1, 3, 1, 1)
        self._scale = torch.tensor(normalization.std, device=self.device).mul(255).view(1, 3, 1, 1)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each epoch would draw from, and so disturb, the global one
            **loader_kwargs,
        )

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def num_images(self) -> int:
        """Images of one pass."""
        return self.sampler.num_images

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Makes the next pass that of `epoch`, counted from 0 (its order, and its view e mod V), from a batch on."""
        self.sampler.set_epoch(epoch, start_batch)

    def __iter__(self) -> Iterator[Batch]:
        for pixels in self.pixel_batches():
            yield self.to_batch(pixels)

    def pixel_batches(self) -> Iterator[PixelBatch]:
        """The batches as the workers leave them, on the CPU."""
        try:
            yield from self._loader
        except DatasetError as error:  # from a worker its text comes wrapped in that of a traceback
            raise DatasetError(str(error).rsplit("DatasetError: ", 1)[-1].strip()) from error

    def to_batch(self, pixels: PixelBatch) -> Batch:
        """A normalised Batch on the loader's device."""
        images = pixels.images.to(self.device, non_blocking=True).float()
        return Batch(
            images.sub_(self._offset).div_(self._scale),
            pixels.target.to(self.device, non_blocking=True),
            pixels.row,
            pixels.view,
        )


def _collate(samples: list[Sample]) -> PixelBatch:
    views = {sample.view for sample in samples}
    if len(views) != 1:
        raise DatasetError(f"a batch shows one view, got views {sorted(views)}: let the sampler keep them apart")
    return PixelBatch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.target for sample in samples]),
        torch.tensor([sample.row for sample in samples]),
        samples[0].view,
    )
