"""Codecs by name, as a configuration or a cache file names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from kdkit.cache.codecs.base import Codec, RowCodec
from kdkit.cache.codecs.compact import CompactFeature
from kdkit.cache.codecs.dense import Float16Codec, Float32Codec, Int8Codec
from kdkit.cache.codecs.dense_feature import DenseFeature
from kdkit.cache.codecs.feature import FeatureCodec, Float16Feature, Float32Feature, Int8Feature
from kdkit.cache.codecs.head import HeadCodec
from kdkit.cache.codecs.lowrank import LowRankCodec
from kdkit.cache.codecs.record import RecordCodec
from kdkit.cache.codecs.sigmoid import SigmoidFloat16Codec, SigmoidFloat32Codec, SigmoidInt8Codec
from kdkit.cache.codecs.sparse import SparseFeature
from kdkit.cache.codecs.topk import TopKCodec
from kdkit.cache.format.constants import LOGITS, RECORDS
from kdkit.errors import ConfigError, UnknownNameError, nearest

_CODECS: dict[str, type[Codec]] = {}
_FEATURE_CODECS: dict[str, type[FeatureCodec]] = {}
_Made = TypeVar("_Made", bound=RowCodec)


def register_codec(name: str, codec: type[Codec] | type[FeatureCodec]) -> None:
    """Registers a codec, so that builds can use it and caches written with it can be opened.

    A codec of logits is a `Codec`, one of features a `FeatureCodec`; the two kinds have separate namespaces. A
    cache stores only the name and the options: register the same class before opening it.

    Args:
        name: name in configurations and cache files; the class attribute `name` must be the same.
        codec: a frozen dataclass.

    Raises:
        ConfigError: it is not a codec, has another name, or the name is taken by another class.
    """
    if not issubclass(codec, (Codec, FeatureCodec)):
        raise ConfigError(f"register_codec({name!r}, ...) takes a subclass of Codec or FeatureCodec, got {codec!r}")
    if codec.name != name:
        raise ConfigError(f"register_codec({name!r}, ...) got a codec whose name is {codec.name!r}: use that name")
    known: dict[str, Any] = _CODECS if issubclass(codec, Codec) else _FEATURE_CODECS
    if known.setdefault(name, codec) is not codec:
        raise ConfigError(f"the codec name {name!r} is taken by {known[name].__qualname__}: choose another")


def available_codecs() -> list[str]:
    """The names that `create_codec` takes, most accurate first."""
    return list(_CODECS)


def create_codec(name: str, num_classes: int, **options: Any) -> Codec:
    """The codec called `name` for rows of `num_classes` classes, e.g. `create_codec("int8", 1000)`.

    Raises:
        UnknownNameError: no codec has this name.
        ConfigError: the codec has no such option, or the class count is below 2.
    """
    if name not in _CODECS:
        known = ", ".join(available_codecs())
        raise UnknownNameError(f"no codec is called {name!r}; known: {known}{nearest(name, _CODECS)}")
    if num_classes < 2:
        raise ConfigError(f"a codec needs at least 2 classes, got num_classes={num_classes}")
    return _create(_CODECS[name], num_classes, "num_classes", options)


def _create(codec: Callable[..., _Made], first: Any, first_name: str, options: Mapping[str, Any]) -> _Made:
    """The codec of this class, whose options are checked by name."""
    name: str = codec.name  # type: ignore[attr-defined]
    known_options = {f.name for f in dataclasses.fields(codec) if f.init} - {first_name}  # type: ignore[arg-type]
    for option in options:
        if option not in known_options:
            accepted = ", ".join(sorted(known_options)) or "none"
            raise ConfigError(f"codec {name!r} has no option {option!r}; it takes {accepted}")
    try:
        return codec(first, **options)
    except TypeError as error:  # a codec compares its options, and may be a user's own
        raise ConfigError(f"codec {name!r} does not take the options {options!r}: {error}") from error


def multi_label_codec(name: str | None, num_classes: int, **options: Any) -> Codec:
    """The codec of multi-label logits that corresponds to one called `name`; sigmoid_float16 by default.

    Raises:
        ConfigError: there is none, because the codec keeps only a part of one distribution over the classes.
    """
    names = [known for known in _CODECS if _CODECS[known].multi_label]
    wanted = names[1] if name is None else name if name in names else f"sigmoid_{name}"
    if wanted not in names:
        raise ConfigError(
            f"the codec {name!r} keeps one distribution over the classes, which multi-label logits are not: take "
            f"{', '.join(names)}"
        )
    return create_codec(wanted, num_classes, **options)


def default_codec(num_classes: int) -> Codec:
    """The codec to use if none is named: lowrank if its rows are smaller than float16's, else float16."""
    exact = create_codec(Float16Codec.name, num_classes)
    if LowRankCodec.row_bytes >= exact.row_bytes:  # the class attribute is the default of the option
        return exact
    return create_codec(LowRankCodec.name, num_classes)


