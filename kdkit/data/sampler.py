"""Samplers: which (row, view) pairs make up each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from kdkit.data.views.seed import view_seed
from kdkit.errors import ConfigError

Index = tuple[int, int]


class EpochSampler(Sampler[list[Index]]):
    """Batches of one training epoch: every row once, in view e mod V.

    Pass e over the sampler is epoch e; `set_epoch` before a pass chooses another, and later passes continue from there.
    The order depends only on seed and epoch. Each rank takes every world_size-th row. The order is padded with its
    first rows to a multiple of world_size, so that all ranks make the same number of steps.

    With views_per_decode k, each k consecutive epochs (0 to k - 1, ...) are a group. A group shows the pairs of row and
    view that k epochs without grouping show, as many in each of its epochs, but the k views of a row are adjacent in
    one epoch, so that one decode serves them. Of n rows per rank, the last n mod k of the group's order (n mod 2 k if
    views are mixed) are shown one view per epoch. A batch size that is not a multiple of k splits the views of a row
    between two batches, which both decode it.

    If views are mixed, partners are adjacent, so that a batch of even size, or of a multiple of 2 k, holds whole pairs
    and no image is decoded twice. Rows without a partner among `rows` come last. Several ranks take every
    world_size-th pair: the last row of an odd number is repeated, then the pairs are padded with the first ones.

    Args:
        rows: dataset indices to draw from; `range(n)` for all n samples.
        batch_size: samples per batch and rank.
        num_views: number of views V of the recipe.
        shuffle: whether each epoch has its own order, rather than the order of `rows`.
        seed: seed of the order of rows.
        drop_last: whether a last batch that is not full is dropped.
        rank, world_size: which share of the rows this process takes.
        views_per_decode: number k of views of a row that are adjacent.
        num_epochs: number of epochs of the run, if known: the last group is then as short as the epochs left.

    Attributes:
        partners: `ReplayedDataset.partners` of a dataset that mixes views, else None; ReplayLoader sets it.
        shown_views: the view to show in place of each view of each dataset row, int64 [N, V]; None: each as it is.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batch_size: int,
        *,
        num_views: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        views_per_decode: int = 1,
        num_epochs: int | None = None,
    ) -> None:
        if batch_size < 1 or num_views < 1 or views_per_decode < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size {batch_size}, num_views {num_views}, views_per_decode {views_per_decode} and rank {rank} "
                f"of {world_size} cannot make batches"
            )
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.batch_size = batch_size
        self.num_views = num_views
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.views_per_decode = views_per_decode
        self.num_epochs = num_epochs
        self.epoch = 0
        self.start_batch = 0
        self._has_begun = False
        self.partners: Callable[[int], torch.Tensor | None] | None = None
        self.shown_views: torch.Tensor | None = None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Makes the next pass that of `epoch`, counted from 0, beginning at batch `start_batch`.

        A run that resumes at this position sees the batches that the stopped run would have seen. The length remains
        that of a whole epoch.

        Raises:
            ConfigError: `start_batch` is out of range.
        """
        if not 0 <= start_batch <= len(self):
            raise ConfigError(f"start_batch {start_batch} is not within an epoch of {len(self)} batches")
        self.epoch = epoch
        self.start_batch = start_batch
        self._has_begun = False

    @property
    def num_valid_samples(self) -> int:
        """Rows of this rank without padding; evaluators count only these (timm's evaluation_sample_limit)."""
        return len(range(self.rank, len(self.rows), self.world_size))

    def own_pairs(self) -> Iterator[Index]:
        """The pairs (row, view) of this rank in the epoch of the latest pass, without padding."""
        rows, views = self._shown_pairs()
        return zip(rows[: self.num_valid_samples].tolist(), views[: self.num_valid_samples].tolist(), strict=True)

    @property
    def num_images(self) -> int:
        """Number of images of one epoch on this rank."""
        return len(self) * self.batch_size if self.drop_last else self._rows_per_rank

    @property
    def _block(self) -> int:
        """Number of rows that a rank takes at once: 2 for pairs on several ranks, else 1."""
        return 1 if self.partners is None or self.world_size == 1 else 2

    @property
    def _rows_per_rank(self) -> int:
        return math.ceil(len(self.rows) / (self._block * self.world_size)) * self._block

    def __len__(self) -> int:
        batches = self._rows_per_rank / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def __iter__(self) -> Iterator[list[Index]]:
        if self._has_begun:
            self.set_epoch(self.epoch + 1)
        self._has_begun = True
        rows, views = self._shown_pairs()
        first, stop = self.start_batch * self.batch_size, len(self) * self.batch_size
        for start in range(first, stop, self.batch_size):
            end = start + self.batch_size
            yield list(zip(rows[start:end].tolist(), views[start:end].tolist(), strict=True))

    def _shown_pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`_pairs`, with the views that are shown in their place."""
        rows, views = self._pairs()
        return rows, views if self.shown_views is None else self.shown_views[rows, views]

    def _pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and view of this rank's samples in this epoch, int64 [n] each."""
        first = self.epoch - self.epoch % self.views_per_decode
        k = self.views_per_decode
        if self.num_epochs is not None and self.epoch < self.num_epochs:
            k = min(k, self.num_epochs - first)
        views = torch.arange(first, first + k) % self.num_views
        blocks = self._order(first, int(views[0])).view(-1, self._block)
        mine = blocks[self.rank :: self.world_size].flatten()
        return _piece(mine, views, self.epoch - first, 1 if self.partners is None else 2)

    def _order(self, epoch: int, view: int) -> torch.Tensor:
        """The rows of the group that begins with `epoch` and `view`, padded so that every rank gets as many."""
        order = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(view_seed(self.seed, "order", epoch) >> 1)  # 63 bits
            order = order[torch.randperm(len(order), generator=generator)]
        partners = None if self.partners is None else self.partners(view)
        if partners is not None:
            order = _side_by_side(order, partners)
            order = torch.cat([order, order[len(order) - len(order) % self._block :]])
        missing = self._rows_per_rank * self.world_size - len(order)
        return torch.cat([order, order.repeat(math.ceil(missing / max(1, len(order))))[:missing]])


def _piece(
    rows: torch.Tensor, views: torch.Tensor, piece: int, rows_together: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and view of the samples in one epoch of a group, int64 [n] each.

    Args:
        rows: the rows of the group, int64 [n].
        views: the k views of the group.
        piece: number of the epoch in the group.
        rows_together: rows whose views are adjacent: 2 if they are partners.
    """
    k = len(views)
    each = len(rows) // (rows_together * k) * rows_together  # rows with all their views in one epoch
    mine, rest = rows[piece * each : (piece + 1) * each], rows[k * each :]
    return (
        torch.cat([mine.repeat_interleave(k), rest]),
        torch.cat([views.repeat(each), views[piece].expand(len(rest))]),
    )


def _side_by_side(order: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    """`order` with each row followed by its partner, and the rows without one at the end."""
    place = torch.full((len(partners),), len(order))
    place[order] = torch.arange(len(order))
    own, others = place[order], place[partners[order]]
    alone = (others == len(order)) | (partners[order] == order)
    pair = torch.where(alone, len(order) + own, torch.minimum(own, others))
    return order[torch.argsort(pair, stable=True)]


class RangeSampler(Sampler[list[Index]]):
    """Batches of a cache build: (views, start, stop) ranges, one after another; no batch spans two ranges.

    A range of one view is cut into batches of batch_size rows. A range of V views is cut into the same blocks of rows,
    and each block into batches of about batch_size samples, in which the V views of a row are adjacent. The batches of
    a range depend only on that range, so that a range that is built again after a crash is computed in the same
    batches.

    Args:
        ranges: (view, start, stop) or (views, start, stop) triples.
        batch_size: rows per block; the last block of a range may be smaller.
    """

    def __init__(self, ranges: Sequence[tuple[int | Sequence[int], int, int]], batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.ranges = [
            ((views,) if isinstance(views, int) else tuple(views), start, stop) for views, start, stop in ranges
        ]
        self.batch_size = batch_size

    @property
    def num_images(self) -> int:
        """Number of images of all ranges."""
        return sum(len(views) * (stop - start) for views, start, stop in self.ranges)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Does nothing: a build has no epochs."""

    def __len__(self) -> int:
        return sum(1 for _ in self._chunks())

    def __iter__(self) -> Iterator[list[Index]]:
        for views, rows in self._chunks():
            yield [(row, view) for row in rows for view in views]

    def _chunks(self) -> Iterator[tuple[tuple[int, ...], range]]:
        """Views and rows of each batch."""
        for views, start, stop in self.ranges:
            chunk = math.ceil(self.batch_size / len(views))
            for first in range(start, stop, self.batch_size):
                end = min(first + self.batch_size, stop)
                for row in range(first, end, chunk):
                    yield views, range(row, min(row + chunk, end))
