"""Caches of szq0214/FKD (Shen & Xing 2022, arXiv 2112.01528): crops, flips and quantised labels of each image.

A folder or tar of .../CLASS/STEM.tar, each a file of torch.save with [coords, flips, labels]. Dimensions: V views, K
entries of a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdkit.cache.codecs import Codec
from kdkit.data import create_source
from kdkit.data.views.record import RecordedSteps
from kdkit.errors import ConfigError, DatasetError
from kdkit.importers._foreign import MAX_CLASSES, ForeignViews, check_labels, name_some, whole_numbers
from kdkit.importers._members import Members
from kdkit.importers._plain import PlainArray, read_plain
from kdkit.importers._write import ImportReport, write_import
from kdkit.recipe import ViewRecipe

Array = np.ndarray[Any, Any]
LABEL_TYPES = ("hard", "smoothing", "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm")
"""FKD's kinds of labels. All but the last are told by their shape."""
_END = 1 + 2e-3  # of a crop, as a fraction of the side: half precision rounds
_STEPS = RecordedSteps(crop="fractions")


class FkdCache:
    """A ForeignCache of FKD's files.

    Args:
        source: the folder or uncompressed tar of CLASS/STEM.tar.
        keys: of the dataset's images, CLASS/STEM.JPEG or the like.
        size: side of the views that students see, pixels.
        num_classes: classes C of the labels.
        label_type: one of LABEL_TYPES; None takes what the shape tells.

    Raises:
        DatasetError: files are missing, left over or ambiguous.
        ConfigError: there is no such type of labels.
    """

    def __init__(
        self, source: str | Path, keys: Sequence[str], *, size: int, num_classes: int, label_type: str | None = None
    ) -> None:
        if label_type not in (None, *LABEL_TYPES):
            raise ConfigError(f"label_type must be one of {', '.join(LABEL_TYPES)}, got {label_type!r}")
        self.name = f"fkd:{Path(source).name}"
        self.sorts_classes, self.class_names, self.holds_logits = True, None, False
        self.num_classes = int(whole_numbers(num_classes, "num_classes", 2, MAX_CLASSES))
        self._members = Members(source, ".tar")
        self._keys = keys
        self._label_type = label_type
        self._names = self._find_names()
        _, ids, _, _ = self._read_file(0)
        self.num_views, self.num_entries = ids.shape
        self.recipe = ViewRecipe(size=size, interpolation="bilinear", recorded=str(_STEPS), num_views=self.num_views)

    def read(self, row: int) -> ForeignViews:
        """The views of dataset row `row`."""
        values, ids, coords, flips = self._read_file(row)
        origin = self._describe(row)
        if ids.shape != (self.num_views, self.num_entries):
            expected = [self.num_views, self.num_entries]
            raise DatasetError(f"{origin} has labels {list(ids.shape)}, the first file {expected}: keep one kind")
        check_labels(ids, values, self.num_classes, origin)
        if self._label_type == "marginal_renorm":
            values = values / values.sum(axis=1, keepdims=True).clip(1e-12)
        records = np.zeros(len(ids), _STEPS.dtype)
        records["own"]["crop"], records["own"]["flip"] = coords, flips
        return ForeignViews(values, ids, records)

    def _find_names(self) -> list[str]:
        """The member of each image, by class folder and stem."""
        by_end: dict[str, list[str]] = {}
        for name in self._members.names:
            by_end.setdefault("/".join(name.split("/")[-2:]), []).append(name)
        ends = [_member_end(key) for key in self._keys]
        if twice := [end for end, names in by_end.items() if len(names) > 1]:
            raise DatasetError(f"{self.name} has several files {name_some(twice)}: name the folder of one of them")
        if len(set(ends)) < len(ends):
            counts = Counter(ends)
            shared = [key for key, end in zip(self._keys, ends, strict=True) if counts[end] > 1]
            raise DatasetError(f"images {name_some(shared)} would have one file: FKD's names end at the first dot")
        if missing := [key for key, end in zip(self._keys, ends, strict=True) if end not in by_end]:
            raise DatasetError(
                f"{self.name} lacks {len(missing)} of {len(self._keys)} images ({name_some(missing)}): "
                "use the images that it was made from"
            )
        if left := sorted(by_end.keys() - set(ends)):
            raise DatasetError(
                f"{self.name} has {len(left)} files for which there is no image ({name_some(left)}): "
                "use all the images that it was made from"
            )
        return [by_end[end][0] for end in ends]

    def _read_file(self, row: int) -> tuple[Array, Array, Array, Array]:
        """Probabilities float32 [V, K], classes int64 [V, K], crops float32 [V, 4] and flips bool [V]."""
        name, origin = self._names[row], self._describe(row)
        found = read_plain(self._members.read(name), self._members.describe(name))
        if not (isinstance(found, (list, tuple)) and [type(part) for part in found] == [PlainArray] * 3):
            raise DatasetError(f"{origin} is not a file of FKD: expected [coords, flips, labels], three arrays")
        coords, flips, labels = (part.values for part in found)
        num_views = len(coords) if coords.ndim else 0
        if coords.shape != (num_views, 4) or flips.shape != (num_views,) or labels.shape[:1] != (num_views,):
            shapes = ", ".join(str(list(part.shape)) for part in (coords, flips, labels))
            raise DatasetError(f"{origin} has arrays {shapes}, expected coords [V, 4], flips [V] and labels [V, ...]")
        if num_views == 0 or not np.isfinite(coords).all():
            raise DatasetError(f"{origin} has no views, or coords that are not numbers")
        ends = coords[:, :2] + coords[:, 2:]
        if coords.dtype.kind != "f" or (coords[:, :2] < 0).any() or (coords[:, 2:] <= 0).any() or (ends > _END).any():
            raise DatasetError(f"{origin} has coords that are not (top, left, height, width), fractions of its sides")
        flips = whole_numbers(flips, f"{origin}: flips", 0, 1)
        return (*_entries(labels, self._label_type, origin), coords.astype(np.float32), flips.astype(bool))

    def _describe(self, row: int) -> str:
        return f"{self._members.describe(self._names[row])} (image {self._keys[row]!r})"


