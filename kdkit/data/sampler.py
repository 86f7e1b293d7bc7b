"""Which (row, view) pairs make up a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from kdkit.data.views.seed import view_seed
from kdkit.errors import ConfigError

Index = tuple[int, int]


class EpochSampler(Sampler[list[Index]]):
    """Batches of one training epoch: every row once, all in view e mod V.

    The order depends on seed and epoch alone. Each rank takes every world_size-th row; so that all ranks make the same
    number of steps, the order is padded with its own beginning to a multiple of world_size.

    Where views are mixed, partners stand side by side, so that a batch of even size holds whole pairs and no image is
    decoded twice. Rows whose partner is not among `rows`, or who have none, stand last. Several ranks take every
    world_size-th pair: the last row of an odd number is doubled, then the pairs are padded with the first ones.

    Args:
        rows: dataset indices to draw from; all of `range(n)` for the whole of it.
        batch_size: samples a batch and rank.
        num_views: how many views V the recipe has.
        shuffle: whether each epoch has an order of its own; else that of `rows`.
        seed: seed of the order.
        drop_last: whether a last batch that is not full is left out.
        rank, world_size: which share of the rows this process takes.

    Attributes:
        partners: ReplayedDataset.partners of a dataset that mixes, else None; ReplayLoader sets it.
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
    ) -> None:
        if batch_size < 1 or num_views < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size {batch_size}, num_views {num_views} and rank {rank} of {world_size} cannot make batches"
            )
        self.rows = torch.as_tensor(rows, dtype=torch.int64)
        self.batch_size = batch_size
        self.num_views = num_views
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0
        self._has_begun = False
        self.partners: Callable[[int], torch.Tensor | None] | None = None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Makes the next iteration that of `epoch`, counted from 0, and begin at batch `start_batch` of it.

        This is the position of a stopped run: what follows is what would have followed. The length stays the epoch's.
        """
        if not 0 <= start_batch <= len(self):
            raise ConfigError(f"batch {start_batch} is no place to begin an epoch of {len(self)} batches")
        self.epoch = epoch
        self.start_batch = start_batch
        self._has_begun = False

    @property
    def num_valid_samples(self) -> int:
        """Rows of this rank that are no padding; evaluators count no others (timm's evaluation_sample_limit)."""
        return len(range(self.rank, len(self.rows), self.world_size))

    @property
    def num_images(self) -> int:
        """Images of one epoch on this rank."""
        return len(self) * self.batch_size if self.drop_last else self._rows_per_rank

    @property
    def _block(self) -> int:
        """How many rows are dealt to a rank at once: pairs, where there are pairs and ranks."""
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
        view = self.epoch % self.num_views
        blocks = self._order(view).view(-1, self._block)
        mine = blocks[self.rank :: self.world_size].flatten().tolist()
        first, stop = self.start_batch * self.batch_size, len(self) * self.batch_size
        for start in range(first, stop, self.batch_size):
            yield [(row, view) for row in mine[start : start + self.batch_size]]

    def _order(self, view: int) -> torch.Tensor:
        """This epoch's rows, padded so that every rank gets as many."""
        order = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(view_seed(self.seed, "order", self.epoch) >> 1)  # 63 bits
            order = order[torch.randperm(len(order), generator=generator)]
        partners = None if self.partners is None else self.partners(view)
        if partners is not None:
            order = _side_by_side(order, partners)
            order = torch.cat([order, order[len(order) - len(order) % self._block :]])
        missing = self._rows_per_rank * self.world_size - len(order)
        return torch.cat([order, order.repeat(math.ceil(missing / max(1, len(order))))[:missing]])


def _side_by_side(order: torch.Tensor, partners: torch.Tensor) -> torch.Tensor:
    """`order` with each row's partner behind it, where it is there too, and the rows without one at the end."""
    place = torch.full((len(partners),), len(order))
    place[order] = torch.arange(len(order))
    own, others = place[order], place[partners[order]]
    alone = (others == len(order)) | (partners[order] == order)
    pair = torch.where(alone, len(order) + own, torch.minimum(own, others))
    return order[torch.argsort(pair, stable=True)]


class RangeSampler(Sampler[list[Index]]):
    """Batches of a cache build: (view, start, stop) ranges in turn, no batch across two of them.

    The batches of a range depend on that range alone, so that a range built again after a crash is computed in the very
    same batches.

    Args:
        ranges: (view, start, stop) triples.
        batch_size: samples a batch; the last of a range may be smaller.
    """

    def __init__(self, ranges: Sequence[tuple[int, int, int]], batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.ranges = list(ranges)
        self.batch_size = batch_size

    @property
    def num_images(self) -> int:
        """Images of all ranges."""
        return sum(stop - start for _, start, stop in self.ranges)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Nothing: a build has no epochs."""

    def __len__(self) -> int:
        return sum(math.ceil((stop - start) / self.batch_size) for _, start, stop in self.ranges)

    def __iter__(self) -> Iterator[list[Index]]:
        for view, start, stop in self.ranges:
            for first in range(start, stop, self.batch_size):
                yield [(row, view) for row in range(first, min(first + self.batch_size, stop))]
