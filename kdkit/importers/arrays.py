"""Anyone's logits or probabilities in a file of arrays. Dimensions: N images, V views, C classes, K entries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.cache.codecs import Codec
from kdkit.data import create_source
from kdkit.data.views.record import RecordedSteps
from kdkit.errors import ConfigError, DatasetError
from kdkit.importers._array_file import ONLY, Array, open_arrays
from kdkit.importers._classes import check_same_count
from kdkit.importers._foreign import (
    MAX_CLASSES,
    ForeignViews,
    check_labels,
    whole_numbers,
)
from kdkit.importers._keys import match_rows, order_of_rows, read_keys, read_texts
from kdkit.importers._write import ImportReport, write_import
from kdkit.recipe import ViewRecipe
from kdkit.teachers.class_map import composed

_STEPS = RecordedSteps(crop="crop")
_GUESSED_ROWS = 64
_SUM_TOLERANCE = 1e-2


class ArraysCache:
    """A ForeignCache of a file of arrays: see `import_arrays`.

    Args:
        source: .npy, .npz or .safetensors.
        keys: of the dataset's images.
        recipe: what the views look like; without use if the file has boxes, but for its size.
        num_classes: classes C, needed where the labels name their classes by `ids`.
        order: dataset row of each row of the file, if nothing names its rows; by default the same.
        keys_file: text file with the key of each row, one in a line; by default the file's `keys`.

    Raises:
        DatasetError: the arrays are of other shapes than expected, or images are missing or left over.
        ConfigError: the recipe has another number of views, or num_classes is missing.
    """

    def __init__(
        self,
        source: str | Path,
        keys: Sequence[str],
        recipe: ViewRecipe,
        *,
        order: Sequence[int] | None = None,
        num_classes: int | None = None,
        keys_file: str | Path | None = None,
    ) -> None:
        self.name = f"arrays:{Path(source).name}"
        arrays = open_arrays(source)
        self._is_probs, self._values = self._labels(arrays)
        self._ids = arrays.get("ids")
        self._rows = match_rows(keys, read_keys(arrays, keys_file), order, self.name)
        self._has_views_first = self._find_views_axis(len(self._rows))
        self.num_views = 1 if self._values.ndim == 2 else self._values.shape[0 if self._has_views_first else 1]
        entries = self._values.shape[-1]
        self.num_entries: int | None = None if self._ids is None else entries
        self.num_classes = entries if self._ids is None else num_classes or 0
        whole_numbers(self.num_classes, f"{self.name}: its number of classes", 0, MAX_CLASSES)
        self.sorts_classes, self.class_names = False, read_texts(arrays, "class_names")
        self._boxes, self._flips = arrays.get("boxes"), arrays.get("flips")
        self._check_views(len(self._rows))
        first = self._values[:_GUESSED_ROWS]
        are_shares = bool(((first >= 0) & (first <= 1)).all())  # of a .npy file, whose arrays have no name
        self.holds_logits = "logits" in arrays or (ONLY in arrays and not are_shares)
        self.recipe = self._choose_recipe(recipe)
        self._keys = keys

    def read(self, row: int) -> ForeignViews:
        """The views of dataset row `row`."""
        place, origin = self._rows[row], f"{self.name}, image {self._keys[row]!r}"
        with np.errstate(over="ignore"):  # infinity is refused below
            values = self._at(self._values, place).astype(np.float32)
        if not np.isfinite(values).all():
            raise DatasetError(f"{origin} has NaN or infinity: expected finite numbers")
        ids = None
        if self._ids is not None:
            ids = whole_numbers(self._at(self._ids, place), f"{origin}: ids")
            check_labels(ids, values, self.num_classes, origin)
        elif self._is_probs:
            if not _are_probabilities(values):
                raise DatasetError(f"{origin} has probabilities that do not sum to 1: are they logits?")
            values = np.log(values.clip(1e-13))
        return ForeignViews(values, ids, self._records(place))

    def _labels(self, arrays: Mapping[str, Array]) -> tuple[bool, Array]:
        """Whether the labels are probabilities, and the labels; of a .npy file its first rows tell."""
        if ONLY in arrays:
            return _are_probabilities(arrays[ONLY][:_GUESSED_ROWS].astype(np.float32)), arrays[ONLY]
        named = [name for name in ("logits", "log_probabilities", "probs") if name in arrays]
        if len(named) != 1 or ("ids" in arrays and named != ["probs"]):
            raise DatasetError(
                f"{self.name} holds {', '.join(arrays) or 'nothing'}: expected logits, log_probabilities or probs, or "
                "ids and probs"
            )
        return named == ["probs"], arrays[named[0]]

    def _find_views_axis(self, num_rows: int) -> bool:
        """Whether the labels are [V, N, C] rather than [N, V, C] or [N, C]."""
        shape = self._values.shape
        if len(shape) in (2, 3) and shape[0] == num_rows:
            return False
        if len(shape) == 3 and shape[1] == num_rows and self._ids is None:
            return True
        raise DatasetError(
            f"{self.name} has labels {list(shape)}, expected [{num_rows}, C], [{num_rows}, V, C] or [V, {num_rows}, C]"
            f" for the {num_rows} images of the data"
        )

    def _check_views(self, num_rows: int) -> None:
        """Checks the shapes of the arrays other than the labels."""
        if self._ids is not None and self.num_classes < 2:
            raise ConfigError(f"{self.name} names classes by ids: give num_classes, how many there are")
        if (self._boxes is None) != (self._flips is None):
            raise DatasetError(f"{self.name} has only boxes or only flips: expected both, or neither")
        if self._values.dtype.kind not in "iuf":
            raise DatasetError(f"{self.name} has labels of dtype {self._values.dtype}, expected numbers")
        expected = {"ids": (self._ids, self._values.shape)}
        expected |= {"boxes": (self._boxes, (num_rows, self.num_views, 4))}
        expected |= {"flips": (self._flips, (num_rows, self.num_views))}
        for name, (array, shape) in expected.items():
            if array is not None and array.dtype.kind not in "biuf":
                raise DatasetError(f"{self.name} has {name} of dtype {array.dtype}, expected numbers")
            if array is not None and array.shape != shape:
                raise DatasetError(f"{self.name} has {name} {list(array.shape)}, expected {list(shape)}")
        names = self.class_names
        if names is not None and not len(set(composed(names))) == len(names) == self.num_classes:
            raise DatasetError(
                f"{self.name} has {len(names)} class_names, {len(set(composed(names)))} of them different, expected "
                f"{self.num_classes}"
            )

    def _choose_recipe(self, recipe: ViewRecipe) -> ViewRecipe:
        if self._boxes is not None:
            return ViewRecipe(
                size=recipe.size, interpolation="bilinear", recorded=str(_STEPS), num_views=self.num_views
            )
        if recipe.num_views not in (ViewRecipe.num_views, self.num_views):
            raise ConfigError(
                f"{self.name} holds {self.num_views} views per image, the recipe has {recipe.num_views}: give arrays "
                "[V, N, C] of all views, or leave the number of views out"
            )
        if not recipe.augment and self.num_views != 1:
            raise ConfigError(
                f"{self.name} has {self.num_views} views, the evaluation recipe has one: say how they were drawn, e.g. "
                "by the recipe rrc and its seed, or give their boxes and flips"
            )
        return dataclasses.replace(recipe, num_views=self.num_views)

    def _records(self, place: int) -> Array | None:
        if self._boxes is None or self._flips is None:
            return None
        records, origin = np.zeros(self.num_views, _STEPS.dtype), f"{self.name}, row {place}"
        boxes = whole_numbers(self._boxes[place], f"{origin}: boxes in pixels", 0, (1 << 16) - 1)
        if not boxes[:, 2:].all():
            raise DatasetError(f"{origin} has a box of height or width 0: boxes are (top, left, height, width)")
        records["own"]["crop"] = boxes
        records["own"]["flip"] = whole_numbers(self._flips[place], f"{origin}: flips", 0, 1)
        return records

    def _at(self, array: Array, place: int) -> Array:
        """The views [V, ...] of one image."""
        found = array[:, place] if self._has_views_first else array[place]
        return np.asarray(found).reshape(self.num_views, -1)


def _are_probabilities(values: Array) -> bool:
    """Whether rows [..., C] are at least 0 and sum to 1."""
    sums = values.sum(axis=-1, dtype=np.float64)
    return bool((values >= 0).all() and (abs(sums - 1) < _SUM_TOLERANCE).all())


def import_arrays(
    source: str | Path,
    data: Any,
    path: str | Path,
    *,
    recipe: ViewRecipe | None = None,
    num_classes: int | None = None,
    keys_file: str | Path | None = None,
    codec: Codec | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> ImportReport:
    """Imports logits or probabilities from a file of arrays into a kdkit cache.

    A .npz or .safetensors file holds `logits`, `log_probabilities` (as `kdkit cache export` writes them) or `probs`,
    [N, C], [N, V, C] or [V, N, C], or `ids` and `probs` [N, V, K]; perhaps `keys` [N], paths below the data's folder;
    perhaps `class_names` [C], by which columns are found, which else are in the order of the data's classes; and
    perhaps `boxes` [N, V, 4] (top, left, height, width in pixels) with `flips` [N, V]. A .npy file holds logits or,
    where its rows sum to 1, probabilities.

    Args:
        source: the file.
        data: the images, all of which the file must name: a name or path, or a source (see
            `kdkit.data.create_source`). Its classes are those of the file.
        path: the cache to write; an import that was stopped resumes.
        recipe: what the views that the teacher saw look like; evaluation views of 224 pixels by default. Of recorded
            boxes only its size counts.
        num_classes: classes C, needed where the labels name their classes by `ids`.
        keys_file: text file with the key of each row, one in a line; by default the file's `keys`, else the images
            of folders and archives in the order of torchvision's ImageFolder (class folders, then files, each sorted
            as texts), and those of tables and datasets in their own.
        codec: of the labels: a name or a codec; by default float16, or topk for labels with `ids`.
        num_workers: processes that read; 0 reads in this one.
        show_progress: whether progress is shown on standard error.

    Returns:
        What was imported.

    Raises:
        DatasetError: arrays are of other shapes, an image is missing or left over, or values are not finite; names it.
        ConfigError: the recipe does not fit, or num_classes is missing.
        ClassMismatchError: the data has another number of classes, or one that `class_names` lacks.
        CacheError: the cache cannot be written.
    """
    recipe = recipe or ViewRecipe.evaluation(224)
    images = create_source(data)
    foreign = ArraysCache(
        source, images.keys, recipe, order=order_of_rows(images), num_classes=num_classes, keys_file=keys_file
    )
    if foreign.class_names is None:
        check_same_count(images.class_names, foreign.num_classes, foreign.name)
    return write_import(foreign, images, path, codec=codec, num_workers=num_workers, show_progress=show_progress)
