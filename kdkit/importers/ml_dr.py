"""Caches of apple/ml-dr, in which ImageNet+ is published (Faghri et al. 2023, arXiv 2303.08983).

A folder or tar of INDEX.pth.tar, one for each image in the order of torchvision's ImageFolder, and config.pth.tar. A
file holds the likeliest classes of each view and the parameters of its augmentation, either as a list in the order of
ml-dr's transforms ("compress") or as a dict by their names. Dimensions: V views, K entries of a label.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.cache.codecs import Codec
from kdkit.data import create_source
from kdkit.errors import DatasetError
from kdkit.importers._foreign import (
    MAX_CLASSES,
    ForeignViews,
    check_labels,
    name_some,
    torchvision_order,
    whole_numbers,
)
from kdkit.importers._members import Members
from kdkit.importers._ml_dr_params import Augmentation
from kdkit.importers._plain import read_plain
from kdkit.importers._write import ImportReport, write_import
from kdkit.recipe import ViewRecipe

_SUFFIX = ".pth.tar"
_CONFIG = f"config{_SUFFIX}"
_NUMBERED = re.compile(r"(0|[1-9][0-9]{0,11})\.pth\.tar")
_IMAGENET_CLASSES = 1000
_MAX_VIEWS = 100_000


class MlDrCache:
    """A ForeignCache of ml-dr's files.

    Args:
        source: the folder or uncompressed tar of INDEX.pth.tar and config.pth.tar.
        keys: of the dataset's images, CLASS/FILE.

    Raises:
        DatasetError: files are missing, left over or misnumbered, or the configuration holds an unknown transform.
    """

    def __init__(self, source: str | Path, keys: Sequence[str]) -> None:
        self.name = f"ml-dr:{Path(source).name}"
        self.sorts_classes, self.class_names, self.holds_logits = True, None, False
        self._members = Members(source, _SUFFIX)
        self._keys = keys
        self._rows = np.array(torchvision_order(keys), dtype=np.uint32)  # dataset row of each of ml-dr's indices
        self._index = {row: index for index, row in enumerate(self._rows.tolist())}
        self._names = self._find_names()
        config = self._read_config()
        origin, reinforce = f"{self.name}: its configuration", config["reinforce"]
        try:
            self._augmentation = Augmentation.from_config(
                reinforce["image_augmentation"], reinforce.get("compress", False)
            )
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{origin} holds an option of a transform that is not known: {error}") from error
        classes = config.get("num_classes", _IMAGENET_CLASSES)
        self.num_classes = int(whole_numbers(classes, f"{origin}, num_classes", 2, MAX_CLASSES))
        self.num_views = int(whole_numbers(reinforce["num_samples"], f"{origin}, num_samples", 1, _MAX_VIEWS))
        self.num_entries: int | None = len(self._read_views(0)[0]["prob"][0])
        self.recipe = ViewRecipe(
            size=self._augmentation.size,
            interpolation="bilinear",
            recorded=str(self._augmentation.steps),
            num_views=self.num_views,
        )

    def read(self, row: int) -> ForeignViews:
        """The views of dataset row `row`; a partner is named by its dataset row."""
        views, origin = self._read_views(row), self._describe(row)
        try:
            probs = np.array([view["prob"][0] for view in views])
            ids = whole_numbers([view["prob"][1] for view in views], f"{origin}: classes")
            records = self._augmentation.records([view["params"] for view in views])
        except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{origin} does not fit its configuration: {error}") from error
        if ids.shape != (self.num_views, self.num_entries) or probs.shape != ids.shape:
            expected = [self.num_views, self.num_entries]
            raise DatasetError(f"{origin} has labels {list(probs.shape)} of classes {list(ids.shape)}, not {expected}")
        if probs.dtype.kind not in "fiu":
            raise DatasetError(f"{origin} has probabilities that are {probs.dtype}, expected numbers")
        check_labels(ids, probs, self.num_classes, origin)
        self._name_partners(records, origin)
        return ForeignViews(probs.astype(np.float32), ids, records)

    def _name_partners(self, records: Any, origin: str) -> None:
        """Map indices of ml-dr to dataset rows."""
        if not self._augmentation.steps.mixing:
            return
        mixed = self._augmentation.is_mixed(records)
        partners = records["row"][mixed]
        if len(partners) and partners.max() >= len(self._keys):
            raise DatasetError(f"{origin} is mixed with image {partners.max()}, the data has {len(self._keys)} images")
        records["row"][mixed] = self._rows[partners]

    def _find_names(self) -> dict[int, str]:
        """Index -> member name; exactly one for each image."""
        folders = {name.rpartition("/")[0] for name in self._members.names}
        if len(folders) > 1:
            raise DatasetError(f"{self.name} has files in several folders ({name_some(sorted(folders))}): name one")
        found = {}
        for name in self._members.names:
            base = name.rpartition("/")[2]
            if base == _CONFIG:
                continue
            numbered = _NUMBERED.fullmatch(base)
            if numbered is None:
                raise DatasetError(f"{self._members.describe(name)} is not called INDEX{_SUFFIX}: remove or rename it")
            found[int(numbered[1])] = name
        if missing := [key for row, key in enumerate(self._keys) if self._index[row] not in found]:
            raise DatasetError(
                f"{self.name} lacks {len(missing)} of {len(self._keys)} images ({name_some(missing)}): "
                "use the images that it was made from, all of them"
            )
        if left := [name for index, name in sorted(found.items()) if index >= len(self._keys)]:
            raise DatasetError(
                f"{self.name} has {len(left)} files for which there is no image ({name_some(left)}): "
                f"the data has {len(self._keys)} images, use those that it was made from"
            )
        return found

    def _read_config(self) -> dict[str, Any]:
        name = next((name for name in self._members.names if name.rpartition("/")[2] == _CONFIG), None)
        if name is None:
            raise DatasetError(f"{self.name} has no {_CONFIG}, which says how its views were augmented")
        config: Any = read_plain(self._members.read(name), self._members.describe(name))
        reinforce = config.get("reinforce") if isinstance(config, dict) else None
        if not isinstance(reinforce, dict) or not _holds(reinforce, ("image_augmentation", "num_samples")):
            raise DatasetError(f"{self._members.describe(name)} lacks reinforce.image_augmentation or .num_samples")
        if reinforce.get("joblib"):
            raise DatasetError(f"{self.name} was written with joblib, which is a pickle of its own kind: not imported")
        found: dict[str, Any] = config
        return found

    def _read_views(self, row: int) -> list[dict[str, Any]]:
        """The views in the file of a row, known to be as many as there should be, and of that row."""
        name = self._names[self._index[row]]
        found, origin = read_plain(self._members.read(name), self._members.describe(name)), self._describe(row)
        if not (isinstance(found, (tuple, list)) and len(found) == 2 and isinstance(found[1], list)):
            raise DatasetError(f"{origin} is not a file of ml-dr: expected (index, views)")
        if found[0] != self._index[row]:
            raise DatasetError(f"{origin} is misnumbered: its index is {str(found[0])[:20]}")
        views = found[1]
        if len(views) != self.num_views:
            raise DatasetError(f"{origin} has {len(views)} views, its configuration {self.num_views}")
        for view in views:
            if not isinstance(view, dict) or not _holds(view, ("params", "prob")) or not _is_sparse(view["prob"]):
                raise DatasetError(f"{origin} has a view without params and (probabilities, classes)")
        return views

    def _describe(self, row: int) -> str:
        return f"{self._members.describe(self._names[self._index[row]])} (image {self._keys[row]!r})"


def _holds(values: dict[str, Any], names: Collection[str]) -> bool:
    return all(name in values for name in names)


def _is_sparse(prob: Any) -> bool:
    return isinstance(prob, (tuple, list)) and len(prob) == 2 and all(isinstance(part, list) for part in prob)


def import_mldr(
    source: str | Path,
    data: Any,
    path: str | Path,
    *,
    codec: Codec | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> ImportReport:
    """Imports a cache of apple/ml-dr, such as ImageNet+, into a kdkit cache with recorded views.

    Args:
        source: folder, or uncompressed tar, of INDEX.pth.tar files and config.pth.tar.
        data: the images that it was made from, all of them: a name or path, or a source (see
            `kdkit.data.create_source`).
        path: the cache to write; an import that was stopped resumes.
        codec: of the labels: a name or a codec; by default topk with as many classes as the files hold.
        num_workers: processes that read; 0 reads in this one.
        show_progress: whether progress is shown on standard error.

    Returns:
        What was imported.

    Raises:
        DatasetError: an image is missing, left over or misnumbered, or a file is damaged or no plain data; names it.
        CacheError: the cache cannot be written.
    """
    images = create_source(data)
    foreign = MlDrCache(source, images.keys)
    return write_import(foreign, images, path, codec=codec, num_workers=num_workers, show_progress=show_progress)
