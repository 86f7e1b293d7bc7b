"""CacheMixture: several caches as one teacher, their probabilities averaged. Dimensions: B batch, C classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from kdkit.cache.codecs import RowCodec
from kdkit.cache.format.constants import LOGITS
from kdkit.cache.matching import Replayable
from kdkit.cache.reader import CachedTeacher
from kdkit.errors import CacheStreamError, ClassMismatchError, ConfigError
from kdkit.losses import mean_teacher
from kdkit.recipe import ViewRecipe
from kdkit.types import Batch, TeacherMember, TeacherOutput

_TEMPERATURES = 1e-6, 1e6  # log-probabilities in float32 stay finite when they are divided by these


class CacheMixture:
    """A CacheReader over several caches: logits = log sum_i w_i softmax(log p_i / T_i), and serve as logits.

    With temperatures 1 that is the output of a TeacherEnsemble of the caches' teachers. A cache without logits, or of
    weight 0, gives only its features. A stream of features keeps its name if only one cache has it; of several
    caches with a stream of one name, each has it under its number, counted from 0: "0:pooled", "1:pooled".

    Args:
        caches: at least one, each made from the same samples and views; matched with the dataset one by one.
        weights: one number >= 0 per cache, scaled to sum 1; equal when None.
        temperatures: T_i from 1e-6 to 1e6, one per cache, by which its log-probabilities are divided and then
            renormalised; 1 when None.
        streams: the outputs to read; None: all.

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
    ) -> None:
        if not caches:
            raise ConfigError("open_cache was given an empty list: expected at least one cache")
        self.caches = tuple(caches)
        self.weights = self._shares(weights)
        self.temperatures = _one_each("temperatures", temperatures, self.caches)
        if not all(_TEMPERATURES[0] <= temperature <= _TEMPERATURES[1] for temperature in self.temperatures):
            raise ConfigError(f"temperatures must be above 0, from 1e-6 to 1e6, got {list(self.temperatures)}")
        _check_same_classes(self.caches)
        self._places = dict(self._place_streams())
        named = (streams,) if isinstance(streams, str) else streams
        self.streams = tuple(self._places) if named is None else tuple(named)

    def _shares(self, weights: Sequence[float] | None) -> tuple[float, ...]:
        """The weights of the caches with logits, scaled to sum 1; 0 for the others. All 0 if no cache has logits."""
        given = _one_each("weights", weights, self.caches)
        with_logits = [LOGITS in cache.codecs for cache in self.caches]
        for cache, weight, has_logits in zip(self.caches, given, with_logits, strict=True):
            if weights is not None and weight > 0 and not has_logits:
                raise ConfigError(f"{_name(cache)} has no logits to average, but the weight {weight:g}: give it 0")
        shares = [weight * has_logits for weight, has_logits in zip(given, with_logits, strict=True)]
        if min(given) < 0 or (any(with_logits) and sum(shares) <= 0):
            raise ConfigError(f"weights must be 0 or more and not all 0, got {list(given)}")
        if not math.isfinite(sum(shares)):
            raise ConfigError(f"weights must have a finite sum, got {list(given)}: divide them by a common factor")
        return tuple(share / (sum(shares) or 1.0) for share in shares)

    def _place_streams(self) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Each stream with its places: the number of a cache, and the stream's name in it."""
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

        Raises:
            CacheMismatchError: the caches were not matched with a dataset, or the batch has no rows or view.
        """
        outputs = [cache(batch) if cache.streams else TeacherOutput() for cache in self.caches]
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

    @property
    def num_classes(self) -> int:
        """Classes C of the logits; without logits, those of the dataset."""
        return next((cache for cache in self.caches if LOGITS in cache.codecs), self.caches[0]).num_classes

    @property
    def num_rows(self) -> int:
        """Samples of the cache with the fewest."""
        return min(cache.num_rows for cache in self.caches)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes [C], in order; None if no cache holds them."""
        return next((cache.class_names for cache in self.caches if cache.class_names is not None), None)

    @property
    def names_classes(self) -> bool:
        """Whether the class names of every cache are those of its logits."""
        return all(cache.names_classes for cache in self.caches)

    @property
    def codecs(self) -> Mapping[str, RowCodec]:
        """Stream name -> its codec; of averaged logits, that of the first cache."""
        return {name: self.caches[places[0][0]].codecs[places[0][1]] for name, places in self._places.items()}

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
        """The fingerprints of the teachers that the caches were made with, as `members`, with their shares."""
        members = [dict(cache.teacher) for cache in self.caches]
        return {"name": self._describe(), "members": members, "member_weights": list(self.weights)}

    @property
    def identity(self) -> str:
        """The identity of each cache with its share and its temperature."""
        parts = zip(self.weights, self.caches, self.temperatures, strict=True)
        return " + ".join(f"{share:.9g} {cache.identity} T={temperature:.9g}" for share, cache, temperature in parts)

    @property
    def absent_keys(self) -> Sequence[str]:
        """Keys of the samples that one of the caches has no rows for."""
        return list(dict.fromkeys(key for cache in self.caches for key in cache.absent_keys))

    def check_exists(self, stream: str) -> None:
        """Raises CacheStreamError if no cache holds the stream, or several do; names them."""
        if stream in self._places:
            return
        if holders := [number for number, of in enumerate(self.caches) if stream in of.codecs and stream != LOGITS]:
            names = " and ".join(_name(self.caches[number]) for number in holders)
            ways = " or ".join(repr(f"{number}:{stream}") for number in holders)
            raise CacheStreamError(f"the stream {stream!r} is in {names}: name one of them, {ways}")
        shown = ", ".join(_name(cache) for cache in self.caches)
        raise CacheStreamError(f"no stream {stream!r} in {shown}: they hold {', '.join(self._places)}")

    def _describe(self) -> str:
        """The caches' teachers with their shares and temperatures, in a line."""
        return " + ".join(
            f"{share:.3g} {cache.teacher['name']}" + (f" at T={temperature:g}" if temperature != 1 else "")
            for share, cache, temperature in zip(self.weights, self.caches, self.temperatures, strict=True)
        )

    def __repr__(self) -> str:
        return f"CacheMixture({', '.join(_name(cache) for cache in self.caches)}: {self._describe()})"


