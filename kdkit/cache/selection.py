"""ClassSelection: a cache that answers for a part of its classes, their probabilities renormalised.

Dimensions: B batch, C chosen classes, K classes of the cache.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.cache.codecs import RowCodec
from kdkit.cache.matching import Replayable
from kdkit.cache.mixture import CacheMixture
from kdkit.cache.reader import CachedTeacher
from kdkit.errors import CacheMismatchError, ClassMismatchError, ConfigError, nearest
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, Normalization, TeacherOutput

ClassMap = Sequence[int] | Sequence[str]
"""For each chosen class the index, or the name, of the cache's class."""
_SHOWN = 5


class ClassSelection:
    """A CacheReader of some classes of a cache: their renormalised log-probabilities; features stay as they are.

    Args:
        cache: one cache or a mixture.
        class_names: names of the chosen classes [C], in the student's order. Without `class_map`, they are names of the
            cache's classes.
        class_map: for each chosen class the cache's class, if the two are named differently or the cache's have no
            names.

    Attributes:
        cache: the cache of all classes.
        class_index: the cache's class of each chosen class [C].

    Raises:
        ClassMismatchError: the cache has no such class.
        ConfigError: a class is chosen twice, fewer than two are chosen, or the cache is multi-label.
    """

    is_multi_label = False  # a multi-label cache is refused

    def __init__(
        self,
        cache: CachedTeacher | CacheMixture,
        class_names: Sequence[str] | None = None,
        class_map: ClassMap | None = None,
    ) -> None:
        if cache.is_multi_label:
            raise ConfigError(
                f"{_describe(cache)} is multi-label, whose classes do not share one distribution: use all of them"
            )
        self.cache = cache
        known = list(cache.class_names) if cache.class_names is not None and cache.names_classes else None
        chosen = class_names if class_map is None else class_map
        self.class_index = _index_classes(
            _listed("class_map" if class_map is not None else "class_names", chosen), cache
        )
        if class_names is None:
            self._names = None if known is None else [known[index] for index in self.class_index]
        else:
            self._names = [str(name) for name in _listed("class_names", class_names)]
            if len(self._names) != len(self.class_index):
                raise ConfigError(f"class_map has {len(self.class_index)} classes, class_names {len(self._names)}")
            _check_once("class_names", self._names)
        self._columns = torch.tensor(self.class_index)

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The cache's outputs, whose logits [B, C] are the log-probabilities of the chosen classes."""
        output = self.cache(batch)
        if output.logits is None:
            return output
        with torch.autocast(batch.input.device.type, enabled=False):  # a loop may call this within its own
            members = tuple(member._replace(logits=self._chosen(member.logits)) for member in output.members)
            chosen = self._chosen(output.logits)
            return TeacherOutput(chosen, output.features, is_normalized=True, members=members)

    def _chosen(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the chosen classes [B, C], from logits [B, K]."""
        return F.log_softmax(logits.index_select(1, self._columns.to(logits.device)), dim=1)

    def for_input(self, normalization: Normalization) -> ClassSelection:
        """Returns the same classes of a mix whose live teacher takes images in `normalization`; itself without one."""
        if isinstance(self.cache, CachedTeacher):
            return self
        other = copy.copy(self)
        other.cache = self.cache.for_input(normalization)
        return other

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Compares the cache with `dataset`, whose labels and class names are of the chosen classes.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels differ.
        """
        names = dataset.class_names
        if names is not None and self._names is not None and list(names) != self._names:
            raise CacheMismatchError(
                f"the classes of the data are {_shorten(names)}, the chosen classes of {_describe(self.cache)} are "
                f"{_shorten(self._names)}: open the data with open_dataset(DATA, cache=cache), which leaves others out"
            )
        if names is None and self._names is not None and not dataset.is_unlabelled:
            raise CacheMismatchError(
                f"the data does not name its classes, so those chosen of {_describe(self.cache)} cannot be told: open "
                "the data with open_dataset(DATA, cache=cache)"
            )
        seen = _AllClasses(dataset, self.cache.class_names)
        self.cache.match(seen, allow_mismatch=allow_mismatch)

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams returned per batch; may be narrowed to a subset."""
        return self.cache.streams

    @streams.setter
    def streams(self, names: Sequence[str]) -> None:
        self.cache.streams = tuple(names)

    @property
    def num_classes(self) -> int:
        """Number of chosen classes C."""
        return len(self.class_index)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the chosen classes [C], in order; None if neither the cache nor its user names them."""
        return self._names

    @property
    def names_classes(self) -> bool:
        """Always true: `class_names` are those of the logits."""
        return True

    @property
    def num_rows(self) -> int:
        """Samples of the cache."""
        return self.cache.num_rows

    @property
    def absent_keys(self) -> Sequence[str]:
        """Keys of the samples that the cache has no rows for, because they could not be read."""
        return self.cache.absent_keys

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec; that of the logits has all of the cache's classes."""
        return self.cache.codecs

    @property
    def feature_widths(self) -> dict[str, int]:
        """Stream of features -> its width D."""
        return self.cache.feature_widths

    @property
    def recipe(self) -> ViewRecipe:
        """Recipe of its views, with their number."""
        return self.cache.recipe

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Fingerprint of the teacher that the cache was made with."""
        return self.cache.teacher

    @property
    def identity(self) -> str:
        """The cache's identity and a SHA-256 of the chosen classes."""
        chosen = hashlib.sha256(repr(self.class_index).encode()).hexdigest()
        return f"{self.cache.identity} classes {chosen[:16]}"

    def check_exists(self, stream: str) -> None:
        """Raises CacheStreamError if the cache holds no such stream."""
        self.cache.check_exists(stream)

    def __repr__(self) -> str:
        return f"ClassSelection({self.num_classes} of {self.cache.num_classes} classes of {self.cache!r})"


class _AllClasses:
    """A dataset of chosen classes under the names of all classes, which is what a cache compares."""

    def __init__(self, dataset: Replayable, class_names: Sequence[str] | None) -> None:
        self._dataset = dataset
        self.keys: Sequence[str] = dataset.keys
        self.recipe: ViewRecipe = dataset.recipe
        self.class_names: Sequence[str] | None = class_names
        self.skips_unreadable = bool(getattr(dataset, "skips_unreadable", False))
        self.content: Any = getattr(dataset, "content", None)

    @property
    def is_unlabelled(self) -> bool:
        return self._dataset.is_unlabelled

    def __getitem__(self, index: tuple[int, int]) -> Any:
        return self._dataset[index]

    def for_teacher(self) -> _AllClasses:
        return _AllClasses(self._dataset.for_teacher(), self.class_names)


def _listed(name: str, values: Any) -> list[Any]:
    """The chosen classes as a list of at least two."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{name} must be a list of classes, got {values!r:.80}")
    if len(values) < 2:
        raise ConfigError(f"{name} must hold at least 2 classes, got {list(values)!r:.80}")
    return list(values)


def _index_classes(chosen: Sequence[Any], cache: CachedTeacher | CacheMixture) -> list[int]:
    """The cache's index of each chosen class, which is an index or a name."""
    if all(isinstance(one, int) and not isinstance(one, bool) for one in chosen):
        if odd := [index for index in chosen if not 0 <= index < cache.num_classes]:
            raise ClassMismatchError(f"{_describe(cache)} has classes 0 to {cache.num_classes - 1}, got {odd[0]}")
        _check_once("class_map", chosen)
        return list(chosen)
    if not all(isinstance(one, str) for one in chosen):
        raise ConfigError(f"classes must be all names or all indices, got {list(chosen)!r:.120}")
    names = cache.class_names if cache.names_classes else None
    if names is None:
        raise ClassMismatchError(f"{_describe(cache)} does not name its classes: choose them by index, class_map=[...]")
    places = {name: place for place, name in enumerate(names)}
    if absent := [name for name in chosen if name not in places]:
        raise ClassMismatchError(
            f"{_describe(cache)} has no class for {len(absent)} of the {len(chosen)} chosen classes: "
            f"{_shorten(absent)}{nearest(absent[0], names)}"
        )
    _check_once("class_names", chosen)
    return [places[name] for name in chosen]


def _check_once(name: str, chosen: Sequence[Any]) -> None:
    if len(set(chosen)) < len(chosen):
        twice = next(one for place, one in enumerate(chosen) if one in chosen[:place])
        raise ConfigError(f"{name} must have each class once, got {twice!r:.80} more than once")


def _describe(cache: CachedTeacher | CacheMixture) -> str:
    return f"the cache {str(cache.path)!r}" if isinstance(cache, CachedTeacher) else f"the mix {cache!r}"


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