def codec_of_size(name: str | None, num_classes: int, row_bytes: int, **options: Any) -> Codec:
    """The codec called `name` whose rows take at most `row_bytes` bytes: the largest that fits.

    Args:
        name: lowrank, head or topk; None for float16 if its rows are small enough, else lowrank.
        num_classes: C.
        row_bytes: maximum bytes per row.
        options: further options of the codec.

    Raises:
        ConfigError: the codec has no option for its size, or its smallest row is larger.
    """
    if name is None:
        exact = create_codec(Float16Codec.name, num_classes)
        if exact.row_bytes <= row_bytes:
            return exact
        name = LowRankCodec.name
    if name in (LowRankCodec.name, HeadCodec.name):
        return create_codec(name, num_classes, **{"row_bytes": row_bytes, **options})
    codec = create_codec(name, num_classes, **options)
    if not isinstance(codec, TopKCodec):
        raise ConfigError(
            f"the codec {name!r} has no option for its size, its rows of {num_classes} classes take {codec.row_bytes} "
            "bytes: leave out the bytes, or take lowrank, head or topk"
        )
    fitting = [k for k in range(1, num_classes + 1) if TopKCodec(num_classes, k).row_bytes <= row_bytes]
    if not fitting:
        min_bytes = TopKCodec(num_classes, 1).row_bytes
        raise ConfigError(f"topk of {num_classes} classes needs at least {min_bytes} bytes per row, got {row_bytes}")
    return TopKCodec(num_classes, fitting[-1])


def available_feature_codecs() -> list[str]:
    """The names that `create_feature_codec` takes, most accurate first."""
    return list(_FEATURE_CODECS)


def create_feature_codec(name: str, shape: Sequence[int], **options: Any) -> FeatureCodec:
    """The codec called `name` for features whose rows have this shape, e.g. `create_feature_codec("int8", (196, 384))`.

    Raises:
        UnknownNameError: no codec of features has this name.
        ConfigError: no row has such a shape, or the codec has no such option.
    """
    if name not in _FEATURE_CODECS:
        known = ", ".join(available_feature_codecs())
        raise UnknownNameError(
            f"no codec of features is called {name!r}; known: {known}{nearest(name, _FEATURE_CODECS)}"
        )
    return _create(_FEATURE_CODECS[name], tuple(shape), "shape", options)


def feature_codec_for(name: str, row_bytes: int | None, sample: Tensor) -> FeatureCodec:
    """The codec called `name` for features like a sample [B, ...], of this many bytes per row or of its default size.

    It is not fitted yet if it needs a fit.

    Raises:
        UnknownNameError: no codec of features has this name.
        ConfigError: the codec has one size only, or its smallest row is larger.
    """
    size = {} if row_bytes is None else {"row_bytes": row_bytes}
    return create_feature_codec(name, sample.shape[1:], **size).suited_to(sample)


def codec_from_dict(stream: str, described: Mapping[str, Any]) -> RowCodec:
    """The codec, not fitted yet, that a file's metadata describes for a stream; `RowCodec.to_dict` is the inverse."""
    if stream == RECORDS:
        return RecordCodec(tuple(described["shape"]))
    return create_codec(**described) if stream == LOGITS else create_feature_codec(**described)


def known_codecs(stream: str) -> list[str]:
    """Names of the codecs that a stream can have."""
    if stream == RECORDS:
        return [RecordCodec.name]
    return available_codecs() if stream == LOGITS else available_feature_codecs()


register_codec("float32", Float32Codec)
register_codec("float16", Float16Codec)
register_codec("int8", Int8Codec)
register_codec("lowrank", LowRankCodec)
register_codec("topk", TopKCodec)
register_codec("head", HeadCodec)
for _codec in (SigmoidFloat32Codec, SigmoidFloat16Codec, SigmoidInt8Codec):
    register_codec(_codec.name, _codec)
for _feature in (Float32Feature, Float16Feature, Int8Feature, SparseFeature, DenseFeature, CompactFeature):
    register_codec(_feature.name, _feature)