def _name(cache: CachedTeacher) -> str:
    return f"the cache {str(cache.path)!r}"


def _one_each(name: str, numbers: Sequence[float] | None, caches: Sequence[CachedTeacher]) -> tuple[float, ...]:
    """One finite number per cache; 1 each when None."""
    if numbers is None:
        return (1.0,) * len(caches)
    expected = f"{name} must hold one finite number for each of {len(caches)} caches"
    try:
        found = [float(number + 0) for number in numbers]  # a text fails, which float() alone would read
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{expected}, got {numbers!r}") from None
    if len(found) != len(caches) or not all(map(math.isfinite, found)):
        raise ConfigError(f"{expected}, got {found}")
    return tuple(found)


def _check_same_classes(caches: Sequence[CachedTeacher]) -> None:
    """Refuses multi-label caches; compares the number of classes, and the class names that caches hold."""
    for cache in caches:
        cache.check_averageable()
    counts = [(cache, cache.num_classes) for cache in caches if LOGITS in cache.codecs]
    for cache, count in counts[1:]:
        if count != counts[0][1]:
            raise ClassMismatchError(
                f"{_name(cache)} has {count} classes, {_name(counts[0][0])} has {counts[0][1]}: caches that are mixed "
                "have the same classes; build one of them again with a class_map"
            )
    named = [(cache, list(cache.class_names)) for cache in caches if cache.class_names is not None]
    for cache, names in named[1:]:
        first, expected = named[0]
        if names == expected:
            continue
        at = next((at for at, pair in enumerate(zip(names, expected, strict=False)) if pair[0] != pair[1]), None)
        found = f"{len(names)} classes and {len(expected)}"
        if at is not None:
            found = f"class {at} as {names[at]!r} and {expected[at]!r}"
        raise ClassMismatchError(f"{_name(cache)} and {_name(first)} have {found}: build one from the same data")
