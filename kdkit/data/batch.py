"""A batch as the workers of a loader return it: pixels on the CPU, not yet normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from kdkit.data.pages import empty_batch
from kdkit.data.sample import Sample, Unreadable
from kdkit.runtime.pixels import is_hashed, pixel_crc32


class NoPixels(NamedTuple):
    """Stands for a batch of which no sample could be read."""

    skipped: tuple[tuple[int, str], ...]
    """Row and reason of each sample."""


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """A batch as the workers return it: images uint8 [B, 3, H, W]; target, row and view [B] int64.

    Of mixed views, `partner_target` [B] holds the partner's class index and `share` [B] float32 the share of the
    sample's own label. `teacher_images` uint8 [B, 3, T, T] are the same views at the teacher's size T, if it differs.
    `pixel_crc32` [B] int64 is the CRC-32 of the pixels, of the teacher's if there are any, of each row that has a pixel
    hash, and -1 for the others. `skipped` holds the row and the reason, once, of each sample that was left out.
    """

    images: Tensor
    target: Tensor
    row: Tensor
    view: Tensor
    pixel_crc32: Tensor
    partner_target: Tensor | None = None
    share: Tensor | None = None
    teacher_images: Tensor | None = None
    skipped: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of_view(cls, parts: Sequence[PixelBatch], view: int) -> PixelBatch:
        """The samples that several batches show in one view, in their order; in page-locked memory if those are."""
        if len(parts) == 1 and bool((parts[0].view == view).all()):
            return parts[0]
        places = [torch.nonzero(part.view == view).flatten() for part in parts]
        chosen = {
            name: _select([getattr(part, name) for part in parts], places)
            for name, value in vars(parts[0]).items()
            if isinstance(value, Tensor)
        }
        return replace(parts[0], **chosen, skipped=())

    def pin_memory(self) -> PixelBatch:
        """The same batch in page-locked memory, rows and views excepted; DataLoader calls this."""
        return replace(
            self,
            images=self.images.pin_memory(),
            target=self.target.pin_memory(),
            partner_target=None if self.partner_target is None else self.partner_target.pin_memory(),
            share=None if self.share is None else self.share.pin_memory(),
            teacher_images=None if self.teacher_images is None else self.teacher_images.pin_memory(),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickles small tensors as arrays, because torch would send each through a file and a connection."""
        return {name: value.numpy() if _is_numbers(value) else value for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: torch.from_numpy(value) for name, value in state.items() if isinstance(value, np.ndarray)}
        self.__dict__.update({**state, **arrays})


def _select(parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The samples at `places` of each part, copied once."""
    counts = [len(place) for place in places]
    shape = (sum(counts), *parts[0].shape[1:])
    if parts[0].is_pinned():
        out = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    else:
        out = empty_batch(shape, parts[0].dtype)
    for part, place, to in zip(parts, places, out.split(counts), strict=True):
        torch.index_select(part, 0, place, out=to)
    return out


def _is_numbers(value: Any) -> bool:
    """Whether this is one number per sample, not pixels."""
    return isinstance(value, Tensor) and value.ndim == 1


def collate_readable(found: list[Sample | Unreadable]) -> PixelBatch | NoPixels:
    """Collates those of the samples that a dataset could read, if there are any."""
    if any(isinstance(sample, Sample) for sample in found):
        return collate(found)
    return NoPixels(_reasons(found))


def collate(found: Sequence[Sample | Unreadable]) -> PixelBatch:
    """Collates the samples that a dataset returned into one batch; at least one of them could be read."""
    samples = [sample for sample in found if isinstance(sample, Sample)]
    partner_targets = [sample.partner_target for sample in samples if sample.partner_target is not None]
    teacher_images = [sample.teacher_image for sample in samples if sample.teacher_image is not None]
    images = _stack_images([sample.image for sample in samples])
    seen = _stack_images(teacher_images) if teacher_images else images
    return PixelBatch(
        images,
        _stack([sample.target for sample in samples]),
        torch.tensor([sample.row for sample in samples]),
        torch.tensor([sample.view for sample in samples]),
        torch.tensor([_pixel_hash(sample.row, image) for sample, image in zip(samples, seen, strict=True)]),
        _stack(partner_targets) if partner_targets else None,
        torch.tensor([sample.share for sample in samples], dtype=torch.float32) if partner_targets else None,
        seen if teacher_images else None,
        _reasons(found),
    )


def _reasons(found: Sequence[Sample | Unreadable]) -> tuple[tuple[int, str], ...]:
    """Row and reason, once, of each sample that could not be read."""
    return tuple({sample.row: sample.reason for sample in found if isinstance(sample, Unreadable)}.items())


def _stack_images(images: list[Tensor]) -> Tensor:
    """Images [B, 3, H, W]; in a worker, straight into shared memory."""
    if get_worker_info() is not None:
        stacked: Tensor = default_collate(images)
        return stacked
    return torch.stack(images, out=empty_batch((len(images), *images[0].shape), images[0].dtype))


def _stack(targets: list[int | Tensor]) -> Tensor:
    """Class indices [B], or vectors [B, C]."""
    return torch.stack([torch.as_tensor(target) for target in targets])


def _pixel_hash(row: int, image: Tensor) -> int:
    """CRC-32 of the pixels that the teacher saw, or -1 for a row without a hash; computed here, in a worker."""
    return pixel_crc32(image) if is_hashed(row) else -1
