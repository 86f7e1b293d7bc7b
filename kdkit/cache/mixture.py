"""CacheMixture: several caches, and a live teacher, as one teacher: their probabilities averaged.

Dimensions: B batch, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.matching import Replayable
from kdkit.cache.parts import (
    LiveTeacher,
    Part,
    check_same_classes,
    check_same_records,
    fingerprint_of,
    has_logits,
    identity_of,
    name_part,
    shares_of,
    temperatures_of,
)
from kdkit.cache.reader import CachedTeacher
from kdkit.cache.types import Array
from kdkit.errors import CacheStreamError, ConfigError
from kdkit.losses import mean_teacher
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, Normalization, TeacherMember, TeacherOutput


class CacheMixture:
    """A CacheReader over several caches, whose logits are the log-probabilities log sum_i w_i softmax(log p_i / T_i).

    With temperatures 1 that is the output of a TeacherEnsemble of the caches' teachers. A cache without logits, or of
    weight 0, gives only its features. A stream of features keeps its name if only one cache has it; if several
    do, the name begins with the cache's index, from 0: "0:pooled", "1:pooled".

    Args:
        caches: at least one, each made from the same samples and views; matched with the dataset one by one.
        weights: one number >= 0 per cache, and at last one for the live teacher, scaled to sum 1; equal when None.
        temperatures: T_i from 1e-6 to 1e6, likewise, by which its log-probabilities are divided and then renormalised;
            1 when None.
        streams: the outputs to read; None: all.
        live: a teacher that runs on each batch and is mixed as a further cache would be; its features are left out. It
            takes images in its `input_normalization`: `for_input` gives it the student's, as `kdkit.train` does.

    Raises:
        ClassMismatchError: the caches differ in the number or the order of their classes.
        CacheStreamError: no cache holds one of the streams, or several do.
        ConfigError: there is no cache, or weights or temperatures do not fit.
    """

    is_multi_label = False  # multi-label caches are refused

    def __init__(
        self,
        caches: Sequence[CachedTeacher],
        weights: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        *,
        streams: Collection[str] | None = None,
        live: LiveTeacher | None = None,
    ) -> None:
        if not caches:
            raise ConfigError("open_cache was given an empty list: expected at least one cache")
        self.caches = tuple(caches)
        self.live = live
        self.weights = shares_of(self._parts, weights)
        self.temperatures = temperatures_of(self._parts, temperatures)
        check_same_classes(self._parts)
        self._places = dict(self._place_streams())
        named = (streams,) if isinstance(streams, str) else streams
        self.streams = tuple(self._places) if named is None else tuple(named)

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The caches, and at last the live teacher."""
        return self.caches if self.live is None else (*self.caches, self.live)

    def for_input(self, normalization: Normalization) -> CacheMixture:
        """Returns a mix of the same parts, whose live teacher takes images in `normalization`, the student's."""
        if self.live is None:
            return self
        other = copy.copy(self)
        other.live = self.live.for_input(normalization)
        return other

    def _place_streams(self) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Each stream with its places: the number of a part, and the stream's name in it."""
        if with_logits := [(number, LOGITS) for number, share in enumerate(self.weights) if share > 0]:
            yield LOGITS, with_logits
        names = [name for cache in self.caches for name in cache.codecs if name != LOGITS]
        for number, cache in enumerate(self.caches):
            for name in (name for name in cache.codecs if name != LOGITS):
                yield f"{number}:{name}" if names.count(name) > 1 else name, [(number, name)]

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams returned per batch; may be narrowed to a subset."""
        return self._streams

    @streams.setter
    def streams(self, names: Sequence[str]) -> None:
        for name in names:
            self.check_exists(name)
        self._streams = tuple(names)
        places = [place for name in names for place in self._places[name]]
        for number, cache in enumerate(self.caches):
            cache.streams = tuple(stream for of, stream in places if of == number)

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The averaged logits and the features on the batch's rows in its view, on the device of its input.

        The live teacher runs on the batch's images, unless its weight is 0 or no logits are wanted.

        Raises:
            CacheMismatchError: the caches were not matched with a dataset, or the batch has no rows or view.
        """
        outputs = [cache(batch) if cache.streams else TeacherOutput() for cache in self.caches]
        if self.live is not None:
            is_needed = LOGITS in self.streams and self.weights[-1] > 0
            outputs.append(self.live(batch) if is_needed else TeacherOutput())
        features = {
            name: outputs[number].features[stream]
            for name in self.streams
            if name != LOGITS
            for number, stream in self._places[name]
        }
        parts = enumerate(zip(outputs, self.temperatures, self.weights, strict=True))
        members = tuple(
            TeacherMember(str(number), output.logits / temperature, share)
            for number, (output, temperature, share) in parts
            if output.logits is not None
        )
        if not members:
            return TeacherOutput(features=features)
        with torch.autocast(batch.input.device.type, enabled=False):  # a loop may call this within its own
            logits = mean_teacher([member.logits for member in members], [member.weight for member in members])
        return TeacherOutput(logits, features, is_normalized=True, members=members)

    def match(self, dataset: Replayable, *, allow_mismatch: Collection[str] = ()) -> None:
        """Compares each cache with `dataset`, whose rows are those of every batch from then on.

        Raises:
            CacheMismatchError: recipe, samples, class names or pixels of a cache differ; names the cache.
        """
        for cache in self.caches:
            cache.match(dataset, allow_mismatch=allow_mismatch)
        check_same_records(self.caches, len(dataset.keys), self.recipe.num_views)

    def match_keys(self, keys: Sequence[str]) -> Array:
        """The row of each sample in the cache that `read_records` reads, int64 [N].

        Raises:
            CacheMismatchError: it does not hold a sample.
        """
        return self.caches[0].match_keys(keys)

    def read_records(self, rows: Array | Tensor, view: int) -> Tensor:
        """Recorded parameters of views, uint8 [B, bytes]: those of the first cache; `match` compares the others'.

        Raises:
            CacheStreamError: it holds no recorded views.
        """
        return self.caches[0].read_records(rows, view)

    @property
    def num_classes(self) -> int:
        """Classes C of the logits; without logits, those of the dataset."""
        given = (part.num_classes for part in self._parts if has_logits(part))
        return next((count for count in given if count is not None), self.caches[0].num_classes)

    @property
    def num_rows(self) -> int:
        """Samples of the cache with the fewest."""
        return min(cache.num_rows for cache in self.caches)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes [C], in order; None if no part knows them."""
        return next((part.class_names for part in self._parts if part.class_names is not None), None)

    @property
    def names_classes(self) -> bool:
        """Whether the class names of every cache are those of its logits."""
        return all(cache.names_classes for cache in self.caches)

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec; of averaged logits, that of the first cache."""
        of_caches = {name: places[0] for name, places in self._places.items() if places[0][0] < len(self.caches)}
        return {name: self.caches[number].codecs[stream] for name, (number, stream) in of_caches.items()}

    @property
    def feature_widths(self) -> dict[str, int]:
        """Stream of features -> its width D."""
        placed = {name: places[0] for name, places in self._places.items() if name != LOGITS}
        return {name: self.caches[number].feature_widths[stream] for name, (number, stream) in placed.items()}

    @property
    def recipe(self) -> ViewRecipe:
        """What the views look like, by the cache with the fewest views, since a run can use no more."""
        return min((cache.recipe for cache in self.caches), key=lambda recipe: recipe.num_views)

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The fingerprints of the parts' teachers, as `members`, with their shares."""
        members = [dict(fingerprint_of(part)) for part in self._parts]
        return {"name": self._describe(), "members": members, "member_weights": list(self.weights)}

    @property
    def identity(self) -> str:
        """The identity of each part with its share and its temperature; of the live teacher, that of its weights."""
        parts = zip(self.weights, map(identity_of, self._parts), self.temperatures, strict=True)
        return " + ".join(f"{share:.9g} {identity} T={temperature:.9g}" for share, identity, temperature in parts)

    @property
    def absent_keys(self) -> Sequence[str]:
        """Keys of the samples that one of the caches has no rows for."""
        return list(dict.fromkeys(key for cache in self.caches for key in cache.absent_keys))

    def check_exists(self, stream: str) -> None:
        """Raises CacheStreamError if no cache holds the stream, or several do; names them."""
        if stream in self._places:
            return
        if holders := [number for number, of in enumerate(self.caches) if stream in of.codecs and stream != LOGITS]:
            names = " and ".join(name_part(self.caches[number]) for number in holders)
            ways = " or ".join(repr(f"{number}:{stream}") for number in holders)
            raise CacheStreamError(f"the stream {stream!r} is in {names}: name one of them, {ways}")
        shown = ", ".join(map(name_part, self._parts))
        raise CacheStreamError(f"no stream {stream!r} in {shown}: they hold {', '.join(self._places)}")

    def _describe(self) -> str:
        """The teachers with their shares and temperatures, in a line."""
        names = [part.teacher["name"] if isinstance(part, CachedTeacher) else part.name for part in self._parts]
        return " + ".join(
            f"{share:.3g} {name}" + (f" at T={temperature:g}" if temperature != 1 else "")
            for share, name, temperature in zip(self.weights, names, self.temperatures, strict=True)
        )

    def __repr__(self) -> str:
        return f"CacheMixture({', '.join(map(name_part, self._parts))}: {self._describe()})"