def _member_end(key: str) -> str:
    """CLASS/STEM.tar of a key: FKD cuts the name at its first dot, and leaves out folders above the last."""
    *folders, name = key.split("/")
    return "/".join([*folders[-1:], f"{name.split('.')[0]}.tar"])


def _entries(labels: Array, label_type: str | None, origin: str) -> tuple[Array, Array]:
    """Probabilities float32 [V, K] and classes int64 [V, K] of FKD's labels of any type."""
    shapes = {"hard": "[V]", "smoothing": "[V, 2]", "marginal_smoothing_k5": "[V, 2, 5]"}
    shapes |= {"marginal_smoothing_k10": "[V, 2, 10]", "marginal_renorm": "[V, 2, K]"}
    entries = {"smoothing": 1, "marginal_smoothing_k5": 5, "marginal_smoothing_k10": 10}.get(label_type or "")
    if labels.ndim == 1 and label_type in (None, "hard"):
        return np.ones((len(labels), 1), np.float32), whole_numbers(labels, f"{origin}: classes")[:, None]
    if labels.ndim == 2 and label_type in (None, "smoothing"):
        labels = labels[:, :, None]
    fits = labels.ndim == 3 and labels.shape[1] == 2 and label_type != "hard"
    if not fits or entries not in (None, labels.shape[2]):
        expected = "one of " + ", ".join(shapes.values()) if label_type is None else shapes[label_type]
        raise DatasetError(f"{origin} has labels {list(labels.shape)}, expected {expected}")
    return labels[:, 1].astype(np.float32), whole_numbers(labels[:, 0], f"{origin}: classes")


def import_fkd(
    source: str | Path,
    data: Any,
    path: str | Path,
    *,
    size: int = 224,
    num_classes: int = 1000,
    label_type: str | None = None,
    codec: Codec | str | None = None,
    num_workers: int = 0,
    show_progress: bool = False,
) -> ImportReport:
    """Imports a cache of FKD into a kdkit cache with recorded views.

    Args:
        source: folder, or uncompressed tar, of CLASS/STEM.tar files.
        data: the images that it was made from, all of them: a name or path, or a source (see
            `kdkit.data.create_source`).
        path: the cache to write; an import that was stopped resumes.
        size: side of the views that students see, pixels; FKD's crops have none of their own.
        num_classes: classes of the labels.
        label_type: marginal_renorm renormalises the labels to sum 1, and has to be given, since the files do not tell;
            None: inferred from the labels' shape.
        codec: of the labels: a name or a codec; by default topk with as many classes as the files hold.
        num_workers: processes that read; 0 reads in this one.
        show_progress: whether progress is shown on standard error.

    Returns:
        What was imported.

    Raises:
        DatasetError: an image is missing or left over, or a file is damaged or no plain data; names it.
        CacheError: the cache cannot be written.
    """
    images = create_source(data)
    foreign = FkdCache(source, images.keys, size=size, num_classes=num_classes, label_type=label_type)
    return write_import(foreign, images, path, codec=codec, num_workers=num_workers, show_progress=show_progress)
