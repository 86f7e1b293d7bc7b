"""Recorded views: each (row, view) is rendered as its record says, and nothing is drawn.

Mixup and cutmix come last, after the steps of each of the two images (recorded_renderer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from kdkit.data.views.mixing import Mix
from kdkit.data.views.record import NO_PARTNER, RecordedSteps
from kdkit.data.views.recorded_renderer import RecordedRenderer
from kdkit.errors import ConfigError, DatasetError
from kdkit.recipe import ViewRecipe

Array = np.ndarray[Any, Any]


@runtime_checkable
class RecordStore(Protocol):
    """What holds the records of views: an open cache is one."""

    def match_keys(self, keys: Sequence[str]) -> Array:
        """Cache row of each of a dataset's samples, int64 [N]."""
        ...

    def read_records(self, rows: Array, view: int) -> Tensor:
        """Records uint8 [B, bytes] of cache rows int64 [B] in one view."""
        ...


class Recorded(NamedTuple):
    """What the record of one view says."""

    own: Any
    """Steps of its own image."""
    partner_row: int | None = None
    """Dataset row of the image that it is mixed with, None if it is not mixed."""
    partner: Any = None
    """Steps of the partner's image."""
    share: float = 1.0
    """Mixup: share of its own pixels."""
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Cutmix: top, left, bottom, right of what is the partner's."""


class Rendered(NamedTuple):
    """One view with its labels."""

    images: list[Tensor]
    """Pixels uint8 [3, H, W] at each size."""
    target: int
    """Class index of its own image, -1 without a label."""
    partner_target: int | None = None
    """Class index of the partner's image, its own if it is not mixed; None if the recipe does not mix."""
    share: float = 1.0
    """Share of its own label."""


class RecordedViews:
    """The records of a dataset's views, read from a cache as they are needed. Pickles as its store does.

    Args:
        recipe: names the recorded steps, and the size.
        store: the cache.
        keys: of the dataset's samples.

    Raises:
        CacheMismatchError: the cache holds other samples.
    """

    def __init__(self, recipe: ViewRecipe, store: RecordStore, keys: Sequence[str]) -> None:
        assert recipe.recorded is not None
        self.steps = RecordedSteps.parse(recipe.recorded)
        self._dtype = self.steps.dtype
        self._size = recipe.size
        self._store = store
        self._cache_rows = store.match_keys(keys)
        numbered = zip(self._cache_rows.tolist(), range(len(keys)), strict=True)
        self._rows = dict(numbered) if self.steps.mixing else {}

    @property
    def row_bytes(self) -> int:
        """Bytes of a record."""
        return self._dtype.itemsize

    def payload(self, rows: Array, view: int) -> Tensor:
        """Records uint8 [B, row_bytes] of dataset rows int64 [B], as a cache of these very samples stores them.

        Raises:
            DatasetError: a partner is not in the dataset.
        """
        payload = self._store.read_records(self._cache_rows[rows], view).clone()
        if self.steps.mixing:
            records = payload.numpy().view(self._dtype)[:, 0]
            for record, row in zip(records, rows.tolist(), strict=True):
                if record["row"] != NO_PARTNER:
                    record["row"] = self._partner_of(record, row, view)
        return payload

    def read(self, row: int, view: int) -> Recorded:
        """The record of dataset row `row`.

        Raises:
            DatasetError: it has another length than the recipe's, or its partner is not in the dataset.
        """
        payload = self._store.read_records(self._cache_rows[row : row + 1], view).numpy()
        if payload.shape[1] != self._dtype.itemsize:
            raise DatasetError(
                f"a record has {payload.shape[1]} bytes, expected {self._dtype.itemsize} for {str(self.steps)!r}: "
                "take the recipe of the cache"
            )
        record = payload.view(self._dtype)[0, 0]
        if not self.steps.mixing or record["row"] == NO_PARTNER:
            return Recorded(record["own"])
        partner = self._partner_of(record, row, view)
        share, box = float(record["share"]), record["box"].tolist()
        top, left, bottom, right = box
        if not (0 <= share <= 1 and top <= bottom <= self._size and left <= right <= self._size):
            raise DatasetError(
                f"view {view} of row {row} is mixed with share {share:g} and box {box}: expected a share from 0 to "
                f"1 and a box (top, left, bottom, right) inside the view of {self._size} pixels; the cache is damaged"
            )
        return Recorded(record["own"], partner, record["partner"], share, (top, left, bottom, right))

    def _partner_of(self, record: Any, row: int, view: int) -> int:
        """Dataset row of the partner that the record of dataset row `row` names."""
        partner: int | None = self._rows.get(int(record["row"]))
        if partner is None:
            raise DatasetError(
                f"view {view} of row {row} is mixed with row {record['row']} of the cache, which the dataset lacks: "
                "use all images of the cache"
            )
        return partner

    def render(
        self,
        row: int,
        view: int,
        load: Callable[[int], tuple[Image.Image, int]],
        renderers: Sequence[RecordedRenderer],
    ) -> Rendered:
        """One view as each renderer shows it.

        Args:
            row: of the dataset.
            view: number of the view.
            load: gives image and target of a row.
            renderers: of the sizes that are shown.

        Raises:
            DatasetError: the record fits neither the recipe nor the image.
        """
        recorded = self.read(row, view)
        image, target = load(row)
        images = [render(image, recorded.own) for render in renderers]
        if not self.steps.mixing:
            return Rendered(images, target)
        if recorded.partner_row is None:
            return Rendered(images, target, target)
        partner, partner_target = load(recorded.partner_row)
        others = [render(partner, recorded.partner) for render in renderers]
        mixed = [mix_recorded(recorded, *pair) for pair in zip(images, others, strict=True)]
        return Rendered([pixels for pixels, _ in mixed], target, partner_target, mixed[0][1])


def open_records(recipe: ViewRecipe, records: RecordStore | None, keys: Sequence[str]) -> RecordedViews | None:
    """The records of the views, where the recipe says that they are recorded; else None.

    Raises:
        ConfigError: they are, and no cache is given that holds them.
        CacheMismatchError: the cache holds other samples.
    """
    if recipe.recorded is None:
        return None
    if records is None:
        raise ConfigError(
            f"the views are recorded in a cache ({recipe.recorded}): open the data with it, "
            "kdkit.open_dataset(DATA, cache=CACHE); other views than those cannot be made"
        )
    return RecordedViews(recipe, records, keys)


def mix_recorded(recorded: Recorded, own: Tensor, partner: Tensor) -> tuple[Tensor, float]:
    """The mixed pixels uint8 [3, H, W], and the share of them that is its own: mixup first, then cutmix."""
    top, left, bottom, right = recorded.box
    mixed = Mix(recorded.share).pixels(own, partner)
    area = max(0, bottom - top) * max(0, right - left)
    if area:
        mixed = mixed.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return mixed, recorded.share * (1 - area / (own.shape[-2] * own.shape[-1]))
