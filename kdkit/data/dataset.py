"""ReplayedDataset: a source seen through a recipe, indexed by (row, view)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from kdkit.config import ReplayRecipe
from kdkit.data.replay import seeded, view_seed
from kdkit.data.source import ImageSource
from kdkit.data.transform import create_view_transform
from kdkit.errors import DatasetError


class Sample(NamedTuple):
    """One view of one sample, as a loader's worker returns it."""

    image: Tensor
    """Pixels, uint8 [3, H, W]."""
    target: int
    """Class index."""
    row: int
    """Index of the sample in the dataset."""
    view: int
    """Number of the view."""


class ReplayedDataset(Dataset[Sample]):
    """View v of sample i depends on the recipe, the sample's key and v alone.

    Args:
        source: where the images come from.
        recipe: what the views look like.

    Raises:
        DatasetError: the source is empty, or two samples have one key.
    """

    def __init__(self, source: ImageSource, recipe: ReplayRecipe) -> None:
        if len(source) == 0:
            raise DatasetError("the dataset holds no samples")
        if len(set(source.keys)) != len(source.keys):
            raise DatasetError(f"two samples have the key {_first_repeated(source.keys)!r}: keys must be unique")
        self.source = source
        self.recipe = recipe
        self.keys: Sequence[str] = source.keys
        self.class_names: Sequence[str] | None = source.class_names
        self._transform = create_view_transform(recipe)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        """The sample at `index` = (row, view)."""
        row, view = index
        if not 0 <= view < self.recipe.num_views:
            raise DatasetError(f"view {view} was asked for, but the recipe has views 0 to {self.recipe.num_views - 1}")
        image, target = self.source[row]
        with seeded(view_seed(self.recipe.seed, self.keys[row], view)):
            return Sample(self._transform(image), target, row, view)


def _first_repeated(keys: Sequence[str]) -> str:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no key is repeated")
